"""Gives the forgetting watch to people who keep their own trainer of transformers or TRL.

    from aftertune.callbacks import ForgettingCallback

    trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", args=SFTConfig(output_dir="out"), train_dataset=data)
    trainer.add_callback(ForgettingCallback(trainer, {"hellaswag": 200}, every=100))
    trainer.train()

Importing this module imports neither torch nor transformers: a name is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aftertune.callbacks.forgetting import ForgettingCallback as ForgettingCallback

__all__ = ["ForgettingCallback"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name in __all__:
        from aftertune.callbacks import forgetting

        return getattr(forgetting, name)
    raise AttributeError(f"module 'aftertune.callbacks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
