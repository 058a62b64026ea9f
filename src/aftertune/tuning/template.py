"""Owns the text of an example and which stretches of it are learned.

    rows_of(example, tokenizer, "chat", "answers")
        [[Part("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n", False), Part("Hello.<|im_end|>", True)]]

With a chat template each answer's prompt is exactly what an evaluation shows at that turn (the conversation so far with
the generation prompt), and the answer is learned up to the template's own end of turn. It is found by writing the
conversation up to each answer, so a template needs no ``{% generation %}`` block. Where a template writes earlier turns
otherwise once more turns follow (Qwen3 drops their thinking, some Mistral templates move the system prompt), no single
text holds every answer as it will be asked for: then each answer is a row of its own.

Alpaca's is the prompt of Taori et al. (2023); a system prompt stands in place of its first paragraph, and earlier turns
come before it in the same form, as LLaMA-Factory and FastChat write them. With that and with ``plain`` the
end-of-sequence token follows each answer. An example without turns is plain text, learned whole under every template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.errors import InputError
from aftertune.tuning.data import Example

#: The classic prompt of Stanford Alpaca (Taori et al. 2023), without and with an input.
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.")
TurnSequence = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text. end: the end-of-sequence token follows it, and is learned as it is."""

    text: str
    learned: bool
    end: bool = False


def rows_of(example: Example, tokenizer: Any, template: str, learn: str) -> list[list[Part]]:
    """The rows of an example, each as the parts of its text: one row, but for templates that rewrite earlier turns.

    template: chat, alpaca or plain; learn: answers (every answer), last (the last alone) or all (the prompts too).
    Raises InputError for what the template cannot write.
    """
    if not example.turns:
        rows = [[Part(example.completion, True, end=True)]]
    elif template == "chat":
        rows = _chat(example, tokenizer, example.answers if learn == "answers" else example.answers[-1:])
    elif template == "alpaca":
        rows = [_alpaca(example, learn)]
    else:
        rows = [_plain(example)]
    if learn == "all":
        rows = [[Part(part.text, True, part.end) for part in row] for row in rows]
    return rows


def opening(example: Example) -> str:
    """The beginning of an example's last turn, to name it by."""
    text = " ".join((example.turns[-1][1] if example.turns else example.completion).split())
    return repr(text[:40] + "…" if len(text) > 40 else text)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer as the template writes it. prompt: all before it; end: the marks after its text."""

    prompt: str
    text: str
    end: str


def _chat(example: Example, tokenizer: Any, places: tuple[int, ...]) -> list[list[Part]]:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; set template: alpaca, or plain for prompt "
                         "and completion as they stand (--template)")
    turns = (*example.conversation, ("assistant", example.completion))
    answers = [_answer(turns[:place + 1], tokenizer, example) for place in places]
    joined = _joined(answers, _written(turns, tokenizer, example)) if len(answers) > 1 else None
    return [joined] if joined else [[Part(a.prompt, False), Part(a.text + a.end, True, end=not a.end)] for a in answers]


def _joined(answers: list[_Answer], whole: str) -> list[Part] | None:
    """One row for several answers, or None where the whole text does not hold each as it was written on its own."""
    parts: list[Part] = []
    at = 0
    for answer in answers:
        learned = answer.text + answer.end
        if answer is not answers[-1] and not whole.startswith(answer.prompt + learned):
            learned = answer.text + answer.end[:_first_mark(answer.end)]  # some close the whole once more (Phi-3)
            if learned == answer.text or not whole.startswith(answer.prompt + learned):
                return None
        if not whole.startswith(answer.prompt):
            return None
        parts += [Part(whole[at:len(answer.prompt)], False), Part(learned, True)]
        at = len(answer.prompt) + len(learned)
    return parts


def _first_mark(end: str) -> int:
    """Where the first of the marks after an answer ends: at white space."""
    found = re.match(r"\s*\S+", end)
    return found.end() if found else 0


def _answer(turns: TurnSequence, tokenizer: Any, example: Example) -> _Answer:
    """The last turn, with the conversation so far and the generation prompt before it."""
    prompt = _written(turns[:-1], tokenizer, example, generation=True)
    whole, text = _written(turns, tokenizer, example), turns[-1][1].strip()
    if whole.startswith(prompt):
        begins, place = len(prompt), whole.find(text, len(prompt))
    else:  # the template opens the answer otherwise (a thinking tag, say): the evaluation's prompt stays
        begins = place = whole.rfind(text)
    if place < 0:
        raise InputError(f"{opening(example)}: the chat template does not show an answer as it stands ({text[:40]!r}); "
                         "set template: plain, or mend the answer")
    ends = place + len(text)
    marks = whole[ends:].rstrip()  # line breaks that the template writes after it are not learned
    return _Answer(prompt, whole[begins:ends], marks or tokenizer.eos_token or "")


def _written(turns: TurnSequence, tokenizer: Any, example: Example, *, generation: bool = False) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # a template is foreign code in a sandbox: it may raise anything
        raise InputError(f"{opening(example)}: the chat template refuses this conversation: "
                         f"{' '.join(str(error).split())[:200]}; fix the roles or set template: plain") from error


def _alpaca(example: Example, learn: str) -> list[Part]:
    turns = (*example.turns, ("assistant", example.completion))
    first = int(turns[0][0] == "system")
    roles = [role for role, _ in turns]
    if roles[first:] != ["user", "assistant"] * ((len(turns) - first) // 2):
        raise InputError(f"{opening(example)}: its turns are {', '.join(roles)}; the alpaca template takes a user and "
                         "an assistant by turns, after one system prompt at most; set template: chat")
    head = turns[0][1] if first else (ALPACA_INPUT if example.input else ALPACA)
    places = example.answers if learn == "answers" else example.answers[-1:]
    parts = []
    for place in range(first, len(turns), 2):
        given = f"### Input:\n{example.input}\n\n" if example.input and place == len(turns) - 2 else ""
        parts += [Part(f"{head}\n\n### Instruction:\n{turns[place][1]}\n\n{given}### Response:\n", False),
                  Part(turns[place + 1][1], place + 1 in places, end=True)]
        head = ""
    return parts


def _plain(example: Example) -> list[Part]:
    if len(example.turns) > 1:
        raise InputError(f"{opening(example)}: several turns need a chat template; set template: chat, or alpaca")
    return [Part(example.conversation[0][1], False), Part(example.completion, True, end=True)]
