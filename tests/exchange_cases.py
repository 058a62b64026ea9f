"""A published record in Markdown with known faults, and small lm-eval output folders, for the tests of exchange."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

#: model -> (section, is it a base, figures): MMLU subject, HellaSwag acc and acc_norm, GSM8K flexible and strict.
_FIGURES = {
    "Base Llama 3.2 1B": ("47.00 5.02", "45.23 0.50", "60.77 0.49", "33.51 1.30", "33.51 1.30"),
    "Fine-tuned Llama 3.2 1B (2K Examples)": ("34.00 4.76", "45.61 0.50", "61.20 0.49", "3.71 0.52", "3.11 0.48"),
    "TinyLlama + LoRA (50K Examples)": ("27.00 4.46", "45.84 0.50", "59.26 0.49", "2.81 0.45", "2.20 0.40"),
    "TinyLlama + QLoRA": ("26.50 4.42", "44.98 0.50", "58.35 0.49", "2.74 0.44", "2.15 0.39")}
_NAMES = (("**MMLU High School Computer Science**", "Accuracy"), ("HellaSwag", "Accuracy"),
          ("HellaSwag", "Normalized Accuracy"), ("GSM8K", "Flexible Extract"), ("GSM8K", "Strict Match"))
_RUN = "python -m lm_eval --model hf --model_args pretrained={DIR}%s --tasks {TASKS} --device cuda"


def _model(name: str, *facts: tuple[str, str]) -> str:
    rows = [f"| {task} | {metric} | " + (f"**{value}%**" if task[0] == "*" else f"{value}%") + f" | ±{error}% |"
            for (task, metric), (value, error) in zip(_NAMES, map(str.split, _FIGURES[name]), strict=True)]
    head = ["| Task | Metric | Result | Error Range |", "|------|------|------|----------|"]
    listed = "\n".join(f"- **{k}**: {v}" for k, v in (*facts, ("Data Type", "float16")))
    return f"### {name}\n\n" + "\n".join([*head, *rows]) + f"\n\n{listed}\n"


def _wide() -> str:
    """The same figures again, a column a model, two of them under other names."""
    columns = {"Base Llama 3.2 1B": "Base Llama 3.2 1B", "TinyLlama 1.1B (50k)": "TinyLlama + LoRA (50K Examples)"}
    lines = [f"| Task | Metric | {' | '.join(columns)} |", "|---|---|---|---|"]
    for i, (task, metric) in enumerate(_NAMES):
        cells = [_FIGURES[m][i].split() for m in columns.values()]
        lines.append(f"| **{task.strip('*')}** | {metric} | " + " | ".join(f"**{v}% ± {e}%**" for v, e in cells) + " |")
    return "\n".join(lines)


def record() -> str:
    """A record in the form that people keep by hand; the last model's MMLU and GSM8K figures cannot be."""
    llama = [_model("Base Llama 3.2 1B", ("Evaluation Command", f"`{_RUN % ',dtype=float16'}`"), ("Device", "CUDA")),
             _model("Fine-tuned Llama 3.2 1B (2K Examples)", ("Evaluation Command", f"`{_RUN % ''}`"),
                    ("Device", "CUDA"))]
    tiny = [_model(name, ("Evaluation Command", "`./scripts/run.sh tiny`"), ("Device", "MPS"))
            for name in ("TinyLlama + LoRA (50K Examples)", "TinyLlama + QLoRA")]
    return "\n".join((
        "# Model Evaluation Results Record", "", "## 1. Llama 3.2 Models (1.2B)", "", *llama, "## 2. TinyLlama (1.1B)",
        "", *tiny, "### TinyLlama Base Model (Not Evaluated)", "",
        "*Not yet evaluated, planned using command: `./scripts/run.sh base tiny false`*", "", "## 3. Phi-2 (2.7B)", "",
        "*Not yet evaluated, planned using command: `./scripts/run.sh small qlora true`*", "",
        "## Comparative Analysis", "", "| Model | Parameters |", "|---|---|", "| Llama | 1.24 billion |", "", _wide(),
        "", "## Task Descriptions", "", "2. **HellaSwag**: Commonsense", "   - `Accuracy`: Standard accuracy",
        "   - `Normalized Accuracy`: Accuracy after normalizing for text format variations", "", "## Future Work", "",
        "- [ ] Evaluate: the rest", ""))


