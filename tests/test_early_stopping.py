"""Evaluations that stop at the first safe moment, on tiny random models and in a real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune import early_stopping
from aftertune.comparison import compare
from aftertune.engine import engine
from aftertune.errors import InputError, NotComparable, ResumeRefused
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.report.facts import early_stop_text
from aftertune.stats.sequential import LOOKS, PairedSequential, random_order_key
from aftertune.study import EarlySpec, EvalSpec, TaskSpec
from aftertune.values import Evaluation, plain
from deciding_cases import QUIET, decide, models, own_task


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The models, and tasks on which the base is right: own (many items), few (a fixed-n case)."""
    tmp = tmp_path_factory.mktemp("deciding")
    found: dict[str, Any] = models(tmp)
    return found | {"own": own_task(tmp, found["base"], 400), "few": own_task(tmp, found["base"], 30, "few")}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def whole(model: Path, tasks: list[TaskSpec], ledger: Ledger, **settings: Any) -> Evaluation:
    return evaluate(EvalSpec(model=str(model), tasks=tuple(tasks), **(QUIET | settings)), ledger=ledger)


def content(ledger: Ledger, evaluation: Evaluation) -> str:
    """All that an evaluation came to, floats by their exact bits."""
    responses = [[p, None if r.logprob is None else r.logprob.hex(), r.text, r.tokens] for p, r in
                 ledger.responses(evaluation.id).items()]
    return json.dumps([responses, [plain(a) for a in ledger.answers(evaluation.id)], plain(evaluation.early),
                       [plain(s) for s in evaluation.scores], [plain(t) for t in evaluation.tasks],
                       evaluation.schedule["stages"]])


def test_it_stops_at_the_first_safe_look_and_says_what_the_full_run_says(made: dict[str, Any], ledger: Ledger) -> None:
    base = whole(made["base"], [made["own"]], ledger, name="base")
    decided = decide(made["broken"], "base", [made["own"]], ledger, name="early")
    [unit] = decided.tuned.early.units
    [row] = decided.comparison.rows
    assert base.scores[0].value == 1.0
    assert (row.told, row.n, row.stopped_of) == ("lower", unit.used, unit.items)
    assert unit.used == 32 < unit.items == base.tasks[0].n
    assert len(ledger.answers(decided.tuned.id)) == unit.used == decided.tuned.scores[0].n
    assert decided.tuned.stopped("own") == (32, unit.items)
    assert len(ledger.responses(decided.tuned.id)) == unit.used
    full = whole(made["broken"], [made["own"]], ledger)
    [same] = compare(base, full, margins=0.05, ledger=ledger).rows
    assert same.verdict == row.verdict
    assert row.low <= same.delta <= row.high
    order = sorted(ledger.items(base.id), key=lambda i: random_order_key(0, i.task, i.index, i.hash))
    assert {a.index for a in ledger.answers(decided.tuned.id)} == {i.index for i in order[:32]}
    known = [{a.index: a.metrics["exact_match,none"] for a in ledger.answers(e.id)} for e in (base, full)]
    watch = PairedSequential(None, 0.05, alpha=0.05)
    watch.update([known[1][i.index] - known[0][i.index] for i in order[:32]])
    assert (row.low, row.high) == watch.interval()


def test_asked_again_it_is_answered_from_the_ledger(made: dict[str, Any], ledger: Ledger) -> None:
    whole(made["base"], [made["own"]], ledger, name="base")
    first = decide(made["near"], "base", [made["own"]], ledger)
    said: list[str] = []
    again = decide(made["near"], "base", [made["own"]], ledger, progress=lambda _d, _t, text: said.append(text))
    assert again == first
    assert "loading the model" not in said
    forked = decide(made["near"], "base", [made["own"]], ledger, fork=True)
    assert forked.tuned.id == f"{first.tuned.id}.2"
    assert content(ledger, forked.tuned) == content(ledger, first.tuned)
    other = decide(made["near"], "base", [made["own"].model_copy(update={"sample_seed": 3})], ledger)
    assert other.tuned.id != first.tuned.id
    assert other.tuned.early.units[0].order != first.tuned.early.units[0].order


