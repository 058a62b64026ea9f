"""Compare the training speed of aftertune's loop with TRL's ``SFTTrainer``: same model, examples and machine.

    python benchmarks/tune_speed.py                    the embedded demo's orders; writes into docs/benchmarks.md
    python benchmarks/tune_speed.py --data alpaca.jsonl           a file of your own, in any form that `tune` reads
    python benchmarks/tune_speed.py --rounds 5 --examples 48

One round runs each side in turn, each in a fresh process with the same number of threads: one epoch over the same
examples with the same LoRA (rank 16 on all linear layers), learning rate and effective batch, after a warm-up step.
The sides:

* ``aftertune``: the loop of `aftertune tune` with its defaults.
* ``trl``: ``SFTTrainer`` with its defaults, plus ``use_cpu=True`` and the training settings above: float32 weights, as
  transformers loads this model, bfloat16 autocast, gradient checkpointing.
* ``trl-checkpointed``: the same with weights in bfloat16, as transformers loads a model that is stored so.
* ``trl-lean``: weights in bfloat16, no gradient checkpointing: aftertune's precision.

The rate counts tokens of real text, not padding, per second of training. Texts and masks are aftertune's, so that all
sides learn the same; the loss on held-out examples after training is measured by the same code for all of them.

The floor is the time that those tokens must take: each token through every linear layer and back to its input, through
LoRA's two matrices, back through them and into their gradients (the weights of a frozen layer have none), and each
learned token through the output head and back; every product at torch's rate for its shape with 2,048 rows, best of 5
in the same run. The products of attention itself are not included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import speed
from document import write_section

SIDES = ("aftertune", "trl", "trl-checkpointed", "trl-lean")
RATE, BATCH, RANK = 2e-4, 8, 16


class Side:
    """One side in a process of its own."""

    def __init__(self, name: str, given: Mapping[str, Any]) -> None:
        import torch

        from aftertune import sources
        from aftertune.engine import devices
        from aftertune.tuning.build import attention_implementation
        from aftertune.tuning.tokenize import EncodeOptions, encode_all

        self.name = name
        self.threads = devices.set_threads()
        source = sources.resolve_model(speed.MODEL)
        self.tokenizer = sources.load_tokenizer(source)
        training, held_out = data(given)
        self.rows, self.held_out = (encode_all(part, self.tokenizer, EncodeOptions("chat", 1024)).rows
                                    for part in (training, held_out))
        longest = max(len(r.ids) for r in self.rows)
        self.dtype = "bfloat16" if devices.supported_dtypes("cpu")[0] == "bfloat16" else "float32"
        own = self.dtype if name != "trl" else "float32"
        attention = attention_implementation("cpu", longest) if name == "aftertune" else None
        self.model = sources.load_model(source, own, "cpu", tokenizer=self.tokenizer, attn_implementation=attention)
        torch.manual_seed(0)

    def run(self) -> dict[str, Any]:
        """Seconds and peak bytes of one epoch, its tokens, and the held-out loss after it."""
        from aftertune.engine.memory import peak_memory, reset_peak_memory
        from aftertune.tuning.trainer import quiet_libraries

        reset_peak_memory("cpu")
        with quiet_libraries(), contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
            model, seconds, note = (self._ours if self.name == "aftertune" else self._theirs)(Path(folder))
        most = peak_memory("cpu")
        return {"seconds": seconds, "peak": most, "note": note, "tokens": sum(len(r.ids) for r in self.rows),
                "learned": sum(x >= 0 for r in self.rows for x in r.labels[1:]), "loss": self._loss(model)}

    def _loss(self, model: Any) -> float:
        """Mean nats per token of the held-out examples."""
        from aftertune.tuning.held_out import Batching, completion_losses

        losses = completion_losses(model, self.held_out, Batching(pad=self.tokenizer.pad_token_id, dtype=self.dtype))
        return sum(losses) / len(losses)

    def _ours(self, folder: Path) -> tuple[Any, float, str]:
        from aftertune.study import LoraSpec
        from aftertune.tuning.batching import choose_layout
        from aftertune.tuning.build import build
        from aftertune.tuning.callbacks import Hooks, TrainingPlan
        from aftertune.tuning.checkpoints import Checkpoints
        from aftertune.tuning.trainer import TrainingData, train

        model = build(self.model, "lora", LoraSpec(r=RANK), seed=0)
        layout = choose_layout(model, self.rows, pad=self.tokenizer.pad_token_id, dtype=self.dtype)
        plan = TrainingPlan(device="cpu", dtype=self.dtype, seed=0, epochs=1, max_steps=None, learning_rate=RATE,
                    batch_size=BATCH, accumulation=1, warmup=0.05, weight_decay=0.0, save_seconds=1e9)
        _warm_up(model, self.rows)
        started = time.perf_counter()
        train(model, self.tokenizer, TrainingData(self.rows, layout), plan, Checkpoints(folder, "t"),
              Hooks(lambda *_: None))
        return model, time.perf_counter() - started, layout.note

    def _theirs(self, folder: Path) -> tuple[Any, float, str]:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        lean = {"gradient_checkpointing": False} if self.name == "trl-lean" else {}
        arguments = SFTConfig(output_dir=str(folder), use_cpu=True, learning_rate=RATE, num_train_epochs=1, seed=0,
                              per_device_train_batch_size=BATCH, warmup_steps=0.05, report_to=[], save_strategy="no",
                              disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True}, **lean)
        rows = Dataset.from_list([{"input_ids": r.ids, "labels": r.labels} for r in self.rows])
        trainer = SFTTrainer(model=self.model, args=arguments, train_dataset=rows, processing_class=self.tokenizer,
                             peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
        _warm_up(trainer.model, self.rows)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        return trainer.model, seconds, f"gradient checkpointing {arguments.gradient_checkpointing}"

    def floor(self) -> dict[str, float]:
        """Seconds that a token and a learned token must take."""
        import torch

        head = self.model.get_output_embeddings()
        shapes = Counter(tuple(m.weight.shape) for m in self.model.modules()
                         if isinstance(m, torch.nn.Linear) and m is not head)
        layers = sum(count * (cost(out, columns, self.model.dtype) + low_cost(out, columns, self.model.dtype))
                     for (out, columns), count in shapes.items())
        return {"layers": layers, "head": cost(head.out_features, head.in_features, self.model.dtype)}


def cost(out: int, columns: int, dtype: Any) -> float:
    """Seconds of one row through a layer and back to its input."""
    return speed.rate((out, columns), dtype) + speed.rate((columns, out), dtype)


def low_cost(out: int, columns: int, dtype: Any) -> float:
    """Seconds of one row through LoRA's matrices A and B, back, and into both gradients: six thin products."""
    return 3 * (speed.rate((RANK, columns), dtype) + speed.rate((out, RANK), dtype))


