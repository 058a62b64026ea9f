"""Progress on a terminal and in plain lines: a stage is one bar from its first step to its last."""

from __future__ import annotations

import io
import re
import sys

import pytest

from aftertune.cli.board import Board
from aftertune.cli.console import Pace, progress

STEPS = [(n, 40, f"training: step {n} of 40, loss {2 - n / 40:.3f}, learning rate 0.0002, 1,700 tokens/s")
         for n in range(21, 41)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_steps_of_a_training_are_one_stage() -> None:
    pace, begun = Pace(), 0
    for step in [(0, 0, "loading the model"), *STEPS]:
        pace.update(*step)
        begun += pace.new
    assert (begun, pace.stage, pace.share) == (2, "training", 1.0)
    assert pace.detail == "step 40 of 40, loss 1.000, learning rate 0.0002, 1,700 tokens/s"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_shows_share_remaining_time_step_loss_rate_and_speed(width: int,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress() as update:
        for step in STEPS[:10]:
            update(*step)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).splitlines()
    bar = next(line for line in reversed(lines) if "training" in line)
    assert "75%" in bar
    assert "ETA" in bar
    assert "step 30 of 40, loss 1.250, learning rate 0.0002" in " ".join(" ".join(lines).split())


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as update:
        for step in STEPS:
            update(*step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6, "one where it starts, and one at each tenth"
    assert lines[-1].startswith("training: step 40 of 40, loss 1.000, learning rate 0.0002, 1,700 tokens/s 100 %")


def test_the_board_of_a_study_counts_the_remaining_time_of_the_stage() -> None:
    board = Board(["tune a"])
    board.turn("tune a", "running")
    for done, total, text in STEPS[:10]:
        board.update(done, total, f"[1/1] tune a: {text}")
    assert board.paces["tune a"].stage == "training"
    assert board.bar("tune a").startswith("━━━━━━━━━━━━━━━╌╌╌╌╌ 75%, about 0 s left, step 30 of 40")
