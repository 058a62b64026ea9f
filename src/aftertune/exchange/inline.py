"""Owns the words of a Markdown line: headings, the cells of a table's row, and text without its marks.

    cells_of("| **GSM8K** | 33.51% |")      ["GSM8K", "33.51%"]
    plain_text("`a` &lt;b&gt; **c**")       "a <b> c"
"""

from __future__ import annotations

import re

HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*")
RULE = re.compile(r"\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?")


def raw_cells(line: str) -> list[str]:
    """The cells of a table's row as they stand."""
    bare = line.strip().removeprefix("|")
    bare = bare[:-1] if bare.endswith("|") and not bare.endswith("\\|") else bare
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", bare)]


def cells_of(line: str) -> list[str]:
    """The cells of a table's row as text."""
    return [plain_text(cell) for cell in raw_cells(line)]


def plain_text(text: str) -> str:
    """Markdown of one line as text: emphasis, code marks and escapes taken off."""
    bare = re.sub(r"(?<!\\)(\*\*|\*|`+)", "", text)
    bare = re.sub(r"\\([\\`*_\[\]|~<>])", r"\1", bare)
    bare = bare.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return " ".join(bare.split())
