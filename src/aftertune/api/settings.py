"""The keywords of functions that are fields of specifications, for editors and type checkers.

Made by `make docs` (`aftertune.api.reference`): change the fields in `aftertune.study` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict


class EvaluateSettings(TypedDict, total=False):
    """Fields of OwnTask and TaskSpec and EvalSpec and EarlySpec; each may be left out."""

    target: str | None
    scorer: str | Sequence[str] | None
    slice: str | None
    target_tokens: int | None
    target_shots: str | None
    limit: int | None
    sample: int | None
    sample_seed: int | None
    num_fewshot: int | None
    letters: bool | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    device: str | None
    engine: str | None
    apply_chat_template: bool | None
    template_date: str | None
    system_instruction: str | None
    fewshot_as_multiturn: bool | None
    enable_thinking: bool | None
    think_end_token: str | None
    gen_kwargs: Mapping[str, Any] | None
    quantize: Literal["nf4"] | None
    revision: str | None
    engine_args: Mapping[str, Any] | None
    include_path: str | Path | None
    allow_task_code: bool | None
    memory: str | None
    threads: int | None
    name: str | None
    trust_remote_code: bool | None
    fork: bool | None
    stop_target: Literal["models", "full-run"] | None
    draw: Literal["auto", "weighted", "uniform"] | None
    batch: int | None
    min_items: int | None
    max_items: int | None
    max_width: float | None
    margin: float | None
    until_decided: Any | None


class CheckpointSettings(TypedDict, total=False):
    """Fields of CheckpointSpec; each may be left out."""

    target: str | None
    match: Literal["exact", "json"] | None
    scorer: str | None
    keep_best: str | None
    steps: str | Sequence[int] | None
    margin: float | None
    apply_chat_template: bool | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    device: str | None
    threads: int | None


class CureSettings(TypedDict, total=False):
    """Fields of CureSpec; each may be left out."""

    target: str | None
    match: Literal["exact", "json"] | None
    scorer: str | None
    items: int | None
    require_proof: bool | None
    out: str | Path | None
    apply_chat_template: bool | None
    include_path: str | Path | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    device: str | None
    threads: int | None


class TuneSettings(TypedDict, total=False):
    """Fields of TuneSpec; each may be left out."""

    format: Literal["auto", "prompt", "messages", "alpaca", "dolly", "sharegpt", "glaive", "preference", "text"] | None
    field: Mapping[str, str] | None
    encoding: str | None
    split: str | None
    subset: str | None
    skip_bad: bool | None
    dedup: Literal["exact", "normalised", "none"] | None
    examples: int | None
    held_out: float | None
    validation: float | None
    method: Literal["lora", "qlora", "rslora", "dora", "pissa", "ia3", "oft", "vera", "full"] | None
    backend: Literal["peft", "unsloth", "auto"] | None
    validate_every: int | None
    patience: int | None
    replay: Any | None
    replay_share: float | None
    anchor: str | None
    watch: Mapping[str, int] | None
    target: str | Path | None
    target_match: Literal["json", "exact", "regex"] | None
    target_pattern: str | None
    scorer: str | Sequence[str] | None
    target_tokens: int | None
    target_items: int | None
    watch_every: int | None
    watch_margin: float | None
    stop_when_forgot: bool | None
    keep_checkpoints: Literal["all"] | int | None
    keep_best: str | None
    epochs: float | None
    max_steps: int | None
    learning_rate: float | None
    batch_size: int | None
    accumulation: int | None
    schedule: Literal["linear", "cosine"] | None
    gradient_checkpointing: bool | None
    max_length: int | None
    rank: int | None
    alpha: float | None
    dropout: float | None
    target_modules: str | Sequence[str] | None
    seed: int | None
    template: Literal["chat", "alpaca", "plain"] | None
    template_date: str | None
    learn: Literal["answers", "last", "all"] | None
    merge: bool | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    device: str | None
    revision: str | None
    out: str | Path | None
    name: str | None
    trust_remote_code: bool | None
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None
    lora: Mapping[str, Any] | None
    early_stop: Mapping[str, Any] | None
