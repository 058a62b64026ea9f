"""Estimates what it costs to train a fine-tune again in a way that forgets less.

    for way in retraining(parent):
        way.option, way.seconds              "--replay base:200", 340.5

The time is that of the recorded training, scaled by the arithmetic of `aftertune.tuning.estimate`: replay adds the
steps for the replayed examples, and the time in which the base writes them; an anchor adds the forward passes of the
base. It is None where the record has no time. A fine-tune that another trainer made has no command that could run
again, so there are no ways for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aftertune.cure.parents import Parent
from aftertune.engine.devices import choose_device, choose_dtype, matmul_rate
from aftertune.methods import METHODS, writes_adapter
from aftertune.sources import shape_of
from aftertune.study import Recipe, checked
from aftertune.study.anchor import ADVISED_ANCHOR, advised_anchor
from aftertune.study.data import ADVISED_ANSWERS
from aftertune.study.presets import ModelShape
from aftertune.tuning.early_warning import lower_rate
from aftertune.tuning.estimate import Machine, Workload, estimate, writing_seconds
from aftertune.values import Tuning

#: Only ratios of estimates are used, so any rate does.
_ANY_RATE = 1e12
#: Settings that the records of other trainers have, and those of ``tune`` do not.
_OF_TRAINERS = frozenset({"trainer", "checkpoints"})
_SETTINGS = ("epochs", "max_steps", "batch_size", "accumulation", "gradient_checkpointing", "max_length", "lora",
             "anchor")


@dataclass(frozen=True, slots=True)
class Retraining:
    """One way to train again. option: what to add to the command of ``tune``; seconds: estimate, None where it is not
    known; note: what it takes beside time, "" for nothing."""

    option: str
    seconds: float | None
    note: str = ""


def retraining(parent: Parent) -> tuple[Retraining, ...]:
    """Ways to train the fine-tune again that it was not trained with yet, the cheapest in work first; none where
    ``tune`` did not train it."""
    tuning, ways, replayed = parent.tuning, [], bool(parent.tuning.settings.get("replay"))
    if not tuning.settings.keys().isdisjoint(_OF_TRAINERS):
        return ()
    rate = tuning.settings.get("learning_rate")
    if isinstance(rate, int | float) and rate > 0:
        ways.append(Retraining(f"--learning-rate {lower_rate(rate, 0):g}", _recorded(tuning),
                               f"instead of {rate:g}"))
    if not replayed:
        ways.append(Retraining(f"--replay base:{ADVISED_ANSWERS}", _scaled(parent, replayed=ADVISED_ANSWERS),
                               "the base writes the answers once; later fine-tunes use them again"))
    anchor = advised_anchor(learn=str(tuning.settings.get("learn", "")), replayed=replayed,
                            backend=str(tuning.settings.get("backend", "")))
    if anchor and not tuning.settings.get("anchor"):
        second = "" if writes_adapter(tuning.method) else "a second copy of the weights in memory"
        answers = ADVISED_ANSWERS if "--replay" in anchor else 0
        ways.append(Retraining(anchor, _scaled(parent, replayed=answers, anchor=ADVISED_ANCHOR), second))
    return tuple(ways)


def _recorded(tuning: Tuning) -> float | None:
    """Seconds of the training; None where they are not recorded."""
    seconds = tuning.cost.get("seconds")
    return float(seconds) if seconds else None


def _scaled(parent: Parent, *, replayed: int = 0, anchor: str = "") -> float | None:
    """Seconds of a training with so many answers of the base more, or with an anchor."""
    tuning, shape = parent.tuning, shape_of(parent.files.base)
    seconds, workload = _recorded(tuning), _workload(tuning.counts)
    known = tuning.method in METHODS and "batch_size" in tuning.settings  # not of a later version
    if seconds is None or shape is None or workload is None or not known:
        return None
    longest = int(tuning.settings.get("max_length", 1024))
    more = workload.with_answers(replayed, longest) if replayed else workload
    before = _operations(shape, tuning, workload)
    after = _operations(shape, tuning, more, **({"anchor": anchor} if anchor else {}))
    return seconds * after / before + (_writing(shape, replayed) if replayed else 0.0)


def _workload(counts: Mapping[str, Mapping[str, int]]) -> Workload | None:
    """The data of an epoch, from the counts of the record; None where they are missing."""
    sets = [counts[name] for name in ("training", "replay") if name in counts]
    if not sets or any(not {"rows", "tokens", "learned"} <= s.keys() for s in sets):
        return None
    rows, tokens = sum(s["rows"] for s in sets), sum(s["tokens"] for s in sets)
    if not rows or not tokens:
        return None
    return Workload(examples=rows, tokens=tokens, longest=tokens // rows, learned=sum(s["learned"] for s in sets),
                    replayed=counts.get("replay", {}).get("tokens", 0))


def _operations(shape: ModelShape, tuning: Tuning, workload: Workload, **changes: Any) -> float:
    """The estimated time of a training on a machine with a rate that is made up."""
    known = {name: tuning.settings[name] for name in _SETTINGS if tuning.settings.get(name) is not None}
    recipe = checked(Recipe, data={"file": "data"}, method=tuning.method, **{**known, **changes})
    return estimate(shape, recipe, workload, Machine("cpu", "float32", _ANY_RATE)).seconds or 1.0


def _writing(shape: ModelShape, count: int) -> float:
    """Seconds in which the base writes answers on this machine."""
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    return writing_seconds(shape, count, Machine(device, dtype, matmul_rate(device, dtype)))
