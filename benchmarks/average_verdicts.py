"""Simulate the average over the tasks of a comparison: how often its words are said, and how often they are false.
`benchmarks/verdicts.py` runs it.

The rows are made by the functions of the program, from the paired values of each task to the verdict. The first part
compares the average with the tasks one by one. In the second part the true average is on the margin or 0, so a word
that claims more is false: there "within" may be said in at most 5 % of the comparisons, and a word of the two sides in
at most 5 % together. With early stopping each task is stopped by its own test at 1/K of the error level, as `aftertune
eval --until-decided` does, and the average is judged with what was asked until then. The last part judges chosen
tasks that were stopped early and their average as one family, as `compare --tasks a,b,average` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from aftertune.catalog import MetricKey
from aftertune.comparison.average import AverageQuestion, average_question, level_beside
from aftertune.comparison.early_rows import EarlyTest, with_early_rows
from aftertune.comparison.pairing import MetricValues, Pair
from aftertune.comparison.rows import RowDraft, TaskGroup, build_drafts, judge_drafts
from aftertune.stats.evidence import Evidence
from aftertune.stats.paired import NO_EVIDENCE
from aftertune.stats.planning import items_for_average
from aftertune.stats.sequential import PairedSequential
from aftertune.values import Answer, EarlyUnit, Evaluation, ModelIdentity, Verdict
from fixed_verdicts import ALPHA, MARGIN, Floats, Random, flips, pair_of, settings, share

ACC = MetricKey.of("acc")
#: The values of one comparison: base and tuned, for each task.
Values = list[tuple[Floats, Floats]]
MODEL = ModelIdentity(source="simulated", weights="w", config="c", tokenizer="t")


# --- On average and one by one ---

#: (tasks, items of each, loss of each); 10 % of the answers differ.
COMPARED = ((6, 600, 0.0), (6, 300, 0.04), *((k, items_for_average([0.1] * k, MARGIN) or 0, 0.0) for k in (3, 6, 10)))


def run_compared(tasks: int, items: int, loss: float, comparisons: int) -> dict[str, Any]:
    """The words of the average, and in how many comparisons all or any of the tasks have them."""
    random = np.random.default_rng(tasks * items)
    average: Counter[str] = Counter()
    every: Counter[str] = Counter()
    some: Counter[str] = Counter()
    for _ in range(comparisons):
        pairs = [pair_of(settings(f"t{k}", items), *flips(random, items, loss, 0.1)) for k in range(tasks)]
        sides = [Evaluation(id=name, name=name, model=MODEL, tasks=tuple(p.settings for p in pairs), device="cpu",
                            dtype="float32", engine="packed") for name in ("base", "tuned")]
        drafts, _ = build_drafts(sides[0], sides[1], pairs, MARGIN)
        rows = [str(r.verdict) for r in judge_drafts(drafts, lineage=True, forced=False)]
        question = average_question(drafts, [], [], name="average")
        assert question is not None
        average[str(judge_drafts([question.draft(MARGIN)], lineage=True, forced=False)[0].verdict)] += 1
        every.update({word for word in rows if set(rows) == {word}})
        some.update(set(rows))
    return {"average": average, "every": every, "any": some, "comparisons": comparisons}


# --- On the margin, and at 0 ---

@dataclass(frozen=True, slots=True, kw_only=True)
class AverageScenario:
    """values: makes the answers to each task. members: how many of these tasks each task or group of the average has.
    clusters: for each task, the cluster of each item; None without. truth: the true average. same: all tasks have the
    same documents. early: with early stopping."""

    name: str
    values: Callable[[Random], Values]
    members: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...] | None = None
    truth: float = -MARGIN
    same: bool = False
    early: bool = False

    def false(self, word: str) -> bool:
        """True for a word that claims more than the truth."""
        at_margin = abs(self.truth) >= MARGIN - 1e-12
        return word in (("lower", "higher", "within", "no_loss", "better") if at_margin else
                        ("lower", "higher", "worse", "better"))


def binary(sizes: Sequence[int], losses: Sequence[float], changed: float = 0.1) -> Callable[[Random], Values]:
    """Right and wrong answers to tasks of these sizes."""
    return lambda random: [flips(random, n, loss, max(changed, loss)) for n, loss in zip(sizes, losses, strict=True)]


def rare(sizes: Sequence[int]) -> Callable[[Random], Values]:
    """Shares that hardly move, and rare complete failures that lose two points on average."""
    def values(random: Random) -> Values:
        made = []
        for n in sizes:
            base = random.uniform(0.85, 0.95, n)
            moved = (base + random.normal(0, 0.01, n)).clip(0, 1)
            made.append((base, np.where(random.random(n) < MARGIN / 0.9, 0.0, moved)))
        return made
    return values


def subjects(count: int, items: int, others: Sequence[int]) -> Callable[[Random], Values]:
    """A group of ``count`` subjects whose losses vary (standard deviation 3 points), and other tasks; all lose two
    points on average."""
    def values(random: Random) -> Values:
        shifts = MARGIN + random.normal(0, 0.03, count)
        return [*(flips(random, items, float(s), max(0.15, abs(float(s)))) for s in shifts),
                *(flips(random, n, MARGIN, 0.1) for n in others)]
    return values


def passages(labels: Sequence[Sequence[int]]) -> Callable[[Random], Values]:
    """Items of a passage are lost or gained together, in a tenth of the passages."""
    def values(random: Random) -> Values:
        made = []
        for own in labels:
            index = np.asarray(own)
            d = random.choice([-1.0, 0.0, 1.0], int(index.max()) + 1, p=[0.06, 0.9, 0.04])[index]
            base = np.where(d < 0, 1.0, np.where(d > 0, 0.0, (random.random(d.size) < 0.5).astype(float)))
            made.append((base, base + d))
        return made
    return values


def twice(n: int) -> Callable[[Random], Values]:
    """Two tasks with the same questions, which are answered alike."""
    def values(random: Random) -> Values:
        made = flips(random, n, MARGIN, 0.1)
        return [made, made]
    return values


UNEQUAL = (50, 100, 200, 1000, 3000)
PASSAGES = tuple(tuple(np.repeat(np.arange(60), np.random.default_rng(k).integers(1, 10, 60)).tolist())
                 for k in range(4))
AVERAGES = (
    AverageScenario(name="6 tasks of 300 items", values=binary([300] * 6, [MARGIN] * 6), members=(1,) * 6),
    AverageScenario(name="50 to 3,000 items", values=binary(UNEQUAL, [MARGIN] * 5), members=(1,) * 5),
    AverageScenario(name="50 to 3,000 items, the smallest loses all", members=(1,) * 5,
                    values=binary(UNEQUAL, [5 * MARGIN, 0, 0, 0, 0], 0.05)),
    AverageScenario(name="50 to 3,000 items, nothing changes but on the smallest", members=(1,) * 5,
                    values=binary(UNEQUAL, [5 * MARGIN, 0, 0, 0, 0], 0.0)),
    AverageScenario(name="3 tasks of 20 items", values=binary([20] * 3, [MARGIN] * 3), members=(1,) * 3),
    AverageScenario(name="6 tasks of 10 items, only losses", values=binary([10] * 6, [MARGIN] * 6, 0.0),
                    members=(1,) * 6),
    AverageScenario(name="3 tasks of 60 items, only losses", values=binary([60] * 3, [MARGIN] * 3, 0.0),
                    members=(1,) * 3),
    AverageScenario(name="rare complete failures, 3 tasks of 60 shares", values=rare([60] * 3), members=(1,) * 3),
    AverageScenario(name="rare complete failures, 20, 100 and 400 shares", values=rare([20, 100, 400]),
                    members=(1,) * 3),
    AverageScenario(name="4 tasks of 60 passages", values=passages(PASSAGES), members=(1,) * 4, clusters=PASSAGES),
    AverageScenario(name="the same 400 questions in 2 tasks", values=twice(400), members=(1, 1), same=True),
    AverageScenario(name="a group of 20 subjects, and 2 tasks", values=subjects(20, 40, (300, 300)),
                    members=(20, 1, 1)),
    AverageScenario(name="4 tasks of 400 items, early stopping", values=binary([400] * 4, [MARGIN] * 4),
                    members=(1,) * 4, early=True),
    AverageScenario(name="early stopping, one of 4 loses all", values=binary([400] * 4, [4 * MARGIN, 0, 0, 0]),
                    members=(1,) * 4, early=True),
    AverageScenario(name="6 tasks of 300 items", values=binary([300] * 6, [0.0] * 6), members=(1,) * 6, truth=0.0),
    AverageScenario(name="50 to 3,000 items, losses and gains", members=(1,) * 5, truth=0.0,
                    values=binary(UNEQUAL, [0.05, -0.05, 0.02, -0.02, 0.0])),
    AverageScenario(name="4 tasks of 400 items, early stopping", values=binary([400] * 4, [0.0] * 4),
                    members=(1,) * 4, truth=0.0, early=True),
)


@cache
def _answers(task: str, n: int) -> list[Answer]:
    return [Answer(task=task, index=i, item=f"{task} {i}", metrics={}) for i in range(n)]


def _pair(scenario: AverageScenario, at: int, n: int) -> Pair:
    """Task number ``at`` of a scenario. A task with clusters has the name of one (`catalog.has_clusters`)."""
    name = "boolq" if scenario.clusters else "t" if scenario.same else f"t{at}"
    answers = _answers(f"{name}{at}" if scenario.clusters else name, n)
    labels = [("passage", f"{at} {c}") for c in scenario.clusters[at]] if scenario.clusters else None
    return Pair(settings(name, n), answers, answers, answers, answers, labels)


def verdict_of(scenario: AverageScenario, random: Random) -> str:
    """The verdict on the average of one comparison."""
    values = scenario.values(random)
    members = [((_pair(scenario, k, base.size)), MetricValues(base, tuned, True))
               for k, (base, tuned) in enumerate(values)]
    drafts, tests, start = [], {}, 0
    for at, count in enumerate(scenario.members):
        group = TaskGroup(f"member {at}", ACC, tuple(members[start:start + count]), None)
        start += count
        test = _stopped(group, len(scenario.members)) if scenario.early else None
        if test is not None:
            tests[test.name] = test
        if test is None or len(test.counted) == test.unit.items:
            drafts.append(_draft(group))
    question = AverageQuestion(name="average", fixed=tuple(drafts), tests=tests)
    if tests:
        return str(question.early_row(MARGIN, lineage=True).verdict)
    return str(judge_drafts([question.draft(MARGIN)], lineage=True, forced=False)[0].verdict)


def _draft(group: TaskGroup) -> RowDraft:
    base, tuned = (np.concatenate([getattr(v, side) for _, v in group.members]) for side in ("base", "tuned"))
    evidence = Evidence(n=base.size, base=float(base.mean()), tuned=float(tuned.mean()), delta=0.0, low=-1.0, high=1.0,
                        kind="binary", tests=NO_EVIDENCE, shares=True)
    return RowDraft(task=group.name, key=ACC, evidence=evidence, margin=MARGIN, primary=True, unit="share",
                    values=group)


def _stopped(group: TaskGroup, tests: int, items: int = 0) -> EarlyTest:
    """The test of a task after the items that it asked: until a word about the margin was proven, else all. items: of
    the task, if these are the most that are asked."""
    (_, values), = group.members
    test = PairedSequential(None, MARGIN, alpha=ALPHA / tests)
    test.update(values.tuned - values.base)
    n = values.base.size
    used = min(n, 32 * math.ceil((test.decided_at or n) / 32))
    column = replace(values, base=values.base[:used], tuned=values.tuned[:used])
    unit = EarlyUnit(name=group.name, key=ACC, tasks=(group.name,), items=items or n, batch=32, order="")
    return EarlyTest(unit=unit, columns={ACC: column}, counted=np.ones(used, dtype=bool), base=values.base, chance=0.25,
                     groups=(), share=tests, target=False)


def run_average(scenario: AverageScenario, comparisons: int) -> dict[str, Any]:
    """How often each word is said of the average."""
    random = np.random.default_rng(sum(map(ord, scenario.name)))
    return {"said": Counter(verdict_of(scenario, random) for _ in range(comparisons)), "comparisons": comparisons}


# --- Stopped tasks and their average as one family ---

#: (tasks, largest number of items of each, loss of each): all on the margin, so that every word of "within",
#: "lower", "higher" and "no_loss" is false of the tasks and of the average.
BESIDE = ((2, 800, MARGIN), (4, 400, MARGIN))
QUESTIONS: tuple[tuple[Verdict, ...], ...] = (("within",), ("lower", "higher"), ("better",), ("no_loss",))


def run_beside(tasks: int, items: int, loss: float, comparisons: int) -> dict[str, Any]:
    """How many comparisons say a false word of any task, of the average, and of any of them, by question."""
    random = np.random.default_rng(tasks * items)
    counts: dict[tuple[Verdict, ...], list[int]] = {q: [0, 0, 0] for q in QUESTIONS}
    for _ in range(comparisons):
        stopped = []
        for k in range(tasks):
            pair = Pair(settings(f"t{k}", items), (), (), (), ())
            values = MetricValues(*flips(random, items, loss, 0.1), True)
            stopped.append(_stopped(TaskGroup(f"t{k}", ACC, ((pair, values),), None), tasks, 10 * items))
        question = AverageQuestion(name="average", fixed=(), tests={t.name: t for t in stopped})
        average = question.early_row(MARGIN, lineage=True, alpha=level_beside(question, [], stopped))
        rows = with_early_rows([], stopped, MARGIN, lineage=True, forced=False)
        for words, found in counts.items():
            of_task = any(min(r.p_claims[w] for w in words) < ALPHA for r in rows)
            of_average = min(average.p_claims[w] for w in words) <= ALPHA + 1e-9
            for i, said in enumerate((of_task, of_average, of_task or of_average)):
                found[i] += said
    return {"counts": counts, "comparisons": comparisons}


def broken_beside(case: tuple[int, int, float], found: dict[str, Any]) -> Iterator[str]:
    """The questions in which the family is false too often, by more than twice the Monte Carlo error."""
    n = found["comparisons"]
    for words, (*_, false) in found["counts"].items():
        if false / n > ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / n):
            yield f"{case[0]} stopped tasks and their average: false {' or '.join(words)} {share(false, n)}"


def beside_lines(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table of stopped tasks and their average as one family."""
    yield "| stopped tasks | items of each, at most | false | of any task | of the average | of any of them |"
    yield "|---|---|---|---|---|---|"
    for (tasks, items, _), result in zip(BESIDE, found, strict=True):
        n = result["comparisons"]
        for words, counts in result["counts"].items():
            yield f"| {tasks} | {items:,} | *{'* or *'.join(w.replace('_', ' ') for w in words)}* | " + " | ".join(
                share(count, n) for count in counts) + " |"
    yield ""
    yield (f"Tasks that were stopped early and their average, chosen as one family; {found[0]['comparisons']:,} "
           "comparisons each, with every true difference on the margin. The last column may be at most 5 %.")


