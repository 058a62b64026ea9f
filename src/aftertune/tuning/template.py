"""Renders examples as text with a template, and marks which segments of the text are learned.

    renderer = Renderer(tokenizer, "chat", "answers")
    renderer.rows(example)      [[Segment("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n", False),
                                  Segment("Hello.<|im_end|>", True)]]
    renderer.notes()            what the template left out, with counts

Chat template: a row is what plain ``apply_chat_template`` writes for the conversation up to an answer, without the line
breaks after its end. `aftertune.tuning.chat_turns` finds the answers in it. Some templates render earlier turns
differently once more turns follow (Qwen3 drops their thinking, some Mistral templates move the system prompt). Then no
single text contains every answer as an evaluation asks for it, so each answer becomes a row of its own. Where the
template writes no end of turn, the end-of-sequence token follows the answer. Some templates refuse a conversation that
begins with an answer (Gemma, Mistral); that answer is left out, as in FastChat. What the template leaves out (a key
that it does not know, reasoning that it drops) is not learned, and `Renderer.notes` says so.

Alpaca: the prompt of Taori et al. (2023). A system prompt replaces its first paragraph, and earlier turns come first in
the same form, as in LLaMA-Factory and FastChat. In this template and in ``plain`` the end-of-sequence token follows
each answer.

An example without turns is plain text. It is learned as a whole with every template.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from aftertune.errors import InputError
from aftertune.tuning.chat_turns import REASONING_KEYS, ChatWriter, Conversation, TextPart, WrittenTurn
from aftertune.tuning.example import LEARNED_KEYS, Example

#: The classic prompt of Stanford Alpaca (Taori et al. 2023), without and with an input.
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.")

@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a row's text. learned: it counts in the loss. end: the end-of-sequence token follows it, and is learned
    if the text is."""

    text: str
    learned: bool
    end: bool = False


