"""Specifications of evaluations: a model on tasks, and the tasks, target tasks too."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aftertune.study.words import Dtype, EngineName, Memory, Name, Positive, Quantize, Spec


class TargetSpec(Spec):
    """A held-out target task: JSONL rows ``{"prompt": …, "completion": …}`` and how an answer is matched.

    match: "json" (same object; valid JSON and per-field accuracy are shown too), "exact" (same text after
    stripping), "regex" (``pattern``'s first group, or whole match, taken from both texts and compared).
    shots: further rows shown as examples, taken from ``shots_file`` (never from the held-out file).
    """

    file: Path
    match: Literal["json", "exact", "regex"] = "exact"
    pattern: str | None = None
    shots_file: Path | None = None
    max_tokens: Positive = 128
    stop: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _pattern_goes_with_regex(self) -> TargetSpec:
        if (self.match == "regex") != (self.pattern is not None):
            raise ValueError("`pattern` goes with `match: regex`, and only with it")
        return self


class TaskSpec(Spec):
    """One task of an evaluation. name: an lm-eval task or group, or the name given to a target task.

    limit: the first N items (lm-eval's meaning); sample: N items drawn at random with sample_seed.
    gen_kwargs: generation settings of this task, over those of the evaluation.
    data: a local file for a task whose data no pack has (for gsm8k: its train split). margin: in points.
    only: evaluate it only on these bases or tunings (names within a study, or patterns such as lora-*).
    """

    name: Annotated[str, Field(min_length=1)]
    limit: Positive | None = None
    sample: Positive | None = None
    sample_seed: int = 0
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    apply_chat_template: bool | None = None
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    data: Path | None = None
    target: TargetSpec | None = None
    margin: Annotated[float, Field(gt=0, le=100)] | None = None
    only: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _limit_or_sample(self) -> TaskSpec:
        if self.limit is not None and self.sample is not None:
            raise ValueError("`limit` (the first N) and `sample` (a random N) exclude each other")
        return self

    def asks(self, name: str) -> bool:
        """Whether a base or tuning of this name is asked it."""
        return not self.only or any(fnmatchcase(name, one) for one in self.only)


class EvalSpec(Spec):
    """One evaluation: a model, perhaps with an adapter, on tasks under fixed settings.

    quantize: "nf4" holds the base's linear layers in four bits, as qlora trains on; None as they are stored.
    """

    model: str
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    adapter: str | None = None
    revision: str | None = None
    quantize: Quantize | None = None
    name: Name | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    engine: EngineName = "packed"
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    include_path: Path | None = None
    allow_task_code: bool = False
    trust_remote_code: bool = False
    memory: Memory | None = None
    threads: Positive | None = None
    task_source: Literal["auto", "hub", "pack"] = "auto"
    fork: bool = False
