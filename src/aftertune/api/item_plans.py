"""Plans how many items of each task a verdict needs.

    plan_items(["hellaswag", "own=500"], margin=2)           a table of the items for "kept" and for "forgot"
    plan_items(base=base, tuned=tuned)                       with the discordance and the tasks of two evaluations
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aftertune.actions import Shown, perform
from aftertune.api.comparing import LEAST_POINTS
from aftertune.api.parameters import LedgerPlace, opened, with_settings
from aftertune.errors import InputError, nearest
from aftertune.values import Evaluation

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.stats.planning import RequiredItems

#: Source of a benchmark's items -> its name in messages.
SOURCES = {"hub": "the Hub's data set", "pack": "the offline pack"}


@dataclass(frozen=True, slots=True)
class ItemCount:
    """The number of items of a task. origin: where the number comes from; note: the number in another source."""

    task: str
    items: int
    origin: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Average:
    """The average of several tasks. kept: items of each that show "kept" for it; None where the tasks have too few."""

    tasks: tuple[str, ...]
    kept: int | None


@dataclass(frozen=True, slots=True)
class ItemPlan(Shown):
    """How many items verdicts need. margin: points; power: percent. plans, discordances: by task; counts: how many
    items each task has; average: of the average over the tasks, None for a single task. early: items that a run with
    ``--until-decided`` asks, with equal chances and drawn where the base was unsure."""

    margin: float
    power: float
    plans: Mapping[str, RequiredItems]
    discordances: Mapping[str, float]
    counts: tuple[ItemCount, ...]
    average: Average | None
    early: Mapping[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """The plan as ``plan-items --json`` prints it. Discordances are shares; losses and margins are points."""
        origins = {count.task: count.origin for count in self.counts}
        return {"margin": self.margin, "power": self.power, "tasks": [{
            "task": name, "items": plan.total, "items_from": origins[name], "discordance": self.discordances[name],
            "kept": plan.kept, "lost": [{"points": 100 * loss, "items": n} for loss, n in plan.lost],
            "smallest": None if plan.smallest is None else 100 * plan.smallest, "kept_at": 100 * plan.kept_at,
            "until_decided": {"uniform": self.early[name][0], "weighted": self.early[name][1]}}
            for name, plan in self.plans.items()],
            "average": None if self.average is None else {"tasks": list(self.average.tasks),
                                                          "kept": self.average.kept}}

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each task."""
        return perform("to_frame", self)


@with_settings()
def plan_items(tasks: Mapping[str, int] | Iterable[str] | str = (), *, base: str | Evaluation | None = None,
               tuned: str | Evaluation | None = None, margin: float = 2.0, discordance: float | None = None,
               power: float = 80.0, ledger: LedgerPlace = None) -> ItemPlan:
    """How many items the verdicts kept and forgot need, and the smallest difference that a task can show.

    tasks: names, or ``{name: number of items}`` of tasks of your own. base, tuned: two evaluations, to plan with their
    tasks and discordance. margin: points. discordance: percent of the items on which the models differ; default: 10, or
    what the two evaluations show. power: percent. ledger: as of `evaluate`. Raises InputError.
    """
    words = [f"{name}={count}" for name, count in tasks.items()] if isinstance(tasks, Mapping) else \
        [tasks] if isinstance(tasks, str) else list(tasks)
    if isinstance(margin, int | float) and 0 < margin < LEAST_POINTS:
        raise InputError(f"margin is {margin:g}; it is given in points, not as a fraction: write {100 * margin:g} for "
                         f"{100 * margin:g} points")
    with contextlib.ExitStack() as stack:
        stored = None
        with contextlib.suppress(InputError):
            stored = stack.enter_context(opened(ledger, create=False))
        return plan_for(words, (base, tuned), stored, margin=margin, discordance=discordance, power=power)


