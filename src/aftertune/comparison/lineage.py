"""Who was made from whom: owns what the ledger proves about the models of two evaluations.

    kinship(base, tuned, ledger).relation      "tuned"

Proof is a done tuning of the ledger whose base and result are these models, or an adapter on the very same base.
Names and paths prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aftertune.values import Evaluation, HeldOut, ModelIdentity, Relation, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger


@dataclass(frozen=True, slots=True)
class ModelRelation:
    """relation: of the right model to the left one; origin: source of the base that siblings share; held_out: loss
    before and after the tuning that made the right one from the left one."""

    relation: Relation = ""
    origin: str = ""
    held_out: HeldOut | None = None

    @property
    def lineage(self) -> bool:
        return self.relation == "tuned"


def find_relation(left: Evaluation, right: Evaluation, ledger: Ledger) -> ModelRelation:
    """How the model of ``right`` is related to that of ``left``."""
    done = [t for t in ledger.tunings() if t.status == "done"]
    if left.model.fingerprint == right.model.fingerprint:
        return ModelRelation("same model")
    made = [t for t in done if right.model.fingerprint in t.results and t.base.fingerprint == left.model.fingerprint]
    if made or _adapts(left.model, right.model):
        named = [t for t in made if t.id == right.tuning] or made
        return ModelRelation("tuned", held_out=named[-1].held_out if named else None)
    if _adapts(right.model, left.model) or any(
            left.model.fingerprint in t.results and t.base.fingerprint == right.model.fingerprint for t in done):
        return ModelRelation("reversed")
    shared = {m.fingerprint: m.source for m in _origins(left.model, done)}
    origin = next((shared[m.fingerprint] for m in _origins(right.model, done) if m.fingerprint in shared), None)
    return ModelRelation() if origin is None else ModelRelation("siblings", origin)


def _adapts(base: ModelIdentity, tuned: ModelIdentity) -> bool:
    """True where ``tuned`` is an adapter on ``base``."""
    return tuned.adapter is not None and tuned.base.fingerprint == base.fingerprint


def _origins(model: ModelIdentity, done: Sequence[Tuning]) -> list[ModelIdentity]:
    """The models that this one goes back to, the nearest first."""
    found: list[ModelIdentity] = []
    while True:
        made = next((t.base for t in done if model.fingerprint in t.results), model.base if model.adapter else None)
        if made is None or made.fingerprint in {m.fingerprint for m in found}:
            return found
        found.append(made)
        model = made
