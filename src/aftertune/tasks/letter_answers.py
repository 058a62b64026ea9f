r"""Reads the letter that an answer to a multiple-choice question gives, where it can be read in one way only.

    read_letter("**B**", "ABCD")                               "B"
    read_letter("The answer is:\n(B) iron", "ABCD")            "B"
    read_letter(r"So it is \boxed{B}.", "ABCD")                "B"
    read_letter("A or B", "ABCD")                              None
    read_letter("The answer is A. No, the answer is B", "AB")  None

A letter counts at the start of a line ("B", "B. iron", "(B)"), after a word such as "answer", or in ``\boxed{}``. What
names several letters, lists the choices, denies a letter or refuses an answer is no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

#: What may follow the letter A in lower case where it is a choice: no noun or adjective, which an article may have.
_AFTER_A = "is|was|seems|appears|because|since|as|if|has|would|should|could|and|or|but"
#: The same for I, which may be the speaker.
_AFTER_I = "is|seems|appears|because|since|as|has"
#: No word of a sentence: not "A metal", "I think", "I'd", "X-ray".
_NO_WORD = (rf"""(?!['’-][A-Za-z])(?!(?<=A) (?!(?:{_AFTER_A})\b)[a-z])(?!(?<=I) (?!(?:{_AFTER_I})\b)[a-z])""")
#: Not "A is wrong", "(B) cannot be right".
_NOT_DENIED = (r"""(?![)\]*"'`]*\s+(?:isn['’]t|wasn['’]t|can['’]t|cannot|(?:is|was|seems|appears)\s+"""
               r"""(?:not|wrong|incorrect|false))\b)""")
#: Marks that may stand around a letter. Repetitions that meet the same characters do not give back what they took
#: (``*+``), so that long runs of marks are read once.
_MARKS = r"""[\s(\[{*_"'`$>]*+"""
#: The line where a model that continues the prompt begins another question.
_NEXT_QUESTION = re.compile(r"\n(?:[^\S\n]|[*#])*+(?:Question|Problem|Q)\b")


@dataclass(frozen=True, slots=True)
class _Patterns:
    """start: a letter at the start of a line, with the end marks after it. stated: after a word such as "answer".
    boxed: in LaTeX's box."""

    start: re.Pattern[str]
    stated: re.Pattern[str]
    boxed: re.Pattern[str]


@cache
def _patterns(letters: str) -> _Patterns:
    one = f"[{letters}]"
    # no second letter after it: not "A and B", "**A** or **C**", "A, B or C"
    alone = (rf"""(?![\s*"'`)\]]*+(?:and|or|&|/)[\s(*"'`]*+(?:(?i:option|choice|answer)\s+)?[(*]*+"""
             rf"""(?!I){one}(?![A-Za-z'’]))"""
             rf"""(?![\s*"'`)\]]*,[\s(*]*{one}[)*]*\s*(?:$|[,.;]|and\b|or\b))""")
    ends = rf"{_NO_WORD}{_NOT_DENIED}{alone}"
    return _Patterns(
        re.compile(rf"""{_MARKS}({one})(?=$|[\s)\].,:;*_"'’`$-]){ends}([)\]}}.,:;*_"'’`$\s]*)"""),
        re.compile(rf"""(?<!\band )(?<!\bor )(?i:answer|option|choice|letter)[*_]*+(?i:\s+is|\s+would be|"""
                   rf"""\s+should be|\s+must be)?[*_]*+:?{_MARKS}({one})(?![A-Za-z]){ends}"""),
        re.compile(rf"""\\boxed\s*\{{\s*+(?:\\(?:text|textbf|mathrm|mathbf)\s*\{{)?\s*+\(?({one})"""
                   rf"""(?![A-Za-z]){_NO_WORD}"""))


def read_letter(text: str, letters: str) -> str | None:
    """The letter that a text gives as the answer; None where it gives none or more than one.

    letters: those of the item's choices, such as "ABCD".
    """
    patterns = _patterns(letters)
    text = _NEXT_QUESTION.split(text, maxsplit=1)[0]
    stated = {*patterns.stated.findall(text), *patterns.boxed.findall(text)}
    starts = [(found[1], found.end() == len(line)) for line in text.splitlines()
              if (found := patterns.start.match(line))]
    alone, lines = {letter for letter, bare in starts if bare}, {letter for letter, _ in starts}
    if stated:
        letter, *others = stated
        denied = others or alone - stated or (len(lines) == 1 and lines != stated)
        return None if denied else letter
    if not starts or len(alone) > 1:
        return None
    letter, bare = starts[0]
    return letter if bare or len(lines) == 1 else None
