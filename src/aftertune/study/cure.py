"""Defines what the verbs ask for that get back what a fine-tune forgot: tasks to keep, a target, and how to measure.

    asked = CureSpec(keep="hellaswag=2,arc_easy=2", target="orders_test.jsonl=100", match="json")
    asked.margins                {"hellaswag": 2.0, "arc_easy": 2.0}
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aftertune.study.fields import CountedTask, Device, Dtype, Flag, Spec, Threads
from aftertune.study.scorer import SCORER_FORMS

#: The fewest items of a kept task; one part chooses, the other confirms.
FEWEST_ITEMS = 16


class CureSpec(Spec):
    """What a cure should reach, as the command line gives it."""

    keep: Annotated[str, Flag(form="TASK=POINTS,…"), Field(
        description="Tasks that should be kept, each with its margin in points: the largest loss that counts as none. "
                    "hellaswag=2,arc_easy=2.")]
    target: Annotated[CountedTask, Flag(form="TASK=N")] = None
    match: Annotated[Literal["exact", "json"], Flag(), Field(
        description="How answers to the file of --target are judged.")] = "exact"
    scorer: Annotated[str | None, Flag(form="SCORER"), Field(
        description=f"In place of --match: one of {SCORER_FORMS}.")] = None
    items: Annotated[int, Flag(), Field(
        ge=FEWEST_ITEMS, le=10**9,
        description="Random items of each kept task. One part chooses, the other confirms.")] = 400
    require_proof: Annotated[bool, Flag(), Field(
        description="Write a model only if it is proven that the kept tasks are kept and that the target gained.")
    ] = False
    out: Annotated[Path | None, Flag(), Field(
        description="Output folder. Default: beside that of the (first) fine-tune.")] = None
    apply_chat_template: Annotated[bool | None, Flag(), Field(
        description="Ask the target with the model's chat template. Default: as the fine-tune was trained.")] = None
    include_path: Annotated[Path | None, Flag(), Field(
        description="Folder with your own lm-eval task files.")] = None
    dtype: Annotated[Dtype, Flag()] = "auto"
    device: Annotated[Device, Flag()] = "auto"
    threads: Annotated[Threads, Flag()] = None

    @model_validator(mode="after")
    def _the_margins_are_readable(self) -> CureSpec:
        margins = self.margins
        if self.target is not None and self.target.rpartition("=")[0] in margins:
            raise ValueError(f"`target` is {self.target!r}, which is also in `keep`; what was learned and what should "
                             "be kept are different tasks")
        return self

    @property
    def margins(self) -> dict[str, float]:
        """The margin of each kept task, in points. Raises ValueError for another form."""
        margins: dict[str, float] = {}
        for found in re.finditer(r"[^,\s][^,]*", self.keep):
            part = found[0].strip()
            task, _, text = part.rpartition("=")
            points = _number(text)
            if not task or points is None or not 0 < points <= 100:
                raise ValueError(f"`keep` has {part!r}; write TASK=POINTS, for example hellaswag=2, with points above "
                                 "0, up to 100; use the smallest loss that matters")
            if task in margins:
                raise ValueError(f"`keep` has {task!r} twice ({margins[task]:g} and {text}); each task has one margin")
            margins[task] = points
        if not margins:
            raise ValueError("`keep` names no task; write TASK=POINTS, for example hellaswag=2,arc_easy=2")
        return margins

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of an evaluation."""
        return self.model_dump(include={"include_path", "dtype", "device", "threads"})


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
