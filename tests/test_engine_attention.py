"""The layouts of a flat batch against their definition: each token attends, by softmax, to exactly the keys that its
own sequence has up to it, no further back than the window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from aftertune.engine import attention
from aftertune.engine.attention import Call, TorchPrefix, TorchRows, TorchSlots, TorchStep
from aftertune.engine.packing import PackedRow, packed_row, prompt_row
from aftertune.engine.tokenize import TokenSequence

HEADS, SHARED, SIZE = 4, 2, 6
LAYER = object()
CPU = torch.device("cpu")


@dataclass
class Tokens:
    """Random queries, keys and values of some tokens [tokens, heads, size]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def random(cls, count: int, seed: int, *, values: int = SIZE, heads: int = HEADS, shared: int = SHARED) -> Tokens:
        rng = torch.Generator().manual_seed(seed)
        return cls(*(torch.randn(count, h, s, generator=rng) * 2
                     for h, s in ((heads, SIZE), (shared, SIZE), (shared, values))))

    def heads_first(self) -> Tokens:
        """The same numbers in the order of memory that rotary embeddings leave: [heads, tokens, size]."""
        return Tokens(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in (self.q, self.k, self.v)))


def literal(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, call: Call) -> torch.Tensor:
    """One token's attention over the keys that it sees, in float64. q [heads, size], keys [tokens, kv heads, size]."""
    each = torch.arange(len(q)) // (len(q) // keys.shape[1])  # the kv head of each head
    scores = call.scaling * (q.double() * keys.double()[:, each]).sum(-1)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return (scores.softmax(0)[..., None] * values.double()[:, each]).sum(0).float()


def seen(one: PackedRow, node: int) -> list[int]:
    """A token's own sequence within its row: in depth-first order the last token of each depth up to it."""
    last = {int(one.depth[j]): j for j in range(node + 1)}
    return [last[d] for d in sorted(last) if d <= one.depth[node]]


def expected(rows: list[PackedRow], new: Tokens, prefix: Tokens | None, call: Call) -> torch.Tensor:
    """The definition for every token of a flat batch of rows."""
    out, start = [], 0
    before = prefix or Tokens(new.q[:0], new.k[:0], new.v[:0])
    for row in rows:
        for node in range(row.length):
            mine = [start + j for j in seen(row, node)]
            keys = torch.cat((before.k, new.k[mine]))
            values = torch.cat((before.v, new.v[mine]))
            assert len(keys) == row.depth[node] + 1
            last = slice(-min(call.window or len(keys), len(keys)), None)
            out.append(literal(new.q[start + node], keys[last], values[last], call))
        start += row.length
    return torch.stack(out)


def shared(prefix: Tokens | None) -> TorchPrefix | None:
    if prefix is None:
        return None
    results = TorchPrefix(len(prefix.k))
    results.keep(LAYER, prefix.k, prefix.v)
    return results


def tries(past: int) -> list[PackedRow]:
    """Rows of different shapes after ``past`` tokens: branches early and late, a single path, one token."""
    head = tuple(range(100, 100 + past))
    groups: list[list[tuple[int, ...]]] = [
        [(1, 2, 3, *range(40), 9), (1, 2, 3, *range(20), 50, 51, 9), (1, 7, 9)],
        [(5, *range(30), 9)], [(4, 9)], [(1, 2, 9), (1, 3, 9), (2, 3, *range(18), 9), (2, 3, 4, 4, 9)]]
    return [packed_row([(p, TokenSequence(head + tokens, 1)) for p, tokens in enumerate(group)],
                       past) for group in groups]


WINDOWS = [None, 1, 4, 30, 1000]


@pytest.mark.parametrize("block", [2**20, 1])
@pytest.mark.parametrize("past", [0, 23])
@pytest.mark.parametrize("window", WINDOWS)
def test_rows_attend_to_their_own_sequence(window: int | None, past: int, block: int,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CPU_BLOCK", block)  # 1: sixteen queries at a time
    rows = tries(past)
    new = Tokens.random(sum(r.length for r in rows), seed=1)
    prefix = Tokens.random(past, seed=2) if past else None
    call = Call(SIZE ** -0.5, window)
    layout = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(prefix))
    for _ in range(2):  # the second layer takes the masks of the first
        actual = layout.attend(LAYER, new.q, new.k, new.v, call)
        torch.testing.assert_close(actual, expected(rows, new, prefix, call), atol=1e-5, rtol=0)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_window_as_long_as_the_deepest_token_is_deep(over: int) -> None:
    rows, past = tries(7), 7
    deepest = max(int(r.depth.max()) for r in rows)
    new, prefix = Tokens.random(sum(r.length for r in rows), 24), Tokens.random(past, 25)
    call = Call(0.1, deepest + over)
    layout = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(prefix))
    actual = layout.attend(LAYER, new.q, new.k, new.v, call)
    torch.testing.assert_close(actual, expected(rows, new, prefix, call), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [2**20, 1])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize(("heads", "one"), [(4, 4), (4, 1), (1, 1), (6, 3)])
