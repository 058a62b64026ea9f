"""The checkpoints of a tuning, in its output folder: complete or not used, and resumed under the same conditions only.

    checkpoints = Checkpoints(Path("out/careful/checkpoints"), "t-4f2a…")
    checkpoints.check("cpu")                       ResumeRefused under other threads, torch or processor
    newest = checkpoints.newest()                  the newest complete one, or None
    checkpoints.reserve(model, copies=1)           disk space for the last one, so that it can always be written
    checkpoints.seal(folder, "cpu")                writes the manifest, last of all files

A manifest has the SHA-256 of every file. A checkpoint that does not agree with its manifest, because the process died
or a file changed, is removed and not used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from aftertune.errors import ResumeRefused, StorageError
from aftertune.sources.cache import write_atomic
from aftertune.values import from_json

#: The manifest of a checkpoint, and the state of `callbacks.RunControl` in it. Older versions have the same names.
MANIFEST, STATE = "sealed.json", "course.json"
_RESERVED = ".reserved"
#: Bytes of the last checkpoint beside its weights: tokenizer, configs and the history of the steps.
BESIDES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one tuning. folder: holds ``checkpoint-STEP`` folders; tuning: its id."""

    folder: Path
    tuning: str

    def newest(self) -> Path | None:
        """The newest checkpoint that is complete; incomplete ones are removed."""
        paths = self._paths()
        complete = [path for path in paths if self._is_complete(path)]
        for path in paths:
            if path not in complete:
                shutil.rmtree(path, ignore_errors=True)
        return complete[-1] if complete else None

    def begun(self) -> bool:
        """Whether there is a complete checkpoint of this tuning."""
        return any(self._is_complete(path) for path in self._paths())

    def threads(self) -> int | None:
        """The number of CPU threads of the newest checkpoint; None where there is none, or it does not say."""
        threads = self._conditions().get("threads")
        return threads if isinstance(threads, int) and threads > 0 else None

    def check(self, device: str) -> None:
        """Raise ResumeRefused if the newest checkpoint was made under other conditions than those of this process.

        Sums of floating-point numbers would differ, so the end would not be that of an unbroken run. A checkpoint of an
        older version does not say its conditions and is resumed.
        """
        then, now = self._conditions(), conditions(device)
        changed = [f"{name}: {then[name]} then, {now[name]} now" for name in now if name in then
                   and then[name] != now[name]]
        if changed:
            raise ResumeRefused(f"{self.folder}: the checkpoint was made under other conditions "
                                f"({'; '.join(changed)}), so the weights would not be those of an unbroken run; resume "
                                "it under the same conditions, or remove this folder to train from the beginning")

    def seal(self, checkpoint: Path, device: str) -> None:
        """Write the manifest of a checkpoint whose files are complete."""
        files = {name: sha256(checkpoint / name) for name in file_names(checkpoint, MANIFEST)}
        write_atomic(checkpoint / MANIFEST, json.dumps(
            {"tuning": self.tuning, "files": files, "conditions": conditions(device)}, indent=1))

    def reserve(self, model: Any, *, copies: int) -> None:
        """Take disk space for the last checkpoint: ``copies`` of the trainable weights.

        Raises StorageError where there is not enough, so that this is known before the training.
        """
        size = copies * trainable_bytes(model) + BESIDES
        reserve_space(self.folder / _RESERVED, size, "for the tuned weights", "")

    def release(self) -> None:
        """Give the reserved disk space back."""
        (self.folder / _RESERVED).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all checkpoints, once the tuning is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"), key=_step_of)

    def _conditions(self) -> Mapping[str, Any]:
        """The conditions of the newest checkpoint of this tuning; empty where there is none, or it has none."""
        for path in reversed(self._paths()):
            manifest = manifest_in(path / MANIFEST)
            if manifest.get("tuning") == self.tuning:
                found = manifest.get("conditions")
                return found if isinstance(found, dict) else {}
        return {}

    def _is_complete(self, checkpoint: Path) -> bool:
        manifest = manifest_in(checkpoint / MANIFEST)
        try:
            return bool(manifest.get("tuning") == self.tuning and manifest.get("files") == {
                name: sha256(checkpoint / name) for name in file_names(checkpoint, MANIFEST)})
        except OSError:
            return False


def conditions(device: str) -> dict[str, Any]:
    """What decides how the floating-point sums of a training are made, beside its settings."""
    import torch

    if device.startswith("cuda"):
        return {"torch": torch.__version__, "device": torch.cuda.get_device_name(device)}
    return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability()}


def manifest_in(file: Path) -> Mapping[str, Any]:
    """The manifest of a checkpoint; empty where there is none that can be read."""
    try:
        manifest = from_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def file_names(folder: Path, manifest: str) -> list[str]:
    """The names of all files in a folder and its folders, except its manifest."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != manifest)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def trainable_bytes(model: Any) -> int:
    """Bytes of the weights of a model that are trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def reserve_space(file: Path, size: int, what: str, remedy: str) -> None:
    """Take ``size`` bytes of disk space with a file that has no content. what, remedy: for the error.

    Raises StorageError where there is not enough. Systems that cannot reserve space have no such file.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise StorageError(f"{file.parent}: {size / 2**20:,.0f} MiB are needed {what} ({error.strerror}); free some "
                           f"space, {remedy + ', ' if remedy else ''}or choose another folder with --out") from error


def _step_of(checkpoint: Path) -> int:
    suffix = checkpoint.name.rpartition("-")[2]
    return int(suffix) if suffix.isdigit() else -1
