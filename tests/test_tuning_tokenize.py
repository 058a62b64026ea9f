"""Templates and encoding: the loss counts only on the answers and their end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aftertune.errors import InputError
from aftertune.tuning.example import Example
from aftertune.tuning.template import Renderer, Segment
from aftertune.tuning.tokenize import IGNORED, EncodeOptions, encode_all
from tuning_cases import TEMPLATE, chat_tokenizer

EXAMPLE = Example((("user", "say w3 twice"),), "w3 w3")
CHAT, PLAIN, ALPACA = (EncodeOptions(template, 64) for template in ("chat", "plain", "alpaca"))


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


TURNS = (("system", "w1"), ("user", "w2"), ("assistant", "w4 w4"), ("user", "w5"))
TALK = Example(TURNS, "w6")
TURN = "<|{{ m['role'] }}|> {{ m['content'] }} <|end|>\n"
OPEN = "{% if add_generation_prompt %}<|assistant|> {% endif %}"


def learned(tokenizer, row):
    return decode(tokenizer, [i for i in row.labels if i != IGNORED])


def encoded(template, example=TALK, **settings):
    tokenizer = chat_tokenizer(template)
    found = encode_all([example], tokenizer, EncodeOptions("chat", 64, **settings))
    return [(decode(tokenizer, row.ids), learned(tokenizer, row)) for row in found.rows], found.notes


def test_every_answer_of_a_conversation_is_learned_with_its_end_of_turn(tokenizer):
    [row] = encode_all([TALK], tokenizer, CHAT).rows
    assert decode(tokenizer, row.ids) == ("<|system|> w1 <|end|> <|user|> w2 <|end|> <|assistant|> w4 w4 <|end|> "
                                          "<|user|> w5 <|end|> <|assistant|> w6 <|end|>")
    assert learned(tokenizer, row) == "w4 w4 <|end|> w6 <|end|>"


def test_the_last_answer_alone_or_all_of_it_can_be_learned(tokenizer):
    [last], [whole] = (encode_all([TALK], tokenizer, EncodeOptions("chat", 64, learn)).rows
                       for learn in ("last", "all"))
    assert learned(tokenizer, last) == "w6 <|end|>"
    assert whole.labels == whole.ids == last.ids


def test_an_answer_that_is_context_is_shown_and_not_learned(tokenizer):
    [row] = encode_all([Example(TURNS, "w6", context=(2,))], tokenizer, CHAT).rows
    assert learned(tokenizer, row) == "w6 <|end|>"
    assert "w4 w4" in decode(tokenizer, row.ids)


def test_the_mask_is_that_of_a_template_with_a_generation_block():
    template = ("{% for m in messages %}<|{{ m['role'] }}|> {% if m['role'] == 'assistant' %}{% generation %}"
                "{{ m['content'] }} <|end|>{% endgeneration %}{% else %}{{ m['content'] }} <|end|>{% endif %}\n"
                "{% endfor %}" + OPEN)
    tokenizer = chat_tokenizer(template)
    messages = [{"role": role, "content": text} for role, text in (*TURNS, ("assistant", "w6"))]
    asked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    [row] = encode_all([TALK], tokenizer, CHAT).rows
    assert row.ids == asked["input_ids"]
    assert [int(label != IGNORED) for label in row.labels] == asked["assistant_masks"]


def test_a_template_that_closes_the_whole_text_once_more_still_makes_one_row():
    rows, notes = encoded("{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}<|assistant|> "
                          "{% else %}<pad>{% endif %}")
    assert rows == [("<|system|> w1 <|end|> <|user|> w2 <|end|> <|assistant|> w4 w4 <|end|> <|user|> w5 <|end|> "
                     "<|assistant|> w6 <|end|> <pad>", "w4 w4 <|end|> w6 <|end|> <pad>")]
    assert notes == ()


REWRITING = {
    "thinking only in the last answer": (
        "{% for m in messages %}<|{{ m['role'] }}|> {% if loop.last and m['role'] == 'assistant' %}w0 {% endif %}"
        "{{ m['content'] }} <|end|>\n{% endfor %}" + OPEN,
        [("<|system|> w1 <|end|> <|user|> w2 <|end|> <|assistant|> w0 w4 w4 <|end|>", "w0 w4 w4 <|end|>"),
         ("<|system|> w1 <|end|> <|user|> w2 <|end|> <|assistant|> w4 w4 <|end|> <|user|> w5 <|end|> <|assistant|> "
          "w0 w6 <|end|>", "w0 w6 <|end|>")]),
    "the system prompt in the last question": (
        "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}{% for m in messages %}"
        "{% if m['role'] != 'system' %}<|{{ m['role'] }}|> {% if m == last %}{{ messages[0]['content'] }} {% endif %}"
        "{{ m['content'] }} <|end|>\n{% endif %}{% endfor %}" + OPEN,
        [("<|user|> w1 w2 <|end|> <|assistant|> w4 w4 <|end|>", "w4 w4 <|end|>"),
         ("<|user|> w2 <|end|> <|assistant|> w4 w4 <|end|> <|user|> w1 w5 <|end|> <|assistant|> w6 <|end|>",
          "w6 <|end|>")]),
    "an end of turn in the last answer only": (
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {% if loop.last and m['role'] == 'assistant' %}"
        "<|end|>{% endif %}{% endfor %}" + OPEN,
        [("<|system|> w1 <|user|> w2 <|assistant|> w4 w4 <|end|>", "w4 w4 <|end|>"),
         ("<|system|> w1 <|user|> w2 <|assistant|> w4 w4 <|user|> w5 <|assistant|> w6 <|end|>", "w6 <|end|>")])}


@pytest.mark.parametrize("name", REWRITING)
def test_where_earlier_turns_are_rewritten_each_answer_is_a_row_as_an_evaluation_asks_for_it(name):
    template, expected = REWRITING[name]
    rows, notes = encoded(template)
    assert rows == expected
    assert notes == ("the chat template rewrites earlier turns, so each answer became a separate row: 1 examples "
                     "gave 2 rows",)


def test_rows_know_their_example_also_where_some_are_left_out(tokenizer):
    long = Example((("user", "say w1 w2 w3"),), "w4")
    found = encode_all([long, EXAMPLE, long, EXAMPLE], tokenizer, EncodeOptions("chat", 7))
    assert [row.example for row in found.rows] == [2, 4]
    assert (found.masked, found.cut, found.tokens) == (2, 2, 14)
    assert found.learned == 2 * 1


def test_what_the_template_makes_of_an_answer_is_learned_and_said():
    rows, notes = encoded("{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | replace('w3', 'w5') }} <|end|>"
                          "{% endfor %}" + OPEN, EXAMPLE)
    assert rows == [("<|user|> say w5 twice <|end|> <|assistant|> w5 w5 <|end|>", "w5 w5 <|end|>")]
    assert "template chat: the text of 1 answers is changed or left out by the template; what it writes is learned; " \
        "the first is 'say w3 twice'" in notes


def test_without_a_template_it_is_prompt_completion_and_end(tokenizer):
    row = encode_all([EXAMPLE], tokenizer, PLAIN).rows[0]
    assert decode(tokenizer, row.ids) == "say w3 twice w3 w3 <|end|>"
    assert decode(tokenizer, [i for i in row.labels if i != IGNORED]) == "w3 w3 <|end|>"


def test_an_answer_that_the_template_opens_otherwise_than_it_asks_is_as_plain_transformers_write_it():
    template = ("{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|assistant|> w0 {% endif %}")
    [row], notes = encoded(template, EXAMPLE)
    assert row == ("<|user|> say w3 twice <|end|> <|assistant|> w3 w3 <|end|>", "w3 w3 <|end|>")
    assert "1 answers are written after another prompt than the generation prompt" in notes[0]


def test_a_template_without_end_of_turn_gets_the_end_of_sequence():
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    row = encode_all([EXAMPLE], tokenizer, CHAT).rows[0]
    assert decode(tokenizer, row.ids) == "say w3 twice w3 w3 <|end|>"


def test_a_long_example_is_cut_at_its_end_and_counted(tokenizer):
    encoded = encode_all([EXAMPLE, Example((("user", "w1"),), "w2")], tokenizer, EncodeOptions("chat", 8))
    assert len(encoded.rows[0].ids) == 8
    assert (encoded.cut, encoded.masked) == (1, 0)
    assert encode_all([EXAMPLE], tokenizer, CHAT).cut == 0


def test_prompts_that_fill_the_window_are_left_out_and_counted_and_refused_where_all_do(tokenizer):
    short = Example((("user", "w1"),), "w2")
    encoded = encode_all([EXAMPLE, short, EXAMPLE], tokenizer, EncodeOptions("chat", 6))
    assert len(encoded.rows) == 1
    assert encoded.notes == ("the prompts of 2 of 3 examples (66.7%) fill max_length 6, so they were left out; the "
                             "first is example 1 ('say w3 twice') of 6 tokens",)
    with pytest.raises(InputError, match=r"all 1 examples fill max_length 6, .* example 1 \('say w3 twice'\)"):
        encode_all([EXAMPLE], tokenizer, EncodeOptions("chat", 6))


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
            return {"input_ids": list(map(ord, text))}

    form = EncodeOptions("alpaca", 1024)
    encode_all([Example((("user", "Add."),), "3", "1 and 2"), Example((("user", "Add."),), "3")], Words(), form)
    prompts = [text for text in shown if text.endswith("### Response:\n")]
    assert prompts[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n"
        "### Response:\n")
    assert prompts[1] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n")


def test_an_input_stands_under_its_instruction_in_a_chat(tokenizer):
    row = encode_all([Example((("user", "say"),), "w3", "w2")], tokenizer, CHAT).rows[0]
    assert "say w2" in decode(tokenizer, row.ids)


def test_a_model_without_chat_template_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="no chat template; set template: alpaca, or plain"):
        encode_all([EXAMPLE], chat_tokenizer(None), CHAT)


def test_a_template_that_refuses_the_conversation_is_one_line():
    tokenizer = chat_tokenizer("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(InputError, match="the chat template rejects this conversation: roles must alternate"):
        encode_all([EXAMPLE], tokenizer, CHAT)


NO_W3 = TEMPLATE + "{% if 'w3' in messages[0]['content'] %}{{ raise_exception('no w3 here') }}{% endif %}"


def test_a_refusal_of_the_template_names_file_and_line():
    with pytest.raises(InputError, match=r"^d\.jsonl:2: 'say w3 twice': the chat template rejects .*no w3 here"):
        encode_all([replace(EXAMPLE, where="d.jsonl:2")], chat_tokenizer(NO_W3), CHAT)


def test_examples_that_the_template_refuses_are_left_out_and_counted():
    good, bad = Example((("user", "w1"),), "w2", where="d.jsonl:1"), replace(EXAMPLE, where="d.jsonl:2")
    encoded = encode_all([good, bad, good], chat_tokenizer(NO_W3), replace(CHAT, skip_bad=True))
    assert [row.where for row in encoded.rows] == ["d.jsonl:1"] * 2
    assert encoded.refused == 1
    assert "template chat refuses 1 of 3 examples, so they were left out; the first: d.jsonl:2: " in encoded.notes[0]
    with pytest.raises(InputError, match=r"template chat refuses all 1 examples; the first: d\.jsonl:2: "):
        encode_all([bad], chat_tokenizer(NO_W3), replace(CHAT, skip_bad=True))


def test_several_turns_without_a_template_are_refused(tokenizer):
    with pytest.raises(InputError, match="several turns needs a chat template"):
        encode_all([Example((("user", "w1"), ("user", "w2")), "w3")], tokenizer, PLAIN)
    with pytest.raises(InputError, match="its turns are user, user, assistant; the alpaca template needs alt"):
        encode_all([Example((("user", "w1"), ("user", "w2")), "w3")], tokenizer, ALPACA)


def test_the_alpaca_prompt_takes_a_system_prompt_and_earlier_turns():
    talk = Example((("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Add.")), "3", "1 and 2")
    [parts] = Renderer(None, "alpaca", "answers").rows(talk)
    assert parts == [
        Segment("Be brief.\n\n### Instruction:\nHi\n\n### Response:\n", False), Segment("Ho", True, end=True),
        Segment("\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n", False),
        Segment("3", True, end=True)]
    [parts] = Renderer(None, "alpaca", "last").rows(talk)
    assert [part.learned for part in parts] == [False, False, False, True]


def test_each_answer_of_the_alpaca_prompt_ends_at_the_end_of_sequence(tokenizer):
    [row] = encode_all([Example((("user", "w1"), ("assistant", "w2"), ("user", "w3")), "w4")], tokenizer, ALPACA).rows
    assert learned(tokenizer, row) == "w2 <|end|> w4 <|end|>"


def llama_tokenizer(template=None):
    """Byte fallback, a space before a text's first word, and a beginning of sequence, as Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghi", "▁a", "▁b", "▁d"]
    core = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [("▁", "a"), ("▁", "b"), ("▁", "d")],
                                unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"])
