"""Puts PEFT adapters on a loaded base, and removes them.

    model = add_adapter(base, adapter, device="cpu")        # a PEFT model
    base = remove_adapter(model)
    randomize_adapter(model, seed=0)                        another adapter of the same size that learned nothing

PEFT only warns if tensors of a file find no place in the model, and of a part of them it says nothing. Here an adapter
is taken whole or not at all.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources.fingerprint import PLAIN_INITS, adapter_fields
from aftertune.sources.library_errors import is_memory_error, load_errors, quiet
from aftertune.sources.resolve import AdapterSource, read_json
from aftertune.sources.tensors import read_header
from aftertune.values import canonical


def add_adapter(model: Any, adapter: AdapterSource, *, device: str, name: str = "default") -> Any:
    """Load the adapter under ``name``, make it active and return the model.

    model: a transformers model, or a PEFT model, which takes several adapters by name.
    Raises SourceError if a tensor of the adapter has no place in the model, if the model needs one that the adapter
    does not have, or if PEFT cannot run the adapter on a text alone.
    """
    from peft import PeftModel, get_peft_model_state_dict

    with quiet(), load_errors(adapter, "its adapter (adapter_config.json)"):
        if isinstance(model, PeftModel):
            model.load_adapter(adapter.path, adapter_name=name, is_trainable=False, torch_device=device)
        else:
            model = PeftModel.from_pretrained(model, adapter.path, adapter_name=name, is_trainable=False,
                                              torch_device=device)
        model.set_adapter(name)
        loaded = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    _check_whole(adapter, loaded, set(model.state_dict()))
    _check_runs(adapter, model.eval())
    return model


#: PEFT types whose tensors in the file are all that an adapter is, so that values can be replaced one by one.
_REPLACEABLE = frozenset({"LORA", "IA3", "VERA"})
_OF_ADAPTERS = re.compile(r"\.(lora|ia3|vera)_")


def adapter_slots(adapter: AdapterSource) -> tuple[Any, ...] | None:
    """The config of an adapter with the names, dtypes and shapes of its tensors: where two are equal, one adapter can
    take the values of the other. None for an adapter that also changes the base or is more than its tensors."""
    config = read_json(adapter.path / "adapter_config.json")
    if adapter.peft_type not in _REPLACEABLE or config.get("bias", "none") != "none" or \
            config.get("modules_to_save") or config.get("trainable_token_indices") or \
            config.get("init_lora_weights", True) not in PLAIN_INITS:
        return None
    tensors = read_header(adapter.path / "adapter_model.safetensors")
    if not all(_OF_ADAPTERS.search(t.name) for t in tensors):  # a copy of the base's embeddings
        return None
    return canonical(adapter_fields(config)), tuple((t.name, t.dtype, t.shape) for t in tensors)


def replace_values(model: Any, adapter: AdapterSource) -> None:
    """Copy the values of an adapter into the one that is on a PEFT model; their slots must be equal."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    values = load_file(adapter.path / "adapter_model.safetensors")
    with torch.no_grad(), quiet():
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
            tensor.copy_(values[name])


def _check_whole(adapter: AdapterSource, loaded: set[str], in_model: set[str]) -> None:
    """Raise SourceError unless the adapter's file and the tensors that PEFT has for it are the same.

    loaded: names of the adapter's tensors in the model. in_model: names of all its tensors; PEFT also takes those of
    the base from an adapter's file, such as resized embeddings.
    """
    stored = {t.name for t in read_header(adapter.path / "adapter_model.safetensors")}
    if not stored & loaded:
        raise SourceError(f"{adapter.source}: none of the adapter's {len(stored)} tensors was loaded into "
                          f"{adapter.base}; give the base that the adapter was trained on")
    # With resized embeddings PEFT stores what is in modules_to_save under a second name too.
    twice = {name for name in stored if name.replace(".modules_to_save.", ".") in loaded}
    if unused := stored - loaded - in_model - twice:
        raise SourceError(f"{adapter.source}: {len(unused)} of the {len(stored)} tensors in its file have no place in "
                          f"the model, first {min(unused)!r}, because adapter_config.json does not name them, so only "
                          "a part of what was trained would be used; save the adapter again, with the config that it "
                          "was trained with")
    if loaded - stored:
        raise SourceError(f"{adapter.source}: the adapter lacks {len(loaded - stored)} tensors that its config "
                          f"requires, first {min(loaded - stored)!r}; save the adapter again")


def _check_runs(adapter: AdapterSource, model: Any) -> None:
    """Run four tokens. Raises SourceError if that fails: Poly, for example, needs a task id with every text."""
    import torch

    try:
        with torch.inference_mode(), quiet():
            model(input_ids=torch.zeros((1, 4), dtype=torch.long, device=model.device))
    except Exception as error:
        if is_memory_error(error):
            raise
        raise SourceError(f"{adapter.source}: PEFT cannot run this adapter of type {adapter.peft_type} on a text alone"
                          f": {' '.join(str(error).split())[:200]}; evaluate an adapter of another type, or a merged "
                          "model") from error


def randomize_adapter(model: Any, seed: int) -> bool:
    """Replace the update B A of each layer of a LoRA adapter by a random one with the same Frobenius norm.

    model: a PEFT model with one adapter. A and B have normal entries before they are scaled. False, and nothing is
    changed, for an adapter that trains more than plain A and B (DoRA, embeddings, whole modules).
    """
    import torch
    from peft.tuners.lora import LoraLayer

    config = model.active_peft_config
    plain = config.peft_type == "LORA" and not (config.use_dora or config.modules_to_save or config.lora_bias) \
        and config.bias == "none" and config.init_lora_weights in (True, False, "gaussian")
    layers = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for layer in model.modules()
              if isinstance(layer, LoraLayer) for name in layer.active_adapters if name in layer.lora_A]
    if not plain or not layers or any(len(layer.lora_embedding_A) for layer in model.modules()
                                      if isinstance(layer, LoraLayer)) or any(a.dim() != 2 for a, _ in layers):
        return False
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for a, b in layers:
            size = _update_norm(a, b)
            for matrix in (a, b):
                matrix.copy_(torch.randn(matrix.shape, generator=random))
            b.mul_(size / _update_norm(a, b))
    return True


def _update_norm(a: Any, b: Any) -> float:
    """The Frobenius norm of B A, from the small products: trace((B' B) (A A'))**0.5. a: [r, in]; b: [out, r]."""
    a, b = a.double(), b.double()
    return float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt())


def add_rows(model: Any, rows: int | None) -> None:
    """Give the embeddings of a model at least ``rows`` rows, as PEFT does for an adapter with a larger tokenizer.

    The new rows are the mean of the others, so that they are the same every time; an adapter that was trained with the
    new tokens brings its own.
    """
    import torch

    stored = int(model.get_input_embeddings().weight.shape[0])
    if rows is None or rows <= stored:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                weight = layer.weight
                weight[stored:] = weight[:stored].float().mean(0).to(weight.dtype)


def remove_adapter(model: Any) -> Any:
    """The transformers model inside a PEFT model, without the adapter's layers.

    What the adapter replaced in the base (biases, embeddings, the rest of a PiSSA) may stay replaced.
    """
    if model.active_peft_config.is_prompt_learning:  # these have no layers in the base
        base = model.get_base_model()
        base.prepare_inputs_for_generation = model.base_model_prepare_inputs_for_generation
        return base
    return model.unload() if hasattr(model.base_model, "unload") else model.get_base_model()


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Disable the adapter of a PEFT model. PEFT marks all its parameters as trained when it is enabled again, so the
    marks from before are put back."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
