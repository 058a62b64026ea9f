"""Chat templates: what is learned is what plain transformers write, on every template that TRL ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aftertune.errors import InputError
from aftertune.tuning import template_check
from aftertune.tuning.chat_turns import ChatWriter, Conversation
from aftertune.tuning.example import Example
from aftertune.tuning.template_check import check_template, template_tokenizer, trl_templates
from aftertune.tuning.tokenize import IGNORED, EncodeOptions, encode_all
from cli_cases import call

TEMPLATES = {path.stem: path for path in trl_templates()}
#: One of each kind: plain, prefilled thought, dropped reasoning, no end of turn, parts of content, several channels.
QUICK = ("qwen2_5", "qwen3_5_think", "deepseek_r1_distill", "glm4moe", "idefics3", "gptoss", "lfm2_2_5", "gemma4_v5")
CHAT = EncodeOptions("chat", 100_000, day="2024-07-26")
ASKED = (("user", "Where?"),)
TOOL = {"type": "function", "function": {"name": "track", "description": "Place of an order", "parameters": {
    "type": "object", "properties": {"order": {"type": "integer"}}}}}
CALL = {"tool_calls": [{"type": "function", "id": "c0", "function": {"name": "track", "arguments": {"order": 7}}}]}


def learned(name: str, example: Example, options: EncodeOptions = CHAT) -> list[str]:
    """The learned text of each row of an example with one of TRL's templates."""
    tokenizer = template_tokenizer(TEMPLATES[name].read_text(encoding="utf-8"))
    return [tokenizer.decode([i for i in row.labels if i != IGNORED])
            for row in encode_all([example], tokenizer, options).rows]


def test_trl_ships_the_templates_that_are_checked() -> None:
    assert len(TEMPLATES) > 40
    assert set(QUICK) <= set(TEMPLATES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
                                  for name in TEMPLATES])
def test_every_case_is_learned_as_plain_transformers_write_it(name: str) -> None:
    check = check_template(name, template_tokenizer(TEMPLATES[name].read_text(encoding="utf-8")))
    assert not check.wrong, {case: result.details for case, result in check.results.items()
                             if result.status == "wrong"}
    assert {check.results[case].status for case in ("answers", "turns")} == {"ok"}


def test_a_template_without_end_of_turn_is_learned_with_the_end_token_in_its_place() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}" \
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = template_tokenizer(template)
    assert check_template("own", tokenizer).results["answers"].status == "ok"
    talk = Example((*ASKED, ("assistant", "Rome."), ("user", "No.")), "Oslo.")
    assert [tokenizer.decode(row.ids) for row in encode_all([talk], tokenizer, CHAT).rows] == [
        "[user]Where?\n[assistant]Rome.</s>", "[user]Where?\n[assistant]Rome.\n[user]No.\n[assistant]Oslo.</s>"]


@pytest.mark.parametrize("fault", ["a prompt is learned", "no end", "other ids"])
def test_the_check_finds_what_is_wrong(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object) -> object:
        found = encode_all(*arguments)  # type: ignore[arg-type]
        rows = [{"a prompt is learned": replace(row, labels=row.ids),
                 "no end": replace(row, labels=[*row.labels[:-1], IGNORED]),
                 "other ids": replace(row, ids=[*row.ids[:-1], 5])}[fault] for row in found.rows]
        return replace(found, rows=rows)

    monkeypatch.setattr(template_check, "encode_all", wrong)
    check = check_template("qwen2_5", template_tokenizer(TEMPLATES["qwen2_5"].read_text(encoding="utf-8")))
    assert {case for case, result in check.results.items() if result.status == "wrong"} == set(check.results)


@pytest.mark.parametrize(("name", "text"), [
    ("deepseek_r1_distill", "d<｜end▁of▁sentence｜>"), ("deepseekv3", "d<｜end▁of▁sentence｜>"),
    ("nemotron_3_nano", "</think>d<|im_end|>"), ("glm4moe", "\n<think></think>\nd</s>"),
    ("qwen2_5", "d<|im_end|>"), ("llama3_2", "d<|eot_id|>"), ("phi3", "d<|end|>\n</s>"),
    ("idefics3", " d<end_of_utterance>"),
    ("gptoss", "<|channel|>final<|message|>d<|return|>"), ("gemma", "d<end_of_turn>")])
def test_an_answer_of_one_letter_is_learned_with_its_end(name: str, text: str) -> None:
    assert learned(name, Example(ASKED, "d")) == [text]


