"""``aftertune compare`` on a small ledger: several tuned models, margins, refusals in JSON, watermarks, hints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.cli.compare import parse_margins
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.values import Margin
from test_cli import call
from test_comparison import ADAPTED, BASE, evaluated, right, settings


@pytest.fixture(autouse=True)
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base, two adapters of it, and an evaluation of other settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFTERTUNE_LEDGER", raising=False)
    monkeypatch.setenv("COLUMNS", "140")
    task = settings("t", 400, n_total=1000, sample=400, sample_seed=0)
    with Ledger() as ledger:
        evaluated(ledger, "base", BASE, [(task, right(300, 400))])
        evaluated(ledger, "one", ADAPTED, [(task, right(200, 400))])
        evaluated(ledger, "two", replace(ADAPTED, adapter="a2"), [(task, right(298, 400))])
        evaluated(ledger, "five", replace(ADAPTED, adapter="a3"), [(replace(task, num_fewshot=5), right(290, 400))])


def test_several_tuned_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "compare", "base", "one", "two") == 0
    shown = capsys.readouterr().out
    assert shown.index("one against base") < shown.index("two against base") < shown.rindex("against base")
    assert "forgot −25.00" in shown
    assert "kept −0.50" in shown
    assert "Items used: t 400 of 1,000" in shown
    assert call(monkeypatch, "compare", "base", "one", "two", "--json") == 0
    comparisons = json.loads(capsys.readouterr().out)["comparisons"]
    assert [c["rows"][0]["told"] for c in comparisons] == ["forgot", "kept"]
    assert comparisons[0]["rows"][0]["n_total"] == 1000


def test_one_that_is_not_comparable_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "compare", "base", "five", "two", "--json") == 3
    out, err = capsys.readouterr()
    first, second = json.loads(out)["comparisons"]
    assert (first["comparable"], second["rows"][0]["told"]) == (False, "kept")
    assert first["differences"] == [{"field": "t.num_fewshot", "left": "0", "right": "5", "blocking": True}]
    assert err.count("\n") == 1
    assert "t.num_fewshot (0 | 5)" in err


def test_a_forced_comparison_is_marked_everywhere(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "compare", "base", "five", "--force") == 0
    assert "FORCED COMPARISON" in capsys.readouterr().out
    assert call(monkeypatch, "compare", "base", "five", "--force", "--json") == 0
    assert "t.num_fewshot: 0 against 5" in json.loads(capsys.readouterr().out)["watermark"]
    for verb, out in (("record", "r.md"), ("report", "r.html")):
        assert call(monkeypatch, verb, "--out", out) == 0
        assert "FORCED COMPARISON" in Path(out).read_text()


def test_the_wrong_order_and_two_tuned_models(monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "compare", "one", "base") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "aftertune compare base one" in shown
    assert "higher" in shown
    assert "improved" not in shown
    assert call(monkeypatch, "compare", "one", "two") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "one and two were both made from base" in shown
    assert "forgetting" in shown
    assert "forgot" not in shown


def test_details(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "compare", "base", "one", "--details") == 0
    assert "McNemar exact p <0.001, mid-p <0.001" in capsys.readouterr().out


def test_margins() -> None:
    assert parse_margins(["5", "hellaswag=1.5"]) == {"*": Margin(.05), "hellaswag": Margin(.015, 1.5)}
    assert parse_margins([]) == {}
    for wrong in ("0", "x", "hellaswag=", "=3", "101", "t=inf", "t=nan"):
        with pytest.raises(InputError, match="TASK=VALUE"):
            parse_margins([wrong])


@pytest.mark.parametrize(("words", "expected"), [
    (("compare", "base", "one", "--margin", "typo=3"), "margin of 'typo': base and one have no such task in common"),
    (("compare", "base", "one", "two", "--margin", "typo=3"), "the evaluations have no such task in common; it has an"),
    (("compare", "base", "one", "--margin", "average=1"), "fewer than two tasks in common, so there is no average"),
    (("gate", "base", "one", "--max-drop", "typo=3"), "have no task 'typo'"),
])
def test_a_margin_for_no_row_is_one_line(words: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert (out, err.count("\n")) == ("", 1)
    with Ledger(create=False) as ledger:
        assert ledger.comparisons() == []


@pytest.mark.parametrize("verb", ["record", "report"])
def test_a_document_on_stdout_is_one_json_object_where_that_is_asked(
        verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, verb, "--out", "-", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == len(found["text"].encode()) > 1000


def test_what_a_verdict_needs_is_planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("hellaswag", "gsm8k", "mmlu_high_school_computer_science", "own=500")
    tasks = [word for name in names for word in ("--task", name)]
    assert call(monkeypatch, "plan-items", *tasks, "--discordance", "8") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mmlu_high_school_computer_science: \"kept\" within 2 points cannot be decided with this task" in shown
    assert "hellaswag: \"kept\"" not in shown
    assert call(monkeypatch, "plan-items", "--task", "hellaswag", "--discordance", "8", "--json") == 0
    (plan,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (plan["items"], plan["kept"], plan["discordance"]) == (10042, 1713, .08)
    six = [word for k in range(6) for word in ("--task", f"t{k}=5000")]
    assert call(monkeypatch, "plan-items", *six) == 0
    assert "on average: \"kept\" within 2 points, if ±0, needs 357 items of each of the 6 tasks" in \
        " ".join(capsys.readouterr().out.split())
    assert call(monkeypatch, "plan-items", *six[:4], "--task", "small=50", "--json") == 0
    assert json.loads(capsys.readouterr().out)["average"] == {"tasks": ["t0", "t1", "small"], "kept": None}


def test_a_plan_from_two_evaluations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Their discordance, at the upper end of its interval, and the whole task's items."""
    assert call(monkeypatch, "plan-items", "base", "two", "--json") == 0
    (plan,) = json.loads(capsys.readouterr().out)["tasks"]
    assert (plan["task"], plan["items"]) == ("t", 1000)
    assert 2 / 400 < plan["discordance"] < 8 / 400


@pytest.mark.parametrize(("words", "expected"), [
    (["--task", "unheard"], "--task unheard=ITEMS"), (["--task", "t=x"], "TASK=ITEMS"), (["base"], "two evaluations"),
    ([], "--task hellaswag"), (["--task", "hellaswag", "--margin", "0"], "--margin 0"),
    (["--task", "hellaswag", "--discordance", "nan"], "--discordance nan"),
])
def test_a_plan_that_cannot_be_made_is_one_line(words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "plan-items", *words) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1
