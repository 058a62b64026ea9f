"""Lays token sequences that share a prefix out as one row, and finds prefixes that many items share.

    packed_row([(0, TokenSequence((1, 5, 7, 4), 2)), (1, TokenSequence((1, 5, 8, 9, 4), 1))])
    # the inputs [1 5 7] and [1 5 8 9] as a trie:
    #     tokens 1 5 7 8 9
    #     depth  0 1 2 2 3
    #     end    5 5 3 5 5

    shared_prefixes([(1, 2, 3, …, 8), (1, 2, 3, …, 9), (4, 4)])
    # [PrefixGroup(prefix=(1, 2, 3, …), members=(0, 1)), PrefixGroup((), (2,))]

A packed row is a trie in depth-first order. The sequences are sorted, and each one adds only the tokens that it does
not share with the one before it. The descendants of a token are then exactly the tokens up to its ``end``, so query i
sees key j if and only if ``j <= i < end[j]``. The position id of a token is its depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aftertune.engine.tokenize import TokenSequence

IntArray = NDArray[np.int64]

# --- Packed rows ---


@dataclass(frozen=True, slots=True)
class Branch:
    """One request in a row.

    position: of the request; nodes: indices in the row of the tokens that predict its targets [targets]; targets: the
    tokens to predict [targets].
    """

    position: int
    nodes: IntArray
    targets: IntArray


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One packed row. tokens, depth, end: [length], see the module; keep: sorted indices of the tokens whose logits are
    needed [kept]."""

    tokens: IntArray
    depth: IntArray
    end: IntArray
    keep: IntArray
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(b.position for b in self.branches)


def packed_row(sequences: Iterable[tuple[int, TokenSequence]], past: int = 0) -> PackedRow:
    """One row of ``(position, sequence)`` pairs. The last token of each is only a target, never an input.

    past: number of tokens that all of them begin with and that are computed before the row; they predict no target.
    """
    inputs = sorted(((s.tokens[past:-1], p, s) for p, s in sequences), key=lambda x: (x[0], x[1]))
    tokens: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    open_nodes: list[int] = []  # row indices of the current sequence, by depth
    previous: tuple[int, ...] = ()
    branches = []
    for current, position, sequence in inputs:
        shared = common_prefix_length(previous, current)
        for node in open_nodes[shared:]:
            end[node] = len(tokens)
        del open_nodes[shared:]
        for d in range(shared, len(current)):
            open_nodes.append(len(tokens))
            tokens.append(current[d])
            depth.append(past + d)
            end.append(-1)
        previous = current
        branches.append(Branch(position, np.array(open_nodes[-sequence.targets:], dtype=np.int64),
                               np.array(sequence.tokens[-sequence.targets:], dtype=np.int64)))
    for node in open_nodes:
        end[node] = len(tokens)
    keep = np.unique(np.concatenate([b.nodes for b in branches]))
    return PackedRow(np.array(tokens), np.array(depth), np.array(end), keep,
                     tuple(sorted(branches, key=lambda b: b.position)))


def prompt_row(tokens: tuple[int, ...], past: int = 0) -> PackedRow:
    """A row of one sequence after ``past`` tokens. All tokens are inputs, only the last one's logits are needed, and
    there are no targets."""
    index = np.arange(len(tokens))
    return PackedRow(np.array(tokens), index + past, np.full(len(tokens), len(tokens)), index[-1:], ())


def attention_mask(rows: list[PackedRow], length: int, window: int | None = None) -> NDArray[np.bool_]:
    """[rows, length, length]: True where query i sees key j. Padding sees only itself, because softmax over no keys is
    NaN.

    window: of sliding-window attention; a query sees only keys fewer than ``window`` depths above it.
    """
    index = np.arange(length)
    end = np.tile(index + 1, (len(rows), 1))
    depth = np.zeros((len(rows), length), dtype=np.int64)
    for r, row in enumerate(rows):
        end[r, : row.length] = row.end
        depth[r, : row.length] = row.depth
    mask = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < end[:, None, :])
    if window is not None:
        mask &= (depth[:, :, None] - depth[:, None, :]) < window
    return np.asarray(mask)


# --- Shared prefixes ---

#: A shorter prefix is not worth a forward pass.
MIN_PREFIX = 16
#: Nor is a prefix that saves fewer tokens than this in all.
MIN_SAVED = 256
#: How deep runs are split into shorter ones.
MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Sequences (by index) that begin with ``prefix``. The group with an empty prefix has those that share none."""

    prefix: tuple[int, ...]
    members: tuple[int, ...]


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens at the start of ``a`` and ``b`` that are equal."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared in C, so a binary search is faster than a loop over tokens
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_prefixes(sequences: Sequence[tuple[int, ...]]) -> list[PrefixGroup]:
    """Group sequences by the prefix to compute once. Groups and members are in the order of ``sequences``."""
    common = common_prefix_length(min(sequences), max(sequences)) if sequences else 0
    tails = [s[common:] for s in sequences]  # what all sequences share need not be compared while sorting
    order = sorted(range(len(tails)), key=lambda i: (tails[i], i))
    gaps = [common + common_prefix_length(tails[a], tails[b]) for a, b in pairwise(order)]
    groups = []
    for start, end, length in _best_runs(gaps):
        members = tuple(sorted(order[start: end + 1]))
        groups.append(PrefixGroup(sequences[members[0]][:length], members))
    grouped = {i for g in groups for i in g.members}
    rest = tuple(i for i in range(len(sequences)) if i not in grouped)
    if rest:
        groups.append(PrefixGroup((), rest))
    return sorted(groups, key=lambda g: g.members[0])


def _best_runs(gaps: list[int]) -> list[tuple[int, int, int]]:
    """The runs (first, last, shared length) of sorted neighbours that save the most tokens in all.

    gaps[i]: number of tokens that neighbours i and i + 1 share. A run shares its smallest gap and saves that many
    tokens for each member except the first, or nothing if it is not worth a pass. It is split at its smallest gaps if
    the shorter runs save more.
    """
    def best(start: int, end: int, depth: int = 0) -> tuple[int, list[tuple[int, int, int]]]:
        """Tokens saved between the neighbours start and end, and the runs that save them."""
        if start >= end:
            return 0, []
        inside = gaps[start:end]
        smallest = min(inside)
        saved_by_one = smallest * (end - start)
        run = [(start, end, smallest)]
        if smallest < MIN_PREFIX or saved_by_one < MIN_SAVED:
            saved_by_one, run = 0, []
        if smallest == max(inside) or depth == MAX_DEPTH:
            return saved_by_one, run
        cuts = [i for i in range(start, end) if gaps[i] == smallest]
        split, saved_by_split, first = [], 0, start
        for cut in (*cuts, end):
            saved, runs = best(first, cut, depth + 1)
            saved_by_split, first = saved_by_split + saved, cut + 1
            split += runs
        return (saved_by_split, split) if saved_by_split > saved_by_one else (saved_by_one, run)

    return best(0, len(gaps))[1]
