"""Reads the files that lm-eval writes: ``results_*.json`` and ``samples_*.jsonl``.

    run = read_results(Path("out/org__model/results_2025-03-08T10-00-00.123456.json"))
    run.model, run.leaves, list(run.scores("hellaswag"))

    samples = read_samples(rows, where, task="gsm8k", output_type="generate_until", filters=["strict-match", …])
    samples[0].item.hash, samples[0].metrics        the same hash and keys as in an evaluation of our own

Versions 0.4.5 to 0.4.13 of lm-eval write the same keys in a results file; later ones add some (``lm_eval_version``
since 0.4.9). A missing key is read as an empty value; a present one must have the right type. Older versions are
brought into this form by `aftertune.exchange.lm_eval_versions`.

A line of a samples file is one document under one filter. Before 0.4.7 the lines name neither the filter nor the
metrics: the k-th line of a document belongs to the k-th filter of the task, and every key that lm-eval does not use
itself is a metric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aftertune import bounds
from aftertune.catalog import METRICS, MetricKey, cluster_label, hub_items
from aftertune.errors import InputError
from aftertune.exchange.files import json_rows, parse_json, read_text
from aftertune.exchange.lm_eval_versions import current_form, samples_names
from aftertune.values import Item, Response, canonical, digest

# --- Results files ---

#: The largest results file, in bytes; one with the answers in it is large.
LIMIT = bounds.RESULTS_BYTES
_STAMP = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2}T[\d.\-]+)\.jsonl?(?:\.gz)?$")


#: (location, row) of each row of a file with answers.
Rows = Iterable[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class LmEvalScore:
    """One score of a results file. key: its name there, ``metric,filter``."""

    key: MetricKey
    value: float
    stderr: float | None

    @property
    def metric(self) -> str:
        return self.key.metric

    @property
    def filter(self) -> str:
        return self.key.filter


@dataclass(frozen=True, slots=True)
class LmEvalRun:
    """One run of one model, in the form of lm-eval's results files; other tools' files are brought into it.

    value: the JSON of a results file; tool: what wrote the file; rows: task -> (where, a function that gives the
    answers) for answers that are in no file of lm-eval; notes: what of the file was left out.
    """

    path: Path
    value: Mapping[str, Any]
    tool: str = "lm-eval"
    rows: Mapping[str, tuple[str, Callable[[], Rows]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def section(self, *keys: str) -> dict[str, Any]:
        """The mapping at ``keys``; {} where it is missing. InputError where the value is not a mapping."""
        node: Any = self.value
        for depth, key in enumerate(keys, start=1):
            node = node.get(key)
            if node is None:
                return {}
            if not isinstance(node, dict):
                name = ".".join(keys[:depth])
                raise InputError(f"{self.path}: `{name}` is a {type(node).__name__}, but lm-eval writes an object; "
                                 "check that it is a results file of lm-eval")
        return dict(node)

    @property
    def stamp(self) -> str:
        """The time in the file's name, which the samples files share; "" where it has none."""
        return stamp_in(self.path.name)

    @property
    def model(self) -> str:
        """The model as it was given to lm-eval: a path or a Hub id (the adapter's if there is an adapter)."""
        config = self.section("config")
        args = config.get("model_args")
        pairs = args if isinstance(args, dict) else dict(
            p.split("=", 1) for p in str(args or "").split(",") if "=" in p)
        names = [self.value.get("model_name"), *(pairs.get(k) for k in ("peft", "delta", "pretrained", "model")),
                 config.get("model")]
        return next((str(n) for n in names if n), self.path.absolute().parent.name)

    @property
    def dtype(self) -> str:
        """The model's data type as the run reports it, else as its arguments request it, else "not stated"."""
        config = self.section("config")
        args = config.get("model_args")
        requested = args.get("dtype") if isinstance(args, dict) else re.search(r"\bdtype=([\w.]+)", str(args or ""))
        requested = requested[1] if isinstance(requested, re.Match) else requested
        return str(config.get("model_dtype") or requested or "not stated").removeprefix("torch.")

    @property
    def version(self) -> str:
        """lm-eval's version, or "" (not written before 0.4.9)."""
        return str(self.value.get("lm_eval_version") or "")

    @property
    def started(self) -> str:
        """When the run started, ISO 8601 in UTC, or ""."""
        date = self.value.get("date")
        if isinstance(date, str) and self.tool != "lm-eval":
            return date
        if not isinstance(date, int | float) or not 0 <= date < 2**33:
            return ""
        return datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds")

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its direct children, for groups that have some."""
        return {name: [str(c) for c in children] for name, children in self.section("group_subtasks").items()
                if isinstance(children, list) and children}

    @property
    def leaves(self) -> list[str]:
        """The tasks that have items, without the groups."""
        return [t for t in self.section("results") if t not in self.groups and t not in self.section("groups")]

    def leaves_of(self, group: str) -> list[str]:
        """The tasks below a group, at any depth."""
        leaves: dict[str, None] = {}
        todo, seen = [group], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.groups:
                todo += self.groups[name]
            else:
                leaves[name] = None
        return list(leaves)

    def scores(self, task: str) -> Iterator[LmEvalScore]:
        """The scores of a task or group, in order."""
        row = self.section("groups", task) or self.section("results", task)
        for key, value in row.items():
            name = MetricKey(key)
            if name.is_score and _is_finite(value):
                error: Any = row.get(name.stderr)
                yield LmEvalScore(name, float(value), float(error) if _is_finite(error) else None)

    def counts(self, task: str) -> tuple[int | None, int | None]:
        """(items used, items of the split); None where the file does not state it."""
        if task in self.groups:
            parts = [self.counts(leaf) for leaf in self.leaves_of(task)]
            used, total = (None if None in column else sum(n or 0 for n in column)
                           for column in zip(*parts, strict=True))
            return used, total
        row = self.section("n-samples").get(task)
        if isinstance(row, dict):
            return _count(row.get("effective")), _count(row.get("original"))
        limit, known = _count(self.limit), hub_items(task)
        return (min(limit, known), known) if limit and known else (None, None)

    def averages(self, group: str, key: str) -> Literal["items", "tasks", ""]:
        """What the score of a group is the mean over: as the scores of its tasks show; "" where they do not."""
        leaves = self.leaves_of(group)
        value, means = self._score(group, key), [self._score(leaf, key) for leaf in leaves]
        sizes = [self.counts(leaf)[0] or math.nan for leaf in leaves]
        pooled = math.fsum(m * n for m, n in zip(means, sizes, strict=True)) / math.fsum(sizes)
        if math.isclose(value, pooled, rel_tol=1e-9):
            return "items"
        children = [self._score(child, key) for child in self.groups.get(group, ())]
        plain = (math.fsum(part) / len(part) for part in (means, children) if part)
        return "tasks" if any(math.isclose(value, mean, rel_tol=1e-9) for mean in plain) else ""

    def _score(self, task: str, key: str) -> float:
        return next((s.value for s in self.scores(task) if s.key == key), math.nan)

    def is_heading(self, task: str) -> bool:
        """True for the row of a group that only names it (``{"alias": "mmlu", " ": " "}``)."""
        row = self.section("groups", task) or self.section("results", task)
        return not any(k.strip() and k != "alias" for k in row)

    def files(self, task: str) -> tuple[Path, ...]:
        """The files with the answers to a task."""
        path = Path(self.rows[task][0]) if task in self.rows else self.answers_file(task)
        return () if path is None else (path,)

    @property
    def limit(self) -> int | float | None:
        """``--limit`` of the run: a number of items, or a fraction below 1; None for none."""
        limit: Any = self.section("config").get("limit")
        if not _is_finite(limit):
            return None
        return int(limit) if limit >= 1 and limit == int(limit) else float(limit)

    def higher_is_better(self, task: str) -> dict[str, bool]:
        """Metric -> whether higher is better, as the file, the task's configuration or the catalog says."""
        stated = {k: v for k, v in self.section("higher_is_better", task).items() if isinstance(v, bool)}
        listed = self.section("configs", task).get("metric_list")
        configured = {m["metric"]: m["higher_is_better"] for m in listed if isinstance(m, dict)
                      and isinstance(m.get("metric"), str) and isinstance(m.get("higher_is_better"), bool)} \
            if isinstance(listed, list) else {}
        return stated or {m: configured.get(m, METRICS[m].higher_is_better if m in METRICS else True)
                          for m in dict.fromkeys(s.metric for s in self.scores(task))}

    def aggregation(self, task: str, metric: str) -> str:
        """How the values of the items became the score, as the task's configuration says; "" where it does not."""
        listed = self.section("configs", task).get("metric_list")
        stated = [m.get("aggregation") for m in listed if isinstance(m, dict) and m.get("metric") == metric] \
            if isinstance(listed, list) else []
        return stated[0] if stated and isinstance(stated[0], str) else ""

    def answers(self, task: str) -> tuple[str, Rows] | None:
        """(where, (location, row) of each document and filter) of the answers to a task; None where there are none.

        They stand in the results file itself, or in a file beside it.
        """
        if task in self.rows:
            where, rows = self.rows[task]
            return where, rows()
        inside = self.section("samples").get(task)
        if isinstance(inside, list):
            where = f"{self.path}: `samples.{task}`"
            return where, ((f"{where}, entry {n}", row if isinstance(row, dict) else {})
                           for n, row in enumerate(inside, 1))
        path = self.answers_file(task)
        return None if path is None else (str(path), json_rows(path, limit=LINE_LIMIT))

    def answers_file(self, task: str) -> Path | None:
        """The file with the answers to a task beside the results file, or None."""
        args = self.section("config").get("model_args")
        names = samples_names(task, stamp=self.stamp, model_args=args if isinstance(args, str) else "")
        return next((path for name in names if len(name) < 256 and (path := self.path.with_name(name)).is_file()), None)


