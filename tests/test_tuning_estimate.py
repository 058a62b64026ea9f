"""The estimate of memory, disk and time: its arithmetic, and that it is stored beside what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.study import DataSpec, TuneSpec
from aftertune.study.presets import PRESETS
from aftertune.tuning import estimate_tuning, tune
from aftertune.tuning.estimate import PROGRAM_BYTES, Machine, Workload, estimate
from tuning_cases import rows, tiny_model, write_rows

SMALL = PRESETS["smollm2-135m"].shape
LOAD = Workload(examples=320, tokens=19_200, longest=120, learned=9_600, held_out=2_000)
CPU = Machine("cpu", "bfloat16", rate=4e11)


def spec(**values: object) -> TuneSpec:
    return TuneSpec(**{"model": "org/model", "data": DataSpec(file="rows.jsonl"), **values})


def test_steps_and_tokens_follow_the_recipe() -> None:
    one = estimate(SMALL, spec(batch_size=8), LOAD, CPU)
    assert (one.steps, one.tokens) == (40, 19_200)
    assert estimate(SMALL, spec(batch_size=4, accumulation=2, epochs=2), LOAD, CPU).steps == 80
    assert estimate(SMALL, spec(batch_size=8, max_steps=10), LOAD, CPU).tokens == 4_800


def test_full_takes_sixteen_bytes_a_parameter_and_four_bits_take_less_than_sixteen() -> None:
    """Weights, gradients and two moments in float32; the rest is the same for a batch of one short row."""
    row = Workload(1, 10, 10, 5)
    need = {m: estimate(SMALL, spec(method=m, batch_size=1), row, CPU).memory - PROGRAM_BYTES
            for m in ("full", "lora", "qlora")}
    assert need["full"] == pytest.approx(16 * SMALL.parameters, rel=0.05)
    assert need["qlora"] < need["lora"] < need["full"] / 4


def test_kept_checkpoints_are_part_of_the_disk() -> None:
    def disk(**values: object) -> int:
        return estimate(SMALL, spec(batch_size=8, epochs=5, watch={"tasks": {"arc_easy": 8}}, **values), LOAD, CPU).disk

    none = disk()  # 200 steps, a look every 50
    adapter = (disk(keep_checkpoints="all") - none) / 4
    assert disk(keep_checkpoints=1) - none == adapter
    assert disk(keep_checkpoints=1, keep_best="arc_easy") - none == 2 * adapter
    assert disk(method="full", keep_checkpoints=3) - disk(method="full") == 3 * 2 * SMALL.parameters


def test_time_is_products_over_the_rate_that_is_reached() -> None:
    """LoRA: twice two operations a weight and token; nothing held out, head and adapters apart."""
    load = Workload(320, 19_200, 120, 0)
    found = estimate(SMALL, spec(lora={"r": 1}), load, CPU)
    assert found.seconds == pytest.approx(4 * SMALL.linear * 19_200 / (CPU.rate * 0.5), rel=0.02)
    again = estimate(SMALL, spec(lora={"r": 1}, gradient_checkpointing=True), load, CPU)
    assert again.seconds == pytest.approx(1.5 * found.seconds, rel=0.02)
    assert again.memory < found.memory
    assert estimate(SMALL, spec(), load, Machine("cpu", "bfloat16")).seconds is None


def test_a_run_keeps_what_it_took_beside_what_was_expected(tmp_path: Path) -> None:
    data = DataSpec(file=write_rows(tmp_path / "d.jsonl", rows()))
    spec = TuneSpec(model=str(tiny_model(tmp_path / "base")), data=data, out=tmp_path / "out", max_steps=2)
    before = estimate_tuning(spec)
    cost = tune(spec).cost
    assert cost["estimated_memory"] == before.memory
    assert cost["seconds"] > 0
    assert cost["memory"] > 50 * 2**20


def test_nothing_is_fetched_for_a_preset(tmp_path: Path) -> None:
    found = estimate_tuning(TuneSpec(model="tinyllama", method="qlora", data=DataSpec(file="alpaca", examples=50000)))
    assert found.steps == 50000 // 8
    assert 2**30 < found.memory < 16 * 2**30
    assert not list(tmp_path.iterdir())
