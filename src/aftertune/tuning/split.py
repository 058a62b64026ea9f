"""Splits a data file into training, held-out and validation examples, and chooses replayed examples.

    corpus = Corpus.load(DataSpec(file="orders.jsonl", examples=200), seed=0)
    len(corpus.training), len(corpus.held_out)     200, 71
    split_point(example)                           0.0731…: held out if it is below the held-out share

The order of the steps:

1. Exact repeats are removed. ``dedup: normalised`` also removes examples that differ in case, spaces or Unicode form
   alone; otherwise their number is noted.
2. The SHA-256 of an example's normalised prompt decides whether it is held out, used for validation or trained on. So
   the held-out and validation sets are the same for every size and seed. Where more examples than the held-out share
   have the same prompt, what follows the prompt decides too.
3. ``examples`` takes a seeded subset of the training examples. Smaller subsets are contained in larger ones.
4. Replay mixes other data in, so that the model forgets less (rehearsal: Robins 1995, Connection Science 7(2)). The
   share is that of the final mixture: all new examples stay, and other examples are added; or it is a number of
   answers that the base writes (`aftertune.tuning.base_answers`). An example whose prompt is held out or used for
   validation is never replayed.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aftertune.errors import InputError, shown
from aftertune.sources import fingerprint_rows
from aftertune.study import DataSource, DataSpec, ReplaySpec
from aftertune.tuning.data import ReadReport, read_examples
from aftertune.tuning.example import Example, Turns
from aftertune.tuning.rows import ReadOptions

#: The most answers that a prompt may get as its continuation before all of the example decides.
_MAX_ANSWERS = 16

# --- Repeats, and orders that depend on the text of an example ---


def normalized(text: str) -> str:
    """The text after NFKC, case folding, and with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def example_key(example: Example) -> tuple[str, str, str]:
    """The normalised prompt and completion, and the keys besides text; equal for examples that are alike."""
    return normalized(_turns_text(example.conversation)), normalized(example.completion), _other_keys(example)


def _exact_key(example: Example) -> tuple[object, ...]:
    return example.turns, example.completion, example.input, example.context, _other_keys(example)


def _other_keys(example: Example) -> str:
    """What an example has besides its texts, as JSON; "" for nothing."""
    if not (example.extra or example.tools or example.template_arguments):
        return ""
    row = example.row()
    return json.dumps([row.get("extra"), row.get("tools"), row.get("template_arguments")], sort_keys=True, default=str)