@pytest.mark.parametrize(("name", "text"), [
    ("qwen2_5", "<think>\nA.\n</think>\n\nOslo.<|im_end|>"), ("qwen3", "<think>\nA.\n</think>\n\nOslo.<|im_end|>"),
    ("qwen3_5_think", "A.\n</think>\n\nOslo.<|im_end|>"), ("nemotron_3_nano", "A.\n</think>\n\nOslo.<|im_end|>"),
    ("glm4moe", "\n<think>A.</think>\nOslo.</s>"), ("deepseek_r1_distill", "\n\nOslo.<｜end▁of▁sentence｜>"),
    ("gemma3", "<think>\nA.\n</think>\n\nOslo.<end_of_turn>")])
def test_a_thought_in_the_content_is_learned_as_the_template_writes_it(name: str, text: str) -> None:
    assert learned(name, Example(ASKED, "<think>\nA.\n</think>\n\nOslo.")) == [text]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize(("name", "text"), [
    ("qwen3", "<think>\nA.\n</think>\n\nOslo.<|im_end|>"), ("qwen3_5_think", "A.\n</think>\n\nOslo.<|im_end|>"),
    ("gptoss", "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>final<|message|>Oslo.<|return|>"),
    ("lfm2_2_5", "<think>A.</think>Oslo.<|im_end|>"), ("qwen2_5", "Oslo.<|im_end|>")])
def test_reasoning_beside_the_content_is_learned_where_the_template_writes_it(name: str, text: str, key: str) -> None:
    assert learned(name, Example(ASKED, "Oslo.", extra={1: {key: "A."}})) == [text]


def test_reasoning_that_the_template_leaves_out_is_said_with_its_count() -> None:
    tokenizer = template_tokenizer(TEMPLATES["qwen2_5"].read_text(encoding="utf-8"))
    example = Example(ASKED, "Oslo.", extra={1: {"reasoning_content": "A."}}, where="d.jsonl:3")
    [note] = encode_all([example, Example(ASKED, "Rome."), example], tokenizer, CHAT).notes
    assert note == ("template chat: the reasoning of 2 answers is not written by the template, so it is not learned; "
                    "the first is d.jsonl:3 ('Where?')")


#: Writes <think></think> before every answer, with what comes before </think> in the content, and knows no other key.
THOUGHTS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% set parts = "
            "('' ~ m.content).split('</think>') %}<think>{{ parts[0] | replace('<think>', '') | trim if parts | length "
            "> 1 }}</think>{{ parts[-1] | trim }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def test_an_empty_thought_is_never_taught_in_the_place_of_reasoning() -> None:
    example = Example(ASKED, "Oslo.", extra={1: {"reasoning_content": "A."}})
    found = encode_all([example], tokenizer := template_tokenizer(THOUGHTS), CHAT)
    assert tokenizer.decode([i for i in found.rows[0].labels if i != IGNORED]) == "<think>A.</think>Oslo.<|im_end|>"
    assert "the reasoning of 1 answers is written into their content as <think>…</think>" in found.notes[0]
    deaf = THOUGHTS.replace("{{ parts[0] | replace('<think>', '') | trim if parts | length > 1 }}", "")
    with pytest.raises(InputError, match="an empty thought in the place of this answer's reasoning"):
        encode_all([example], template_tokenizer(deaf), CHAT)


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize(("name", "call", "answer"), [
    ("qwen2_5", '<tool_call>\n{"name": "track", "arguments": {"order": 7}}\n</tool_call><|im_end|>', "Oslo.<|im_end|>"),
    ("llama3_2", '{"name": "track", "parameters": {"order": 7}}<|eot_id|>', "Oslo.<|eot_id|>"),
    ("deepseekv3", '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>track\n```json\n{"order": 7}\n```'
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>", "Oslo.<｜end▁of▁sentence｜>"),
    ("gemma4", "<|tool_call>call:track{order:7}<tool_call|><|tool_response>", "Oslo.<turn|>")])
def test_calls_are_learned_and_tools_and_results_are_context(name: str, call: str, answer: str, content: str | None
                                                             ) -> None:
    keys = CALL if content == "" else {**CALL, "content": None}
    example = Example((*ASKED, ("assistant", ""), ("tool", '{"place": "Lima"}')), "Oslo.", tools=(TOOL,),
                      extra={1: keys, 2: {"tool_call_id": "c0", "name": "track"}})
    found = learned(name, example)
    assert found in ([call + answer], [call, answer])
    tokenizer = template_tokenizer(TEMPLATES[name].read_text(encoding="utf-8"))
    whole = tokenizer.decode(encode_all([example], tokenizer, CHAT).rows[-1].ids)
    assert "Lima" in whole
    if name != "deepseekv3":
        assert "Place of an order" in whole


def test_calls_that_the_template_leaves_out_are_said_or_refused() -> None:
    tokenizer = template_tokenizer(TEMPLATES["phi3"].read_text(encoding="utf-8"))
    turns = (*ASKED, ("assistant", "Let me look."), ("tool", "Lima"))
    notes = encode_all([Example(turns, "Oslo.", extra={1: CALL}, tools=(TOOL,))], tokenizer, CHAT).notes
    assert [note.split("; the first")[0].removeprefix("template chat: ") for note in notes] == [
        "the tool calls of 1 answers are not written by the template, so they are not learned",
        "1 turns of the role tool are changed or left out by the template",
        "the tools of 1 examples are not written by the template"]
    silent = Example((*ASKED, ("assistant", ""), ("tool", "Lima")), "Oslo.", extra={1: CALL})
    with pytest.raises(InputError, match="writes nothing of an answer: it leaves out its tool calls"):
        encode_all([silent], tokenizer, CHAT)
    for template in ("plain", "alpaca"):
        one = Example(ASKED, "Oslo.", extra={1: CALL}, tools=(TOOL,))
        notes = encode_all([one], tokenizer, EncodeOptions(template, 500)).notes
        assert [note.split(" are not")[0] for note in notes] == [
            f"template {template}: tool_calls of 1 examples", f"template {template}: tools of 1 examples"]
        with pytest.raises(InputError, match="has no text, only tool_calls; set template: chat"):
            encode_all([replace(one, completion="")], tokenizer, EncodeOptions(template, 500))


def test_a_chat_row_has_plain_tokens_also_where_one_crosses_the_border() -> None:
    tokenizer = template_tokenizer(TEMPLATES["qwen2_5"].read_text(encoding="utf-8"))
    [row] = encode_all([Example(ASKED, "\n\nd")], tokenizer, CHAT).rows
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "\n\nd"}]
    plain = tokenizer.apply_chat_template(messages, return_dict=False)
    assert row.ids == plain[:len(row.ids)]
    assert tokenizer.decode([i for i in row.labels if i != IGNORED]) == "\n\n\nd<|im_end|>"  # with that of the prompt


