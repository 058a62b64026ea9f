"""Reads the answers that lm-eval writes (``samples_*.jsonl``) onto the disk, and gives them document by document.

    with Staging() as staging:
        samples = read_samples(rows, where, TaskKind("gsm8k", "generate_until", ["strict-match", …]), staging)
        len(samples), samples.items, samples.values["exact_match,strict-match"].mean
        for item, answer in samples: …       as in an evaluation of our own

A line of a samples file is one document under one filter. Before 0.4.7 the lines name neither the filter nor the
metrics: the k-th line of a document belongs to the k-th filter of the task, and every key that lm-eval does not use
itself is a metric.

The lines of a document may be far apart, and a file may have millions. So the documents are on disk, and what
concerns all of them (digests, means, chance levels) is computed while they pass by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aftertune.catalog import MetricKey, cluster_field, cluster_label
from aftertune.errors import InputError
from aftertune.exchange.lm_eval_files import Rows
from aftertune.tasks import chance
from aftertune.values import Answer, Item, ListDigest, Response, canonical, digest

if TYPE_CHECKING:
    from aftertune.ledger import Staging

#: Keys of a line that are not metrics.
_LINE_KEYS = frozenset({"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
                        "doc_hash", "prompt_hash", "target_hash", "aftertune"})
#: Fields of a response that a file may state.
_FIELDS = ("logprob", "greedy", "text", "tokens", "finish", "truncated")


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A task whose answers are read. output_type: lm-eval's type of its requests; filters: in the order of the task."""

    task: str
    output_type: str
    filters: Sequence[str]


