"""Which evaluations belong together: a base model, and all that was made from it.

    families(results)
        [Family(title="SmolLM2-135M-Instruct.Q4_1", evaluations=(base, careful, careless), pending=())]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aftertune.report.names import source_title
from aftertune.report.results import Results
from aftertune.values import Evaluation, ModelIdentity, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A base model with its evaluations (the base's own first) and the tunings not yet evaluated."""

    root: str
    model: ModelIdentity
    evaluations: tuple[Evaluation, ...]
    pending: tuple[Tuning, ...]

    @property
    def title(self) -> str:
        return source_title(self.model.source)

    @property
    def has_tuned(self) -> bool:
        """True where something in the family was made from its base."""
        return bool(self.pending) or any(e.model.fingerprint != self.root for e in self.evaluations)


def tuning_of(evaluation: Evaluation, tunings: Sequence[Tuning]) -> Tuning | None:
    """The fine-tune that an evaluation's model came from: by id, else by the model's fingerprint."""
    by_id = (t for t in tunings if t.id == evaluation.tuning)
    by_result = (t for t in tunings if evaluation.model.fingerprint in t.results)
    return next(by_id, None) or next(by_result, None)


def families(results: Results) -> list[Family]:
    """Group evaluations by the base model they go back to, in order of first appearance."""
    evaluations, tunings = results.evaluations, results.tunings
    found: dict[str, Family] = {}

    def family(model: ModelIdentity) -> Family:
        return found.setdefault(model.fingerprint, Family(root=model.fingerprint, model=model,
                                                          evaluations=(), pending=()))

    evaluated: set[str] = set()
    for evaluation in evaluations:
        tuning = tuning_of(evaluation, tunings)
        if tuning is not None:
            evaluated.add(tuning.id)
        home = family(_root(evaluation.model, tuning, tunings))
        found[home.root] = replace(home, evaluations=(*home.evaluations, evaluation))
    for tuning in tunings:
        if tuning.id not in evaluated:
            home = family(_root(tuning.base, None, tunings))
            found[home.root] = replace(home, pending=(*home.pending, tuning))
    return [replace(f, evaluations=tuple(sorted(f.evaluations, key=lambda e: e.model.fingerprint != f.root)))
            for f in found.values()]


def _root(model: ModelIdentity, tuning: Tuning | None, tunings: Sequence[Tuning]) -> ModelIdentity:
    """The model at the start of a chain of fine-tunes."""
    seen: set[str] = set()
    while tuning is not None and tuning.id not in seen:
        seen.add(tuning.id)
        model = tuning.base
        tuning = next((t for t in tunings if model.fingerprint in t.results), None)
    return model.base if model.adapter else model
