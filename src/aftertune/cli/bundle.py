"""Implements ``verify`` and ``export --bundle``: results that another machine can prove without a model.

    aftertune export orders --bundle orders-bundle
    aftertune verify orders-bundle
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit, progress
from aftertune.cli.options import JsonFlag
from aftertune.cli.streams import rich_console
from aftertune.errors import NotProven

if TYPE_CHECKING:
    from aftertune.bundle import Proof, Verified


def write_bundle(word: str | None, folder: Path, title: str | None, as_json: bool) -> None:
    """Write a bundle and say what it proves."""
    from aftertune.bundle import export_bundle
    from aftertune.ledger import Ledger

    with Ledger(create=False) as ledger, progress() as update:
        name = title or ("Model evaluation report" if word in (None, "all") else f"Results: {word}")
        written = export_bundle(ledger, word, folder, title=name, progress=update)
    if as_json:
        emit({"path": str(folder), "sha256": written.sha256, "files": written.files, "bytes": written.size,
              **_as_object(written.proof), "left_out": list(written.left_out)})
        return
    typer.echo(f"written to {folder}: {written.files:,} files, {written.size / 2**20:.1f} MiB")
    _show_proof(written.proof)
    for line in written.left_out:
        typer.echo(f"left out: {line}")
    typer.echo(f"manifest {written.sha256}")
    typer.echo(f"prove it on any machine: aftertune verify {folder}")


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `aftertune export --bundle` wrote.")],
    strict: Annotated[bool, typer.Option(
        "--strict", help="Exit with 3 also where a score could not be computed again from the responses.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Prove a bundle without a model: compare its files, and compute every score and verdict again from the answers.

    Exit code 3 where a byte, a score or a verdict is not what the answers give; each is named.
    """
    from aftertune.bundle import verify_bundle

    with progress() as update:
        verified = verify_bundle(folder, progress=update)
    proof = verified.proof
    incomplete = [*proof.unchecked, *proof.from_values]
    failed = proof.failed or (incomplete if strict else [])
    if as_json:
        emit({"ok": not failed, "title": verified.title, "sha256": verified.sha256, "files": verified.files,
              "documents": verified.documents, **_as_object(proof)})
    else:
        _show(verified)
    if failed:
        more = f" (and {len(failed) - 1} more, listed above)" if len(failed) > 1 else ""
        raise NotProven(f"{folder}: not proven: {failed[0]}{more}")


def _as_object(proof: Proof) -> dict[str, Any]:
    return {"evaluations": proof.evaluations, "comparisons": proof.comparisons, "answers": proof.answers,
            "scores": proof.scores, "rows": proof.rows, "scored_again": proof.scored,
            "from_stored_values": proof.from_values, "unchecked": proof.unchecked, "failed": proof.failed}


def _show(verified: Verified) -> None:
    from rich.text import Text

    console = rich_console()
    console.print(Text(verified.title, style="bold"))
    proof = verified.proof
    if proof.evaluations:
        typer.echo(f"files: {verified.files:,}, each as the manifest says")
        _show_proof(proof)
        typer.echo(f"record and page: {verified.documents}")
    for line in proof.failed:
        console.print(Text.assemble(("failed", "bold red"), f" {line}"))
    typer.echo(f"manifest {verified.sha256}")
    if not proof.failed:
        typer.echo("proven: the answers give every figure above. Not proven by a bundle: that the models gave these "
                   "answers, which needs their weights")


def _show_proof(proof: Proof) -> None:
    """What was computed again, and what was not."""
    tasks = proof.scored + len(proof.from_values)
    typer.echo(f"scores: {proof.scores:,} of {proof.evaluations:,} evaluations computed again from {proof.answers:,} "
               f"answers; the responses of {proof.scored:,} of {tasks:,} tasks were scored again")
    typer.echo(f"verdicts: {proof.rows:,} rows of {proof.comparisons:,} comparisons computed again")
    for line in proof.from_values:
        typer.echo(f"from the stored values of the items: {line}")
    for line in proof.unchecked:
        typer.echo(f"not computed again: {line}")
