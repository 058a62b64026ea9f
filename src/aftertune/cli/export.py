"""``aftertune export WORD``: an evaluation in lm-eval's format, or any table as CSV, LaTeX or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import Json
from aftertune.errors import InputError, nearest

if TYPE_CHECKING:
    from aftertune.exchange import Grid
    from aftertune.ledger import Ledger

FORMATS = ("lm-eval", "csv", "latex", "json")


def export(
    word: Annotated[str, typer.Argument(
        metavar="ID", help="Id or name of an evaluation, comparison or study, or `all`.")],
    format_: Annotated[str, typer.Option("--format", help="Format: lm-eval, csv, latex or json.")] = "lm-eval",
    out: Annotated[str | None, typer.Option(
        help="Output folder for lm-eval, output file for a table; - for stdout.")] = None,
    prompts: Annotated[bool, typer.Option(
        "--prompts/--no-prompts", help="Rebuild the prompts; they are written if they match the stored hash.")] = True,
    as_json: Json = False,
) -> None:
    """Write results for other programs, without paths of this machine and without secrets."""
    if format_ not in FORMATS:
        raise InputError(f"--format {format_!r}: allowed are {', '.join(FORMATS)}{nearest(format_, list(FORMATS))}")
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        if format_ == "lm-eval":
            _lm_eval(ledger, word, Path(out or "exports"), prompts, as_json)
            return
        grid = _grid(ledger, word)
    _table(grid, format_, out or "-", as_json)


def _lm_eval(ledger: Ledger, word: str, folder: Path, prompts: bool, as_json: bool) -> None:
    from aftertune.exchange import rebuilt, send

    evaluation = ledger.find_evaluation(word)
    texts = rebuilt(evaluation) if prompts else {}
    written = send(evaluation, ledger.items(evaluation.id), ledger.answers(evaluation.id), folder=folder, prompts=texts)
    without = [t.task for t in evaluation.tasks if t.task not in texts and t.task not in written.left_out]
    if as_json:
        emit({"results": str(written.results), "samples": [str(p) for p in written.samples],
              "without_prompts": without, "left_out": list(written.left_out)})
        return
    for path in (written.results, *written.samples):
        typer.echo(f"written to {path}")
    if without:
        typer.echo(f"without prompts (they are not stored, and were not built again): {', '.join(without)}")
    if written.left_out:
        typer.echo(f"left out, stopped early and so without a score of all items: {', '.join(written.left_out)}")


def _grid(ledger: Ledger, word: str) -> Grid:
    """The table that ``word`` stands for."""
    from aftertune.cli.runs import find
    from aftertune.exchange import comparison_grid, overview_grid, scores_grid
    from aftertune.report import score_interval
    from aftertune.values import Comparison, Evaluation

    studies = {s.name for s in ledger.studies()}
    if word == "all" or word in studies:
        done = [e for e in ledger.evaluations() if e.status == "done"]
        if word in studies:
            refs = {c.ref for c in ledger.cells(word)}
            done = [e for e in done if e.id in refs]
        return overview_grid(word, done, ledger.comparisons(), score_interval)
    found = find(ledger, word)
    if isinstance(found, Comparison):
        return comparison_grid(found)
    if isinstance(found, Evaluation):
        return scores_grid(found, score_interval)
    raise InputError(f"{word} is a tuning, which has no table; export its evaluation, a comparison, or a study")


def _table(grid: Grid, format_: str, out: str, as_json: bool) -> None:
    from aftertune.exchange import as_csv, as_latex
    from aftertune.exchange import as_json as grid_json
    from aftertune.report import write_document

    text = {"csv": as_csv, "latex": as_latex, "json": grid_json}[format_](grid)
    if out == "-":
        typer.echo(text, nl=False)
        return
    write_document(Path(out), text)
    if as_json:
        emit({"path": out, "rows": len(grid.rows)})
    else:
        typer.echo(f"written to {out}")
