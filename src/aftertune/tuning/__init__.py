"""Fine-tunes a model: data, chat template, loss mask, method, training loop and output folder.

    tuning = tune(TuneSpec(model="…/SmolLM2", data=DataSpec(file="orders.jsonl"), out="out/careful"))
    tuning.held_out                  HeldOut(n=71, before=1.9, after=0.1, low=-1.9, high=-1.7)
    tuning.output                    out/careful: adapter_model.safetensors, tokenizer, aftertune.json

The id of a tuning is a hash of what decides its result: base, data, recipe and seed. A tuning that is done, and whose
folder still holds its result, is not run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError, StorageError
from aftertune.methods import METHODS, unused_settings, writes_adapter
from aftertune.paths import expanded
from aftertune.sources.folder_lock import LOCK, folder_lock
from aftertune.tuning.checkpoints import Checkpoints
from aftertune.tuning.estimate import CostEstimate, estimate_tuning
from aftertune.tuning.previews import STORED_ROWS, Preview, preview, preview_rows, write_examples
from aftertune.values import CheckpointChoice, HeldOut, ModelIdentity, Progress, Question, Tuning, WatchPoint, digest

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.sources import ModelSource
    from aftertune.study import TuneSpec
    from aftertune.tuning.base_answers import BaseAnswers
    from aftertune.tuning.callbacks import Look, TrainingPlan
    from aftertune.tuning.kept import KeepPlan, KeptCheckpoints
    from aftertune.tuning.split import Corpus

#: The folder of the checkpoints, in the output folder.
CHECKPOINTS = "checkpoints"

__all__ = ["CostEstimate", "Preview", "estimate_tuning", "preview", "read_tuning", "tune"]


@dataclass(frozen=True, slots=True)
class _Job:
    """A tuning before it runs: everything is resolved, no weights are loaded."""

    spec: TuneSpec
    source: ModelSource
    tokenizer: Any
    corpus: Corpus
    plan: TrainingPlan
    tuning: Tuning


def tune(spec: TuneSpec, *, ledger: Ledger | None = None, progress: Progress | None = None,
         questions: Iterable[Question] = (), look: Look | None = None) -> Tuning:
    """Fine-tune as ``spec`` says; returns the finished tuning, with its output folder in ``output``.

    ledger: stores the tuning and the loss of each step. progress: is called at each stage and after each step.
    questions: evaluation items to search for in the training data. look: evaluates the tasks of ``spec.watch``
    (`ForgettingWatch`).

    Raises InputError (data, recipe, template), SourceError (model), ResourceError (device, memory), StorageError
    (output, ledger) or AftertuneError (the loss is not a finite number).
    """
    from aftertune.tuning import output
    from aftertune.tuning.rollback import finish_rollback

    progress = progress or (lambda *_: None)
    job = _prepare(spec, questions, look, _base_answers(spec, ledger, progress))
    folder = Path(job.tuning.output)
    tuning = _finished(job)
    if tuning is not None:
        _tidy(folder, tuning)
    else:
        output.make(folder)
        with folder_lock(folder, "trains"):
            finish_rollback(folder)
            tuning = _finished(job) or _trained(job, ledger, progress, look)
    return _merged(job, tuning, ledger, progress)


def _finished(job: _Job) -> Tuning | None:
    """The finished tuning that the output folder holds, or None."""
    from aftertune.tuning import output

    folder = Path(job.tuning.output)
    done = output.finished(folder, job.tuning.id, job.source, job.tuning.base)
    if done is None:
        return None
    overlap = job.tuning.overlap or done.overlap
    if overlap != done.overlap:
        output.write_manifest(folder, done := replace(done, overlap=overlap))
    return replace(done, name=job.tuning.name, output=job.tuning.output)


def _tidy(folder: Path, tuning: Tuning) -> None:
    """Remove the checkpoints and the lock that a process has left that was killed when its tuning was finished."""
    from aftertune.tuning.kept import remove_checkpoints

    if any((folder / name).exists() for name in (CHECKPOINTS, LOCK)):
        with contextlib.suppress(StorageError), folder_lock(folder, "trains"):  # its process may be at its end
            Checkpoints(folder / CHECKPOINTS, tuning.id).remove()
            if not tuning.checkpoints:
                remove_checkpoints(folder)


def _trained(job: _Job, ledger: Ledger | None, progress: Progress, look: Look | None) -> Tuning:
    """Fine-tune into a folder that no other process uses; the finished tuning is in its manifest and in the ledger.
    Nothing of the model is left in memory."""
    from aftertune.engine.memory import release_memory
    from aftertune.sources.library_errors import training_errors
    from aftertune.tuning import output
    from aftertune.tuning.kept import remove_checkpoints
    from aftertune.tuning.trainer import quiet_libraries

    folder = Path(job.tuning.output)
    checkpoints = Checkpoints(folder / CHECKPOINTS, job.tuning.id)
    checkpoints.check(job.plan.device)
    output.prepare(folder)
    remove_checkpoints(folder, except_of=job.tuning.id)
    if ledger:
        ledger.save_tuning(job.tuning)
    try:
        with quiet_libraries(), training_errors(f"{job.spec.method} of {job.source.named}"):
            tuning = _run(job, checkpoints, ledger, progress, look)
    except BaseException:
        if ledger:
            ledger.save_tuning(replace(job.tuning, status="failed"))
        raise
    release_memory()
    output.write_manifest(folder, tuning)
    checkpoints.remove()
    if not tuning.checkpoints:
        remove_checkpoints(folder)
    if ledger:  # before the merge, so that a failed merge does not lose the training
        ledger.save_tuning(tuning)
    return tuning


def read_tuning(word: str, ledger: Ledger) -> Tuning:
    """A finished tuning by its folder, or by its id or name in the ledger.

    Raises InputError if there is none, or if its folder no longer holds it.
    """
    from aftertune.tuning import output

    folder = output.folder_of(word, ledger)
    tuning = output.read_manifest(folder)
    if tuning is None or tuning.status != "done":
        raise InputError(f"{word}: no finished tuning in {folder}; tune again, or name another folder")
    return replace(tuning, output=str(folder))


def _merged(job: _Job, tuning: Tuning, ledger: Ledger | None, progress: Progress) -> Tuning:
    """Merge the adapter of a finished tuning if the spec asks for it, and store the tuning in the ledger."""
    from aftertune.tuning import output

    if job.spec.merge:
        progress(0, 0, "merging the adapter into the base")
        merged = output.with_merged(tuning, job.source)
        if merged != tuning:  # else what is there stays as it was written
            output.write_manifest(Path(tuning.output), merged)
        tuning = merged
    return ledger.save_tuning(tuning) if ledger else tuning


# --- Before training: resolve everything, compute the id ---


def _base_answers(spec: TuneSpec, ledger: Ledger | None, progress: Progress) -> BaseAnswers | None:
    """What writes the base's own answers, if they are replayed. They are stored beside the ledger."""
    from aftertune.tuning.base_answers import BaseAnswers

    if spec.replay is None or spec.replay.base is None:
        return None
    return BaseAnswers(spec, answers_folder(ledger), progress)


