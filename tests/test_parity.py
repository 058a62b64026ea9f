"""aftertune's packed engine against lm-eval's own evaluator on a real model: the benchmark's reduced form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import parity

SCORED = ("hellaswag", "mmlu_high_school_computer_science", "arc_easy", "winogrande", "boolq")
LIMITS = {**dict.fromkeys(SCORED, 2), "rolling": 1, "gsm8k_cot": 1}


@pytest.fixture(scope="module")
def model():
    from aftertune import sources

    source = sources.resolve_model(parity.MODEL)
    tokenizer = sources.load_tokenizer(source)
    return sources.load_model(source, "float32", "cpu", tokenizer=tokenizer), tokenizer


@pytest.fixture(scope="module")
def sides(model, tmp_path_factory):
    """(aftertune, lm-eval at batch size 1)"""
    from aftertune.engine.devices import set_threads

    folder = tmp_path_factory.mktemp("rolling")
    parity.write_rolling(folder, parity.manual())
    plan = parity.Plan(tasks=LIMITS, folder=folder, max_tokens=12)
    return parity.ours(*model, plan, set_threads()), parity.theirs(*model, plan, 1)


@pytest.fixture(scope="module")
def reports(sides, model):
    return {r.task: r for r in parity.compare(*sides, *model)}


@pytest.mark.slow
def test_every_bound_holds_on_every_task(reports):
    assert {name: r.items for name, r in reports.items()} == LIMITS
    assert [line for r in reports.values() for line in r.broken()] == []


@pytest.mark.slow
def test_the_comparison_saw_real_numbers_on_both_sides(sides):
    for side in sides:
        for name in SCORED:
            assert all(len(s.logprobs) in (2, 3, 4, 5) and max(s.logprobs) < 0 for s in side.samples[name])
        assert all(s.logprobs[0] < -50 for s in side.samples["rolling"])
        assert all(len(s.texts) == 1 and s.texts[0].strip() for s in side.samples["gsm8k_cot"])
    assert sides[0].note.startswith("packed rows (verified")
    assert any(a != b for (a, b) in zip(sides[0].samples["hellaswag"], sides[0].samples["hellaswag"][1:],
                                        strict=False))


@pytest.mark.slow
def test_the_scores_are_those_of_lm_eval_where_no_item_flips(sides, reports):
    mine, reference = sides
    assert {k for k in mine.values if k[0] != "rolling"} == {k for k in reference.values if k[0] != "rolling"}
    for (task, key), value in reference.values.items():
        bound = 1e-4 if not reports[task].flips and not reports[task].text_differences else 1 / LIMITS[task]
        assert mine.values[task, key] == pytest.approx(value, rel=bound, abs=bound), (task, key)


@pytest.mark.slow
def test_winogrande_has_two_contexts_and_boolq_long_ones(sides):
    for sample in sides[0].samples["winogrande"]:
        (first, a), (second, b) = sample.prompts
        assert first != second
        assert a == b
    assert max(len(s.prompts[0][0]) for s in sides[0].samples["boolq"]) > 500


def sample(logprobs, continuations=(" a", " b"), metrics=None):
    return parity.Sample(prompts=tuple(("Q", c) for c in continuations), logprobs=tuple(logprobs),
                         metrics=metrics or {"acc,none": 1.0})


def side(*samples):
    return parity.Side(samples={"t": samples}, values={("t", "acc,none"): 0.5}, seconds=0)


def broken(left, right):
    [report] = parity.compare(side(left), side(right), None, None)
    return list(report.broken())


def test_a_log_likelihood_beyond_the_bound_is_told():
    assert broken(sample([-1, -2]), sample([-1, -2.0009])) == []
    assert "differs by 0.0011" in broken(sample([-1, -2]), sample([-1, -2.0011]))[0]
    assert broken(sample([-1, float("nan")]), sample([-1, -2])) != []


def test_a_document_is_bounded_for_each_100_nats():
    assert broken(sample([-1000.0], [" a"]), sample([-1000.009], [" a"])) == []
    assert "differs by 0.0011" in broken(sample([-1000.0], [" a"]), sample([-1000.011], [" a"]))[0]


def test_a_flip_is_allowed_only_for_a_tie():
    wrong = {"acc,none": 0.0}
    assert broken(sample([-1, -1.0015]), sample([-1.0005, -1.0008], metrics=wrong)) == []
    assert "no tie" in broken(sample([-1, -1.01]), sample([-1, -1.01], metrics=wrong))[0]


def test_another_prompt_is_told():
    assert "other prompts" in broken(sample([-1, -2]), sample([-1, -2], (" a", " c")))[0]


def test_a_gap_of_acc_norm_is_in_nats_of_the_shorter_choice():
    one = sample([-1.0, -4.04], (" a", " bbbb"))
    assert parity.tie_gap(one, normed=False) == pytest.approx(3.04)
    assert parity.tie_gap(one, normed=True) == pytest.approx(0.01)


def test_fewer_equal_texts_than_95_in_100_break_the_bound():
    other = parity.TextDifference(0, 3, "a", "b", 1e-5)
    assert list(parity.TaskParity("t", 40, texts=40, text_differences=[other] * 2).broken()) == []
    assert "92.5%" in next(parity.TaskParity("t", 40, texts=40, text_differences=[other] * 3).broken())


def test_discordance_counts_an_item_once():
    flips = [parity.Flip(0, "acc,none", 0, 1, 1e-4), parity.Flip(0, "acc_norm,none", 0, 1, 1e-4)]
    assert parity.discordance([parity.TaskParity("t", 2, flips=flips), parity.TaskParity("u", 2)]) == 1
