"""Shared prefixes: groups that are worth it, found in time, and never a token that predicts a target."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftertune.engine import packing
from aftertune.engine.engine import head
from aftertune.engine.packing import PrefixGroup, common, packed_row, shared_prefixes
from aftertune.engine.tokenize import TokenSequence

Tokens = tuple[int, ...]


@st.composite
def families(draw: st.DrawFn) -> list[Tokens]:
    """Sequences that begin alike often, at several lengths."""
    stems: list[Tokens] = [()]
    for _ in range(draw(st.integers(1, 5))):
        stems.append(draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, 2), max_size=8).map(tuple)))
    tails = st.lists(st.integers(0, 2), max_size=3).map(tuple)
    return draw(st.lists(st.tuples(st.sampled_from(stems), tails).map(lambda p: p[0] + p[1]), max_size=14))


def saved(groups: list[PrefixGroup]) -> int:
    """Tokens that need not be computed again."""
    return sum(len(g.prefix) * (len(g.members) - 1) for g in groups)


limits = st.tuples(st.integers(1, 5), st.integers(1, 20))


@settings(deadline=None, max_examples=300)
@given(families(), limits)
def test_groups_are_a_partition_by_worthwhile_prefixes(sequences: list[Tokens], least: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST", least[0])
        patch.setattr(packing, "LEAST", least[1])
        groups = shared_prefixes(sequences)
        assert shared_prefixes(list(sequences)) == groups
    assert sorted(i for g in groups for i in g.members) == list(range(len(sequences)))
    assert [g.members[0] for g in groups] == sorted(g.members[0] for g in groups)
    assert sum(not g.prefix for g in groups) <= 1
    for g in groups:
        assert list(g.members) == sorted(g.members)
        assert all(sequences[i][: len(g.prefix)] == g.prefix for i in g.members)
        if g.prefix:
            assert len(g.prefix) >= least[0]
            assert saved([g]) >= least[1]


@settings(deadline=None, max_examples=300)
@given(families(), limits)
def test_no_single_prefix_would_save_more(sequences: list[Tokens], least: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST", least[0])
        patch.setattr(packing, "LEAST", least[1])
        found = saved(shared_prefixes(sequences))
    for one in {s[:n] for s in sequences for n in range(least[0], len(s) + 1)}:
        alone = len(one) * (sum(s[: len(one)] == one for s in sequences) - 1)
        assert found >= alone or alone < least[1], one


@settings(deadline=None, max_examples=100)
@given(st.permutations(range(8)), families())
def test_the_order_of_sequences_changes_no_group(order: list[int], sequences: list[Tokens]) -> None:
    sequences = [*sequences, *[(7,) * n for n in range(8)]][:8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST", 2)
        patch.setattr(packing, "LEAST", 3)
        first, other = shared_prefixes(sequences), shared_prefixes([sequences[i] for i in order])
    as_sets = [sorted((g.prefix, sorted(sequences[i] for i in members)) for g, members in pairs)
               for pairs in ([(g, g.members) for g in first], [(g, [order[i] for i in g.members]) for g in other])]
    assert as_sets[0] == as_sets[1]


def test_pairs_that_are_too_small_do_not_hide_what_all_share() -> None:
    """Every second sequence is its neighbour's twin: the twins save more, but none of them is worth a pass."""
    sequences = [(0,) * 20 + (n,) * 25 + (k,) for n in range(1, 60) for k in (0, 1)]
    assert packing.LEAST > 45 > packing.SHORTEST
    assert shared_prefixes(sequences) == [PrefixGroup((0,) * 20, tuple(range(len(sequences))))]


def test_two_tasks_share_a_prefix_each() -> None:
    one, two = tuple(range(300)), tuple(range(1000, 1400))
    sequences = [(*stem, n) for n in range(5) for stem in (one, two)] + [(5, 6, 7)]
    assert shared_prefixes(sequences) == [PrefixGroup(one, (0, 2, 4, 6, 8)), PrefixGroup(two, (1, 3, 5, 7, 9)),
                                          PrefixGroup((), (10,))]


def test_a_description_above_two_sets_of_examples_is_left_for_them() -> None:
    top = (9,) * 20
    sequences = [(*top, *(k,) * 400, n) for k in (1, 2) for n in range(10)]
    assert [(len(g.prefix), len(g.members)) for g in shared_prefixes(sequences)] == [(420, 10), (420, 10)]


def test_equal_sequences_share_all_of_themselves() -> None:
    assert shared_prefixes([(1,) * 200] * 3) == [PrefixGroup((1,) * 200, (0, 1, 2))]
    assert shared_prefixes([]) == []
    assert shared_prefixes([()]) == [PrefixGroup((), (0,))]
    assert shared_prefixes([(1,) * 900, (2,) * 900]) == [PrefixGroup((), (0, 1))]


def test_deep_nesting_ends() -> None:
    """Each sequence is one token longer than the last: as many levels as sequences."""
    sequences = [(1,) * n for n in range(3000)]
    groups = shared_prefixes(sequences)
    assert sorted(i for g in groups for i in g.members) == list(range(3000))
    assert all(sequences[i][: len(g.prefix)] == g.prefix for g in groups for i in g.members)
    assert saved(groups) > 0


def test_twenty_thousand_sequences_take_no_time() -> None:
    shots = np.arange(1000, 1800)
    sequences = [(*shots.tolist(), n % 997, n % 31, n) for n in range(20_000)]  # new ints: none is the same object
    started = time.process_time()
    groups = shared_prefixes(sequences)
    assert time.process_time() - started < 2.0
    assert groups == [PrefixGroup(tuple(shots.tolist()), tuple(range(20_000)))]


@given(*[st.lists(st.integers(0, 1), max_size=12).map(tuple)] * 2)
def test_the_common_beginning(a: Tokens, b: Tokens) -> None:
    literal = len(list(itertools.takewhile(lambda p: p[0] == p[1], zip(a, b, strict=False))))
    assert common(a, b) == common(list(a), list(b)) == literal


items = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=8).flatmap(
    lambda t: st.integers(1, len(t) - 1).map(lambda n: TokenSequence(tuple(t), n))), min_size=1, max_size=4)


@given(items)
def test_the_head_of_an_item_ends_before_what_predicts(sequences: list[TokenSequence]) -> None:
    group = list(enumerate(sequences))
    found = head(group)
    assert all(s.tokens[: len(found)] == found for s in sequences)
    assert all(len(found) < len(s.tokens) - s.targets for s in sequences)
    longer = sequences[0].tokens[: len(found) + 1]
    assert not all(s.tokens[: len(longer)] == longer and len(longer) < len(s.tokens) - s.targets for s in sequences)
    assert packed_row(group, len(found)).length == packed_row(group).length - len(found)
