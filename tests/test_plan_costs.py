"""Estimates of a plan: a method without a measured pace is compared with the others by the operations alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import ledger_cases as cases
from aftertune.ledger import Ledger
from aftertune.pipeline import planning
from aftertune.pipeline.cells import cells_of
from aftertune.pipeline.planning import Costs
from aftertune.study import Study
from aftertune.tuning.estimate import Machine, estimate_tuning
from eval_cases import CHAT, byte_folder
from tuning_cases import easy_rows, write_rows


def test_the_pace_of_one_method_does_not_make_another_look_cheaper(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured pace is a thousand times slower than the machine's rate says, as with a tiny model."""
    byte_folder(tmp_path / "base")
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 80, encoding="utf-8")
    study = Study.parse({
        "study": "s", "bases": {"b": {"model": str(tmp_path / "base")}}, "tasks": [{"name": "arc_easy"}],
        "tunings": {m: {"base": "b", "data": "d.jsonl", "method": m} for m in ("lora", "dora", "full")},
    }, where="s.yaml", folder=tmp_path)
    monkeypatch.setattr(Costs, "machine", Machine("cpu", "float32", 1e12))
    cells = {c.subject: c for c in cells_of(study) if c.kind == "tuning"}
    with Ledger(tmp_path / "ledger.db") as ledger:
        by_rate = {name: Costs(study, ledger).of(cell).seconds for name, cell in cells.items()}
        shape, _ = Costs(study, ledger).shape(study.bases["b"])
        assert shape is not None
        done = cases.tuning("t1", "first", status="done", cost={"seconds": 10 * 1000 * by_rate["lora"]},
                            steps=tuple({"step": n, "loss": 1.0} for n in range(1, 101)),
                            settings={"batch_size": 8, "accumulation": 1})
        ledger.save_tuning(replace(done, base=replace(done.base, parameters=shape.parameters)))
        costs = {name: Costs(study, ledger).of(cell) for name, cell in cells.items()}
    assert costs["lora"].seconds == pytest.approx(1000 * by_rate["lora"])
    for name in ("dora", "full"):
        assert costs[name].seconds / costs["lora"].seconds == pytest.approx(by_rate[name] / by_rate["lora"])
        assert "the pace of tuning first, and the operations of" in costs[name].basis


def test_data_that_are_here_are_read_for_the_memory_of_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_folder(tmp_path / "base", template=CHAT, window=4096)
    write_rows(tmp_path / "d.jsonl", easy_rows())
    study = Study.parse({
        "study": "s", "bases": {"b": {"model": str(tmp_path / "base")}}, "tasks": [{"name": "arc_easy"}],
        "matrix": {"base": "b", "data": "d.jsonl", "method": "full", "replay": [None, "base:4"], "seed": [0, 1]},
    }, where="s.yaml", folder=tmp_path)
    monkeypatch.setattr(Costs, "machine", Machine("cpu", "float32", 1e12))
    costs = Costs(study, None)
    found = {c.subject: costs.of(c).memory for c in cells_of(study) if c.kind == "tuning"}
    specs = {name: t.spec(study.bases["b"], name=name, dtype="float32", device="cpu", out=tmp_path)
             for name, t in study.tunings.items()}
    assert found == {name: estimate_tuning(spec).memory for name, spec in specs.items()}
    assert len(costs._workloads) == 1, "the seed and answers of the base do not matter"
    monkeypatch.setattr(planning, "LARGE", 10)
    large = Costs(study, None)
    assert min(large.of(c).memory or 0 for c in cells_of(study) if c.kind == "tuning") > max(found.values())
