"""Shows a few rows as they are trained, and the counts of the data, before anything is trained.

    result = preview(TuneSpec(model="…", data="orders.jsonl"))
    result.examples[0].parts        [("<|im_start|>user\\nHi<|im_end|>\\n …", False), ("Hello.<|im_end|>", True)]

A tuning leaves a few of its rows in its output folder, where `aftertune view` shows them. They are not published with
the weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aftertune import bounds
from aftertune.sources.cache import write_atomic
from aftertune.values import Overlap, Question, from_json

if TYPE_CHECKING:
    from aftertune.study import TuneSpec
    from aftertune.tuning.split import Corpus
    from aftertune.tuning.tokenize import EncodedCorpus, EncodedRow


#: The most rows of a file that are read for a preview.
PREVIEW_ROWS = 20_000
#: The file in an output folder with a few rows as they are trained, and how many.
EXAMPLES, STORED_ROWS = "examples.json", 5


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
    return Preview(preview_rows(corpus, rows, tokenizer, count), {**corpus.counts, **rows.counts},
                   find_overlap((*corpus.training, *corpus.replay), questions),
                   (*corpus.notes, *tokenizer.notes, *dated, *rows.notes))


def preview_rows(corpus: Corpus, rows: EncodedCorpus, tokenizer: Any, count: int) -> tuple[PreviewRow, ...]:
    """The first ``count`` rows of the new data, and the first replayed row if there is replay."""
    replayed: Collection[str] = {example.where for example in corpus.replay}
    ordered = sorted(rows.training, key=lambda row: row.example)
    chosen = [row for row in ordered if row.where not in replayed][:count]
    chosen += [row for row in ordered if row.where in replayed][:1]
    return tuple(_preview_row(row, tokenizer) for row in chosen)


def write_examples(folder: Path, rows: Iterable[PreviewRow]) -> None:
    """Leave rows in the output folder of a tuning; long texts are cut in the middle."""
    stored = [{**asdict(row), "where": Path(row.where).name,
               "parts": [(_cut(text), learned) for text, learned in row.parts[:bounds.EXAMPLES_PARTS]]} for row in rows]
    write_atomic(folder / EXAMPLES, json.dumps(stored, ensure_ascii=False) + "\n")


def read_examples(folder: Path) -> tuple[PreviewRow, ...]:
    """The rows that a tuning left in its output folder; () where there are none that can be read."""
    try:
        file = folder / EXAMPLES
        if file.is_symlink() or not file.is_file() or file.stat().st_size > bounds.EXAMPLES_BYTES:
            return ()
        return tuple(PreviewRow(str(row["where"]), [(str(text), bool(learned)) for text, learned in row["parts"]],
                                int(row["tokens"]), int(row["learned"]))
                     for row in from_json(file.read_bytes())[:STORED_ROWS + 1])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _cut(text: str) -> str:
    half = bounds.EXAMPLES_TEXT // 2
    return text if len(text) <= 2 * half else f"{text[:half]} … {text[-half:]}"


def _preview_row(row: EncodedRow, tokenizer: Any) -> PreviewRow:
    from aftertune.tuning.tokenize import IGNORED, text_spans

    return PreviewRow(row.where, text_spans(row, tokenizer), len(row.ids),
                      sum(label != IGNORED for label in row.labels))
