"""Hands on another kept checkpoint of a finished fine-tune.

    tuning = roll_back("orders", 50, ledger)          its output folder now holds the weights of step 50
    tuning = roll_back("orders", 200, ledger)         and those of step 200 again

The weights that were final are kept as a checkpoint first, so nothing is lost. While files are replaced, the manifest
says so, and a process that is killed then leaves a folder that no command takes for finished; `roll_back` completes it
with the step that it gets, and `tune` with the one that was started.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.errors import AftertuneError, InputError
from aftertune.sources.folder_lock import folder_lock
from aftertune.sources.readme import remove_stale
from aftertune.tuning import kept, output
from aftertune.values import KeptCheckpoint, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: The status in the manifest while files are replaced. Its ``final_step`` is then the step of the new files.
ROLLING_BACK = "rolling back"
_WEIGHTS = "the weights are those of step "
_NOTE = "rolled back from step "
_MERGED = "the merged weights of the earlier step were removed"


def roll_back(word: str, step: int, ledger: Ledger) -> Tuning:
    """Hand on the kept checkpoint of ``step``; returns the tuning as its folder now holds it. word: folder, id or name.

    The ledger gets the new result. Evaluations of the earlier weights keep their model, which is that of a kept
    checkpoint. Merged weights of the earlier step are removed.

    Raises InputError if there is no such checkpoint or it is damaged, StorageError if the disk is full or another
    process works in the folder.
    """
    folder = output.folder_of(word, ledger)
    with folder_lock(folder, "works"):
        tuning = output.read_manifest(folder)
        if tuning is None or tuning.status not in ("done", ROLLING_BACK):
            raise InputError(f"{word}: no finished tuning in {folder}; tune again, or name another folder")
        checkpoint = _find(tuning, step)
        if tuning.status == ROLLING_BACK or tuning.final_step != step or tuning.result != checkpoint.result:
            tuning = _replace_weights(folder, tuning, checkpoint)
    return ledger.save_tuning(replace(tuning, output=str(folder)))


def finish_rollback(folder: Path) -> None:
    """Complete a rollback that was interrupted. The folder must be locked.

    Raises InputError if the checkpoint is damaged, with the command that completes the rollback with another one.
    """
    tuning = output.read_manifest(folder)
    if tuning is None or tuning.status != ROLLING_BACK:
        return
    checkpoint = _find(tuning, tuning.final_step or 0)
    if fault := kept.damage(folder, checkpoint):
        steps = _intact(folder, tuning)
        advice = f"complete it with another step: aftertune rollback {folder} --to {steps[-1]}" if steps else \
            f"no other step is intact: remove {folder} and tune again"
        raise InputError(f"{folder}: the rollback to step {checkpoint.step} was interrupted, and {fault}; {advice}")
    _complete(folder, tuning)


def _find(tuning: Tuning, step: int) -> KeptCheckpoint:
    """The kept checkpoint of a step. Raises InputError with those that there are."""
    if not tuning.checkpoints:
        raise InputError(f"{tuning.name}: it kept no checkpoints; tune with --keep-checkpoints all, or with a number, "
                         "to keep them")
    for checkpoint in tuning.checkpoints:
        if checkpoint.step == step:
            return checkpoint
    steps = ", ".join(str(c.step) for c in tuning.checkpoints)
    raise InputError(f"{tuning.name}: no kept checkpoint of step {step}; there are those of the steps {steps}")


def _intact(folder: Path, tuning: Tuning) -> list[int]:
    """The steps of the kept checkpoints that are as they were written."""
    return [c.step for c in tuning.checkpoints if not kept.damage(folder, c)]


def _replace_weights(folder: Path, tuning: Tuning, checkpoint: KeptCheckpoint) -> Tuning:
    """Keep the final weights, note in the manifest what happens, then replace them.

    Where a rollback was interrupted they are kept already, and this one takes its place.
    """
    if fault := kept.damage(folder, checkpoint):
        steps = _intact(folder, tuning)
        advice = f"choose another step ({', '.join(map(str, steps))})" if steps else \
            f"no kept checkpoint is intact: remove {folder} and tune again" if tuning.status == ROLLING_BACK else \
            "no kept checkpoint is intact: the weights in the folder stay as they are"
        raise InputError(f"{tuning.name}: step {checkpoint.step} cannot be used, because {fault}; {advice}")
    begun = next((note for note in tuning.notes if note.startswith(_NOTE)), "") \
        if tuning.status == ROLLING_BACK else ""
    if not begun:
        tuning = _with_final_kept(folder, tuning, checkpoint)
    notes = [note.partition(f"; {_WEIGHTS}")[0] for note in tuning.notes
             if not note.startswith((_WEIGHTS, _NOTE, _MERGED))]
    origin = begun.removeprefix(_NOTE).partition(":")[0] or tuning.final_step
    notes.append(f"{_NOTE}{origin}: {_WEIGHTS}{checkpoint.step}")
    if tuning.merged:
        notes.append(f"{_MERGED}; the same tune command with --merge writes those of this step, without training")
    rolling = replace(tuning, status=ROLLING_BACK, final_step=checkpoint.step, notes=tuple(notes))
    output.write_manifest(folder, rolling)
    return _complete(folder, rolling)


def _complete(folder: Path, rolling: Tuning) -> Tuning:
    """Replace the files of the folder by those of the step that the manifest names, then write the final manifest."""
    checkpoint = _find(rolling, rolling.final_step or 0)
    remove_stale(folder)  # a card of other weights
    kept.hand_on(folder, checkpoint)
    shutil.rmtree(folder / output.FOLDER, ignore_errors=True)
    done = replace(rolling, status="done", result=checkpoint.result, held_out=checkpoint.held_out, merged=None)
    output.write_manifest(folder, done)
    return done


def _with_final_kept(folder: Path, tuning: Tuning, like: KeptCheckpoint) -> Tuning:
    """The tuning with its final weights among the kept checkpoints. like: a checkpoint with the same file names.

    Raises InputError if they were changed since the tuning: a copy would not be what the tuning made.
    """
    if any(c.result == tuning.result and not kept.damage(folder, c) for c in tuning.checkpoints):
        return tuning
    try:
        result = output.result_of(folder, tuning.method, tuning.base)
    except AftertuneError:  # damaged
        result = None
    if result != tuning.result or tuning.final_step is None:
        raise InputError(f"{folder}: the final weights were changed since the tuning, so they cannot be kept; restore "
                         f"them, or copy {folder / like.folder} to another folder and use it there")
    origin = kept.Origin(tuning.id, tuning.method, tuning.base)
    kept.copy_final(folder, like.files, origin, tuning.final_step, tuning.held_out)
    own = kept.read_checkpoint(folder / kept.FOLDER / f"step-{tuning.final_step}", tuning.id)
    assert own is not None
    others = (c for c in tuning.checkpoints if c.step != own.step)
    return replace(tuning, checkpoints=tuple(sorted((*others, own), key=lambda c: c.step)))
