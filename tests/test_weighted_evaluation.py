"""Evaluations whose items are drawn where the base was unsure: the record, interruptions, and who may read the answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aftertune import early_stopping
from aftertune.comparison import compare, weighted_draws
from aftertune.comparison.weighted_draws import DrawnItems, random_numbers
from aftertune.errors import InputError, NotComparable
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.stats.sequential import random_order_key
from aftertune.stats.weighted import WeightedDraws
from aftertune.study import EarlySpec, EvalSpec, TaskSpec
from aftertune.values import Evaluation, plain
from deciding_cases import QUIET, decide, models, own_task

N = 100
ARC = TaskSpec(name="arc_easy", sample=N)
#: A rule that draws with weights from the first batch on.
FULL = EarlySpec(margin=12, target="full-run", batch=8)


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Weighted drawing of small tasks, so that the tests are fast."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_stopping, "FEW", 40)
        patch.setattr(weighted_draws, "_STRATUM", 6)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The models, a ledger with both complete evaluations (base, whole), and the weighted one with its comparison."""
    tmp = tmp_path_factory.mktemp("weighted")
    found: dict[str, Any] = models(tmp) | {"tmp": tmp}
    with Ledger(tmp / "ledger.db") as ledger:
        base, whole = (evaluate(EvalSpec(model=str(found[m]), tasks=(ARC,), name=n, **QUIET), ledger=ledger)
                       for m, n in (("base", "base"), ("near", "whole")))
        decided = decide(found["near"], "base", [ARC], ledger, early=FULL, name="stopped")
        yield found | {"ledger": ledger, "base_run": base, "whole": whole, "decided": decided}


def values(ledger: Ledger, evaluation: Evaluation, key: str) -> dict[int, float]:
    return {a.index: a.metrics[key] for a in ledger.answers(evaluation.id)}


def content(ledger: Ledger, evaluation: Evaluation) -> str:
    """All that an evaluation came to, floats by their exact bits."""
    responses = [[p, None if r.logprob is None else r.logprob.hex()] for p, r in
                 ledger.responses(evaluation.id).items()]
    schedule = {k: v for k, v in evaluation.schedule.items() if k != "seconds"}
    return json.dumps([responses, [plain(a) for a in ledger.answers(evaluation.id)], plain(evaluation.early),
                       [plain(t) for t in evaluation.tasks], schedule, evaluation.warnings])


def test_the_row_is_a_weighted_estimate_and_the_drawn_items_have_no_score(made: dict[str, Any]) -> None:
    ledger, decided = made["ledger"], made["decided"]
    [unit], [row] = decided.tuned.early.units, decided.comparison.rows
    assert (unit.draw, unit.unequal) == ("weighted", True)
    assert unit.used == row.n == sum(len(b.strata) for b in unit.batches) < row.stopped_of == N
    assert len(unit.batches) >= 3
    assert all(b.weights for b in unit.batches)
    assert decided.tuned.scores == ()
    assert decided.tuned.drawn_unequally("arc_easy")
    assert "no score, because its items were drawn with weights" in " ".join(decided.tuned.warnings)
    base, whole = (values(ledger, made[e], unit.key) for e in ("base_run", "whole"))
    drawn = values(ledger, decided.tuned, unit.key)
    assert row.base == pytest.approx(np.mean([*base.values()]))
    assert row.tuned == pytest.approx(row.base + row.delta)
    assert row.gained is row.lost is None
    assert row.verdict == row.full_verdict or row.verdict in ("no_loss", "undecided")
    assert row.full_low <= np.mean([*whole.values()]) - row.base <= row.full_high
    assert {i: whole[i] for i in drawn} == drawn  # the same model
    assert decided.tuned.schedule.get("drawn") is None
    assert "items were drawn where the base was unsure" in row.note


