"""Owns lm-eval's ``samples_*.jsonl``: every document once, with what was asked and answered.

    samples = read_samples(path, task="gsm8k", output_type="generate_until", filters=["strict-match", …])
    samples[0].item.hash, samples[0].metrics        the same hash and the same keys as an own evaluation gives

A line is one document under one filter. Before 0.4.7 the lines name neither filter nor metrics: the k-th line of
a document belongs to the k-th filter of the task, and every key that is not one of lm-eval's own is a metric.

Owns lm-eval's ``results_*.json``: what it says of the run, of each task, and of the scores.

    run = read_results(Path("out/org__model/results_2025-03-08T10-00-00.123456.json"))
    run.model, run.leaves, run.scores("hellaswag")

Versions 0.4.5 to 0.4.13 write the same keys; later ones add some (``lm_eval_version`` since 0.4.9). Whatever is
missing takes an empty value; what is there must have its type.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.errors import InputError
from aftertune.exchange.files import MIB, json_lines, parse_json, read_text
from aftertune.values import Item, Response, canonical, digest

LIMIT = 64 * MIB
_STAMP = re.compile(r"(?:^|_)(\d{4}-\d{2}-\d{2}T[\d.\-]+)\.json$")


@dataclass(frozen=True, slots=True)
class Figures:
    """One score of the results file, under the name that it has there."""

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
    """One results file. value: its JSON."""

    path: Path
    value: Mapping[str, Any]

    def part(self, *keys: str) -> dict[str, Any]:
        """The mapping below ``keys``; {} where it is absent. InputError where something else stands there."""
        found: Any = self.value
        for depth, key in enumerate(keys, start=1):
            found = found.get(key)
            if found is None:
                return {}
            if not isinstance(found, dict):
                place = ".".join(keys[:depth])
                raise InputError(f"{self.path}: `{place}` is a {type(found).__name__}, and lm-eval writes an object "
                                 "there; is it the results file of lm-eval?")
        return dict(found)

    @property
    def stamp(self) -> str:
        """The time in the file's name, which the samples files share; "" where it has none."""
        match = _STAMP.search(self.path.name)
        return match[1] if match else ""

    @property
    def model(self) -> str:
        """The model as lm-eval was told it: a path or a Hub id (of the adapter where there is one)."""
        config = self.part("config")
        args = config.get("model_args")
        pairs = args if isinstance(args, dict) else dict(
            p.split("=", 1) for p in str(args or "").split(",") if "=" in p)
        named = [self.value.get("model_name"), *(pairs.get(k) for k in ("peft", "delta", "pretrained", "model")),
                 config.get("model")]
        return next((str(n) for n in named if n), self.path.parent.name)

    @property
    def dtype(self) -> str:
        """The model's type as the run reports it, else as its arguments ask for it, else "not stated"."""
        config = self.part("config")
        args = config.get("model_args")
        asked = args.get("dtype") if isinstance(args, dict) else re.search(r"\bdtype=([\w.]+)", str(args or ""))
        asked = asked[1] if isinstance(asked, re.Match) else asked
        return str(config.get("model_dtype") or asked or "not stated").removeprefix("torch.")

    @property
    def version(self) -> str:
        """lm-eval's version, or "" (not written before 0.4.9)."""
        return str(self.value.get("lm_eval_version") or "")

    @property
    def started(self) -> str:
        """When the run began, ISO 8601 in UTC, or ""."""
        date = self.value.get("date")
        if not isinstance(date, int | float) or not 0 <= date < 2**33:
            return ""
        return datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds")

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its direct children, for groups that have some."""
        return {name: [str(c) for c in children] for name, children in self.part("group_subtasks").items()
                if isinstance(children, list) and children}

    @property
    def leaves(self) -> list[str]:
        """The tasks with items of their own."""
        return [t for t in self.part("results") if t not in self.groups and t not in self.part("groups")]

    def leaves_of(self, group: str) -> list[str]:
        """The tasks below a group, at any depth."""
        found: dict[str, None] = {}
        todo, seen = [group], set()
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.groups:
                todo += self.groups[name]
            else:
                found[name] = None
        return list(found)

    def scores(self, task: str) -> Iterator[Figures]:
        """The scores of a task or group, in order."""
        row = self.part("groups", task) or self.part("results", task)
        for key, value in row.items():
            name = MetricKey(key)
            if name.is_score and _finite(value):
                error: Any = row.get(name.stderr)
                yield Figures(name, float(value), float(error) if _finite(error) else None)

    def counts(self, task: str) -> tuple[int | None, int | None]:
        """(items used, items of the split), as far as they are stated."""
        row = self.part("n-samples").get(task)
        if not isinstance(row, dict):
            return None, None
        used, total = (row.get(k) for k in ("effective", "original"))
        return _count(used), _count(total)


def samples_name(task: str, stamp: str) -> str:
    """The name of the samples file of a task, one part of a path whatever the task is called."""
    return re.sub(r"[/\\\x00-\x1f]", "_", f"samples_{task}_{stamp}.jsonl")


def read_results(path: Path) -> LmEvalRun:
    """Read one results file. Raises InputError where it is none."""
    value = parse_json(read_text(path, limit=LIMIT), str(path))
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict):
        raise InputError(f"{path}: no results of lm-eval: the JSON has no object `results`; give a results_*.json or "
                         "the folder that holds it")
    run = LmEvalRun(path, value)
    for task in run.part("results"):
        run.part("results", task)
    return run


def results_files(path: Path) -> list[Path]:
    """The results files that ``path`` stands for: itself, or all below a folder, in order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = sorted(p for p in path.rglob("*.json") if p.is_file() and _STAMP.search(p.name))
    if not found:
        raise InputError(f"{path}: no results_*.json of lm-eval in this folder or below it; give lm-eval "
                         "--output_path, and --log_samples for the answers")
    return found


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


