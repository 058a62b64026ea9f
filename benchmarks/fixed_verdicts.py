"""Simulate verdicts at a fixed number of items, and how often they are false. `benchmarks/verdicts.py` runs it.

A scenario makes the answers of two models (or of two recipes with three seeds each) whose true difference is on the
margin, and judges them with the functions of the program: `paired_evidence`, `group_evidence`, `judge_drafts`,
`judge_questions` and `decide`. There neither "within" nor "lower" may be said in more than 5 % of the comparisons.
Where the base only guesses, no verdict is right. The power of the number of items that an undecided row names is
simulated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aftertune.catalog import MetricKey
from aftertune.comparison.across_seeds import SeedQuestion, judge_questions
from aftertune.comparison.pairing import MetricValues, Pair
from aftertune.comparison.rows import TaskGroup, build_drafts, judge_drafts
from aftertune.stats import Case, Evidence, decide, group_evidence, paired_evidence, tango_tests
from aftertune.stats.across_seeds import pooled_spread, seed_errors
from aftertune.stats.planning import items_to_decide
from aftertune.values import Answer, Evaluation, ModelIdentity, TaskSettings

ALPHA, MARGIN, POWER = 0.05, 0.02, 0.8
#: The number of items comes from a normal approximation, so the power may be lower than POWER by this.
NEAR = 0.02
Floats = NDArray[np.float64]
Random = np.random.Generator
#: One comparison: the verdicts that it gives.
Judge = Callable[[Random], Sequence[str]]


@dataclass(frozen=True, slots=True)
class FixedScenario:
    """judge: makes the answers of one comparison and returns its verdicts."""

    part: str
    name: str
    judge: Judge


# --- Two models ---

def verdict_of(evidence: Evidence) -> list[str]:
    """The verdict of one test alone."""
    case = Case(tests=evidence.tests, clustered=evidence.clustered, bootstrap=evidence.bootstrap)
    return [decision.verdict for decision in decide([case])]


def failures(n: int) -> Judge:
    """Shares that hardly move, and rare complete failures that lose two points on average."""
    def judge(random: Random) -> list[str]:
        base = random.uniform(0.85, 0.95, n)
        moved = (base + random.normal(0, 0.01, n)).clip(0, 1)
        return verdict_of(paired_evidence(base, np.where(random.random(n) < MARGIN / 0.9, 0.0, moved), margin=MARGIN))
    return judge


def noisy_shares(n: int) -> Judge:
    """Shares of which every one moves, by two points on average."""
    def judge(random: Random) -> list[str]:
        base = random.uniform(0.3, 0.7, n)
        return verdict_of(paired_evidence(base, base - MARGIN + random.uniform(-0.25, 0.25, n), margin=MARGIN))
    return judge


def hits(random: Random, n: int, share: float) -> Floats:
    """Right answers (1) to about this share of n items."""
    return (random.random(n) < share).astype(np.float64)


def flips(random: Random, n: int, loss: float, changed: float) -> tuple[Floats, Floats]:
    """Right and wrong answers of which the share ``changed`` differs: (changed + loss) / 2 are lost."""
    u = random.random(n)
    lost, gained = u < (changed + loss) / 2, (u >= (changed + loss) / 2) & (u < changed)
    base = np.where(lost, 1.0, np.where(gained, 0.0, random.random(n) < 0.6))
    return base, np.where(lost, 0.0, np.where(gained, 1.0, base))


def subjects(sizes: Sequence[int], losses: Sequence[float], changed: float = 0.0, *, macro: bool = False) -> Judge:
    """A group of tasks. losses: of each task, two points in the mean."""
    def judge(random: Random) -> list[str]:
        sides = [flips(random, n, loss, max(changed, loss)) for n, loss in zip(sizes, losses, strict=True)]
        return verdict_of(group_evidence([b for b, _ in sides], [t for _, t in sides], margin=MARGIN,
                                         weighting="macro" if macro else "micro"))
    return judge


def repeats(distinct: int, copies: int) -> Judge:
    """Items that occur several times; a fifth of them changes."""
    def judge(random: Random) -> list[str]:
        base, tuned = (np.repeat(side, copies) for side in flips(random, distinct, MARGIN, 0.2))
        return verdict_of(paired_evidence(base, tuned, margin=MARGIN, clusters=np.repeat(np.arange(distinct),
                                                                                         copies).tolist()))
    return judge


def passages(count: int) -> Judge:
    """Passages with 1 to 9 questions each: in a tenth of them every answer is lost or gained together."""
    def judge(random: Random) -> list[str]:
        sizes = random.integers(1, 10, count)
        d = np.repeat(random.choice([-1, 0, 1], count, p=[0.06, 0.9, 0.04]), sizes)
        base = np.where(d < 0, 1.0, np.where(d > 0, 0.0, random.random(d.size) < 0.5))
        return verdict_of(paired_evidence(base, base + d, margin=MARGIN,
                                          clusters=np.repeat(np.arange(count), sizes).tolist()))
    return judge


# --- Recipes over seeds ---

def settings(task: str, n: int, **more: Any) -> TaskSettings:
    """The settings of a task with four choices."""
    values: dict[str, Any] = {"target": False, "chance": 0.25, **more}
    return TaskSettings(
        task=task, version="1", output_type="multiple_choice", num_fewshot=0, n=n, n_total=n, split="test",
        data="simulated", items=task, prompts=task, primary=MetricKey.of("acc"), higher_is_better={"acc": True},
        **values)


def recipes(tasks: Sequence[tuple[int, float]], *, base: float = 0.6, seed_spread: float = 0.02, loss: float = MARGIN,
            changed: float = 0.1) -> Judge:
    """Two recipes with three seeds each. tasks: (items, loss over ``loss``) of each; several are one group.

    seed_spread: standard deviation of the seeds' loss.
    """
    def judge(random: Random) -> list[str]:
        seeds = random.normal(0, seed_spread, 3)
        groups = []
        for shift in seeds:
            members = []
            for k, (n, more) in enumerate(tasks):
                wanted = float(np.clip(loss + more + shift, -changed, changed))
                before, after = flips(random, n, wanted, changed) if base > 0.3 else \
                    (hits(random, n, base), hits(random, n, base))
                members.append((Pair(settings(f"t{k}", n), (), (), (), ()), MetricValues(before, after, True)))
            groups.append(TaskGroup("group", MetricKey.of("acc"), tuple(members), None))
        question = SeedQuestion(groups[0], groups, ("group",), len(tasks) > 1)
        return [decision.verdict for _, _, _, decision in judge_questions([question], MARGIN) if decision]
    return judge


def rare_recipes(n: int) -> Judge:
    """Two recipes of which one loses the same two items of a hundred in every seed."""
    def judge(random: Random) -> list[str]:
        lost = random.random(n) < MARGIN
        one = TaskGroup("t", MetricKey.of("acc"), (
            (Pair(settings("t", n), (), (), (), ()), MetricValues(np.ones(n), np.where(lost, 0.0, 1.0), True)),), None)
        slips = []
        for _ in range(3):
            values = one.members[0][1]
            tuned = values.tuned.copy()
            tuned[random.integers(0, n)] = 1.0
            slips.append(TaskGroup("t", one.key, ((one.members[0][0], MetricValues(values.base, tuned, True)),), None))
        return [d.verdict for _, _, _, d in judge_questions([SeedQuestion(one, slips, ("t",), False)], MARGIN) if d]
    return judge


@dataclass(frozen=True, slots=True)
class SeedWidth:
    """How wide the 95 % interval between two recipes is. recipes: of the study over which the error is pooled; 0: not
    pooled. correlation: of the recipes' losses at a common seed. largest: spread of one recipe, if it is another."""

    recipes: int
    correlation: float = 0.0
    largest: float | None = None

    def interval(self, random: Random, *, items: int = 1000, spread: float = 0.02, changed: float = 0.1, seeds: int = 3
                 ) -> tuple[float, float]:
        """The interval of a difference that is 0. spread: standard deviation of a model's score between seeds."""
        count, base = max(2, self.recipes), random.random(items) < 0.6
        common = random.normal(0, 1, seeds)
        values = np.empty((count, seeds, items))
        for r in range(count):
            own = math.sqrt(1 - self.correlation) * random.normal(0, 1, seeds)
            width = self.largest if r == 0 and self.largest is not None else spread
            for s, shift in enumerate(width * (math.sqrt(self.correlation) * common + own)):
                moved = random.random(items) < np.where(base, (changed - shift) / 1.2, (changed + shift) / 0.8)
                values[r, s] = np.where(moved, ~base, base)
        scores = list(values.mean(axis=2))
        pooled = pooled_spread(scores[:2], scores[2:]) if self.recipes else None
        return seed_errors([values[1] - values[0]], bounded=True, spread=pooled).interval()


