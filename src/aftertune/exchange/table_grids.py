"""Finds tables that Markdown itself does not know: printed in a terminal or a log, and written in HTML.

    printed_grids([(1, "| Task | acc |"), (2, "|------|-----|"), (3, "| piqa | 0.7 |")])
    # [[(1, ["Task", "acc"]), (3, ["piqa", "0.7"])]]

    html_grids("<table><tr><th>Task</th>…</table>", first_line=7)

A grid is a list of rows, each with its line number and its cells as text; the first row is the head. All of it takes
time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser

from aftertune import bounds

#: A row of a table: its line number and its cells.
GridRow = tuple[int, list[str]]

#: A table with more columns, or a cell over more rows or columns, is no table of results.
MAX_COLUMNS = bounds.RECORD_COLUMNS
MAX_SPAN = bounds.RECORD_SPAN
_SPAN = re.compile(r"(?i)\b(?:row|col)span\s{0,9}=\s{0,9}[\"']?\s{0,9}([0-9]{1,20})")
#: What may stand before a table in a quotation, a comment or a shell's output.
_PREFIX = re.compile(r"[\s>#;*/]{0,40}(?=[|+│┃║┏┌╒╔┡├╞╠└╘╚┗])")
_BARS = str.maketrans({"│": "|", "┃": "|", "║": "|"})
#: The characters of a rule between rows.
_RULE = frozenset("|:-=+ \t─━═┼╋╪╇┿╂┠┨├┤┣┫┡┩╞╡╟╢╠╣╬┬┴┳┻╤╧╦╩┌┐└┘┏┓┗┛╒╕╘╛╔╗╚╝╭╮╰╯")
_LINES = frozenset("-=─━═")


def is_rule(line: str) -> bool:
    """True for a line that only separates rows: ``|---|:-:|``, ``+----+`` or ``├──┼──┤``."""
    return bool(line) and set(line) <= _RULE and not _LINES.isdisjoint(line)


def split_row(line: str) -> list[str]:
    """The cells of one line, without the outer bars. A bar with a backslash is text."""
    cells = re.split(r"(?<!\\)\|", line.strip())
    if cells and not cells[0].strip():
        cells = cells[1:]
    if cells and not cells[-1].strip():
        cells = cells[:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]


def printed_grids(lines: Iterable[tuple[int, str]]) -> Iterator[list[GridRow]]:
    """The tables among some lines of text, each (line number, text)."""
    block: list[tuple[int, str]] = []
    for number, raw in (*lines, (0, "")):
        prefix = _PREFIX.match(raw)
        line = raw[prefix.end():].translate(_BARS).strip() if prefix else ""
        if line.startswith("|") or is_rule(line):
            block.append((number, line))
        elif block:
            yield from _block_grids(block)
            block = []


def _block_grids(block: Sequence[tuple[int, str]]) -> Iterator[list[GridRow]]:
    """The tables of lines that follow one another; a rule of bars below a row of the body starts another table."""
    grid: list[GridRow] = []
    ruled = False
    for number, line in block:
        if not is_rule(line):
            grid.append((number, split_row(line)))
        elif line.startswith("|") and ruled and len(grid) > 2:
            yield from _rectangle(grid[:-1])
            grid = grid[-1:]
        elif line.startswith("|"):
            ruled = True
    yield from _rectangle(grid)


def _rectangle(grid: Sequence[GridRow]) -> Iterator[list[GridRow]]:
    """The table with as many cells in each row as in its head; nothing where there is no body."""
    if len(grid) < 2 or not 2 <= len(grid[0][1]) <= MAX_COLUMNS:
        return
    width = len(grid[0][1])
    yield [(number, (cells + [""] * width)[:width]) for number, cells in grid]


def html_grids(text: str, first_line: int) -> Iterator[list[GridRow]]:
    """The tables of a piece of HTML. first_line: the line number of its first line."""
    parser = _HtmlTable()
    parser.feed(text)
    parser.close()
    for rows, heads in parser.tables:
        grid = [(first_line + line - 1, cells) for line, cells in _spread(rows)]
        depth = min(heads, len(grid) - 1)
        if depth > 1:  # a head of several rows: the lowest text of each column
            width = max(len(cells) for _, cells in grid[:depth])
            lowest = [next((c[i] for _, c in reversed(grid[:depth]) if i < len(c) and c[i]), "") for i in range(width)]
            grid = [(grid[0][0], lowest), *grid[depth:]]
        yield from _rectangle(grid)


#: (text, rows, columns) of a cell.
_Cell = tuple[str, int, int]


def _spread(rows: Sequence[tuple[int, Sequence[_Cell]]]) -> Iterator[GridRow]:
    """The rows with cells that span several rows or columns repeated in each."""
    below: dict[int, tuple[str, int]] = {}  # column -> text and rows that are still to come
    for line, cells in rows:
        texts: list[str] = []
        waiting = list(cells)[::-1]
        while (waiting or len(texts) in below) and len(texts) < MAX_COLUMNS:
            column = len(texts)
            if column in below:
                text, left = below.pop(column)
                texts.append(text)
                if left > 1:
                    below[column] = (text, left - 1)
                continue
            text, tall, wide = waiting.pop()
            for i in range(wide):
                texts.append(text)
                if tall > 1:
                    below[column + i] = (text, tall - 1)
        yield line, texts


class _HtmlTable(HTMLParser):
    """Collects the cells of the tables in a piece of HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tables: list[tuple[list[tuple[int, list[_Cell]]], int]] = []
        self.rows: list[tuple[int, list[_Cell]]] = []
        self.heads = 0  # rows at the top that have only heads
        self.only_heads = True
        self.cell: list[str] | None = None
        self.span = (1, 1)
        self.skipped = 0  # depth of <sup>, which holds footnotes

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._end_table()
        elif tag == "tr":
            self._end_row()
            self.rows.append((self.getpos()[0], []))
            self.only_heads = True
        elif tag in ("td", "th"):
            self._end_cell()
            if not self.rows:
                self.rows.append((self.getpos()[0], []))
            values = dict(attrs)
            self.span = (_span(values.get("rowspan")), _span(values.get("colspan")))
            self.cell = []
            self.only_heads &= tag == "th"
        elif tag == "br" and self.cell is not None:
            self.cell.append(" ")
        elif tag == "sup":
            self.skipped += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._end_cell()
        elif tag in ("tr", "thead", "tbody"):
            self._end_row()
        elif tag == "table":
            self._end_table()
        elif tag == "sup":
            self.skipped = max(0, self.skipped - 1)

    def handle_data(self, data: str) -> None:
        if self.cell is not None and (not self.skipped or "±" in data):
            self.cell.append(data)

    def close(self) -> None:
        super().close()
        self._end_table()

    def _end_cell(self) -> None:
        if self.cell is not None and self.rows:
            self.rows[-1][1].append((" ".join("".join(self.cell).split()), *self.span))
        self.cell = None
        self.skipped = 0

    def _end_row(self) -> None:
        self._end_cell()
        if self.rows and self.rows[-1][1] and self.only_heads and self.heads == len(self.rows) - 1:
            self.heads = len(self.rows)

    def _end_table(self) -> None:
        self._end_row()
        rows = [row for row in self.rows if row[1]]
        if rows:
            self.tables.append((rows, self.heads))
        self.rows, self.heads = [], 0


def widest_span(text: str) -> int:
    """The most rows or columns that a cell of a table in HTML says to span."""
    return max((int(digits[:6]) for digits in _SPAN.findall(text)), default=1)


def _span(text: str | None) -> int:
    digits = (text or "").strip()[:4]
    return max(1, min(MAX_SPAN, int(digits))) if digits.isascii() and digits.isdigit() else 1
