"""The rule of --keep-best: its grammar, its choice, the halves of the items, and the table and chart of checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from aftertune.report import checkpoint_rows, checkpoint_table, choice_lines
from aftertune.report.charts import LookCurves, checkpoint_chart
from aftertune.study.keep_best import KeepBest, split_halves
from aftertune.values import CheckpointChoice, WatchPoint

TASKS = ["orders", "hellaswag"]


def point(step: int, task: str, delta: float, *, n: int = 100, **changes: object) -> WatchPoint:
    return WatchPoint(**{"step": step, "task": task, "metric": "acc", "n": n, "base": 0.5, "tuned": 0.5 + delta,
                         "delta": delta, "low": delta - 0.05, "high": delta + 0.05, "verdict": "undecided",
                         "half": "choice", **changes})


def looks(*steps: tuple[float, float]) -> list[WatchPoint]:
    """Points at steps 10, 20 … of (change of the target, change of hellaswag)."""
    return [point(10 * n, task, delta, is_target=task == "orders") for n, deltas in enumerate(steps, 1)
            for task, delta in zip(TASKS, deltas, strict=True)]


def choose(text: str, points: list[WatchPoint], losses: dict[int, float] | None = None) -> CheckpointChoice:
    choice = KeepBest.parse(text, tasks=TASKS, validated=losses is not None).choose(points, losses or {})
    assert choice is not None
    return choice


def test_the_best_target_among_those_that_lose_little() -> None:
    points = looks((0.1, 0.0), (0.3, -0.02), (0.4, -0.021), (0.2, 0.01))
    choice = choose("orders, no loss > 2 on hellaswag", points)
    assert (choice.step, choice.met) == (20, True), "a loss of exactly the limit is allowed"
    assert choice.reason == ("the best of 3 checkpoints that meet the rule, of 4 (orders +30.0 points on 100 items, "
                             "hellaswag −2.0 on 100 items)")
    assert choose("orders", points).step == 30
    assert choose("hellaswag", points).step == 40


def test_equal_checkpoints_the_earliest() -> None:
    assert choose("orders, no loss > 2 on hellaswag", looks((0.3, 0.0), (0.3, 0.0))).step == 10


def test_none_meets_the_rule_so_the_nearest_is_taken_and_said() -> None:
    choice = choose("orders, no loss > 2 on hellaswag", looks((0.2, -0.04), (0.5, -0.08), (0.3, -0.04)))
    assert (choice.step, choice.met) == (30, False)
    assert choice_lines(choice)[0] == (
        'NO CHECKPOINT MEETS "orders, no loss > 2 on hellaswag"; step 30 was taken: none of 3 checkpoints '
        "meets the rule, and this one comes nearest (orders +30.0 points on 100 items, hellaswag −4.0 on 100 "
        "items)")


def test_the_validation_loss_as_a_goal() -> None:
    points = looks((0.1, 0.0), (0.2, -0.01), (0.3, -0.05))
    choice = choose("validation loss, no loss > 2 on hellaswag", points, {5: 0.1, 10: 0.5, 20: 0.4, 30: 0.3})
    assert choice.step == 20, "step 5 has no point on hellaswag"
    assert choose("validation loss", [], {10: 0.5, 20: 0.4}).step == 20
    assert KeepBest.parse("orders", tasks=TASKS, validated=False).choose([], {}) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_never_the_best(bad: float) -> None:
    assert choose("validation loss", [], {10: bad, 20: 0.4, 30: bad}).step == 20
    assert KeepBest.parse("validation loss", tasks=[], validated=True).choose([], {10: bad}) is None


def test_the_best_so_far_never_comes_back() -> None:
    """So its weights may be deleted once a better checkpoint is found."""
    numbers = np.random.default_rng(0).normal(size=(30, 2)) * 0.03
    points = looks(*map(tuple, numbers))
    best = [choose("orders, no loss > 1 on hellaswag", points[:2 * n]).step for n in range(1, 31)]
    changes = [step for n, step in enumerate(best) if n == 0 or step != best[n - 1]]
    assert len(changes) == len(set(changes)) > 3


@pytest.mark.parametrize(("text", "fault"), [
    ("", "it has no goal"),
    ("order, no loss > 2 on hellaswag", r"the goal 'order' is not measured \(did you mean 'orders'\?\)"),
    ("orders, no loss > 2 on arc_easy", "'arc_easy' is not watched"),
    ("orders, no loss > 2 on hellaswg", r"'hellaswg' is not watched \(did you mean 'hellaswag'\?\)"),
    ("orders, no loss < 2 on hellaswag", "'no loss < 2 on hellaswag' is no condition"),
    ("orders no loss > 2 on hellaswag", "is not measured"),
    ("orders, no loss > two on hellaswag", "is no condition"),
    ("orders, no loss > -1 on hellaswag", "is no condition"),
    ("orders,", "'' is no condition"),
    ("orders, no loss > 0 on hellaswag", "0 points: a limit is above 0 and at most 100"),
    ("orders, no loss > 101 on hellaswag", "101 points: a limit is above 0 and at most 100"),
    ("orders, no loss > 1 on hellaswag, no loss > 2 on hellaswag", "'hellaswag' has two conditions"),
    ("validation loss", "--validation gives a validation loss"),
])
def test_a_wrong_rule_is_one_line_with_what_is_allowed(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as error:
        KeepBest.parse(text, tasks=TASKS, validated=False)
    message = str(error.value)
    assert "\n" not in message
    assert 'write GOAL, no loss > POINTS on TASK, for example "orders, no loss > 2 on hellaswag"' in message
    assert "goals here: orders, hellaswag; tasks here: orders, hellaswag" in message


def test_a_rule_is_read_with_any_spaces_and_written_in_one_form() -> None:
    rule = KeepBest.parse("  orders ,no  loss > 2.50 points on hellaswag ", tasks=TASKS, validated=False)
    assert str(rule) == "orders, no loss > 2.5 on hellaswag"
    assert KeepBest.parse(str(rule), tasks=TASKS, validated=False) == rule


def test_halves_keep_clusters_together_and_depend_on_the_seed_alone() -> None:
    labels = ["a"] * 5 + ["b"] * 3 + [f"c{n}" for n in range(40)] + [None, None]
    choosing, reporting = split_halves(labels)
    assert sorted([*choosing, *reporting]) == list(range(50))
    assert abs(len(choosing) - len(reporting)) <= 5
    for half in (choosing, reporting):
        assert len({0, 1, 2, 3, 4} & set(half)) in (0, 5)
    assert split_halves(labels) == (choosing, reporting)
    assert split_halves(labels, 1) != (choosing, reporting)
    with pytest.raises(ValueError, match="one cluster of items alone"):
        split_halves(["a", "a"])


def test_choosing_on_the_same_items_would_flatter() -> None:
    """20 checkpoints that are all as good as the base: on the items that chose, the best one looks better, and on the
    other half it does not."""
    chosen, reported = [], []
    draw = np.random.default_rng(1)
    for _ in range(200):
        right = draw.random((20, 100)) < 0.5  # checkpoints, items
        choosing, reporting = split_halves(list(range(100)), int(draw.integers(1 << 30)))
        points = [point(n, "hellaswag", float(right[n, choosing].mean()) - 0.5) for n in range(1, 20)]
        choice = choose("hellaswag", points)
        chosen.append(right[choice.step, choosing].mean() - 0.5)
        reported.append(right[choice.step, reporting].mean() - 0.5)
    assert np.mean(chosen) > 0.1
    assert abs(np.mean(reported)) < 0.015


def test_the_table_of_checkpoints() -> None:
    points = looks((0.1, 0.0), (0.3, -0.02))
    head, cells = checkpoint_table(checkpoint_rows(points, {10: 0.5, 15: 0.45}, saved=[20], final=20))
    assert head == ["step", "validation loss", "orders (learned)", "hellaswag (change)", "weights"]
    assert cells == [["10", "0.500", "+10.0 (+5.0 to +15.0) undecided", "0.0 (−5.0 to +5.0) undecided", ""],
                     ["20", "–", "+30.0 (+25.0 to +35.0) undecided", "−2.0 (−7.0 to +3.0) undecided", "saved, final"]]
    assert checkpoint_table(checkpoint_rows((), {5: 0.5, 10: 0.4}, saved=[10], final=5)) == (
        ["step", "validation loss", "weights"], [["5", "0.500", "final"], ["10", "0.400", "saved"]])
    assert checkpoint_rows((), {5: 0.5}) == []


def test_the_chart_of_checkpoints_shows_losses_target_and_tasks() -> None:
    chart = checkpoint_chart("orders", LookCurves(points=looks((0.1, 0.0), (0.3, -0.02)), losses={10: 0.5, 20: 0.45},
                                                  final=20, margin=2.0), 760)
    for text in ("validation loss", "learned, points", "change against the base, points", "orders: step 10 +10.00",
                 "HellaSwag: step 10 0.00", "Validation loss: step 10 0.500; step 20 0.450.",
                 "The weights that are handed on are those of step 20."):
        assert text in chart
    alone = checkpoint_chart("orders", LookCurves(points=looks((0.1, 0.0))[1:], losses={}), 340)
    assert "learned, points" not in alone
    assert checkpoint_chart("orders", LookCurves(points=(), losses={10: 0.5}), 340) == ""
