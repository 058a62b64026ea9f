"""Is a merged model the same as its adapter on the base? Both answer the same items, and so does the base.

    found = check_merge("orders", tasks=[TaskSpec(name="hellaswag", sample=32)], ledger=ledger)
    found.merged.same              True: it differs by 0.4 % of what the tuning moved
    found.merged.discordant        0 items are answered differently

A merge rounds each sum of base and adapter to the dtype that the weights are stored in, so it is never quite the same.
It counts as the same model where its log-likelihoods are, on average, within a tenth of what the tuning moved them from
the base's, or all within 1e-3 nats. The models compute in float32 unless told otherwise: in bfloat16 the rounding of
each pass would hide that of the weights. The evaluations stay in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aftertune.errors import InputError
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.methods import writes_adapter
from aftertune.study import EvalSpec, TaskSpec
from aftertune.tuning import read_tuning
from aftertune.values import Answer, Evaluation, Progress, Tuning

#: Of what the tuning moved, and nats: what a merge may differ by.
SHARE, NATS = 0.1, 1e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one form of a tuned model differs from the adapter on its base. mean, largest: of the absolute differences of
    log-likelihoods, nats; discordant: items whose best choice (or greedy answer) is another; share: mean over what the
    tuning moved."""

    mean: float
    largest: float
    discordant: int
    share: float

    @property
    def same(self) -> bool:
        return self.share <= SHARE or self.largest <= NATS


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """tasks, items, scores: what was asked; moved: mean absolute difference of adapter and base, nats; nf4: the merged
    weights in four bits, where that was asked for."""

    tuning: Tuning
    tasks: tuple[str, ...]
    items: int
    scores: int
    moved: float
    merged: Agreement
    nf4: Agreement | None = None


def check_merge(word: str, *, tasks: Sequence[TaskSpec], ledger: Ledger, nf4: bool = False, dtype: str = "float32",
                device: str = "auto", progress: Progress | None = None) -> MergeCheck:
    """Score base, adapter and merged weights of a tuning (its folder, id or name) on the same items.

    Raises InputError where there is nothing merged, or where the tasks have no log-likelihoods to compare.
    """
    tuning = read_tuning(word, ledger)
    whole = Path(tuning.output) / "merged"
    if not writes_adapter(tuning.method):
        raise InputError(f"{tuning.name}: a {tuning.method} tuning writes whole weights by itself; there is nothing to "
                         "merge")
    if tuning.merged is None or not whole.is_dir():
        raise InputError(f"{tuning.name}: no merged weights in {tuning.output}; give its tune command again with "
                         "--merge (nothing is trained anew)")
    base = tuning.base

    def asked(model: str, **more: object) -> list[Answer]:
        spec = EvalSpec.model_validate({"model": model, "tasks": tuple(tasks), "dtype": dtype, "device": device,
                                        "trust_remote_code": base.trust_remote_code, **more})
        return _answers(evaluate(spec, ledger=ledger, progress=progress), ledger)

    name = f"{tuning.name}-check"
    left = asked(base.source, revision=base.revision, name=f"{name}-base")
    adapted = asked(base.source, revision=base.revision, adapter=tuning.output, name=f"{name}-adapter")
    moved = _difference(adapted, left)[0]
    merged = _likeness(asked(str(whole), name=f"{name}-merged"), adapted, moved)
    four = _likeness(asked(str(whole), quantize="nf4", name=f"{name}-nf4"), adapted, moved) if nf4 else None
    return MergeCheck(tuning, tuple(t.name for t in tasks), len(adapted), len(_scores(adapted)), moved, merged, four)


def _answers(evaluation: Evaluation, ledger: Ledger) -> list[Answer]:
    return ledger.answers(evaluation.id)


def _scores(answers: Sequence[Answer]) -> list[float]:
    """Every log-likelihood, in the order of the items."""
    found = [r.logprob for a in answers for r in a.responses if r.logprob is not None]
    if not found:
        raise InputError("check-merge needs a task that is scored by log-likelihoods, for example --tasks hellaswag; "
                         "texts alone do not tell rounding from another model")
    return found


def _difference(one: Sequence[Answer], other: Sequence[Answer]) -> tuple[float, float]:
    """Mean and largest absolute difference of log-likelihoods, nats."""
    gaps = [abs(a - b) for a, b in zip(_scores(one), _scores(other), strict=True)]
    return sum(gaps) / len(gaps), max(gaps)


def _likeness(one: Sequence[Answer], adapted: Sequence[Answer], moved: float) -> Agreement:
    mean, largest = _difference(one, adapted)
    discordant = sum(_choice(a) != _choice(b) for a, b in zip(one, adapted, strict=True))
    return Agreement(mean, largest, discordant, mean / moved if moved else (0.0 if mean == 0 else float("inf")))


def _choice(answer: Answer) -> object:
    """The best choice of an item; where there is but one, whether it is the greedy one; a text as it is."""
    scored = [r.logprob for r in answer.responses if r.logprob is not None]
    if len(scored) > 1:
        return max(range(len(scored)), key=scored.__getitem__)
    return [(r.greedy, r.text) for r in answer.responses]
