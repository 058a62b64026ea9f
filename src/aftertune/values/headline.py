"""Defines the signs of collapse of a comparison, and the headline that answers it in a few sentences.

    CollapseSign(kind="guessing", task="arc_easy", n=450, base=0.436, tuned=0.204, chance=0.25, below=True)
    Headline(state="broken", sentences=("careless is broken: it scores below a guess on ARC Easy (…).", …), …)

`aftertune.comparison.collapse` finds the signs, and `aftertune.report.headline` writes the headline from the verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aftertune.values.evaluation import Verdict

#: guessing: scores like a guess. endless: texts reach the token limit. one_choice: always the same position of a
#: multiple-choice task. empty: no visible text. one_answer: always the same generated answer.
CollapseKind = Literal["guessing", "endless", "one_choice", "empty", "one_answer"]

#: no effect: every answer is the base's. broken: a sign of collapse. lost: a loss is proven. fit: a loss beyond the
#: margin is ruled out on all benchmarks that were asked and can show one, and a gain is proven if there was a test of
#: it. fit on average: the same, where single benchmarks are undecided and an average that has all of these rules such a
#: loss out. not learned: as one of these two, without a proven gain. open: neither a loss nor its absence is proven.
#: nothing: no benchmark that was asked can show a loss. difference: two models without proven lineage. none: a forced
#: comparison, which supports no conclusion.
HeadlineState = Literal["no effect", "broken", "lost", "fit", "fit on average", "not learned", "open", "nothing",
                        "difference", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseSign:
    """One sign of collapse on one task or group.

    n: items. base, tuned: the scores of "guessing", else the shares of the items on which each model's answers have the
    sign. base_too: the base has the sign as well, so that it is no change and no sign of collapse. p: of the change,
    corrected; None for "guessing", which rests on the row's verdict, and with base_too. chance: expected score of a
    guess, None where there is none. below: proven below it. position, base_position: of "one_choice", from 0. limit: of
    "endless", the token limit. answer: of "one_answer", the tuned model's.
    """

    kind: CollapseKind
    task: str
    n: int
    base: float
    tuned: float
    base_too: bool = False
    p: float | None = None
    chance: float | None = None
    below: bool = False
    position: int | None = None
    base_position: int | None = None
    limit: int | None = None
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """What a comparison says, in a few sentences.

    learned: target tasks with a proven gain. lost: tasks with a proven loss beyond the margin. worse: with a proven
    loss. safe: benchmarks on which no loss beyond the margin is left open. unknown: (task, why) of what is not known.
    signs: of collapse. average: the verdict on the average over the benchmarks, None without one.
    """

    state: HeadlineState
    sentences: tuple[str, ...]
    learned: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    signs: tuple[CollapseSign, ...] = ()
    average: Verdict | None = None

    @property
    def line(self) -> str:
        """The first sentence, which answers the question."""
        return self.sentences[0] if self.sentences else ""
