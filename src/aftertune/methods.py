"""Defines the fine-tuning methods: `METHODS` has one entry for each, with all facts about it.

    METHODS["dora"].title                    "DoRA"
    METHODS["ia3"].learning_rate             0.008
    METHODS["lora"].config(LoraSpec(r=8), 0)     PEFT's LoraConfig

To add a PEFT method, add one entry to `METHODS`. The study's specification, the help of ``--method``, docs/methods.md
(``make docs``), the estimate of ``--dry-run``, the training, the output folder, the unsloth backend and the report read
it from here. Rooms that must start quickly import this module too, so PEFT and torch are imported inside functions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

#: The version of the training loop. It is raised with every change that affects the weights, so that results of an
#: older loop are not mixed with those of this one. A method has its own number where only that method changed.
LOOP = 2
#: Layers whose inputs IA3 scales. It scales the outputs of all others.
FEEDFORWARD = ("down_proj", "fc2", "fc_out", "w2", "dense_4h_to_h")
#: PEFT's name for PiSSA with 16 rounds of subspace iteration: it takes seconds, and a full decomposition minutes.
PISSA = "pissa_niter_16"


class Settings(Protocol):
    """The hyperparameters of an adapter (`aftertune.study.LoraSpec`)."""

    @property
    def r(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def target_modules(self) -> tuple[str, ...] | None: ...


class Linear(NamedTuple):
    """A linear layer of a model. names: its names in the model families; inputs, outputs: columns and rows of its
    weight."""

    names: tuple[str, ...]
    inputs: int
    outputs: int


#: Computes a number of parameters, or of operations, of an adapter on these linear layers.
Count = Callable[[Sequence[Linear], Settings], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One fine-tuning method.

    title: the name that people use. trains: what is trained, in one sentence, with its source.
    learning_rate: the default.
    base: the weights of the base during training: "computing", in the dtype of the computation; "nf4", linear layers in
    four bits; "float32".
    config: makes PEFT's config from the settings and the seed; None where the weights of the base are trained.
    settings: the fields of ``lora`` that have an effect. defaults: of these fields, where they differ from the usual
    ones. size: what ``lora.r`` means for the method.
    parameters: number of trained parameters; None for all weights of the base. stored: numbers in the saved adapter,
    where there are more. operations: of the adapter, for each token of training; None for six for each trained
    parameter.
    kept: activations that a step stores for its backward pass, relative to those of fused LoRA layers (docs/log.md).
    fused: on a CPU its layers run with the compiled LoRA kernels; those of other methods run in PEFT.
    unsloth: arguments of unsloth's ``get_peft_model``; None where that backend does not train it.
    preset: the learning rate and ``lora`` of a model preset apply. Presets publish them for LoRA.
    not_merged: why it has no merged weights; "" where the adapter can be merged into its base.
    saved_as: what the output folder contains.
    begin: called with the new PEFT model before the first step. save: returns the tensors, by their names in the file,
    and PEFT's config of a trained model, where PEFT's own saving is not sufficient.
    notes: what a reader of the method's results should know. They are part of the record of each tuning.
    loop: the version of the training loop for this method.
    """

    title: str
    trains: str
    learning_rate: float
    base: Literal["computing", "nf4", "float32"] = "computing"
    config: Callable[[Settings, int], Any] | None
    settings: tuple[str, ...] = ("r", "alpha", "dropout", "target_modules")
    defaults: Mapping[str, Any] = field(default_factory=dict)
    size: str = "rank"
    parameters: Count | None
    stored: Count | None = None
    operations: Count | None = None
    kept: float = 1.0
    fused: bool = False
    unsloth: Mapping[str, Any] | None = None
    preset: bool = True
    not_merged: str = ""
    saved_as: str = "a PEFT adapter"
    begin: Callable[[Any], None] | None = None
    save: Callable[[Any], tuple[dict[str, Any], Any]] | None = None
    notes: tuple[str, ...] = ()
    loop: int = LOOP

    @property
    def adapter(self) -> bool:
        """True where an adapter on the base is trained, False where the weights of the base are."""
        return self.config is not None


def method_title(name: str) -> str:
    """The title of a method; the name itself for a method of another version of aftertune."""
    return METHODS[name].title if name in METHODS else name


def writes_adapter(name: str) -> bool:
    """True where a tuning by this method writes an adapter, False where it writes whole weights. An unknown method, of
    another version of aftertune, is treated as one with an adapter."""
    return name not in METHODS or METHODS[name].adapter


# --- LoRA and its variants ---

