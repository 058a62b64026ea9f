"""Asks for files by names that other people wrote: a name that no file can have is the name of no file.

    is_file(Path("x" * 5000)), is_dir(Path("a\\0b"))        False, False; pathlib raises OSError for the first
    expanded("~nobody/model")                              Path("~nobody/model"); pathlib raises RuntimeError
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)


def exists(path: Path) -> bool:
    """Whether there is a file or folder. Raises OSError only where it cannot be known, such as PermissionError."""
    return _answer(Path.exists, path)


def is_file(path: Path) -> bool:
    """Whether it is a file; errors as in `exists`."""
    return _answer(Path.is_file, path)


def is_dir(path: Path) -> bool:
    """Whether it is a folder; errors as in `exists`."""
    return _answer(Path.is_dir, path)


def _answer(question: Callable[[Path], bool], path: Path) -> bool:
    try:
        return question(path)
    except ValueError:  # a null byte
        return False
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            return False
        raise


def expanded(text: str | Path) -> Path:
    """The path with ``~`` as the home folder; unchanged where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
