"""Answers the options of other tools (lm-eval, transformers, axolotl, LLaMA-Factory, unsloth) with ours.

    advice("eval", "--batch_size", known)     "batches follow from the free memory; --memory 8GiB limits it"
    advice("tune", "--lora_r", known)         "write --rank"

known: the options that the command has. A test checks that every option named here exists.
"""

from __future__ import annotations

from collections.abc import Collection

_MEMORY = "batches follow from the free memory; --memory 8GiB limits it"
_STORED = "every answer is stored in the ledger in any case; `aftertune flips` and `aftertune export` show them"
_FIRST = "the model is the first word of the command"

#: Verb -> option of another tool, in lower case with hyphens -> what to write here.
ADVICE: dict[str, dict[str, str]] = {
    "eval": {
        "batch-size": _MEMORY, "max-batch-size": _MEMORY,
        "model": f"{_FIRST}; for a model class of lm-eval add --engine lm-eval:NAME",
        "model-args": f"{_FIRST}: pretrained=X is X, and --dtype, --revision and --adapter are options; arguments of "
                      "an lm-eval class go into --engine-args",
        "pretrained": _FIRST, "model-name-or-path": _FIRST, "peft": "write --adapter", "lora": "write --adapter",
        "log-samples": _STORED, "write-out": _STORED,
        "output-path": "results go to the ledger; `aftertune export NAME --out FOLDER` writes lm-eval's files",
        "output-dir": "results go to the ledger; `aftertune export NAME --out FOLDER` writes lm-eval's files",
        "use-cache": "answers are stored in any case, and a question that was asked before is not asked again",
        "cache-requests": "answers are stored in any case, and a question that was asked before is not asked again",
        "verbosity": "`aftertune --debug eval …` shows more", "n-shot": "write --num-fewshot",
        "fewshot": "write --num-fewshot", "num-shots": "write --num-fewshot", "task": "write --tasks",
        "max-samples": "write --limit for the first items, or --sample for random ones",
        "n": "write --limit for the first items, or --sample for random ones",
        "seed": "write --sample-seed for the items that are drawn; lm-eval's seeds are fixed",
        "load-in-4bit": "write --quantize nf4", "temperature": "write --gen-kwargs do_sample=true,temperature=0.7",
        "max-new-tokens": "write --gen-kwargs max_gen_toks=256", "max-gen-toks": "write --gen-kwargs max_gen_toks=256",
        "base-url": "write --engine openai:URL", "chat-template": "write --apply-chat-template",
    },
    "tune": {
        "lr": "write --learning-rate", "r": "write --rank", "lora-r": "write --rank", "lora-rank": "write --rank",
        "lora-alpha": "write --alpha", "lora-dropout": "write --dropout", "lora-target": "write --target-modules",
        "lora-target-modules": "write --target-modules", "lora": "write --method lora",
        "use-dora": "write --method dora", "use-rslora": "write --method rslora",
        "load-in-4bit": "write --method qlora",
        "qlora": "write --method qlora", "finetuning-type": "write --method", "num-epochs": "write --epochs",
        "num-train-epochs": "write --epochs", "epoch": "write --epochs",
        "per-device-train-batch-size": "write --batch-size", "micro-batch-size": "write --batch-size",
        "train-batch-size": "write --batch-size", "gradient-accumulation-steps": "write --accumulation",
        "train-on-inputs": "write --learn all, which lets prompts count in the loss",
        "assistant-only-loss": "this is the default: --learn answers",
        "mask-prompt": "this is the default: --learn answers",
        "max-seq-length": "write --max-length", "max-seq-len": "write --max-length", "cutoff-len": "write --max-length",
        "sequence-len": "write --max-length", "lr-scheduler": "write --schedule",
        "lr-scheduler-type": "write --schedule", "early-stopping-patience": "write --patience with --validation",
        "eval-steps": "write --validate-every", "output-dir": "write --out", "output": "write --out",
        "save-steps": "write --keep-checkpoints; a run that was stopped continues in any case",
        "save-total-limit": "write --keep-checkpoints", "resume-from-checkpoint": "give the same command again",
        "model": _FIRST, "base-model": _FIRST, "model-name-or-path": _FIRST, "model-name": _FIRST,
        "dataset": "write --data", "dataset-name": "write --data", "train-file": "write --data",
        "train-data": "write --data", "data-path": "write --data", "val-size": "write --validation",
        "val-set-size": "write --validation", "test-size": "write --held-out", "bf16": "write --dtype bfloat16",
        "fp16": "write --dtype float16", "chat-template": "write --template", "prompt-template": "write --template",
        "report-to": "`aftertune show NAME` has the losses of every step",
        "merge-adapter": "write --merge", "push-to-hub": "upload the output folder with `hf upload`",
    },
}


def advice(verb: str, option: str, known: Collection[str]) -> str | None:
    """What to write in place of an option that the command does not have; None where nothing is known."""
    plain = option.lstrip("-").lower().replace("_", "-")
    if f"--{plain}" in known:
        return f"write --{plain}"
    return ADVICE.get(verb, {}).get(plain)
