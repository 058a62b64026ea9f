"""Where aftertune and lm-eval meet as programs: lm-eval's model classes as engines, and our engine as its model.

    HarnessEngine.make("hf", model=model, tokenizer=tokenizer, batch_size=8)      an engine of an evaluation
    lm_eval.simple_evaluate(HarnessLM("HuggingFaceTB/SmolLM2-135M"), tasks=["hellaswag"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aftertune.harness.engines import HarnessEngine

if TYPE_CHECKING:
    from aftertune.harness.model import HarnessLM as HarnessLM

__all__ = ["HarnessEngine", "HarnessLM"]


def __getattr__(name: str) -> Any:
    """HarnessLM is a subclass of lm-eval's LM, so lm-eval is imported when it is first asked for."""
    if name == "HarnessLM":
        from aftertune.harness.model import HarnessLM

        return HarnessLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