def answers_folder(ledger: Ledger | None) -> Path:
    """The folder of the answers that bases wrote for replay: beside the ledger."""
    return (Path(".aftertune") if ledger is None else ledger.database.folder) / "replay"


def _prepare(spec: TuneSpec, questions: Iterable[Question], look: Look | None,
             answers: BaseAnswers | None = None) -> _Job:
    """Resolve source, data, device and recipe; read no weights into memory, except for the answers of the base that are
    replayed and not stored yet.

    A tuning that the first version began goes on by that version's rules for repeats and the split.
    """
    from aftertune.tuning.split import Corpus, Rules

    questions = list(questions)
    corpus = Corpus.load(spec.data, spec.seed, spec.replay, None, answers)
    job = _resolve(spec, corpus, questions, look)
    if corpus.changed and not _begun(job):
        with contextlib.suppress(InputError):
            first = Corpus.load(spec.data, spec.seed, spec.replay, Rules(first=True), answers)
            before = _resolve(spec, first, questions, look)
            if _begun(before):
                note = ("continues by the rules for repeats and the split with which it was started; give another "
                        "--out to start again")
                return replace(before, tuning=replace(before.tuning, notes=(*before.tuning.notes, note)))
    return job


def _begun(job: _Job) -> bool:
    """Whether the output folder holds the tuning, or a checkpoint of it."""
    from aftertune.tuning import output

    folder = Path(job.tuning.output)
    stored = output.read_manifest(folder)
    return (stored is not None and stored.id == job.tuning.id) or Checkpoints(
        folder / CHECKPOINTS, job.tuning.id).begun()


