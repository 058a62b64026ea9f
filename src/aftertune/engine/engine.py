"""Plans the batches of an evaluation and runs them.

    engine = Engine(model, tokenizer, packed=True, budget=budget)
    plan = engine.plan(requests)              # tokenize, decide and verify packing, cut into batches
    for batch in engine.run(plan, done=set()):
        ledger.save_batch(evaluation, batch.index, batch.responses)

Scoring batches come first, grouped by the prefix that they share, then whole documents (rolling log-likelihood), then
waves of generated texts. The order depends on the plan alone.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from aftertune.engine import schedule
from aftertune.engine.backends import backend_for
from aftertune.engine.decoder import Decoder, StopCriteria, Wave
from aftertune.engine.hf_generate import Generator
from aftertune.engine.memory import oom_as_resource_error, split_on_oom
from aftertune.engine.packing import PackedRow, PrefixGroup, common_prefix_length, packed_row, shared_prefixes
from aftertune.engine.sampling import can_use_slots
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer, TokenScores, text_config
from aftertune.engine.tokenize import Encoder, Generation, Prompt, TokenSequence, context_length
from aftertune.engine.verify import ItemSequences, PackingDecision, decide, verify
from aftertune.errors import InputError, RequestError
from aftertune.sources.library_errors import forward_errors
from aftertune.values import Request, Response

EncodedRequest = TypeVar("EncodedRequest")


@dataclass(frozen=True, slots=True)
class ResponseBatch:
    """One finished batch. responses: by request position; cost: tokens computed, for the remaining time."""

    index: int
    responses: Mapping[int, Response]
    cost: int


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to run.

    cost: tokens to compute; positions: of its requests; prefix: tokens computed before it, once for all jobs that share
    them; rows: to score; windows: row id -> position of its rolling request; prompts: of a wave, by position; settings:
    of the wave; slots: KV cache slots of the wave, 0 for transformers' generate.
    """

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
    """Everything that decides the floating-point sums.

    truncated: number of tokens cut off, by request position; digest: SHA-256 over the tokens of the batches; longest:
    length in tokens up to which the decision holds; alone: positions of the requests whose continuation was encoded
    without its context.
    """

    jobs: tuple[Job, ...]
    decision: PackingDecision
    budget: Budget
    truncated: Mapping[int, int]
    digest: str
    longest: int
    alone: tuple[int, ...] = ()

    @property
    def cost(self) -> int:
        return sum(job.cost for job in self.jobs)


