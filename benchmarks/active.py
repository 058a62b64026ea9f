"""Replay early stopping on real answers: items drawn at random, and drawn where the base was unsure.

    python benchmarks/active.py                 1,000 draws of each population; writes a section of docs/benchmarks.md
    python benchmarks/active.py --draws 200
    python benchmarks/active.py models          claims about the models; writes another section
    python benchmarks/active.py where           where the changes are, and items for `kept`; writes a third one
    python benchmarks/active.py collect --work active       asks the models again (hours on two cores; resumable)

The answers are those of SmolLM2-135M-Instruct and of three of its tunings (data/active.yaml) to real benchmarks
(active_answers.py). They were collected with

    collect --dtype bfloat16 --items 4000 --only careful --to active.npz
    collect --items 2000 --workers 2 --only replay careless --to active_float32.npz

A population is the differences of one tuning on one benchmark. Where fewer items were asked than
the benchmark has, its items are drawn from them with replacement. "Truth 0" moves the sum to 0 by undoing changes at
random. In "at the margin" the margin is moved to just below the true difference, so that `within` is wrong and hardly
anything can be proven; these runs use only the items that were asked, once each.

Uniform is `aftertune.stats.sequential`, weighted is `aftertune.stats.weighted`; both claim what the full run would
show. `models` replays the claims about the models, which end a task unless `--target full-run` is given: there each run
has a benchmark of its own, drawn from the items with replacement. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import verdicts
from active_answers import BASE, DATA, FILES, TUNINGS, collect, load
from aftertune.stats import weighted as w
from aftertune.stats import weighted_bets as bets
from aftertune.stats.planning import items_to_decide
from aftertune.stats.sequential import LOOKS, Boundaries, PairedSequential, exact_verdict
from document import write_section
from fixed_verdicts import share

MARGIN, ALPHA, BATCH = 0.02, 0.05, 32
#: Items after which a run on a claim about the models is given up.
MOST = 3000
SIZES = {"hellaswag": 10_042, "arc_easy": 2376}
TITLES = {"hellaswag": "HellaSwag", "arc_easy": "ARC Easy"}
#: Of uniform's items, at most: weighted drawing on HellaSwag until `within`, and anywhere until `lower`.
KEPT_BAR, LOWER_BAR, SHARE_BAR = 0.4, 1.1, 400
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """A tuning on a benchmark. base: value of each item; confidence: |margin| of the base; d: differences."""

    name: str
    base: Floats
    confidence: Floats
    d: Floats
    margin: float = MARGIN
    share: bool = False
    edge: bool = False

    @property
    def truth(self) -> str:
        return str(exact_verdict(float(self.d.mean()), self.margin))

    @property
    def strata(self) -> w.Strata:
        return w.Strata.of(self.base, self.confidence)

    def resampled(self, items: int, seed: int) -> Population:
        """Another benchmark of ``items`` items, drawn from these with replacement."""
        at = np.random.default_rng(seed).integers(0, self.d.size, items)
        return Population(name=self.name, base=self.base[at], confidence=self.confidence[at], d=self.d[at],
                          margin=self.margin, share=self.share, edge=self.edge)

    def at_zero(self, seed: int = 0) -> Population:
        """With changes undone at random until as many are gained as lost."""
        d, rng = self.d.copy(), np.random.default_rng(seed)
        surplus = round(float(d.sum()))
        if surplus:
            d[rng.choice(np.flatnonzero(d == np.sign(surplus)), abs(surplus), replace=False)] = 0
        return Population(name=f"{self.name}, truth 0", base=self.base, confidence=self.confidence, d=d)

    def at_margin(self) -> Population:
        """With the margin half an item below the true difference."""
        margin = max(abs(float(self.d.sum())) - 0.5, 0.25) / self.d.size
        return Population(name=f"{self.name}, at the margin", base=self.base, confidence=self.confidence, d=self.d,
                          margin=margin, share=self.share, edge=True)


def populations() -> Iterator[Population]:
    """All populations, of the kept answers."""
    for task, everything in load():
        items = SIZES[task]
        for tuning in (t for t in TUNINGS if t in everything.loglikelihoods):
            answers = everything.of(tuning)
            sure = np.abs(answers.margin(BASE))
            title = f"{TITLES[task]}, {tuning}"
            base = answers.outcome(BASE)
            asked = Population(name=title, base=base, confidence=sure, d=answers.outcome(tuning) - base)
            full = asked if asked.d.size >= items else asked.resampled(items, 1)
            yield full
            if tuning == "careful":
                yield full.at_zero()
            yield asked.at_margin()
            share = answers.share(BASE)
            asked = Population(name=f"{title}, expected accuracy", base=share, confidence=sure,
                               d=answers.share(tuning) - share, share=True)
            yield asked if asked.d.size >= items else asked.resampled(items, 1)


# --- Many runs at once ---

@dataclass(slots=True)
class Replay:
    """Runs of weighted drawing on one population. said: verdict of each run ("" if open); at: items that it took."""

    population: Population
    runs: int
    seed: int
    models: bool = False
    said: list[str] = field(default_factory=list)
    at: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def play(self, most: int | None = None) -> Replay:
        """Draw until every run has its verdict, or ``most`` items were drawn."""
        strata, rng = self.population.strata, np.random.default_rng(self.seed)
        d, items = self.population.d, self.population.d.size
        sizes = strata.sizes.astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rows = np.tile(d[np.argsort(strata.of_item, kind="stable")], (self.runs, 1))
        for start, size in zip(starts, sizes, strict=True):
            rows[:, start:start + size] = rng.permuted(rows[:, start:start + size], axis=1)
        draws = w.WeightedDraws(strata, self.population.margin, runs=self.runs, models=self.models)
        tests = self._tests(items)
        alive, sums, seen = np.arange(self.runs), np.zeros(self.runs), 0
        self.said, self.at = [""] * self.runs, np.full(self.runs, items, dtype=np.int64)
        rejected = np.zeros((self.runs, 4), dtype=bool)
        while alive.size and seen < min(items, most or items):
            design = draws.design(rejected)
            chosen = draws.choose(design, rng.random((alive.size, min(BATCH, items - seen))))
            values = self._values(rows[alive], starts + sizes - draws.unseen.astype(np.int64), chosen)
            done, rejected = self._look(tests, draws, design, sums, chosen, values, alive, seen)
            sums, seen = sums + values.sum(axis=1), seen + chosen.shape[1]
            keep = ~done
            alive, sums, rejected = alive[keep], sums[keep], rejected[keep]
            draws.keep(keep)
            tests.keep(keep)
        if seen == items and not self.models:
            for run in alive:
                self.said[run] = self.population.truth
        return self

    def _tests(self, items: int) -> bets.Bets | bets.ModelBets:
        if self.models:
            return bets.ModelBets(items, self.population.margin, self.runs, bets.FITTED_SCALES)
        return bets.Bets(items, Boundaries.around(self.population.margin), self.runs, ALPHA, bets.FITTED_SCALES)

    @staticmethod
    def _values(rows: Floats, pointers: NDArray[np.int64], chosen: w.Ints) -> Floats:
        """The next difference of each chosen stratum."""
        pointers, values, runs = pointers.copy(), np.empty(chosen.shape), np.arange(len(chosen))
        for t in range(chosen.shape[1]):
            k = chosen[:, t]
            values[:, t] = rows[runs, pointers[runs, k]]
            pointers[runs, k] += 1
        return values

    def _look(self, tests: bets.Bets | bets.ModelBets, draws: w.WeightedDraws, design: w.Design, sums: Floats,
              chosen: w.Ints, values: Floats, alive: NDArray[np.int64], seen: int
              ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Bet on a batch, and note the runs with a verdict. Returns those, and which tests have rejected."""
        strata, done = draws.strata, np.zeros(alive.size, dtype=bool)
        if isinstance(tests, bets.ModelBets):
            for draw in bets.model_draws_of(draws, design, chosen, values):
                tests.add(draw)
            draws.take(design, chosen, values)
            rejected = tests.p(bets.model_error(draws)) <= self._levels
            return self._note(rejected, done, alive, seen + chosen.shape[1]), rejected
        for t, draw in enumerate(bets.draws_of(strata, design, draws.unseen, sums, chosen, values)):
            rejected = tests.add(draw)
            done = self._note(rejected, done, alive, seen + t + 1)
        draws.take(design, chosen, values)
        return done, rejected

    @property
    def _levels(self) -> Floats:
        """One-sided levels of the tests of a claim about the models, as `AnytimeClaims` gives them: the outer tests are
        those of "lower" and "higher"."""
        return ALPHA / 2 * np.array([1, LOOKS, LOOKS, 1])

    def _note(self, rejected: NDArray[np.bool_], done: NDArray[np.bool_], alive: NDArray[np.int64], at: int
              ) -> NDArray[np.bool_]:
        up_low, up_high, down_low, down_high = rejected.T
        fresh = (down_low | up_high | (up_low & down_high)) & ~done
        for i in np.flatnonzero(fresh):
            self.said[alive[i]] = "lower" if down_low[i] else "higher" if up_high[i] else "within"
            self.at[alive[i]] = at
        return np.asarray(done | fresh)


