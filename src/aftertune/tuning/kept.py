"""Keeps the tuned weights of several steps, each in a complete folder of its own in the output folder.

    kept = KeptCheckpoints(Path("out/careful"), Origin("t-4f2a…", "lora", base), KeepPlan(count=3), writer)
    kept.restore(40)                        after a resume from step 40: what later steps wrote is removed
    kept.reserve(model, 5)                  disk space for five of them
    kept.add(model, 50)                     writes out/careful/kept/step-50, completely or not at all
    kept.prune(chosen=20)                   the last 3 and step 20 stay
    kept.checkpoints()                      (KeptCheckpoint(step=20, …), …)

PEFT, transformers and ``aftertune eval --adapter`` load such a folder. Its ``aftertune.json`` names the tuning, the
base, the fingerprint of the model and the SHA-256 of every file. A folder that does not agree with it is damaged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import StorageError
from aftertune.sources.cache import temporary_path, write_atomic
from aftertune.sources.library_errors import disk_errors
from aftertune.study.keep_best import KeepBest
from aftertune.tuning.checkpoints import BESIDES, file_names, manifest_in, reserve_space, sha256
from aftertune.tuning.output import AGAIN, MANIFEST, result_of
from aftertune.values import HeldOut, KeptCheckpoint, ModelIdentity, plain, restore

#: The folder of the kept checkpoints, in the output folder.
FOLDER = "kept"
_RESERVED = ".reserved"

@dataclass(frozen=True, slots=True)
class KeepPlan:
    """Which checkpoints are kept. count: the last so many, None for all; rule: chooses one that is kept in any case."""

    count: int | None = None
    rule: KeepBest | None = None

    def most(self, looks: int) -> int:
        """The most checkpoints that are on disk at once in a run of ``looks`` looks."""
        if self.count is None:
            return looks
        return min(looks, self.count + 1 + (self.rule is not None))


@dataclass(frozen=True, slots=True)
class CheckpointWriter:
    """How a checkpoint is written. write: called with the model in training and an empty folder; writes the tuned
    weights and the tokenizer there, and returns the held-out loss with them. bytes_per_weight: in the file, for each
    trained weight. say: shows a line."""

    write: Callable[[Any, Path], HeldOut | None]
    bytes_per_weight: int
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where checkpoints come from. tuning: id of the tuning."""

    tuning: str
    method: str
    base: ModelIdentity


class KeptCheckpoints:
    """The kept checkpoints of one tuning. out: its output folder."""

    def __init__(self, out: Path, origin: Origin, plan: KeepPlan, writer: CheckpointWriter) -> None:
        self.out, self.folder, self.origin, self.plan, self.writer = out, out / FOLDER, origin, plan, writer
        self._each = 0

    def restore(self, step: int) -> None:
        """Remove what steps after ``step`` wrote, and damaged checkpoints; a resumed run writes them again."""
        for path in _folders(self.folder):
            checkpoint = read_checkpoint(path, self.origin.tuning)
            if checkpoint is None or checkpoint.step > step or damage(self.out, checkpoint):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".step-*"):  # a process that was killed while it wrote
            shutil.rmtree(path, ignore_errors=True)

    def reserve(self, model: Any, count: int) -> None:
        """Take disk space for ``count`` checkpoints, less those that are there, and say how much it is.

        Raises StorageError where there is not enough, so that this is known before the training.
        """
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._each = trained * self.writer.bytes_per_weight + BESIDES
        more = count - len(self.checkpoints())
        if more > 0:
            reserve_space(self.folder / _RESERVED, self._each * more, f"for {more} kept checkpoints",
                          "keep fewer with --keep-checkpoints N")
            self.writer.say(f"keeping up to {count} checkpoints of about {self._each / 2**20:,.0f} MiB, "
                            f"{count * self._each / 2**20:,.0f} MiB in all")

    def release(self) -> None:
        """Give the reserved disk space back."""
        (self.folder / _RESERVED).unlink(missing_ok=True)

    def add(self, model: Any, step: int) -> None:
        """Write the weights of ``step``, in the disk space that was reserved. Raises StorageError (disk full)."""
        final = self.folder / f"step-{step}"
        temporary = temporary_path(final)
        with disk_errors(self.folder, AGAIN):
            self.folder.mkdir(parents=True, exist_ok=True)
            reserved = self.folder / _RESERVED
            if reserved.exists():
                with reserved.open("r+b") as file:
                    file.truncate(max(reserved.stat().st_size - self._each, 0))
            try:
                temporary.mkdir()
                held_out = self.writer.write(model, temporary)
                seal(temporary, self.origin, step, held_out)
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
            except StorageError as error:  # say the name that the folder would have
                raise StorageError(str(error).replace(str(temporary), str(final))) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def prune(self, chosen: int | None) -> None:
        """Remove all but the last ``plan.count`` checkpoints and the chosen one."""
        if self.plan.count is None:
            return
        steps = [c.step for c in self.checkpoints()]
        stay = {*steps[max(len(steps) - self.plan.count, 0):], chosen}
        for step in steps:
            if step not in stay:
                shutil.rmtree(self.folder / f"step-{step}", ignore_errors=True)

    def checkpoints(self) -> tuple[KeptCheckpoint, ...]:
        """The complete checkpoints, in the order of their steps."""
        found = [read_checkpoint(path, self.origin.tuning) for path in _folders(self.folder)]
        return tuple(c for c in found if c is not None)

    def find(self, step: int) -> KeptCheckpoint:
        """The checkpoint of a step. Raises StorageError if it is not there."""
        for checkpoint in self.checkpoints():
            if checkpoint.step == step:
                return checkpoint
        raise StorageError(f"{self.folder}: the checkpoint of step {step}, which --keep-best chose, is missing or "
                           f"damaged; remove {self.out / 'checkpoints'} and run the same command again to train again")