def test_a_base_that_is_no_evaluation_is_scored_alongside(made: dict[str, Any], ledger: Ledger) -> None:
    wide = EarlySpec(margin=12)
    alone = decide(made["near"], made["base"], [made["own"]], ledger, early=wide)
    assert alone.base.early.against == alone.tuned.id
    assert alone.tuned.early.against == alone.base.id
    assert alone.base.name == "base-alongside"
    assert alone.base.stopped("own") == alone.tuned.stopped("own")
    [row] = alone.comparison.rows
    assert row.told == "within"
    assert row.gained + row.lost > 0  # a near-copy that does differ
    whole(made["base"], [made["own"]], ledger, name="base")
    stored = decide(made["near"], "base", [made["own"]], ledger, early=wide)
    assert (stored.comparison.rows[0].n, stored.comparison.rows[0].delta) == (row.n, row.delta)
    third = decide(made["broken"], "base-alongside", [made["own"]], ledger)  # stopped early: its model is asked anew
    assert third.base.id != alone.base.id
    assert third.comparison.rows[0].told == "lower"


def test_a_decided_task_is_no_longer_asked_while_others_go_on(made: dict[str, Any], ledger: Ledger) -> None:
    tasks = [made["own"], TaskSpec(name="arc_easy", sample=150)]
    decided = decide(made["broken"], made["base"], tasks, ledger, early=EarlySpec(margin=25))
    used = {u.name: u.used for u in decided.tuned.early.units}
    assert used["own"] < used["arc_easy"]
    assert used["arc_easy"] % 8 == 0 or used["arc_easy"] == 150  # a small task is looked at every 8 items
    rows = {r.task: r for r in decided.comparison.rows if r.primary}
    assert rows["own"].verdict == "lower"
    assert rows["arc_easy"].told == "undecided (at floor: nothing to forget)"
    # own is a target task, arc_easy none: two questions, which do not share the error level
    assert rows["own"].p_adjusted == pytest.approx(rows["own"].p / LOOKS)
    assert [u.share for u in decided.tuned.early.units] == [1, 1]
    assert len(decided.tuned.schedule["stages"]) == max(
        -(-u.used // u.batch) for u in decided.tuned.early.units)


def test_where_all_items_are_used_the_fixed_verdict_is_stored(made: dict[str, Any], ledger: Ledger) -> None:
    base = whole(made["base"], [made["few"]], ledger)
    decided = decide(made["near"], base.id, [made["few"]], ledger, early=EarlySpec(margin=0.01))
    plain_one = whole(made["near"], [made["few"]], ledger)
    assert decided.tuned.stopped("few") is None
    assert decided.tuned.early.units[0].verdict is None
    assert decided.tuned.tasks == plain_one.tasks
    assert decided.tuned.scores == plain_one.scores
    [row], [other] = decided.comparison.rows, compare(base, plain_one, margins=0.0001, ledger=ledger).rows
    assert row.stopped_of is None
    assert (row.n, row.delta) == (other.n, other.delta)
    assert row.low < other.low < other.high < row.high  # the looks have a part of the error level
    assert "all items were asked after interim analyses" in row.note


def test_at_least_so_many_items_and_a_width(made: dict[str, Any], ledger: Ledger) -> None:
    whole(made["base"], [made["own"]], ledger, name="base")
    least = decide(made["broken"], "base", [made["own"]], ledger, early=EarlySpec(margin=5, min_items=70, batch=16))
    assert least.comparison.rows[0].n == 80
    narrow = decide(made["broken"], "base", [made["own"]], ledger, early=EarlySpec(margin=5, max_width=12))
    [row] = narrow.comparison.rows
    assert row.n > 32
    assert row.high - row.low <= 0.12
    most = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=0.1, max_items=100))
    [row], [unit] = most.comparison.rows, most.tuned.early.units
    assert (row.n, row.stopped_of, row.verdict, unit.verdict) == (96, unit.items, "undecided", None)
    assert "at most 100 items" in early_stop_text(most.tuned.early)