def _resolve(spec: TuneSpec, corpus: Corpus, questions: Sequence[Question], look: Look | None) -> _Job:
    """The tuning of a corpus, with its id and output folder."""
    from aftertune.engine.devices import choose_device, choose_dtype, set_threads
    from aftertune.provenance import capture
    from aftertune.sources import fingerprint_model, load_tokenizer, require_nf4, resolve_model
    from aftertune.study.anchor import AnchorSetting
    from aftertune.tasks.chat_template import date_note
    from aftertune.tuning.build import fitting_length
    from aftertune.tuning.callbacks import TrainingPlan
    from aftertune.tuning.contamination import find_overlap
    from aftertune.tuning.unsloth import choose_backend

    source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    device = choose_device(spec.device)
    method = METHODS[spec.method]
    if method.base == "nf4":
        require_nf4(device)
    _check_base(source, spec)
    length, length_note = fitting_length(source, spec.max_length, explicit="max_length" in spec.model_fields_set)
    spec = spec.model_copy(update={"max_length": length})
    plan = TrainingPlan(
        device=device, dtype=choose_dtype(spec.dtype, device), seed=spec.seed, epochs=spec.epochs,
        max_steps=spec.max_steps, learning_rate=spec.learning_rate or method.learning_rate,
        batch_size=spec.batch_size, accumulation=spec.accumulation, warmup=spec.warmup,
        weight_decay=spec.weight_decay, schedule=spec.schedule, checkpointing=spec.gradient_checkpointing,
        early_stop=(spec.early_stop.every, spec.early_stop.patience) if corpus.validation else None,
        save_seconds=60 * spec.checkpoint_minutes, watch=spec.watch if look is not None else None,
        keep=_keep_plan(spec, corpus, look), backend=choose_backend(spec, source, device),
        anchor=AnchorSetting.active(spec.anchor))
    identity = fingerprint_model(source)
    tokenizer = load_tokenizer(source)
    dated = date_note(tokenizer, spec.template_date) if spec.template == "chat" else None
    unused = filter(None, [unused_settings(spec.method, spec.lora.model_fields_set), dated, length_note])
    settings = (_settings(spec, plan, corpus) | _date_setting(spec, tokenizer) | _target_setting(spec, source)
                | _watch_settings(spec, plan, look))
    tuning_id = identify_tuning(identity, corpus.fingerprint, settings, spec.seed)
    out = expanded(spec.out or Path(".aftertune") / "tunings" / tuning_id)
    threads = set_threads(spec.threads or Checkpoints(out / CHECKPOINTS, tuning_id).threads())
    settings = {**settings, "threads": threads, "device": device}
    return _Job(spec, source, tokenizer, corpus, plan, Tuning(
        id=tuning_id, name=spec.name or tuning_id, base=identity, method=spec.method, data=corpus.fingerprint,
        data_source=str(spec.data.file), examples=len(corpus.training), seed=spec.seed, settings=settings,
        output=str(out), counts=corpus.counts, notes=(*corpus.notes, *method.notes, *unused),
        overlap=find_overlap((*corpus.training, *corpus.replay), questions), provenance=capture()))


def _check_base(source: ModelSource, spec: TuneSpec) -> None:
    """Raise InputError for whole weights of a base that is stored quantised, and for --save-dtype with an adapter."""
    from aftertune.sources.resolve import read_json

    if writes_adapter(spec.method):
        if spec.save_dtype != "auto":
            raise InputError(f"--save-dtype {spec.save_dtype} is for whole weights (--method full), but {spec.method} "
                             "writes an adapter in float32; leave it out")
    elif source.gguf_file is None and read_json(source.path / "config.json").get("quantization_config"):
        raise InputError(f"{source.named} is stored quantised, and rounded weights cannot be trained; use its 16-bit "
                         "base, or an adapter (--method lora)")


def identify_tuning(base: ModelIdentity, data: str, recipe: Mapping[str, Any], seed: int) -> str:
    """The id of a tuning: "t-" and ten hex digits of a hash of base, data, recipe and seed."""
    return "t-" + digest([base.fingerprint, base.tokenizer, data, recipe, seed])[:10]


