"""A decoder layer in one call: the bits of its kernels one after the other, and only where all of it fits."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import test_engine_native as native_cases
from aftertune.engine import kernels, native, steps
from aftertune.engine.decoder import Decoder, Wave
from aftertune.engine.encode import Generation
from aftertune.engine.fast import Fast
from aftertune.engine.schedule import TILED, Budget
from aftertune.engine.scorer import Scorer
from test_engine_native import HEAD, Adapted, Numbers, built, calls, one_thread, prompts, wide

__all__ = ["built", "calls", "one_thread"]
IN_TILES = Budget(tokens=10**6, logits=10**6, cells=10**9, slots=3, threads=1, prepacked=TILED, kernels=1)
KINDS = [name for name, (_, _, fused) in native_cases.MODELS.items() if fused and "narrow" not in name]


@pytest.fixture(autouse=True)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 tiles serve any processor, though nothing says that they pay there."""
    values = getattr(request.node, "callspec", None)
    if values and values.params.get("dtype") == torch.bfloat16 and not kernels.tiled():
        pytest.skip("this processor has no matrix registers")
    monkeypatch.setattr(kernels, "tiled", lambda: True)


def stepped(model: Any, past: int = 0) -> list[torch.Tensor]:
    """Logits of every step of a wave."""
    found: list[torch.Tensor] = []
    fast = Fast(model, IN_TILES)

    class Kept(Decoder):
        def _step(self, *given: Any) -> torch.Tensor:
            found.append(super()._step(*given))
            return found[-1]

    with fast.on():
        Kept(Scorer(model, packed=True, kit=fast.kit), Numbers(), tokens=128).run(
            prompts(), Generation((), 12, False, ()), Wave(3, HEAD[:past]))
    return found


def both(model: Any, monkeypatch: pytest.MonkeyPatch, past: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same with layers in one call and, afterwards, kernel by kernel."""
    whole = stepped(model, past)
    with monkeypatch.context() as patched:
        patched.setattr(steps, "of", lambda _: None)
        return whole, stepped(model, past)


@pytest.mark.parametrize("past", [0, len(HEAD)])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
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
@pytest.mark.parametrize("dtype", kernels.DTYPES)
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
    fast = Fast(model, IN_TILES)
    with fast.on():
        texts = Decoder(Scorer(model, packed=True, kit=fast.kit), Numbers(), tokens=128).run(
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
    fast = Fast(model, IN_TILES)
    with fast.on():
        assert [bool(layer.forward.step) for layer in fast.blocks.layers] == [False, True]


def test_what_a_step_is_not_made_for_does_not_reach_it() -> None:
    fast = Fast(wide(), IN_TILES)
    lengths, angles = torch.zeros(2, dtype=torch.long), torch.zeros(2, 16)
    with fast.on():
        step = fast.blocks.layers[0].forward.step
        held = native.Slots(2, 8, device=torch.device("cpu")).held(None, torch.zeros(1, 4, 16))
        for x, turns in [(torch.zeros(2, 64), angles), (torch.zeros(3, 128), angles),
                         (torch.zeros(2, 128).to(torch.bfloat16), angles), (torch.zeros(2, 128), angles.double())]:
            with pytest.raises(NotImplementedError, match="a step of"):
                step(x, turns, turns, lengths, held, None)
        assert step(torch.zeros(2, 128), angles, angles, lengths, held, None).shape == (2, 128)


@pytest.mark.parametrize("name", ["Low", "Linear", "Layer"])
def test_structures_are_those_of_the_source(name: str) -> None:
    """Field by field, since a wrong one is memory read at random."""
    body = re.findall(r"typedef struct \{([^}]*)\} (\w+);", kernels._SOURCE.read_text())
    declared = {}
    for line in next(text for text, named in body if named == name).split(";")[:-1]:
        kind, fields = re.match(r"\s*((?:const )?\w+) (.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        for field in fields.split(","):
            declared[field.strip(" *\n")] = "pointer" if "*" in field else kind
    kinds: dict[Any, str] = {ctypes.c_void_p: "pointer", ctypes.c_int64: "int64_t", ctypes.c_double: "double",
                             steps._Linear: "Linear"}
    ours = {field[0]: kinds[field[1]] for field in getattr(steps, f"_{name}")._fields_}
    assert list(ours.items()) == list(declared.items())
