"""Implements ``gate --chain``: the limits of a gate over the links of a checked chain, up to the first broken one.

    aftertune gate --chain exports/orders-deploy --max-drop orders=3 --max-drop arc_easy=2 --junit gate.xml
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from aftertune.api.objects import gate_object
from aftertune.cli.console import emit
from aftertune.errors import GateFailed

if TYPE_CHECKING:
    from aftertune.deploy import GatedLink


def gate_links(folder: Path, drops: Mapping[str, float], *, require_proof: bool, junit: Path | None, on_github: bool,
               as_json: bool) -> None:
    """Show the outcome of each limit for each link. Raises GateFailed at the first broken link."""
    from aftertune.deploy import gate_chain
    from aftertune.ledger import Ledger
    from aftertune.report import gate_text, write_document, write_junit
    from aftertune.values import Margin

    limits = {task: Margin.given(value) for task, value in drops.items()}
    with Ledger(create=False) as ledger:
        links = gate_chain(folder, limits, ledger=ledger, require_proof=require_proof)
    faults = [(link.name, fault) for link in links for fault in link.faults]
    lines = [line for link in links for line in link.lines]
    if junit is not None:
        write_document(junit, write_junit(lines, title=f"the chain {folder.name}", faults=faults))
    if on_github:
        _show_on_github(links, folder.name, to_stderr=as_json)
    if as_json:
        emit({"passed": not links[-1].failed, "broken": links[-1].name if links[-1].failed else None,
              "links": [{"link": link.name, "faults": list(link.faults), **gate_object(link.comparison, link.lines)}
                        for link in links]})
    else:
        for link in links:
            for fault in link.faults:
                typer.echo(f"FAILED  {link.name}: {fault}")
            for line in link.lines:
                typer.echo(gate_text(line))
    if links[-1].failed:
        failed = [line.task for line in links[-1].lines if line.failed]
        why = "; ".join([*links[-1].faults, *failed])
        raise GateFailed(f"the gate failed at {links[-1].name}, the first broken link ({why}); links after it were not "
                         "looked at")


def _show_on_github(links: Sequence[GatedLink], name: str, *, to_stderr: bool) -> None:
    """Print annotations, and append the summary to the file that GitHub Actions names."""
    from aftertune.report import annotation, gate_annotations, gate_summary

    for link in links:
        for fault in link.faults:
            typer.echo(annotation("error", f"{name}: {link.name}", fault), err=to_stderr)
        for text in gate_annotations(link.lines):
            typer.echo(text, err=to_stderr)
    if file := os.environ.get("GITHUB_STEP_SUMMARY"):
        append_summary(file, "".join(gate_summary(link.comparison, link.lines) for link in links))


def append_summary(file: str, summary: str) -> None:
    """Append to the summary of a run of GitHub Actions; a note where it cannot be written."""
    try:
        with Path(file).open("a", encoding="utf-8") as opened:
            opened.write(summary)
    except OSError as error:
        typer.echo(f"note: the summary of the run could not be written to the file that GITHUB_STEP_SUMMARY names: "
                   f"{error.strerror}", err=True)