# --- Results ---

@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """wrong: verdicts that the full run (or the population) would not give. Medians are in items."""

    population: Population
    runs: int
    wrong: int
    median: float
    q90: float
    uniform: float
    uniform_q90: float
    uniform_wrong: int
    seconds: float

    @property
    def ratio(self) -> float:
        return self.median / self.uniform


def replayed(population: Population, runs: int) -> Result:
    """Both kinds of drawing on one population."""
    begun = time.monotonic()
    play = Replay(population, runs, seed=1).play()
    said: list[str] = []
    at: list[int] = []
    for block in range(0, runs, verdicts.BLOCK):
        orders = np.random.default_rng(block).permuted(
            np.tile(population.d, (min(verdicts.BLOCK, runs - block), 1)), axis=1)
        these, when = verdicts.verdicts(orders, population.margin)
        said += these
        at += when.tolist()
    truth = population.truth
    return Result(population=population, runs=runs, wrong=sum(v != truth for v in play.said),
                  median=float(np.median(play.at)), q90=float(np.quantile(play.at, 0.9)), uniform=float(np.median(at)),
                  uniform_q90=float(np.quantile(at, 0.9)), uniform_wrong=sum(v != truth for v in said),
                  seconds=time.monotonic() - begun)


def tilted(population: Population, mean: float) -> Floats:
    """Probabilities of the items with which a draw has this mean difference."""
    low, high = -40.0, 40.0
    for _ in range(100):
        tilt = (low + high) / 2
        chance = np.exp(tilt * population.d)
        chance /= chance.sum()
        low, high = (tilt, high) if float(chance @ population.d) < mean else (low, tilt)
    return np.asarray(chance)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelClaims:
    """Claims about the models on benchmarks of ``items`` items from a population whose true mean difference is
    ``mean``. A run that was still open after ``most`` items counts with so many."""

    name: str
    mean: float
    items: int
    most: int
    wrong: int
    runs: int
    median: float
    uniform: float
    uniform_wrong: int


