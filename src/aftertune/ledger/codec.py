"""Owns the passage of the frozen values to JSON-ready dicts and back, equal.

    encode(Score(task="arc_easy", …))          {"task": "arc_easy", …}
    decode(Score, {"task": "arc_easy", …})     Score(task="arc_easy", …)

Fields that a stored value lacks take their default, so a value may gain fields without a migration.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from aftertune.errors import StorageError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples as lists; scalars stay. StorageError for anything else."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(k): encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    raise StorageError(f"a value of type {type(value).__name__} ({str(value)[:60]!r}) cannot be stored; the "
                       "ledger takes strings, numbers, booleans, None, lists and mappings of these")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    raise StorageError(f"the mapping key {key!r} is of type {type(key).__name__}; the ledger stores mappings "
                       "with string keys only")


def decode(cls: type[T], data: Mapping[str, Any]) -> T:
    """The value of dataclass ``cls`` that ``encode`` made ``data`` from."""
    hints = _hints(cast(Hashable, cls))
    return cls(**{name: _convert(hints[name], data[name]) for name in hints if name in data})


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    """Name -> type of every field of a dataclass."""
    known = typing.get_type_hints(cls)
    return {f.name: known[f.name] for f in dataclasses.fields(cast(Any, cls))}


def _convert(hint: Any, value: Any) -> Any:
    """``value`` as the type hint says: a dataclass, a tuple of something, or as it is."""
    if value is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        [inner] = [a for a in arguments if a is not type(None)]
        return _convert(inner, value)
    if origin is tuple:
        return tuple(_convert(arguments[0], v) for v in value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value)
    return value
