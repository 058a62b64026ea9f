"""Owns putting a finished document on the disk, with an error in one line where the disk refuses.

    make_folder(Path("runs/orders"))
    write_document(Path("runs/orders/record.md"), text)      whole or not at all
"""

from __future__ import annotations

from pathlib import Path

from aftertune.errors import StorageError
from aftertune.sources.cache import write_atomic


def make_folder(folder: Path) -> None:
    """Make a folder for documents. Raises StorageError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: this folder cannot be made ({error.strerror}); choose another with "
                           "--out") from None


def write_document(path: Path, text: str) -> None:
    """Write a document in UTF-8. Raises StorageError where that is not possible."""
    try:
        write_atomic(path, text)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another place with --out") from None
