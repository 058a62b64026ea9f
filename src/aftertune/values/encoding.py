"""Converts the frozen values to plain dicts and back, and to the JSON text that is hashed.

    plain(Score(task="arc_easy", …))             {"task": "arc_easy", …}        to store or to print
    restore(Score, {"task": "arc_easy", …})      Score(task="arc_easy", …)      checked against the field's types
    digest(["arc_easy", 3])                      sha256 of the canonical JSON
    hashed = ListDigest(); hashed.add("arc_easy"); hashed.add(3)       the same of a list that is never whole in memory

Pydantic converts in both directions. A value may gain fields without a migration: a field that a stored dict lacks
takes its default, and a key that is not a field is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
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
    """SHA-256 of the canonical JSON of ``value``, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class ListDigest:
    """The digest of a list whose elements come one after another: the same as `digest` of the whole list."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256(b"[")
        self._count = 0

    def add(self, value: Any) -> None:
        """Add an element. An iterator stands for the list of what it gives, at any depth."""
        if self._count:
            self._sha.update(b",")
        self._count += 1
        self._update(value)

    def _update(self, value: Any) -> None:
        if not isinstance(value, Iterator):
            self._sha.update(canonical(value).encode())
            return
        between = b"["
        for element in value:
            self._sha.update(between)
            self._update(element)
            between = b","
        self._sha.update(b"]" if between == b"," else b"[]")

    def hexdigest(self) -> str:
        """The digest of the elements so far."""
        whole = self._sha.copy()
        whole.update(b"]")
        return whole.hexdigest()


def plain(value: Any) -> Any:
    """``value`` with every dataclass in it as a dict, in the order of its fields. Everything else is unchanged.

    Raises ValueError, in one line, for anything that is not JSON: an object, bytes, a set, or a key that is not a
    string. Tuples are allowed (JSON writes them as lists), and so are NaN, infinities and lone surrogates.
    """
    from pydantic import ValidationError

    # Not mode="json": it replaces a lone surrogate in a key, and it turns sets into lists and numbers into keys.
    data = _adapter(Any).dump_python(value, warnings=False)
    try:
        return _json_type().validate_python(data, strict=True)
    except ValidationError as error:
        wrong = max(error.errors(), key=lambda e: len(e["loc"]))["input"]
        raise ValueError(f"a value of type {type(wrong).__name__} ({str(wrong)[:60]!r}) is not JSON; allowed are "
                         "strings, numbers, booleans, None, lists, and mappings of these with string keys") from None


def restore(cls: type[T], data: Any) -> T:
    """Rebuild a value of dataclass ``cls`` from what ``plain`` returned.

    Raises ValueError, in one line, where ``data`` lacks a field without a default or a field has another type.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cast(Any, cls)).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, (cls.__name__, *first["loc"])))
        raise ValueError(f"{path}: {first['msg']} (found {repr(first['input'])[:60]})") from None
    return value


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text, in UTF-8 where it is bytes.

    Raises ValueError where it is not JSON, is nested too deeply to be read, or has half a character (a lone surrogate),
    which no other program could read.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def json_ready(value: Any) -> Any:
    """External data (a document, a config) in a form that `digest` accepts: infinities, NaN and bytes as strings, numpy
    scalars as plain numbers.

    Pydantic is not used here: it writes "Infinity", and "true" for a key, but the digests of stored items and models
    were made from "inf" and "True".
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