@dataclass(slots=True)
class MetricSummary:
    """What is known of the values of one metric: how many, their sum, the least and the greatest."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def mean(self) -> float:
        return self.total / self.count


@dataclass(slots=True)
class _State:
    """What later lines of a document add to: the number of lines, metrics by ``metric,filter``, answers by filter."""

    seen: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    extracted: dict[str, str] = field(default_factory=dict)


class Samples:
    """The documents of a task with their answers, in the order of the file.

    prompts_of_first: requests of the first document, one for each repeat. highest: the largest doc_id, -1 without
    documents. unknown_end, unknown_cut: some texts do not say how they ended, some requests not whether their context
    was cut off.
    """

    def __init__(self, kind: TaskKind, staging: Staging) -> None:
        self.kind = kind
        self.values: dict[str, MetricSummary] = {}
        self.prompts_of_first, self.highest = 0, -1
        self._cluster = cluster_field(kind.task)
        self.unknown_end = self.unknown_cut = False
        self._rows = staging.part()
        self._items, self._prompts = ListDigest(), ListDigest()
        self._lines = self._most = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def items(self) -> str:
        """The digest of the hashes of the documents."""
        return self._items.hexdigest()

    @property
    def prompts(self) -> str:
        """The digest of the context and continuation of every request."""
        return self._prompts.hexdigest()

    def __iter__(self) -> Iterator[tuple[Item, Answer]]:
        for (index, hash_, doc, cluster, responses, _, _), (_, metrics, extracted) in self._rows:
            yield (Item(task=self.kind.task, index=index, hash=hash_, doc=doc, cluster=cluster),
                   Answer(task=self.kind.task, index=index, item=hash_, metrics=metrics, extracted=extracted,
                          cluster=cluster, responses=tuple(Response(**dict(zip(_FIELDS, r, strict=True)))
                                                           for r in responses)))

    def metrics(self) -> Iterator[dict[str, float]]:
        """The metrics of each document."""
        yield from (metrics for _, metrics, _ in self._rows.states())

    def levels(self) -> Iterator[float | None]:
        """The expected score of a guess on each document; None where it cannot be guessed."""
        first: dict[str, float] = next(self.metrics(), {})
        mutual = any(MetricKey(key).metric == "acc_mutual_info" for key in first)
        yield from (other if mutual else level for *_, level, other in self._rows.values())

    def add(self, line: Mapping[str, Any], location: str) -> None:
        """Add one line: a new document, or one more filter of a document that is there. Raises InputError."""
        index = line.get("doc_id")
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
            raise InputError(f"{location}: no `doc_id` that is a whole number; check that it is a samples file of "
                             "lm-eval")
        there = self._rows.find(str(index))
        state = _State(*there[1]) if there else _State()
        value = None if there else self._document(line, location)
        self._add_metrics(state, line, location)
        self._lines, self._most = self._lines + 1, max(self._most, state.seen)
        now = [state.seen, state.metrics, state.extracted]
        if there is None:
            self._rows.add(str(index), value, now)
        else:
            self._rows.change(there[0], now)

    def check(self, where: str) -> None:
        """Raises InputError where a line of a document is missing."""
        if not len(self):
            raise InputError(f"{where}: the samples file has no lines; the run may have been interrupted: run it again")
        if self._lines == self._most * len(self):
            return
        for (index, *_), (seen, *_) in self._rows:
            if seen < self._most:
                raise InputError(f"{where}: document {index} has {seen} lines and others {self._most}, one per "
                                 "filter; the file is incomplete: copy it again")

    def _document(self, line: Mapping[str, Any], location: str) -> list[Any]:
        """What is kept of a new document."""
        doc = line.get("doc")
        document = doc if isinstance(doc, dict) else {"doc": doc}  # the ledger holds objects alone
        hash_, cluster = digest(document), cluster_label(self._cluster, document)
        prompts, responses = _requests(line, location, self.kind.output_type)
        target = line.get("target")
        level, other = self._levels(document, prompts, target if isinstance(target, str) else canonical(target))
        if not len(self):
            self.prompts_of_first = len(prompts)
        self.highest = max(self.highest, line["doc_id"])
        self._items.add(hash_)
        for prompt in prompts:
            self._prompts.add(prompt)
        self.unknown_end |= any(r.text is not None and r.finish is None for r in responses)
        self.unknown_cut |= any(r.truncated is None for r in responses)
        return [line["doc_id"], hash_, document, cluster, [[getattr(r, f) for f in _FIELDS] for r in responses], level,
                other]

    def _levels(self, doc: Mapping[str, Any], prompts: Sequence[tuple[str, str]], target: str
                ) -> tuple[float | None, float | None]:
        """The expected score of a guess, without and with the metric `acc_mutual_info`."""
        if self.kind.output_type == "generate_until":
            level = chance.generated_guess(self.kind.task, doc, prompts[0][0] if prompts else "", target)
            return level, level
        if self.kind.output_type != "multiple_choice":
            return None, None
        gold = chance.indices(target)
        return chance.request_guess(prompts, gold), chance.request_guess(prompts, gold, mutual_info=True)

    def _add_metrics(self, state: _State, line: Mapping[str, Any], location: str) -> None:
        """Add the metrics of one line under its filter."""
        filters, index = self.kind.filters, line["doc_id"]
        name = line.get("filter")
        if name is None:
            name = filters[state.seen] if state.seen < len(filters) else None
        listed = line.get("metrics")
        metrics = listed if isinstance(listed, list) else [k for k in line if k not in _LINE_KEYS]
        if not isinstance(name, str):
            raise InputError(f"{location}: document {index} has more lines than the task has filters "
                             f"({', '.join(filters) or 'none'}); check that the samples belong to these results")
        state.seen += 1
        for metric in map(str, metrics):
            number = _number(metric, line.get(metric))
            key = MetricKey.of(metric, name)
            if key in state.metrics:
                raise InputError(f"{location}: document {index} occurs twice under the filter {name!r}; a "
                                 "samples file has each document once per filter")
            if number is not None:
                state.metrics[key] = number
                self.values.setdefault(key, MetricSummary()).add(number)
        answers = line.get("filtered_resps")
        if self.kind.output_type == "generate_until" and isinstance(answers, list) and answers \
                and isinstance(answers[0], str):
            state.extracted[name] = answers[0]


def read_samples(rows: Rows, where: str, kind: TaskKind, staging: Staging) -> Samples:
    """The documents of a task's answers.

    rows: (location, line); where: names the file in errors. Raises InputError with file and line.
    """
    samples = Samples(kind, staging)
    for location, line in rows:
        samples.add(line, location)
    samples.check(where)
    return samples


def _requests(line: Mapping[str, Any], location: str, output_type: str
              ) -> tuple[list[tuple[str, str]], tuple[Response, ...]]:
    """((context, continuation) of each request and repeat, a response for each of them)."""
    requests, answers = _arguments(line, location), line.get("resps")
    if not isinstance(answers, list) or len(answers) != len(requests):
        count = len(answers) if isinstance(answers, list) else "no"
        raise InputError(f"{location}: {len(requests)} requests (`arguments`) and {count} responses (`resps`); each "
                         "request needs one list of responses")
    prompts: list[tuple[str, str]] = []
    responses: list[Response] = []
    for request, repeats in zip(requests, answers, strict=True):
        for response in repeats if isinstance(repeats, list) else [repeats]:
            prompts.append(_prompt(request, output_type))
            responses.append(_response(response, output_type, location))
    return prompts, _with_details(responses, line.get("aftertune"))


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


def _number(metric: str, value: Any) -> float | None:
    """A metric of one document; bits per byte is written as [log-likelihood, bytes]."""
    pair = metric == "bits_per_byte" and isinstance(value, list) and len(value) == 2
    if pair and all(isinstance(v, int | float) for v in value):
        return -float(value[0]) / (float(value[1]) * math.log(2)) if value[1] else None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None