SEED_WIDTHS = (*(SeedWidth(r) for r in (0, 2, 4, 6)), SeedWidth(4, 0.5), SeedWidth(4, 0.9),
               SeedWidth(2, largest=0.06), SeedWidth(4, largest=0.06))


def run_width(width: SeedWidth, comparisons: int) -> dict[str, float]:
    """Mean width of the interval, and how often it covers the truth."""
    random = np.random.default_rng(5)
    ends = np.array([width.interval(random) for _ in range(comparisons)])
    missed = int(((ends[:, 0] > 0) | (ends[:, 1] < 0)).sum())
    return {"width": float((ends[:, 1] - ends[:, 0]).mean()), "missed": missed, "comparisons": comparisons}


def width_lines(found: Sequence[dict[str, float]]) -> Iterator[str]:
    """The table of the widths."""
    yield "| error between seeds | 95 % interval, points | covers the truth |"
    yield "|---|---|---|"
    for width, result in zip(SEED_WIDTHS, found, strict=True):
        name = f"pooled over {width.recipes} recipes" if width.recipes else "of the two recipes, seed by seed"
        name += f", correlation {width.correlation:g}" if width.correlation else ""
        name += f", one recipe varies by {100 * width.largest:g} points" if width.largest else ""
        n = result["comparisons"]
        yield f"| {name} | {100 * result['width']:.1f} | {share(n - result['missed'], n)} |"
    yield ""
    yield ("Two recipes that do not differ, with 3 seeds each, whose score varies by 2 points (standard deviation); "
           "1,000 items, 10 % of the answers differ from the base's. "
           f"{found[0]['comparisons']:,} comparisons each; ± is the Monte Carlo standard error.")


