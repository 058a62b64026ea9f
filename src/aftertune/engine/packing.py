"""Finds the prefixes worth computing once: few-shot examples, descriptions and templates that many items begin with.

    share([[1, 2, 3, …, 9], [1, 2, 3, …, 7], [4, 4]])    [Group(prefix=(1, 2, 3, …), members=(0, 1)), Group((), (2,))]

Sequences are sorted, so that those with a common beginning are neighbours; a run of neighbours may share what all of
them have in common, or be split where they part, whichever saves more tokens.

Trie rows: token sequences that share prefixes, laid out as one row that computes each shared token once.

Sequences are sorted; each adds only what it does not share with the one before it. In this order (depth
first) the descendants of a token are exactly the tokens up to its ``end``, so "who sees whom" is two
comparisons: query i sees key j iff ``j <= i < end[j]``. Position ids are depths.

    [1 5 7], [1 5 8 9]      tokens 1 5 7 8 9
                            depth  0 1 2 2 3
                            end    5 5 3 5 5
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from aftertune.engine.tokenize import TokenSequence

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Branch:
    """One request in a row. position: the request; nodes: indices [targets] in the row of the tokens that
    predict its targets; targets: the tokens predicted [targets]."""

    position: int
    nodes: Ints
    targets: Ints


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One packed row. tokens, depth, end: [length] (see the module); keep: sorted indices [kept] of the
    tokens whose logits are needed."""

    tokens: Ints
    depth: Ints
    end: Ints
    keep: Ints
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(b.position for b in self.branches)


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def packed_row(sequences: Iterable[tuple[int, TokenSequence]], past: int = 0) -> PackedRow:
    """One row of ``(position, sequence)`` pairs; the last token of each is only a target, never an input.

    past: so many tokens, which all of them begin with, lie before the row, and no target is predicted by them.
    """
    inputs = sorted(((s.tokens[past:-1], p, s) for p, s in sequences), key=lambda x: (x[0], x[1]))
    tokens: list[int] = []
    depth: list[int] = []
    end: list[int] = []
    path: list[int] = []  # row indices of the current sequence, by depth
    before: tuple[int, ...] = ()
    branches = []
    for current, position, sequence in inputs:
        shared = _shared(before, current)
        for node in path[shared:]:
            end[node] = len(tokens)
        del path[shared:]
        for d in range(shared, len(current)):
            path.append(len(tokens))
            tokens.append(current[d])
            depth.append(past + d)
            end.append(-1)
        before = current
        branches.append(Branch(position, np.array(path[-sequence.targets:], dtype=np.int64),
                               np.array(sequence.tokens[-sequence.targets:], dtype=np.int64)))
    for node in path:
        end[node] = len(tokens)
    keep = np.unique(np.concatenate([b.nodes for b in branches]))
    return PackedRow(np.array(tokens), np.array(depth), np.array(end), keep,
               tuple(sorted(branches, key=lambda b: b.position)))


def path(tokens: tuple[int, ...], past: int = 0) -> PackedRow:
    """A row of one sequence after ``past`` tokens; all tokens are inputs, the last one is kept, nothing scored."""
    places = np.arange(len(tokens))
    return PackedRow(np.array(tokens), places + past, np.full(len(tokens), len(tokens)), places[-1:], ())


def sees(rows: list[PackedRow], length: int, windows: int | None = None) -> NDArray[np.bool_]:
    """[rows, length, length]: may query i see key j? Padding sees itself alone (a row of no keys is NaN).

    windows: a sliding window by depth; a query sees keys less than that many depths above it.
    """
    index = np.arange(length)
    end = np.tile(index + 1, (len(rows), 1))
    depth = np.zeros((len(rows), length), dtype=np.int64)
    for r, one in enumerate(rows):
        end[r, : one.length] = one.end
        depth[r, : one.length] = one.depth
    mask = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < end[:, None, :])
    if windows is not None:
        mask &= (depth[:, :, None] - depth[:, None, :]) < windows
    return np.asarray(mask)


#: Shorter prefixes are not worth a pass of their own.
SHORTEST = 16
#: Nor are those that save fewer tokens than this in all.
LEAST = 256
#: How often a run may be split within a split.
DEPTH = 100


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Sequences (by index) that begin with ``prefix``; an empty prefix holds those that share nothing."""

    prefix: tuple[int, ...]
    members: tuple[int, ...]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare in C, so halving beats a loop over tokens
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def shared_prefixes(sequences: Sequence[tuple[int, ...]]) -> list[PrefixGroup]:
    """Group sequences by the prefix to compute once. Groups and members are in the order of ``sequences``."""
    everywhere = common(min(sequences), max(sequences)) if sequences else 0
    tails = [s[everywhere:] for s in sequences]  # sorting need not compare what all of them have
    order = sorted(range(len(tails)), key=lambda i: (tails[i], i))
    gaps = [everywhere + common(tails[a], tails[b]) for a, b in pairwise(order)]
    groups = []
    for start, end, length in _runs(gaps):
        members = tuple(sorted(order[start: end + 1]))
        groups.append(PrefixGroup(sequences[members[0]][:length], members))
    held = {i for g in groups for i in g.members}
    alone = tuple(i for i in range(len(sequences)) if i not in held)
    if alone:
        groups.append(PrefixGroup((), alone))
    return sorted(groups, key=lambda g: g.members[0])


def _runs(gaps: list[int]) -> list[tuple[int, int, int]]:
    """The runs (first, last, shared length) of sorted neighbours that save the most tokens in all.

    gaps[i]: what neighbours i and i + 1 share. A run saves its least gap for every member but the first, or nothing
    where it is not worth a pass; it is split at its least gaps where the parts save more.
    """
    def best(start: int, end: int, depth: int = 0) -> tuple[int, list[tuple[int, int, int]]]:
        if start >= end:
            return 0, []
        inside = gaps[start:end]
        least = min(inside)
        whole = least * (end - start)
        run = [(start, end, least)]
        if least < SHORTEST or whole < LEAST:
            whole, run = 0, []
        if least == max(inside) or depth == DEPTH:
            return whole, run
        cuts = [i for i in range(start, end) if gaps[i] == least]
        parts, saved, first = [], 0, start
        for cut in (*cuts, end):
            more, runs = best(first, cut, depth + 1)
            saved, first = saved + more, cut + 1
            parts += runs
        return (saved, parts) if saved > whole else (whole, run)

    return best(0, len(gaps))[1]