def models(population: Population, mean: float, benchmarks: int, *, items: int, each: int = 10, most: int = MOST
           ) -> ModelClaims:
    """Runs about the models on benchmarks that are drawn from a population with replacement."""
    chance, wrong, at, uniform, uniform_wrong = tilted(population, mean), 0, [], [], 0
    truth = "open" if abs(abs(mean) - MARGIN) < 1e-9 else exact_verdict(mean, MARGIN)
    most = min(most, items)
    for seed in range(benchmarks):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(population.d.size, items, p=chance)
        own = Population(name=population.name, base=population.base[chosen], confidence=population.confidence[chosen],
                         d=population.d[chosen])
        play = Replay(own, each, seed, models=True).play(most)
        wrong += sum(v not in ("", truth) for v in play.said)
        at += np.minimum(play.at, most).tolist()
        for _ in range(each):
            test = PairedSequential(None, MARGIN)
            verdict = test.update(rng.permutation(own.d)[:most])
            uniform.append(test.decided_at or most)
            uniform_wrong += verdict not in (None, truth)
    return ModelClaims(name=population.name, mean=mean, items=items, most=most, wrong=wrong, runs=benchmarks * each,
                       median=float(np.median(at)), uniform=float(np.median(uniform)), uniform_wrong=uniform_wrong)


