"""Reads the query of a request: every value is bounded, and what is not allowed is an InputError in one line.

    inputs = Inputs(request)
    inputs.word("status", ("done", "running"))       one of these words, "" where the query has none
    inputs.number("page", 1, least=1)                a whole number
    inputs.text("search")                            a text of at most 500 characters
    inputs.changed(page=2)                           the query with another page, as a link
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlencode

from starlette.requests import Request

from aftertune.errors import InputError, nearest, shown

LONGEST_TEXT = 500
_MOST = 10**9


class Inputs:
    """The query of a request."""

    def __init__(self, request: Request) -> None:
        self.path = request.url.path
        self.values = request.query_params

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self.values.get(name, default)
        if len(value) > LONGEST_TEXT:
            raise InputError(f"{name} has {len(value):,} characters; {LONGEST_TEXT} are allowed")
        return value

    def word(self, name: str, allowed: Collection[str], default: str = "") -> str:
        """One of several words; ``default`` where the query has none."""
        value = self.values.get(name) or default
        if value != default and value not in allowed:
            raise InputError(f"{name}={shown(value)}: allowed are {', '.join(sorted(allowed))}"
                             f"{nearest(value, list(allowed))}")
        return value

    def number(self, name: str, default: int, *, least: int = 0, most: int = _MOST) -> int:
        """A whole number."""
        value = self.values.get(name)
        if value is None or value == "":
            return default
        whole = value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 12
        if not whole or not least <= int(value) <= most:
            raise InputError(f"{name}={shown(value)}: allowed are whole numbers from {least} to {most}")
        return int(value)

    def decimal(self, name: str) -> float | None:
        """A finite number, None where the query has none."""
        value = self.values.get(name)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if len(value) > 40 or not abs(number) < _MOST:
            raise InputError(f"{name}={shown(value)}: write a number, such as -1.5")
        return number

    def flag(self, name: str) -> bool:
        """Whether the query has ``name=1``."""
        return self.word(name, ("1", "0")) == "1"

    def under(self, path: str, **changes: object) -> str:
        """As `changed`, below another path."""
        return path + self.changed(**changes)[len(self.path):]

    def changed(self, **changes: object) -> str:
        """The address with other values in its query; None removes one. The other values stay in their order."""
        values = {**dict(self.values), **changes}
        query = urlencode([(k, str(v)) for k, v in values.items() if v is not None and v != ""])
        return f"{self.path}?{query}" if query else self.path
