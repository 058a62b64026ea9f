"""Changes a study: ``KEY=VALUE`` with a dotted path into it.

    margin=3
    tasks.hellaswag.limit=50            a task by its name or its position: tasks.0.limit
    bases.smollm2.model=./checkpoint
    tunings.*.learning_rate=1e-4        every tuning, including those of the matrix; lora-* is a pattern too
    matrix.seed=[0,1]

A value is read as YAML and checked against the field's type. Relative paths in it are taken from the file's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from aftertune.errors import InputError, nearest, shown
from aftertune.study.files import parse_yaml
from aftertune.study.matrix import SHORT_NAMES, expand, spec_of


@dataclass(frozen=True, slots=True)
class Override:
    """One change. text: as the user wrote it, for errors; path, value: the parts before and after "="."""

    text: str
    path: str
    value: str

    @classmethod
    def of(cls, text: str) -> Override:
        """Parse KEY=VALUE; InputError without a path and "="."""
        path, separator, value = text.partition("=")
        if not separator or not path.strip():
            raise InputError(f"--set {text[:200]}: write KEY=VALUE, for example tasks.hellaswag.limit=50")
        return cls(text, path.strip(), value.strip())

    @property
    def late(self) -> bool:
        """Whether it changes tunings; the matrix makes some of them, so these changes come last."""
        return self.path.startswith("tunings.")

    def put(self, study: dict[str, Any], schema: type[BaseModel]) -> None:
        """Make the change in a study's plain values; InputError for an unknown key or a value of the wrong type."""
        for assign in self._assignments(study, self.path, schema, ""):
            assign()

    def _error(self, message: str) -> InputError:
        return InputError(f"--set {self.text[:200]}: {message}")

    def _assignments(self, node: Any, rest: str, part: type[BaseModel], before: str) -> Iterator[Any]:
        """The assignments to ``rest`` within a part, each as a call, so that all are checked before any is made.

        before: the path of the part, for errors.
        """
        key, _, further = rest.partition(".")
        field = part.model_fields.get(key)
        if field is None:
            keys = sorted(part.model_fields)
            where = f"`{before.rstrip('.')}`" if before else "a study"
            raise self._error(f"{where} has no {key!r}{nearest(key, keys)}; known keys: {', '.join(keys)}")
        if key == "matrix" and further:
            yield from self._matrix(node, further)
        elif not further:
            value = self._typed(field)
            yield lambda: node.__setitem__(key, value)
        elif _entries(field) is not None:
            yield from self._entry(node.get(key) or {}, key, further, _entries(field), before)
        else:
            within = spec_of(field.annotation)
            if within is None:
                raise self._error(f"`{before}{key}` is a single value and has no {further!r}")
            child = node.get(key)
            if not isinstance(child, dict):
                child = {"file": child} if isinstance(child, str) else {}
                node[key] = child
            yield from self._assignments(child, further, within, f"{before}{key}.")

    def _entry(self, entries: Any, key: str, rest: str, part: Any, before: str) -> Iterator[Any]:
        """Assignments within named entries: bases and tunings by their key, tasks by their name or position."""
        named = dict(_named(entries))
        head = max((n for n in named if rest == n or rest.startswith(f"{n}.")), key=len, default=rest.split(".")[0])
        matches = [n for n in named if n == head] or [n for n in named if fnmatchcase(n, head)]
        further = rest[len(head) + 1:]
        if not matches and isinstance(entries, list) and head.isdecimal() and int(head) < len(entries):
            named, matches = {head: entries[int(head)]}, [head]
        if not matches:
            raise self._error(f"`{before}{key}` has no entry {head!r}{nearest(head, list(named))}; its entries: "
                              f"{', '.join(named) or 'none'}")
        if not further:
            raise self._error(f"`{before}{key}.{head}` is an entry; add one of its keys: "
                              f"{', '.join(sorted(part.model_fields))}")
        further = SHORT_NAMES.get(further, further) if key == "tunings" else further
        for name in matches:
            yield from self._assignments(named[name], further, part, f"{before}{key}.{name}.")

    def _matrix(self, node: Any, rest: str) -> Iterator[Any]:
        """The assignment to a key of the matrix; its type is checked when the matrix expands."""
        matrix = node.get("matrix")
        if not isinstance(matrix, dict):
            raise self._error("the study has no `matrix`")
        path = rest
        while path not in matrix and (head := path.partition(".")[0]) in matrix and isinstance(matrix[head], dict):
            matrix, path = matrix[head], path.partition(".")[2]
        head = path.partition(".")[0]
        if path != head and head in matrix and path not in matrix:  # data: a.jsonl, and data.examples is set
            raise self._error(f"`matrix.{head}` is a single value here; set all of it, for example "
                              f"matrix.{head}={{{path.partition('.')[2]}: …}}")
        value = self.value if path == "name" else _yaml(self.value)  # a template starts with {, as a mapping does
        yield lambda: matrix.__setitem__(path, value)

    def _typed(self, field: FieldInfo) -> Any:
        """The value as the field takes it: read as YAML, or else the text."""
        shape: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        kind: Any = TypeAdapter(shape)
        fault = ""
        for candidate in (_yaml(self.value), self.value):
            try:
                kind.validate_python(candidate)
            except ValidationError as error:
                fault = fault or error.errors()[0]["msg"].removeprefix("Value error, ")
            else:
                return candidate
        raise self._error(f"{fault}, found {shown(self.value)}")


def _entries(field: FieldInfo) -> type[BaseModel] | None:
    """The specification of the entries of a collection; None for other fields."""
    collections = [a for a in (field.annotation, *get_args(field.annotation)) if get_origin(a) in (dict, tuple)]
    return next((spec_of(c) for c in collections if spec_of(c) is not None), None)


def _named(entries: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(entries, Mapping):
        yield from ((str(k), v) for k, v in entries.items() if isinstance(v, dict))
    else:
        yield from ((str(e.get("name")), e) for e in entries if isinstance(e, dict))


def _yaml(text: str) -> Any:
    """A value read as YAML; text that is not YAML stays text."""
    try:
        return parse_yaml(text, "--set")
    except InputError:
        return text


def overrides(texts: Sequence[str]) -> list[Override]:
    """The changes of a command line, in order."""
    return [Override.of(text) for text in texts]


def expanded(raw: dict[str, Any], sets: Sequence[str], *, study: type[BaseModel], tuning: type[BaseModel], where: str
             ) -> dict[str, Any]:
    """A study's plain values with the tunings of its matrix and all changes. where: names the file in errors."""
    raw, changes = deepcopy(raw), overrides(sets)
    for change in (c for c in changes if not c.late):
        change.put(raw, study)
    if raw.get("matrix") is not None:
        try:
            tunings = expand(raw["matrix"], tuning)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        written = raw.get("tunings") or {}
        if not isinstance(written, dict):
            raise InputError(f"{where}: `tunings`: a mapping of names to tunings, found {shown(written)}")
        for name in tunings.keys() & written:
            raise InputError(f"{where}: the name {name!r} is used by `tunings` and by the matrix; rename one of them")
        raw["tunings"] = {**written, **tunings}
    for change in (c for c in changes if c.late):
        change.put(raw, study)
    return raw
