"""``eval --until-decided``: the items that are used, what is shown, and that a second run computes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aftertune.ledger import Ledger
from cli_cases import call, settle
from eval_cases import byte_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WORDS = ("eval", "twin", "--tasks", "arc_easy", "--until-decided", "--against", "base", "--margin", "30",
         "--batch", "64", "--name", "twin")


def test_an_early_verdict_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capfd: pytest.CaptureFixture[str]) -> None:
    byte_folder(tmp_path / "base")
    byte_folder(tmp_path / "twin", initializer_range=0.31)
    settle(monkeypatch, tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    assert call(monkeypatch, *WORDS) == 0
    shown = " ".join(capfd.readouterr().out.split())
    with Ledger() as ledger:
        tuned = ledger.find_evaluation("twin")
        asked = {e.name: len(ledger.answers(e.id)) for e in ledger.evaluations()}
    stopped = tuned.stopped("arc_easy")
    assert stopped is not None
    used, total = stopped
    assert 0 < used < total == 570
    assert set(asked.values()) == {used}
    assert f"{used} of {total}" in shown
    assert "within" in shown  # without lineage there is no word about forgetting
    assert not {"forgot", "kept"} & set(shown.split())
    assert "about" in shown  # an early estimate, never a score

    assert call(monkeypatch, *WORDS, "--json") == 0
    result = json.loads(capfd.readouterr().out)
    with Ledger() as ledger:
        assert {e.name: len(ledger.answers(e.id)) for e in ledger.evaluations()} == asked
    text = json.dumps(result)
    assert '"stopped_early": true' in text
    assert '"stopped_of": 570' in text
