"""Makes the overview at the top of the page: a summary in sentences, the number of runs, and a matrix of all verdicts.

    overview(results).headline
        ["Of 4 fine-tuned models, 1 forgot on at least one benchmark; 2 are proven to have kept …; …"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from aftertune.report import formatting as fmt
from aftertune.report.badges import BADGES, legend
from aftertune.report.charts import task_forest
from aftertune.report.columns import VerdictLine, verdict_table
from aftertune.report.headline import FEW, headline, study_lines
from aftertune.report.page.figures import ChartView, figure, recipe_text
from aftertune.report.page.views import ReportedView
from aftertune.report.reported import NOT_REPRODUCIBLE
from aftertune.report.results import Results, TuningOutcome, newest, outcomes, overall_verdict
from aftertune.values import Comparison, Evaluation, Tuning, verdict_label


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One comparison. about: its recipe; watermark: it is forced; cells: its primary row on each task of the matrix."""

    name: str
    comparison: str
    about: str
    watermark: bool
    cells: list[VerdictLine | None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """The newest comparison of each model with one base evaluation. tasks: (title, whether it is a target task);
    forests: (title, chart) of each task."""

    base: str
    tasks: list[tuple[str, bool]]
    rows: list[MatrixRow]
    forests: list[tuple[str, ChartView]]


@dataclass(frozen=True, slots=True)
class Overview:
    """headline: paragraphs; lines: of many comparisons, one for each fine-tune or recipe; runs: (label, value) of each
    tile; counts: (verdict, label, number) over the primary metrics."""

    headline: list[str]
    lines: list[str]
    runs: list[tuple[str, str]]
    counts: list[tuple[str, str, int]]
    matrices: list[Matrix]


def overview(results: Results, reported: Sequence[ReportedView] = ()) -> Overview:
    """The overview of a page. reported: the scores that other documents report."""
    comparisons = newest(results.comparisons)
    labels = [(line.verdict, line.label) for comparison in comparisons if not comparison.forced
              for line in verdict_table(comparison) if line.verdict]
    counts = [(v, label, labels.count((v, label))) for v in BADGES for lineage in (True, False)
              for label in (verdict_label(v, lineage=lineage),) if (v, label) in labels]
    outcome_by_comparison = {o.comparison.id: o for o in outcomes(results)}
    bases = dict.fromkeys(c.base for c in comparisons)
    proven = _proven(comparisons)
    return Overview(headline=list(_headline(results)),
                    lines=study_lines(replace(results, comparisons=proven)) if len(proven) > FEW else [],
                    runs=[*_runs(results), *_reported(reported)],
                    counts=list(dict.fromkeys(counts)),
                    matrices=[_matrix([c for c in comparisons if c.base == b], outcome_by_comparison) for b in bases])


def _headline(results: Results) -> Iterator[str]:
    """The verdicts in sentences; no sentence is based on anything else."""
    comparisons, tunings = newest(results.comparisons), results.tunings
    proven = _proven(comparisons)
    if len(proven) <= FEW:
        yield from (" ".join(headline(c).sentences) for c in proven)
    else:
        yield from _summary(proven)
    if unproven := sum(not c.lineage and not c.forced for c in comparisons):
        yield (f"{_counted(unproven, 'comparison')} without proven lineage "
               f"{'says' if unproven == 1 else 'say'} nothing about forgetting.")
    if forced := sum(c.forced for c in comparisons):
        yield (f"{_counted(forced, 'forced comparison')}: no conclusion is drawn from "
               f"{'it' if forced == 1 else 'them'}.")
    if unfinished := sum(t.status != "done" for t in tunings):
        yield f"{_counted(unfinished, 'fine-tune')} {'is' if unfinished == 1 else 'are'} not finished."


def _proven(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those of a model that was made from the base, and not forced."""
    return [c for c in comparisons if c.lineage and not c.forced]


def _summary(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """How many fine-tuned models have which verdict over all benchmarks."""
    verdicts = [overall_verdict([r for r in c.rows if r.primary and not r.target and not r.average_of])
                for c in comparisons]
    counts = [(verdicts.count("lower"), ("forgot", "forgot"), "on at least one benchmark"),
              (verdicts.count("worse"), ("is", "are"),
               "worse on at least one benchmark, without a proven loss beyond the margin on any"),
              (verdicts.count("within") + verdicts.count("higher") + verdicts.count("better"), ("is", "are"),
               "proven to have kept every benchmark on which the base scores above chance"),
              (verdicts.count("no_loss"), ("is", "are"),
               "proven to have lost no more than the margin on any benchmark on which the base scores above chance"),
              (verdicts.count("undecided"), ("is", "are"),
               "undecided on at least one benchmark, without a proven loss on any"),
              (verdicts.count(None), ("has", "have"), "no benchmark on which the base scores above chance")]
    text = "; ".join(f"{n} {one if n == 1 else several} {rest}" for n, (one, several), rest in counts if n)
    yield f"Of {_counted(len(verdicts), 'fine-tuned model')}, {text}."
    targets = [[r for r in c.rows if r.primary and r.target] for c in comparisons]
    with_target = [rows for rows in targets if rows]
    improved = sum(any(r.verdict in ("higher", "better") for r in rows) for rows in with_target)
    if with_target:
        yield f"Improvement on a target task is proven for {improved} of {len(with_target)}."


def _runs(results: Results) -> Iterator[tuple[str, str]]:
    """The numbers of models, items, fine-tunes and comparisons, and the days."""
    evaluations, tunings, comparisons = results.evaluations, results.tunings, results.comparisons
    done = [t for t in tunings if t.status == "done"]
    if evaluations:
        yield "Models evaluated", fmt.count(len({e.model.fingerprint for e in evaluations}))
        yield "Items answered", fmt.count(sum(t.n if t.used is None else t.used for e in evaluations for t in e.tasks))
    if tunings:
        yield "Fine-tunes", fmt.count(len(done)) + (f" of {len(tunings)}" if len(done) < len(tunings) else "")
    if comparisons:
        yield "Comparisons", fmt.count(len(comparisons))
    runs: list[Evaluation | Tuning] = [*evaluations, *tunings]
    days = sorted(r.provenance.started[:10] for r in runs if r.provenance is not None)
    if days:
        yield "Run", days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _reported(reported: Sequence[ReportedView]) -> Iterator[tuple[str, str]]:
    """The number of reported scores, and how many of them the audit cannot reproduce."""
    lines = [line for view in reported for line in view.lines]
    failed = sum(line.mark == NOT_REPRODUCIBLE for line in lines)
    if lines:
        yield "Reported scores", fmt.count(len(lines)) + (f", {fmt.count(failed)} not reproducible" if failed else "")


def _matrix(comparisons: Sequence[Comparison], outcome_by_comparison: dict[str, TuningOutcome]) -> Matrix:
    """comparisons: all with the same base."""
    cells = {c.id: {(line.row.task, line.row.average_of): line for line in verdict_table(c) if line.row.primary}
             for c in comparisons}
    tasks = {task: line for lines in cells.values() for task, line in lines.items()}
    order = sorted(tasks, key=lambda task: not tasks[task].row.target)
    rows = [MatrixRow(
        name=fmt.visible(c.tuned_name), comparison=c.id, watermark=c.forced,
        about=recipe_text(outcome_by_comparison[c.id]) if c.id in outcome_by_comparison else "",
        cells=[cells[c.id].get(task) for task in order]) for c in comparisons]
    unforced = [c for c in comparisons if not c.forced]
    forests = [(tasks[task]["task"], view) for task in order
               if (view := figure(partial(task_forest, task[0], unforced, average_of=task[1]), _FOREST))]
    titles = [(tasks[task]["task"], tasks[task].row.target) for task in order]
    return Matrix(fmt.visible(comparisons[0].base_name), titles, rows, forests)


_FOREST = ("One row for each model. Mark: the difference. Line: its 95 % interval. Shaded: the margin; a difference "
           f"within it counts as no change. {legend()}.")


def _counted(n: int, noun: str) -> str:
    return f"{fmt.count(n)} {noun}{'' if n == 1 else 's'}"
