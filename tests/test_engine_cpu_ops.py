"""The compiled kernels against their definitions in float64, what they never depend on, and why there may be none."""

from __future__ import annotations

import ctypes
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune.engine.cpu import availability, build, ops
from aftertune.engine.cpu.ops import KVCache, RowShape
from aftertune.engine.packing import PackedRow, packed_row, prompt_row
from aftertune.engine.tokenize import TokenSequence

DTYPES = (torch.float32, torch.bfloat16)
#: Heads and kv heads: groups of 1, 3 and 8.
GROUPS = [(2, 2), (6, 2), (8, 1)]
SIZES = (16, 64, 80, 128)
#: One key, a few, more than a tile, more than any sequence has; 0 is none.
WINDOWS = (0, 1, 5, 30, 1000)
PAST = 23


def forget() -> None:
    for found in (availability._why_not, build.library, build.kernel):
        found.cache_clear()


@dataclass(frozen=True)
class Machine:
    """One on which nothing is loaded yet. cache: its folder, not there yet; made: a library for it, "" for none."""

    cache: Path
    made: str


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """Such a machine; afterwards all is as before."""
    made = "" if availability.why_unavailable() else build.library()._name
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    forget()
    yield Machine(tmp_path / "cache", made)
    forget()


@pytest.fixture(autouse=True)
def built(request: pytest.FixtureRequest) -> None:
    """Without kernels only the tests of why there are none can run."""
    if "fresh" not in request.fixturenames and availability.why_unavailable():
        pytest.skip(f"no kernels here: {availability.why_unavailable()}")


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """One thread, unless a test sets another number: for tiny work more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was not written is NaN."""
    plain, alike = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _spoilt(plain(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: _spoilt(alike(*a, **k)))


def _spoilt(x: torch.Tensor) -> torch.Tensor:
    return x.fill_(math.nan) if x.is_floating_point() else x.fill_(-1)


@dataclass(frozen=True)
class Heads:
    """What a layer's attention looks like."""

    heads: int = 4
    shared: int = 2
    size: int = 16
    dtype: torch.dtype = torch.float32

    def tokens(self, count: int, seed: int) -> Tokens:
        made = torch.Generator().manual_seed(seed)
        buffer = (2 * torch.randn(count, self.heads + 2 * self.shared, self.size, generator=made)).to(self.dtype)
        return Tokens(*buffer.split((self.heads, self.shared, self.shared), 1))


@dataclass
class Tokens:
    """Queries, keys and values of some tokens [tokens, heads, size]: strided views of one buffer, as a fused
    projection leaves them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    def only(self, mine: slice | list[int]) -> Tokens:
        return Tokens(self.q[mine], self.k[mine], self.v[mine])

    def kept(self, room: int = 0) -> KVCache:
        """The keys and values as a prefix, in ``room`` or just enough."""
        held = KVCache(1, room or len(self.k), self.k)
        held.store(0, self.k, self.v)
        held.length = len(self.k)
        return held


def tries(past: int = 0) -> list[PackedRow]:
    """Rows after ``past`` tokens: branches early and late, a path of just a tile, one token; none but that is a
    multiple of 16 long."""
    head = tuple(range(1000, 1000 + past))
    groups: list[list[tuple[int, ...]]] = [
        [(1, 2, 3, *range(40), 9), (1, 2, 3, *range(20), 50, 51, 9), (1, 7, 9)], [(5, *range(15), 9)], [(4, 9)],
        [(1, 2, 9), (1, 3, 9), (2, 3, *range(18), 9), (2, 3, 4, 4, 9)], [(5, *range(34), 9)]]
    return [packed_row([(p, TokenSequence(head + tokens, 1)) for p, tokens in enumerate(group)],
                       past) for group in groups]


def shape(rows: list[PackedRow]) -> RowShape:
    starts = torch.tensor([0, *itertools.accumulate(r.length for r in rows)])
    return RowShape(starts, torch.cat([torch.from_numpy(r.end) for r in rows]),
                 torch.cat([torch.from_numpy(r.depth) for r in rows]))


def sees(rows: list[PackedRow], past: int, window: int) -> torch.Tensor:
    """The definition [tokens, past + tokens]: a token sees the prefix and, of its own row, the last token of each depth
    up to its own; with a window the last so many of those."""
    total, start = sum(r.length for r in rows), 0
    seen = torch.zeros(total, past + total, dtype=torch.bool)
    for one in rows:
        for node in range(one.length):
            last = {int(one.depth[j]): past + start + j for j in range(node + 1)}
            keys = [*range(past), *(last[d] for d in range(past, int(one.depth[node]) + 1))]
            seen[start + node, keys[-window:]] = True
        start += one.length
    return seen


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over the keys that are seen [queries, keys], in float64."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = q.shape[-1] ** -0.5 * torch.einsum("qhd,khd->hqk", q.double(), keys)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), values)


def scaling(new: Tokens) -> float:
    return float(new.q.shape[-1] ** -0.5)


def by_rows(new: Tokens, rows: list[PackedRow], past: Tokens | None, window: int, room: int = 0) -> torch.Tensor:
    return ops.attend_rows(new.q, new.k, new.v, shape(rows), past.kept(room) if past else None,
                               scaling(new), window)


def close(found: torch.Tensor, right: torch.Tensor) -> None:
    """float32 within 2e-5, as scores of up to 20 leave it; bfloat16 within that and half a step, for one rounding."""
    step = 2.0 ** -8 if found.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(found.double(), right, atol=2e-5, rtol=step)


@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("heads", "shared"), GROUPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("nan_memory")
def test_rows_attend_by_the_definition(dtype: torch.dtype, heads: int, shared: int, size: int, past: int) -> None:
    like, rows = Heads(heads, shared, size, dtype), tries(past)
    new = like.tokens(sum(r.length for r in rows), 1)
    before = like.tokens(past, 2) if past else None
    k, v = (torch.cat([getattr(before, x), getattr(new, x)]) if before else getattr(new, x) for x in "kv")
    assert not new.q.is_contiguous()
    for window in WINDOWS:
        found = by_rows(new, rows, before, window)
        close(found, attention(new.q, k, v, sees(rows, past, window)))
        if before:
            assert torch.equal(found, by_rows(new, rows, before, window, room=past + 40)), "a prefix with room to spare"
    seen = [sees(rows, past, w) for w in WINDOWS]
    assert [bool((one == seen[0]).all()) for one in seen] == [True, False, False, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 64])
def test_long_rows_are_cut_into_blocks(size: int, dtype: torch.dtype) -> None:
    """Several hundred keys and a long prefix: scores of few queries fit into the cache at once."""
    like, past = Heads(16, 1, size, dtype), 1500
    head, tail = tuple(range(past)), tuple(range(90))
    rows = [packed_row([(0, TokenSequence((*head, *tail, 1, 2, 3), 1)), (1, TokenSequence((*head, *tail[:50], 7, *tail,
                                                                                           3), 1))], past),
            prompt_row(tuple(range(37)), past)]
    new, before = like.tokens(sum(r.length for r in rows), 3), like.tokens(past, 4)
    k, v = torch.cat([before.k, new.k]), torch.cat([before.v, new.v])
    for window in (0, 60, 1450):
        close(by_rows(new, rows, before, window), attention(new.q, k, v, sees(rows, past, window)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "shared"), [*GROUPS, (1, 1), (3, 1)])
def test_any_order_in_memory_gives_the_same(heads: int, shared: int, dtype: torch.dtype) -> None:
    """One buffer for all, tensors of their own, and heads first, as transformers hands them over."""
    for rows in (tries(), tries()[2:3], tries()[:1]):
        new = Heads(heads, shared, 32, dtype).tokens(sum(r.length for r in rows), 5)
        right = by_rows(new, rows, None, 0)
        apart = Tokens(*(x.contiguous() for x in (new.q, new.k, new.v)))
        first = Tokens(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in (new.q, new.k, new.v)))
        mixed = Tokens(new.q, apart.k, first.v)
        for other in (apart, first, mixed):
            assert torch.equal(by_rows(other, rows, None, 0), right)


def alone(new: Tokens, rows: list[PackedRow], past: Tokens | None, window: int) -> list[torch.Tensor]:
    starts = shape(rows).starts.tolist()
    return [by_rows(new.only(slice(a, b)), [one], past, window)
            for one, (a, b) in zip(rows, itertools.pairwise(starts), strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("past", [0, PAST, 1400])
@pytest.mark.parametrize("size", [16, 32])
def test_a_row_does_not_depend_on_its_neighbours(size: int, past: int, window: int, dtype: torch.dtype) -> None:
    """Bit for bit; a long neighbour also changes how queries are cut into blocks."""
    like, rows = Heads(8, 1, size, dtype), [*tries(past), prompt_row(tuple(range(700)), past)]
    new, before = like.tokens(sum(r.length for r in rows), 6), like.tokens(past, 7) if past else None
    assert torch.equal(by_rows(new, rows, before, window), torch.cat(alone(new, rows, before, window)))


def starts_of(rows: list[PackedRow]) -> list[slice]:
    return [slice(a, b) for a, b in itertools.pairwise(shape(rows).starts.tolist())]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.usefixtures("nan_memory")
def test_nan_reaches_those_who_see_it_and_no_other_row(name: str, dtype: torch.dtype) -> None:
    """Of queries and keys no other token even; a hidden value counts 0 times NaN for tokens of its own row."""
    rows = tries()
    parts, right = starts_of(rows), by_rows(Heads(dtype=dtype).tokens(shape(rows).starts[-1], 8), rows, None, 0)
    for part in parts:
        for node in {part.start, (part.start + part.stop) // 2, part.stop - 1}:
            new = Heads(dtype=dtype).tokens(len(right), 8)
            getattr(new, name)[node] = math.nan
            found = by_rows(new, rows, None, 0)
            seen = sees(rows, 0, 0)[:, node] if name != "q" else torch.arange(len(right)) == node
            assert found[seen].isnan().all()
            outside = torch.ones(len(right), dtype=torch.bool)
            outside[part] = False
            others = ~seen if name != "v" else outside
            assert torch.equal(found[others], right[others])


@pytest.mark.parametrize("name", ["k", "v"])
def test_nan_in_a_prefix_reaches_everyone_and_hidden_keys_no_one(name: str) -> None:
    like, rows = Heads(), tries(PAST)
    new, before = like.tokens(sum(r.length for r in rows), 9), like.tokens(PAST, 10)
    right = by_rows(new, rows, before, 4)
    getattr(before, name)[2] = math.nan
    assert by_rows(new, rows, before, 0).isnan().all()
    if name == "k":
        assert torch.equal(by_rows(new, rows, before, 4), right)


@pytest.mark.parametrize("scale", [1e3, 1e18])
def test_large_scores_neither_overflow_nor_lose_the_first(scale: float) -> None:
    """Far apart, softmax is a choice: the largest score takes all."""
    rows = [prompt_row(tuple(range(40)))]
    new = Heads().tokens(40, 11)
    new = Tokens(new.q * scale, new.k, new.v)
    close(by_rows(new, rows, None, 0), attention(new.q, new.k, new.v, sees(rows, 0, 0)))


class Texts:
    """Slots, and a second time what they should hold: the definition of a step."""

    def __init__(self, like: Heads, lengths: list[int], past: int, room: int = 60) -> None:
        self.like, self.seed = like, 20
        self.past = like.tokens(past, 12) if past else None
        self.slots = KVCache(len(lengths) + 1, room, like.tokens(1, 0).k)
        for buffer in (self.slots.keys, self.slots.values):
            buffer.fill_(math.nan)  # what a longer text has left behind
        self.held = [like.tokens(n, 30 + n) for n in lengths]
        for slot, one in enumerate(self.held):
            self.slots.store(slot, one.k, one.v)

    @property
    def lengths(self) -> torch.Tensor:
        return torch.tensor([len(one.k) for one in self.held])

    def step(self, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One token for each text: what the kernel gives, and the definition."""
        self.seed += 1
        new, past, lengths = self.like.tokens(len(self.held), self.seed), self.past, self.lengths
        found = ops.attend_step(new.q, new.k, new.v, lengths, self.slots, past.kept() if past else None,
                                    scaling(new), window)
        right = []
        for i, one in enumerate(self.held):
            self.held[i] = Tokens(one.q, torch.cat([one.k, new.k[i: i + 1]]), torch.cat([one.v, new.v[i: i + 1]]))
            k, v = (torch.cat([getattr(past, x), getattr(self.held[i], x)]) if past else getattr(self.held[i], x)
                    for x in "kv")
            seen = torch.zeros(1, len(k), dtype=torch.bool)
            seen[:, -window:] = True
            right.append(attention(new.q[i: i + 1], k, v, seen))
        return found, torch.cat(right)


@pytest.mark.parametrize("past", [0, PAST])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("heads", "shared"), GROUPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("nan_memory")
def test_steps_attend_by_the_definition(dtype: torch.dtype, heads: int, shared: int, size: int, past: int) -> None:
    """Slots of different lengths, more than one task takes; each of them crosses the end of a tile or two."""
    texts = Texts(Heads(heads, shared, size, dtype), [3, 15, 1, 31, 20, 14, 48, 2], past)
    for window in (*WINDOWS, 0):
        close(*texts.step(window))


def test_a_slot_may_be_filled_to_its_room() -> None:
    texts = Texts(Heads(), [17, 3, 17], 0, room=20)
    for _ in range(3):
        close(*texts.step(0))
    assert texts.lengths.tolist() == [20, 6, 20]
    assert texts.slots.keys[3].isnan().all(), "the slot after the last one is left alone"
    assert texts.slots.values[3].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("past", [0, PAST])
def test_a_step_of_a_text_does_not_depend_on_the_others(past: int, dtype: torch.dtype) -> None:
    lengths = [3, 15, 1, 31, 20, 14, 48, 2, 33]
    together, _ = Texts(Heads(6, 2, 32, dtype), lengths, past).step(30)
    for i, n in enumerate(lengths):
        texts = Texts(Heads(6, 2, 32, dtype), [n], past)
        whole = texts.like.tokens(len(lengths), 21).only(slice(i, i + 1))
        found = ops.attend_step(whole.q, whole.k, whole.v, texts.lengths, texts.slots,
                                    texts.past.kept() if texts.past else None, scaling(whole), 30)
        assert torch.equal(found[0], together[i])


@pytest.mark.parametrize("past", [0, PAST])
def test_nan_stays_in_its_slot(past: int) -> None:
    lengths = [3, 20, 7]
    right, _ = Texts(Heads(), lengths, past).step(0)
    texts = Texts(Heads(), lengths, past)
    broken = texts.like.tokens(20, 50)
    texts.slots.store(1, broken.k * math.nan, broken.v)
    found, _ = texts.step(0)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], right[[0, 2]])