def test_the_target_says_what_ends_a_task(made: dict[str, Any], ledger: Ledger) -> None:
    """The full run of 400 items is known sooner than the models; the words are about the models all the same."""
    whole(made["base"], [made["own"]], ledger, name="base")
    models = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=6))
    full = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=6, target="full-run"))
    assert models.tuned.id != full.tuned.id
    assert [d.tuned.early.stop_target for d in (models, full)] == ["models", "full-run"]
    used = [d.tuned.early.units[0].used for d in (models, full)]
    assert used[1] < used[0]
    [row] = full.comparison.rows
    assert (row.full_verdict, full.tuned.early.units[0].verdict) == ("within", "within")
    assert row.verdict in ("no_loss", "undecided")
    assert row.full_base == 1.0
    again = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=6, target="full-run"))
    assert again.tuned == full.tuned


def test_what_an_earlier_version_began_goes_on_by_its_rule(made: dict[str, Any], ledger: Ledger,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    whole(made["base"], [made["own"]], ledger, name="base")
    with monkeypatch.context() as patch:
        patch.setattr(early_stopping._EarlyStopping, "_rules", lambda *_: iter([early_stopping._StopRule({}, "")]))
        old = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=6))
    assert old.tuned.early.stop_target == ""
    count = len(ledger.evaluations())
    now = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=6))
    assert now.tuned == old.tuned
    assert len(ledger.evaluations()) == count
    full = decide(made["near"], "base", [made["own"]], ledger, early=EarlySpec(margin=6, target="full-run"), fork=True)
    assert full.tuned.early.units[0].used == old.tuned.early.units[0].used
    assert full.tuned.early.units[0].order == old.tuned.early.units[0].order


class Stopped(Exception):
    """The run is broken off, as by Ctrl-C."""


@pytest.fixture(scope="module")
def unbroken(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TaskSpec], Any, list[str]]:
    """Tasks, and what a run over them that is not broken off comes to: its outcome and all its content."""
    tasks = [made["own"], TaskSpec(name="arc_easy", sample=60)]
    verified: list[int] = []
    real = engine.verify
    with pytest.MonkeyPatch.context() as patch, \
            Ledger(tmp_path_factory.mktemp("unbroken") / "whole.db") as ledger:
        patch.setattr(engine, "verify", lambda *a, **k: verified.append(1) or real(*a, **k))
        expected = decide(made["near"], made["base"], tasks, ledger)
        texts = [content(ledger, e) for e in (expected.base, expected.tuned)]
    looks = len(expected.tuned.schedule["stages"])
    assert looks >= 4
    assert len(verified) < 2 * looks  # what was found of the model holds for rows that are no longer
    return tasks, expected, texts