def plan_for(tasks: Sequence[str], sides: tuple[str | Evaluation | None, str | Evaluation | None],
             ledger: Ledger | None, *, margin: float, discordance: float | None, power: float) -> ItemPlan:
    """The plan for tasks (``TASK`` or ``TASK=ITEMS``) or for two evaluations. ledger: None without one."""
    from aftertune.stats.planning import USUAL_DISCORDANCE, items_for_average, items_for_verdicts, items_until_kept

    for flag, value in (("--margin", margin), ("--discordance", discordance), ("--power", power)):
        least = 5 if flag == "--power" else 0
        if value is not None and not (isinstance(value, int | float) and least < value < 100):
            raise InputError(f"{flag} {value}: allowed are numbers above {least} and below 100")
    base, tuned = sides
    if (base is None) != (tuned is None):
        raise InputError("one evaluation is given; name two evaluations, to use their discordance, or none")
    observed = _observed(base, tuned, ledger) if base is not None and tuned is not None else {}
    counts = [count for text in tasks for count in _counts(text, ledger)] or \
        [ItemCount(name, seen.items, "both evaluations") for name, seen in observed.items()]
    totals = {count.task: count.items for count in counts}
    if not totals:
        raise InputError("no task is given; name tasks, for example --task hellaswag, or two evaluations in the ledger")
    psi = {name: discordance / 100 if discordance is not None else
           observed[name].discordance if name in observed else USUAL_DISCORDANCE for name in totals}
    families = {name: len(totals) if tasks else observed[name].family for name in totals}
    plans = {name: items_for_verdicts(psi[name], margin / 100, total=total, alpha=0.05 / families[name],
                                      power=power / 100) for name, total in totals.items()}
    early = {name: tuple(items_until_kept(psi[name], margin / 100, total, alpha=0.05 / families[name],
                                          weighted=weighted) for weighted in (False, True))
             for name, total in totals.items()}
    averaged = [name for name in totals if tasks or observed[name].averaged]
    average = Average(tuple(averaged), items_for_average(
        [psi[n] for n in averaged], margin / 100, [totals[n] for n in averaged], power=power / 100)) \
        if len(averaged) > 1 else None
    return ItemPlan(margin, power, plans, psi, tuple(counts), average, early)


@dataclass(frozen=True, slots=True)
class ObservedTask:
    """A task of two evaluations. discordance: its upper bound; family: tests that share the level with it; averaged: it
    is in the average of their comparison."""

    discordance: float
    items: int
    family: int
    averaged: bool


def _observed(base: str | Evaluation, tuned: str | Evaluation, ledger: Ledger | None) -> dict[str, ObservedTask]:
    """What each task that both evaluations have shows."""
    from aftertune.comparison import compare
    from aftertune.stats.planning import discordance_bound

    if ledger is None:
        raise InputError("there is no ledger yet; evaluate both models first")
    every = compare(base, tuned, ledger=ledger, save=False, common=True).rows
    rows = [r for r in every if r.primary and r.gained is not None and r.lost is not None]
    averaged = next((set(r.average_of) for r in every if r.average_of), set())
    if not averaged <= {r.task for r in rows}:  # a task without a discordance
        averaged = set()
    return {r.task: ObservedTask(discordance_bound((r.gained or 0) + (r.lost or 0), r.n), r.n_total or r.n,
                                 r.family_size or len(rows), r.task in averaged) for r in rows}


def _counts(text: str, ledger: Ledger | None) -> Iterator[ItemCount]:
    """The numbers of items for one ``--task``, which is ``TASK=ITEMS`` or the name of a task.

    The number of a named task is that of its last evaluation in the ledger, otherwise that of the source that an
    evaluation would use now (the offline pack if the Hub is not reachable). The name of a group whose tasks have their
    own scores gives each of the tasks.
    """
    from aftertune.catalog import BENCHMARKS
    from aftertune.tasks.data import choose_source

    name, equals, count = (part.strip() for part in text.partition("="))
    if equals:
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--task {text!r}: write TASK=ITEMS, for example --task own=500")
        yield ItemCount(name, int(count), "--task")
        return
    row = BENCHMARKS.get(name)
    for task in row.members if row is not None and not row.scored else (name,):
        seen = [e.total(task) for e in ledger.evaluations()] if ledger else []
        total = next((n for n in reversed(seen) if n), None)
        if total is not None:
            yield ItemCount(task, total, "the ledger")
        elif task in BENCHMARKS:
            source, items = choose_source(task), BENCHMARKS[task].items
            other = next((s for s in items if s != source and items[s] != items[source]), None)
            yield ItemCount(task, items[source], SOURCES[source],
                        f"{items[other]:,} in {SOURCES[other]}" if other else "")
        else:
            raise InputError(f"--task {name}: this task is not in the catalog, so its number of items is unknown"
                             f"{nearest(name, list(BENCHMARKS))}; write --task {name}=ITEMS")