def test_any_grouping_of_heads_and_any_order_in_memory(heads: int, one: int, past: int, first: bool, block: int,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Few heads, rows and tokens, which leave some tensors as views of others; both layouts."""
    monkeypatch.setattr(attention, "CPU_BLOCK", block)
    prefix, call = Tokens.random(past, 21, heads=heads, shared=one) if past else None, Call(0.5)
    for rows in ([tries(past)[1]], [tries(past)[2]], tries(past)[:1], tries(past), [tries(past)[1]] * 2):
        new = Tokens.random(sum(r.length for r in rows), 22, heads=heads, shared=one)
        new = new.heads_first() if first else new
        slots = TorchSlots(len(rows), 99, device=CPU)
        layout = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(prefix),
                      keep=slots.fill(range(len(rows)), rows))
        torch.testing.assert_close(layout.attend(LAYER, new.q, new.k, new.v, call),
                                   expected(rows, new, prefix, call), atol=1e-5, rtol=0)
        step = Tokens.random(len(rows), 23, heads=heads, shared=one)
        step = step.heads_first() if first else step
        actual = TorchStep(slots, len(rows), shared(prefix)).attend(LAYER, step.q, step.k, step.v, call)
        ends = [0, *torch.tensor([r.length for r in rows]).cumsum(0).tolist()]
        for i in range(len(rows)):
            mine = slice(ends[i], ends[i + 1])
            before = [prefix] if prefix else []
            k = torch.cat([*(t.k for t in before), new.k[mine], step.k[i: i + 1]])
            v = torch.cat([*(t.v for t in before), new.v[mine], step.v[i: i + 1]])
            torch.testing.assert_close(actual[i], literal(step.q[i], k, v, call), atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 5])
def test_rows_cap_their_scores_and_take_values_of_another_size(window: int | None) -> None:
    rows, past = tries(9), 9
    new = Tokens.random(sum(r.length for r in rows), seed=3, values=10)
    prefix, call = Tokens.random(past, seed=4, values=10), Call(0.7, window, softcap=2.0)
    actual = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(prefix)).attend(
        LAYER, new.q, new.k, new.v, call)
    torch.testing.assert_close(actual, expected(rows, new, prefix, call), atol=1e-5, rtol=0)
    free = Call(0.7, window)
    assert (actual - expected(rows, new, prefix, free)).abs().max() > 0.1


def test_layers_of_different_windows_do_not_share_a_mask() -> None:
    rows, past = tries(23), 23
    new = Tokens.random(sum(r.length for r in rows), seed=5)
    prefix = Tokens.random(past, seed=6)
    layout = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(prefix))
    for window in (None, 6, 30, None, 6):
        call = Call(0.5, window)
        torch.testing.assert_close(layout.attend(LAYER, new.q, new.k, new.v, call),
                                   expected(rows, new, prefix, call), atol=1e-5, rtol=0)


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was not written is NaN."""
    real, plain = torch.Tensor.new_empty, torch.empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: real(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: plain(*a, **k).fill_(math.nan))


@pytest.mark.parametrize("past", [0, 7])
@pytest.mark.usefixtures("nan_memory")
def test_nan_stays_in_its_row(past: int) -> None:
    rows = tries(past)
    new = Tokens.random(sum(r.length for r in rows), seed=7)
    prefix, call = Tokens.random(past, seed=8) if past else None, Call(0.5, 12)
    reference = expected(rows, new, prefix, call)
    ends = [0]
    for row in rows:
        ends.append(ends[-1] + row.length)
    for r in range(len(rows)):
        mine = slice(ends[r], ends[r + 1])
        broken = Tokens(new.q.clone(), new.k.clone(), new.v.clone())
        for x in (broken.q, broken.k, broken.v):
            x[mine] = math.nan
        actual = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(prefix)).attend(
            LAYER, broken.q, broken.k, broken.v, call)
        others = torch.ones(len(actual), dtype=torch.bool)
        others[mine] = False
        assert actual[mine].isnan().all()
        torch.testing.assert_close(actual[others], reference[others], atol=1e-5, rtol=0)


