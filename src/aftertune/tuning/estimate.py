"""Estimates the memory, disk and time of a tuning before it runs, and measures them while it runs.

    estimate_tuning(TuneSpec(model="tinyllama", data="alpaca"))      CostEstimate(memory=…, seconds=…)
    estimate(PRESETS["smollm2-135m"].shape, spec, Workload(examples=320, tokens=19_200, longest=120, learned=9_000),
             Machine("cpu", "bfloat16", rate=4e11))
        CostEstimate(memory=1.6e9, disk=4e7, steps=40, tokens=19_200, seconds=45.0, basis="…")
    Meter(device).cost(estimate, steps=40)     {"memory": …, "seconds": …, "estimated_memory": …}

No weights are read or downloaded. A matrix product counts as two operations per weight and token: once for the forward
pass, once for the gradient of the input, and once for the gradient of the weight if it is trained (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1). Memory is that of the weights, their gradients, Adam's two moments, and the activations
that a step keeps for its backward pass. Both are rough. The record of each tuning shows them beside what was measured.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aftertune.errors import InputError, SourceError
from aftertune.methods import METHODS, Count, adapted_layers
from aftertune.study import presets
from aftertune.study.anchor import AnchorSetting

if TYPE_CHECKING:
    from aftertune.study import Recipe, TuneSpec
    from aftertune.study.presets import ModelShape
    from aftertune.tuning.tokenize import EncodedCorpus

# --- The arithmetic ---

#: Bytes of a weight.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Bytes of a weight in NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3).
NF4_BYTES = 0.5 + 0.127 / 8
#: The share of the machine's peak rate that training achieves (benchmarks/tune_speed.py: half of it on a CPU).
UTILIZATION = 0.5
#: Tokens of an example if the data cannot be read, and the share of them that is learned.
ASSUMED_TOKENS, ASSUMED_LEARNED = 120, 0.5
#: Bytes of the interpreter with its libraries.
PROGRAM_BYTES = 700 * 2**20
#: Tokens that a base generates for an answer that is replayed, the share of its answers that are kept, and the share of
#: the machine's peak rate at which it generates (SmolLM2 135M, one thread: 100, 70 % and 17 %).
ANSWER_TOKENS, ANSWERS_KEPT, WRITING = 100, 0.7, 0.15
#: Tokens of the longest such answers with their prompts, and how many of the longest examples are known one by one.
LONGEST_ANSWER, LONGER = 240, 64
#: Rows of logits that are in memory at once, in float32 and with their gradient.
LOGIT_ROWS = 512
#: Logits in float32 for the divergence of an anchor: of the base and the model, with what is computed of them.
ANCHOR_BYTES = 6 * 4 * 2**23
#: By how much the memory of a process on a CPU may grow between steps (`engine.memory.HeapLimit`).
HEAP = 1.1


@dataclass(frozen=True, slots=True)
class Workload:
    """The data of one epoch. tokens: of all examples; longest: tokens of the longest one; learned: tokens that count in
    the loss; held_out: tokens of the examples whose loss is measured before and after; replayed: tokens of the replayed
    examples; longer: tokens of the `LONGER` longest examples, in descending order, as far as they are known."""

    examples: int
    tokens: int
    longest: int
    learned: int
    held_out: int = 0
    replayed: int = 0
    longer: tuple[int, ...] = ()

    def largest_batch(self, rows: int, *, padded: bool) -> int:
        """The most tokens of a batch of so many rows. padded: each row takes the room of the longest."""
        known = sum(self.longer[:rows])
        return rows * self.longest if padded or not self.longer else \
            known + max(rows - len(self.longer), 0) * self.longer[-1]

    @classmethod
    def guessed(cls, examples: int, max_length: int, replayed: int = 0) -> Workload:
        """The workload of data that cannot be read, from the usual length of an example. replayed: how many of the
        examples are replayed."""
        length = min(ASSUMED_TOKENS, max_length)
        return cls(examples, examples * length, min(4 * length, max_length), int(examples * length * ASSUMED_LEARNED),
                   min(examples // 9, 1000) * length, replayed * length)

    def with_answers(self, count: int, max_length: int) -> Workload:
        """The workload with so many answers of the base, which are not written yet."""
        length = min(ASSUMED_TOKENS, max_length)
        return replace(self, **self._with_longest(count, min(LONGEST_ANSWER, max_length)),
                       examples=self.examples + count, tokens=self.tokens + count * length,
                       learned=self.learned + int(count * length * ASSUMED_LEARNED),
                       replayed=self.replayed + count * length)

    def _with_longest(self, count: int, length: int) -> dict[str, Any]:
        """The longest examples with ``count`` more of this length."""
        longer = tuple(sorted((*self.longer, *[length] * count), reverse=True)[:LONGER]) if self.longer else ()
        return {"longest": max(self.longest, length), "longer": longer}


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that would run it. rate: operations per second of large matrix products in this dtype; None if it was
    not measured."""

    device: str
    dtype: str
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The estimated cost of a tuning. trainable: parameters. memory, disk: bytes at the peak. tokens: in all steps.
    seconds: None without a rate. basis: what the estimate is made from, in words."""

    trainable: int
    memory: int
    disk: int
    steps: int
    tokens: int
    seconds: float | None
    basis: str


def estimate(shape: ModelShape, recipe: Recipe, workload: Workload, machine: Machine) -> CostEstimate:
    """The cost of ``recipe`` for a model of this shape."""
    batch = recipe.batch_size * recipe.accumulation
    steps = recipe.max_steps or max(math.ceil(workload.examples / batch * recipe.epochs), 1)
    passes = steps * batch / max(workload.examples, 1)
    tokens = int(workload.tokens * passes)
    seconds, rate = None, "no rate measured"
    if machine.rate:
        seconds = _operations(shape, recipe, workload, passes) / (machine.rate * UTILIZATION)
        rate = f"{machine.rate / 1e9:,.0f} G operations/s measured here, of which training achieves {UTILIZATION:.0%}"
    return CostEstimate(
        trainable=trained_parameters(shape, recipe), memory=int(estimate_memory(shape, recipe, workload, machine)),
        disk=int(_disk(shape, recipe, machine)) + _kept_disk(shape, recipe, machine, steps), steps=steps, tokens=tokens,
        seconds=seconds,
        basis=f"{shape.parameters / 1e6:,.0f}M parameters, {workload.tokens:,} tokens per epoch, {rate}")


def with_writing(cost: CostEstimate, shape: ModelShape, count: int, machine: Machine) -> CostEstimate:
    """The cost with the time in which the base writes ``count`` answers for replay."""
    if cost.seconds is None or not machine.rate:
        return cost
    seconds = writing_seconds(shape, count, machine)
    return replace(cost, seconds=cost.seconds + seconds,
                   basis=f"{cost.basis}; {seconds:,.0f} s for {count:,} answers of the base, unless they are stored")


def writing_seconds(shape: ModelShape, count: int, machine: Machine) -> float:
    """The time in which the base writes ``count`` answers for replay; 0 without a rate."""
    operations = 2 * (count / ANSWERS_KEPT * ANSWER_TOKENS) * (shape.products + shape.vocabulary * shape.hidden)
    return operations / (machine.rate * WRITING) if machine.rate else 0.0


def trained_parameters(shape: ModelShape, recipe: Recipe) -> int:
    """The number of weights that are trained."""
    return _count(METHODS[recipe.method].parameters, shape, recipe) or shape.parameters


def _stored(shape: ModelShape, recipe: Recipe) -> int:
    """The number of weights in the adapter's file."""
    return _count(METHODS[recipe.method].stored, shape, recipe) or trained_parameters(shape, recipe)