@pytest.mark.parametrize("rounds", [pytest.param(1, marks=pytest.mark.slow), 2,
                                    pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_is_broken_off_goes_on_to_the_same_numbers(made: dict[str, Any], unbroken: Any, tmp_path: Path,
                                                              rounds: int) -> None:
    tasks, expected, texts = unbroken
    asked: set[int] = set()

    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("answering until"):
            asked.add(done)
            if len(asked) > 3 * rounds:
                raise Stopped

    with Ledger(tmp_path / "broken.db") as ledger:
        with pytest.raises(Stopped):
            decide(made["near"], made["base"], tasks, ledger, stop)
        assert len(ledger.responses(expected.tuned.id)) > 0
        found = decide(made["near"], made["base"], tasks, ledger)
        assert [content(ledger, e) for e in (found.base, found.tuned)] == texts
        assert found.comparison.rows == expected.comparison.rows


def test_a_stage_of_another_plan_is_refused(made: dict[str, Any], ledger: Ledger) -> None:
    def progress(done: int, total: int, text: str) -> None:
        if text.startswith("answering until") and done > 40:
            raise Stopped

    with pytest.raises(Stopped):
        decide(made["near"], made["base"], [made["own"]], ledger, progress)
    tuned = next(e for e in ledger.evaluations() if e.name == "near")
    schedule = ledger.schedule(tuned.id)
    ledger.save_schedule(tuned.id, {**schedule, "threads": 9})
    with pytest.raises(ResumeRefused, match="threads: 9 then, 1 now"):
        decide(made["near"], made["base"], [made["own"]], ledger)


def test_other_settings_and_unknown_bases_are_refused_before_anything_is_scored(made: dict[str, Any],
                                                                              ledger: Ledger) -> None:
    arc = TaskSpec(name="arc_easy", sample=20)
    base = whole(made["base"], [arc], ledger, name="base")
    for tasks, said in [([arc.model_copy(update={"num_fewshot": 1})], "arc_easy.num_fewshot"),
                        ([arc.model_copy(update={"sample": 30})], "arc_easy.items"),
                        ([arc, made["few"]], "task few")]:
        with pytest.raises(NotComparable, match=said):
            decide(made["near"], "base", tasks, ledger)
    with pytest.raises(InputError, match=r"'nobody' is neither a finished evaluation \(no evaluation.*nor a model"):
        decide(made["near"], "nobody", [arc], ledger)
    ledger.open_evaluation(replace(base, id="e-half", name="half", status="running"), ledger.items(base.id))
    with pytest.raises(InputError, match="'running'; run its command again"):
        decide(made["near"], "half", [arc], ledger)
    assert len(ledger.evaluations()) == 2


GROUP = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: q
doc_to_choice: ["a", "b"]
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def group_folder(tmp: Path, *, by_size: bool) -> Path:
    """lm-eval files of a group of two tasks of 60 and 100 items, whose mean weighs items or tasks."""
    folder = tmp / "tasks"
    folder.mkdir()
    for name, rows in (("pool_a", 60), ("pool_b", 100)):
        data = tmp / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"q": f"{name} {n}?", "answer": n % 2}) + "\n" for n in range(rows)))
        (folder / f"{name}.yaml").write_text(GROUP.format(name=name, data=data, cache=tmp / "cache"))
    (folder / "pool.yaml").write_text(
        "group: pool\ntask: [pool_a, pool_b]\naggregate_metric_list:\n"
        f"  - {{metric: acc, aggregation: mean, weight_by_size: {str(by_size).lower()}}}\n")
    return folder


def test_a_group_is_drawn_from_all_its_items_together(made: dict[str, Any], tmp_path: Path, ledger: Ledger) -> None:
    folder = group_folder(tmp_path, by_size=True)
    decided = decide(made["near"], made["base"], [TaskSpec(name="pool", margin=30)], ledger, include_path=folder,
                     task_source="auto")
    [unit] = decided.tuned.early.units
    assert (unit.name, unit.tasks, unit.items, unit.batch) == ("pool", ("pool_a", "pool_b"), 160, 8)
    assert unit.used < 160
    used = {t.task: t.used for t in decided.tuned.tasks}
    assert sum(used.values()) == unit.used
    assert all(used.values())
    [row] = [r for r in decided.comparison.rows if r.primary]
    assert (row.task, row.n, row.stopped_of) == ("pool", unit.used, 160)
    [score] = [s for s in decided.tuned.scores if s.group]
    assert score.value == pytest.approx(row.tuned)
    assert decided.tuned.stopped("pool") == (unit.used, 160)


def test_a_mean_over_tasks_is_run_whole_and_that_is_said(made: dict[str, Any], tmp_path: Path, ledger: Ledger) -> None:
    folder = group_folder(tmp_path, by_size=False)
    decided = decide(made["near"], made["base"], [TaskSpec(name="pool", margin=30)], ledger, include_path=folder,
                     task_source="auto")
    assert decided.tuned.stopped("pool") is None
    assert len(ledger.answers(decided.tuned.id)) == 160
    assert any("pool: all items were asked, because it cannot be stopped early (its mean weights tasks" in w
               for w in decided.tuned.warnings)
    assert all(r.stopped_of is None for r in decided.comparison.rows)
