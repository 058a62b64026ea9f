"""Prefixes computed once change no number: the same requests with and without them, and as plain rows, on families
that differ in how they attend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aftertune.engine import packing
from aftertune.engine.attention import TorchRows, attending
from aftertune.engine.engine import Engine, EnginePlan
from aftertune.engine.packing import prompt_row
from aftertune.engine.schedule import Budget
from aftertune.engine.scorer import Scorer
from aftertune.values import Request
from eval_cases import FAMILIES, SLIDING, byte_llama, byte_tokenizer, family

SHOTS = "Q: 1+1? A: 2\nQ: ab or ba? A: ab\nQ: what is it? A: a zz\n"
OTHER = "Name the animal that says so, in one word, please.\n"
CHOICES = (" ab", " a longer answer of many tokens", " no", " x")
SMALL = Budget(tokens=150, logits=60, cells=40_000, slots=2, threads=1)


def requests() -> list[Request]:
    """Items of three tasks in turn: two with their own beginnings, longer than any window, and one with none."""
    contexts = [text for n in range(4)
                for text in (f"{SHOTS}Q: {n}{'b' * n}? A:", f"{OTHER}Moo {n * 'o'}:", n * "z" + "?")]
    results = []
    for item, context in enumerate(contexts):
        for choice in CHOICES[: 2 + item % 3]:
            results.append(Request(position=len(results), kind="score", context=context, continuation=choice,
                                   item=item))
    return results


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MIN_PREFIX", 8)
    monkeypatch.setattr(packing, "MIN_SAVED", 60)


def tokens(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text))


def measured(model: Any, *, packed: bool = True, budget: Budget = SMALL) -> tuple[dict[int, Any], EnginePlan]:
    engine = Engine(model, byte_tokenizer(), packed=packed, budget=budget)
    plan = engine.plan(requests())
    return {p: r for batch in engine.run(plan, set()) for p, r in batch.responses.items()}, plan


@pytest.mark.parametrize("name", FAMILIES)
def test_shared_prefixes_change_no_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family(name)
    monkeypatch.setattr(packing, "MIN_PREFIX", 10**6)
    apart, none = measured(model)
    plain, _ = measured(model, packed=False)
    monkeypatch.setattr(packing, "MIN_PREFIX", 8)
    monkeypatch.setattr(packing, "MIN_SAVED", 60)
    together, plan = measured(model)
    wide, one = measured(model, budget=Budget(tokens=10**6, logits=10**6, cells=10**9, slots=2, threads=1))
    assert plan.decision.note.startswith("packed rows (verified")
    prefixes = [job.prefix for job in plan.jobs]
    assert {len(p) for p in prefixes} - {0} == {len(p) for p in (tokens(SHOTS + "Q: "), tokens(OTHER + "Moo "))}
    assert all(len(p) > SLIDING for p in prefixes if p)
    assert max(prefixes.count(p) for p in prefixes if p) >= 2, "one prefix serves several batches"
    assert not any(job.prefix for job in none.jobs)
    assert len(one.jobs) == 3
    assert len({plan.digest, none.digest, one.digest}) == 3
    assert together.keys() == apart.keys() == plain.keys() == wide.keys() == set(range(len(requests())))
    for position, response in plain.items():
        for actual in (apart, together, wide):
            assert actual[position].logprob == pytest.approx(response.logprob, abs=1e-4)
            assert actual[position].greedy == response.greedy
    assert len({round(r.logprob, 2) for r in plain.values()}) > len(plain) // 2, "the items differ"


@pytest.mark.usefixtures("sharing")
def test_a_prefix_is_computed_once_for_all_its_batches() -> None:
    model = byte_llama()
    engine = Engine(model, byte_tokenizer(), packed=True, budget=SMALL)
    plan = engine.plan(requests())
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, __, values: seen.append(values["input_ids"].shape[1]), with_kwargs=True)
    batches = list(engine.run(plan, set()))
    prefixes = {job.prefix for job in plan.jobs if job.prefix}
    assert len(seen) == len(batches) + len(prefixes)
    assert sum(seen) == plan.cost + sum(map(len, prefixes))
    assert sum(b.cost for b in batches) == plan.cost
    inputs = sum(len(engine.encoder.score(r.context, r.continuation).tokens) - 1 for r in requests())
    assert sum(seen) < 0.6 * inputs


@pytest.mark.usefixtures("sharing")
def test_a_run_may_begin_anywhere() -> None:
    """Batches that are done already need no prefix, and leave the others as they were."""
    whole, plan = measured(byte_llama())
    engine = Engine(byte_llama(), byte_tokenizer(), packed=True, budget=SMALL)
    for skipped in range(len(plan.jobs)):
        done = {p for job in plan.jobs[: skipped + 1] for p in job.positions}
        again = engine.plan(requests())
        assert again.digest == plan.digest
        rest = {p: r for batch in engine.run(again, done) for p, r in batch.responses.items()}
        assert rest == {p: r for p, r in whole.items() if p not in done}


def test_another_prefix_takes_the_place_of_the_last() -> None:
    model = byte_llama()
    scorer = Scorer(model, packed=True)
    one, other = tuple(range(3, 20)), tuple(range(40, 51))
    first, second, third = scorer.prefix(one), scorer.prefix(other), scorer.prefix(one)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (first.length, second.length) == (17, 11)
    assert scorer.prefix(one) is third
    assert first is not third
    for layer, (k, v) in first.layers.items():
        assert torch.equal(k, third.layers[layer][0])
        assert torch.equal(v, third.layers[layer][1])
    assert len(first.layers) == model.config.num_hidden_layers
    assert scorer.prefix(()) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_after_a_prefix_are_those_of_one_forward_pass(name: str) -> None:
    model = family(name)
    scorer, before, after = Scorer(model, packed=True), tuple(range(5, 45)), [(50, 51, 52), (60,), tuple(range(70, 99))]
    rows = [prompt_row(a, len(before)) for a in after]
    with torch.inference_mode():
        shared = scorer.prefix(before)
        with attending(model, TorchRows(rows, device=scorer.device, dtype=model.dtype, prefix=shared)):
            actual = scorer.flat(rows)
        for logits, tail in zip(actual, after, strict=True):
            expected = model(torch.tensor([before + tail])).logits[0, -1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_attention_of_a_model_is_its_own_again_afterwards() -> None:
    for name in ("sdpa", "eager"):
        model = byte_llama()
        model.set_attn_implementation(name)
        layout = TorchRows([prompt_row((1, 2))], device=torch.device("cpu"), dtype=torch.float32)
        with attending(model, layout):
            assert model.config._attn_implementation == "aftertune"
        assert model.config._attn_implementation == name
        model.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), attending(model, layout):
            model(input_ids=torch.tensor([[1, 2]]))
        assert model.config._attn_implementation == name
