"""The first screen of the page: what was run, what came of it in a sentence or two, and every verdict at a glance.

    overview(results).headline
        ["Of 4 fine-tuned models 1 forgot on a benchmark, beyond the margin; 2 are proven to have kept …; …"]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from aftertune.report import formatting as fmt
from aftertune.report.badges import BADGES, legend
from aftertune.report.charts import task_forest
from aftertune.report.columns import VerdictLine, verdict_table
from aftertune.report.names import task_title
from aftertune.report.page.figures import ChartView, figure, recipe_text
from aftertune.report.page.views import Quoted
from aftertune.report.reported import NOT_REPRODUCIBLE
from aftertune.report.results import Results, TuningOutcome, benchmarks, outcomes, targets, whole_verdict
from aftertune.report.table import row_label
from aftertune.values import TOLD, Comparison, Evaluation, Tuning

_FEW = 3  # so many comparisons are told one by one


@dataclass(frozen=True, slots=True)
class MatrixLine:
    """One comparison. cells: its primary row on each task of the matrix."""

    name: str
    comparison: str
    about: str
    watermark: bool
    cells: list[VerdictLine | None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """All comparisons against one base evaluation. tasks: (title, the fine-tunes are made for it)."""

    base: str
    tasks: list[tuple[str, bool]]
    lines: list[MatrixLine]
    forests: list[tuple[str, ChartView]]


@dataclass(frozen=True, slots=True)
class Overview:
    """headline: sentences; ran: (what, how much); counts: (verdict, word, how many), over the primary metrics."""

    headline: list[str]
    ran: list[tuple[str, str]]
    counts: list[tuple[str, str, int]]
    matrices: list[Matrix]


def overview(results: Results, stated: Sequence[Quoted] = ()) -> Overview:
    """The overview of a whole page. stated: what other documents report."""
    comparisons = results.comparisons
    words = [(c.verdict, c.label) for comparison in comparisons if not comparison.forced
             for c in verdict_table(comparison) if c.verdict]
    counts = [(v, w, words.count((v, w))) for v in BADGES for w in (TOLD[v], v) if (v, w) in words]
    found = {o.comparison.id: o for o in outcomes(results)}
    bases = dict.fromkeys(c.base for c in comparisons)
    return Overview(headline=list(_headline(results)),
                    ran=[*_ran(results), *_stated(stated)],
                    counts=list(dict.fromkeys(counts)),
                    matrices=[_matrix([c for c in comparisons if c.base == b], found) for b in bases])


def _headline(results: Results) -> Iterator[str]:
    """What the verdicts come to; nothing is said that is not a verdict."""
    comparisons, tunings = results.comparisons, results.tunings
    own = [c for c in comparisons if c.lineage and not c.forced]
    if len(own) <= _FEW:
        yield from map(_one, own)
    else:
        yield from _many(own)
    if strangers := sum(not c.lineage and not c.forced for c in comparisons):
        yield (f"{_counted(strangers, 'comparison')} of models of which neither is proven to be made from the other "
               f"{'says' if strangers == 1 else 'say'} nothing of forgetting.")
    if forced := sum(c.forced for c in comparisons):
        yield f"{_counted(forced, 'comparison')} by force: nothing is concluded from {'it' if forced == 1 else 'them'}."
    if open_ := sum(t.status != "done" for t in tunings):
        yield f"{_counted(open_, 'fine-tune')} {'is' if open_ == 1 else 'are'} not finished."


def _one(comparison: Comparison) -> str:
    words: dict[str, list[str]] = {}
    for row in (*benchmarks(comparison), *targets(comparison)):
        words.setdefault(row_label(row, lineage=True), []).append(task_title(row.task))
    order = [w for w in (TOLD[v] for v in BADGES) if w in words]
    said = "; ".join(f"{word} on {', '.join(words[word])}" for word in order) or "no verdict"
    return fmt.visible(f"{comparison.tuned_name}, made from {comparison.base_name}: {said}.")


def _many(comparisons: Sequence[Comparison]) -> Iterator[str]:
    whole = [whole_verdict(benchmarks(c)) for c in comparisons]
    lost, kept = whole.count("lower"), whole.count("within") + whole.count("higher")
    parts = [(lost, "forgot on a benchmark, beyond the margin"),
             (kept, "{} proven to have kept every benchmark on which the base had something to lose"),
             (whole.count("undecided"), "{} undecided on one benchmark at least, and proven to have forgotten on none"),
             (whole.count(None), "had no benchmark on which the base had something to lose")]
    said = "; ".join(f"{n} {what.format('is' if n == 1 else 'are')}" for n, what in parts if n)
    yield f"Of {_counted(len(whole), 'fine-tuned model')} {said}."
    taught = [c for c in comparisons if targets(c)]
    learned = sum(any(r.verdict == "higher" for r in targets(c)) for c in taught)
    if taught:
        yield f"{learned} of {len(taught)} are proven to have improved on what they were made for."


def _ran(results: Results) -> Iterator[tuple[str, str]]:
    """What was run, and how much of it."""
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


def _stated(reported: Sequence[Quoted]) -> Iterator[tuple[str, str]]:
    """What other documents state, and how much of it the audit cannot reproduce."""
    lines = [line for q in reported for line in q.lines]
    bad = sum(line.mark == NOT_REPRODUCIBLE for line in lines)
    if lines:
        yield "Reported figures", fmt.count(len(lines)) + (f", {fmt.count(bad)} not reproducible" if bad else "")


def _matrix(comparisons: Sequence[Comparison], found: dict[str, TuningOutcome]) -> Matrix:
    rows = {c.id: {line.row.task: line for line in verdict_table(c) if line.row.primary} for c in comparisons}
    tasks = {task: line for lines in rows.values() for task, line in lines.items()}
    order = sorted(tasks, key=lambda task: not tasks[task].row.target)
    lines = [MatrixLine(name=fmt.visible(c.tuned_name), comparison=c.id, watermark=c.forced,
                        about=recipe_text(found[c.id]) if c.id in found else "",
                        cells=[rows[c.id].get(task) for task in order]) for c in comparisons]
    sound = [c for c in comparisons if not c.forced]
    forests = [(tasks[task]["task"], drawn) for task in order
               if (drawn := figure(partial(task_forest, task, sound), _FOREST))]
    titles = [(tasks[task]["task"], tasks[task].row.target) for task in order]
    return Matrix(fmt.visible(comparisons[0].base_name), titles, lines, forests)


_FOREST = ("One line a model. Mark: difference; line: its 95 % interval; shaded: the margin within which a difference "
           f"does not matter. {legend()}.")


def _counted(n: int, noun: str) -> str:
    return f"{fmt.count(n)} {noun}{'' if n == 1 else 's'}"