def prompt_hash(example: Example, answers: int = 0) -> str:
    """SHA-256 of the normalised prompt. For a conversation this is the part before its first answer, so that two
    conversations with the same start are on the same side of the split.

    answers: how many answers the part has, 0 for the prompt alone; all of the example if it has no more.
    """
    found = [n for n, (role, _) in enumerate(example.conversation) if role == "assistant"]
    end = found[answers] if answers < len(found) else len(example.conversation)
    text = _turns_text(example.conversation[:end]) or example.completion
    if answers > len(found):
        text = f"{text}\nassistant: {example.completion}{_other_keys(example)}"
    return hashlib.sha256(normalized(text).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SplitKeys:
    """Gives each example the hash that decides its side. common: hashes of prompts that more examples share than may
    be held out, so that a longer part of the example decides."""

    common: frozenset[str] = frozenset()

    @classmethod
    def of(cls, examples: Sequence[Example], share: float) -> SplitKeys:
        """The keys for a set of examples of which ``share`` is held out."""
        common: set[str] = set()
        undecided: Sequence[Example] = examples
        for answers in range(_MAX_ANSWERS + 1):
            hashes = [prompt_hash(example, answers) for example in undecided]
            counts = Counter(hashes)
            frequent = {key for key, count in counts.items() if count > max(1, share * len(examples))}
            pairs = [(e, key) for e, key in zip(undecided, hashes, strict=True)
                     if key in frequent and _goes_on(e, answers)]
            undecided = [e for e, _ in pairs]
            common |= {key for _, key in pairs}
            if not undecided:
                break
        return cls(frozenset(common))

    def key(self, example: Example) -> str:
        """The hash of the shortest part of an example that is not common."""
        answers = 0
        while (found := prompt_hash(example, answers)) in self.common and _goes_on(example, answers):
            answers += 1
        return found

    def notes(self, examples: Sequence[Example], share: float, file: str) -> list[str]:
        """One note if there are common prompts."""
        if not self.common:
            return []
        prompts = Counter(found for e in examples if (found := prompt_hash(e)) in self.common)
        if not prompts:
            return []
        [(most, _)] = prompts.most_common(1)
        example = next(e for e in examples if prompt_hash(e) == most)
        text = next((text for role, text in example.conversation if role != "system"), "")
        return [f"{file}: {prompts.total():,} of {len(examples):,} examples have a prompt that more than {share:.1%} "
                f"of all have (the most frequent: {shown(' '.join(text.split()))}), so what follows the prompt decides "
                "whether they are held out"]


def _goes_on(example: Example, answers: int) -> bool:
    """Whether there is more of an example than the part with so many answers."""
    return bool(example.turns) and answers <= sum(role == "assistant" for role, _ in example.turns)


def split_point(example: Example, keys: SplitKeys | None = None) -> float:
    """A number in [0, 1) from the hash of the prompt; the example is held out if it is below the held-out share."""
    return int((keys or SplitKeys()).key(example)[:13], 16) / 16**13


def seeded_order(examples: Sequence[Example], seed: int) -> list[int]:
    """The indices of the examples, ordered by a seeded hash of prompt and completion. The first N of them are a random
    subset, and part of the first N + 1."""
    def rank(index: int) -> str:
        text = f"{seed}\n{prompt_hash(examples[index])}\n{examples[index].completion}"
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(range(len(examples)), key=rank)


def without_repeats(examples: Sequence[Example], dedup: str) -> tuple[list[Example], int, int]:
    """The examples without repeats, of which the first stays; the number of exact repeats, and of those that differ in
    case, spaces or Unicode form alone.

    dedup: exact (equal examples are removed), normalised (those that are alike too) or none (nothing is removed).
    """
    seen, alike = set(), set()
    kept, exact, similar = [], 0, 0
    for example in examples:
        exactly = _exact_key(example)
        likeness = hashlib.blake2b(repr(example_key(example)).encode(), digest_size=16).digest()
        repeated = exactly in seen
        exact += repeated
        similar += not repeated and likeness in alike
        if dedup == "none" or not (repeated or (dedup == "normalised" and likeness in alike)):
            kept.append(example)
        seen.add(exactly)
        alike.add(likeness)
    return kept, exact, similar


def _turns_text(turns: Turns) -> str:
    return "\n".join(f"{role}: {text}" for role, text in turns)


# --- Replay ---


def replay_count(share: float, new: int) -> int:
    """How many examples must be added to ``new`` ones to be ``share`` of all; at least one."""
    return max(1, round(share / (1 - share) * new))


def choose_replay(examples: Sequence[Example], count: int, seed: int, notes: list[str]) -> list[Example]:
    """``count`` examples in the order of a seeded hash, so that smaller mixtures are contained in larger ones. If there
    are fewer, they are repeated, and ``notes`` receives a note."""
    order = seeded_order(examples, seed)
    if count > len(order):
        notes.append(f"replay: {count} examples are needed but there are only {len(order)}, so each is used "
                     f"{count / len(order):.1f} times; add replay data, or lower the share")
    return [examples[order[n % len(order)]] for n in range(count)]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The answers that are replayed. counts: of all answers that were looked at, and of those left out, by reason;
    notes: on both; settings: how they were made, for the record of the tuning."""

    examples: tuple[Example, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]


class AnswerWriter(Protocol):
    """Writes the base's own answers (`aftertune.tuning.base_answers.BaseAnswers`)."""

    def examples(self, allowed: Callable[[Example], bool]) -> Replayed: ...


# --- The corpus ---

#: The held-out share if the specification names none.
HELD_OUT = 0.1
#: About the most examples that are then held out: a loss needs no more, and 50,000 of Alpaca's 52,002 must be left.
MAX_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Rules:
    """How a corpus is made. first: by the rules of the first version, in which examples that are alike were always
    removed and the prompt alone decided the split; limit: the most rows that are read of each file."""

    first: bool = False
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """The examples of a fine-tune.

    validation: for early stopping; empty without it. replay: other examples, trained on with the new ones. counts: of
    the rows of each file ("data", "replay_data"). notes: on what was left out. changed: the sets differ from those that
    the first version made of the same data. replay_settings: how the base wrote the replayed examples.
    """

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    replay: tuple[Example, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    changed: bool = False
    replay_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, spec: DataSpec, seed: int, replay: ReplaySpec | None = None, rules: Rules | None = None,
             base_answers: AnswerWriter | None = None) -> Corpus:
        """Read, deduplicate, split, subset and mix. Raises InputError if too few examples are left.

        base_answers: writes the examples where the base's own answers are replayed; None leaves them out.
        """
        rules = rules or Rules()
        report = ReadReport()
        examples, changed = _distinct(spec, report, rules)
        held_out, validation, training, keys = _split(spec, examples, report, rules)
        size = spec.examples if rules.limit is None or spec.examples is None else min(spec.examples, len(training))
        drawn = training if size is None else subset(training, size, seed, where=str(spec.file))
        report.counts |= {"training": len(drawn), "not_drawn": len(training) - len(drawn),
                           "validation": len(validation), "held_out": len(held_out)}
        counts, notes, replayed = {"data": report.counts}, report.notes, []
        changed, settings = changed or keys != SplitKeys(), dict[str, Any]()
        if replay is not None and replay.base is not None:
            if base_answers is not None:
                used, new = {keys.key(e) for e in (*held_out, *validation)}, {example_key(e) for e in drawn}
                made = base_answers.examples(lambda e: keys.key(e) not in used and example_key(e) not in new)
                replayed, settings = list(made.examples), dict(made.settings)
                counts["replay_data"], notes = dict(made.counts), [*notes, *made.notes]
        elif replay is not None:
            replay_report = ReadReport()
            others, others_changed = _distinct(replay.data, replay_report, rules)
            used = {keys.key(e) for e in (*held_out, *validation)}
            replayed = _replayed(replay, others, drawn, (used, keys), seed, replay_report)
            counts["replay_data"] = replay_report.counts
            notes, changed = [*notes, *replay_report.notes], changed or others_changed
        return cls(tuple(drawn), tuple(held_out), tuple(validation), tuple(replayed), counts, tuple(notes), changed,
                   settings)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training examples and of the replayed ones, in order."""
        return fingerprint_rows(e.row() for e in (*self.training, *self.replay))

    @property
    def held_out_fingerprint(self) -> str:
        """SHA-256 of the held-out examples, in order."""
        return fingerprint_rows(e.row() for e in self.held_out)

    @property
    def validation_fingerprint(self) -> str:
        """SHA-256 of the validation examples, in order."""
        return fingerprint_rows(e.row() for e in self.validation)

    @property
    def replay_fingerprint(self) -> str:
        """SHA-256 of the replayed examples, in order."""
        return fingerprint_rows(e.row() for e in self.replay)


def subset(examples: list[Example], size: int, seed: int, *, where: str) -> list[Example]:
    """``size`` examples in the file's order, chosen by a seeded hash. Smaller subsets are contained in larger ones.

    where: the file, for the error. Raises InputError if there are fewer than ``size``.
    """
    if size > len(examples):
        raise InputError(f"{where}: examples is {size}, but only {len(examples)} are left for training without "
                         "duplicates, held-out and validation examples; lower `examples`, or add data")
    return [examples[index] for index in sorted(seeded_order(examples, seed)[:size])]


def _split(spec: DataSpec, examples: list[Example], report: ReadReport, rules: Rules
           ) -> tuple[list[Example], list[Example], list[Example], SplitKeys]:
    """Held-out, validation and training examples, and the keys by which they were split."""
    share = spec.held_out or min(HELD_OUT, MAX_HELD_OUT / len(examples))
    smallest = min(share, spec.validation or share)
    keys = SplitKeys() if rules.first else SplitKeys.of(examples, smallest)
    report.notes += keys.notes(examples, smallest, str(spec.file))
    points = [split_point(e, keys) for e in examples]
    if spec.held_out_file is not None:
        held_out_spec, share = spec.model_copy(update={"file": spec.held_out_file}), 0.0
        held_out, _ = _distinct(held_out_spec, ReadReport(notes=report.notes), rules)
        prompts = {keys.key(e) for e in held_out}
        inside = [keys.key(e) in prompts for e in examples]
        report.counts["in_held_out_file"] = sum(inside)
    else:
        if not rules.first and len({*points}) > 1 and min(points) >= share:  # a small file of which the share is empty
            share = min(points) + 16**-13
            report.notes.append(f"{spec.file}: no example of so few falls into the held-out share, so the first in the "
                                "order of the hashes is held out")
        inside = [point < share for point in points]
        held_out = [e for e, held in zip(examples, inside, strict=True) if held]
    rest = [(e, point) for e, point, left in zip(examples, points, inside, strict=True) if not left]
    validation_end = share + (spec.validation or 0.0)
    validation = [e for e, point in rest if point < validation_end]
    training = [e for e, point in rest if point >= validation_end]
    sides = {"training": training, "held-out": held_out} | ({"validation": validation} if spec.validation else {})
    if not all(sides.values()):
        counts = ", ".join(f"{len(side)} {name}" for name, side in sides.items())
        raise InputError(f"{spec.file}: {counts} examples ({len(examples)} distinct ones); each set needs at least "
                         "one; add examples, or change held_out and validation")
    return held_out, validation, training, keys


def _distinct(source: DataSource, report: ReadReport, rules: Rules) -> tuple[list[Example], bool]:
    """The examples of a file without repeats, and whether the first version would have removed others."""
    options = ReadOptions(form=source.format, fields=source.fields, encoding=source.encoding, split=source.split,
                          subset=source.subset, skip_bad=source.skip_bad, limit=rules.limit)
    examples = read_examples(source.file, options, report)
    dedup = source.dedup or ("normalised" if rules.first else "exact")
    distinct, exact, alike = without_repeats(examples, dedup)
    report.counts |= {"duplicates": exact if dedup != "none" else 0, "alike": alike if dedup == "normalised" else 0}
    if dedup == "none" and exact:
        report.notes.append(f"{source.file}: {exact:,} examples are exact repeats, which are kept (--dedup "
                            "exact leaves them out)")
    if dedup != "normalised" and alike:
        report.notes.append(f"{source.file}: {alike:,} examples are like an earlier one except for case, "
                            "spaces or Unicode form; they are kept (--dedup normalised leaves them out)")
    return distinct, source.dedup is None and alike > 0


def _replayed(spec: ReplaySpec, examples: list[Example], training: list[Example], held: tuple[set[str], SplitKeys],
              seed: int, report: ReadReport) -> list[Example]:
    """Other examples that make up ``spec.share`` of all. Examples with a held-out prompt, and those that are in the
    training set, are not used. held: keys of the examples that are held out or used for validation."""
    (prompts, keys), new = held, {example_key(e) for e in training}
    usable = [e for e in examples if keys.key(e) not in prompts and example_key(e) not in new]
    if not usable:
        raise InputError(f"replay {spec.data.file}: each of its {len(examples)} examples is in the new data or has a "
                         "held-out prompt; give other data")
    assert spec.share is not None
    replayed = choose_replay(usable, replay_count(spec.share, len(training)), seed, report.notes)
    report.counts |= {"set_aside": len(examples) - len(usable), "replayed": len(replayed),
                       "not_drawn": max(len(usable) - len(replayed), 0)}
    return replayed
