"""Finds the prefixes worth computing once: few-shot examples, descriptions and templates that many items begin with.

    share([[1, 2, 3, …, 9], [1, 2, 3, …, 7], [4, 4]])    [Group(prefix=(1, 2, 3, …), members=(0, 1)), Group((), (2,))]

Sequences are sorted, so that those with a common beginning are neighbours; a run of neighbours may share what all of
them have in common, or be split where they part, whichever saves more tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Shorter prefixes are not worth a pass of their own.
SHORTEST = 16
#: Nor are those that save fewer tokens than this in all.
LEAST = 256
#: How often a run may be split within a split.
DEPTH = 100


@dataclass(frozen=True, slots=True)
class Group:
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


def share(sequences: Sequence[tuple[int, ...]]) -> list[Group]:
    """Group sequences by the prefix to compute once. Groups and members are in the order of ``sequences``."""
    everywhere = common(min(sequences), max(sequences)) if sequences else 0
    tails = [s[everywhere:] for s in sequences]  # sorting need not compare what all of them have
    order = sorted(range(len(tails)), key=lambda i: (tails[i], i))
    gaps = [everywhere + common(tails[a], tails[b]) for a, b in pairwise(order)]
    groups = []
    for start, end, length in _runs(gaps):
        members = tuple(sorted(order[start: end + 1]))
        groups.append(Group(sequences[members[0]][:length], members))
    held = {i for g in groups for i in g.members}
    alone = tuple(i for i in range(len(sequences)) if i not in held)
    if alone:
        groups.append(Group((), alone))
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
