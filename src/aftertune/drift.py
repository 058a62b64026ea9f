"""Measures how far a fine-tune moved a model, without a benchmark.

    drift = measure_drift("HuggingFaceTB/SmolLM2-135M-Instruct", "runs/orders", DriftOptions(prompts=64))
    drift.groups[0].kl, drift.groups[0].low, drift.groups[0].high      0.21, 0.17, 0.26 nats per token
    drift.groups[0].moved                                              True
    held_out_drift(tuning, "merged", "model-q8_0.gguf")                what rounding changes on its own texts

The base continues general prompts, and the held-out prompts of the fine-tune, by sampling from its own probabilities.
On each token of these texts, the base's distribution P is compared with that of the tuned model, Q:
KL(P || Q) = sum of P log(P / Q), in nats. It is zero for equal models. Its mean over the new prompts is what predicts
forgetting in Shenfeld, Pari and Agrawal (2025), "RL's Razor: Why Online Reinforcement Learning Forgets Less",
arXiv 2509.04259. It says that a model moved, not whether it became worse: only answers that are right or wrong can say
that. For comparison, a random LoRA adapter is measured whose update of each layer has the size of the tuned one's.

`aftertune.engine.divergence` makes the texts and compares the distributions. Only one model is in memory at a time. The
ledger stores the result; the same question is answered from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from aftertune import sources
from aftertune.engine import devices
from aftertune.engine.divergence import (
    TOP,
    Continuation,
    TextDivergence,
    continue_prompts,
    distributions,
    divergences,
    token_rows,
)
from aftertune.engine.memory import release_memory
from aftertune.errors import AftertuneError, AmbiguousName, InputError, SourceError
from aftertune.paths import expanded, is_dir, is_file
from aftertune.sources.library_errors import forward_errors, memory_errors
from aftertune.sources.resolve import looks_like_path
from aftertune.stats.bootstrap import TOO_FEW, bca_mean
from aftertune.stats.log_probability import ROUNDING
from aftertune.stats.paired import Floats, paired_mean
from aftertune.tuning.build import fitting_length
from aftertune.tuning.general_prompts import drift_prompts
from aftertune.values import Drift, DriftGroup, DriftText, ModelIdentity, Progress, Tuning, digest
from aftertune.values.drift import HELD_OUT_TEXTS

if TYPE_CHECKING:
    from aftertune.ledger import Ledger
    from aftertune.sources import AdapterSource, ModelSource
    from aftertune.tuning.example import Example
    from aftertune.tuning.split import Corpus

#: The names of the two groups of prompts.
GENERAL, HELD_OUT = "general prompts", "held-out prompts"
#: The most tokens of a prompt and its continuation; longer prompts are left out.
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """How drift is measured.

    prompts: the most prompts of each group; tokens: the most tokens of a continuation; seed: of the sampling. data: a
    file of examples whose prompts stand for the held-out ones of the fine-tune. chat: format general prompts with the
    chat template; None for doing so if there is one.
    """

    prompts: int = 64
    tokens: int = 64
    seed: int = 0
    data: Path | None = None
    chat: bool | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class _Measured:
    """A continuation, how the tuned model diverges on it, and how a random adapter does, None without one."""

    text: Continuation
    tuned: TextDivergence
    random: TextDivergence | None


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as token ids, and the question in it as text."""

    ids: list[int]
    question: str


@dataclass(frozen=True, slots=True)
class _Example:
    """A held-out example: its prompt, and the token ids of its completion."""

    prompt: _Prompt
    completion: list[int]


