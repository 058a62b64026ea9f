"""The engine: requests in, batches of responses out, in an order that depends on nothing but the plan.

    engine = Engine(model, tokenizer, packed=True, budget=budget)
    plan = engine.plan(requests)              # encode, decide, verify, cut into batches
    for batch in engine.run(plan, done=set()):
        ledger.save_batch(evaluation, batch.index, batch.responses)

Scoring batches come first, those that share a prefix together, then rolling ones (whole documents), then waves of
generation.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from aftertune.engine import schedule
from aftertune.engine.backends import backend_for
from aftertune.engine.decoder import Decoder, Ending, Wave
from aftertune.engine.hf_generate import Generator
from aftertune.engine.memory import one_row, split_on_oom
from aftertune.engine.packing import PackedRow, PrefixGroup, common, packed_row, shared_prefixes
from aftertune.engine.sampling import takes_slots
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer, TokenScores, text_config
from aftertune.engine.tokenize import Encoder, Generation, Prompt, window
from aftertune.engine.tokenize import TokenSequence as Tokens
from aftertune.engine.verify import Branches, PackingDecision, decide, verify
from aftertune.errors import InputError
from aftertune.values import Request, Response


@dataclass(frozen=True, slots=True)
class ResponseBatch:
    """One finished batch. cost: tokens computed, for the ETA."""

    index: int
    responses: Mapping[int, Response]
    cost: int


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to run. prefix: tokens computed before it, once for all jobs that share them; rows: for scoring;
    windows: row id -> its rolling request; prompts: a wave, continued in ``slots`` slots."""

    cost: int
    positions: tuple[int, ...]
    prefix: tuple[int, ...] = ()
    rows: tuple[PackedRow, ...] = ()
    windows: Mapping[int, int] | None = None
    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    settings: Generation | None = None
    slots: int = 0


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Everything that decides the floating-point sums. digest: sha256 over the batches' tokens; longest: sequence that
    the decision is known to hold for, in tokens."""

    jobs: tuple[Job, ...]
    decision: PackingDecision
    budget: Budget
    truncated: Mapping[int, int]
    digest: str
    longest: int

    @property
    def cost(self) -> int:
        return sum(job.cost for job in self.jobs)


class Engine:
    """Scores and generates with one transformers model, packed where that is exact."""

    def __init__(self, model: Any, tokenizer: Any, *, packed: bool, budget: Budget) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.packed = packed
        self.budget = budget
        self.encoder = Encoder(tokenizer, window(text_config(model), tokenizer))
        self.backend = backend_for(model, budget)

    def plan(self, requests: Sequence[Request], known: tuple[PackingDecision, int] | None = None) -> EnginePlan:
        """Encode, decide whether rows may be packed, and cut into batches.

        known: decision and ``longest`` of an earlier plan of the same model: what it found holds for sequences that are
        no longer, and plain rows stay plain.
        """
        groups: list[Branches] = []
        for _, group in groupby((r for r in requests if r.kind == "score"), key=lambda r: r.item):
            groups.append([(r.position, self.encoder.score(r.context, r.continuation)) for r in group])
        rolling = {r.position: self.encoder.rolling(r.continuation) for r in requests if r.kind == "rolling"}
        texts = self._texts([r for r in requests if r.kind == "generate"])
        lengths = [len(s.tokens) for g in groups for _, s in g]
        lengths += [len(s.tokens) for windows in rolling.values() for s in windows]
        lengths += [len(t.prompt.tokens) + t.settings.max_tokens for t in texts]
        longest = max(lengths, default=0)
        settled = known is not None and longest <= known[1]
        allowed = known[0] if known and settled else decide(self.model, longest)
        if not self.packed:
            allowed = PackingDecision(False, "plain rows, as asked for", allowed.alone)
        elif known and not known[0].packed:
            allowed = PackingDecision(False, known[0].note, allowed.alone)
        shared = shared_prefixes([head(g) for g in groups]) if allowed.packed else [PrefixGroup((),
                                                                                    tuple(range(len(groups))))]
        items = [(g.prefix, [groups[i] for i in g.members]) for g in shared if g.members]
        whole = [s for windows in rolling.values() for s in windows]
        with one_row():
            decision = allowed if settled else verify(
                self.model, [*items, ((), [[(-2 - n, s)] for n, s in enumerate(whole)])],
                [t.prompt.tokens for t in texts], allowed, self.backend)
        jobs = [job for g in shared for job in self._scoring(g.prefix, [groups[i] for i in g.members], decision)]
        jobs += [*self._rolling(rolling), *self._waves(texts, decision)]
        truncated = {p: s.truncated for g in groups for p, s in g if s.truncated}
        truncated |= {p: q.truncated for j in jobs for p, q in j.prompts.items() if q.truncated}
        return EnginePlan(tuple(jobs), decision, self.budget, truncated, _digest(jobs),
                    max(longest, known[1] if known else 0))

    def run(self, plan: EnginePlan, done: set[int], on_halving: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[ResponseBatch]:
        """Run the jobs that are not wholly in ``done``.

        on_halving(batch, rows) reports each split; tick(cost) what of a long batch's cost is done. Between batches the
        model is not to be changed or saved: its weights may be in packed copies.
        """
        runs = _Runs(self, plan, tick or (lambda _: None))
        with self.backend.computing(alone=True) if plan.decision.packed else contextlib.nullcontext():
            for index, job in enumerate(plan.jobs):
                if done.issuperset(job.positions):
                    continue

                def halved(rows: int, index: int = index) -> None:
                    if on_halving:
                        on_halving(index, rows)

                yield ResponseBatch(index, runs.job(job, halved), job.cost)

    def _scoring(self, prefix: tuple[int, ...], groups: list[Branches], decision: PackingDecision) -> list[Job]:
        if decision.packed:
            rows = [packed_row(group, len(prefix)) for group in groups]
        else:
            rows, prefix = [packed_row([pair]) for group in groups for pair in group], ()
        return [Job(sum(r.length for r in batch), tuple(p for r in batch for p in r.positions), prefix, rows=batch)
                for batch in self.cut(rows, decision, len(prefix))]

    def _rolling(self, rolling: dict[int, list[Tokens]]) -> list[Job]:
        """Whole documents together, until their windows fill the token budget."""
        jobs: list[Job] = []
        rows: list[PackedRow] = []
        owner: dict[int, int] = {}
        positions: list[int] = []
        for n, (position, windows) in enumerate(rolling.items(), 1):
            for one in windows:
                owner[len(owner)] = position
                rows.append(packed_row([(len(owner) - 1, one)]))
            positions.append(position)
            cost = sum(r.length for r in rows)
            if cost >= self.budget.tokens or n == len(rolling):
                jobs.append(Job(cost, tuple(positions), rows=tuple(rows), windows=owner))
                rows, owner, positions = [], {}, []
        return jobs

    def cut(self, rows: list[PackedRow], decision: PackingDecision, past: int = 0) -> list[tuple[PackedRow, ...]]:
        """Rows as batches within the budget; past: tokens of the prefix that each of them sees."""
        if decision.alone:
            return [(r,) for r in rows]
        shapes = [(r.length, len(r.keep)) for r in rows]
        return [tuple(rows[i] for i in batch)
                for batch in schedule.batches(shapes, self.budget, padded=not decision.packed, past=past)]

    def _texts(self, requests: Sequence[Request]) -> list[_PromptText]:
        """Requests to generate, encoded. Raises InputError where nothing but the limit could end a text."""
        end = self.tokenizer.eos_token_id
        eos = "" if end is None else self.tokenizer.decode(end)
        settings = [Generation.resolve(r.generation, eos) for r in requests]
        if any(not any(s.until) and not Ending(self.model, self.tokenizer, s).ends for s in settings):
            raise InputError("the model has no end-of-sequence token and a task no stop string, so its texts would all "
                             "run to their limit; say where one ends: --gen-kwargs until=TEXT")
        return [_PromptText(r.position, self.encoder.prompt(r.context, s.max_tokens), s)
                for r, s in zip(requests, settings, strict=True)]

    def _waves(self, texts: list[_PromptText], decision: PackingDecision) -> list[Job]:
        jobs: list[Job] = []
        kinds: list[Generation] = []  # an option may be a list, which no dict takes as a key
        for text in texts:
            if text.settings not in kinds:
                kinds.append(text.settings)
        for settings in kinds:
            mine = [t for t in texts if t.settings == settings]
            if not (decision.packed and takes_slots(self.model, settings)):
                room = max(map(_length, mine)) + settings.max_tokens
                slots = 1 if decision.alone or settings.do_sample else schedule.slots(self.budget, room)
                jobs += [_wave(wave, settings) for wave in schedule.waves(mine, slots, _length)]
                continue
            for group in shared_prefixes([t.prompt.tokens[:-1] for t in mine]):
                chosen = [mine[i] for i in group.members]
                room = max(map(_length, chosen)) - len(group.prefix) + settings.max_tokens
                slots = schedule.slots(self.budget, room)
                jobs += [_wave(wave, settings, group.prefix, slots)
                         for wave in schedule.waves(chosen, schedule.WAVE * slots, _length)]
        return jobs


@dataclass(frozen=True, slots=True)
class _PromptText:
    """A request to generate, encoded."""

    position: int
    prompt: Prompt
    settings: Generation


def _length(text: _PromptText) -> int:
    return len(text.prompt.tokens)


def _wave(texts: Sequence[_PromptText], settings: Generation, prefix: tuple[int, ...] = (), slots: int = 0) -> Job:
    prompts = {t.position: t.prompt for t in texts}
    cost = sum(text_cost(p, settings, prefix) for p in prompts.values())
    return Job(cost, tuple(prompts), prefix, prompts=prompts, settings=settings, slots=slots)


def text_cost(prompt: Prompt, settings: Generation, prefix: tuple[int, ...]) -> int:
    """Tokens that a text may take: those of its prompt that are not shared, and as many new ones as it may have."""
    return len(prompt.tokens) - len(prefix) + settings.max_tokens


def head(group: Branches) -> tuple[int, ...]:
    """Tokens that all sequences of an item begin with and that predict none of its targets."""
    first = group[0][1].tokens
    shared = min(common(first, s.tokens) for _, s in group)
    return first[: max(min(shared, *(len(s.tokens) - 1 - s.targets for _, s in group)), 0)]


class _Runs:
    """The parts of the engine that run one plan."""

    def __init__(self, engine: Engine, plan: EnginePlan, tick: Callable[[int], None]) -> None:
        self.engine = engine
        self.plan = plan
        self.tick = tick
        self.scorer = Scorer(engine.model, packed=plan.decision.packed, backend=engine.backend)
        self.generator = Generator(engine.model, engine.tokenizer)
        self.decoder = Decoder(self.scorer, engine.tokenizer, tokens=plan.budget.tokens)

    def job(self, job: Job, halved: Callable[[int], None]) -> dict[int, Response]:
        """The responses of one batch."""
        if job.settings is not None:
            wave = partial(self._wave, job, job.settings, set())
            return split_on_oom(list(job.prompts.items()), wave, halved)
        scores: dict[int, TokenScores] = {}
        for part in self.engine.cut(list(job.rows), self.plan.decision, len(job.prefix)):
            scores |= split_on_oom(list(part), partial(self.scorer.run, prefix=job.prefix), halved)
        return _scored(job, scores, self.plan.truncated)

    def _wave(self, job: Job, settings: Generation, told: set[int], part: list[tuple[int, Prompt]]
              ) -> dict[int, Response]:
        """A wave, or where memory ran out a part of it in as large a part of its slots. told: texts ticked already."""
        if not job.slots:
            texts: dict[int, Response] = self.generator.run(dict(part), settings)
            return texts

        def ended(position: int) -> None:
            if position not in told:
                told.add(position)
                self.tick(text_cost(job.prompts[position], settings, job.prefix))

        slots = max(job.slots * len(part) // len(job.prompts), 1)
        responses: dict[int, Response] = self.decoder.run(dict(part), settings, Wave(slots, job.prefix, ended))
        return responses


def _scored(job: Job, scores: dict[int, TokenScores], truncated: Mapping[int, int]) -> dict[int, Response]:
    """Responses of a scoring job; the windows of a rolling request are added up."""
    if job.windows is None:
        return {p: Response(logprob=s.total, greedy=s.greedy, truncated=truncated.get(p, 0))
                for p, s in scores.items()}
    totals: dict[int, float] = dict.fromkeys(job.positions, 0.0)
    for row_id, position in job.windows.items():
        totals[position] += scores[row_id].total
    return {p: Response(logprob=total) for p, total in totals.items()}


def _digest(jobs: list[Job]) -> str:
    """sha256 over what each batch holds, in order."""
    total = hashlib.sha256()
    for job in jobs:
        total.update(repr((job.positions, job.settings, job.prefix, job.slots)).encode())
        for one in job.rows:
            total.update(one.tokens.tobytes() + one.depth.tobytes() + one.keep.tobytes())
        for prompt in job.prompts.values():
            total.update(repr(prompt.tokens).encode())
    return total.hexdigest()
