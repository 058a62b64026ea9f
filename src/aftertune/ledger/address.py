"""Finds the ledger: a SQLite file, or a database of a PostgreSQL server.

    locate("runs.db")                                        Path("/home/me/runs.db")
    locate("postgresql+psycopg://me:secret@db/aftertune")    a DatabaseAddress: str() is postgresql://db/aftertune

An address may have a password, so it is never shown: messages have host and database alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from aftertune.errors import InputError
from aftertune.paths import expanded
from aftertune.redaction import REDACTED, redact_known

DEFAULT = Path(".aftertune/ledger.db")
VARIABLE = "AFTERTUNE_LEDGER"
#: What an address of a server looks like, for messages.
FORM = "postgresql+psycopg://USER@HOST/DATABASE"
_SERVER = ("postgresql+psycopg", "postgresql", "postgres")
#: An address that was made a path, which has one slash less.
_AS_PATH = re.compile(r"(?:postgres(?:ql)?(?:\+\w+)?|sqlite):/")

#: What a login must not have as it is.
_BARE = re.compile(r"""[/?#'"\s]""")


class DatabaseAddress:
    """Where a PostgreSQL server has a ledger. The text and the repr have no user, no password and no settings.

    url: the whole address, for the driver alone.
    """

    def __init__(self, url: URL) -> None:
        self.url = url.set(drivername="postgresql+psycopg")

    @property
    def name(self) -> str:
        """The name of the database."""
        return str(self.url.database)

    def __str__(self) -> str:
        query = self.url.query.get("host", ())
        host = self.url.host or (query if isinstance(query, str) else ",".join(query)) or os.environ.get("PGHOST", "")
        host = f"[{host}]" if ":" in host or host.startswith("/") else host
        return f"postgresql://{host}{f':{self.url.port}' if self.url.port else ''}/{self.name}"

    def __repr__(self) -> str:
        return f"DatabaseAddress({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DatabaseAddress) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def with_password(self) -> str:
        """The whole address, for `locate` in another process: for its stdin or environment, never for a command."""
        return self.url.render_as_string(hide_password=False).replace(" ", "%20")  # which SQLAlchemy leaves in a login

    def without_secrets(self, text: str) -> str:
        """A message of the driver or the server without the password of the address."""
        query = self.url.query
        given = [self.url.password, *(query.get(key) for key in ("password", "sslpassword"))]
        for secret in sorted({str(value) for value in given if value}, key=len, reverse=True):
            for form in {secret, quote(secret, safe=""), unquote(secret)}:
                text = text.replace(form, REDACTED)
        return redact_known(text)


#: Where a ledger is: its file, or the address of its server.
StoredAt = Path | DatabaseAddress


def locate(where: str | os.PathLike[str] | DatabaseAddress | None = None) -> StoredAt:
    """The ledger's place: ``where`` (a path, ``sqlite:///PATH`` or ``postgresql+psycopg://…``), else AFTERTUNE_LEDGER,
    else DEFAULT. InputError, without the address, where it names neither a file nor a database."""
    if isinstance(where, DatabaseAddress):
        return where
    text = os.fspath(where) if where is not None else os.environ.get(VARIABLE, "")
    if "://" not in text:
        if _AS_PATH.match(text):
            raise InputError("the ledger's address was given as a path, which loses a slash; give it as a text, or "
                             f"set {VARIABLE} to it")
        return (expanded(text) if text else DEFAULT).absolute()
    scheme = re.sub(r"[^\w+.-].*", "", text.partition("://")[0], flags=re.DOTALL)
    allowed = f"give a path, sqlite:///PATH, or {FORM}"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # a ValueError shows the password of a URL without a host
        raise InputError(f"the ledger's address ({scheme}://…) is not a valid URL; {allowed}") from None
    if url.drivername in _SERVER:
        return _server(url, text)
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise InputError(f"the ledger's address ({scheme}://…) names neither a SQLite file nor a PostgreSQL database; "
                         f"{allowed}")
    return expanded(url.database).absolute()


def _server(url: URL, text: str) -> DatabaseAddress:
    """The address of a server. InputError where it names no database, or its login has a character that ends a login
    for other programs: then a part of the password would be taken for the host, or be shown."""
    login = text.partition("://")[2].partition("@")[0]
    if _BARE.search(login if "@" in text else "") or re.search(r"[@\s]", f"{url.host or ''}{url.database or ''}"):
        raise InputError(f"the ledger's address ({url.drivername}://…) is not a valid URL: write signs in its password "
                         "with their number: @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, a quote as %27 or %22, "
                         "a space as %20")
    if not url.database:
        raise InputError(f"the ledger's address ({url.drivername}://…) names no database; give {FORM}")
    return DatabaseAddress(url)
