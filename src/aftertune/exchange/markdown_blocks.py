"""Reads Markdown as headings, tables and lines of text.

    read_blocks("## A\\n\\n| Task | Result |\\n|---|---|\\n| GSM8K | 33.51% |")       [Heading(…), Table(…)]

Tables are also read where a Markdown reader shows them as text: in code fences, in quotations and comments, in HTML, as
a terminal draws them, and without a rule below the head or with another number of columns in it. Line numbers are those
of the file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from aftertune import bounds
from aftertune.exchange.table_grids import MAX_SPAN, GridRow, html_grids, printed_grids, widest_span

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

#: Rules of CommonMark that are off, because they would hide text of a record: indented tables and lists are read, and
#: quotations, links and HTML are plain text. Without text_join an escaped character is a separate token.
_DISABLED = ("code", "blockquote", "lheading", "reference", "html_block", "html_inline", "link", "image", "autolink",
             "text_join")
_BREAKS = ("softbreak", "hardbreak")


@dataclass(frozen=True, slots=True)
class InlineText:
    """The text of a line or cell. spans: (kind, text) in order; kind is "strong", "code" or ""."""

    spans: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """The text without marks, with single spaces."""
        return _joined(self.spans)

    @property
    def bold(self) -> bool:
        """True if all of the text is bold."""
        return bool(self.spans) and all(kind == "strong" for kind, _ in self.spans)

    @property
    def code(self) -> str:
        """The first code span, or ""."""
        return next((text for kind, text in self.spans if kind == "code"), "")

    @property
    def lead(self) -> tuple[str, str]:
        """The bold or code span at the start, or "", and the rest."""
        first = 1 if self.spans and self.spans[0][0] else 0
        return _joined(self.spans[:first]), _joined(self.spans[first:])


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading. depth: 1 to 6."""

    line: int
    depth: int
    content: InlineText


@dataclass(frozen=True, slots=True)
class Table:
    """A table. rows: (line, cells) of each row below the head; every row has as many cells as the head."""

    line: int
    head: Sequence[InlineText]
    rows: Sequence[tuple[int, Sequence[InlineText]]]


@dataclass(frozen=True, slots=True)
class Text:
    """A line of a paragraph or list. item: "bullet" or "ordered" for the first line of an item, else ""."""

    line: int
    content: InlineText
    item: str = ""


@dataclass(frozen=True, slots=True)
class RunLine:
    """The line that lm-eval prints above its table: the model, its arguments, limit and num_fewshot."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A part of the document that was not read. reason: what it is, for a note."""

    line: int
    reason: str


#: A part of a document.
Block = Heading | Table | Text | RunLine | LeftOut

_ANSI = re.compile(r"\x1b\[[0-9;:?]{0,40}[A-Za-z]")
_QUOTED_ROW = re.compile(r"[\s>#]{1,20}(?=\|)")
#: The most characters of one line, and of one HTML table.
MAX_LINE, MAX_HTML = bounds.RECORD_LINE, bounds.RECORD_HTML


def read_blocks(text: str) -> list[Block]:
    """The blocks of a Markdown document in order, each with its line number.

    Of a code block only tables and lm-eval's own lines are read.

    >>> read_blocks("| Task | Result |\\n|---|---|\\n| **GSM8K** | 33.51% |")
    [Table(line=1, head=[…], rows=[(3, [InlineText((("strong", "GSM8K"),)), InlineText((("", "33.51%"),))])])]
    """
    lines = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    blocks: list[Block] = [*_long_lines(lines), *_code_blocks(lines), *_html_tables(lines)]
    for i, line in enumerate(lines):
        if "|" in line and (quoted := _QUOTED_ROW.match(line)):
            lines[i] = line[quoted.end():]
    blocks += _blocks(_parser().parse("\n".join(lines)))
    return sorted(blocks, key=lambda block: block.line)


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table").disable(_DISABLED)


@cache
def _fence_parser() -> MarkdownIt:
    """A parser that finds code blocks and does not read text."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").disable(["inline", "text_join", "code", "html_block", "table"])


def _long_lines(lines: list[str]) -> Iterator[LeftOut]:
    """The lines that are longer than MAX_LINE, which become blank."""
    for i, line in enumerate(lines):
        if len(line) > MAX_LINE:
            yield LeftOut(i + 1, f"a line of {len(line):,} characters was left out; at most {MAX_LINE:,} are read")
            lines[i] = ""


def _code_blocks(lines: list[str]) -> Iterator[Table | RunLine]:
    """The tables and lm-eval's lines in code blocks, whose lines become blank."""
    for token in _fence_parser().parse("\n".join(lines)):
        if token.type != "fence" or token.map is None:
            continue
        start, end = token.map
        inside = [(i + 1, lines[i]) for i in range(start, min(end, len(lines)))]
        inside[0] = (start + 1, token.info)  # the head of a table may stand behind the marks
        for grid in printed_grids(inside):
            yield _grid_table(grid)
        for number, line in inside:
            if is_run_line(line):
                yield RunLine(number, line.strip())
        for i in range(start, min(end, len(lines))):
            lines[i] = ""


