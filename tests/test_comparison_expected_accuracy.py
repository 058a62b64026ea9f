"""Expected accuracy: the formula, the rows of a comparison, the choice of the primary metric, and what has none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aftertune.comparison import choose_primary, compare
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from aftertune.tasks.scoring import expected_accuracy
from aftertune.values import Answer, Asked, Evaluation, Item, ModelIdentity, Response, Score, digest
from early_cases import ADAPTED, BASE, settings

CHOICES = ("short", "rather longer", "x")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def answered(ledger: Ledger, name: str, model: ModelIdentity, logprobs: np.ndarray, *, asked: bool = True,
             task: str = "quiz") -> Evaluation:
    """A finished evaluation of one multiple-choice task, [items, choices]; the first choice is right."""
    lengths = np.array([len(c) for c in CHOICES])
    right = (logprobs / lengths).argmax(axis=1) == 0
    items = [Item(task=task, index=i, hash=digest(f"item {i}"), doc={"q": f"item {i}"},
                  asked=Asked(question=f"item {i}", choices=CHOICES, gold=(0,)) if asked else None)
             for i in range(len(logprobs))]
    positions = [tuple(range(3 * i, 3 * i + 3)) for i in range(len(items))]
    answers = [Answer(task=task, index=i, item=items[i].hash, metrics={"acc_norm,none": float(right[i])})
               for i in range(len(items))]
    evaluation = Evaluation(id=f"e-{name}", name=name, model=model, device="cpu", dtype="float32", engine="packed",
                            tasks=(replace(settings(task, len(items)), primary="acc_norm,none"),))
    ledger.open_evaluation(evaluation, items)
    ledger.acquire(evaluation.id)
    ledger.save_batch(evaluation.id, 0, {3 * i + c: Response(logprob=float(logprobs[i, c]), greedy=False)
                                         for i in range(len(items)) for c in range(3)})
    score = Score(task=task, metric="acc_norm", filter="none", value=float(right.mean()), stderr=None, n=len(items),
                  primary=True)
    return ledger.finish_evaluation(replace(evaluation, scores=(score,)), answers, positions)


def both(ledger: Ledger, items: int = 300) -> tuple[Evaluation, Evaluation]:
    rng = np.random.default_rng(1)
    base = -np.abs(rng.normal(0, 2, (items, 3))) - np.array([2.0, 8, 3])
    return answered(ledger, "base", BASE, base), answered(ledger, "tuned", ADAPTED,
                                                          base + rng.normal(0, 0.1, base.shape))


def test_the_share_is_a_softmax_of_whole_texts_at_their_mean_length() -> None:
    value = expected_accuracy([-2.0, -3.0], gold=[0], lengths=[4, 8])
    a, b = math.exp(-2 / 4 * 6), math.exp(-3 / 8 * 6)
    assert value == pytest.approx(a / (a + b))
    assert expected_accuracy([-2.0, -3.0], gold=[0]) == pytest.approx(1 / (1 + math.exp(-1)))


def test_it_agrees_with_normalized_accuracy_on_the_most_likely_choice() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        logprobs, lengths = -rng.exponential(20, 4), rng.integers(1, 60, 4)
        shares = [expected_accuracy(logprobs, gold=[k], lengths=lengths) for k in range(4)]
        assert sum(shares) == pytest.approx(1)
        assert int(np.argmax(shares)) == int((logprobs / lengths).argmax())


@pytest.mark.parametrize(("logprobs", "gold", "expected"), [
    ([-1e4, -2e4], [0], 1.0), ([-math.inf, -1.0], [0], 0.0), ([-math.inf, -math.inf], [0], None),
    ([math.nan, -1.0], [1], None), ([-1.0, -1.0], [], None), ([-1.0, -1.0], [2], None), ([-1.0, -1.0], [0, 1], 1.0)])
def test_extreme_log_likelihoods_give_a_share_or_none(logprobs: list[float], gold: list[int], expected: float | None
                                                      ) -> None:
    assert expected_accuracy(logprobs, gold=gold) == expected


def test_a_comparison_shows_it_beside_accuracy_and_stored_evaluations_stay(ledger: Ledger) -> None:
    base, tuned = both(ledger)
    rows = {r.metric: r for r in compare(base, tuned, margins=0.02, ledger=ledger).rows}
    assert list(rows) == ["acc_norm", "prob"]
    assert (rows["acc_norm"].primary, rows["prob"].primary) == (True, False)
    assert rows["prob"].unit == "mean of shares"
    assert 0 < rows["prob"].base < 1
    assert [s.metric for s in ledger.find_evaluation(base.id).scores] == ["acc_norm"]
    assert list(ledger.answers(base.id)[0].metrics) == ["acc_norm,none"]


def test_as_the_primary_metric_it_proves_more_with_the_same_items(ledger: Ledger) -> None:
    base, tuned = both(ledger)
    usual = compare(base, tuned, margins=0.02, ledger=ledger)
    chosen = compare(choose_primary(base, "prob"), choose_primary(tuned, "prob"), margins=0.02, ledger=ledger)
    assert chosen.id != usual.id
    row = chosen.rows[0]
    assert (row.metric, row.primary, row.verdict) == ("prob", True, "within")
    assert row.high - row.low < usual.rows[0].high - usual.rows[0].low
    again = compare(choose_primary(base, "acc_norm"), choose_primary(tuned, "acc_norm"), margins=0.02, ledger=ledger)
    assert again.id == usual.id


def test_evaluations_without_the_choices_have_none_and_say_so_where_it_is_chosen(ledger: Ledger) -> None:
    logprobs = -np.abs(np.random.default_rng(0).normal(5, 2, (40, 3)))
    base = answered(ledger, "base", BASE, logprobs, asked=False)
    tuned = answered(ledger, "tuned", ADAPTED, logprobs, asked=False)
    assert [r.metric for r in compare(base, tuned, ledger=ledger).rows] == ["acc_norm"]
    with pytest.raises(InputError, match="no log-likelihoods of the choices"):
        compare(choose_primary(base, "prob"), choose_primary(tuned, "prob"), ledger=ledger)


def test_a_metric_that_no_task_has_is_refused_with_those_that_there_are(ledger: Ledger) -> None:
    base, _ = both(ledger, 30)
    with pytest.raises(InputError, match=r"no metric 'f1'.*its metrics: acc_norm, prob"):
        choose_primary(base, "f1")
    with pytest.raises(InputError, match="task 'other'"):
        choose_primary(base, "prob", "other")


def test_the_command_takes_it_as_an_option(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from aftertune.cli import app

    both(ledger)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(ledger.database.path))
    result = CliRunner().invoke(app, ["compare", "base", "tuned", "--primary", "quiz=prob", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["rows"]
    assert [(r["metric"], r["primary"]) for r in rows] == [("prob", True), ("acc_norm", False)]


def test_the_command_judges_all_its_fine_tunes_together_on_request(ledger: Ledger, monkeypatch: pytest.MonkeyPatch
                                                                   ) -> None:
    from typer.testing import CliRunner

    from aftertune.cli import app

    base, _ = both(ledger)
    answered(ledger, "other", replace(ADAPTED, adapter="another"), np.zeros((300, 3)) - 5)
    monkeypatch.setenv("AFTERTUNE_LEDGER", str(ledger.database.path))
    sizes = []
    for family in ("pair", "study"):
        result = CliRunner().invoke(app, ["compare", "base", "tuned", "other", "--family", family, "--json"])
        assert result.exit_code == 0, result.output
        sizes.append([c["rows"][0]["family_size"] for c in json.loads(result.output)["comparisons"]])
    assert sizes == [[1, 1], [2, 2]]
    result = CliRunner().invoke(app, ["compare", base.id, "tuned", "--family", "all"])
    assert isinstance(result.exception, InputError)
