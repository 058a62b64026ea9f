"""Coined and archaic phrases must not occur in the documents, and only ever less often in the source.

`PLAIN` lists the phrases. Documents may have none of them. The source still has some, in comments, docstrings and
string literals: `REMAINING` says how many are allowed. A number there may only go down.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: A phrase that must not be used (a regular expression; a space matches any white space) -> what to write instead.
PLAIN: Mapping[str, str] = {
    "told": "shown, given, called, distinguished",
    "(held|holds?) (it |them |that )?against": "compared with, checked against",
    "as (it|they) stands?": "as is, unchanged",
    "(hangs?|hung) on": "depends on",
    "(owns|owned by)": "say what the module does",
    "lent": "available",
    "matrix registers?": "AMX",
    "half numbers?": "bfloat16",
    "likeness": "similarity, duplicates",
    "foreseen": "estimated",
    "arrivals?": "import",
    "departures?": "export",
    "kinship": "lineage",
    "here are none": "are not available here",
    "(was|is|were|are) begun": "was started",
    "(is|are|was|were) to be": "must be, should be",
    "(came|come|comes) of (it|that|this|them)": "the result of",
    "(came|come) out": "resulted, ended",
    "went through in": "was split into",
    "so many times as": "times as fast",
    "sp(eaks?|oken) for": "covers",
    "stands? (on|there)": "is based on, is present",
    "(goes|go|went) on where": "continues",
    "but for": "except for",
    "anew": "again",
    "beforehand": "in advance",
    "(mend|mends|mended|mending)": "fix",
    "its kin": "related methods",
    "wholly": "entirely",
    "(whereof|thereof|wherein|therein|whence|lest|shall)": "a plain sentence",
    "without a word": "silently",
    "a warning light": "a warning",
    "(is|are) asked of": "is read from",
}
_ANY = re.compile(r"(?<![\w.`])(?:" + "|".join(f"({re.sub(r'[(](?![?])', '(?:', phrase)})" for phrase in PLAIN).replace(
    " ", r"\s+") + r")(?![\w`])", re.IGNORECASE)

_INSTEAD = tuple(PLAIN.values())

#: How many hits each of these may still have; every other document has none. A number may only go down.
REMAINING: Mapping[str, int] = {"src": 3}
#: True: a number in `REMAINING` must equal the count, so that it is lowered with each fix. False while several people
#: rewrite the source at once: then a count may be lower.
EXACT = True


def hits(text: str) -> Iterator[str]:
    """Each phrase of `PLAIN` in ``text``, with a few words around it and what to write instead."""
    for match in _ANY.finditer(text):
        around = " ".join(text[max(0, match.start() - 30):match.end() + 30].split())
        yield f"…{around}… (write: {_INSTEAD[(match.lastindex or 1) - 1]})"


def markdown_text(text: str) -> str:
    """The sentences of a Markdown document: no fenced blocks, code spans or link targets."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "``", text))


def python_texts(source: str) -> Iterator[str]:
    """Comments (adjacent lines as one) and string literals with white space in them, of Python source."""
    lines: list[tuple[int, str]] = [(token.start[0], token.string.lstrip("#: "))
                                    for token in tokenize.generate_tokens(io.StringIO(source).readline)
                                    if token.type == tokenize.COMMENT]
    for number, (line, text) in enumerate(lines):
        if number == 0 or lines[number - 1][0] != line - 1:
            block = [text]
            while number + 1 < len(lines) and lines[number + 1][0] == lines[number][0] + 1:
                number += 1
                block.append(lines[number][1])
            yield "\n".join(block)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\s", node.value.strip()):
            yield node.value


def texts(path: Path) -> Iterator[str]:
    """What a person reads in a file, by its kind; nothing of files of other kinds, such as compiled ones."""
    if path.suffix not in (".md", ".py", ".c", ".html", ".yaml"):
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield markdown_text(text)
    elif path.suffix == ".py":
        yield from python_texts(text)
    elif path.suffix == ".c":
        yield from (re.sub(r"\n\s*\*", "\n", comment) for comment in re.findall(r"/\*.*?\*/", text, flags=re.S))
    else:
        yield text


def found_in(place: str) -> list[str]:
    """The hits in a document, or in all files of a folder, each with its file."""
    path = ROOT / place
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [f"{file.relative_to(ROOT)}: {hit}" for file in files for text in texts(file) for hit in hits(text)]


DOCUMENTS = [str(page.relative_to(ROOT)) for page in (
    ROOT / "README.md", *sorted(ROOT.glob("CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "examples" / "README.md", ROOT / "studies", ROOT / "benchmarks")]


@pytest.mark.parametrize("place", [place for place in DOCUMENTS if place not in REMAINING])
def test_the_documents_are_in_plain_words(place: str) -> None:
    assert found_in(place) == []


@pytest.mark.parametrize("place", REMAINING)
def test_the_source_has_fewer_and_fewer_coined_phrases(place: str) -> None:
    found, allowed = found_in(place), REMAINING[place]
    assert len(found) <= allowed, "\n".join(found)
    assert not EXACT or len(found) == allowed, f"only {len(found)} are left in {place}: lower its number in REMAINING"


def test_phrases_are_found_in_every_kind_of_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("It hangs\non it. `told` and [a](told.md)\n```\ntold\n```\nWhat is told here.\n", encoding="utf-8")
    assert len([hit for text in texts(page) for hit in hits(text)]) == 2
    source = ('"""Owns the rows."""\n'
              "x = {'told': row.told}  # what the row hangs\n"
              "#: on, and no\n"
              "#: word anew\n"
              "y = f'{row.told} as it {x} stands' ' as it '\\\n    'stands'\n")
    found = [hit for text in python_texts(source) for hit in hits(text)]
    assert [re.search(r"write: (\w+)", hit)[1] for hit in found] == ["depends", "again", "say", "as"]  # type: ignore[index]
