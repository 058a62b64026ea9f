"""Packed rows and shared prefixes.

Each token sees only its own sequence, a shared prefix is computed once and is worth its forward pass, and no shared
token predicts a target.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aftertune.engine import packing
from aftertune.engine.engine import shared_context
from aftertune.engine.packing import (
    PackedRow,
    PrefixGroup,
    attention_mask,
    common_prefix_length,
    packed_row,
    prompt_row,
    shared_prefixes,
)
from aftertune.engine.tokenize import TokenSequence


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence:
    """Few different tokens, so that prefixes are shared often; at least one token of context."""
    tokens = draw(st.lists(st.integers(0, 2), min_size=2, max_size=9))
    return TokenSequence(tuple(tokens), draw(st.integers(1, len(tokens) - 1)))


groups = st.lists(sequences(), min_size=1, max_size=7).map(lambda found: list(enumerate(found, 10)))


def visible(one: PackedRow, node: int, mask: np.ndarray) -> list[int]:
    """Tokens that ``node`` sees, by depth."""
    keys = np.flatnonzero(mask[node])
    assert sorted(one.depth[keys]) == list(range(len(keys))), "one key a depth"
    return [int(one.tokens[k]) for k in sorted(keys, key=lambda k: one.depth[k])]


def test_the_example_of_the_module() -> None:
    row = packed_row([(0, TokenSequence((1, 5, 7, 4), 2)), (1, TokenSequence((1, 5, 8, 9, 4), 1))])
    assert row.tokens.tolist() == [1, 5, 7, 8, 9]
    assert row.depth.tolist() == [0, 1, 2, 2, 3]
    assert row.end.tolist() == [5, 5, 3, 5, 5]
    assert row.keep.tolist() == [1, 2, 4]
    assert [b.nodes.tolist() for b in row.branches] == [[1, 2], [4]]


@given(groups)
def test_every_target_sees_exactly_the_tokens_before_it(group: list[tuple[int, TokenSequence]]) -> None:
    row = packed_row(group)
    mask = attention_mask([row], row.length)[0]
    assert row.positions == tuple(p for p, _ in group)
    for branch, (_, sequence) in zip(row.branches, group, strict=True):
        assert branch.targets.tolist() == list(sequence.tokens[-sequence.targets:])
        assert len(branch.nodes) == sequence.targets
        for k, node in enumerate(branch.nodes):
            before = sequence.tokens[: len(sequence.tokens) - sequence.targets + k]
            assert visible(row, int(node), mask) == list(before)


@given(groups)
def test_each_shared_prefix_is_computed_once(group: list[tuple[int, TokenSequence]]) -> None:
    row = packed_row(group)
    inputs = [s.tokens[:-1] for _, s in group]
    prefixes = {tokens[: n + 1] for tokens in inputs for n in range(len(tokens))}
    mask = attention_mask([row], row.length)[0]
    assert row.length == len(prefixes)
    assert {tuple(visible(row, node, mask)) for node in range(row.length)} == prefixes
    assert row.keep.tolist() == sorted({int(n) for b in row.branches for n in b.nodes})


@given(groups, st.integers(1, 6))
def test_a_window_counts_depths(group: list[tuple[int, TokenSequence]], width: int) -> None:
    row = packed_row(group)
    mask = attention_mask([row], row.length, width)[0]
    for branch, (_, sequence) in zip(row.branches, group, strict=True):
        keys = np.flatnonzero(mask[branch.nodes[-1]])
        ordered = sorted(keys, key=lambda k: row.depth[k])
        assert [int(row.tokens[k]) for k in ordered] == list(sequence.tokens[:-1][-width:])


@given(groups, groups, st.integers(0, 4), st.sampled_from([None, 3]))
def test_padding_sees_itself_and_nothing_sees_padding(a: list[tuple[int, TokenSequence]], b: list[tuple[int,
                                                                                                        TokenSequence]],
                                                      extra: int, width: int | None) -> None:
    rows = [packed_row(a), packed_row(b)]
    length = max(r.length for r in rows) + extra
    mask = attention_mask(rows, length, width)
    assert mask.shape == (2, length, length)
    for one, found in zip(rows, mask, strict=True):
        assert (found[: one.length, : one.length] == attention_mask([one], one.length, width)[0]).all()
        assert not found[: one.length, one.length:].any()
        assert (found[one.length:] == np.eye(length, dtype=bool)[one.length:]).all()


@given(groups)
def test_the_order_of_requests_does_not_matter(group: list[tuple[int, TokenSequence]]) -> None:
    row, other = packed_row(group), packed_row(reversed(group))
    assert (row.tokens.tolist(), row.end.tolist(), row.positions) == \
        (other.tokens.tolist(), other.end.tolist(), other.positions)


@given(st.lists(st.integers(0, 2), max_size=6), groups)
def test_a_row_after_a_prefix_is_the_rest_of_the_whole_row(head: list[int], group: list[tuple[int,
                                                                                              TokenSequence]]) -> None:
    past = len(head)
    longer = [(p, TokenSequence((*head, *s.tokens), s.targets)) for p, s in group]
    whole, rest = packed_row(longer), packed_row(longer, past)
    assert rest.tokens.tolist() == whole.tokens[past:].tolist()
    assert rest.depth.tolist() == whole.depth[past:].tolist()
    assert rest.end.tolist() == (whole.end[past:] - past).tolist()
    assert rest.keep.tolist() == (whole.keep - past).tolist()
    for branch, other in zip(rest.branches, whole.branches, strict=True):
        assert branch.position == other.position
        assert branch.nodes.tolist() == (other.nodes - past).tolist()
        assert branch.targets.tolist() == other.targets.tolist()
        assert branch.nodes.min() >= 0


def test_a_path_is_a_row_of_inputs_alone() -> None:
    row = prompt_row((7, 8, 9), past=4)
    assert (row.tokens.tolist(), row.depth.tolist(), row.keep.tolist()) == ([7, 8, 9], [4, 5, 6], [2])
    assert row.branches == ()
    assert attention_mask([row], 3)[0].tolist() == np.tri(3, dtype=bool).tolist()
    same = packed_row([(0, TokenSequence((1, 2, 3, 4, 7, 8, 9, 0), 1))], past=4)
    assert (same.tokens.tolist(), same.depth.tolist(), same.end.tolist(), same.keep.tolist()) == \
        (row.tokens.tolist(), row.depth.tolist(), row.end.tolist(), row.keep.tolist())


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


savings = st.tuples(st.integers(1, 5), st.integers(1, 20))


@settings(deadline=None, max_examples=300)
@given(families(), savings)
def test_groups_are_a_partition_by_worthwhile_prefixes(sequences: list[Tokens], least: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_PREFIX", least[0])
        patch.setattr(packing, "MIN_SAVED", least[1])
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
@given(families(), savings)
def test_no_single_prefix_would_save_more(sequences: list[Tokens], least: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_PREFIX", least[0])
        patch.setattr(packing, "MIN_SAVED", least[1])
        found = saved(shared_prefixes(sequences))
    for one in {s[:n] for s in sequences for n in range(least[0], len(s) + 1)}:
        alone = len(one) * (sum(s[: len(one)] == one for s in sequences) - 1)
        assert found >= alone or alone < least[1], one


@settings(deadline=None, max_examples=100)
@given(st.permutations(range(8)), families())
def test_the_order_of_sequences_changes_no_group(order: list[int], sequences: list[Tokens]) -> None:
    sequences = [*sequences, *[(7,) * n for n in range(8)]][:8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_PREFIX", 2)
        patch.setattr(packing, "MIN_SAVED", 3)
        first, other = shared_prefixes(sequences), shared_prefixes([sequences[i] for i in order])
    as_sets = [sorted((g.prefix, sorted(sequences[i] for i in members)) for g, members in pairs)
               for pairs in ([(g, g.members) for g in first], [(g, [order[i] for i in g.members]) for g in other])]
    assert as_sets[0] == as_sets[1]


def test_pairs_that_are_too_small_do_not_hide_what_all_share() -> None:
    """Every second sequence is its neighbour's twin: the twins save more, but none of them is worth a pass."""
    sequences = [(0,) * 20 + (n,) * 25 + (k,) for n in range(1, 60) for k in (0, 1)]
    assert packing.MIN_SAVED > 45 > packing.MIN_PREFIX
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
    assert common_prefix_length(a, b) == common_prefix_length(list(a), list(b)) == literal


items = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=8).flatmap(
    lambda t: st.integers(1, len(t) - 1).map(lambda n: TokenSequence(tuple(t), n))), min_size=1, max_size=4)


@given(items)
def test_the_head_of_an_item_ends_before_what_predicts(sequences: list[TokenSequence]) -> None:
    group = list(enumerate(sequences))
    found = shared_context(group)
    assert all(s.tokens[: len(found)] == found for s in sequences)
    assert all(len(found) < len(s.tokens) - s.targets for s in sequences)
    longer = sequences[0].tokens[: len(found) + 1]
    assert not all(s.tokens[: len(longer)] == longer and len(longer) < len(s.tokens) - s.targets for s in sequences)
    assert packed_row(group, len(found)).length == packed_row(group).length - len(found)
