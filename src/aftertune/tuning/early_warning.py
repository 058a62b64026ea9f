"""Warns in the first steps of a training that its recipe will move the model far from its base, or costs it skills.

    warning = EarlyWarning(spec, learning_rate=1e-3, tokenizer=tokenizer)
    warning.start(model, total=60)         step 0: what the base predicts on general prompts
    warning.check(model, 5, points)        EarlyFinding(kl=1.87, text="early warning at step 5 of 60: …")

It looks once, after 5 % of the steps but not before step 5, in trainings of 20 steps or more. It measures two things,
which are not the same:

- Drift: the mean KL(base || model) in nats on each token of the 64 general prompts on which `aftertune drift` measures.
  It says that the model's predictions moved, not that it became worse. Above `LIMIT` there is a warning.
  `benchmarks/early_drift.py` shows how the limit was chosen, and which recipes it would have warned of.
- Loss of skill, with a forgetting watch: the watched tasks, base and model paired item by item. A loss that is proven
  (of more than none; 5 % over all watched tasks together, so at most 5 % of the trainings that lose nothing are warned
  of) is a warning. It is no look of the watch, whose own looks and their correction stay as they are.

The warning is printed and stored with the tuning. The training is the same with and without it, bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from aftertune.engine.divergence import Continuation, Distribution, distributions, divergences, token_rows
from aftertune.engine.scorer import text_config
from aftertune.engine.tokenize import context_length
from aftertune.methods import METHODS
from aftertune.study.anchor import AnchorSetting, advised_anchor
from aftertune.study.data import ADVISED_ANSWERS
from aftertune.tuning.general_prompts import drift_prompts
from aftertune.values import WatchPoint

if TYPE_CHECKING:
    from aftertune.study import TuneSpec

#: Drift in nats per token above which there is a warning.
LIMIT = 0.5
#: When it looks: after this share of the steps, but not before this step, and not in a shorter training.
SHARE, FIRST, SHORTEST = 0.05, 5, 20
#: Prompts that are read as one text, and its most tokens.
_TOGETHER, _LONGEST = 8, 512
#: The smallest factor by which a lower learning rate is suggested.
_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class EarlyFinding:
    """What the look found. kl: the drift in nats per token; text: the warning, "" for none."""

    kl: float
    text: str


class EarlyWarning:
    """One look at a training in its first steps. learning_rate: the peak. note: why there was no look, "" otherwise."""

    def __init__(self, spec: TuneSpec, *, learning_rate: float, tokenizer: Any) -> None:
        self.spec, self.learning_rate, self.tokenizer = spec, learning_rate, tokenizer
        self.note, self.total = "", 0
        self._texts: list[Continuation] = []
        self._base: list[Distribution] = []

    def step(self, total: int) -> int | None:
        """The step of the look in a training of ``total`` steps; None for none."""
        return None if total < SHORTEST else max(FIRST, math.ceil(SHARE * total))

    def start(self, model: Any, total: int) -> None:
        """Store what the base predicts. The model is the base, in evaluation mode; total: steps of the training."""
        self.total = total
        try:
            self._texts = self._general_texts(model)
            vocabulary = min(len(self.tokenizer), token_rows(model))
            self._base = list(distributions(model, self._texts, vocabulary))
        except Exception as error:  # a model that cannot be looked at is trained all the same
            self.note, self._base = f"no early warning: {' '.join(str(error).split())[:160]}", []

    def check(self, model: Any, step: int, points: Sequence[WatchPoint] = ()) -> EarlyFinding | None:
        """The drift of the model at ``step``, in evaluation mode, and a warning if there is cause for one.

        points: of the watched tasks at this step, corrected for their number. None if it cannot be measured.
        """
        if not self._base:
            return None
        try:
            kl = fmean(result.kl for result in divergences(model, self._texts, self._base))
        except Exception as error:
            self.note = f"no early warning: {' '.join(str(error).split())[:160]}"
            return None
        finally:
            self._base = []
        if not math.isfinite(kl):
            return None
        lost = [point for point in points if point.verdict in ("lower", "worse") and not point.is_target]
        return EarlyFinding(kl, self._text(step, kl, points, lost) if kl > LIMIT or lost else "")

    def _general_texts(self, model: Any) -> list[Continuation]:
        """The general prompts, several in a text; the first token only starts it."""
        prompts = drift_prompts()
        longest = min(_LONGEST, context_length(text_config(model), self.tokenizer))
        rows = [list(self.tokenizer("\n".join(prompts[n:n + _TOGETHER])).input_ids)[:longest]
                for n in range(0, len(prompts), _TOGETHER)]
        return [Continuation(row[:1], row[1:]) for row in rows if len(row) > 1]

    def _text(self, step: int, kl: float, points: Sequence[WatchPoint], lost: Sequence[WatchPoint]) -> str:
        moved = f"drift: {kl:.3f} nats per token on general prompts, {'more' if kl > LIMIT else 'less'} than {LIMIT:g}"
        if kl > LIMIT:
            moved += " (the model's predictions moved away from the base's, which alone is no loss of skill)"
        watched = [point for point in points if not point.is_target]
        if lost:
            skill = f"loss of skill: proven on {_points_text(lost)}"
        elif watched:
            skill = f"loss of skill: none is proven yet ({_points_text(watched)})"
        else:
            skill = "loss of skill: not measured (--watch hellaswag=200 measures it)"
        return (f"early warning at step {step} of {self.total}: this recipe will probably forget. {moved}; {skill}. To "
                f"forget less: {', '.join(self._remedies(kl))}")

    def _remedies(self, kl: float) -> list[str]:
        """What to change, the cheapest first."""
        spec, method = self.spec, METHODS[self.spec.method]
        rate = lower_rate(self.learning_rate, kl)
        found = [f"a lower learning rate (--learning-rate {rate:g} instead of {self.learning_rate:g}: drift grows with "
                 "about its square)"]
        if not method.adapter:
            found.append("an adapter (--method lora)")
        elif "r" in method.settings and method.size == "rank" and spec.lora.r > 4:
            found.append(_lower_rank(spec))
        if spec.replay is None:
            found.append(f"replay (--replay base:{ADVISED_ANSWERS})")
        anchor = advised_anchor(learn=spec.learn, replayed=spec.replay is not None, backend=spec.backend)
        if anchor and AnchorSetting.active(spec.anchor) is None:
            found.append(f"an anchor ({anchor})")
        return found


def _lower_rank(spec: TuneSpec) -> str:
    """Half the rank. LoRA's change is multiplied by alpha / rank, so a lower rank alone would make its steps larger."""
    rank, lora = spec.lora.r // 2, spec.lora
    if "alpha" not in METHODS[spec.method].settings:
        return f"a lower rank (--rank {rank})"
    return f"a lower rank, and --alpha lowered in step (--rank {rank} --alpha {lora.alpha * rank / lora.r:g})"


def lower_rate(rate: float, kl: float) -> float:
    """The learning rate at which the drift would be within `LIMIT`, if it grows with the square of the rate; at most
    half of the present one, rounded down to one digit."""
    wanted = rate / max(_FACTOR, math.sqrt(kl / LIMIT))
    digit = 10.0 ** math.floor(math.log10(wanted))
    return round(math.floor(wanted / digit + 1e-9) * digit, 12)


def _points_text(points: Sequence[WatchPoint]) -> str:
    return ", ".join(f"{p.task} {100 * p.delta:+.1f} points on {p.n:,} items (95 % interval {100 * p.low:+.1f} to "
                     f"{100 * p.high:+.1f})" for p in points)
