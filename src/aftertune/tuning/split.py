"""Splits a data file into training, held-out and validation examples, and chooses replayed examples.

    corpus = Corpus.load(DataSpec(file="orders.jsonl", examples=200), seed=0)
    len(corpus.training), len(corpus.held_out)     200, 71
    split_point(example)                           0.0731…: held out if it is below the held-out share

The order of the steps:

1. Duplicates are removed.
2. The SHA-256 of an example's normalised prompt decides whether it is held out, used for validation or trained on. So
   the held-out and validation sets are the same for every size and seed.
3. ``examples`` takes a seeded subset of the training examples. Smaller subsets are contained in larger ones.
4. Replay mixes other data in, so that the model forgets less (rehearsal: Robins 1995, Connection Science 7(2)). The
   share is that of the final mixture: all new examples stay, and other examples are added. An example whose prompt is
   held out or used for validation is never replayed.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aftertune.errors import InputError
from aftertune.sources import fingerprint_rows
from aftertune.study import DataSource, DataSpec, ReplaySpec
from aftertune.tuning.data import ReadOptions, ReadReport, read_examples
from aftertune.tuning.example import Example, Turns

# --- Duplicates, and orders that depend on the text of an example ---


def normalized(text: str) -> str:
    """The text after NFKC, case folding, and with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def example_key(example: Example) -> tuple[str, str]:
    """The normalised prompt and completion; equal for duplicates."""
    return normalized(_turns_text(example.conversation)), normalized(example.completion)


def prompt_hash(example: Example) -> str:
    """SHA-256 of the normalised prompt. For a conversation this is the part before its first answer, so that two
    conversations with the same start are on the same side of the split."""
    roles = [role for role, _ in example.conversation]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    text = _turns_text(example.conversation[:first]) or example.completion
    return hashlib.sha256(normalized(text).encode()).hexdigest()


def split_point(example: Example) -> float:
    """A number in [0, 1) from the hash of the prompt; the example is held out if it is below the held-out share."""
    return int(prompt_hash(example)[:13], 16) / 16**13


def seeded_order(examples: Sequence[Example], seed: int) -> list[int]:
    """The indices of the examples, ordered by a seeded hash of prompt and completion. The first N of them are a random
    subset, and part of the first N + 1."""
    def rank(index: int) -> str:
        text = f"{seed}\n{prompt_hash(examples[index])}\n{examples[index].completion}"
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(range(len(examples)), key=rank)


def without_duplicates(examples: Iterable[Example]) -> tuple[list[Example], int]:
    """The examples without duplicates (the first of each stays), and how many of the duplicates were exactly equal."""
    first: dict[tuple[str, str], Example] = {}
    exact = 0
    for example in examples:
        original = first.setdefault(example_key(example), example)
        exact += original is not example and original == example
    return list(first.values()), exact


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


# --- The corpus ---

#: The held-out share if the specification names none.
HELD_OUT = 0.1
#: About the most examples that are then held out: a loss needs no more, and 50,000 of Alpaca's 52,002 must be left.
MAX_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Corpus:
    """The examples of a fine-tune.

    validation: for early stopping; empty without it. replay: other examples, trained on with the new ones. counts: of
    the rows of each file ("data", "replay_data"). notes: on what was left out.
    """

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    replay: tuple[Example, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, spec: DataSpec, seed: int, replay: ReplaySpec | None = None) -> Corpus:
        """Read, deduplicate, split, subset and mix. Raises InputError if too few examples are left."""
        report = ReadReport()
        examples = _distinct(spec, report)
        held_out, validation, training = _split(spec, examples, report)
        drawn = training if spec.examples is None else subset(training, spec.examples, seed, where=str(spec.file))
        report.counts |= {"training": len(drawn), "not_drawn": len(training) - len(drawn),
                           "validation": len(validation), "held_out": len(held_out)}
        counts, notes, replayed = {"data": report.counts}, report.notes, []
        if replay is not None:
            replay_report = ReadReport()
            replayed = _replayed(replay, drawn, [*held_out, *validation], seed, replay_report)
            counts["replay_data"] = replay_report.counts
            notes = [*notes, *replay_report.notes]
        return cls(tuple(drawn), tuple(held_out), tuple(validation), tuple(replayed), counts, tuple(notes))

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


def _split(spec: DataSpec, examples: list[Example], report: ReadReport
           ) -> tuple[list[Example], list[Example], list[Example]]:
    """Held-out, validation and training examples."""
    if spec.held_out_file is not None:
        held_out_spec = spec.model_copy(update={"file": spec.held_out_file})
        held_out, share = _distinct(held_out_spec, ReadReport(notes=report.notes)), 0.0
        prompts = {prompt_hash(e) for e in held_out}
        rest = [e for e in examples if prompt_hash(e) not in prompts]
        report.counts["in_held_out_file"] = len(examples) - len(rest)
    else:
        share = spec.held_out or min(HELD_OUT, MAX_HELD_OUT / len(examples))
        held_out = [e for e in examples if split_point(e) < share]
        rest = [e for e in examples if split_point(e) >= share]
    validation_end = share + (spec.validation or 0.0)
    validation = [e for e in rest if split_point(e) < validation_end]
    training = [e for e in rest if split_point(e) >= validation_end]
    sides = {"training": training, "held-out": held_out} | ({"validation": validation} if spec.validation else {})
    if not all(sides.values()):
        counts = ", ".join(f"{len(side)} {name}" for name, side in sides.items())
        raise InputError(f"{spec.file}: {counts} examples ({len(examples)} distinct ones); each set needs at least "
                         "one; add examples, or change held_out and validation")
    return held_out, validation, training


def _distinct(source: DataSource, report: ReadReport) -> list[Example]:
    """The examples of a file without duplicates."""
    options = ReadOptions(form=source.format, fields=source.fields, encoding=source.encoding, split=source.split,
                      subset=source.subset, skip_bad=source.skip_bad)
    examples = read_examples(source.file, options, report)
    distinct, exact = without_duplicates(examples)
    report.counts |= {"duplicates": exact, "alike": len(examples) - len(distinct) - exact}
    return distinct


def _replayed(spec: ReplaySpec, training: list[Example], held_out: list[Example], seed: int, report: ReadReport
              ) -> list[Example]:
    """Other examples that make up ``spec.share`` of all. Examples with a held-out prompt, and those that are in the
    training set, are not used."""
    examples = _distinct(spec.data, report)
    prompts, new = {prompt_hash(e) for e in held_out}, {example_key(e) for e in training}
    usable = [e for e in examples if prompt_hash(e) not in prompts and example_key(e) not in new]
    if not usable:
        raise InputError(f"replay {spec.data.file}: each of its {len(examples)} examples is in the new data or has a "
                         "held-out prompt; give other data")
    replayed = choose_replay(usable, replay_count(spec.share, len(training)), seed, report.notes)
    report.counts |= {"set_aside": len(examples) - len(usable), "replayed": len(replayed),
                       "not_drawn": max(len(usable) - len(replayed), 0)}
    return replayed
