"""The switch of the compiled kernels, and evaluations that are continued with and without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.engine.budget import resolve
from aftertune.engine.cpu import autograd, availability
from aftertune.engine.cpu.backend import PackedBackend
from aftertune.engine.schedule import Budget
from aftertune.errors import InputError, ResourceError
from aftertune.ledger import Ledger
from cli_cases import call
from eval_cases import byte_folder, byte_llama, scored_and_generated

SWITCH = availability.SWITCH
needed = pytest.mark.skipif(bool(availability.why_unavailable()), reason="no kernels here")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads the kernels take."""
    return byte_folder(tmp_path_factory.mktemp("model") / "tiny", hidden=64)


def wide() -> Any:
    return byte_llama(hidden=128)


@needed
def test_the_switch_turns_the_kernels_off_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, backend in {"1": "cpu", "": "cpu", "0": "torch"}.items():
        monkeypatch.setenv(SWITCH, value)
        assert resolve(wide(), free=2**30, threads=1).backend == backend
    assert availability.why_unavailable() == "switched off by AFTERTUNE_KERNELS=0"
    assert not availability.amx_available()
    monkeypatch.delenv(SWITCH)
    assert availability.why_unavailable() == ""


def test_without_kernels_weights_are_still_packed_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from aftertune.engine.backends import backend_for

    monkeypatch.setenv(SWITCH, "0")
    budget = resolve(wide(), free=2**33, threads=1)
    assert (budget.backend, budget.weights) == ("torch", "onednn")
    assert type(backend_for(wide(), budget)) is PackedBackend


@needed
def test_the_switch_also_holds_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model = byte_llama(hidden=64)
    for weight in model.parameters():
        weight.requires_grad_(False)
    with autograd.fused(model):
        assert sum("forward" in vars(m) for m in model.modules()) == model.config.num_hidden_layers
    monkeypatch.setenv(SWITCH, "0")
    with autograd.fused(model):
        assert not any("forward" in vars(m) for m in model.modules())


def test_a_switch_that_is_neither_0_nor_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    with pytest.raises(InputError, match=r"AFTERTUNE_KERNELS='off' in the environment: use 0 .* or 1 "):
        availability.why_unavailable()


@pytest.mark.parametrize(("value", "found", "remedy"), [
    ("0", "not used: switched off by AFTERTUNE_KERNELS=0", "unset AFTERTUNE_KERNELS to use them"),
    pytest.param("", "used: compiled and tested", "", marks=needed)])
def test_doctor_shows_the_kernels_and_the_switch(value: str, found: str, remedy: str, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(SWITCH, value)
    assert call(monkeypatch, "doctor", "--json") == 0
    [row] = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["name"] == "CPU kernels"]
    assert row["value"].startswith(found)
    assert SWITCH in row["value"]
    assert row["remedy"] == remedy


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(availability, "why_unavailable", lambda: "there is no C compiler (cc, gcc or clang)")
    assert call(monkeypatch, "doctor", "--json") == 0
    [row] = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["name"] == "CPU kernels"]
    assert (row["value"], row["problem"], row["remedy"]) == (
        "not used: there is no C compiler (cc, gcc or clang)", "evaluation and training are slower",
        "install a C compiler (gcc or clang)")


@pytest.mark.parametrize(("weights", "prepacked"), [("plain", 0), ("onednn", 1), ("amx", 2)])
@pytest.mark.parametrize(("backend", "kernels"), [("torch", 0), ("cpu", 1)])
def test_a_budget_is_stored_in_numbers_as_ever(weights: Any, prepacked: int, backend: Any, kernels: int) -> None:
    """The form that ledgers have had since there were kernels, in the same order."""
    budget = Budget(tokens=1, logits=2, cells=3, slots=4, threads=5, weights=weights, backend=backend, keys=6)
    stored = {"tokens": 1, "logits": 2, "cells": 3, "slots": 4, "threads": 5, "prepacked": prepacked,
              "kernels": kernels, "keys": 6}
    assert list(budget.stored().items()) == list(stored.items())
    assert Budget.load(stored) == budget


class Stopped(Exception):
    """The run is broken off, as by Ctrl-C."""


def stop(after: int) -> Any:
    """Progress that breaks a run off once ``after`` batches are in the ledger."""
    seen: list[int] = []

    def progress(_done: int, _total: int, text: str) -> None:
        seen.extend([1] if text == "answering" else [])
        if len(seen) > after:
            raise Stopped

    return progress


def answers(ledger: Path, evaluation: str) -> dict[int, Any]:
    with Ledger(ledger) as opened:
        return dict(opened.responses(evaluation))


@needed
@pytest.mark.parametrize("begun", ["1", "0"])
def test_a_run_goes_on_with_what_it_was_started_with(begun: str, folder: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Started with kernels, it needs them; started without, it never takes them. Then it is the unbroken run."""
    monkeypatch.setenv(SWITCH, begun)
    whole = scored_and_generated(str(folder), str(tmp_path / "whole.db"), 6, None)
    assert whole.schedule["budget"]["kernels"] == int(begun)
    half = tmp_path / "half.db"
    with pytest.raises(Stopped):
        scored_and_generated(str(folder), str(half), 6, stop(2))
    assert 0 < len(answers(half, whole.id)) < len(answers(tmp_path / "whole.db", whole.id))
    monkeypatch.setenv(SWITCH, "0" if begun == "1" else "1")
    if begun == "1":
        with pytest.raises(ResourceError) as caught:
            scored_and_generated(str(folder), str(half), 6, None)
        assert str(caught.value) == (
            "This evaluation was started with compiled CPU kernels, which are not available here: switched off by "
            "AFTERTUNE_KERNELS=0. Continue it on the machine and with the settings it was started with, or start a new "
            "one with --fork")
        monkeypatch.setenv(SWITCH, "1")
    done = scored_and_generated(str(folder), str(half), 6, None)
    assert done.id == whole.id
    assert done.scores == whole.scores
    assert done.schedule["budget"] == whole.schedule["budget"]
    assert answers(half, done.id) == answers(tmp_path / "whole.db", whole.id)


def test_the_readme_names_every_file_of_the_package() -> None:
    folder = Path(availability.__file__).parent
    text = (folder / "README.md").read_text("utf-8")
    files = {p.name for p in folder.iterdir() if p.suffix in (".py", ".c")} - {"__init__.py"}
    assert len(files) >= 11
    assert {name for name in files if f"| `{name}` |" not in text} == set()
