"""Defines how answers to a target task are judged: scorers, as people write them, and the metrics of each of them.

    Scorer.parse("regex:(\\\\d+) EUR")             Scorer(kind="regex", argument="(\\\\d+) EUR")
    metrics_of([Scorer("json"), Scorer("rouge")])
        [("exact_match", "valid_json", "field_accuracy"), ("rougeL", "rouge1", "rouge2")]

The first metric of the first scorer is the primary one of the task. `aftertune.tasks.scorers` computes the values.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from aftertune.catalog import METRICS
from aftertune.errors import nearest, shown

#: Kind of scorer -> how it is written.
FORMS = {"exact": "exact", "json": "json", "regex": "regex:PATTERN", "contains": "contains", "rouge": "rouge",
         "chrf": "chrf", "python": "python:FILE.py:FUNCTION"}
_METRICS = {"exact": ("exact_match",), "json": ("exact_match", "valid_json", "field_accuracy"),
            "regex": ("exact_match",), "contains": ("contains",), "rouge": ("rougeL", "rouge1", "rouge2"),
            "chrf": ("sentence_chrf",)}
#: Names of the metric where another scorer of the task already has `exact_match`.
_BESIDE = {"exact": "text_match", "regex": "regex_match"}


@dataclass(frozen=True, slots=True)
class Scorer:
    """One way to judge an answer. argument: the pattern of regex, FILE.py:FUNCTION of python; else empty."""

    kind: str
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> Scorer:
        """The scorer that a text names. Raises ValueError with what is allowed."""
        kind, colon, argument = text.strip().partition(":")
        if kind not in FORMS:
            raise ValueError(f"{shown(text)} is no scorer{nearest(kind, list(FORMS))}; allowed are "
                             f"{', '.join(FORMS.values())}")
        if bool(argument) != (":" in FORMS[kind]) or (colon and not argument):
            raise ValueError(f"the scorer {kind} is written as {FORMS[kind]}")
        scorer = cls(kind, argument)
        if kind == "regex":
            check_pattern(argument)
        if kind == "python" and not (scorer.file.endswith(".py") and scorer.function.isidentifier()):
            raise ValueError(f"{shown(text)}: a scorer in Python is written as {FORMS[kind]}, for example "
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


def metrics_of(scorers: Sequence[Scorer]) -> list[tuple[str, ...]]:
    """The names of the metrics of each scorer. Raises ValueError where two scorers would have the same metric.

    `exact_match` is the metric of json, else of exact, else of regex; beside it that of exact is `text_match`, and that
    of regex `regex_match`.
    """
    kinds = [s.kind for s in scorers]
    owner = next((kind for kind in ("json", "exact", "regex") if kind in kinds), "")
    names = [((s.function,) if s.kind == "python" else
              (_BESIDE[s.kind],) if s.kind in _BESIDE and s.kind != owner else _METRICS[s.kind]) for s in scorers]
    seen: dict[str, Scorer] = {}
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