class Texts:
    """Sequences in slots, kept a second time as plain lists: the definition of what a slot holds."""

    def __init__(self, count: int, room: int, prefix: Tokens | None) -> None:
        self.slots = TorchSlots(count, room, device=CPU)
        self.prefix = prefix
        self.held: list[Tokens] = []
        self.seed = 10

    def random(self, count: int) -> Tokens:
        self.seed += 1
        return Tokens.random(count, self.seed)

    def fill(self, lengths: list[int], *, value: float | None = None) -> None:
        """Prompts of these lengths into the next slots, in one pass; the layer's attention is checked too."""
        past = len(self.prefix.k) if self.prefix else 0
        rows = [prompt_row(tuple(range(n)), past) for n in lengths]
        new = self.random(sum(lengths))
        if value is not None:
            for x in (new.k, new.v):
                x.fill_(value)
        first = len(self.held)
        keep = self.slots.fill(range(first, first + len(rows)), rows)
        layout = TorchRows(rows, device=CPU, dtype=torch.float32, prefix=shared(self.prefix), keep=keep)
        actual, call = layout.attend(LAYER, new.q, new.k, new.v, Call(0.5)), Call(0.5)
        if value is None:
            torch.testing.assert_close(actual, expected(rows, new, self.prefix, call), atol=1e-5, rtol=0)
        start = 0
        for n in lengths:
            self.held.append(Tokens(new.q[start: start + n], new.k[start: start + n], new.v[start: start + n]))
            start += n

    def step(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """One token for every slot: what the layout gives, and the definition."""
        new = self.random(len(self.held))
        layout = TorchStep(self.slots, len(self.held), shared(self.prefix))
        actual = layout.attend(LAYER, new.q, new.k, new.v, call)
        self.slots.lengths[: len(self.held)] += 1
        reference = []
        for i, one in enumerate(self.held):
            one.k, one.v = torch.cat((one.k, new.k[i: i + 1])), torch.cat((one.v, new.v[i: i + 1]))
            keys, values = one.k, one.v
            if self.prefix is not None:
                keys, values = torch.cat((self.prefix.k, keys)), torch.cat((self.prefix.v, values))
            last = slice(-min(call.window or len(keys), len(keys)), None)
            reference.append(literal(new.q[i], keys[last], values[last], call))
        return actual, torch.stack(reference)

    def leave(self, slot: int) -> None:
        """The text of a slot has ended; the last one takes its place."""
        last = self.held.pop()
        if slot < len(self.held):
            self.slots.move(len(self.held), slot)
            self.held[slot] = last


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("past", [0, 11])
@pytest.mark.parametrize("window", [None, 1, 6, 14, 100])
@pytest.mark.usefixtures("nan_memory")
def test_slots_hold_each_text_alone(window: int | None, past: int, softcap: float | None) -> None:
    """Filled, stepped, emptied in the middle and at the end, filled again: always the definition."""
    texts = Texts(4, 24, Tokens.random(past, seed=9) if past else None)
    call = Call(0.5, window, softcap)

    def check() -> None:
        actual, reference = texts.step(call)
        torch.testing.assert_close(actual, reference, atol=1e-5, rtol=0)

    texts.fill([3, 17, 1])
    check()
    check()
    texts.fill([8])
    check()
    texts.leave(1)  # slot 3, of another length, moves to slot 1
    check()
    texts.leave(2)  # the last one: nothing moves
    check()
    texts.fill([2, 5])
    check()
    texts.leave(0)
    texts.leave(0)
    check()
    assert [len(t.k) for t in texts.held] == texts.slots.lengths[: len(texts.held)].tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_a_text_left_behind_does_not_reach_the_next_one(value: float) -> None:
    texts = Texts(3, 20, None)
    texts.fill([18, 4, 15], value=value)
    texts.leave(0)
    texts.leave(0)
    texts.leave(0)
    texts.fill([2, 9])
    actual, reference = texts.step(Call(0.5))
    torch.testing.assert_close(actual, reference, atol=1e-5, rtol=0)


def test_a_text_of_nan_leaves_its_neighbours_alone() -> None:
    texts = Texts(3, 20, Tokens.random(5, seed=9))
    texts.fill([6])
    texts.fill([9], value=math.nan)
    texts.fill([3])
    actual, reference = texts.step(Call(0.5))
    torch.testing.assert_close(actual[[0, 2]], reference[[0, 2]], atol=1e-5, rtol=0)
    assert actual[1].isnan().all()
    texts.leave(0)  # the short text moves to where the first one was
    actual, reference = texts.step(Call(0.5))
    torch.testing.assert_close(actual[0], reference[0], atol=1e-5, rtol=0)


def test_a_slot_is_filled_to_its_room() -> None:
    texts = Texts(1, 6, None)
    texts.fill([3])
    for _ in range(3):
        actual, reference = texts.step(Call(0.5))
        torch.testing.assert_close(actual, reference, atol=1e-5, rtol=0)
    with pytest.raises(IndexError):
        texts.step(Call(0.5))


def test_a_prefix_keeps_its_keys_and_values_heads_first() -> None:
    new = Tokens.random(5, seed=12)
    prefix = TorchPrefix(5)
    TorchRows([prompt_row((1, 2, 3, 4, 5))], device=CPU, dtype=torch.float32, keep=prefix.keep).attend(
        LAYER, new.q, new.k, new.v, Call(0.5))
    k, v = prefix.layers[LAYER]
    assert torch.equal(k, new.k.transpose(0, 1))
    assert torch.equal(v, new.v.transpose(0, 1))
    assert k.is_contiguous()
    assert v.is_contiguous()
