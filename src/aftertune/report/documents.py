"""Builds Markdown in which foreign text stays text, and writes documents to disk.

    text("a|b <i>")           "a\\|b &lt;i&gt;"
    code("x`y")               "`` x`y ``"
    table(["Task"], [["a"]])  three lines with pipes

    make_folder(Path("runs/orders"))
    write_document(Path("runs/orders/record.md"), text)      atomic: the whole file or no change
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from aftertune.errors import StorageError, visible_characters
from aftertune.redaction import redact_known
from aftertune.sources.cache import write_atomic

# --- Markdown ---
_SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))")


def text(value: str) -> str:
    """Foreign text on one line, with every character escaped that is special in Markdown or HTML."""
    flat = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", flat)


def code(value: str) -> str:
    """Foreign text as an inline code span, fenced by more backticks than it contains."""
    flat = " ".join(value.split())
    runs = [len(run) for run in re.findall(r"`+", flat)]
    fence = "`" * (max(runs, default=0) + 1)
    return f"{fence} {flat} {fence}" if runs else f"{fence}{flat}{fence}"


def block(value: str) -> str:
    """Foreign text as a fenced block, with a fence longer than any that it contains."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", value)), default=0))
    return f"{fence}text\n{value}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table; the cells must already be Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts(pairs: Sequence[tuple[str, str]], as_code: Collection[str]) -> str:
    """A metadata list: ``- **Label**: value``. The values of labels in ``as_code`` are code spans."""
    return "\n".join(
        f"- **{text(label)}**: {code(value) if label.removeprefix('Fine-tune: ') in as_code else text(value)}"
        for label, value in pairs)


# --- Files ---
def make_folder(folder: Path) -> None:
    """Create a folder for documents. Raises StorageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: this folder cannot be created ({error.strerror}); choose another one with "
                           "--out") from None


def write_document(path: Path, text: str, *, verbatim: bool = False) -> None:
    """Write a document in UTF-8 without known secrets, and with visible control characters. Raises StorageError if that
    fails.

    verbatim: write the text as it is, for a file that the user wrote.
    """
    try:
        write_atomic(path, text if verbatim else visible_characters(redact_known(text)))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another path with --out") from None
