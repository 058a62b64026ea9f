"""Makes tables, frames and plots of the values, and lets the values offer them (`aftertune.actions`).

    evaluation                           in a notebook: the table of its scores
    evaluation.to_frame("answers")       a pandas DataFrame with a row for each item
    comparison.plot()                    the forest plot of the page, as SVG

Every text is escaped: names of models and tasks, questions and answers come from other people's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from aftertune.actions import provide
from aftertune.api.objects import (
    audit_object,
    comparison_object,
    drift_texts_object,
    evaluation_object,
    gate_object,
    import_object,
    jsonable,
)
from aftertune.api.parameters import LedgerPlace, opened, with_settings
from aftertune.api.plots import SvgChart, balance_of, forest_of, loss_of
from aftertune.errors import InputError, ResourceError, visible_characters
from aftertune.values import Comparison, Drift, Evaluation, Flips, GateResult, Tuning

if TYPE_CHECKING:
    from aftertune.api.item_plans import ItemPlan
    from aftertune.exchange import Audit, ImportedResult
    from aftertune.ledger import Entries, Ledger
    from aftertune.report import DataTable
    from aftertune.values import Answer, FlipSide

# Classes of modules that the first use of a public name need not import (`actions.provide`).
_AUDIT, _IMPORT = "aftertune.exchange.audits.Audit", "aftertune.exchange.importing.ImportedResult"
_TABLE, _PLAN = "aftertune.report.tables.DataTable", "aftertune.api.item_plans.ItemPlan"
_ENTRIES, _LEDGER = "aftertune.ledger.searching.Entries", "aftertune.ledger.Ledger"

#: Rows that a notebook shows of a table, and characters of a cell.
_ROWS, _CELL = 60, 300


# --- Frames ---


def frame(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A pandas DataFrame. Raises ResourceError where pandas is missing."""
    try:
        import pandas
    except ImportError:
        raise ResourceError("pandas is missing; install it: pip install 'aftertune[notebook]'") from None
    return pandas.DataFrame([list(row) for row in rows], columns=list(head))


def _table_frame(table: DataTable) -> Any:
    return frame(table.head, table.rows)


def _evaluation_frame(evaluation: Evaluation, what: str, ledger: LedgerPlace) -> Any:
    from aftertune.report import scores_export

    if what == "scores":
        return _table_frame(scores_export(evaluation))
    if what != "answers":
        raise InputError(f'{what!r} is no frame of an evaluation; allowed are "scores" and "answers"')
    with opened(ledger, create=False) as stored:
        answers = stored.answers(evaluation.id)
    keys = list(dict.fromkeys(key for answer in answers for key in answer.metrics))
    head = ["task", "index", "item", *keys, "texts", "logprobs", "extracted"]
    return frame(head, (_answer_row(answer, keys) for answer in answers))


def _answer_row(answer: Answer, keys: Sequence[str]) -> list[Any]:
    texts = [r.text for r in answer.responses if r.text is not None]
    logprobs = [r.logprob for r in answer.responses if r.logprob is not None]
    return [answer.task, answer.index, answer.item, *(answer.metrics.get(key) for key in keys), texts, logprobs,
            dict(answer.extracted)]


def _comparison_frame(comparison: Comparison) -> Any:
    from aftertune.report import comparison_export

    return _table_frame(comparison_export(comparison, "csv"))


def _tuning_frame(tuning: Tuning) -> Any:
    head = list(dict.fromkeys(["step", *(key for step in tuning.steps for key in step)]))
    return frame(head, ([step.get(key) for key in head] for step in tuning.steps))


def _flips_frame(flips: Flips) -> Any:
    head = ("task", "index", "item", "direction", "question", "choices", "gold", "base", "tuned", "base_margin",
            "tuned_margin")
    return frame(head, ((f.task, f.index, f.item, f.direction, f.question, list(f.choices), f.gold, f.base.chosen,
                         f.tuned.chosen, f.base.margin, f.tuned.margin) for f in flips.flips))


def _drift_frame(drift: Drift) -> Any:
    return frame(("prompts", "prompt", "text", "tokens", "kl", "changed"),
                 ((g.name, t.prompt, t.text, t.tokens, t.kl, t.changed) for g in drift.groups for t in g.texts))


def _entries_rows(entries: Entries) -> list[tuple[str, str, str, str, str]]:
    return [_entry_row(entry) for entry in entries]


