"""Owns which examples are trained on, which are held out, and which say when to stop.

    corpus = Corpus.load(DataSpec(file="orders.jsonl", examples=200), seed=0)
    len(corpus.training), len(corpus.held_out)     200, 71

Duplicates are removed first; then each example goes to its side by the sha256 of its normalised prompt, so
the held-out part is the same for every size and seed, and so is the validation part, which lies beside it; and only
then a seeded subset is taken, whose smaller sizes lie within the larger ones.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from aftertune.errors import InputError
from aftertune.sources import fingerprint_rows
from aftertune.study import DataSpec
from aftertune.tuning.data import Example, Reading, Turns, read_examples

#: Share held out where the specification names none …
HELD_OUT = 0.1
#: … and about how many examples at most: a loss needs no more, and 50,000 of Alpaca's 52,002 must be left.
MOST_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training, held-out and validation examples (for early stopping; often none), with notes on what was left out."""

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, spec: DataSpec, seed: int) -> Corpus:
        """Read, deduplicate, split and subset. Raises InputError where too few examples are left."""
        notes: list[str] = []
        reading = Reading(form=spec.format, fields=spec.fields, encoding=spec.encoding, split=spec.split,
                          skip_bad=spec.skip_bad)
        examples = _distinct(read_examples(spec.file, reading, notes), str(spec.file), notes)
        if spec.held_out_file is not None:
            held_out = _distinct(read_examples(spec.held_out_file, reading, notes), str(spec.held_out_file), notes)
            rest, share = _without(examples, held_out, notes), 0.0
        else:
            share = spec.held_out or min(HELD_OUT, MOST_HELD_OUT / len(examples))
            held_out = [e for e in examples if split_point(e) < share]
            rest = [e for e in examples if split_point(e) >= share]
        until = share + (spec.validation or 0.0)
        validation = [e for e in rest if split_point(e) < until]
        training = [e for e in rest if split_point(e) >= until]
        sides = {"training": training, "held-out": held_out} | ({"validation": validation} if spec.validation else {})
        if not all(sides.values()):
            counts = ", ".join(f"{len(side)} {name}" for name, side in sides.items())
            raise InputError(f"{spec.file}: {counts} examples ({len(examples)} distinct ones); each side needs one; "
                             "add examples, or set held_out and validation")
        if spec.examples is not None:
            training = subset(training, spec.examples, seed, where=str(spec.file))
        return cls(tuple(training), tuple(held_out), tuple(validation), tuple(notes))

    @property
    def fingerprint(self) -> str:
        """sha256 of the training examples, in order."""
        return fingerprint_rows(e.row() for e in self.training)

    @property
    def held_out_fingerprint(self) -> str:
        """sha256 of the held-out examples, in order."""
        return fingerprint_rows(e.row() for e in self.held_out)

    @property
    def validation_fingerprint(self) -> str:
        """sha256 of the validation examples, in order."""
        return fingerprint_rows(e.row() for e in self.validation)


def normal(text: str) -> str:
    """The text after NFKC, case folding and single spaces: equal for texts that read alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_hash(example: Example) -> str:
    """sha256 of the normalised prompt; of a conversation what leads to its first answer, so that two that begin alike
    lie on one side of the split."""
    roles = [role for role, _ in example.conversation]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    text = _told(example.conversation[:first]) or example.completion
    return hashlib.sha256(normal(text).encode()).hexdigest()


def split_point(example: Example) -> float:
    """Where the prompt falls in [0, 1): held out where below the held-out share."""
    return int(prompt_hash(example)[:13], 16) / 16**13


def subset(examples: list[Example], size: int, seed: int, *, where: str) -> list[Example]:
    """``size`` examples, chosen by a seeded hash of their prompt and completion; nested over sizes.

    They keep the file's order. Raises InputError where there are fewer than ``size``.
    """
    if size > len(examples):
        raise InputError(f"{where}: examples: {size} asked for, but {len(examples)} are left for training "
                         "after duplicates, the held-out and the validation part; lower `examples` or add data")

    def rank(place: int) -> str:
        key = f"{seed}\n{prompt_hash(examples[place])}\n{examples[place].completion}"
        return hashlib.sha256(key.encode()).hexdigest()

    return [examples[i] for i in sorted(sorted(range(len(examples)), key=rank)[:size])]


def _distinct(examples: list[Example], where: str, notes: list[str]) -> list[Example]:
    """The first of each set of examples whose prompt and completion read alike."""
    first: dict[tuple[str, str], Example] = {}
    exact = 0
    for example in examples:
        kept = first.setdefault((normal(_told(example.conversation)), normal(example.completion)), example)
        exact += kept is not example and kept == example
    if len(first) < len(examples):
        notes.append(f"{where}: {len(examples) - len(first)} of {len(examples)} examples were duplicates and left out: "
                     f"{exact} exact, {len(examples) - len(first) - exact} but for case, spaces or Unicode form")
    return list(first.values())


def _told(turns: Turns) -> str:
    return "\n".join(f"{role}: {text}" for role, text in turns)


def _without(examples: list[Example], held_out: list[Example], notes: list[str]) -> list[Example]:
    seen = {prompt_hash(e) for e in held_out}
    kept = [e for e in examples if prompt_hash(e) not in seen]
    if len(kept) < len(examples):
        notes.append(f"{len(examples) - len(kept)} training examples have a prompt of the held-out file "
                     "and were left out")
    return kept
