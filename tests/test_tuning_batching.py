"""Rows end to end: the loss, its gradients and the fused layers, compared with their plain definitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from aftertune.engine.cpu import availability, ops
from aftertune.engine.cpu.autograd import LoraLinear, RmsNorm, SiluGate, fused, head_loss
from aftertune.engine.cpu.lora import is_plain_lora
from aftertune.methods import METHODS
from aftertune.sources import load_model, resolve_model
from aftertune.study import LoraSpec
from aftertune.tuning.batching import EndToEnd, Padded, choose_layout, token_losses
from aftertune.tuning.build import build
from aftertune.tuning.tokenize import IGNORED, EncodedRow
from tuning_cases import tiny_model

ROWS = [EncodedRow([9, 4, 7, 30, 31, 1], [IGNORED] * 3 + [30, 31, 1]), EncodedRow([8, 12, 13, 14, 1], [8, 12, 13, 14,
                                                                                                       1]),
        EncodedRow([5, 6, 7, 8, 9, 10, 11, 12, 13, 1], [IGNORED] * 9 + [1]), EncodedRow([40, 41], [IGNORED, 41])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_model(tmp_path_factory.mktemp("batching"))


def model_of(folder: Any, method: str = "lora", dtype: str = "float32", dropout: float = 0.0) -> Any:
    """The tiny model under a method, its adapters moved so that they count."""
    model = build(load_model(resolve_model(str(folder)), dtype, "cpu"), method, LoraSpec(r=4, dropout=dropout), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return model


def dicts(rows: list[EncodedRow]) -> list[dict[str, list[int]]]:
    return [{"input_ids": r.ids, "labels": r.labels} for r in rows]


def plain_nats(model: Any, rows: list[EncodedRow]) -> Any:
    """The definition: each row alone, log-softmax of all its logits, the nats of what is learned, in one tensor."""
    found = []
    for row in rows:
        logp = model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        found += [-logp[i - 1, label] for i, label in enumerate(row.labels) if i and label != IGNORED]
    return torch.stack(found)


def gradients(model: Any) -> dict[str, Any]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trained_with(model: Any, layout: Any, rows: list[EncodedRow]) -> tuple[Any, dict[str, Any]]:
    """Loss (nats together) and gradients of a batch."""
    model.zero_grad()
    batch = layout.collate(dicts(rows))
    with layout.forward_context(model, batch):
        total, _, _ = layout.loss(model, batch)
        total.backward()
    return total.detach(), gradients(model)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.base != "nf4"])
@pytest.mark.parametrize("layout", [EndToEnd(None), Padded(0, None)], ids=["end to end", "padded"])
def test_loss_and_gradients_are_those_of_the_rows_alone(folder: Any, method: str, layout: Any) -> None:
    model = model_of(folder, method)
    total, found = trained_with(model, layout, ROWS)
    model.zero_grad()
    expected = plain_nats(model, ROWS).sum()
    expected.backward()
    assert float(total) == pytest.approx(float(expected.detach()), abs=1e-4)
    wanted = gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=2e-5, rtol=2e-4), name


def test_the_norms_of_dora_follow_the_weights(folder: Any) -> None:
    """Also where an optimizer moves them that counts no versions."""
    model = model_of(folder, "dora")
    assert sum(is_plain_lora(m, trained=True) for m in model.modules()) == 14
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, fused=True)
    for _ in range(3):
        total, found = trained_with(model, EndToEnd(None), ROWS)
        expected, wanted = trained_with(model, Padded(0, None), ROWS)
        assert float(total) == pytest.approx(float(expected), abs=1e-4)
        assert all(torch.allclose(found[n], g, atol=2e-5, rtol=2e-4) for n, g in wanted.items())
        optimizer.step()


def test_a_row_does_not_see_its_neighbours(folder: Any) -> None:
    model, layout = model_of(folder), EndToEnd(None)
    alone = torch.cat([token_losses(layout, model, [row])[0] for row in ROWS])
    together, row_of = token_losses(layout, model, ROWS)
    assert torch.allclose(alone, together, atol=1e-6)
    assert row_of.tolist() == [0] * 3 + [1] * 4 + [2] + [3]
    other = [ROWS[1], *ROWS[1:]]
    assert torch.equal(token_losses(layout, model, other)[0][-6:], together[-6:])


def test_the_real_models_dtype_gives_the_same_within_its_rounding(folder: Any) -> None:
    model = model_of(folder, dtype="bfloat16")
    nats = token_losses(EndToEnd(None), model, ROWS)[0]
    exact = plain_nats(model_of(folder), ROWS)
    assert (nats - exact).abs().mean() < 0.05
    _, wanted = trained_with(model_of(folder), Padded(0, None), ROWS)

    def errors(layout: Any) -> float:
        _, found = trained_with(model, layout, ROWS)
        return sum(float((found[n] - g).norm() / g.norm()) for n, g in wanted.items())

    assert errors(EndToEnd(None)) < 1.3 * errors(Padded(0, "bfloat16"))


def test_the_way_is_chosen_by_config_and_by_what_two_rows_say(folder: Any) -> None:
    model = model_of(folder)
    layout = choose_layout(model, ROWS, pad=0, dtype="float32")
    assert isinstance(layout, EndToEnd)
    assert layout.note.startswith("rows end to end (verified: ")
    for method, autocast in {"ia3": "bfloat16", "lora": None, "dora": None}.items():
        assert choose_layout(model_of(folder, method, "bfloat16"), ROWS, pad=0, dtype="bfloat16").autocast == autocast
    dropped = choose_layout(model_of(folder, "dora", "bfloat16", dropout=0.1), ROWS, pad=0, dtype="bfloat16")
    assert dropped.autocast == "bfloat16", "DoRA with dropout is left to PEFT"
    model.config.attention_dropout = 0.1
    assert choose_layout(model, ROWS, pad=0, dtype="float32").note == "padded rows: the model uses attention dropout"
    model.config.attention_dropout = 0.0
    capped = model.get_base_model().lm_head
    capped.register_forward_hook(lambda _module, _args, out: 3.0 * torch.tanh(out / 3.0))
    assert "end to end the loss of a token differs by" in choose_layout(model, ROWS, pad=0, dtype="float32").note


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [64, 2**25])
def test_the_heads_loss_in_chunks_is_cross_entropy(monkeypatch: pytest.MonkeyPatch, bias: bool, chunk: int) -> None:
    monkeypatch.setattr("aftertune.engine.cpu.autograd.LOGITS", chunk)
    torch.manual_seed(0)
    head = torch.nn.Linear(24, 50, bias=bias)
    hidden, labels = torch.randn(150, 24, requires_grad=True), torch.randint(0, 50, (150,))
    total, nats = head_loss(hidden, head, labels)
    (total / 7).backward()
    found = [hidden.grad, head.weight.grad, *([head.bias.grad] if bias else [])]
    leaf = hidden.detach().double().requires_grad_()
    exact = torch.nn.Linear(24, 50, bias=bias).double()
    exact.load_state_dict({k: v.double() for k, v in head.state_dict().items()})
    expected = torch.nn.functional.cross_entropy(exact(leaf), labels, reduction="none")
    (expected.sum() / 7).backward()
    assert torch.allclose(nats.double(), expected, atol=1e-5)
    for a, b in zip(found, [leaf.grad, exact.weight.grad, *([exact.bias.grad] if bias else [])], strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)


def test_dropout_of_a_fused_layer_is_pefts(folder: Any) -> None:
    """The same random numbers give the same loss, and the gradients of finite differences."""
    model = model_of(folder, dropout=0.5)
    layer = next(m for m in model.modules() if is_plain_lora(m, trained=True))
    x = torch.randn(3, layer.base_layer.in_features, dtype=torch.float32, requires_grad=True)
    kept = torch.tensor([0.0, 2.0]).repeat(3, layer.base_layer.in_features // 2)
    a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    leaves = [p.detach().double().requires_grad_() for p in (x, a, b)]
    assert torch.autograd.gradcheck(
        lambda *p: LoraLinear.apply(p[0], layer.base_layer.double(), *p[1:], 0.5, kept.double()), leaves,
        atol=1e-2, rtol=1e-2)
    layer.base_layer.float()
    with fused(model):
        model.train()
        torch.manual_seed(3)
        first = layer(x)
        torch.manual_seed(3)
        assert torch.equal(layer(x), first)
        assert not torch.equal(layer(x), first)
        model.eval()
        still = layer(x)
    assert torch.allclose(still, layer(x), atol=1e-5)


@dataclass(frozen=True)
class Numbers:
    """Three tensors [5, 64] of a dtype, and the same in float64 as leaves."""

    given: list[Any]
    exact: list[Any]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def numbers(request: pytest.FixtureRequest) -> Numbers:
    torch.manual_seed(0)
    given = [torch.randn(5, 64).to(request.param) for _ in range(3)]
    return Numbers([x.clone().requires_grad_() for x in given], [x.double().requires_grad_() for x in given])


def agree(found: Any, exact: Any) -> bool:
    coarse = found.dtype == torch.bfloat16
    return torch.allclose(found.double(), exact, atol=0.08 if coarse else 1e-5, rtol=0.02 if coarse else 1e-4)


@pytest.mark.skipif(bool(availability.why_unavailable()), reason="no kernels here")
def test_the_gate_and_its_gradients(numbers: Numbers) -> None:
    x, y, grad = numbers.given
    SiluGate.apply(x, y).backward(grad.detach())
    a, b, _ = numbers.exact
    (torch.nn.functional.silu(a) * b).backward(grad.detach().double())
    assert agree(x.grad, a.grad)
    assert agree(y.grad, b.grad)


@pytest.mark.skipif(bool(availability.why_unavailable()), reason="no kernels here")
def test_the_norm_and_its_gradient(numbers: Numbers) -> None:
    x, _, grad = numbers.given
    weight = numbers.given[1][0].detach()
    RmsNorm.apply(x, weight, 1e-5).backward(grad.detach())
    a = numbers.exact[0]
    (a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()).backward(grad.detach().double())
    assert agree(x.grad, a.grad)


@pytest.mark.skipif(bool(availability.why_unavailable()), reason="no kernels here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "shared", "size"), [(2, 2, 16), (6, 2, 64), (8, 1, 80)])
@pytest.mark.parametrize("window", [0, 1, 5, 1000])
def test_gradients_of_attention(dtype: Any, heads: int, shared: int, size: int, window: int) -> None:
    """Against float64, for rows shorter and longer than a tile and than a block of queries."""
    torch.manual_seed(0)
    lengths = [1, 16, 33, 120]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    shape = ops.RowShape(starts, torch.cat([torch.full((n,), n) for n in lengths]),
                          torch.cat([torch.arange(n) for n in lengths]))
    q, k, v, grad = (torch.randn(sum(lengths), n, size).to(dtype) for n in (heads, shared, shared, heads))
    out = ops.attend_rows(q, k, v, shape, None, size**-0.5, window)
    found = ops.attend_back(q, k, v, out, grad, starts, size**-0.5, window)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    parts = []
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        places = torch.arange(last - first)
        back = places[:, None] - places
        mask = (back >= 0) & ((back < window) if window else True)
        parts.append(torch.nn.functional.scaled_dot_product_attention(
            *(x[first:last].transpose(0, 1)[None] for x in exact), attn_mask=mask, enable_gqa=True)[0].transpose(0, 1))
    torch.cat(parts).backward(grad.double())
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a.double(), b.grad, atol=0.08 if dtype == torch.bfloat16 else 2e-5,
                              rtol=0.02 if dtype == torch.bfloat16 else 1e-4)


def test_without_kernels_torch_does_the_attention(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(folder)
    expected = trained_with(model, Padded(0, None), ROWS)
    monkeypatch.setattr(availability, "why_unavailable", lambda: "none here")
    total, found = trained_with(model, EndToEnd(None), ROWS)
    assert float(total) == pytest.approx(float(expected[0]), abs=1e-4)
    for name, gradient in expected[1].items():
        assert torch.allclose(found[name], gradient, atol=2e-5, rtol=2e-4), name


def test_nothing_stays_changed(folder: Any) -> None:
    model = model_of(folder)
    before = {n: vars(m).get("forward") for n, m in model.named_modules()}
    layout = EndToEnd(None)
    with pytest.raises(RuntimeError, match="broken"), layout.forward_context(model, layout.collate(dicts(ROWS))):
        raise RuntimeError("broken")
    assert {n: vars(m).get("forward") for n, m in model.named_modules()} == before
    assert model.config._attn_implementation != "aftertune"
