"""Evaluates the model of a trainer while it trains, and its base, into the ledger.

    evaluations = LiveEvaluations(trainer, spec, Path("ledger.db"))
    base = evaluations.start(resumed=None)                answers of the base
    tuned = evaluations.model("out/checkpoint-50")        answers of the model as it is now

They are the evaluations that ``aftertune eval`` makes of the files: the same engine, items and settings, in the dtype
of the weights, without the trainer's autocast. An evaluation that is in the ledger already is not run again.

They leave the model as it was: which parameters are trained and the number of threads are put back. The caller puts the
model in evaluation mode.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import InputError
from aftertune.evaluation import EvaluationRun
from aftertune.harness.evaluated import live_model
from aftertune.ledger import Ledger
from aftertune.sources.adapter_loading import without_adapter
from aftertune.sources.live import LiveBase, is_peft, live_base, live_identity, restores_the_base
from aftertune.study import EvalSpec
from aftertune.tasks import LoadedTask
from aftertune.values import Answer, ModelIdentity


@dataclass(frozen=True, slots=True)
class LiveAnswers:
    """A finished evaluation of the model in memory. answers: of each task, in the order of its items."""

    evaluation: str
    identity: ModelIdentity
    answers: Mapping[str, list[Answer]]


class LiveEvaluations:
    """Evaluations of ``trainer.model``. spec: the settings; its model is the one in memory. ledger: its path, None for
    the default one."""

    def __init__(self, trainer: Any, spec: EvalSpec, ledger: Path | None) -> None:
        self.trainer, self.spec, self.ledger = trainer, spec, ledger
        self.first: EvaluationRun | None = None
        self.base: LiveBase

    @property
    def tasks(self) -> list[LoadedTask]:
        """The tasks, once the base was evaluated."""
        assert self.first is not None
        return self.first.loaded

    def start(self, resumed: ModelIdentity | None) -> LiveAnswers:
        """The answers of the base: of a PEFT model with its adapter disabled, else of the model before the first step.

        resumed: for a training that goes on from a checkpoint, the base of its first run, or None. Raises InputError
        where the base is gone and the ledger has no answers of it.
        """
        model, tokenizer = self.trainer.model, text_tokenizer(self.trainer.processing_class)
        step = self.trainer.state.global_step
        adapter_off = is_peft(model) and restores_the_base(model)
        if step == 0 or adapter_off:
            self.base = live_base(model, tokenizer)
            if is_peft(model) and not adapter_off:
                return self.model(f"{self.trainer.args.output_dir}/checkpoint-0")
            with without_adapter(model) if adapter_off else contextlib.nullcontext():
                return self._answers(self.base.identity)
        if resumed is None:
            raise InputError(f"the training goes on from step {step}, and {self.where} has no record of its first run, "
                             "so the base is not known; give the ledger of the first run, or train from step 0")
        self.base = LiveBase(resumed, copy.deepcopy(tokenizer))
        return self._answers(resumed, stored=True)

    def model(self, name: str) -> LiveAnswers:
        """The answers of the model as it is now. name: the folder of its checkpoint, whether or not it is saved."""
        return self._answers(self.identity(name))

    def identity(self, name: str) -> ModelIdentity:
        """The identity of the model as it is now, without an evaluation."""
        return live_identity(self.trainer.model, self.base, name)

    @property
    def where(self) -> str:
        """The ledger, for messages."""
        return "the ledger" if self.ledger is None else f"the ledger {self.ledger}"

    def _answers(self, identity: ModelIdentity, *, stored: bool = False) -> LiveAnswers:
        """Evaluate the model in memory under ``identity``. stored: only read what the ledger has."""
        import torch

        model, threads = self.trainer.model, torch.get_num_threads()
        spec = self.spec.model_copy(update={"threads": threads})
        with without_autocast(model), Ledger(self.ledger) as ledger:
            run = EvaluationRun(spec, ledger, None, sides=2, live=live_model(spec, model, self.base, identity))
            try:
                if stored:
                    self._require_stored(run.prepare(self.first).id, ledger)
                evaluation = run.run(self.first)
            finally:
                torch.set_num_threads(threads)
            self.first = self.first or run
            return LiveAnswers(evaluation.id, identity, run.answers(evaluation))

    def _require_stored(self, evaluation: str, ledger: Ledger) -> None:
        if not any(e.id == evaluation and e.status == "done" for e in ledger.evaluations()):
            raise InputError(f"the training goes on from step {self.trainer.state.global_step}, and {self.where} has "
                             "no finished evaluation of its base on these tasks and items; watch the tasks of the "
                             "first run, or train from step 0")


def text_tokenizer(processing: Any) -> Any:
    """The tokenizer of a trainer's ``processing_class``, which may be a processor of images and texts.

    Raises InputError if there is none.
    """
    tokenizer = getattr(processing, "tokenizer", processing)
    if not hasattr(tokenizer, "get_vocab"):
        raise InputError("the trainer has no tokenizer, which the watch needs to ask its questions; give it one: "
                         "Trainer(…, processing_class=tokenizer)")
    return tokenizer


@contextlib.contextmanager
def without_autocast(model: Any) -> Iterator[None]:
    """Take away the ``forward`` with autocast that accelerate gave the model."""
    wrapped, original = model.__dict__.get("forward"), getattr(model, "_original_forward", None)
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
