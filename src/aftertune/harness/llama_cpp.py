"""Runs a GGUF file with llama.cpp in this process (``--engine llamacpp``, package xllamacpp).

    engine = LlamaCppEngine(Path("orders-q4_k_m.gguf"), threads=2)
    for batch in engine.run(engine.plan(requests), done=set()): …

The package has llama.cpp with its server, which listens on a free port of this machine and is asked as any server is
(`server`). So texts are those of llama.cpp's own kernels, tokenizer and chat template. The model is loaded with the
first plan.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from aftertune.engine.engine import ResponseBatch
from aftertune.engine.verify import PackingDecision
from aftertune.errors import InputError, ResourceError
from aftertune.harness.server import MessagesTemplate, ServerEngine, ServerPlan, check_numbers
from aftertune.values import Request

#: Settings of ``--engine-args`` with their defaults: requests at once, tokens of prompt and answer of each.
ARGUMENTS = {"num_concurrent": 1, "context": 4096}


class LlamaCppEngine:
    """An engine for one GGUF file. arguments: as in ``ARGUMENTS``; threads: of llama.cpp, None: one for each core.

    Raises InputError for arguments that have no meaning, ResourceError if llama.cpp cannot load the file.
    """

    def __init__(self, file: Path, arguments: Mapping[str, Any] | None = None, *, threads: int | None = None) -> None:
        self.file = file
        self.values = {**ARGUMENTS, **check_numbers("llamacpp", arguments or {}, ARGUMENTS)}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.threads = threads or cores or 1
        self.template = MessagesTemplate("of the GGUF file")
        self.server: ServerEngine | None = None

    def plan(self, requests: Sequence[Request], known: tuple[PackingDecision, int] | None = None) -> ServerPlan:
        if self.server is None:
            self.server = self._started()
        plan = self.server.plan(requests, known)
        version = metadata.version("xllamacpp")
        note = PackingDecision(False, f"llama.cpp in this process (xllamacpp {version}), {self.threads} threads")
        return ServerPlan(plan.requests, note, plan.digest)

    def run(self, plan: ServerPlan, done: set[int], on_split: Callable[[int, int], None] | None = None,
            tick: Callable[[int], None] | None = None) -> Iterator[ResponseBatch]:
        assert self.server is not None
        return self.server.run(plan, done, on_split, tick)

    def _started(self) -> ServerEngine:
        """llama.cpp's server on a free port, with the engine that asks it. It ends with the process."""
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self.file)
        params.model_alias = {self.file.name}
        params.n_parallel = self.values["num_concurrent"]
        params.n_ctx = self.values["context"] * params.n_parallel
        params.port, params.hostnames = 0, ["127.0.0.1"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        params.verbosity, params.warmup, params.ui = -1, False, False
        with _without_native_output():
            try:
                self.native = xllamacpp.Server(params)
            except Exception as error:  # the package raises RuntimeError and errors of its own
                raise ResourceError(f"llama.cpp cannot load {self.file.name}: {' '.join(str(error).split())[:200]}; "
                                    "check the file, or evaluate the model with packed") from error
        arguments = {"num_concurrent": self.values["num_concurrent"], "max_retries": 0}
        engine = ServerEngine(f"{self.native.listening_address}/v1", self.file.name, arguments)
        engine.template = self.template
        engine.too_long = f"allow more than {self.values['context']:,} tokens with --engine-args context=N"
        return engine


@contextlib.contextmanager
def _without_native_output() -> Iterator[None]:
    """Keep what native code writes to stderr off the terminal."""
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def check_file(file: Path | None, model: str) -> Path:
    """The GGUF file of a model. Raises InputError for a model of another form."""
    if file is None:
        raise InputError(f"{model}: the engine llamacpp runs a GGUF file; give one (`aftertune export TUNING --format "
                         "gguf` makes it), or use packed")
    return file
