"""Turns the frozen values into plain dicts and back, and into the JSON text that is hashed.

    plain(Score(task="arc_easy", …))             {"task": "arc_easy", …}        to store or to print
    restore(Score, {"task": "arc_easy", …})      Score(task="arc_easy", …)      checked against the field's types
    digest(["arc_easy", 3])                      sha256 of the canonical JSON

Pydantic does both directions. A value may gain fields without a migration: what a stored dict lacks takes its default,
and what it has beyond the fields is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
#: What JSON can hold, and tuples of it.
JsonType = TypeAliasType(
    "JsonType", "bool | int | float | str | list[JsonType] | tuple[JsonType, ...] | dict[str, JsonType] | None")


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that is hashed. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def plain(value: Any) -> Any:
    """``value`` with every dataclass in it as a dict, in the order of its fields; all else stays as it is.

    Raises ValueError, in one line, where something in it is no JSON: an object, bytes, a set, or a key that is no
    text. Tuples are allowed (JSON writes them as lists), and so are NaN, infinities and lone surrogates.
    """
    from pydantic import ValidationError

    # Not mode="json": it replaces a lone surrogate in a key, and it turns sets into lists and numbers into keys.
    found = _adapter(Any).dump_python(value, warnings=False)
    try:
        return _json_type().validate_python(found, strict=True)
    except ValidationError as error:
        wrong = max(error.errors(), key=lambda e: len(e["loc"]))["input"]
        raise ValueError(f"a value of type {type(wrong).__name__} ({str(wrong)[:60]!r}) is no JSON; allowed are "
                         "strings, numbers, booleans, None, lists, and mappings of these with string keys") from None


def restore(cls: type[T], data: Any) -> T:
    """The value of dataclass ``cls`` that ``plain`` made ``data`` from.

    Raises ValueError, in one line, where ``data`` lacks a field without a default or a field has another type.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, cls)).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (cls.__name__, *first["loc"])))
        raise ValueError(f"{place}: {first['msg']} (found {repr(first['input'])[:60]})") from None
    return value


def json_ready(value: Any) -> Any:
    """Foreign data (a document, a config) as `digest` takes it: infinities, NaN, bytes and numpy scalars as text or as
    plain numbers.

    The one conversion that is our own: pydantic writes "Infinity", and "true" for a key, where the digests of stored
    items and models were made from "inf" and "True".
    """
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, bytes):
        return value.hex()
    return value.item() if hasattr(value, "item") else value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@cache
def _json_type() -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(JsonType)