def measure_drift(base: str, tuned: str, options: DriftOptions | None = None, *, ledger: Ledger | None = None,
                  progress: Progress | None = None) -> Drift:
    """Compare the distributions of a model and its fine-tune on the base's own texts.

    base: as for an evaluation. tuned: an adapter of the base, a whole model, or a fine-tune by its id or name in
    ``ledger``, where the result is stored; one that is already there is not measured again. Raises SourceError
    (models), InputError (options, data, other vocabulary) or ResourceError (memory).
    """
    options, progress = options or DriftOptions(), progress or (lambda *_: None)
    source = sources.resolve_model(base, trust_remote_code=options.trust_remote_code)
    identity = sources.fingerprint_model(source)
    target, adapter, tuning = resolve_tuned(
        tuned, source, identity, ledger, trust_remote_code=options.trust_remote_code)
    device = devices.choose_device(options.device)
    dtype = devices.choose_dtype(options.dtype, device)
    devices.set_threads(options.threads)
    tokenizer = sources.load_tokenizer(source)
    notes: list[str] = []
    positions, _ = fitting_length(source, _LONGEST, explicit=False)
    prompts = {GENERAL: _fitting(_general_prompts(tokenizer, options), GENERAL, positions - options.tokens, notes)}
    if not prompts[GENERAL]:
        raise InputError(f"--tokens {options.tokens}: {source.named} reads at most {positions:,} tokens, prompt and "
                         "continuation together; use fewer")
    if held_out := _fitting(_held_out_prompts(tuning, tokenizer, options, notes), HELD_OUT,
                            positions - options.tokens, notes):
        prompts[HELD_OUT] = held_out
    tuned_identity = sources.fingerprint_model(target, adapter)
    if tuned_identity.tokenizer != identity.tokenizer and adapter is None:
        notes.append("the tuned model has another tokenizer; both models read the base's tokens")

    id_ = "d-" + digest([identity.fingerprint, identity.tokenizer, tuned_identity.fingerprint, dtype, device,
                         options.tokens, options.seed, TOP,
                         {name: [p.ids for p in group] for name, group in prompts.items()}])[:10]
    if ledger is not None and (stored := ledger.find_drift(id_)) is not None:
        return replace(stored, notes=tuple(notes))
    measured = _measure((source, target, adapter), tokenizer, prompts, options, (dtype, device), progress)
    drift = Drift(id_, identity, tuned_identity, dtype, device, options.prompts, options.tokens, options.seed, tuple(
        _group(name, prompts[name], group, tokenizer) for name, group in measured.items()), tuple(notes))
    return drift if ledger is None else ledger.save_drift(drift)


def held_out_drift(tuning: Tuning, whole: str, rounded: str, options: DriftOptions | None = None, *,
                   ledger: Ledger | None = None, progress: Progress | None = None) -> Drift | str:
    """Compare the distributions of two forms of one fine-tune on the completions of its held-out examples.

    whole, rounded: sources of its weights, such as merged weights and a GGUF file; both read the tokens of ``whole``.
    Returns why not, in a sentence, where the examples cannot be read again. Raises SourceError or ResourceError.
    """
    options, progress = options or DriftOptions(), progress or (lambda *_: None)
    left, right = (sources.resolve_model(m, trust_remote_code=options.trust_remote_code) for m in (whole, rounded))
    before, after = (sources.fingerprint_model(source) for source in (left, right))
    device = devices.choose_device(options.device)
    dtype = devices.choose_dtype(options.dtype, device)
    devices.set_threads(options.threads)
    tokenizer, notes = sources.load_tokenizer(left), list[str]()
    positions, _ = fitting_length(left, _LONGEST, explicit=False)
    rows = [row for row in _held_out_texts(tuning, tokenizer, options, notes)
            if len(row.completion) > (not row.prompt.ids) and len(row.prompt.ids) + len(row.completion) <= positions]
    if not rows:
        return notes[-1] if notes else f"{HELD_OUT_TEXTS}: none has at most {positions:,} tokens"
    texts = [Continuation(row.prompt.ids, row.completion) if row.prompt.ids else
             Continuation(row.completion[:1], row.completion[1:]) for row in rows]
    id_ = "d-" + digest([before.fingerprint, after.fingerprint, dtype, device, TOP, HELD_OUT_TEXTS,
                         [(text.prompt, text.tokens) for text in texts]])[:10]
    if ledger is not None and (stored := ledger.find_drift(id_)) is not None:
        return replace(stored, notes=tuple(notes))
    progress(0, 0, "reading the held-out texts")
    model = sources.load_model(left, dtype, device, tokenizer=tokenizer)
    with memory_errors(left, device), forward_errors(left.named, kept=""):
        stored_rows = list(distributions(model, texts, min(len(tokenizer), token_rows(model))))
    del model
    release_memory()
    model = sources.load_model(right, dtype, device)
    with memory_errors(right, device), forward_errors(right.named, kept=""):
        values = list(divergences(model, texts, stored_rows))
    measured = [_Measured(text, value, None) for text, value in zip(texts, values, strict=True)]
    drift = Drift(id_, before, after, dtype, device, options.prompts, _LONGEST, options.seed, (
        _group(HELD_OUT_TEXTS, [row.prompt for row in rows], measured, tokenizer),), tuple(notes))
    return drift if ledger is None else ledger.save_drift(drift)


