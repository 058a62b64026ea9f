"""The held-out loss, and making a model trainable, on a tiny real model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aftertune.errors import InputError
from aftertune.sources import load_model, resolve_model
from aftertune.study import LoraSpec
from aftertune.tuning.build import base_dtype, build, count_trainable
from aftertune.tuning.example import Example
from aftertune.tuning.held_out import Batching, by_example, compare_losses, completion_losses
from aftertune.tuning.targets import linear_layers
from aftertune.tuning.tokenize import IGNORED, EncodeOptions, encode_all
from tuning_cases import chat_tokenizer, rows, tiny_model

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder):
    return load_model(resolve_model(str(folder)), "float32", "cpu")


@pytest.fixture(scope="module")
def encoded():
    data = [*rows(9), {"prompt": "say w1 w2 w3 twice", "completion": "w1 w2 w3 w1 w2 w3"}]
    examples = [Example((("user", r["prompt"]),), r["completion"]) for r in data]
    return encode_all(examples, chat_tokenizer(), EncodeOptions(True, 64)).rows


def slow_loss(model, row):
    """The definition: one row, no padding, log-softmax over all positions."""
    import torch

    with torch.no_grad():
        logp = model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    terms = [-logp[i - 1, label].item() for i, label in enumerate(row.labels) if label != IGNORED]
    return sum(terms) / len(terms)


def test_the_loss_is_the_mean_over_the_completion_whatever_the_batch(model, encoded):
    wanted = [slow_loss(model, row) for row in encoded]
    for size in (1, 3, 16):
        losses = completion_losses(model, encoded, Batching(pad=0, dtype="float32", size=size))
        assert losses == pytest.approx(wanted, abs=2e-6)


def test_rows_of_one_example_count_as_one_by_their_tokens(model, encoded):
    rows = [replace(row, example=number) for row, number in zip(encoded, (1, 1, 2, 2, 2, 3, 4, 5, 6, 7), strict=True)]
    losses = by_example(completion_losses(model, rows, Batching(pad=0, dtype="float32")), rows)
    counts = [sum(label != IGNORED for label in row.labels) for row in rows]
    first = sum(slow_loss(model, row) * count for row, count in zip(rows[:2], counts, strict=False)) / sum(counts[:2])
    assert losses[0] == pytest.approx(first, abs=2e-6)
    assert losses[-1] == pytest.approx(slow_loss(model, rows[-1]), abs=2e-6)
    assert len(losses) == 7


def test_the_model_is_left_in_its_mode_and_with_its_whole_head(model, encoded):
    import torch

    model.train()
    completion_losses(model, encoded[:2], Batching(pad=0, dtype="float32"))
    assert model.training
    assert model(torch.tensor([encoded[0].ids])).logits.shape[1] == len(encoded[0].ids)


def test_the_interval_is_the_paired_t_interval():
    from scipy.stats import ttest_rel

    before, after = [2.0, 1.5, 1.9, 2.4, 1.1], [0.3, 0.2, 0.5, 0.1, 0.4]
    held_out = compare_losses(before, after)
    expected = ttest_rel(after, before).confidence_interval(0.95)
    assert (held_out.low, held_out.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (held_out.n, held_out.before, held_out.after) == (5, pytest.approx(1.78), pytest.approx(0.3))


def test_the_output_head_is_no_target(model):
    assert linear_layers(model) == LINEAR


def test_lora_trains_every_linear_layer_but_the_head_on_a_frozen_base(model, encoded):
    before = completion_losses(model, encoded, Batching(pad=0, dtype="float32"))
    tuned = build(model, "lora", LoraSpec(r=4), seed=0)
    names = {n.split(".lora_")[0].rpartition(".")[2] for n, p in tuned.named_parameters() if p.requires_grad}
    assert sorted(names) == LINEAR
    assert count_trainable(tuned) == 2 * 4 * sum(i + o for i, o in (
        (32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)))
    after = completion_losses(tuned, encoded, Batching(pad=0, dtype="float32"))
    assert after == pytest.approx(before, abs=1e-6)


def test_lora_is_seeded(folder):
    import torch

    def first(seed):
        tuned = build(load_model(resolve_model(str(folder)), "float32", "cpu"), "lora", LoraSpec(), seed=seed)
        return next(p for n, p in tuned.named_parameters() if "lora_A" in n).detach()

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_targets_that_match_nothing_list_the_linear_layers(model):
    with pytest.raises(InputError) as error:
        build(model, "lora", LoraSpec(target_modules=("q_proj", "qproj")), seed=0)
    assert "'qproj' matches no layer of LlamaForCausalLM (did you mean 'q_proj'" in str(error.value)
    assert ", ".join(LINEAR) in str(error.value)


def test_full_trains_every_weight_in_float32(folder):
    assert base_dtype("full", "bfloat16") == "float32"
    assert base_dtype("lora", "bfloat16") == "bfloat16"
    model = build(load_model(resolve_model(str(folder)), "float32", "cpu"), "full", LoraSpec(), seed=0)
    assert count_trainable(model) == sum(p.numel() for p in model.parameters())
