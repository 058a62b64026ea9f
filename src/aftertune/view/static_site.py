"""Writes comparisons as pages that open from disk and from any static host, with the explorer of items.

    written = write_static_site(ledger, Path("pages"), [comparison])      pages/index.html, pages/c-1f….html, …
    inline_explorer(comparison, ledger)                                   one page without files, for a notebook

Paths of this machine in the settings of the comparisons become names, as in a published record. The pages load scripts
and styles of their own folder alone (their content security policy allows nothing else), and the
items of a task when they are first shown. The same comparisons give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aftertune.comparison import find_finished
from aftertune.comparison.paired_items import paired_items
from aftertune.errors import AftertuneError, InputError, StorageError, one_line
from aftertune.ledger import Ledger
from aftertune.paths import is_dir, is_file
from aftertune.redaction import public_text, published
from aftertune.report import Results, make_folder, write_document
from aftertune.report.columns import verdict_table
from aftertune.report.page.views import comparison_view
from aftertune.values import Comparison, Evaluation
from aftertune.view.explorer import explorer_task, packed
from aftertune.view.guard import Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.pages.comparison import command_of
from aftertune.view.pages.items import chosen_metric, task_choices
from aftertune.view.pages.overview import ComparisonSummary
from aftertune.view.rendering import ViewContext

_STYLES = ("page.css", "view.css")
_EXPLORER_STYLES = ("vendor/uplot.min.css",)
_SCRIPTS = ("theme.js", "view.js")
_EXPLORER_SCRIPTS = ("vendor/uplot.min.js", "items.js", "explorer.js")
_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
           "form-action 'none'")
#: What `index.html` of an earlier export has in its head, so that the folder may be written again.
_GENERATOR = '<meta name="generator" content="aftertune '


@dataclass(frozen=True, slots=True)
class ExplorerTask:
    """A task in the explorer. file: with its data beside the page; packed: the data itself, where the page has it."""

    task: str
    title: str
    lost: int | None
    gained: int | None
    path: str = ""
    file: str = ""
    packed: str = ""

    @property
    def for_script(self) -> dict[str, str]:
        """What explorer.js reads."""
        counts = f"{self.title}: {self.lost or 0:,} lost, {self.gained or 0:,} gained"
        return {"task": self.task, "label": counts, **({"file": self.file} if self.file else {"packed": self.packed})}


class _ExportContext(ViewContext):
    """Templates whose static files are in a folder beside the pages."""

    def __init__(self) -> None:
        super().__init__(LedgerSource(Path()), Access(hosts=frozenset()))

    def static(self, name: str) -> str:
        """The address of a static file, relative to a page."""
        self.files[name]  # a missing one is a mistake of the template
        return f"static/{name}"


def write_static_site(ledger: Ledger, folder: Path, comparisons: Sequence[Comparison], *,
                      report: Callable[[str], None] | None = None) -> list[Path]:
    """Write the pages of the comparisons, each of which is stored in the ledger; returns the files, index.html first.

    Pages of comparisons that an earlier export wrote into the folder, and this one does not, are removed. report: gets
    a line for each comparison. Raises InputError where the folder has files that are not of an export, and StorageError
    where it cannot be written.
    """
    if not comparisons:
        raise InputError("there is no comparison to export; make one with aftertune compare BASE TUNED")
    _check_folder(folder)
    context = _ExportContext()
    comparisons = published(list(comparisons))
    pages = {c.id: f"{c.id}.html" for c in comparisons}
    summaries = [_summary(c, pages) for c in comparisons]
    index = context.page("exported_index.html", title="Comparisons", summaries=summaries, policy=_POLICY,
                         styles=_STYLES, scripts=_SCRIPTS)
    written = [_write(folder / "index.html", index)]  # first: it marks the folder as that of an export
    written += [_write(folder / "static" / name, file.content.decode(), verbatim=True)
                for name, file in context.files.items()]
    for number, comparison in enumerate(comparisons, start=1):
        if report is not None:
            report(f"[{number}/{len(comparisons)}] {comparison.tuned_name} against {comparison.base_name}")
        written += [_write(folder / name, text) for name, text in _pages_of(context, ledger, comparison, pages)]
    _remove_others(folder, written)
    return written


def _write(path: Path, text: str, *, verbatim: bool = False) -> Path:
    """Write one file of the export; returns its path."""
    make_folder(path.parent)
    write_document(path, text, verbatim=verbatim)
    return path


def _remove_others(folder: Path, written: Sequence[Path]) -> None:
    """Remove the pages and data of comparisons that an earlier export left in the folder."""
    for path in {*folder.glob("c-*.html"), *folder.glob("data/c-*.js")} - {*written}:
        try:
            path.unlink()
        except OSError as error:
            raise StorageError(f"{path}: a page of an earlier export cannot be removed ({error.strerror}); remove it "
                               "yourself, or choose a new folder") from None


def inline_explorer(comparison: Comparison, ledger: Ledger, tasks: Sequence[str] = ()) -> str:
    """One page with the explorer, its scripts, styles and data; the policy allows these scripts alone.

    tasks: only these. Raises InputError where the comparison has no task with items to show.
    """
    context = _ExportContext()
    sides = find_finished(comparison.base, ledger), find_finished(comparison.tuned, ledger)
    found, missing = _explorer_tasks(ledger, comparison, sides, tasks)
    if not found:
        raise InputError(missing[0] if missing else "no task of this comparison is right or wrong on each item")
    styles = [context.files[n].content.decode() for n in (*_STYLES, *_EXPLORER_STYLES)]
    scripts = [context.files[n].content.decode() for n in (*_SCRIPTS, *_EXPLORER_SCRIPTS)]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = (f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
              "form-action 'none'")
    return context.page("explorer_inline.html", title=f"{comparison.tuned_name} against {comparison.base_name}",
                        base=comparison.base_name, tuned=comparison.tuned_name, policy=policy,
                        inline_styles=map(_as_markup, styles), inline_scripts=map(_as_markup, scripts),
                        tasks=[t.for_script for t in found])


def _as_markup(text: str) -> Any:
    """A file of the package as it is; none of them has an end tag."""
    from markupsafe import Markup

    if "</s" in text:
        raise ValueError("a script or style of the package would end its own element")
    return Markup(text)


def _check_folder(folder: Path) -> None:
    """InputError where writing would mix the pages with other files."""
    if is_file(folder):
        raise InputError(f"{folder} is a file; --export takes a folder")
    if not is_dir(folder):
        return
    try:
        if not any(folder.iterdir()):
            return
        index = folder / "index.html"
        ours = is_file(index) and _GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError as error:
        raise StorageError(f"{folder}: this folder cannot be read ({error.strerror}); choose another one") from None
    if not ours:
        raise InputError(f"{folder} has other files; give --export a new or an empty folder, or that of an earlier "
                         "export")


def _summary(comparison: Comparison, pages: Mapping[str, str]) -> ComparisonSummary:
    made = ComparisonSummary.of(comparison)
    return replace(made, path=pages[comparison.id],
                   verdicts=[(pages[comparison.id], title, line) for _, title, line in made.verdicts])


def _pages_of(context: _ExportContext, ledger: Ledger, comparison: Comparison, pages: Mapping[str, str]
              ) -> Iterator[tuple[str, str]]:
    """(name, text) of the files of one comparison."""
    sides = find_finished(comparison.base, ledger), find_finished(comparison.tuned, ledger)
    view: Any = comparison_view(comparison, Results.of_comparison(comparison, ledger), [], many=False)
    tasks, missing = _explorer_tasks(ledger, comparison, sides)
    items = f"{comparison.id}-items.html"
    linked = [replace(t, path=f"{items}#{_query(t.task)}", file=f"data/{comparison.id}-{n}.js")
              for n, t in enumerate(tasks)]
    yield pages[comparison.id], context.page(
        "exported_comparison.html", title=f"{comparison.tuned_name} against {comparison.base_name}", c=view, task="",
        comparison=comparison, lines=verdict_table(comparison), items=linked, missing=missing, policy=_POLICY,
        command=command_of(sides, comparison), styles=_STYLES, scripts=_SCRIPTS)
    if not linked:
        return
    yield items, context.page(
        "exported_items.html", title=f"Items: {comparison.tuned_name} against {comparison.base_name}",
        base=comparison.base_name, tuned=comparison.tuned_name, comparison_page=pages[comparison.id],
        tasks=[t.for_script for t in linked], policy=_POLICY, styles=(*_STYLES, *_EXPLORER_STYLES),
        scripts=(*_SCRIPTS, *_EXPLORER_SCRIPTS))
    for task in linked:
        yield task.file, f"aftertune.arrived({_script_text(task.task)},\"{task.packed}\");\n"


def _explorer_tasks(ledger: Ledger, comparison: Comparison, sides: tuple[Evaluation, Evaluation],
                    only: Sequence[str] = ()) -> tuple[list[ExplorerTask], list[str]]:
    """The tasks with their data, and one sentence for each that cannot be listed."""
    choices = task_choices(comparison)
    for name in only:
        if name not in {c.name for c in choices}:
            raise InputError(f"the comparison has no task {name!r} with items to show; it has "
                             f"{', '.join(c.name for c in choices) or 'none'}")
    forced = comparison.forced or comparison.common
    found: list[ExplorerTask] = []
    missing: list[str] = []
    for choice in choices:
        if only and choice.name not in only:
            continue
        try:
            listed = paired_items(*sides, choice.name, ledger=ledger, force=forced, common=forced,
                                  metric=chosen_metric(comparison, choice.name, sides[1]) or None)
        except AftertuneError as error:
            missing.append(public_text(f"The items of {choice.title} cannot be listed: {one_line(str(error))}"))
            continue
        found.append(ExplorerTask(choice.name, choice.title, choice.lost, choice.gained,
                                  packed=packed(explorer_task(listed))))
    return found, missing


def _query(task: str) -> str:
    from urllib.parse import urlencode

    return urlencode({"task": task, "show": "lost"})


def _script_text(text: str) -> str:
    """A text as a literal of a script."""
    return json.dumps(text).replace("<", "\\u003c")