class Renderer:
    """Renders examples with one template and counts what it leaves out.

    template: chat, alpaca or plain. learn: answers (every answer), last (only the last answer) or all (prompts too, but
    no answer that the data mark as context). day: the date that a chat template writes, as YYYY-MM-DD.
    """

    def __init__(self, tokenizer: Any, template: str, learn: str, day: str | None = None) -> None:
        self.tokenizer, self.template, self.learn, self.day = tokenizer, template, learn, day
        self._writer: ChatWriter | None = None
        self._left_out: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def rows(self, example: Example) -> list[list[Segment]]:
        """The rows of an example, each as a list of segments. It is one row, unless the template rewrites earlier
        turns. Raises InputError if the template cannot render the example."""
        if not example.turns and not example.extra:
            return [[Segment(example.completion, True, end=True)]]
        noted, first = Counter(self._left_out), dict(self._first)
        try:
            return self._rows(example)
        except InputError:
            self._left_out, self._first = noted, first  # what is refused has no part that is left out
            asked = _from_first_question(example)
            if asked is None:
                raise
            try:
                rows = self._rows(asked)
            except InputError:
                self._left_out, self._first = noted, first
            else:
                self._note("# conversations begin with an answer, which the template refuses: that answer is left out, "
                           "and the turns after it are learned", example)
                return rows
            raise

    def _rows(self, example: Example) -> list[list[Segment]]:
        if self.template == "chat":
            return self._chat(example)
        self._check_texts(example)
        row = _alpaca(example, self.learn) if self.template == "alpaca" else _plain(example)
        return [[Segment(s.text, True, s.end) for s in row] if self.learn == "all" else row]

    def notes(self) -> list[str]:
        """What the template left out of the examples, each with its count and the first example."""
        return [f"template {self.template}: {what.replace('#', f'{count:,}', 1)}; the first is {self._first[what]}"
                for what, count in self._left_out.items()]

    def _note(self, what: str, example: Example) -> None:
        """Count something that is left out. what: a sentence with # in the place of the count."""
        self._left_out[what] += 1
        self._first.setdefault(what, f"{example.where} ({excerpt(example)})" if example.where else excerpt(example))

    def _check_texts(self, example: Example) -> None:
        """Note the keys that only a chat template writes."""
        keys = {key for turn in example.extra.values() for key in turn if key in LEARNED_KEYS}
        for key in sorted(keys | ({"tools"} if example.tools else set())):
            self._note(f"{key} of # examples are not written; set template: chat", example)
        if not example.completion.strip():
            raise InputError(f"{excerpt(example)}: its last answer has no text, only {', '.join(sorted(keys))}; set "
                             "template: chat")

    # --- With a chat template ---

    def _chat(self, example: Example) -> list[list[Segment]]:
        try:
            if self._writer is None:
                self._writer = ChatWriter(self.tokenizer, self.day)
            return self._chat_rows(example, self._writer)
        except InputError as error:
            if getattr(self.tokenizer, "chat_template", None):
                raise InputError(f"{excerpt(example)}: {error}") from error
            raise

    def _chat_rows(self, example: Example, writer: ChatWriter) -> list[list[Segment]]:
        conversation = Conversation(example.messages, example.tools, example.template_arguments)
        last = len(conversation.messages) - 1
        turns = []
        for number in example.answers if self.learn == "answers" else (last,):
            try:
                turn = writer.turn(conversation, number)
            except InputError:
                if number == last:
                    raise
                self._note("# answers are context, because the template refuses a conversation that ends with them",
                           example)
                continue
            conversation, turn = self._checked(example, writer, conversation, turn)
            turns.append(turn)
        _check_dropped_turns(conversation, turns[-1].text, lambda what: self._note(what, example))
        if self.learn == "all":
            return [_all_but_context(example, writer, conversation, turns[-1])]
        joined = _joined(turns, self.tokenizer.eos_token or "")
        return [joined] if joined else [_segments(turn, turn.spans) for turn in turns]

    def _checked(self, example: Example, writer: ChatWriter, conversation: Conversation, turn: WrittenTurn
                 ) -> tuple[Conversation, WrittenTurn]:
        """An answer with its reasoning, and the conversation in which it is so. Notes what is left out of it.

        Raises InputError if nothing of the answer is written, or an empty thought in the place of its reasoning.
        """
        number = turn.number
        message = conversation.messages[number]
        reasoning = next((str(message[key]) for key in REASONING_KEYS if message.get(key)), "").strip()
        if reasoning and reasoning not in turn.said and turn.core.strip():
            if turn.teaches_empty_thought:
                conversation = _with_thought(conversation, number, reasoning)
                turn = writer.turn(conversation, number)
                if reasoning not in turn.said or turn.teaches_empty_thought:
                    raise InputError("the chat template writes an empty thought in the place of this answer's "
                                     "reasoning; write the reasoning into the content, as the template's model does, "
                                     "or leave such rows out (data.skip_bad, --skip-bad)")
                self._note("the reasoning of # answers is written into their content as <think>…</think>, because "
                           "the template does not know its key", example)
            else:
                self._note("the reasoning of # answers is not written by the template, so it is not learned", example)
        self._check_said(example, message, turn)
        if not turn.asked:
            self._note("# answers are written after another prompt than the generation prompt, with which an "
                       "evaluation asks", example)
        return conversation, turn

    def _check_said(self, example: Example, message: dict[str, Any], turn: WrittenTurn) -> None:
        """Note the parts of an answer that the template leaves out or changes. Raises InputError if it writes none."""
        calls = [str(call.get("function", call).get("name")) for call in message.get("tool_calls") or ()]
        missing = [name for name in calls if name not in turn.said]
        thought, content = _thought_and_answer(message.get("content"))
        if not turn.core.strip():
            kind = "its tool calls" if calls else "its text" if content or thought else "its reasoning"
            raise InputError(f"the chat template writes nothing of an answer: it leaves out {kind}; use a model whose "
                             "template writes them, or leave such rows out (data.skip_bad, --skip-bad)")
        if missing:
            self._note("the tool calls of # answers are not written by the template, so they are not learned", example)
        if thought and thought not in turn.said:
            self._note("the reasoning in # answers is left out by the template, so it is not learned", example)
        elif thought and turn.teaches_empty_thought:
            self._note("the template writes an empty thought before the reasoning in # answers; give it as "
                       "reasoning_content", example)
        if content and content not in turn.said:
            self._note("the text of # answers is changed or left out by the template; what it writes is learned",
                       example)


def _from_first_question(example: Example) -> Example | None:
    """The example without the answers before its first question; None if it has none of these, or no question."""
    roles = [role for role, _ in example.turns]
    if "user" not in roles or "assistant" not in roles[:roles.index("user")]:
        return None
    kept = [n for n, role in enumerate(roles) if role != "assistant" or n > roles.index("user")]
    place = {old: new for new, old in enumerate([*kept, len(roles)])}
    return replace(example, turns=tuple(example.turns[n] for n in kept),
                   context=tuple(place[n] for n in example.context if n in place),
                   extra={place[n]: keys for n, keys in example.extra.items() if n in place})


def excerpt(example: Example) -> str:
    """The start of an example's last turn, which names the example in messages."""
    text = " ".join((example.turns[-1][1] if example.turns else example.completion).split())
    return repr(text[:40] + "…" if len(text) > 40 else text)


def _segments(turn: WrittenTurn, spans: tuple[TextPart, ...]) -> list[Segment]:
    """The text up to the end of an answer as segments, of which the spans are learned."""
    segments, at = [], 0
    for span in spans:
        segments += [Segment(turn.text[at:span.start], False), Segment(turn.text[span.start:span.end], True)]
        at = span.end
    segments = [s for s in (*segments, Segment(turn.text[at:turn.stop], False)) if s.text]
    return segments if turn.closed else [*segments[:-1], replace(segments[-1], end=True)]


