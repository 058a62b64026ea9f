"""A study over data sizes, replay shares and seeds as values, for the page: simulated answers (fixed seed), with the
intervals and verdicts of the statistics room, so that every figure is one that the program could have found.

    study = make()
    write_page(study.results(flips=study.flips), title="…")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import report_cases as cases
from aftertune.report import Results
from aftertune.stats import Case, at_floor, decide, items_needed, label_of, paired_evidence, wilson
from aftertune.values import (
    Comparison,
    ComparisonRow,
    Evaluation,
    Flip,
    Flips,
    FlipSide,
    HeldOut,
    Score,
    Tuning,
    WatchPoint,
    digest,
)
from aftertune.values.reported import AuditedDocument, Reported, ReportedDifference

SIZES, SHARES, SEEDS = (100, 400, 1600), (0.0, 0.2, 0.4), (0, 1, 2)
MARGIN = 0.05
TASKS = (cases.settings("hellaswag", 1200, 10_042, sample=1200, sample_seed=0),
         cases.settings("arc_easy", 570, 570),
         cases.settings("mmlu_high_school_computer_science", 100, 100, primary="acc,none", split="test"),
         cases.settings("orders", 160, 160, output_type="generate_until", split="held out", chance=None, target=True,
                        data="file:orders_test.jsonl", primary="exact_match,none"))
#: Of each task: how much of what the base has right it can lose at worst, and its share of right answers.
_BASE = {"hellaswag": 0.43, "arc_easy": 0.52, "mmlu_high_school_computer_science": 0.27, "orders": 0.0}


@dataclass(frozen=True)
class Study:
    evaluations: tuple[Evaluation, ...]
    tunings: tuple[Tuning, ...]
    comparisons: tuple[Comparison, ...]
    flips: Mapping[str, Sequence[Flips]]
    reported: tuple[AuditedDocument, ...]

    def results(self, **more: Any) -> Results:
        """What a report of it is made of."""
        return cases.results(self.evaluations, self.tunings, self.comparisons, **more)


def make(sizes: Sequence[int] = SIZES, shares: Sequence[float] = SHARES, seeds: Sequence[int] = SEEDS) -> Study:
    """The whole study: LoRA over sizes, shares and seeds, one careless full fine-tune, one that has not run."""
    draw = np.random.default_rng(0)
    base = {t.task: (np.arange(t.n) < _BASE[t.task] * t.n).astype(float) for t in TASKS}
    evaluations = [_evaluation("e-base", "smollm2", cases.BASE, base)]
    tunings, comparisons = [], []
    recipes = [("lora", n, share, seed) for n in sizes for share in shares for seed in seeds] + [("full", 1600, 0.0, 0)]
    for method, n, share, seed in recipes:
        name = f"{method}-{n}" + (f"-replay{round(100 * share)}" if share else "") + f"-s{seed}"
        forgets = (4.0 if method == "full" else 1.1) * np.log10(n / 50) * (1 - 1.9 * share) / 4
        answers = {t: _tuned(draw, right, forgets) for t, right in base.items()}
        learned = min(0.97, 0.26 * np.log10(n) + 0.04 * draw.standard_normal()) * (0.3 if method == "full" else 1)
        answers["orders"] = (draw.random(160) < learned).astype(float)
        model = replace(cases.BASE, **({"weights": digest(name)} if method == "full" else
                                       {"adapter": digest(name), "adapter_source": f"runs/{name}"}))
        tunings.append(_tuning(draw, name, model, method, n, share, seed, forgets))
        evaluations.append(_evaluation(f"e-{name}", name, model, answers, tuning=f"t-{name}"))
        comparisons.append(_comparison(name, base, answers, tunings[-1].held_out))
    waiting = replace(tunings[0], id="t-waiting", name="lora-6400-s0", status="running", result=None, examples=6400,
                      held_out=None, watch=(), cost={})
    flips = {c.id: tuple(_flips(c, r) for r in c.rows if r.primary and r.gained is not None) for c in comparisons}
    return Study(tuple(evaluations), (*tunings, waiting), tuple(comparisons), flips, _reported())


def _tuned(draw: np.random.Generator, right: np.ndarray, forgets: float) -> np.ndarray:
    """Answers of a tuned model: some that were right are lost, a few that were wrong are gained."""
    lost = draw.random(right.size) < min(0.9, 0.03 + max(0.0, forgets) * 0.35)
    gained = draw.random(right.size) < 0.03 + max(0.0, forgets) * 0.05
    return np.where(right > 0, 1.0 - lost, gained).astype(float)


def _evaluation(id_: str, name: str, model, answers: Mapping[str, np.ndarray], **changes) -> Evaluation:
    scores = []
    for task in TASKS:
        metric, _, filter_ = task.primary.partition(",")
        p, n = float(answers[task.task].mean()), task.n
        scores.append(Score(task=task.task, metric=metric, filter=filter_, value=p, n=n, primary=True,
                            stderr=float(np.sqrt(p * (1 - p) / (n - 1)))))
    made = cases.evaluation(id_, name, model, tuple(scores), **changes)
    return replace(made, tasks=TASKS)


def _comparison(name: str, base: Mapping[str, np.ndarray], tuned: Mapping[str, np.ndarray],
                held_out: HeldOut | None) -> Comparison:
    found = [(t, paired_evidence(base[t.task], tuned[t.task], margin=MARGIN)) for t in TASKS]
    floors = [at_floor(wilson(round(base[t.task].sum()), t.n)[0], t.chance) for t in TASKS]
    decisions = decide([Case(tests=e.tests, at_floor=f) for (_, e), f in zip(found, floors, strict=True)])
    rows = []
    for (task, e), decision in zip(found, decisions, strict=True):
        metric, _, filter_ = task.primary.partition(",")
        rows.append(ComparisonRow(
            task=task.task, metric=metric, filter=filter_, n=e.n, base=e.base, tuned=e.tuned, delta=e.delta, low=e.low,
            high=e.high, margin=MARGIN, primary=True, kind="binary", p=decision.p, p_adjusted=decision.p_adjusted,
            gained=e.gained, lost=e.lost, verdict=decision.verdict,
            told=label_of(decision.verdict, lineage=True, at_floor=decision.at_floor), at_floor=decision.at_floor,
            items_needed=items_needed(e.psi, MARGIN) if decision.verdict == "undecided" and e.psi else None,
            target=task.target,
            n_total=task.n_total))
    return Comparison(id=f"c-{name}", base="e-base", tuned=f"e-{name}", base_name="smollm2", tuned_name=name,
                      lineage=True, rows=tuple(rows), held_out=held_out, relation="tuned")


def _tuning(draw: np.random.Generator, name: str, model, method: str, n: int, share: float, seed: int,
            forgets: float) -> Tuning:
    steps, last = max(8, n // 16), 1.9 - 0.55 * np.log10(n)
    curve = [{"step": float(s), "loss": float(last + (2.4 - last) * np.exp(-4 * s / steps)
                                              + 0.06 * draw.standard_normal())} for s in range(1, steps + 1)]
    for at in range(max(1, steps // 5) - 1, steps, max(1, steps // 5)):
        curve[at]["validation_loss"] = curve[at]["loss"] + 0.12
    watch = tuple(point for s in range(max(1, steps // 4), steps + 1, max(1, steps // 4))
                  for point in _looks(draw, s, forgets * s / steps)) if seed == 0 else ()
    after = float(last + 0.1)
    settings = {"learning_rate": 2e-4, "epochs": 1.0, "batch_size": 16, "held_out": "f" * 64, "held_out_examples": 60,
                "threads": 2, "device": "cpu"}
    if share:
        settings |= {"replay": digest(share), "replay_examples": round(n * share / (1 - share)), "replay_share": share}
    held_out = HeldOut(n=60, before=2.412, after=after, low=after - 2.412 - 0.09, high=after - 2.412 + 0.09)
    return replace(cases.tuning(f"t-{name}", name, model, method), examples=n, seed=seed, settings=settings,
                   steps=tuple(curve), watch=watch, held_out=held_out,
                   cost={"memory": 1.9 * 2**30, "seconds": n * 0.31, "estimated_memory": 2.1 * 2**30,
                         "estimated_seconds": n * 0.27})


def _looks(draw: np.random.Generator, step: int, forgets: float) -> list[WatchPoint]:
    found = []
    for task, n in (("hellaswag", 200), ("arc_easy", 200)):
        base = (draw.random(n) < _BASE[task]).astype(float)
        e = paired_evidence(base, _tuned(draw, base, forgets), margin=MARGIN)
        verdict = "lower" if e.high < -MARGIN else "within" if abs(e.low) < MARGIN and e.high < MARGIN else "undecided"
        found.append(WatchPoint(step=step, task=task, metric="acc_norm,none", n=n, base=e.base, tuned=e.tuned,
                                delta=e.delta, low=e.low, high=e.high, verdict=verdict))
    return found


def _flips(comparison: Comparison, row: ComparisonRow) -> Flips:
    flips = [_flip(row, at, way) for way, count in (("lost", row.lost), ("gained", row.gained))
             for at in range(min(4, count or 0))]
    return Flips(task=row.task, metric=f"{row.metric},{row.filter}", base_name=comparison.base_name,
                 tuned_name=comparison.tuned_name, n=row.n, lost=row.lost or 0, gained=row.gained or 0,
                 flips=tuple(flips))


def _flip(row: ComparisonRow, at: int, way: str) -> Flip:
    before = way == "lost"
    if row.target:
        return Flip(task=row.task, index=at, item=digest([row.task, at]), direction=way, choices=(),
                    question="Please send three blue mugs to the Hamburg office by Friday.",
                    gold='{"item": "mug", "quantity": 3}',
                    base=FlipSide(right=before, chosen="Sure! Here is the order you asked for.", finish="length",
                                  extracted={"none": "[invalid]"}),
                    tuned=FlipSide(right=not before, chosen='{"item": "mug", "quantity": 3}', finish="eos"))
    choices = ("walks to the other side of the street and waits for the light to change before she goes on.",
               "is a red door.", "sings, and then the whole choir joins in with her.", "eats the bicycle.")
    sides = [FlipSide(right=before, chosen=choices[0], scores=(-0.61, -0.92, -0.88, -1.4), margin=0.27),
             FlipSide(right=not before, chosen=choices[2], scores=(-0.84, -0.99, -0.71, -1.31), margin=-0.13)]
    return Flip(task=row.task, index=17 * at, item=digest([row.task, at]), direction=way,
                question="A woman with a bicycle stands at a crossing in the rain. She looks left and right, and",
                choices=choices, gold=choices[0], base=sides[0 if before else 1], tuned=sides[1 if before else 0])


def _reported() -> tuple[AuditedDocument, ...]:
    facts = {"Evaluation Date": "2025-03-08", "Device": "CUDA (Tesla T4)", "Data Type": "float16"}
    rows = [("Base Llama 3.2 1B", "mmlu_high_school_computer_science", "acc", "none", "47.00%", "5.02%", 100,
             "ok: 47.00% is k=47 of 100; error 5.02% agrees"),
            ("Base Llama 3.2 1B", "hellaswag", "acc_norm", "none", "60.77%", "0.49%", 10_042,
             "ok*: every figure of two decimals is some k of 10,042"),
            ("TinyLlama + QLoRA", "mmlu_high_school_computer_science", "acc", "none", "26.50%", "4.42%", 100,
             "not reproducible: no k of n=100 gives 26.50% (26 is 26.00% and 27 is 27.00%)")]
    found = [(Reported(source="record.md", section="Llama 3.2 Models (1.2B)", model=model, task=task, metric=metric,
                       filter=f, value=float(value[:-1]) / 100, stderr=float(error[:-1]) / 100, n=n, n_source="stated",
                       value_text=value, stderr_text=error, facts=facts), audit)
             for model, task, metric, f, value, error, n, audit in rows]
    planned = Reported(source="record.md", section="Phi-2 (2.7B)", model="Phi-2",
                       planned="./scripts/run_evaluation.sh small qlora true")
    difference = ReportedDifference(base="Base Llama 3.2 1B", tuned="TinyLlama + QLoRA", family=False,
                                    told="cannot be checked",
                            score=("mmlu_high_school_computer_science", "acc", "none"), points=-20.5)
    return (AuditedDocument(source="record.md", rows=(*found, (planned, "")), differences=(difference,),
                   columns=("Base Llama 3.2 1B", "TinyLlama + QLoRA"),
                   findings=(("TinyLlama + QLoRA", "no hash or revision says which weights were evaluated"),)),)
