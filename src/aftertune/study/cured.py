"""Finds what the cured fine-tunes of a study are made from: the same fine-tune, trained, without the cure.

    made_from(study.tunings)             {"lora-soften0.6-s0": "lora-s0", "lora-rollback20-s0": "lora-s0"}

A cured fine-tune has ``soften`` (its strength) or ``rollback`` (the step of a kept checkpoint) and is not trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from aftertune.values import digest

#: The fields that make a fine-tune a cured one.
CURES = ("soften", "rollback")


class Curable(Protocol):
    """A fine-tune of a study (`aftertune.study.StudyTuning`)."""

    @property
    def soften(self) -> float | None: ...
    @property
    def rollback(self) -> int | None: ...
    @property
    def merge(self) -> bool: ...
    @property
    def keep_checkpoints(self) -> object: ...
    @property
    def keep_best(self) -> str | None: ...

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values."""


def made_from(tunings: Mapping[str, Curable]) -> dict[str, str]:
    """Name of each cured fine-tune -> name of the trained one. Raises ValueError, in one line, where there is none, or
    where it keeps no checkpoints to go back to."""
    cured = {name: tuning for name, tuning in tunings.items() if _cures(tuning)}
    if not cured:
        return {}
    trained = {_recipe(tuning): name for name, tuning in reversed(list(tunings.items())) if name not in cured}
    found: dict[str, str] = {}
    for name, tuning in cured.items():
        given = _cures(tuning)
        if len(given) > 1:
            raise ValueError(f"tunings.{name} has `soften` and `rollback`; give one of them")
        if tuning.merge:
            raise ValueError(f"tunings.{name} has `{given[0]}` and `merge`, but a cured fine-tune is not merged; leave "
                             "`merge` out of it")
        if _recipe(tuning) not in trained:
            raise ValueError(f"tunings.{name} has `{given[0]}`, but the study has no fine-tune with the same settings "
                             f"without it, from which it could be made; add one (in a matrix: {given[0]}: [null, "
                             f"{getattr(tuning, given[0]):g}])")
        if tuning.rollback is not None and tuning.keep_checkpoints is None and tuning.keep_best is None:
            raise ValueError(f"tunings.{name} has `rollback`, but no checkpoints are kept; add keep_checkpoints: all")
        found[name] = trained[_recipe(tuning)]
    return found


def _cures(tuning: Curable) -> list[str]:
    return [field for field in CURES if getattr(tuning, field) is not None]


def _recipe(tuning: Curable) -> str:
    """What decides the training."""
    return digest({k: v for k, v in tuning.settings().items() if k not in (*CURES, "merge")})
