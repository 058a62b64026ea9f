"""Owns which examples are trained on, which are held out, and which say when to stop.

    corpus = Corpus.load(DataSpec(file="orders.jsonl", examples=200), seed=0)
    len(corpus.training), len(corpus.held_out)     200, 71

Duplicates are removed first; then each example goes to its side by the sha256 of its normalised prompt, so
the held-out part is the same for every size and seed, and so is the validation part, which lies beside it; and only
then a seeded subset is taken, whose smaller sizes lie within the larger ones. Other data that is mixed in (replay)
never reaches the held-out and validation parts, and nothing whose prompt is there is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aftertune.errors import InputError
from aftertune.sources import fingerprint_rows
from aftertune.study import DataSource, DataSpec, ReplaySpec
from aftertune.tuning.data import Account, Example, Reading, read_examples
from aftertune.tuning.likeness import distinct, key, prompt_hash, ranked, split_point
from aftertune.tuning.replay import choose, wanted

#: Share held out where the specification names none …
HELD_OUT = 0.1
#: … and about how many examples at most: a loss needs no more, and 50,000 of Alpaca's 52,002 must be left.
MOST_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training, held-out and validation examples (for early stopping; often none), and those that are replayed beside
    the training ones; counts of what each file gave, and notes on what was left out."""

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    replay: tuple[Example, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, spec: DataSpec, seed: int, replay: ReplaySpec | None = None) -> Corpus:
        """Read, deduplicate, split, subset and mix. Raises InputError where too few examples are left."""
        account = Account()
        examples = _distinct(spec, account)
        held_out, validation, training = _sides(spec, examples, account)
        drawn = training if spec.examples is None else subset(training, spec.examples, seed, where=str(spec.file))
        account.counts |= {"training": len(drawn), "not_drawn": len(training) - len(drawn),
                           "validation": len(validation), "held_out": len(held_out)}
        counts, notes, replayed = {"data": account.counts}, account.notes, []
        if replay is not None:
            other = Account()
            replayed = _replayed(replay, drawn, [*held_out, *validation], seed, other)
            counts["replay_data"] = other.counts
            notes = [*notes, *other.notes]
        return cls(tuple(drawn), tuple(held_out), tuple(validation), tuple(replayed), counts, tuple(notes))

    @property
    def fingerprint(self) -> str:
        """sha256 of the training examples, in order, and of those replayed."""
        return fingerprint_rows(e.row() for e in (*self.training, *self.replay))

    @property
    def held_out_fingerprint(self) -> str:
        """sha256 of the held-out examples, in order."""
        return fingerprint_rows(e.row() for e in self.held_out)

    @property
    def validation_fingerprint(self) -> str:
        """sha256 of the validation examples, in order."""
        return fingerprint_rows(e.row() for e in self.validation)

    @property
    def replay_fingerprint(self) -> str:
        """sha256 of the replayed examples, in order."""
        return fingerprint_rows(e.row() for e in self.replay)


def subset(examples: list[Example], size: int, seed: int, *, where: str) -> list[Example]:
    """``size`` examples, chosen by a seeded hash of their prompt and completion; nested over sizes.

    They keep the file's order. Raises InputError where there are fewer than ``size``.
    """
    if size > len(examples):
        raise InputError(f"{where}: examples: {size} asked for, but {len(examples)} are left for training "
                         "after duplicates, the held-out and the validation part; lower `examples` or add data")
    return [examples[place] for place in sorted(ranked(examples, seed)[:size])]


def _sides(spec: DataSpec, examples: list[Example], account: Account
           ) -> tuple[list[Example], list[Example], list[Example]]:
    """Held-out, validation and training examples."""
    if spec.held_out_file is not None:
        other = spec.model_copy(update={"file": spec.held_out_file})
        told = Account(notes=account.notes)
        held_out, share = _distinct(other, told), 0.0
        seen = {prompt_hash(e) for e in held_out}
        rest = [e for e in examples if prompt_hash(e) not in seen]
        account.counts["in_held_out_file"] = len(examples) - len(rest)
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
    return held_out, validation, training


def _distinct(source: DataSource, account: Account) -> list[Example]:
    """The examples of a file, each once."""
    reading = Reading(form=source.format, fields=source.fields, encoding=source.encoding, split=source.split,
                      subset=source.subset, skip_bad=source.skip_bad)
    examples = read_examples(source.file, reading, account)
    kept, exact = distinct(examples)
    account.counts |= {"duplicates": exact, "alike": len(examples) - len(kept) - exact}
    return kept


def _replayed(spec: ReplaySpec, training: list[Example], kept_out: list[Example], seed: int, account: Account
              ) -> list[Example]:
    """Other examples that make up ``spec.share`` of all: none with a prompt that is kept out, none that is new."""
    found = _distinct(spec.data, account)
    away, new = {prompt_hash(e) for e in kept_out}, {key(e) for e in training}
    usable = [e for e in found if prompt_hash(e) not in away and key(e) not in new]
    if not usable:
        raise InputError(f"replay {spec.data.file}: none of its {len(found)} examples is left beside the new data and "
                         "what is held out of it; give other data")
    replayed = choose(usable, wanted(spec.share, len(training)), seed, account.notes)
    account.counts |= {"set_aside": len(found) - len(usable), "replayed": len(replayed),
                       "not_drawn": max(len(usable) - len(replayed), 0)}
    return replayed