def _count(count: Count | None, shape: ModelShape, recipe: Recipe) -> int:
    """A count of the method over the layers that it adapts; 0 if the method has no such count."""
    layers = (*shape.linears, *shape.expert_adapters) if _adapts_experts(recipe) else shape.linears
    return count(adapted_layers(layers, recipe.lora.target_modules), recipe.lora) if count else 0


def _adapts_experts(recipe: Recipe) -> bool:
    """Whether the default layers have experts and routers among them, as PEFT's parameters (`tuning.targets`)."""
    return recipe.method in ("lora", "qlora", "rslora") and not recipe.lora.dropout \
        and not recipe.lora.target_modules


def _operations(shape: ModelShape, recipe: Recipe, workload: Workload, passes: float) -> float:
    """The operations of a run: the layers for every token, the head for every learned token."""
    method = METHODS[recipe.method]
    products = (2 if method.adapter else 3) + (1 if recipe.gradient_checkpointing else 0)  # per weight and token
    head, adapters = shape.vocabulary * shape.hidden, 0
    if method.adapter:
        adapters = _count(method.operations, shape, recipe) or 6 * trained_parameters(shape, recipe)
    layers = (2 * products * shape.products + adapters) * workload.tokens * passes
    heads = 2 * products * head * workload.learned * passes
    layers += _anchor_operations(shape, recipe, workload, products + 2) * passes
    return layers + heads + 2 * 2 * (shape.products * workload.held_out + head * workload.held_out * ASSUMED_LEARNED)


