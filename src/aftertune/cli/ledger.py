"""Implements ``show``, ``export``, ``card`` and ``import``, which read the ledger, export it and add to it.

    aftertune show base                       everything about one entry
    aftertune export all --format csv         scores for other programs
    aftertune export orders --format gguf     weights for other programs
    aftertune export all --bundle handover    everything that `aftertune verify` proves on another machine
    aftertune card tuned --out card           a model card
    aftertune import lm_eval_output           results of lm-eval, or a Markdown record
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.api.exporting import FILES, FORMATS, exported_files, table_of, table_text
from aftertune.api.objects import import_object
from aftertune.cli.console import emit, jsonable
from aftertune.cli.options import JsonFlag, TakeOver
from aftertune.cli.runs import documents, label_texts
from aftertune.cli.streams import rich_console
from aftertune.cli.tune import show_checkpoints
from aftertune.errors import InputError, nearest

if TYPE_CHECKING:
    from aftertune.exchange import ImportedResult
    from aftertune.ledger import EntryLabel, Ledger
    from aftertune.report import DataTable
    from aftertune.values import Comparison, Drift, Evaluation, Tuning
    from aftertune.values.reported import Reported


def show(
    word: Annotated[str, typer.Argument(metavar="ID", help="Id or name, as `aftertune runs` lists it.")],
    as_json: JsonFlag = False,
) -> None:
    """Show everything that is known about one evaluation, tuning, comparison or reported document."""
    from aftertune.cli.compare import stored_drift
    from aftertune.ledger import EntryLabel, Ledger
    from aftertune.ledger.states import evaluation_state, tuning_state
    from aftertune.values import Comparison, Evaluation

    with Ledger(create=False) as ledger:
        reported = documents(ledger).get(word)
        value = None if reported else ledger.find(word)
        if value is not None:
            state = "" if isinstance(value, Comparison) else evaluation_state(value, ledger.held()) if isinstance(
                value, Evaluation) else tuning_state(value)
            made = next((t for t in ledger.tunings() if t.id == value.tuning), None) if isinstance(
                value, Evaluation) else None
            context = _Context(stored_drift(value, ledger) if isinstance(value, Comparison) else None, made,
                               ledger.labels().get(value.id, EntryLabel()), state)
    if reported:
        _show_reported(word, reported, as_json)
        return
    assert value is not None
    if as_json:
        emit({**jsonable(value), "tags": list(context.label.tags), "note": context.label.note})
        return
    _show_value(value, context)


@dataclass(frozen=True, slots=True)
class _Context:
    """What the ledger knows beside an entry: the drift of a comparison's models, the tuning that made the model of an
    evaluation, tags and note, and whether a process works on it."""

    drift: Drift | None
    tuning: Tuning | None
    label: EntryLabel
    state: str


def _show_reported(source: str, rows: list[Reported], as_json: bool) -> None:
    """Print reported scores with the result of the audit for each."""
    from rich.text import Text

    from aftertune.cli.audit import values_table
    from aftertune.exchange import check_scores

    if as_json:
        emit({"source": source, "reported": rows})
        return
    console = rich_console()
    console.print(Text(f"reported in {source}, not measured here", style="bold"))
    console.print(values_table(check_scores([r for r in rows if r.planned is None])))
    for row in rows:
        if row.planned is not None:
            planned = f", planned with {row.planned}" if row.planned else ""
            console.print(Text(f"{row.model}: not evaluated{planned}"))


def _show_value(value: Evaluation | Tuning | Comparison, context: _Context) -> None:
    """Print a comparison as a table, an evaluation as a table and its facts, and a tuning as its facts."""
    from rich.text import Text

    from aftertune.cli.compare import show as show_comparison
    from aftertune.cli.eval import show as show_evaluation
    from aftertune.report import evaluation_facts, tuning_facts
    from aftertune.values import Comparison, Evaluation

    console = rich_console()
    if isinstance(value, Comparison):
        show_comparison(value, drift=context.drift)
    elif isinstance(value, Evaluation):
        show_evaluation([value], as_json=False)
        print_facts(evaluation_facts(value, context.tuning))
    else:
        console.print(Text(value.name, "bold"))
        print_facts(tuning_facts(value))
        show_checkpoints(value)
    for line in label_texts(context.label):
        console.print(Text(line, "cyan"))
    if context.state == "interrupted" and not isinstance(value, Comparison):
        command = value.provenance.command if value.provenance else ""
        console.print(Text("interrupted: no process works on it. To resume, run the same command again: "
                           f"{command or 'unknown'}; to remove it: aftertune rm {value.id}", "yellow"))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print facts, the labels on the left; on a narrow terminal the value is below its label."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = rich_console()
    width = max((len(label) for label, _ in facts), default=0)
    if width + 32 > console.width:
        for label, value in facts:
            console.print(Text(label, "bold"))
            console.print(Padding(Text(value, overflow="fold"), (0, 0, 0, 2), expand=False))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")  # a path or a command is never cut
    previous = ""
    for label, value in facts:
        table.add_row(Text(label if label != previous else ""), Text(value))
        previous = label
    console.print(table)


def export(
    word: Annotated[str | None, typer.Argument(
        metavar="ID", show_default=False,
        help="Id or name of an evaluation, comparison or study, or `all` (as --bundle without it); for gguf, a "
             "tuning.")] = None,
    format_: Annotated[str, typer.Option(
        "--format", help="Format: lm-eval, every-eval-ever, csv, markdown, latex or json; or gguf, the tuned weights "
                         "for llama.cpp and Ollama.")] = "lm-eval",
    bundle: Annotated[Path | None, typer.Option(
        help="New folder for a bundle: ledger extract, record, page, environment and hashes, for `aftertune "
             "verify`.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of a bundle.")] = None,
    to: Annotated[list[str] | None, typer.Option(
        help="Experiment tracker that gets the results: mlflow, wandb, trackio or tensorboard. Repeatable.")] = None,
    out: Annotated[str | None, typer.Option(
        help="Output folder for lm-eval, every-eval-ever and gguf, output file for a table; - for stdout.")] = None,
    quant: Annotated[str | None, typer.Option(
        help="Types of the GGUF files, separated by commas, such as f16,q8_0,q4_k_m. Default: q8_0.")] = None,
    prompts: Annotated[bool, typer.Option(
        "--prompts/--no-prompts", help="Rebuild the prompts; they are written if they match the stored hash.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Write results for other programs, without paths of this machine and without secrets; or a tuned model.

    A GGUF is written from the merged weights, with the tokenizer and its chat template, beside an Ollama Modelfile.
    """
    if bundle is not None:
        from aftertune.cli.bundle import write_bundle

        write_bundle(word, bundle, title, as_json)
        return
    if word is None:
        raise InputError("name what to export: an id or name from `aftertune runs`, a study, or `all`")
    if to:
        from aftertune.cli.tracking import export_runs

        export_runs(word, to, as_json)
        return
    if format_ not in FORMATS:
        raise InputError(f"--format {format_!r}: allowed are {', '.join(FORMATS)}{nearest(format_, list(FORMATS))}")
    if format_ == "gguf":
        from aftertune.cli.deploy import export_weights

        export_weights(word, quant or "q8_0", out, as_json)
        return
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        if format_ in FILES:
            _export_files(ledger, word, format_, Path(out or "exports"), prompts, as_json)
            return
        table = table_of(ledger, word, format_)
    _export_table(table, format_, out or "-", as_json)


