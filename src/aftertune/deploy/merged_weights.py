"""Checks merged weights against a base and an adapter, tensor by tensor, also for merges that other programs made.

    check = check_weights("base", "adapter", "merged")
    check.same                          True where every weight is the base with the adapter, rounded
    check.faults[0].sentence            "not merged (equal to the base): 1 of 14 adapted weights: model.layers.0…"

Each weight of the merged model must be what PEFT's merge gives, rounded to the dtype of its file in one of the usual
orders (`aftertune.deploy.rounding`). A weight that is not is named, with what it seems to be instead. Config, tokenizer
and chat template are compared too: a merge keeps those of the base, or of the adapter's folder.

The check sees a single changed layer, a factor of the scale that is off by a tenth or more, and changes far below the
last place of the dtype, as far as rounding has left anything of them. It does not run the model.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from aftertune.deploy.prompts import prompt_differences, writer
from aftertune.deploy.rounding import Stored
from aftertune.errors import InputError, SourceError
from aftertune.sources import (
    AdapterSource,
    ModelSource,
    fingerprint_model,
    load_tokenizer,
    resolve_adapter,
    resolve_model,
)
from aftertune.sources.fingerprint import function_fields
from aftertune.sources.generation import generation_defaults
from aftertune.sources.loading import has_tokenizer, load_config, load_model
from aftertune.sources.merged_layers import MergedLayers, MergedWeight, to_array
from aftertune.sources.tensors import HEADS, TensorFolder, is_embedding, read_header, weight_files
from aftertune.sources.tokenizers import differences, with_rows
from aftertune.tuning.output import stored_dtype
from aftertune.values import Progress

#: torch's names of dtypes -> those of safetensors.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
#: Kinds of faults, in the order in which they are shown -> what they mean. # is a number, * the number of all such.
FAULTS: Mapping[str, str] = {
    "not applied": "the adapter was not applied: all # adapted weights are those of the base",
    "unmerged": "not merged (equal to the base): # of * adapted weights",
    "scaled": "merged with {factor:.3g} times the adapter's scale: # of * adapted weights",
    "rounded": "rounding to its type leaves {factor:.0%} of the adapter's change: # of * adapted weights. Export to a "
               "type with more bits, or use the adapter on its base",
    "plain": "merged without the adapter's magnitudes (as plain LoRA instead of DoRA): # of * adapted weights",
    "permuted": "queries or keys in llama.cpp's order of rows: # weights",
    "lost": "trained weights of the adapter (modules_to_save) were lost, the base's are there: # of *",
    "stale": "the output head is no longer tied to the embeddings and is the base's: # weights",
    "four bits": "values of a base in four bits, saved wider: # weights. It was merged into quantised weights",
    "noise": "noise of about {noise:.1%} on # of * weights, as of a base in 8 bits or fewer, or of another base",
    "changed": "differ from the base, though the adapter does not change them: # of * weights",
    "other": "differ from the base with the adapter in another way: # of * adapted weights",
    "missing": "missing: # weights",
    "shape": "have another shape: # weights",
    "config": "config.json differs from the base's",
    "tokenizer": "the tokenizer differs from the {owner}'s",
    "end tokens": "the end tokens (generation_config.json) differ from the base's",
}


@dataclass(frozen=True, slots=True)
class WeightFault:
    """One kind of fault. names: of the weights, or the settings that differ."""

    kind: str
    sentence: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """The result. weights, adapted: number of weights, and of those that the adapter changes. kept: the share of the
    adapter's change that the rounding of the file leaves, as a factor. idle: adapted weights without any change."""

    weights: int
    adapted: int
    dtypes: tuple[str, ...]
    faults: tuple[WeightFault, ...]
    kept: float | None = None
    idle: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return not self.faults