def test_the_record_alone_repeats_draws_estimate_and_verdict(made: dict[str, Any]) -> None:
    """From the stored strata, weights and seed: which items were drawn, and the importance-weighted mean."""
    ledger, decided = made["ledger"], made["decided"]
    [unit], [row] = decided.tuned.early.units, decided.comparison.rows
    order = sorted(ledger.items(made["base_run"].id), key=lambda i: random_order_key(0, i.task, i.index, i.hash))
    base = values(ledger, made["base_run"], unit.key)
    drawn = values(ledger, decided.tuned, unit.key)
    unseen = {k: [i.index for i, letter in zip(order, unit.strata, strict=True) if letter == chr(97 + k)]
              for k in range(len(unit.ranks))}
    total, estimates, asked = 0.0, [], []
    numbers = random_numbers(0, "arc_easy", 0, unit.used)
    for batch in unit.batches:
        for k in batch.strata:
            mass = np.cumsum([batch.weights[j] * len(unseen[j]) for j in unseen])
            assert int(np.searchsorted(mass, numbers[len(asked)] * mass[-1], side="right")) == k
            expected = sum(batch.predictions[j] * len(unseen[j]) for j in unseen)
            index = unseen[k].pop(0)
            d = drawn[index] - base[index]
            estimates.append(total + expected + mass[-1] * (d - batch.predictions[k]) / batch.weights[k])
            total += d
            asked.append(index)
    assert set(asked) == set(drawn)
    assert row.delta == pytest.approx(min(max(np.mean(estimates) / N, row.low), row.high))
    again = compare("base", "stopped", margins={"arc_easy": 0.12}, ledger=ledger, save=False)
    [same] = again.rows
    changed = {k for k, v in plain(same).items() if v != plain(row)[k]}
    assert changed <= {"note"}
    narrow = compare("base", "stopped", margins=0.001, ledger=ledger, save=False).rows[0]
    assert (narrow.delta, narrow.n) == (row.delta, row.n)
    assert narrow.full_verdict not in ("within", "lower", "higher")


class Stopped(Exception):
    """The run is broken off, as by Ctrl-C."""


@pytest.mark.parametrize(("calls", "fail_after"), [(3, False), pytest.param(2, True, marks=pytest.mark.slow),
                                                   pytest.param(14, False, marks=pytest.mark.slow)])