def _export_files(ledger: Ledger, word: str, format_: str, folder: Path, prompts: bool, as_json: bool) -> None:
    """Write results and answers in the form of another tool, and say what was left out."""
    made = exported_files(ledger, word, format_, folder, prompts=prompts)
    if as_json:
        emit({"results": str(made.results[0]) if format_ == "lm-eval" else [str(p) for p in made.results],
              "samples": [str(p) for p in made.samples], "without_prompts": list(made.without_prompts),
              "left_out": list(made.left_out)})
        return
    for path in made.paths:
        typer.echo(f"written to {path}")
    if made.without_prompts:
        typer.echo("without prompts (they are not stored and could not be rebuilt): "
                   f"{', '.join(made.without_prompts)}")
    if made.left_out:
        typer.echo("left out, because they were stopped early and have no score of all items: "
                   f"{', '.join(made.left_out)}")


def _export_table(table: DataTable, format_: str, out: str, as_json: bool) -> None:
    """Write a table to a file, or print it if ``out`` is "-"."""
    from aftertune.report import write_document

    text = table_text(table, format_)
    if out == "-":
        if as_json and format_ != "json":
            emit({"path": out, "rows": len(table.rows), "text": text})
        else:
            typer.echo(text, nl=False)
        return
    write_document(Path(out), text)
    if as_json:
        emit({"path": out, "rows": len(table.rows)})
    else:
        typer.echo(f"written to {out}")