def all_models(draws: int) -> Iterator[ModelClaims]:
    """The claims of the section: nothing lost, a loss at the margin, and a harsh tuning. ARC Easy has too few items for
    weights to be used (`aftertune.stats.weighted.enough_items`)."""
    kept = {p.name: p for p in populations()}
    for name, mean in (("HellaSwag, careful", 0.0), ("HellaSwag, careful", -MARGIN), ("HellaSwag, careless", None),
                       ("HellaSwag, careful, expected accuracy", 0.0),
                       ("HellaSwag, careful, expected accuracy", -MARGIN),
                       ("HellaSwag, careless, expected accuracy", None)):
        population = kept[name]
        yield models(population, float(population.d.mean()) if mean is None else mean, max(1, draws // 25),
                     items=SIZES["hellaswag"])


def model_lines(claims: Sequence[ModelClaims]) -> Iterator[str]:
    """The section of docs/benchmarks.md on claims about the models."""
    yield "## Claims about the models on items drawn where the base was unsure"
    yield ""
    yield ("Written by `python benchmarks/active.py models`. This is what `--until-decided` does with `--draw "
           "weighted`: each run has a benchmark of its own, drawn with replacement from the items that were asked. "
           "Margin 2 points.")
    yield ""
    yield ("| claim about the models | items of the benchmark | true difference | uniform: median, false "
           "| weighted: median, false | ratio |")
    yield "|---|---|---|---|---|---|"
    for c in claims:
        end = " (still open)" if c.median >= c.most else ""
        yield (f"| {c.name} | {c.items:,} | {100 * c.mean:+.2f} | {c.uniform:,.0f}, "
               f"{share(c.uniform_wrong, c.runs, 2)} | **{c.median:,.0f}**{end}, {share(c.wrong, c.runs, 2)} "
               f"| {c.median / c.uniform:.2f} |")
    yield ""
    yield (f"{claims[0].runs:,} runs of each claim, given up after {MOST:,} items or at the end of the benchmark; "
           "± is the Monte Carlo standard error; the level is 5 %.")


def run_models(draws: int) -> int:
    """Replay the claims about the models, and write their section."""
    claims = []
    for claim in all_models(draws):
        claims.append(claim)
        print(claim, flush=True)
    text = "\n".join(model_lines(claims)) + "\n"
    write_section("active-models", text)
    print(text)
    level = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / claims[0].runs)
    faults = [f"{c.name} at {100 * c.mean:+.2f}: {c.wrong} of {c.runs} claims are false" for c in claims
              if c.wrong / c.runs > level]
    print("\n".join(faults) or "all bars are met")
    return 1 if faults else 0


# --- Where the changes are ---

def flips_by_fifths(population: Population) -> list[float]:
    """The share of items that changed, in fifths of the items by the base's |margin|, the smallest first."""
    order = np.argsort(population.confidence, kind="stable")
    return [float((population.d[part] != 0).mean()) for part in np.array_split(order, 5)]


def items_for_kept(d: Floats) -> int:
    """Items with which `kept` is proven in 80 % of comparisons if the models do not differ, as `plan-items` says."""
    plan = items_to_decide(float(d.var()), MARGIN, 0.0, includes_zero=True, seen=1, total=10**7, alpha=ALPHA)
    assert plan.items is not None
    return plan.items


def run_where() -> int:
    """Write the section on where the changes are."""
    text = "\n".join(where_lines()) + "\n"
    write_section("active-where", text)
    print(text)
    return 0


def where_lines() -> Iterator[str]:
    """The section of docs/benchmarks.md on where the changes are."""
    yield "## Where the base's answers change"
    yield ""
    yield ("Written by `python benchmarks/active.py where`: the items that were asked, in fifths by the base's margin, "
           "from those that it was least sure of to those that it was surest of.")
    yield ""
    yield "| tuning | items | changed, by fifths | items for `kept` by accuracy | by expected accuracy | times fewer |"
    yield "|---|---|---|---|---|---|"
    for task, everything in load():
        for tuning in (t for t in TUNINGS if t in everything.loglikelihoods):
            answers = everything.of(tuning)
            base = answers.outcome(BASE)
            asked = Population(name="", base=base, confidence=np.abs(answers.margin(BASE)),
                               d=answers.outcome(tuning) - base)
            needed = [items_for_kept(d) for d in (asked.d, answers.share(tuning) - answers.share(BASE))]
            fifths = ", ".join(f"{100 * share:.0f}" for share in flips_by_fifths(asked))
            yield (f"| {TITLES[task]}, {tuning} | {asked.d.size:,} | {fifths} % | {needed[0]:,} | {needed[1]:,} "
                   f"| {needed[0] / needed[1]:.1f} |")
    yield ""
    yield ("Margin 2 points, a fixed number of items, 80 % of comparisons, if the models do not differ on average: the "
           "numbers come from the variance of the differences.")


