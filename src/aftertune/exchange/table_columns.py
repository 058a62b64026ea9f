"""Decides what each column of a table of results is: from its head, and from its cells where the head is not enough.

    layout = read_layout(["Benchmark", "# Shots", "Metric", "Base", "Tuned", "Δ"], rows)
    layout.kind          "models as columns"
    layout.roles         {0: "task", 2: "metric"}
    layout.columns       (3, 4): a model each
    layout.left_out      {5: "a difference"}

What is neither a model nor a score for certain is left out, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aftertune.exchange.benchmark_names import compact, is_benchmark, is_mean, is_shots, read_metric
from aftertune.exchange.table_cells import is_absent, plain_text, read_cell

Role = Literal["task", "filter", "metric", "error", "result", "n", "model"]
#: list: one score in a row. models as columns: one column of scores for each model. metrics as columns: one column of
#: scores for each metric. tasks as columns: one row for each model.
TableKind = Literal["list", "models as columns", "metrics as columns", "tasks as columns"]

#: Why a column is left out whose cells may tell runs of one model apart.
SETTING = "a setting or a count"
#: The reason why columns of differences and p-values are left out.
COMPARES = "a comparison of other columns"
#: Role -> heads that have it, in lower case without marks (`compact`); the first words of a longer head count too.
_ROLES: Mapping[Role, tuple[str, ...]] = {
    "model": (
        "model", "models", "modelname", "modelid", "llm", "llms", "模型", "模型名称", "modelo", "modell", "modèle"),
    "task": (
        "task", "tasks", "taskname", "benchmark", "benchmarks", "benchmarkname", "dataset", "datasets", "eval",
        "evals", "evaluation", "groups", "group", "testset", "bench", "基准", "基准测试", "数据集", "任务", "评测集",
        "aufgabe", "tarea", "tâche", "testsuite", "evaltask", "subtask", "subject"),
    "filter": ("filter", "filters"),
    "metric": ("metric", "metrics", "measure", "metricname", "指标", "metrik", "métrica"),
    "error": (
        "stderr", "error", "errors", "std", "stddev", "standarderror", "se", "sem", "uncertainty", "stderror",
        "errorrange", "marginoferror", "fehler", "stderr%", "err"),
    "result": (
        "result", "results", "value", "values", "score", "scores", "performance", "结果", "得分", "分数", "ergebnis",
        "wert", "resultado", "valor", "puntuación", "scorepct"),
    "n": (
        "n", "neff", "items", "questions", "samples", "nsamples", "nquestions", "numsamples", "numquestions",
        "numberofsamples", "numberofquestions", "numberofitems", "numexamples", "samplesize", "testsize",
        "testsamples", "totalquestions", "totalsamples", "questioncount"),
}
#: Columns that name the runs of a table where no column is called Model.
_RUNS = frozenset((
    "method", "methods", "quant", "quants", "quantization", "quantisation", "scheme", "schemes", "config",
    "configuration", "checkpoint", "run", "runs", "variant", "version", "system", "setting", "settings", "precision",
    "recipe", "step", "steps", "epoch", "name", "adapter", "base", "approach", "format", "strategy", "setup",
    "experiment", "algorithm", "方法"))
#: Heads of columns that compare others, and of settings, as words of the head.
_DIFFERENCES = frozenset((
    "delta", "diff", "difference", "change", "gain", "gains", "improvement", "improvements", "recovery",
    "degradation", "gap", "boost", "increase", "decrease", "loss%", "relative", "retention", "retained",
    "regression", "uplift", "lift", "vs", "versus", "变化", "提升", "speedup", "relchange", "adjusted", "interval",
    "ci", "verdict", "margin", "gained", "lost", "significance", "significant"))
_P_VALUES = frozenset((
    "p", "pvalue", "pvalues", "pholm", "z", "t"))
_SETTINGS = frozenset((
    "version", "nshot", "shot", "shots", "fewshot", "numfewshot", "kshot", "category", "type", "choices", "options",
    "classes", "correct", "wrong",
    "incorrect", "rank", "ranking", "tp", "ep", "pp", "dp", "hardware", "gpu", "gpus", "device", "dtype", "bits",
    "bit", "bpw", "param", "params", "parameters", "size", "sizes", "token", "tokens", "time", "throughput",
    "latency", "memory", "vram", "ram", "cost", "price", "license", "licence", "link", "links", "url", "hub",
    "notes", "note", "comment", "comments", "date", "context", "file", "filename", "description", "measures", "lr",
    "learning", "batch", "seed", "seeds", "duration", "hours", "hour", "minutes", "seconds", "sec", "ms", "gb", "mb",
    "tflops", "flops", "weight", "weights", "proportion", "percentage", "ratio", "split", "language", "languages",
    "examples", "example", "count", "temperature", "rate", "length", "alias", "limit", "status", "source",
    "reference", "paper", "year", "released", "release", "layers", "heads", "hidden", "vocab", "speed", "tps", "qps",
    "hash", "sha", "command", "domain", "area", "kv", "groupsize", "warmup", "optimizer", "dim", "rows", "instances",
    "train", "validation", "dev", "samples", "corpus", "mix", "sampling", "steps", "epochs", "baseline?",
    "higherisbetter", "order", "id", "no", "index", "loss", "compression", "sparsity", "energy", "watt", "watts",
    "power", "dollars", "usd", "timestamp", "capability", "skill"))
#: Other words in the head of a setting.
_FILLERS = frozenset((
    "model", "of", "pretrained", "pretraining", "training", "trained", "number", "num", "max", "min", "total", "the",
    "in", "per", "data", "dataset", "task", "benchmark", "input", "output", "sequence", "file", "disk", "peak",
    "final", "mean", "score", "test", "k", "s", "n", "m", "b", "tok", "k/s"))
#: Last words of the head of a setting.
_QUANTITIES = frozenset((
    "rank", "size", "width", "length", "count", "rate", "time", "tokens", "params", "bits", "memory", "cost",
    "speed", "latency", "throughput", "epochs", "seed", "version", "type", "category", "price", "samples", "ratio",
    "vram", "ram", "parameters", "bpw", "requests", "gpus", "hours"))
_SEPARATORS = ("/", "\\", "(", "[", "<", "|", ":")


@dataclass(frozen=True, slots=True)
class TableLayout:
    """What the columns of a table are.

    roles: column -> its role; columns: those with scores (of a model, a metric or a task each), none in a list;
    left_out: column -> why it is not read; settings: columns that tell runs of one model apart.
    """

    kind: TableKind
    roles: Mapping[int, Role]
    columns: tuple[int, ...] = ()
    left_out: Mapping[int, str] = field(default_factory=dict)
    settings: tuple[int, ...] = ()

    def column(self, role: Role) -> int | None:
        """The column with a role."""
        return next((i for i, r in self.roles.items() if r == role), None)


def read_layout(heads: Sequence[str], rows: Sequence[Sequence[str]], *, one_task: bool = False) -> TableLayout | None:
    """What the columns of a table are, or None where it is no table of scores of benchmarks.

    heads: the heads as text; rows: the cells as text, as many in each row as heads. one_task: a heading names the one
    benchmark of the table.
    """
    heads = [plain_text(head) for head in heads]
    roles = _roles(heads)
    if "task" in roles.values() and not _names_tasks(heads, roles, rows):
        return None
    named = next((i for i, role in roles.items() if role == "task"), None)
    if (better := _task_column(heads, roles, rows, named)) is not None:
        roles = {**{i: r for i, r in roles.items() if i not in (better, named)}, better: "task"}
    if "task" in roles.values() or (one_task and _names_metrics(roles, rows)):
        return _with_tasks(heads, roles, rows)
    return _tasks_as_columns(heads, roles, rows)


def _roles(heads: Sequence[str]) -> dict[int, Role]:
    """Column -> role, by the head alone; only the first column with a role has it."""
    roles: dict[int, Role] = {}
    for whole in (True, False):
        for i, head in enumerate(heads):
            if i in roles or (not whole and _is_setting(head)):
                continue
            role = next((role for role, words in _ROLES.items() if role not in roles.values()
                         and (compact(head) in words if whole else _start(head, role) in words)), None)
            if role is not None:
                roles[i] = role
    signs = [i for i, head in enumerate(heads) if i not in roles and head.strip() in ("±", "+/-")]
    if signs and "error" not in roles.values():
        roles[signs[0]] = "error"
    return roles


def _start(head: str, role: str) -> str:
    """The start of a head such as "Task/Metric" or "Result (%)", without marks; "Model A" and "Score 2" are whole."""
    for mark in _SEPARATORS:
        head = head.partition(mark)[0] or head
    words = head.split()[:1] if role not in ("model", "result", "n") else [head]
    return compact(" ".join(words))


def _is_setting(head: str) -> bool:
    """True where a head is a setting or a comparison, as "Task type" or "Model size"."""
    return reason_left_out(head) != ""


def is_error_head(head: str) -> bool:
    """True for the head of a column of standard errors."""
    return compact(head) in _ROLES["error"] or head.strip() in ("±", "+/-")


def _words(head: str) -> list[str]:
    """The words of a head outside brackets, without marks and numbers."""
    bare = re.sub(r"[(\[][^()\[\]]{0,80}[)\]]", " ", head)
    words = [compact(word) for word in re.split(r"[\s/#_,:.-]{1,10}", bare)]
    return [word for word in words if word and not word.isdigit()]


def reason_left_out(head: str) -> str:
    """Why a column is neither a model nor a score, from its head; "" where the head does not say so."""
    bare = head.strip()
    words = _words(bare)
    if bare.startswith(("Δ", "∆", "δ")) or not _DIFFERENCES.isdisjoint(words) or compact(bare) in _P_VALUES:
        return COMPARES
    if is_mean(bare) or (words and words[0] in ("avg", "average", "mean", "平均")):
        return "a mean of several benchmarks"
    settings = bare.startswith("#") or (bool(words) and words[-1] in _QUANTITIES) or \
        (not _SETTINGS.isdisjoint(words) and set(words) <= _SETTINGS | _FILLERS)
    if (settings or compact(bare) in _SETTINGS) and not is_shots(bare):
        return SETTING
    return ""


def _names_tasks(heads: Sequence[str], roles: Mapping[int, Role], rows: Sequence[Sequence[str]]) -> bool:
    """False for a table of data sets without a benchmark among them, and for descriptions of tasks."""
    column = next(i for i, role in roles.items() if role == "task")
    if compact(heads[column])[:7] not in ("dataset", "数据集", "eval", "evaluat", "group", "groups", "subject"):
        return True
    return any(is_benchmark(plain_text(row[column])) for row in rows) or \
        ("result" in roles.values() and "metric" in roles.values())


def _names_metrics(roles: Mapping[int, Role], rows: Sequence[Sequence[str]]) -> bool:
    """True where a column has metrics, most of them known ones."""
    column = next((i for i, role in roles.items() if role == "metric"), None)
    cells = [] if column is None else [row[column] for row in rows if row[column].strip()]
    return bool(cells) and 2 * sum(read_metric(plain_text(cell)).known for cell in cells) >= len(cells)


def _task_column(heads: Sequence[str], roles: Mapping[int, Role], rows: Sequence[Sequence[str]],
                 named: int | None) -> int | None:
    """The column whose cells are benchmarks, where the head does not say so ("Metric | Value") or where the column
    ``named`` by its head has none of them, but groups such as Reasoning; None for no other column."""
    if named is None and sum(is_benchmark(head) for head in heads) >= 2:
        return None  # the benchmarks are the heads
    of_named = 0 if named is None else sum(is_benchmark(plain_text(row[named])) for row in rows)
    for i in range(min(3, len(heads))):
        if i == named or roles.get(i, "metric") not in ("metric", "model"):
            continue
        cells = [plain_text(row[i]) for row in rows if row[i].strip() and not is_mean(plain_text(row[i]))]
        benchmarks = sum(is_benchmark(cell) for cell in cells)
        enough = benchmarks >= 2 * of_named if of_named else benchmarks >= min(2, len(cells))
        if cells and enough and 2 * benchmarks >= len(cells):
            return i
    return None


def _with_tasks(heads: Sequence[str], roles: dict[int, Role], rows: Sequence[Sequence[str]]) -> TableLayout:
    """The layout of a table with a column of tasks."""
    settings = tuple(i for i in range(len(heads)) if i not in roles and not _has_figures(rows, i))
    if "result" in roles.values():
        return TableLayout("list", roles, left_out=_other_figures(heads, roles, rows), settings=settings)
    metrics = [i for i, head in enumerate(heads) if i not in roles and _is_metric_head(head) and _has_figures(rows, i)]
    has_model = "model" in roles.values()
    if metrics and (has_model or "metric" not in roles.values()):
        left_out = {i: why for i, why in _other_figures(heads, roles, rows).items() if i not in metrics}
        return TableLayout("metrics as columns", roles, tuple(metrics), left_out,
                      tuple(i for i in (*settings, *left_out) if left_out.get(i, SETTING) == SETTING))
    candidates = [i for i in range(len(heads)) if i not in roles and _has_figures(rows, i)]
    left_out = {i: reason for i in candidates if (reason := reason_left_out(heads[i]))}
    candidates = [i for i in candidates if i not in left_out]
    if has_model:
        left_out |= dict.fromkeys(candidates, "not a score: another column names the model")
        return TableLayout("list", roles, left_out=left_out, settings=settings)
    fractions = [i for i in candidates if any("." in f or "%" in f for f in _figures(rows, i))]
    for i in candidates:
        if reason := _no_scores(heads, rows, i, beside_shares=bool(set(fractions[:2]) - {i})):
            left_out[i] = reason
    models = tuple(i for i in candidates if i not in left_out)
    return TableLayout("models as columns", roles, models, left_out, settings)


def _tasks_as_columns(heads: Sequence[str], roles: dict[int, Role], rows: Sequence[Sequence[str]]
                      ) -> TableLayout | None:
    """The layout of a table with a row for each model, or None."""
    tasks = [i for i, head in enumerate(heads)
             if roles.get(i) not in ("model", "n") and is_benchmark(head) and not _compares(head)
             and not is_mean(head) and _has_figures(rows, i)]
    metrics = [i for i, head in enumerate(heads) if i not in roles and _is_metric_head(head) and _has_figures(rows, i)]
    texts = [i for i in range(len(heads)) if i not in (*tasks, *metrics) and not _has_figures(rows, i)]
    model = next((i for i, role in roles.items() if role == "model"), None)
    if model is None:
        others = [i for i in range(len(heads)) if i not in (*tasks, *metrics)]
        named = [i for i in others if compact(heads[i]) in _RUNS or _start(heads[i], "task") in _RUNS]
        model = next(iter([*named, *texts, *others[:1]]), None)
    if model is None or not (tasks or metrics):
        return None
    columns = tasks or metrics
    left_out = {i: why for i, why in _other_figures(heads, {**roles, model: "model"}, rows).items() if i not in columns}
    settings = tuple(i for i in range(len(heads)) if i != model and i not in columns
                     and left_out.get(i, SETTING) == SETTING and _is_setting_column(rows, i))
    kind: TableKind = "tasks as columns" if tasks else "metrics as columns"
    return TableLayout(kind, {model: "model"}, tuple(columns), left_out, settings)


def _compares(head: str) -> bool:
    """True for a benchmark's head that states a change: "MMLU Δ", "MMLU recovery (%)"; DROP is a benchmark."""
    return reason_left_out(head) == COMPARES