# --- The family, through the rows of a comparison ---

def family(random: Random) -> list[str]:
    """Three tasks on the margin, three at the floor, and a target that is learned: the verdicts of the three."""
    model = ModelIdentity(source="simulated", weights="w", config="c", tokenizer="t")
    pairs = []
    for k in range(3):
        pairs.append(pair_of(settings(f"known{k}", 400), *flips(random, 400, MARGIN, 0.15)))
        guesses = hits(random, 200, 0.25)
        pairs.append(pair_of(settings(f"guessed{k}", 200), guesses, guesses))
    pairs.append(pair_of(settings("own", 60, target=True), np.zeros(60), hits(random, 60, 0.9)))
    sides = [Evaluation(id=name, name=name, model=model, tasks=tuple(p.settings for p in pairs), device="cpu",
                        dtype="float32", engine="packed") for name in ("base", "tuned")]
    drafts, _ = build_drafts(sides[0], sides[1], pairs, MARGIN)
    rows = judge_drafts(drafts, lineage=True, forced=False)
    return [str(row.verdict) for row in rows if row.task.startswith("known")]


def pair_of(task: TaskSettings, base: Floats, tuned: Floats) -> Pair:
    """The paired answers of two models to one task."""
    left, right = ([Answer(task=task.task, index=i, item=f"{task.task} {i}", metrics={task.primary: float(v)})
                    for i, v in enumerate(side)] for side in (base, tuned))
    return Pair(task, left, right, left, right)


FIXED = (
    *(FixedScenario("shares", f"rare complete failures, {n} items", failures(n)) for n in (8, 50, 100, 150, 300)),
    *(FixedScenario("shares", f"every answer moves, {n} items", noisy_shares(n)) for n in (50, 300)),
    FixedScenario("group", "3 subjects of 45 items", subjects([45] * 3, [MARGIN] * 3)),
    FixedScenario("group", "3 subjects of 45 items, one of them loses", subjects([45] * 3, [3 * MARGIN, 0, 0])),
    FixedScenario("group", "57 subjects of 3 items", subjects([3] * 57, [MARGIN] * 57)),
    FixedScenario("group", "4 subjects of 300 items, 10 % differ", subjects([300] * 4, [MARGIN] * 4, 0.1)),
    FixedScenario("group", "equal weights, 20, 500 and 500 items",
                  subjects([20, 500, 500], [3 * MARGIN, 0, 0], macro=True)),
    *(FixedScenario("repeated items", f"{d} items, {c} times each", repeats(d, c))
      for d, c in ((100, 10), (10, 100), (400, 3))),
    FixedScenario("repeated items", "200 passages of 1 to 9 questions", passages(200)),
    FixedScenario("recipes", "one task of 400 items, seeds that vary by 2 points", recipes([(400, 0.0)])),
    FixedScenario("recipes", "one task of 400 items, seeds that vary by 0.2 points",
                  recipes([(400, 0.0)], seed_spread=0.002)),
    FixedScenario("recipes", "12 subjects of 60 items", recipes([(60, 0.0)] * 12)),
    FixedScenario("recipes", "rare losses on 100 items", rare_recipes(100)),
    FixedScenario("recipes", "two that guess, 400 items", recipes([(400, 0.0)], base=0.25, loss=0.0)),
    FixedScenario("family", "3 tasks, 3 at the floor and a target", family),
)

