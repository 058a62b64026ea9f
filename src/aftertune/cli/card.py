"""``aftertune card ID``: a Hugging Face model card of an evaluated model or of a tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import Json
from aftertune.errors import InputError

if TYPE_CHECKING:
    from aftertune.report import Card


def card(
    word: Annotated[str, typer.Argument(metavar="ID", help="Id or name of an evaluation or a tuning.")],
    out: Annotated[Path, typer.Option(
        help="Folder for README.md and .eval_results, for example the model's own.")] = Path("card"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing README.md.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model card for the Hugging Face Hub, without paths of this machine and without secrets."""
    from aftertune.cli.runs import find
    from aftertune.ledger import Ledger
    from aftertune.report import write_card
    from aftertune.values import Comparison

    with Ledger(create=False) as ledger:
        about = find(ledger, word)
        if isinstance(about, Comparison):
            raise InputError(f"{word} is a comparison; a card is about one model: name its evaluation "
                             f"({about.tuned_name}) or its tuning")
        if about.status != "done":
            raise InputError(f"{about.name} ({about.id}) is {about.status!r}, and only what is done has a card; run "
                             "the same command again to finish it")
        made = write_card(about, ledger.evaluations(), ledger.tunings(), ledger.comparisons())
    paths = _write(made, out, force)
    if as_json:
        emit({"readme": str(paths[0]), "eval_results": [str(p) for p in paths[1:]], "left_out": list(made.left_out)})
        return
    for path in paths:
        typer.echo(f"written to {path}")
    if made.left_out:
        typer.echo("left out of the metadata, stopped early and so without a score of all items: "
                   f"{', '.join(made.left_out)}")


def _write(made: Card, out: Path, force: bool) -> list[Path]:
    """The card's files; a README.md of another text stays unless ``force``."""
    from aftertune.report import make_folder, write_document

    readme = out / "README.md"
    if readme.is_file() and not force and readme.read_text(encoding="utf-8", errors="replace") != made.readme:
        raise InputError(f"{readme}: there is one already, with another text; name another folder with --out, or "
                         "write over it with --force")
    make_folder(out / ".eval_results" if made.results else out)
    files = {readme: made.readme, **{out / ".eval_results" / name: text for name, text in made.results.items()}}
    for path, text in files.items():
        write_document(path, text)
    return list(files)
