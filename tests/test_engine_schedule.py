"""The schedule: batches and waves are pure functions that respect the budget, and a budget is read from sizes."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aftertune.engine.budget import PROBE, measure_token_memory, resolve
from aftertune.engine.memory import lazy_zeros, split_on_oom
from aftertune.engine.schedule import TOKENS_PER_SLOT, Budget, batches, slot_count, waves
from aftertune.errors import ResourceError
from eval_cases import byte_llama

shapes = st.lists(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), max_size=40)
budgets = st.builds(Budget, tokens=st.integers(1, 400), logits=st.integers(1, 200), cells=st.integers(1, 9000),
                    slots=st.integers(1, 9), threads=st.just(1))


@dataclass(frozen=True)
class Kind:
    """padded: rows as long as the longest; past: tokens that every row sees too."""

    padded: bool
    past: int


kinds = st.builds(Kind, st.booleans(), st.integers(0, 100))


def fits(rows: list[tuple[int, int]], budget: Budget, kind: Kind) -> bool:
    """The definition: a batch within every limit."""
    width = max(length for length, _ in rows)
    tokens = len(rows) * width if kind.padded else sum(length for length, _ in rows)
    return (tokens <= budget.tokens and sum(kept for _, kept in rows) <= budget.logits
            and len(rows) * width * (kind.past + width) <= budget.cells)


@given(shapes, budgets, kinds)
def test_batches_hold_every_row_once_within_the_budget(rows: list[tuple[int, int]], budget: Budget, kind: Kind
                                                       ) -> None:
    cut = batches(rows, budget, padded=kind.padded, past=kind.past)
    assert sorted(i for batch in cut for i in batch) == list(range(len(rows)))
    for batch in cut:
        assert len(batch) == 1 or fits([rows[i] for i in batch], budget, kind)
    order = [rows[i][0] for batch in cut for i in batch]
    assert order == sorted(order, reverse=True)
    assert cut == batches(list(rows), replace(budget), padded=kind.padded, past=kind.past)


@given(shapes, budgets, kinds)
def test_no_batch_is_cut_short(rows: list[tuple[int, int]], budget: Budget, kind: Kind) -> None:
    cut = batches(rows, budget, padded=kind.padded, past=kind.past)
    for batch, after in itertools.pairwise(cut):
        assert not fits([rows[i] for i in [*batch, after[0]]], budget, kind)


@given(shapes, budgets)
def test_rows_are_padded_unless_told(rows: list[tuple[int, int]], budget: Budget) -> None:
    assert batches(rows, budget) == batches(rows, budget, padded=True, past=0)


def test_flat_batches_hold_more_and_a_prefix_counts() -> None:
    budget = Budget(tokens=100, logits=100, cells=9000, slots=1, threads=1)
    rows = [(60, 1), *[(10, 1)] * 4]
    assert batches(rows, budget) == [[0], [1, 2, 3, 4]]
    assert batches(rows, budget, padded=False) == [[0, 1], [2, 3, 4]]  # two rows of 60 keys for 60 queries: 7,200 cells
    assert batches(rows, budget, padded=False, past=20) == [[0], [1, 2, 3, 4]]


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 7))
def test_waves_hold_every_text_once_the_longest_first(lengths: list[int], size: int) -> None:
    texts = list(enumerate(lengths))
    cut = waves(texts, size, lambda text: text[1])
    order = [text for wave in cut for text in wave]
    assert order == sorted(texts, key=lambda text: (-text[1], text[0]))
    assert [len(wave) for wave in cut[:-1]] == [size] * (len(cut) - 1)
    assert all(1 <= len(wave) <= size for wave in cut)


@given(st.integers(1, 200), st.integers(0, 50_000), st.integers(1, 20_000))
def test_slots_of_more_room_are_fewer(count: int, keys: int, room: int) -> None:
    budget = Budget(tokens=1, logits=1, cells=1, slots=count, threads=1, keys=keys)
    held = keys or count * TOKENS_PER_SLOT  # a budget of an older release says nothing of keys
    actual = slot_count(budget, room)
    assert 1 <= actual <= count
    assert actual == 1 or actual * room <= held
    assert actual == count or (actual + 1) * room > held
    assert slot_count(budget, room + 1) <= actual


def test_less_memory_never_allows_more() -> None:
    model = byte_llama()
    actual = [resolve(model, free=free, threads=2) for free in (0, 10**5, 10**6, 10**7, 10**8, 10**9, 10**12)]
    for less, more in itertools.pairwise(actual):
        assert all(getattr(less, f) <= getattr(more, f) for f in ("tokens", "logits", "cells", "keys"))
    assert all(b.tokens >= 1 and b.logits >= 1 and b.cells >= 1 and b.keys >= 1 for b in actual)
    assert actual[0] != actual[-1]
    assert Budget.load(actual[2].stored()) == actual[2]


@pytest.mark.parametrize(("per_token", "found"), [(1000, 1024), (1024, 1024), (1025, 2048), (0, 1)])
def test_what_a_token_takes_is_measured_and_rounded_up(per_token: int, found: int) -> None:
    tokens: list[int] = []

    def peak(run: Any) -> int:
        tokens.append(run.args[0].numel())
        run()
        return 10**6 + per_token * tokens[-1] + 7 * (len(tokens) == 1)

    assert measure_token_memory(byte_llama(), peak) == found
    assert tokens == [PROBE, PROBE, 2 * PROBE, 2 * PROBE]


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="what is resident is read from /proc")
def test_zeros_take_memory_when_they_are_written_to() -> None:
    before = resident()
    held = lazy_zeros((64, 2**20), torch.float32)
    assert resident() - before < 2**26
    held[:32] = 1
    assert resident() - before > 2**26
    assert float(held.sum()) == 32 * 2**20
    assert lazy_zeros((3, 0, 2), torch.bfloat16).shape == (3, 0, 2)
    with pytest.raises(MemoryError, match="not enough memory for"):
        lazy_zeros((2**46, 2**10), torch.float32)


@given(st.integers(1, 40), st.sets(st.integers(0, 30), max_size=6))
def test_out_of_memory_splits_until_all_is_done(count: int, fail: set[int]) -> None:
    calls: list[int] = []
    splits: list[int] = []

    def run(parts: list[int]) -> dict[int, int]:
        calls.append(len(parts))
        if len(parts) > 1 and len(calls) - 1 in fail:
            raise RuntimeError("MPS backend out of memory")
        return {p: p * p for p in parts}

    assert split_on_oom(list(range(count)), run, splits.append) == {p: p * p for p in range(count)}
    assert len(splits) == sum(1 for n, size in enumerate(calls) if n in fail and size > 1)


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(_: list[Any]) -> dict[int, Any]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def full(_: list[Any]) -> dict[int, Any]:
        raise MemoryError

    with pytest.raises(RuntimeError, match="mat1"):
        split_on_oom([1, 2], broken, lambda _: None)
    with pytest.raises(ResourceError, match="one row in the batch"):
        split_on_oom([1, 2], full, lambda _: None)
