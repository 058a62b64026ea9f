"""Evaluates the model of a trainer while it trains, and its base, into the ledger.

    evaluations = LiveEvaluations(trainer, spec, Path("ledger.db"))
    base = evaluations.start(resumed=None)                answers of the base
    tuned = evaluations.model("out/checkpoint-50")        answers of the model as it is now

They are the evaluations that ``aftertune eval`` makes of the files: the same engine, items and settings, in the dtype
of the weights, without the trainer's autocast. An evaluation that is in the ledger already is not run again.

They leave the model as it was: which parameters are trained and the number of threads are put back. The caller puts the
model in evaluation mode.

    evaluate_model(model, tokenizer, spec, ledger)        of any model in memory, as it is now
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aftertune.errors import InputError
from aftertune.evaluation import EvaluationRun
from aftertune.harness.evaluated import live_model
from aftertune.ledger import Ledger, StoredAt
from aftertune.sources.adapter_loading import without_adapter
from aftertune.sources.live import (
    LiveBase,
    adapters_off,
    cast_buffers,
    foreign_hooks,
    is_peft,
    live_base,
    live_identity,
    restores_the_base,
)
from aftertune.study import EvalSpec
from aftertune.tasks import LoadedTask
from aftertune.values import Answer, Evaluation, ModelIdentity, Progress, digest


@dataclass(frozen=True, slots=True)
class LiveAnswers:
    """A finished evaluation of the model in memory. answers: of each task, in the order of its items."""

    evaluation: str
    identity: ModelIdentity
    answers: Mapping[str, list[Answer]]


class LiveEvaluations:
    """Evaluations of ``trainer.model``. spec: the settings; its model is the one in memory. ledger: its place, None for
    the default one."""

    def __init__(self, trainer: Any, spec: EvalSpec, ledger: StoredAt | None) -> None:
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


#: Settings of an evaluation that make sense for a model in memory, beside its tasks and its name.
SETTINGS = ("apply_chat_template", "template_date", "system_instruction", "fewshot_as_multiturn", "enable_thinking",
            "think_end_token", "gen_kwargs", "engine", "include_path", "allow_task_code", "memory", "task_source")
#: How the source of a model or adapter that no folder holds begins.
MEMORY = "memory:"


def evaluate_model(model: Any, tokenizer: Any, spec: EvalSpec, ledger: Ledger, progress: Progress | None = None
                   ) -> Evaluation:
    """Evaluate a model of transformers or PEFT in memory, as it is now. spec: the settings; its model is not read.

    The model is left as it was: training mode, parameters, dtype, device, hooks and random numbers. Raises InputError
    for a model whose fingerprint would not be honest.
    """
    import torch

    from aftertune.tuning.callbacks import evaluation_mode

    check_whole(model)
    threads = torch.get_num_threads()
    with evaluation_mode(model), without_autocast(model):
        base = live_base(model, text_tokenizer(tokenizer))
        identity, note = identify_in_memory(model, base)
        base.tokenizer.notes = (*getattr(base.tokenizer, "notes", ()), note)
        spec = spec.model_copy(update={"threads": spec.threads or threads})
        try:
            return EvaluationRun(spec, ledger, progress, live=live_model(spec, model, base, identity)).run()
        finally:
            torch.set_num_threads(threads)


def identify_in_memory(model: Any, base: LiveBase) -> tuple[ModelIdentity, str]:
    """The identity of a model in memory, and a note that says what it is made from."""
    identity, note = base.identity, "the model was in memory; its tensors are those of its files"
    if base.source is None:
        identity = replace(identity, source=f"{MEMORY}{type(_inner(model)).__name__}")
        note = "the model was in memory, and no folder holds it: it is identified by its tensors"
    if is_peft(model) and not adapters_off(model):
        name = MEMORY + "+".join(model.active_adapters)
        identity = live_identity(model, replace(base, identity=identity), name, several=True)
        note = ("the model was in memory: its adapter is identified by its tensors, "
                + ("and its base too" if base.source is None else "its base by its files"))
    hooks = foreign_hooks(model)
    if hooks:
        identity = replace(identity, weights=digest([identity.weights, {"hooks": hooks}]))
        note += f"; {len(hooks)} hooks can change what it computes ({', '.join(hooks[:3])})"
    if cast := cast_buffers(model):
        identity = replace(identity, weights=digest([identity.weights, {"cast": cast}]))
        note += f"; {len(cast)} buffers have another dtype than in a loaded model ({', '.join(list(cast)[:3])})"
    return identity, note


def _inner(model: Any) -> Any:
    return model.get_base_model() if is_peft(model) else model


def check_whole(model: Any) -> None:
    """Raise InputError for what is no causal language model, a model that is not whole on one device, or one that has
    adapters that PEFT does not show."""
    if not all(hasattr(model, name) for name in ("config", "state_dict", "device")):
        raise InputError(f"the model is a {type(model).__name__}; allowed are an id, a folder, and a model of "
                         "transformers or PEFT")
    if not hasattr(model, "generation_config") or getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"the model is a {type(_inner(model)).__name__}, which is no causal language model; load it "
                         "with AutoModelForCausalLM")
    places = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(places) > 1 or "meta" in str(model.device):
        raise InputError("the model is split between devices, or has no weights yet; load it on one device, or "
                         "give its id or folder")
    if not is_peft(model) and getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("the model has adapters that were added with add_adapter or load_adapter, which its weights "
                         "do not show; load them with peft.PeftModel.from_pretrained(model, FOLDER), and give that")


def text_tokenizer(processing: Any) -> Any:
    """The tokenizer in a trainer's ``processing_class``, or as given, which may be a processor of images and texts.

    Raises InputError if there is none.
    """
    tokenizer = getattr(processing, "tokenizer", processing)
    if not hasattr(tokenizer, "get_vocab"):
        raise InputError(f"there is no tokenizer to ask the questions with, found {type(processing).__name__}; "
                         "give one: Trainer(…, processing_class=tokenizer), or evaluate(model, …, tokenizer=tokenizer)")
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