def _measure(models: tuple[ModelSource, ModelSource, AdapterSource | None], tokenizer: Any,
             prompts: Mapping[str, Sequence[_Prompt]], options: DriftOptions, where: tuple[str, str],
             progress: Progress) -> dict[str, list[_Measured]]:
    """The continuation of each prompt by the base, and how the tuned model diverges on it.

    models: the base, the model with the tuned weights and the adapter on it; where: dtype and device. With a LoRA
    adapter, a random one of the same size is measured too.
    """
    source, target, adapter = models
    dtype, device = where
    progress(0, 0, "loading the base")
    model = sources.load_model(source, dtype, device, tokenizer=tokenizer)
    vocabulary = min(len(tokenizer), token_rows(model))
    texts: dict[str, list[Continuation]] = {}
    with memory_errors(source, device), forward_errors(source.named, kept=""):
        for name, group in prompts.items():
            texts[name] = continue_prompts(model, tokenizer, [prompt.ids for prompt in group], tokens=options.tokens,
                                           seed=options.seed, progress=partial(_staged, progress,
                                                                               f"the base continues the {name}"))
        every = [text for group in texts.values() for text in group]
        stored = list(distributions(model, every, vocabulary, partial(_staged, progress, "the base reads the texts")))
    del model
    release_memory()
    progress(0, 0, "loading the tuned model")
    model = sources.load_model(target, dtype, device, adapter)
    if (rows := token_rows(model)) < vocabulary:
        raise InputError(f"the tuned model has {rows:,} tokens, but the base's tokenizer has {vocabulary:,}, so their "
                         "distributions cannot be compared; give the base that it was tuned from")
    with memory_errors(target, device), forward_errors(target.named, kept=""):
        tuned = list(divergences(model, every, stored, partial(_staged, progress, "the tuned model reads the texts")))
        random: Sequence[TextDivergence | None] = [None] * len(every)
        if adapter is not None and sources.randomize_adapter(model, options.seed):
            random = list(divergences(model, every, stored,
                                      partial(_staged, progress, "a random adapter of the same size reads the texts")))
    values = zip(every, tuned, random, strict=True)
    return {name: [_Measured(*next(values)) for _ in group] for name, group in texts.items()}


def _staged(progress: Progress, stage: str, done: int, total: int) -> None:
    """Report the progress of a stage."""
    progress(done, total, stage)


# --- Models and prompts ---


def _fitting(prompts: list[_Prompt], name: str, room: int, notes: list[str]) -> list[_Prompt]:
    """The prompts of at most ``room`` tokens; a note says how many are left out."""
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= room]
    if len(fitting) < len(prompts):
        notes.append(f"{name}: {len(prompts) - len(fitting)} of {len(prompts)} are longer than {max(room, 0):,} tokens "
                     "and were left out")
    return fitting


