"""Owns reading a YAML file as plain values: nothing in it is executed, and a key stands once.

    read_yaml(Path("study.yaml"))      {"study": "orders", "bases": {…}, …}
    edited_yaml(Path("study.yaml"), change)     the text with the change made, comments and order as they were
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from aftertune.errors import InputError


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

    read_yaml(path)  # tells what is wrong with it
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
    """What the parser found and on which line; for a key that stands twice both lines."""
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return text
    again = re.match(r'found duplicate key "(.*?)" with value', text)
    if again is None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {text}"
    key, lines = again[1], source.splitlines()
    first = [i for i, line in enumerate(lines[:mark.line + 1], start=1)
             if re.search(rf"""(?:^|[\s{{,])["']?{re.escape(key)}["']?\s*:""", line)]
    where = f", the first time on line {first[0]}" if first else ""
    return f"line {mark.line + 1}: the key {key!r} stands twice{where}; keep one of the two"