def _anchor_operations(shape: ModelShape, recipe: Recipe, workload: Workload, products: int) -> float:
    """The operations that an anchor adds to an epoch: the base reads the rows with anchored tokens, and both heads
    compute the logits of these tokens, those of the model twice. products: of the head, for each weight and token."""
    setting = AnchorSetting.active(recipe.anchor)
    if setting is None or setting.kind == "l2":
        return 0.0
    rows, tokens = (workload.replayed, workload.replayed) if workload.replayed else (
        workload.tokens, workload.tokens - workload.learned)
    return 2.0 * shape.products * rows + 2.0 * products * shape.vocabulary * shape.hidden * tokens


def estimate_memory(shape: ModelShape, recipe: Recipe, workload: Workload, machine: Machine) -> float:
    """Bytes of memory at the peak of training."""
    size, trained, method = DTYPE_BYTES[machine.dtype], trained_parameters(shape, recipe), METHODS[recipe.method]
    weights: float
    if method.base == "nf4":
        weights = NF4_BYTES * shape.linear + size * (shape.parameters - shape.linear)
    else:
        weights = (4 if method.base == "float32" or machine.dtype == "float16" else size) * shape.parameters
    # float32: the weight of an adapter (that of a full fine-tune is counted above), its gradient and two moments
    states = 16 * trained + 4 * (_stored(shape, recipe) - trained) if method.adapter else 12 * trained
    if AnchorSetting.active(recipe.anchor) is not None and (not method.adapter or method.begin is not None):
        states += 4 * trained  # the weights of the base, or the adapter as it started
    setting = AnchorSetting.active(recipe.anchor)
    compared = setting is not None and setting.kind == "kl"
    if machine.device == "cpu" and not method.adapter and size < 4:
        states += size * trained * (1 + compared)  # autocast's copies of the weights, and of those of the base
    tokens = min(workload.largest_batch(recipe.batch_size, padded=machine.device != "cpu"),
                 recipe.batch_size * recipe.max_length)
    activations = (8 * shape.hidden + 2 * shape.kv + 4 * shape.inner_of_token) * size * method.kept
    layers = (shape.layers * shape.hidden * size + activations) if recipe.gradient_checkpointing else \
        shape.layers * activations
    logits = 2 * 4 * shape.vocabulary * min(tokens, LOGIT_ROWS)
    if compared:  # with a copy and a gradient of the head
        logits += ANCHOR_BYTES + (size + 4) * shape.vocabulary * shape.hidden
    program, growth = (PROGRAM_BYTES, HEAP) if machine.device == "cpu" else (0, 1.0)
    return growth * (program + weights + states + tokens * layers + logits)


def _disk(shape: ModelShape, recipe: Recipe, machine: Machine) -> float:
    """Bytes of the result, and of the two checkpoints with Adam's moments that exist during the run."""
    merged = DTYPE_BYTES[machine.dtype] * shape.parameters if recipe.merge else 0
    return 4 * _stored(shape, recipe) + merged + 2 * 12 * trained_parameters(shape, recipe)


def _kept_disk(shape: ModelShape, recipe: Recipe, machine: Machine, steps: int) -> int:
    """Bytes of the checkpoints that are kept after the run."""
    if recipe.keep_checkpoints is None:
        return 0
    every = recipe.watch.every if recipe.watch else recipe.early_stop.every
    looks = math.ceil(steps / every)
    count = looks if recipe.keep_checkpoints == "all" else min(looks, recipe.keep_checkpoints + bool(recipe.keep_best))
    size = 4 if METHODS[recipe.method].adapter else DTYPE_BYTES[machine.dtype]
    return count * size * _stored(shape, recipe)


# --- The estimate of a specification ---

#: The number of examples if the spec gives none and there is no tokenizer to count with.
ASSUMED_EXAMPLES = 1000


