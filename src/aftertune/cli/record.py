"""Implements ``record`` and ``report``, which write the ledger as a Markdown record and as one HTML page.

    aftertune record --out record.md
    aftertune report --only base --only tuned --out report.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag

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
    from aftertune.api.documents import results_of
    from aftertune.ledger import Ledger
    from aftertune.report import write_record

    with Ledger(create=False) as ledger:
        text = write_record(results_of(ledger, only or [], study or [], published=published, plans=True), title=title)
    _write(text, out, as_json)


def report(
    out: Annotated[str, _OUT] = "report.html",
    title: Annotated[str, _TITLE] = "Model evaluation report",
    only: Annotated[list[str] | None, _ONLY] = None,
    published: Annotated[bool, _PUBLISHED] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the ledger as one self-contained HTML page."""
    from aftertune.api.documents import page_text
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger:
        text = page_text(ledger, title, only or [], published=published)
    _write(text, out, as_json)


def _write(text: str, out: str, as_json: bool) -> None:
    """Write a document to a file, or print it if ``out`` is "-"."""
    if out == "-":
        if as_json:
            emit({"path": out, "bytes": len(text.encode()), "text": text})
        else:
            typer.echo(text)
        return
    from aftertune.report import write_document

    write_document(Path(out), text)
    if as_json:
        emit({"path": out, "bytes": len(text.encode())})
    else:
        typer.echo(f"written to {out}")