class Engine:
    """Scores and generates with one transformers model, with packed rows where they give the numbers of plain ones.

    packed: False uses plain rows. budget: the limits of a batch. Raises ResourceError if this machine does not have the
    backend that the budget names.
    """

    def __init__(self, model: Any, tokenizer: Any, *, packed: bool, budget: Budget) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.packed = packed
        self.budget = budget
        self.encoder = Encoder(tokenizer, context_length(text_config(model), tokenizer))
        self.backend = backend_for(model, budget)

    def plan(self, requests: Sequence[Request], earlier: tuple[PackingDecision, int] | None = None) -> EnginePlan:
        """Tokenize the requests, decide whether rows may be packed, and cut them into batches.

        earlier: decision and ``longest`` of an earlier plan of the same model. The decision is reused if no sequence is
        longer, and plain rows stay plain. Raises RequestError for a request that cannot be run: its text cannot be
        tokenized or does not fit, or only the token limit could end its text.
        """
        groups: list[ItemSequences] = []
        for _, group in groupby((r for r in requests if r.kind == "score"), key=lambda r: r.item):
            groups.append([(r.position, _encoded(r, lambda r: self.encoder.score(r.context, r.continuation)))
                           for r in group])
        rolling = {r.position: _encoded(r, lambda r: self.encoder.rolling(r.continuation))
                   for r in requests if r.kind == "rolling"}
        texts = self._texts([r for r in requests if r.kind == "generate"])
        lengths = [len(s.tokens) for g in groups for _, s in g]
        lengths += [len(s.tokens) for windows in rolling.values() for s in windows]
        lengths += [len(t.prompt.tokens) + t.settings.max_tokens for t in texts]
        longest = max(lengths, default=0)
        reuse = earlier is not None and longest <= earlier[1]
        allowed = earlier[0] if earlier and reuse else decide(self.model, longest)
        if not self.packed:
            allowed = PackingDecision(False, "plain rows, as requested", allowed.alone)
        elif earlier and not earlier[0].packed:
            allowed = PackingDecision(False, earlier[0].note, allowed.alone)
        shared = [PrefixGroup((), tuple(range(len(groups))))]
        if allowed.packed:
            shared = shared_prefixes([shared_context(g) for g in groups])
        items = [(g.prefix, [groups[i] for i in g.members]) for g in shared if g.members]
        documents = [s for windows in rolling.values() for s in windows]
        with oom_as_resource_error():
            decision = allowed if reuse else verify(
                self.model, [*items, ((), [[(-2 - n, s)] for n, s in enumerate(documents)])],
                [t.prompt.tokens for t in texts], allowed, self.backend)
        jobs = [job for g in shared for job in self._scoring(g.prefix, [groups[i] for i in g.members], decision)]
        jobs += [*self._rolling(rolling), *self._waves(texts, decision)]
        truncated = {p: s.truncated for g in groups for p, s in g if s.truncated}
        truncated |= {p: q.truncated for j in jobs for p, q in j.prompts.items() if q.truncated}
        return EnginePlan(tuple(jobs), decision, self.budget, truncated, _digest(jobs),
                    max(longest, earlier[1] if earlier else 0),
                    tuple(p for g in groups for p, s in g if s.alone))

    def run(self, plan: EnginePlan, done: set[int], on_split: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None, indices: Iterable[int] | None = None
            ) -> Iterator[ResponseBatch]:
        """Run the jobs whose requests are not all in ``done``.

        indices: which jobs, each taken when the one before is finished; None: all, in their order. on_split(batch,
        rows): called when memory runs out and the rows of a batch are split in two. tick(cost): called with the cost of
        each text of a wave that has ended. The model must not be changed or saved between batches,
        because its weights may exist only in packed copies. Raises ResourceError if one row does not fit into memory.
        """
        runner = _PlanRunner(self, plan, tick or (lambda _: None))
        with self.backend.computing(free_weights=True) if plan.decision.packed else contextlib.nullcontext():
            for index in range(len(plan.jobs)) if indices is None else indices:
                job = plan.jobs[index]
                if done.issuperset(job.positions):
                    continue

                def split(rows: int, index: int = index) -> None:
                    if on_split:
                        on_split(index, rows)

                yield ResponseBatch(index, runner.run(job, split), job.cost)

    def _scoring(self, prefix: tuple[int, ...], groups: list[ItemSequences], decision: PackingDecision) -> list[Job]:
        if decision.packed:
            rows = [packed_row(group, len(prefix)) for group in groups]
        else:
            rows, prefix = [packed_row([pair]) for group in groups for pair in group], ()
        return [Job(sum(r.length for r in batch), tuple(p for r in batch for p in r.positions), prefix, rows=batch)
                for batch in self.cut(rows, decision, len(prefix))]

    def _rolling(self, rolling: dict[int, list[TokenSequence]]) -> list[Job]:
        """Jobs of whole documents: each takes documents until their windows fill the token budget."""
        jobs: list[Job] = []
        rows: list[PackedRow] = []
        owner: dict[int, int] = {}
        positions: list[int] = []
        for n, (position, windows) in enumerate(rolling.items(), 1):
            for sequence in windows:
                owner[len(owner)] = position
                rows.append(packed_row([(len(owner) - 1, sequence)]))
            positions.append(position)
            cost = sum(r.length for r in rows)
            if cost >= self.budget.tokens or n == len(rolling):
                jobs.append(Job(cost, tuple(positions), rows=tuple(rows), windows=owner))
                rows, owner, positions = [], {}, []
        return jobs

    def cut(self, rows: list[PackedRow], decision: PackingDecision, past: int = 0) -> list[tuple[PackedRow, ...]]:
        """Cut rows into batches within the budget. past: tokens of the prefix that each row sees."""
        if decision.alone:
            return [(r,) for r in rows]
        shapes = [(r.length, len(r.keep)) for r in rows]
        return [tuple(rows[i] for i in batch)
                for batch in schedule.batches(shapes, self.budget, padded=not decision.packed, past=past)]

    def _texts(self, requests: Sequence[Request]) -> list[_PromptText]:
        """Tokenize the requests to generate. Raises RequestError if only the token limit could end a text."""
        end = self.tokenizer.eos_token_id
        eos = "" if end is None else self.tokenizer.decode(end)
        return [_encoded(r, lambda r: self._text(r, eos)) for r in requests]

    def _text(self, request: Request, eos: str) -> _PromptText:
        settings = Generation.resolve(request.generation, eos)
        if not any(settings.until) and not StopCriteria(self.model, self.tokenizer, settings).eos_token_ids:
            raise InputError("the model has no end-of-sequence token and a task has no stop string, so every text "
                             "would run to its token limit: set a stop string with --gen-kwargs until=TEXT")
        prompt = self.encoder.prompt(request.context, settings.max_tokens)
        return _PromptText(request.position, prompt, self._limited(settings, len(prompt.tokens)))

    def _limited(self, settings: Generation, length: int) -> Generation:
        """The settings of one text with the limit on new tokens that lm-eval's ``hf`` model gives it.

        ``max_new_tokens`` of the model's generation config counts before ``max_length`` (of prompt and text together),
        and that before ``max_gen_toks``. length: of the prompt in tokens. Raises InputError if the prompt is too long
        for ``max_length``.
        """
        options = dict(settings.options)
        total = options.pop("max_length", None)
        limit = getattr(getattr(self.model, "generation_config", None), "max_new_tokens", None)
        if limit is None and total is None:
            return settings
        if limit is None and total <= length:
            raise InputError(f"max_length is {total}, which counts prompt and text together, but a prompt has {length} "
                             "tokens; raise it, or use max_gen_toks, which counts the text alone")
        limit = total - length if limit is None else limit
        return replace(settings, max_tokens=min(limit, self.encoder.max_length - length),
                       options=tuple(sorted(options.items())))

    def _waves(self, texts: list[_PromptText], decision: PackingDecision) -> list[Job]:
        jobs: list[Job] = []
        distinct: list[Generation] = []  # not a dict: an option may be a list, which cannot be a key
        for text in texts:
            if text.settings not in distinct:
                distinct.append(text.settings)
        for settings in distinct:
            same = [t for t in texts if t.settings == settings]
            plain = can_use_slots(self.model, settings)
            if not (decision.packed and plain):
                room = max(map(_length, same)) + settings.max_tokens
                slots = 1 if decision.alone or settings.do_sample else schedule.slot_count(self.budget, room)
                by_length = [same] if plain else [list(g) for _, g in groupby(sorted(same, key=_length), key=_length)]
                jobs += [_wave(w, settings) for group in by_length for w in schedule.waves(group, slots, _length)]
                continue
            for group in shared_prefixes([t.prompt.tokens[:-1] for t in same]):
                members = [same[i] for i in group.members]
                room = max(map(_length, members)) - len(group.prefix) + settings.max_tokens
                slots = schedule.slot_count(self.budget, room)
                jobs += [_wave(wave, settings, group.prefix, slots)
                         for wave in schedule.waves(members, schedule.TEXTS_PER_SLOT * slots, _length)]
        return jobs


