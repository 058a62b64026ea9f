"""Our engine as lm-eval's model, and several adapters on one base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aftertune import sources
from aftertune.errors import SourceError
from aftertune.evaluation import evaluate, evaluate_adapters
from aftertune.harness import HarnessLM
from aftertune.ledger import Ledger
from aftertune.sources import loading
from aftertune.study import EvalSpec, TaskSpec
from eval_cases import CHAT, byte_folder, byte_llama, byte_tokenizer, write_task


@pytest.fixture
def tasks(tmp_path: Path) -> list[Any]:
    """A task of each request type, on a file of twelve documents."""
    from lm_eval.tasks import TaskManager

    file = tmp_path / "docs.jsonl"
    file.write_text("".join(json.dumps({"question": f"What comes after {n}?", "choices": ["ab", f" {n + 1}", " a b"],
                                        "answer": n % 3}) + "\n" for n in range(12)))
    for name, kind, more in (
            ("pick", "multiple_choice", 'doc_to_choice: "{{choices}}"\n'
                                        "metric_list: [{metric: acc}, {metric: acc_norm}]"),
            ("whole", "loglikelihood_rolling", "metric_list: [{metric: bits_per_byte}]"),
            ("write", "generate_until", "generation_kwargs: {until: [\"b\"], max_gen_toks: 9}\n"
                                        "metric_list: [{metric: exact_match}]")):
        write_task(tmp_path, name, kind, file, more)
    whole = tmp_path / "whole.yaml"
    whole.write_text(whole.read_text().replace('doc_to_text: "{{question}}"', 'doc_to_text: ""').replace(
        'doc_to_target: "{{answer}}"', 'doc_to_target: "{{question}}"'))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    return [manager, ["pick", "whole", "write"]]


def evaluated(lm: Any, tasks: list[Any], **settings: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    found: dict[str, Any] = simple_evaluate(lm, tasks=tasks[1], task_manager=tasks[0], bootstrap_iters=0, **settings)
    return found


def test_simple_evaluate_gives_the_same_through_our_engine_and_through_hf(tasks: list[Any]) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = byte_llama(), byte_tokenizer()
    mine, theirs = HarnessLM(model, tokenizer, threads=1), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    ours, reference = evaluated(mine, tasks), evaluated(theirs, tasks)
    for name in tasks[1]:
        assert len(ours["samples"][name]) == 12
        for a, b in zip(ours["samples"][name], reference["samples"][name], strict=True):
            assert a["arguments"] == b["arguments"]
            if name == "write":
                assert a["resps"] == b["resps"]
                continue
            for one, other in zip(a["resps"], b["resps"], strict=True):
                left, right = (x[0] if isinstance(x[0], tuple) else (x[0], None) for x in (one, other))
                assert float(left[0]) == pytest.approx(float(right[0]), abs=1e-4)
                assert left[1] == right[1]
        for key, value in reference["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][key] == pytest.approx(value, abs=1e-5)
    assert any(note.startswith("packed rows (verified") for note in mine.notes)


def test_a_chat_template_is_that_of_the_tokenizer(tasks: list[Any], tmp_path: Path) -> None:
    folder = byte_folder(tmp_path / "model", template=CHAT)
    lm = HarnessLM(str(folder), dtype="float32", device="cpu", threads=1)
    found = evaluated(lm, tasks, apply_chat_template=True)
    first = found["samples"]["write"][0]["arguments"][0][0]
    assert first == "<s>[user]What comes after 0?\n[assistant]"
    assert lm.chat_template(True) == CHAT


def test_what_cannot_be_loaded_is_refused_in_one_line() -> None:
    model, tokenizer = byte_llama(), byte_tokenizer()
    with pytest.raises(SourceError, match="needs its tokenizer"):
        HarnessLM(model)
    with pytest.raises(SourceError, match="needs its tokenizer"):
        HarnessLM(model, tokenizer, adapter="somewhere")
    with pytest.raises(SourceError, match="has no chat template"):
        HarnessLM(model, tokenizer).chat_template(True)


def adapter(folder: Path, base: Path, seed: int) -> Path:
    """A LoRA adapter with random weights on both sides, so that it changes every answer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(folder)
    return folder


def test_several_adapters_load_their_base_once_and_get_what_each_gets_alone(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    base = byte_folder(tmp_path / "model")
    adapters = [str(adapter(tmp_path / name, base, seed)) for seed, name in enumerate("ab")]
    spec = EvalSpec(model=str(base), tasks=(TaskSpec(name="arc_easy", limit=6),), dtype="float32", device="cpu",
                    threads=1, task_source="pack")
    loads = []
    real = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loads.append(a) or real(*a, **k))
    with Ledger(tmp_path / "together.db") as ledger:
        together = evaluate_adapters(spec, adapters, ledger=ledger)
        shared = [ledger.responses(e.id) for e in together]
    assert len(loads) == 1
    monkeypatch.undo()
    with Ledger(tmp_path / "alone.db") as ledger:
        alone = [evaluate(spec.model_copy(update={"adapter": a}), ledger=ledger) for a in adapters]
        single = [ledger.responses(e.id) for e in alone]
    assert [e.id for e in together] == [e.id for e in alone]
    assert shared == single
    assert shared[0] != shared[1]


def test_a_base_is_itself_again_after_its_adapters(tmp_path: Path) -> None:
    base = byte_folder(tmp_path / "model")
    source = sources.resolve_model(str(base))
    identity = sources.fingerprint_model(source)
    found = sources.resolve_adapter(str(adapter(tmp_path / "a", base, 1)), source, identity)
    bases, tokens = sources.BaseModelCache(), torch.arange(3, 12)[None]
    with torch.inference_mode():
        before = bases.load(source, "float32", "cpu")(tokens).logits.clone()
        adapted = bases.load(source, "float32", "cpu", found)(tokens).logits.clone()
        after = bases.load(source, "float32", "cpu")(tokens).logits
    assert torch.equal(before, after)
    assert not torch.allclose(before, adapted, atol=1e-2)
