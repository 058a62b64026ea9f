"""Early verdicts on a real model: SmolLM2-135M and a damaged and a nearly equal copy of it, on HellaSwag.

    python benchmarks/early_stop.py                             writes a section of docs/benchmarks.md
    python benchmarks/early_stop.py --trial 100 --noise 0.3     both copies on 100 fixed items, to choose the noise

The damaged copy has seeded Gaussian noise on every weight matrix, with ``--noise`` times the matrix's own standard
deviation. The near copy is the base rounded to bfloat16 a second time, after a scaling by three: hardly any weight
changes by more than its last bit, and some answers change. ``eval --until-decided`` must give the verdict "lower" for
the first and "within" for the second, on a part of the 10,042 items. Then both sides of the damaged pair answer a fixed
random sample, drawn with another seed, and its verdict must be the same. Exits with 1 if one of these fails.

Copies and ledger are stored in ``--work``; the same command continues from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import speed
from aftertune.comparison import compare
from aftertune.early_stopping import EarlyResult, until_decided
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.report import formatting as fmt
from aftertune.study import EarlySpec, EvalSpec, TaskSpec
from aftertune.values import Comparison, ComparisonRow
from document import write_section

TASK, SEED, FIXED_SEED = "hellaswag", 0, 1
#: An early verdict is early where it took at most this share of the items.
PART = 0.5


@dataclass(frozen=True, slots=True)
class Found:
    """One pair: how it was asked, and the result."""

    pair: str
    how: str
    comparison: Comparison

    @property
    def row(self) -> ComparisonRow:
        return next(r for r in self.comparison.rows if r.primary)


def copied(folder: Path, change: Callable[[Any], Any]) -> str:
    """The base with each of its weight matrices changed, in ``folder``; one that is there already stays."""
    if not (folder / "done").exists():
        import torch

        from aftertune import sources

        source = sources.resolve_model(speed.MODEL)
        model = sources.load_model(source, "bfloat16", "cpu")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.copy_(change(weight.float()))
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        sources.load_tokenizer(source).save_pretrained(folder)
        (folder / "done").touch()
    return str(folder)


def damage(noise: float) -> Callable[[Any], Any]:
    """Adds seeded noise of so many standard deviations of the matrix itself."""
    import torch

    draws = torch.Generator().manual_seed(SEED)
    return lambda w: w + noise * w.std() * torch.randn(w.shape, generator=draws)


def rounded(weight: Any) -> Any:
    """A weight in bfloat16, rounded to it once more where its scale is another."""
    return (3 * weight).bfloat16().float() / 3


def spec(model: str, name: str, **task: Any) -> EvalSpec:
    return EvalSpec(model=model, tasks=(TaskSpec(name=TASK, **task),), name=name, dtype="bfloat16", device="cpu",
                    task_source="pack")


def told() -> Callable[[int, int, str], None]:
    """Progress, a line every twentieth of the work."""
    seen: set[tuple[str, int]] = set()

    def tell(done: int, total: int, text: str) -> None:
        stamp = (text, 20 * done // max(total, 1))
        if stamp not in seen:
            seen.add(stamp)
            print(f"{time.strftime('%H:%M:%S')} {text} {done:,} of {total:,}", file=sys.stderr, flush=True)

    return tell


def decided(model: str, name: str, margin: float, ledger: Ledger) -> EarlyResult:
    """A copy against the base, which is scored alongside."""
    return until_decided(spec(model, name, sample_seed=SEED), speed.MODEL, EarlySpec(margin=margin), ledger=ledger,
                         progress=told())


def fixed(model: str, name: str, items: int, margin: float, ledger: Ledger) -> Comparison:
    """A copy against the base on a fixed random sample."""
    sample = {"sample": items, "sample_seed": FIXED_SEED}
    sides = [evaluate(spec(m, n, **sample), ledger=ledger, progress=told())
             for m, n in ((speed.MODEL, f"base-{items}"), (model, f"{name}-{items}"))]
    return compare(*sides, margins=margin / 100, ledger=ledger)


def broken(found: Sequence[Found]) -> Iterator[str]:
    """What does not hold. found: damaged early, near early, damaged fixed."""
    damaged, near, again = (f.row for f in found)
    for name, row, verdict in (("damaged", damaged, "lower"), ("near", near, "within")):
        if row.verdict != verdict:
            yield f"{name}: {row.verdict}, not {verdict}"
        if row.stopped_of is None or row.n > PART * row.stopped_of:
            yield f"{name}: {row.n:,} items are no early stop"
    if not (near.gained or 0) + (near.lost or 0):
        yield "near: no answer changed, so the copy is no other model"
    if again.verdict != damaged.verdict:
        yield f"damaged: {damaged.verdict} early, {again.verdict} on the fixed sample"


def lines(found: Sequence[Found], given: argparse.Namespace) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "lm_eval"))
    yield "## Early verdicts on a real model"
    yield ""
    yield "Written by `python benchmarks/early_stop.py`; its docstring explains the copies and the conditions."
    yield ""
    yield (f"SmolLM2-135M-Instruct in bfloat16, HellaSwag (normalized accuracy), margin {given.margin:g} points, "
           f"noise {given.noise:g}; {speed.cpu()}; {versions}; {time.strftime('%Y-%m-%d')}.")
    yield ""
    yield "| pair | how | items used | of | gained / lost | difference | 95 % interval | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in found:
        row = one.row
        early = row.stopped_of is not None
        yield (f"| {one.pair} | {one.how} | **{row.n:,}** | {row.stopped_of or row.n_total:,} "
               f"| {row.gained} / {row.lost} | {'about ' if early else ''}{fmt.points(row.delta)} "
               f"| {fmt.points_interval(row.low, row.high)}{' (all looks)' if early else ''} | {row.told} |")


def trial(given: argparse.Namespace, copies: dict[str, str], ledger: Ledger) -> int:
    """Both copies on a few items, to choose the noise by."""
    for name, folder in copies.items():
        found = fixed(folder, name, given.trial, given.margin, ledger)
        for row in (r for r in found.rows if r.primary):
            print(f"{name}: {row.base:.4f} to {row.tuned:.4f}, gained {row.gained}, lost {row.lost}, n={row.n}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="early verdicts on a real model")
    parser.add_argument("--work", type=Path, default=Path("early_stop"), help="folder of the copies and the ledger")
    parser.add_argument("--noise", type=float, default=0.25, help="in standard deviations of each weight matrix")
    parser.add_argument("--margin", type=float, default=2, help="points")
    parser.add_argument("--items", type=int, default=1000, help="of the fixed sample")
    parser.add_argument("--trial", type=int, help="so many items of both copies, fixed, and no more")
    given = parser.parse_args(argv)
    given.work.mkdir(parents=True, exist_ok=True)
    damaged, near = f"damaged-{given.noise:g}", "near"
    copies = {damaged: copied(given.work / damaged, damage(given.noise)), near: copied(given.work / near, rounded)}
    with Ledger(given.work / "ledger.db") as ledger:
        if given.trial:
            return trial(given, copies, ledger)
        found = [Found(f"base and {name} copy", "until decided", decided(copies[key], key, given.margin,
                                                                         ledger).comparison)
                 for name, key in (("damaged", damaged), ("near", near))]
        again = fixed(copies[damaged], damaged, given.items, given.margin, ledger)
    found.append(Found("base and damaged copy", "fixed random sample", again))
    text = "\n".join(lines(found, given)) + "\n"
    write_section("early stop", text)
    print(text)
    faults = list(broken(found))
    print("\n".join(faults) or "all of it holds")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
