"""Encodes examples as token ids with labels, so that the loss counts on their answers alone.

    rows = EncodedCorpus.from_corpus(corpus, tokenizer, EncodeOptions("chat", max_length=1024), seed=0)
    rows.training, rows.held_out, rows.validation
    rows.training[0].ids, rows.training[0].labels      [1, 9690, …, 2], [-100, …, 104, …, 2]
    rows.counts["training"]         {"rows": 320, "cut": 3, "masked": 0, "tokens": 61204, "learned": 40511}

`aftertune.tuning.template` says which text is learned. A row has the tokens of its whole text. With a chat template
these are the tokens of plain ``apply_chat_template``, and a token that crosses the border between prompt and answer is
learned, as in transformers' mask. With another template, where a token would cross that border, both sides are encoded
separately, so that the prompt has the tokens that it has alone. There is one beginning-of-sequence token: from the
template or, if that writes none, by the tokenizer's own rule, as in an evaluation. A text that ends with the
end-of-sequence token gets no second one.

Replayed rows are mixed into the training rows. The held-out and validation rows come from the new data only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError
from aftertune.tasks.chat_template import template_date
from aftertune.tuning.example import Example
from aftertune.tuning.split import Corpus
from aftertune.tuning.template import Renderer, Segment, excerpt

if TYPE_CHECKING:
    from aftertune.study import TuneSpec

#: Of a long text, so many characters for each token of max_length are encoded at first; and the tokens before the cut
#: that must be left over, because the last tokens of a cut text are not those of the whole one.
CHARACTERS, MARGIN = 32, 32
#: The label of a token that does not count in the loss; torch's cross-entropy ignores it.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How examples become tokens. template: chat, alpaca or plain; max_length: most tokens of a row, prompt and
    completion together; learn: answers, last or all. skip_bad, replay_skip_bad: leave out the new or replayed examples
    that the template refuses, and count them. day: the date that a chat template writes, as YYYY-MM-DD; None for the
    date of the day."""

    template: str
    max_length: int
    learn: str = "answers"
    skip_bad: bool = False
    replay_skip_bad: bool = False
    day: str | None = None

    @classmethod
    def of(cls, spec: TuneSpec, tokenizer: Any) -> EncodeOptions:
        """The options of a fine-tune. tokenizer: of its model; its template may write a date."""
        return cls(spec.template, spec.max_length, spec.learn, spec.data.skip_bad,
                   spec.replay is not None and spec.replay.data.skip_bad,
                   template_date(tokenizer, spec.template_date) if spec.template == "chat" else None)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One encoded row. labels: the ids, or IGNORED where the loss does not count. example: the number of its example,
    from 1; where: file and line of the example; replayed: it is a replayed example."""

    ids: list[int]
    labels: list[int]
    example: int = 0
    where: str = ""
    replayed: bool = False


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
    encoder = _Encoder(tokenizer, whole=options.template == "chat")
    renderer = Renderer(tokenizer, options.template, options.learn, options.day)
    refused: list[str] = []
    for number, example, texts in _render_all(examples, renderer, options, refused):
        split += len(texts) > 1
        for segments in texts:
            ids, labels, longer = _encode_start(encoder, segments, options.max_length)
            if all(label == IGNORED for label in labels[1:options.max_length]):  # the first token is not predicted
                prompt = next((n for n, label in enumerate(labels) if label != IGNORED), len(labels))
                first = first or (f"the first is {example.where or f'example {number}'} ({excerpt(example)}) of "
                                  f"{'more than ' if longer else ''}{prompt} tokens")
                masked += 1
                continue
            cut += len(ids) > options.max_length
            rows.append(EncodedRow(ids[:options.max_length], labels[:options.max_length], number, example.where))
    if examples and not rows:
        raise InputError(f"the prompts of all {len(examples) - len(refused)} examples fill max_length "
                         f"{options.max_length}, so nothing can be learned; {first}; raise max_length, or shorten the "
                         "prompts")
    total, notes = len(rows) + masked, []
    unit = "rows" if split else "examples"
    if refused:
        notes.append(f"template {options.template} refuses {len(refused)} of {len(examples)} examples, so they were "
                     f"left out; the first: {refused[0]}")
    notes += renderer.notes()
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


def _render_all(examples: Sequence[Example], renderer: Renderer, options: EncodeOptions, refused: list[str]
                ) -> Iterator[tuple[int, Example, list[list[Segment]]]]:
    """The examples that the template renders, each with its number from 1 and its rows.

    refused: receives, with ``skip_bad``, why the template refuses the others. Raises InputError, with file and line,
    for the first refused one, or if all are refused.
    """
    for number, example in enumerate(examples, 1):
        try:
            rows = renderer.rows(example)
        except InputError as error:
            refused.append(f"{example.where}: {error}" if example.where else str(error))
            if not options.skip_bad:
                raise InputError(refused[0]) from error
        else:
            yield number, example, rows
    if examples and len(refused) == len(examples):
        raise InputError(f"template {options.template} refuses all {len(examples)} examples; the first: {refused[0]}")


def _encode_start(encoder: _Encoder, segments: Sequence[Segment], max_length: int) -> tuple[list[int], list[int], bool]:
    """Ids and labels of a row; of a very long text only those of a start that has more than max_length tokens. Also
    whether the row is longer. A row is cut at max_length, and to encode 10 MB takes seconds and gigabytes."""
    size = CHARACTERS * max_length
    while 2 * size < sum(len(segment.text) for segment in segments):
        ids, labels = encoder.encode(_first_characters(segments, size))
        if len(ids) > max_length + MARGIN:
            return ids, labels, True
        size *= 4
    return *encoder.encode(segments), False


def _first_characters(segments: Sequence[Segment], size: int) -> list[Segment]:
    """The segments of the first ``size`` characters; the last of them is cut."""
    first: list[Segment] = []
    for segment in segments:
        if len(segment.text) > size:
            return [*first, replace(segment, text=segment.text[:size], end=False)]
        first.append(segment)
        size -= len(segment.text)
    return first


def text_spans(row: EncodedRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a row with its special tokens, in parts: (text, whether it is learned)."""
    return [(tokenizer.decode([i for i, _ in pairs]), learned) for learned, pairs in
            groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED)]


