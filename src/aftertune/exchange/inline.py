"""Reads Markdown into headings, tables and lines of text, each with its line number, by markdown-it.

    read_blocks("| Task | Result |\n|---|---|\n| **GSM8K** | 33.51% |")
        [Table(line=1, head=[…], rows=[(3, [Words("GSM8K", bold), Words("33.51%")])])]

Rules of CommonMark that hide text from a reader of records are off: indented tables and lists count, a quotation, a
link and HTML are text as they stand, and a line under a text makes no heading of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_OFF = ("code", "blockquote", "lheading", "reference", "html_block", "html_inline", "link", "image", "autolink",
        "text_join")  # without text_join an escaped character is a token of its own
_BREAKS = ("softbreak", "hardbreak")


@dataclass(frozen=True, slots=True)
class Words:
    """The text of a line or cell. parts: (kind, text) in their order; kind is "strong", "code" or ""."""

    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """All of it without marks, with single spaces."""
        return _joined(self.parts)

    @property
    def bold(self) -> bool:
        """True where all of it is bold."""
        return bool(self.parts) and all(kind == "strong" for kind, _ in self.parts)

    @property
    def code(self) -> str:
        """The first code in it, or ""."""
        return next((text for kind, text in self.parts if kind == "code"), "")

    @property
    def lead(self) -> tuple[str, str]:
        """What is bold or code at the beginning, and the rest; ("", …) where nothing is."""
        first = 1 if self.parts and self.parts[0][0] else 0
        return _joined(self.parts[:first]), _joined(self.parts[first:])


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading. depth: 1 to 6."""

    line: int
    depth: int
    words: Words


@dataclass(frozen=True, slots=True)
class Table:
    """A table. rows: (line, cells) of each row below the head; every row has as many cells as the head."""

    line: int
    head: Sequence[Words]
    rows: Sequence[tuple[int, Sequence[Words]]]


@dataclass(frozen=True, slots=True)
class Text:
    """A line of a paragraph or list. item: "bullet" or "ordered" for the first line of an item, else ""."""

    line: int
    words: Words
    item: str = ""


def read_blocks(text: str) -> list[Heading | Table | Text]:
    """The blocks of a document in their order; code blocks are left out."""
    return list(_blocks(_parser().parse(text)))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").disable(_OFF)


def _blocks(tokens: Sequence[Token]) -> Iterator[Heading | Table | Text]:
    lists: list[str] = []
    item, at = "", 0
    while at < len(tokens):
        token = tokens[at]
        if token.type == "table_open":
            end = next(i for i in range(at, len(tokens)) if tokens[i].type == "table_close")
            yield _table(tokens[at:end])
            at = end
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(token.type.partition("_")[0])
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        elif token.type == "list_item_open":
            item = lists[-1]
        elif token.type == "list_item_close":
            item = ""
        elif token.type == "inline":
            opening = tokens[at - 1]
            for offset, words in enumerate(_lines(token.children or [])):
                if opening.type == "heading_open":
                    yield Heading(_line(token) + offset, int(opening.tag[1:]), words)
                else:
                    yield Text(_line(token) + offset, words, item)
                item = ""
        at += 1


def _table(tokens: Sequence[Token]) -> Table:
    rows: list[tuple[int, list[Words]]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append((_line(token), []))
        elif token.type == "inline":
            rows[-1][1].append(_words(token.children or []))
    return Table(rows[0][0], rows[0][1], rows[1:])


def _line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + 1


def _lines(children: Sequence[Token]) -> Iterator[Words]:
    """The lines of a paragraph; emphasis that spans lines holds in each of them."""
    depth = 0
    for is_break, group in itertools.groupby(children, key=lambda t: t.type in _BREAKS):
        tokens = list(group)
        if is_break:
            continue
        yield _words(tokens, depth)
        depth += sum({"strong_open": 1, "strong_close": -1}.get(t.type, 0) for t in tokens)


def _words(children: Sequence[Token], depth: int = 0) -> Words:
    """depth: how many bold spans are open before the first token."""
    parts: list[tuple[str, str]] = []
    for token in children:
        depth += {"strong_open": 1, "strong_close": -1}.get(token.type, 0)
        if token.type == "text":  # a mark that has no partner is no text: "45.2%*"
            text = token.content.replace("*", "").replace("`", "")
        elif token.type in ("text_special", "code_inline"):
            text = token.content
        else:
            continue
        kind = "strong" if depth else "code" if token.type == "code_inline" else ""
        if parts and parts[-1][0] == kind:
            parts[-1] = (kind, parts[-1][1] + text)
        elif text:
            parts.append((kind, text))
    return Words(tuple(parts))


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    return " ".join("".join(text for _, text in parts).split())
