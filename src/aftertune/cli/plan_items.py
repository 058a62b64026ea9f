"""Implements ``plan-items``, which computes how many items a verdict needs.

    aftertune plan-items --task hellaswag --task own=500 --margin 2
    aftertune plan-items base tuned                 with the discordance and the tasks of two evaluations
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.item_plans import Average, ItemCount, plan_for
from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.stats.planning import RequiredItems


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

    with contextlib.ExitStack() as stack:
        ledger = None
        with contextlib.suppress(InputError):
            ledger = stack.enter_context(Ledger(create=False))
        plan = plan_for(task or [], (base, tuned), ledger, margin=margin, discordance=discordance, power=power)
    if as_json:
        emit(plan.to_dict())
    else:
        _show(plan.plans, plan.discordances, margin, power)
        rich_console().print(_early_text(plan.early, {c.task: c.items for c in plan.counts}), soft_wrap=True)
        if plan.average is not None:
            rich_console().print(_average_text(plan.average, margin), soft_wrap=True)
        _show_counts(plan.counts)


def _show(plans: Mapping[str, RequiredItems], psi: Mapping[str, float], margin: float, power: float) -> None:
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


def _early_text(early: Mapping[str, tuple[int, ...]], totals: Mapping[str, int]) -> str:
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
