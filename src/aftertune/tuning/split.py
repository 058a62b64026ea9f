"""Owns which examples are trained on, which are held out, and which say when to stop.

    corpus = Corpus.load(DataSpec(file="orders.jsonl", examples=200), seed=0)
    len(corpus.training), len(corpus.held_out)     200, 71

Duplicates are removed first; then each example goes to its side by the sha256 of its normalised prompt, so
the held-out part is the same for every size and seed, and so is the validation part, which lies beside it; and only
then a seeded subset is taken, whose smaller sizes lie within the larger ones. Other data that is mixed in (replay)
never reaches the held-out and validation parts, and nothing whose prompt is there is trained on.

Owns when two examples count as the same, and the draws that hang on an example's own text.

    prompt_hash(example)               sha256 of its normalised prompt
    split_point(example)               0.0731…: on which side of a split it falls, whatever the seed and the file
    ranked(examples, seed=0)           the order in which subsets take them

Owns replay: other data mixed in, so that less is forgotten (rehearsal: Robins 1995, Connection Science 7(2)).

    replayed = choose(examples, count=wanted(0.2, 320), seed=0, notes=[])     80 examples for 320 new ones
    rows = mixed(training.rows, replay.rows, seed=0)                          evenly, by the seed alone

The share is that of the final mixture, and it is matched on new examples: all of them stay, and so many others come to
them. What is added costs compute, which ``cost_note`` tells.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aftertune.errors import InputError
from aftertune.sources import fingerprint_rows
from aftertune.study import DataSource, DataSpec, ReplaySpec
from aftertune.tuning.data import Account, Example, Reading, Turns, read_examples


def normal(text: str) -> str:
    """The text after NFKC, case folding and single spaces: equal for texts that read alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def example_key(example: Example) -> tuple[str, str]:
    """Equal for examples whose prompts and completions read alike."""
    return normal(_told(example.conversation)), normal(example.completion)


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


def seeded_order(examples: Sequence[Example], seed: int) -> list[int]:
    """Places of the examples in the order of a seeded hash of prompt and completion: the first N are a seeded subset,
    and lie within the first N + 1."""
    def rank(place: int) -> str:
        text = f"{seed}\n{prompt_hash(examples[place])}\n{examples[place].completion}"
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(range(len(examples)), key=rank)


def without_duplicates(examples: Iterable[Example]) -> tuple[list[Example], int]:
    """The first of each set of examples that read alike, and how many of the others were equal to it."""
    first: dict[tuple[str, str], Example] = {}
    exact = 0
    for example in examples:
        kept = first.setdefault(example_key(example), example)
        exact += kept is not example and kept == example
    return list(first.values()), exact


def _told(turns: Turns) -> str:
    return "\n".join(f"{role}: {text}" for role, text in turns)


def replay_count(share: float, new: int) -> int:
    """How many examples must come to ``new`` ones to be ``share`` of all; at least one."""
    return max(1, round(share / (1 - share) * new))


def choose_replay(examples: Sequence[Example], count: int, seed: int, notes: list[str]) -> list[Example]:
    """``count`` examples, in the order of a seeded hash, so that smaller mixtures lie within larger ones; where there
    are fewer, each stands in as often as is needed, and a note says so."""
    order = seeded_order(examples, seed)
    if count > len(order):
        notes.append(f"replay: {count} examples are needed and {len(order)} are there, so each is shown "
                     f"{count / len(order):.1f} times as often as a new one; give more, or lower the share")
    return [examples[order[place % len(order)]] for place in range(count)]


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
    return [examples[place] for place in sorted(seeded_order(examples, seed)[:size])]


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
    kept, exact = without_duplicates(examples)
    account.counts |= {"duplicates": exact, "alike": len(examples) - len(kept) - exact}
    return kept


def _replayed(spec: ReplaySpec, training: list[Example], kept_out: list[Example], seed: int, account: Account
              ) -> list[Example]:
    """Other examples that make up ``spec.share`` of all: none with a prompt that is kept out, none that is new."""
    found = _distinct(spec.data, account)
    away, new = {prompt_hash(e) for e in kept_out}, {example_key(e) for e in training}
    usable = [e for e in found if prompt_hash(e) not in away and example_key(e) not in new]
    if not usable:
        raise InputError(f"replay {spec.data.file}: none of its {len(found)} examples is left beside the new data and "
                         "what is held out of it; give other data")
    replayed = choose_replay(usable, replay_count(spec.share, len(training)), seed, account.notes)
    account.counts |= {"set_aside": len(found) - len(usable), "replayed": len(replayed),
                       "not_drawn": max(len(usable) - len(replayed), 0)}
    return replayed