def _entry_row(entry: Evaluation | Tuning | Comparison) -> tuple[str, str, str, str, str]:
    from aftertune.ledger import title_of

    kind = type(entry).__name__.lower()
    if isinstance(entry, Evaluation):
        what = ", ".join(task.task for task in entry.tasks)
    elif isinstance(entry, Tuning):
        what = f"{entry.method}, {entry.examples:,} examples"
    else:
        what = ", ".join(f"{r.task} {r.told.partition(' (')[0]}" for r in entry.rows if r.primary)
    return entry.id, kind, title_of(entry), getattr(entry, "status", "done"), what


_ENTRY_HEAD = ("id", "kind", "name", "status", "what")


def _scores(_: Ledger, evaluations: Sequence[Evaluation], task: str | None) -> DataTable:
    """The scores of evaluations, a row for each."""
    from aftertune.report import DataTable, scores_export

    head: tuple[str, ...] = ("evaluation", "id")
    rows = []
    for evaluation in evaluations:
        table = scores_export(evaluation)
        head = ("evaluation", "id", *table.head)
        rows += [(evaluation.name, evaluation.id, *row) for row in table.rows if task in (None, row[0])]
    return DataTable("scores", head, tuple(rows))


# --- Tables of a notebook, and of print() ---


class ShownTable(NamedTuple):
    """A value as a table. head: empty for a list of names and values; notes: lines below."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Iterable[str] = ()


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], notes: Iterable[str] = ()) -> str:
    """A table as HTML, every text of it escaped."""
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows[:_ROWS])
    more = [f"and {len(rows) - _ROWS:,} more rows: to_frame() has all"] if len(rows) > _ROWS else []
    below = "".join(f"<div><small>{_text(note)}</small></div>" for note in (*more, *notes))
    header = f"<thead><tr>{cells}</tr></thead>" if head else ""
    return f"<div><strong>{_text(title)}</strong></div><table>{header}<tbody>{body}</tbody></table>{below}"


def _text(value: Any) -> str:
    """A cell as escaped text."""
    return escape(_cell(value))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "" if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = visible_characters(text)
    return text if len(text) <= _CELL else f"{text[:_CELL]} …"


def _table_shown(table: DataTable) -> ShownTable:
    return ShownTable(table.title, table.head, table.rows)


def _evaluation_shown(evaluation: Evaluation) -> ShownTable:
    from aftertune.report import score_table

    lines = score_table(evaluation)
    rows = [(line.task, line.metric, line.result, line.error, line.n) for line in lines]
    parts = dict.fromkeys(f"{line.task}: {line.part}" for line in lines if line.part)
    run = f"evaluation {evaluation.id}, {evaluation.dtype} on {evaluation.device}, {evaluation.engine_note}"
    return ShownTable(evaluation.name, ("Task", "Metric", "Result", "Error range (±1 SE)", "n"), rows,
                      (*parts, run, *evaluation.warnings))


def _comparison_html(comparison: Comparison) -> str:
    from aftertune.report import headline, verdict_table, watermark
    from aftertune.report.columns import columns

    shown = columns("markdown")
    lines = [line for line in verdict_table(comparison) if line.row.primary]
    rows = [[column.text(line) if column.text else "" for column in shown] for line in lines]
    filled = [n for n in range(len(shown)) if not shown[n].optional or any(row[n] for row in rows)]
    notes = [f"{d.field}: {d.left} in {comparison.base_name}, {d.right} in {comparison.tuned_name}"
             for d in comparison.differences]
    title = f"{comparison.tuned_name} against {comparison.base_name} ({comparison.id})"
    said = f"<p>{_text(' '.join(headline(comparison).sentences))}</p>"
    return said + html_table(title, [shown[n].heading for n in filled], [[row[n] for n in filled] for row in rows],
                             [*filter(None, [watermark(comparison)]), *notes])


def _tuning_shown(tuning: Tuning) -> ShownTable:
    from aftertune.report import data_facts

    rows: list[tuple[str, Any]] = [("method", tuning.method), ("base", tuning.base.source),
                                   ("data", tuning.data_source), ("examples", f"{tuning.examples:,}"),
                                   ("seed", tuning.seed), ("status", tuning.status), ("folder", tuning.output)]
    if tuning.held_out:
        h = tuning.held_out
        rows.append(("held-out loss", f"{h.before:.3f} → {h.after:.3f} nats per token, 95 % interval of the change "
                     f"{h.low:+.3f} to {h.high:+.3f} (n={h.n})"))
    rows += [(label, value) for label, value in data_facts(tuning.counts, tuning.overlap)]
    return ShownTable(f"tuning {tuning.id} {tuning.name}", (), rows, tuning.notes)


def _flips_shown(flips: Flips) -> ShownTable:
    rows = [(f.index, f.direction, f.question, f.gold, _side(f.base), _side(f.tuned)) for f in flips.flips]
    title = (f"{flips.task}: {flips.lost} lost and {flips.gained} gained of {flips.n:,} items ({flips.metric})")
    return ShownTable(title, ("item", "", "question", "right answer", flips.base_name, flips.tuned_name), rows)


def _side(side: FlipSide) -> str:
    return f"{'right' if side.right else 'wrong'}: {side.chosen}"


def _gate_shown(result: GateResult) -> ShownTable:
    from aftertune.report import gate_reason, headline

    rows = [(line.task, "FAILED" if line.failed else line.outcome, gate_reason(line)) for line in result.lines]
    return ShownTable("the gate passed" if result.passed else "the gate FAILED", ("task", "outcome", "reason"), rows,
                      headline(result.comparison).sentences)


def _drift_shown(drift: Drift) -> ShownTable:
    rows = [(g.name, len(g.texts), f"{g.kl:.4f}", f"{g.low:.4f} to {g.high:.4f}", f"{g.changed:.1%}",
             "moved" if g.moved else "not seen to move") for g in drift.groups]
    tuned = drift.tuned.adapter_source or drift.tuned.source
    return ShownTable(f"{tuned} against {drift.base.source}",
                      ("prompts", "n", "KL(base || tuned)", "95 % interval", "other top token", ""), rows, drift.notes)


def _audit_shown(audit: Audit) -> ShownTable:
    rows = [(c.row.model, c.row.task, c.row.metric, c.row.value_text, c.row.n, c.mark, c.text) for c in audit.checks]
    return ShownTable(f"{audit.source}: {len(audit.checks)} reported values",
                      ("model", "task", "metric", "reported", "n", "mark", "why"), rows,
                      [f"{f.where}: {f.text}" for f in audit.findings])


# --- What the values offer ---


def _evaluation_content(evaluation: Evaluation) -> dict[str, Any]:
    return {"name": evaluation.name, "status": evaluation.status, **jsonable(evaluation_object(evaluation))}


def _plan_rows(plan: ItemPlan) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of a plan, a row for each task; losses are in points."""
    tasks = plan.to_dict()["tasks"]
    losses = [f"forgot_at_{loss['points']:g}" for loss in tasks[0]["lost"]]
    rows = [[t["task"], t["items"], t["items_from"], t["discordance"], t["kept"],
             *(loss["items"] for loss in t["lost"]), t["smallest"], t["kept_at"]] for t in tasks]
    return ["task", "items", "items_from", "discordance", "kept", *losses, "smallest", "kept_at"], rows


