"""Defines when an evaluation stops at the first safe verdict: of one evaluation, and of the fine-tunes of a study.

    EarlySpec(margin=2, draw="weighted")                of `eval --until-decided`
    EarlyRule(draw="uniform", max_items=2000)           in a study, whose margins it takes

In a study file, `until_decided: true` has the default rule. A task of the study may say `until_decided: false`, then
all of its items are asked, or `until_decided: true` in a study that does not say it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from aftertune.study.fields import Flag, Points, Positive, Spec


class EarlyRule(Spec):
    """How items are drawn, and what must be proven before a task stops."""

    target: Annotated[Literal["models", "full-run"], Flag("--stop-target"), Field(
        description="What must be proven before a task stops: something about the models, as a verdict is, or about "
                    "what asking all items would show. For --until-decided.")] = "models"
    draw: Annotated[Literal["auto", "weighted", "uniform"], Flag(), Field(
        description="How items are drawn: weighted (most often where the base was unsure; a base that was not asked "
                    "all items is asked first), uniform, or auto (weighted where the ledger has the base's answers "
                    "to all items). For --until-decided.")] = "auto"
    batch: Annotated[Positive | None, Flag(), Field(
        description="Items between two interim analyses. Default: 32, or 8 for a small task.")] = None
    min_items: Annotated[int, Flag("--min-items", "--min-docs"), Field(
        ge=0, description="Ask at least this many items of each task.")] = 0
    max_items: Annotated[Positive | None, Flag(), Field(
        description="Ask at most this many items of each task, also where nothing is proven yet.")] = None
    max_width: Annotated[Annotated[float, Field(gt=0, le=200)] | None, Flag(), Field(
        description="Continue until the interval is at most this many points wide.")] = None

    @model_validator(mode="after")
    def _a_range(self) -> EarlyRule:
        if self.max_items is not None and self.max_items < max(self.min_items, self.batch or 0):
            name = "min_items" if self.max_items < self.min_items else "batch"
            raise ValueError(f"`max_items` is {self.max_items}, less than `{name}`, {getattr(self, name)}")
        return self


class EarlySpec(EarlyRule):
    """When an evaluation stops at the first safe verdict."""

    margin: Annotated[Points, Flag(), Field(
        description="Points; a change within them is no change. For --until-decided.")] = 2.0


def _rule(value: Any) -> Any:
    """The default rule for true, no rule for false."""
    return {} if value is True else None if value is False else value


#: The rule of a study: true, false, or its fields.
StudyRule = Annotated[EarlyRule | None, BeforeValidator(_rule, json_schema_input_type=bool | EarlyRule | None), Field(
    description="Ask the fine-tunes only as many items as their verdicts need (true, or how). The bases are asked all "
                "items first.")]
#: Whether one task of a study stops early.
TaskStops = Annotated[bool | None, Field(
    description="In a study: stop this task at its verdict, or (false) ask all of its items. Default: as the study's.")]