def resolve_tuned(word: str, base: ModelSource, identity: ModelIdentity, ledger: Ledger | None, *,
                  trust_remote_code: bool = False) -> tuple[ModelSource, AdapterSource | None, Tuning | None]:
    """The model that has the tuned weights, the adapter on it, and the fine-tune if it is one of ours.

    word: an adapter of the base, a whole model, or a fine-tune by its id or name in ``ledger``. identity: of the base.
    Raises SourceError, or AmbiguousName for the name of several fine-tunes.
    """
    from aftertune.tuning import read_tuning
    from aftertune.tuning.output import read_manifest

    folder, tuning = expanded(word), None
    if is_dir(folder):
        tuning = read_manifest(folder)
    elif ledger is not None and _is_tuning(word, ledger):
        tuning = read_tuning(word, ledger)
        folder = Path(tuning.output)
    place = str(folder) if is_dir(folder) else word
    if is_file(folder / "adapter_config.json"):
        return base, sources.resolve_adapter(place, base, identity), tuning
    try:
        return sources.resolve_model(place, trust_remote_code=trust_remote_code), None, tuning
    except SourceError as error:
        if Path(place).exists() or looks_like_path(place):
            raise
        try:
            return base, sources.resolve_adapter(place, base, identity), tuning  # an adapter on the Hub
        except SourceError:
            raise error from None


def _is_tuning(word: str, ledger: Ledger) -> bool:
    """Whether the ledger has one fine-tune with this id or name. Raises AmbiguousName for several."""
    try:
        ledger.find_tuning(word)
    except AmbiguousName:
        raise
    except InputError:
        return False
    return True


def _general_prompts(tokenizer: Any, options: DriftOptions) -> list[_Prompt]:
    """The general prompts, as user messages of a chat where the tokenizer has a template."""
    from aftertune.tasks.chat_template import get_chat_template, template_date

    template = None
    if options.chat is not False:
        template = get_chat_template(tokenizer, template_date(tokenizer, None))
        if template is None and options.chat:
            raise InputError(f"{tokenizer.name_or_path}: it has no chat template; leave out --apply-chat-template")
    prompts = drift_prompts()[:options.prompts]
    if template is None:
        return [_Prompt(tokenizer(prompt).input_ids, prompt) for prompt in prompts]
    return [_Prompt(tokenizer(template.render([{"role": "user", "content": prompt}]),
                              add_special_tokens=False).input_ids, prompt) for prompt in prompts]


def _held_out_prompts(tuning: Tuning | None, tokenizer: Any, options: DriftOptions, notes: list[str]
                      ) -> list[_Prompt]:
    """The prompts of the held-out examples; none, with a note, where they cannot be read again."""
    texts = _held_out_texts(tuning, tokenizer, options, notes)
    prompts = [text.prompt for text in texts if text.prompt.ids]
    if texts and not prompts:
        notes.append("held-out prompts: the examples have no prompts (plain texts), so there is nothing to continue")
    return prompts


def _held_out_texts(tuning: Tuning | None, tokenizer: Any, options: DriftOptions, notes: list[str]) -> list[_Example]:
    """The held-out examples as the fine-tune read them; none, with a note, where they cannot be read again."""
    from aftertune.study import TuneSpec
    from aftertune.tuning.data import read_examples
    from aftertune.tuning.split import seeded_order
    from aftertune.tuning.tokenize import EncodeOptions, encode_all

    if options.data is not None:
        examples: Sequence[Example] = read_examples(options.data)
    elif tuning is None:
        notes.append("held-out prompts: the tuned model has no record of its data; give a file with --data")
        return []
    else:
        examples = _held_out_examples(tuning, notes)
    chosen = [examples[n] for n in seeded_order(examples, options.seed)[:options.prompts]]
    settings = tuning.settings if tuning else {}
    default = TuneSpec.model_fields["template"].default
    template = settings.get("template", default)
    try:
        encoded = encode_all(chosen, tokenizer, EncodeOptions(template, _LONGEST, "last", skip_bad=True,
                                                             day=settings.get("template_date")))
    except InputError as error:
        notes.append(f"held-out prompts: none can be used: {error}")
        return []
    if left_out := encoded.masked + encoded.refused:
        notes.append(f"held-out prompts: {left_out} of {len(chosen)} were left out, because the template refuses them "
                     f"or they have more than {_LONGEST:,} tokens")
    texts = []
    for row in encoded.rows:
        first, after = _learned(row.labels)
        texts.append(_Example(_Prompt(row.ids[:first], _question(chosen[row.example - 1])), row.ids[first:after]))
    return texts


