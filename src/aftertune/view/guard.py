"""Checks each request before a page sees it, sets the headers of each answer, and turns errors into a plain page.

    app = Guard(routes, Access(hosts=frozenset({"127.0.0.1:7788", "localhost:7788"})), error_page)

A browser lets any website send requests to a server of this machine. So the host must be one of ours (a website whose
name is changed to this address has another one), the origin too where there is one, and a change needs the secret of a
page that we made. Answers may run our own scripts only, and nothing of them may be shown inside another site.
"""

from __future__ import annotations

import hmac
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aftertune import bounds
from aftertune.errors import (
    AftertuneError,
    AmbiguousName,
    InputError,
    NotComparable,
    ResourceError,
    StorageError,
    one_line,
)
from aftertune.redaction import public_text

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
          "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
#: same-origin, not no-referrer: with that a browser sends "Origin: null" with our own forms.
_HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "same-origin",
    "x-frame-options": "DENY", "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin", "permissions-policy": "camera=(), microphone=(), geolocation=()"}
#: Name of the cookie with the token, without the port: browsers send cookies to every port of a host.
_COOKIE = "aftertune_view"
CSRF = "csrf"
#: The header in which htmx sends it.
CSRF_HEADER = "x-csrf-token"
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 100
_FIELDS = "aftertune.fields"  # of a scope: the form that was checked

