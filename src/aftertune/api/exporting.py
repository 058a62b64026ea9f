"""Writes results and weights for other programs, as `aftertune export` does.

    aftertune.export("tuned", "csv")                                   the table as text
    aftertune.export("orders", "gguf", out="orders-gguf").paths        files for llama.cpp and Ollama
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aftertune.api.parameters import LedgerPlace, comma_separated, opened, with_settings
from aftertune.api.progress import shown_progress
from aftertune.errors import InputError, nearest
from aftertune.values import Comparison, Evaluation, Progress, Tuning

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.report import DataTable

ExportFormat = Literal["lm-eval", "every-eval-ever", "csv", "markdown", "latex", "json", "gguf", "bundle"]
#: Formats of results with their answers, which are files, and formats of tables.
FILES, TABLES = ("lm-eval", "every-eval-ever"), ("csv", "markdown", "latex", "json")
FORMATS = (*FILES, *TABLES, "gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written. paths: files, or the folder of a bundle. text: of a table that has no file. results, samples:
    the paths of scores and of answers. without_prompts: tasks whose prompts could not be rebuilt. left_out: what has no
    place in the format, and why."""

    paths: tuple[Path, ...] = ()
    text: str = ""
    results: tuple[Path, ...] = ()
    samples: tuple[Path, ...] = ()
    without_prompts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text or "\n".join(map(str, self.paths))


@with_settings()
def export(what: Evaluation | Comparison | Tuning | str, format: ExportFormat = "lm-eval", *,
           out: str | Path | None = None, quant: str | Sequence[str] = ("q8_0",), prompts: bool = True,
           ledger: LedgerPlace = None, progress: Progress | bool | None = None) -> Exported:
    """Write results for other programs, without paths of this machine and without secrets; or a tuned model.

    what: an evaluation, a comparison, a fine-tune, its id or name, a study, or "all". format: "lm-eval" and
    "every-eval-ever" write an evaluation with its answers; "csv", "markdown", "latex" and "json" are a table; "gguf"
    are the weights of a fine-tune for llama.cpp and Ollama; "bundle" is a folder that `aftertune verify` proves on
    another machine. out: a folder, or the file of a table; a table without one is the ``text`` of the value. quant:
    types of the GGUF files. prompts: rebuild the prompts of answers. ledger, progress: as of `evaluate`. Raises
    InputError, SourceError and StorageError.
    """
    if format not in (*FORMATS, "bundle"):
        raise InputError(f"format is {format!r}{nearest(format, [*FORMATS, 'bundle'])}; allowed are "
                         f"{', '.join(FORMATS)} and bundle")
    if not isinstance(what, Evaluation | Comparison | Tuning | str):
        raise InputError(f"found a {type(what).__name__}; give an evaluation, a comparison, a fine-tune, or its id or "
                         "name")
    word = what if isinstance(what, str) else what.id
    with opened(ledger, create=False) as stored, shown_progress(progress) as update:
        if format == "gguf":
            from aftertune.deploy import export_gguf

            kinds = comma_separated(quant) if isinstance(quant, str) else list(quant)
            made = export_gguf(word, kinds, Path(out or f"exports/{_name_of(what)}-gguf"), ledger=stored,
                               progress=update)
            return Exported(paths=tuple(made.files.values()))
        if format == "bundle":
            from aftertune.bundle import export_bundle

            folder = Path(out or f"exports/{_name_of(what)}-bundle")
            written = export_bundle(stored, word, folder, title=f"Results: {_name_of(what)}", progress=update)
            return Exported(paths=(folder,), left_out=tuple(written.left_out))
        if format in FILES:
            return exported_files(stored, word, format, Path(out or "exports"), prompts=prompts)
        text = table_text(table_of(stored, word, format), format)
    if out is None:
        return Exported(text=text)
    from aftertune.report import write_document

    write_document(Path(out), text)
    return Exported(paths=(Path(out),))


def _name_of(what: Evaluation | Comparison | Tuning | str) -> str:
    """A name for a folder."""
    from aftertune.sources.cache import path_part

    word = what if isinstance(what, str) else what.id if isinstance(what, Comparison) else what.name
    return path_part(Path(word).name)


def exported_files(ledger: Ledger, word: str, format: str, folder: Path, *, prompts: bool) -> Exported:
    """Write an evaluation and its answers in the form of another tool. format: one of `FILES`."""
    from aftertune.exchange import export_every_eval_ever, export_lm_eval, rebuild_prompts, stored_answers

    evaluation = ledger.find_evaluation(word)
    texts = rebuild_prompts(evaluation) if prompts else {}
    answers = stored_answers(ledger, evaluation)
    results: tuple[Path, ...]
    if format == "lm-eval":
        made = export_lm_eval(evaluation, answers, folder=folder, prompts=texts)
        results, samples, left_out = (made.results,), tuple(made.samples), tuple(made.left_out)
    else:
        pairs, without = export_every_eval_ever(evaluation, answers, folder=folder, prompts=texts)
        results, samples = tuple(p.results for p in pairs), tuple(p.samples for p in pairs)
        left_out = tuple(without)
    return Exported(paths=(*results, *samples), results=results, samples=samples, left_out=left_out,
                    without_prompts=tuple(t.task for t in evaluation.tasks
                                          if t.task not in texts and t.task not in left_out))


def table_of(ledger: Ledger, word: str, format: str) -> DataTable:
    """The table of an evaluation, a comparison, a study, or all evaluations. format: one of `TABLES`."""
    from aftertune.report import Results, comparison_export, overview_export, scores_export

    studies = {s.name for s in ledger.studies()}
    if word == "all" or word in studies:
        done = [e for e in ledger.evaluations() if e.status == "done"]
        if word in studies:
            refs = {c.ref for c in ledger.cells(word)}
            done = [e for e in done if e.id in refs]
        return overview_export(word, Results(evaluations=done, comparisons=ledger.comparisons()))
    entry = ledger.find(word)
    if isinstance(entry, Comparison):
        return comparison_export(entry, "csv" if format == "csv" else "json" if format == "json" else "latex")
    if isinstance(entry, Evaluation):
        return scores_export(entry)
    raise InputError(f"{word} is a tuning and has no table of scores; export its evaluation, a comparison or a study")


def table_text(table: DataTable, format: str) -> str:
    """A table in one of the formats `TABLES`."""
    from aftertune.report import as_csv, as_json, as_latex, as_markdown

    return {"csv": as_csv, "markdown": as_markdown, "latex": as_latex, "json": as_json}[format](table)
