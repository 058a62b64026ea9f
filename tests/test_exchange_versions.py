"""Files of lm-eval's older versions, and the folders in which people keep them: what is left out is said."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aftertune.comparison import compare
from aftertune.errors import InputError
from aftertune.exchange import audit, import_results
from aftertune.ledger import Ledger
from aftertune.values import Evaluation
from cli_cases import call, settle
from exchange_cases import BASE_RIGHT, STAMP, TUNED_RIGHT, lm_eval_folder

DATA = Path(__file__).parent / "data" / "exchange"
RESULTS = f"results_{STAMP}.json"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def single(path: Path, ledger: Ledger) -> Evaluation:
    [result] = import_results(path, ledger=ledger)
    assert result.evaluation is not None
    return result.evaluation


def choose(right: tuple[int, ...]) -> list[dict[str, Any]]:
    """The answers to a task with two choices, as lm-eval 0.4.0 to 0.4.2 keep them in memory and in files."""
    return [{"doc_id": i, "doc": {"question": f"é {i}"}, "target": 0, "arguments": [[f"Q{i}", " a"], [f"Q{i}", " b"]],
             "resps": [[[-1.5, False]], [[-2.5 + 2 * (1 - r), False]]],
             "filtered_resps": [[-1.5, False], [-2.5 + 2 * (1 - r), False]], "acc": float(r)}
            for i, r in enumerate(right)]


def old_results(model: str, right: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    """``results.json`` of lm-eval 0.4.0 to 0.4.2."""
    return {"results": {"choose": {"acc,none": sum(right) / len(right), "acc_stderr,none": 0.1, "alias": "choose"}},
            "configs": {"choose": {"task": "choose", "output_type": "multiple_choice", "num_fewshot": 0,
                                   "metric_list": [{"metric": "acc", "aggregation": "mean",
                                                    "higher_is_better": True}]}},
            "versions": {"choose": 1.0}, "n-shot": {"choose": 0}, "git_hash": "abc",
            "config": {"model": "hf", "model_args": f"pretrained={model},dtype=float16", "limit": None}, **changes}


def old_folder(folder: Path, model: str, right: tuple[int, ...], results: str = "results.json", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / results).write_text(json.dumps(old_results(model, right, **changes), indent=2))
    name = f"pretrained__{model.replace('/', '__')},dtype__float16_choose.jsonl"
    (folder / name).write_text(json.dumps(choose(right), indent=2, ensure_ascii=False), encoding="utf-8")
    return folder


def test_0_3_has_scores_without_filters(tmp_path: Path, ledger: Ledger) -> None:
    [result] = import_results(DATA / "results_030.json", ledger=ledger)
    rows = result.reported
    assert [(r.model, r.task, r.metric, r.filter, round(r.value or 0, 4), r.n, r.n_source) for r in rows] == [
        ("org/m", "arc_challenge", "acc", "none", 0.1792, 1172, "known"),
        ("org/m", "arc_challenge", "acc_norm", "none", 0.2116, 1172, "known"),
        ("org/m", "piqa", "acc", "none", 0.6077, 1838, "known")]
    assert rows[0].stderr == 0.011207045216615672
    assert audit(DATA / "results_030.json").ok
    value = json.loads((DATA / "results_030.json").read_text())
    for limit, n in ((50, 50), (50.0, 50), (10**6, 1172), (0.1, None)):
        (tmp_path / "out.json").write_text(json.dumps({**value, "config": {**value["config"], "limit": limit}}))
        [result] = import_results(tmp_path / "out.json", ledger=ledger)
        assert result.reported[0].n == n, "a limited run is not counted as the whole task"


def test_0_4_2_keeps_answers_as_one_array(tmp_path: Path, ledger: Ledger) -> None:
    """Two models in one folder: base.json and tuned.json, with the model's arguments in the names of the answers."""
    old_folder(tmp_path / "out", "org/base", BASE_RIGHT, "base.json")
    old_folder(tmp_path / "out", "org/tuned", TUNED_RIGHT, "tuned.json")
    imported = import_results(tmp_path / "out", ledger=ledger)
    assert [(r.evaluation.name if r.evaluation else "", r.notes) for r in imported] == [("base", ()), ("tuned", ())]
    row = compare("base", "tuned", ledger=ledger).rows[0]
    assert (row.task, row.gained, row.lost, row.n) == ("choose", 1, 5, 12)
    found = ledger.find_evaluation("base")
    assert (found.task("choose").chance, found.dtype) == (0.5, "float16")  # type: ignore[union-attr]
    assert ledger.items(found.id)[3].doc == {"question": "é 3"}
    assert single(tmp_path / "out" / "base.json", ledger).id == found.id