def card(
    word: Annotated[str, typer.Argument(metavar="ID", help="Id or name of an evaluation or a tuning.")],
    out: Annotated[Path, typer.Option(
        help="Folder for README.md and .eval_results, for example the folder of the model.")] = Path("card"),
    license_: Annotated[str | None, typer.Option(
        "--license", help="License of the model, as the Hub names it, such as apache-2.0. Default: that of its base, "
                          "where it is known.")] = None,
    include_partial: Annotated[bool, typer.Option(
        "--include-partial", help="Also write scores of a part of a benchmark, or of another split than its own, to "
                                  ".eval_results, marked as such.")] = False,
    force: Annotated[bool, typer.Option(
        "--force", help="Overwrite a README.md that aftertune did not write, or that was changed since.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a model card for the Hugging Face Hub, without paths of this machine and without secrets."""
    from aftertune.api.documents import card_of, write_card_files
    from aftertune.ledger import Ledger

    if license_ is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,59}", license_):
        raise InputError(f"--license {license_!r}: give it as the Hub names it, in lower case and without spaces, such "
                         "as apache-2.0, mit or other")
    with Ledger(create=False) as ledger:
        model_card = card_of(ledger, word, license_=license_, partial=include_partial)
    paths = write_card_files(model_card, out, force)
    if as_json:
        emit({"readme": str(paths[0]), "eval_results": [str(p) for p in paths[1:]],
              "left_out": list(model_card.left_out), "partial": dict(model_card.partial),
              "license": model_card.license})
        return
    for path in paths:
        typer.echo(f"written to {path}")
    if model_card.left_out:
        typer.echo("left out of the metadata, because they were stopped early and have no score of all items: "
                   f"{', '.join(model_card.left_out)}")
    if model_card.partial:
        parts = "; ".join(f"{task} ({part})" for task, part in model_card.partial.items())
        typer.echo(f"not in .eval_results, because they are no scores of the whole benchmark (--include-partial adds "
                   f"them): {parts}")
    if license_ is None:
        typer.echo(f"license {model_card.license}, that of the base; --license LICENSE names another"
                   if model_card.license else "no license is known; name one with --license, such as apache-2.0")


def import_(
    path: Annotated[Path, typer.Argument(
        help="Results of lm-eval, lighteval, inspect_ai or Every Eval Ever (file or folder), or a Markdown record.")],
    name: Annotated[str | None, typer.Option(help="Name of the evaluation, or of the record.")] = None,
    take_over: TakeOver = False,
    as_json: JsonFlag = False,
) -> None:
    """Import results of others. With samples they can be compared; without samples they are reported scores."""
    from aftertune.exchange import import_results
    from aftertune.ledger import Ledger

    with Ledger(take_over=take_over) as ledger:
        imports = import_results(path, ledger=ledger, name=name)
    failed = [result for result in imports if result.error]
    if as_json:
        emit({"imported": [import_object(result) for result in imports]})
    else:
        for result in imports:
            _show_import(result)
    if failed:
        more = f" (and {len(failed) - 1} more, listed above)" if len(failed) > 1 else ""
        raise InputError(f"{len(failed)} of {len(imports)} results files could not be read, the others were imported: "
                         f"{failed[0].error}{more}")


def _show_import(result: ImportedResult) -> None:
    """Print what was imported, and what was left out."""
    evaluation = result.evaluation
    if result.error:
        typer.echo(f"not imported: {result.error}")
    if evaluation is not None:
        state = "" if result.new else " (already in the ledger)"
        tasks = ", ".join(f"{t.task} {t.n:,} of {t.n_total:,}" for t in evaluation.tasks)
        typer.echo(f"evaluation {evaluation.id} {evaluation.name}{state}: {tasks}")
    scores = [r for r in result.reported if r.planned is None]
    if scores:
        models = len({r.model for r in scores})
        typer.echo(f"{len(scores)} reported scores of {models} model{'s' if models > 1 else ''} from {result.source}; "
                   "they have no answers, so they cannot be compared item by item")
    for row in result.reported:
        if row.planned is not None:
            planned = f", planned with {row.planned}" if row.planned else ""
            typer.echo(f"not evaluated in {result.source}: {row.model}{planned}")
    for note in result.notes:
        typer.echo(f"note: {note}")
