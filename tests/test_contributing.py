"""CONTRIBUTING.md against the repository: the files, names and make targets that it gives exist."""

from __future__ import annotations

import re
from pathlib import Path

from test_layers import LINES_OF_A_FUNCTION, LINES_OF_A_MODULE, PARAMETERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: Code spans that are paths in the repository.
PATHS = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", TEXT)
#: (file, name): "In `FILE`, add … to `NAME`", and "`NAME` in `FILE`".
NAMES = [(file, name) for file, name in re.findall(r"In `([^`]+\.py)`, add [^`]*`(\w+)`", TEXT)] + \
    [(file, name) for name, file in re.findall(r"`(\w+)` in\s+`([^`]+\.py)`", TEXT)]


def test_every_named_file_exists() -> None:
    assert len(PATHS) >= 15
    assert [path for path in PATHS if not (ROOT / path).exists()] == []


def test_the_files_define_the_names_to_extend() -> None:
    assert {name for _, name in NAMES} >= {"METHODS", "ComparisonRow", "build_row", "COLUMNS", "_LEAVES", "loss_curve"}
    missing = [f"{file}: {name}" for file, name in NAMES
               if not re.search(rf"^(?:def |class )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), flags=re.M)]
    assert missing == []


def test_the_sizes_are_those_that_are_checked() -> None:
    limits = re.findall(r"at most (\d+) lines, a function at most (\d+) lines and (\d+) parameters", TEXT)
    assert limits == [(str(LINES_OF_A_MODULE), str(LINES_OF_A_FUNCTION), str(PARAMETERS))]


def test_the_examples_are_entries_of_the_source() -> None:
    """An example in a block is taken from the source: each of its lines is in the file, perhaps as a part of a line."""
    blocks = re.findall(r"`(src/[^`]+\.py)`, add one [^`]*`\w+`[^`]*```python\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) == 2
    for file, block in blocks:
        source = (ROOT / file).read_text(encoding="utf-8")
        arguments = {line.strip().rstrip(",") for line in block.splitlines()[1:]}
        assert [line for line in arguments if line not in source] == []


def test_it_fits_on_a_page() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 100
    assert all(len(line) <= 120 for line in lines)