def test_answers_under_one_name_belong_to_the_run_with_their_mean(tmp_path: Path, ledger: Ledger) -> None:
    """0.4.2 overwrites the answers of an earlier run of the same model in the same folder."""
    old_folder(tmp_path / "out", "org/base", BASE_RIGHT, "first.json")
    old_folder(tmp_path / "out", "org/base", TUNED_RIGHT, "second.json")
    first, second = import_results(tmp_path / "out", ledger=ledger)
    assert first.evaluation is None
    assert [r.task for r in first.reported] == ["choose"]
    assert re.search(r"choose: .*the mean of acc,none is 0\.333333, but first\.json states 0\.666667", first.notes[0])
    assert second.evaluation is not None


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_0_4_3_calls_the_answers_json(as_array: bool, packed: bool, tmp_path: Path, ledger: Ledger) -> None:
    folder = lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT, old=True)
    for path in folder.glob("samples_*.jsonl"):
        lines = path.read_text().splitlines()
        path.unlink()
        text = json.dumps([json.loads(line) for line in lines], indent=2) if as_array else "\n".join(lines)
        (path.with_suffix(".json.gz") if packed else path.with_suffix(".json")).write_bytes(
            gzip.compress(text.encode()) if packed else text.encode())
    if packed:
        (folder / f"{RESULTS}.gz").write_bytes(gzip.compress((folder / RESULTS).read_bytes()))
        (folder / RESULTS).unlink()
    [result] = import_results(tmp_path / "out", ledger=ledger)
    assert result.evaluation is not None
    assert result.notes == ()
    assert [t.task for t in result.evaluation.tasks] == ["choose", "write"]


