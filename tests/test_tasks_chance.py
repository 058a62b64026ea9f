"""The expected score of a guess: of items, of tasks, of imported results, and of evaluations stored before."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.comparison import compare
from aftertune.comparison.gate import gate
from aftertune.exchange import import_results
from aftertune.ledger import Ledger
from aftertune.study import TaskSpec
from aftertune.tasks import LoadOptions, load
from aftertune.tasks.chance import guess, indices, options, request_guess, task_chance
from aftertune.values import Evaluation
from exchange_cases import choice_line, one_task_folder, text_line


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "l.db") as opened:
        yield opened


def imported(ledger: Ledger, home: Path) -> Evaluation:
    [result] = import_results(home, ledger=ledger)
    assert result.evaluation is not None
    return result.evaluation


def test_equal_choices_count_once_and_several_right_ones_raise_the_chance() -> None:
    assert guess(["yes", "no"]) == .5
    assert guess(["a", "b", "c", "c"]) == 1 / 3
    assert guess(["a", "b", "c", "d"], gold=(0, 2)) == .5
    assert guess(["a", "b", "c", "c"], gold=(2, 3)) == 1 / 3, "one choice, written twice"
    assert guess([]) is None
    assert (indices("2"), indices("[0, 2]"), indices("[' yes']"), indices("B")) == ((2,), (0, 2), (), ())


def test_a_choice_asked_twice_counts_once() -> None:
    prompts = [("q", " a"), ("q", " b"), ("", " a"), ("", " b")]
    assert request_guess(prompts, mutual_info=True) == .5
    assert request_guess(prompts[:2], mutual_info=True) == .5
    assert request_guess([("q", " a"), ("q", " b"), ("q2", " a"), ("q2", " b")]) == .25


@pytest.mark.parametrize(("doc", "question", "reference", "count"), [
    ({"options": list("rstuvwxyz")}, "", "C", 9), ({"options": ["r", "r", "s"]}, "", "A", 2),
    ({"choices": {"text": ["r", "s", "t"], "label": ["A", "B", "C"]}}, "", "(B)", 3),
    ({"choices": ["wet", "dry"]}, "", "dry", 2), ({"choices": ["wet", "dry"]}, "", "cold", None),
    ({"options": ["r", "s"]}, "", "E", None), ({}, "Which?\nOptions:\n(A) x\n(B) y\n(C) z", "(C)", 3),
    ({}, "Q\nA. x\nB. y\nC. z\nD. w\nAnswer:\n\nQ\nA. x\nB. y\nAnswer:", "B", 2), ({}, "A. Smith asks", "A", None),
    ({"options": ["r", "s"]}, "", "12", None), ({}, "How many?", "12", None)])
def test_the_options_of_a_question(doc: dict[str, object], question: str, reference: str, count: int | None) -> None:
    assert options(doc, question, reference) == count


def test_the_level_of_a_task() -> None:
    assert task_chance("mmlu_pro_law", [.1, .1, .25]) == pytest.approx(.15)
    assert task_chance("own", [.5, None]) == .25, "no guess gets an item without options right"
    assert task_chance("own", [.5, None, None]) is None
    assert [task_chance(t, [None]) for t in ("mmlu_pro_law", "gpqa_main_cot_n_shot", "mmlu_virology_generative",
                                             "bbh_cot_fewshot_navigate", "gsm8k")] == [.1, .25, .25, .5, None]
    assert task_chance("truthfulqa_mc2", [.5]) is None


MINE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: {kind}
doc_to_text: "Q: {{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{a}}}}"
metric_list: [{metrics}]
"""


@pytest.mark.parametrize(("kind", "metrics", "rows", "chance"), [
    ("multiple_choice", "{metric: acc}, {metric: acc_norm}", [(2, 0), *[(5, 1)] * 4], (1 / 2 + 4 / 5) / 5),
    ("multiple_choice", "{metric: acc}, {metric: acc_mutual_info}", [(5, 0), (2, 1)], (1 / 5 + 1 / 2) / 2),
    ("multiple_choice", "{metric: acc}", [(4, [0, 1]), (4, [2, 3])], 1 / 2),
    ("generate_until", "{metric: exact_match}", [(2, 0), (4, 3)], (1 / 2 + 1 / 4) / 2)])