@pytest.mark.parametrize("count", [1, 16, 29])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_kept_in_tiles_and_values_as_they_are(dtype: torch.dtype, count: int) -> None:
    like, room = Heads(size=48, dtype=dtype), 29
    new, held = like.tokens(count, 13), KVCache(3, room, like.tokens(1, 0).k)
    before = held.keys.clone(), held.values.clone()
    held.store(1, new.k, new.v)
    tiled = held.keys[1].transpose(2, 3).flatten(1, 2)  # [kv heads, tiles * 16, size]
    if dtype == torch.bfloat16:  # by pairs of dimensions
        tiled = held.keys[1].reshape(*held.keys.shape[1:3], 24, 16, 2).transpose(2, 3).reshape(tiled.shape)
    assert torch.equal(tiled[:, :count], new.k.transpose(0, 1))
    assert not tiled[:, count:].any()
    assert torch.equal(held.values[1, :, :count], new.v.transpose(0, 1))
    assert not held.values[1, :, count:].any()
    for slot in (0, 2):
        assert torch.equal(held.keys[slot], before[0][slot])
        assert torch.equal(held.values[slot], before[1][slot])
    assert held.length == held.room == room


@pytest.mark.parametrize("size", [16, 64, 80, 576])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.usefixtures("nan_memory")
def test_the_norm_is_that_of_transformers(scale: float, size: int) -> None:
    """float32 to its last bits; bfloat16 to one step in a few numbers of ten thousand, where a float32 sum in another
    order falls on the other side of a rounding."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    norm, x = LlamaRMSNorm(size, eps=1e-6), scale * torch.randn(7, 11, size)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(size))
        torch.testing.assert_close(ops.rms_norm(x, norm.weight, 1e-6), norm(x), rtol=2e-6, atol=0)
        half, x = norm.bfloat16(), x.bfloat16()
        found, right = ops.rms_norm(x, half.weight, 1e-6), half(x)
    torch.testing.assert_close(found, right, rtol=2.0 ** -7, atol=0)
    assert (found != right).float().mean() < 1e-3


def test_the_norm_of_a_strided_part_and_of_nan() -> None:
    x, weight = torch.randn(5, 8, 16), torch.randn(16)
    part = x[:, 2:5]
    assert torch.equal(ops.rms_norm(part, weight, 1e-5), ops.rms_norm(part.contiguous(), weight, 1e-5))
    whole = ops.rms_norm(x, weight, 1e-5)
    x[1, 2, 3] = math.nan
    found = ops.rms_norm(x, weight, 1e-5)
    assert found[1, 2].isnan().all()
    found[1, 2] = whole[1, 2]
    assert torch.equal(found, whole)
    assert torch.equal(ops.rms_norm(torch.zeros(2, 16), weight, 1e-5), torch.zeros(2, 16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("nan_memory")
def test_sum_and_norm_round_as_torch_does(dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(4)
    x, y = (torch.randn(33, 48, generator=made).to(dtype) for _ in range(2))
    weight = torch.randn(48, generator=made).to(dtype)
    total, normed = ops.add_norm(x, y, weight, 1e-5)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, ops.rms_norm(x + y, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("nan_memory")
def test_a_gate_rounds_as_transformers_does(dtype: torch.dtype) -> None:
    joined = 4 * torch.randn(33, 96, generator=torch.Generator().manual_seed(5)).to(dtype)
    joined[0, 0], joined[1, 0] = -200, 200
    left, right = joined.chunk(2, -1)  # as they lie in one product
    right_answer = torch.nn.functional.silu(left) * right
    found = ops.gate(left, right)
    if dtype == torch.float32:
        assert torch.allclose(found, right_answer, rtol=1e-6, atol=1e-7)
    else:  # bit for bit, but where e^x ends a last place apart on the border of two roundings
        assert (found != right_answer).float().mean() < 0.005
    assert torch.equal(ops.gate(left.contiguous(), right.contiguous()), found)
    with pytest.raises(NotImplementedError, match="a gate of"):
        ops.gate(left[:, :40], right[:, :40])


def angles(tokens: int, turned: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines as transformers has them [tokens, turned]."""
    half = torch.outer(torch.arange(tokens) * 3.0, 10_000.0 ** -(torch.arange(turned // 2) * 2 / turned))
    both = torch.cat([half, half], -1)
    return both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize(("size", "turned"), [(16, 16), (64, 64), (80, 80), (128, 128), (64, 16), (80, 32), (96, 40)])
@pytest.mark.parametrize("tokens", [1, 70])
def test_turning_is_that_of_transformers(tokens: int, size: int, turned: int) -> None:
    """float32 to its last bits. In bfloat16 ours rounds once where transformers rounds three times: within a step of
    the largest number that goes into a sum."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2.0 ** -7)):
        new = Heads(4, 2, size, dtype).tokens(tokens, 14)
        cosine, sine = angles(tokens, turned, dtype)
        heads = [x[None, :, :, :turned].transpose(1, 2) for x in (new.q, new.k)]
        right = [x[0].transpose(0, 1) for x in apply_rotary_pos_emb(*heads, cosine[None], sine[None])]
        kept = [x[..., turned:].clone() for x in (new.q, new.k)]
        buffer = torch.cat([new.q, new.k, new.v], 1)
        values = new.v.clone()
        ops.rotate(buffer[:, :6], cosine, sine)
        for found, turn, rest in zip(buffer.split((4, 2, 2), 1), right, kept, strict=False):
            largest = float(turn.abs().max())
            assert (found[..., :turned] - turn).abs().max() <= bound * largest
            assert torch.equal(found[..., turned:], rest)
        assert torch.equal(buffer[:, 6:], values), "what is not asked for stays"
        assert tokens == 1 or not torch.equal(buffer[:, :4], new.q)


def test_turning_refuses_what_it_cannot_do_in_place() -> None:
    cosine, sine = angles(5, 16, torch.float32)
    with pytest.raises(ValueError, match="heads of a token must be contiguous"):
        ops.rotate(torch.zeros(4, 5, 16).transpose(0, 1), cosine, sine)


@pytest.mark.parametrize("width", [1, 7, 16, 17, 31, 264, 1003])
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("nan_memory")
def test_a_row_of_logits_is_summed_up(dtype: torch.dtype, scale: float, width: int) -> None:
    torch.manual_seed(0)
    logits = (scale * torch.randn(37, width)).to(dtype)
    norm, top, best = ops.summarize(logits)
    torch.testing.assert_close(norm.double(), logits.double().logsumexp(-1), rtol=1e-6, atol=2e-6)
    assert torch.equal(top, logits.amax(-1).float())
    assert torch.equal(best, (logits == logits.amax(-1, keepdim=True)).int().argmax(-1))  # the first of them
    assert (norm.dtype, top.dtype, best.dtype) == (torch.float32, torch.float32, torch.int64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_logits_the_first_counts(dtype: torch.dtype) -> None:
    for places in ([3, 5], [3, 20], [20, 30], [16, 36], [33, 36], [0, 36], [36], range(37)):
        logits = torch.full((1, 37), -2.0, dtype=dtype)
        logits[:, list(places)] = 4.0
        norm, top, best = ops.summarize(logits)
        assert (float(top), int(best)) == (4.0, next(iter(places)))
        torch.testing.assert_close(norm, logits.float().logsumexp(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_minus_infinity_weigh_nothing(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 37).to(dtype)
    logits[0, ::2] = logits[1, :36] = logits[2, 17:] = -math.inf
    norm, top, best = ops.summarize(logits)
    torch.testing.assert_close(norm.double(), logits.double().logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(best, logits.argmax(-1))
    assert torch.equal(top, logits.amax(-1).float())


@pytest.mark.parametrize("place", [0, 15, 16, 35, 36])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_a_row_of_logits_is_nan_in_its_norm_alone(dtype: torch.dtype, place: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 37).to(dtype)
    right, *_ = ops.summarize(logits)
    logits[2, place] = math.nan
    found, *_ = ops.summarize(logits)
    assert found.isnan().tolist() == [False, False, True, False, False]
    assert torch.equal(found[[0, 1, 3, 4]], right[[0, 1, 3, 4]])


@pytest.mark.parametrize("rank", [1, 4, 16, 33])
@pytest.mark.parametrize("tokens", [1, 50, 131])
@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_ranks_are_added_in_place(dtype: torch.dtype, gained: bool, tokens: int, rank: int) -> None:
    """Into some columns of a wider buffer, from some columns of another; gained: and the sum is multiplied."""
    torch.manual_seed(0)
    out, inner, b = torch.randn(tokens, 176).to(dtype), torch.randn(tokens, rank + 9), torch.randn(rank, 112)
    before = out.clone()
    gain = 0.5 + torch.rand(112) if gained else None
    ops.add_lora(out[:, 16:128], inner[:, 5: 5 + rank], b, 0.7, gain)
    right = before[:, 16:128].double() + 0.7 * inner[:, 5: 5 + rank].double() @ b.double()
    right = right if gain is None else right * gain.double()
    step = 2.0 ** -8 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(out[:, 16:128].double(), right, rtol=step, atol=1e-5)
    assert torch.equal(out[:, :16], before[:, :16])
    assert torch.equal(out[:, 128:], before[:, 128:])
    if tokens > 1:
        one = before[-1:].clone()
        ops.add_lora(one[:, 16:128], inner[-1:, 5: 5 + rank], b, 0.7, gain)
        assert torch.equal(one, out[-1:]), "a token does not depend on the others"


def everything(dtype: torch.dtype) -> list[torch.Tensor]:
    """What each kernel makes of work that is large enough for several threads."""
    torch.manual_seed(0)
    like, rows = Heads(6, 2, 80, dtype), [*tries(PAST), prompt_row(tuple(range(170)), PAST)]
    new, before = like.tokens(sum(r.length for r in rows), 15), like.tokens(PAST, 16)
    texts = Texts(like, [3, 15, 1, 31, 20, 14, 48, 2] * 3, PAST)
    turned, logits = new.q.contiguous(), 4 * torch.randn(97, 1003).to(dtype)
    ops.rotate(turned, *angles(len(turned), 80, dtype))
    out = torch.randn(300, 320).to(dtype)
    ops.add_lora(out, torch.randn(300, 8), torch.randn(8, 320), 2.0)
    norm = ops.rms_norm(new.q, torch.randn(80).to(dtype), 1e-6)
    step, _ = texts.step(20)
    return [by_rows(new, rows, before, 0), by_rows(new, rows, before, 20), step, texts.slots.keys, texts.slots.values,
            turned, out, norm, *ops.summarize(logits)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, threads: Callable[[int], None]) -> None:
    threads(1)
    right = everything(dtype)
    for count in (2, 3):
        threads(count)
        for one, other in zip(right, everything(dtype), strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_a_kernel_that_gets_no_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine halves a batch at a MemoryError."""
    monkeypatch.setattr(build, "kernel", lambda name: lambda *_: 1)
    with pytest.raises(MemoryError, match="no memory for summarize"):
        ops.summarize(torch.zeros(2, 16))


@pytest.mark.usefixtures("fresh")
def test_another_platform_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert availability.why_unavailable() == "the kernels are not built on win32"


def test_no_compiler_no_kernels(monkeypatch: pytest.MonkeyPatch, fresh: Machine) -> None:
    monkeypatch.setenv("PATH", str(fresh.cache))
    assert availability.why_unavailable() == "there is no C compiler (cc, gcc or clang)"
    monkeypatch.setenv("CC", "no-such-compiler")
    availability._why_not.cache_clear()
    assert "no C compiler" in availability.why_unavailable()
    assert not fresh.cache.exists()


def test_the_check_does_not_hang_on_who_asks_first() -> None:
    """Training under autocast asks, too; what it finds holds for the whole process."""
    found = availability.why_unavailable()
    availability._why_not.cache_clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert availability.why_unavailable() == found


@pytest.mark.skipif(not Path("/bin/false").exists(), reason="no /bin/false")
@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_only_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    assert "/bin/false" in availability.why_unavailable()
    assert "\n" not in availability.why_unavailable()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are for Linux")


class Compiler:
    """A shell script that stands in for a compiler: it writes down what it is asked to make, then does ``act``, with
    the output file as $out."""

    def __init__(self, folder: Path, act: str, version: str = "1.0") -> None:
        self.log, self.path, self.act = folder / "asked", folder / "cc-of-the-tests", act
        self.log.touch()
        self.says(version)

    def says(self, version: str) -> None:
        self.path.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo "{version}"; exit 0; fi
echo "$@" >> "{self.log}"
while [ "$1" != -o ]; do shift; done
out="$2"
{self.act}
""")
        self.path.chmod(0o755)

    @property
    def asked(self) -> int:
        return len(self.log.read_text().splitlines())


def copies(folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """A compiler whose product is the kernels of this machine, made before."""
    if not machine.made:
        pytest.skip("no kernels here")
    compiler = Compiler(folder, f'cp "{machine.made}" "$out"')
    monkeypatch.setenv("CC", str(compiler.path))
    return compiler


def libraries(cache: Path) -> list[Path]:
    """All files in the cache of kernels."""
    return sorted((cache / "kernels").iterdir())


@linux
def test_a_failed_compilation_says_what_the_compiler_said(monkeypatch: pytest.MonkeyPatch, fresh: Machine,
                                                          tmp_path: Path) -> None:
    compiler = Compiler(tmp_path, 'echo half > "$out"; echo "kernels.c:1: no vectors\nhere" >&2; exit 3')
    monkeypatch.setenv("CC", str(compiler.path))
    said = "cc-of-the-tests could not compile the kernels: kernels.c:1: no vectors here"
    assert availability.why_unavailable() == said
    assert compiler.asked == 1
    assert libraries(fresh.cache) == [], "half a file is not left behind"


@linux
@pytest.mark.parametrize("left", [b"", b"\x7fELF", b"not a library at all" * 1000])
def test_a_file_in_the_cache_that_is_no_library_gives_a_reason(left: bytes, monkeypatch: pytest.MonkeyPatch,
                                                               fresh: Machine, tmp_path: Path) -> None:
    copies(tmp_path, fresh, monkeypatch)
    assert availability.why_unavailable() == ""
    [right] = libraries(fresh.cache)
    path = tmp_path / "another" / "kernels" / right.name  # elsewhere: the first one stays loaded under its name
    path.parent.mkdir(parents=True)
    path.write_bytes(left)
    monkeypatch.setenv("AFTERTUNE_CACHE", str(tmp_path / "another"))
    forget()
    said = availability.why_unavailable()
    assert said
    assert "\n" not in said
    assert len(said) <= 200


@linux
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.usefixtures("nan_memory", "fresh")
def test_what_disagrees_with_torch_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library that does nothing and reports success."""
    (tmp_path / "idle.c").write_text("int attend_rows(void) { return 0; }\n")
    compiler = Compiler(tmp_path, f'cc -shared -fPIC -o "$out" "{tmp_path}/idle.c"')
    monkeypatch.setenv("CC", str(compiler.path))
    assert availability.why_unavailable() == "the kernels do not agree with torch on this machine"


@linux
def test_two_pools_of_threads_are_refused(monkeypatch: pytest.MonkeyPatch, fresh: Machine, tmp_path: Path) -> None:
    copies(tmp_path, fresh, monkeypatch)
    maps = "7f00-7f01 r-xp 00000000 fe:00 1 /usr/lib/libgomp.so.1\n7f02-7f03 r-xp 0 fe:00 2 /torch/libiomp5.so\n"
    monkeypatch.setattr(Path, "read_text", lambda self, *a, _real=Path.read_text, **k:
                        maps if str(self) == "/proc/self/maps" else _real(self, *a, **k))
    assert availability.why_unavailable() == "torch uses another OpenMP library than the kernels"


@linux
def test_kernels_are_compiled_once(monkeypatch: pytest.MonkeyPatch, fresh: Machine, tmp_path: Path) -> None:
    compiler, runs, real = copies(tmp_path, fresh, monkeypatch), [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **k: runs.append(command) or real(command, **k))
    assert availability.why_unavailable() == ""
    assert availability.why_unavailable() == ""
    assert len(runs) == 2, "its version, and the compilation"
    [made] = libraries(fresh.cache)
    for _ in range(2):
        forget()
        assert availability.why_unavailable() == ""
    assert [command[1] for command in runs[2:]] == ["--version"] * 2
    assert compiler.asked == 1
    assert libraries(fresh.cache) == [made]
    assert build.library()._name == str(made)


@linux
def test_another_source_flag_compiler_or_machine_is_another_library(monkeypatch: pytest.MonkeyPatch, fresh: Machine,
                                                                    tmp_path: Path) -> None:
    compiler, source = copies(tmp_path, fresh, monkeypatch), tmp_path / "kernels.c"
    source.write_text(build.SOURCE.read_text() + "/* changed */\n")

    def made() -> int:
        forget()
        assert availability.why_unavailable() == ""
        return len(libraries(fresh.cache))

    assert made() == 1
    with monkeypatch.context() as changed:
        changed.setattr(build, "SOURCE", source)
        assert made() == 2
    with monkeypatch.context() as changed:
        changed.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        assert made() == 3
        assert "-g" in compiler.log.read_text().splitlines()[-1].split()
    with monkeypatch.context() as changed:
        changed.setattr(build, "_processor", lambda: "flags : none")
        assert made() == 4
    compiler.says("1.1")
    assert made() == 5
    compiler.says("1.0")
    assert made() == 5
    assert compiler.asked == 5


def test_every_kernel_has_types_for_all_its_arguments() -> None:
    """Counted in the source, since a missing one is memory read at random."""
    source = build.SOURCE.read_text()
    kinds: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
    for name, letters in build.SIGNATURES.items():
        head = source.split(f"\nint {name}(")[1].split(")")[0]
        declared = ["p" if "*" in one else "f" if one.split()[0] == "float" else "n" for one in head.split(",")
                    if one != "void"]
        assert "".join(declared) == letters, name
        assert build.kernel(name).argtypes == [kinds[x] for x in letters]


def of_linear_layers(dtype: torch.dtype) -> None:
    """Skip where the kernels have no linear layers of this type."""
    if dtype == torch.bfloat16 and not availability.amx_available():
        pytest.skip("this processor has no matrix registers")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "near", "share"), [(torch.float32, 2e-4, 2.0 ** -18),
                                                      (torch.bfloat16, 1e-4, 2.0 ** -8)])
@pytest.mark.parametrize(("depth", "columns"), [(32, 16), (96, 48), (576, 80), (1536, 320)])
@pytest.mark.usefixtures("nan_memory")
def test_linear_layers_in_tiles(depth: int, columns: int, dtype: torch.dtype, near: float, share: float, biased: bool,
                                threads: Callable[[int], None]) -> None:
    """Within the rounding of float32 sums, or one of bfloat16, of float64; a row's numbers depend on the row alone."""
    of_linear_layers(dtype)
    made = torch.Generator().manual_seed(depth)
    x, weight = (torch.randn(n, depth, generator=made).to(dtype) for n in (1100, columns))
    bias = torch.randn(columns, generator=made).to(dtype)
    add, tiles = (bias if biased else None), ops.tile_weight(weight)
    assert torch.equal(ops.untile_weight(tiles), weight)
    whole = ops.linear(x, tiles, add)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if add is None else add.double())
    torch.testing.assert_close(whole.double(), exact, atol=near, rtol=share)
    for count in (*range(1, 18), 32, 33, 47, 513):
        assert torch.equal(ops.linear(x[:count], tiles, add), whole[:count]), count
        assert torch.equal(ops.linear(x[3:3 + count], tiles, add), whole[3:3 + count]), count
    threads(2)
    assert torch.equal(ops.linear(x[None], tiles, add), whole[None])


