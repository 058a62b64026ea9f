"""Owns a corpus as the rows that a run reads: what is trained on, replay mixed in, and what is only measured.

    rows = Rows.of(corpus, tokenizer, Form("chat", max_length=1024), seed=0)
    rows.training, rows.held_out, rows.validation
    rows.counts["training"]         {"rows": 320, "cut": 3, "masked": 0, "tokens": 61204, "learned": 40511}

The loss that is reported, and that which says when to stop, are of the new data alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aftertune.tuning.corpus import Corpus
from aftertune.tuning.encode import Encoded, Form, Row, encode_all
from aftertune.tuning.replay import cost_note, mixed


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows of each side, with counts by side and notes."""

    training: list[Row]
    held_out: list[Row]
    validation: list[Row]
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Any, form: Form, seed: int) -> Rows:
        """Encode every side. Raises InputError where nothing of a side is left to learn."""
        sides = {"training": corpus.training, "replay": corpus.replay, "held out": corpus.held_out,
                 "validation": corpus.validation}
        found = {name: encode_all(examples, tokenizer, form) for name, examples in sides.items() if examples}
        empty = Encoded([], ())
        training, replay = found["training"], found.get("replay", empty)
        notes = [f"{name}: {note}" for name, side in found.items() for note in side.notes]
        if replay.rows:
            notes.append(cost_note(training, replay))
        return cls(mixed(training.rows, replay.rows, seed), found["held out"].rows,
                   found.get("validation", empty).rows, {name: _counts(side) for name, side in found.items()},
                   tuple(notes))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in (*self.training, *self.held_out, *self.validation))


def _counts(side: Encoded) -> dict[str, int]:
    return {"rows": len(side.rows), "cut": side.cut, "masked": side.masked, "tokens": side.tokens,
            "learned": side.learned}
