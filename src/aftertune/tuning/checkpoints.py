"""Owns what a broken tuning goes on from: the trainer's checkpoints, each sealed by a manifest that is written last.

    folder = Checkpoints(Path("out/careful/checkpoints"), "t-4f2a…")
    folder.newest()                    checkpoint-120, where all its files are what the manifest says; or None
    folder.seal(Path("…/checkpoint-130"))

Only a checkpoint whose files all have the sha256 that its manifest names is read again; what was half written when the
process died, or changed since, is thrown away.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from aftertune.sources.cache import write_atomic

MANIFEST = "sealed.json"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one tuning, by its id."""

    folder: Path
    tuning: str

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; the others are removed."""
        found = sorted(self.folder.glob("checkpoint-*"), key=_step)
        whole = [path for path in found if self._is_whole(path)]
        for path in found:
            if path not in whole:
                shutil.rmtree(path, ignore_errors=True)
        return whole[-1] if whole else None

    def seal(self, checkpoint: Path) -> None:
        """Write the manifest of a checkpoint that is complete."""
        files = {name: _sha256(checkpoint / name) for name in _names(checkpoint)}
        write_atomic(checkpoint / MANIFEST, json.dumps({"tuning": self.tuning, "files": files}, indent=1))

    def remove(self) -> None:
        """Take all of them away: the tuning is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_whole(self, checkpoint: Path) -> bool:
        try:
            manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
            return bool(manifest["tuning"] == self.tuning and manifest["files"] == {
                name: _sha256(checkpoint / name) for name in _names(checkpoint)})
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _names(checkpoint: Path) -> list[str]:
    return sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _step(path: Path) -> int:
    last = path.name.rpartition("-")[2]
    return int(last) if last.isdigit() else -1
