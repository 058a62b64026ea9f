"""Fine-tunes: a list, and for each one its curves while it trains and after, its data, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aftertune.ledger import EntryQuery, Ledger, RunningEntry
from aftertune.methods import method_title
from aftertune.redaction import public_text, published
from aftertune.report import formatting as fmt
from aftertune.report import tuning_facts
from aftertune.report.charts import loss_curve, watch_chart, watched
from aftertune.report.charts.curves import downsampled
from aftertune.report.facts import CODE, COMMANDS, data_facts
from aftertune.report.names import task_title
from aftertune.report.page.figures import figure
from aftertune.report.table import held_out_line
from aftertune.sources.folder_lock import in_use
from aftertune.tuning.previews import PreviewRow, read_examples
from aftertune.values import VERDICT_LABELS, Overlap, Tuning, WatchPoint
from aftertune.view.inputs import Inputs
from aftertune.view.rendering import NavigationLink, ViewContext, context_of, render

_PER_PAGE = 50
#: Items of an overlap that are shown with the words that were found.
_MOST_FOUND = 20


@dataclass(frozen=True, slots=True)
class LookRow:
    """One analysis of the watch in the table."""

    step: int
    task: str
    base: str
    tuned: str
    delta: str
    interval: str
    n: str
    verdict: Any
    label: str


@dataclass(frozen=True, slots=True)
class OverlapRow:
    """What of a task's items is in the training data. found: (item, where, words) of the first few."""

    task: str
    title: str
    n: int
    exact: int
    ngram: int
    found: tuple[tuple[str, str, str], ...]


def tunings(request: Request) -> Response:
    """The list."""
    inputs = Inputs(request)
    number = inputs.number("page", 1, least=1, most=100_000)
    query = EntryQuery(kind="tuning", words=inputs.text("q"), limit=_PER_PAGE, offset=(number - 1) * _PER_PAGE)
    with context_of(request).ledgers.read() as ledger:
        page, running = ledger.entry_page(query), ledger.running()
    return render(request, "tunings.html", title="Fine-tunes", rows=page.rows, total=page.total, query=query,
                  running=running, inputs=inputs, page=number, pages=max(1, -(-page.total // _PER_PAGE)))


def tuning_page(request: Request) -> Response:
    """The page of one fine-tune."""
    inputs = Inputs(request)
    with context_of(request).ledgers.read() as ledger:
        tuning = ledger.find_tuning(request.path_params["id"])
        values = _curve_values(ledger, tuning)
        evaluations = ledger.entry_page(EntryQuery(kind="evaluation", made_by=tuning.id, limit=_PER_PAGE)).rows
    folder = Path(tuning.output)  # as the ledger has it; no page gives a path
    there = folder.is_dir()
    examples: Sequence[PreviewRow] = read_examples(folder) if there else ()
    return render(
        request, "tuning.html", title=tuning.name, evaluations=evaluations, examples=examples,
        moved=tuning.status == "done" and not there, data=published(data_facts(tuning.counts, ())),
        overlap=[_overlap_row(o) for o in tuning.overlap], figures=_figures(tuning) if inputs.flag("charts") else (),
        facts_of_entry=_facts(tuning), code=CODE, inputs=inputs,
        method=method_title(tuning.method),
        command=tuning.provenance.command if tuning.provenance else "",
        held_out=held_out_line(tuning.held_out) if tuning.held_out else None, **values)


def _curve_values(ledger: Ledger, tuning: Tuning) -> dict[str, Any]:
    """What the live part shows: the state, how far it is, the curves and the analyses."""
    stopped = tuning.status == "running" and not in_use(Path(tuning.output))
    state = "interrupted" if stopped else tuning.status
    progress: RunningEntry | None = next((r for r in ledger.running() if r.id == tuning.id), None) \
        if state == "running" else None
    return {"tuning": tuning, "state": state, "progress": progress, "curves": curves(tuning),
            "looks": [_look_row(p) for p in tuning.watch], "last": tuning.steps[-1] if tuning.steps else None}


def curves(tuning: Tuning) -> dict[str, Any]:
    """The lines of the charts: each as its steps and its values. Changes of watched tasks are in points."""
    def line(name: str) -> list[list[float]]:
        points = [(float(s["step"]), float(s[name])) for s in tuning.steps
                  if fmt.is_finite(s.get("step")) and fmt.is_finite(s.get(name))]
        thinned = downsampled(points)
        return [[round(x, 2) for x, _ in thinned], [float(f"{y:.6g}") for _, y in thinned]]

    shares = [p for p in tuning.watch if p.fraction and all(map(fmt.is_finite, (p.delta, p.low, p.high)))]
    return {"loss": line("loss"), "validation": line("validation_loss"), "rate": line("learning_rate"),
            "margin": (tuning.settings.get("watch") or {}).get("margin"), "final": tuning.final_step,
            "tasks": [{"title": task_title(task), "points": [
                [p.step, *(round(100 * v, 3) for v in (p.delta, p.low, p.high)), VERDICT_LABELS[p.verdict]]
                for p in shares if p.task == task]} for task in watched(shares)]}


def _look_row(point: WatchPoint) -> LookRow:
    value = fmt.percent if point.fraction else fmt.raw
    return LookRow(
        step=point.step, task=task_title(point.task), base=value(point.base), tuned=value(point.tuned),
        delta=fmt.points(point.delta) if point.fraction else fmt.change(point.delta),
        interval=fmt.points_interval(point.low, point.high) if point.fraction else fmt.DASH, n=fmt.count(point.n),
        verdict=point.verdict, label=VERDICT_LABELS[point.verdict])


def _overlap_row(overlap: Overlap) -> OverlapRow:
    found = tuple((fmt.count(f.get("item")), str(f.get("in", "")).rpartition("/")[2], str(f.get("words", ""))[:300])
                  for f in overlap.found[:_MOST_FOUND])
    return OverlapRow(overlap.task, task_title(overlap.task), overlap.n, len(overlap.exact), len(overlap.ngram), found)


def _facts(tuning: Tuning) -> list[tuple[str, str]]:
    """Where it comes from, without folders of this machine. The command and the data have places of their own."""
    shown = {*COMMANDS, *(label for label, _ in data_facts(tuning.counts, tuning.overlap))}
    return [(label, public_text(value)) for label, value in tuning_facts(tuning) if label not in shown]


def _figures(tuning: Tuning) -> list[Any]:
    """The charts as the report has them, for a browser without scripts."""
    drawn = [figure(partial(loss_curve, tuning), "Training, validation and held-out loss by step."),
             figure(partial(watch_chart, tuning), "The watched tasks by step.", watched(tuning.watch), marked=False)]
    return [view for view in drawn if view]


def live_curves(context: ViewContext, id_: str) -> str:
    """The curves of a fine-tune, as a part of its page."""
    with context.ledgers.read() as ledger:
        return context.page("tuning_live.html", **_curve_values(ledger, ledger.find_tuning(id_)))


LIVE_PARTS = {"tuning": live_curves}
ROUTES = [Route("/tunings", tunings), Route("/tuning/{id}", tuning_page)]
NAVIGATION = NavigationLink("Tunings", "/tunings", 50, also="/tuning")
