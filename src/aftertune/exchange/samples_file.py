"""Owns lm-eval's ``samples_*.jsonl``: every document once, with what was asked and answered.

    samples = read_samples(path, task="gsm8k", output_type="generate_until", filters=["strict-match", …])
    samples[0].item.hash, samples[0].metrics        the same hash and the same keys as an own evaluation gives

A line is one document under one filter. Before 0.4.7 the lines name neither filter nor metrics: the k-th line of
a document belongs to the k-th filter of the task, and every key that is not one of lm-eval's own is a metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aftertune.catalog import MetricKey
from aftertune.errors import InputError
from aftertune.exchange.reading import MIB, json_lines
from aftertune.values import Item, Response, canonical, digest

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
