"""Trie rows: token sequences that share prefixes, laid out as one row that computes each shared token once.

Sequences are sorted; each adds only what it does not share with the one before it. In this order (depth
first) the descendants of a token are exactly the tokens up to its ``end``, so "who sees whom" is two
comparisons: query i sees key j iff ``j <= i < end[j]``. Position ids are depths.

    [1 5 7], [1 5 8 9]      tokens 1 5 7 8 9
                            depth  0 1 2 2 3
                            end    5 5 3 5 5
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aftertune.engine.encode import Sequence

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Branch:
    """One request in a row. position: the request; nodes: indices [targets] in the row of the tokens that
    predict its targets; targets: the tokens predicted [targets]."""

    position: int
    nodes: Ints
    targets: Ints


@dataclass(frozen=True, slots=True)
class Row:
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


def row(sequences: Iterable[tuple[int, Sequence]], past: int = 0) -> Row:
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
    return Row(np.array(tokens), np.array(depth), np.array(end), keep,
               tuple(sorted(branches, key=lambda b: b.position)))


def path(tokens: tuple[int, ...], past: int = 0) -> Row:
    """A row of one sequence after ``past`` tokens; all tokens are inputs, the last one is kept, nothing scored."""
    places = np.arange(len(tokens))
    return Row(np.array(tokens), places + past, np.full(len(tokens), len(tokens)), places[-1:], ())


def sees(rows: list[Row], length: int, windows: int | None = None) -> NDArray[np.bool_]:
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