def broken(result: Result) -> Iterator[str]:
    """The bars that a population misses; a share of false verdicts may exceed 5 % by twice its Monte Carlo error."""
    name = result.population.name
    if result.wrong / result.runs > ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / result.runs):
        yield f"{name}: {result.wrong} of {result.runs} verdicts are false"
    if result.population.edge:
        return
    truth = result.population.truth
    if truth == "lower" and result.ratio > LOWER_BAR:
        yield f"{name}: {result.median:g} items until lower, uniform {result.uniform:g}"
    if result.population.share and truth == "within" and result.median > SHARE_BAR:
        yield f"{name}: {result.median:g} items"
    if not result.population.share and truth == "within" and name.startswith("HellaSwag") and result.ratio > KEPT_BAR:
        yield f"{name}: {result.ratio:.2f} of uniform's items until within"


def lines(results: Sequence[Result]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield "## Drawing items where the base was unsure"
    yield ""
    yield "Written by `python benchmarks/active.py`; its docstring explains the populations and the claims."
    yield ""
    kept = "; ".join(f"{TITLES[t]} " + ", ".join(f"{m} {a.of(m).items:,}" for m in a.loglikelihoods)
                     for t, a in load())
    yield f"Items asked: {kept}. Margin 2 points, except at the margin."
    yield ""
    yield ("`--until-decided` stops by accuracy. The rows on expected accuracy say how many items a stop by it would "
           "take.")
    yield ""
    yield ("| population | items | truth, points | changed | verdict | uniform: median (9 in 10), false "
           "| weighted: median (9 in 10), false | ratio |")
    yield "|---|---|---|---|---|---|---|---|"
    for r in results:
        p = r.population
        yield (f"| {p.name} | {p.d.size:,} | {100 * p.d.mean():+.2f} | {100 * np.mean(p.d != 0):.1f} % | {p.truth} "
               f"| {r.uniform:,.0f} ({r.uniform_q90:,.0f}), {share(r.uniform_wrong, r.runs, 2)} "
               f"| **{r.median:,.0f}** ({r.q90:,.0f}), {share(r.wrong, r.runs, 2)} | {r.ratio:.2f} |")
    yield ""
    yield f"{results[0].runs:,} draws of each population; ± is the Monte Carlo standard error; the level is 5 %."
    if missed := [fault for r in results for fault in broken(r)]:
        yield ""
        yield f"Bars that are missed: {'; '.join(missed)}."


def run(draws: int) -> int:
    """Replay all populations, and write the section."""
    results: list[Result] = []
    faults: list[str] = []
    for population in populations():
        results.append(replayed(population, draws))
        faults += broken(results[-1])
        r = results[-1]
        print(f"{population.name}: uniform {r.uniform:g}, weighted {r.median:g} ({r.q90:g}), false {r.wrong}, "
              f"ratio {r.ratio:.2f}, {r.seconds:.0f} s", flush=True)
    text = "\n".join(lines(results)) + "\n"
    write_section("active", text)
    print(text)
    print("\n".join(faults) or "all bars are met")
    return 1 if faults else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="early stopping on real answers")
    parser.add_argument("command", nargs="?", choices=("replay", "models", "where", "collect"), default="replay")
    parser.add_argument("--draws", type=int, default=1000, help="of each population")
    parser.add_argument("--work", type=Path, default=Path("active"), help="folder of the study's ledger and tunings")
    parser.add_argument("--items", type=int, help="collect: so many random items of HellaSwag instead of all")
    parser.add_argument("--workers", type=int, default=1, help="collect: processes that share the machine's cores")
    parser.add_argument("--only", nargs="+", choices=TUNINGS, default=(), help="collect: these tunings")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="collect: in place of the study's")
    parser.add_argument("--to", choices=[file.name for file in FILES], default=FILES[0].name,
                        help="collect: the file in data/")
    given = parser.parse_args(argv)
    if given.command == "collect":
        given.work.mkdir(parents=True, exist_ok=True)
        collect(given.work, DATA / given.to, items=given.items, workers=given.workers, only=given.only,
                dtype=given.dtype)
        return 0
    if given.command == "where":
        return run_where()
    return run_models(given.draws) if given.command == "models" else run(given.draws)


if __name__ == "__main__":
    sys.exit(main())
