"""Finds how the models of two evaluations are related, and how often they were compared before, from the ledger.

    find_relation(base, tuned, ledger).relation      "tuned"
    earlier_looks(base, tuned, ledger)               {("hellaswag",): {300}}: items of earlier comparisons of the two

The proof is a finished fine-tune of the ledger whose base and result are these models, or an adapter on exactly this
base. Models are identified by fingerprint; names and paths prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aftertune.values import Evaluation, HeldOut, ModelIdentity, Relation, TaskSettings, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger


@dataclass(frozen=True, slots=True)
class ModelRelation:
    """The relation of the right model to the left one.

    origin: source of the base that "siblings" share. held_out: held-out loss of the fine-tune that made the right model
    from the left one.
    """

    relation: Relation = ""
    origin: str = ""
    held_out: HeldOut | None = None

    @property
    def lineage(self) -> bool:
        """True where the right model was made from the left one."""
        return self.relation == "tuned"


def find_relation(left: Evaluation, right: Evaluation, ledger: Ledger) -> ModelRelation:
    """How the model of ``right`` is related to that of ``left``."""
    done = [t for t in ledger.tunings() if t.status == "done"]
    if left.stated or right.stated:  # the same name proves nothing: a server may have changed its model
        return ModelRelation()
    if left.model.fingerprint == right.model.fingerprint:
        return ModelRelation("same model")
    tunings = [t.at(right.model.fingerprint) for t in done
               if t.made(right.model.fingerprint) and t.base.fingerprint == left.model.fingerprint]
    if tunings or _adapts(left.model, right.model):
        preferred = [t for t in tunings if t.id == right.tuning] or tunings
        return ModelRelation("tuned", held_out=preferred[-1].held_out if preferred else None)
    if _adapts(right.model, left.model) or any(
            t.made(left.model.fingerprint) and t.base.fingerprint == right.model.fingerprint for t in done):
        return ModelRelation("reversed")
    shared = {m.fingerprint: m.source for m in _origins(left.model, done)}
    origin = next((shared[m.fingerprint] for m in _origins(right.model, done) if m.fingerprint in shared), None)
    return ModelRelation() if origin is None else ModelRelation("siblings", origin)


def _adapts(base: ModelIdentity, tuned: ModelIdentity) -> bool:
    """True where ``tuned`` is an adapter on ``base``."""
    return tuned.adapter is not None and tuned.base.fingerprint == base.fingerprint


def _origins(model: ModelIdentity, done: Sequence[Tuning]) -> list[ModelIdentity]:
    """The models from which ``model`` was made, directly or through others, the nearest first."""
    origins: list[ModelIdentity] = []
    while True:
        base = next((t.base for t in done if t.made(model.fingerprint)), model.base if model.adapter else None)
        if base is None or base.fingerprint in {m.fingerprint for m in origins}:
            return origins
        origins.append(base)
        model = base


def earlier_looks(left: Evaluation, right: Evaluation, ledger: Ledger) -> Mapping[tuple[str, ...], set[int]]:
    """By task, and by the tasks of an average: on how many items each stored comparison of other evaluations of the
    same two models was made.

    A task counts as the same if its prompts are made in the same way; its items may be another part of it. A test that
    stopped early counts as no look: its error level covers all of its looks, and it stopped because it had decided.
    """
    sides = {e.id: e for e in ledger.evaluations() if e.status == "done"}
    looks: dict[tuple[str, ...], set[int]] = {}
    for comparison in ledger.comparisons():
        base, tuned = sides.get(comparison.base), sides.get(comparison.tuned)
        if base is None or tuned is None or (base.id, tuned.id) == (left.id, right.id):
            continue
        if (base.model.fingerprint, tuned.model.fingerprint) != (left.model.fingerprint, right.model.fingerprint):
            continue
        for row in comparison.rows:
            names = row.average_of or (row.task,)
            if row.primary and row.stopped_of is None and all(_question(left, n) == _question(base, n) for n in names):
                looks.setdefault(names, set()).add(row.n)
    return looks


def _question(evaluation: Evaluation, task: str) -> list[tuple[object, ...]]:
    """What is the same in two evaluations of a task, or of the tasks of a group, that differ only in their items."""
    def settings(t: TaskSettings) -> tuple[object, ...]:
        return (t.task, t.version, t.num_fewshot, t.split, t.data, t.chat_template, t.system_instruction, t.primary)

    return [settings(t) for t in evaluation.tasks if task in (t.task, *t.groups)]
