"""Fine-tunes small language models and shows, with evidence, what each fine-tune taught and what it made the model
forget.

    import aftertune

    base = aftertune.evaluate("Qwen/Qwen2.5-0.5B", tasks=["hellaswag"], limit=100)

The layers: a room may import the rooms to its right. Rooms between commas may not import each other
(tests/test_layers.py):

    cli > api > view > publishing > bundle, tracking > pipeline > callbacks, trainer_checkpoints, cure > early_stopping, merge_check, forgetting_watch, deploy > drift > evaluation, tuning, comparison, report, exchange > failed_tasks > harness > engine, tasks, ledger, stats > sources > provenance > redaction, study, demo > methods > values > catalog > errors, bounds, paths, actions

Importing aftertune imports neither torch nor transformers: a public name is imported on first use.
"""  # noqa: E501

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aftertune.api.comparing import compare as compare
    from aftertune.api.comparing import drift as drift
    from aftertune.api.comparing import flips as flips
    from aftertune.api.comparing import gate as gate
    from aftertune.api.cures import blend as blend
    from aftertune.api.cures import cure as cure
    from aftertune.api.cures import rollback as rollback
    from aftertune.api.cures import soften as soften
    from aftertune.api.deploying import check_deploy as check_deploy
    from aftertune.api.deploying import check_merge as check_merge
    from aftertune.api.deploying import export_gguf as export_gguf
    from aftertune.api.documents import audit as audit
    from aftertune.api.documents import card as card
    from aftertune.api.documents import import_results as import_results
    from aftertune.api.documents import record as record
    from aftertune.api.documents import report as report
    from aftertune.api.evaluating import evaluate as evaluate
    from aftertune.api.exporting import export as export
    from aftertune.api.item_plans import plan_items as plan_items
    from aftertune.api.training import checkpoints as checkpoints
    from aftertune.api.training import tune as tune
    from aftertune.api.viewing import view as view
    from aftertune.errors import AftertuneError as AftertuneError
    from aftertune.errors import InputError as InputError
    from aftertune.errors import NotComparable as NotComparable
    from aftertune.errors import TasksFailed as TasksFailed
    from aftertune.ledger import Ledger as Ledger
    from aftertune.study import EvalSpec as EvalSpec
    from aftertune.study import Study as Study
    from aftertune.study import TaskSpec as TaskSpec
    from aftertune.study import TuneSpec as TuneSpec
    from aftertune.values import Comparison as Comparison
    from aftertune.values import Drift as Drift
    from aftertune.values import Evaluation as Evaluation
    from aftertune.values import Flips as Flips
    from aftertune.values import GateResult as GateResult
    from aftertune.values import Margin as Margin
    from aftertune.values import Tuning as Tuning

__version__ = "0.1.0"

_HOME = {
    "audit": "aftertune.api.documents",
    "blend": "aftertune.api.cures",
    "card": "aftertune.api.documents",
    "check_deploy": "aftertune.api.deploying",
    "check_merge": "aftertune.api.deploying",
    "checkpoints": "aftertune.api.training",
    "compare": "aftertune.api.comparing",
    "cure": "aftertune.api.cures",
    "drift": "aftertune.api.comparing",
    "evaluate": "aftertune.api.evaluating",
    "export": "aftertune.api.exporting",
    "export_gguf": "aftertune.api.deploying",
    "flips": "aftertune.api.comparing",
    "gate": "aftertune.api.comparing",
    "import_results": "aftertune.api.documents",
    "plan_items": "aftertune.api.item_plans",
    "record": "aftertune.api.documents",
    "report": "aftertune.api.documents",
    "rollback": "aftertune.api.cures",
    "soften": "aftertune.api.cures",
    "tune": "aftertune.api.training",
    "view": "aftertune.api.viewing",
    "AftertuneError": "aftertune.errors",
    "Comparison": "aftertune.values",
    "Drift": "aftertune.values",
    "EvalSpec": "aftertune.study",
    "Evaluation": "aftertune.values",
    "Flips": "aftertune.values",
    "GateResult": "aftertune.values",
    "InputError": "aftertune.errors",
    "Ledger": "aftertune.ledger",
    "Margin": "aftertune.values",
    "NotComparable": "aftertune.errors",
    "Study": "aftertune.study",
    "TaskSpec": "aftertune.study",
    "TasksFailed": "aftertune.errors",
    "TuneSpec": "aftertune.study",
    "Tuning": "aftertune.values",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562), with what the methods of the values do."""
    from importlib import import_module

    if name in _HOME:
        import_module("aftertune.api.studies")
        return getattr(import_module(_HOME[name]), name)
    if name == "callbacks":
        return import_module("aftertune.callbacks")
    raise AttributeError(f"module 'aftertune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "callbacks"])


class _Package(ModuleType):
    """The package. The functions `report`, `drift`, `cure` and `view` have the names of rooms: importing a module of
    ``aftertune.report`` sets an attribute ``report`` here, which would take the place of the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