@dataclass(frozen=True, slots=True)
class _PromptText:
    """A tokenized request to generate."""

    position: int
    prompt: Prompt
    settings: Generation


def _encoded(request: Request, encode: Callable[[Request], EncodedRequest]) -> EncodedRequest:
    """The request as tokens. Raises RequestError, whatever the tokenizer raises."""
    try:
        return encode(request)
    except InputError as error:
        raise RequestError(str(error), request.position) from error
    except Exception as error:  # tokenizers raise many types of errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RequestError(f"a text cannot be tokenized ({reason}); fix the task's data", request.position) from error


def _length(text: _PromptText) -> int:
    return len(text.prompt.tokens)


def _wave(texts: Sequence[_PromptText], settings: Generation, prefix: tuple[int, ...] = (), slots: int = 0) -> Job:
    prompts = {t.position: t.prompt for t in texts}
    cost = sum(text_cost(p, settings, prefix) for p in prompts.values())
    return Job(cost, tuple(prompts), prefix, prompts=prompts, settings=settings, slots=slots)


def text_cost(prompt: Prompt, settings: Generation, prefix: tuple[int, ...]) -> int:
    """Tokens that a text may need: those of its prompt after the prefix, and the most new ones it may get."""
    return len(prompt.tokens) - len(prefix) + settings.max_tokens


