"""inspect_ai's logs: real ones of version 0.3.285 (a mock model; the events were cut out), packed and as JSON.

quiz: 12 questions with four choices, the first two answers cut off. sums: 10 of 12 questions in 2 epochs, 3 scorers.
"""

from __future__ import annotations

import json
import shutil
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aftertune.comparison import compare
from aftertune.errors import InputError, ResourceError
from aftertune.exchange import audit, import_results
from aftertune.exchange.importing import ImportedResult
from aftertune.ledger import Ledger
from cli_cases import call, settle
from exchange_cases import BASE_RIGHT

DATA = Path(__file__).parent / "data" / "exchange"
QUIZ, SUMS, PACKED = (DATA / f"inspect_base_{name}" for name in ("quiz.json", "sums.json", "quiz.eval"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def one(path: Path, ledger: Ledger) -> ImportedResult:
    [result] = import_results(path, ledger=ledger)
    return result


def changed(tmp_path: Path, source: Path = QUIZ, **changes: Any) -> Path:
    """A log with changes at its top level."""
    path = tmp_path / "log.json"
    path.write_text(json.dumps(json.loads(source.read_text()) | changes))
    return path


def test_a_log_becomes_an_evaluation(ledger: Ledger) -> None:
    found = one(QUIZ, ledger).evaluation
    assert found is not None
    assert (found.name, found.model.source, found.engine) == ("base", "base", "inspect_ai:mockllm")
    assert found.provenance is not None
    assert found.provenance.versions == {"inspect_ai": "0.3.285"}
    assert found.provenance.started.startswith("2026-11-29T22:01")
    [task] = found.tasks
    assert (task.task, task.n, task.n_total, task.primary, task.chance) == ("quiz", 12, 12, "acc,none", 0.25)
    assert [(s.key, round(s.value, 4), round(s.stderr or 0, 4)) for s in found.scores] == [("acc,none", 0.6667, 0.1421)]
    answers = ledger.answers(found.id)
    assert [a.metrics["acc,none"] for a in sorted(answers, key=lambda a: int(
        ledger.items(found.id)[a.index].doc["input"].rpartition(" ")[2].rstrip("?")))] == list(BASE_RIGHT)
    ends = [a.responses[0].finish for a in answers]
    assert (ends.count("length"), ends.count("eos")) == (2, 10)
    assert {r.truncated for a in answers for r in a.responses} == {None}
    assert answers[0].extracted == {"none": "A"}
    assert ledger.items(found.id)[0].doc == {"input": "Which letter is number 0?", "target": "A",
                                             "choices": ["alpha", "beta", "gamma", "delta"]}
    assert audit(QUIZ).ok


def test_several_scorers_and_epochs(ledger: Ledger) -> None:
    result = one(SUMS, ledger)
    found = result.evaluation
    assert found is not None
    assert {(s.key, s.value) for s in found.scores} == {
        ("acc,match", 0.1), ("mean,words", 1.0), ("mean,short", 1.0), ("mean,long", 0.5)}
    [task] = found.tasks
    assert (task.n, task.n_total, task.primary, task.version) == (10, 12, "acc,match", "3")
    answer = ledger.answers(found.id)[0]
    assert [r.text for r in answer.responses] == ["0", "10"]  # one text for each epoch
    assert (answer.metrics["acc,match"], answer.metrics["mean,long"]) == (1.0, 0.5)
    assert ledger.items(found.id)[0].doc["input"].startswith("What is 0+0? x x")
    bare = one(DATA / "inspect_tuned_sums.json", ledger).evaluation
    assert bare is not None
    assert 0.5 in {a.metrics["acc,match"] for a in ledger.answers(bare.id)}  # right in one epoch of two


def test_two_models_pair(ledger: Ledger) -> None:
    for model in ("base", "tuned"):
        for task in ("quiz", "sums"):
            import_results(DATA / f"inspect_{model}_{task}.json", ledger=ledger)
    assert [e.name for e in ledger.evaluations()] == ["base", "base-sums", "tuned", "tuned-sums"]
    comparison = compare("base", "tuned", ledger=ledger)
    assert comparison.differences == ()
    assert [(r.task, r.metric, r.gained, r.lost) for r in comparison.rows] == [("quiz", "acc", 1, 5)]
    [form] = comparison.forms
    assert (form.base.cut_off, form.base.unknown_end) == (2, 0)


def test_logs_of_one_run_are_one_evaluation(tmp_path: Path, ledger: Ledger) -> None:
    for path in (QUIZ, SUMS):
        value = json.loads(path.read_text())
        value["eval"]["run_id"] = "one"
        (tmp_path / path.name).write_text(json.dumps(value))
    found = one(tmp_path, ledger).evaluation
    assert found is not None
    assert [t.task for t in found.tasks] == ["quiz", "sums"]


def test_samples_without_a_score_are_left_out_with_a_note(tmp_path: Path, ledger: Ledger) -> None:
    value = json.loads(QUIZ.read_text())
    value["samples"][3] |= {"error": {"message": "boom"}, "scores": None}
    for reduction in value["reductions"]:
        reduction["samples"] = [s for s in reduction["samples"] if s["sample_id"] != value["samples"][3]["id"]]
    score = value["results"]["scores"][0]
    score["scored_samples"] = 11
    wrong = value["samples"][3]["output"]["completion"].endswith("B")
    score["metrics"]["accuracy"]["value"] = 8 / 11 if wrong else 7 / 11
    path = tmp_path / "log.json"
    path.write_text(json.dumps(value))
    result = one(path, ledger)
    assert result.evaluation is not None
    assert (result.evaluation.tasks[0].n, result.evaluation.tasks[0].n_total) == (11, 12)
    assert "1 samples have no score" in result.notes[0]


def test_without_samples_or_with_scores_of_another_kind_the_scores_are_reported(tmp_path: Path, ledger: Ledger) -> None:
    result = one(changed(tmp_path, samples=None), ledger)
    assert result.evaluation is None
    assert [(r.task, r.metric, r.n) for r in result.reported] == [("quiz", "acc", 12)]
    results = json.loads(QUIZ.read_text())["results"]
    results["scores"][0]["metrics"]["accuracy"]["value"] = 0.9
    result = one(changed(tmp_path, results=results), ledger)
    assert result.evaluation is None
    assert "its scores are imported without answers" in result.notes[0]


@pytest.mark.parametrize(("changes", "said"), [
    ({"status": "error", "error": {"message": "no\nnet"}}, r"the run did not finish \(status 'error': no net\)"),
    ({"status": "started", "results": None}, "the run did not finish"), ({"results": None}, "no results"),
    ({"results": {"scores": []}}, "no score that can be read")])
def test_a_run_that_did_not_finish_is_refused(changes: Any, said: str, tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(InputError, match=said) as caught:
        import_results(changed(tmp_path, **changes), ledger=ledger)
    assert "\n" not in str(caught.value)


# Packed logs

def test_a_packed_log_needs_inspect_ai_and_one_line_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with Ledger() as ledger, pytest.raises(ResourceError, match="pip install 'aftertune\\[inspect\\]'"):
        import_results(PACKED, ledger=ledger)
    for name in (PACKED, QUIZ):
        shutil.copy(name, tmp_path)
    assert call(monkeypatch, "import", ".") == 2
    out, err = capfd.readouterr()
    assert "evaluation e-" in out  # the other log
    assert "1 of 2 results files could not be read" in err
    assert "pip install 'aftertune[inspect]'" in err


def test_a_packed_log_is_read_through_inspect_ais_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                         ledger: Ledger) -> None:
    """With a stand-in for the reader; the next test uses the real one where it is installed."""
    class Log:
        def model_dump(self, **options: Any) -> Any:
            assert options["mode"] == "json"
            return json.loads(QUIZ.read_text())

    module = types.ModuleType("inspect_ai.log")
    module.read_eval_log = lambda path: Log()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inspect_ai", types.ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.log", module)
    found = one(PACKED, ledger).evaluation
    assert found is not None
    assert one(QUIZ, ledger).evaluation == found

    def fails(path: str) -> Log:
        raise KeyError("header\n.json")

    module.read_eval_log = fails  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="inspect_ai cannot read this log") as caught:
        import_results(PACKED, ledger=ledger)
    assert "\n" not in str(caught.value)


def test_a_packed_log_with_the_real_reader(ledger: Ledger) -> None:
    pytest.importorskip("inspect_ai")
    found = one(PACKED, ledger).evaluation
    assert found is not None
    assert [(s.key, round(s.value, 4)) for s in found.scores] == [("acc,none", 0.6667)]


def test_what_is_no_packed_log_is_said(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.eval"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="not a log of inspect_ai"):
        import_results(path, ledger=ledger)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("header.json", "{}")
    monkeypatch.setattr("aftertune.exchange.inspect_logs._LIMIT", 1)
    with pytest.raises(InputError, match="2 bytes unpacked, but the limit is 1"):
        import_results(path, ledger=ledger)