def estimate_tuning(spec: TuneSpec) -> CostEstimate:
    """The cost of ``spec`` on this machine, from the model's config and the encoded data.

    For a model that is not on this machine the shape comes from a preset or the config on the Hub, and examples have
    the usual length. Raises InputError if the config does not give the shape; SourceError and InputError as `tune`.
    """
    from aftertune.engine.devices import choose_device, choose_dtype, matmul_rate, set_threads

    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    set_threads(spec.threads)
    shape, workload = shape_and_workload(spec)
    if shape is None:
        raise InputError(f"{spec.model}: cannot estimate, because the config lacks some of hidden_size, "
                         "num_hidden_layers, num_attention_heads and vocab_size; tune without --dry-run")
    machine = Machine(device, dtype, matmul_rate(device, dtype))
    if spec.replay is None or spec.replay.base is None:
        return estimate(shape, spec, workload, machine)
    count = spec.replay.base.count
    cost = estimate(shape, spec, workload.with_answers(count, spec.max_length), machine)
    return with_writing(cost, shape, count, machine)


def shape_and_workload(spec: TuneSpec) -> tuple[presets.ModelShape | None, Workload]:
    """The model's shape, and the data of an epoch, without answers of the base that are replayed. Raises as
    `estimate_tuning`."""
    from aftertune.sources import load_tokenizer, resolve_model, shape_of, shape_on_hub
    from aftertune.sources.hub import offline_only
    from aftertune.tuning.split import Corpus
    from aftertune.tuning.tokenize import EncodedCorpus, EncodeOptions

    try:
        with offline_only():
            source = resolve_model(spec.model, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except SourceError:
        shape = shape_on_hub(spec.model, spec.revision)
        return shape, Workload.guessed(spec.data.examples or ASSUMED_EXAMPLES, spec.max_length)
    corpus = Corpus.load(spec.data, spec.seed, spec.replay)
    tokenizer = load_tokenizer(source)
    rows = EncodedCorpus.from_corpus(corpus, tokenizer, EncodeOptions.of(spec, tokenizer), spec.seed)
    return shape_of(source), workload_of(rows)


def workload_of(rows: EncodedCorpus) -> Workload:
    """The workload of encoded rows."""
    counts = [rows.counts[name] for name in ("training", "replay") if name in rows.counts]
    return Workload(examples=len(rows.training), tokens=sum(c["tokens"] for c in counts), longest=rows.longest,
                    learned=sum(c["learned"] for c in counts), held_out=rows.counts["held out"]["tokens"],
                    replayed=rows.counts["replay"]["tokens"] if "replay" in rows.counts else 0,
                    longer=tuple(sorted((len(row.ids) for row in rows.training), reverse=True)[:LONGER]))


# --- Measuring a run ---


class Meter:
    """Measures the time and peak memory of one run. Memory counts from the creation of the meter, so that it includes
    loading; seconds count from `begin`. On a CPU the memory is that of the whole process."""

    def __init__(self, device: str) -> None:
        from aftertune.engine.memory import reset_peak_memory

        self.device = device
        self.started, self.steps_run = time.monotonic(), 0
        reset_peak_memory(device)

    def begin(self) -> None:
        """Training starts now."""
        self.started = time.monotonic()

    def step(self) -> None:
        """One more step is done."""
        self.steps_run += 1

    def cost(self, expected: CostEstimate | None, steps: int) -> dict[str, float]:
        """"memory" (bytes at the peak) and "seconds" of training, and both as they were "estimated_". For a resumed run
        the seconds of all ``steps`` are extrapolated from those that it ran."""
        from aftertune.engine.memory import peak_memory

        cost = {"memory": float(peak_memory(self.device))}
        if self.steps_run:
            cost["seconds"] = (time.monotonic() - self.started) * steps / self.steps_run
        if expected is not None:
            cost["estimated_memory"] = float(expected.memory)
            if expected.seconds is not None:
                cost["estimated_seconds"] = expected.seconds
        return cost


def estimate_run(source: Any, spec: TuneSpec, rows: EncodedCorpus, target: tuple[str, str]) -> CostEstimate | None:
    """The estimate of a run that is about to start; None if the model's config does not give the shape.

    target: device and dtype.
    """
    from aftertune.engine.devices import matmul_rate
    from aftertune.sources import shape_of

    shape = shape_of(source)
    return None if shape is None else estimate(shape, spec, workload_of(rows), Machine(*target, matmul_rate(*target)))
