"""Reads the cells of tables of results: figures as people write them.

    read_cell("**54.44 ± 1.46**")                 PrintedFigure(value="54.44", error="1.46", …)
    read_cell("68.77 (+1.2)")                     PrintedFigure(value="68.77", beside="(+1.2)", …)
    read_cell("61,26 %", comma=True)              PrintedFigure(value="61.26%", …)
    read_cell("0.65→0.56"), read_cell("Link")     None: no single figure

A figure keeps its digits as they are printed, because they show how it was rounded.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from aftertune import bounds

#: Cells that say that there is no figure.
_ABSENT = frozenset((
    "", "-", "--", "---", "–", "—", "n/a", "na", "nan", "none", "null", "?", "tbd", "todo", "oom", "x", "✗", "✘",
    "❌", "×", "/", "\\", "...", "…", "n.a.", "not available", "not reported", "pending", "not tested", "-%", "wip",
    "skipped", "–%", "nr", "n/r", "**", "*", "_", "unknown"))
#: The most characters of a cell that holds a figure.
_MAX_CELL = bounds.RECORD_CELL

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,15})(?:\s[^<>]{0,200})?/?>")
_FOOTNOTE = re.compile(r"<sup>[^<>±]{0,40}</sup>|\[\^[^\[\]]{1,20}\]|\^\{?[a-z0-9*†‡]{1,3}\}?")
_LINK = re.compile(r"!?\[([^\[\]]{0,200})\]\([^()\s]{0,500}\)")
_LATEX = re.compile(r"\\(?:textbf|mathbf|bf|underline|text|mathrm|textit|emph|uline|boldsymbol)\b\s?")
_WRAPPED = re.compile(r"(?i)(?:np\.|numpy\.|torch\.)?(?:float(?:16|32|64)?|tensor|double)\((.{1,60})\)")
_NUMBER = (r"[+-]?(?:\d{1,3}(?:,\d{3}){1,4}(?:\.\d{1,20})?(?![\d,])|\d{1,12}(?:[.,]\d{1,20})?|\.\d{1,20})"
           r"(?:[eE][+-]?\d{1,2})?")
_FIGURE = re.compile(rf"\s*({_NUMBER})\s*(%?)", re.ASCII)
_PLUS_MINUS = re.compile(r"\s*(?:±|\+/-|\+-)\s*")
_CHANGE = re.compile(rf"\s*[↑↓▲▼△▽⬆⬇⇑⇓]\s*{_NUMBER}\s*%?", re.ASCII)
_BRACKETS = re.compile(r"\s*(?:\([^()]{0,80}\)|\[[^\[\]]{0,80}\])")
_MARKS = "*†‡§¶#^°'\"`~_ \t✓✔☆★⭐"
_SUPERSCRIPTS = str.maketrans("", "", "⁰¹²³⁴⁵⁶⁷⁸⁹ᵃᵇᶜ")
_ARROWS = frozenset("↑↓▲▼△▽⬆⬇⇑⇓→←⟶➔➜")


@dataclass(frozen=True, slots=True)
class PrintedFigure:
    """A figure of a table. value, error: as printed, with % where the cell has one; error: "" for none.

    beside: text in the cell that is not part of the figure, such as a change; signed: printed with a plus sign.
    """

    value: str
    error: str = ""
    beside: str = ""
    signed: bool = False


def plain_text(text: str) -> str:
    """A cell or a head without HTML, links, LaTeX, footnotes and pictures, with single spaces."""
    text = html.unescape(text[:20_000])
    if "<" in text or "[" in text or "^" in text:
        text = _LINK.sub(r"\1", _FOOTNOTE.sub("", text))
        text = _TAG.sub(lambda tag: " " if tag[2].lower() in ("br", "p", "div", "td", "img") else "", text)
    if "$" in text or "\\" in text:
        text = _LATEX.sub("", text.replace("\\pm", "±").replace("\\%", "%").replace("\\_", "_"))
        text = re.sub(r"[${}]|_(?=\{)", "", text.replace("_{", "").replace("^{", ""))
    text = "".join(c if c in _ARROWS or unicodedata.category(c) not in ("So", "Cf", "Mn", "Sk", "Co") else " "
                   for c in text.translate(_SUPERSCRIPTS))
    return " ".join(text.split())


def is_absent(text: str) -> bool:
    """True for a cell that says that there is no figure."""
    bare = plain_text(text).strip(" *_~`()").lower()
    return bare in _ABSENT or not any(c.isalnum() for c in bare)


def uses_comma(cells: Iterable[str]) -> bool:
    """True where some figure among the cells can only have a decimal comma: "61,26" or "0,4531"."""
    return any(re.fullmatch(r"\s*[+-]?(?:0,\d{1,20}|\d{1,3},(?:\d{1,2}|\d{4,20}))\s*%?\s*(?:±.{0,20})?",
                            plain_text(cell), re.ASCII) for cell in cells)


def read_cell(text: str, *, comma: bool = False) -> PrintedFigure | None:
    """The figure of a cell, or None where it has none or more than one. comma: the decimal mark is a comma."""
    bare = plain_text(text) if len(text) <= _MAX_CELL else ""
    bare = bare.strip(_MARKS.replace("~", "")).replace("−", "-").replace("‑", "-").replace("％", "%").lstrip("↑↓▲▼ ")
    if wrapped := _WRAPPED.fullmatch(bare):
        bare = wrapped[1][:wrapped[1].find(",")].strip() if "," in wrapped[1] else wrapped[1].strip()
    figure = _FIGURE.match(bare)
    if figure is None:
        return None
    value = _decimal(figure[1], comma)
    if value is None:
        return None
    error, rest = _error(bare[figure.end():], comma)
    beside: list[str] = []
    for _ in range(3):
        rest = rest.strip(_MARKS + ",;")
        more = _CHANGE.match(rest) or _BRACKETS.match(rest)
        if more is None:
            break
        inside = more[0].strip().strip("()[]").strip()
        if not error and _PLUS_MINUS.match(inside):  # "54.4 (±1.2)"
            error, left = _error(inside, comma)
            beside += [left] if left.strip() else []
        else:
            beside.append(more[0].strip())
        rest = rest[more.end():]
    if rest.strip(_MARKS + "".join(_ARROWS)) and not _is_unit(rest):
        return None
    return PrintedFigure(value + figure[2], error, " ".join(beside), signed=figure[1].startswith("+"))


def _is_unit(rest: str) -> bool:
    return rest.strip().lower() in ("pts", "points", "pp", "acc", "percent")


def _error(rest: str, comma: bool) -> tuple[str, str]:
    """(error, text behind it) of the text behind a value; the error is "" for none."""
    sign = _PLUS_MINUS.match(rest)
    if sign is None:
        return "", rest
    behind = rest[sign.end():]
    figure = _FIGURE.match(behind)
    if figure is None:
        words = behind.strip().lower()
        return ("", "") if words in _ABSENT else ("", rest)
    value = _decimal(figure[1], comma)
    return ("", rest) if value is None else (value + figure[2], behind[figure.end():])


def _decimal(number: str, comma: bool) -> str | None:
    """A number with a decimal point; None where its comma may be either mark."""
    if "," not in number:
        return number
    if "." in number or number.count(",") > 1:
        return number.replace(",", "")
    mark = number.index(",")
    whole, decimals = number[:mark], number[mark + 1:]
    if comma or len(decimals) != 3 or whole.lstrip("+-") in ("", "0"):
        return f"{whole}.{decimals}"
    return number.replace(",", "") if len(whole.lstrip("+-")) <= 3 else None


def read_count(text: str) -> int | None:
    """The number of items that a cell states: 400 for "400 (random 400 of 10,042)"; None for none."""
    digits = re.match(r"\s*(?:n\s?=\s?)?(\d{1,3}(?:[,.' ]\d{3}){1,3}(?!\d)|\d{1,12}(?!\d))", plain_text(text), re.ASCII)
    number = int(re.sub(r"\D", "", digits[1])) if digits else 0
    return number if 0 < number < 2**31 else None
