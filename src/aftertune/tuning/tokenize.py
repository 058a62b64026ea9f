"""Owns a corpus as the rows that a run reads: what is trained on, replay mixed in, and what is only measured.

    rows = Rows.of(corpus, tokenizer, Form("chat", max_length=1024), seed=0)
    rows.training, rows.held_out, rows.validation
    rows.counts["training"]         {"rows": 320, "cut": 3, "masked": 0, "tokens": 61204, "learned": 40511}

The loss that is reported, and that which says when to stop, are of the new data alone.

Owns turning examples into token ids with the loss on their answers alone.

    encoded = encode_all(corpus.training, tokenizer, Form("chat", max_length=1024))
    encoded.rows[0].ids, encoded.rows[0].labels      [1, 9690, …, 2], [-100, …, 104, …, 2]

What is learned of a text is said in ``parts.py``. A row's tokens are those of its whole text, as long as each prompt in
it has the tokens that it has on its own, as an evaluation gives it to the model; where a token would reach over that
border, prompt and answer are encoded apart. The beginning-of-sequence token comes once: from the template, or where
that writes none by the tokenizer's own rule, as in an evaluation.

Mixes replayed examples into the training rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from aftertune.errors import InputError
from aftertune.tuning.data import Example
from aftertune.tuning.split import Corpus
from aftertune.tuning.template import Part, opening, rows_of

IGNORED = -100  # torch's cross-entropy skips this label


@dataclass(frozen=True, slots=True)
class Form:
    """How examples become text. template: chat, alpaca or plain; max_length: in tokens, prompt and completion; learn:
    answers, last or all."""

    template: str
    max_length: int
    learn: str = "answers"


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One encoded row; labels are the ids, IGNORED where no loss counts. example: its number among the examples, from
    1; where: the file and line of it."""

    ids: list[int]
    labels: list[int]
    example: int = 0
    where: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded examples and notes on what was cut. cut: rows that lost their end; masked: rows left out, because
    nothing of them is learned within max_length."""

    rows: list[EncodedRow]
    notes: tuple[str, ...]
    cut: int = 0
    masked: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def learned(self) -> int:
        """Tokens on which the loss counts."""
        return sum(label != IGNORED for row in self.rows for label in row.labels)


def encode_all(examples: Sequence[Example], tokenizer: Any, form: Form) -> Encoded:
    """Encode examples. A row longer than max_length is cut at its end; one whose prompt fills it, so that no answer is
    left to learn, is left out; both are counted. No examples give no rows.

    Raises InputError where there are examples and none is left.
    """
    rows: list[EncodedRow] = []
    cut, masked, split, first = 0, 0, 0, ""
    writer = _Writer(tokenizer)
    for number, example in enumerate(examples, 1):
        texts = rows_of(example, tokenizer, form.template, form.learn)
        split += len(texts) > 1
        for parts in texts:
            ids, labels = writer.row(parts)
            if all(label == IGNORED for label in labels[1:form.max_length]):  # nothing predicts the first token
                prompt = next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))
                first = first or (f"the first is {example.where or f'example {number}'} ({opening(example)}) of "
                                  f"{prompt} tokens")
                masked += 1
                continue
            cut += len(ids) > form.max_length
            rows.append(EncodedRow(ids[:form.max_length], labels[:form.max_length], number, example.where))
    if examples and not rows:
        raise InputError(f"the prompts of all {len(examples)} examples fill max_length {form.max_length}, so no "
                         f"completion is left to learn; {first}; raise max_length or shorten them")
    total, notes = len(rows) + masked, []
    what = "rows" if split else "examples"
    if split:
        notes.append(f"the chat template rewrites earlier turns, so each answer is a row of its own: {len(examples)} "
                     f"examples make {total} rows")
    if masked:
        notes.append(f"the prompts of {masked} of {total} {what} ({masked / total:.1%}) fill max_length "
                     f"{form.max_length} and were left out; {first}")
    if writer.endless:
        notes.append("the tokenizer has no end-of-sequence token, so no answer's end is learned and generation will "
                     "need a stop string; set eos_token in tokenizer_config.json")
    return Encoded(rows, tuple(notes), cut, masked)


def spans(row: EncodedRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a row in parts, each with whether it is learned; special tokens are shown as they are written."""
    found: list[tuple[str, bool]] = []
    for learned, part in groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        found.append((tokenizer.decode([i for i, _ in part]), learned))
    return found


class _Writer:
    """Parts as tokens, by one tokenizer. endless: an end that was to be learned has no token."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos, self.end = getattr(tokenizer, "bos_token", None), tokenizer.eos_token_id
        self.endless = False
        self.closes = self.end is not None and self._plain("a")[-1:] != [self.end] == self._own("a")[-1:]

    def row(self, parts: Sequence[Part]) -> tuple[list[int], list[int]]:
        """Ids and labels of a row. After an end-of-sequence token that no text shows, encoding begins anew."""
        ids: list[int] = []
        labels: list[int] = []
        text, since = "", 0  # the text since the last such token, and where its tokens begin
        for part in parts:
            text += part.text
            whole = self._plain(text) if since else self._whole(text)
            head = ids[since:]
            new = whole[len(head):] if whole[:len(head)] == head else self._plain(part.text)
            if part.end and self.end is not None:
                new = [*new, self.end]
            self.endless |= part.end and self.end is None
            ids += new
            labels += new if part.learned else [IGNORED] * len(new)
            if part.end:
                text, since = "", len(ids)
        return ids, labels

    def _whole(self, text: str) -> list[int]:
        """A text from its beginning: special tokens by the tokenizer's rule, but none that the text has already. Some
        tokenizers close every text; the end belongs after the answer."""
        if self.bos and text.startswith(self.bos):
            return self._plain(text)
        ids = self._own(text)
        return ids[:-1] if self.closes and len(ids) > 1 else ids

    def _own(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def mix_replay(new: Sequence[EncodedRow], replayed: Sequence[EncodedRow], seed: int) -> list[EncodedRow]:
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


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """Encoded rows of each side, with counts by side and notes."""

    training: list[EncodedRow]
    held_out: list[EncodedRow]
    validation: list[EncodedRow]
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Any, form: Form, seed: int) -> EncodedCorpus:
        """Encode every side. Raises InputError where nothing of a side is left to learn."""
        sides = {"training": corpus.training, "replay": corpus.replay, "held out": corpus.held_out,
                 "validation": corpus.validation}
        found = {name: encode_all(examples, tokenizer, form) for name, examples in sides.items() if examples}
        empty = Encoded([], ())
        training, replay = found["training"], found.get("replay", empty)
        notes = [f"{name}: {note}" for name, side in found.items() for note in side.notes]
        if replay.rows:
            notes.append(cost_note(training, replay))
        return cls(mix_replay(training.rows, replay.rows, seed), found["held out"].rows,
                   found.get("validation", empty).rows, {name: _counts(side) for name, side in found.items()},
                   tuple(notes))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in (*self.training, *self.held_out, *self.validation))


def _counts(side: Encoded) -> dict[str, int]:
    return {"rows": len(side.rows), "cut": side.cut, "masked": side.masked, "tokens": side.tokens,
            "learned": side.learned}