def check_weights(base: str, adapter: str, merged: str, *, trust_remote_code: bool = False, revision: str | None = None,
                  progress: Progress | None = None) -> WeightsCheck:
    """Compare the weights in the folder ``merged`` with ``base`` and ``adapter``.

    Raises SourceError if one of them cannot be read or if the adapter does not fit the base, InputError if the base or
    the merged model is stored quantised.
    """
    import numpy as np

    source = resolve_model(base, revision=revision, trust_remote_code=trust_remote_code)
    target = resolve_model(merged, trust_remote_code=trust_remote_code)
    if target.gguf_file is not None:
        raise InputError(f"{merged}: a GGUF, whose weights are rounded; `aftertune check-merge BASE ADAPTER FILE.gguf` "
                         "checks it")
    stored_dtype(target)  # raises for quantised weights
    source = with_rows(source, adapter)
    on_base = resolve_adapter(adapter, source, fingerprint_model(source))
    layers = MergedLayers(source, on_base, loaded_dtype(source))
    found = _Comparisons(layers, target, load_config(target))
    with np.errstate(all="ignore"):  # damaged weights may be infinite
        for number, weight in enumerate(layers.weights(), 1):
            if progress is not None:
                progress(number, 0, "comparing weights")
            found.add(weight)
    faults = [*found.faults(), *_config_faults(source, target), *_tokenizer_faults(source, on_base, target)]
    order = list(FAULTS)
    return WeightsCheck(found.weights, found.adapted, tuple(sorted(found.dtypes)), tuple(
        sorted(faults, key=lambda f: order.index(f.kind))), found.kept(), tuple(found.idle), tuple(found.notes()))


def loaded_dtype(base: ModelSource) -> str:
    """The dtype in which the base is loaded: that of its files, or float32 if they have several."""
    stored = stored_dtype(base)  # raises for quantised weights
    dtypes = {t.dtype for path in weight_files(base.path) for t in read_header(path)} if stored else set()
    return stored if stored is not None and len(dtypes) == 1 else "float32"


