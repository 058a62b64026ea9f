"""Gives a fine-tune less strength, without training: as much as it takes to keep what should be kept.

    cured = soften("runs/orders", CureRequest(keep={"hellaswag": 2.0}, target=TaskSpec(…)), ledger=ledger)
    cured.cure.chosen, cured.tuning.output        "strength 0.4", "runs/orders-softened"

The strengths are tried as `aftertune.cure.trial` says, the stronger ones first. Strength 1, the fine-tune itself, is
always among them. Then the middle between the largest strength that may be chosen and the next one is tried
(`finer_strength`). `by="depth"` also softens each third of the layers alone, while the others keep strength 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from aftertune.cure.parents import Parent, find_parent
from aftertune.cure.trial import Cured, CureRequest, Proposal, Trial, run_trial
from aftertune.errors import InputError
from aftertune.tuning.strength import THIRDS, WHOLE, strengths, write_softened
from aftertune.values import Candidate, Progress

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Strengths of the whole, and fewer where each third has them too.
STRENGTHS, BY_DEPTH = (0.2, 0.4, 0.6, 0.8), (0.3, 0.6)


def soften(tuning: str, request: CureRequest, *, strengths: Sequence[float] = (), by: Literal["", "depth"] = "",
           ledger: Ledger, progress: Progress | None = None) -> Cured:
    """Choose the strength of a fine-tune that keeps what the request names, confirm it on other items, and write it.

    tuning: a folder, id or name. strengths: above 0, up to 1; empty: `STRENGTHS`, or `BY_DEPTH` with ``by="depth"``.
    Nothing is written if no strength is good enough, or if the fine-tune itself is chosen.

    Raises InputError for a fine-tune whose base is not proven, or that cannot be softened, and what `run_trial` raises.
    """
    parent = find_parent(tuning, ledger)
    chosen = sorted({1.0, *(strengths or (BY_DEPTH if by else STRENGTHS))}, reverse=True)
    for strength in chosen:
        if not 0 < strength <= 1:
            raise InputError(f"strength {strength:g}: allowed are numbers above 0, up to 1 (1 is the fine-tune itself)")
    trial = Trial("soften", [parent], softened_proposals(parent, chosen, by=by), request.asked_like(parent.tuning),
                  finer=None if strengths or by else partial(finer_strength, parent))
    return run_trial(trial, ledger=ledger, progress=progress)


def softened_proposals(parent: Parent, chosen: Sequence[float], *, by: str = "") -> list[Proposal]:
    """A proposal for each strength, and with ``by="depth"`` for each third at each strength below 1."""
    def proposal(name: str, parts: Mapping[str, float]) -> Proposal:
        return Proposal(name, parts, partial(write_softened, parent.files, parts))

    proposals = [proposal(f"strength {a:g}", {WHOLE: a}) for a in chosen]
    if by:
        thirds = [proposal(f"{third} third {a:g}", dict.fromkeys(THIRDS, 1.0) | {third: a})
                  for a in chosen if a < 1 for third in THIRDS]
        strengths(parent.files.names, dict.fromkeys(THIRDS, 1.0))  # refuses a fine-tune of too few layers
        return [*proposals[:1], *thirds, *proposals[1:]]
    return proposals


def finer_strength(parent: Parent, candidates: Sequence[Candidate]) -> tuple[Proposal, str] | None:
    """The strength in the middle between the largest one that may be chosen and the next one, which loses too much, and
    the name of that one. Below the smallest strength, if that loses too much as well. None if strength 1 may be chosen.
    """
    tried = {c.parts[WHOLE]: c for c in candidates if set(c.parts) == {WHOLE}}
    allowed = max((a for a, c in tried.items() if not c.refused), default=0.0)
    above = min((a for a in tried if a > allowed), default=None)
    if above is None:
        return None
    return softened_proposals(parent, [round((allowed + above) / 2, 3)])[0], tried[above].name
