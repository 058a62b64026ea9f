"""Makes ``version_before/``: a ledger, tuning folders and checkpoints as commit 6627cb2 wrote them.

The data of this folder was made by commit 6627cb2 and is never made again: it shows that later versions read what
that one wrote. The imports below are those of that commit, so run the script with its source:

    git worktree add /tmp/base 6627cb2
    mkdir -p /example/project
    PYTHONPATH=/tmp/base/src HF_HUB_OFFLINE=1 python tests/data/make_version_before.py /example/project

The folder is at a neutral place because a ledger stores the absolute paths of a study's data files. Every value that
a test compares with is in ``expected.json``, read by the same commit. Three works were stopped half way; what they come
to when they are not stopped is in ``expected.json`` under ``whole``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "version_before"
CHAT = ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}")
STUDY = """\
study: old
margin: 5
dtype: float32
device: cpu
task_source: pack
bases: {b: {model: ./base}}
tasks:
  - {name: arc_easy, sample: 24}
  - {name: gsm8k_cot, sample: 2, gen_kwargs: {max_gen_toks: 8}}
  - {name: own, apply_chat_template: true, target: {file: own.jsonl, max_tokens: 8}}
  - {name: known, target: {file: known.jsonl, max_tokens: 3}}
tunings:
  lora: {base: b, data: rows.jsonl, method: lora, learning_rate: 0.02, epochs: 4, merge: true, lora: {r: 4, alpha: 8},
         watch: {tasks: {arc_easy: 8}, every: 8}}
  full: {base: b, data: rows.jsonl, method: full, learning_rate: 0.05, epochs: 1}
matrix:
  base: b
  data: rows.jsonl
  method: [dora]
  seed: [0, 1]
  max_steps: 4
  lora: {r: 2}
"""
#: A document of others: figures without answers.
OTHERS = """\
# Others

### Some model

| Task | Metric | Result | Error Range |
|------|--------|--------|-------------|
| HellaSwag | Accuracy | 45.23% | ±0.50% |

- **Data Type**: float16
"""
QUIET: dict[str, Any] = {"device": "cpu", "dtype": "float32", "task_source": "pack", "threads": 1, "memory": "1MB"}
#: The half-done evaluation, as it is asked again by the test.
HALF = {"model": "./base", "adapter": "runs/tunings/lora", "name": "half", "gen_kwargs": {"max_gen_toks": 8}, **QUIET}
HALF_TASKS: list[dict[str, Any]] = [{"name": "arc_easy", "sample": 20}, {"name": "gsm8k_cot", "sample": 8}]
#: The two evaluations that stop early: the first one ended, the second one was stopped between its looks.
EARLY = {"model": "./base", "adapter": "runs/tunings/lora", "name": "early", **QUIET}
EARLY_HALF = {"model": "runs/tunings/full", "name": "early-half", **QUIET}
EARLY_TASKS: list[dict[str, Any]] = [
    {"name": "own", "apply_chat_template": True, "target": {"file": "own.jsonl", "max_tokens": 8}},
    {"name": "known", "target": {"file": "known.jsonl", "max_tokens": 3}}, {"name": "arc_easy", "sample": 24}]
MARGINS = {"early": 5, "early-half": 10}
#: The half-done tuning, with everything that a checkpoint holds.
TUNE: dict[str, Any] = {
    "model": "./base", "name": "half-tuning", "out": "runs/half", "method": "lora", "learning_rate": 0.02,
    "epochs": 3.0, "max_steps": 12, "batch_size": 2, "accumulation": 2, "dtype": "float32", "device": "cpu",
    "threads": 1, "checkpoint_minutes": 0, "lora": {"r": 4, "dropout": 0.1},
    "data": {"file": "rows.jsonl", "validation": 0.2},
    "early_stop": {"every": 2, "patience": 20}, "watch": {"tasks": {"arc_easy": 8}, "every": 4},
    "replay": {"data": "replay.jsonl", "share": 0.2}}
#: Where the stopped works end: after this step of training, and after this many items.
BROKEN_AT, ASKED = 8, 50


class Broken(Exception):
    """The end of a process, as far as this script can have it."""


def make_base(folder: Path) -> None:
    """A seeded random two-layer Llama with a byte tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    merges = [("Ġ", "a"), ("a", "b"), ("Ġa", "b"), ("Ġ", "Ġ")]
    tokens = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        initializer_range=0.3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_files(folder: Path) -> None:
    """Study, training rows, held-out rows, rows to mix in, and a document of others."""
    def rows(name: str, made: list[tuple[str, str]]) -> None:
        (folder / name).write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in made))

    rows("rows.jsonl", [(f"say w{n} twice", "w1 w2") for n in range(40)])
    rows("own.jsonl", [(f"say w{n} twice", "w1 w2") for n in range(40, 104)])
    rows("replay.jsonl", [(f"count to {n}", " ".join(map(str, range(n)))) for n in range(2, 14)])
    (folder / "study.yaml").write_text(STUDY)
    (folder / "others.md").write_text(OTHERS)