def remove_checkpoints(out: Path, *, except_of: str | None = None) -> None:
    """Remove the kept checkpoints in an output folder, except those of the tuning ``except_of``. Other files stay."""
    for path in _folders(out / FOLDER):
        manifest = manifest_in(path / MANIFEST)
        if "tuning" in manifest and manifest["tuning"] != except_of:
            shutil.rmtree(path, ignore_errors=True)
    (out / FOLDER / _RESERVED).unlink(missing_ok=True)
    if (out / FOLDER).is_dir() and not any((out / FOLDER).iterdir()):
        (out / FOLDER).rmdir()


def seal(folder: Path, origin: Origin, step: int, held_out: HeldOut | None) -> None:
    """Write the manifest of a checkpoint whose files are complete, last of all files."""
    files = {name: sha256(folder / name) for name in file_names(folder, MANIFEST)}
    write_atomic(folder / MANIFEST, json.dumps({
        "tuning": origin.tuning, "method": origin.method, "step": step, "base": plain(origin.base),
        "result": result_of(folder, origin.method, origin.base), "files": files,
        "held_out": None if held_out is None else plain(held_out)}, indent=1, sort_keys=True) + "\n")


def read_checkpoint(folder: Path, tuning: str) -> KeptCheckpoint | None:
    """The checkpoint in a folder; None if it has no manifest of this tuning."""
    manifest = manifest_in(folder / MANIFEST)
    if manifest.get("tuning") != tuning:
        return None
    try:
        size = sum((folder / name).stat().st_size for name in manifest["files"])
        return restore(KeptCheckpoint, {**manifest, "folder": f"{FOLDER}/{folder.name}", "size": size})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def damage(out: Path, checkpoint: KeptCheckpoint) -> str:
    """What is wrong with the files of a checkpoint, "" if they are as they were written."""
    folder = out / checkpoint.folder
    for name, sha in checkpoint.files.items():
        try:
            if sha256(folder / name) != sha:
                return f"{folder / name} was changed since the training"
        except OSError:
            return f"{folder / name} is missing"
    return ""


def hand_on(out: Path, checkpoint: KeptCheckpoint) -> None:
    """Make the files of a checkpoint the final ones of the output folder. A file that is equal already is not touched;
    each of the others is copied beside its place first, and then renamed.

    Raises StorageError if the checkpoint is damaged or the disk is full.
    """
    if fault := damage(out, checkpoint):
        raise StorageError(f"step {checkpoint.step} cannot be used: {fault}; choose another step, or tune again")
    changed = [name for name, sha in checkpoint.files.items()
               if not (out / name).is_file() or sha256(out / name) != sha]
    copies = {name: temporary_path(out / name) for name in changed}
    with disk_errors(out, "run the same command again"):
        try:
            for name, copy in copies.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(out / checkpoint.folder / name, copy)
            for name, copy in copies.items():
                copy.replace(out / name)
        finally:
            for copy in copies.values():
                copy.unlink(missing_ok=True)


def copy_checkpoint(out: Path, checkpoint: KeptCheckpoint, to: Path) -> None:
    """Copy the files of a checkpoint of the output folder ``out`` to the new folder ``to``, without a manifest.

    Raises StorageError if the disk is full or a file is missing.
    """
    with disk_errors(to, "run the same command again"):
        for name in checkpoint.files:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / checkpoint.folder / name, to / name)


def copy_final(out: Path, names: Collection[str], origin: Origin, step: int, held_out: HeldOut | None) -> None:
    """Keep the final weights of the output folder as the checkpoint of ``step``. names: of their files."""
    final = out / FOLDER / f"step-{step}"
    temporary = temporary_path(final)
    with disk_errors(out / FOLDER, "run the same command again"):
        try:
            for name in names:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(out / name, temporary / name)
            seal(temporary, origin, step, held_out)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _folders(folder: Path) -> list[Path]:
    """The folders ``step-N``, in the order of their steps."""
    paths = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdecimal()]
    return sorted(paths, key=lambda p: int(p.name.removeprefix("step-")))
