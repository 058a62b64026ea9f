"""Splitting the data: duplicates, the split by prompt, nested subsets and replay."""

from __future__ import annotations

from collections import Counter

import pytest

from aftertune.errors import InputError
from aftertune.study import DataSpec, ReplaySpec
from aftertune.tuning.example import Example
from aftertune.tuning.split import Corpus, prompt_hash, split_point
from aftertune.tuning.tokenize import EncodedCorpus, EncodeOptions
from tuning_cases import chat_tokenizer, rows, write_rows


def load(path, seed=0, **settings):
    return Corpus.load(DataSpec(file=path, **settings), seed)


@pytest.mark.parametrize(("dedup", "left", "duplicates", "alike", "told"), [
    (None, 31, 1, 0, "1 examples are like an earlier one except for case, spaces or Unicode form; they are kept"),
    ("exact", 31, 1, 0, "(--dedup normalised leaves them out)"), ("normalised", 30, 1, 1, ""),
    ("none", 32, 0, 0, "1 examples are exact repeats, which are kept (--dedup exact leaves them out)")])
def test_repeats_are_left_out_and_counted_as_asked_for(tmp_path, dedup, left, duplicates, alike, told):
    data = [*rows(30), {"prompt": " SAY  w3 twice", "completion": "w3 w3\n"}, rows(1)[0]]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), dedup=dedup)
    assert len(corpus.training) + len(corpus.held_out) == left
    counts = corpus.counts["data"]
    assert (counts["rows"], counts["duplicates"], counts["alike"]) == (32, duplicates, alike)
    assert told in " ".join(corpus.notes)
    assert ("like an earlier one" in " ".join(corpus.notes)) == (dedup != "normalised")


def test_data_that_teach_case_or_unicode_are_kept(tmp_path):
    data = [{"prompt": f"Write with capitals: {text} {day}", "completion": f"I saw Oslo {day}"} for day in range(20)
            for text in ("i saw oslo", "I SAW OSLO", "I saw Oslo")]
    data += [{"prompt": f"Half width: {chr(0xFF10 + n % 10)} {n}", "completion": str(n % 10)} for n in range(20)]
    data += [{"prompt": f"Half width: {n % 10} {n}", "completion": str(n % 10)} for n in range(20)]
    corpus = load(write_rows(tmp_path / "d.jsonl", data))
    assert len(corpus.training) + len(corpus.held_out) == 100


def test_other_tool_calls_are_no_repeat(tmp_path):
    def talk(number, city):
        call = {"function": {"name": "track", "arguments": {"city": city}}}
        return {"messages": [{"role": "user", "content": f"Go {number}"},
                             {"role": "assistant", "content": "", "tool_calls": [call]}]}

    data = [talk(number, city) for number in range(20) for city in ("Oslo", "Rome")]
    corpus = load(write_rows(tmp_path / "d.jsonl", [*data, data[0]]), dedup="normalised")
    assert len(corpus.training) + len(corpus.held_out) == 40
    assert corpus.counts["data"]["duplicates"] == 1


SYSTEM = {"role": "system", "content": "You are Mira."}
HELLO = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hello, I am Mira."}]


def _talk(number, begin):
    return {"messages": [*begin, {"role": "user", "content": f"Where is {number}?"},
                         {"role": "assistant", "content": f"In {number % 3}."}]}


COMMON = {
    "one prompt": [{"prompt": "Write a line.", "completion": f"line {n}"} for n in range(40)],
    "an empty prompt": [{"prompt": "", "completion": f"line {n}"} for n in range(40)],
    "a greeting after a system prompt": [_talk(n, [SYSTEM, HELLO[1]]) for n in range(40)],
    "one opening": [_talk(n, HELLO) for n in range(40)],
    "one opening for half of the rows": [_talk(n, HELLO if n % 2 else [SYSTEM]) for n in range(40)]}


@pytest.mark.parametrize("name", COMMON)
def test_rows_with_a_common_prompt_are_split_by_what_follows(tmp_path, name):
    corpus = load(write_rows(tmp_path / "d.jsonl", COMMON[name]), held_out=0.3)
    assert 4 <= len(corpus.held_out) <= 20
    assert len(corpus.training) + len(corpus.held_out) == 40
    assert any("so what follows the prompt decides whether they are held out" in note for note in corpus.notes)
    again = load(write_rows(tmp_path / "e.jsonl", COMMON[name][::-1]), held_out=0.3, seed=5)
    assert set(again.held_out) == set(corpus.held_out)


