"""Owns saying what a tuning will take before it runs, and holding that against what it took.

    foreseen(TuneSpec(model="tinyllama", data="alpaca"))   Estimate(memory=…, seconds=…); no weights are read or fetched
    Meter(device).cost(estimate, steps=40)                 {"memory": …, "seconds": …, "estimated_memory": …}
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError, SourceError
from aftertune.study import presets
from aftertune.tuning.estimate import Estimate, Load, Machine, estimate

if TYPE_CHECKING:
    from aftertune.study import TuneSpec
    from aftertune.tuning.rows import Rows

#: Examples where neither a number is given nor the model's tokenizer is here to count them.
UNKNOWN = 1000


def foreseen(spec: TuneSpec) -> Estimate:
    """What ``spec`` will take on this machine: from the model's config and the encoded data where both are at hand.

    Of a model that is not here, a preset or the config on the Hub tells the shape, and examples are of a usual length.
    Raises InputError where the config tells no shape; SourceError and InputError as the run itself would.
    """
    from aftertune.engine.devices import choose_device, choose_dtype, product_rate, set_threads

    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    set_threads(spec.threads)
    shape, load = _read(spec)
    if shape is None:
        raise InputError(f"{spec.model}: its config names no sizes that an estimate could be made from (hidden_size, "
                         "num_hidden_layers, num_attention_heads, vocab_size); tune without --dry-run")
    return estimate(shape, spec, load, Machine(device, dtype, product_rate(device, dtype)))


def _read(spec: TuneSpec) -> tuple[presets.Shape | None, Load]:
    """The model's shape and what there is to train on."""
    from aftertune.sources import load_tokenizer, resolve_model, shape_of, shape_on_hub
    from aftertune.sources.hub import offline_only
    from aftertune.tuning.corpus import Corpus
    from aftertune.tuning.encode import Form
    from aftertune.tuning.rows import Rows

    try:
        with offline_only():
            source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except SourceError:
        shape = shape_on_hub(spec.model, spec.revision)
        return shape, Load.guessed(spec.data.examples or UNKNOWN, spec.max_length)
    corpus = Corpus.load(spec.data, spec.seed, spec.replay)
    rows = Rows.of(corpus, load_tokenizer(source), Form(spec.template, spec.max_length, spec.learn), spec.seed)
    return shape_of(source), load_of(rows)


def load_of(rows: Rows) -> Load:
    """What encoded rows come to."""
    sides = [rows.counts[name] for name in ("training", "replay") if name in rows.counts]
    return Load(len(rows.training), sum(s["tokens"] for s in sides), rows.longest, sum(s["learned"] for s in sides),
                rows.counts["held out"]["tokens"])


class Meter:
    """The clock and the peak memory of one run: memory from its making on, loading too; seconds from `begin` on. On a
    CPU the memory is that of the whole process, with what it held before."""

    def __init__(self, device: str) -> None:
        from aftertune.engine.memory import forget_peak

        self.device = device
        self.begun, self.ran = time.monotonic(), 0
        forget_peak(device)

    def begin(self) -> None:
        """Training begins."""
        self.begun = time.monotonic()

    def step(self) -> None:
        """One more step is done."""
        self.ran += 1

    def cost(self, expected: Estimate | None, steps: int) -> dict[str, float]:
        """Bytes at the peak and seconds of training, with what was expected. A run that went on from a checkpoint tells
        the seconds of all ``steps`` at the pace of its own."""
        from aftertune.engine.memory import peak

        found = {"memory": float(peak(self.device))}
        if self.ran:
            found["seconds"] = (time.monotonic() - self.begun) * steps / self.ran
        if expected is not None:
            found["estimated_memory"] = float(expected.memory)
            if expected.seconds is not None:
                found["estimated_seconds"] = expected.seconds
        return found


def expected(source: Any, spec: TuneSpec, rows: Rows, where: tuple[str, str]) -> Estimate | None:
    """The estimate of a run about to begin; None for a model whose config tells no shape. where: device and dtype."""
    from aftertune.engine.devices import product_rate
    from aftertune.sources import shape_of

    shape = shape_of(source)
    return None if shape is None else estimate(shape, spec, load_of(rows), Machine(*where, product_rate(*where)))

