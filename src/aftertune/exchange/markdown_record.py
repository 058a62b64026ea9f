"""Reads Markdown records of results: scores from tables, models from headings, metadata and statements from lists.

    document = read_record(Path("record.md"))
    document.rows[0]         Reported(model="Base Llama 3.2 1B", task="hellaswag", metric="acc", value=0.4523, …)
    document.notes[0].text   "the column 'Δ' was left out: a comparison of other columns"

Tables may have one score in a row (also as lm-eval prints them), a column for each model, for each metric or for each
task (`aftertune.exchange.table_columns`). A model's column that only repeats scores of that model from other tables is
left out. Where a table names no model, lm-eval's line above it does, else a bold line directly above it, else the
nearest heading that says more than "Results". A heading with "not evaluated" below it and no table is a planned model;
code on that line is its command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from aftertune import bounds, catalog
from aftertune.errors import InputError, shown
from aftertune.exchange.benchmark_names import TaskName, compact, is_benchmark, is_shots, read_task
from aftertune.exchange.files import normal_lines, read_text
from aftertune.exchange.lm_eval_tables import RunSettings, read_run_line
from aftertune.exchange.markdown_blocks import Block, Heading, LeftOut, RunLine, Table, Text, read_blocks
from aftertune.exchange.markdown_remarks import read_remarks
from aftertune.exchange.table_cells import plain_text
from aftertune.exchange.table_columns import COMPARES
from aftertune.exchange.table_scores import TableContext, read_scores
from aftertune.sources.limits import OutOfTime, time_limit
from aftertune.values.reported import Remark, Reported

#: The largest record, in bytes.
LIMIT = bounds.RECORD_BYTES
#: The most cells of all its tables, or marks between cells in its text.
MAX_CELLS = bounds.RECORD_CELLS
#: The most notes that are kept of a document, facts below one heading, runs of one model, and characters of a heading.
MAX_NOTES, MAX_FACTS = bounds.RECORD_NOTES, bounds.RECORD_FACTS
MAX_RUNS, MAX_TITLE = bounds.RECORD_RUNS, bounds.RECORD_TITLE
#: Characters of a line that are searched for facts.
MAX_FACT = bounds.RECORD_FACT

_FACT = re.compile(r"(?!\[[ xX]\])([^:]{1,80}?)\s*:\s*(\S.*)")
_NOT_EVALUATED = re.compile(r"(?i)\bnot\b[^.|]{0,12}\bevaluated\b")
_NUMBERED = re.compile(r"\d{1,9}\.\s+")
#: Words of headings that name no model, in lower case.
_GENERIC = frozenset((
    "a", "academic", "accuracies", "accuracy", "agieval", "all", "and", "automated", "automatic", "averages",
    "benchmark", "benchmarking", "benchmarks", "bigbench", "by", "card", "comparison", "comparisons", "data",
    "detail", "detailed", "details", "english", "eval", "evals", "evaluate", "evaluation", "evaluations",
    "evaluating", "experiment", "experiments", "final", "few", "for", "from", "full", "general", "gpt4all", "group",
    "groups", "harness", "hf", "here", "huggingface", "in", "language", "leaderboard", "lighteval", "list", "llm",
    "lm", "log", "main", "measured", "metric", "metrics", "model", "models", "nous", "of", "on", "open", "other",
    "our", "output", "outputs", "overall", "overview", "performance", "quality", "quantitative", "report",
    "reported", "reports", "result", "results", "run", "runs", "score", "scores", "set", "sets", "shot", "standard",
    "suite", "summary", "table", "tables", "task", "tasks", "test", "tests", "the", "their", "to", "v1", "v2",
    "with", "zero", "zeroshot", "evalharness", "lmeval", "s", "vs", "versus", "across", "different",
    "several", "various", "multiple", "more", "new", "numbers", "lmevaluationharness", "lmevalharness", "openllm",
    "评测", "评测结果", "结果", "性能", "模型", "效果评测", "指标评测"))
_HUB_NAME = re.compile(r"(?<![\w/.:-])[\w.-]{1,96}/[\w.-]{1,96}(?![\w/-])")
_OVER_RUNS = re.compile(r"(?i)\b(?:mean|means|average|averages|averaged|avg|median)\b[^.|]{0,60}\b(?:seeds?|runs?|"
                        r"trials?|repeats?|repetitions?|sets|folds?|prompts|templates|orders|permutations|samplings?)\b|"
                        r"\b(?:over|across)\s{1,3}(?:\S{1,20}\s{1,3}){0,2}(?:seeds|runs|trials|repeats|repetitions)\b")
_AGAINST = re.compile(r"(?:Comparison\s{1,3}c-[0-9a-f]{6,64}:\s{1,3})?(\S.*?)\s{1,3}(?:against|vs\.?|versus)\s{1,3}"
                      r"(\S.*)")
_BASE_HEADS = frozenset(("base", "basemodel", "baseline", "original", "before", "pretrained", "reference"))
_TUNED_HEADS = frozenset(("tuned", "tunedmodel", "finetuned", "finetune", "after", "candidate", "adapted"))
_SPREAD = re.compile(r"(?i)\b(?:standard deviations?|std\.?\s?dev\.?|stdev)\b")
_INTERVAL = re.compile(r"(?i)\b95\s?%|\bconfidence intervals?\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a record states. rows: scores and planned models; remarks: everything else, with notes on what is left
    out."""

    source: str
    rows: tuple[Reported, ...]
    remarks: tuple[Remark, ...] = ()

    @property
    def scores(self) -> tuple[Reported, ...]:
        """The rows with a score, without planned models."""
        return tuple(r for r in self.rows if r.planned is None)

    @property
    def notes(self) -> tuple[Remark, ...]:
        """What was not read, and why."""
        return tuple(r for r in self.remarks if r.kind == "note")