def test_the_beginning_of_sequence_comes_once_from_the_template_or_the_tokenizer(bos):
    template = bos + "{% for m in messages %}[{{ m['role'][:1] }}]{{ m['content'] }}{% if m['role'] == 'assistant' %}" \
        "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    tokenizer = llama_tokenizer(template)
    [row] = encode_all([Example((("user", "a"), ("assistant", "b"), ("user", "c")), "d")], tokenizer, CHAT).rows
    assert row.ids.count(1) == 1
    assert row.ids[0] == 1
    assert row.ids.count(2) == 2
    assert learned(tokenizer, row) == "b </s> d </s>"


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_the_beginning_of_sequence_comes_once_without_a_template(template):
    row = encode_all([Example((("user", "a"),), "b")], llama_tokenizer(), EncodeOptions(template, 512)).rows[0]
    assert (row.ids[0], row.ids.count(1), row.ids[-1]) == (1, 1, 2)


def test_an_answer_has_the_tokens_that_the_whole_text_has():
    tokenizer = llama_tokenizer()
    row = encode_all([Example((("user", "a\n"),), "b")], tokenizer, PLAIN).rows[0]
    assert learned(tokenizer, row) == "b </s>"  # and not "▁b", which is another word
    assert row.ids[:-2] == tokenizer("a\n")["input_ids"]


