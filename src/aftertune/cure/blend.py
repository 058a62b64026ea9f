"""Blends several fine-tunes of one base, without training, and proves on other items what the blend keeps.

    cured = blend(["runs/orders", "runs/chat"], CureRequest(keep={"hellaswag": 2.0}), weights=(0.5, 0.5), ledger=ledger)
    cured = blend(["runs/orders", "runs/chat"], request, ledger=ledger)       tries a grid of weights that sum to 1

The blends are tried as `aftertune.cure.trial` says. In a search the more even ones come first, and each fine-tune alone
is among them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.cure.parents import Parent, find_parent
from aftertune.cure.trial import Cured, CureRequest, Proposal, Trial, run_trial
from aftertune.errors import InputError
from aftertune.tuning.blending import AdapterBlends, Blending, check_blend, write_blended
from aftertune.values import Progress

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: Number of fine-tunes -> the step of the weights in a search.
STEPS = {2: 4, 3: 3}


def blend(tunings: Sequence[str], request: CureRequest, *, weights: Sequence[float] = (),
          blending: Blending | None = None, ledger: Ledger, progress: Progress | None = None) -> Cured:
    """Choose the weights of a blend that keeps what the request names, confirm it on other items, and write it.

    tunings: two or three fine-tunes of one base: folders, ids or names. weights: one for each; empty: a search.
    Nothing is written if no blend is good enough, or if one of the fine-tunes alone is chosen.

    Raises InputError for fine-tunes whose base is not proven or not the same, or that cannot be blended, and what
    `run_trial` raises.
    """
    if len(tunings) not in STEPS:
        raise InputError(f"blend takes two or three fine-tunes, not {len(tunings)}")
    if weights and len(weights) != len(tunings):
        raise InputError(f"--weights has {len(weights)} numbers for {len(tunings)} fine-tunes; give one for each")
    if any(not 0 <= w <= 2 for w in weights) or (weights and sum(w > 0 for w in weights) < 2):
        raise InputError(f"--weights {','.join(f'{w:g}' for w in weights)}: allowed are numbers from 0 to 2, at least "
                         "two of them above 0; for one fine-tune alone use aftertune soften")
    blending = blending or Blending()
    parents = find_members(tunings, ledger)
    check_blend([p.files for p in parents], blending)
    choices = [tuple(weights)] if weights else grid(len(parents))
    with tempfile.TemporaryDirectory(prefix="aftertune-") as folder:
        proposals = blended_proposals(parents, choices, blending, Path(folder))
        trial = Trial("blend", parents, proposals, request.asked_like(parents[0].tuning))
        return run_trial(trial, ledger=ledger, progress=progress)


def grid(members: int) -> list[tuple[float, ...]]:
    """The weights of a search: all multiples of a quarter (of a third for three members) that sum to 1, the more even
    ones first."""
    step = STEPS[members]
    points = [p for p in product(range(step, -1, -1), repeat=members) if sum(p) == step]
    return [tuple(n / step for n in p) for p in sorted(points, key=lambda p: sum(n * n for n in p))]


def find_members(words: Sequence[str], ledger: Ledger, *, softened: bool = True) -> list[Parent]:
    """The fine-tunes of a blend. Raises InputError as `find_parent`, and unless they are different ones of one base."""
    parents = [find_parent(word, ledger, softened=softened) for word in words]
    first = parents[0]
    for parent, word in zip(parents[1:], words[1:], strict=True):
        if parent.tuning.base.stored.fingerprint != first.tuning.base.stored.fingerprint:
            raise InputError(f"{word} was made from {parent.tuning.base.source}, but {words[0]} from "
                             f"{first.tuning.base.source}; a blend needs fine-tunes of one base")
    if len({p.result for p in parents}) < len(parents):
        raise InputError(f"{', '.join(words)}: two of them are the same model; give different fine-tunes")
    return parents


def blended_proposals(parents: Sequence[Parent], choices: Sequence[tuple[float, ...]], blending: Blending, folder: Path
                      ) -> list[Proposal]:
    """A proposal for each choice of weights. folder: a temporary folder, which is needed until they are written."""
    files = [p.files for p in parents]
    blends = AdapterBlends(files, choices, blending, folder) if files[0].adapter else None
    names = _member_names(parents)
    method = "" if blending.method == "linear" else f"{blending.method} {blending.density:g} "
    return [Proposal(f"{method}weights {', '.join(f'{w:.3g}' for w in weights)}",
                     dict(zip(names, weights, strict=True)),
                     partial(blends.write, weights) if blends else partial(write_blended, files, weights))
            for weights in choices]


def _member_names(parents: Sequence[Parent]) -> list[str]:
    """The name of each fine-tune, with its number where two have the same."""
    names = [p.tuning.name for p in parents]
    return names if len(set(names)) == len(names) else [f"{name} ({n})" for n, name in enumerate(names, 1)]
