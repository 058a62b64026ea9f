"""Prompts are compared byte by byte, and what differs is named."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from aftertune.deploy.prompts import CONVERSATIONS, prompt_differences, writer
from deploy_cases import CHATML, chat_tokenizer

_BARE = ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
         "{% if add_generation_prompt %}[assistant]{% endif %}")
_BOS = "{{ bos_token }}"


def causes(left: str, right: str) -> dict[str, str]:
    """Conversation -> cause."""
    return {d.conversation: d.cause for d in prompt_differences(
        writer(chat_tokenizer(template=left)), writer(chat_tokenizer(template=right)), bos="<|im_start|>")}


def test_the_same_prompts_are_no_difference() -> None:
    assert causes(CHATML, "{# another text #}" + CHATML) == {}


@pytest.mark.parametrize(("right", "conversations", "cause"), [
    (_BARE.replace(_BOS, ""), list(CONVERSATIONS), "the BOS token is missing"),
    (_BOS + _BARE, list(CONVERSATIONS), "the BOS token is written twice"),
    (_BARE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"),
     ["system prompt", "system prompt, second question"], "the system prompt is dropped"),
    (_BARE.replace(_BOS, _BOS + "{% if messages[0]['role'] != 'system' %}[system]Be kind.{% endif %}"),
     ["one question", "second question", "white space", "answer"], "a system prompt is put in"),
    (_BARE.replace("[assistant]", "[assistant]<think>\n\n</think>"),
     [c for c in CONVERSATIONS if c != "answer"], "another mode of thinking"),
    (_BARE.replace("m['content']", "m['content'] | trim"), ["white space"], "white space differs"),
    (_BARE.replace("[assistant]", ""), [c for c in CONVERSATIONS if c != "answer"], "the start of the answer differs"),
    (CHATML, list(CONVERSATIONS), "another template"),
    (_BARE + "{% if messages | length > 2 %}{{ raise_exception('long') }}{% endif %}",
     ["second question", "system prompt, second question"], "the right template refuses the conversation"),
])
def test_a_difference_is_named(right: str, conversations: list[str], cause: str) -> None:
    assert causes(_BARE, right) == dict.fromkeys(conversations, cause)


def test_another_date_is_named() -> None:
    dated = _BARE.replace(_BOS, _BOS + "Today is 26 Jul 2024.")
    assert set(causes(dated, dated.replace("26 Jul 2024", "01 Feb 2026")).values()) == {"another date"}


def test_a_date_is_that_of_the_same_day_on_both_sides() -> None:
    tokenizer = chat_tokenizer(template=_BARE.replace(_BOS, _BOS + "{{ strftime_now('%d %b %Y') }}"))

    def of_a_server(messages: Any) -> str:  # transformers writes the date of the day, as a server
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    today = date.today().isoformat()
    assert not prompt_differences(writer(tokenizer, today), of_a_server, asked=True)
    assert {d.cause for d in prompt_differences(writer(tokenizer), of_a_server, asked=True)} == {"another date"}


def test_the_diff_shows_the_lines() -> None:
    first = prompt_differences(writer(chat_tokenizer(template=_BARE)), lambda messages: "[user]What is 2 + 2?")[0]
    assert first.diff.splitlines() == ["- <|im_start|>[user]What is 2 + 2?[assistant]", "+ [user]What is 2 + 2?"]
