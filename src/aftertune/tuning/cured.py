"""Makes a fine-tune at less strength, or at an earlier kept step, in a folder of its own, from a finished one.

    cured = make_cured(tuned, Path("tunings/soft"), name="soft", soften=0.6)
    cured = make_cured(tuned, Path("tunings/back"), name="back", rollback=20)

These are the two cheapest cures as cells of a study: nothing is chosen here, and the fine-tune itself stays as it is.
`aftertune.cure` chooses a strength or a step instead, and confirms it on other items. The record has the settings of
the training with ``soften`` or ``rollback`` beside them, so that tables and seeds treat it as a recipe of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.methods import writes_adapter
from aftertune.paths import exists
from aftertune.provenance import capture, finish
from aftertune.sources import ModelSource, resolve_model
from aftertune.sources.cache import remove_path, temporary_path
from aftertune.sources.library_errors import disk_errors
from aftertune.study.cured import CURES
from aftertune.tuning import kept, output
from aftertune.tuning.strength import WHOLE, FineTuneFiles, check_strength, write_softened
from aftertune.values import KeptCheckpoint, Tuning, digest


def make_cured(tuned: Tuning, out: Path, *, name: str, soften: float | None = None, rollback: int | None = None
               ) -> Tuning:
    """Write the fine-tune at the strength ``soften``, or at the step ``rollback``, to ``out``, completely or not at
    all. What is there already is not written again.

    Raises InputError if it cannot be softened, or has no such kept checkpoint, or a damaged one; StorageError if the
    disk is full.
    """
    change = {"soften": soften} if soften is not None else {"rollback": rollback}
    base = resolve_model(tuned.base.source, revision=tuned.base.revision,
                         trust_remote_code=tuned.base.trust_remote_code)
    cured = replace(tuned, id=_id(tuned, tuned.result, change), name=name, output=str(out))
    if (done := output.finished(out, cured.id, base, tuned.base)) is not None:
        return replace(done, output=str(out))
    checkpoint = None if rollback is None else _checkpoint(tuned, rollback)
    what = f"at strength {soften:g}" if checkpoint is None else f"at its kept step {checkpoint.step}"
    provenance, written = capture(), temporary_path(out)
    with disk_errors(out, "run the same command again"):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(tuned, base, written, soften, checkpoint)
            result = output.result_of(written, tuned.method, tuned.base)
            cured = replace(
                cured, settings={**tuned.settings, **change}, result=result, merged=None,
                held_out=checkpoint.held_out if checkpoint else None, steps=(), cost={}, watch=(),
                checkpoints=(), choice=None, final_step=checkpoint.step if checkpoint else None, states=(), exports=(),
                notes=(*tuned.notes, f"made without training from {tuned.name}, {what}"), provenance=finish(provenance))
            output.write_manifest(written, cured)
            if exists(out):
                shutil.rmtree(out)
            written.rename(out)
        finally:
            remove_path(written)
    return cured


def is_made_from(cured: Tuning, tuned: Tuning) -> bool:
    """Whether `make_cured` made a fine-tune from another one: its id says it."""
    change = {field: cured.settings[field] for field in CURES if field in cured.settings}
    models = (tuned.result, *tuned.states, *(c.result for c in tuned.checkpoints))
    return bool(change) and cured.cure is None and any(_id(tuned, model, change) == cured.id for model in models)


def _id(tuned: Tuning, model: str | None, change: Mapping[str, Any]) -> str:
    """Id of a fine-tune that is made from the model of another one."""
    return "t-" + digest([tuned.id, model, change])[:10]


def _write(tuned: Tuning, base: ModelSource, written: Path, soften: float | None, checkpoint: KeptCheckpoint | None
           ) -> None:
    """Write the weights to a new folder, without a manifest."""
    folder = Path(tuned.output)
    if checkpoint is not None:
        kept.copy_checkpoint(folder, checkpoint, written)
        return
    files = FineTuneFiles(folder, writes_adapter(tuned.method), base)
    check_strength(files)
    write_softened(files, {WHOLE: soften or 0.0}, written)


def _checkpoint(tuned: Tuning, step: int) -> KeptCheckpoint:
    """The kept checkpoint of a step. Raises InputError with those that there are, or if it is damaged."""
    found = next((c for c in tuned.checkpoints if c.step == step), None)
    if found is None:
        steps = ", ".join(str(c.step) for c in tuned.checkpoints) or "none"
        raise InputError(f"rollback: {step}: {tuned.name} kept no checkpoint of this step; it kept {steps}")
    if fault := kept.damage(Path(tuned.output), found):
        raise InputError(f"rollback: {step}: {fault}; remove {tuned.output} and run the study again")
    return found
