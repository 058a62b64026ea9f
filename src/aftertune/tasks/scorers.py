"""Judges answers to a target task: one `Judge` for each of its scorers, with the values of its metrics.

    [judge] = judges([AnswerScorer("json")])
    judge.metrics                                   ("exact_match", "valid_json", "field_accuracy")
    judge.values('{"n": 2}', {"completion": '{"n": 2.0}'})
        {"exact_match": 1.0, "valid_json": 1.0, "field_accuracy": 1.0}

exact: the same text without outer spaces. json: the first JSON value in the answer that is of the kind of the
reference (an object, a list, a number …) equals it. regex: the same first group, or else match, of a pattern.
contains: the answer has the reference in it, in upper or lower case. rouge: F-scores of ROUGE-L, ROUGE-1 and ROUGE-2
(package rouge-score, without stemming). chrf: chrF of the answer by sacrebleu with its defaults (Popović 2015), from
0 to 1. python: a function of a file, which is run only where the user allows it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from aftertune import bounds
from aftertune.errors import ResourceError, TaskError, nearest, shown
from aftertune.sources.limits import OutOfTime, template_fault, time_limit
from aftertune.study.scorer import SCORERS, AnswerScorer, metrics_of

#: Field of a document with all other columns of its row as JSON, for scorers in Python that take them.
ROW = "row"


@dataclass(frozen=True, slots=True)
class Judge:
    """A scorer that is ready to judge. metrics: its names of metrics, the first one first. score: the values of an
    answer to a document, in this order. code: file -> SHA-256 of the Python that it runs. takes_row: it needs `ROW`."""

    scorer: AnswerScorer
    metrics: tuple[str, ...]
    score: Callable[[str, Mapping[str, Any]], Sequence[float]]
    code: Mapping[str, str] = field(default_factory=dict)
    takes_row: bool = False

    def values(self, answer: str, doc: Mapping[str, Any]) -> dict[str, float]:
        """Metric -> value of one answer. doc: has the reference as ``completion``."""
        return dict(zip(self.metrics, self.score(answer, doc), strict=True))

    def fault(self, doc: Mapping[str, Any]) -> str:
        """Why no answer to this document could be right; "" if one can."""
        reference = str(doc["completion"])
        if self.scorer.kind == "json" and not _is_json(reference):
            return "its completion is not JSON, with which the scorer json compares"
        if self.scorer.kind == "rouge" and not re.search("[a-z0-9]", reference.lower()):
            return ("its completion has no letter from a to z and no digit, and ROUGE counts no other characters, so "
                    "every answer would have 0 (chrf counts all characters)")
        if self.scorer.kind == "regex" and _extract(self.scorer.argument, reference) is None:
            return (f"its completion has no match of the pattern {shown(self.scorer.argument)}, so no answer can be "
                    "right")
        return ""


def judges(scorers: Sequence[AnswerScorer], *, allow_code: bool = False) -> list[Judge]:
    """The judges of the scorers, in their order. allow_code: the user allows to run those in Python.

    Raises TaskError for a scorer in Python that is not allowed or not usable, and ResourceError for a package that is
    not installed.
    """
    made = []
    for scorer, metrics in zip(scorers, metrics_of(scorers), strict=True):
        if scorer.kind == "python":
            made.append(_python(scorer, metrics, allow_code))
        else:
            made.append(Judge(scorer, metrics, _SCORES[scorer.kind](scorer.argument)))
    return made


# --- Texts, patterns and JSON ---

def _exact(_: str) -> Callable[[str, Mapping[str, Any]], Sequence[float]]:
    return lambda answer, doc: [float(answer.strip() == str(doc["completion"]).strip())]


def _contains(_: str) -> Callable[[str, Mapping[str, Any]], Sequence[float]]:
    return lambda answer, doc: [float(str(doc["completion"]).strip().casefold() in answer.casefold())]


def _regex(pattern: str) -> Callable[[str, Mapping[str, Any]], Sequence[float]]:
    def score(answer: str, doc: Mapping[str, Any]) -> Sequence[float]:
        extracted, expected = (_extract(pattern, text) for text in (answer, str(doc["completion"])))
        return [float(extracted is not None and extracted == expected)]

    return score


def _extract(pattern: str, text: str) -> str | None:
    """The first group of the first match of ``pattern``, or the match if there is no group; None without a match."""
    match = re.search(pattern, text)
    if match is None:
        return None
    return match[1] if match.groups() else match[0]


def _json(_: str) -> Callable[[str, Mapping[str, Any]], Sequence[float]]:
    return lambda answer, doc: list(json_metrics(answer, str(doc["completion"])).values())


def json_metrics(answer: str, reference: str) -> dict[str, float]:
    """``exact_match``, ``valid_json`` and ``field_accuracy`` of an answer that should be the JSON ``reference``."""
    expected = json.loads(reference)
    answered = _first_value(answer, expected)
    expected_fields = expected if isinstance(expected, dict) else {}
    answered_fields = answered if isinstance(answered, dict) else {}
    correct = sum(k in answered_fields and _equal_json(answered_fields[k], v) for k, v in expected_fields.items())
    exact = float(_equal_json(answered, expected))
    values = exact, float(_is_json(answer)), correct / len(expected_fields) if expected_fields else exact
    return dict(zip(SCORERS["json"][1], values, strict=True))


def _equal_json(a: Any, b: Any) -> bool:
    """Equal as JSON: true is not 1, but 2 is 2.0."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal_json(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_equal_json(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