def make_known(ledger: str) -> None:
    """Rows whose answers are what the base writes: it is right on all of them."""
    from aftertune import Ledger, evaluate

    prompts = [f"square {n}: {n * n}" for n in range(80)]
    Path("asked.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": "x"}) + "\n" for p in prompts))
    task = {"name": "asked", "target": {"file": "asked.jsonl", "max_tokens": 3}}
    with Ledger(ledger) as opened:
        done = evaluate("./base", specs([task]), ledger=opened, **QUIET)
        texts = [answer.responses[0].text for answer in opened.answers(done.id)]
    rows = [{"prompt": p, "completion": t} for p, t in zip(prompts, texts, strict=True) if t and t.strip()]
    Path("known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:64]))
    Path("asked.jsonl").unlink()


def command(*words: str) -> None:
    """``aftertune WORDS`` in a process of its own."""
    subprocess.run([sys.executable, "-m", "aftertune", *words], check=True)


def specs(values: list[dict[str, Any]]) -> list[Any]:
    """The tasks as TaskSpecs."""
    from aftertune.study import TaskSpec

    return [TaskSpec(**value) for value in values]


def evaluate_half(ledger: str, *, killed: bool = False) -> None:
    """The evaluation ``half``; killed: the process ends without a word once texts are stored too."""
    from aftertune import Ledger, evaluate

    def progress(done: int, total: int, text: str) -> None:
        if killed and text == "answering" and 0.8 * total < done < total:
            os._exit(9)

    sys.argv = ["aftertune", "eval", "./base"]
    if killed:  # another machine's process: its lease stays
        lease, platform = importlib.import_module("aftertune.ledger.lease"), importlib.import_module("platform")
        platform.node = lambda: "elsewhere"  # type: ignore[attr-defined]
        lease._boot = lambda: "another/1"  # type: ignore[attr-defined]
    with Ledger(ledger) as opened:
        evaluate(ledger=opened, task_names=specs(HALF_TASKS), progress=progress, **HALF)


def evaluate_early(ledger: str, asked: dict[str, Any], *, broken: bool = False) -> None:
    """An evaluation that stops early; broken: it is stopped within its third round."""
    from aftertune import Ledger
    from aftertune.study import EvalSpec

    room = importlib.import_module("aftertune.deciding")

    def progress(done: int, total: int, text: str) -> None:
        if broken and text.startswith("asking") and done > ASKED:
            raise Broken

    sys.argv = ["aftertune", "eval", asked["model"], "--until-decided"]
    spec = EvalSpec(tasks=tuple(specs(EARLY_TASKS)), **asked)
    with Ledger(ledger) as opened:
        try:
            room.until_decided(spec, "b", room.EarlySpec(margin=MARGINS[asked["name"]]), ledger=opened,
                               progress=progress)
            assert not broken
        except Broken:
            pass


def tune_half(ledger: str, out: str, *, broken: bool = False) -> Any:
    """The tuning; broken: it is stopped at a step, and its checkpoints stay."""
    from aftertune import Ledger, tune
    from aftertune.study import TuneSpec

    def progress(step: int, _total: int, text: str) -> None:
        if broken and text.startswith("loss") and step == BROKEN_AT:
            raise Broken

    sys.argv = ["aftertune", "tune", "./base", "--data", "rows.jsonl"]
    spec = TuneSpec(**{**TUNE, "out": out})
    look = importlib.import_module("aftertune.watching").Watch(spec, task_source="pack")
    with Ledger(ledger) as opened:
        try:
            done = tune(spec, ledger=opened, progress=progress, look=look)
            assert not broken
            return done
        except Broken:
            return None


def content(path: str) -> dict[str, Any]:
    """Everything that a ledger holds, as JSON-ready values."""
    from aftertune import Ledger

    with Ledger(path) as ledger:
        done = ledger.evaluations()
        return json.loads(json.dumps({
            "evaluations": {e.id: asdict(e) for e in done},
            "answers": {e.id: [asdict(a) for a in ledger.answers(e.id)] for e in done if e.status == "done"},
            "items": {e.id: [asdict(i) for i in ledger.items(e.id)] for e in done if e.name in ("b", "half")},
            "responses": {e.id: {str(p): asdict(r) for p, r in ledger.responses(e.id).items()}
                          for e in done if e.status != "done"},
            "tunings": {t.id: asdict(t) for t in ledger.tunings()},
            "comparisons": {c.id: asdict(c) for c in ledger.comparisons()},
            "studies": [asdict(s) for s in ledger.studies()],
            "cells": [asdict(c) for c in ledger.cells("old")],
            "reported": ledger.reported(), "remarks": ledger.remarks()}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def whole() -> dict[str, Any]:
    """What the stopped works come to in the ledger where they were not stopped."""
    found = content("whole.db")
    named = {e["name"]: e["id"] for e in found["evaluations"].values()}
    kept = [named["half"], named["early-half"]]
    [tuning] = [t for t in found["tunings"].values() if t["name"] == TUNE["name"]]
    return {
        "evaluations": {key: found["evaluations"][key] for key in kept},
        "answers": {key: found["answers"][key] for key in kept},
        "comparison": next(c for c in found["comparisons"].values() if c["tuned"] == named["early-half"]),
        "tuning": tuning, "weights": sha256(Path("whole/adapter_model.safetensors"))}


def make(folder: Path) -> None:
    """Make everything in ``folder``, and copy it to this script's folder."""
    os.chdir(folder)
    os.environ["AFTERTUNE_LEDGER"] = "ledger.db"
    make_base(Path("base"))
    make_files(folder)
    make_known("scratch.db")
    command("run", "study.yaml", "--out", "runs")
    command("import", "others.md")
    evaluate_early("ledger.db", EARLY)
    shutil.copy("ledger.db", "whole.db")
    evaluate_half("whole.db")
    evaluate_early("whole.db", EARLY_HALF)
    tune_half("whole.db", "whole")
    subprocess.run([sys.executable, __file__, str(folder), "killed"], check=False)
    evaluate_early("ledger.db", EARLY_HALF, broken=True)
    tune_half("ledger.db", "runs/half", broken=True)
    expected = {"commit": "6627cb2", **content("ledger.db"), "whole": whole(),
                "manifests": {str(p): sha256(p) for p in sorted(Path("runs").rglob("aftertune.json"))}}
    for path in (HERE / "project", HERE / "expected.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copytree(folder, HERE / "project", ignore=shutil.ignore_patterns(
        "whole*", "scratch.db", "report.html", "record.md", "*.lock", ".aftertune", "*-wal", "*-shm"))
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in expected.items()]
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[2:] == ["killed"]:
        evaluate_half("ledger.db", killed=True)
    else:
        make(Path(sys.argv[1]))
