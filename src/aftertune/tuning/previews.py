"""Owns what can be seen of a tuning before it runs: a few rows as they are trained, and what its data comes to.

    found = preview(TuneSpec(model="…", data="orders.jsonl"))
    found.examples[0].parts        [("<|im_start|>user\\nHi<|im_end|>\\n …", False), ("Hello.<|im_end|>", True)]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aftertune.values import Overlap, Question

if TYPE_CHECKING:
    from aftertune.study import TuneSpec
    from aftertune.tuning.tokenize import EncodedRow


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row as it is trained. where: file and line; parts: its text in stretches, each with whether it is learned."""

    where: str
    parts: list[tuple[str, bool]]
    tokens: int
    learned: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A few rows, and what a tuning would say of its data."""

    examples: tuple[PreviewRow, ...]
    counts: Mapping[str, Mapping[str, int]]
    overlap: tuple[Overlap, ...]
    notes: tuple[str, ...]


def preview(spec: TuneSpec, count: int = 3, questions: Iterable[Question] = ()) -> Preview:
    """The first ``count`` rows of the new data, and where there is replay the first of that; counts, overlap and notes.

    No weights are loaded. Raises InputError (data, template) and SourceError (model, data).
    """
    from aftertune.sources import load_tokenizer, resolve_model
    from aftertune.tuning.contamination import find_overlap
    from aftertune.tuning.split import Corpus
    from aftertune.tuning.tokenize import EncodedCorpus, Form

    source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    tokenizer = load_tokenizer(source)
    corpus = Corpus.load(spec.data, spec.seed, spec.replay)
    rows = EncodedCorpus.of(corpus, tokenizer, Form(spec.template, spec.max_length, spec.learn), spec.seed)
    replayed = {example.where for example in corpus.replay}
    ordered = sorted(rows.training, key=lambda row: row.example)
    chosen = [row for row in ordered if row.where not in replayed][:count]
    chosen += [row for row in ordered if row.where in replayed][:1]
    return Preview(tuple(_shown(row, tokenizer) for row in chosen), {**corpus.counts, **rows.counts},
                   find_overlap((*corpus.training, *corpus.replay), questions),
                   (*corpus.notes, *tokenizer.notes, *rows.notes))


def _shown(row: EncodedRow, tokenizer: Any) -> PreviewRow:
    from aftertune.tuning.tokenize import IGNORED, spans

    return PreviewRow(row.where, spans(row, tokenizer), len(row.ids), sum(label != IGNORED for label in row.labels))
