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
      name: "{method}-{examples}-{seed}"             template for the names; by default such as lora-n100-replay30-s0

An entry of ``include`` adds its keys to each combination that has the same values on the axes it names. If none has,
the entry is a new combination. A list in ``include`` or ``exclude`` means each of its values.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import PurePath
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from aftertune import bounds
from aftertune.errors import InputError, nearest, shown
from aftertune.study.cured import CURES

#: Keys of a matrix that are not axes.
KEYWORDS = ("name", "include", "exclude")
#: Short names of axes.
SHORT_NAMES = {"examples": "data.examples"}
#: Prefix of a value in a name; "" where the value is clear by itself.
_LABELS = {"base": "", "method": "", "template": "", "learn": "", "data": "", "data.file": "", "replay.data": "",
           "replay.data.file": "", "data.examples": "n", "seed": "s", "learning_rate": "lr", "replay.share": "replay"}
#: The most tunings of a matrix; more are taken for a mistake. The product of its axes may be larger by this factor,
#: because ``exclude`` removes combinations; that product times the entries of include and exclude is bounded as well.
MAX_TUNINGS, CROSSED, MATCHED = bounds.STUDY_TUNINGS, bounds.STUDY_CROSSED, bounds.STUDY_MATCHED

Combination = dict[str, Any]


