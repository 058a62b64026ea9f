"""Reads study files (YAML) and changes them: ``KEY=VALUE`` with a dotted path into the file.

    read_yaml(Path("study.yaml"))               {"study": "orders", "bases": {…}, …}
    edited_yaml(Path("study.yaml"), change)     the text with the change made; comments and order are kept

Changes:

    margin=3
    tasks.hellaswag.limit=50            a task by its name or its position: tasks.0.limit
    bases.smollm2.model=./checkpoint
    tunings.*.learning_rate=1e-4        every tuning, including those of the matrix; lora-* is a pattern too
    matrix.seed=[0,1]

A value is read as YAML and checked against the field's type. Relative paths in it are taken from the file's folder.
Nothing in a file is executed, and a key may occur only once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from aftertune.errors import InputError, nearest
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
            raise InputError(f"--set {text}: write KEY=VALUE, for example tasks.hellaswag.limit=50")
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
        return InputError(f"--set {self.text}: {message}")

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
        raise self._error(f"{fault}, found {self.value!r}")


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
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
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
        for name in tunings.keys() & (raw.get("tunings") or {}):
            raise InputError(f"{where}: the name {name!r} is used by `tunings` and by the matrix; rename one of them")
        raw["tunings"] = {**(raw.get("tunings") or {}), **tunings}
    for change in (c for c in changes if c.late):
        change.put(raw, study)
    return raw


def read_yaml(path: Path) -> Any:
    """Parse a YAML 1.2 file into plain values; duplicate keys and tags that build objects are refused."""
    if not path.is_file():
        raise InputError(f"{path}: no such study file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> Any:
    """The plain values of a text; ``path`` names it in errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {_yaml_fault(error, text)}") from None


def edited_yaml(path: Path, change: Callable[[Any], None]) -> str:
    """The text of a file whose values ``change`` has changed in place; comments, order and quotes are kept."""
    from ruamel.yaml import YAML

    read_yaml(path)  # raises InputError for a file that is not valid
    text = path.read_text(encoding="utf-8-sig")
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    if re.search(r"^ +- ", text, flags=re.M):
        yaml.indent(mapping=2, sequence=4, offset=2)
    values = yaml.load(text)
    change(values)
    out = StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def _yaml_fault(error: Any, source: str) -> str:
    """The parser's problem and its line; for a duplicate key both lines."""
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return text
    duplicate = re.match(r'found duplicate key "(.*?)" with value', text)
    if duplicate is None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {text}"
    key, lines = duplicate[1], source.splitlines()
    first = [i for i, line in enumerate(lines[:mark.line + 1], start=1)
             if re.search(rf"""(?:^|[\s{{,])["']?{re.escape(key)}["']?\s*:""", line)]
    where = f", first on line {first[0]}" if first else ""
    return f"line {mark.line + 1}: the key {key!r} occurs twice{where}; remove one of the two"
