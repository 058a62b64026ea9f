"""The gate: what is proven, what fails, what its words and its JUnit XML say, and the snippet of its document."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ruamel.yaml import YAML

import early_cases
from aftertune.cli import app
from aftertune.cli.console import guarded
from aftertune.comparison import compare
from aftertune.comparison.gate import gate
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.report import annotation, gate_text, write_junit
from test_comparison import ADAPTED, BASE, evaluated, right, settings

DOCUMENT = Path(__file__).parent.parent / "docs" / "gate.md"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of which one lost, one held, one gained, one is too small, and one is at the floor."""
    tasks = {"lost": (400, 300, 200), "held": (2000, 1000, 1000), "gained": (400, 200, 300), "small": (40, 30, 29),
             "floor": (300, 75, 75)}
    path = tmp_path_factory.mktemp("gate") / "l.db"
    with Ledger(path) as opened:
        for side, (name, model) in enumerate((("base", BASE), ("tuned", ADAPTED)), start=1):
            evaluated(opened, name, model, [(settings(t, v[0]), right(v[side], v[0])) for t, v in tasks.items()])
    return path


@pytest.fixture
def ledger(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A copy of the stored ledger for each test."""
    for file in stored.parent.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(tmp_path / "l.db"))
    with Ledger() as opened:
        yield opened


@pytest.mark.parametrize(("task", "outcome", "strict"), [
    ("lost", "dropped", True), ("held", "held", False), ("gained", "held", False), ("small", "open", True),
    ("floor", "floor", True)])
def test_outcomes(ledger: Ledger, task: str, outcome: str, strict: bool) -> None:
    _, (line,) = gate("base", "tuned", {task: .02}, ledger=ledger)
    assert (line.outcome, line.failed) == (outcome, outcome == "dropped")
    _, (line,) = gate("base", "tuned", {task: .02}, ledger=ledger, require_proof=True)
    assert (line.outcome, line.failed) == (outcome, strict)
    assert ledger.comparisons() == []


def test_a_limit_is_the_margin_of_its_test(ledger: Ledger) -> None:
    """25 points were lost: proven beyond 2, proven to be less than 40, and neither at 25."""
    outcomes = [gate("base", "tuned", {"lost": limit}, ledger=ledger)[1][0].outcome for limit in (.02, .25, .40)]
    assert outcomes == ["dropped", "open", "held"]


def test_the_limits_are_the_family(ledger: Ledger) -> None:
    found, lines = gate("base", "tuned", {"lost": .02, "held": .02}, ledger=ledger)
    assert [line.task for line in lines] == ["lost", "held"]
    assert {r.task for r in found.rows} == {"lost", "held"}
    alone = gate("base", "tuned", {"lost": .02}, ledger=ledger)[1][0].row
    all_of_them = next(r for r in compare("base", "tuned", ledger=ledger).rows if r.task == "lost")
    assert alone.p_adjusted == alone.p
    assert all_of_them.p_adjusted == pytest.approx(5 * alone.p)


def test_a_task_without_a_verdict_of_its_own(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no task 'lsot'"):
        gate("base", "tuned", {"lsot": .02}, ledger=ledger)


def test_words(ledger: Ledger) -> None:
    _, lines = gate("base", "tuned", {"lost": .02, "held": .02, "small": .02, "floor": .02}, ledger=ledger)
    lost, held, small, floor = map(gate_text, lines)
    assert lost.startswith("FAILED  lost: a drop of more than 2.00 points is proven (−25.00, 95 % interval −29.")
    assert held.startswith("passed  held: proven: no drop of more than 2.00 points (0.00")
    assert small.startswith("passed  small: neither a drop of more than 2.00 points nor its absence is proven (−2.50")
    assert floor.startswith("skipped floor: the base is at the floor")


def test_junit_is_valid_and_escaped(ledger: Ledger) -> None:
    _, lines = gate("base", "tuned", {"lost": .02, "held": .02, "floor": .02}, ledger=ledger)
    hostile = replace(lines[0], task='<b>&"\x00\ud800\uffff')
    text = write_junit([hostile, *lines[1:]], title="a & b <c> \x1b")
    suite = ElementTree.fromstring(text.encode())[0]
    assert suite.attrib == {"name": "aftertune gate: a & b <c> ⟨U+001B⟩", "tests": "3", "failures": "1", "skipped": "1",
                            "errors": "0"}
    assert suite[0].attrib["name"] == '<b>&"⟨U+0000⟩⟨U+D800⟩⟨U+FFFF⟩: at most 2.00 points lost'
    assert [child.tag for case in suite for child in case] == ["failure", "system-out", "skipped"]


def test_a_task_that_was_stopped_early_is_judged_by_its_test_about_the_models(ledger: Ledger) -> None:
    """64 of 1,000 items show a drop beyond 2 points; whether it is beyond 40 they do not, nor that it is not."""
    base, tuned = early_cases.changed(1000, .8, 10, 400)
    early_cases.store(ledger, "whole", early_cases.BASE, {"t": base})
    early_cases.store(ledger, "part", early_cases.ADAPTED, {"t": tuned}, used={"t": 64})
    _, (line,) = gate("whole", "part", {"t": .02}, ledger=ledger)
    assert line.outcome == "dropped"
    assert "a drop of more than 2.00 points is proven" in gate_text(line)
    assert "the interval is for the models" in gate_text(line)
    assert "stopped early after 64 of 1,000: an early estimate, not the score" in gate_text(line)
    assert gate("whole", "part", {"t": .40}, ledger=ledger)[1][0].outcome == "open"
    held = gate("whole", "part", {"t": .70}, ledger=ledger)[1][0]
    assert held.outcome == "held"
    assert held.row.low > -.70


def test_what_was_stopped_because_it_was_kept_holds_its_limit(ledger: Ledger) -> None:
    """"within" is proven at half of the error level on each side, and the interval at 0.4 of it."""
    base, tuned = early_cases.changed(4000, .6, 60, 60, seed=3)
    early_cases.store(ledger, "whole", early_cases.BASE, {"t": base})
    early_cases.store(ledger, "part", early_cases.ADAPTED, {"t": tuned}, used={"t": 1287})
    _, (line,) = gate("whole", "part", {"t": .02}, ledger=ledger, require_proof=True)
    assert line.row.verdict == "within"
    assert line.row.low < -.02
    assert (line.outcome, line.failed) == ("held", False)


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["aftertune", "gate", "base", *words])
    return guarded(app)


def test_the_verb(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "tuned", "--max-drop", "held=2", "--max-drop", "small=2") == 0
    assert capsys.readouterr().out.count("passed") == 2
    assert call(monkeypatch, "tuned", "--max-drop", "small=2", "--require-proof") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "Whether tuned is fit to ship is not known: small is undecided."
    assert out.splitlines()[1].startswith("FAILED  small")
    assert "aftertune flips base tuned --task small --lost" in err
    xml = tmp_path / "gate.xml"
    assert call(monkeypatch, "tuned", "--max-drop", "lost=2", "--junit", str(xml), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["limits"][0]["outcome"]) == (False, "dropped")
    assert (found["headline"]["state"], found["headline"]["lost"]) == ("lost", ["lost"])
    suite = ElementTree.parse(xml).getroot()[0]
    assert suite.attrib["failures"] == "1"
    assert suite[0][0].attrib == {"name": "headline", "value": " ".join(found["headline"]["sentences"])}


@pytest.mark.parametrize("limit", ["held", "held=0", "held=x", "=2", "held=101", "held=nan"])
def test_limits_that_are_none(ledger: Ledger, limit: str, monkeypatch: pytest.MonkeyPatch,
                              capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "tuned", "--max-drop", limit) == 2
    said = "a share, so allowed are points above 0, up to 100" if limit == "held=101" else "write TASK=VALUE"
    assert said in capsys.readouterr().err


def test_what_is_not_comparable_is_no_pass(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(ledger, "five", ADAPTED, [(settings("held", 2000, num_fewshot=5), right(1000, 2000))])
    xml = tmp_path / "gate.xml"
    assert call(monkeypatch, "five", "--max-drop", "held=2", "--junit", str(xml), "--json") == 3
    assert json.loads(capsys.readouterr().out)["passed"] is False
    suite = ElementTree.parse(xml).getroot()[0]
    assert suite.attrib["errors"] == "1"
    assert "num_fewshot" in suite[0][0].attrib["message"]


def test_the_workflows_of_the_document() -> None:
    """They parse, each of their commands is one that the command line knows, and both use one key of the cache."""
    base, gated, step = (YAML(typ="safe").load(block) for block in
                         re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S))
    steps = {"base": base["jobs"]["base"]["steps"], "gate": gated["jobs"]["gate"]["steps"]}
    assert all("uses" in s or "run" in s for job in steps.values() for s in job)
    keys = {s["with"]["key"] for job in steps.values() for s in job if "actions/cache" in s.get("uses", "")}
    assert len(keys) == 1
    assert [s["uses"] for s in steps["base"] if "cache" in s.get("uses", "")] == ["actions/cache/restore@v4",
                                                                                 "actions/cache/save@v4"]
    asked = [[s["run"] for s in job if s.get("run", "").startswith("aftertune eval")] for job in steps.values()]
    assert asked[0][0] == asked[1][0]
    last = [s["run"] for s in steps["gate"] if "run" in s][-1].split()
    assert last[:3] == ["aftertune", "gate", "base"]
    assert any(s.get("with", {}).get("path") == last[last.index("--junit") + 1] for s in steps["gate"])
    action = YAML(typ="safe").load((DOCUMENT.parents[1] / "action.yml").read_text(encoding="utf-8"))
    given = step[0]["with"]
    assert set(given) <= set(action["inputs"])
    assert {name for name, value in action["inputs"].items() if value["required"]} <= set(given)
    assert action["inputs"]["cache-key"]["default"] in keys


def test_a_limit_without_proof_is_skipped_in_junit(ledger: Ledger) -> None:
    _, lines = gate("base", "tuned", {"held": .02, "small": .02}, ledger=ledger)
    suite = ElementTree.fromstring(write_junit(lines, title="t").encode())[0]
    assert [child.tag for case in suite for child in case] == ["system-out", "skipped"]
    assert suite.attrib["skipped"] == "1"
    _, strict = gate("base", "tuned", {"small": .02}, ledger=ledger, require_proof=True)
    suite = ElementTree.fromstring(write_junit(strict, title="t").encode())[0]
    assert (suite.attrib["failures"], suite.attrib["skipped"]) == ("1", "0")


def test_github_shows_what_failed_and_what_is_open(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    limits = ["--max-drop", "lost=2", "--max-drop", "held=2", "--max-drop", "small=2"]
    assert call(monkeypatch, "tuned", *limits) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.partition("::")[2].split()[0] for line in out if line.startswith("::")] == ["error", "warning"]
    assert out[0].startswith("::error title=lost%3A at most 2.00 points lost::a drop of more than 2.00 points is ")
    assert "95 %25 interval" in out[0]
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n### aftertune gate: failed for 1 of 3 limits\n")
    assert [line.split("|")[3].strip() for line in text.splitlines() if line.startswith("| ")][1:] == [
        "---", "**failed**", "**passed**", "**passed, not proven**"]
    assert call(monkeypatch, "tuned", *limits, "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["passed"] is False
    assert err.count("::error title=lost") == 1
    assert call(monkeypatch, "tuned", *limits, "--no-github") == 1
    assert "::" not in capsys.readouterr().out
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert call(monkeypatch, "tuned", "--max-drop", "held=2") == 0
    assert "GITHUB_STEP_SUMMARY" in capsys.readouterr().err


def test_an_annotation_stays_one_command() -> None:
    assert annotation("error", "a: b, 5 %", "x\n::error::y 5 %") == (
        "::error title=a%3A b%2C 5 %25::x%0A::error::y 5 %25")