def expand(matrix: Mapping[str, Any], recipe: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Name -> tuning (plain values of ``recipe``), in the order of the axes; InputError if the matrix is not valid."""
    if not isinstance(matrix, Mapping):
        raise InputError(f"`matrix`: a mapping of axes such as {{method: [lora, full]}}, found {shown(matrix)}")
    return _Matrix(matrix, recipe).tunings()


def matrix_schema(recipe: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a matrix: each key of a recipe takes a value or a list of values."""
    properties: dict[str, Any] = recipe.model_json_schema()["properties"]
    keys = {name: {"anyOf": [part, {"type": "array", "items": part}]} for name, part in properties.items()}
    count, entries = {"type": "integer"}, {"type": "array", "items": {"type": "object"}}
    keys["examples"] = {"anyOf": [count, {"type": "array", "items": count}]}
    return {"type": "object", "properties": {**keys, "name": {"type": "string"}, "include": entries,
                                             "exclude": entries}}


def spec_of(annotation: Any) -> type[BaseModel] | None:
    """The specification that a field holds, or None."""
    specs = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
    return specs[0] if specs else None


def field_paths(part: type[BaseModel], before: str = "") -> dict[str, FieldInfo]:
    """Every field of a specification and of its parts, by dotted path."""
    fields: dict[str, FieldInfo] = {}
    for name, field in part.model_fields.items():
        fields[before + name] = field
        within = spec_of(field.annotation)
        if within is not None:
            fields |= field_paths(within, f"{before}{name}.")
    return fields


class _Matrix:
    """One matrix: its axes, common values, and entries."""

    def __init__(self, matrix: Mapping[str, Any], recipe: type[BaseModel]) -> None:
        self.fields = field_paths(recipe)
        self.template = matrix.get("name")
        self.axes: Combination = {}
        values = dict(self._flat({k: v for k, v in matrix.items() if k not in KEYWORDS}))
        self.axes = {path: value for path, value in values.items() if self._varies(path, value)}
        self.common = {path: value for path, value in values.items() if path not in self.axes}
        self.include = list(self._entries(matrix, "include"))
        self.exclude = list(self._entries(matrix, "exclude"))
        self._check_sizes()
        for path, axis in self.axes.items():
            if not axis or any(axis.count(value) > 1 for value in axis):
                raise InputError(f"`matrix.{path}`: an axis needs one value or more, each once; found {shown(axis)}")
        for entry in self.exclude:
            for path in entry.keys() - self.axes.keys():
                raise InputError(f"`matrix.exclude` names {path!r}, which is not an axis; axes are the keys with a "
                                 f"list: {', '.join(self.axes) or 'none'}")

    def _check_sizes(self) -> None:
        """Raise InputError for a matrix that is too large, before anything is made of it."""
        for path, axis in self.axes.items():
            if len(axis) > MAX_TUNINGS:
                raise InputError(f"`matrix.{path}` has {len(axis):,} values, but a matrix makes at most "
                                 f"{MAX_TUNINGS:,} tunings; list fewer values")
        crossed = math.prod(map(len, self.axes.values()))
        entries = sum(math.prod(len(v) for p, v in entry.items() if self._varies(p, v))
                      for entry in (*self.include, *self.exclude))
        if crossed > CROSSED * MAX_TUNINGS or entries > MAX_TUNINGS or crossed * entries > MATCHED:
            raise InputError(f"`matrix` has {shown(crossed)} combinations and {shown(entries)} entries of include and "
                             f"exclude, but at most {MAX_TUNINGS:,} tunings are allowed; list fewer values")

    def tunings(self) -> dict[str, dict[str, Any]]:
        if self.template is not None and not isinstance(self.template, str):
            raise InputError(f"`matrix.name`: a text such as '{{method}}-{{seed}}', found {shown(self.template)}")
        combinations = list({repr(sorted(c.items())): c for c in self._combinations()}.values())
        if len(combinations) > MAX_TUNINGS:
            raise InputError(f"`matrix` makes {len(combinations):,} tunings, but at most {MAX_TUNINGS:,} are allowed; "
                             "list fewer values")
        if not combinations:
            raise InputError("`matrix`: `exclude` leaves no combination; remove some of its entries")
        return dict(zip(self._names(combinations), map(nested, combinations), strict=True))

    def _combinations(self) -> Iterator[Combination]:
        crossed = [dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]
        kept = [c for c in crossed if not any(self._agrees(c, entry) for entry in self.exclude)]
        added: list[Combination] = []
        for entry in (entry for lists in self.include for entry in _each(lists, self._varies)):
            on_axes = {path: value for path, value in entry.items() if path in self.axes}
            matches = [c for c in kept if self._agrees(c, on_axes)] if on_axes or not self.axes else []
            for combination in matches:
                combination |= entry
            if not matches:
                added.append(entry)
        for combination in (*kept, *added):
            values = {**self.common, **combination}
            no_replay = "replay.share" in self.axes and not values.get("replay.share")
            yield {p: v for p, v in values.items() if not (no_replay and p.startswith("replay"))}

    def _agrees(self, combination: Combination, entry: Combination) -> bool:
        """Whether a combination has the values of an entry, or one of each list."""
        return all(combination.get(path) in (value if self._varies(path, value) else [value])
                   for path, value in entry.items())

    def _entries(self, matrix: Mapping[str, Any], keyword: str) -> Iterator[Combination]:
        entries = matrix.get(keyword) or []
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) and e for e in entries):
            raise InputError(f"`matrix.{keyword}`: a list of mappings such as [{{method: full}}], found "
                             f"{shown(entries)}")
        yield from (dict(self._flat(entry)) for entry in entries)

    def _flat(self, values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
        """(path, value) of each value of a mapping and of its parts; a value of an axis stays whole."""
        for key, value in values.items():
            path = before + SHORT_NAMES.get(str(key), str(key)) if not before else f"{before}{key}"
            if path not in self.fields:
                keys = sorted({*self.fields, *(SHORT_NAMES if not before else ()), *(() if before else KEYWORDS)})
                raise InputError(f"`matrix` has an unknown axis {path!r}{nearest(path, keys)}; known: "
                                 f"{', '.join(k for k in keys if '.' not in k)}, and dotted paths such as lora.r")
            if isinstance(value, Mapping) and path not in self.axes \
                    and spec_of(self.fields[path].annotation) is not None:
                yield from self._flat(value, f"{path}.")
            else:
                yield path, value

    def _varies(self, path: str, value: Any) -> bool:
        """Whether a value is a list of values; for a field that holds a list, only a list of lists is."""
        if not isinstance(value, list):
            return False
        annotation = self.fields[path].annotation
        if any(get_origin(a) is tuple for a in (annotation, *get_args(annotation))):
            return all(isinstance(v, list) or v is None for v in value)
        return True

    def _names(self, combinations: list[Combination]) -> list[str]:
        if self.template is not None:
            names = [self._filled(combination) for combination in combinations]
        else:
            parts = list(self.axes)
            further = [p for p in dict.fromkeys(p for entry in self.include for p in entry) if p not in parts]
            names = [_name(combination, parts) for combination in combinations]
            while len(set(names)) < len(names) and further:
                parts.append(further.pop(0))
                names = [_name(combination, parts) for combination in combinations]
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(f"`matrix` gives the name {shown(name)} to {count} tunings; set "
                                 "`matrix.name` to a template that gives each its own name, such as '{method}-{seed}'")
        return names

    def _filled(self, combination: Combination) -> str:
        """The template with this combination's values in it."""
        def value(match: re.Match[str]) -> str:
            path = SHORT_NAMES.get(match[1], match[1])
            if path not in self.fields:
                names = [*SHORT_NAMES, *self.fields]
                raise InputError(f"`matrix.name` uses {match[1]!r}{nearest(match[1], names)}; use the axes or other "
                                 "keys of a tuning")
            default = 0 if path == "replay.share" else self.fields[path].get_default(call_default_factory=True)
            return _value_text(combination.get(path, default))
        return _fit(re.sub(r"\{([\w.]+)\}", value, str(self.template)))


def _each(entry: Combination, varies: Any) -> Iterator[Combination]:
    """The combinations that an entry with lists means."""
    yield from (dict(zip(entry, values, strict=True))
                for values in product(*(v if varies(p, v) else [v] for p, v in entry.items())))


def nested(combination: Combination) -> dict[str, Any]:
    """A combination as a nested mapping, as a file has it: {"lora.r": 8} becomes {"lora": {"r": 8}}.

    Raises InputError for a field of something that has no fields, such as lora.r beside ``lora: 3``.
    """
    tuning: dict[str, Any] = {}
    for path in sorted(combination, key=lambda p: p.count(".")):
        *outer, last = path.split(".")
        node = tuning
        for key in outer:
            value = node.get(key)
            if not isinstance(value, Mapping | str | None):
                raise InputError(f"`matrix` sets {path}, but {key} is {shown(value)}; write {key} as a mapping")
            node[key] = {"file": value} if isinstance(value, str) else dict(value or {})  # a data source by its file
            node = node[key]
        node[last] = combination[path]
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
    if value is None and path in CURES:
        return ""  # as it was trained
    if isinstance(value, bool):
        return path.rpartition(".")[2] if value else ""
    if path == "replay.share" and isinstance(value, int | float):
        value = round(100 * value, 2)
    if path == "data.examples" and isinstance(value, int) and value and value % 1000 == 0:
        return f"n{value // 1000}k"
    return _LABELS.get(path, path.rpartition(".")[2]) + _value_text(value)


def _value_text(value: Any) -> str:
    """A value as a part of a name: a file by its stem, a number in its shortest form."""
    if isinstance(value, Mapping):
        value = value.get("file", "-".join(_value_text(v) for v in value.values()))
    if value is None:
        return "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return PurePath(text).stem if PurePath(text).suffix in (".jsonl", ".json", ".csv", ".parquet") else text


def _fit(text: str) -> str:
    """A text without characters that a name may not have."""
    return re.sub(r"[^A-Za-z0-9_.@+-]+", "-", text).strip("-")
