"""The help: verbs in groups, options in panels, no name cut at any width; shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from aftertune.cli import GROUPS, VERBS
from aftertune.cli.help import PANELS
from cli_cases import call
from test_docs import COMMANDS


def options_of(verb: str) -> list[str]:
    return [option for p in COMMANDS[verb].params if p.param_type_name == "option"
            for option in (*p.opts, *p.secondary_opts)]


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("verb", ["eval", "tune", "check-deploy", "doctor"])
def test_no_name_is_cut_at_any_width(verb: str, width: int, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert call(monkeypatch, verb, "--help") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert set(options_of(verb)) <= set(re.findall(r"--[\w-]+", shown))


def test_forms_of_arguments_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "check-merge", "--help") == 0
    assert "TUNING | BASE ADAPTER MERGED [OPTIONS]" in " ".join(capsys.readouterr().out.split())


def test_verbs_with_many_options_have_panels_and_each_option_is_in_one(monkeypatch: pytest.MonkeyPatch,
                                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert {verb for verb in VERBS if len(options_of(verb)) > 20} <= PANELS.keys()
    for verb, panels in PANELS.items():
        named = [f"--{name}" for names in panels.values() for name in names]
        assert len(named) == len(set(named))
        mains = {p.opts[0] for p in COMMANDS[verb].params if p.param_type_name == "option"}
        assert set(named) | {"--json"} == mains, "an option is in no panel, or in one that it does not exist for"
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "eval", "--help") == 0
    shown = capsys.readouterr().out
    assert [title for title in PANELS["eval"] if f"╭─ {title} " not in shown] == []


def test_the_verbs_are_in_groups(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for title, verbs in GROUPS.items():
        assert f"╭─ {title} " in shown
        block = shown.partition(f"╭─ {title} ")[2].partition("╰")[0]
        assert set(verbs) <= set(re.findall(r"^│ ([a-z-]+) ", block, re.MULTILINE)), title


def completed(*words: str) -> list[str]:
    """What bash would offer for the last of these words."""
    environment = {**os.environ, "_AFTERTUNE_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words),
                   "COMP_CWORD": str(len(words) - 1)}
    run = subprocess.run([sys.executable, "-m", "aftertune"], env=environment, capture_output=True, text=True,
                         check=False)
    return run.stdout.split()


def test_the_shell_completes_verbs_and_options() -> None:
    assert completed("aftertune", "ev") == ["eval"]
    assert completed("aftertune", "eval", "--sample") == ["--sample", "--sample-seed"]