def test_what_simple_evaluate_returns_has_its_answers_inside(tmp_path: Path, ledger: Ledger) -> None:
    value = {**old_results("org/base", BASE_RIGHT), "samples": {"choose": choose(BASE_RIGHT)}}
    (tmp_path / "dump.json").write_text(json.dumps(value))
    found = single(tmp_path / "dump.json", ledger)
    assert [a.metrics["acc,none"] for a in ledger.answers(found.id)] == list(BASE_RIGHT)
    value["samples"]["choose"][3]["resps"] = []
    (tmp_path / "dump.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"dump\.json: `samples\.choose`, entry 4: 2 requests .* and 0 responses"):
        import_results(tmp_path / "dump.json", ledger=ledger)


def test_groups_before_0_4_2_are_read_from_the_indentation(tmp_path: Path, ledger: Ledger) -> None:
    rows = {"all": {"alias": "all", "acc,none": 0.5}, "left": {"alias": " - left", "acc,none": 0.5},
            "choose": {"alias": "  - choose", "acc,none": 8 / 12}, "other": {"alias": "other", "acc,none": 0.4}}
    folder = old_folder(tmp_path / "out", "org/base", BASE_RIGHT, results="r.json", groups={
        "all": rows["all"], "left": rows["left"]})
    value = json.loads((folder / "r.json").read_text()) | {"results": rows}
    (folder / "r.json").write_text(json.dumps(value))
    [result] = import_results(folder, ledger=ledger)
    assert result.evaluation is not None
    assert result.evaluation.task("choose").groups == ("all", "left")  # type: ignore[union-attr]
    assert [r.task for r in result.reported] == ["other"]


def test_the_direction_of_a_metric_without_a_statement_is_that_of_the_catalog(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "r.json").write_text(json.dumps(old_results("m", BASE_RIGHT, configs={}, results={
        "choose": {"word_perplexity,none": 12.5, "acc,none": 8 / 12}}, samples={"choose": choose(BASE_RIGHT)})))
    assert single(tmp_path / "r.json", ledger).tasks[0].higher_is_better == {"word_perplexity": False, "acc": True}


def test_the_audit_is_told_what_is_no_share_of_items(tmp_path: Path) -> None:
    """Unweighted groups, tasks with an aggregation of their own, and truthfulqa_mc2; a pooled group is one."""
    rows = {"a": 0.5, "b": 0.3, "pooled": 0.45, "plain": 0.4, "odd": 0.1234567, "truthfulqa_mc2": 0.4066123}
    results = {t: {"acc,none": v, "acc_stderr,none": 0.01} for t, v in rows.items()}
    value = old_results("org/m", BASE_RIGHT, results=results,
                        group_subtasks={"pooled": ["a", "b"], "plain": ["a", "b"]},
                        configs={"odd": {"metric_list": [{"metric": "acc", "aggregation": "def mine(x): ..."}]}},
                        **{"n-samples": {t: {"effective": n, "original": n} for t, n in
                                         (("a", 300), ("b", 100), ("odd", 100), ("truthfulqa_mc2", 817))}})
    (tmp_path / "r.json").write_text(json.dumps(value))
    checks = {c.row.task: c for c in audit(tmp_path / "r.json").checks}
    assert {t: (c.row.mean_of, c.row.n) for t, c in checks.items() if c.row.mean_of} == {
        "plain": ("the scores of tasks", 400), "odd": ("the task's own aggregation", 100),
        "truthfulqa_mc2": ("the probability of the true answers", 817)}
    assert (checks["pooled"].row.n, checks["pooled"].value_ok, checks["pooled"].stderr_ok) == (400, True, None)
    assert all(c.value_ok is None for t, c in checks.items() if t in ("plain", "odd", "truthfulqa_mc2"))


# Folders

def test_a_folder_is_read_whole_and_what_is_left_is_said(tmp_path: Path, ledger: Ledger) -> None:
    out = tmp_path / "out"
    lm_eval_folder(out / "deep" / "er", "org/base", BASE_RIGHT)
    lm_eval_folder(out / "deep" / "er", "org/tuned", TUNED_RIGHT, old=True)
    lm_eval_folder(out, "org/base", BASE_RIGHT, stamp="2025-03-09T10-00-00.1", date=1741514400.0)
    shutil.copy(DATA / "results_030.json", out)
    (out / "config.json").write_text("{}")
    (out / "tokenizer.json").write_text("[]")
    (out / "results_of_mine.json").write_text('{"score": 1}')
    (out / "samples_lost_2025-01-01T00-00-00.1.jsonl").write_text("{}\n")
    imported = import_results(out, ledger=ledger)
    assert sorted(r.evaluation.name for r in imported if r.evaluation) == ["base", "org-base", "tuned"]
    assert sum(len(r.reported) for r in imported) == 3
    notes = "\n".join(note for r in imported for note in r.notes)
    assert "results_of_mine.json: not a results file that is known: the JSON has no object `results` (its keys" in notes
    assert "hold no results: config.json, tokenizer.json" in notes
    assert "no results of the same run beside them: samples_lost_2025-01-01T00-00-00.1.jsonl" in notes
    again = import_results(out, ledger=ledger)
    assert [r.new for r in again if r.evaluation] == [False] * 3
    assert len(ledger.reported()) == 3


def test_one_file_that_cannot_be_read_does_not_cost_the_others(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    settle(monkeypatch, tmp_path)
    lm_eval_folder(tmp_path / "out", "org/base", BASE_RIGHT)
    broken = lm_eval_folder(tmp_path / "out", "org/tuned", TUNED_RIGHT)
    path = broken / f"samples_write_{STAMP}.jsonl"
    path.write_text(path.read_text()[:-40])
    assert call(monkeypatch, "import", "out") == 2
    out, err = capfd.readouterr()
    assert "evaluation e-" in out
    assert "not imported: out/org__tuned/samples_write" in out
    assert err.startswith("aftertune: 1 of 2 results files could not be read, the others were imported: out/org__tun")
    assert err.count("\n") == 1
    assert call(monkeypatch, "import", "out", "--json") == 2
    first, second = json.loads(capfd.readouterr().out)["imported"]
    assert (first["name"], first["error"], second["evaluation"]) == ("base", None, None)
    assert "not valid JSON" in second["error"]


@pytest.mark.parametrize(("files", "said"), [
    ({}, "no results_.*nor anything else that can be imported"),
    ({"config.json": "{}"}, "no results_.*nor anything else"),
    ({"results_x.json": '{"a": 1}'}, "results_x.json: not a results file that is known: .*'a'"),
    ({"results_x.json": '{"results": ['}, "results_x.json: not valid JSON"),
    ({"results_x.json": "[1, 2]"}, "the JSON is a list"),
    ({"results_x.json": '{"results": {"a": {"alias": "a"}}}'}, "no score that can be read"),
    ({"samples_a_2025-01-01T00-00-00.1.jsonl": "{}"}, "1 files with answers .* but no results_"),
    ({"samples_a_2025-01-01T00-00-00.1.json": '[{"doc_id": 0}]'}, "a samples file alone"),
    ({"details_a_2025-01-01T00-00-00.1.parquet": ""}, "1 files with answers")])
def test_a_folder_without_results_is_refused_in_one_line(files: dict[str, str], said: str, tmp_path: Path,
                                                         ledger: Ledger) -> None:
    (tmp_path / "out").mkdir()
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        import_results(tmp_path / "out", ledger=ledger)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["notes.txt", "data.csv", f"details_t_{STAMP}.parquet", f"samples_t_{STAMP}.json"])
def test_a_file_that_is_no_results_file_is_refused_with_what_is_allowed(name: str, tmp_path: Path, ledger: Ledger
                                                                        ) -> None:
    (tmp_path / name).write_text('[{"doc_id": 0}]')
    (tmp_path / RESULTS).write_text(json.dumps(old_results("m", BASE_RIGHT)))
    with pytest.raises(InputError, match=f"allowed are results of lm-eval|of the same time, here {RESULTS}"):
        import_results(tmp_path / name, ledger=ledger)


# Names

def test_imports_of_one_name_get_names_that_differ(tmp_path: Path, ledger: Ledger) -> None:
    for number, model in enumerate(("runs/a/checkpoint-500", "runs/b/checkpoint-500", "runs/a/checkpoint-500")):
        lm_eval_folder(tmp_path / str(number), model, (BASE_RIGHT, TUNED_RIGHT, TUNED_RIGHT)[number])
    names = [single(tmp_path / str(n), ledger).name for n in (0, 1, 2, 0, 1, 2)]
    assert names == ["checkpoint-500", "b-checkpoint-500", "a-checkpoint-500"] * 2
    assert [ledger.find_evaluation(name).name for name in names] == names
    with pytest.raises(InputError, match=r"--name checkpoint-500: evaluation e-.* has this name"):
        import_results(lm_eval_folder(tmp_path / "3", "m", TUNED_RIGHT), ledger=ledger, name="checkpoint-500")


def test_results_files_of_one_name_are_documents_of_their_own(tmp_path: Path, ledger: Ledger) -> None:
    """0.4.2 calls every file results.json, so two of them must not replace each other."""
    for number, model in enumerate(("org/a", "org/b")):
        (tmp_path / str(number) / "out").mkdir(parents=True)
        (tmp_path / str(number) / "out" / "results.json").write_text(json.dumps(old_results(model, BASE_RIGHT)))
        import_results(tmp_path / str(number), ledger=ledger)
    assert {(r["source"], r["model"]) for r in ledger.reported()} == {
        ("out/results.json", "org/a"), ("1/out/results.json", "org/b")}
    (tmp_path / "0" / "out" / "results.json").write_text(json.dumps(old_results("org/a", TUNED_RIGHT)))
    import_results(tmp_path / "0", ledger=ledger)
    assert len(ledger.reported()) == 2, "a new version of a document replaces the old one"


def test_what_was_imported_before_is_known_by_its_id(tmp_path: Path, ledger: Ledger) -> None:
    """The ids that commit 6627cb2 gave."""
    assert single(lm_eval_folder(tmp_path / "new", "org/base", BASE_RIGHT), ledger).id == "e-9a2c769d14"
    assert single(lm_eval_folder(tmp_path / "old", "org/base", TUNED_RIGHT, old=True), ledger).id == "e-8e44f9a1df"
