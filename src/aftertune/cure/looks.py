"""Finds what was looked at before: the earlier looks at models of the same fine-tunes, and these fine-tunes.

    looked = earlier_looks([parent.tuning], {"hellaswag", "orders"}, ledger)
    tries = len({*looked, look(cure, [("hellaswag", 204), ("orders", 51)])})

A look is a model that was judged on some number of items of each task. Trying again until a model is confirmed, with
other models or with more items, would claim too much, so every look counts (`correction`). A model that
was made without training comes from trained fine-tunes, and looks at it count for these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from aftertune.values import Cure, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger

#: A model that was judged, and the tasks with their numbers of items.
LookKey = tuple[str, tuple[tuple[str, int], ...]]


def look(cure: Cure, items: Iterable[tuple[str, int]]) -> LookKey:
    """The look at the chosen model on so many items of each task."""
    return next(c.result for c in cure.candidates if c.name == cure.chosen), tuple(sorted(items))


def correction(tries: int) -> float:
    """By what the p-values of look number ``tries`` are multiplied.

    The levels are 4/5 and then 1 / (5 t (t - 1)) of the whole, whose sum over all t is 1 (Bonferroni with weights).
    """
    return 1.25 if tries == 1 else 5.0 * tries * (tries - 1)


def earlier_looks(parents: Sequence[Tuning], tasks: Set[str], ledger: Ledger) -> set[LookKey]:
    """The looks of all trials at models of these fine-tunes on any of these tasks."""
    cures = _cures(ledger.tunings())
    trained = set(_trained([parent.id for parent in parents], cures))
    return {look(cure, [(p.task, p.n) for p in cure.confirmed]) for cure in cures.values()
            if tasks & {p.task for p in cure.confirmed} and not trained.isdisjoint(_trained(cure.parents, cures))}


def trained_tunings(parents: Sequence[Tuning], ledger: Ledger) -> list[Tuning]:
    """The trained fine-tunes that these come from, as far as the ledger knows them."""
    known = {tuning.id: tuning for tuning in (*ledger.tunings(), *parents)}
    ids = dict.fromkeys(_trained([parent.id for parent in parents], _cures(known.values())))
    return [known[id_] for id_ in ids if id_ in known]


def _cures(tunings: Iterable[Tuning]) -> dict[str, Cure]:
    return {tuning.id: tuning.cure for tuning in tunings if tuning.cure is not None}


def _trained(ids: Iterable[str], cures: Mapping[str, Cure]) -> Iterator[str]:
    """The ids of the trained fine-tunes that these come from."""
    for tuning in ids:
        yield from _trained(cures[tuning].parents, cures) if tuning in cures else [tuning]
