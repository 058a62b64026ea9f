"""Lets a base write its own answers to general prompts, to be replayed: replay without data of others.

    writer = BaseAnswers(spec, Path(".aftertune/replay"), progress)
    replayed = writer.examples(allowed)              Replayed(examples=(Example(…), …), counts={"loops": 12, …}, …)

This is self-synthesised rehearsal (Huang et al. 2024, arXiv:2403.01244). The answers are sampled from the base's own
probabilities, at temperature 1: in expectation such texts teach the base nothing, so they hold it where it is. Answers
that are empty, that do not end within the limit, or that repeat themselves are left out and counted.

The prompts are answered in the order of their list, then once more, up to `ROUNDS` times, until enough answers are
kept. Answer number n is sampled with the seed n, so that a larger number of answers begins with the smaller one. They
are stored in a file for each base and each setting of the generation, after every `CHUNK` answers: an interrupted run
continues there, and later fine-tunes of the same base take them from it. Each chunk has a checksum. A damaged one is
written again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError
from aftertune.sources.cache import write_atomic
from aftertune.sources.library_errors import forward_errors, memory_errors
from aftertune.tuning.example import Example
from aftertune.tuning.general_prompts import PromptList
from aftertune.tuning.split import Replayed
from aftertune.values import Progress, Request, digest, from_json

if TYPE_CHECKING:
    from aftertune.study import TuneSpec

#: Version of this module's files and of how the answers are made.
_FORM = 1
#: Sampling temperature; the most tokens of an answer; the most answers to one prompt; answers that are stored together.
TEMPERATURE, TOKENS, ROUNDS, CHUNK = 1.0, 192, 4, 32
#: An answer repeats itself if this share of its groups of so many words occurred in it before.
LOOP_WORDS, LOOP_SHARE = 4, 0.25


class BaseAnswers:
    """The answers of the base of a fine-tune. folder: where they are stored; progress: called with the number that
    are kept."""

    def __init__(self, spec: TuneSpec, folder: Path, progress: Progress) -> None:
        from aftertune.engine.devices import choose_device, choose_dtype
        from aftertune.sources import fingerprint_model, load_tokenizer, resolve_model
        from aftertune.tasks.chat_template import template_date

        wanted = spec.replay and spec.replay.base
        assert wanted
        self.spec, self.count, self.progress = spec, wanted.count, progress
        self.prompts = PromptList.read(wanted.file)
        if self.count > ROUNDS * len(self.prompts.prompts):
            raise InputError(f"--replay base:{self.count}: {len(self.prompts.prompts)} prompts can have "
                             f"{ROUNDS * len(self.prompts.prompts)} answers at most ({ROUNDS} each); ask for fewer, or "
                             "give a file with more prompts (base:N:FILE)")
        self.source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
        self.tokenizer = load_tokenizer(self.source)
        self.device = choose_device(spec.device)
        self.dtype = choose_dtype(spec.dtype, self.device)
        self.day = template_date(self.tokenizer, spec.template_date) if spec.template == "chat" else None
        self.settings = {"prompts": self.prompts.digest, "answers": self.count, "temperature": TEMPERATURE,
                         "max_tokens": TOKENS, "seed": 0}
        identity = fingerprint_model(self.source)
        key = digest([_FORM, identity.fingerprint, identity.tokenizer, self.dtype, self.device.split(":")[0],
                      spec.template, self.day, {**self.settings, "answers": None}, ROUNDS])
        self.store = AnswerStore(folder / f"{key[:20]}.jsonl", key)

    def examples(self, allowed: Callable[[Example], bool]) -> Replayed:
        """The first answers that are kept and allowed, as many as are wanted; made now as far as they are not stored.

        Raises InputError if none is left.
        """
        counts: Counter[str] = Counter()
        kept: list[Example] = []
        seen: set[tuple[str, str]] = set()
        self.progress(0, self.count, "the base answers prompts for replay")
        for number, answer in self._answers():
            prompt = self.prompts.prompts[number % len(self.prompts.prompts)]
            text = answer["text"].strip()
            example = Example((("user", prompt),), text, where=f"answer {number + 1} of the base")
            reason = left_out(text, answer["finish"]) or ("duplicates" if (prompt, text) in seen else "") or (
                "" if allowed(example) else "set_aside")
            counts["rows"] += 1
            counts[reason or "replayed"] += 1
            seen.add((prompt, text))
            if not reason:
                kept.append(example)
                self.progress(len(kept), self.count, "the base answers prompts for replay")
            if len(kept) == self.count:
                break
        if not kept:
            raise InputError(f"--replay base:{self.count}: none of the base's {counts['rows']} answers can be used "
                             f"({_reasons(counts)}); a base that does not end its answers needs --replay FILE, with "
                             "data of yours")
        return Replayed(tuple(kept), dict(counts), tuple(self._notes(kept, counts)), self.settings)

    def _notes(self, kept: Sequence[Example], counts: Mapping[str, int]) -> Iterator[str]:
        prompts = len(self.prompts.prompts)
        yield (f"replay: {len(kept)} answers of the base to {len({e.turns for e in kept})} of {prompts} prompts, "
               f"sampled at temperature {TEMPERATURE:g}")
        if self.prompts.left_out:
            yield (f"replay: {self.prompts.left_out} prompts of the list were left out, because they are repeats or "
                   "prompts on which drift is measured")
        if len(kept) < self.count:
            yield (f"replay: only {len(kept)} of {self.count} answers, because the others were left out "
                   f"({_reasons(counts)}); more prompts give more (base:N:FILE)")

    def _answers(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number and answer of each candidate, from the store or from the base."""
        total = ROUNDS * len(self.prompts.prompts)
        generator = None
        try:
            for start in range(0, total, CHUNK):
                answers = self.store.chunk(start)
                if answers is None:
                    generator = generator or _Generator(self)
                    answers = generator.answers(range(start, min(start + CHUNK, total)))
                    self.store.add(start, answers)
                yield from enumerate(answers, start)
        finally:
            if generator is not None:
                generator.close()


