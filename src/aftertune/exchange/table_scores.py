"""Makes reported scores of a table of results, with notes on what was left out.

    scores, notes = read_scores(table, TableContext(source="record.md", title="Base Llama 3.2 1B"))

What the cells of a table have in common decides how its figures are read: whether shares are in percent, and whether
the decimal mark is a comma.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from aftertune import catalog
from aftertune.catalog import NO_FILTER
from aftertune.exchange.benchmark_names import MetricName, TaskName, compact, is_mean, is_shots, read_metric, read_task
from aftertune.exchange.lm_eval_tables import RunSettings, full_name, is_lm_eval_table, items_used
from aftertune.exchange.markdown_blocks import Table
from aftertune.exchange.table_cells import PrintedFigure, is_absent, plain_text, read_cell, read_count, uses_comma
from aftertune.exchange.table_columns import TableLayout, is_error_head, read_layout
from aftertune.exchange.table_grids import MAX_COLUMNS
from aftertune.stats.audit import Figure
from aftertune.values.reported import Remark, Reported

#: Metrics besides those of the catalog that are between 0 and 1.
_SHARES = frozenset({"score", "mc1", "mc2", "multiple_choice_grade", "pass@1", "qem", "macro_f1", "micro_f1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TableContext:
    """What the text above a table says.

    title: name of the model where the table has none; task: the benchmark that a heading names, "" for none; run:
    lm-eval's own line; mean_of, error_of: as in `Reported`.
    """

    source: str
    title: str
    task: str = ""
    run: RunSettings | None = None
    mean_of: str = ""
    error_of: str = ""


@dataclass(frozen=True, slots=True)
class _Score:
    """A score as printed, before it is known whether the table's shares are percent."""

    line: int
    model: str
    task: TaskName
    metric: str
    filter: str
    cell: PrintedFigure
    n: int | None
    group: bool = False
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.model, self.task.task, self.metric, self.filter

    @property
    def share(self) -> bool:
        """True where the value should be between 0 and 1."""
        return catalog.is_bounded(self.metric) or self.metric in _SHARES

    @property
    def beyond_one(self) -> bool:
        """True for a share above 1 without a percent sign: it must be in percent."""
        return self.share and "%" not in self.cell.value and Figure.parse(self.cell.value).value > 1


def read_scores(table: Table, context: TableContext) -> tuple[list[Reported], list[Remark], bool]:
    """The scores of a table, notes on what was left out, and whether the table itself names the models.

    Returns no scores for a table that is none of results.
    """
    if len(table.head) > MAX_COLUMNS:
        wide = Remark(kind="note", line=table.line, text=f"a table of {len(table.head):,} columns was left out")
        return [], [wide], False
    reader = _TableReader(table, context)
    if reader.layout is None:
        return [], list(reader.unread()), False
    scores = list(reader.scores())
    named = reader.layout.kind in ("models as columns", "tasks as columns") or \
        reader.layout.column("model") is not None
    beyond = [s for s in scores if s.beyond_one]
    decimals = max((Figure.parse(s.cell.value).decimals for s in beyond), default=None)
    rows = [row for score in _apart(scores) if (row := reader.reported(score, decimals)) is not None]
    if not rows and not reader.notes:
        reader.note(table.line, "the table has no figure that can be read")
    return rows, reader.notes, named


def _apart(scores: Sequence[_Score]) -> Iterator[_Score]:
    """The scores with settings in the model's name where several rows are about one model."""
    seen: dict[tuple[str, str, str, str], set[tuple[str, ...]]] = {}
    for score in scores:
        seen.setdefault(score.key, set()).add(score.settings)
    several = {score.model for score in scores if len(seen[score.key]) > 1}
    columns = [{s.settings[i] for s in scores if s.model in several} for i in range(len(scores[0].settings))] \
        if scores else []
    differing = [i for i, cells in enumerate(columns) if len(cells) > 1]
    values: dict[tuple[str, str, str, str], str] = {}
    for score in scores:
        told = ", ".join(score.settings[i] for i in differing if score.settings[i])
        if score.model in several and told:
            score = replace(score, model=f"{score.model} ({told})")
        if values.setdefault(score.key, score.cell.value) != score.cell.value:
            score = replace(score, model=f"{score.model} (line {score.line})")
        yield score


