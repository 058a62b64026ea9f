"""Finds out whether a fine-tune had no effect on the answers at all, and why.

    find_no_effect(left, right, pairs, ledger, same_answers=True)      "zero adapter"; "" where it had an effect

A fine-tune whose every log-likelihood is that of the base did nothing: its adapter was not loaded, or its B matrices
are zero, as they are before the first step. The second is read from the adapter's file if it is still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aftertune.comparison.pairing import Pair
from aftertune.errors import AftertuneError
from aftertune.paths import expanded, is_dir
from aftertune.stats.log_probability import ROUNDING
from aftertune.values import Evaluation, NoEffect

if TYPE_CHECKING:
    from aftertune.ledger import Ledger


def find_no_effect(left: Evaluation, right: Evaluation, pairs: Sequence[Pair], ledger: Ledger, *, same_answers: bool
                   ) -> NoEffect:
    """What is known of a fine-tune that had no effect; "" where it had one, and for two runs of the same model.

    same_answers: every known answer of both models is the same.
    """
    effect = _by_answers(pairs, same_answers=same_answers)
    if not effect or left.model.fingerprint == right.model.fingerprint:
        return ""
    zero = _zero_adapter(right, ledger) if right.model.adapter and not left.model.adapter else None
    if zero:
        return "zero adapter"
    return "not applied" if zero is False and effect == "same numbers" else effect


def _by_answers(pairs: Sequence[Pair], *, same_answers: bool) -> NoEffect:
    """What the answers alone say."""
    numbers = texts = 0
    largest, same_texts = 0.0, True
    for pair in pairs:
        for before, after in zip(pair.left, pair.right, strict=True):
            if len(before.responses) != len(after.responses):
                return ""
            for a, b in zip(before.responses, after.responses, strict=True):
                if a.logprob is not None and b.logprob is not None:
                    numbers += 1
                    largest = max(largest, 0.0 if a.logprob == b.logprob else abs(a.logprob - b.logprob))
                if a.text is not None or b.text is not None:
                    texts += 1
                    same_texts = same_texts and a.text == b.text
        if not same_texts or largest > ROUNDING:
            return ""
    if numbers:
        return "same numbers" if largest == 0 else "rounding" if same_answers else ""
    return "same texts" if texts else ""


def _zero_adapter(evaluation: Evaluation, ledger: Ledger) -> bool | None:
    """Whether all B matrices of the evaluated adapter are zero; None where its files are not there any more."""
    from aftertune.sources.adapters import has_zero_matrices
    from aftertune.sources.fingerprint import fingerprint_adapter

    for place in (evaluation.model.adapter_source, *(t.output for t in ledger.tunings() if t.id == evaluation.tuning)):
        try:
            folder = expanded(place or "")
            if place and is_dir(folder) and fingerprint_adapter(folder) == evaluation.model.adapter:
                return has_zero_matrices(folder)
        except (AftertuneError, OSError):
            continue
    return None
