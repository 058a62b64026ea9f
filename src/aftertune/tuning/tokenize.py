"""Encodes examples as token ids with labels, so that the loss counts on their answers alone.

    rows = EncodedCorpus.from_corpus(corpus, tokenizer, EncodeOptions("chat", max_length=1024), seed=0)
    rows.training, rows.held_out, rows.validation
    rows.training[0].ids, rows.training[0].labels      [1, 9690, …, 2], [-100, …, 104, …, 2]
    rows.counts["training"]         {"rows": 320, "cut": 3, "masked": 0, "tokens": 61204, "learned": 40511}

`aftertune.tuning.template` says which text is learned. A row has the tokens of its whole text, as long as each prompt
in it has the same tokens that it has alone, as in an evaluation. Where a token would cross the border between prompt
and answer, both are encoded separately. There is one beginning-of-sequence token: from the template or, if that writes
none, by the tokenizer's own rule, as in an evaluation.

Replayed rows are mixed into the training rows. The held-out and validation rows come from the new data only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError
from aftertune.tuning.example import Example
from aftertune.tuning.split import Corpus
from aftertune.tuning.template import Segment, excerpt, render_example

if TYPE_CHECKING:
    from aftertune.study import TuneSpec

#: The label of a token that does not count in the loss; torch's cross-entropy ignores it.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How examples become tokens. template: chat, alpaca or plain; max_length: most tokens of a row, prompt and
    completion together; learn: answers, last or all. skip_bad, replay_skip_bad: leave out the new or replayed examples
    that the template refuses, and count them."""

    template: str
    max_length: int
    learn: str = "answers"
    skip_bad: bool = False
    replay_skip_bad: bool = False

    @classmethod
    def of(cls, spec: TuneSpec) -> EncodeOptions:
        """The options of a fine-tune."""
        return cls(spec.template, spec.max_length, spec.learn, spec.data.skip_bad,
                   spec.replay is not None and spec.replay.data.skip_bad)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One encoded row. labels: the ids, or IGNORED where the loss does not count. example: the number of its example,
    from 1; where: file and line of the example."""

    ids: list[int]
    labels: list[int]
    example: int = 0
    where: str = ""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded examples. cut: the number of rows whose end was cut off; masked: the number of rows left out, because
    nothing is learned within max_length; refused: the number of examples left out, because the template refuses them;
    notes: on all of them."""

    rows: list[EncodedRow]
    notes: tuple[str, ...]
    cut: int = 0
    masked: int = 0
    refused: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def learned(self) -> int:
        """Tokens that count in the loss."""
        return sum(label != IGNORED for row in self.rows for label in row.labels)


def encode_all(examples: Sequence[Example], tokenizer: Any, options: EncodeOptions) -> Encoded:
    """Encode examples.

    A row longer than max_length is cut at its end. A row whose prompt alone fills max_length has nothing to learn, so
    it is left out, and so is an example that the template refuses, with ``skip_bad``. All are counted. Raises
    InputError, with file and line, for a refused example, and if there are examples but no row is left.
    """
    rows: list[EncodedRow] = []
    cut, masked, split, first = 0, 0, 0, ""
    encoder = _Encoder(tokenizer)
    rendered, refused = _render_all(examples, tokenizer, options)
    for number, example, texts in rendered:
        split += len(texts) > 1
        for segments in texts:
            ids, labels = encoder.encode(segments)
            if all(label == IGNORED for label in labels[1:options.max_length]):  # the first token is not predicted
                prompt = next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))
                first = first or (f"the first is {example.where or f'example {number}'} ({excerpt(example)}) of "
                                  f"{prompt} tokens")
                masked += 1
                continue
            cut += len(ids) > options.max_length
            rows.append(EncodedRow(ids[:options.max_length], labels[:options.max_length], number, example.where))
    if examples and not rows:
        raise InputError(f"the prompts of all {len(rendered)} examples fill max_length {options.max_length}, so "
                         f"nothing can be learned; {first}; raise max_length, or shorten the prompts")
    total, notes = len(rows) + masked, []
    unit = "rows" if split else "examples"
    if refused:
        notes.append(f"template {options.template} refuses {len(refused)} of {len(examples)} examples, so they were "
                     f"left out; the first: {refused[0]}")
    if split:
        notes.append("the chat template rewrites earlier turns, so each answer became a separate row: "
                     f"{len(examples)} examples gave {total} rows")
    if masked:
        notes.append(f"the prompts of {masked} of {total} {unit} ({masked / total:.1%}) fill max_length "
                     f"{options.max_length}, so they were left out; {first}")
    if encoder.lacks_end:
        notes.append("the tokenizer has no end-of-sequence token, so the model does not learn to end an answer and "
                     "generation needs a stop string; set eos_token in tokenizer_config.json")
    return Encoded(rows, tuple(notes), cut, masked, len(refused))