def _warm_up(model: Any, rows: Sequence[Any]) -> None:
    """One way there and back, so that memory and kernels are in place."""
    import torch

    ids = torch.tensor([rows[0].ids])
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()


def data(given: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The examples to train on, and those to measure on: of a file, or of the demo."""
    from aftertune import demo
    from aftertune.study import DataSpec
    from aftertune.tuning.split import Corpus

    corpus = Corpus.load(DataSpec(file=given["data"] or demo.folder() / "orders_train.jsonl"), seed=0)
    return corpus.training[:given["examples"]], corpus.held_out[:given["held_out"]]


def _serve(pipe: Any, name: str, given: Mapping[str, Any], method: str) -> None:
    import warnings

    warnings.simplefilter("ignore")
    try:
        pipe.send(getattr(Side(name, given), method)())
    except Exception as error:  # sent to the parent, which stops
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def measure(name: str, given: Mapping[str, Any], method: str = "run") -> dict[str, Any]:
    """What a side says, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, name, given, method), daemon=True)
    process.start()
    found = pipe.recv()
    process.join()
    if isinstance(found, BaseException):
        raise found
    print(f"{time.strftime('%H:%M:%S')} {name} {method}: {json.dumps(found)}", file=sys.stderr, flush=True)
    answer: dict[str, Any] = found
    return answer


def lines(rounds: Sequence[Mapping[str, Mapping[str, Any]]], floor: Mapping[str, float]) -> list[str]:
    """The section of docs/benchmarks.md: the table, and what of the floor is reached."""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "trl", "peft"))
    out = ["## Training", "",
           "Written by `python benchmarks/tune_speed.py`; its docstring explains what is timed and how, and what the "
           "sides are.",
           "", f"SmolLM2-135M-Instruct on {speed.cpu()}; {versions}; {time.strftime('%Y-%m-%d')}; "
           f"{len(rounds)} rounds, {rounds[0]['aftertune']['tokens']:,} tokens, "
           f"{rounds[0]['aftertune']['learned']:,} of them learned; {rounds[0]['aftertune']['note']}", "",
           "| side | tokens/s, median (range) | speedup of aftertune | peak memory | held-out loss |",
           "|---|---|---|---|---|"]
    for side in rounds[0]:
        rates = [r[side]["tokens"] / r[side]["seconds"] for r in rounds]
        ratios = [r[side]["seconds"] / r["aftertune"]["seconds"] for r in rounds]
        losses = [r[side]["loss"] for r in rounds]
        out.append(f"| {side} | {told(rates, 0)} | {'' if side == 'aftertune' else told(ratios, 2)} | "
                   f"{max(r[side]['peak'] for r in rounds) / 2**30:.2f} GiB | {told(losses, 3)} |")
    least = [(r["aftertune"]["tokens"] * floor["layers"] + r["aftertune"]["learned"] * floor["head"])
             for r in rounds]
    shares = [n / r["aftertune"]["seconds"] for n, r in zip(least, rounds, strict=True)]
    out += ["", f"The floor: {rounds[0]['aftertune']['tokens'] / least[0]:,.0f} tokens/s; aftertune reaches "
                f"{statistics.median(shares):.0%} of it ({min(shares):.0%} to {max(shares):.0%})."]
    return out


def told(values: Sequence[float], digits: int) -> str:
    """Median and range."""
    return (f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="aftertune's training speed beside TRL's")
    parser.add_argument("--data", type=Path, help="training data; without it the demo's")
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES), help="with commas between them; aftertune is always there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    given = arguments(argv)
    sides = ["aftertune", *(s for s in given.sides.split(",") if s != "aftertune")]
    unknown = set(sides) - set(SIDES)
    if unknown:
        raise SystemExit(f"--sides: unknown {', '.join(sorted(unknown))}; known: {', '.join(SIDES)}")
    values = {"data": given.data, "examples": given.examples, "held_out": given.held_out}
    floor = measure("aftertune", values, "floor")
    rounds = [{side: measure(side, values) for side in sides} for _ in range(given.rounds)]
    text = "\n".join(lines(rounds, floor))
    write_section("tuning", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
