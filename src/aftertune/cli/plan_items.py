"""Implements ``plan-items``, which computes how many items a verdict needs.

    aftertune plan-items --task hellaswag --task own=500 --margin 2
    aftertune plan-items base tuned                 with the discordance and the tasks of two evaluations
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console
from aftertune.errors import InputError, nearest

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


def plan_items(
    base: Annotated[str | None, typer.Argument(
        help="Id or name of an evaluation. With TUNED: plan with the discordance of the two.")] = None,
    tuned: Annotated[str | None, typer.Argument(help="Id or name of the other evaluation.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="TASK or TASK=ITEMS. Repeatable.")] = None,
    margin: Annotated[float, typer.Option(help="Margin in points; a smaller change counts as kept.")] = 2.0,
    discordance: Annotated[float | None, typer.Option(
        help="Percent of the items on which the models differ; default: 10, or what BASE and TUNED show.")] = None,
    power: Annotated[float, typer.Option(help="Power in percent: how many comparisons find such a loss.")] = 80.0,
    as_json: JsonFlag = False,
) -> None:
    """Show how many items the verdicts kept and forgot need, and the smallest difference that a task can show.

    All named tasks are one family: they share the level of 5 %, as in a comparison. With two evaluations and no --task,
    the families are those of their comparison: tasks at the floor and target tasks do not count for the others. For
    their average, which is one question, the items of each task are shown.
    """
    from aftertune.ledger import Ledger
    from aftertune.stats.planning import USUAL_DISCORDANCE, items_for_average, items_for_verdicts, items_until_kept

    _check(margin, discordance, power)
    if (base is None) != (tuned is None):
        raise InputError("one evaluation is given; name two evaluations, to use their discordance, or none")
    with contextlib.ExitStack() as stack:
        ledger = None
        with contextlib.suppress(InputError):
            ledger = stack.enter_context(Ledger(create=False))
        observed = _observed(base, tuned, ledger) if base and tuned else {}
        counts = [count for text in task or () for count in _counts(text, ledger)] or \
            [ItemCount(name, seen.items, "both evaluations") for name, seen in observed.items()]
    totals = {count.task: count.items for count in counts}
    if not totals:
        raise InputError("no task is given; name tasks, for example --task hellaswag, or two evaluations in the ledger")
    psi = {name: discordance / 100 if discordance is not None else
           observed[name].discordance if name in observed else USUAL_DISCORDANCE for name in totals}
    families = {name: len(totals) if task else observed[name].family for name in totals}
    plans = {name: items_for_verdicts(psi[name], margin / 100, total=total, alpha=0.05 / families[name],
                                      power=power / 100) for name, total in totals.items()}
    early = {name: tuple(items_until_kept(psi[name], margin / 100, total, alpha=0.05 / families[name],
                                          weighted=weighted) for weighted in (False, True))
             for name, total in totals.items()}
    averaged = [name for name in totals if task or observed[name].averaged]
    average = Average(tuple(averaged), items_for_average(
        [psi[n] for n in averaged], margin / 100, [totals[n] for n in averaged], power=power / 100)) \
        if len(averaged) > 1 else None
    origins = {count.task: count.origin for count in counts}
    if as_json:
        emit({"margin": margin, "power": power, "tasks": [{
            "task": name, "items": plan.total, "items_from": origins[name], "discordance": psi[name], "kept": plan.kept,
            "lost": [{"points": 100 * loss, "items": n} for loss, n in plan.lost],
            "smallest": None if plan.smallest is None else 100 * plan.smallest, "kept_at": 100 * plan.kept_at,
            "until_decided": {"uniform": early[name][0], "weighted": early[name][1]}}
            for name, plan in plans.items()],
            "average": None if average is None else {"tasks": list(average.tasks), "kept": average.kept}})
    else:
        _show(plans, psi, margin, power)
        rich_console().print(_early_text(early, totals), soft_wrap=True)
        if average is not None:
            rich_console().print(_average_text(average, margin), soft_wrap=True)
        _show_counts(counts)


def _check(margin: float, discordance: float | None, power: float) -> None:
    for flag, value in (("--margin", margin), ("--discordance", discordance), ("--power", power)):
        if value is not None and not 0 < value < 100:
            raise InputError(f"{flag} {value:g}: allowed are numbers above 0 and below 100")


@dataclass(frozen=True, slots=True)
class ObservedTask:
    """A task of two evaluations. discordance: its upper bound; family: tests that share the level with it; averaged: it
    is in the average of their comparison."""

    discordance: float
    items: int
    family: int
    averaged: bool


def _observed(base: str, tuned: str, ledger: Ledger | None) -> dict[str, ObservedTask]:
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


def _show(plans: dict[str, RequiredItems], psi: dict[str, float], margin: float, power: float) -> None:
    """Print a table with one row for each task. psi: the discordance of each task, as a share."""
    from rich.table import Table
    from rich.text import Text

    losses = [f"forgot, if −{100 * loss:g}" for loss, _ in next(iter(plans.values())).lost]
    table = Table(box=None, pad_edge=False, title_justify="left",
                  title=f"items for a verdict, margin ±{margin:g} points, power {power:g} %")
    for column in ("task", "items", "differ", "kept, if ±0", *losses, "smallest difference"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, plan in plans.items():
        table.add_row(name, f"{plan.total:,}", f"{psi[name]:.1%}", _items(plan.kept, plan.total),
                      *(_items(n, plan.total) for _, n in plan.lost),
                      "none" if plan.smallest is None else f"{100 * plan.smallest:.1f} points")
    console = rich_console()
    console.print(table)
    for name, plan in plans.items():
        if not plan.can_show_kept:
            console.print(Text(f"{name}: \"kept\" within {margin:g} points cannot be decided with this task; with all "
                               f"its items the smallest possible margin is {100 * plan.kept_at:.1f} points"),
                          soft_wrap=True)


def _early_text(early: dict[str, tuple[int, ...]], totals: dict[str, int]) -> str:
    """How many items a run with ``--until-decided`` asks. early: of each task, with equal chances and with weights."""
    shown = "; ".join(f"{name} {uniform:,} ({weighted:,} if drawn where the base was unsure)" if uniform < totals[name]
                      else f"{name} all {uniform:,}" for name, (uniform, weighted) in early.items())
    return f"eval --until-decided asks about so many items until \"kept\", if ±0, and fewer if much is lost: {shown}"


def _average_text(average: Average, margin: float) -> str:
    """How many items of each task the average needs."""
    needed = f"cannot be decided with these {len(average.tasks)} tasks, which have too few items"
    if average.kept is not None:
        needed = (f"needs {average.kept:,} items of each of the {len(average.tasks)} tasks, or all items of a task "
                  "that has fewer")
    return f"on average: \"kept\" within {margin:g} points, if ±0, {needed}"


def _show_counts(counts: Sequence[ItemCount]) -> None:
    """Print where the numbers of items come from, in one line."""
    from rich.text import Text

    origins: dict[str, list[str]] = {}
    for count in {c.task: c for c in counts}.values():
        name = f"{count.task} ({count.note})" if count.note else count.task
        origins.setdefault(count.origin, []).append(name)
    line = "; ".join(f"from {origin}: {', '.join(names)}" for origin, names in origins.items())
    rich_console().print(Text(f"Numbers of items {line}"), soft_wrap=True)


def _items(count: int, total: int) -> str:
    """A number of items; the number that the task has is added if it has fewer."""
    return f"{count:,}" if count <= total else f"{count:,} (task has {total:,})"