def shared_context(group: ItemSequences) -> tuple[int, ...]:
    """The tokens that all sequences of an item begin with and that predict none of its targets."""
    first = group[0][1].tokens
    shared = min(common_prefix_length(first, s.tokens) for _, s in group)
    return first[: max(min(shared, *(len(s.tokens) - 1 - s.targets for _, s in group)), 0)]


class _PlanRunner:
    """Runs the jobs of one plan. It has the scorer, the decoder and the generator for them."""

    def __init__(self, engine: Engine, plan: EnginePlan, tick: Callable[[int], None]) -> None:
        self.engine = engine
        self.plan = plan
        self.tick = tick
        self.scorer = Scorer(engine.model, packed=plan.decision.packed, backend=engine.backend)
        self.generator = Generator(engine.model, engine.tokenizer)
        self.decoder = Decoder(self.scorer, engine.tokenizer, tokens=plan.budget.tokens)

    def run(self, job: Job, on_split: Callable[[int], None]) -> dict[int, Response]:
        """The responses of one batch, by request position. Raises SourceError if a library fails."""
        with forward_errors(str(getattr(self.engine.model, "name_or_path", "") or "the model")):
            return self._responses(job, on_split)

    def _responses(self, job: Job, on_split: Callable[[int], None]) -> dict[int, Response]:
        if job.settings is not None:
            wave = partial(self._wave, job, job.settings, set())
            return split_on_oom(list(job.prompts.items()), wave, on_split)
        scores: dict[int, TokenScores] = {}
        for batch in self.engine.cut(list(job.rows), self.plan.decision, len(job.prefix)):
            scores |= split_on_oom(list(batch), partial(self.scorer.run, prefix=job.prefix), on_split)
        return _score_responses(job, scores, self.plan.truncated)

    def _wave(self, job: Job, settings: Generation, ticked: set[int], prompts: list[tuple[int, Prompt]]
              ) -> dict[int, Response]:
        """Continue the prompts of a wave. After an OOM split they are a part of the wave, with the same part of its
        slots. ticked: positions of the texts whose cost was passed to ``tick``."""
        if not job.slots:
            texts: dict[int, Response] = self.generator.run(dict(prompts), settings)
            return texts

        def ended(position: int) -> None:
            if position not in ticked:
                ticked.add(position)
                self.tick(text_cost(job.prompts[position], settings, job.prefix))

        slots = max(job.slots * len(prompts) // len(job.prompts), 1)
        responses: dict[int, Response] = self.decoder.run(dict(prompts), settings, Wave(slots, job.prefix, ended))
        return responses


def _score_responses(job: Job, scores: dict[int, TokenScores], truncated: Mapping[int, int]) -> dict[int, Response]:
    """The responses of a scoring job. The log-likelihoods of a rolling request's windows are added."""
    if job.windows is None:
        return {p: Response(logprob=s.total, greedy=s.greedy, truncated=truncated.get(p, 0))
                for p, s in scores.items()}
    totals: dict[int, float] = dict.fromkeys(job.positions, 0.0)
    for row_id, position in job.windows.items():
        totals[position] += scores[row_id].total
    return {p: Response(logprob=total) for p, total in totals.items()}


def _digest(jobs: list[Job]) -> str:
    """SHA-256 over the contents of the batches, in order. A resume compares it, so what is hashed does not change."""
    sha = hashlib.sha256()
    for job in jobs:
        sha.update(repr((job.positions, job.settings, job.prefix, job.slots)).encode())
        for row in job.rows:
            sha.update(row.tokens.tobytes() + row.depth.tobytes() + row.keep.tobytes())
        for prompt in job.prompts.values():
            sha.update(repr(prompt.tokens).encode())
    return sha.hexdigest()
