"""Trie rows against their definition: every sequence sees its own prefix, and each shared prefix is there once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aftertune.engine.packing import PackedRow, packed_row, path, sees
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
    one = packed_row([(0, TokenSequence((1, 5, 7, 4), 2)), (1, TokenSequence((1, 5, 8, 9, 4), 1))])
    assert one.tokens.tolist() == [1, 5, 7, 8, 9]
    assert one.depth.tolist() == [0, 1, 2, 2, 3]
    assert one.end.tolist() == [5, 5, 3, 5, 5]
    assert one.keep.tolist() == [1, 2, 4]
    assert [b.nodes.tolist() for b in one.branches] == [[1, 2], [4]]


@given(groups)
def test_every_target_sees_exactly_the_tokens_before_it(group: list[tuple[int, TokenSequence]]) -> None:
    one = packed_row(group)
    mask = sees([one], one.length)[0]
    assert one.positions == tuple(p for p, _ in group)
    for branch, (_, sequence) in zip(one.branches, group, strict=True):
        assert branch.targets.tolist() == list(sequence.tokens[-sequence.targets:])
        assert len(branch.nodes) == sequence.targets
        for k, node in enumerate(branch.nodes):
            before = sequence.tokens[: len(sequence.tokens) - sequence.targets + k]
            assert visible(one, int(node), mask) == list(before)


@given(groups)
def test_each_shared_prefix_is_computed_once(group: list[tuple[int, TokenSequence]]) -> None:
    one = packed_row(group)
    inputs = [s.tokens[:-1] for _, s in group]
    prefixes = {tokens[: n + 1] for tokens in inputs for n in range(len(tokens))}
    mask = sees([one], one.length)[0]
    assert one.length == len(prefixes)
    assert {tuple(visible(one, node, mask)) for node in range(one.length)} == prefixes
    assert one.keep.tolist() == sorted({int(n) for b in one.branches for n in b.nodes})


@given(groups, st.integers(1, 6))
def test_a_window_counts_depths(group: list[tuple[int, TokenSequence]], width: int) -> None:
    one = packed_row(group)
    mask = sees([one], one.length, width)[0]
    for branch, (_, sequence) in zip(one.branches, group, strict=True):
        keys = np.flatnonzero(mask[branch.nodes[-1]])
        ordered = sorted(keys, key=lambda k: one.depth[k])
        assert [int(one.tokens[k]) for k in ordered] == list(sequence.tokens[:-1][-width:])


@given(groups, groups, st.integers(0, 4), st.sampled_from([None, 3]))
def test_padding_sees_itself_and_nothing_sees_padding(a: list[tuple[int, TokenSequence]], b: list[tuple[int,
                                                                                                        TokenSequence]],
                                                      extra: int, width: int | None) -> None:
    rows = [packed_row(a), packed_row(b)]
    length = max(r.length for r in rows) + extra
    mask = sees(rows, length, width)
    assert mask.shape == (2, length, length)
    for one, found in zip(rows, mask, strict=True):
        assert (found[: one.length, : one.length] == sees([one], one.length, width)[0]).all()
        assert not found[: one.length, one.length:].any()
        assert (found[one.length:] == np.eye(length, dtype=bool)[one.length:]).all()


@given(groups)
def test_the_order_of_requests_does_not_matter(group: list[tuple[int, TokenSequence]]) -> None:
    one, other = packed_row(group), packed_row(reversed(group))
    assert (one.tokens.tolist(), one.end.tolist(), one.positions) == \
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
    one = path((7, 8, 9), past=4)
    assert (one.tokens.tolist(), one.depth.tolist(), one.keep.tolist()) == ([7, 8, 9], [4, 5, 6], [2])
    assert one.branches == ()
    assert sees([one], 3)[0].tolist() == np.tri(3, dtype=bool).tolist()
    same = packed_row([(0, TokenSequence((1, 2, 3, 4, 7, 8, 9, 0), 1))], past=4)
    assert (same.tokens.tolist(), same.depth.tolist(), same.end.tolist(), same.keep.tolist()) == \
        (one.tokens.tolist(), one.depth.tolist(), one.end.tolist(), one.keep.tolist())
