"""Owns turning examples into token ids with the loss on the completion alone.

    encoded = encode_all(corpus.training, tokenizer, Form(chat_template=True, max_length=1024))
    encoded.rows[0].ids, encoded.rows[0].labels      [1, 9690, …, 2], [-100, …, 104, …, 2]

With a chat template the prompt is exactly what an evaluation shows (the template with its generation
prompt), and the completion ends with the template's end of turn. Without one it is prompt, completion and
the end-of-sequence token, as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aftertune.errors import InputError
from aftertune.tuning.data import Example

IGNORED = -100  # torch's cross-entropy skips this label


@dataclass(frozen=True, slots=True)
class Form:
    """How examples become text. max_length: in tokens, prompt and completion together."""

    chat_template: bool
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
    """Encode examples. One longer than max_length is cut at its end, and counted.

    Raises InputError where a prompt fills max_length, so that nothing of the completion is left.
    """
    rows, cut = [], 0
    for number, example in enumerate(examples, 1):
        prompt, completion = _parts(example, tokenizer, form)
        if len(prompt) >= form.max_length:
            raise InputError(f"example {number} ({_opening(example)}): its prompt has {len(prompt)} tokens "
                             f"and fills max_length {form.max_length}, so no completion is left to learn; "
                             "raise max_length or shorten it")
        cut += len(prompt) + len(completion) > form.max_length
        ids = (prompt + completion)[:form.max_length]
        rows.append(Row(ids, [IGNORED] * len(prompt) + ids[len(prompt):]))
    notes = (f"{cut} of {len(rows)} examples are longer than {form.max_length} tokens and were cut",)
    return Encoded(rows, notes if cut else ())


def _parts(example: Example, tokenizer: Any, form: Form) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the completion with its end."""
    if form.chat_template:
        prompt, completion = chat_texts(example, tokenizer)
        return (list(tokenizer(prompt, add_special_tokens=False)["input_ids"]),
                list(tokenizer(completion, add_special_tokens=False)["input_ids"]))
    if len(example.turns) > 1:
        raise InputError(f"{_opening(example)}: several turns need a chat template; set chat_template: true")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompt_ids = list(tokenizer(example.turns[0][1])["input_ids"])
    if end and prompt_ids[-1:] == end and len(prompt_ids) > 1:
        prompt_ids.pop()  # some tokenizers close every text; the end belongs after the completion
    return prompt_ids, [*tokenizer(example.completion, add_special_tokens=False)["input_ids"], *end]


def chat_texts(example: Example, tokenizer: Any) -> tuple[str, str]:
    """The prompt through the chat template with its generation prompt, and the completion up to end of turn.

    Raises InputError for a tokenizer without template, or a template that rewrites the conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the model's tokenizer has no chat template; set chat_template: false to train on "
                         "plain prompt and completion")
    turns = [{"role": role, "content": text} for role, text in example.turns]
    answer = {"role": "assistant", "content": example.completion}
    try:
        prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template([*turns, answer], tokenize=False))
    except Exception as error:  # a template is foreign code in a sandbox: it may raise anything
        raise InputError(f"{_opening(example)}: the chat template refuses this conversation: "
                         f"{' '.join(str(error).split())[:200]}; fix the roles or set chat_template: "
                         "false") from error
    if not whole.startswith(prompt):
        prompt, whole = _loosely(prompt, whole, example)
    return prompt, _ended(whole[len(prompt):], example.completion, tokenizer)


def _loosely(prompt: str, whole: str, example: Example) -> tuple[str, str]:
    """Where a template's generation prompt differs from how it writes the answer's turn (a thinking tag,
    say): the evaluation's prompt stays, and what follows the completion in the whole text is its end."""
    place = whole.rfind(example.completion.strip())
    if place < 0:
        raise InputError(f"{_opening(example)}: the chat template does not show the completion as it stands; "
                         "set chat_template: false")
    return prompt, prompt + whole[place:]


def _ended(text: str, completion: str, tokenizer: Any) -> str:
    """The completion with its end of turn; line breaks that the template writes after it are not learned."""
    after = text.find(completion.strip()) + len(completion.strip())
    tail = text[after:].rstrip()
    return text[:after] + (tail or tokenizer.eos_token or "")


def _opening(example: Example) -> str:
    text = " ".join(example.turns[-1][1].split())
    return repr(text[:40] + "…" if len(text) > 40 else text)