def _settings(spec: TuneSpec, plan: TrainingPlan, corpus: Corpus) -> dict[str, Any]:
    """Every resolved setting that decides the result. Data is described by its content, not by its path."""
    recipe = spec.model_dump(mode="json", include={
        "method", "epochs", "max_steps", "batch_size", "accumulation", "warmup", "weight_decay", "max_length",
        "template", "learn", "schedule", "gradient_checkpointing"})
    if METHODS[spec.method].adapter:
        recipe["lora"] = spec.lora.model_dump(mode="json")
    if spec.save_dtype != "auto":
        recipe["save_dtype"] = spec.save_dtype
    if plan.anchor is not None:
        recipe["anchor"] = str(plan.anchor)
    return {**recipe, "learning_rate": plan.learning_rate, "dtype": plan.dtype, "loop": METHODS[spec.method].loop,
            "optimizer": "adamw", "max_grad_norm": plan.max_grad_norm, **_backend_settings(plan),
            **_data_settings(spec, corpus)}


def _keep_plan(spec: TuneSpec, corpus: Corpus, look: Look | None) -> KeepPlan | None:
    """Which checkpoints are kept; None for none. Raises InputError where nothing measures them."""
    from aftertune.study.keep_best import KeepBest
    from aftertune.tuning.kept import KeepPlan

    if spec.keep_checkpoints is None and spec.keep_best is None:
        return None
    names = spec.watch.names if spec.watch else []
    if names and look is None:
        raise InputError("keep_checkpoints and keep_best need the watch, which measures the checkpoints: call "
                         "tune(spec, look=ForgettingWatch(spec)), from aftertune.forgetting_watch")
    if not names and not corpus.validation:
        raise InputError("there are no validation examples, so nothing measures the checkpoints; raise --validation, "
                         "or watch tasks (--watch TASK=N)")
    rule = None if spec.keep_best is None else KeepBest.parse(spec.keep_best, tasks=names,
                                                              validated=bool(corpus.validation))
    count = None if spec.keep_checkpoints == "all" else spec.keep_checkpoints or 0
    return KeepPlan(count, rule)


def _watch_settings(spec: TuneSpec, plan: TrainingPlan, look: Look | None) -> dict[str, Any]:
    """What is watched, where the weights that are handed on, or those that are kept, depend on it; empty where they do
    not, so that such ids stay valid. Items are described by their content."""
    settings: dict[str, Any] = {}
    if spec.watch and (spec.watch.stop or (plan.keep and look is not None)):
        settings["watch"] = spec.watch.model_dump(exclude={"target"})
    if "watch" in settings and look is not None and (plan.keep or (spec.watch and spec.watch.target)):
        settings["watched"] = look.settings()
    if plan.keep:
        settings["keep_checkpoints"] = spec.keep_checkpoints
    if plan.keep and plan.keep.rule:
        settings["keep_best"] = str(plan.keep.rule)
    return settings


def _backend_settings(plan: TrainingPlan) -> dict[str, str]:
    """The backend and its version; empty for PEFT, the default, so that ids from before backends stay valid."""
    from aftertune.tuning.unsloth import version

    return {} if plan.backend == "peft" else {"backend": plan.backend, "backend_version": version()}


def _date_setting(spec: TuneSpec, tokenizer: Any) -> dict[str, str]:
    """The date in the training text; empty where the template writes none, so that such ids stay valid."""
    from aftertune.tuning.tokenize import EncodeOptions

    day = EncodeOptions.of(spec, tokenizer).day
    return {"template_date": day} if day else {}


def _target_setting(spec: TuneSpec, source: ModelSource) -> dict[str, int]:
    """The version of the default layers of an adapter; empty where there was only one, so that such ids stay valid."""
    from aftertune.sources.resolve import read_json
    from aftertune.tuning.targets import default_version

    if spec.lora.target_modules or not METHODS[spec.method].adapter or source.gguf_file is not None:
        return {}
    return default_version(read_json(source.path / "config.json"))


def _data_settings(spec: TuneSpec, corpus: Corpus) -> dict[str, Any]:
    """Fingerprints and sizes of the held-out, validation and replayed examples, with the settings that use them."""
    settings = {"held_out": corpus.held_out_fingerprint, "held_out_examples": len(corpus.held_out)}
    if corpus.validation:
        settings |= {"validation": corpus.validation_fingerprint, "validation_examples": len(corpus.validation),
                     "early_stop": spec.early_stop.model_dump()}
    if spec.replay:
        share = spec.replay.share or round(len(corpus.replay) / (len(corpus.replay) + len(corpus.training)), 4)
        settings |= {"replay": corpus.replay_fingerprint, "replay_examples": len(corpus.replay), "replay_share": share}
    if corpus.replay_settings:
        settings["replay_base"] = dict(corpus.replay_settings)
    return settings