#: Makes the page of an error: status, title, message -> HTML.
ErrorPage = Callable[[int, str, str], str]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may send requests. hosts: allowed values of the Host header, with port; token: which a browser must have
    got once, None where the server only listens on this machine; csrf: the secret of our own forms."""

    hosts: frozenset[str]
    token: str | None = None
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))


def form_of(request: Request) -> dict[str, str]:
    """The fields of a form, each with its first value."""
    fields: dict[str, str] = request.scope.get(_FIELDS, {})
    return fields


class Refusal(Exception):
    """A request that is not answered. status: of HTTP; text: why, in one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Guard:
    """An ASGI application around another one. bodies: path -> the most bytes of a form, where it may be longer than
    others."""

    def __init__(self, app: ASGIApp, access: Access, error_page: ErrorPage,
                 bodies: Mapping[str, int] | None = None) -> None:
        self.app, self.access, self.error_page, self.bodies = app, access, error_page, bodies or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(
                    (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in names)]
                if b"cache-control" not in names:
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        try:
            answer = self._check(scope)
            if answer is not None:
                await answer(scope, receive, guarded_send)
                return
            await self.app(scope, await self._body(scope, receive), guarded_send)
        except Exception as error:
            if started:  # too late for a page; the connection is closed
                raise
            await self._page_of(error, changes=scope["method"] == "POST")(scope, receive, guarded_send)

    def _check(self, scope: Scope) -> Response | None:
        """Raise Refusal for a request that is not allowed; an answer where the token has just been given."""
        headers = Headers(scope=scope)
        method, query = scope["method"], scope["query_string"]
        if method not in ("GET", "HEAD", "POST"):
            raise Refusal(405, f"{method[:20]} is not allowed; the view answers GET, HEAD and POST")
        if len(query) > bounds.VIEW_QUERY or len(scope.get("raw_path") or b"") > bounds.VIEW_QUERY:
            raise Refusal(414, f"the address is longer than {bounds.VIEW_QUERY:,} bytes")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.access.hosts:
            raise Refusal(421, "this host name is not allowed; open the address that `aftertune view` printed")
        origins = headers.getlist("origin")
        allowed = {f"{scheme}://{host}" for host in self.access.hosts for scheme in ("http", "https")}
        if any(origin.lower() not in allowed for origin in origins):
            raise Refusal(403, "requests of other websites are not answered")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site not in ("none", "same-origin") and (method == "POST" or mode != "navigate"):
            raise Refusal(403, "requests of other websites are not answered")
        if method == "POST" and not origins:
            raise Refusal(403, "a change needs the header Origin, which every browser sends")
        return self._check_token(scope, headers)

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        token = self.access.token
        if token is None:
            return None
        port = headers["host"].rpartition(":")[2]  # of an allowed host; each view of this machine has another one
        cookie = f"{_COOKIE}_{port}" if port.isdigit() else _COOKIE
        # not SimpleCookie, which finds none after one that it cannot read: other ports of the host set cookies too
        if _same(cookie_parser(headers.get("cookie", "")).get(cookie, ""), token):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"))  # bounded by VIEW_QUERY
        if scope["method"] == "GET" and any(k == "token" and _same(v, token) for k, v in query):
            rest = urlencode([(k, v) for k, v in query if k != "token"])
            address = _attribute(f"/{quote(scope['path'].lstrip('/'))}{'?' if rest else ''}{rest}")
            # not a redirect: the browser would not send a cookie of SameSite=Strict along after a link of another site
            response = HTMLResponse("<!DOCTYPE html><html lang=\"en\"><title>aftertune</title>"
                                    f"<meta http-equiv=\"refresh\" content=\"0;url={address}\">"
                                    f"<p><a href=\"{address}\">Continue</a></p>")
            response.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
            return response
        raise Refusal(401, "this view needs its token; open the address that `aftertune view --token` printed")

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """What the page receives. The body of a POST is read here, within its bound, and its secret is checked."""
        if scope["method"] != "POST":
            return receive
        headers = Headers(scope=scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Refusal(415, f"a change is sent as a form ({_FORM})")
        length, most = headers.get("content-length", "0"), self.bodies.get(scope["path"], bounds.VIEW_BODY)
        body = b""
        more = True
        while more:
            if not length.isdigit() or int(length) > most or len(body) > most:
                raise Refusal(413, f"this form has at most {most:,} bytes")
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the browser closed the connection")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > most:
            raise Refusal(413, f"this form has at most {most:,} bytes")
        try:
            fields = parse_qs(body.decode("utf-8"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            raise Refusal(400, "the form cannot be read") from None
        given = headers.get(CSRF_HEADER) or next(iter(fields.get(CSRF, [])), "")
        if not _same(given, self.access.csrf):
            raise Refusal(403, "the page is from before the view was started again; load it again, then repeat it")
        scope[_FIELDS] = {name: values[0] for name, values in fields.items()}
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    def _page_of(self, error: Exception, *, changes: bool) -> Response:
        """The page of an error: its line without secrets and without paths of this machine, and no traceback."""
        status, title, text = _described(error)
        if changes and status == 404 and isinstance(error, InputError):
            status, title = 400, "Not changed"
        return HTMLResponse(self.error_page(status, title, public_text(one_line(text))), status_code=status)


def _described(error: Exception) -> tuple[int, str, str]:
    """Status, title and line of an error. One that nobody expected is only named here, and printed on stderr."""
    if isinstance(error, Refusal):
        return error.status, "Not allowed", error.text
    if isinstance(error, HTTPException):
        return error.status_code, "Not found" if error.status_code == 404 else "Not allowed", \
            "there is no such page" if error.status_code == 404 else str(error.detail)
    kinds: tuple[tuple[type[Exception], int, str], ...] = (
        (AmbiguousName, 300, "Several entries"), (NotComparable, 409, "Not comparable"),
        (StorageError, 503, "The ledger cannot be read"), (ResourceError, 409, "Not possible now"),
        (InputError, 404, "Not found"), (AftertuneError, 500, "Error"))
    for kind, status, title in kinds:
        if isinstance(error, kind):
            return status, title, str(error)
    if os.environ.get("AFTERTUNE_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    else:
        print(f"aftertune: the view could not answer ({type(error).__name__}); aftertune --debug view prints where",
              file=sys.stderr)
    return 500, "Error", f"the page could not be made ({type(error).__name__}); the terminal says more with --debug"


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


def _attribute(text: str) -> str:
    """A query that was encoded, inside an attribute."""
    return text.replace("&", "&amp;").replace('"', "%22")