def test_long_sums_in_float32_are_cut() -> None:
    """Over 4,096 products each: one sum after the other comes to an error of 7.5e-5, sums of 512 to a third of it."""
    made = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, 4096, generator=made) for n in (64, 96))
    exact = torch.nn.functional.linear(x.double(), weight.double())
    for count in (8, 64):
        wrong = ops.linear(x[:count], ops.tile_weight(weight)).double() - exact[:count]
        assert wrong.square().mean().sqrt() < 4.5e-5, count


@pytest.mark.parametrize("dtype", ops.DTYPES)
def test_linear_layers_that_do_not_fit_are_refused(dtype: torch.dtype) -> None:
    of_linear_layers(dtype)
    good, other = torch.randn(32, 64).to(dtype), next(x for x in ops.DTYPES if x != dtype)
    assert ops.takes_weight(good)
    assert ops.takes_weight(good[:, :48]) is (dtype == torch.float32)  # bfloat16: depths of whole tiles
    assert not any(ops.takes_weight(bad) for bad in (good.half(), good[:20]))
    for bad in (torch.randn(3, 64).to(other), torch.randn(3, 32).to(dtype)):
        with pytest.raises(NotImplementedError, match="a linear layer of"):
            ops.linear(bad, ops.tile_weight(good))
    with pytest.raises(NotImplementedError, match="a linear layer of"):
        ops.linear(good, ops.tile_weight(good), torch.zeros(32, dtype=other))
