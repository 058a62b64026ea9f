"""Evaluations in a ledger that were stopped early in a random order, for the tests of comparisons and reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from aftertune.ledger import Ledger
from aftertune.stats.sequential import random_order_key
from aftertune.values import (
    Answer,
    Early,
    EarlyUnit,
    Evaluation,
    Item,
    ModelIdentity,
    Score,
    TaskSettings,
    digest,
)

BASE = ModelIdentity(source="base", weights="w0", config="c0", tokenizer="t0")
ADAPTED = replace(BASE, adapter="a1", adapter_source="out/careful")
STRANGER = replace(BASE, source="other", weights="w9")


def settings(task: str, n: int, **more: Any) -> TaskSettings:
    values: dict[str, Any] = {
        "version": "1.0", "output_type": "multiple_choice", "num_fewshot": 0, "n": n, "n_total": n,
        "split": "validation", "data": "file:x", "items": digest([task, n]), "prompts": digest(task),
        "primary": "acc,none", "higher_is_better": {"acc": True, "acc_norm": True}, "chance": .25}
    return TaskSettings(task=task, **{**values, **more})


def item(task: str, index: int, twice: bool = False) -> Item:
    """An item. twice: two items in a row have the same content."""
    content = index // 2 if twice else index
    return Item(task=task, index=index, hash=digest([task, content]), doc={"q": content})


def drawn(tasks: list[str], n: int, seed: int = 0, twice: bool = False) -> list[tuple[str, int]]:
    """(task, index) of all items of the tasks in the drawn order."""
    items = [item(t, i, twice) for t in tasks for i in range(n)]
    return [(i.task, i.index) for i in sorted(items, key=lambda i: random_order_key(seed, i.task, i.index, i.hash))]


def store(ledger: Ledger, name: str, model: ModelIdentity, values: dict[str, Any], *,
          used: dict[str, int] | None = None, seed: int = 0, units: dict[str, list[str]] | None = None,
          twice: bool = False, **more: Any) -> Evaluation:
    """A done evaluation. values: task -> acc of each item; used: unit -> items asked of it in the drawn order (all of
    the others are); units: group -> its tasks."""
    pools = units or {t: [t] for t in values}
    sizes = {t: len(v) for t, v in values.items()}
    asked = {(t, i) for t, n in sizes.items() for i in range(n)}
    made = []
    for unit, members in pools.items():
        order = drawn(members, sizes[members[0]], seed, twice)
        if used and unit in used:
            asked -= set(order[used[unit]:])
        made.append(EarlyUnit(name=unit, key="acc,none", tasks=tuple(members), items=len(order), batch=32,
                              order=digest(order), used=(used or {}).get(unit, len(order)), verdict="lower"))
    groups = {t: (u,) if [t] != [u] and len(m) > 1 else () for u, m in pools.items() for t in m}
    counts = {t: sum(a == t for a, _ in asked) for t in values}
    early = Early(against="e-base", seed=seed, margins=dict.fromkeys(pools, 0.02), units=tuple(made))
    tasks = tuple(settings(t, n, groups=groups[t], **({"used": counts[t], "draw_seed": seed} if counts[t] < n else {}),
                           **more) for t, n in sizes.items())
    scores = [Score(task=t, metric="acc", filter="none", stderr=.01, n=counts[t], primary=True,
                    value=float(np.mean([values[t][i] for a, i in asked if a == t]))) for t in values if counts[t]]
    scores += [Score(task=u, metric="acc", filter="none", stderr=.01, n=sum(counts[t] for t in m), group=True,
                     value=float(np.mean([values[t][i] for t, i in asked if t in m])))
               for u, m in pools.items() if len(m) > 1]
    evaluation = Evaluation(id=f"e-{name}", name=name, model=model, tasks=tasks, device="cpu", dtype="float32",
                            engine="packed", early=early if used else None)
    ledger.open_evaluation(evaluation, [item(t, i, twice) for t, n in sizes.items() for i in range(n)])
    answers = [Answer(task=t, index=i, item=item(t, i, twice).hash, metrics={"acc,none": float(values[t][i])})
               for t, n in sizes.items() for i in range(n) if (t, i) in asked]
    return ledger.finish_evaluation(replace(evaluation, scores=tuple(scores)), answers, [()] * len(answers))


def changed(n: int, share: float, gained: int, lost: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values of a base that is right on ``share`` of n items, and of a model that gained and lost so many."""
    chance = np.random.default_rng(seed)
    base = np.zeros(n)
    base[chance.permutation(n)[:round(share * n)]] = 1
    tuned = base.copy()
    tuned[chance.permutation(np.flatnonzero(base == 0))[:gained]] = 1
    tuned[chance.permutation(np.flatnonzero(base == 1))[:lost]] = 0
    return base, tuned
