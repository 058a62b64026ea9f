"""Owns when two examples count as the same, and the draws that hang on an example's own text.

    prompt_hash(example)               sha256 of its normalised prompt
    split_point(example)               0.0731…: on which side of a split it falls, whatever the seed and the file
    ranked(examples, seed=0)           the order in which subsets take them
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

from aftertune.tuning.data import Example, Turns


def normal(text: str) -> str:
    """The text after NFKC, case folding and single spaces: equal for texts that read alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def key(example: Example) -> tuple[str, str]:
    """Equal for examples whose prompts and completions read alike."""
    return normal(_told(example.conversation)), normal(example.completion)


def prompt_hash(example: Example) -> str:
    """sha256 of the normalised prompt; of a conversation what leads to its first answer, so that two that begin alike
    lie on one side of the split."""
    roles = [role for role, _ in example.conversation]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    text = _told(example.conversation[:first]) or example.completion
    return hashlib.sha256(normal(text).encode()).hexdigest()


def split_point(example: Example) -> float:
    """Where the prompt falls in [0, 1): held out where below the held-out share."""
    return int(prompt_hash(example)[:13], 16) / 16**13


def ranked(examples: Sequence[Example], seed: int) -> list[int]:
    """Places of the examples in the order of a seeded hash of prompt and completion: the first N are a seeded subset,
    and lie within the first N + 1."""
    def rank(place: int) -> str:
        text = f"{seed}\n{prompt_hash(examples[place])}\n{examples[place].completion}"
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(range(len(examples)), key=rank)


def distinct(examples: Iterable[Example]) -> tuple[list[Example], int]:
    """The first of each set of examples that read alike, and how many of the others were equal to it."""
    first: dict[tuple[str, str], Example] = {}
    exact = 0
    for example in examples:
        kept = first.setdefault(key(example), example)
        exact += kept is not example and kept == example
    return list(first.values()), exact


def _told(turns: Turns) -> str:
    return "\n".join(f"{role}: {text}" for role, text in turns)
