"""Checks that merged weights give the same results as the adapter on its base.

    check = check_merge("orders", tasks=[TaskSpec(name="hellaswag", sample=32)], ledger=ledger)
    check.merged.same              True: the difference is 0.4 % of the change by the fine-tune
    check.merged.discordant        0 items are answered differently

Base, adapter and merged weights answer the same items. A merge rounds each weight to the dtype of the file, so the
results are never exactly equal. Merged weights count as the same model if their log-likelihoods differ from those of
the adapter by at most a tenth of the change by the fine-tune, on average, or by at most 1e-3 nats on every item. The
default dtype is float32, because in bfloat16 the rounding in the forward pass would hide that of the weights. The
evaluations are stored in the ledger.

This check sees what changes the results by more than that. One layer of many that was not merged may change them by
less: `aftertune.deploy.merged_weights` compares the weights themselves.
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
from aftertune.values import Answer, Progress, Tuning

#: The largest difference of a merge: as a share of the change by the fine-tune, or in nats.
SHARE, NATS = 0.1, 1e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """How merged weights differ from the adapter on its base.

    mean, largest: of the absolute differences of log-likelihoods, in nats. discordant: items with another best choice
    (or greedy answer). share: mean, as a share of the mean change by the fine-tune.
    """

    mean: float
    largest: float
    discordant: int
    share: float

    @property
    def same(self) -> bool:
        """True where the merged weights count as the same model."""
        return self.share <= SHARE or self.largest <= NATS


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """The result of a check.

    items, scores: number of items and of log-likelihoods. moved: mean absolute difference of adapter and base, in nats.
    merged: of the merged weights. nf4: of the merged weights in four bits, if requested.
    """

    tuning: Tuning
    tasks: tuple[str, ...]
    items: int
    scores: int
    moved: float
    merged: Agreement
    nf4: Agreement | None = None


def check_merge(word: str, *, tasks: Sequence[TaskSpec], ledger: Ledger, nf4: bool = False, dtype: str = "float32",
                device: str = "auto", progress: Progress | None = None) -> MergeCheck:
    """Evaluate base, adapter and merged weights of a fine-tune on the same items. word: its folder, id or name.

    Raises InputError if there are no merged weights, or if the tasks have no log-likelihoods to compare.
    """
    tuning, merged_folder = merged_tuning(word, ledger)
    base = tuning.base

    def answers(model: str, **settings: object) -> list[Answer]:
        spec = EvalSpec.model_validate({"model": model, "tasks": tuple(tasks), "dtype": dtype, "device": device,
                                        "trust_remote_code": base.trust_remote_code, **settings})
        return ledger.answers(evaluate(spec, ledger=ledger, progress=progress).id)

    name = f"{tuning.name}-check"
    of_base = answers(base.source, revision=base.revision, name=f"{name}-base")
    of_adapter = answers(base.source, revision=base.revision, adapter=tuning.output, name=f"{name}-adapter")
    moved = _difference(of_adapter, of_base)[0]
    merged = _agreement(answers(str(merged_folder), name=f"{name}-merged"), of_adapter, moved)
    quantized = _agreement(answers(str(merged_folder), quantize="nf4", name=f"{name}-nf4"), of_adapter,
                           moved) if nf4 else None
    return MergeCheck(tuning, tuple(t.name for t in tasks), len(of_adapter), len(_scores(of_adapter)), moved, merged,
                      quantized)


def merged_tuning(word: str, ledger: Ledger) -> tuple[Tuning, Path]:
    """A tuning, and the folder of its merged weights. Raises InputError if there are none."""
    tuning = read_tuning(word, ledger)
    folder = Path(tuning.output) / "merged"
    if not writes_adapter(tuning.method):
        raise InputError(f"{tuning.name}: a {tuning.method} tuning writes whole weights, so there is no merge to check")
    if tuning.merged is None or not folder.is_dir():
        raise InputError(f"{tuning.name}: no merged weights in {tuning.output}; run its tune command again with "
                         "--merge (nothing is trained again)")
    return tuning, folder


def _scores(answers: Sequence[Answer]) -> list[float]:
    """Every log-likelihood, in the order of the items."""
    scores = [r.logprob for a in answers for r in a.responses if r.logprob is not None]
    if not scores:
        raise InputError("check-merge needs a task that is scored by log-likelihoods, for example --tasks hellaswag; "
                         "generated texts alone cannot distinguish rounding from another model")
    return scores


def _difference(left: Sequence[Answer], right: Sequence[Answer]) -> tuple[float, float]:
    """Mean and largest absolute difference of log-likelihoods, in nats."""
    gaps = [abs(a - b) for a, b in zip(_scores(left), _scores(right), strict=True)]
    return sum(gaps) / len(gaps), max(gaps)


def _agreement(merged: Sequence[Answer], adapter: Sequence[Answer], moved: float) -> Agreement:
    mean, largest = _difference(merged, adapter)
    discordant = sum(_choice(a) != _choice(b) for a, b in zip(merged, adapter, strict=True))
    return Agreement(mean, largest, discordant, mean / moved if moved else (0.0 if mean == 0 else float("inf")))


def _choice(answer: Answer) -> object:
    """The index of the best choice of an item. For one choice, whether it is the greedy one; for a text, the text."""
    scored = [r.logprob for r in answer.responses if r.logprob is not None]
    if len(scored) > 1:
        return max(range(len(scored)), key=scored.__getitem__)
    return [(r.greedy, r.text) for r in answer.responses]