def _lora_config(**variant: Any) -> Callable[[Settings, int], Any]:
    """A function that makes PEFT's LoraConfig with the arguments of a LoRA variant."""
    def config(lora: Settings, _seed: int) -> Any:
        from peft import LoraConfig, TaskType

        return LoraConfig(**{
            "r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_dora": False, "use_rslora": False,
            "target_modules": _targets(lora) or "all-linear", "init_lora_weights": True,
            "task_type": TaskType.CAUSAL_LM, **variant})

    return config


def _targets(lora: Settings) -> list[str] | None:
    return list(lora.target_modules) if lora.target_modules else None


def _lora_parameters(layers: Sequence[Linear], lora: Settings) -> int:
    """The matrices A [r, inputs] and B [outputs, r] of each layer."""
    return sum(lora.r * (layer.inputs + layer.outputs) for layer in layers)


def _dora_parameters(layers: Sequence[Linear], lora: Settings) -> int:
    """The matrices of LoRA, and a magnitude for each output."""
    return _lora_parameters(layers, lora) + sum(layer.outputs for layer in layers)


# --- PiSSA ---

def _remember_pissa(model: Any) -> None:
    """Keep the initial tensors of the adapter. With the same seed a resumed run makes the same ones."""
    model.pissa_start = {name: tensor.clone() for name, tensor in _adapter_tensors(model).items()}


def _pissa_as_lora(model: Any) -> tuple[dict[str, Any], Any]:
    """The tensors and config of a plain LoRA of twice the rank, for the base as it is stored.

    PiSSA starts from W = W' + s B0 A0 and replaces the weights W of the base by W'. The learned change is therefore
    s (B A - B0 A0) = s [B, -B0] [A; A0].
    """
    import torch

    start, tensors = model.pissa_start, {}
    for name, tensor in _adapter_tensors(model).items():
        if "lora_A" in name:
            tensors[name] = torch.cat([tensor, start[name]])  # [2 * rank, inputs]
        else:
            tensors[name] = torch.cat([tensor, -start[name]], 1)  # [outputs, 2 * rank]
    config = copy.deepcopy(model.peft_config["default"])
    config.r, config.lora_alpha, config.init_lora_weights, config.inference_mode = (
        2 * config.r, 2 * config.lora_alpha, True, True)
    return tensors, config


def _adapter_tensors(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    tensors: dict[str, Any] = {n: t.detach().cpu() for n, t in get_peft_model_state_dict(
        model, save_embedding_layers=False).items()}
    return tensors


# --- IA3 ---

def _ia3_config(lora: Settings, _seed: int) -> Any:
    from peft import IA3Config, TaskType

    targets = _targets(lora)
    feedforward = [t for t in targets or () if t in FEEDFORWARD]
    return IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=targets,
                     feedforward_modules=feedforward if targets else None)


def _ia3_parameters(layers: Sequence[Linear], lora: Settings) -> int:
    """A factor for each input of a feed-forward layer, and for each output of the others. Without targets PEFT uses
    keys (in some families queries), values and the second feed-forward layer."""
    targets = lora.target_modules or ("k_proj", "v_proj", *FEEDFORWARD)
    return sum(layer.inputs if set(layer.names) & set(FEEDFORWARD) else layer.outputs
               for layer in layers if set(layer.names) & {t.rpartition(".")[2] for t in targets})


# --- OFT ---

def _oft_config(lora: Settings, _seed: int) -> Any:
    from peft import OFTConfig, TaskType

    return OFTConfig(r=0, oft_block_size=lora.r, module_dropout=lora.dropout,
                     target_modules=_targets(lora) or "all-linear", task_type=TaskType.CAUSAL_LM)


def _oft_block(inputs: int, size: int) -> int:
    """The block size that PEFT uses for a layer: the divisor of the inputs that is nearest to ``size``, the smaller one
    of two."""
    return min((n for n in range(1, inputs + 1) if inputs % n == 0), key=lambda n: (abs(n - size), n))


