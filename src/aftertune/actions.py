"""Lets a value offer a method whose work a higher layer does, such as the table that a notebook shows of it.

    class Comparison(Shown): …                          offers to_dict() and a table in notebooks
        def plot(self): return perform("plot", self)
    provide("plot", Comparison, draw)                   the layer that can draw says how (`aftertune.api`)
    provide("html", "aftertune.exchange.audits.Audit", show)  a class by its name, so that its module is not imported

Values hold data: they import no report, no trainer and no pandas. The first use of a public name of `aftertune` imports
what the methods need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Action and class, by its name with its module -> what does it.
WORK: dict[tuple[str, str], Callable[..., Any]] = {}


def provide(action: str, kind: type | str, work: Callable[..., Any]) -> None:
    """Let ``work`` do an action of all values of a class: it is called with the value and the method's arguments."""
    WORK[action, kind if isinstance(kind, str) else _name(kind)] = work


def perform(action: str, value: Any, *arguments: Any, **named: Any) -> Any:
    """Do an action of a value. Raises NotImplementedError where no layer has said how."""
    names = map(_name, type(value).__mro__)
    work = next((WORK[action, name] for name in names if (action, name) in WORK), None)
    if work is None:
        raise NotImplementedError(f"{type(value).__name__}.{action}: nothing provides it yet; use a name of the "
                                  "package first, such as aftertune.compare")
    return work(value, *arguments, **named)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class Shown:
    """A value that shows itself as a table in a notebook and in print(), and gives its content as plain values."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The value as dicts, lists and scalars, as ``--json`` prints it."""
        content: dict[str, Any] = perform("to_dict", self)
        return content

    def __str__(self) -> str:
        try:
            text: str = perform("text", self)
        except NotImplementedError:
            return repr(self)
        return text

    def _repr_html_(self) -> str | None:
        """The table that a notebook shows; None where nothing can draw it, so that the text is shown."""
        try:
            table: str = perform("html", self)
        except NotImplementedError:
            return None
        return table
