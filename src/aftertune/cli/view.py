"""Implements ``view``: serves the pages of a ledger to a browser on this machine.

    aftertune view                            http://127.0.0.1:7788
    aftertune view --port 0 --open            a free port, and the browser opens it
    aftertune view --host 0.0.0.0 --token     for other machines, whose browsers need the printed address once
    aftertune view --with-model BASE --with-model TUNED     a page asks both the same question
    aftertune view --export pages             pages for a static host, which also open from disk

A view of another machine is best reached through SSH, without a token: ssh -L 7788:127.0.0.1:7788 MACHINE
The server can be stopped and started again: pages that are open keep working, and their forms after a reload.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aftertune.cli.console import emit
from aftertune.cli.options import JsonFlag
from aftertune.errors import ResourceError

if TYPE_CHECKING:
    from aftertune.ledger import StoredAt

_PACKAGES = ("starlette", "uvicorn")


def view(
    ledger: Annotated[str | None, typer.Option(
        metavar="PATH", help="Ledger to show. Default: AFTERTUNE_LEDGER, else .aftertune/ledger.db.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 for a free one.")] = 7788,
    host: Annotated[str, typer.Option(
        help="Address to listen on. One that other machines reach needs --token.")] = "127.0.0.1",
    token: Annotated[bool, typer.Option(
        "--token", help="Make a token, which is in the printed address; a browser without it gets nothing.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the address in the browser.")] = False,
    export: Annotated[Path | None, typer.Option(
        help="Folder to write pages of comparisons into, which open from disk and from any static host; no server "
             "starts.")] = None,
    comparison: Annotated[list[str] | None, typer.Option(
        help="Id of a comparison to export, as `aftertune runs` shows it; several times for several. Default: all."
        )] = None,
    with_model: Annotated[list[str] | None, typer.Option(
        help="Model for the page that asks two models the same question; give it twice, for the base and for the tuned "
             "model (a model, an adapter of the base, or a fine-tune of the ledger).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a ledger in the browser: comparisons, each changed item, and what runs now. Ctrl-C stops it."""
    require_view()
    if export is not None:
        _write_pages(ledger, export, comparison or [], as_json)
        return
    from aftertune.ledger import locate
    from aftertune.view.ledgers import LedgerSource
    from aftertune.view.server import ServerAddress, serve

    place = locate(ledger)

    def announce(address: str) -> None:
        if as_json:
            emit({"ledger": str(place), "address": address})
        else:
            typer.echo(f"{place.name} is shown at {address} (Ctrl-C stops)")
        sys.stdout.flush()  # another program may wait for the line
        if open_:
            import webbrowser

            webbrowser.open(address)

    serve(LedgerSource(place), ServerAddress(host, port, token), announce=announce,
          settings=_settings(place, with_model or []))


def _settings(place: StoredAt, words: list[str]) -> dict[str, Any]:
    """The settings of single pages: the models to ask, where some are named."""
    if not words:
        return {}
    from aftertune.ledger import Ledger
    from aftertune.view.both_models import BothModels
    from aftertune.view.pages.ask import MODELS

    with Ledger(place, create=False, read_only=True) as ledger:
        return {MODELS: BothModels.find(words, ledger)}


def _write_pages(place: str | None, folder: Path, words: list[str], as_json: bool) -> None:
    """Write the pages of comparisons."""
    from aftertune.ledger import Ledger
    from aftertune.view.static_site import write_static_site

    with Ledger(place, create=False, read_only=True) as ledger:
        chosen = [ledger.find_comparison(word) for word in words] or ledger.comparisons()[::-1]
        written = write_static_site(ledger, folder, list({c.id: c for c in chosen}.values()),
                                    report=lambda line: typer.echo(line, err=True))
    size = sum(path.stat().st_size for path in written)
    if as_json:
        emit({"first": str(written[0]), "files": len(written), "bytes": size})
        return
    typer.echo(f"{written[0]} and {len(written) - 1} files beside it, {size / 1e6:.1f} MB")


def require_view() -> None:
    """ResourceError where the packages of the view are not installed.

    They are an extra, because a machine that only trains and evaluates, such as a node of a cluster, has no use for
    them: its ledger can be copied, or reached through SSH.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ResourceError(f"the view needs {' and '.join(missing)}: pip install 'aftertune[view]'")