def test_a_run_that_is_broken_off_goes_on_to_the_same_bytes(made: dict[str, Any], calls: int, fail_after: bool,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where other tunings of the base were evaluated meanwhile, and where this version would draw otherwise."""
    path = made["tmp"] / f"broken-{calls}.db"
    with Ledger(path) as ledger:
        base = evaluate(EvalSpec(model=str(made["base"]), tasks=(ARC,), name="base", **QUIET), ledger=ledger)
        save, count = Ledger.change_schedule if fail_after else Ledger.save_batch, [0]

        def broken(self: Ledger, *given: Any) -> Any:
            count[0] += 1
            done = save(self, *given) if fail_after else None
            if count[0] >= calls:
                raise Stopped
            return done if fail_after else save(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(Ledger, save.__name__, broken)
            with pytest.raises(Stopped):
                decide(made["near"], "base", [ARC], ledger, early=FULL, name="stopped")
        begun = next(e for e in ledger.evaluations() if e.name == "stopped")
        assert (ledger.schedule(begun.id) or {}).get("drawn") or calls < 2
        seen = len((ledger.schedule(begun.id) or {})["drawn"]["arc_easy"])
        monkeypatch.setattr(early_stopping, "earlier_tunings", lambda *_: [base])
        real, drawn = WeightedDraws.design, [0]

        def later(self: WeightedDraws, rejected: Any = None) -> Any:
            drawn[0] += 1
            return real(self, rejected)

        monkeypatch.setattr(WeightedDraws, "design", later)
        found = decide(made["near"], "base", [ARC], ledger, early=FULL, name="stopped")
        expected = made["decided"]
        assert found.tuned.id == expected.tuned.id
        assert drawn[0] == len(found.tuned.early.units[0].batches) - seen  # what was recorded is not drawn again
        assert content(ledger, found.tuned) == content(made["ledger"], expected.tuned)
        assert found.comparison.rows == expected.comparison.rows


def test_how_items_are_drawn_and_why(made: dict[str, Any], tmp_path: Path) -> None:
    own = own_task(tmp_path, made["base"], 30, "few")
    wide = EarlySpec(margin=60)
    with Ledger(tmp_path / "ledger.db") as ledger:
        alongside = decide(made["near"], made["base"], [ARC], ledger, early=wide)
        assert alongside.tuned.early.units[0].draw == ""
        assert "equal chances, because the ledger does not have the base's answers" in " ".join(
            alongside.tuned.warnings)
        first = decide(made["near"], made["base"], [ARC], ledger, early=EarlySpec(margin=60, draw="weighted"))
        assert first.tuned.early.units[0].draw == "weighted"
        assert (first.base.early, first.base.status, first.base.tasks[0].used) == (None, "done", None)
        again = decide(made["broken"], made["base"], [ARC], ledger, early=EarlySpec(margin=60, draw="weighted"))
        assert again.base == first.base  # asked once
        uniform = decide(made["near"], first.base.id, [ARC], ledger, early=EarlySpec(margin=60, draw="uniform"))
        assert uniform.tuned.early.units[0].draw == ""
        assert uniform.tuned.id != first.tuned.id
        assert not any("drawn" in w for w in uniform.tuned.warnings)
        # what was begun with equal chances goes on so
        assert decide(made["near"], first.base.id, [ARC], ledger, early=wide).tuned == uniform.tuned
        narrow = decide(made["near"], first.base.id, [ARC], ledger, early=EarlySpec(margin=2, min_items=N))
        assert narrow.tuned.early.units[0].draw == ""
        assert "too few items for weights to help" in " ".join(narrow.tuned.warnings)
        with pytest.raises(InputError, match=r"no task can be drawn with weights .few: it has no more than 40 items"):
            decide(made["near"], made["base"], [own], ledger, early=EarlySpec(draw="weighted"))


def test_a_base_in_the_working_folder_is_asked_on_after_an_interruption(
        made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evaluation has the name of the folder, and is not done yet."""
    def stop(done: int, total: int, text: str) -> None:
        if text == "answering" and done:
            raise KeyboardInterrupt

    monkeypatch.chdir(made["tmp"])
    asked: dict[str, Any] = {"early": EarlySpec(margin=60, draw="weighted")}
    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(KeyboardInterrupt):
            decide(made["near"], "base", [ARC], ledger, stop, **asked)
        assert [(e.name, e.status) for e in ledger.evaluations()] == [("base", "running")]
        assert decide(made["near"], "base", [ARC], ledger, **asked).base.id == made["base_run"].id


def test_where_all_items_were_asked_the_usual_row_knows_of_the_looks(made: dict[str, Any], tmp_path: Path) -> None:
    ledger = made["ledger"]
    decided = decide(made["near"], "base", [ARC], ledger, early=EarlySpec(margin=5, target="full-run", min_items=N),
                     name="all")
    [unit], row = decided.tuned.early.units, decided.comparison.rows[0]
    assert (unit.draw, unit.used, unit.unequal, row.stopped_of) == ("weighted", N, False, None)
    assert decided.tuned.scores == made["whole"].scores
    assert row.delta == pytest.approx(compare("base", "whole", ledger=ledger, save=False).rows[0].delta)
    assert "after interim analyses" in row.note


def test_only_the_complete_base_has_an_estimate_beside_it(made: dict[str, Any]) -> None:
    """Reversed, or beside another evaluation that stopped, the drawn items would be taken for a sample."""
    ledger = made["ledger"]
    other = decide(made["broken"], "base", [ARC], ledger, early=replace_draw("uniform"), name="uniform")
    for left, right in (("stopped", "base"), (other.tuned.id, "stopped"), ("stopped", other.tuned.id)):
        with pytest.raises(NotComparable, match=r"has no row, because its items were drawn where a base was unsure"):
            compare(left, right, ledger=ledger, save=False)
    two = compare("whole", "stopped", ledger=ledger, save=False)  # another complete evaluation of the same items
    assert two.rows[0].base == pytest.approx(made["whole"].scores[-1].value, abs=0.2)


def replace_draw(draw: Any) -> EarlySpec:
    return FULL.model_copy(update={"draw": draw})


def test_earlier_tunings_are_found_and_only_change_the_draws(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
                                                             ) -> None:
    ledger = made["ledger"]
    assert made["decided"].tuned.early.units[0].earlier == ()  # no lineage is proven between these models
    monkeypatch.setattr(early_stopping, "earlier_tunings", lambda *_: [made["whole"]])
    decided = decide(made["broken"], "base", [ARC], ledger, early=replace_draw("weighted"), name="later")
    [profile] = decided.tuned.early.units[0].earlier
    assert len(profile) == len(decided.tuned.early.units[0].ranks)
    assert all(0 < p < 1 for p in profile)


def test_clusters_of_a_repeated_test_are_those_of_the_run(made: dict[str, Any]) -> None:
    unit = made["decided"].tuned.early.units[0]
    base = np.array([1.0] * N)
    with pytest.raises(ValueError, match="items of a batch have no answer"):
        DrawnItems(unit=unit, base=base, tuned={}, labels=None).repeated_test(0.02, alpha=0.05, models=True)
