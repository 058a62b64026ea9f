"""Owns saying what a tuning will take before it runs, and holding that against what it took.

    foreseen(TuneSpec(model="tinyllama", data="alpaca"))   Estimate(memory=…, seconds=…); no weights are read or fetched
    Meter(device).cost(estimate, steps=40)                 {"memory": …, "seconds": …, "estimated_memory": …}

What a tuning will take, before it runs: owns the arithmetic of memory, disk and time.

    load = Load(examples=320, tokens=19_200, longest=120, learned=9_000, held_out=2_000)
    estimate(PRESETS["smollm2-135m"].shape, spec, load, Machine("cpu", "bfloat16", rate=4e11))
        Estimate(memory=1.6e9, disk=4e7, steps=40, tokens=19_200, seconds=45.0, basis="…")

Products are counted as two operations a weight and token: once forward, once for the gradient of what goes in, once for
that of the weight where it is trained (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Memory is that of weights,
their gradients and Adam's two moments, and of what a step keeps for its way back. Both are rough by nature, and are
held against what was measured in the record of each tuning. No torch is needed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError, SourceError
from aftertune.methods import METHODS, Count, adapted_layers
from aftertune.study import presets

if TYPE_CHECKING:
    from aftertune.study import Recipe, TuneSpec
    from aftertune.study.presets import ModelShape
    from aftertune.tuning.tokenize import EncodedCorpus

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Bytes of a weight in NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).
NF4 = 0.5 + 0.127 / 8
#: Of the machine's rate of products, what training reaches (benchmarks/tune_speed.py: half of the floor on a CPU).
REACHED = 0.5
#: Tokens of an example where the data is not at hand, and the share of them that is learned.
TOKENS, LEARNED = 120, 0.5
#: The interpreter with its libraries, in bytes.
PROGRAM = 700 * 2**20
#: Rows of logits that are held at once, with their gradient, in float32.
LOGITS = 512


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to train on, for one epoch. tokens: of all examples; longest: of one; learned: tokens that count in
    the loss; held_out: tokens whose loss is measured before and after."""

    examples: int
    tokens: int
    longest: int
    learned: int
    held_out: int = 0

    @classmethod
    def guessed(cls, examples: int, max_length: int) -> Load:
        """Where the data is not at hand."""
        length = min(TOKENS, max_length)
        return cls(examples, examples * length, min(4 * length, max_length), int(examples * length * LEARNED),
                   min(examples // 9, 1000) * length)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it would run. rate: operations a second of large products in this dtype; None where it was not probed."""

    device: str
    dtype: str
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """trainable: parameters. memory and disk: bytes, at the peak. tokens: trained on in all steps. seconds: None
    without a rate. basis: what it rests on."""

    trainable: int
    memory: int
    disk: int
    steps: int
    tokens: int
    seconds: float | None
    basis: str


def estimate(shape: ModelShape, recipe: Recipe, load: Load, machine: Machine) -> CostEstimate:
    """What ``recipe`` takes on a model of this shape."""
    batch = recipe.batch_size * recipe.accumulation
    steps = recipe.max_steps or max(math.ceil(load.examples / batch * recipe.epochs), 1)
    passes = steps * batch / max(load.examples, 1)
    tokens = int(load.tokens * passes)
    seconds = None
    if machine.rate:
        seconds = _operations(shape, recipe, load, passes) / (machine.rate * REACHED)
    rate = f"{machine.rate / 1e9:,.0f} G operations/s measured here, {REACHED:.0%} of it reached" if machine.rate else \
        "no rate measured"
    return CostEstimate(trainable=trained(shape, recipe), memory=int(memory(shape, recipe, load, machine)),
                    disk=int(_disk(shape, recipe, machine)), steps=steps, tokens=tokens, seconds=seconds,
                    basis=f"{shape.parameters / 1e6:,.0f}M parameters, {load.tokens:,} tokens an epoch, {rate}")


def trained(shape: ModelShape, recipe: Recipe) -> int:
    """Weights that are trained."""
    return _counted(METHODS[recipe.method].parameters, shape, recipe) or shape.parameters


def _stored(shape: ModelShape, recipe: Recipe) -> int:
    """Numbers in the adapter's file."""
    return _counted(METHODS[recipe.method].stored, shape, recipe) or trained(shape, recipe)


def _counted(count: Count | None, shape: ModelShape, recipe: Recipe) -> int:
    """What a method counts on the layers that it adapts; 0 where it counts nothing."""
    return count(adapted_layers(shape.linears, recipe.lora.target_modules), recipe.lora) if count else 0


def _operations(shape: ModelShape, recipe: Recipe, load: Load, passes: float) -> float:
    """All products of a run: the layers for every token, the head where something is learned."""
    method = METHODS[recipe.method]
    ways = (2 if method.adapter else 3) + (1 if recipe.gradient_checkpointing else 0)
    head, adapters = shape.vocabulary * shape.hidden, 0
    if method.adapter:
        adapters = _counted(method.operations, shape, recipe) or 6 * trained(shape, recipe)
    layers = (2 * ways * shape.linear + adapters) * load.tokens * passes
    heads = 2 * ways * head * load.learned * passes
    return layers + heads + 2 * 2 * (shape.linear * load.held_out + head * load.held_out * LEARNED)


def memory(shape: ModelShape, recipe: Recipe, load: Load, machine: Machine) -> float:
    """Bytes at the peak of training."""
    size, count, method = SIZES[machine.dtype], trained(shape, recipe), METHODS[recipe.method]
    weights: float
    if method.base == "nf4":
        weights = NF4 * shape.linear + size * (shape.parameters - shape.linear)
    else:
        weights = (4 if method.base == "float32" or machine.dtype == "float16" else size) * shape.parameters
    states = 16 * count + 4 * (_stored(shape, recipe) - count) if method.adapter else 12 * count
    tokens = min(recipe.batch_size * load.longest, recipe.batch_size * recipe.max_length)
    kept = (8 * shape.hidden + 2 * shape.kv + 4 * shape.inner) * size * method.kept
    layers = (shape.layers * shape.hidden * size + kept) if recipe.gradient_checkpointing else shape.layers * kept
    logits = 2 * 4 * shape.vocabulary * min(tokens, LOGITS)
    program = PROGRAM if machine.device == "cpu" else 0
    return program + weights + states + tokens * layers + logits


def _disk(shape: ModelShape, recipe: Recipe, machine: Machine) -> float:
    """Bytes of the result, and of two checkpoints with Adam's moments while it runs."""
    merged = SIZES[machine.dtype] * shape.parameters if recipe.merge else 0
    return 4 * _stored(shape, recipe) + merged + 2 * 12 * trained(shape, recipe)


#: Examples where neither a number is given nor the model's tokenizer is here to count them.
UNKNOWN = 1000


def estimate_tuning(spec: TuneSpec) -> CostEstimate:
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


def _read(spec: TuneSpec) -> tuple[presets.ModelShape | None, Load]:
    """The model's shape and what there is to train on."""
    from aftertune.sources import load_tokenizer, resolve_model, shape_of, shape_on_hub
    from aftertune.sources.hub import offline_only
    from aftertune.tuning.split import Corpus
    from aftertune.tuning.tokenize import EncodedCorpus, Form

    try:
        with offline_only():
            source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except SourceError:
        shape = shape_on_hub(spec.model, spec.revision)
        return shape, Load.guessed(spec.data.examples or UNKNOWN, spec.max_length)
    corpus = Corpus.load(spec.data, spec.seed, spec.replay)
    rows = EncodedCorpus.of(corpus, load_tokenizer(source), Form(spec.template, spec.max_length, spec.learn), spec.seed)
    return shape_of(source), load_of(rows)


def load_of(rows: EncodedCorpus) -> Load:
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

    def cost(self, expected: CostEstimate | None, steps: int) -> dict[str, float]:
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


def expected(source: Any, spec: TuneSpec, rows: EncodedCorpus, where: tuple[str, str]) -> CostEstimate | None:
    """The estimate of a run about to begin; None for a model whose config tells no shape. where: device and dtype."""
    from aftertune.engine.devices import product_rate
    from aftertune.sources import shape_of

    shape = shape_of(source)
    return None if shape is None else estimate(shape, spec, load_of(rows), Machine(*where, product_rate(*where)))
