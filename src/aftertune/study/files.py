"""Reads study files (YAML), with limits, and changes them while comments and order are kept.

    read_yaml(Path("study.yaml"))               {"study": "orders", "bases": {…}, …}
    edited_yaml(Path("study.yaml"), change)     the text with the change made
    anchored_task(task, Path("studies"))        the task with its relative paths taken from that folder

Nothing in a file is executed, a key may occur only once, and a date is text. Through aliases of aliases, a file of a
few kilobytes can stand for billions of values: size, depth and number are bounded before any value is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from aftertune import bounds, paths
from aftertune.errors import InputError
from aftertune.paths import exists
from aftertune.study.data import on_hub

#: The largest study file, in characters, the deepest nesting, and the most values, with each alias counted as what it
#: stands for.
MAX_LENGTH, MAX_DEPTH, MAX_VALUES = bounds.STUDY_CHARACTERS, bounds.STUDY_DEPTH, bounds.STUDY_VALUES


def read_yaml(path: Path) -> Any:
    """Parse a YAML 1.2 file into plain values; duplicate keys and tags that build objects are refused."""
    return parse_yaml(_read(path), path)


def _read(path: Path) -> str:
    """The text of a study file."""
    if not path.is_file():
        raise InputError(f"{path}: no such study file")
    if path.stat().st_size > 4 * MAX_LENGTH:
        raise InputError(f"{path}: {path.stat().st_size:,} bytes; a study file has at most {MAX_LENGTH:,} characters; "
                         "check that it is the right file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def parse_yaml(text: str, where: Path | str) -> Any:
    """The plain values of a text; ``where`` names it in errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import SafeConstructor
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.parser import Parser

    sizes = _Sizes()

    class CheckedParser(Parser):
        """Counts what it reads, in the same pass; no value is made before its end."""

        def get_event(self) -> Any:
            event = super().get_event()
            sizes.add(event)
            return event

    class PlainConstructor(SafeConstructor):
        """Makes plain values; a date stays text."""

    PlainConstructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Parser = PlainConstructor, CheckedParser
    try:
        if len(text) > MAX_LENGTH:
            raise _TooLarge(f"{len(text):,} characters, but at most {MAX_LENGTH:,} are allowed")
        return yaml.load(text)
    except YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {_fault(error, text)}") from None
    except _TooLarge as error:
        raise InputError(f"{where}: {error}; check that it is the right file") from None
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        detail = "it has too many digits" if "int_max_str_digits" in str(error) else " ".join(str(error).split())[:120]
        raise InputError(f"{where}: not valid YAML: a value or a tag cannot be read: {detail}; write plain values, "
                         "texts in quotes") from None


class _TooLarge(ValueError):
    """A text that stands for more than the limits allow."""


@dataclass(slots=True)
class _Open:
    """A collection that has begun. before: values of the file before it; most: values that it may have, None for any
    number; values: that it has so far, keys counted."""

    anchor: str | None
    before: int
    most: int | None
    values: int = 0

    def add(self, event: Any) -> None:
        """Count a value. Raises _TooLarge: to read a list of 30,000 to its end would take more than a second."""
        self.values += 1
        if self.most is not None and self.values > self.most:
            raise _TooLarge(f"line {event.start_mark.line + 1}: a list in `matrix` has more than {self.most:,} values, "
                            "but a matrix makes at most as many tunings")


