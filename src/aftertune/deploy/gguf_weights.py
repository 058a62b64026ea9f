"""Checks the weights in a GGUF file against a base and an adapter, also for files that other programs made.

    check = check_gguf("base", "adapter", "orders-q4_k_m.gguf")
    check.faults[0].sentence            "queries or keys in another order of rows: 4 weights"

The file is read as for an evaluation: dequantised, and in the order of rows of transformers. Rounding to few bits
changes every weight. So a weight is right if it is as near to the base with the adapter as its type allows, and if it
has the adapter's change: the factor of the change, by least squares over all its values, is 1 within its error. Where
the error is too large, the weight says nothing of the adapter, and a note counts such weights. Values that lie on few
levels, as those of a base in four bits, are not rounded by chance: there a small change comes out smaller or not at
all, so the factor may also be that of the right weight after rounding to the type of the file; if less than half of
the change is left then, the file is not the fine-tune, and this is a fault too. The settings of the forward pass, the
tokenizer and the prompts are compared too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aftertune.deploy.merged_weights import (
    FAULTS,
    WeightFault,
    WeightsCheck,
    in_other_orders,
    loaded_dtype,
    tokenizer_differences,
)
from aftertune.deploy.rounding import Stored, round_to
from aftertune.errors import InputError
from aftertune.sources import fingerprint_model, load_tokenizer, resolve_adapter, resolve_model
from aftertune.sources.loading import load_config, load_model
from aftertune.sources.merged_layers import MergedLayers, MergedWeight, to_array
from aftertune.sources.tensors import GgufContents, read_gguf
from aftertune.sources.tokenizers import with_rows
from aftertune.values import Progress

#: Largest distance of weights in 16 bits or more that were rounded once, and the same of a type with b bits times 2^b:
#: the error of uniform levels over blocks of 32 normal values, with a factor of two.
_WIDE, _OF_BITS = 2.0**-7, 2.4
#: The factor of the adapter's change is judged where its error is at most this.
_JUDGED = 0.25
#: Rounding has to leave so much of the adapter's change.
_LEFT = 0.5
#: Types to which the package gguf rounds.
_MADE = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1")
#: Fields of a config that a GGUF has too.
_SETTINGS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "rms_norm_eps")


def check_gguf(base: str, adapter: str, file: str, *, trust_remote_code: bool = False, revision: str | None = None,
               progress: Progress | None = None) -> WeightsCheck:
    """Compare the weights in a GGUF file with ``base`` and ``adapter``.

    Raises SourceError if one of them cannot be read or if the adapter does not fit the base, InputError if ``file`` is
    no GGUF or if the base is stored quantised.
    """
    import numpy as np

    source = resolve_model(base, revision=revision, trust_remote_code=trust_remote_code)
    target = resolve_model(file)
    if target.gguf_path is None:
        raise InputError(f"{file}: not a GGUF file; check merged weights in a folder with `aftertune check-merge`")
    source = with_rows(source, adapter)
    layers = MergedLayers(source, resolve_adapter(adapter, source, fingerprint_model(source)), loaded_dtype(source))
    config = load_config(source)
    built = dict(load_model(target, "float32", "cpu").named_parameters(remove_duplicate=False))
    types = _types(read_gguf(target.gguf_path), built, int(config["num_hidden_layers"]))
    found = _Found(built, types, config)
    with np.errstate(all="ignore"):  # damaged weights may be infinite
        for number, weight in enumerate(layers.weights(), 1):
            if progress is not None:
                progress(number, 0, "comparing weights")
            found.add(weight)
    faults = [*found.faults(), *_settings_faults(config, load_config(target))]
    tokenizers = load_tokenizer(source), load_tokenizer(target)
    if different := list(_tokenizer_faults(*tokenizers)):
        faults.append(WeightFault("tokenizer", FAULTS["tokenizer"].format(owner="base"), tuple(different)))
    return WeightsCheck(found.weights, found.adapted, tuple(sorted(set(found.types.values()))), tuple(faults),
                        notes=tuple(found.notes()))


def _types(contents: GgufContents, parameters: Iterable[str], layers: int) -> Mapping[str, str]:
    """The type in which the file has each parameter. A head that it does not have is the embeddings."""
    import gguf

    types = {t.name: t.dtype for t in contents.tensors}
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == contents.architecture)
    names = gguf.get_tensor_name_map(number, layers)
    stored = {p: names.get_name(p, try_suffixes=(".weight", ".bias")) or "" for p in parameters}
    return {p: types.get(name, types.get("token_embd.weight", "F32")) for p, name in stored.items()}


@dataclass(slots=True)
class _Found:
    """What the weights compared so far are. built: the parameters of the file's model; types: of its tensors;
    factors, left: of the change in weights with another scale, and in those from which rounding took most of it."""

    built: Mapping[str, Any]
    types: Mapping[str, str]
    config: Mapping[str, Any]
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    factors: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    unjudged: int = 0
    weights: int = 0
    adapted: int = 0

    def add(self, weight: MergedWeight) -> None:
        """Compare one weight with the file."""
        self.weights += 1
        changed = weight.role == "adapted" and bool((weight.merged != weight.base).any())
        self.adapted += changed
        if weight.name not in self.built:
            self.names["missing"].append(weight.name)
            return
        stored = Stored(to_array(self.built[weight.name]), "F32")
        if stored.values.shape != weight.merged.shape:
            self.names["shape"].append(weight.name)
        elif kind := self._kind(weight, stored, changed):
            self.names[kind].append(weight.name)

    def _kind(self, weight: MergedWeight, stored: Stored, changed: bool) -> str:
        """The kind of fault of a weight; "" if it is right."""
        import numpy as np

        bound = self._bound(weight.name)
        factor, change = stored.factor(weight.base, weight.merged), weight.merged - weight.base
        nearest = weight.base + factor * change if changed else weight.merged
        allowed = (nearest, weight.base) if weight.role == "saved" else (nearest,)
        if not any(stored.distance(values) <= bound for values in allowed):  # a NaN is no distance
            permuted = any(stored.distance(merged) <= bound for _, merged in in_other_orders(weight, self.config))
            return "permuted" if permuted else "other" if changed else "changed"
        if weight.role == "saved":
            return "lost" if stored.distance(weight.base) < stored.distance(weight.merged) else ""
        if not changed:
            return ""
        error = float(np.std(stored.values - nearest) / np.linalg.norm(change))
        whole, none = (abs(factor - value) <= max(4 * error, 0.1) for value in (1, 0))
        if error > _JUDGED or (whole and none):
            self.unjudged += 1
            return ""
        if whole:
            return ""
        low, high = _after_rounding(weight, self.types[weight.name])
        margin = max(4 * error, 0.1)
        if low - margin <= factor <= high + margin:
            if factor + margin < _LEFT:
                self.left.append(factor)
                return "rounded"
            self.unjudged += none or high - low > _JUDGED
            return ""
        if none:
            return "unmerged"
        self.factors.append(factor)
        return "scaled"

    def _bound(self, name: str) -> float:
        """The largest distance that the type of a tensor allows, as a share of its norm."""
        bits = re.search(r"Q(\d)", self.types[name])
        return _OF_BITS / 2 ** int(bits.group(1)) if bits else _WIDE

    def faults(self) -> Iterator[WeightFault]:
        """A fault for each kind that was found."""
        names = dict(self.names)
        if self.adapted and len(names.get("unmerged", ())) == self.adapted:
            names["not applied"] = names.pop("unmerged")
        for kind in FAULTS:
            if group := names.get(kind):
                factor = _middle(self.left if kind == "rounded" else self.factors)
                sentence = FAULTS[kind].format(factor=factor).replace("#", f"{len(group):,}")
                yield WeightFault(kind, sentence.replace("*", f"{self.adapted or self.weights:,}"), tuple(group))

    def notes(self) -> Iterator[str]:
        """What a reader should know that is no fault."""
        if self.unjudged:
            yield (f"the adapter's change cannot be distinguished from rounding in {self.unjudged:,} of "
                   f"{self.adapted:,} adapted weights; compare answers (check-deploy)")


def _middle(values: list[float]) -> float:
    """The value in the middle; 0 where there is none."""
    return max(sorted(values)[len(values) // 2], 0.0) if values else 0.0


def _after_rounding(weight: MergedWeight, kind: str) -> tuple[float, float]:
    """The smallest and the largest factor that the change of a right weight may have after rounding to a type, also
    where the merged weight was saved in 16 bits before. For a type that is not made here, from similar ones."""
    import gguf

    bits = re.search(r"Q(\d)", kind)
    kinds = (kind,) if kind in _MADE or bits is None else ("Q4_0", "Q4_1") if int(bits[1]) <= 4 else ("Q5_0", "Q5_1")
    factors = [1.0]
    for name in kinds if weight.merged.shape[-1] % 32 == 0 else ():
        number = gguf.GGMLQuantizationType[name]
        for grid in ("F32", "BF16", "F16"):
            rounded = gguf.dequantize(gguf.quantize(round_to(weight.merged, grid), number), number)
            factors.append(Stored(rounded, "F32").factor(weight.base, weight.merged))
    return min(factors), max(factors)


def _settings_faults(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[WeightFault]:
    """The settings of the forward pass that a GGUF has too and that differ."""
    left, right = ({k: config.get(k) for k in _SETTINGS} | {"rope_theta": _rope_theta(config)}
                   for config in (ours, theirs))
    different = [f"{k}: {left[k]} → {right[k]}" for k in left if not _equal(left[k], right[k])]
    if different:
        yield WeightFault("config", "its settings differ from the base's", tuple(different))


def _rope_theta(config: Mapping[str, Any]) -> Any:
    """The base of the rotation, under the names of newer and of older configs."""
    return (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))


def _equal(left: Any, right: Any) -> bool:
    """Whether two settings are equal, numbers to the precision of float32."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        return abs(left - right) <= 1e-6 * max(abs(left), abs(right))
    return left == right or right is None


def _tokenizer_faults(ours: Any, theirs: Any) -> Iterator[str]:
    """What differs in the tokens of a text or in the prompts; tokens that a GGUF has for unused rows are none."""
    vocabulary = theirs.get_vocab()
    if any(vocabulary.get(token) != number for token, number in ours.get_vocab().items()):
        yield "the ids of its tokens"
    yield from (d for d in tokenizer_differences(ours, theirs) if d.startswith(("the eos", "the bos", "the chat")))
