"""The backends of a CPU: packed weights, compiled kernels and fused layers (README.md says when each is used).

    backend, weights = choose(model, free)              # what this machine can do for a model
    backend = make_backend(model, budget)               # what a budget names
    with backend.computing():
        Scorer(model, packed=True, backend=backend).run(rows)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aftertune.engine.attention import AttentionBackend, Keep, Layout, Prefix, Slots, StepLayout, TorchBackend
from aftertune.engine.cpu import availability, ops
from aftertune.engine.cpu.attention import CpuPrefix, CpuRows, CpuSlots, CpuStep, supports
from aftertune.engine.cpu.linear import PackedLinears, packs_dtype, worth_packing
from aftertune.engine.cpu.llama import FusedLayers
from aftertune.engine.dora import constant_gains
from aftertune.engine.packing import PackedRow
from aftertune.engine.schedule import BackendName, Budget, WeightsName
from aftertune.engine.scorer import text_config
from aftertune.errors import ResourceError


def choose(model: Any, free: int) -> tuple[BackendName, WeightsName]:
    """The backend for a model on a CPU, and the form of its linear weights, with ``free`` bytes of memory."""
    kernels = model.dtype in ops.DTYPES and supports(text_config(model)) and not availability.why_unavailable()
    packed: WeightsName = "amx" if availability.amx_available() else "onednn"
    return "cpu" if kernels else "torch", packed if worth_packing(model, free) else "plain"


def make_backend(model: Any, budget: Budget) -> AttentionBackend:
    """The backend that a budget names. Raises ResourceError where this machine cannot run it."""
    reason = availability.why_unavailable()
    if budget.backend == "cpu" and reason:
        raise _started_with("compiled CPU kernels, which are not available here", reason)
    if budget.weights == "amx" and not availability.amx_available():
        raise _started_with("AMX (the matrix unit of some processors), which is not available here",
                            reason or "this processor has none")
    if budget.weights == "onednn" and not packs_dtype(model.dtype):
        raise _started_with(f"packed {str(model.dtype).removeprefix('torch.')} weights",
                            "this processor, or this version of torch, cannot compute with them")
    return KernelBackend(model, budget) if budget.backend == "cpu" else PackedBackend(model, budget)


def _started_with(what: str, reason: str) -> ResourceError:
    return ResourceError(f"This evaluation was started with {what}: {reason}. Continue it on the machine and with the "
                         "settings it was started with, or start a new one with --fork")


class PackedBackend(TorchBackend):
    """torch's attention, with linear layers that compute from packed copies of their weights."""

    def __init__(self, model: Any, budget: Budget) -> None:
        super().__init__(model)
        self.budget = budget
        self.linears = PackedLinears(model, amx=budget.weights == "amx")

    @contextlib.contextmanager
    def computing(self, *, free_weights: bool = False) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.budget.weights != "plain":
                stack.enter_context(self.linears.packed(free_weights=free_weights))
            stack.enter_context(constant_gains(self.model, self.linears.weight))
            yield


class KernelBackend(PackedBackend):
    """The compiled kernels: attention, whole Llama-like layers, and the summary of logits."""

    name = "cpu"

    def __init__(self, model: Any, budget: Budget) -> None:
        super().__init__(model, budget)
        self.layers = FusedLayers(model, self.linears)

    def rows(self, rows: Sequence[PackedRow], *, prefix: Any = None, keep: Keep | None = None) -> Layout:
        return CpuRows(rows, prefix=prefix, keep=keep)

    def prefix(self, length: int) -> Prefix:
        return CpuPrefix(length)

    def slots(self, count: int, room: int) -> Slots:
        return CpuSlots(count, room)

    def step(self, slots: Any, active: int, prefix: Any = None) -> StepLayout:
        return CpuStep(slots, active, prefix)

    def summarize(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        return ops.summarize(logits) if logits.dtype in ops.DTYPES else None

    @contextlib.contextmanager
    def computing(self, *, free_weights: bool = False) -> Iterator[None]:
        with super().computing(free_weights=free_weights), self.layers.fused():
            yield
