"""Owns replay: other data mixed in, so that less is forgotten (rehearsal: Robins 1995, Connection Science 7(2)).

    replayed = choose(examples, count=wanted(0.2, 320), seed=0, notes=[])     80 examples for 320 new ones
    rows = mixed(training.rows, replay.rows, seed=0)                          evenly, by the seed alone

The share is that of the final mixture, and it is matched on new examples: all of them stay, and so many others come to
them. What is added costs compute, which ``cost_note`` tells.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from aftertune.tuning.data import Example
from aftertune.tuning.encode import Encoded, Row
from aftertune.tuning.likeness import ranked


def wanted(share: float, new: int) -> int:
    """How many examples must come to ``new`` ones to be ``share`` of all; at least one."""
    return max(1, round(share / (1 - share) * new))


def choose(examples: Sequence[Example], count: int, seed: int, notes: list[str]) -> list[Example]:
    """``count`` examples, in the order of a seeded hash, so that smaller mixtures lie within larger ones; where there
    are fewer, each stands in as often as is needed, and a note says so."""
    order = ranked(examples, seed)
    if count > len(order):
        notes.append(f"replay: {count} examples are needed and {len(order)} are there, so each is shown "
                     f"{count / len(order):.1f} times as often as a new one; give more, or lower the share")
    return [examples[order[place % len(order)]] for place in range(count)]


def mixed(new: Sequence[Row], replayed: Sequence[Row], seed: int) -> list[Row]:
    """The rows of both, shuffled by the seed; without replayed ones the new rows as they are."""
    rows = [*new, *replayed]
    if replayed:
        random.Random(f"replay {seed}").shuffle(rows)
    return rows


def cost_note(new: Encoded, replayed: Encoded) -> str:
    """What replay adds: examples and tokens, and their share of all."""
    rows, tokens = len(new.rows) + len(replayed.rows), new.tokens + replayed.tokens
    return (f"replay: {len(replayed.rows):,} of {rows:,} rows ({len(replayed.rows) / rows:.1%}) and "
            f"{replayed.tokens:,} of {tokens:,} tokens ({replayed.tokens / tokens:.1%}) are replayed; that is "
            f"{replayed.tokens / new.tokens:.1%} more to compute than the new data alone")
