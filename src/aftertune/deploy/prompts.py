"""Compares, byte by byte, the prompts that two chat templates write for the same messages, and says what differs.

    differences = prompt_differences(left, right)       left, right: functions from messages to a text
    differences[0].cause                                "a system prompt is put in"
    differences[0].diff                                 "- …" and "+ …" lines

A template that is written in another way but gives the same prompts is no other template. What a server or a converted
file makes of messages is compared in the same way: give its rendering as one of the functions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.harness.server_client import ServerClient, token_ids
from aftertune.tasks.chat_template import apply_template, template_date

ChatMessages = Sequence[Mapping[str, str]]
#: Writes the prompt of messages; it ends with the start of an answer unless the last message is one.
PromptWriter = Callable[[ChatMessages], str]

_COMPARED = 4000  # characters of a prompt whose lines are compared; a server may send a megabyte of them
_SYSTEM = {"role": "system", "content": "Answer in one word."}
_ASKED = {"role": "user", "content": "What is 2 + 2?"}
_ANSWERED = {"role": "assistant", "content": "Four."}
#: The conversations that are compared: with and without a system prompt, one turn and several, contents with white
#: space at their ends.
CONVERSATIONS: Mapping[str, ChatMessages] = {
    "one question": (_ASKED,),
    "system prompt": (_SYSTEM, _ASKED),
    "second question": (_ASKED, _ANSWERED, {"role": "user", "content": "And 3 + 3?"}),
    "system prompt, second question": (_SYSTEM, _ASKED, _ANSWERED, {"role": "user", "content": "And 3 + 3?"}),
    "white space": ({"role": "user", "content": "  def f(x):\n    return x\n\n"},),
    "answer": (_ASKED, _ANSWERED),
}
#: What a template writes about reasoning.
_THINKING = re.compile(r"</?think(ing)?>|enable_thinking|/no_think", re.IGNORECASE)
#: Dates as templates write them: 26 Jul 2024, 2024-07-26, July 26, 2024.
_DATE = re.compile(r"\b(\d{1,2} [A-Z][a-z]{2,8} \d{4}|\d{4}-\d{2}-\d{2}|[A-Z][a-z]{2,8} \d{1,2}, \d{4})\b")


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """Two prompts for the same messages. conversation: a key of `CONVERSATIONS`. cause: in a few words."""

    conversation: str
    left: str
    right: str
    cause: str

    @property
    def diff(self) -> str:
        """The lines that differ, with their line ends written out. Of a long prompt, the start is compared."""
        left, right = ([repr(line)[1:-1] for line in text[:_COMPARED].splitlines(keepends=True)]
                       for text in (self.left, self.right))
        return "\n".join(line for line in difflib.ndiff(left, right) if line[:1] in "-+")


def writer(tokenizer: Any, day: str | None = None) -> PromptWriter:
    """The prompts of a tokenizer's chat template. day: that it writes, where it writes one, as YYYY-MM-DD; None for the
    default of fine-tunes and evaluations."""
    day = template_date(tokenizer, day)

    def write(messages: ChatMessages) -> str:
        return apply_template(tokenizer, messages, generation=messages[-1]["role"] != "assistant", day=day)

    return write


def server_writer(client: ServerClient, model: str, tokenizer: Any) -> PromptWriter | None:
    """The prompts that a server makes of messages; None where it has no way to say them.

    llama.cpp says them (``/apply-template``). vLLM says their tokens, and the texts of tokens (``/tokenize``,
    ``/detokenize``). A second BOS token, which llama.cpp adds to a prompt that has one, is part of the prompt here.
    tokenizer: the fine-tune's, for its BOS token.
    """
    def of_llama_cpp(messages: ChatMessages) -> str:
        prompt = client.post("apply-template", {"messages": list(messages)}, root=True)["prompt"]
        tokens = token_ids(client.tried("tokenize", {"content": prompt, "add_special": True, "parse_special": True},
                                        root=True))
        twice = tokens[:2] == [tokenizer.bos_token_id] * 2
        return f"{tokenizer.bos_token if twice and not prompt.startswith(2 * tokenizer.bos_token) else ''}{prompt}"

    def of_vllm(messages: ChatMessages) -> str:
        begins = messages[-1]["role"] != "assistant"
        tokens = client.post("tokenize", {"model": model, "messages": list(messages), "add_generation_prompt": begins},
                             root=True)["tokens"]
        return str(client.post("detokenize", {"model": model, "tokens": tokens}, root=True)["prompt"])

    found = client.tried("apply-template", {"messages": [_ASKED]}, root=True)
    if isinstance(found, dict) and isinstance(found.get("prompt"), str):
        return of_llama_cpp
    tokens = token_ids(client.tried("tokenize", {"model": model, "messages": [_ASKED]}, root=True))
    found = client.tried("detokenize", {"model": model, "tokens": tokens}, root=True) if tokens else None
    return of_vllm if isinstance(found, dict) and isinstance(found.get("prompt"), str) else None


def prompt_differences(left: PromptWriter, right: PromptWriter, *, bos: str | None = None, asked: bool = False
                       ) -> list[PromptDifference]:
    """The conversations whose prompts differ. bos: the text of the BOS token, to recognise it at the start.

    A conversation that both refuse is the same; one that only one of them refuses differs. asked: leave out those that
    end with an answer, because servers continue it and a chat template ends it.
    """
    found = []
    for name, messages in CONVERSATIONS.items():
        if asked and messages[-1]["role"] == "assistant":
            continue
        ours, theirs = _written(left, messages), _written(right, messages)
        if ours != theirs:
            found.append(PromptDifference(name, ours, theirs, _cause(ours, theirs, messages, bos)))
    return found


_REFUSED = "(refused)"


def _written(write: PromptWriter, messages: ChatMessages) -> str:
    try:
        return write(messages)
    except Exception:  # a template is code in a sandbox and may raise anything
        return _REFUSED


def _cause(left: str, right: str, messages: ChatMessages, bos: str | None) -> str:
    """Why the right prompt differs from the left one, as far as the texts say it."""
    if _REFUSED in (left, right):
        return f"the {'right' if right == _REFUSED else 'left'} template refuses the conversation"
    counts = [_starts(text, bos) for text in (left, right)]
    if counts[0] != counts[1] and left.removeprefix((bos or "") * counts[0]) == right.removeprefix(
            (bos or "") * counts[1]):
        return "the BOS token is missing" if counts[1] < counts[0] else "the BOS token is written twice" if counts[
            0] else "a BOS token is put in"
    system = next((m["content"] for m in messages if m["role"] == "system"), None)
    if system is not None and (system in left) != (system in right):
        return "the system prompt is dropped" if system in left else "the system prompt is dropped on the left"
    if _DATE.sub("(date)", left) == _DATE.sub("(date)", right):
        return "another date"
    if _THINKING.findall(left) != _THINKING.findall(right):
        return "another mode of thinking"
    if "".join(left.split()) == "".join(right.split()):
        return "white space differs"
    return _inserted(left, right) or "another template"


def _starts(text: str, bos: str | None) -> int:
    """How many times a text begins with the BOS token."""
    count = 0
    while bos and text.startswith(bos * (count + 1)):
        count += 1
    return count


def _inserted(left: str, right: str) -> str:
    """"a system prompt is put in" or its opposite, where one text is the other with a block more; else ""."""
    shorter, longer = sorted((left, right), key=len)
    start = next((n for n, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    rest = len(shorter) - start
    if not shorter or (rest and not longer.endswith(shorter[start:])):
        return ""
    block = longer[start:len(longer) - rest]
    if "system" in block.lower():
        return "a system prompt is put in" if longer == right else "the default system prompt is missing"
    return "the start of the answer differs" if not rest else ""
