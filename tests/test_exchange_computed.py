"""The audit of results files: what a score is the mean of, and how its error was computed, as the file itself says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from aftertune.exchange import Audit, audit

STAMP = "2025-01-02T03-04-05.000006"


def share(k: int, n: int) -> tuple[float, float]:
    """The accuracy and standard error that lm-eval writes for k of n."""
    p = k / n
    return p, math.sqrt(p * (1 - p) / (n - 1))


def results(folder: Path, scores: dict[str, tuple[float, float]], *, metric: str = "acc",
            n: dict[str, int] | None = None, **sections: Any) -> Audit:
    value = {
        "results": {task: {"alias": task, f"{metric},none": p, f"{metric}_stderr,none": e}
                    for task, (p, e) in scores.items()},
        "n-samples": {task: {"original": k, "effective": k} for task, k in (n or {}).items()},
        "config": {"model": "hf", "model_args": "pretrained=org/m", "limit": None}, "date": 1730000000.0,
        "model_name": "org/m", **sections}
    path = folder / f"results_{STAMP}.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return audit(path)


def test_a_mean_of_probabilities_is_no_share(tmp_path: Path) -> None:
    found = results(tmp_path, {"truthfulqa_mc1": share(207, 817), "truthfulqa_mc2": (0.4066, 0.0141)},
                    n={"truthfulqa_mc1": 817, "truthfulqa_mc2": 817})
    assert [c.mark for c in found.checks] == ["ok", "not checked"]
    assert found.checks[1].text == "a mean (the probability of the true answers) is no k of n"


def _subjects() -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    sizes = {"mmlu_anatomy": 135, "mmlu_astronomy": 152, "mmlu_virology": 166}
    return {task: share(k, n) for (task, n), k in zip(sizes.items(), (60, 90, 70), strict=True)}, sizes


@pytest.mark.parametrize("weighted", [True, False])
def test_groups_by_size_and_of_equal_weight(weighted: bool, tmp_path: Path) -> None:
    scores, sizes = _subjects()
    total = sum(sizes.values())
    if weighted:
        value = sum(p * sizes[t] for t, (p, _) in scores.items()) / total
        spread = sum((sizes[t] - 1) * e**2 * sizes[t] for t, (_, e) in scores.items()) / (total - len(sizes))
        error = math.sqrt(spread / total)
    else:
        value = sum(p for p, _ in scores.values()) / len(scores)
        error = math.sqrt(sum(e**2 for _, e in scores.values())) / len(scores)
    group = {"alias": "own_group", "acc,none": value, "acc_stderr,none": error}
    found = results(tmp_path, {"own_group": (value, error), **scores}, n=sizes, groups={"own_group": group},
                    group_subtasks={"own_group": list(sizes)})
    assert found.ok
    first = next(c for c in found.checks if c.row.task == "own_group")
    assert first.row.error_of == ("pooled over the tasks of the group" if weighted else
                                  "that of a mean of tasks of equal weight")
    assert first.row.mean_of == ("" if weighted else "the scores of tasks")
    assert {c.mark for c in found.checks if c is not first} == {"ok"}


def test_the_files_own_aggregation_and_repeats(tmp_path: Path) -> None:
    configs = {"own_f": {"metric_list": [{"metric": "acc", "aggregation": "weighted_mean"}]}, "own_r": {"repeats": 5},
               "own_p": {"metric_list": [{"metric": "acc", "aggregation": "mean"}]}}
    found = results(tmp_path, dict.fromkeys(configs, (0.123456789012, 0.01)), configs=configs,
                    n=dict.fromkeys(configs, 50))
    assert found.ok
    texts = {c.row.task: c.text for c in found.checks}
    assert texts["own_f"] == "a mean (the task's own aggregation) is no k of n"
    assert texts["own_r"] == "a mean (5 answers to each item) is no k of n"
    assert texts["own_p"] == "no k of 50: a mean of items that are not all 0 or 1"


def test_what_cannot_be_is_found_in_a_file_too(tmp_path: Path) -> None:
    found = results(tmp_path, {"arc_easy": (0.5525123456, 0.0102)}, n={"arc_easy": 2376})
    assert not found.ok
    assert "at the stated n=2,376" in found.checks[0].text
    rounded = results(tmp_path, {"arc_easy": (0.5526, 0.0102)}, n={"arc_easy": 2376})
    assert [(c.mark, tuple(c.counts)) for c in rounded.checks] == [("ok", (1313,))]


@pytest.mark.parametrize(("limit", "k", "n"), [(50.0, 33, 50), (0.5, 600, 919)])
def test_a_limit_gives_the_number_of_items(limit: float, k: int, n: int, tmp_path: Path) -> None:
    """lm-eval 0.4.2 and before wrote no n-samples."""
    config = {"model": "hf", "model_args": "pretrained=org/m", "limit": limit}
    [check] = results(tmp_path, {"piqa": share(k, n)}, config=config).checks
    assert (check.mark, tuple(check.counts), check.row.n, check.row.n_source) == ("ok", (k,), n, "stated")


@pytest.mark.parametrize("limit", [-1, 0, -0.5])
def test_a_limit_that_is_none_of_lm_eval_leaves_the_number_unknown(limit: float, tmp_path: Path) -> None:
    config = {"model": "hf", "model_args": "pretrained=org/m", "limit": limit}
    [check] = results(tmp_path, {"piqa": share(600, 919)}, config=config).checks
    assert (check.row.n, check.text) == (None, "the number of items is not stated")


def test_floats_of_32_bits_are_shares(tmp_path: Path) -> None:
    found = results(tmp_path, {"piqa": (0.6077257990837097, 0.011391846463084221)}, n={"piqa": 1838})
    assert [(c.mark, tuple(c.counts)) for c in found.checks] == [("ok", (1117,))]


def test_a_group_that_its_tasks_do_not_explain_is_not_called_impossible(tmp_path: Path) -> None:
    scores, sizes = _subjects()
    found = results(tmp_path, {"own_group": (0.5012345678, 0.02), **scores}, n=sizes,
                    groups={"own_group": {"acc,none": 0.5012345678}}, group_subtasks={"own_group": list(sizes)})
    assert found.ok
    assert "weighted in a way that the file does not show" in next(
        c.text for c in found.checks if c.row.task == "own_group")