def _plan_shown(plan: ItemPlan) -> ShownTable:
    notes = [] if plan.average is None or plan.average.kept is None else [
        f"on average: kept needs {plan.average.kept:,} items of each task"]
    return ShownTable(f"items for a verdict, margin ±{plan.margin:g} points, power {plan.power:g} %", *_plan_rows(plan),
                      notes)


def _import_shown(result: ImportedResult) -> ShownTable:
    rows = [(key, value) for key, value in import_object(result).items() if value not in (None, [], "")]
    return ShownTable(f"import of {result.source}", (), rows)


def _table_content(table: DataTable) -> dict[str, Any]:
    from aftertune.report import as_objects

    return {"title": table.title, "rows": as_objects(table)}


def _comparison_plot(comparison: Comparison, kind: str, width: int, ledger: LedgerPlace) -> SvgChart:
    if kind == "forest":
        return forest_of(comparison, width)
    if kind != "learned":
        raise InputError(f'{kind!r} is no plot of a comparison; allowed are "forest" and "learned" (learned against '
                         "forgotten)")
    with opened(ledger, create=False) as stored:
        return balance_of(comparison, stored, width)


# --- Text, for print() ---

#: Characters of a line.
_WIDTH = 100


def _printed(content: Any) -> str:
    """A renderable of rich as plain text, without known secrets and with visible control characters."""
    from io import StringIO

    from rich.console import Console

    from aftertune.errors import visible_characters
    from aftertune.redaction import redact_known

    out = StringIO()
    Console(file=out, width=_WIDTH, color_system=None, force_terminal=False).print(content)
    lines = visible_characters(redact_known(out.getvalue())).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _table_text(table: ShownTable) -> str:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, show_header=bool(table.head))
    for name in table.head:
        drawn.add_column(Text(_cell(name)))  # no markup: names are other people's
    for row in table.rows[:_ROWS]:
        drawn.add_row(*(Text(_cell(cell)) for cell in row))
    more = [f"and {len(table.rows) - _ROWS:,} more rows: to_frame() has all"] if len(table.rows) > _ROWS else []
    return _printed(Group(Text(_cell(table.title)), drawn, *(Text(_cell(note)) for note in (*more, *table.notes))))


