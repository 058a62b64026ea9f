"""A decoder layer in one call: the bits of its kernels one after the other, and only where all of it fits."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import test_engine_cpu as cpu_cases
from aftertune.engine.backends import backend_for
from aftertune.engine.cpu import attention as cpu_attention
from aftertune.engine.cpu import availability, build, llama_step, ops
from aftertune.engine.decoder import Decoder, Wave
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer
from aftertune.engine.tokenize import Generation
from test_engine_cpu import HEAD, Adapted, Numbers, built, calls, one_thread, prompts, wide

__all__ = ["built", "calls", "one_thread"]
IN_TILES = Budget(tokens=10**6, logits=10**6, cells=10**9, slots=3, threads=1, weights="amx", backend="cpu")
KINDS = [name for name, (_, _, fused) in cpu_cases.MODELS.items() if fused and "narrow" not in name]


@pytest.fixture(autouse=True)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 tiles serve any processor, though nothing says that they pay there."""
    values = getattr(request.node, "callspec", None)
    if values and values.params.get("dtype") == torch.bfloat16 and not availability.amx_available():
        pytest.skip("this processor has no matrix registers")
    monkeypatch.setattr(availability, "amx_available", lambda: True)


def stepped(model: Any, past: int = 0) -> list[torch.Tensor]:
    """Logits of every step of a wave."""
    found: list[torch.Tensor] = []
    backend = backend_for(model, IN_TILES)

    class Kept(Decoder):
        def _step(self, *given: Any) -> torch.Tensor:
            found.append(super()._step(*given))
            return found[-1]

    with backend.computing():
        Kept(Scorer(model, packed=True, backend=backend), Numbers(), tokens=128).run(
            prompts(), Generation((), 12, False, ()), Wave(3, HEAD[:past]))
    return found


def both(model: Any, monkeypatch: pytest.MonkeyPatch, past: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same with layers in one call and, afterwards, kernel by kernel."""
    whole = stepped(model, past)
    with monkeypatch.context() as patched:
        patched.setattr(llama_step, "layer_step", lambda *_: None)
        return whole, stepped(model, past)


@pytest.mark.parametrize("past", [0, len(HEAD)])
@pytest.mark.parametrize("dtype", ops.DTYPES)
@pytest.mark.parametrize("name", KINDS)
def test_a_layer_in_one_call_gives_the_same_bits(name: str, dtype: torch.dtype, past: int, calls: Counter[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide(name).to(dtype)
    model.generation_config.eos_token_id = None
    whole, apart = both(model, monkeypatch, past)
    assert calls["layer_step"] == 2 * len(whole)
    assert calls["attend_step"] == 2 * len(apart)
    assert len(whole) == len(apart) > 12
    assert all(torch.equal(a, b) for a, b in zip(whole, apart, strict=True))


@pytest.mark.parametrize("values", [{}, {"use_dora": True}, {"target_modules": ["v_proj", "up_proj"]},
                                    {"rank_pattern": {"q_proj": 7, "v_proj": 1}, "alpha_pattern": {"k_proj": 11}}])
@pytest.mark.parametrize("dtype", ops.DTYPES)
def test_adapters_are_added(dtype: torch.dtype, values: dict[str, Any], calls: Counter[str],
                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Their small products are torch's or ours: the same but for rounding."""
    model = Adapted(dtype, **values).model
    model.generation_config.eos_token_id = None
    whole, apart = both(model, monkeypatch)
    assert calls["layer_step"] == 2 * len(whole) > 0
    bound = 1e-4 if dtype == torch.float32 else 0.1
    assert (whole[0] - apart[0]).abs().max() < bound
    with model.disable_adapter():
        assert (stepped(model)[0] - apart[0]).abs().max() > 2 * bound


@pytest.mark.parametrize("slots", [1, 3, 20])
@pytest.mark.parametrize("name", KINDS)
def test_slots_give_the_tokens_of_generate(name: str, slots: int) -> None:
    model = wide(name)
    model.generation_config.eos_token_id = None
    backend = backend_for(model, IN_TILES)
    with backend.computing():
        texts = Decoder(Scorer(model, packed=True, backend=backend), Numbers(), tokens=128).run(
            prompts(), Generation((), 12, False, ()), Wave(slots, HEAD))
    for position, prompt in prompts().items():
        right = model.generate(torch.tensor([prompt.tokens]), max_new_tokens=12, do_sample=False, pad_token_id=2)
        assert (texts[position].text or "").split() == [str(t) for t in right[0, len(prompt.tokens):].tolist()]


@pytest.mark.parametrize("made", [
    lambda: wide("llama, keys too narrow to pack"), lambda: wide(intermediate_size=200),
    lambda: Adapted(name="llama, with biases", lora_bias=True).model],
    ids=["keys too narrow", "no whole tiles", "no plain LoRA"])
def test_what_does_not_fit_goes_kernel_by_kernel(made: Callable[[], Any], calls: Counter[str]) -> None:
    model = made()
    model.generation_config.eos_token_id = None
    found = stepped(model)
    assert calls["attend_step"] == 2 * len(found) > 0
    assert calls["layer_step"] == 0


def test_a_norm_in_another_dtype_leaves_its_layer_as_it_is() -> None:
    model = wide()
    model.model.layers[0].input_layernorm.to(torch.float64)
    backend = backend_for(model, IN_TILES)
    with backend.computing():
        assert [bool(layer.forward.step) for layer in backend.layers.layers] == [False, True]


def test_what_a_step_is_not_made_for_does_not_reach_it() -> None:
    backend = backend_for(wide(), IN_TILES)
    lengths, angles = torch.zeros(2, dtype=torch.long), torch.zeros(2, 16)
    with backend.computing():
        step = backend.layers.layers[0].forward.step
        held = cpu_attention.CpuSlots(2, 8).cache(None, torch.zeros(1, 4, 16))
        for x, turns in [(torch.zeros(2, 64), angles), (torch.zeros(3, 128), angles),
                         (torch.zeros(2, 128).to(torch.bfloat16), angles), (torch.zeros(2, 128), angles.double())]:
            with pytest.raises(NotImplementedError, match="a step of"):
                step(x, turns, turns, lengths, held, None)
        assert step(torch.zeros(2, 128), angles, angles, lengths, held, None).shape == (2, 128)


@pytest.mark.parametrize("name", ["LoraPair", "Linear", "Layer"])
def test_structures_are_those_of_the_source(name: str) -> None:
    """Field by field, since a wrong one is memory read at random."""
    body = re.findall(r"typedef struct \{([^}]*)\} (\w+);", build.SOURCE.read_text())
    declared = {}
    for line in next(text for text, named in body if named == name).split(";")[:-1]:
        kind, fields = re.match(r"\s*((?:const )?\w+) (.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        for field in fields.split(","):
            declared[field.strip(" *\n")] = "pointer" if "*" in field else kind
    kinds: dict[Any, str] = {ctypes.c_void_p: "pointer", ctypes.c_int64: "int64_t", ctypes.c_double: "double",
                             llama_step._Linear: "Linear"}
    ours = {field[0]: kinds[field[1]] for field in getattr(llama_step, f"_{name}")._fields_}
    assert list(ours.items()) == list(declared.items())
