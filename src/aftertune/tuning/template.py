"""Renders examples as text with a template, and marks which segments of the text are learned.

    render_example(example, tokenizer, "chat", "answers")
        [[Segment("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n", False),
          Segment("Hello.<|im_end|>", True)]]

Chat template: the prompt of each answer is exactly what an evaluation shows at that turn, the conversation so far with
the generation prompt. The answer is learned up to the template's end of turn. It is found by rendering the conversation
up to each answer, so a template needs no ``{% generation %}`` block. Some templates render earlier turns differently
once more turns follow (Qwen3 drops their thinking, some Mistral templates move the system prompt). Then no single text
contains every answer as an evaluation asks for it, so each answer becomes a row of its own.

Alpaca: the prompt of Taori et al. (2023). A system prompt replaces its first paragraph, and earlier turns come first in
the same form, as in LLaMA-Factory and FastChat. In this template and in ``plain`` the end-of-sequence token follows
each answer.

An example without turns is plain text. It is learned as a whole with every template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.errors import InputError
from aftertune.tuning.example import Example

#: The classic prompt of Stanford Alpaca (Taori et al. 2023), without and with an input.
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.")
TurnSequence = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a row's text. learned: it counts in the loss. end: the end-of-sequence token follows it, and is learned
    if the text is."""

    text: str
    learned: bool
    end: bool = False


def render_example(example: Example, tokenizer: Any, template: str, learn: str) -> list[list[Segment]]:
    """The rows of an example, each as a list of segments. It is one row, unless the template rewrites earlier turns.

    template: chat, alpaca or plain. learn: answers (every answer), last (only the last answer) or all (prompts too).
    Raises InputError if the template cannot render the example.
    """
    if not example.turns:
        rows = [[Segment(example.completion, True, end=True)]]
    elif template == "chat":
        rows = _chat(example, tokenizer, example.answers if learn == "answers" else example.answers[-1:])
    elif template == "alpaca":
        rows = [_alpaca(example, learn)]
    else:
        rows = [_plain(example)]
    if learn == "all":
        rows = [[Segment(s.text, True, s.end) for s in row] for row in rows]
    return rows


def excerpt(example: Example) -> str:
    """The start of an example's last turn, which names the example in messages."""
    text = " ".join((example.turns[-1][1] if example.turns else example.completion).split())
    return repr(text[:40] + "…" if len(text) > 40 else text)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer as the template renders it. prompt: everything before it; end: the special tokens after its text."""

    prompt: str
    text: str
    end: str


def _chat(example: Example, tokenizer: Any, answer_turns: tuple[int, ...]) -> list[list[Segment]]:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; set template: alpaca, or plain for the "
                         "unchanged prompt and completion (--template)")
    turns = (*example.conversation, ("assistant", example.completion))
    answers = [_answer(turns[:turn + 1], tokenizer, example) for turn in answer_turns]
    joined = _joined(answers, _rendered(turns, tokenizer, example)) if len(answers) > 1 else None
    return [joined] if joined else [[Segment(a.prompt, False), Segment(a.text + a.end, True, end=not a.end)]
                                    for a in answers]


def _joined(answers: list[_Answer], conversation: str) -> list[Segment] | None:
    """One row for several answers; None if the rendered conversation does not contain each of them as it was rendered
    on its own."""
    segments: list[Segment] = []
    at = 0
    for answer in answers:
        learned = answer.text + answer.end
        if answer is not answers[-1] and not conversation.startswith(answer.prompt + learned):
            # some templates add a token at the end of the conversation (Phi-3)
            learned = answer.text + answer.end[:_first_token_end(answer.end)]
            if learned == answer.text or not conversation.startswith(answer.prompt + learned):
                return None
        if not conversation.startswith(answer.prompt):
            return None
        segments += [Segment(conversation[at:len(answer.prompt)], False), Segment(learned, True)]
        at = len(answer.prompt) + len(learned)
    return segments


def _first_token_end(end: str) -> int:
    """Where the first special token after an answer ends: at white space."""
    match = re.match(r"\s*\S+", end)
    return match.end() if match else 0


def _answer(turns: TurnSequence, tokenizer: Any, example: Example) -> _Answer:
    """The last turn, with the conversation so far and the generation prompt before it."""
    prompt = _rendered(turns[:-1], tokenizer, example, generation=True)
    rendered, text = _rendered(turns, tokenizer, example), turns[-1][1].strip()
    if rendered.startswith(prompt):
        start, at = len(prompt), rendered.find(text, len(prompt))
    else:  # the generation prompt differs, for example by a thinking tag: the evaluation's prompt is used
        start = at = rendered.rfind(text)
    if at < 0:
        raise InputError(f"{excerpt(example)}: the chat template changes the text of an answer ({text[:40]!r}); set "
                         "template: plain, or fix the answer")
    end = at + len(text)
    end_of_turn = rendered[end:].rstrip()  # line breaks after the end of turn are not learned
    return _Answer(prompt, rendered[start:end], end_of_turn or tokenizer.eos_token or "")


def _rendered(turns: TurnSequence, tokenizer: Any, example: Example, *, generation: bool = False) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # a template is foreign code in a sandbox and may raise anything
        plain = "set template: plain, " if len(example.turns) == 1 else ""
        raise InputError(f"{excerpt(example)}: the chat template rejects this conversation: "
                         f"{' '.join(str(error).split())[:200]}; fix the roles, {plain}or leave such rows out "
                         "(data.skip_bad, --skip-bad)") from error


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
        segments += [Segment(f"{head}\n\n### Instruction:\n{turns[turn][1]}\n\n{addition}### Response:\n", False),
                     Segment(turns[turn + 1][1], turn + 1 in learned, end=True)]
        head = ""
    return segments


def _plain(example: Example) -> list[Segment]:
    if len(example.turns) > 1:
        raise InputError(f"{excerpt(example)}: an example with several turns needs a chat template; set template: "
                         "chat, or alpaca")
    return [Segment(example.conversation[0][1], False), Segment(example.completion, True, end=True)]