@dataclass(slots=True)
class _Comparisons:
    """What the weights compared so far are. names: kind of fault -> names. factors, noise: of the weights with these
    kinds. kept_change: for each right adapted weight the factor of the change that rounding left."""

    layers: MergedLayers
    target: ModelSource
    config: Mapping[str, Any]
    tensors: TensorFolder = field(init=False)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    factors: dict[str, float] = field(default_factory=dict)
    noise: list[float] = field(default_factory=list)
    kept_change: list[float] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    built: dict[str, Any] | None = None
    weights: int = 0
    adapted: int = 0
    saved: int = 0

    def __post_init__(self) -> None:
        self.tensors = TensorFolder(self.target.path)

    def add(self, weight: MergedWeight) -> None:
        """Compare one weight with the merged model."""
        self.weights += 1
        changed = weight.role == "adapted" and bool((weight.merged != weight.base).any())
        self.adapted += changed
        self.saved += weight.role == "saved"
        if weight.role == "adapted" and not changed and not weight.name.endswith(".bias"):
            self.idle.append(weight.name)
        stored = self._stored(weight)
        if stored is None:
            self.names["missing"].append(weight.name)
        elif stored.values.shape != weight.merged.shape:
            self.names["shape"].append(weight.name)
        else:
            self.dtypes.add(stored.dtype)
            if kind := self._kind(weight, stored, changed):
                self.names[kind].append(weight.name)
            elif changed:
                self.kept_change.append(stored.factor(weight.base, weight.merged))

    def _stored(self, weight: MergedWeight) -> Stored | None:
        """The weight in the merged model; a tied head is the embeddings."""
        name: str | None = self.tensors.find(weight.name)
        if weight.name.endswith(HEADS) and self.config.get("tie_word_embeddings"):  # a stored head is not used then
            name = next((n for n in self.tensors.infos if is_embedding(n)), name)
        if name is None:
            return self._loaded(weight.name)
        return Stored(self.tensors.read(name), self.tensors.infos[name].dtype)

    def _loaded(self, name: str) -> Stored | None:
        """The weight in the merged model as transformers builds it, where files have it under other names (experts of
        one layer in many tensors). None if it is missing."""
        if self.built is None:
            self.built = {}
            with contextlib.suppress(SourceError):  # weights are missing
                model = load_model(self.target, stored_dtype(self.target) or "float32", "cpu")
                self.built.update(model.named_parameters(remove_duplicate=False))
        tensor = self.built.get(name)
        return None if tensor is None else Stored(to_array(tensor), DTYPES[str(tensor.dtype).removeprefix("torch.")])

    def _kind(self, weight: MergedWeight, stored: Stored, changed: bool) -> str:
        """The kind of fault of a weight; "" if it is right."""
        if not changed and weight.role != "saved":
            if stored.is_same(weight.merged):
                return ""
            return "four bits" if weight.merged.ndim == 2 and stored.has_levels(0) else self._unlike(weight, stored,
                                                                                                    "changed")
        if stored.is_right(weight.base, weight.merged):
            return ""
        if weight.role == "saved":
            head = weight.name.endswith(HEADS) and self.layers.tied and not self.config.get("tie_word_embeddings")
            if not stored.is_same(weight.base):
                return "" if stored.is_same(weight.merged) else "other"
            return "stale" if head else "lost"
        return self._adapted_kind(weight, stored)

    def _adapted_kind(self, weight: MergedWeight, stored: Stored) -> str:
        """What an adapted weight is that is not the base with the adapter."""
        if stored.is_same(weight.base):
            return "unmerged"
        plain = self.layers.plain_merge(weight.name)
        if plain is not None and stored.is_right(weight.base, plain):
            return "plain"
        if self._is_permuted(weight, stored):
            return "permuted"
        factor = stored.factor(weight.base, weight.merged)
        change = weight.merged - weight.base
        if abs(factor) > 1e-3 and stored.is_right(weight.base, weight.base + factor * change):
            self.factors[weight.name] = factor
            return "scaled"
        if weight.merged.ndim == 2 and stored.has_levels(change):
            return "four bits"
        return self._unlike(weight, stored, "other")

    def _unlike(self, weight: MergedWeight, stored: Stored, kind: str) -> str:
        distance = stored.distance(weight.merged)
        if weight.merged.ndim == 2 and 1e-3 < distance < 0.3 and 0.5 < self._applied(weight, stored) < 1.5:
            self.noise.append(distance)
            return f"noisy {kind}"
        return kind

    def _applied(self, weight: MergedWeight, stored: Stored) -> float:
        return stored.factor(weight.base, weight.merged) if weight.role == "adapted" else 1.0

    def _is_permuted(self, weight: MergedWeight, stored: Stored) -> bool:
        """Whether the rows of queries or keys are in llama.cpp's order, or in that order undone once too often."""
        return any(stored.is_right(base, merged) for base, merged in in_other_orders(weight, self.config))

    def faults(self) -> Iterator[WeightFault]:
        """A fault for each kind that was found."""
        names = dict(self.names)
        noisy = {k.removeprefix("noisy "): names.pop(k) for k in list(names) if k.startswith("noisy ")}
        whole = sum(map(len, noisy.values()))
        if whole and (whole >= 0.8 * max(self.adapted, 1) or "four bits" in names):
            kind = "four bits" if "four bits" in names else "noise"
            names[kind] = [*names.get(kind, []), *(n for group in noisy.values() for n in group)]
        else:
            for kind, group in noisy.items():
                names[kind] = [*names.get(kind, []), *group]
        if self.adapted and len(names.get("unmerged", ())) == self.adapted:
            names["not applied"] = names.pop("unmerged")
        totals = {"lost": self.saved, "changed": self.weights - self.adapted - self.saved, "noise": self.weights}
        for kind, group in names.items():
            for factor, part in _by_factor(group, self.factors if kind == "scaled" else {}):
                sentence = FAULTS[kind].format(factor=factor, noise=max(self.noise, default=0.0))
                sentence = sentence.replace("#", f"{len(part):,}").replace("*", f"{totals.get(kind, self.adapted):,}")
                yield WeightFault(kind, sentence, tuple(part))

    def kept(self) -> float | None:
        """The median over the right adapted weights of the factor of the change that rounding left."""
        ordered = sorted(self.kept_change)
        return ordered[len(ordered) // 2] if ordered else None

    def notes(self) -> Iterator[str]:
        """What a reader should know that is no fault."""
        if self.idle:
            yield (f"the adapter has no effect on {len(self.idle):,} of the weights that it names (its product is "
                   f"zero there), first {self.idle[0]}")
        if not self.adapted and not self.saved:
            yield "the adapter changes no weight at all: its products are zero"
        kept = self.kept()
        if kept is not None and kept < 0.9:
            yield (f"rounding to {', '.join(sorted(self.dtypes))} left {kept:.0%} of the adapter's change in a typical "
                   "weight; merge into a wider dtype, or use the adapter unmerged")
        if not self.built and (extra := sorted(set(self.tensors.infos) - self.tensors.used)):
            yield f"{len(extra)} tensors of the merged weights have no place in the base, first {extra[0]}"


def in_other_orders(weight: MergedWeight, config: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Queries or keys, base and merged, with their rows in llama.cpp's order, and in that order undone once too
    often; nothing for other weights."""
    if not weight.name.endswith(("q_proj.weight", "k_proj.weight")):
        return
    key = "num_attention_heads" if "q_proj" in weight.name else "num_key_value_heads"
    heads = int(config.get(key) or config.get("num_attention_heads") or 0)
    rows = weight.merged.shape[0]
    if not heads or rows % (2 * heads):
        return
    for shape in ((heads, 2, rows // heads // 2, -1), (heads, rows // heads // 2, 2, -1)):
        base, merged = (w.reshape(shape).swapaxes(1, 2).reshape(w.shape) for w in (weight.base, weight.merged))
        yield base, merged


def _by_factor(names: list[str], factors: Mapping[str, float]) -> Iterator[tuple[float, list[str]]]:
    """The names in groups with nearly the same factor (two digits)."""
    groups: dict[float, list[str]] = defaultdict(list)
    for name in names:
        groups[float(f"{factors.get(name, 0.0):.2g}")].append(name)
    yield from groups.items()


# --- Config and tokenizer ---


def _config_faults(base: ModelSource, merged: ModelSource) -> Iterator[WeightFault]:
    """The settings of the forward pass that differ, and the end tokens."""
    left, right = load_config(base), load_config(merged)
    ours, theirs = function_fields(left), function_fields(right)
    skipped = {"tie_word_embeddings", "vocab_size", "quantization_config", "pad_token_id"}
    skipped |= {"architectures"} if None in (left.get("architectures"), right.get("architectures")) else set()
    different = [f"{k}: {ours.get(k)} → {theirs.get(k)}" for k in sorted({*ours, *theirs} - skipped)
                 if ours.get(k) != theirs.get(k)]
    if different:
        yield WeightFault("config", FAULTS["config"], tuple(different))
    ends = [_ends(source) for source in (base, merged)]
    if ends[0] and ends[1] and ends[0] != ends[1]:
        yield WeightFault("end tokens", FAULTS["end tokens"], (f"{sorted(ends[0])} → {sorted(ends[1])}",))


def _ends(source: ModelSource) -> set[int]:
    """The end tokens that a model's files name."""
    return set(generation_defaults(source, SimpleNamespace(eos_token_id=None)).get("eos_token_id", ()))


def _tokenizer_faults(base: ModelSource, adapter: AdapterSource, merged: ModelSource) -> Iterator[WeightFault]:
    """What differs in the merged model's tokenizer from that of the adapter's folder, or of the base if it has none.

    A tokenizer that is the base's is right too, unless the adapter brought another one.
    """
    if not has_tokenizer(merged.path):
        yield WeightFault("tokenizer", "the merged model has no tokenizer", ("copy the base's tokenizer files there",))
        return
    tokenizer, owner, reference = load_tokenizer(merged), "base", load_tokenizer(base)
    if has_tokenizer(adapter.path):
        owner, reference = "adapter", load_tokenizer(base, adapter.path)
    if found := list(tokenizer_differences(reference, tokenizer)):
        yield WeightFault("tokenizer", FAULTS["tokenizer"].format(owner=owner), tuple(found))


def tokenizer_differences(reference: Any, tokenizer: Any) -> Iterator[str]:
    """What differs in the tokens of a text or in the text of a chat; a chat template, by the prompts that it writes."""
    for difference in differences(reference, tokenizer):
        if difference != "the chat template" or not (reference.chat_template and tokenizer.chat_template):
            yield difference
            continue
        prompts = prompt_differences(writer(reference), writer(tokenizer), bos=reference.bos_token)
        for cause in dict.fromkeys(p.cause for p in prompts):
            first = next(p for p in prompts if p.cause == cause)
            yield f"the chat template: {cause} ({first.conversation}: {' '.join(first.diff.splitlines()[:4])})"
