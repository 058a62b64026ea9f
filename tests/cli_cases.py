"""Calls the command line in tests, and checks that an error is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aftertune.cli import app
from aftertune.cli.console import guarded

#: How the progress lines of a run start.
PROGRESS = ("identifying", "reading", "loading", "planning", "answering", "encoding", "[", "held-out", "training: ")


def settle(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Work in ``root``, offline, with a ledger there."""
    patch.chdir(root)
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("AFTERTUNE_LEDGER", str(root / "ledger.db"))


def call(patch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of ``aftertune WORDS``."""
    patch.setattr(sys, "argv", ["aftertune", *words])
    return guarded(app)


def one_line(capfd: pytest.CaptureFixture[str], expected: tuple[str, ...]) -> str:
    """A description of what is wrong with the error output, "" if it is one line that has all expected texts."""
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(PROGRESS)]
    missing = [text for text in expected if text not in err]
    fine = len(lines) == 1 and lines[0].startswith("aftertune: ") and not out and not missing
    return "" if fine else f"missing {missing} in {lines}, stdout {out!r}"