#: Numbers of items that are checked: (true difference, discordance, tests in the family).
PLANS = ((0.0, 0.1, 1), (0.0, 0.1, 5), (-0.012, 0.1, 1), (-0.05, 0.1, 5))


def run_fixed(scenario: FixedScenario, comparisons: int) -> dict[str, int]:
    """How many comparisons say "within" of any test, and how many "lower" or "higher"."""
    random = np.random.default_rng(sum(map(ord, scenario.name)))
    said = [set(scenario.judge(random)) for _ in range(comparisons)]
    return {"within": sum("within" in s for s in said), "moved": sum(bool(s & {"lower", "higher"}) for s in said),
            "comparisons": comparisons}


def run_plan(delta: float, psi: float, members: int, comparisons: int) -> dict[str, float]:
    """How often the number of items that a row names decides it, at the true difference for which it is given."""
    alpha = ALPHA / members
    plan = items_to_decide(psi, MARGIN, delta, includes_zero=abs(delta) < 0.03, seen=1, total=10**7, alpha=alpha)
    assert plan.items is not None
    counts = np.random.default_rng(members).multinomial(
        plan.items, [(psi + delta) / 2, (psi - delta) / 2, 1 - psi], comparisons)
    tests = [tango_tests(int(gained), int(lost), plan.items, MARGIN) for gained, lost, _ in counts]
    decided = sum(t.within < alpha if abs(delta) < MARGIN else t.lower < alpha for t in tests)
    return {"items": plan.items, "decided": decided, "comparisons": comparisons}


def share(count: float, of: float, digits: int = 1) -> str:
    """A share with its Monte Carlo standard error (of one in ``of`` where none was seen)."""
    p = count / of
    spread = max(p, 1 / of)
    return f"{p:.{digits}%} ± {math.sqrt(spread * (1 - spread) / of):.{digits}%}"


def broken_fixed(name: str, found: dict[str, Any]) -> Iterator[str]:
    """The bars that a scenario misses; a share may be off by twice its Monte Carlo error."""
    n = found["comparisons"]
    for what in ("within", "moved"):
        if what in found and found[what] / n > ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / n):
            yield f"{name}: {what} {share(found[what], n)}"
    if "decided" in found and found["decided"] / n < POWER - NEAR - 2 * math.sqrt(POWER * (1 - POWER) / n):
        yield f"{name}: decided {share(found['decided'], n)}"


def fixed_lines(found: Sequence[dict[str, Any]], plans: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## Verdicts at a fixed number of items"
    yield ""
    yield ("Written by `python benchmarks/verdicts.py`; the docstring of `benchmarks/fixed_verdicts.py` explains the "
           "simulation. No model is used.")
    yield ""
    yield "| part | scenario | false *within* | false *lower* or *higher* |"
    yield "|---|---|---|---|"
    for scenario, result in zip(FIXED, found, strict=False):
        n = result["comparisons"]
        yield f"| {scenario.part} | {scenario.name} | {share(result['within'], n)} | {share(result['moved'], n)} |"
    yield ""
    yield (f"{found[0]['comparisons']:,} comparisons each, with a true difference of {100 * MARGIN:g} points, which is "
           "the margin (recipes that guess: 0); ± is the Monte Carlo standard error. In the family, a comparison "
           "counts if any of its verdicts on the three tasks is false.")
    yield ""
    yield "| true difference | tests in the family | items that would decide | decided |"
    yield "|---|---|---|---|"
    for (delta, _, members), plan in zip(PLANS, plans, strict=False):
        points = f"{100 * delta:+.1f}".replace("-", "\N{MINUS SIGN}") if delta else "0"
        yield f"| {points} | {members} | {plan['items']:,} | {share(plan['decided'], plan['comparisons'])} |"
    yield ""
    yield (f"The number of items that an undecided row names, if the models differ on 10 % of the items; 80 % is meant "
           f"({plans[0]['comparisons']:,} comparisons each).")