def read_record(path: Path, *, source: str | None = None) -> Document:
    """Read a Markdown record. source: its name in the ledger, by default the file's.

    Raises InputError with the file, and the line if there is one, also if the record has no table of scores.
    """
    try:
        with time_limit(bounds.RECORD_SECONDS):
            return _read(path, source or path.name)
    except OutOfTime:
        raise InputError(f"{path}: reading it takes more than {bounds.RECORD_SECONDS:g} s; give its tables in several "
                         "files") from None


def parse_record(text: str, source: str) -> Document:
    """Read the text of a Markdown record. source: its name. Raises InputError as `read_record`."""
    return _parse(normal_lines(text), Path(source), source)


def _read(path: Path, source: str) -> Document:
    return _parse(read_text(path, limit=LIMIT), path, source)


def _parse(text: str, path: Path, source: str) -> Document:
    reader = _Reader(path, source)
    if (cells := text.count("|")) > MAX_CELLS:
        raise InputError(f"{path}: has {cells:,} cells of tables (marks |), but at most {MAX_CELLS:,} are read; give "
                         "the tables in several files")
    blocks = read_blocks(text)
    for block in blocks:
        reader.read(block)
    document = reader.document()
    return replace(document, remarks=(*read_remarks(blocks, document.scores), *_gathered(reader.notes)))


def _gathered(notes: Sequence[Remark]) -> Iterator[Remark]:
    """The notes, each text once, with how often it holds; at most `MAX_NOTES`."""
    lines: dict[str, list[int | None]] = {}
    for note in notes:
        lines.setdefault(note.text, []).append(note.line)
    for text, where in list(lines.items())[:MAX_NOTES]:
        more = f" ({len(where)} times)" if len(where) > 1 else ""
        yield Remark(kind="note", text=text + more, line=where[0])
    if len(lines) > MAX_NOTES:
        yield Remark(kind="note", text=f"{len(lines) - MAX_NOTES} further notes are not listed")


@dataclass(slots=True)
class _HeadingContent:
    """A heading: its title, the section above it, and what was read below it. planned: (command, line)."""

    title: str
    section: str
    rows: list[Reported] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    planned: tuple[str, int] | None = None


