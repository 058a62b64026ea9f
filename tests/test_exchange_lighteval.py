"""lighteval's results and details, in the forms of 2023 and of versions 0.6 (texts of Python values), 0.9 and 0.13."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from aftertune.comparison import compare
from aftertune.errors import InputError
from aftertune.exchange import audit, import_results
from aftertune.exchange.importing import ImportedResult
from aftertune.ledger import Ledger
from exchange_cases import BASE_RIGHT, TUNED_RIGHT

STAMP = "2025-03-27T10-00-00.000001"
N = len(BASE_RIGHT)
VERSIONS = ("2023", "0.6", "0.9", "0.13")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def task_name(name: str, version: str, shots: int) -> str:
    suite = {"2023": "harness|", "0.13": ""}.get(version, "leaderboard|")
    return f"{suite}{name}|{shots}"


def results_json(model: str, right: tuple[int, ...], version: str) -> dict[str, Any]:
    """The JSON of a results file, with the keys of the version."""
    mean = sum(right) / N
    error = (mean * (1 - mean) / (N - 1)) ** 0.5
    easy, sums, average = (task_name(n, version, s) for n, s in (("arc:easy", 25), ("sums", 5), ("arc:_average", 25)))
    metrics = [{"metric_name": "acc", "higher_is_better": True, "category": "MULTICHOICE", "corpus_level_fn": "mean"},
               {"metric_name": ["rouge1", "rouge2"], "higher_is_better": {"rouge1": True, "rouge2": False}}]
    config = {"name": "arc:easy", "hf_repo": "allenai/ai2_arc", "evaluation_splits": ["test"], "original_num_docs": 50,
              "effective_num_docs": N, "stop_sequence": ["\n"], "generation_size": 8, "version": 0,
              "metrics" if version == "0.13" else "metric": metrics}
    keys = {"0.13": (easy, sums), "2023": (easy, sums)}.get(version, (easy.rpartition("|")[0], sums.rpartition("|")[0]))
    general: dict[str, Any] = {"lighteval_sha": "?", "model_name": model, "total_evaluation_time_secondes": "12.5"}
    general |= {"model_config": {"model_name": model, "revision": "main", "dtype": "bfloat16"}} \
        if version == "0.13" else {"model_sha": "abc", "model_dtype": "torch.bfloat16"}
    return {"config_general": general, "versions": {easy: 0, sums: 0, "all": 0},
            "results": {easy: {"acc": mean, "acc_stderr": error}, sums: {"qem": mean, "qem_stderr": error},
                        average: {"acc": mean, "acc_stderr": error}, "all": {"acc": mean, "qem": mean}},
            "config_tasks": dict.fromkeys(keys, config), "summary_tasks": {}, "summary_general": {}}


def rows(right: tuple[int, ...], version: str, *, generated: bool) -> list[dict[str, Any]]:
    """The details of one task."""
    out = []
    for i, r in enumerate(right):
        texts, choices = [f"answer inf {r}"], ["7"] if generated else [" a", " b", " c"]
        logprobs = [-1.0 if k == (0 if r else 1) else -2.5 for k in range(3)]
        metric = {"qem": float(r)} if generated else {"acc": r, "acc_norm": float(r)}
        if version == "0.13":
            out.append({"doc": {"query": f"question {i}", "choices": choices, "gold_index": [0], "id": str(i),
                                "task_name": "t", "specific": None, "num_samples": 1, "fewshot_samples": []},
                        "metric": metric,
                        "model_response": {"input": f"shots\nquestion {i}", "text": texts if generated else [],
                                           "logprobs": [] if generated else logprobs, "output_tokens": [[1, 2]],
                                           "argmax_logits_eq_gold": [] if generated else [True, False, False],
                                           "truncated_tokens_count": i % 2}})
            continue
        flat = {"example": f"question {i}", "full_prompt": f"[shots]\nquestion {i}", "instruction": "",
                "choices": [] if generated else choices, "gold": choices if generated else [], "gold_index": [0],
                "predictions": texts if generated else logprobs if version != "0.6" else [
                    (p, False) for p in logprobs], "input_tokens": [[1, 2]], "cont_tokens": [[3]],
                "truncated": [i % 2], "padded": [0], "pred_logits": [], "num_asked_few_shots": 5,
                "num_effective_few_shots": 5, "metrics": metric, "specifics": None}
        if version == "0.6":
            flat = {k: str(v) for k, v in flat.items()}
        elif version == "2023":
            flat |= metric
            del flat["metrics"]
        out.append(flat)
    return out


def folder(root: Path, model: str, right: tuple[int, ...], version: str, *, details: bool = True) -> Path:
    """What lighteval leaves below ``root``; returns the results file."""
    place = root if version == "2023" else root / "results" / model
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"results_{STAMP}.json"
    path.write_text(json.dumps(results_json(model, right, version), indent=2))
    beside = root / STAMP if version == "2023" else root / "details" / model / STAMP
    if details:
        beside.mkdir(parents=True)
        for name, shots, generated in (("arc:easy", 25, False), ("sums", 5, True)):
            stamp = STAMP.replace("T10-00-00", "T10:00:00") if version == "2023" else STAMP
            parquet.write_table(pa.Table.from_pylist(rows(right, version, generated=generated)),
                                beside / f"details_{task_name(name, version, shots)}_{stamp}.parquet")
    return path


def one(path: Path, ledger: Ledger) -> ImportedResult:
    [result] = import_results(path, ledger=ledger)
    return result


@pytest.mark.parametrize("version", VERSIONS)
def test_details_become_an_evaluation(version: str, tmp_path: Path, ledger: Ledger) -> None:
    path = folder(tmp_path / "out", "org/base", BASE_RIGHT, version)
    result = one(tmp_path / "out", ledger)
    found = result.evaluation
    assert found is not None
    assert (found.name, found.dtype, found.engine) == ("base", "bfloat16", "lighteval")
    easy, sums = found.tasks
    assert (easy.task, easy.num_fewshot, easy.n, easy.n_total, easy.output_type, easy.chance, easy.data) == (
        "arc:easy", 25, N, 50, "multiple_choice", pytest.approx(1 / 3), "hub:allenai/ai2_arc")
    assert (sums.task, sums.num_fewshot, sums.output_type, sums.primary) == ("sums", 5, "generate_until", "qem,none")
    assert sums.generation == {"until": ["\n"], "max_gen_toks": 8}
    assert [a.metrics["acc,none"] for a in ledger.answers(found.id, "arc:easy")] == list(BASE_RIGHT)
    answer = ledger.answers(found.id, "arc:easy")[0]
    assert [r.logprob for r in answer.responses] == [-1.0, -2.5, -2.5]
    texts = ledger.answers(found.id, "sums")
    assert [(a.responses[0].text, a.responses[0].finish) for a in texts[:2]] == [("answer inf 1", None)] * 2
    assert [a.responses[0].truncated for a in texts[:2]] == [0, 1]
    assert ledger.items(found.id, "sums")[1].doc["query"] == "question 1"
    assert [(s.task, s.group) for s in found.scores] == [("arc:easy", False), ("sums", False), ("arc:_average", True)]
    assert any("`all`" in note for note in result.notes)
    again = one(path, ledger)
    assert (again.new, again.evaluation) == (False, found)
    assert result.reported == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_two_models_pair_by_question(version: str, tmp_path: Path, ledger: Ledger) -> None:
    folder(tmp_path / "base", "org/base", BASE_RIGHT, version)
    folder(tmp_path / "tuned", "org/tuned", TUNED_RIGHT, version)
    import_results(tmp_path, ledger=ledger)
    comparison = compare("base", "tuned", ledger=ledger)
    assert not any(d.blocking for d in comparison.differences)
    assert {(r.task, r.gained, r.lost) for r in comparison.rows if r.gained is not None} >= {
        ("arc:easy", 1, 5), ("sums", 1, 5)}


@pytest.mark.parametrize("version", VERSIONS)
def test_without_details_the_scores_are_reported(version: str, tmp_path: Path, ledger: Ledger) -> None:
    path = folder(tmp_path / "out", "org/base", BASE_RIGHT, version, details=False)
    result = one(tmp_path / "out", ledger)
    assert result.evaluation is None
    assert [(r.task, r.metric, r.n, r.n_source, r.facts["Few-shot Examples"]) for r in result.reported[:2]] == [
        ("arc_easy", "acc", N, "stated", "25"), ("sums", "qem", N, "stated", "5")]
    assert {r.model for r in result.reported} == {"org/base"}
    assert "all" not in {r.task for r in result.reported}
    assert audit(path).ok


def test_a_task_with_two_numbers_of_examples_keeps_its_whole_name(tmp_path: Path, ledger: Ledger) -> None:
    value = results_json("org/base", BASE_RIGHT, "0.13")
    value["results"] = {"gsm8k|0": {"qem": 0.5}, "gsm8k|5": {"qem": 0.25}, "lighteval|math|4|0": {"qem": 0.1}}
    (tmp_path / f"results_{STAMP}.json").write_text(json.dumps(value))
    assert [(r.task, r.facts["Few-shot Examples"]) for r in one(tmp_path, ledger).reported] == [
        ("gsm8k|0", "0"), ("gsm8k|5", "5"), ("math", "4")]


@pytest.mark.parametrize(("broken", "said"), [
    (b"PAR1", "not a Parquet file"), (b"", "not a Parquet file"), ([{"x": 1}], "not a row of lighteval's details"),
    ([{"doc": {"query": "q", "choices": None}, "metric": {"x": 1}, "model_response": {"text": [1]}}], "row 1")])
def test_broken_details_are_one_line(broken: Any, said: str, tmp_path: Path, ledger: Ledger) -> None:
    folder(tmp_path / "out", "org/base", BASE_RIGHT, "0.13")
    [path] = (tmp_path / "out").rglob("details_arc*.parquet")
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        parquet.write_table(pa.Table.from_pylist(broken), path)
    with pytest.raises(InputError, match=said) as caught:
        import_results(tmp_path / "out", ledger=ledger)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ledger.evaluations() == []


def test_details_of_other_scores_are_refused(tmp_path: Path, ledger: Ledger) -> None:
    folder(tmp_path / "out", "org/base", BASE_RIGHT, "0.13")
    [path] = (tmp_path / "out").rglob("details_arc*.parquet")
    parquet.write_table(pa.Table.from_pylist(rows(TUNED_RIGHT, "0.13", generated=False)), path)
    with pytest.raises(InputError, match="the mean of acc,none is"):
        import_results(tmp_path / "out", ledger=ledger)
