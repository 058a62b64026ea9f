"""Every Eval Ever's schema: an export has what it asks for and comes back whole, and files of others are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import test_exchange_exporting
from aftertune.comparison import compare
from aftertune.errors import InputError
from aftertune.exchange import audit, export_every_eval_ever, import_results, stored_answers
from aftertune.exchange.importing import ImportedResult
from aftertune.ledger import Ledger
from cli_cases import call
from exchange_cases import BASE_RIGHT, TUNED_RIGHT

#: Two evaluations of tiny models on two tasks.
measured = test_exchange_exporting.measured
N = len(BASE_RIGHT)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def exported(ledger: Ledger, name: str, folder: Path) -> Any:
    found = ledger.find_evaluation(name)
    return export_every_eval_ever(found, stored_answers(ledger, found), folder=folder, prompts={})


def test_an_audit_reads_no_answers_and_writes_nothing(measured: Ledger, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """It put all answers into a temporary database, to read only the scores of the file beside them."""
    [pair, *_], _ = exported(measured, "first", tmp_path)
    expected = audit(pair.results)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no such folder"))
    assert audit(pair.results) == expected
    assert expected.checks
    (samples,) = tmp_path.rglob(f"{pair.results.stem}*.jsonl")
    samples.write_text("not read")
    assert audit(pair.results) == expected


# Out

def test_an_export_has_what_the_schema_requires(measured: Ledger, tmp_path: Path) -> None:
    """The rules of eval.schema.json and instance_level_eval.schema.json 0.3.0 that the fields fall under."""
    pairs, left_out = exported(measured, "first", tmp_path)
    assert left_out == ()
    assert len(pairs) == len(measured.find_evaluation("first").tasks)
    for pair in pairs:
        value = json.loads(pair.results.read_text())
        assert value.keys() == {
            "schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info", "eval_library",
            "evaluation_results", "detailed_evaluation_results", "evaluation_timestamp"}
        source = value["source_metadata"]
        assert (source["source_type"], source["evaluator_relationship"]) == ("evaluation_run", "other")
        details = value["model_info"]["additional_details"]
        assert details["deployment_type"] == "self_deployed"
        assert details["model_availability"] == "unknown"
        assert all(isinstance(v, str) for d in (details, value["eval_library"]["additional_details"])
                   for v in d.values())
        for result in value["evaluation_results"]:
            assert {"evaluation_name", "source_data", "metric_config", "score_details"} <= result.keys()
            config = result["metric_config"]
            assert isinstance(config["lower_is_better"], bool)
            assert ("score_type" in config) == ("min_score" in config and "max_score" in config)
            assert isinstance(result["score_details"]["score"], float)
        text = pair.samples.read_text()
        file = value["detailed_evaluation_results"]
        assert re.fullmatch(r"data/[^/]+/[^/]+/[^/]+/[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                            r"[0-9a-f]{12}_samples\.jsonl", file["file_path"])
        assert (tmp_path / file["file_path"]) == pair.samples
        assert file["checksum"] == hashlib.sha256(text.encode()).hexdigest()
        rows = [json.loads(line) for line in text.splitlines()]
        assert file["total_rows"] == len(rows)
        ids = {r["evaluation_result_id"] for r in value["evaluation_results"]}
        for row in rows:
            assert row["evaluation_result_id"] in ids
            assert row["evaluation_id"] == value["evaluation_id"]
            assert (row["interaction_type"], row["model_id"]) == ("single_turn", value["model_info"]["id"])
            assert all(isinstance(x, str) for x in (*row["input"]["reference"], *row["output"]["raw"],
                                                    *row["metadata"].values(), row["input"]["raw"]))
            assert isinstance(row["evaluation"]["is_correct"], bool)
    assert exported(measured, "first", tmp_path)[0] == pairs


def test_an_export_comes_back_whole(measured: Ledger, tmp_path: Path, ledger: Ledger) -> None:
    source = measured.find_evaluation("first")
    exported(measured, "first", tmp_path / "out")
    [result] = import_results(tmp_path / "out", ledger=ledger)
    found = result.evaluation
    assert found is not None
    assert sorted(found.tasks, key=lambda t: t.task) == sorted(source.tasks, key=lambda t: t.task)
    for task in source.tasks:
        assert ledger.items(found.id, task.task) == [
            type(i)(task=i.task, index=i.index, hash=i.hash, doc=i.doc, cluster=i.cluster)
            for i in measured.items(source.id, task.task)]
        both = measured.answers(source.id, task.task), ledger.answers(found.id, task.task)
        for mine, theirs in zip(*both, strict=True):
            assert mine.metrics == theirs.metrics
            assert mine.responses == theirs.responses
            assert {k: v for k, v in mine.extracted.items() if k in theirs.extracted} == theirs.extracted


def test_no_path_of_this_machine_is_written(measured: Ledger, tmp_path: Path) -> None:
    home = str(Path(measured.find_evaluation("second").model.source).parent)
    pairs, _ = exported(measured, "second", tmp_path)
    for pair in pairs:
        assert home not in pair.results.read_text() + pair.samples.read_text()


def test_the_verb(measured: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(measured.database.path))
    words = ("export", "first", "--format", "every-eval-ever", "--no-prompts", "--out", str(tmp_path))
    assert call(monkeypatch, *words) == 0
    assert capfd.readouterr().out.count("_samples.jsonl") == len(measured.find_evaluation("first").tasks)
    assert call(monkeypatch, *words, "--json") == 0
    assert len(json.loads(capfd.readouterr().out)["results"]) == len(measured.find_evaluation("first").tasks)


# In

def write(folder: Path, model: str, right: tuple[int, ...], *, version: str = "0.3.0", rows: bool = True,
          **changes: Any) -> Path:
    """The files of one run: by a converter that knows result ids (from 0.2.2 on), or by an older one."""
    new = version == "0.3.0"
    mean = sum(right) / N
    config: dict[str, Any] = {"evaluation_description": "Accuracy on quiz", "lower_is_better": False,
                              "score_type": "continuous", "min_score": 0, "max_score": 1}
    result = {"evaluation_name": "quiz", "metric_config": config, "source_data": {
        "source_type": "hf_dataset", "dataset_name": "quiz", "hf_repo": "org/quiz", "samples_number": 50},
        "score_details": {"score": mean, "uncertainty": {"num_samples": N, "standard_error": {"value": 0.1}}},
        "generation_config": {"generation_args": {"temperature": 0, "max_tokens": 8},
                              "additional_details": {"num_fewshot": "5"}}}
    other = {**result, "evaluation_name": "quiz/strict", "evaluation_result_id": "exact_match:strict",
             "metric_config": {**config, "metric_name": "exact_match"}}
    value = {"schema_version": version, "evaluation_id": f"quiz/{model}/1761001924",
             "retrieved_timestamp": "1761001925", "evaluation_timestamp": "1761001924.0", "source_metadata": {
                 "source_type": "evaluation_run", "source_organization_name": "me", "evaluator_relationship": "other"},
             "model_info": {"name": model, "id": model, "inference_engine": {"name": "vllm"},
                            "additional_details": {"dtype": "bfloat16", "num_parameters": "1000"}},
             "eval_library": {"name": "inspect_ai", "version": "0.3.1"},
             "evaluation_results": [{**result, "evaluation_result_id": "acc"}, other] if new else [result], **changes}
    folder.mkdir(parents=True)
    (folder / "a1.json").write_text(json.dumps(value))
    if rows:
        lines = [{"schema_version": version, "evaluation_id": "e", "model_id": model, "evaluation_name": name,
                  "sample_id": f"id{i}", "interaction_type": "single_turn",
                  "input": {"raw": f"question {i}", "reference": ["b"], "choices": ["a", "b"]},
                  "output": {"raw": [f"answer {r}"]}, "evaluation": {"score": float(r), "is_correct": bool(r)},
                  "answer_attribution": [{"turn_idx": 0, "source": "output.raw", "extracted_value": "b",
                                          "extraction_method": "regex", "is_terminal": True}],
                  **({"evaluation_result_id": id_} if new else {})}
                 for name, id_ in (("quiz", "acc"), ("quiz/strict", "exact_match:strict"))[:2 if new else 1]
                 for i, r in enumerate(right)]
        (folder / "a1_samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "a1.json"


def one(path: Path, ledger: Ledger) -> ImportedResult:
    [result] = import_results(path, ledger=ledger)
    return result


@pytest.mark.parametrize("version", ["0.2.0", "0.3.0"])
def test_rows_become_an_evaluation_and_pair(version: str, tmp_path: Path, ledger: Ledger) -> None:
    path = write(tmp_path / "a", "org/base", BASE_RIGHT, version=version)
    write(tmp_path / "b", "org/tuned", TUNED_RIGHT, version=version)
    found = one(path, ledger).evaluation
    assert found is not None
    assert (found.name, found.dtype, found.engine, found.model.parameters) == ("base", "bfloat16", "inspect_ai", 1000)
    assert found.provenance is not None
    assert found.provenance.started.startswith("2025-10-20")
    [task] = found.tasks
    assert (task.task, task.n, task.n_total, task.num_fewshot, task.data, task.chance) == (
        "quiz", N, 50, 5, "hub:org/quiz", 0.5)
    assert task.generation == {"temperature": 0, "max_gen_toks": 8}
    assert {s.key for s in found.scores} == ({"acc,none", "exact_match,strict"} if version == "0.3.0" else {"acc,none"})
    answer = ledger.answers(found.id)[0]
    assert (answer.responses[0].text, answer.responses[0].finish, answer.extracted["none"]) == ("answer 1", None, "b")
    second = one(tmp_path / "b", ledger)
    assert second.evaluation is not None
    row = next(r for r in compare("base", "tuned", ledger=ledger).rows if r.metric == "acc")
    assert (row.gained, row.lost, row.n) == (1, 5, N)


def test_without_rows_the_scores_are_reported(tmp_path: Path, ledger: Ledger) -> None:
    path = write(tmp_path / "a", "org/base", BASE_RIGHT, rows=False, detailed_evaluation_results={
        "format": "jsonl", "file_path": "data/x/y/z/gone_samples.jsonl"})
    result = one(path, ledger)
    assert result.evaluation is None
    assert [(r.task, r.metric, r.filter, r.n, r.n_source) for r in result.reported] == [
        ("quiz", "acc", "none", N, "stated"), ("quiz", "exact_match", "strict", N, "stated")]
    assert "the file with its answers is not beside it" in result.notes[0]


def test_a_leaderboard_with_rounded_figures_is_not_called_impossible(tmp_path: Path, ledger: Ledger) -> None:
    """0.0.1, without a source for each result; 0.4484 of 12,032 items is some k of n as printed."""
    path = write(tmp_path / "a", "org/base", BASE_RIGHT, rows=False, version="0.0.1", evaluation_results=[
        {"evaluation_name": "HellaSwag", "metric_config": {
            "lower_is_better": False, "evaluation_description": "A long description of what is measured, and how"},
         "score_details": {"score": 0.4484}},
        {"evaluation_name": "Speed", "metric_config": {"lower_is_better": True, "metric_name": "seconds, per item"},
         "score_details": {"score": 12.5}}])
    result = one(path, ledger)
    assert [(r.task, r.metric, r.value_text) for r in result.reported] == [
        ("hellaswag", "score", "0.4484"), ("Speed", "seconds; per item", "12.5")]
    assert audit(path).ok


@pytest.mark.parametrize(("change", "said"), [
    (lambda row: row.pop("sample_id"), ":1: no `sample_id`"),
    (lambda row: row.update(input=3), ":1: no `sample_id` or no `input`")])
def test_broken_rows_are_one_line(change: Any, said: str, tmp_path: Path, ledger: Ledger) -> None:
    path = write(tmp_path / "a", "org/base", BASE_RIGHT)
    samples = path.with_name("a1_samples.jsonl")
    row, *rest = [json.loads(line) for line in samples.read_text().splitlines()]
    change(row)
    samples.write_text("".join(json.dumps(r) + "\n" for r in (row, *rest)))
    with pytest.raises(InputError, match=said) as caught:
        import_results(path, ledger=ledger)
    assert "\n" not in str(caught.value)


def test_rows_of_no_result_are_counted(tmp_path: Path, ledger: Ledger) -> None:
    path = write(tmp_path / "a", "org/base", BASE_RIGHT)
    samples = path.with_name("a1_samples.jsonl")
    row = json.loads(samples.read_text().splitlines()[0])
    with samples.open("a") as file:
        file.write(json.dumps({**row, "evaluation_name": "other"}) + "\n")
    assert "1 rows belong to no score" in one(path, ledger).notes[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluation_results": [{"x": 1}]}))
    with pytest.raises(InputError, match="`evaluation_results`, entry 1: no `evaluation_name`"):
        import_results(path, ledger=ledger)
