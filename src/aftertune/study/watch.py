"""Defines what is measured during a training: watched tasks, and a target task for what is learned.

    WatchSpec(tasks={"hellaswag": 200}, target={"file": "orders_test.jsonl", "name": "orders", "match": "json"})
    WatchSpec(tasks={"hellaswag": 200}, target="orders=orders_test.jsonl")

In a study, the target may be the name of one of its target tasks (`with_named_targets`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from aftertune.study.fields import Flag, Name, Points, Positive, Spec
from aftertune.study.scorer import SCORER_FORMS, AnswerScorer, check_pattern, metrics_of

#: Fields that were added after ids were made of the others; they count where they are set.
_LATER = ("scorer", "slice")


def _listed(value: Any) -> Any:
    """One scorer as a list of one."""
    return (value,) if isinstance(value, str) else value


Scorers = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


class TargetRows(Spec):
    """Held-out JSONL rows ``{"prompt": …, "completion": …}`` and how an answer is matched."""

    file: Annotated[Path, Field(description="JSONL file of rows that training never sees.")]
    match: Annotated[Literal["json", "exact", "regex"], Field(
        description="json: the same object (valid JSON and accuracy by field are shown too). exact: the same text "
                    "without outer spaces. regex: the same match of `pattern`.")] = "exact"
    pattern: Annotated[str | None, Field(
        description="Regular expression for `match: regex`. Its first group, or else its whole match, is taken from "
                    "the answer and from the completion.")] = None
    scorer: Annotated[Scorers, Field(
        description=f"In place of `match`: one or more of {SCORER_FORMS}. Each has metrics of its own, "
                    "and the first one gets the verdict.")] = ()
    cluster: Annotated[str | None, Field(min_length=1, description=(
        "Field of a row that rows of one origin share, such as several questions on one text. The verdict accounts for "
        "it."))] = None
    max_tokens: Annotated[Positive, Field(description="Longest answer in tokens.")] = 128
    stop: Annotated[tuple[str, ...], Field(description="Texts that end an answer.")] = ()

    @model_validator(mode="after")
    def _answers_can_be_judged(self) -> TargetRows:
        if self.scorer and (self.match != "exact" or self.pattern is not None):
            raise ValueError("`match` and `scorer` both say how answers are judged; give one of them")
        if (self.match == "regex") != (self.pattern is not None):
            raise ValueError("`pattern` goes with `match: regex`, and only with it")
        if self.pattern is not None:
            check_pattern(self.pattern)
        metrics_of(self.scorers)
        return self

    @property
    def scorers(self) -> tuple[AnswerScorer, ...]:
        """How answers are judged, the scorer of the primary metric first."""
        if self.scorer:
            return tuple(AnswerScorer.parse(text) for text in self.scorer)
        return (AnswerScorer(self.match, self.pattern or ""),)

    @model_serializer(mode="wrap")
    def _without_unset_later_fields(self, handler: Any) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v or k not in _LATER}


class TargetSpec(TargetRows):
    """A target task of an evaluation."""

    shots_file: Annotated[Path | None, Field(
        description="Rows to show as examples (`num_fewshot`); never the held-out file.")] = None
    slice: Annotated[str | None, Field(min_length=1, description=(
        "Column of the rows that parts them into slices, such as the kind of a question: each slice has a row of its "
        "own beside the whole task, and a verdict."))] = None

    def refusal(self, *, stops: bool) -> str:
        """Why a study cannot ask it, "" if it can. stops: the task is stopped at its verdict."""
        if any(scorer.kind == "python" for scorer in self.scorers):
            return ("has a scorer in Python, and a study runs no code; use it with `aftertune eval --target FILE "
                    "--allow-task-code`")
        if self.slice is not None and stops:
            return ("has slices, whose verdicts need all of its items; give the task `until_decided: false`, or leave "
                    "`slice` out")
        return ""


class WatchedTarget(TargetRows):
    """A target task that is measured during a training. A string is short for its ``file``, or NAME=FILE."""

    file: Annotated[Path, Flag("--target", form="[NAME=]FILE"), Field(
        description="JSONL file of held-out prompts and completions: also measure what is learned on it, at the same "
                    "steps. The name is that of the file by default.")]
    match: Annotated[Literal["json", "exact", "regex"], Flag("--target-match"), Field(
        description="An answer is right if it is the same object (json), the same text without outer spaces (exact) or "
                    "has the same match of --target-pattern (regex).")] = "exact"
    pattern: Annotated[str | None, Flag("--target-pattern"), Field(
        description="Regular expression for --target-match regex.")] = None
    scorer: Annotated[Scorers, Flag(repeatable=True, form="SCORER"), Field(max_length=1, description=(
        f"In place of --target-match: how answers to the target are judged, one of {SCORER_FORMS}."))] = ()
    max_tokens: Annotated[Positive, Flag("--target-tokens"), Field(description="Longest answer in tokens.")] = 128
    name: Annotated[Name, Field(description="Name of the task. Default: that of the file.")] = "target"
    items: Annotated[Positive | None, Flag("--target-items"), Field(
        description="Use N random rows of the target's file. Default: all.")] = None

    @model_validator(mode="before")
    @classmethod
    def _a_text_is_a_file(cls, value: Any) -> Any:
        value = {"file": value} if isinstance(value, str | Path) else value
        if not isinstance(value, dict) or "file" not in value:
            return value
        text = str(value["file"])
        name, equals, file = text.partition("=")
        if equals and "name" not in value and not Path(text).exists():
            return {**value, "name": name.strip(), "file": Path(file.strip())}
        return {"name": Path(text).stem, **value}


class WatchSpec(Spec):
    """Tasks that are evaluated during training, every so many steps and at the end, on random items."""

    tasks: Annotated[dict[str, Positive], Flag("--watch", form="TASK=N", example="hellaswag=200")] = Field(
        default_factory=dict,
        description="Evaluate N items of a task during training and compare with the base: TASK=N.")
    target: Annotated[WatchedTarget | None, Field(description="Target task that shows what is learned.")] = None
    every: Annotated[Positive, Flag("--watch-every"), Field(description="Steps between two such evaluations.")] = 50
    margin: Annotated[Points, Flag("--watch-margin"), Field(
        description="Points; a drop within them is no forgetting.")] = 2.0
    stop: Annotated[bool, Flag("--stop-when-forgot"), Field(
        description="Stop training when a watched task is proven to be forgotten.")] = False

    @model_validator(mode="after")
    def _something_is_watched(self) -> WatchSpec:
        if not self.tasks and self.target is None:
            raise ValueError("there is nothing to watch; name tasks (--watch TASK=N, for example --watch "
                             "hellaswag=200), or a target task (--target FILE)")
        if self.target is not None and self.target.name in self.tasks:
            raise ValueError(f"{self.target.name!r} names both a watched task and the target; give the target another "
                             "name (--target NAME=FILE)")
        return self

    @property
    def names(self) -> list[str]:
        """Names of all tasks that are measured, the target first."""
        return [*([self.target.name] if self.target else []), *self.tasks]


def with_named_targets(study: Any) -> Any:
    """A study before it is checked, where each watch whose target names a target task of the study has its rows.

    The name may be the target itself, or its field ``name`` where there is no ``file``. A watch measures the whole
    task, not its slices, by its first scorer. Raises ValueError for a target task with examples (``shots_file``), which
    a watch does not show.
    """
    tunings = study.get("tunings") if isinstance(study, dict) else None
    tasks = study.get("tasks") if isinstance(study, dict) else None
    rows = {task["name"]: task["target"] for task in (tasks if isinstance(tasks, list | tuple) else ())
            if isinstance(task, dict) and isinstance(task.get("name"), str) and isinstance(task.get("target"), dict)}
    if not rows or not isinstance(tunings, dict):
        return study
    return {**study, "tunings": {name: _with_rows(name, tuning, rows) for name, tuning in tunings.items()}}


def _with_rows(tuning: Any, value: Any, rows: dict[str, dict[str, Any]]) -> Any:
    """A tuning whose watched target has the rows of the target task that it names. rows: by name of the task."""
    watch = value.get("watch") if isinstance(value, dict) else None
    target = watch.get("target") if isinstance(watch, dict) else None
    given = {"name": target} if isinstance(target, str) else target
    if not isinstance(watch, dict) or not isinstance(given, dict) or "file" in given:
        return value
    named = rows.get(str(given.get("name")))
    if named is None:
        return value
    if named.get("shots_file"):
        raise ValueError(f"tunings.{tuning}.watch.target names {given['name']!r}, which shows examples (shots_file); a "
                         "watch shows none: give its file, or a task without examples")
    rows_of_it = {k: v for k, v in named.items() if k != "slice"}
    if "scorer" in named:
        rows_of_it["scorer"] = list(_listed(named["scorer"]))[:1]
    return {**value, "watch": {**watch, "target": {**rows_of_it, **given}}}