class _Sizes:
    """Counts the values of a text from its events; `add` raises a ValueError for one beyond the limits."""

    def __init__(self) -> None:
        self.of_anchor: dict[str, int] = {}
        self.open: list[_Open] = []
        self.count, self.in_matrix = 0, False

    def add(self, event: Any) -> None:
        """Count an event."""
        from ruamel.yaml.events import AliasEvent, CollectionEndEvent, NodeEvent

        if isinstance(event, NodeEvent) and self.open:
            self.open[-1].add(event)
            if len(self.open) == 1 and self.open[0].values % 2:  # a key of the file
                self.in_matrix = getattr(event, "value", None) == "matrix"
        if isinstance(event, AliasEvent):
            if any(node.anchor == event.anchor for node in self.open):
                raise _TooLarge(f"line {event.start_mark.line + 1}: the alias *{event.anchor[:40]} is inside of what "
                                "it stands for")
            self.count += self.of_anchor.get(event.anchor, 1)
        elif isinstance(event, CollectionEndEvent):
            node = self.open.pop()
            if node.anchor is not None:
                self.of_anchor[node.anchor] = self.count - node.before
        elif isinstance(event, NodeEvent):
            self._begin(event)
        if len(self.open) > MAX_DEPTH:
            raise _TooLarge(f"line {event.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels")
        if self.count > MAX_VALUES:
            raise _TooLarge(f"line {event.start_mark.line + 1}: more than {MAX_VALUES:,} values, with those that "
                            "aliases repeat")

    def _begin(self, event: Any) -> None:
        from ruamel.yaml.events import CollectionStartEvent, SequenceStartEvent

        if isinstance(event, CollectionStartEvent):
            is_axis = self.in_matrix and isinstance(event, SequenceStartEvent)
            self.open.append(_Open(event.anchor, self.count, bounds.STUDY_TUNINGS if is_axis else None))
        elif event.anchor is not None:
            self.of_anchor[event.anchor] = 1
        self.count += 1


def edited_yaml(path: Path, change: Callable[[Any], None]) -> str:
    """The text of a file whose values ``change`` has changed in place; comments, order and quotes are kept."""
    from ruamel.yaml import YAML

    text = _read(path)
    parse_yaml(text, path)  # raises InputError for a text that is not valid
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    if re.search(r"^ +- ", text, flags=re.M):
        yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        values = yaml.load(text)
    except ValueError as error:  # dates are read here, to be written as they were
        raise InputError(f"{path}: a value cannot be kept as it is ({' '.join(str(error).split())[:120]}); put it in "
                         "quotes") from None
    change(values)
    out = StringIO()
    yaml.dump(values, out)
    return out.getvalue()


def _fault(error: Any, source: str) -> str:
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


# --- Relative paths ---

def anchored(path: Path | None, folder: Path) -> Path | None:
    """The path; a relative one is taken from ``folder``."""
    return None if path is None else (path if path.is_absolute() else folder / path)


def anchored_file(path: Path, folder: Path) -> Path:
    """As `anchored` for a data file, but a data set of the Hub keeps its name."""
    return path if path.is_absolute() or (on_hub(path) and not exists(folder / path)) else folder / path


def anchored_base(base: Any, folder: Path) -> Any:
    """The base with the folder of its tokenizer taken from ``folder``."""
    if base.tokenizer is None:
        return base
    return base.model_copy(update={"tokenizer": str(anchored(paths.expanded(base.tokenizer), folder))})


def anchored_task(task: Any, folder: Path) -> Any:
    """The task with every path taken from ``folder``."""
    update: dict[str, Any] = {"data": anchored(task.data, folder)}
    if task.target is not None:
        update["target"] = task.target.model_copy(update={
            "file": anchored(task.target.file, folder), "shots_file": anchored(task.target.shots_file, folder)})
    return task.model_copy(update=update)


def anchored_data(data: Any, folder: Path) -> Any:
    """The training data with every path taken from ``folder``."""
    return data.model_copy(update={"file": anchored_file(data.file, folder),
                                   "held_out_file": data.held_out_file and anchored_file(data.held_out_file, folder)})


def anchored_watch(watch: Any, folder: Path) -> Any:
    """The watch with the target's file taken from ``folder``."""
    if watch is None or watch.target is None:
        return watch
    target = watch.target.model_copy(update={"file": anchored(watch.target.file, folder)})
    return watch.model_copy(update={"target": target})