#: Whether each of twelve questions was answered right, by model.
BASE_RIGHT = (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
TUNED_RIGHT = (1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0)
STAMP = "2025-03-08T10-00-00.123456"


def lm_eval_folder(folder: Path, model: str, right: tuple[int, ...], *, old: bool = False, samples: bool = True,
                   stamp: str = STAMP, **changes: Any) -> Path:
    """What lm-eval leaves: a multiple-choice task and a generated one with two filters. old: as 0.4.5 wrote it.

    The strict filter finds nothing in the even answers. changes: of the results file.
    """
    home = folder / model.replace("/", "__")
    home.mkdir(parents=True, exist_ok=True)
    strict = [r * (i % 2) for i, r in enumerate(right)]
    n = len(right)

    def score(values: Any) -> tuple[float, float]:
        mean = sum(values) / n
        return mean, (mean * (1 - mean) / (n - 1)) ** 0.5

    acc, flexible, narrow = score(right), score(right), score(strict)
    results = {
        "results": {"choose": {"alias": "choose", "acc,none": acc[0], "acc_stderr,none": acc[1]},
                    "write": {"alias": "write", "exact_match,strict-match": narrow[0],
                              "exact_match_stderr,strict-match": narrow[1], "exact_match,flexible-extract": flexible[0],
                              "exact_match_stderr,flexible-extract": flexible[1]}},
        "group_subtasks": {"choose": [], "write": []},
        "configs": {"choose": {"task": "choose", "dataset_path": "org/choose", "test_split": "test",
                               "output_type": "multiple_choice"},
                    "write": {"task": "write", "dataset_path": "org/write", "test_split": "test",
                              "output_type": "generate_until", "generation_kwargs": {"until": ["\n"]}}},
        "versions": {"choose": 1.0, "write": 3.0}, "n-shot": {"choose": 0, "write": 5},
        "higher_is_better": {"choose": {"acc": True}, "write": {"exact_match": True}},
        "n-samples": {t: {"original": n, "effective": n} for t in ("choose", "write")},
        "config": {"model": "hf", "model_args": f"pretrained={model},dtype=float16", "model_dtype": "torch.float16",
                   "model_num_parameters": 1_235_814_400, "model_sha": "", "device": "cuda", "limit": None},
        "date": 1741428000.0, "model_source": "hf", "model_name": model, "model_name_sanitized": home.name,
        "system_instruction": None, "chat_template": None, "chat_template_sha": None, "fewshot_as_multiturn": False,
        "total_evaluation_time_seconds": "123.4", "transformers_version": "4.49.0",
        **({} if old else {"lm_eval_version": "0.4.13"}), **changes}
    (home / f"results_{stamp}.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    if samples:
        choose = [_line(i, {"question": f"q{i}", "gold": 0}, [["-1.5", "True"], ["-2.5", "False"]], f"q{i}",
                        [" a", " b"], "none", {"acc": float(r)}, old) for i, r in enumerate(right)]
        write = [_line(i, {"question": f"w{i}"}, f"answer {r}", f"w{i}", [{"until": ["\n"]}], name,
                       {"exact_match": float(r)}, old)
                 for name, values in (("strict-match", strict), ("flexible-extract", right))
                 for i, r in enumerate(values)]
        for task, lines in (("choose", choose), ("write", write)):
            (home / f"samples_{task}_{stamp}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines),
                                                                encoding="utf-8")
    return home


def _line(index: int, doc: dict[str, Any], answers: Any, context: str, continuations: list[Any], name: str,
          metrics: dict[str, float], old: bool) -> dict[str, Any]:
    """One line of a samples file, for one document and filter."""
    generated = isinstance(answers, str)
    line: dict[str, Any] = {
        "doc_id": index, "doc": doc, "target": "0",
        "arguments": {f"gen_args_{i}": {"arg_0": context, "arg_1": c} for i, c in enumerate(continuations)},
        "resps": [[answers]] if generated else [[a] for a in answers],
        "filtered_resps": [answers] if generated else answers,
        "doc_hash": hashlib.sha256(json.dumps(doc).encode()).hexdigest(),
        "prompt_hash": hashlib.sha256(context.encode()).hexdigest(),
        "target_hash": hashlib.sha256(b"0").hexdigest()}
    return line | ({} if old else {"filter": name, "metrics": list(metrics)}) | metrics


def one_task_folder(folder: Path, model: str, task: str, lines: list[dict[str, Any]], metric: str, *,
                    kind: str = "multiple_choice", better: bool = True, config: Any = None) -> Path:
    """What lm-eval leaves of one task. lines: the doc, arguments, resps, target and metric of each document."""
    home = folder / model
    home.mkdir(parents=True, exist_ok=True)
    values = [line[metric] for line in lines]
    results = {
        "results": {task: {"alias": task, f"{metric},none": sum(values) / len(values)}},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "output_type": kind, "test_split": "test", **(config or {})}},
        "versions": {task: 1.0}, "n-shot": {task: 0}, "higher_is_better": {task: {metric: better}},
        "n-samples": {task: {"original": len(lines), "effective": len(lines)}},
        "config": {"model": "hf", "model_args": f"pretrained={model}", "model_dtype": "torch.float16"},
        "date": 1741428000.0, "model_source": "hf", "model_name": model, "lm_eval_version": "0.4.13"}
    (home / f"results_{STAMP}.json").write_text(json.dumps(results))
    rows = [{"doc_id": i, "filter": "none", "metrics": [metric], "filtered_resps": [r[0] for r in line["resps"]],
             **line} for i, line in enumerate(lines)]
    (home / f"samples_{task}_{STAMP}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def choice_line(index: int, choices: int, right: bool) -> dict[str, Any]:
    """The line of a multiple-choice document whose right choice differs from item to item."""
    gold = index % choices
    chosen = gold if right else (gold + 1) % choices
    return {"doc": {"question": f"question {index}"}, "target": str(gold), "acc": float(right),
            "arguments": [[f"question {index}", f" choice {k}"] for k in range(choices)],
            "resps": [[[-1.0 if k == chosen else -5.0, "False"]] for k in range(choices)]}


def text_line(doc: dict[str, Any], prompt: str, target: str, metric: str, value: float) -> dict[str, Any]:
    """The line of a document whose answer is generated."""
    return {"doc": doc, "target": target, metric: value, "arguments": [[prompt, {"until": []}]], "resps": [["text"]]}