class _Generator:
    """The loaded base with an engine, until `close`."""

    def __init__(self, job: BaseAnswers) -> None:
        from aftertune.engine import budget, devices
        from aftertune.engine.engine import Engine
        from aftertune.sources import load_model

        self.job = job
        threads = devices.set_threads(job.spec.threads)
        self.render = _renderer(job)
        self.model = load_model(job.source, job.dtype, job.device, tokenizer=job.tokenizer)
        sizes = budget.resolve(self.model, free=devices.free_memory(job.device) // 2, threads=threads)
        self.engine: Any = Engine(self.model, job.tokenizer, packed=True, budget=sizes)

    def answers(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The answers with these numbers: text, and how it ended. Each number is the seed of its answer."""
        prompts = self.job.prompts.prompts
        settings = {"until": _STOPS.get(self.job.spec.template, []), "max_gen_toks": TOKENS, "do_sample": True,
                    "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
        requests = [Request(position=n, kind="generate", item=n, context=self.render(prompts[n % len(prompts)]),
                            generation=settings) for n in numbers]
        with memory_errors(self.job.source, self.job.device), forward_errors(self.job.source.named, kept=""):
            plan = self.engine.plan(requests)
            responses = {p: r for batch in self.engine.run(plan, set()) for p, r in batch.responses.items()}
        return [{"text": responses[n].text or "", "finish": responses[n].finish} for n in numbers]

    def close(self) -> None:
        """Free the memory of the base."""
        from aftertune.engine.memory import release_memory

        self.model = self.engine = None
        release_memory()


#: Texts that end an answer, by template.
_STOPS = {"alpaca": ["\n### Instruction:", "\n### Response:"]}


def _renderer(job: BaseAnswers) -> Callable[[str], str]:
    """Writes a prompt as the template of the training does. Raises InputError if the model has no chat template."""
    from aftertune.tasks.chat_template import get_chat_template
    from aftertune.tuning.template import alpaca_prompt

    if job.spec.template == "alpaca":
        return alpaca_prompt
    if job.spec.template == "plain":
        return str
    template = get_chat_template(job.tokenizer, job.day)
    if template is None:
        raise InputError(f"{job.source.named} has no chat template; tune with --template alpaca or plain")
    return lambda prompt: template.render([{"role": "user", "content": prompt}])


# --- What is kept ---


def left_out(text: str, finish: str | None) -> str:
    """Why an answer is not replayed: "empty", "unfinished" (it did not end within the limit), "loops" (it repeats
    itself); "" if it is. finish: how the engine ended it."""
    if not text.strip():
        return "empty"
    if finish == "length":
        return "unfinished"
    return "loops" if repeated_share(text) > LOOP_SHARE else ""


def repeated_share(text: str) -> float:
    """The share of the groups of `LOOP_WORDS` words in a row that occurred earlier in the text; 0 for a short one. A
    text almost without spaces is read by characters, in groups of three times as many."""
    words: Sequence[str] = text.split()
    size = LOOP_WORDS
    if len(words) * 15 < len(text):
        words, size = text, 3 * LOOP_WORDS
    groups = [tuple(words[n:n + size]) for n in range(len(words) - size + 1)]
    return 1 - len(set(groups)) / len(groups) if len(groups) > LOOP_WORDS else 0.0


def _reasons(counts: Mapping[str, int]) -> str:
    words = {"empty": "empty", "unfinished": f"without an end within {TOKENS} tokens",
             "loops": "that repeat themselves", "duplicates": "repeats", "set_aside": "in the new or held-out data"}
    return ", ".join(f"{counts[name]} {text}" for name, text in words.items() if counts.get(name))


# --- The stored answers ---


class AnswerStore:
    """A file with chunks of answers, each with a checksum. key: of what the answers depend on."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.chunks = self._read()

    def chunk(self, start: int) -> list[dict[str, Any]] | None:
        """The answers from number ``start`` on; None if they are not stored, or damaged."""
        return self.chunks.get(start)

    def add(self, start: int, answers: list[dict[str, Any]]) -> None:
        """Store a chunk. The file is written completely or not at all."""
        self.chunks[start] = answers
        write_atomic(self.path, "".join(
            json.dumps({"start": first, "sha256": self._sum(first, chunk), "answers": chunk}, ensure_ascii=False) + "\n"
            for first, chunk in sorted(self.chunks.items())))

    def _sum(self, start: int, answers: list[dict[str, Any]]) -> str:
        return digest([self.key, start, answers])

    def _read(self) -> dict[int, list[dict[str, Any]]]:
        """The chunks whose checksum is right."""
        chunks: dict[int, list[dict[str, Any]]] = {}
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return chunks
        for line in lines:
            try:
                value = from_json(line)
                if value["sha256"] == self._sum(value["start"], value["answers"]):
                    chunks[value["start"]] = value["answers"]
            except (ValueError, KeyError, TypeError):
                continue
        return chunks