def test_an_own_task(tmp_path: Path, kind: str, metrics: str, rows: Sequence[tuple[int, object]], chance: float
                     ) -> None:
    """The first item has another number of choices than the others."""
    docs = [{"q": f"q{i}", "choices": [f"c{k}" for k in range(n)], "a": gold} for i, (n, gold) in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(MINE.format(
        name="mine", data=tmp_path / "rows.jsonl", cache=tmp_path / "cache", kind=kind, metrics=metrics))
    [task] = load((TaskSpec(name="mine"),), LoadOptions(include_path=tmp_path / "tasks"))
    assert task.settings.chance == pytest.approx(chance)
    assert task.first_choice == (None if kind == "generate_until" else 1 / sum(r.item == 0 for r in task.requests))


def _pair(ledger: Ledger, tmp_path: Path, first: int, others: int, share: float, n: int, flips: int) -> None:
    draw = random.Random(3)
    base = [draw.random() < share for _ in range(n)]
    changed = set(draw.sample(range(n), flips))
    tuned = [b != (i in changed) for i, b in enumerate(base)]
    for name, answers in (("base", base), ("tuned", tuned)):
        lines = [choice_line(i, others if i else first, a) for i, a in enumerate(answers)]
        imported(ledger, one_task_folder(tmp_path, name, "vari", lines, "acc"))


def test_a_first_item_with_fewer_choices_puts_no_base_at_the_floor(tmp_path: Path, ledger: Ledger) -> None:
    _pair(ledger, tmp_path, 2, 5, .40, 600, 12)
    assert ledger.find_evaluation("base").tasks[0].chance == pytest.approx((1 / 2 + 599 / 5) / 600)
    [row] = compare("base", "tuned", margins=.05, ledger=ledger).rows
    assert (row.at_floor, row.verdict) == (False, "within")


def test_a_first_item_with_more_choices_lets_no_guess_pass_a_gate(tmp_path: Path, ledger: Ledger) -> None:
    _pair(ledger, tmp_path, 5, 2, .47, 600, 12)
    [row] = compare("base", "tuned", margins=.05, ledger=ledger).rows
    assert row.at_floor
    _, [line] = gate("base", "tuned", {"vari": .05}, ledger=ledger, require_proof=True)
    assert (line.outcome, line.failed) == ("floor", True)


def test_an_evaluation_stored_with_the_chance_of_its_first_item(tmp_path: Path, ledger: Ledger,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its id and its stored value, and is compared with the mean over its items."""
    from aftertune.exchange import importing

    monkeypatch.setattr(importing, "_chance", lambda *_: 1 / 2)
    _pair(ledger, tmp_path, 2, 5, .40, 600, 12)
    assert ledger.find_evaluation("base").tasks[0].chance == 1 / 2
    [row] = compare("base", "tuned", margins=.05, ledger=ledger).rows
    assert not row.at_floor


@pytest.mark.parametrize(("doc", "prompt", "target"), [
    ({"options": [f"o{k}" for k in range(10)]}, "Q", "C"), ({}, "Q\n(A) x\n(B) y\n(C) z\n(D) w", "(C)")])
def test_generated_choices_can_be_guessed(tmp_path: Path, ledger: Ledger, doc: dict[str, object], prompt: str,
                                          target: str) -> None:
    level = 1 / (len(doc.get("options", ())) or 4)  # type: ignore[arg-type]
    for name, at in (("base", 0), ("tuned", 10)):
        right = [(i + at) % 400 < 400 * level for i in range(400)]
        lines = [text_line(doc | {"n": i}, prompt, target, "exact_match", float(r)) for i, r in enumerate(right)]
        imported(ledger, one_task_folder(tmp_path, name, "own_cot", lines, "exact_match", kind="generate_until"))
    assert ledger.find_evaluation("base").tasks[0].chance == pytest.approx(level)
    assert compare("base", "tuned", ledger=ledger).rows[0].at_floor


def test_a_mean_of_probabilities_has_no_guessing_level(tmp_path: Path, ledger: Ledger) -> None:
    """Its values are not 0 or 1, so the number of choices says nothing about it."""
    draw = random.Random(5)
    for name, shift in (("base", 0.0), ("tuned", 0.001)):
        lines = [choice_line(i, 2, True) | {"acc": .3 + .2 * draw.random() + shift} for i in range(300)]
        imported(ledger, one_task_folder(tmp_path, name, "mean_of_probabilities", lines, "acc"))
    assert not compare("base", "tuned", margins=.05, ledger=ledger).rows[0].at_floor


def test_the_chance_of_a_group_weighs_its_tasks() -> None:
    from aftertune.comparison.rows import group_chance
    from early_cases import settings

    members = [settings("a", 100, chance=.5), settings("b", 300, chance=.25), settings("c", 100, chance=None)]
    assert group_chance(members, [100, 300, 100]) == pytest.approx(.25)
    assert group_chance([replace(m, chance=None) for m in members], [1, 1, 1]) is None