def stamp_in(name: str) -> str:
    """The time in the name of a results or samples file; "" where it has none."""
    match = _STAMP.search(name)
    return match[1] if match else ""


def read_results(path: Path) -> LmEvalRun:
    """Read one results file. Raises InputError where it is not one."""
    value = parse_json(read_text(path, limit=LIMIT), str(path))
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict):
        raise InputError(f"{path}: not a results file of lm-eval: the JSON has no object `results`; give a "
                         "results_*.json or the folder that contains it")
    run = LmEvalRun(path, current_form(value))
    for task in run.section("results"):
        run.section("results", task)
    return run


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- Samples files ---

#: The longest line of a samples file, in characters.
LINE_LIMIT = bounds.RESULTS_LINE
#: Keys of a line that are not metrics.
_LINE_KEYS = frozenset({"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
                        "doc_hash", "prompt_hash", "target_hash", "aftertune"})


@dataclass(slots=True)
class Sample:
    """One document with its answer.

    prompts: (context, continuation) of each request, once for each repeat; responses: one for each of them; metrics:
    by ``metric,filter``; extracted: the answer by filter; seen: number of lines read so far; target: the right answer,
    as text.
    """

    item: Item
    prompts: list[tuple[str, str]]
    responses: tuple[Response, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    extracted: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    target: str = ""


def read_samples(rows: Rows, where: str, *, task: str, output_type: str,
                 filters: Sequence[str], cluster: str | None = None) -> list[Sample]:
    """The documents of a task's answers, in order.

    rows: (location, line); where: names the file in errors; filters: of the task, in order; cluster: the field of a
    document that groups items. Raises InputError with file and line.
    """
    samples: dict[int, Sample] = {}
    for location, line in rows:
        index = line.get("doc_id")
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
            raise InputError(f"{location}: no `doc_id` that is a whole number; check that it is a samples file of "
                             "lm-eval")
        sample = samples.get(index)
        if sample is None:
            sample = samples[index] = _sample(line, location, task, output_type, cluster)
        _add_metrics(sample, line, location, filters, output_type)
    if not samples:
        raise InputError(f"{where}: the samples file has no lines; the run may have been interrupted: run it again")
    expected = max(s.seen for s in samples.values())
    short = next((i for i, s in samples.items() if s.seen < expected), None)
    if short is not None:
        raise InputError(f"{where}: document {short} has {samples[short].seen} lines and others {expected}, one per "
                         "filter; the file is incomplete: copy it again")
    return list(samples.values())


def _sample(line: Mapping[str, Any], location: str, task: str, output_type: str, cluster: str | None) -> Sample:
    doc = line.get("doc")
    document = doc if isinstance(doc, dict) else {"doc": doc}
    item = Item(task=task, index=line["doc_id"], hash=digest(document), doc=document,
                cluster=cluster_label(cluster, document))
    requests, answers = _arguments(line, location), line.get("resps")
    if not isinstance(answers, list) or len(answers) != len(requests):
        count = len(answers) if isinstance(answers, list) else "no"
        raise InputError(f"{location}: {len(requests)} requests (`arguments`) and {count} responses (`resps`); each "
                         "request needs one list of responses")
    prompts: list[tuple[str, str]] = []
    responses: list[Response] = []
    texts: dict[str, str] = {}  # so that the context that all choices have is stored once
    for request, repeats in zip(requests, answers, strict=True):
        for response in repeats if isinstance(repeats, list) else [repeats]:
            context, continuation = _prompt(request, output_type)
            prompts.append((texts.setdefault(context, context), continuation))
            responses.append(_response(response, output_type, location))
    target = line.get("target")
    return Sample(item, prompts, _with_details(responses, line.get("aftertune")),
                  target=target if isinstance(target, str) else canonical(target))


def _arguments(line: Mapping[str, Any], location: str) -> list[list[Any]]:
    """The arguments of each request, which lm-eval writes as ``{"gen_args_0": {"arg_0": …}}``."""
    arguments = line.get("arguments")
    if isinstance(arguments, dict):
        arguments = [arguments[k] for k in sorted(arguments, key=_numbered)]
    requests = [[r[k] for k in sorted(r, key=_numbered)] if isinstance(r, dict) else r for r in arguments or []] \
        if isinstance(arguments, list) else None
    if not requests or not all(isinstance(r, list) and r for r in requests):
        raise InputError(f"{location}: no `arguments` of requests; lm-eval writes gen_args_0, gen_args_1 … there")
    return requests


def _numbered(key: str) -> tuple[int, str]:
    """Sorts gen_args_10 after gen_args_9."""
    tail = key.rpartition("_")[2]
    return (int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 10 else 0), key


def _prompt(request: list[Any], output_type: str) -> tuple[str, str]:
    """(context, continuation) of a request, as in an evaluation of our own."""
    texts = [a if isinstance(a, str) else canonical(a) for a in request[:2]]
    if output_type == "loglikelihood_rolling":
        return "", texts[0]
    return texts[0], "" if output_type == "generate_until" or len(texts) < 2 else texts[1]


def _response(value: Any, output_type: str, location: str) -> Response:
    """One response: a text, a log-likelihood, or a log-likelihood with whether it is the most likely text."""
    if output_type == "generate_until":
        return Response(text=value if isinstance(value, str) else canonical(value), truncated=None)
    pair = value if isinstance(value, list) else [value]
    try:
        logprob = float(pair[0])
    except (ValueError, TypeError, IndexError):
        logprob = math.nan
    if math.isnan(logprob):
        raise InputError(f"{location}: the response {str(value)[:60]!r} is not a log-likelihood; a task of type "
                         f"{output_type} needs a number, optionally with True or False")
    greedy = str(pair[1]) == "True" if len(pair) > 1 else None
    return Response(logprob=logprob, greedy=greedy, truncated=None)


def _with_details(responses: list[Response], details: Any) -> tuple[Response, ...]:
    """The responses with what our own export adds: number of tokens, why the text ended, tokens cut off."""
    if not isinstance(details, dict):
        return tuple(responses)
    tokens, finish, truncated = (_as_list(details.get(k)) for k in ("tokens", "finish", "truncated"))
    return tuple(replace(
        r, tokens=_count_at(tokens, i), finish=_finish_at(finish, i), truncated=_count_at(truncated, i))
        for i, r in enumerate(responses))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _count_at(values: list[Any], index: int) -> int | None:
    value = values[index] if index < len(values) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _finish_at(values: list[Any], index: int) -> Any:
    value = values[index] if index < len(values) else None
    return value if value in ("stop", "eos", "length") else None


def _add_metrics(sample: Sample, line: Mapping[str, Any], location: str, filters: Sequence[str], output_type: str
                 ) -> None:
    """Add the metrics of one line under its filter."""
    name = line.get("filter")
    if name is None:
        name = filters[sample.seen] if sample.seen < len(filters) else None
    listed = line.get("metrics")
    metrics = listed if isinstance(listed, list) else [k for k in line if k not in _LINE_KEYS]
    if not isinstance(name, str):
        raise InputError(f"{location}: document {sample.item.index} has more lines than the task has filters "
                         f"({', '.join(filters) or 'none'}); check that the samples belong to these results")
    sample.seen += 1
    for metric in map(str, metrics):
        number = _number(metric, line.get(metric))
        key = MetricKey.of(metric, name)
        if key in sample.metrics:
            raise InputError(f"{location}: document {sample.item.index} occurs twice under the filter {name!r}; a "
                             "samples file has each document once per filter")
        if number is not None:
            sample.metrics[key] = number
    answers = line.get("filtered_resps")
    if output_type == "generate_until" and isinstance(answers, list) and answers and isinstance(answers[0], str):
        sample.extracted[name] = answers[0]


def _number(metric: str, value: Any) -> float | None:
    """A metric of one document; bits per byte is written as [log-likelihood, bytes]."""
    pair = metric == "bits_per_byte" and isinstance(value, list) and len(value) == 2
    if pair and all(isinstance(v, int | float) for v in value):
        return -float(value[0]) / (float(value[1]) * math.log(2)) if value[1] else None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None