def _evaluation_text(evaluation: Evaluation) -> str:
    from aftertune.report import terminal_scores

    status = "" if evaluation.status == "done" else f" ({evaluation.status})"
    scores = _printed(terminal_scores(evaluation, width=_WIDTH))
    return f"{evaluation.name}, evaluation {evaluation.id}{status}\n{scores}"


def _comparison_text(comparison: Comparison) -> str:
    from aftertune.report import terminal_table

    return _printed(terminal_table(comparison, width=_WIDTH))


def _tuning_text(tuning: Tuning) -> str:
    from rich.text import Text

    from aftertune.report import tuning_facts

    facts = "\n".join(f"  {label}: {value}" for label, value in tuning_facts(tuning))
    return _printed(Text(f"{tuning.name}, tuning {tuning.id} ({tuning.status})\n{facts}"))


def _json(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What makes the content of a value, with numbers that JSON has."""
    return lambda value: jsonable(make(value))


def provide_table(kind: type | str, make: Callable[[Any], ShownTable],
                  text: Callable[[Any], str] | None = None) -> None:
    """Let the values of a class show a table in a notebook, and in print() the same or ``text``."""
    provide("html", kind, lambda value: html_table(*make(value)))
    provide("text", kind, text or (lambda value: _table_text(make(value))))


_CONTENTS: dict[type | str, Callable[[Any], Any]] = {
    Evaluation: _evaluation_content, Comparison: comparison_object, Tuning: lambda value: value,
    Flips: lambda value: value, GateResult: lambda value: gate_object(value.comparison, value.lines),
    Drift: drift_texts_object, _AUDIT: audit_object, _IMPORT: import_object, _TABLE: _table_content,
    _ENTRIES: lambda value: {"entries": [dict(zip(_ENTRY_HEAD, row, strict=True)) for row in _entries_rows(value)]}}
_SHOWN: dict[type | str, Callable[[Any], ShownTable]] = {
    Evaluation: _evaluation_shown, Tuning: _tuning_shown, Flips: _flips_shown, GateResult: _gate_shown,
    Drift: _drift_shown, _AUDIT: _audit_shown, _TABLE: _table_shown, _PLAN: _plan_shown, _IMPORT: _import_shown,
    _ENTRIES: lambda value: ShownTable("1 entry" if len(value) == 1 else f"{len(value)} entries", _ENTRY_HEAD,
                                        _entries_rows(value))}
_FRAMES: dict[type | str, Callable[..., Any]] = {
    Evaluation: _evaluation_frame, Comparison: _comparison_frame, Tuning: _tuning_frame, Flips: _flips_frame,
    Drift: _drift_frame, _TABLE: _table_frame, _PLAN: lambda value: frame(*_plan_rows(value)),
    _ENTRIES: lambda value: frame(_ENTRY_HEAD, _entries_rows(value))}

#: What print() shows where it is another table than that of a notebook.
_TEXTS: dict[type | str, Callable[[Any], str]] = {
    Evaluation: _evaluation_text, Tuning: _tuning_text}

for _kind, _make in _CONTENTS.items():
    provide("to_dict", _kind, _json(_make))
for _kind, _make in _SHOWN.items():
    provide_table(_kind, _make, _TEXTS.get(_kind))
provide("html", Comparison, _comparison_html)
provide("text", Comparison, _comparison_text)
for _kind, _make in _FRAMES.items():
    provide("to_frame", _kind, with_settings()(_make))
provide("plot", Comparison, with_settings()(_comparison_plot))
provide("plot", Tuning, loss_of)
provide("scores", _LEDGER, _scores)
