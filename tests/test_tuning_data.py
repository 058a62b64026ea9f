"""Reading training examples: what is accepted, and that every refusal names file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from aftertune.errors import InputError
from aftertune.tuning.data import Example, read_examples

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
    ('{"prompt": "a", "completion": " "}', "the completion is empty"),
    ('{"prompt": "a", "completion": "b"', "not valid JSON"),
    ('{"prompt": "a", "completion": NaN}', "NaN is not JSON"),
    ("[1, 2]", "found a JSON list"),
    ("[" * 100_000, "nested too deeply"),
    ('{"prompt": "\\ud800", "completion": "b"}', "half of a surrogate pair"),
    ('{"messages": []}', "at least two turns"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
     "the last turn is 'user'"),
    ('{"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}',
     "messages[0]: role 'usr' is not one of system, user, assistant, tool (did you mean 'user'?)"),
    ('{"messages": ["a", {"role": "assistant", "content": "b"}]}', "messages[0]: found str"),
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


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="the file is empty"):
        read(tmp_path, content)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such data file"):
        read_examples(tmp_path / "none.jsonl")