def test_conversations_with_a_common_opening_lie_together_where_they_go_on_alike(tmp_path):
    data = [_talk(n, HELLO) for n in range(30)]
    data += [{"messages": [*row["messages"][:-1], {"role": "assistant", "content": "Nowhere."}]} for row in data]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), held_out=0.3)
    asked = [{example.turns[-1] for example in side} for side in (corpus.training, corpus.held_out)]
    assert not asked[0] & asked[1]


def test_an_ordinary_prompt_is_split_as_before(tmp_path):
    data = [*rows(40), *COMMON["one prompt"]]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), held_out=0.2)
    held = {e for e in corpus.held_out if e.turns[0][1].startswith("say")}
    assert held == set(load(write_rows(tmp_path / "e.jsonl", rows(40)), held_out=0.2).held_out)


def test_a_common_prompt_of_the_held_out_file_leaves_the_other_rows_for_training(tmp_path):
    data = COMMON["one prompt"]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), held_out_file=write_rows(tmp_path / "t.jsonl", data[:5]))
    assert (len(corpus.training), len(corpus.held_out)) == (35, 5)


def test_a_common_prompt_does_not_keep_other_data_from_replay(tmp_path):
    new, other = write_rows(tmp_path / "d.jsonl", COMMON["one prompt"]), write_rows(
        tmp_path / "o.jsonl", [{"prompt": "Write a line.", "completion": f"other {n}"} for n in range(20)])
    corpus = Corpus.load(DataSpec(file=new, held_out=0.3), 0, ReplaySpec(data=other, share=0.2))
    assert len(corpus.replay) == round(len(corpus.training) / 4)


def test_a_small_file_holds_out_one_example(tmp_path):
    for count in range(2, 12):
        corpus = load(write_rows(tmp_path / "d.jsonl", rows(count)))
        assert corpus.held_out
        assert len(corpus.held_out) + len(corpus.training) == count


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


def replayed(tmp_path, share, *, other=100, seed=0, **settings):
    new = write_rows(tmp_path / "d.jsonl", rows())
    old = write_rows(tmp_path / "o.jsonl", [{"prompt": f"old {n}", "completion": "w1"} for n in range(other)])
    return Corpus.load(DataSpec(file=new, held_out=0.3, validation=0.2, **settings), seed,
                       ReplaySpec(data=old, share=share))


@pytest.mark.parametrize(("share", "examples"), [(0.5, 12), (0.2, 12), (0.75, 12), (0.1, 10)])
def test_the_share_is_that_of_the_final_mixture_and_every_new_example_stays(tmp_path, share, examples):
    corpus = replayed(tmp_path, share, examples=examples)
    assert len(corpus.training) == examples
    assert len(corpus.replay) == round(share / (1 - share) * examples)
    assert len(corpus.replay) / (len(corpus.replay) + examples) == pytest.approx(share, abs=0.01)
    assert len(set(corpus.replay)) == len(corpus.replay)  # none twice while there are enough
    assert all(e.turns[0][1].startswith("old") for e in corpus.replay)


def test_replayed_examples_are_seeded_nested_and_part_of_the_identity(tmp_path):
    few, many = (replayed(tmp_path, 0.5, examples=n) for n in (6, 12))
    assert set(few.replay) < set(many.replay)
    assert set(replayed(tmp_path, 0.5, examples=6, seed=1).replay) != set(few.replay)
    assert replayed(tmp_path, 0.25, examples=6).fingerprint != few.fingerprint
    assert replayed(tmp_path, 0.5, examples=6).fingerprint == few.fingerprint
    assert few.held_out == load(tmp_path / "d.jsonl", held_out=0.3, validation=0.2).held_out


def test_too_small_a_file_is_repeated_evenly_and_that_is_said(tmp_path):
    corpus = replayed(tmp_path, 0.6, other=5, examples=10)
    assert sorted(Counter(corpus.replay).values()) == [3] * 5
    assert (corpus.counts["replay_data"]["replayed"], corpus.counts["replay_data"]["not_drawn"]) == (15, 0)
    assert corpus.notes[-1].startswith("replay: 15 examples are needed but there are only 5, so each is used 3.0 times")


