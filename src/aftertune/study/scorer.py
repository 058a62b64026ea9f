"""Defines how answers to a target task are judged: scorers, as people write them, and the metrics of each of them.

    AnswerScorer.parse("regex:(\\\\d+) EUR")             AnswerScorer(kind="regex", argument="(\\\\d+) EUR")
    metrics_of([AnswerScorer("json"), AnswerScorer("rouge")])
        [("exact_match", "valid_json", "field_accuracy"), ("rougeL", "rouge1", "rouge2")]

The first metric of the first scorer is the primary one of the task. `aftertune.tasks.scorers` computes the values.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aftertune.catalog import METRICS
from aftertune.errors import nearest, shown

#: Kind of scorer -> how it is written, its metrics (the main one first; none for a function, whose name is that of its
#: metric), and the name of the metric where another scorer has the usual one.
SCORERS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "exact": ("exact", ("exact_match",), "text_match"),
    "json": ("json", ("exact_match", "valid_json", "field_accuracy"), ""),
    "regex": ("regex:PATTERN", ("exact_match",), "regex_match"), "contains": ("contains", ("contains",), ""),
    "rouge": ("rouge", ("rougeL", "rouge1", "rouge2"), ""), "chrf": ("chrf", ("sentence_chrf",), ""),
    "python": ("python:FILE.py:FUNCTION", (), "")}
#: How scorers are written, as help and errors list them.
SCORER_FORMS = ", ".join(form for form, *_ in SCORERS.values())


@dataclass(frozen=True, slots=True)
class AnswerScorer:
    """One way to judge an answer. argument: the pattern of regex, FILE.py:FUNCTION of python; else empty."""

    kind: str
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> AnswerScorer:
        """The scorer that a text names. Raises ValueError with what is allowed."""
        kind, colon, argument = text.strip().partition(":")
        if kind not in SCORERS:
            raise ValueError(f"{shown(text)} is no scorer{nearest(kind, list(SCORERS))}; allowed are {SCORER_FORMS}")
        form = SCORERS[kind][0]
        if bool(argument) != (":" in form) or (colon and not argument):
            raise ValueError(f"the scorer {kind} is written as {form}")
        scorer = cls(kind, argument)
        if kind == "regex":
            check_pattern(argument)
        if kind == "python" and not (scorer.file.endswith(".py") and scorer.function.isidentifier()):
            raise ValueError(f"{shown(text)}: a scorer in Python is written as {form}, for example "
                             "python:judge.py:score")
        return scorer

    @property
    def text(self) -> str:
        """The scorer as people write it."""
        return f"{self.kind}:{self.argument}" if self.argument else self.kind

    @property
    def file(self) -> str:
        """The file of a scorer in Python."""
        return self.argument.rpartition(":")[0]

    @property
    def function(self) -> str:
        """The function of a scorer in Python, which is also the name of its metric."""
        return self.argument.rpartition(":")[2]


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a text that is no regular expression."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{shown(pattern)} is no regular expression ({error})") from None


def metrics_of(scorers: Sequence[AnswerScorer]) -> list[tuple[str, ...]]:
    """The names of the metrics of each scorer. Raises ValueError where two scorers would have the same metric.

    `exact_match` is the metric of json, else of exact, else of regex; beside it that of exact is `text_match`, and that
    of regex `regex_match`.
    """
    kinds = [s.kind for s in scorers]
    owner = next((kind for kind in ("json", "exact", "regex") if kind in kinds), "")
    names = []
    for scorer in scorers:
        _, metrics, beside = SCORERS[scorer.kind]
        names.append((scorer.function,) if scorer.kind == "python" else
                     (beside,) if beside and scorer.kind != owner else metrics)
    seen: dict[str, AnswerScorer] = {}
    for scorer, metrics in zip(scorers, names, strict=True):
        for metric in metrics:
            if scorer.kind == "python" and metric in METRICS:
                raise ValueError(f"{scorer.text}: {metric} is the name of a metric that exists "
                                 f"({METRICS[metric].title}); give the function another name, which is then that of "
                                 "its metric")
            if metric in seen:
                raise ValueError(f"{seen[metric].text} and {scorer.text} both have the metric {metric}; give one of "
                                 "them")
            seen[metric] = scorer
    return names