def _is_metric_head(head: str) -> bool:
    return read_metric(head).known and not is_benchmark(head) and not _compares(head)


def _is_setting_column(rows: Sequence[Sequence[str]], column: int) -> bool:
    """True where the cells may tell runs apart: short, and not all the same."""
    cells = {row[column].strip() for row in rows}
    return len(cells) > 1 and all(len(cell) <= 40 and "→" not in cell for cell in cells)


def _has_figures(rows: Sequence[Sequence[str]], column: int) -> bool:
    """True where at least a quarter of the cells that are not empty are figures."""
    cells = [row[column] for row in rows if not is_absent(row[column])]
    figures = sum(read_cell(cell) is not None for cell in cells)
    return figures > 0 and 4 * figures >= len(cells)


def _other_figures(heads: Sequence[str], roles: Mapping[int, Role], rows: Sequence[Sequence[str]]) -> dict[int, str]:
    """Column -> why its figures are not read, for columns without a role."""
    return {i: reason_left_out(head) or "neither a known benchmark nor a known metric"
            for i, head in enumerate(heads) if i not in roles and _has_figures(rows, i)}


def _figures(rows: Sequence[Sequence[str]], column: int) -> list[str]:
    return [cell.value for row in rows if (cell := read_cell(row[column])) is not None]


def _no_scores(heads: Sequence[str], rows: Sequence[Sequence[str]], column: int, *, beside_shares: bool) -> str:
    """Why the cells of a column are no scores of a model; "" where they may be. beside_shares: another column has
    figures with decimals or percent signs."""
    def signed(i: int) -> bool:
        cells = [cell for row in rows if (cell := read_cell(row[i])) is not None]
        return any(c.signed for c in cells) and all(
            c.signed or c.value.startswith("-") or not c.value.strip("0.%") for c in cells)

    if not heads[column].strip():
        return "a column without a head"
    if signed(column):
        return "differences, by their signs"
    figures = _figures(rows, column)
    whole = [f for f in figures if f.rstrip("%").lstrip("+-").isdigit()]
    if beside_shares and len(whole) == len(figures) and len(whole) > 1 and not any("%" in f for f in whole):
        return "whole numbers beside shares"
    return ""
