"""The functions for early stopping, checkpoints and exports, which the command line has as verbs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import aftertune
from aftertune.errors import InputError
from aftertune.ledger import Ledger
from cli_cases import settle
from eval_cases import byte_folder
from source_cases import tiny_adapter
from tuning_cases import write_rows

FIXED: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1, "progress": False}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, an adapter of it, and a file of one's own."""
    settle(monkeypatch, tmp_path)
    byte_folder(tmp_path / "base", window=512)
    tiny_adapter(tmp_path / "base", tmp_path / "adapter")
    write_rows(tmp_path / "held.jsonl", [{"prompt": f"say {n}:", "completion": f"w{n}"} for n in range(24)])
    return tmp_path


@pytest.fixture
def base(place: Path) -> aftertune.Evaluation:
    return aftertune.evaluate("base", target="held.jsonl", target_tokens=4, name="before", **FIXED)


def test_an_evaluation_stops_at_its_verdicts(place: Path, base: aftertune.Evaluation) -> None:
    asked: dict[str, Any] = {"target": "held.jsonl", "target_tokens": 4, "adapter": "adapter", "max_items": 16, **FIXED}
    tuned = aftertune.evaluate("base", until_decided=base, **asked)
    assert tuned.early is not None
    assert tuned.task("held").used == 16  # type: ignore[union-attr]
    again = [aftertune.evaluate("base", until_decided=other, **asked) for other in (base.id, "before", True)]
    assert {e.id for e in again} == {tuned.id}  # True found the stored evaluation of the adapter's base
    row = next(r for r in aftertune.compare(base, tuned).rows if r.primary)
    assert row.n == 16


@pytest.mark.parametrize(("settings", "line"), [
    ({"margin": 3}, "margin has no effect without until_decided"),
    ({"max_items": 8, "until_decided": False}, "max_items has no effect without until_decided"),
    ({"until_decided": True}, "until_decided=True takes the base of an adapter"),
    ({"until_decided": 3}, "until_decided is a int"),
    ({"until_decided": "before", "margin": 300}, "`margin`")])
def test_settings_without_effect_are_refused(place: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as error:
        aftertune.evaluate("base", target="held.jsonl", **settings, **FIXED)
    assert line in str(error.value)


def test_checkpoints_of_a_trainer(place: Path) -> None:
    for step in (5, 10):
        tiny_adapter(place / "base", place / "out" / f"checkpoint-{step}", seed=step)
    threads = torch.get_num_threads()
    asked: dict[str, Any] = {"target": "held.jsonl=16", "scorer": "contains", **FIXED, "threads": threads + 1}
    series = aftertune.checkpoints("out", "base", **asked)
    assert torch.get_num_threads() == threads  # the caller's process has other work, too
    assert sorted(series.evaluations) == [5, 10]
    assert {(p.step, p.task) for p in series.tuning.watch} == {(5, "held"), (10, "held")}
    assert sorted(aftertune.checkpoints("out", "base", steps=[10], **asked).evaluations) == [10]
    with pytest.raises(InputError, match="there are no tasks to evaluate; add for example watch="):
        aftertune.checkpoints("out", "base", **FIXED)
    with pytest.raises(InputError, match="no checkpoint of step 7"):
        aftertune.checkpoints("out", "base", steps="7", **asked)


def test_exports(place: Path, base: aftertune.Evaluation) -> None:
    table = aftertune.export(base, "csv")
    assert table.paths == ()
    assert [row["task"] for row in csv.DictReader(io.StringIO(table.text))] == ["held"]
    assert str(table) == table.text
    [written] = aftertune.export("all", "markdown", out="table.md").paths
    assert written.read_text(encoding="utf-8").startswith("## all")
    files = aftertune.export("before", out="files", progress=False)
    assert files.paths == (*files.results, *files.samples)
    assert all(p.is_file() for p in files.paths)
    [folder] = aftertune.export(base, "bundle", out="bundle", progress=False).paths
    assert (folder / "manifest.json").is_file()
    with pytest.raises(InputError, match="format is 'cvs' \\(did you mean 'csv'"):
        aftertune.export(base, "cvs")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="found a int"):
        aftertune.export(3)  # type: ignore[arg-type]
    with Ledger() as ledger:
        assert "before" in aftertune.export("all", "json", ledger=ledger).text


def test_print_shows_a_table(place: Path, base: aftertune.Evaluation) -> None:
    text = str(base)
    assert text.startswith(f"before, evaluation {base.id}\n")
    assert "exact_match" in text
    assert "fingerprint" not in text
    assert max(map(len, text.splitlines())) <= 100
    other = aftertune.evaluate("base", adapter="adapter", target="held.jsonl", target_tokens=4, name="after", **FIXED)
    text = str(aftertune.compare(base, other))
    assert "after against before" in text
    assert "Verdict" in text
    assert repr(base).startswith("Evaluation(id=")
    lines = str(aftertune.gate(base, other, {"held": 2})).splitlines()
    assert lines[0] == "the gate passed"
    assert lines[1].split() == ["task", "outcome", "reason"]
    assert lines[2].startswith("held  floor    the base is at the floor")
    with Ledger() as ledger:
        found = ledger.search("after", kind="evaluation")
        assert str(found).splitlines()[0] == "1 entry"
        assert "after" in str(found).splitlines()[2]
