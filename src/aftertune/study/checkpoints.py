"""Defines what is asked about the checkpoints that a trainer left behind, beside its tasks.

    CheckpointSpec(target="orders_test.jsonl=100", match="json", keep_best="orders_test, no loss > 2 on hellaswag")
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aftertune.study.cure import CureSpec
from aftertune.study.fields import CountedTask, Device, Dtype, Flag, Points, Spec, Threads

_SCORER = CureSpec.model_fields["scorer"].description


class CheckpointSpec(Spec):
    """How checkpoints are evaluated and judged."""

    target: Annotated[CountedTask, Flag(form="TASK=N")] = None
    match: Annotated[Literal["exact", "json"], Flag(), Field(
        description="How answers to the file of --target are judged: exact or json.")] = "exact"
    scorer: Annotated[str | None, Flag(form="SCORER"), Field(description=_SCORER)] = None
    keep_best: Annotated[str | None, Flag(form="RULE"), Field(
        description='Choose a checkpoint on one half of the items and report on the other: "GOAL, no loss > POINTS on '
                    'TASK".')] = None
    steps: Annotated[tuple[int, ...], Flag(), Field(description="Only these steps, separated by commas.")] = ()
    margin: Annotated[Points, Flag(), Field(description="Points; a smaller change is no change.")] = 2.0
    apply_chat_template: Annotated[bool, Flag(), Field(
        description="Apply the model's chat template to the prompts.")] = False
    dtype: Annotated[Dtype, Flag()] = "auto"
    device: Annotated[Device, Flag()] = "auto"
    threads: Annotated[Threads, Flag()] = None
