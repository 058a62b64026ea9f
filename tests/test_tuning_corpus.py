"""Which examples are trained on: duplicates, the split by prompt, nested subsets, overlap."""

from __future__ import annotations

import pytest

from aftertune.errors import InputError
from aftertune.study import DataSpec
from aftertune.tuning.corpus import Corpus, prompt_hash, split_point
from aftertune.tuning.data import Example
from tuning_cases import rows, write_rows


def load(path, seed=0, **settings):
    return Corpus.load(DataSpec(file=path, **settings), seed)


def test_duplicates_are_left_out_and_counted(tmp_path):
    data = [*rows(30), {"prompt": " SAY  w3 twice", "completion": "w3 w3\n"}, rows(1)[0]]
    corpus = load(write_rows(tmp_path / "d.jsonl", data))
    assert len(corpus.training) + len(corpus.held_out) == 30
    assert corpus.notes == (f"{tmp_path / 'd.jsonl'}: 2 of 32 examples were duplicates and left out: 1 exact, "
                            "1 but for case, spaces or Unicode form",)


def test_conversations_that_begin_alike_lie_on_one_side(tmp_path):
    def talk(number, second):
        turns = [("user", f"say w{number}"), ("assistant", "w1"), ("user", second), ("assistant", "w2")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    data = [talk(number, second) for number in range(30) for second in ("more", "again")]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), held_out=0.4)
    begun = [{e.turns[0] for e in side} for side in (corpus.training, corpus.held_out)]
    assert len(corpus.training) + len(corpus.held_out) == 60  # the same beginning is no duplicate
    assert not begun[0] & begun[1]
    assert [len(side) for side in begun] == [len(corpus.training) // 2, len(corpus.held_out) // 2]


def test_the_same_prompt_with_another_answer_is_no_duplicate_and_goes_to_the_same_side(tmp_path):
    data = [*rows(30), *({"prompt": r["prompt"].upper(), "completion": "other"} for r in rows(30))]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), held_out=0.4)
    sides = [{prompt_hash(e) for e in side} for side in (corpus.training, corpus.held_out)]
    assert not sides[0] & sides[1]
    assert len(corpus.training) + len(corpus.held_out) == 60


def test_the_split_is_by_the_hash_of_the_prompt_whatever_seed_size_and_order(tmp_path):
    first = load(write_rows(tmp_path / "a.jsonl", rows()), seed=0, held_out=0.3)
    second = load(write_rows(tmp_path / "b.jsonl", rows()[::-1]), seed=9, held_out=0.3, examples=5)
    assert set(first.held_out) == set(second.held_out)
    assert all(split_point(e) < 0.3 for e in first.held_out)
    assert all(split_point(e) >= 0.3 for e in first.training)
    assert 0.15 < len(first.held_out) / 40 < 0.45


def test_the_validation_part_lies_beside_the_held_out_one_for_every_seed_and_size(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", rows())
    without = load(path, held_out=0.3)
    first = load(path, held_out=0.3, validation=0.2)
    second = load(path, seed=9, held_out=0.3, validation=0.2, examples=5)
    assert without.validation == ()
    assert first.held_out == second.held_out == without.held_out
    assert first.validation == second.validation
    assert all(0.3 <= split_point(e) < 0.5 for e in first.validation)
    assert set(first.training) | set(first.validation) == set(without.training)
    assert set(second.training) < set(first.training)
    assert first.validation_fingerprint == second.validation_fingerprint != first.held_out_fingerprint


def test_validation_examples_are_none_of_a_held_out_file(tmp_path):
    train, test = write_rows(tmp_path / "d.jsonl", rows()), write_rows(tmp_path / "t.jsonl", rows()[:20])
    corpus = load(train, held_out_file=test, validation=0.4)
    assert len(corpus.training) + len(corpus.validation) == 20
    assert corpus.validation
    assert not set(corpus.validation) & set(corpus.held_out)


def test_a_validation_share_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"0 training, \d+ held-out, \d+ validation examples \(40 distinct ones\)"):
        load(write_rows(tmp_path / "d.jsonl", rows()), held_out=0.6, validation=0.5)


def test_a_split_point_is_the_hash_read_as_a_fraction():
    example = Example((("user", "A"),), "x")
    assert split_point(example) == pytest.approx(int(prompt_hash(example), 16) / 2**256, abs=1e-12)


def test_subsets_are_nested_over_sizes_and_differ_between_seeds(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", rows())
    small, large = (load(path, examples=n) for n in (8, 20))
    assert set(small.training) < set(large.training)
    assert set(load(path, seed=1, examples=8).training) != set(small.training)
    assert small.fingerprint != large.fingerprint
    assert small.held_out_fingerprint == large.held_out_fingerprint


def test_more_examples_than_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"examples: 400 asked for, but \d+ are left"):
        load(write_rows(tmp_path / "d.jsonl", rows()), examples=400)


def test_a_large_file_holds_out_no_more_than_enough(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", rows())
    usual = load(path)
    monkeypatch.setattr("aftertune.tuning.corpus.MOST_HELD_OUT", 1)
    fewest = load(path, held_out=1 / 40)
    capped = load(path)
    assert set(capped.held_out) == set(fewest.held_out) < set(usual.held_out)


def test_training_examples_that_are_in_the_held_out_file_are_left_out(tmp_path):
    train, test = write_rows(tmp_path / "d.jsonl", rows()), write_rows(tmp_path / "t.jsonl", rows()[:3])
    corpus = load(train, held_out_file=test)
    assert (len(corpus.training), len(corpus.held_out)) == (37, 3)
    assert any(note.startswith("3 training examples have a prompt") for note in corpus.notes)


def test_a_file_too_small_to_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="each side needs one"):
        load(write_rows(tmp_path / "d.jsonl", rows(1)))