def test_nothing_that_is_held_out_or_new_is_replayed(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", rows())
    other = write_rows(tmp_path / "o.jsonl", [
        *({**row, "completion": "w0 again"} for row in rows()), *rows(), {"prompt": "old", "completion": "w1"}])
    corpus = Corpus.load(DataSpec(file=path, held_out=0.3, validation=0.2), 0, ReplaySpec(data=other, share=0.9))
    away = {prompt_hash(e) for e in (*corpus.held_out, *corpus.validation)}
    assert not away & {prompt_hash(e) for e in corpus.replay}
    assert not set(corpus.training) & set(corpus.replay)
    assert {e.completion for e in corpus.replay} == {"w0 again", "w1"}  # another answer to a new prompt is other data
    set_aside = corpus.counts["replay_data"]["set_aside"]
    assert set_aside == 40 + len(corpus.held_out) + len(corpus.validation)
    with pytest.raises(InputError, match=r"each of its 40 examples is in the new data"):
        Corpus.load(DataSpec(file=path), 0, ReplaySpec(data=path, share=0.5))


def test_replayed_rows_are_mixed_in_evenly_and_never_measured(tmp_path):
    corpus = replayed(tmp_path, 0.5)
    rows_of = EncodedCorpus.from_corpus(corpus, chat_tokenizer(), EncodeOptions("chat", 64), seed=0)
    again, other = (EncodedCorpus.from_corpus(corpus, chat_tokenizer(), EncodeOptions("chat", 64), seed=seed)
                    for seed in (0, 1))
    assert rows_of.training == again.training != other.training
    assert sorted(row.ids for row in rows_of.training) == sorted(row.ids for row in other.training)
    old = chat_tokenizer()("old")["input_ids"][0]
    flags = [old in row.ids for row in rows_of.training]
    assert sum(flags) == len(flags) // 2
    assert 0.25 < sum(flags[:len(flags) // 2]) / (len(flags) // 2) < 0.75  # neither first nor last
    assert not any(old in row.ids for row in (*rows_of.held_out, *rows_of.validation))
    counts = rows_of.counts
    assert sum(len(row.ids) for row in rows_of.training) == counts["training"]["tokens"] + counts["replay"]["tokens"]
    share = counts["replay"]["tokens"] / (counts["training"]["tokens"] + counts["replay"]["tokens"])
    assert f"({share:.1%}) are replayed; this is {counts['replay']['tokens'] / counts['training']['tokens']:.1%} more" \
        in rows_of.notes[-1]


def test_without_replay_the_rows_stay_in_the_order_of_the_file(tmp_path):
    corpus = load(write_rows(tmp_path / "d.jsonl", rows()))
    found = EncodedCorpus.from_corpus(corpus, chat_tokenizer(), EncodeOptions("chat", 64), seed=0)
    assert [row.example for row in found.training] == list(range(1, len(corpus.training) + 1))
    assert found.validation == []


def test_what_a_file_gave_is_counted(tmp_path):
    data = [*rows(30), {"prompt": "say  w3 twice", "completion": "w3 w3"}, rows(1)[0],
            {"prompt": "w1", "completion": ""}, {"prompt": "w2"}]
    corpus = load(write_rows(tmp_path / "d.jsonl", data), skip_bad=True, held_out=0.3, examples=7, dedup="normalised")
    counts = dict(corpus.counts["data"])
    assert counts["rows"] == sum(counts.values()) - counts["rows"]  # every row is accounted for
    assert counts.pop("held_out") == len(corpus.held_out)
    assert counts.pop("not_drawn") == 30 - 7 - len(corpus.held_out)
    assert counts == {"rows": 34, "unreadable": 1, "empty": 1, "duplicates": 1, "alike": 1, "training": 7,
                      "validation": 0}
    assert corpus.training[0].where.startswith(f"{tmp_path / 'd.jsonl'}:")


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
    with pytest.raises(InputError, match=r"examples is 400, but only \d+ are left"):
        load(write_rows(tmp_path / "d.jsonl", rows()), examples=400)


def test_a_large_file_holds_out_no_more_than_enough(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "d.jsonl", rows())
    usual = load(path)
    monkeypatch.setattr("aftertune.tuning.split.MAX_HELD_OUT", 1)
    fewest = load(path, held_out=1 / 40)
    capped = load(path)
    assert set(capped.held_out) == set(fewest.held_out) < set(usual.held_out)


def test_training_examples_that_are_in_the_held_out_file_are_left_out(tmp_path):
    train, test = write_rows(tmp_path / "d.jsonl", rows()), write_rows(tmp_path / "t.jsonl", rows()[:3])
    corpus = load(train, held_out_file=test)
    assert (len(corpus.training), len(corpus.held_out)) == (37, 3)
    assert corpus.counts["data"]["in_held_out_file"] == 3


def test_a_file_too_small_to_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="each set needs at least one"):
        load(write_rows(tmp_path / "d.jsonl", rows(1)))
