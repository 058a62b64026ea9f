"""Implements ``verify``, ``export --bundle`` and ``push``: results that another machine can prove without a model, and
a fine-tune on the Hugging Face Hub with a card that the ledger proves.

    aftertune export orders --bundle orders-bundle
    aftertune verify orders-bundle
    aftertune push orders --to USER/orders --dry-run
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
        "--strict", help="Exit with 3 also where a score could not be computed again from the responses, or record and "
        "page not be compared.")] = False,
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
    if verified.documents != "same":
        incomplete.append(f"record and page: {verified.documents}")
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
        complete = not proof.unchecked and not proof.from_values and verified.documents == "same"
        shown = "proven: the answers give every figure above" if complete else \
            "proven, except for what the lines above name: the answers give the scores and verdicts"
        typer.echo(f"{shown}. Not proven by a bundle: that the models gave these answers, which needs their weights")


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


def push(
    word: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a fine-tune.")],
    to: Annotated[str, typer.Option(help="USER/NAME: the repository on the Hub; it is created if it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prove and list what would be published, and stop.")
                       ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Publish a fine-tune on the Hugging Face Hub: weights, model card, results metadata and record.

    Nothing is published unless the weights are those that were evaluated and the stored answers give every score and
    verdict of the card (exit code 3). The token is that of `hf auth login` or HF_TOKEN.
    """
    from aftertune.ledger import Ledger
    from aftertune.publishing import check_repository, prepare_push, push_folder, send

    check_repository(to)
    with Ledger(create=False) as ledger, push_folder() as folder:
        with progress() as update:
            ready = prepare_push(ledger, word, folder, progress=update)
        address = None if dry_run else send(ready, to, private=private)
    proof = ready.proof
    if as_json:
        emit({"repository": to, "commit": address, "dry_run": dry_run, "files": dict(ready.files),
              "evaluations": list(ready.evaluations), "scores": proof.scores, "rows": proof.rows,
              "unchecked": [*proof.unchecked, *proof.from_values], "left_out": list(ready.left_out)})
        return
    for name, size in ready.files.items():
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"proven: {proof.scores:,} scores and {proof.rows:,} rows of verdicts are what the stored answers give")
    for line in (*proof.unchecked, *proof.from_values):
        typer.echo(f"from the stored values of the items: {line}")
    if ready.left_out:
        typer.echo("left out of the metadata, because they were stopped early and have no score of all items: "
                   f"{', '.join(ready.left_out)}")
    if not ready.evaluations:
        typer.echo("the card has no scores: the fine-tune is not evaluated yet")
    typer.echo(f"nothing was published (--dry-run); without it: {to}" if dry_run else f"published: {address}")
