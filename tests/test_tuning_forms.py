"""The forms of rows, the keys that are carried on, masks, and that every hint works when it is followed."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import pytest

from aftertune.errors import InputError
from aftertune.study import DataSource
from aftertune.tuning.data import ReadReport, read_examples
from aftertune.tuning.example import Example
from aftertune.tuning.forms import FORMS
from aftertune.tuning.rows import ReadOptions
from aftertune.tuning.turns import MASKS

ASK, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PAIR = Example((("user", "a"),), "b")
TRACK = {"type": "function", "function": {"name": "track", "description": "d", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "track", "arguments": {"order": 1}}}


def read(folder, *rows, **options):
    """The examples of rows, and the notes."""
    path, report = folder / "data.jsonl", ReadReport()
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_examples(path, ReadOptions(**options), report), [n.removeprefix(f"{path}: ") for n in report.notes]


def one(folder, row, **options):
    """The only example of a row."""
    [example], _ = read(folder, row, **options)
    return example


def talk(*turns, **row):
    """A row of messages from (role, text, other keys)."""
    return {"messages": [{"role": role, "content": text, **(more[0] if more else {})} for role, text, *more in turns],
            **row}


# --- Forms ---

RECOGNISED = {
    "conversations of role and content": ({"conversations": [ASK, REPLY]}, "sharegpt", PAIR),
    "messages of from and value": ({"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
                                   "messages", PAIR),
    "other names of speakers": ({"conversations": [{"from": "User", "value": "a"}, {"from": "bot", "value": "b"}]},
                                "sharegpt", PAIR),
    "a system prompt beside messages": ({"system": "s", "messages": [ASK, REPLY]}, "messages",
                                        Example((("system", "s"), ("user", "a")), "b")),
    "a system prompt beside a prompt": ({"system": "s", "prompt": "a", "completion": "b"}, "prompt",
                                        Example((("system", "s"), ("user", "a")), "b")),
    "a developer": ({"messages": [{"role": "developer", "content": "s"}, ASK, REPLY]}, "messages",
                    Example((("system", "s"), ("user", "a")), "b")),
    "TRL's prompt and completion": ({"prompt": [ASK], "completion": [REPLY]}, "prompt", PAIR),
    "a prompt of turns and a text": ({"prompt": [ASK], "completion": "b"}, "prompt", PAIR),
    "answers in a prompt": ({"prompt": [ASK, REPLY, ASK], "completion": [REPLY]}, "prompt", Example(
        (("user", "a"), ("assistant", "b"), ("user", "a")), "b", context=(1,))),
    "dolly": ({"instruction": "a", "context": "c", "response": "b", "category": "qa"}, "dolly",
              Example((("user", "a"),), "b", "c")),
    "dolly without a context": ({"instruction": "a", "context": "", "response": "b"}, "dolly", PAIR),
    "a preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", PAIR),
    "a preference of turns": ({"prompt": [ASK], "chosen": [REPLY], "rejected": [REPLY]}, "preference", PAIR),
    "a preference with the prompt in both": (
        {"chosen": [ASK, REPLY], "rejected": [ASK, {"role": "assistant", "content": "c"}]}, "preference", PAIR),
    "a preference with earlier answers": (
        {"chosen": [ASK, REPLY, ASK, REPLY], "rejected": [ASK, REPLY, ASK, {"role": "assistant", "content": "c"}]},
        "preference", Example((("user", "a"), ("assistant", "b"), ("user", "a")), "b", context=(1,))),
    "a preference of ShareGPT": (
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
         "rejected": {"from": "gpt", "value": "c"}}, "preference", PAIR),
    "a preference of Alpaca": ({"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}, "preference", PAIR),
    "OpenAI's preference": ({"input": {"messages": [ASK], "tools": [], "parallel_tool_calls": True},
                             "preferred_output": [REPLY], "non_preferred_output": [REPLY]}, "preference", PAIR),
    "a whole conversation with preferences": ({"messages": [ASK, REPLY], "chosen": [ASK, REPLY], "rejected": []},
                                              "messages", PAIR),
    "plain text": ({"text": "b", "url": "u"}, "text", Example((), "b")),
    "good answers": ({"prompt": "a", "completion": "b", "label": True}, "prompt", PAIR)}


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_form_is_recognised_read_and_told_with_its_reason(tmp_path, name):
    row, form, expected = RECOGNISED[name]
    examples, notes = read(tmp_path, row, row)
    assert examples == [expected] * 2
    assert f"read as {form}, because the {FORMS[form].because}" in notes
    assert one(tmp_path, row, form=form) == expected
    if form == "preference":
        assert any(note.startswith("2 rows give two answers; ") and "is learned" in note for note in notes)


def test_the_formats_of_the_specification_are_the_forms():
    assert set(DataSource.model_fields["format"].annotation.__args__) == {"auto", *FORMS}


def test_forms_that_are_mixed_are_told_with_their_counts(tmp_path):
    _, notes = read(tmp_path, {"prompt": "a", "completion": "b"}, {"text": "b"}, {"text": "c"})
    assert notes[0].startswith("read 2 rows as text, because")
    assert "; 1 rows as prompt, because" in notes[0]


def test_columns_and_keys_of_turns_that_are_not_used_are_told_once_with_their_counts(tmp_path):
    row = talk(("user", "a", {"emotion": "sad"}), ("assistant", "b", {"emotion": "glad", "weight": 1}), id=3, lang="en")
    _, notes = read(tmp_path, row, row, {**row, "lang": None})
    assert notes[1:] == ["keys of turns that are not used: 'emotion' (6 turns)",
                         "columns that are not used: 'id' (3 rows), 'lang' (2 rows)"]
    _, notes = read(tmp_path, {"q": "a", "a": "b", "id": 3}, fields={"prompt": "q", "completion": "a"})
    assert notes[1:] == ["columns that are not used: 'id' (1 rows)"]


# --- Masks ---


@pytest.mark.parametrize("key", MASKS)
@pytest.mark.parametrize(("value", "learned"), [(0, False), (False, False), ("false", False), (0.0, False), (1, True),
                                                (True, True), (None, True)])
def test_a_mask_of_any_name_is_honoured(tmp_path, key, value, learned):
    row = talk(("user", "a"), ("assistant", "b", {key: value}), ("user", "c"), ("assistant", "d"))
    assert one(tmp_path, row).answers == ((1, 3) if learned else (3,))


def test_a_conversation_ends_at_its_last_learned_answer(tmp_path):
    row = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d", {"train": False}))
    assert one(tmp_path, row) == PAIR


@pytest.mark.parametrize(("keys", "found"), [
    ({"weight": 0.5}, "`weight` is 0.5; a turn is learned"), ({"loss": [0, 1]}, "`loss` is [0, 1]; a turn"),
    ({"mask": 1}, "`mask` may mean learned or not learned"), ({"train_detail": []}, "`train_detail` may mean"),
    ({"train": True, "weight": 0}, "`weight`: False and `train`: True disagree")])
def test_a_mask_that_is_not_understood_is_refused_with_its_name(tmp_path, keys, found):
    with pytest.raises(InputError) as refused:
        read(tmp_path, talk(("user", "a"), ("assistant", "b", keys)))
    assert f"data.jsonl:1: messages[1]: {found}" in str(refused.value)


def test_a_mask_on_a_question_is_told(tmp_path):
    _, notes = read(tmp_path, talk(("user", "a", {"train": True}), ("assistant", "b", {"train": True})))
    assert notes[1].startswith("1 turns that are not answers are marked as learned; only answers are learned")


def test_bad_answers_of_unpaired_preferences_are_refused(tmp_path):
    bad = {"prompt": "a", "completion": "b", "label": False}
    with pytest.raises(InputError, match="`label` is false, so the completion is a bad answer"):
        read(tmp_path, bad)
    assert len(read(tmp_path, bad, {**bad, "label": True}, skip_bad=True)[0]) == 1


# --- Who begins ---


@pytest.mark.parametrize("system", [False, True])
def test_a_conversation_that_begins_with_an_answer_is_read(tmp_path, system):
    turns = [("assistant", "h"), ("user", "a"), ("assistant", "b")]
    example = one(tmp_path, talk(*([("system", "s")] if system else []), *turns))
    assert example.answers == ((1, 3) if system else (2,))
    _, notes = read(tmp_path, talk(*turns), talk(*turns))
    assert ("2 conversations begin with an answer, which is context and not learned, because nothing comes before it"
            in notes)


# --- Tool calls and reasoning ---


def test_tool_calls_and_their_results_are_carried_on(tmp_path):
    row = talk(("user", "a"), ("assistant", "Let me look.", {"tool_calls": [{**CALL, "id": "c0"}]}),
               ("tool", "Oslo", {"tool_call_id": "c0", "name": "track"}), ("assistant", "b"), tools=[TRACK])
    example = one(tmp_path, row)
    assert example.messages == row["messages"]
    assert example.tools == (TRACK,)
    assert example.answers == (1, 3)
    assert {"extra", "tools"} <= set(example.row())


@pytest.mark.parametrize("content", ["", None])
def test_a_tool_call_without_text_is_an_answer(tmp_path, content):
    example = one(tmp_path, talk(("user", "a"), ("assistant", content, {"tool_calls": [CALL]})))
    assert example.messages[1] == {"role": "assistant", "content": content, "tool_calls": [CALL]}
    assert (example.completion, example.answers) == ("", (1,))


@pytest.mark.parametrize(("turn", "expected"), [
    ({"role": "assistant", "content": "x", "tool_calls": [{"name": "track", "arguments": '{"order": 1}'}]}, "x"),
    ({"role": "assistant", "content": "x", "tool_calls": json.dumps([CALL])}, "x"),
    ({"role": "assistant", "content": "x", "function_call": {"name": "track", "arguments": '{"order": 1}'}}, "x"),
    ({"from": "function_call", "value": '{"name": "track", "arguments": {"order": 1}}'}, ""),
    ({"from": "tool_call", "value": '[{"name": "track", "arguments": {"order": 1}}]'}, "")])
def test_every_way_to_write_a_call_is_one(tmp_path, turn, expected):
    example = one(tmp_path, {"conversations": [ASK, turn, {"from": "observation", "value": "Oslo"}, REPLY]})
    assert example.messages[1] == {"role": "assistant", "content": expected, "tool_calls": [CALL]}
    assert example.messages[2] == {"role": "tool", "content": "Oslo"}
    assert example.answers == (1, 3)


def test_results_of_functions_and_objects_are_tool_turns(tmp_path):
    row = talk(("user", "a"), ("assistant", None, {"function_call": {"name": "f", "arguments": "{}"}}),
               ("function", {"city": "Oslo"}, {"name": "f"}), ("assistant", "b"))
    example = one(tmp_path, row)
    assert example.messages[2] == {"role": "tool", "content": {"city": "Oslo"}, "name": "f"}
    assert example.turns[2] == ("tool", '{"city": "Oslo"}')


@pytest.mark.parametrize("row", [
    {"tools": json.dumps([TRACK])}, {"tools": [TRACK["function"]]}, {"tools": json.dumps(TRACK["function"])},
    {"functions": [TRACK["function"]]}])
def test_every_way_to_write_the_tools_of_a_row_is_one(tmp_path, row):
    assert one(tmp_path, {**talk(("user", "a"), ("assistant", "b")), **row}).tools == (TRACK,)
    assert one(tmp_path, {"prompt": "a", "completion": "b", **row}).tools == (TRACK,)


def test_tools_that_are_none_are_refused_in_a_conversation_and_a_column_elsewhere(tmp_path):
    with pytest.raises(InputError, match="`tools` must be a list of functions or its JSON text, found 'hammer'"):
        read(tmp_path, talk(("user", "a"), ("assistant", "b"), tools="hammer"))
    [example], notes = read(tmp_path, {"prompt": "a", "completion": "b", "tools": "hammer, saw"})
    assert example == PAIR
    assert "columns that are not used: 'tools' (1 rows)" in notes


@pytest.mark.parametrize("call", [{}, {"function": {}}, {"name": 3}, "x", {"function": "x"}])
def test_a_call_without_a_name_is_refused(tmp_path, call):
    with pytest.raises(InputError, match="`tool_calls` must be a list of calls with a name and arguments"):
        read(tmp_path, talk(("user", "a"), ("assistant", "b", {"tool_calls": [call]})))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_beside_the_text_is_carried_on(tmp_path, key):
    example = one(tmp_path, talk(("user", "a"), ("assistant", "b", {key: "because"})))
    assert example.messages[1] == {"role": "assistant", "content": "b", key: "because"}
    assert one(tmp_path, talk(("user", "a"), ("assistant", None, {key: "because"}))).messages[1]["content"] is None
    with pytest.raises(InputError, match=f"`{key}` must be text, found int"):
        read(tmp_path, talk(("user", "a"), ("assistant", "b", {key: 3})))


def test_arguments_of_the_template_are_carried_on_but_those_that_change_more(tmp_path):
    row = talk(("user", "a"), ("assistant", "b"), chat_template_kwargs={"enable_thinking": False})
    assert one(tmp_path, row).template_arguments == {"enable_thinking": False}
    with pytest.raises(InputError, match="`chat_template_kwargs` must be an object without chat_template, tokenize"):
        read(tmp_path, {**row, "chat_template_kwargs": {"chat_template": "x"}})


def test_what_an_example_does_not_have_is_not_in_its_fingerprint(tmp_path):
    row = talk(("user", "a", {"tool_calls": None}), ("assistant", "b", {"weight": 1}), tools=[])
    assert one(tmp_path, row).row() == {"turns": [["user", "a"]], "completion": "b"}


FUNCTIONS = json.dumps(TRACK["function"], indent=4) + "\n\n" + json.dumps({"name": "other"})
GLAIVE = {
    "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
              + FUNCTIONS,
    "chat": "USER: a\n\n\nASSISTANT: Let me look. <functioncall> "
            """{"name": "track", "arguments": '{"order": 1}'} <|endoftext|>\n\n\n"""
            'FUNCTION RESPONSE: {"city": "Oslo"}\n\n\nASSISTANT: It is in Oslo.\nUSER is no speaker. <|endoftext|>\n'}


def test_glaives_text_becomes_tools_calls_and_results(tmp_path):
    [example], notes = read(tmp_path, GLAIVE)
    assert notes == ["read as glaive, because the rows have `chat`, a text with lines that begin with USER:"]
    assert example.tools == (TRACK, {"type": "function", "function": {"name": "other"}})
    assert example.messages == [
        {"role": "system", "content": "You are a helpful assistant"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"city": "Oslo"}'},
        {"role": "assistant", "content": "It is in Oslo.\nUSER is no speaker."}]
    assert example.answers == (2, 4)
    plain = {"system": "SYSTEM: You have no access to functions.\n", "chat": "USER: a\n\n\nASSISTANT: b <|endoftext|>"}
    assert one(tmp_path, plain).turns[0] == ("system", "You have no access to functions.")
    assert one(tmp_path, {"chat": plain["chat"]}) == PAIR


@pytest.mark.parametrize(("row", "found"), [
    ({**GLAIVE, "chat": GLAIVE["chat"].replace('"track"', "track")}, "`chat` has a call that is not JSON"),
    ({**GLAIVE, "system": GLAIVE["system"].replace('"other"', "other")}, "`system` has a function that is not JSON"),
    ({"chat": "a USER: b"}, "`chat` has no lines that begin with USER:")])
def test_glaives_text_that_is_not_whole_is_refused(tmp_path, row, found):
    with pytest.raises(InputError) as refused:
        read(tmp_path, row)
    assert f"data.jsonl:1: {found}" in str(refused.value)


# --- Hints ---

HINTED = [
    {"question": "a", "answer": "b"}, {"query": "a", "response": "b"}, {"input": "a", "output": "b"},
    {"Question": "a", "Answer": "b", "id": 3}, {"user": "a", "assistant": "b"}, {"problem": "a", "solution": "b"},
    {"chosen": "a b", "rejected": "a c"}]


@pytest.mark.parametrize("row", HINTED)
def test_the_options_that_a_hint_names_work_when_they_are_given(tmp_path, row):
    with pytest.raises(InputError) as refused:
        read(tmp_path, row)
    words = shlex.split(re.findall(r"\((--[^)]*)\)", str(refused.value))[-1])
    fields = dict(word.split("=") for flag, word in pairwise(words) if flag == "--field")
    form = dict(pairwise(words)).get("--format", "auto")
    assert one(tmp_path, row, fields=fields, form=form).completion in ("b", "a b")


#: A row that is refused, what the message says to do, and the row in which that was done.
CURED = [
    ({"prompt": "a", "completion": 3}, "put it in quotes", {"prompt": "a", "completion": "3"}),
    ({"prompt": "a", "completion": None}, "write a text", {"prompt": "a", "completion": "b"}),
    (talk(("user", [{"type": "image"}, {"type": "text", "text": "a"}]), ("assistant", "b")), "leave the part out",
     talk(("user", [{"type": "text", "text": "a"}]), ("assistant", "b"))),
    (talk(("user", "a")), "add the missing turns", talk(("user", "a"), ("assistant", "b"))),
    (talk(("user", "a"), ("user", "b")), "add an answer", talk(("user", "a"), ("user", "b"), ("assistant", "c"))),
    (talk(("user", "a"), ("assistant", "b", {"weight": 0})), "give an answer weight 1",
     talk(("user", "a"), ("assistant", "b", {"weight": 1}))),
    (talk(("user", "a"), ("assistant", "b", {"weight": 2})), "(1, true) or not (0, false); write one of them",
     talk(("user", "a"), ("assistant", "b", {"weight": 1}))),
    (talk(("user", "a"), ("assistant", "b", {"mask": 0})), "write train: true or train: false",
     talk(("user", "a"), ("assistant", "b", {"train": True}))),
    (talk(("user", "a"), ("assistant", "b", {"train": True, "loss": False})), "keep one of them",
     talk(("user", "a"), ("assistant", "b", {"train": True}))),
    (talk(("user", "a"), ("assistent", "b")), "did you mean 'assistant'?", talk(("user", "a"), ("assistant", "b"))),
    (talk(("user", "a"), ("assistant", None)), "write a text", talk(("user", "a"), ("assistant", "b"))),
    ({"messages": [{"speaker": "x"}, REPLY]}, "must have role and content, or from and value",
     {"messages": [{"from": "human", "value": "a"}, REPLY]}),
    (talk(("user", "a"), ("assistant", "b"), tools=3), '[{"type": "function", "function": {"name": …}}]',
     talk(("user", "a"), ("assistant", "b"), tools=[{"type": "function", "function": {"name": "f"}}])),
    (talk(("user", "a"), ("assistant", "b", {"tool_calls": [3]})), '[{"function": {"name": …, "arguments": {…}}}]',
     talk(("user", "a"), ("assistant", "b", {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}))),
    (talk(("user", "a"), ("assistant", "b"), chat_template_kwargs={"tokenize": True}), "remove them",
     talk(("user", "a"), ("assistant", "b"), chat_template_kwargs={})),
    ({"instruction": "a", "output": "b", "history": ["q"]}, "write such pairs",
     {"instruction": "a", "output": "b", "history": [["q", "r"]]}),
    ({"preferred_output": [REPLY]}, "write the form of OpenAI's preference data",
     {"input": {"messages": [ASK]}, "preferred_output": [REPLY], "non_preferred_output": [REPLY]}),
    ({"conversations": 3, "chosen": {"from": "gpt", "value": "b"}, "rejected": ""}, "write one",
     {"conversations": [ASK], "chosen": {"from": "gpt", "value": "b"}, "rejected": ""}),
    ({"chosen": [ASK, ["b"]], "rejected": []}, "a turn must be an object", {"chosen": [ASK, REPLY], "rejected": []}),
    ({"prompt": "a"}, '{"prompt", "completion"}', {"prompt": "a", "completion": "b"})]


@pytest.mark.parametrize(("row", "hint", "cured"), CURED)
def test_what_a_refusal_says_to_do_works(tmp_path, row, hint, cured):
    with pytest.raises(InputError) as refused:
        read(tmp_path, {"prompt": "x", "completion": "y"}, row)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'data.jsonl'}:2: ")
    assert hint in message
    assert len(message) < 1000
    assert len(read(tmp_path, cured)[0]) == 1
    if "--skip-bad" in message:
        kept, notes = read(tmp_path, {"prompt": "x", "completion": "y"}, row, skip_bad=True)
        assert len(kept) == 1
        assert notes[0].startswith("1 of 2 rows are unreadable and were left out; the first: ")


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "x" * 100_000, "content": "a"}, REPLY]}, {"k" * 100_000: "a"},
    {f"k{n}": "a" for n in range(5000)}, {"prompt": "a", "completion": "b", "chat_template_kwargs": "x" * 100_000},
    talk(("user", "a"), ("assistant", "b", {"weight": "x" * 100_000})),
    talk(("user", "a"), ("assistant", "b"), tools="[" + "x" * 100_000)])
def test_a_message_never_quotes_a_value_whole(tmp_path, row):
    with pytest.raises(InputError) as refused:
        read(tmp_path, row)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(("name", "content", "ending"), [
    ("a.jsonl", '[\n{"prompt": "a", "completion": "b"}\n]', ".json"),
    ("a.jsonl", '[{"prompt": "a", "completion": "b"}]', ".json"),
    ("a.json", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "b"}\n', ".jsonl")])
def test_the_ending_that_a_hint_names_works(tmp_path, name, content, ending):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"the ending \{ending}[;\s]?") as refused:
        read_examples(tmp_path / name)
    [named] = set(re.findall(r"the ending (\.\w+)", str(refused.value)))
    (tmp_path / name).rename(tmp_path / f"b{named}")
    assert read_examples(tmp_path / f"b{named}")