class _TableReader:
    """Reads one table. layout: None where it is no table of scores."""

    def __init__(self, table: Table, context: TableContext) -> None:
        self.table = table
        self.context = context
        self.heads = [plain_text(cell.text) for cell in table.head]
        self.rows = [(line, [cell.text for cell in cells]) for line, cells in table.rows]
        self.layout: TableLayout | None = read_layout(self.heads, [cells for _, cells in self.rows],
                                                       one_task=bool(context.task))
        self.own = is_lm_eval_table(self.heads)  # of lm-eval
        self.comma = uses_comma(cell for _, cells in self.rows for cell in cells)
        self.notes: list[Remark] = []
        self.beside: dict[str, int] = {}  # text beside figures -> its line
        self.has_means = False  # and a note says so
        self._root = ""  # the last row that is no "- part"

    def note(self, line: int, text: str) -> None:
        self.notes.append(Remark(kind="note", text=text, line=line))

    def unread(self) -> Iterator[Remark]:
        """A note where a table has figures and heads of results, but no benchmark."""
        words = {head.lower() for head in self.heads}
        figures = any(read_cell(cell) for _, cells in self.rows for cell in cells)
        if figures and (words & {"task", "benchmark", "metric"} or any(read_metric(h).known for h in self.heads)):
            yield Remark(kind="note", line=self.table.line,
                         text=f"the table ({_listed(self.heads)}) was left out: it names no known benchmark")

    def scores(self) -> Iterator[_Score]:
        """The scores of the table in order, with notes on columns and cells that are left out."""
        layout = self.layout
        assert layout is not None
        for column, reason in layout.left_out.items():
            if self.own and compact(self.heads[column]) in ("version", "nshot"):
                continue  # known, and no score
            self.note(self.table.line, f"the column {self.heads[column][:80]!r} was left out: {reason}")
        if layout.kind == "metrics as columns" and layout.column("task") is None and not self.context.task:
            self.note(self.table.line, f"the table ({_listed(self.heads)}) was left out: it names no benchmark")
            return
        found: list[_Score] = []
        for line, row in self._carried(layout):
            for score in self._of_row(layout, line, row):
                if score.metric == "" and found and found[-1].task.task == score.task.task:  # the error of the last
                    found[-1] = replace(found[-1], cell=replace(found[-1].cell, error=score.cell.value))
                elif score.metric:
                    found.append(score)
        if self.beside:
            text, line = next(iter(self.beside.items()))
            self.note(line, f"text beside figures was not read, such as {text[:40]!r}")
        yield from found

    def _carried(self, layout: TableLayout) -> Iterator[tuple[int, dict[str, str]]]:
        """(line, cells by role and by column) of each row; an empty model, task or filter repeats the one above."""
        above: dict[str, str] = {}
        roles = {"task": layout.column("task"), "model": layout.column("model"), "filter": layout.column("filter"),
                 "metric": layout.column("metric")}
        for line, cells in self.rows:
            row = {str(i): cell for i, cell in enumerate(cells)}
            named = {role: plain_text(cells[i]) for role, i in roles.items() if i is not None}
            if named.get("model") and above.get("model") != named["model"] and "task" not in named:
                above = {}
            carried = ("task", "model", "filter") if named.get("metric") or not self.own else ("task", "model")
            above |= {role: text for role, text in named.items() if text and role in carried}
            yield line, {**row, **{role: named.get(role) or above.get(role, "") for role in carried if role in named},
                         **({"metric": named["metric"]} if "metric" in named else {})}

    def _of_row(self, layout: TableLayout, line: int, row: Mapping[str, str]) -> Iterator[_Score]:
        if self._is_subhead(row):
            return
        columns = layout.columns if layout.kind != "list" else (layout.column("result"),)
        settings = tuple(plain_text(row[str(i)])[:60] for i in layout.settings)
        for column in columns:
            if column is None:
                continue
            text = row[str(column)]
            if is_absent(text):
                continue
            names = self._names(layout, column, row)
            if names is None:
                continue
            model, task, metric = names
            cell = read_cell(text, comma=self.comma)
            if cell is None:
                self.note(line, f"{_short(text)} of {task.task[:60]!r} was left out: not one figure")
                continue
            cell = replace(cell, error=self._error(layout, column, line, row) or cell.error)
            if cell.beside:
                self.beside.setdefault(cell.beside, line)
            yield self._score(line, model, task, metric, replace(cell, signed=False), row, settings)

    def _is_subhead(self, row: Mapping[str, str]) -> bool:
        """True for a row below the head that only has numbers of examples or units."""
        cells = [plain_text(text) for key, text in row.items() if key.isdigit() and text.strip()]
        shots = sum(is_shots(cell) for cell in cells)
        return shots > 0 and 2 * shots >= len(cells)

    def _names(self, layout: TableLayout, column: int, row: Mapping[str, str]
               ) -> tuple[str, TaskName, MetricName] | None:
        """(model, task, metric) of a cell; None for a mean of several benchmarks and for a row without a name."""
        head = self.heads[column]
        model = row.get("model", "") or self.context.title
        task_text = full_name(row.get("task", ""), self.root(row)) if "task" in row else self.context.task
        named = layout.column("model")
        if named is not None and model.replace(",", "").replace(".", "").isdigit():
            model = f"{self.heads[named]} {model}".strip()  # a step of a training run
        if layout.kind == "tasks as columns":
            return (model, read_task(head), MetricName("")) if row.get("model") and not is_mean(model) else None
        if is_mean(task_text) or (not task_text and layout.kind != "list"):
            if task_text and not self.has_means:
                self.has_means = True
                self.note(self.table.line, "means of several benchmarks were left out")
            return None
        if not task_text:
            return None
        task = read_task(task_text)
        if layout.kind == "models as columns":
            model = f"{self.context.title} ({head})" if is_shots(head) else head
        metric = read_metric(head) if layout.kind == "metrics as columns" else MetricName("")
        if row.get("metric") and not metric.metric and layout.column("metric") != layout.column("task"):
            told = row["metric"]
            metric = metric if is_shots(told) or is_absent(told) or is_mean(told) else read_metric(told)
        return model, task, metric

    def root(self, row: Mapping[str, str]) -> str:
        """The last row above that is no "- part", as the group of those that are."""
        task = row.get("task", "").strip()
        if task and not task.startswith("-"):
            self._root = task
        return self._root

    def _error(self, layout: TableLayout, column: int, line: int, row: Mapping[str, str]) -> str:
        """The error in a column of its own: the one with the role, or one directly behind a column of scores."""
        behind = column + 1
        if layout.kind != "list" and behind < len(self.heads) and is_error_head(self.heads[behind]):
            text = row[str(behind)]
        elif layout.kind == "list" and (own := layout.column("error")) is not None:
            text = row[str(own)]
        else:
            return ""
        cell = read_cell(plain_text(text).lstrip("±+-/ "), comma=self.comma)
        if cell is None and not is_absent(text):
            self.note(line, f"the error {_short(text)} was left out: not one figure")
        return cell.value if cell is not None else ""

    def _score(self, line: int, model: str, task: TaskName, metric: MetricName, cell: PrintedFigure,
               row: Mapping[str, str], settings: tuple[str, ...]) -> _Score:
        layout = self.layout
        assert layout is not None
        name, filter_ = metric.metric or task.metric, metric.filter if metric.metric else task.filter
        if metric.error:  # a row with the error of the row above
            return _Score(line, model, task, "", NO_FILTER, cell, None)
        if not name:
            listed = task.known and catalog.hub_items(task.task) is None
            name = "score" if listed and not catalog.averaged(task.task, "") else "acc"
        if row.get("filter") and row["filter"].lower() not in ("none", "-", "–"):
            filter_ = row["filter"]
        if catalog.is_share(name) and filter_ in catalog.FILTERS:
            name = "exact_match"
        column = layout.column("n")
        n = metric.n or (read_count(row[str(column)]) if column is not None else None)
        if n is None and self.context.run is not None and self.context.run.limit is not None and self.own:
            n = items_used(task.task, self.context.run.limit)
        group = self.own and bool(catalog.BENCHMARKS[task.task].members if task.task in catalog.BENCHMARKS else
                                  self.heads[layout.column("task") or 0].lower().startswith("group"))
        return _Score(line, model, task, name, filter_ or NO_FILTER, cell, n, group, settings)

    def reported(self, score: _Score, percent: int | None) -> Reported | None:
        """The score with its error; None, with a note, for a figure that cannot be one. percent: as in `_figure`."""
        figure, context, task = _figure(score, percent), self.context, score.task.task
        if score.share and (figure.fraction > 1 or figure.fraction < 0):
            self.note(score.line, f"{_short(score.cell.value)} of {task[:60]!r} was left out: not a share, and the "
                                  f"metric {score.metric!r} is one")
            return None
        stderr = Figure.parse(score.cell.error, percent=figure.scale == 100) if score.cell.error else None
        if stderr is not None and stderr.value < 0:
            stderr = None
        limited = self.own and context.run is not None and context.run.limit is not None
        known = None if limited else catalog.hub_items(task)
        group = "pooled over the tasks of the group" if score.group else ""
        return Reported(
            source=context.source, model=score.model, task=task, metric=score.metric, filter=score.filter,
            value=figure.fraction, stderr=stderr.fraction if stderr else None, n=score.n or known,
            n_source="stated" if score.n else "known" if known else "",
            value_text=_with_unit(score.cell.value, figure),
            stderr_text=_with_unit(score.cell.error, figure) if stderr else "", line=score.line,
            mean_of=catalog.averaged(task, score.metric) or context.mean_of, error_of=group or context.error_of)


def _figure(score: _Score, percent: int | None) -> Figure:
    """The figure of a score. percent: the decimals of the table's shares above 1, which must be in percent, so that
    its other shares without a unit are too; None where it has none."""
    plain = Figure.parse(score.cell.value)
    unit_known = "%" in score.cell.value or score.metric in ("perplexity", "rating") or \
        not (score.share or score.metric not in catalog.METRICS)
    fraction = plain.decimals >= 3 and percent is not None and plain.decimals > percent and abs(plain.value) <= 1
    if percent is None or unit_known or fraction or (abs(plain.value) > 100 and not score.share):
        return plain
    return Figure.parse(score.cell.value, percent=True)


def _with_unit(text: str, figure: Figure) -> str:
    """A printed figure with its percent sign."""
    return f"{text}%" if figure.scale == 100 and "%" not in text else text


def _short(text: str) -> str:
    return repr(" ".join(text.split())[:40])


def _listed(heads: Sequence[str]) -> str:
    return ", ".join(head[:30] for head in heads if head)[:120]