def _html_tables(lines: list[str]) -> Iterator[Table | LeftOut]:
    """The tables that are written in HTML, whose lines become blank."""
    start: int | None = None
    for i, line in enumerate(lines):
        lower = line.lower()
        if start is None and ("<table" in lower):
            start = i
        if start is not None and "</table" in lower:
            text = "\n".join(lines[start:i + 1])
            if len(text) > MAX_HTML:
                yield LeftOut(start + 1, f"an HTML table of {len(text):,} characters was left out; at most "
                                         f"{MAX_HTML:,} are read")
            elif (span := widest_span(text)) > MAX_SPAN:
                yield LeftOut(start + 1, f"an HTML table with a cell over {span:,} rows or columns was left out; at "
                                         f"most {MAX_SPAN} are read")
            else:
                for grid in html_grids(text[max(0, text.lower().find("<table")):], start + 1):
                    yield _grid_table(grid)
            lines[start:i + 1] = [""] * (i + 1 - start)
            start = None


def is_run_line(text: str) -> bool:
    """True for the line that lm-eval prints above its table."""
    return ", limit: " in text and "num_fewshot: " in text


def _grid_table(grid: Sequence[GridRow]) -> Table:
    rows = [(number, [inline_text(cell) for cell in cells]) for number, cells in grid]
    return Table(rows[0][0], rows[0][1], rows[1:])


def inline_text(text: str) -> InlineText:
    """A piece of Markdown without blocks, such as a cell."""
    tokens = _parser().parseInline(text)
    return _inline(tokens[0].children or []) if tokens else InlineText(())


def _blocks(tokens: Sequence[Token]) -> Iterator[Block]:
    lists: list[str] = []
    item, position = "", 0
    while position < len(tokens):
        token = tokens[position]
        if token.type == "table_open":
            end = next(i for i in range(position, len(tokens)) if tokens[i].type == "table_close")
            yield _read_table(tokens[position:end])
            position = end
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            lists.append(token.type.partition("_")[0])
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
        elif token.type == "list_item_open":
            item = lists[-1]
        elif token.type == "list_item_close":
            item = ""
        elif token.type == "inline":
            yield from _text_blocks(token, tokens[position - 1], item)
            item = ""
        position += 1


def _text_blocks(token: Token, opening: Token, item: str) -> Iterator[Block]:
    """A heading, or the lines of a paragraph; a table that Markdown takes for text is read as a table."""
    if opening.type == "heading_open":
        for offset, content in enumerate(_lines(token.children or [])):
            yield Heading(_line(token) + offset, int(opening.tag[1:]), content)
        return
    raw = [(_line(token) + i, line) for i, line in enumerate(token.content.split("\n"))]
    tables = [_grid_table(grid) for grid in printed_grids(raw)]
    covered = {number for table in tables for number in (table.line, *(line for line, _ in table.rows))}
    yield from tables
    yield from (RunLine(number, line.strip()) for number, line in raw if is_run_line(line))
    for offset, content in enumerate(_lines(token.children or [])):
        if _line(token) + offset not in covered:
            yield Text(_line(token) + offset, content, item)
        item = ""


def _read_table(tokens: Sequence[Token]) -> Table:
    rows: list[tuple[int, list[InlineText]]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append((_line(token), []))
        elif token.type == "inline":
            rows[-1][1].append(_inline(token.children or []))
    return Table(rows[0][0], rows[0][1], rows[1:])


def _line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + 1


def _lines(children: Sequence[Token]) -> Iterator[InlineText]:
    """The lines of a paragraph; bold text may continue over several lines."""
    depth = 0
    for is_break, group in itertools.groupby(children, key=lambda t: t.type in _BREAKS):
        tokens = list(group)
        if is_break:
            continue
        yield _inline(tokens, depth)
        depth += sum({"strong_open": 1, "strong_close": -1}.get(t.type, 0) for t in tokens)


def _inline(children: Sequence[Token], depth: int = 0) -> InlineText:
    """The text of some tokens. depth: number of bold spans that are open before the first token."""
    spans: list[tuple[str, list[str]]] = []
    for token in children:
        depth += {"strong_open": 1, "strong_close": -1}.get(token.type, 0)
        if token.type == "text":  # a mark without a partner is not text: "45.2%*"
            text = token.content.replace("*", "").replace("`", "")
        elif token.type in ("text_special", "code_inline"):
            text = token.content
        else:
            continue
        kind = "strong" if depth else "code" if token.type == "code_inline" else ""
        if spans and spans[-1][0] == kind:
            spans[-1][1].append(text)
        elif text:
            spans.append((kind, [text]))
    return InlineText(tuple((kind, "".join(texts)) for kind, texts in spans))


def _joined(spans: Sequence[tuple[str, str]]) -> str:
    return " ".join("".join(text for _, text in spans).split())