# --- The run: load, measure, train, measure, save ---


def _run(job: _Job, checkpoints: Checkpoints, ledger: Ledger | None, progress: Progress, look: Look | None) -> Tuning:
    """Load the model, measure, train, measure again and save; returns the finished tuning."""
    from aftertune.ledger.running import step_mark
    from aftertune.provenance import finish
    from aftertune.tuning.anchor import make_anchor
    from aftertune.tuning.batching import choose_layout
    from aftertune.tuning.build import count_trainable
    from aftertune.tuning.callbacks import Hooks
    from aftertune.tuning.early_warning import EarlyWarning
    from aftertune.tuning.estimate import Meter, estimate_run
    from aftertune.tuning.held_out import Batching, example_losses
    from aftertune.tuning.tokenize import EncodedCorpus, EncodeOptions
    from aftertune.tuning.trainer import TrainingData, train

    spec, plan, tuning = job.spec, job.plan, job.tuning
    tokenizer = job.tokenizer
    progress(0, 0, "encoding the examples")
    rows = EncodedCorpus.from_corpus(job.corpus, tokenizer, EncodeOptions.of(spec, tokenizer), spec.seed)
    with contextlib.suppress(OSError):  # they are for a reader only
        write_examples(Path(tuning.output), preview_rows(job.corpus, rows, tokenizer, STORED_ROWS))
    progress(0, 0, "loading the model")
    meter = Meter(plan.device)
    model = _load_trainable(job, tokenizer, rows.longest)
    layout = choose_layout(model, [*rows.training, *rows.held_out], pad=tokenizer.pad_token_id, dtype=plan.dtype)
    batching = Batching(pad=tokenizer.pad_token_id, dtype=plan.dtype, layout=layout)
    progress(0, 0, f"held-out loss before training, {len(rows.held_out)} examples")
    writing = _Writing(job, lambda: example_losses(model, rows.held_out, batching))

    def on_step(step: int, total: int, metrics: Mapping[str, float]) -> None:
        meter.step()
        if ledger:
            ledger.save_step(tuning.id, step, {**metrics, **step_mark(total)})
        progress(step, total, f"training: step {step:,} of {total:,}, {step_text(metrics)}")

    def on_look(points: Sequence[WatchPoint]) -> None:
        if ledger:
            ledger.save_tuning(replace(tuning, watch=tuple(points)))

    def validate(model: Any) -> float:
        return fmean(example_losses(model, rows.validation, batching))

    estimate = estimate_run(job.source, spec, rows, (plan.device, plan.dtype))
    meter.begin()
    kept = writing.checkpoints(progress)
    early = None if plan.backend == "unsloth" else EarlyWarning(spec, learning_rate=plan.learning_rate,
                                                                tokenizer=tokenizer)
    anchor = make_anchor(plan.anchor, model, spec.method, rows.training)
    trained = train(model, tokenizer, TrainingData(rows.training, layout, anchor), plan, checkpoints,
                    Hooks(on_step, validate, look, kept, early, on_look=on_look))
    steps, cost = trained.steps, meter.cost(estimate, len(trained.steps))
    progress(0, 0, f"held-out loss after training, {len(rows.held_out)} examples")
    result, held_out = writing.hand_on(model, kept, trained.choice)
    return replace(
        tuning, status="done", result=result, held_out=held_out, trainable_parameters=count_trainable(model), cost=cost,
        watch=trained.points, steps=steps, choice=trained.choice, final_step=trained.step,
        checkpoints=kept.checkpoints() if kept and spec.keep_checkpoints else (),
        counts={**tuning.counts, **rows.counts},
        notes=(*tuning.notes, *tokenizer.notes, *rows.notes, layout.note, *trained.notes, *writing.notes(model)),
        provenance=finish(tuning.provenance) if tuning.provenance else None)


def step_text(metrics: Mapping[str, float]) -> str:
    """The metrics of a step in words: the loss, the anchor's term beside it, the learning rate, and the speed."""
    anchor = f", anchor {metrics['anchor']:.4f}" if "anchor" in metrics else ""
    if "anchor_kl" in metrics:
        anchor += f" (KL {metrics['anchor_kl']:.3f} nats per token)"
    if "anchor_distance" in metrics:
        anchor += f" (weights {metrics['anchor_distance']:.3g} from the base)"
    rate = f", learning rate {metrics['learning_rate']:.2g}" if "learning_rate" in metrics else ""
    return f"loss {metrics['loss']:.3f}{anchor}{rate}, {metrics['tokens_per_second']:,.0f} tokens/s"


