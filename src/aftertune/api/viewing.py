"""Shows the items of a comparison in a notebook."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from html import escape
from pathlib import Path

from aftertune.api.parameters import LedgerPlace, opened, with_settings
from aftertune.errors import InputError, ResourceError
from aftertune.values import Comparison


@dataclass(frozen=True, slots=True)
class ItemExplorer:
    """The explorer of a comparison's items as one page without files. A notebook shows it in a frame of its own, which
    can reach neither the notebook nor the network.

    page: the HTML; title: what it is about; height: of the frame in pixels.
    """

    page: str
    title: str
    height: int = 760

    def _repr_html_(self) -> str:
        return (f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{escape(self.page)}" '
                f'title="{escape(self.title)}" width="100%" height="{self.height}" style="border: 0"></iframe>')

    def __repr__(self) -> str:
        return f"<ItemExplorer {self.title}: {len(self.page):,} characters; save(FILE) writes it>"

    def save(self, path: str | Path) -> Path:
        """Write the page as an .html file, which opens from disk, and return its path."""
        from aftertune.report import write_document

        write_document(Path(path), self.page, verbatim=True)
        return Path(path)


@with_settings()
def view(comparison: Comparison | str, *, tasks: Collection[str] | str = (), height: int = 760,
         ledger: LedgerPlace = None) -> ItemExplorer:
    """Show the items of a comparison in the notebook: which were lost and gained, their margins, and both answers.

    comparison: of `compare`, or the id of a stored one. tasks: only these. height: of the frame in pixels. ledger: as
    of `evaluate`. `aftertune view` on the command line shows the whole ledger in the browser.

    Raises InputError where the comparison has no such items, and ResourceError without the extra "view".
    """
    try:
        from aftertune.view.static_site import inline_explorer
    except ModuleNotFoundError as error:
        raise ResourceError(f"the view needs {error.name}: pip install 'aftertune[view]'") from None

    if not isinstance(comparison, Comparison | str):
        raise InputError(f"view takes a comparison or its id, not {type(comparison).__name__}")
    with opened(ledger, create=False) as stored:
        found = stored.find_comparison(comparison) if isinstance(comparison, str) else comparison
        page = inline_explorer(found, stored, [tasks] if isinstance(tasks, str) else list(tasks))
    return ItemExplorer(page, f"{found.tuned_name} against {found.base_name}", height)