def test_all_of_a_conversation_is_learned_except_answers_that_are_context() -> None:
    turns = (*ASKED, ("assistant", "Rome."), ("user", "No."))
    everything = replace(CHAT, learn="all")
    assert learned("qwen2_5", Example(turns, "Oslo."), everything)[0].count("Rome.") == 1
    [text] = learned("qwen2_5", Example(turns, "Oslo.", context=(1,)), everything)
    assert "Rome." not in text
    assert text.endswith("No.<|im_end|>\n<|im_start|>assistant\nOslo.<|im_end|>")


def test_an_answer_that_no_conversation_may_end_with_is_context() -> None:
    example = Example((("system", "Be brief."), ("assistant", "Hello!"), ("user", "Where?")), "Oslo.")
    tokenizer = template_tokenizer(TEMPLATES["qwen3_5_think"].read_text(encoding="utf-8"))  # needs a question
    found = encode_all([example], tokenizer, CHAT)
    assert tokenizer.decode([i for i in found.rows[0].labels if i != IGNORED]).strip() == "</think>\n\nOslo.<|im_end|>"
    assert "1 answers are context, because the template refuses a conversation that ends with them" in found.notes[0]


def test_the_arguments_of_an_example_reach_the_template() -> None:
    example = Example(ASKED, "Oslo.", template_arguments={"enable_thinking": False})
    assert learned("qwen3_5_think", example) == ["Oslo.<|im_end|>"]


def test_an_answer_is_found_where_the_generation_prompt_goes_on_as_the_answer_begins() -> None:
    writer = ChatWriter(template_tokenizer(TEMPLATES["deepseek_r1_distill"].read_text(encoding="utf-8")))
    for text in ("<b>d", "<think", "<", "\n"):
        talk = Conversation([{"role": "user", "content": "Where?"}, {"role": "assistant", "content": text}])
        assert writer.turn(talk, 1).said == f"{text}<｜end▁of▁sentence｜>"


ENDED = [("text", Example((), "Oslo.</s>")), ("text", Example((), "Oslo.</s>\n")),
         ("plain", Example(ASKED, "Oslo.</s>")), ("alpaca", Example(ASKED, "Oslo.</s> \n"))]


@pytest.mark.parametrize(("template", "example"), ENDED)
def test_a_text_that_ends_with_the_end_token_has_it_once(template: str, example: Example) -> None:
    tokenizer = template_tokenizer(TEMPLATES["qwen2_5"].read_text(encoding="utf-8"))
    options = EncodeOptions("chat" if template == "text" else template, 500)
    [row] = encode_all([example], tokenizer, options).rows
    assert row.ids.count(tokenizer.eos_token_id) == 1
    assert row.ids[-1] == row.labels[-1] == tokenizer.eos_token_id


