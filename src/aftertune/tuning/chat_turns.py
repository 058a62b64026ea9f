"""Writes conversations with a model's chat template, and finds the part of the text that each answer takes up.

    chat = ChatWriter(tokenizer)
    turn = chat.turn(Conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]), 1)
    turn.text[turn.spans[0].start:turn.spans[0].end]        "Hello.<|im_end|>"

An answer is never searched for as a text. Its part is what the conversation with it has more than the conversation
before it:

- It starts where the prompt of an evaluation ends, that is after the generation prompt. Some templates begin an answer
  in another way than their generation prompt does (DeepSeek-R1 asks with ``<think>``, and writes answers without it).
  Then it starts where the two part. A stand-in for the answer, which is written too, keeps an answer that happens to
  begin like the generation prompt from being cut.
- It ends with the template's end of turn, without the line breaks after that.
- Where the template marks answers itself with ``{% generation %}``, its marks count.

Text, token ids and order are those of plain ``apply_chat_template``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aftertune.errors import InputError
from aftertune.sources.limits import TemplateLimit, limited
from aftertune.tasks.chat_template import apply_template, template_variables

#: Stand-ins for an answer. They begin with different letters, so a template's text is what both have in common.
_STAND_INS = ("Quartz vial 7k", "Jumpy fox 3m")
#: The keys under which reasoning comes beside the content of an answer. transformers copies each to the others.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_EMPTY_THOUGHT = re.compile(r"^\s*(<think>)?\s*</think>")
_UNFINISHED_MARK = re.compile(r"[<\[][^<>\[\]\s]*$")

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template receives: messages with role, content and other keys; tools; other variables."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def until(self, count: int, *more: dict[str, Any]) -> Conversation:
        """The first ``count`` messages, and ``more`` after them."""
        return replace(self, messages=[*self.messages[:count], *more])


@dataclass(frozen=True, slots=True)
class TextPart:
    """A part of a text: the characters from start up to end, without the latter."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """An answer as the template writes it at the end of the conversation so far.

    number: its index. text: the whole conversation up to this answer. spans: the parts of the text that the model says,
    in order. stop: where the text ends without the line breaks after the end of turn. content:
    where the end of turn begins. short: where its first mark ends; a template may write more after the last answer than
    after others (Phi-3). closed: the template writes an end of turn. asked: the answer follows the prompt that an
    evaluation shows.
    """

    number: int
    text: str
    spans: tuple[TextPart, ...]
    stop: int
    content: int
    short: int
    closed: bool
    asked: bool

    @property
    def end(self) -> int:
        """Where the last part ends."""
        return self.spans[-1].end

    @property
    def said(self) -> str:
        """What the model says, without the text between the parts."""
        return "".join(self.text[span.start:span.end] for span in self.spans)

    @property
    def core(self) -> str:
        """What the model says, without the end of turn and without an empty thought before it."""
        said = "".join(self.text[span.start:min(span.end, self.content)] for span in self.spans)
        return _EMPTY_THOUGHT.sub("", said)

    @property
    def teaches_empty_thought(self) -> bool:
        """True if the model is to say, or to close, a thought without text. It may open in the prompt."""
        start = self.spans[0].start
        thoughts = re.finditer(r"<think>\s*</think>", self.text[max(0, start - 40):])
        return any(thought.end() > min(start, 40) for thought in thoughts)


class ChatWriter:
    """Writes conversations with a tokenizer's chat template. day: the date that the template writes (`apply_template`).

    Raises InputError without file and line where the template refuses a conversation.
    """

    def __init__(self, tokenizer: Any, day: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("the model's tokenizer has no chat template; set template: alpaca, or plain for the "
                             "unchanged prompt and completion (--template)")
        self.tokenizer, self.day = tokenizer, day
        self._tail: str | None = None
        self._asks: str | None = None
        self._in_parts = not self._shows(False) and self._shows(True)

    # --- Text ---

    def write(self, conversation: Conversation, *, generation: bool = False) -> str:
        """The text of a conversation. generation: with the start of an answer at its end.

        Tool calls come with arguments as objects. Templates that join them with text get them as JSON text instead.
        Raises InputError if the template refuses the conversation.
        """
        error: Exception | None = None
        for messages in message_forms(conversation.messages, self._in_parts):
            try:
                text = apply_template(self.tokenizer, messages, tools=conversation.tools, generation=generation,
                                      day=self.day, arguments=conversation.arguments)
            except TemplateLimit as failure:
                raise InputError(f"the chat template was stopped: {failure}; fix the template, or set template: "
                                 "alpaca or plain (--template)") from failure
            except Exception as failure:  # a template is foreign code in a sandbox and may raise anything
                error = error or failure
                continue
            if not _python_text(messages, text):
                return text
        otherwise = ", or set template: plain" if len(conversation.messages) <= 2 else ""  # plain has no turns
        raise InputError("the chat template rejects this conversation: "
                         f"{' '.join(str(error or 'it writes Python in place of JSON').split())[:200]}; fix the "
                         f"roles, or leave such rows out (data.skip_bad, --skip-bad){otherwise}") from error

    def _written(self, conversation: Conversation, *, generation: bool = False) -> str | None:
        """As `write`; None for an empty conversation, and where the template refuses it."""
        try:
            return self.write(conversation, generation=generation) if conversation.messages else None
        except InputError:
            return None

    def _shows(self, in_parts: bool) -> bool:
        """True if the template writes contents in this form: as a text, or as the list of parts of OpenAI, which is
        the only one that some templates of vision models write."""
        [messages] = message_forms([{"role": "user", "content": _STAND_INS[0]}], in_parts)
        try:
            return _STAND_INS[0].lower() in apply_template(self.tokenizer, messages, day=self.day).lower()
        except Exception:  # a template may raise anything
            return False

    # --- The part of an answer ---

    def turn(self, conversation: Conversation, number: int) -> WrittenTurn:
        """The answer with this index, at the end of the conversation up to it. Raises InputError if the template
        refuses the conversation."""
        conversation = conversation.until(number + 1)
        text, usual = self.write(conversation), self._end_of_turn()
        prompt = self._written(conversation.until(number), generation=True)
        start = self._start(conversation, text, prompt)
        tail = usual if usual.strip() and text.endswith(usual) else text[len(text.rstrip()):]
        end = len(text) - (len(tail) - len(tail.rstrip()))
        content = len(text) - len(tail)
        short = content + _first_mark(tail) if tail.strip() else end
        spans = self._marked(conversation, start, end) or (TextPart(min(start, end), end),)
        if tail == usual and spans[-1].end < end:  # the end of turn is learned also where it is not marked
            spans = (*spans[:-1], TextPart(spans[-1].start, end))
        return WrittenTurn(number, text, spans, end, content, short,
                           closed=bool(usual.strip()) or self._ends_with_special_token(text[:end]),
                           asked=prompt is None or text.startswith(prompt))

    def _end_of_turn(self) -> str:
        """What the template writes after the content of a last answer, with line breaks; "" if that is not known."""
        if self._tail is None:
            texts = [self._written(Conversation([{"role": "user", "content": "Hi"},
                                                 {"role": "assistant", "content": content}]))
                     for content in _STAND_INS]
            self._tail = _common_end(texts[0], texts[1]) if texts[0] and texts[1] else ""
        return self._tail

    def _start(self, conversation: Conversation, text: str, prompt: str | None) -> int:
        """Where the last answer of a conversation starts in its text. prompt: the conversation before it with the start
        of an answer; None where the template refuses it."""
        before, opening = conversation.until(len(conversation.messages) - 1), self._opening()
        if prompt is not None and text.startswith(prompt):
            # some templates ask without an opening after a tool's result, and write one all the same
            extra = bool(opening) and not prompt.endswith(opening) and text.startswith(opening, len(prompt))
            return len(prompt) + extra * len(opening)
        others = [self._written(before.until(len(before.messages), {"role": "assistant", "content": content}))
                  for content in _STAND_INS]
        header = min(shared_length(text, other or text) for other in others)
        header = _whole_marks(text, header) if any(others) else 0
        context = self._written(before) or ""
        if prompt is not None:
            parting = shared_length(prompt, text[:header])
            if parting >= shared_length(prompt, context):
                return _whole_marks(text, parting)
        # the template writes the turns before in another way once an answer follows, or refuses them alone
        found = text.rfind(opening, shared_length(text, context), header) if opening else -1
        return found + len(opening) if found >= 0 else header

    def _opening(self) -> str:
        """The generation prompt alone, from a question of its own; "" if that is not known."""
        if self._asks is None:
            question = Conversation([{"role": "user", "content": "Hi"}])
            plain, asked = self._written(question), self._written(question, generation=True)
            self._asks = asked[len(plain):] if plain and asked and asked.startswith(plain) else ""
        return self._asks

    def _ends_with_special_token(self, text: str) -> bool:
        return any(token and text.endswith(token) for token in self.tokenizer.all_special_tokens)

    def _marked(self, conversation: Conversation, start: int, end: int) -> tuple[TextPart, ...]:
        """The parts of the last answer that the template itself marks as generated; empty if it marks none. start, end:
        of the answer in the text of the conversation."""
        for messages in message_forms(conversation.messages, self._in_parts):
            try:
                blocks = self._blocks(messages, conversation)
            except Exception:  # this form is not the one that was written
                continue
            return tuple(TextPart(first, min(last, end)) for first, last in blocks if last > start and first < end)
        return ()

    def _blocks(self, messages: Messages, conversation: Conversation) -> list[tuple[int, int]]:
        """The generation blocks in the text of the messages, as (start, end)."""
        tools = list(conversation.tools) or None
        settings = {"chat_template": self.tokenizer.get_chat_template(tools=tools), **self.tokenizer.special_tokens_map,
                    **template_variables(self.tokenizer, conversation.tools, self.day, conversation.arguments)}
        if not marks_answers(settings["chat_template"]):
            return []
        from transformers.utils.chat_template_utils import render_jinja_template

        given = [{key: value for key, value in m.items() if value is not None} for m in messages]  # as transformers
        _, blocks = limited(settings["chat_template"], lambda: render_jinja_template(
            conversations=[given], tools=tools, return_assistant_tokens_mask=True, **settings))
        return list(blocks[0])


def marks_answers(template: str) -> bool:
    """True if a chat template marks answers with ``{% generation %}``."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def shared_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many items two sequences, or letters two texts, have in common at their start."""
    if left == right[:len(left)]:
        return len(left)
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def message_forms(messages: Messages, in_parts: bool) -> Iterator[Messages]:
    """The messages in the forms that templates want, the documented one first: arguments of tool calls as objects, then
    as JSON text; each with missing contents, then with empty ones. A tool's result that is an object is JSON text.
    in_parts: contents are lists of parts."""
    messages = [{**m, "content": _json_text(m["content"])} if isinstance(m.get("content"), dict) else m
                for m in messages]
    if in_parts:
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} if isinstance(m.get("content"), str)
                    else m for m in messages]
    filled = [{**m, "content": ""} if m.get("content") is None else m for m in messages]
    calls = any(m.get("tool_calls") for m in messages)
    for form in (messages, filled) if filled != messages else (messages,):
        yield form
        if calls:
            yield [_with_text_arguments(m) for m in form]


def _with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [
        {**call, "function": {**call["function"], "arguments": _json_text(call["function"].get("arguments"))}}
        for call in message["tool_calls"]]}


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _python_text(messages: Messages, text: str) -> bool:
    """True where the template wrote arguments of a tool call as Python does, with single quotes."""
    values = [call["function"].get("arguments") for m in messages for call in m.get("tool_calls") or ()]
    return any(isinstance(v, dict) and v and repr(v) in text and _json_text(v) not in text for v in values)


def _common_end(left: str, right: str) -> str:
    return left[len(left) - shared_length(left[::-1], right[::-1]):]


def _first_mark(tail: str) -> int:
    """Where the first mark of an end of turn ends: at white space."""
    match = re.match(r"\s*\S+", tail)
    return match.end() if match else 0


def _whole_marks(text: str, at: int) -> int:
    """``at``, or where the mark starts that it would cut, such as ``<think>`` and ``<tool_call>`` after ``<t``."""
    match = _UNFINISHED_MARK.search(text, 0, at)
    return match.start() if match else at
