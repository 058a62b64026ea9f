"""Implements ``record`` and ``report``, which write the ledger as a Markdown record and as one HTML page.

    aftertune record --out record.md
    aftertune report --only base --only tuned --out report.html
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.report import Planned, Results
    from aftertune.values.reported import AuditedDocument

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
    as_json: JsonFlag = False,
) -> None:
    """Write the ledger as a Markdown record."""
    from aftertune.report import write_record

    results = _results(only or [], study or [], published=published, plans=True)
    _write(write_record(results, title=title), out, as_json)


def report(
    out: Annotated[str, _OUT] = "report.html",
    title: Annotated[str, _TITLE] = "Model evaluation report",
    only: Annotated[list[str] | None, _ONLY] = None,
    published: Annotated[bool, _PUBLISHED] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the ledger as one self-contained HTML page."""
    from aftertune.comparison.flips import flips_by_comparison
    from aftertune.ledger import Ledger
    from aftertune.report import write_page

    results = _results(only or [], [], published=published, plans=False)
    with Ledger(create=False) as ledger:
        results = replace(results, flips=flips_by_comparison(results.comparisons, results.answers, ledger=ledger))
    _write(write_page(results, title=title), out, as_json)


def _results(only: list[str], files: list[Path], *, published: bool, plans: bool) -> Results:
    """The results in the ledger and the comparisons of recipes that they allow.

    only: ids or names of evaluations, [] for all. plans: also list the models that studies, including those in
    ``files``, have not evaluated. published: replace the paths of this machine.
    """
    from aftertune.ledger import Ledger
    from aftertune.pipeline.study_verdicts import over_studies, recipe_contrasts
    from aftertune.redaction import published as public
    from aftertune.report import Results

    reported = [] if only else _reported()
    planned = _planned(files) if plans and not only else []
    with Ledger(create=False) as ledger:
        results = replace(Results.load(ledger, only), reported=reported, planned=planned)
        results = replace(results, comparisons=over_studies(results.comparisons, ledger))
        if not (results.evaluations or reported or planned):
            raise InputError("the ledger has no finished evaluation yet; run `aftertune eval` or `aftertune demo` "
                             "first")
        if published:
            results = replace(results, evaluations=public(results.evaluations), tunings=public(results.tunings),
                              comparisons=public(results.comparisons), reported=public(reported),
                              planned=public(planned))
        return replace(results, contrasts=recipe_contrasts(results, ledger))


def _reported() -> list[AuditedDocument]:
    """All imported documents, with the audit of each score."""
    from aftertune.exchange import audited_documents
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        return audited_documents(ledger)


def _planned(files: list[Path]) -> list[Planned]:
    """The cells without an evaluation, in the studies in ``files`` and the other studies in the ledger."""
    import contextlib

    from aftertune.ledger import Ledger
    from aftertune.pipeline import unevaluated
    from aftertune.study import Study

    studies = {study.study: (study, str(file)) for file, study in ((file, Study.load(file)) for file in files)}
    with Ledger(create=bool(files)) as ledger:
        for stored in ledger.studies():
            if stored.name not in studies:
                with contextlib.suppress(ValueError):  # the study was stored by another version of aftertune
                    studies[stored.name] = (Study.model_validate_json(stored.yaml), "")
        return [cell for study, file in studies.values() for cell in unevaluated(study, ledger=ledger, file=file)]


def _write(text: str, out: str, as_json: bool) -> None:
    """Write a document to a file, or print it if ``out`` is "-"."""
    if out == "-":
        typer.echo(text)
        return
    from aftertune.report import write_document

    write_document(Path(out), text)
    if as_json:
        emit({"path": out, "bytes": len(text.encode())})
    else:
        typer.echo(f"written to {out}")