class _Writing:
    """Writes the tuned weights of a job and measures their held-out loss: at the end, and at each kept checkpoint.

    losses: measures the held-out examples with the model in its present state, at first before the training.
    """

    def __init__(self, job: _Job, losses: Callable[[], list[float]]) -> None:
        from aftertune.tuning import output

        self.job, self.losses, self.before = job, losses, losses()
        #: dtype of whole weights in the file; None for an adapter.
        self.dtype = None if writes_adapter(job.spec.method) else output.whole_dtype(job.source, job.spec.save_dtype)

    def checkpoints(self, progress: Progress) -> KeptCheckpoints | None:
        """What keeps the checkpoints; None if none are kept."""
        from aftertune.tuning.estimate import DTYPE_BYTES
        from aftertune.tuning.kept import CheckpointWriter, KeptCheckpoints, Origin

        job = self.job
        if job.plan.keep is None:
            return None
        stored = DTYPE_BYTES[self.dtype] if self.dtype else 4 if METHODS[job.spec.method].save is None else 8
        return KeptCheckpoints(
            Path(job.tuning.output), Origin(job.tuning.id, job.spec.method, job.tuning.base), job.plan.keep,
            CheckpointWriter(self._checkpoint, stored, lambda text: progress(0, 0, text)))

    def _checkpoint(self, model: Any, folder: Path) -> HeldOut:
        """Write the weights of a model in training, and measure what is written."""
        from aftertune.tuning import output
        from aftertune.tuning.held_out import compare_losses

        self._save(model, folder)
        with output.rounded_weights(model, self.dtype) if self.dtype else contextlib.nullcontext():
            return compare_losses(self.before, self.losses())

    def hand_on(self, model: Any, kept: KeptCheckpoints | None, choice: CheckpointChoice | None
                ) -> tuple[str, HeldOut | None]:
        """Write the final weights: those of the model, or of the checkpoint that a rule chose. Returns the fingerprint
        of the result and its held-out loss."""
        from aftertune.tuning import output
        from aftertune.tuning.held_out import compare_losses
        from aftertune.tuning.kept import hand_on

        job, folder = self.job, Path(self.job.tuning.output)
        if kept is not None and choice is not None:
            checkpoint = kept.find(choice.step)
            hand_on(folder, checkpoint)
            return output.identify(folder, job.spec.method, job.source, job.tuning.base), checkpoint.held_out
        if self.dtype is not None:
            output.round_weights(model, self.dtype)
        after = self.losses()
        self._save(model, folder)
        return (output.identify(folder, job.spec.method, job.source, job.tuning.base),
                compare_losses(self.before, after))

    def _save(self, model: Any, folder: Path) -> None:
        from aftertune.tuning import output

        if self.dtype is None:
            output.save(model, self.job.spec.method, self.job.tokenizer, folder, self.job.tuning.base)
        else:
            output.save_whole(model, self.job.tokenizer, folder, self.job.source, self.dtype)

    def notes(self, model: Any) -> list[str]:
        """Notes on the weights that were written."""
        from aftertune.tuning.targets import target_notes

        return [f"whole weights are written in {self.dtype}"] if self.dtype else list(target_notes(model))


def _load_trainable(job: _Job, tokenizer: Any, longest: int) -> Any:
    """Load the model and make it trainable by the method. longest: tokens of the longest row."""
    from aftertune.sources import load_model
    from aftertune.tuning import unsloth
    from aftertune.tuning.build import attention_implementation, base_dtype, build, source_for_method
    from aftertune.tuning.targets import merge_refusal

    spec, plan = job.spec, job.plan
    if plan.backend == "unsloth":
        return unsloth.load(job.source, spec, plan.dtype, plan.device, longest=longest)
    base = load_model(source_for_method(job.source, spec.method), base_dtype(spec.method, plan.dtype), plan.device,
                      tokenizer=tokenizer, attn_implementation=attention_implementation(plan.device, longest))
    model = build(base, spec.method, spec.lora, plan.seed)
    if spec.merge and (reason := merge_refusal(model)):
        raise InputError(f"--merge: the adapter {reason}; leave out --merge and use the adapter unmerged")
    return model
