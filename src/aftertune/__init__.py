"""Fine-tunes small language models and shows, with evidence, what each fine-tune taught and what it made the model
forget.

    from aftertune import compare, evaluate, tune, Ledger, Study

The layers: a room may import the rooms to its right. Rooms between commas may not import each other
(tests/test_layers.py):

    cli > api > publishing > bundle, tracking > pipeline > callbacks, trainer_checkpoints, cure > early_stopping, merge_check, forgetting_watch, drift, deploy > evaluation, tuning, comparison, report, exchange > failed_tasks > harness > engine, tasks, ledger, stats > sources > provenance > redaction, study, demo > methods > values > catalog > errors, bounds, paths

Importing aftertune imports neither torch nor transformers: a public name is imported on first use.
"""  # noqa: E501

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aftertune.comparison import compare as compare
    from aftertune.cure.blend import blend as blend
    from aftertune.cure.soften import soften as soften
    from aftertune.evaluation import evaluate as evaluate
    from aftertune.ledger import Ledger as Ledger
    from aftertune.study import Study as Study
    from aftertune.tuning import tune as tune

__version__ = "0.1.0"
__all__ = ["Ledger", "Study", "blend", "compare", "evaluate", "soften", "tune"]

_HOME = {
    "evaluate": "aftertune.evaluation",
    "tune": "aftertune.tuning",
    "compare": "aftertune.comparison",
    "soften": "aftertune.cure",
    "blend": "aftertune.cure",
    "Ledger": "aftertune.ledger",
    "Study": "aftertune.study",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'aftertune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
