"""Shows a few rows as they are trained, and the counts of the data, before anything is trained.

    result = preview(TuneSpec(model="…", data="orders.jsonl"))
    result.examples[0].parts        [("<|im_start|>user\\nHi<|im_end|>\\n …", False), ("Hello.<|im_end|>", True)]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aftertune.values import Overlap, Question

if TYPE_CHECKING:
    from aftertune.study import TuneSpec
    from aftertune.tuning.tokenize import EncodedRow


#: The most rows of a file that are read for a preview.
PREVIEW_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row as it is trained.

    where: file and line. parts: its text in order, each part with whether it is learned. tokens: of the row.
    learned: tokens that count in the loss.
    """

    where: str
    parts: list[tuple[str, bool]]
    tokens: int
    learned: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A few rows, with the counts, overlap and notes that a tuning would have."""

    examples: tuple[PreviewRow, ...]
    counts: Mapping[str, Mapping[str, int]]
    overlap: tuple[Overlap, ...]
    notes: tuple[str, ...]


def preview(spec: TuneSpec, count: int = 3, questions: Iterable[Question] = ()) -> Preview:
    """The first ``count`` rows of the new data, and the first replayed row if there is replay; counts, overlap, notes.

    Of a long file the first PREVIEW_ROWS rows are read, unless there are questions to search for. No weights are
    loaded.
    Raises InputError (data, template) and SourceError (model, data).
    """
    from aftertune.sources import load_tokenizer, resolve_model
    from aftertune.tasks.chat_template import date_note
    from aftertune.tuning.contamination import find_overlap
    from aftertune.tuning.split import Corpus, Rules
    from aftertune.tuning.tokenize import EncodedCorpus, EncodeOptions

    source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    tokenizer = load_tokenizer(source)
    questions = list(questions)
    corpus = Corpus.load(spec.data, spec.seed, spec.replay, Rules(limit=None if questions else PREVIEW_ROWS))
    options = EncodeOptions.of(spec, tokenizer)
    rows = EncodedCorpus.from_corpus(corpus, tokenizer, options, spec.seed)
    note = date_note(tokenizer, spec.template_date) if spec.template == "chat" else None
    dated = [note] if note else []
    if spec.replay is not None and spec.replay.base is not None:
        dated.append("the answers of the base are not shown: it writes them when the tuning runs, if they are not "
                     "stored")
    replayed = {example.where for example in corpus.replay}
    ordered = sorted(rows.training, key=lambda row: row.example)
    chosen = [row for row in ordered if row.where not in replayed][:count]
    chosen += [row for row in ordered if row.where in replayed][:1]
    return Preview(tuple(_preview_row(row, tokenizer) for row in chosen), {**corpus.counts, **rows.counts},
                   find_overlap((*corpus.training, *corpus.replay), questions),
                   (*corpus.notes, *tokenizer.notes, *dated, *rows.notes))


def _preview_row(row: EncodedRow, tokenizer: Any) -> PreviewRow:
    from aftertune.tuning.tokenize import IGNORED, text_spans

    return PreviewRow(row.where, text_spans(row, tokenizer), len(row.ids),
                      sum(label != IGNORED for label in row.labels))
