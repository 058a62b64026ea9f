"""A ledger with a base and a fine-tune that were really asked, for the tests of what is handed on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import early_cases
from aftertune.comparison import compare
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import TargetSpec, TaskSpec
from aftertune.values import Provenance, Tuning, digest
from eval_cases import byte_config, byte_folder, byte_tokenizer

#: Stands for a token in the environment of the machine that writes.
CANARY = "hf_canaryCANARY0123456789abcdef"


def second_folder(folder: Path) -> Path:
    """A model of the same shape with other weights."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    LlamaForCausalLM(byte_config()).eval().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def asked_ledger(root: Path) -> Path:
    """The ledger: two models on a multiple-choice, a generated and a target task, compared, with a fine-tune that
    proves the lineage."""
    path = root / "ledger.db"
    base, tuned = byte_folder(root / "base"), second_folder(root / "orders")
    held = root / "held.jsonl"
    held.write_text("".join(json.dumps({"prompt": f"order {k}: ", "completion": json.dumps({"item": k})}) + "\n"
                            for k in range(3)), encoding="utf-8")
    tasks = [TaskSpec(name="arc_easy", sample=12), TaskSpec(name="gsm8k_cot", sample=2, num_fewshot=0),
             TaskSpec(name="orders_json", target=TargetSpec(file=held, match="json", max_tokens=8))]
    with Ledger(path) as ledger:
        done = [evaluate(str(folder), tasks, ledger=ledger, device="cpu", dtype="float32", threads=1,
                         task_source="pack", name=folder.name, gen_kwargs={"max_gen_toks": 8})
                for folder in (base, tuned)]
        ledger.save_tuning(Tuning(
            id="t-orders", name="orders", base=done[0].model, method="full", data="d" * 64,
            data_source=str(root / "orders.jsonl"), examples=600, seed=1, settings={"learning_rate": 2e-4},
            output=str(tuned), status="done", result=done[1].model.fingerprint,
            steps=({"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}),
            provenance=Provenance(command=f"aftertune tune {base} --data {root}/orders.jsonl", started="2026-01-01")))
        compare(done[0], done[1], margins=0.05, ledger=ledger)
        ledger.save_study("orders", "s" * 64, json.dumps({"study": "orders", "tunings": {"orders": {}},
                                                          "data": str(root / "orders.jsonl")}))
        ledger.save_cell("orders", "evaluate base", "done", ref=done[0].id)
        ledger.save_cell("orders", "evaluate orders", "done", ref=done[1].id)
    return path


def hash_documents(patch: pytest.MonkeyPatch) -> None:
    """Let `early_cases` store items whose hash is that of their document, as real ones are."""
    before_item, before_settings = early_cases.item, early_cases.settings

    def item(task: str, index: int, twice: bool = False) -> Any:
        given = before_item(task, index, twice)
        doc = {**given.doc, "of": task}
        return replace(given, doc=doc, hash=digest(doc))

    def settings(task: str, n: int, **more: Any) -> Any:
        return replace(before_settings(task, n, **more), items=digest([item(task, i).hash for i in range(n)]))

    patch.setattr(early_cases, "item", item)
    patch.setattr(early_cases, "settings", settings)