class _Encoder:
    """Encodes segments with one tokenizer. whole: a row has the tokens of its whole text also where one crosses the
    border of a segment, if the tokenizer knows which characters a token stands for. lacks_end: a segment should end
    with an end-of-sequence token, but the tokenizer has none."""

    def __init__(self, tokenizer: Any, *, whole: bool = False) -> None:
        self.tokenizer, self.whole = tokenizer, whole
        self.bos, self.end = getattr(tokenizer, "bos_token", None), tokenizer.eos_token_id
        self.lacks_end = False
        self.closes = self.end is not None and self._plain("a")[-1:] != [self.end] == self._default("a")[-1:]

    def encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        """Ids and labels of a row. Encoding starts again after each end-of-sequence token that is added to the text."""
        ids: list[int] = []
        labels: list[int] = []
        while segments:
            last = next((n for n, segment in enumerate(segments) if segment.end), len(segments) - 1)
            part, segments = segments[:last + 1], segments[last + 1:]
            new, learned = self._part([self._without_space_after_end(s) for s in part], first=not ids)
            if part[-1].end:
                self.lacks_end |= self.end is None
                if self.end is not None and new[-1:] != [self.end]:
                    new, learned = [*new, self.end], [*learned, part[-1].learned]
            ids += new
            labels += [i if wanted else IGNORED for i, wanted in zip(new, learned, strict=True)]
        return ids, labels

    def _part(self, segments: Sequence[Segment], *, first: bool) -> tuple[list[int], list[bool]]:
        """Ids of segments, and which of them are learned. first: the row starts with them."""
        encode = self._from_start if first else self._plain
        text = "".join(segment.text for segment in segments)
        if self.whole and (letters := self._letters(text, ids := encode(text))):
            learned = _learned_letters(segments)
            return ids, [any(learned[start:end]) for start, end in letters]
        ids, text = [], ""
        wanted: list[bool] = []
        for segment in segments:
            text += segment.text
            so_far = encode(text)
            ids += so_far[len(ids):] if so_far[:len(ids)] == ids else self._plain(segment.text)
            wanted += [segment.learned] * (len(ids) - len(wanted))
        return ids, wanted

    def _letters(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """The part of the text that each of its tokens stands for, as (start, end) of characters; empty for a tokenizer
        that does not know."""
        for special in (False, True) if getattr(self.tokenizer, "is_fast", False) else ():
            found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
            if list(found["input_ids"])[:len(ids)] == ids:
                at, letters = 0, []
                for start, end in found["offset_mapping"][:len(ids)]:
                    letters.append((min(start, at), end))  # some tokenizers leave white space out
                    at = max(at, end)
                return letters
        return []

    def _without_space_after_end(self, segment: Segment) -> Segment:
        """The segment without the white space after an end-of-sequence token that its text has at its end."""
        end, text = getattr(self.tokenizer, "eos_token", None), segment.text.rstrip()
        return replace(segment, text=text) if segment.end and end and text.endswith(end) else segment

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


def _learned_letters(segments: Sequence[Segment]) -> bytes:
    """For each character of the segments' text, 1 if it is learned."""
    return b"".join((b"\1" if segment.learned else b"\0") * len(segment.text) for segment in segments)


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
        replayed_rows = [replace(row, replayed=True) for row in replay.rows]
        return cls(mix_replay(training.rows, replayed_rows, seed), encoded["held out"].rows,
                   encoded.get("validation", empty).rows, {name: _counts(rows) for name, rows in encoded.items()},
                   tuple(notes))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in (*self.training, *self.held_out, *self.validation))


def _counts(encoded: Encoded) -> dict[str, int]:
    return {"rows": len(encoded.rows), "cut": encoded.cut, "masked": encoded.masked, "tokens": encoded.tokens,
            "learned": encoded.learned} | ({"refused": encoded.refused} if encoded.refused else {})