def _render_all(examples: Sequence[Example], tokenizer: Any, options: EncodeOptions
                ) -> tuple[list[tuple[int, Example, list[list[Segment]]]], list[str]]:
    """The examples that the template renders, each with its number from 1 and its rows; and, with ``skip_bad``, why it
    refuses the others. Raises InputError, with file and line, for the first refused one, or if all are refused."""
    rendered, refused = [], []
    for number, example in enumerate(examples, 1):
        try:
            rendered.append((number, example, render_example(example, tokenizer, options.template, options.learn)))
        except InputError as error:
            refused.append(f"{example.where}: {error}" if example.where else str(error))
            if not options.skip_bad:
                raise InputError(refused[0]) from error
    if examples and not rendered:
        raise InputError(f"template {options.template} refuses all {len(examples)} examples; the first: {refused[0]}")
    return rendered, refused


def text_spans(row: EncodedRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a row with its special tokens, in parts: (text, whether it is learned)."""
    return [(tokenizer.decode([i for i, _ in pairs]), learned) for learned, pairs in
            groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)]


class _Encoder:
    """Encodes segments with one tokenizer. lacks_end: a segment should end with an end-of-sequence token, but the
    tokenizer has none."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos, self.end = getattr(tokenizer, "bos_token", None), tokenizer.eos_token_id
        self.lacks_end = False
        self.closes = self.end is not None and self._plain("a")[-1:] != [self.end] == self._default("a")[-1:]

    def encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        """Ids and labels of a row. Encoding starts again after each end-of-sequence token that is added to the text."""
        ids: list[int] = []
        labels: list[int] = []
        text, start = "", 0  # the text since the last such token, and the index of its first id
        for segment in segments:
            text += segment.text
            text_ids = self._plain(text) if start else self._from_start(text)
            head = ids[start:]
            new = text_ids[len(head):] if text_ids[:len(head)] == head else self._plain(segment.text)
            if segment.end and self.end is not None:
                new = [*new, self.end]
            self.lacks_end |= segment.end and self.end is None
            ids += new
            labels += new if segment.learned else [IGNORED] * len(new)
            if segment.end:
                text, start = "", len(ids)
        return ids, labels

    def _from_start(self, text: str) -> list[int]:
        """The ids of a row's first text, with the tokenizer's special tokens unless the text has them. An end that some
        tokenizers add to every text is removed, because it belongs after the answer."""
        if self.bos and text.startswith(self.bos):
            return self._plain(text)
        ids = self._default(text)
        return ids[:-1] if self.closes and len(ids) > 1 else ids

    def _default(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def mix_replay(new: Sequence[EncodedRow], replayed: Sequence[EncodedRow], seed: int) -> list[EncodedRow]:
    """The rows of both, shuffled by the seed; without replayed rows, the new rows unchanged."""
    rows = [*new, *replayed]
    if replayed:
        random.Random(f"replay {seed}").shuffle(rows)
    return rows


def replay_note(new: Encoded, replayed: Encoded) -> str:
    """A note on the rows and tokens that replay adds, and on their share."""
    rows, tokens = len(new.rows) + len(replayed.rows), new.tokens + replayed.tokens
    return (f"replay: {len(replayed.rows):,} of {rows:,} rows ({len(replayed.rows) / rows:.1%}) and "
            f"{replayed.tokens:,} of {tokens:,} tokens ({replayed.tokens / tokens:.1%}) are replayed; this is "
            f"{replayed.tokens / new.tokens:.1%} more computation than for the new data alone")


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """The encoded rows of a corpus. training: new and replayed rows, mixed. counts: of the rows and tokens of each set
    ("training", "replay", "held out", "validation"). notes: on what was cut, left out and added."""

    training: list[EncodedRow]
    held_out: list[EncodedRow]
    validation: list[EncodedRow]
    counts: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]

    @classmethod
    def from_corpus(cls, corpus: Corpus, tokenizer: Any, options: EncodeOptions, seed: int) -> EncodedCorpus:
        """Encode every set. Raises InputError if a set has examples but nothing to learn."""
        sets = {"training": corpus.training, "replay": corpus.replay, "held out": corpus.held_out,
                "validation": corpus.validation}
        replayed = replace(options, skip_bad=options.replay_skip_bad)
        encoded = {name: encode_all(examples, tokenizer, replayed if name == "replay" else options)
                   for name, examples in sets.items() if examples}
        empty = Encoded([], ())
        training, replay = encoded["training"], encoded.get("replay", empty)
        notes = [f"{name}: {note}" for name, rows in encoded.items() for note in rows.notes]
        if replay.rows:
            notes.append(replay_note(training, replay))
        return cls(mix_replay(training.rows, replay.rows, seed), encoded["held out"].rows,
                   encoded.get("validation", empty).rows, {name: _counts(rows) for name, rows in encoded.items()},
                   tuple(notes))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in (*self.training, *self.held_out, *self.validation))


def _counts(encoded: Encoded) -> dict[str, int]:
    return {"rows": len(encoded.rows), "cut": encoded.cut, "masked": encoded.masked, "tokens": encoded.tokens,
            "learned": encoded.learned} | ({"refused": encoded.refused} if encoded.refused else {})
