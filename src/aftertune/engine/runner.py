"""The engine: requests in, batches of responses out, in an order that depends on nothing but the plan.

    engine = Engine(model, tokenizer, packed=True, budget=budget)
    plan = engine.plan(requests)              # encode, decide, verify, cut into batches
    for batch in engine.run(plan, done=set()):
        ledger.save_batch(evaluation, batch.index, batch.responses)

Scoring batches come first, then rolling ones (one request each), then waves of generation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch

from aftertune.engine import schedule
from aftertune.engine.decide import Decision, decide, verify
from aftertune.engine.encode import Encoder, Generation, Prompt, window
from aftertune.engine.encode import Sequence as Tokens
from aftertune.engine.generator import Generator
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer, TokenScores, text_config
from aftertune.engine.trie import Row, row
from aftertune.errors import ResourceError
from aftertune.values import Request, Response


@dataclass(frozen=True, slots=True)
class Batch:
    """One finished batch. cost: tokens computed, for the ETA."""

    index: int
    responses: Mapping[int, Response]
    cost: int


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to run. rows: for scoring; windows: row id -> its rolling request; prompts: a wave."""

    cost: int
    positions: tuple[int, ...]
    rows: tuple[Row, ...] = ()
    windows: Mapping[int, int] | None = None
    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    settings: Generation | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the floating-point sums. digest: sha256 over the batches' tokens."""

    jobs: tuple[Job, ...]
    decision: Decision
    budget: Budget
    truncated: Mapping[int, int]
    digest: str

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

    def plan(self, requests: Sequence[Request]) -> Plan:
        """Encode, decide whether rows may be packed, and cut into batches."""
        groups: list[list[tuple[int, Tokens]]] = []
        for _, group in groupby((r for r in requests if r.kind == "score"), key=lambda r: r.item):
            groups.append([(r.position, self.encoder.score(r.context, r.continuation)) for r in group])
        rolling = {r.position: self.encoder.rolling(r.continuation) for r in requests if r.kind == "rolling"}
        decision = self._decide(groups, rolling)
        jobs = [*self._scoring(groups, decision), *self._rolling(rolling),
                *self._waves([r for r in requests if r.kind == "generate"], decision)]
        truncated = {p: s.truncated for g in groups for p, s in g if s.truncated}
        truncated |= {p: q.truncated for j in jobs for p, q in j.prompts.items() if q.truncated}
        return Plan(tuple(jobs), decision, self.budget, truncated, _digest(jobs))

    def run(self, plan: Plan, done: set[int], on_halving: Callable[[int, int], None] | None = None
            ) -> Iterator[Batch]:
        """Run the jobs that are not wholly in ``done``. on_halving(batch, rows) reports each split."""
        scorer = Scorer(self.model, packed=plan.decision.packed)
        generator = Generator(self.model, self.tokenizer)

        for index, job in enumerate(plan.jobs):
            if done.issuperset(job.positions):
                continue

            def halved(rows: int, index: int = index) -> None:
                if on_halving:
                    on_halving(index, rows)

            if job.settings is not None:
                wave = partial(_wave, generator, job.settings)
                responses = split_on_oom(list(job.prompts.items()), wave, halved)
            else:
                scores: dict[int, TokenScores] = {}
                for part in self._cut(list(job.rows), plan.decision):
                    scores |= split_on_oom(list(part), scorer.run, halved)
                responses = _scored(job, scores, plan.truncated)
            yield Batch(index, responses, job.cost)

    def _decide(self, groups: list[list[tuple[int, Tokens]]], rolling: dict[int, list[Tokens]]) -> Decision:
        lengths = [len(s.tokens) for g in groups for _, s in g]
        lengths += [len(s.tokens) for windows in rolling.values() for s in windows]
        allowed = decide(self.model, max(lengths, default=0))
        if not self.packed:
            return Decision(False, "plain rows, as asked for", allowed.alone)
        return verify(self.model, groups, allowed)

    def _scoring(self, groups: list[list[tuple[int, Tokens]]], decision: Decision) -> list[Job]:
        if decision.packed:
            rows = [row(group) for group in groups]
        else:
            rows = [row([pair]) for group in groups for pair in group]
        return [Job(sum(r.length for r in batch), tuple(p for r in batch for p in r.positions), rows=batch)
                for batch in self._cut(rows, decision)]

    def _rolling(self, rolling: dict[int, list[Tokens]]) -> list[Job]:
        """Whole documents together, until their windows fill the token budget."""
        jobs: list[Job] = []
        rows: list[Row] = []
        owner: dict[int, int] = {}
        positions: list[int] = []
        for n, (position, windows) in enumerate(rolling.items(), 1):
            for one in windows:
                owner[len(owner)] = position
                rows.append(row([(len(owner) - 1, one)]))
            positions.append(position)
            cost = sum(r.length for r in rows)
            if cost >= self.budget.tokens or n == len(rolling):
                jobs.append(Job(cost, tuple(positions), rows=tuple(rows), windows=owner))
                rows, owner, positions = [], {}, []
        return jobs

    def _cut(self, rows: list[Row], decision: Decision) -> list[tuple[Row, ...]]:
        if decision.alone:
            return [(r,) for r in rows]
        shapes = [(r.length, len(r.keep)) for r in rows]
        return [tuple(rows[i] for i in batch) for batch in schedule.batches(shapes, self.budget)]

    def _waves(self, requests: list[Request], decision: Decision) -> list[Job]:
        end = self.tokenizer.eos_token_id
        eos = "" if end is None else self.tokenizer.decode(end)
        settings = [Generation.resolve(r.generation, eos) for r in requests]
        prompts = [self.encoder.prompt(r.context, s.max_tokens)
                   for r, s in zip(requests, settings, strict=True)]
        single = decision.alone or any(s.do_sample for s in settings)
        cut = schedule.waves([len(p.tokens) for p in prompts], settings, 1 if single else self.budget.slots)
        jobs = []
        for wave in cut:
            chosen = {requests[i].position: prompts[i] for i in wave}
            one = settings[wave[0]]
            cost = sum(len(p.tokens) for p in chosen.values()) + one.max_tokens * len(chosen)
            jobs.append(Job(cost, tuple(chosen), prompts=chosen, settings=one))
        return jobs


def _wave(generator: Generator, settings: Generation, part: list[tuple[int, Prompt]]) -> dict[int, Response]:
    responses: dict[int, Response] = generator.run(dict(part), settings)
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


def split_on_oom(parts: list[Any], run: Callable[[list[Any]], dict[int, Any]],
                 halved: Callable[[int], None]) -> dict[int, Any]:
    """``run(parts)``; where memory runs out, its halves, one after the other, down to single parts."""
    if not parts:
        return {}
    try:
        return run(parts)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(parts) == 1:
            raise ResourceError("out of memory with one row in the batch: use a smaller dtype, another "
                                "--device, or a shorter context (--num-fewshot); finished rows are kept"
                                ) from error
    halved(len(parts))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = (len(parts) + 1) // 2
    first = split_on_oom(parts[:middle], run, halved)
    return first | split_on_oom(parts[middle:], run, halved)


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text \
        or "not enough memory" in text


def _digest(jobs: list[Job]) -> str:
    """sha256 over what each batch holds, in order."""
    total = hashlib.sha256()
    for job in jobs:
        total.update(repr((job.positions, job.settings)).encode())
        for one in job.rows:
            total.update(one.tokens.tobytes() + one.depth.tobytes() + one.keep.tobytes())
        for prompt in job.prompts.values():
            total.update(repr(prompt.tokens).encode())
    return total.hexdigest()