LINE_LIMIT = 64 * MIB
_OWN = frozenset({"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
                  "prompt_hash", "target_hash", "aftertune"})


@dataclass(slots=True)
class Sample:
    """One document. asked: (context, continuation) of each request, repeats included; responses: theirs."""

    item: Item
    asked: list[tuple[str, str]]
    responses: tuple[Response, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    extracted: dict[str, str] = field(default_factory=dict)
    seen: int = 0


def read_samples(path: Path, *, task: str, output_type: str, filters: Sequence[str], cluster: str | None = None
                 ) -> list[Sample]:
    """The documents of one samples file in their order. cluster: the field of the document that groups items.

    Raises InputError with file and line.
    """
    found: dict[int, Sample] = {}
    for place, line in json_lines(path, limit=LINE_LIMIT):
        index = line.get("doc_id")
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
            raise InputError(f"{place}: no `doc_id` that is a whole number; is it a samples file of lm-eval?")
        sample = found.get(index)
        if sample is None:
            sample = found[index] = _sample(line, place, task, output_type, cluster)
        _judge(sample, line, place, filters, output_type)
    if not found:
        raise InputError(f"{path}: the samples file has no lines; was the run broken off?")
    wanted = max(s.seen for s in found.values())
    short = next((i for i, s in found.items() if s.seen < wanted), None)
    if short is not None:
        raise InputError(f"{path}: document {short} has {found[short].seen} lines and others {wanted}, one per filter; "
                         "the file was cut off")
    return list(found.values())


def _sample(line: Mapping[str, Any], place: str, task: str, output_type: str, cluster: str | None) -> Sample:
    doc = line.get("doc")
    document = doc if isinstance(doc, dict) else {"doc": doc}
    group = document.get(cluster) if cluster else None
    item = Item(task=task, index=line["doc_id"], hash=digest(document), doc=document,
                cluster=None if group is None else str(group))
    requests, answers = _arguments(line, place), line.get("resps")
    if not isinstance(answers, list) or len(answers) != len(requests):
        count = len(answers) if isinstance(answers, list) else "no"
        raise InputError(f"{place}: {len(requests)} requests (`arguments`) and {count} responses (`resps`); there "
                         "must be one list of responses per request")
    asked, responses = [], []
    for request, repeats in zip(requests, answers, strict=True):
        for response in repeats if isinstance(repeats, list) else [repeats]:
            asked.append(_asked(request, output_type))
            responses.append(_response(response, output_type, place))
    return Sample(item, asked, _with_ends(responses, line.get("aftertune")))


def _arguments(line: Mapping[str, Any], place: str) -> list[list[Any]]:
    """The arguments of each request: lm-eval writes ``{"gen_args_0": {"arg_0": …}}``."""
    found = line.get("arguments")
    if isinstance(found, dict):
        found = [found[k] for k in sorted(found, key=_ordinal)]
    rows = [[r[k] for k in sorted(r, key=_ordinal)] if isinstance(r, dict) else r for r in found or []] \
        if isinstance(found, list) else None
    if not rows or not all(isinstance(r, list) and r for r in rows):
        raise InputError(f"{place}: no `arguments` of requests; lm-eval writes gen_args_0, gen_args_1 … there")
    return rows


def _ordinal(key: str) -> tuple[int, str]:
    tail = key.rpartition("_")[2]
    return (int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 10 else 0), key


def _asked(request: list[Any], output_type: str) -> tuple[str, str]:
    """Context and continuation of a request, as an own evaluation states them."""
    texts = [a if isinstance(a, str) else canonical(a) for a in request[:2]]
    if output_type == "loglikelihood_rolling":
        return "", texts[0]
    return texts[0], "" if output_type == "generate_until" or len(texts) < 2 else texts[1]


def _response(value: Any, output_type: str, place: str) -> Response:
    """One response: a text, a log-likelihood, or a log-likelihood with "was it the most likely text"."""
    if output_type == "generate_until":
        return Response(text=value if isinstance(value, str) else canonical(value))
    parts = value if isinstance(value, list) else [value]
    try:
        logprob = float(parts[0])
    except (ValueError, TypeError, IndexError):
        logprob = math.nan
    if math.isnan(logprob):
        raise InputError(f"{place}: the response {str(value)[:60]!r} is no log-likelihood; in a task of type "
                         f"{output_type} each is a number, perhaps with True or False")
    greedy = str(parts[1]) == "True" if len(parts) > 1 else None
    return Response(logprob=logprob, greedy=greedy)


def _with_ends(responses: list[Response], extra: Any) -> tuple[Response, ...]:
    """The responses with what our own export adds: how many tokens each has, why it ended, what was cut off."""
    if not isinstance(extra, dict):
        return tuple(responses)
    tokens, finish, cut = (_listed(extra.get(k)) for k in ("tokens", "finish", "truncated"))
    return tuple(replace(
        r, tokens=_at(tokens, i, int), finish=_at(finish, i, str), truncated=_at(cut, i, int) or 0)
        for i, r in enumerate(responses))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(values: list[Any], place: int, kind: type) -> Any:
    value = values[place] if place < len(values) else None
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if (whole if kind is int else value in ("stop", "eos", "length")) else None


def _judge(sample: Sample, line: Mapping[str, Any], place: str, filters: Sequence[str], output_type: str) -> None:
    """Add the metrics of one line under its filter."""
    name = line.get("filter")
    if name is None:
        name = filters[sample.seen] if sample.seen < len(filters) else None
    listed = line.get("metrics")
    names = listed if isinstance(listed, list) else [k for k in line if k not in _OWN]
    if not isinstance(name, str):
        raise InputError(f"{place}: document {sample.item.index} has more lines than the task has filters "
                         f"({', '.join(filters) or 'none'}); do the samples belong to these results?")
    sample.seen += 1
    for metric in map(str, names):
        number = _number(metric, line.get(metric))
        key = MetricKey.of(metric, name)
        if key in sample.metrics:
            raise InputError(f"{place}: document {sample.item.index} stands there twice under the filter {name!r}; a "
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
