"""Evaluations in a ledger that were stopped early in a random order, for the tests of comparisons and reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from aftertune.comparison.weighted_draws import random_numbers, weighted_test, with_strata
from aftertune.ledger import Ledger
from aftertune.stats.sequential import random_order_key
from aftertune.values import (
    Answer,
    Early,
    EarlyUnit,
    Evaluation,
    Item,
    ModelIdentity,
    Response,
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
          twice: bool = False, clusters: dict[str, Any] | None = None, logprobs: bool = False, **more: Any
          ) -> Evaluation:
    """A done evaluation. values: task -> acc of each item; used: unit -> items asked of it in the drawn order (all of
    the others are); units: group -> its tasks; logprobs: each answer has a log-likelihood, by its value."""
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
    answers = [Answer(task=t, index=i, item=item(t, i, twice).hash, metrics={"acc,none": float(values[t][i])},
                      cluster=None if clusters is None else str(clusters[t][i]))
               for t, n in sizes.items() for i in range(n) if (t, i) in asked]
    return _finished(ledger, replace(evaluation, scores=tuple(scores)), answers, logprobs)


def _finished(ledger: Ledger, evaluation: Evaluation, answers: list[Answer], logprobs: bool) -> Evaluation:
    """The open evaluation with its answers; with a log-likelihood of each where ``logprobs``."""
    if not logprobs:
        return ledger.finish_evaluation(evaluation, answers, [()] * len(answers))
    ledger.acquire(evaluation.id)
    ledger.save_batch(evaluation.id, 0, {i: Response(logprob=-1.0 - a.metrics["acc,none"], greedy=False)
                                         for i, a in enumerate(answers)})
    return ledger.finish_evaluation(evaluation, answers, [(i,) for i in range(len(answers))])


def changed(n: int, share: float, gained: int, lost: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values of a base that is right on ``share`` of n items, and of a model that gained and lost so many."""
    chance = np.random.default_rng(seed)
    base = np.zeros(n)
    base[chance.permutation(n)[:round(share * n)]] = 1
    tuned = base.copy()
    tuned[chance.permutation(np.flatnonzero(base == 0))[:gained]] = 1
    tuned[chance.permutation(np.flatnonzero(base == 1))[:lost]] = 0
    return base, tuned


def store_drawn(ledger: Ledger, name: str, model: ModelIdentity, base: dict[str, Any], tuned: dict[str, Any], *,
                sure: dict[str, Any], unit: str = "", margin: float = 0.02, models: bool = True, least: int = 0,
                clusters: dict[str, Any] | None = None, earlier: Any = (), whole: dict[str, Any] | None = None,
                logprobs: bool = False) -> Evaluation:
    """A done evaluation of ``tuned`` whose items were drawn with weights beside the stored values of ``base``.

    base, tuned: task -> acc of each item; sure: the base's |margins|. unit: a group of all tasks; "" for one task. It
    stops at a verdict, after at least so many items. clusters: of each item. whole: values of a further task, of
    which all items were asked. logprobs: as in `store`.
    """
    tasks = list(base)
    n, unit = len(base[tasks[0]]), unit or tasks[0]
    order = drawn(tasks, n)
    label = {(t, i): None if clusters is None else str(clusters[t][i]) for t, i in order}
    plan = with_strata(EarlyUnit(name=unit, key="acc,none", tasks=tuple(tasks), items=len(order), batch=32,
                                 order=digest([item(t, i).hash for t, i in order]), share=1),
                       np.array([base[t][i] for t, i in order]), [sure[t][i] for t, i in order], earlier)
    test = weighted_test(plan, np.array([base[t][i] for t, i in order]), margin, alpha=0.05, models=models,
                         labels=None if clusters is None else [label[k] for k in order])
    asked: list[tuple[str, int]] = []
    batches = []
    while len(asked) < len(order) and (test.verdict is None or len(asked) < least):
        batches.append(test.draw(random_numbers(0, unit, len(asked), 32)))
        chosen = [order[p] for p in test.positions(batches[-1])]
        test.update(batches[-1], [tuned[t][i] - base[t][i] for t, i in chosen])
        asked += chosen
    early = Early(against="e-base", seed=0, margins={unit: margin}, stop_target="models" if models else "full-run",
                  units=(replace(plan, used=len(asked), batches=tuple(batches), verdict=test.verdict),))
    counts = {t: sum(a == t for a, _ in asked) for t in tasks}
    complete, further = len(asked) == len(order), whole or {}
    evaluation = Evaluation(
        id=f"e-{name}", name=name, model=model, device="cpu", dtype="float32", engine="packed", early=early,
        tasks=tuple(settings(t, n, groups=(unit,) if unit != t else (), cluster="source" if clusters else None,
                             **({} if complete else {"used": counts[t], "draw_seed": 0})) for t in tasks)
        + tuple(settings(t, len(v)) for t, v in further.items()))
    ledger.open_evaluation(evaluation, [item(t, i) for t in (*tasks, *further) for i in range(n)])
    taken = set(asked)
    answers = [Answer(task=t, index=i, item=item(t, i).hash, metrics={"acc,none": float(tuned[t][i])},
                      cluster=label[t, i]) for t in tasks for i in range(n) if (t, i) in taken]
    answers += [Answer(task=t, index=i, item=item(t, i).hash, metrics={"acc,none": float(v)})
                for t, values in further.items() for i, v in enumerate(values)]
    return _finished(ledger, evaluation, answers, logprobs)


def unsure_changes(n: int, share: float, changes: int, lost: int, seed: int = 0
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base values, tuned values and |margins|: so many changes, ``lost`` of them losses, where the base was unsure."""
    rng = np.random.default_rng(seed)
    base, sure = (rng.random(n) < share).astype(float), rng.random(n)
    tuned = base.copy()
    for side, count in ((1, lost), (0, changes - lost)):
        unsure = np.flatnonzero((base == side) & (sure < 0.2))
        tuned[rng.permutation(unsure)[:count]] = 1 - side
    return base, tuned, sure
