"""What a model card is about: one model, where it came from, and what the ledger knows of it.

    subject = Subject.of(evaluation, results)
    subject.base, subject.tuning         the model it was made from, and how
    subject.evaluations                  this one; for a tuning all that were made of its model

Everything in it is `published`: a path has become a name, and no secret is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aftertune.methods import writes_adapter
from aftertune.provenance import published
from aftertune.report.families import tuning_of
from aftertune.report.results import Results
from aftertune.values import Comparison, Evaluation, ModelIdentity, Score, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """comparisons: of this model against others, none by force, the newest of each pair, those with proven lineage
    first; others: the evaluations that it was compared with."""

    name: str
    tuning: Tuning | None
    evaluations: tuple[Evaluation, ...]
    comparisons: tuple[Comparison, ...]
    others: tuple[Evaluation, ...]

    @classmethod
    def of(cls, about: Evaluation | Tuning, results: Results) -> Subject:
        """Of an evaluation's model, or of what a tuning made. results: all that the ledger holds."""
        done, tunings = [e for e in results.evaluations if e.status == "done"], results.tunings
        if isinstance(about, Tuning):
            tuning: Tuning | None = about
            own = [e for e in done if (made := tuning_of(e, tunings)) is not None and made.id == about.id]
        else:
            tuning, own = tuning_of(about, tunings), [about]
        ids = {e.id for e in own}
        newest = {(c.base, c.tuned): c for c in results.comparisons if c.tuned in ids and not c.forced}
        against = sorted(newest.values(), key=lambda c: not c.lineage)
        others = {c.base for c in against}
        return cls(name=published(about.name), tuning=published(tuning), evaluations=published(tuple(own)),
                   comparisons=published(tuple(against)),
                   others=published(tuple(e for e in done if e.id in others - ids)))

    @property
    def model(self) -> ModelIdentity | None:
        """The model as it was evaluated; None where it was not."""
        return self.evaluations[0].model if self.evaluations else None

    @property
    def adapter(self) -> bool:
        """True for a model that is an adapter on its base."""
        if self.model is not None:
            return self.model.adapter is not None
        return self.tuning is not None and writes_adapter(self.tuning.method)

    @property
    def base(self) -> ModelIdentity | None:
        """The model that it was made from, as far as the ledger knows."""
        if self.tuning is not None:
            return self.tuning.base
        return self.model.stored if self.model is not None and self.adapter else None

    def scores(self) -> list[tuple[Evaluation, Score]]:
        """Scores of all the items that were to be asked; of one that was measured twice that on more items, then the
        newer one."""
        found: dict[tuple[str, str, str], tuple[Evaluation, Score]] = {}
        for evaluation in self.evaluations:
            for score in evaluation.scores:
                key = (score.task, score.metric, score.filter)
                known = found.get(key)
                if evaluation.stopped(score.task) or not math.isfinite(score.value):
                    continue
                if known is None or known[1].n <= score.n:
                    found[key] = (evaluation, score)
        return list(found.values())

    def left_out(self) -> list[str]:
        """Tasks that were stopped early, and so have no score."""
        return list(dict.fromkeys(s.task for e in self.evaluations for s in e.scores if e.stopped(s.task)))