def _joined(turns: list[WrittenTurn], end: str) -> list[Segment] | None:
    """One row for several answers; None if the whole conversation does not contain each of them as it is written at the
    end of a conversation. end: the end-of-sequence token."""
    last, spans = turns[-1], []
    for turn in turns[:-1]:
        closing = turn.text[:turn.end] + ("" if turn.closed else end)
        if not (closing and last.text.startswith(closing)) or (not turn.closed and not end):
            closing = turn.text[:turn.short]  # some templates add a token at the end of the conversation (Phi-3)
            if not turn.closed or not last.text.startswith(closing):
                return None
        spans += [TextPart(span.start, min(span.end, len(closing))) for span in turn.spans if span.start < len(closing)]
        spans[-1] = TextPart(spans[-1].start, len(closing))
    return _segments(last, (*spans, *last.spans))


def _all_but_context(example: Example, writer: ChatWriter, conversation: Conversation, last: WrittenTurn
                     ) -> list[Segment]:
    """The whole conversation as learned, except answers with text that the data mark as context."""
    segments, at = [], 0
    for number in (n for n in example.context if example.turns[n][1].strip()):
        turn = writer.turn(conversation, number)
        end = turn.end if last.text.startswith(turn.text[:turn.end]) else turn.short
        if not last.text.startswith(turn.text[:end]):
            raise InputError("an answer that is context cannot be kept out of the loss, because the chat template "
                             "writes it in another way once more turns follow; set learn: answers (--learn)")
        for span in turn.spans:
            segments += [Segment(last.text[at:span.start], True), Segment(last.text[span.start:min(span.end, end)],
                                                                          False)]
            at = min(span.end, end)
    segments.append(Segment(last.text[at:last.end], True, end=not last.closed))
    return [s for s in segments if s.text]


def _with_thought(conversation: Conversation, number: int, reasoning: str) -> Conversation:
    """The conversation with the reasoning of an answer in its content."""
    message = {key: value for key, value in conversation.messages[number].items() if key not in REASONING_KEYS}
    message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message.get('content') or ''}"
    return replace(conversation, messages=[*conversation.messages[:number], message,
                                           *conversation.messages[number + 1:]])


def _thought_and_answer(content: Any) -> tuple[str, str]:
    """The reasoning in a content, and the text after it, both without white space around them."""
    if not isinstance(content, str):
        return "", ""
    thought, mark, answer = content.rpartition("</think>")
    return (thought.partition("<think>")[2] or thought).strip() if mark else "", answer.strip()


def _check_dropped_turns(conversation: Conversation, text: str, note: Callable[[str], None]) -> None:
    """Note turns and tools of a conversation that its text does not have."""
    for message in conversation.messages[:-1]:
        content, role = message.get("content"), message["role"]
        if role != "assistant" and isinstance(content, str) and content.strip() and not _shown(content, text):
            note(f"# turns of the role {role} are changed or left out by the template")
    if any(str(tool.get("function", tool).get("name")) not in text for tool in conversation.tools):
        note("the tools of # examples are not written by the template")


def _shown(content: str, text: str) -> bool:
    """True if the text has the content, or all words of it: templates write JSON in several ways."""
    return content.strip() in text or all(word in text for word in re.findall(r"\w+", content))


def alpaca_prompt(instruction: str, head: str = ALPACA, addition: str = "") -> str:
    """The Alpaca prompt of one instruction. head: its first paragraph; addition: the paragraph of its input."""
    return f"{head}\n\n### Instruction:\n{instruction}\n\n{addition}### Response:\n"


def _alpaca(example: Example, learn: str) -> list[Segment]:
    turns = (*example.turns, ("assistant", example.completion))
    first = int(turns[0][0] == "system")
    roles = [role for role, _ in turns]
    if roles[first:] != ["user", "assistant"] * ((len(turns) - first) // 2):
        raise InputError(f"{excerpt(example)}: its turns are {', '.join(roles)}; the alpaca template needs alternating "
                         "user and assistant turns, after at most one system prompt; set template: chat")
    head = turns[0][1] if first else (ALPACA_INPUT if example.input else ALPACA)
    learned = example.answers if learn == "answers" else example.answers[-1:]
    segments = []
    for turn in range(first, len(turns), 2):
        addition = f"### Input:\n{example.input}\n\n" if example.input and turn == len(turns) - 2 else ""
        segments += [Segment(alpaca_prompt(turns[turn][1], head, addition), False),
                     Segment(turns[turn + 1][1], turn + 1 in learned, end=True)]
        head = ""
    return segments


def _plain(example: Example) -> list[Segment]:
    if len(example.turns) > 1:
        raise InputError(f"{excerpt(example)}: an example with several turns needs a chat template; set template: "
                         "chat, or alpaca")
    return [Segment(example.conversation[0][1], False), Segment(example.completion, True, end=True)]
