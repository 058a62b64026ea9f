"""Reading training examples: the accepted forms and files, and errors that name file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from aftertune.errors import InputError, SourceError
from aftertune.study import DATA_FILES
from aftertune.tuning.data import ReadReport, read_examples
from aftertune.tuning.example import Example
from aftertune.tuning.rows import KINDS, ReadOptions

GOOD = '{"prompt": "a", "completion": "b"}'


def read(folder: Path, content: bytes | str) -> list[Example]:
    path = folder / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_examples(path)


def test_prompt_and_completion_become_a_user_turn_and_an_answer(tmp_path):
    assert read(tmp_path, GOOD) == [Example((("user", "a"),), "b")]


def test_messages_end_with_what_is_learned(tmp_path):
    row = ('{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, '
           '{"role": "assistant", "content": "x"}]}')
    assert read(tmp_path, row) == [Example((("system", "s"), ("user", "u")), "x")]


def test_every_answer_is_learned_but_those_that_are_empty_or_of_weight_0(tmp_path):
    def turn(role, text, **more):
        return {"role": role, "content": text, **more}

    talk = [turn("system", "s"), turn("user", "a"), turn("assistant", "b", weight=0), turn("user", "c", weight=0),
            turn("assistant", " "), turn("user", "d"), turn("assistant", "e", weight=1), turn("user", "f")]
    [example] = read(tmp_path, json.dumps({"messages": [*talk, turn("assistant", "g")]}))
    assert (example.completion, example.context, example.answers) == ("g", (2, 4), (6, 8))
    assert example.row()["context"] == [2, 4]
    [example] = read(tmp_path, json.dumps({"messages": [*talk, turn("assistant", "g", weight=0)]}))
    assert (example.completion, example.context, example.answers) == ("e", (2, 4), (6,))
    with pytest.raises(InputError, match="every answer in `messages` has weight 0"):
        read(tmp_path, json.dumps({"messages": [turn("user", "a"), turn("assistant", "b", weight=0)]}))


def test_a_system_prompt_beside_a_conversation_moves_no_answer(tmp_path):
    talk = [{"from": speaker, "value": text} for speaker, text in (
        ("human", "a"), ("gpt", ""), ("human", "b"), ("gpt", "c"), ("human", "d"), ("gpt", "e"))]
    [example] = read(tmp_path, json.dumps({"system": "s", "conversations": talk}))
    assert example.turns[0] == ("system", "s")
    assert (example.context, example.answers) == ((2,), (4, 6))


def test_pieces_of_text_are_one_text_and_an_image_is_refused(tmp_path):
    user = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert read(tmp_path, json.dumps({"messages": [user, {"role": "assistant", "content": "c"}]})) == [
        Example((("user", "ab"),), "c")]
    image = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "a"}]}
    with pytest.raises(InputError, match=r"`content` has a part of type 'image' \(part 0\); only text can be trained; "
                                         "leave the part out, or"):
        read(tmp_path, json.dumps({"messages": [image, {"role": "assistant", "content": "c"}]}))


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path):
    content = b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode() + b"\r\n"
    assert len(read(tmp_path, content)) == 2


def test_a_line_separator_inside_text_is_not_a_new_line(tmp_path):
    assert read(tmp_path, '{"prompt": "a\u2028b", "completion": "c\x85d"}')[0].completion == "c\x85d"


@pytest.mark.parametrize(("line", "found"), [
    ('{"prompt": "a"}', "no `completion`; found 'prompt'"),
    ('{"promt": "a", "completion": "b"}', "no `prompt`; found 'promt', 'completion'"),
    ('{"prompt": 3, "completion": "b"}', "`prompt` must be text, found int"),
    ('{"prompt": "a", "completion": null}', "`completion` must be text, found NoneType"),
    ('{"prompt": "a", "completion": "b"', "not valid JSON"),
    ('{"prompt": "a", "completion": NaN}', "NaN is not JSON"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "\\udc00"}]}',
     "half of a surrogate pair"),
    ('{"instruction": "a", "output": "b", "history": [["\\ud83d", "c"]]}', "half of a surrogate pair"),
    ('{"prompt": "a", "completion": "b", "tools": [{"function": ["name"]}]}', "must be a list of functions"),
    ("[1, 2]", "found a JSON list"),
    ("[" * 100_000, "nested too deeply"),
    ('{"prompt": "\\ud800", "completion": "b"}', "half of a surrogate pair"),
    ('{"messages": []}', "at least two turns"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
     "the last turn is 'user'"),
    ('{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}',
     "messages[0]: role 'usr' is not one of system, user, assistant, tool (did you mean 'user'?)"),
    ('{"messages": ["a", {"role": "assistant", "content": "b"}]}', "messages[0]: found str"),
    ('{"conversations": [{"from": "humn", "value": "a"}, {"from": "gpt", "value": "b"}]}',
     "conversations[0]: from 'humn' is not one of human, user, gpt"),
    ('{"conversations": "a"}', "`conversations` must be a list of at least two turns, found str"),
    ('{"instruction": "a", "output": 3}', "`output` must be text, found int"),
    ('{"instruction": "a", "output": "b", "history": [["q"]]}', "`history` must be a list of [question, answer] pairs"),
])
def test_a_bad_row_is_refused_with_its_line(tmp_path, line, found):
    with pytest.raises(InputError) as error:
        read(tmp_path, f"{GOOD}\n{line}\n")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'data.jsonl'}:2: ")
    assert found in message
    assert "\n" not in message


def test_a_byte_that_is_not_utf8_is_named_with_line_and_offset(tmp_path):
    content = GOOD.encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n'
    with pytest.raises(InputError, match=rf":2: byte 0xe9 at offset {content.index(0xe9)} is not UTF-8"):
        read(tmp_path, content)


FORMS = {
    "prompt": ('{"prompt": "a", "completion": "b"}', Example((("user", "a"),), "b")),
    "messages": ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
                 Example((("user", "a"),), "b")),
    "alpaca": ('{"instruction": "a", "input": "i", "output": "b", "system": "s", "history": [["q", "r"]]}',
               Example((("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "a")), "b", "i")),
    "alpaca without": ('{"instruction": "a", "input": "", "output": "b"}', Example((("user", "a"),), "b")),
    "sharegpt": ('{"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}',
                 Example((("system", "s"), ("user", "a")), "b")),
    "text": ('{"text": "b"}', Example((), "b"))}


@pytest.mark.parametrize("name", FORMS)
def test_a_row_of_every_form_is_told_by_its_keys(tmp_path, name):
    line, example = FORMS[name]
    assert read(tmp_path, line) == [example]
    (tmp_path / "data.jsonl").write_text(line)
    assert read_examples(tmp_path / "data.jsonl", ReadOptions(form=name.split()[0])) == [example]


def test_an_input_stands_under_its_instruction(tmp_path):
    [example] = read(tmp_path, '{"instruction": "add", "input": "1 2", "output": "3"}')
    assert example.conversation == (("user", "add\n1 2"),)
    assert example.row() == {"turns": [["user", "add"]], "completion": "3", "input": "1 2"}


def test_the_same_examples_come_from_every_kind_of_file(tmp_path):
    from pyarrow import Table, parquet

    rows = [{"question": f"what, \"{n}\"?", "answer": f"line\nof {n}"} for n in range(3)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "e.json").write_text(json.dumps({"version": 1, "data": rows}))
    with (tmp_path / "d.csv").open("w", newline="") as file, (tmp_path / "d.tsv").open("w", newline="") as tabs:
        for target, mark in ((file, ","), (tabs, "\t")):
            writer = csv.DictWriter(target, ["question", "answer"], delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(Table.from_pylist(rows), tmp_path / "d.parquet")
    reading = ReadOptions(fields={"prompt": "question", "completion": "answer"})
    expected = [Example((("user", r["question"]),), r["answer"]) for r in rows]
    for name in ("d.jsonl", "d.json", "e.json", "d.csv", "d.tsv", "d.parquet"):
        assert read_examples(tmp_path / name, reading) == expected, name


@pytest.mark.parametrize(("name", "content", "found"), [
    ("a.csv", "prompt,completion\na,b,c\n", "a.csv:2: the number of cells differs from the first line"),
    ("a.csv", "prompt,completion\na\n", "a.csv:2: the number of cells differs"),
    ("a.csv", 'prompt,completion\n"a,b\n', "not valid CSV"),
    ("a.json", f"[{GOOD}, {GOOD}", "a.json:1: expected a comma or the closing bracket after item 1, found 'the end"),
    ("a.json", f"[{GOOD}, nix]", "a.json:1: not valid JSON"), ("a.json", '{"a": 1}', "a JSON object with 0 lists"),
    ("a.json", "3", "found a JSON int"), ("a.json", "[3]", "a.json:1 (item 0): found a JSON int"),
    ("a.parquet", "PAR1 nonsense", "not a readable Parquet file"),
    ("a.jsonll", "{}", "unknown kind of file '.jsonll' (did you mean '.jsonl'"), ("a.jsonl", "\n", "no examples")])
def test_a_file_that_is_not_what_its_name_says_is_one_line(tmp_path, name, content, found):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        read_examples(tmp_path / name)
    assert found in str(error.value)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_bad_rows_and_empty_completions_are_left_out_and_counted(tmp_path):
    path, account = tmp_path / "d.jsonl", ReadReport()
    path.write_text("\n".join([GOOD, '{"prompt": "a"', '{"prompt": "c", "completion": " "}', '{"prompt": 3}', GOOD]))
    assert read_examples(path, ReadOptions(skip_bad=True), account) == [Example((("user", "a"),), "b")] * 2
    notes = account.notes
    assert account.counts == {"rows": 5, "unreadable": 2, "empty": 1}
    assert notes[0].startswith(f"{path}: 2 of 5 rows are unreadable and were left out; the first: {path}:2: not ")
    assert notes[1:] == [f"{path}: read as prompt, because the rows have `prompt` and `completion`"]
    path.write_text('{"prompt": "c", "completion": ""}')
    with pytest.raises(InputError, match="1 have an empty completion"):
        read_examples(path)


def test_a_mapping_to_a_column_that_is_not_there_names_those_that_are(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"q": "a", "a": "b"}')
    with pytest.raises(InputError, match=r":1: no `question`, which data.fields gives for `prompt`; found 'q', 'a'"):
        read_examples(path, ReadOptions(fields={"prompt": "question", "completion": "a"}))
    with pytest.raises(InputError, match="--field prompt=NAME"):
        read_examples(path)


def test_another_encoding_is_read_where_it_is_named(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes('{"prompt": "café", "completion": "é"}'.encode("cp1252"))
    with pytest.raises(InputError, match=r"is not UTF-8; .*--encoding"):
        read_examples(path)
    assert read_examples(path, ReadOptions(encoding="cp1252"))[0].completion == "é"
    with pytest.raises(InputError, match="unknown encoding 'utf-9'"):
        read_examples(path, ReadOptions(encoding="utf-9"))


@pytest.mark.parametrize(("error", "found"), [
    (ValueError('Unknown split "tran". Should be one of [\'train\', \'test\'].'), "it has 'train', 'test'"),
    (ValueError("Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nExample"),
     "the subsets 'main', 'socratic'; choose one with data.subset"),
    (ValueError("BuilderConfig 'mian' not found. Available: ['main', 'socratic']"), "the subsets 'main', 'socratic';"),
    (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "loading script"),
    (OSError("Dataset 'a/b' is a gated dataset on the Hub. Visit https://x?token=hf_secret"), "accept its terms"),
    (ConnectionError("Couldn't reach https://hf.co with hf_secret"), "offline or the Hub cannot be reached"),
    (OSError("Dataset 'a/b' doesn't exist on the Hub (401 hf_secret)"), "set HF_TOKEN"),
    (OSError("Dataset 'a/b' doesn't exist on the Hub"), "no readable data set of this name")])
def test_what_the_hub_does_not_give_is_told_apart_without_secrets(monkeypatch, error, found):
    import datasets

    def load(*_args, **_options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("aftertune.tuning.arrow_rows.offline", lambda: False)
    with pytest.raises(SourceError) as refused:
        read_examples(Path("some-owner/some-data"))
    assert found in str(refused.value)
    assert "hf_secret" not in str(refused.value)


def test_a_data_set_of_the_hub_is_read_by_its_name(monkeypatch):
    import datasets

    asked = []

    def load(name, subset, split):
        asked.append((name, subset, split))
        return datasets.Dataset.from_list([{"instruction": "a", "input": "", "output": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_examples(Path("alpaca")) == read_examples(Path("tatsu-lab/alpaca")) == [Example((("user", "a"),), "b")]
    read_examples(Path("openai/gsm8k"), ReadOptions(subset="main", split="test"))
    assert asked == [("tatsu-lab/alpaca", None, "train")] * 2 + [("openai/gsm8k", "main", "test")]


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="the file is empty"):
        read(tmp_path, content)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such data file"):
        read_examples(tmp_path / "none.jsonl")


def test_the_endings_that_a_study_knows_are_those_that_are_read():
    assert sorted(KINDS) == sorted(DATA_FILES)
