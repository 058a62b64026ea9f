"""Expands a study's matrix: all combinations of the listed values become tunings, named after what varies.

    matrix:
      base: smollm2                                  one value: the same for every tuning
      data: {file: orders_train.jsonl, held_out: 0.04}
      method: [lora, full]                           a list: an axis
      examples: [100, 400]                           short for data.examples
      replay: {data: general.jsonl, share: [0, 0.3]}     share 0: no replay
      seed: [0, 1, 2]
      exclude: [{method: full, examples: 400}]       leaves combinations out
      include: [{method: full, learning_rate: 2e-5}]     adds to combinations, or adds one
      name: "{method}-{examples}-{seed}"             in place of the names made here, such as lora-n100-replay30-s0

An entry of ``include`` adds its keys to each combination that has the same values on the axes it names. If none has,
the entry is a new combination. A list in ``include`` or ``exclude`` means each of its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import PurePath
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aftertune.errors import InputError, nearest

#: Keys of a matrix that are not axes.
WORDS = ("name", "include", "exclude")
#: Short names of axes.
SHORT = {"examples": "data.examples"}
#: Prefix of a value in a name; "" where the value is clear by itself.
_LABELS = {"base": "", "method": "", "template": "", "learn": "", "data": "", "data.file": "", "replay.data": "",
           "replay.data.file": "", "data.examples": "n", "seed": "s", "learning_rate": "lr", "replay.share": "replay"}
#: A matrix of more tunings than this is a mistake.
MOST = 1000

Combination = dict[str, Any]


def expand(matrix: Mapping[str, Any], recipe: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Name -> tuning (plain values of ``recipe``), in the order of the axes; InputError if the matrix is not valid."""
    if not isinstance(matrix, Mapping):
        raise InputError(f"`matrix`: a mapping of axes such as {{method: [lora, full]}}, found {matrix!r}")
    return _Matrix(matrix, recipe).tunings()


