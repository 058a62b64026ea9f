"""Encoding: the loss counts on the completion and its end, and on nothing else."""

from __future__ import annotations

import pytest

from aftertune.errors import InputError
from aftertune.tuning.data import Example
from aftertune.tuning.encode import IGNORED, Form, encode_all
from tuning_cases import chat_tokenizer

EXAMPLE = Example((("user", "say w3 twice"),), "w3 w3")
CHAT, PLAIN, ALPACA = (Form(template, 64) for template in ("chat", "plain", "alpaca"))


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
    encoded = encode_all([EXAMPLE, Example((("user", "w1"),), "w2")], tokenizer, Form("chat", 8))
    assert len(encoded.rows[0].ids) == 8
    assert encoded.notes == ("1 of 2 examples are longer than 8 tokens and were cut",)
    assert encode_all([EXAMPLE], tokenizer, CHAT).notes == ()


def test_prompts_that_fill_the_window_are_left_out_and_counted_and_refused_where_all_do(tokenizer):
    short = Example((("user", "w1"),), "w2")
    encoded = encode_all([EXAMPLE, short, EXAMPLE], tokenizer, Form("chat", 6))
    assert len(encoded.rows) == 1
    assert encoded.notes == ("the prompts of 2 of 3 examples (66.7%) fill max_length 6 and were left out; the first is "
                             "example 1 ('say w3 twice') of 6 tokens",)
    with pytest.raises(InputError, match=r"all 1 examples fill max_length 6, .* example 1 \('say w3 twice'\)"):
        encode_all([EXAMPLE], tokenizer, Form("chat", 6))


def test_plain_text_is_learned_whole(tokenizer):
    for form in (CHAT, PLAIN, ALPACA):
        row = encode_all([Example((), "w1 w2 w3")], tokenizer, form).rows[0]
        assert row.labels == row.ids
        assert decode(tokenizer, row.ids) == "w1 w2 w3 <|end|>"


def test_the_alpaca_prompt_is_the_classic_one():
    shown = []

    class Words:
        eos_token_id, eos_token = 1, "</s>"

        def __call__(self, text, **_):
            shown.append(text)
            return {"input_ids": [len(text)]}

    encode_all([Example((("user", "Add."),), "3", "1 and 2"), Example((("user", "Add."),), "3")], Words(), ALPACA)
    assert shown[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
        "### Response:\n")
    assert shown[2] == ("Below is an instruction that describes a task. Write a response that appropriately completes "
                        "the request.\n\n### Instruction:\nAdd.\n\n### Response:\n")


def test_an_input_stands_under_its_instruction_in_a_chat(tokenizer):
    row = encode_all([Example((("user", "say"),), "w3", "w2")], tokenizer, CHAT).rows[0]
    assert "say w2" in decode(tokenizer, row.ids)


def test_a_model_without_chat_template_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="no chat template; set template: alpaca, or plain"):
        encode_all([EXAMPLE], chat_tokenizer(None), CHAT)


def test_a_template_that_refuses_the_conversation_is_one_line():
    tokenizer = chat_tokenizer("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(InputError, match="the chat template refuses this conversation: roles must alternate"):
        encode_all([EXAMPLE], tokenizer, CHAT)


def test_several_turns_without_a_template_are_refused(tokenizer):
    with pytest.raises(InputError, match="several turns need a chat template"):
        encode_all([Example((("user", "w1"), ("user", "w2")), "w3")], tokenizer, PLAIN)
