"""Owns turning examples into token ids with the loss on the completion alone.

    encoded = encode_all(corpus.training, tokenizer, Form("chat", max_length=1024))
    encoded.rows[0].ids, encoded.rows[0].labels      [1, 9690, …, 2], [-100, …, 104, …, 2]

With a chat template the prompt is exactly what an evaluation shows (the template with its generation
prompt), and the completion ends with the template's end of turn. Alpaca's is the prompt of Taori et al. (2023). With
either of that and ``plain`` the end-of-sequence token follows the completion. An example without turns is plain text:
all of it is learned, under every template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from aftertune.errors import InputError
from aftertune.tuning.data import Example

#: The classic prompt of Stanford Alpaca (Taori et al. 2023), without and with an input.
ALPACA = ("Below is an instruction that describes a task. Write a response that appropriately completes the "
          "request.\n\n")
ALPACA_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n")
IGNORED = -100  # torch's cross-entropy skips this label


@dataclass(frozen=True, slots=True)
class Form:
    """How examples become text. template: chat, alpaca or plain; max_length: in tokens, prompt and completion."""

    template: str
    max_length: int


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded example; labels are the ids, IGNORED where no loss counts."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded examples and notes on what was cut."""

    rows: list[Row]
    notes: tuple[str, ...]


def encode_all(examples: Sequence[Example], tokenizer: Any, form: Form) -> Encoded:
    """Encode examples. One longer than max_length is cut at its end; one whose prompt fills it, so that nothing of the
    completion is left to learn, is left out; both are counted. No examples give no rows.

    Raises InputError where there are examples and none is left.
    """
    rows, cut, masked = [], 0, []
    for number, example in enumerate(examples, 1):
        prompt, completion = _parts(example, tokenizer, form)
        if len(prompt) >= form.max_length:
            masked.append(f"the first is example {number} ({_opening(example)}) of {len(prompt)} tokens")
            continue
        cut += len(prompt) + len(completion) > form.max_length
        ids = (prompt + completion)[:form.max_length]
        rows.append(Row(ids, [IGNORED] * len(prompt) + ids[len(prompt):]))
    if examples and not rows:
        raise InputError(f"the prompts of all {len(examples)} examples fill max_length {form.max_length}, so no "
                         f"completion is left to learn; {masked[0]}; raise max_length or shorten them")
    total = len(examples)
    notes = []
    if masked:
        notes.append(f"the prompts of {len(masked)} of {total} examples ({len(masked) / total:.1%}) fill max_length "
                     f"{form.max_length} and were left out; {masked[0]}")
    if cut:
        notes.append(f"{cut} of {total} examples are longer than {form.max_length} tokens and were cut")
    return Encoded(rows, tuple(notes))


def spans(row: Row, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a row in parts, each with whether it is learned; special tokens are shown as they are written."""
    found: list[tuple[str, bool]] = []
    for learned, part in groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        found.append((tokenizer.decode([i for i, _ in part]), learned))
    return found


def _parts(example: Example, tokenizer: Any, form: Form) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the completion with its end."""
    if form.template == "chat" and example.turns:
        prompt, completion = chat_texts(example, tokenizer)
        return (list(tokenizer(prompt, add_special_tokens=False)["input_ids"]),
                list(tokenizer(completion, add_special_tokens=False)["input_ids"]))
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompt_ids = list(tokenizer(_written(example, form.template))["input_ids"])
    if end and prompt_ids[-1:] == end and len(prompt_ids) > 1:
        prompt_ids.pop()  # some tokenizers close every text; the end belongs after the completion
    return prompt_ids, [*tokenizer(example.completion, add_special_tokens=False)["input_ids"], *end]


def chat_texts(example: Example, tokenizer: Any) -> tuple[str, str]:
    """The prompt through the chat template with its generation prompt, and the completion up to end of turn.

    Raises InputError for a tokenizer without template, or a template that rewrites the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; set template: alpaca, or plain for prompt "
                         "and completion as they stand (--template)")
    turns = [{"role": role, "content": text} for role, text in example.conversation]
    answer = {"role": "assistant", "content": example.completion}
    try:
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template([*turns, answer], tokenize=False))
    except Exception as error:  # a template is foreign code in a sandbox: it may raise anything
        raise InputError(f"{_opening(example)}: the chat template refuses this conversation: "
                         f"{' '.join(str(error).split())[:200]}; fix the roles or set template: "
                         "plain") from error
    if not whole.startswith(prompt):
        prompt, whole = _loosely(prompt, whole, example)
    return prompt, _ended(whole[len(prompt):], example.completion, tokenizer)


def _loosely(prompt: str, whole: str, example: Example) -> tuple[str, str]:
    """Where a template's generation prompt differs from how it writes the answer's turn (a thinking tag,
    say): the evaluation's prompt stays, and what follows the completion in the whole text is its end."""
    place = whole.rfind(example.completion.strip())
    if place < 0:
        raise InputError(f"{_opening(example)}: the chat template does not show the completion as it stands; "
                         "set template: plain")
    return prompt, prompt + whole[place:]


def _ended(text: str, completion: str, tokenizer: Any) -> str:
    """The completion with its end of turn; line breaks that the template writes after it are not learned."""
    after = text.find(completion.strip()) + len(completion.strip())
    tail = text[after:].rstrip()
    return text[:after] + (tail or tokenizer.eos_token or "")


def _written(example: Example, template: str) -> str:
    """The prompt without a chat template. Raises InputError for a conversation, which has no such form."""
    if not example.turns:
        return ""
    if len(example.turns) > 1:
        raise InputError(f"{_opening(example)}: several turns need a chat template; set template: chat")
    text = example.turns[0][1]
    if template != "alpaca":
        return example.conversation[0][1]
    if example.input:
        return f"{ALPACA_INPUT}### Instruction:\n{text}\n\n### Input:\n{example.input}\n\n### Response:\n"
    return f"{ALPACA}### Instruction:\n{text}\n\n### Response:\n"


def _opening(example: Example) -> str:
    text = " ".join((example.turns[-1][1] if example.turns else example.completion).split())
    return repr(text[:40] + "…" if len(text) > 40 else text)