#: Kind of JSON value -> where the first one in a text begins.
_STARTS = {dict: r"\{", list: r"\[", str: '"', bool: r"\b(?:true|false)\b", int: r"-?\d", float: r"-?\d",
           type(None): r"\bnull\b"}
#: What a text without a value has; None is the value null.
_NO_VALUE = object()


def _first_value(text: str, like: Any) -> Any:
    """The first JSON value in ``text`` that is of the kind of ``like``, or `_NO_VALUE`. A text that is JSON as a whole
    is its value, unless an object is looked for: that may stand in a list."""
    if not isinstance(like, dict) and _is_json(text):
        return json.loads(text)
    found = re.search(_STARTS[type(like)], text)
    try:
        return json.JSONDecoder().raw_decode(text[found.start():])[0] if found else _NO_VALUE
    except (ValueError, RecursionError):
        return _NO_VALUE


# --- Free texts, by the libraries that papers use ---

def _rouge(_: str) -> Callable[[str, Mapping[str, Any]], Sequence[float]]:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError:
        raise _missing("rouge", "rouge-score") from None
    names = SCORERS["rouge"][1]
    rouge = RougeScorer(names, use_stemmer=False)

    def score(answer: str, doc: Mapping[str, Any]) -> Sequence[float]:
        found = rouge.score(str(doc["completion"]), answer)
        return [float(found[name].fmeasure) for name in names]

    return score


def _chrf(_: str) -> Callable[[str, Mapping[str, Any]], Sequence[float]]:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise _missing("chrf", "sacrebleu") from None
    chrf = CHRF()
    return lambda answer, doc: [min(1.0, float(chrf.sentence_score(answer, [str(doc["completion"])]).score) / 100)]


def _missing(scorer: str, package: str) -> ResourceError:
    return ResourceError(f"the scorer {scorer} needs the package {package}, which is not installed; install it with "
                         f"`pip install {package}`")


#: Kind of scorer -> what makes its function from its argument.
_SCORES = {make.__name__.lstrip("_"): make for make in (_exact, _json, _regex, _contains, _rouge, _chrf)}


# --- Functions of the user ---

def _python(scorer: AnswerScorer, metrics: tuple[str, ...], allow_code: bool) -> Judge:
    """The judge of a function in a file: ``score(answer, reference)``, or ``score(answer, reference, row)``."""
    if not allow_code:
        raise TaskError(f"the scorer {scorer.text} runs Python code; read {scorer.file}, then let `aftertune eval` run "
                        "it with --allow-task-code")
    path = Path(scorer.file)
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    module = _module(path, content, digest)
    function = getattr(module, scorer.function, None)
    if not inspect.isroutine(function):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise TaskError(f"{path} has no function {scorer.function!r}{nearest(scorer.function, names)}; it has: "
                        f"{', '.join(names) or 'none'}")
    count = _arguments(function, path, scorer.function)

    def score(answer: str, doc: Mapping[str, Any]) -> Sequence[float]:
        further = [{**json.loads(doc[ROW]), "prompt": doc["prompt"], "completion": doc["completion"]}] \
            if count == 3 else []
        try:
            value = function(answer, str(doc["completion"]), *further)
            number = float(value) if isinstance(value, bool | int | float) or hasattr(value, "dtype") else math.nan
        except OutOfTime:
            raise
        except (Exception, SystemExit) as error:  # foreign code
            raise TaskError(f"{path}: {scorer.function} failed on the answer {shown(answer[:60])}: "
                            f"{template_fault(error)}; fix the function, then give the same command again") from None
        if not math.isfinite(number):
            raise TaskError(f"{path}: {scorer.function} returned {shown(value)} for the answer {shown(answer[:60])}; "
                            "return a finite number, or True or False")
        return [number]

    return Judge(scorer, metrics, score, {path.name: digest}, takes_row=count == 3)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(bounds.SCORER_BYTES + 1)
    except FileNotFoundError:
        raise TaskError(f"{path}: no such file, which the scorer python:{path}:… names; check the path") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from None
    if len(content) > bounds.SCORER_BYTES:
        raise TaskError(f"{path}: a file with a scorer has at most {bounds.SCORER_BYTES:,} bytes; use a smaller one")
    return content


@functools.lru_cache(maxsize=32)
def _module(path: Path, content: bytes, digest: str) -> ModuleType:
    """The module of the bytes whose digest is recorded; run once in a process."""
    module = ModuleType(f"aftertune_scorer_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        with time_limit(bounds.SCORER_SECONDS):
            exec(compile(content, str(path), "exec"), module.__dict__)  # the user allowed it
    except (Exception, SystemExit) as error:  # foreign code
        where = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        too_long = f"it takes more than {bounds.SCORER_SECONDS:g} s"
        fault = too_long if isinstance(error, OutOfTime) else template_fault(error)
        raise TaskError(f"{path}{where}: cannot be imported: {fault}; the file must work by itself, without other "
                        "files of its folder") from None
    return module


def _arguments(function: Callable[..., Any], path: Path, name: str) -> int:
    """How many arguments a scorer is called with: answer and reference, and the row where it takes a third one."""
    try:
        signature = inspect.signature(function)
        for count in (2, 3):
            try:
                signature.bind(*[""] * count)
                return count
            except TypeError:
                continue
    except (TypeError, ValueError):
        return 2
    raise TaskError(f"{path}: {name}{signature} cannot be called with (answer, reference) or (answer, reference, row); "
                    "give it these parameters")
