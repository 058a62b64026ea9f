"""``aftertune record`` and ``aftertune report``: the ledger as a Markdown record and as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import Json
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.report import Planned
    from aftertune.reported import Judged
    from aftertune.values import Answer, Comparison, Contrast, Evaluation, Tuning

_OUT = typer.Option(help="Output file; - for stdout.")
_TITLE = typer.Option(help="Title of the document.")
_ONLY = typer.Option(help="Id or name of an evaluation; default: all. Repeatable.")
_STUDY = typer.Option(help="Study file; its models without an evaluation are listed with their commands. Repeatable.")
_PUBLISHED = typer.Option("--published", help="For publication: replace each path of this machine with a name.")


def record(
    out: Annotated[str, _OUT] = "record.md",
    title: Annotated[str, _TITLE] = "Model evaluation record",
    only: Annotated[list[str] | None, _ONLY] = None,
    study: Annotated[list[Path] | None, _STUDY] = None,
    published: Annotated[bool, _PUBLISHED] = False,
    as_json: Json = False,
) -> None:
    """Write the ledger as a Markdown record."""
    from aftertune.report import write_record

    reported, planned = ([], []) if only else (_reported(), _planned(study or []))
    evaluations, tunings, comparisons, answers = _gather(only or [], empty=bool(reported or planned))
    if published:
        reported, planned, evaluations, tunings, comparisons = _public(
            reported, planned, evaluations, tunings, comparisons)
    _write(write_record(evaluations, tunings, comparisons, title=title, answers=answers, reported=reported,
                        contrasts=_contrasts(evaluations, tunings, comparisons), planned=planned), out, as_json)


def report(
    out: Annotated[str, _OUT] = "report.html",
    title: Annotated[str, _TITLE] = "Model evaluation report",
    only: Annotated[list[str] | None, _ONLY] = None,
    published: Annotated[bool, _PUBLISHED] = False,
    as_json: Json = False,
) -> None:
    """Write the ledger as one self-contained HTML page."""
    from aftertune.comparison.flips import flips_of
    from aftertune.ledger import Ledger
    from aftertune.report import Studied, write_page

    reported = [] if only else _reported()
    evaluations, tunings, comparisons, answers = _gather(only or [], empty=bool(reported))
    if published:
        reported, evaluations, tunings, comparisons = _public(reported, evaluations, tunings, comparisons)
    with Ledger(create=False) as ledger:
        flips = flips_of(comparisons, answers, ledger=ledger)
        cells = [] if only else [cell for study in ledger.studies() for cell in ledger.cells(study.name)]
    study = Studied(cells=cells, contrasts=_contrasts(evaluations, tunings, comparisons))
    _write(write_page(evaluations, tunings, comparisons, title=title, answers=answers, flips=flips, reported=reported,
                      study=study), out, as_json)


def _public(*lists: list[Any]) -> list[Any]:
    """The lists without the paths of this machine."""
    from aftertune.provenance import published

    return [published(one) for one in lists]


def _contrasts(evaluations: list[Evaluation], tunings: list[Tuning], comparisons: list[Comparison]) -> list[Contrast]:
    """Recipes compared over seeds, with the margins of the comparisons of their models."""
    from aftertune.comparison.contrasts import contrasts
    from aftertune.ledger import Ledger

    margins = {row.task: row.margin for comparison in comparisons for row in comparison.rows}
    with Ledger(create=False) as ledger:
        return contrasts(evaluations, tunings, margins=margins, ledger=ledger)


def _reported() -> list[Judged]:
    """Every imported score with its audit."""
    from aftertune.exchange import judged
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        return judged(ledger)


def _planned(files: list[Path]) -> list[Planned]:
    """The cells without an evaluation: of the studies in these files, and of the other studies in the ledger."""
    import contextlib

    from aftertune.ledger import Ledger
    from aftertune.pipeline import unevaluated
    from aftertune.study import Study

    given = {study.study: (study, str(file)) for file, study in ((file, Study.load(file)) for file in files)}
    with Ledger(create=bool(files)) as ledger:
        for stored in ledger.studies():
            if stored.name not in given:
                with contextlib.suppress(ValueError):  # a study of another version of this program
                    given[stored.name] = (Study.model_validate_json(stored.yaml), "")
        return [one for study, file in given.values() for one in unevaluated(study, ledger=ledger, file=file)]


def _gather(only: list[str], *, empty: bool = False
            ) -> tuple[list[Evaluation], list[Tuning], list[Comparison], dict[str, list[Answer]]]:
    """Done evaluations with what belongs to them, as `write_record` and `write_page` take it; empty: none is fine."""
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        chosen = list({e.id: e for e in map(ledger.find_evaluation, only)}.values()) or ledger.evaluations()
        evaluations = [e for e in chosen if e.status == "done"]
        if only and len(evaluations) < len(chosen):
            first = next(e for e in chosen if e.status != "done")
            raise InputError(f"evaluation {first.name} ({first.id}) is {first.status!r}; a report needs a finished "
                             "one: run the same command again to finish it")
        if not evaluations and not empty:
            raise InputError("the ledger holds no finished evaluation yet; make one with `aftertune eval` or "
                             "`aftertune demo`")
        ids = {e.id for e in evaluations}
        tunings = ledger.tunings()
        comparisons = [c for c in ledger.comparisons() if {c.base, c.tuned} <= ids]
        answers = {e.id: ledger.answers(e.id) for e in evaluations}
    if only:
        used = {e.tuning for e in evaluations}
        tunings = [t for t in tunings if t.id in used]
    return evaluations, tunings, comparisons, answers


def _write(text: str, out: str, as_json: bool) -> None:
    if out == "-":
        typer.echo(text)
        return
    from aftertune.report import write_document

    write_document(Path(out), text)
    if as_json:
        emit({"path": out, "bytes": len(text.encode())})
    else:
        typer.echo(f"written to {out}")