def test_the_command_prints_a_table_and_fails_where_a_template_is_wrong(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(monkeypatch, "templates", str(TEMPLATES["phi3"])) == 0
    shown = capsys.readouterr().out
    assert "reasoning" in shown.splitlines()[0]
    assert "left out" in shown.splitlines()[1]
    assert "phi3, tools: " in shown
    assert call(monkeypatch, "templates", str(tmp_path / "none.jinja")) == 2
    monkeypatch.setattr(template_check, "FOREIGN", ("Oslo",))
    assert call(monkeypatch, "templates", str(TEMPLATES["phi3"]), "--json") == 1
    assert "words of other turns are learned (Oslo)" in capsys.readouterr().out


OPENING = Example((("assistant", "Welcome, traveller."), ("user", "Where?"), ("assistant", "Rome."), ("user", "No.")),
                  "Oslo.", context=(0,))
#: Refuses what does not alternate and begin with a question, as the templates of Gemma and Mistral do.
STRICT = ("{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
          "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
          "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.mark.parametrize("learn", ["answers", "last", "all"])
def test_an_answer_before_the_first_question_is_left_out_where_the_template_refuses_it(learn: str) -> None:
    tokenizer = template_tokenizer(STRICT)
    found = encode_all([OPENING], tokenizer, replace(CHAT, learn=learn))
    (row,) = found.rows
    asked = [*({"role": role, "content": text} for role, text in OPENING.turns[1:]),
             {"role": "assistant", "content": "Oslo."}]
    plain = tokenizer.apply_chat_template(asked, tokenize=False)
    assert tokenizer.decode(row.ids) == plain.rstrip()
    said = tokenizer.decode([i for i in row.labels if i != IGNORED])
    assert said == {"answers": "Rome.<|im_end|>Oslo.<|im_end|>", "last": "Oslo.<|im_end|>",
                    "all": plain.rstrip()}[learn]
    assert [note for note in found.notes if "begin" in note] == [
        "template chat: 1 conversations begin with an answer, which the template refuses: that answer is left out, and "
        "the turns after it are learned; the first is 'No.'"]
    assert not any("context" in note for note in found.notes), "nothing is noted of the form that was refused"


def test_a_learned_answer_between_system_prompt_and_question_is_left_out_alike() -> None:
    example = Example((("system", "Be brief."), ("assistant", "Hello."), ("user", "Where?")), "Oslo.",
                      extra={3: {"reasoning_content": "It says so."}})
    tokenizer = template_tokenizer(STRICT.replace("{% if (m", "{% if m['role'] != 'system' and (m").replace(
        "loop.index0 %", "(loop.index0 - (messages[0]['role'] == 'system')|int) %"))
    (row,) = encode_all([example], tokenizer, CHAT).rows
    text = tokenizer.decode(row.ids)
    assert "Be brief." in text
    assert "Hello." not in text
    assert text.endswith("Oslo.<|im_end|>")


def test_the_alpaca_template_takes_what_follows_the_first_question() -> None:
    tokenizer = template_tokenizer(STRICT)
    (row,) = encode_all([OPENING], tokenizer, EncodeOptions("alpaca", 100_000)).rows
    assert "Welcome" not in tokenizer.decode(row.ids)
    assert tokenizer.decode(row.ids).endswith("### Response:\nOslo.</s>")


@pytest.mark.parametrize("turns", [(("user", "Where?"), ("user", "And when?")), (("assistant", "Hello."),)])
def test_what_a_strict_template_cannot_write_is_refused_with_what_works(turns: tuple[tuple[str, str], ...]) -> None:
    tokenizer, example = template_tokenizer(STRICT), Example(turns, "Oslo.", where="a.jsonl:7")
    with pytest.raises(InputError, match=r"a\.jsonl:7.*roles must alternate.*--skip-bad"):
        encode_all([example], tokenizer, CHAT)
    found = encode_all([example, replace(OPENING, where="a.jsonl:8")], tokenizer, replace(CHAT, skip_bad=True))
    assert (len(found.rows), found.refused) == (1, 1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in ("gemma", "gemma3", *QUICK) else
                                               [pytest.mark.slow]) for name in TEMPLATES])
def test_every_template_learns_a_conversation_that_begins_with_an_answer(name: str) -> None:
    said = learned(name, OPENING)
    assert said[-1].startswith("Oslo.") or "Oslo." in said[-1]
    assert not any("Welcome" in text or "Where?" in text for text in said)