def _question(example: Example) -> str:
    """The last text before the completion."""
    return example.conversation[-1][1] if example.conversation else ""


def _learned(labels: Sequence[int]) -> tuple[int, int]:
    """The index of the first token that is learned, and of the token after the last one."""
    from aftertune.tuning.tokenize import IGNORED

    learned = [n for n, label in enumerate(labels) if label != IGNORED]
    return learned[0], learned[-1] + 1


def _held_out_examples(tuning: Tuning, notes: list[str]) -> Sequence[Example]:
    """The held-out examples of a fine-tune, from its data file; none, with a note, if that no longer gives them."""
    from aftertune.study import DataSpec
    from aftertune.tuning.split import Corpus

    file = Path(tuning.data_source)
    remedy = "give the examples with --data FILE"
    try:
        corpus = Corpus.load(DataSpec(file=file), tuning.seed)
        if corpus.held_out_fingerprint != tuning.settings.get("held_out"):
            share = _share(corpus, int(tuning.settings.get("held_out_examples", 0)))
            corpus = Corpus.load(DataSpec(file=file, held_out=share), tuning.seed)
    except (AftertuneError, ValidationError):
        notes.append(f"held-out prompts: {file} can no longer be read as the fine-tune read it; {remedy}")
        return ()
    if corpus.held_out_fingerprint != tuning.settings.get("held_out"):
        notes.append(f"held-out prompts: {file} has other held-out examples now, or was read with other options; "
                     f"{remedy}")
        return ()
    return corpus.held_out


def _share(corpus: Corpus, count: int) -> float:
    """The held-out share by which ``count`` examples are held out: a split holds out those with the lowest points."""
    from aftertune.tuning.split import split_point

    points = sorted(split_point(example) for example in (*corpus.training, *corpus.held_out))
    return points[min(count, len(points) - 1)]


def _group(name: str, prompts: Sequence[_Prompt], measured: Sequence[_Measured], tokenizer: Any) -> DriftGroup:
    """The result on one kind of prompts."""
    rows = [DriftText(prompt.question, tokenizer.decode(m.text.tokens, skip_special_tokens=True), len(m.text.tokens),
                      m.tuned.kl, m.tuned.changed)
            for prompt, m in zip(prompts, measured, strict=True)]
    values = np.array([row.kl for row in rows])
    if not np.isfinite(values).all():
        raise AftertuneError(f"{name}: the models' probabilities are not finite numbers; compute in float32 (--dtype), "
                             "or check the weights")
    low, high = _interval(values)
    random = np.array([m.random.kl for m in measured if m.random is not None])
    beyond = random.size >= TOO_FEW and _interval(values - random)[0] > 0
    moved = len(rows) >= TOO_FEW and low > ROUNDING  # fewer than 8 texts prove nothing
    return DriftGroup(name, float(values.mean()), max(0.0, low), high, fmean(row.changed for row in rows), moved,
                      tuple(sorted(rows, key=lambda row: -row.kl)), float(random.mean()) if random.size else None,
                      beyond)


def _interval(values: Floats) -> tuple[float, float]:
    """The 95 % interval of a mean over texts."""
    return (bca_mean(values) or paired_mean(values)).interval()