def test_a_token_over_the_border_leaves_the_prompt_as_an_evaluation_gives_it():
    tokenizer = llama_tokenizer()
    row = encode_all([Example((("user", "c "),), "d")], tokenizer, PLAIN).rows[0]
    assert decode(tokenizer, tokenizer("c d")["input_ids"]) == "<s> ▁ c ▁d"
    assert decode(tokenizer, row.ids) == "<s> ▁ c ▁ ▁d </s>"
    assert row.ids[:-2] == tokenizer("c ")["input_ids"]


def test_a_tokenizer_that_closes_every_text_has_the_end_after_the_answer_only():
    from tokenizers import processors

    tokenizer = llama_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    row = encode_all([Example((("user", "a"),), "b")], tokenizer, PLAIN).rows[0]
    assert (row.ids.count(1), row.ids.count(2), row.labels[-1]) == (1, 1, 2)


@pytest.mark.slow
def test_padding_never_counts_and_the_end_always_does_also_where_they_are_one_token():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer = chat_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = encode_all([EXAMPLE, Example((("user", "w1"),), "w2")], tokenizer, CHAT).rows
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(
        [{"input_ids": row.ids, "labels": row.labels} for row in rows])
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        assert row.labels[-1] == tokenizer.pad_token_id
        assert labels == row.labels + [IGNORED] * (len(labels) - len(row.ids))
    assert batch["input_ids"][1][-1] == tokenizer.pad_token_id