def broken_average(scenario: AverageScenario, found: dict[str, Any]) -> Iterator[str]:
    """The bars that a scenario misses, by more than twice the Monte Carlo error."""
    n, said = found["comparisons"], found["said"]
    for words in (("within",), ("lower", "higher"), ("worse", "better"), ("no_loss",)):
        false = sum(said[w] for w in words if scenario.false(w))
        level = ALPHA / 2 if words == ("no_loss",) else ALPHA
        if false / n > level + 2 * math.sqrt(level * (1 - level) / n):
            yield f"average, {scenario.name}: false {' or '.join(words)} {share(false, n)}"


def average_lines(compared: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## The average over tasks"
    yield ""
    yield ("Written by `python benchmarks/verdicts.py`; the docstring of `benchmarks/average_verdicts.py` explains the "
           "simulation. No model is used.")
    yield ""
    yield "| tasks | items of each | lost on each, points | word | on average | on every task | on any task |"
    yield "|---|---|---|---|---|---|---|"
    for (tasks, items, loss), result in zip(COMPARED, compared, strict=True):
        n, verdict, word = result["comparisons"], *(("lower", "forgot") if loss else ("within", "kept"))
        yield (f"| {tasks} | {items:,} | {100 * loss:g} | {word} | **{share(result['average'][verdict], n)}** "
               f"| {share(result['every'][verdict], n)} | {share(result['any'][verdict], n)} |")
    yield ""
    yield (f"Margin {100 * MARGIN:g} points, 10 % of the answers differ, {compared[0]['comparisons']:,} comparisons "
           "each; ± is the Monte Carlo standard error. The last three numbers of items are those that `plan-items` "
           "gives for a power of 80 %.")
    yield ""
    yield "| true average | scenario | *within* | *lower* or *higher* | *worse* or *better* | *no loss* |"
    yield "|---|---|---|---|---|---|"
    for scenario, result in zip(AVERAGES, found, strict=True):
        n, said = result["comparisons"], result["said"]
        cells = []
        for words in (("within",), ("lower", "higher"), ("worse", "better"), ("no_loss",)):
            count, false = sum(said[w] for w in words), sum(said[w] for w in words if scenario.false(w))
            cells.append(f"{100 * count / n:.1f} %" + (f", false {100 * false / n:.1f} %" if false else ""))
        points = f"{100 * scenario.truth:+g}".replace("-", "\N{MINUS SIGN}") if scenario.truth else "0"
        yield f"| {points} | {scenario.name} | {' | '.join(cells)} |"
    yield ""
    yield (f"{found[0]['comparisons']:,} comparisons each. At a true average of {100 * -MARGIN:g} points, the margin, "
           "every *within*, *lower*, *higher*, *better* and *no loss* is false; at 0 every word but *within* and *no "
           "loss* is.".replace("-", "\N{MINUS SIGN}"))
