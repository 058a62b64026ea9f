"""Options of other tools are answered with ours, and every option that an answer names exists."""

from __future__ import annotations

import re
import sys

import pytest

from aftertune.cli import app
from aftertune.cli.console import guarded
from aftertune.cli.other_tools import ADVICE, advice
from test_docs import COMMANDS


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["aftertune", *words])
    assert guarded(app) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("words", "answer"), [
    (("eval", "m", "--batch_size", "8"), "aftertune eval has no --batch_size: batches follow from the free memory"),
    (("eval", "--model", "hf"), "the model is the first word of the command"),
    (("eval", "m", "--log_samples"), "every answer is stored"),
    (("eval", "m", "--num_fewshot", "5"), "has no --num_fewshot: write --num-fewshot; see `aftertune eval --help`"),
    (("tune", "m", "--lora_r", "8"), "write --rank"),
    (("tune", "m", "--num_train_epochs", "3"), "write --epochs"),
    (("tune", "m", "--train_on_inputs"), "write --learn all")])
def test_an_option_of_another_tool_is_answered(words: tuple[str, ...], answer: str, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    text = said(monkeypatch, capsys, *words)
    assert answer in text
    assert text.count("\n") == 1


def test_an_unknown_option_still_has_the_usual_message(monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such option: --smaple" in said(monkeypatch, capsys, "eval", "m", "--smaple", "3")
    assert advice("runs", "--lr", ()) is None


@pytest.mark.parametrize("verb", ADVICE)
def test_every_option_that_an_answer_names_exists(verb: str) -> None:
    options = {option for p in COMMANDS[verb].params for option in (*p.opts, *p.secondary_opts)}
    for other, answer in ADVICE[verb].items():
        assert f"--{other}" not in options, f"{verb} has --{other} itself"
        own = re.sub(r"`[^`]*`", "", answer)
        assert set(re.findall(r"--[a-z-]+", own)) <= options, other
        assert set(re.findall(r"`aftertune (?:--debug )?([a-z][a-z-]*)", answer)) <= COMMANDS.keys(), other