def test_of_a_very_long_text_only_what_is_needed_is_encoded(monkeypatch):
    """The rows are those of the whole text, whatever is encoded at first, and a text of 10 MB is not."""
    tokenizer, seen = llama_tokenizer("{% for m in messages %}[{{ m['role'][:1] }}]{{ m['content'] }}</s>{% endfor %}"
                                      "{% if add_generation_prompt %}[a]{% endif %}"), []
    text = " ".join(f"{n * 7919 % 1000}abc, d" for n in range(4000))
    examples = [Example((("user", text[:300]),), text), Example((("user", text),), "b"),
                Example((("user", "a"), ("assistant", text[:90]), ("user", text[:50])), text), Example((), text)]
    short, options = Example((("user", "a"),), "b"), [EncodeOptions("chat", length) for length in (16, 200, 500)]
    monkeypatch.setattr("aftertune.tuning.tokenize.CHARACTERS", 10**9)
    whole = [encode_all([example, short], tokenizer, option) for example in examples for option in options]
    monkeypatch.undo()
    plain = tokenizer.__class__.__call__
    monkeypatch.setattr(tokenizer.__class__, "__call__",
                        lambda self, text, **more: (seen.append(len(text)), plain(self, text, **more))[1])
    start = [encode_all([example, short], tokenizer, option) for example in examples for option in options]
    assert [encoded.rows for encoded in start] == [encoded.rows for encoded in whole]
    assert [(e.cut, e.masked) for e in start] == [(e.cut, e.masked) for e in whole]
    assert any("more than" in note for encoded in start for note in encoded.notes)
    seen.clear()
    encode_all([Example((("user", "a"),), "0abc, d" * 1_500_000)], tokenizer, EncodeOptions("chat", 128))
    assert max(seen) <= 4 * 32 * 128
