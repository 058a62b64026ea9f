"""Encoding: the loss counts on the completion and its end, and on nothing else."""

from __future__ import annotations

import pytest

from aftertune.errors import InputError
from aftertune.tuning.data import Example
from aftertune.tuning.encode import IGNORED, Form, encode_all
from tuning_cases import chat_tokenizer

EXAMPLE = Example((("user", "say w3 twice"),), "w3 w3")
CHAT, PLAIN = Form(chat_template=True, max_length=64), Form(chat_template=False, max_length=64)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


def decode(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_the_prompt_is_what_an_evaluation_shows_and_the_answer_ends_at_end_of_turn(tokenizer):
    row = encode_all([EXAMPLE], tokenizer, CHAT).rows[0]
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "say w3 twice"}], tokenize=False,
                                          add_generation_prompt=True)
    prompt = tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert row.ids[:len(prompt)] == prompt
    assert row.labels == [IGNORED] * len(prompt) + row.ids[len(prompt):]
    assert decode(tokenizer, row.ids[len(prompt):]) == "w3 w3 <|end|>"


def test_earlier_turns_are_not_learned(tokenizer):
    turns = (("system", "w1"), ("user", "w2"), ("assistant", "w4"), ("user", "w5"))
    row = encode_all([Example(turns, "w6")], tokenizer, CHAT).rows[0]
    assert decode(tokenizer, [i for i in row.labels if i != IGNORED]) == "w6 <|end|>"
    assert "w4" in decode(tokenizer, row.ids)


def test_without_a_template_it_is_prompt_completion_and_end(tokenizer):
    row = encode_all([EXAMPLE], tokenizer, PLAIN).rows[0]
    assert decode(tokenizer, row.ids) == "say w3 twice w3 w3 <|end|>"
    assert decode(tokenizer, [i for i in row.labels if i != IGNORED]) == "w3 w3 <|end|>"


def test_a_template_that_opens_the_answer_otherwise_keeps_the_evaluation_prompt():
    template = ("{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|> w0 {% endif %}")
    tokenizer = chat_tokenizer(template)
    row = encode_all([EXAMPLE], tokenizer, CHAT).rows[0]
    assert decode(tokenizer, row.ids) == "<|user|> say w3 twice <|end|> <|assistant|> w0 w3 w3 <|end|>"


def test_a_template_without_end_of_turn_gets_the_end_of_sequence():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    row = encode_all([EXAMPLE], tokenizer, CHAT).rows[0]
    assert decode(tokenizer, row.ids) == "say w3 twice w3 w3 <|end|>"


def test_a_long_example_is_cut_at_its_end_and_counted(tokenizer):
    encoded = encode_all([EXAMPLE, Example((("user", "w1"),), "w2")], tokenizer, Form(True, 8))
    assert len(encoded.rows[0].ids) == 8
    assert encoded.notes == ("1 of 2 examples are longer than 8 tokens and were cut",)
    assert encode_all([EXAMPLE], tokenizer, CHAT).notes == ()


def test_a_prompt_that_fills_the_window_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"example 1 \('say w3 twice'\): its prompt has 6 tokens and fills"):
        encode_all([EXAMPLE], tokenizer, Form(True, 6))


def test_a_model_without_chat_template_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="no chat template; set chat_template: false"):
        encode_all([EXAMPLE], chat_tokenizer(None), CHAT)


def test_a_template_that_refuses_the_conversation_is_one_line():
    tokenizer = chat_tokenizer("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(InputError, match="the chat template refuses this conversation: roles must alternate"):
        encode_all([EXAMPLE], tokenizer, CHAT)


def test_several_turns_without_a_template_are_refused(tokenizer):
    with pytest.raises(InputError, match="several turns need a chat template"):
        encode_all([Example((("user", "w1"), ("user", "w2")), "w3")], tokenizer, PLAIN)