def _oft_parameters(layers: Sequence[Linear], lora: Settings) -> int:
    """The upper triangle of a skew-symmetric matrix, for each block of inputs."""
    return sum(layer.inputs * (_oft_block(layer.inputs, lora.r) - 1) // 2 for layer in layers)


def _oft_operations(layers: Sequence[Linear], lora: Settings) -> int:
    """A rotation of the inputs in blocks: the forward pass, and the gradients of inputs and blocks."""
    return sum(6 * layer.inputs * _oft_block(layer.inputs, lora.r) for layer in layers)


# --- VeRA ---

def _vera_config(lora: Settings, seed: int) -> Any:
    from peft import TaskType, VeraConfig

    return VeraConfig(r=lora.r, vera_dropout=lora.dropout, target_modules=_targets(lora) or "all-linear",
                      projection_prng_key=seed, save_projection=True, task_type=TaskType.CAUSAL_LM)


def _vera_parameters(layers: Sequence[Linear], lora: Settings) -> int:
    """The vectors d [r] and b [outputs] of each layer."""
    return sum(lora.r + layer.outputs for layer in layers)


def _vera_stored(layers: Sequence[Linear], lora: Settings) -> int:
    """Also the two random matrices, once. PEFT makes them as large as the largest layer needs."""
    shared = lora.r * (max(layer.inputs for layer in layers) + max(layer.outputs for layer in layers))
    return _vera_parameters(layers, lora) + shared


def _vera_operations(layers: Sequence[Linear], lora: Settings) -> int:
    """The products with both random matrices, in the forward pass and for the gradient of the inputs."""
    return sum(4 * lora.r * (layer.inputs + layer.outputs) for layer in layers)


# --- The methods ---

METHODS: Mapping[str, Method] = MappingProxyType({
    "lora": Method(
        title="LoRA", learning_rate=2e-4, fused=True, unsloth={"use_rslora": False},
        trains="A product of two narrow matrices, added to each weight (Hu et al. 2021, arXiv:2106.09685).",
        config=_lora_config(), parameters=_lora_parameters),
    "qlora": Method(
        title="QLoRA", learning_rate=2e-4, base="nf4", kept=2, unsloth={"use_rslora": False}, loop=3,
        trains="LoRA on a base whose linear layers are stored in four bits (Dettmers et al. 2023, arXiv:2305.14314).",
        config=_lora_config(), parameters=_lora_parameters,
        notes=("held-out losses are measured on the four-bit base of the training; evaluations and merges use the "
               "base as it is stored",)),
    "rslora": Method(
        title="rsLoRA", learning_rate=2e-4, fused=True, unsloth={"use_rslora": True},
        trains="LoRA, scaled by the square root of the rank (Kalajdzievski 2023, arXiv:2312.03732).",
        config=_lora_config(use_rslora=True), parameters=_lora_parameters),
    "dora": Method(
        title="DoRA", learning_rate=2e-4, fused=True, loop=3,
        trains="LoRA for the direction of each weight row, and its length (Liu et al. 2024, arXiv:2402.09353).",
        config=_lora_config(use_dora=True), parameters=_dora_parameters),
    "pissa": Method(
        title="PiSSA", learning_rate=2e-4, fused=True,
        trains="LoRA that starts as the principal part of each weight (Meng et al. 2024, arXiv:2404.02948).",
        config=_lora_config(init_lora_weights=PISSA), parameters=_lora_parameters,
        stored=lambda layers, lora: 2 * _lora_parameters(layers, lora), saved_as="a LoRA adapter of twice the rank",
        begin=_remember_pissa, save=_pissa_as_lora,
        notes=("the adapter is saved as a LoRA adapter of twice the rank, for the base as it is stored",)),
    "ia3": Method(
        title="IA3", learning_rate=8e-3, loop=3,
        trains="A factor for each key, value and inner activation (Liu et al. 2022, arXiv:2205.05638).",
        config=_ia3_config, settings=("target_modules",), parameters=_ia3_parameters),
    # At these rates the held-out loss of SmolLM2-135M on 48 orders fell in 12 steps of 4 from 0.90 to 0.21 (OFT), and
    # to 0.84 (VeRA, which trains a tenth of the parameters).
    "oft": Method(
        title="OFT", learning_rate=1e-3, kept=2, preset=False, size="block size", defaults={"r": 32},
        trains="A rotation of the inputs of each layer, in blocks (Qiu et al. 2023, arXiv:2306.07280; 2025, "
               "arXiv:2506.19847).",
        config=_oft_config, settings=("r", "dropout", "target_modules"), parameters=_oft_parameters,
        operations=_oft_operations,
        notes=("where the block size does not divide the number of inputs of a layer, the nearest size that does is "
               "used",)),
    "vera": Method(
        title="VeRA", learning_rate=4e-3, kept=2, preset=False, defaults={"r": 256},
        trains="Two vectors for each layer, which scale random matrices that all layers share (Kopiczko et al. 2023, "
               "arXiv:2310.11454).",
        config=_vera_config, settings=("r", "dropout", "target_modules"), parameters=_vera_parameters,
        stored=_vera_stored, operations=_vera_operations,
        saved_as="a PEFT adapter with its random matrices"),
    "full": Method(
        title="full fine-tune", learning_rate=2e-5, base="float32", kept=2, loop=3,
        trains="Every weight, in float32, because bfloat16 loses small updates.",
        config=None, settings=(), parameters=None, saved_as="whole weights",
        not_merged="full writes whole weights, so there is nothing to merge"),
})

if TYPE_CHECKING:
    MethodName = str
else:  # pydantic reads the allowed names from it
    MethodName = Literal[tuple(METHODS)]


def adapted_layers(layers: Sequence[Linear], targets: Sequence[str] | None) -> list[Linear]:
    """The layers that ``targets`` name. All layers without targets, or if a name is unknown."""
    ends = {target.rpartition(".")[2] for target in targets or ()}
    if not ends or ends - {name for layer in layers for name in layer.names}:
        return list(layers)
    return [layer for layer in layers if ends & set(layer.names)]


def unused_settings(name: str, given: set[str]) -> str:
    """A note on the given settings of ``lora`` that have no effect on a method; "" where there are none."""
    unused = [f"lora.{key}" for key in ("r", "alpha", "dropout", "target_modules")
              if key in given and key not in METHODS[name].settings]
    return f"{', '.join(unused)}: no effect on {name}" if unused else ""


# --- Help texts and docs/methods.md ---

def join_names(names: Sequence[str], last: str = "or") -> str:
    """"lora, dora or full"."""
    return f"{', '.join(names[:-1])} {last} {names[-1]}" if len(names) > 1 else "".join(names)


def rates_text() -> str:
    """The default learning rates: "ia3 8e-3, full 2e-5, others 2e-4"."""
    usual = METHODS["lora"].learning_rate
    others = [f"{name} {_rate(m.learning_rate)}" for name, m in METHODS.items() if m.learning_rate != usual]
    return ", ".join([*others, f"others {_rate(usual)}"])


def ranks_text() -> str:
    """What ``lora.r`` means, with the methods for which it means something else or has another default."""
    others = [f"{name}: {'' if m.size == 'rank' else f'{m.size}, '}default {m.defaults['r']}"
              for name, m in METHODS.items() if "r" in m.defaults]
    return f"Rank of the adapter ({'; '.join(others)})." if others else "Rank of the adapter."


def unsloth_methods() -> list[str]:
    """The methods that unsloth trains."""
    return [name for name, method in METHODS.items() if method.unsloth is not None]


def _rate(rate: float) -> str:
    """0.0002 as "2e-4"."""
    digits, _, power = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def methods_page() -> str:
    """The text of docs/methods.md. ``python -m aftertune.methods`` prints it, and ``make docs`` writes the file."""
    base_dtypes = {"computing": "dtype of the computation", "nf4": "four bits (NF4)", "float32": "float32"}
    rows = [("method", "name", "learning rate", "settings of `lora`", "base in memory", "saved as", "merge", "unsloth",
             "CPU kernels"), ("---",) * 9]
    for name, m in METHODS.items():
        settings = [f"`{key}`" + (f" ({m.size}, {m.defaults[key]})" if key == "r" and "r" in m.defaults else "")
                    for key in m.settings]
        rows.append((f"`{name}`", m.title, _rate(m.learning_rate), ", ".join(settings) or "none", base_dtypes[m.base],
                     m.saved_as, "no" if m.not_merged else "yes", "yes" if m.unsloth is not None else "no",
                     "yes" if m.fused else "no"))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    listing = "\n".join(f"- `{name}`: {' '.join([m.trains, *(f'{note[0].upper()}{note[1:]}.' for note in m.notes)])}"
                        for name, m in METHODS.items())
    return "\n\n".join([
        "# Fine-tuning methods",
        "Written by `make docs` from `src/aftertune/methods.py`. Choose one with `--method`, or with `method:` in a "
        "study.", listing, table,
        "The learning rate is the default. Settings of `lora` that are not listed have no effect on the method, and "
        "the record of the tuning says so. Without `target_modules` all linear layers except the output head are "
        "adapted (ia3: those that PEFT names for the model family; in other families keys, values and the second "
        "feed-forward layer). [Model families](families.md) says what differs in mixtures of experts and state-space "
        "models. `merge` writes whole weights beside the adapter. "
        "CPU kernels: on a CPU the layers of the method are trained with the compiled kernels; other methods are "
        "trained with PEFT alone. `aftertune tune … --dry-run` shows how many parameters a method trains, and how much "
        "memory, disk and time it needs."]) + "\n"


if __name__ == "__main__":
    print(methods_page(), end="")
