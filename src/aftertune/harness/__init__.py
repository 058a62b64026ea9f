"""Connects aftertune with lm-eval: its model classes as engines, and aftertune's engine as an lm-eval model.

    HarnessEngine.make("hf", model=model, tokenizer=tokenizer, batch_size=8)      an engine for an evaluation
    lm_eval.simple_evaluate(HarnessLM("HuggingFaceTB/SmolLM2-135M"), tasks=["hellaswag"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aftertune.harness.engines import HarnessEngine

if TYPE_CHECKING:
    from aftertune.harness.model import HarnessLM as HarnessLM

__all__ = ["HarnessEngine", "HarnessLM"]


def __getattr__(name: str) -> Any:
    """Import HarnessLM on first use: it is a subclass of lm-eval's LM, which takes long to import."""
    if name == "HarnessLM":
        from aftertune.harness.model import HarnessLM

        return HarnessLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
