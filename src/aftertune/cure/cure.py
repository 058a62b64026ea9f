"""Tries every cure that needs no training, in one trial, and says what training again would cost.

    cured = cure("runs/orders", CureRequest(keep={"hellaswag": 2.0}, target=TaskSpec(…)), minutes=20, ledger=ledger)
    cured.cure.chosen, cured.cure.skipped        "step 50", {"strength 0.8": "no time for it in the budget of …"}
    cured.again                                  (Retraining("--learning-rate 0.0001", 312.0, …), …)

The models are the fine-tune itself, its earlier kept checkpoints, the fine-tune at less strength, blends with other
fine-tunes where some are named, and at last one more strength, between the largest allowed one and the next. All of
them are proposals of one trial (`aftertune.cure.trial`): one is chosen on one part of the items, and it alone is
judged on the other part. So the number of models that are tried flatters no claim.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.cure.blend import blended_proposals, find_members, grid
from aftertune.cure.parents import Parent
from aftertune.cure.retraining import retraining
from aftertune.cure.soften import STRENGTHS, finer_strength, softened_proposals
from aftertune.cure.trial import Cured, CureRequest, Proposal, Trial, run_trial
from aftertune.errors import InputError
from aftertune.tuning import kept
from aftertune.tuning.blending import Blending, check_blend
from aftertune.tuning.strength import check_strength
from aftertune.values import KeptCheckpoint, Progress

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: The most kept checkpoints that are tried; of more, so many at even distances.
MOST_CHECKPOINTS = 4
#: The most fine-tunes that one is blended with.
MOST_OTHERS = 2
#: Under a budget the strengths are tried in this order, because the middle ones cure most often.
_STRENGTHS_FIRST = (0.4, 0.6, 0.2, 0.8)


def cure(tuning: str, request: CureRequest, *, others: Sequence[str] = (), minutes: float | None = None,
         ledger: Ledger, progress: Progress | None = None) -> Cured:
    """Try the cures without training, choose the model that keeps what the request names, confirm it and write it.

    tuning: a folder, id or name. others: up to two fine-tunes of the same base to blend it with. minutes: budget of one
    run; what does not fit is left out and named in ``skipped``. Answers that are stored already take no time, so a run
    that was stopped continues. Nothing is written if no model is good enough, or if the fine-tune itself is chosen.

    Raises InputError for a fine-tune whose base is not proven, for one that can neither be softened nor has a kept
    checkpoint to go back to, for others that cannot be blended with it, and what `run_trial` raises.
    """
    if len(others) > MOST_OTHERS:
        raise InputError(f"--blend names {len(others)} fine-tunes; allowed are {MOST_OTHERS}, beside the one to cure")
    if minutes is not None and not 0 < minutes < 1e6:
        raise InputError(f"a budget of {minutes:g} minutes: give a number of minutes above 0")
    members = find_members([tuning, *others], ledger, softened=False)
    parent = members[0]
    checkpoints, skipped = _earlier_checkpoints(parent)
    softened = softened_proposals(parent, sorted({1.0, *STRENGTHS}, reverse=True))
    try:
        for member in members:
            check_strength(member.files)
    except InputError as error:
        if not checkpoints:
            raise
        skipped |= {"less strength": str(error)} | ({"blends": str(error)} if others else {})
        members, others, softened = members[:1], (), softened[:1]
    with tempfile.TemporaryDirectory(prefix="aftertune-") as folder:
        blends: list[Proposal] = []
        if others:
            check_blend([p.files for p in members], Blending())
            choices = [w for w in grid(len(members)) if w[0] > 0 and sum(n > 0 for n in w) > 1]
            blends = blended_proposals(members, choices, Blending(), Path(folder))
        proposals = [softened[0], *_in_turn(checkpoints, 1), *(
            replace(p, turn=2 + _STRENGTHS_FIRST.index(p.parts["all"])) for p in softened[1:]), *_in_turn(blends, 9)]
        trial = Trial("cure", members, proposals, request.asked_like(parent.tuning), minutes=minutes, skipped=skipped,
                      finer=partial(finer_strength, parent) if softened[1:] else None)
        cured = run_trial(trial, ledger=ledger, progress=progress)
    return replace(cured, again=retraining(parent))


def _in_turn(proposals: Sequence[Proposal], turn: int) -> list[Proposal]:
    return [replace(p, turn=turn) for p in proposals]


def _earlier_checkpoints(parent: Parent) -> tuple[list[Proposal], dict[str, str]]:
    """A proposal for each kept checkpoint before the step of the fine-tune, the latest first; and those that are left
    out, by name, with the reason."""
    tuning, out = parent.tuning, Path(parent.tuning.output)
    final, skipped, intact = tuning.final_step, dict[str, str](), list[KeptCheckpoint]()
    if not out.is_dir() or (out / "adapter_config.json").is_file() != parent.files.adapter:
        return [], {}  # the weights in the folder have another form: they were merged
    for checkpoint in reversed(tuning.checkpoints):
        if checkpoint.result == parent.result or (final is not None and checkpoint.step > final):
            continue
        if fault := kept.damage(out, checkpoint):
            skipped[_step_name(checkpoint)] = fault
        else:
            intact.append(checkpoint)
    if len(intact) > MOST_CHECKPOINTS:
        last = len(intact) - 1
        tried = {round(n * last / (MOST_CHECKPOINTS - 1)) for n in range(MOST_CHECKPOINTS)}
        skipped |= {_step_name(c): f"at most {MOST_CHECKPOINTS} checkpoints are tried, at even distances"
                    for n, c in enumerate(intact) if n not in tried}
        intact = [c for n, c in enumerate(intact) if n in tried]
    return [Proposal(_step_name(c), {"step": float(c.step)}, partial(kept.copy_checkpoint, out, c))
            for c in intact], skipped


def _step_name(checkpoint: KeptCheckpoint) -> str:
    return f"step {checkpoint.step}"
