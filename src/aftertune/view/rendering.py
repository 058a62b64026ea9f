"""Makes HTML from templates, and holds what the pages share.

    context_of(request).ledgers                     the ledger of this view
    render(request, "runs.html", title="Runs", page=page)

A template is in ``templates/`` of this room, or of the report's page as ``report/NAME``. All text is escaped; hidden
characters are shown as code points. Charts are markup of our own, whose styles become attributes of SVG. What is
certainly a secret is removed from every page, as from every document; free text of the ledger (settings, notes,
reasons) also loses the folders of this machine, by the filter ``public`` or by `published`. A command keeps them: it is
there to be copied.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from aftertune import __version__
from aftertune.ledger import RunningEntry
from aftertune.redaction import public_text, redact_known
from aftertune.report import formatting as fmt
from aftertune.report.columns import COLUMNS
from aftertune.report.names import task_title
from aftertune.report.page import TEMPLATES as REPORT_TEMPLATES
from aftertune.report.page import make_environment
from aftertune.report.page.figures import with_attributes
from aftertune.view.guard import CSRF, CSRF_HEADER, Access
from aftertune.view.ledgers import LedgerSource
from aftertune.view.links import LINKS

T = TypeVar("T")
HERE = Path(__file__).parent
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: The key of a request's scope for the context of the server.
CONTEXT = "aftertune.context"
#: Styles that the view takes from the report's page, by their names here.
_OF_REPORT = {"page.css": REPORT_TEMPLATES / "page.css"}


@dataclass(frozen=True, slots=True)
class NavigationLink:
    """One entry of the navigation. order: its place; every page below ``path``, or below ``also``, belongs to it;
    needs: the setting without which the page is left out."""

    title: str
    path: str
    order: int
    also: str = ""
    needs: str = ""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the package that a page loads. version: of its content, which its address has."""

    content: bytes
    media_type: str
    version: str


class Remembered:
    """The last few values that took long to make. A value is made once, also where several requests want it."""

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self._lock = Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}

    def peek(self, key: Hashable) -> Any:
        """The value of a key, None where it is not known."""
        with self._lock:
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key."""
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    value: T = self._values[key]
                    return value
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._values[key] = value
                while len(self._values) > self.most:
                    self._values.popitem(last=False)
            return value


@dataclass
class ViewContext:
    """What the pages of one server share. memory: comparisons and other values that took long to make; small: the same
    for many small ones; settings: of single pages, by their names."""

    ledgers: LedgerSource
    access: Access
    navigation: tuple[NavigationLink, ...] = ()
    memory: Remembered = field(default_factory=Remembered)
    small: Remembered = field(default_factory=lambda: Remembered(1000))
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[str, StaticFile]:
        """Every static file by its name, such as "view.js" and "vendor/htmx.min.js"."""
        folder = HERE / "static"
        paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.suffix in _TYPES}
        return {name: _static(path, name) for name, path in (paths | _OF_REPORT).items()}

    @cached_property
    def environment(self) -> Environment:
        """Jinja2 with what every template may use."""
        environment = make_environment(ChoiceLoader([
            FileSystemLoader(HERE / "templates"), PrefixLoader({"report": FileSystemLoader(REPORT_TEMPLATES)}),
            FileSystemLoader(REPORT_TEMPLATES)]))  # templates of the report include one another by their bare names
        environment.globals |= {
            **LINKS, "static": self.static, "csrf_field": self._csrf_field, "navigation": self.navigation,
            "version": __version__,
            "heads": {c.key: c.heading for c in COLUMNS}, "htmx_headers": json.dumps({CSRF_HEADER: self.access.csrf})}
        environment.filters |= {"json": _json, "task_title": task_title, "count": fmt.count, "when": _when,
                                "duration": fmt.duration, "progress_text": progress_text, "public": public_text,
                                "raw": partial(fmt.raw, digits=3)}
        return environment

    def static(self, name: str) -> str:
        """The address of a static file, which changes with its content, so that a browser may keep it."""
        return f"/static/{name}?v={self.files[name].version}"

    def page(self, template: str, *, path: str = "/", **values: Any) -> str:
        """A page as text, without known secrets. path: of the request, for the navigation."""
        here = max((n.path for n in self.navigation if _below(path, n.path) or (n.also and _below(path, n.also))),
                   key=len, default="")
        return redact_known(with_attributes(self.environment.get_template(template).render(here=here, **values)))

    def _csrf_field(self) -> Markup:
        return Markup('<input type="hidden" name="{}" value="{}">').format(CSRF, self.access.csrf)


def context_of(request: Request) -> ViewContext:
    """What the pages of this server share."""
    context: ViewContext = request.scope[CONTEXT]
    return context


def render(request: Request, template: str, *, title: str, http_status: int = 200, **values: Any) -> Response:
    """A page, or a part of one where htmx asks for it: the template gets ``part``, the id of the element to replace."""
    part = request.headers.get("hx-target", "") if is_partial(request) else ""
    text = context_of(request).page(template, path=request.url.path, title=title, part=part, request=request, **values)
    return HTMLResponse(text, status_code=http_status, headers={"vary": "hx-request"})


def is_partial(request: Request) -> bool:
    """Whether htmx asks for a part of the page that is already shown."""
    return request.headers.get("hx-request") == "true" and request.headers.get("hx-history-restore-request") != "true"


def _static(path: Path, name: str) -> StaticFile:
    content = path.read_bytes()
    if name == "page.css":
        content = _themes(content.decode()).encode()
    return StaticFile(content, f"{_TYPES[path.suffix]}; charset=utf-8", hashlib.sha256(content).hexdigest()[:12])


def _themes(css: str) -> str:
    """The report's styles, whose dark colours also follow the choice of a reader (data-theme) and not only the
    system's."""
    start = "@media (prefers-color-scheme: dark) {\n  :root {"
    before, _, after = css.partition(start)
    dark, _, rest = after.partition("}\n}")
    light = before[before.index(":root {") + len(":root {"):before.index("}")]
    return (f"{before}{start.replace(':root', ':root:not([data-theme=light])')}{dark}}}\n}}"
            f"\n:root[data-theme=dark] {{{dark}}}\n:root[data-theme=light] {{{light}}}\n{rest}")


def _json(value: Any) -> Markup:
    """A value for a script, inside an element that is no script to the browser: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _when(text: str) -> str:
    """A time of the provenance in minutes."""
    return text[:16].replace("T", " ")


def progress_text(entry: RunningEntry) -> str:
    """How far a running entry is, and how long the rest takes at its pace."""
    unit = "responses" if entry.kind == "evaluation" else "steps"
    parts = [f"{entry.done:,} of {entry.total:,} {unit}" if entry.total else
             f"{entry.done:,} {unit}" if entry.done else "preparing"]
    if entry.loss is not None:
        parts.append(f"loss {entry.loss:.3f}")
    if entry.seconds_left is not None:
        parts.append(f"about {fmt.duration(entry.seconds_left)} left")
    if entry.processes > 1:
        parts.append(f"{entry.processes} processes")
    return ", ".join(parts)


def _below(path: str, place: str) -> bool:
    return path == place or (place != "/" and path.startswith(f"{place}/"))