class _Reader:
    """Collects the scores of one document, block by block."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self.source = source
        self.headings: list[tuple[int, str]] = []
        self.contents: list[_HeadingContent] = [_HeadingContent(source, "")]
        self.wide: list[Reported] = []  # of tables that name the models
        self.compared: set[int] = set()  # lines of tables that compare two columns
        self.notes: list[Remark] = []
        self.run: RunSettings | None = None  # lm-eval's line above the table
        self.code: list[str] = []  # code in these lines
        self.above: list[str] = []  # lines of text since the heading or table before
        self.caption = ""  # a bold line directly above the table
        self.runs: dict[str, dict[str, dict[tuple[str, str, str], float | None]]] = {}  # model -> run -> scores

    def read(self, block: Block) -> None:
        """Read one block."""
        if isinstance(block, Table):
            self._table(block)
            self.above, self.code, self.caption = [], [], ""
        elif isinstance(block, Heading):
            self._heading(block)
            self.above, self.code, self.caption, self.run = [], [], "", None
        elif isinstance(block, RunLine):
            self.run = read_run_line(block.text)
        elif isinstance(block, LeftOut):
            self._note(block.line, block.reason)
        else:
            self._text(block)

    def _note(self, line: int, text: str) -> None:
        self.notes.append(Remark(kind="note", line=line, text=text))

    def _heading(self, heading: Heading) -> None:
        if len(heading.content.text) > MAX_TITLE:
            self._note(heading.line, f"a heading of {len(heading.content.text):,} characters was cut at {MAX_TITLE}")
        title = _NUMBERED.sub("", heading.content.text[:MAX_TITLE], count=1)
        self.headings = [h for h in self.headings if h[0] < heading.depth] + [(heading.depth, title)]
        above = [t for d, t in self.headings[:-1] if d > 1]
        self.contents.append(_HeadingContent(title, above[-1] if above else title))

    def _text(self, line: Text) -> None:
        content = self.contents[-1]
        text = line.content.text
        if line.item == "bullet" and (fact := _FACT.fullmatch(text[:MAX_FACT])):
            if len(content.facts) >= MAX_FACTS:
                self._note(line.line, f"more than {MAX_FACTS} facts below one heading: the rest was left out")
            elif not catalog.is_metric(fact[1]):  # that is a definition
                content.facts[fact[1]] = fact[2]
                if len(text) > MAX_FACT:
                    self._note(line.line, f"a fact of {len(text):,} characters was cut at {MAX_FACT:,}")
        elif _NOT_EVALUATED.search(text[:MAX_FACT]):
            content.planned = (line.content.code, line.line)
        bare = plain_text(text[:MAX_FACT])
        self.code = [*self.code[-20:], *(span for kind, span in line.content.spans if kind == "code")]
        self.caption = bare.rstrip(": ") if not line.item and len(bare) <= 100 and \
            (line.content.bold or bare.endswith(":")) else "" if bare else self.caption
        self.above = [*self.above[-4:], bare]

    def _table(self, table: Table) -> None:
        content = self.contents[-1]
        rows, notes, named = read_scores(table, self._context())
        self.notes += notes
        compares = any(note.text.endswith(COMPARES) for note in notes)
        if compares:
            rows = _named_by_heading(rows, content.title)
        rows = self._as_runs(rows, table.line)
        if not rows:
            return
        if compares:
            self.compared.update(r.line for r in rows if r.line is not None)
        if self.run is not None:
            limits = {} if self.run.limit is None else {"Limit": f"{self.run.limit:g}"}
            shots = {"Few-shot examples": self.run.fewshot} if self.run.fewshot else {}
            rows = [replace(r, facts={**content.facts, **limits, **shots}) for r in rows]
        if named and not any(r.model == content.title for r in rows) and not _is_list(table):
            self.wide += [replace(r, section=content.title) for r in rows]
        else:
            content.rows += [replace(r, section=content.section) for r in rows]

    def _context(self) -> TableContext:
        """What is above the table that comes next."""
        told = " ".join([*(t for _, t in self.headings[-1:]), *self.above])[:bounds.RECORD_CONTEXT]
        over_runs = _OVER_RUNS.search(told) or any(_OVER_RUNS.search(title) for _, title in self.headings)
        mean_of = "several runs" if over_runs else ""
        intervals = "a 95 % interval" if _INTERVAL.search(told) else ""
        error_of = "a standard deviation" if _SPREAD.search(told) else intervals
        task = next((name.task for title in (self.caption, *(t for _, t in self.headings[::-1]))
                     if (name := _benchmark_in(title)) is not None), "")
        in_code = {read_task(code).task for code in self.code if is_benchmark(code)}
        if not task and len(in_code) == 1:
            task = in_code.pop()
        return TableContext(source=self.source, title=self._model(), task=task, run=self.run, mean_of=mean_of,
                            error_of=error_of)

    def _model(self) -> str:
        """The name of the model where the table has none."""
        if self.run is not None and self.run.model:
            return self.run.model
        titles = [self.caption, *(title for _, title in self.headings[::-1])]
        title = next((title for title in titles if title and not _is_generic(title)), self.source)
        name = _HUB_NAME.search(title[:MAX_TITLE])  # "Evaluation results of org/model"
        return name[0] if name and _is_generic(title.replace(name[0], "")) else title

    def _as_runs(self, rows: Sequence[Reported], line: int) -> list[Reported]:
        """The scores of a table that earlier tables do not have; a model with other figures is another run."""
        fresh: list[Reported] = []
        for model, of_model in _by_model(rows).items():
            figures = {(r.task, r.metric, r.filter): r.value for r in of_model}
            runs = self.runs.setdefault(model, {})
            if len(runs) > MAX_RUNS:
                raise InputError(f"{self.path}:{line}: more than {MAX_RUNS} tables have other scores of the model "
                                 f"{shown(model)}; name the models in the tables or in the headings above them")
            fits = [name for name, run in runs.items() if all(run.get(k, v) == v for k, v in figures.items())]
            repeats = [name for name in fits if runs[name].keys() & figures.keys()]
            name = next(iter([*repeats, *fits[-1:]]), "") or (model if not runs else self._other_name(model, line))
            run = runs.setdefault(name, {})
            for row in of_model:
                if (row.task, row.metric, row.filter) not in run:
                    fresh.append(replace(row, model=name))
                    run[row.task, row.metric, row.filter] = row.value
        return sorted(fresh, key=lambda r: r.line or 0)

    def _other_name(self, model: str, line: int) -> str:
        """A name for another run of a model: with its heading, else with the line of its table."""
        title = self.caption or (self.headings[-1][1] if self.headings else "")
        named = f"{model} ({title[:80]})"
        taken = not title or title == model or named in self.runs[model]
        return f"{model} (table in line {line})" if taken else named

    def document(self) -> Document:
        """Everything that was read. Raises InputError if there is no score."""
        rows: list[Reported] = []
        for content in self.contents:
            rows += [replace(r, facts={**content.facts, **r.facts}) for r in content.rows]
            if content.planned is not None and not content.rows:
                command, line = content.planned
                rows.append(Reported(source=self.source, model=_evaluated_name(content.title), section=content.section,
                                     facts=content.facts, planned=command, line=line))
        rows += self._of_comparisons(rows)
        if not any(r.planned is None for r in rows):
            raise InputError(f"{self.path}{self._reason()}")
        return Document(source=self.source, rows=tuple(rows))

    def _of_comparisons(self, rows: Sequence[Reported]) -> Iterator[Reported]:
        """The scores of tables that name the models, without those that repeat a model of ``rows``, with a note on
        what such a table has beside them."""
        found = [*_not_repeated(self.wide, rows, self.compared)]
        kept = {id(row) for row in found}
        known = {(r.task, r.metric, r.filter) for r in rows}
        for row in self.wide:
            if id(row) not in kept and (row.task, row.metric, row.filter) not in known:
                self._note(row.line or 1, f"a score of {row.task[:60]!r} ({row.metric[:60]}) was left out: it stands "
                                          "only in a comparison whose other scores are those of a model's own table")
        yield from found

    def _reason(self) -> str:
        """Why no score was read."""
        if self.notes:
            return f":{self.notes[0].line}: no score was read: {self.notes[0].text}"
        return (": no table of scores was found; a table needs benchmarks in a column (Task) with one column of "
                "results (Value) or one for each model, or benchmarks in its head and a model in each row")


def _is_list(table: Table) -> bool:
    """True for a table with a column of results."""
    return any(compact(cell.text) in ("result", "results", "value", "values", "score", "scores") for cell in table.head)


def _is_generic(title: str) -> bool:
    """True for a heading that names no model: "Evaluation results", "GPT4All:", "5-shot", "MMLU"."""
    words = [compact(word) for word in re.split(r"[\s/&+,;:|()\[\]_-]{1,20}", plain_text(title[:MAX_TITLE]))]
    words = [word for word in words if word and not word.isdigit()]
    return (all(word in _GENERIC for word in words) and [len(w) for w in words] != [1]) or is_shots(title) or \
        is_benchmark(title[:MAX_TITLE]) or _benchmark_in(title) is not None


def _benchmark_in(title: str) -> TaskName | None:
    """The benchmark of a heading that names one and little more, such as "Results on GSM8K"."""
    for form in (title, " ".join(w for w in title.split() if compact(w) not in _GENERIC)):
        if form and len(form) <= 80 and (name := read_task(form)).known:
            return name
    return None


def _evaluated_name(title: str) -> str:
    """The name of a planned model without "(Not Evaluated)"."""
    return re.sub(r"\s*\((?i:not (?:yet )?evaluated)\)", "", title)


def _named_by_heading(rows: Sequence[Reported], title: str) -> list[Reported]:
    """The scores of the columns Base and Tuned with the names in a heading such as "Comparison: X against Y"."""
    columns = {r.model: compact(r.model) for r in rows}
    base = [model for model, column in columns.items() if column in _BASE_HEADS]
    tuned = [model for model, column in columns.items() if column in _TUNED_HEADS]
    found = _AGAINST.fullmatch(title[:MAX_TITLE])
    if found is None or not (len(base) == len(tuned) == 1 and len(columns) == 2):
        return list(rows)
    names = {tuned[0]: found[1].strip(), base[0]: found[2].strip()}
    return [replace(r, model=names[r.model]) for r in rows]


def _not_repeated(wide: Sequence[Reported], rows: Sequence[Reported], compared: Set[int]) -> Iterator[Reported]:
    """The columns of ``wide`` that do not repeat the scores of a model in ``rows``, with or without their tasks.

    compared: lines of tables that compare columns; up to half of a column's scores may stand only there, and in no
    model of ``rows``.
    """
    def figures(scores: Sequence[Reported]) -> set[tuple[object, ...]]:
        return {(r.task, r.metric, r.filter, r.value) for r in scores if r.planned is None}

    def taskless(scores: Set[tuple[object, ...]]) -> set[tuple[object, ...]]:
        return {("", *figure[1:]) for figure in scores}

    models = _by_model(rows)
    own = [figures(scores) for scores in models.values()]
    with_task, without_task = _Supersets(own), _Supersets([taskless(scores) for scores in own])
    known = {figure[:3] for scores in own for figure in scores}
    for model, column in _by_model(wide).items():
        scores = figures(column)
        shared = {figure for figure in scores if figure[:3] in known}
        if (2 * len(shared) >= len(scores) or model in models) and \
                all(r.line in compared or (r.task, r.metric, r.filter) in known for r in column):
            scores = shared
        if scores not in with_task and taskless(scores) not in without_task:
            yield from column


class _Supersets:
    """Sets of which some may contain all of another: ``{1} in _Supersets([{1, 2}])``."""

    def __init__(self, sets: Sequence[Set[tuple[object, ...]]]) -> None:
        self.sets = sets
        self.having: dict[tuple[object, ...], list[int]] = {}  # element -> the sets that have it
        for i, elements in enumerate(sets):
            for element in elements:
                self.having.setdefault(element, []).append(i)

    def __contains__(self, elements: Set[tuple[object, ...]]) -> bool:
        if not elements:
            return bool(self.sets)
        rarest = min((self.having.get(e, []) for e in elements), key=len)
        return any(elements <= self.sets[i] for i in rarest)


def _by_model(rows: Iterable[Reported]) -> dict[str, list[Reported]]:
    """Model -> its rows, in order of first appearance."""
    out: dict[str, list[Reported]] = {}
    for row in rows:
        out.setdefault(row.model, []).append(row)
    return out
