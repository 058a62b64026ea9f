"""Models against tasks: a row for each comparison, or for each recipe over its seeds, and a column for each task.

    grid = verdict_grid(grid_members(ledger, comparisons), GridQuery(verdict="lower", sort="hellaswag"))
    grid.rows[0].cells["hellaswag"].text, grid.rows[0].cells["hellaswag"].lines

Fine-tunes that differ only in their seed are one recipe, as in the comparisons of recipes over seeds. Its cell has the
mean of the differences of its seeds, the lowest and the highest one, and how many seeds have which verdict.
`with_intervals` adds the 95 % interval over seeds and items, with the statistics of those comparisons; it reads the
answers, so it is asked for the rows that are shown. No test is made of it: whether a recipe differs from another one is
what a study's comparison over seeds tests.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

from aftertune.comparison.across_seeds import RecipeChange, recipe_changes, recipe_settings
from aftertune.comparison.expected_accuracy import choose_primary
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.methods import method_title
from aftertune.report import formatting as fmt
from aftertune.report.columns import VerdictLine, verdict_table
from aftertune.report.results import newest, tuning_of
from aftertune.stats.across_seeds import ENOUGH_SEEDS
from aftertune.values import Comparison, Tuning, Verdict, digest
from aftertune.view.links import comparison_path
from aftertune.view.rendering import Remembered

#: How a grid is sorted beside by a task.
BY_NAME, BY_BASE = "name", "base"
#: Most answers that are read for the intervals of one page, beside those of its first recipe.
MOST_ANSWERS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GridQuery:
    """Which rows, in which order. words: each in the name of a model, its base or its recipe; verdict: that a row has
    on some task, or on ``task``; sort: BY_NAME, BY_BASE or a task, by its difference; fold: one row for the seeds of a
    recipe; recipe: only the models of one recipe."""

    words: str = ""
    base: str = ""
    task: str = ""
    verdict: str = ""
    sort: str = BY_NAME
    descending: bool = False
    fold: bool = True
    recipe: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """What a row shows of a task. lines: of each seed; value: the difference, or the mean over the seeds, for sorting;
    text: the same for a reader; spread: the lowest and the highest seed, "" for one; interval: of the mean, "" where it
    is not known; verdicts: (line, number of seeds) of each verdict; path: of the comparison, "" for several."""

    lines: tuple[VerdictLine, ...]
    value: float
    text: str
    spread: str
    interval: str = ""
    verdicts: tuple[tuple[VerdictLine, int], ...]
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """A comparison, or the comparisons of a recipe. seeds: of its fine-tunes; recipe: key of the recipe, "" where the
    tuned model has no fine-tune in the ledger; path: "" for several comparisons; comparisons: one for each model."""

    name: str
    base: str
    about: str
    recipe: str
    seeds: tuple[int, ...]
    models: int
    path: str
    forced: bool
    cells: Mapping[str, GridCell]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """The rows that fit. tasks: task -> title; total: rows before the filters; bases: names of all bases."""

    rows: tuple[VerdictRow, ...]
    tasks: Mapping[str, str]
    total: int
    bases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """One comparison with the recipe of its fine-tune."""

    comparison: Comparison
    tuning: Tuning | None
    recipe: str
    lines: tuple[VerdictLine, ...] = field(default=())


def grid_members(ledger: Ledger, comparisons: Sequence[Comparison]) -> list[_Member]:
    """The newest comparison of each pair, with the recipes of the fine-tunes."""
    tunings = ledger.tunings()
    members = []
    for comparison in newest(comparisons):
        tuning = None
        with contextlib.suppress(InputError):  # an evaluation that was removed since
            tuning = tuning_of(ledger.find_evaluation(comparison.tuned), tunings)
        recipe = "" if tuning is None else digest([recipe_settings(tuning), comparison.base, comparison.forced])[:12]
        lines = tuple(line for line in verdict_table(comparison) if line.row.primary and line.verdict)
        members.append(_Member(comparison=comparison, tuning=tuning, recipe=recipe, lines=lines))
    return members


def verdict_grid(members: Sequence[_Member], query: GridQuery) -> Grid:
    """The grid of what `grid_members` found."""
    groups: dict[str, list[_Member]] = {}
    for member in members:
        key = member.recipe if query.fold and member.recipe else member.comparison.id
        groups.setdefault(key, []).append(member)
    rows = [_row(group) for group in groups.values() if not query.recipe or group[0].recipe == query.recipe]
    tasks: dict[str, str] = {}
    for member in sorted(members, key=lambda m: not any(line.row.target for line in m.lines)):
        tasks |= {line.row.task: line["task"] for line in sorted(member.lines, key=lambda x: not x.row.target)
                  if line.row.task not in tasks}
    chosen = [row for row in rows if _fits(row, query)]
    chosen.sort(key=lambda row: _order(row, query), reverse=query.descending)
    if query.sort not in (BY_NAME, BY_BASE):  # rows without a value come last in both directions
        chosen.sort(key=lambda row: query.sort not in row.cells)
    return Grid(tuple(chosen), tasks, len(rows), tuple(sorted({m.comparison.base_name for m in members})))


def _fits(row: VerdictRow, query: GridQuery) -> bool:
    cells = [row.cells[query.task]] if query.task in row.cells else [] if query.task else list(row.cells.values())
    verdicts: set[Verdict | None] = {line.verdict for cell in cells for line in cell.lines}
    texts = f"{row.name} {row.base} {row.about}".lower()
    return (all(word in texts for word in query.words.lower().split()) and query.base in ("", row.base)
            and (not query.verdict or query.verdict in verdicts) and (not query.task or bool(cells)))


def _order(row: VerdictRow, query: GridQuery) -> tuple[float, str, str]:
    if query.sort == BY_BASE:
        return 0.0, row.base.lower(), row.name.lower()
    value = row.cells[query.sort].value if query.sort in row.cells else 0.0
    return (value if query.sort != BY_NAME else 0.0), row.name.lower(), row.base.lower()


def _row(members: Sequence[_Member]) -> VerdictRow:
    first = members[0]
    tuning, comparison = first.tuning, first.comparison
    seeds = tuple(sorted({m.tuning.seed for m in members if m.tuning is not None}))
    about = "" if tuning is None else f"{method_title(tuning.method)}, {tuning.examples:,} examples"
    if len(members) == 1 and tuning is not None:
        about += f", seed {tuning.seed}"
    cells = {}
    for task in dict.fromkeys(line.row.task for m in members for line in m.lines):
        found = [(m, line) for m in members for line in m.lines if line.row.task == task]
        cells[task] = _cell(found)
    return VerdictRow(
        name=comparison.tuned_name if len(members) == 1 else _shared_name([m.comparison.tuned_name for m in members]),
        base=comparison.base_name, about=about, recipe=first.recipe, seeds=seeds, models=len(members),
        path=comparison_path(comparison.base, comparison.tuned, id=comparison.id) if len(members) == 1 else "",
        forced=comparison.forced, cells=cells, comparisons=tuple(m.comparison for m in members))


def with_intervals(rows: Sequence[VerdictRow], ledger: Ledger, known: Remembered) -> list[VerdictRow]:
    """The rows, those of several seeds with the interval over them. known: keeps what was computed.

    The first row is always computed; a later one only while all of them read at most `MOST_ANSWERS`.
    """
    left, out = MOST_ANSWERS, []
    for row in rows:
        key = ("intervals", *((c.id, c.rules) for c in row.comparisons))
        changes = known.peek(key)
        reads = 2 * sum(r.n for c in row.comparisons for r in c.rows if r.primary and not r.average_of)
        if changes is None and len(set(row.seeds)) >= ENOUGH_SEEDS and (reads <= left or left == MOST_ANSWERS):
            left -= reads
            changes = known.get(key, partial(_changes, row, ledger))
        out.append(row if not changes else replace(row, cells={
            task: _with_interval(cell, changes.get(task)) for task, cell in row.cells.items()}))
    return out


def _changes(row: VerdictRow, ledger: Ledger) -> dict[str, RecipeChange]:
    """The changes of a recipe by the metrics that judge its comparisons; {} where an evaluation was removed."""
    first = row.comparisons[0]
    judged = [r for r in first.rows if r.primary and not r.average_of]
    seeds = {m.tuned: m for m in row.comparisons}  # one model may be compared twice
    try:
        base, *tuned = (ledger.find_evaluation(id_) for id_ in (first.base, *seeds))
        for r in judged:
            base = choose_primary(base, r.metric, r.task)
    except InputError:
        return {}
    return recipe_changes(base, tuned, ledger, {r.task for r in judged})


def _with_interval(cell: GridCell, change: RecipeChange | None) -> GridCell:
    """The cell with the interval, if it is of the same tasks and the same mean."""
    row = cell.lines[0].row
    if change is None or set(change.average_of) != set(row.average_of) or not math.isclose(
            change.mean, cell.value, rel_tol=1e-6, abs_tol=1e-9):
        return cell
    show = fmt.points if row.fraction else fmt.change
    return replace(cell, interval=f"{show(change.low)} to {show(change.high)}")


def _cell(found: Sequence[tuple[_Member, VerdictLine]]) -> GridCell:
    lines = tuple(line for _, line in found)
    deltas = [line.row.delta for line in lines]
    text, spread, path = lines[0]["delta"], "", ""
    if len(found) == 1:
        comparison = found[0][0].comparison
        path = comparison_path(comparison.base, comparison.tuned, id=comparison.id,
                               task=None if lines[0].row.average_of else lines[0].row.task)
    else:
        shares = all(line.row.fraction for line in lines)
        show = fmt.points if shares else fmt.change
        text, spread = show(fmean(deltas)), f"{show(min(deltas))} to {show(max(deltas))}"
    by_label = {line.label: line for line in lines}
    counted = tuple((line, sum(other.label == label for other in lines)) for label, line in by_label.items())
    return GridCell(lines=lines, value=fmean(deltas), text=text, spread=spread, verdicts=counted, path=path)


def _shared_name(names: Sequence[str]) -> str:
    """The parts, between hyphens, that all names share; the first name where they share none."""
    others = [set(name.split("-")) for name in names]
    shared = [part for part in names[0].split("-") if all(part in parts for parts in others)]
    return "-".join(shared) or names[0]
