"""The command line: what it imports, what it says to bad input, and its verbs on a small ledger."""

from __future__ import annotations

import atexit
import gc
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.cli import app, main
from aftertune.cli.console import guarded
from aftertune.cli.options import parse_settings
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.values import Score
from ledger_cases import answered, evaluation, items, responses

HEAVY = ("torch", "transformers", "lm_eval", "matplotlib", "sqlalchemy")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["aftertune", *words])
    return guarded(app)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFTERTUNE_LEDGER", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys; from aftertune.cli import app\n"
            "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
            f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip().splitlines()[-1] == "[]"
    for verb in ("demo", "eval", "tune", "compare", "runs", "show", "record", "report", "doctor"):
        assert verb in run.stdout


def test_the_module_is_the_command() -> None:
    run = subprocess.run([sys.executable, "-m", "aftertune", "gate"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "aftertune gate" in run.stderr, "its own name, not __main__.py"


def test_a_command_ends_without_searching_the_libraries_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(sys, "argv", ["aftertune", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, gc.freeze in registered) == (0, True)


@pytest.mark.parametrize("verb", ["demo", "eval", "tune", "compare", "run", "runs", "show", "record", "report",
                                  "doctor"])
def test_every_verb_has_help_and_json(verb: str, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, verb, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_an_unknown_study_key_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "s.yaml"
    study.write_text("study: s\nbases: {b: {model: m}}\ntasks: [{name: arc_easy, sampel: 3}]\n")
    assert call(monkeypatch, "run", str(study)) == 2
    assert "did you mean 'sample'" in capsys.readouterr().err


def test_a_token_never_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary0123456789abcdefghijklmnop")
    assert call(monkeypatch, "eval", "org/hf_canary0123456789abcdefghijklmnop", "--tasks", "arc_easy") == 2
    assert "canary" not in capsys.readouterr().err


def test_doctor_answers_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "doctor", "--json") == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"machine", "version", "pack", "ledger"} == {f["area"] for f in findings}


@pytest.mark.parametrize(("text", "value"), [
    ("", {}), ("max_gen_toks=8,temperature=0.5", {"max_gen_toks": 8, "temperature": 0.5}),
    ("do_sample=True", {"do_sample": True}), ('{"until": ["Q:"]}', {"until": ["Q:"]}), ("until=Q:", {"until": "Q:"}),
])
def test_generation_settings(text: str, value: dict[str, object]) -> None:
    assert parse_settings("--gen-kwargs", text) == value


def test_generation_settings_that_are_none() -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_settings("--gen-kwargs", "max_gen_toks")


def test_names_with_markup_and_numbers_that_are_not_finite(monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    """A model folder may be named "[red]x", and a perplexity may overflow: shown as it is, null in JSON."""
    with Ledger() as ledger:
        opened = ledger.open_evaluation(evaluation("e-odd", "[red]x[/nothing]"), items())
        score = Score(task="arc_easy", metric="word_perplexity", filter="none", value=math.inf, stderr=None, n=6)
        ledger.save_batch("e-odd", 0, responses())
        ledger.finish_evaluation(replace(opened, scores=(score,), warnings=("[/b] odd",)),
                                 *answered(items(), responses()))
    monkeypatch.setenv("COLUMNS", "120")
    assert call(monkeypatch, "runs") == 0
    assert "[red]x[/nothing]" in capsys.readouterr().out
    assert call(monkeypatch, "show", "e-odd") == 0
    shown = capsys.readouterr().out
    assert "[red]x[/nothing]" in shown
    assert "note [/b] odd" in shown
    assert call(monkeypatch, "show", "e-odd", "--json") == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["value"] is None
    assert call(monkeypatch, "record", "--out", "-") == 0
    assert "inf" not in capsys.readouterr().out


def test_an_unfinished_evaluation_is_not_reported_as_none(monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger() as ledger:
        ledger.open_evaluation(evaluation("e-half", "half"), items())
    assert call(monkeypatch, "report", "--only", "half") == 2
    assert "evaluation half (e-half) is 'running'" in capsys.readouterr().err
    assert call(monkeypatch, "report") == 2
    assert "no finished evaluation yet" in capsys.readouterr().err
