"""Finds what was looked at before: the earlier looks at models of the same fine-tunes, and these fine-tunes.

    looked = earlier_looks([parent.tuning], {"hellaswag", "orders"}, ledger)
    tries = len({*looked, look(cure, [("hellaswag", 204), ("orders", 51)])})

A look is a model that was judged on some number of items of each task. Trying again until a model is confirmed, with
other models or with more items, would claim too much, so every look counts (`correction`). A model that was made
without training, by a cure or as a cell of a study, comes from trained fine-tunes, and looks at it count for these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from aftertune.tuning.cured import is_made_from
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
    known = _known(parents, ledger)
    made = _made(known)
    trained = set(_trained([parent.id for parent in parents], made))
    return {look(cure, [(p.task, p.n) for p in cure.confirmed]) for cure in (t.cure for t in known.values())
            if cure is not None and tasks & {p.task for p in cure.confirmed}
            and not trained.isdisjoint(_trained(cure.parents, made))}


def trained_tunings(parents: Sequence[Tuning], ledger: Ledger) -> list[Tuning]:
    """The trained fine-tunes that these come from, as far as the ledger knows them."""
    known = _known(parents, ledger)
    ids = dict.fromkeys(_trained([parent.id for parent in parents], _made(known)))
    return [known[id_] for id_ in ids if id_ in known]


def _known(parents: Sequence[Tuning], ledger: Ledger) -> dict[str, Tuning]:
    """The fine-tunes of the ledger, and these, by id."""
    return {tuning.id: tuning for tuning in (*ledger.tunings(), *parents)}


def _made(known: Mapping[str, Tuning]) -> dict[str, list[str]]:
    """Id of each fine-tune that was made without training -> ids of what it was made from."""
    made = {id_: [*t.cure.parents] if t.cure is not None else [
        other.id for other in known.values() if is_made_from(t, other)] for id_, t in known.items()}
    return {id_: parents for id_, parents in made.items() if parents}


def _trained(ids: Iterable[str], made: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The ids of the trained fine-tunes that these come from."""
    for tuning in ids:
        yield from _trained(made[tuning], made) if tuning in made else [tuning]