def matrix_schema(recipe: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a matrix: each key of a recipe takes a value or a list of values."""
    properties: dict[str, Any] = recipe.model_json_schema()["properties"]
    keys = {name: {"anyOf": [part, {"type": "array", "items": part}]} for name, part in properties.items()}
    count, entries = {"type": "integer"}, {"type": "array", "items": {"type": "object"}}
    keys["examples"] = {"anyOf": [count, {"type": "array", "items": count}]}
    return {"type": "object", "properties": {**keys, "name": {"type": "string"}, "include": entries,
                                             "exclude": entries}}


def inner(annotation: Any) -> type[BaseModel] | None:
    """The specification that a field holds, or None."""
    kinds = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
    return kinds[0] if kinds else None


def paths(part: type[BaseModel], before: str = "") -> dict[str, FieldInfo]:
    """Every field of a specification and of its parts, by dotted path."""
    found: dict[str, FieldInfo] = {}
    for name, field in part.model_fields.items():
        found[before + name] = field
        within = inner(field.annotation)
        if within is not None:
            found |= paths(within, f"{before}{name}.")
    return found


class _Matrix:
    """One matrix: its axes, common values, and entries."""

    def __init__(self, matrix: Mapping[str, Any], recipe: type[BaseModel]) -> None:
        self.fields = paths(recipe)
        self.template = matrix.get("name")
        values = dict(self._flat({k: v for k, v in matrix.items() if k not in WORDS}))
        self.axes = {path: value for path, value in values.items() if self._varies(path, value)}
        self.common = {path: value for path, value in values.items() if path not in self.axes}
        self.include = list(self._entries(matrix, "include"))
        self.exclude = list(self._entries(matrix, "exclude"))
        for path, found in self.axes.items():
            if not found or any(found.count(value) > 1 for value in found):
                raise InputError(f"`matrix.{path}`: an axis has one value or more, each once; found {found!r}")
        for entry in self.exclude:
            for path in entry.keys() - self.axes.keys():
                raise InputError(f"`matrix.exclude` names {path!r}, which is no axis; axes are the keys with a list: "
                                 f"{', '.join(self.axes) or 'none'}")

    def tunings(self) -> dict[str, dict[str, Any]]:
        if self.template is not None and not isinstance(self.template, str):
            raise InputError(f"`matrix.name`: a text such as '{{method}}-{{seed}}', found {self.template!r}")
        made: list[Combination] = []
        for combination in self._combinations():
            if combination not in made:
                made.append(combination)
        if len(made) > MOST:
            raise InputError(f"`matrix` makes {len(made):,} tunings; {MOST:,} at most")
        if not made:
            raise InputError("`matrix`: `exclude` leaves no combination")
        return dict(zip(self._names(made), map(assembled, made), strict=True))

    def _combinations(self) -> Iterator[Combination]:
        crossed = [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]
        kept = [c for c in crossed if not any(self._agrees(c, entry) for entry in self.exclude)]
        added: list[Combination] = []
        for entry in (one for many in self.include for one in _each(many, self._varies)):
            on_axes = {path: value for path, value in entry.items() if path in self.axes}
            met = [c for c in kept if self._agrees(c, on_axes)] if on_axes or not self.axes else []
            for combination in met:
                combination |= entry
            if not met:
                added.append(entry)
        for combination in (*kept, *added):
            whole = {**self.common, **combination}
            unshared = "replay.share" in self.axes and not whole.get("replay.share")  # share 0 is no replay at all
            yield {p: v for p, v in whole.items() if not (unshared and p.startswith("replay"))}

    def _agrees(self, combination: Combination, entry: Combination) -> bool:
        """Whether a combination has the values of an entry, or one of each list."""
        return all(combination.get(path) in (value if self._varies(path, value) else [value])
                   for path, value in entry.items())

    def _entries(self, matrix: Mapping[str, Any], word: str) -> Iterator[Combination]:
        entries = matrix.get(word) or []
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) and e for e in entries):
            raise InputError(f"`matrix.{word}`: a list of mappings such as [{{method: full}}], found {entries!r}")
        yield from (dict(self._flat(entry)) for entry in entries)

    def _flat(self, values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
        """(path, value) of each value of a mapping and of its parts."""
        for key, value in values.items():
            path = before + SHORT.get(str(key), str(key)) if not before else f"{before}{key}"
            if path not in self.fields:
                known = sorted({*self.fields, *(SHORT if not before else ()), *(() if before else WORDS)})
                raise InputError(f"`matrix` has an unknown axis {path!r}{nearest(path, known)}; known: "
                                 f"{', '.join(k for k in known if '.' not in k)}, and dotted paths such as lora.r")
            if isinstance(value, Mapping) and inner(self.fields[path].annotation) is not None:
                yield from self._flat(value, f"{path}.")
            else:
                yield path, value

    def _varies(self, path: str, value: Any) -> bool:
        """Whether a value is a list of values; for a field that holds a list, only a list of lists is."""
        if not isinstance(value, list):
            return False
        annotation = self.fields[path].annotation
        if any(get_origin(a) is tuple for a in (annotation, *get_args(annotation))):
            return all(isinstance(one, list) or one is None for one in value)
        return True

    def _names(self, made: list[Combination]) -> list[str]:
        if self.template is not None:
            names = [self._filled(combination) for combination in made]
        else:
            parts = list(self.axes)
            further = [p for p in dict.fromkeys(p for entry in self.include for p in entry) if p not in parts]
            names = [_name(combination, parts) for combination in made]
            while len(set(names)) < len(names) and further:
                parts.append(further.pop(0))
                names = [_name(combination, parts) for combination in made]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"`matrix` gives the name {name!r} to {names.count(name)} tunings; set "
                                 "`matrix.name` to a template that tells them apart, such as '{method}-{seed}'")
        return names

    def _filled(self, combination: Combination) -> str:
        """The template with this combination's values in it."""
        def value(match: re.Match[str]) -> str:
            path = SHORT.get(match[1], match[1])
            if path not in self.fields:
                known = [*SHORT, *self.fields]
                raise InputError(f"`matrix.name` uses {match[1]!r}{nearest(match[1], known)}; known are the axes "
                                 "and the other keys of a tuning")
            default = 0 if path == "replay.share" else self.fields[path].get_default(call_default_factory=True)
            return shown(combination.get(path, default))
        return _fit(re.sub(r"\{([\w.]+)\}", value, str(self.template)))


def _each(entry: Combination, varies: Any) -> Iterator[Combination]:
    """The combinations that an entry with lists means."""
    yield from (dict(zip(entry, values, strict=True))
                for values in product(*(v if varies(p, v) else [v] for p, v in entry.items())))


def assembled(combination: Combination) -> dict[str, Any]:
    """A combination as a nested mapping, as a file has it: {"lora.r": 8} becomes {"lora": {"r": 8}}."""
    tuning: dict[str, Any] = {}
    for path in sorted(combination, key=lambda p: p.count(".")):
        *outer, last = path.split(".")
        place = tuning
        for key in outer:
            held = place.get(key)
            place[key] = {"file": held} if isinstance(held, str) else dict(held or {})  # a file's name is a data source
            place = place[key]
        place[last] = combination[path]
    return tuning


def _name(combination: Combination, parts: Iterable[str]) -> str:
    labels = []
    for path in parts:
        if path in combination:
            value = combination[path]
            labels.append(_labelled(path, value))
        elif path == "replay.share":
            labels.append("replay0")
    return _fit("-".join(filter(None, labels))) or "tuned"


def _labelled(path: str, value: Any) -> str:
    if isinstance(value, bool):
        return path.rpartition(".")[2] if value else ""
    if path == "replay.share" and isinstance(value, int | float):
        value = round(100 * value, 2)
    if path == "data.examples" and isinstance(value, int) and value and value % 1000 == 0:
        return f"n{value // 1000}k"
    return _LABELS.get(path, path.rpartition(".")[2]) + shown(value)


def shown(value: Any) -> str:
    """A value as a part of a name: a file by its stem, a number in its shortest form."""
    if isinstance(value, Mapping):
        value = value.get("file", "-".join(str(v) for v in value.values()))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return PurePath(text).stem if PurePath(text).suffix in (".jsonl", ".json", ".csv", ".parquet") else text


def _fit(text: str) -> str:
    """A text without characters that a name may not have."""
    return re.sub(r"[^A-Za-z0-9_.@+-]+", "-", text).strip("-")
