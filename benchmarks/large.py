"""Measures time and memory of the commands on large results: one file of N samples, and a ledger of N answers.

    python benchmarks/large.py                            100,000 and 1,000,000; prints a table
    python benchmarks/large.py --sizes 10000 100000       quicker
    python benchmarks/large.py --only import --write      also writes the section of docs/benchmarks.md; one of its own
                                                          where no import is measured

Two ledgers are made for each size. In the first, one lm-eval samples file of N rows is imported. The second has N
answers in evaluations of 10,000 items, of a base model and of models made from it, as a project leaves behind; there
one comparison is asked for. Each command is a process of its own; processor time and the largest resident memory are
its own. (The system counts the memory of the process that starts a command as the command's, so this one stays small.)
Linear means that ten times as much takes at most about twelve times as long.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from document import write_section

#: Items of an evaluation in the second ledger.
ITEMS = 10_000
STAMP = "2025-03-08T10-00-00.123456"
IMPORT = "one evaluation: import"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one command took. seconds: of processor time."""

    seconds: float
    mebibytes: float


def samples_folder(folder: Path, count: int, seed: int) -> Path:
    """A folder as lm-eval leaves it, with one multiple-choice task of ``count`` documents with two choices."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    right = 0
    with (folder / f"samples_choose_{STAMP}.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            acc = rng.random() < 0.6
            right += acc
            file.write(json.dumps(_line(number, float(acc), rng)) + "\n")
    mean = right / count
    results = {
        "results": {"choose": {"alias": "choose", "acc,none": mean,
                               "acc_stderr,none": (mean * (1 - mean) / (count - 1)) ** 0.5}},
        "group_subtasks": {"choose": []},
        "configs": {"choose": {"task": "choose", "dataset_path": "org/choose", "test_split": "test",
                               "output_type": "multiple_choice"}},
        "versions": {"choose": 1.0}, "n-shot": {"choose": 0}, "higher_is_better": {"choose": {"acc": True}},
        "n-samples": {"choose": {"original": count, "effective": count}},
        "config": {"model": "hf", "model_args": "pretrained=org/model", "model_dtype": "torch.float32",
                   "model_sha": f"{seed}", "device": "cpu", "limit": None},
        "date": 1741428000.0, "model_source": "hf", "model_name": f"org/model-{seed}", "lm_eval_version": "0.4.13"}
    (folder / f"results_{STAMP}.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def _line(number: int, acc: float, rng: random.Random) -> dict[str, Any]:
    question = f"Question {number}: which of the two words is the name of a {rng.choice(('bird', 'tree', 'town'))}?"
    answers = [[repr(-rng.random() * 9), "False"], [repr(-rng.random() * 9), "True"]]
    return {"doc_id": number, "doc": {"question": question, "choices": ["first", "second"], "gold": 0}, "target": "0",
            "arguments": {f"gen_args_{i}": {"arg_0": question, "arg_1": word} for i, word in
                          enumerate((" first", " second"))},
            "resps": [[a] for a in answers], "filtered_resps": answers, "filter": "none", "metrics": ["acc"],
            "doc_hash": f"{number:064x}", "prompt_hash": None, "target_hash": None, "acc": acc}


def many_evaluations(path: Path, count: int, seed: int) -> None:
    """A ledger with ``count`` answers in evaluations of ITEMS items: base-0 and tuned-1, tuned-2, … of one task."""
    from aftertune.ledger import Ledger

    with Ledger(path) as ledger:
        for number, (evaluation, items, answers) in enumerate(evaluations(count, seed)):
            ledger.open_evaluation(replace(evaluation, scores=()), items)
            ledger.acquire(evaluation.id)
            responses = [r for a in answers for r in a.responses]
            for batch, start in enumerate(range(0, len(responses), 500)):
                ledger.save_batch(evaluation.id, batch, dict(enumerate(responses[start:start + 500], start)))
            ledger.finish_evaluation(evaluation, answers, [(2 * i, 2 * i + 1) for i in range(len(answers))])
            ledger.release(evaluation.id)
            print(f"\r{(number + 1) * ITEMS:,} answers", end="", file=sys.stderr)
    print(file=sys.stderr)


def evaluations(count: int, seed: int) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """A base and models made from it, each with its items and answers, until there are ``count`` answers."""
    from aftertune.values import Answer, Evaluation, Item, ModelIdentity, Response, Score, TaskSettings, digest

    rng = random.Random(seed)
    items = [Item(task="choose", index=i, hash=digest(["item", i]), cluster=None,
                  doc={"question": f"Question {i}: which of the two words is the name of a bird?", "gold": 0})
             for i in range(ITEMS)]
    settings = TaskSettings(
        task="choose", version="1", output_type="multiple_choice", num_fewshot=0, n=ITEMS, n_total=ITEMS, split="test",
        data="hub:org/choose", items=digest([i.hash for i in items]), prompts=digest("prompts"), primary="acc,none",
        higher_is_better={"acc": True}, chance=0.5)
    for number in range(count // ITEMS):
        right = [rng.random() < 0.6 for _ in items]
        answers = [Answer(task="choose", index=i.index, item=i.hash, metrics={"acc,none": float(r)}, extracted={},
                          cluster=None, responses=tuple(Response(logprob=-9 * rng.random(), greedy=g)
                                                        for g in (True, False)))
                   for i, r in zip(items, right, strict=True)]
        mean = sum(right) / ITEMS
        name = f"tuned-{number}" if number else "base-0"
        weights = digest(["weights", number])
        yield Evaluation(
            id=f"e-{digest([seed, number])[:10]}", name=name, tasks=(settings,),
            model=ModelIdentity(source=f"org/{name}", weights=weights, config=digest("config"),
                                tokenizer=digest("tokenizer")),
            device="cpu", dtype="float32", engine="aftertune", scores=(
                Score(task="choose", metric="acc", filter="none", value=mean, n=ITEMS, primary=True, unit="share",
                      stderr=(mean * (1 - mean) / (ITEMS - 1)) ** 0.5),)), items, answers


def run(words: Sequence[str], ledger: Path, folder: Path) -> Measured:
    """Run one command of aftertune in a process of its own."""
    environment = {**os.environ, "AFTERTUNE_LEDGER": str(ledger), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, "-m", "aftertune", *words], env=environment, cwd=folder,
                                   stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"aftertune {' '.join(words)}: exit code {process.returncode}: {output.read()[-2000:].decode()}")
    return Measured(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(size: int, folder: Path, only: Sequence[str]) -> dict[str, Measured]:
    """Command -> what it took with ``size`` samples or answers."""
    one, many = folder / "one.db", folder / "many.db"
    out: dict[str, Measured] = {}

    def wanted(commands: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        return {t: words for t, words in commands.items() if not only or any(o in t for o in only)}

    def take(title: str, words: Sequence[str], ledger: Path) -> None:
        out[title] = run(words, ledger, folder)
        print(f"{title}, {size:,}: {out[title].seconds:.1f} s, {out[title].mebibytes:.0f} MiB", file=sys.stderr)

    of_one = {f"one evaluation: {t}": words for t, words in ONE.items()}
    of_many = {f"many evaluations: {t}": words for t, words in MANY.items()}
    if chosen := wanted({IMPORT: (), **of_one}):
        results = samples_folder(folder / "results", size, seed=1)
        take(IMPORT, ["import", str(results), "--name", "large"], one)
        chosen.pop(IMPORT, None)
        for title, words in chosen.items():
            take(title, words, one)
    if chosen := wanted(of_many):
        process = multiprocessing.get_context("spawn").Process(target=many_evaluations, args=(many, size, 2))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit("the ledger of many evaluations could not be made; the message is above")
        for title, words in chosen.items():
            take(title, words, many)
    return out


#: Title -> words of the commands on each of the two ledgers.
ONE = {"runs": ["runs"], "show": ["show", "large"], "record": ["record", "--out", "one.md"],
       "report": ["report", "--out", "one.html"], "export": ["export", "large", "--no-prompts", "--out", "one"],
       "doctor": ["doctor"]}
MANY = {"runs": ["runs"], "compare": ["compare", "base-0", "tuned-1"],
        "flips": ["flips", "base-0", "tuned-1", "--task", "choose"],
        "record": ["record", "--out", "many.md"], "report": ["report", "--out", "many.html"],
        "record of two": ["record", "--only", "base-0", "--only", "tuned-1", "--out", "two.md"],
        "export": ["export", "tuned-1", "--no-prompts", "--out", "many"],
        "export all": ["export", "all", "--format", "csv", "--out", "all.csv"], "doctor": ["doctor"]}


def table(sizes: Sequence[int], measured: Sequence[dict[str, Measured]]) -> str:
    """The Markdown table of all commands and sizes."""
    head = "| command | " + " | ".join(f"{s:,}: s | MiB" for s in sizes) + " | times as long | times the memory |"
    lines = [head, "|---|" + "---:|" * (2 * len(sizes) + 2)]
    for title in measured[0]:
        rows = [m[title] for m in measured]
        cells = [f"{r.seconds:.1f} | {r.mebibytes:.0f}" for r in rows]
        ratios = [f"{rows[-1].seconds / rows[0].seconds:.1f}", f"{rows[-1].mebibytes / rows[0].mebibytes:.1f}"]
        lines.append(f"| {title} | " + " | ".join([*cells, *ratios]) + " |")
    return "\n".join(lines)


def section(sizes: Sequence[int], measured: Sequence[dict[str, Measured]], title: str) -> str:
    """A section of docs/benchmarks.md: the table, and a sentence about the import where it was measured."""
    text = [f"## {title}\n", "Written by `python benchmarks/large.py --write`; its docstring explains the "
            "commands. Processor time, and the largest resident memory of the command.\n", table(sizes, measured)]
    if all(IMPORT in m for m in measured):
        small, large = measured[0][IMPORT], measured[-1][IMPORT]
        text.append(f"\nImporting {sizes[-1]:,} samples takes {large.seconds:.0f} s and {large.mebibytes:.0f} MiB, and "
                    f"{sizes[0]:,} samples take {small.seconds:.0f} s and {small.mebibytes:.0f} MiB.")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", default=[], help="only the commands whose title has one of these words")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    measured = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory(prefix="aftertune-large-") as folder:
            measured.append(measure(size, Path(folder), given.only))
    print(table(given.sizes, measured))
    if given.write:
        title = "Large results" if IMPORT in measured[0] else "Large ledgers"
        write_section(title.lower(), section(given.sizes, measured, title))


if __name__ == "__main__":
    main()
