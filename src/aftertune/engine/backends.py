"""Chooses what computes packed rows: torch, or on a CPU the compiled kernels and packed weights of engine/cpu.

    budget.backend, budget.weights = choose(model, free)       # for a new run: what this machine can do
    backend = backend_for(model, budget)                       # for any run: what its budget names

This is the only module of the engine's core that imports engine/cpu, and only where a model is on a CPU.
"""

from __future__ import annotations

from typing import Any

from aftertune.engine.attention import AttentionBackend, TorchBackend
from aftertune.engine.schedule import BackendName, Budget, WeightsName


def choose(model: Any, free: int) -> tuple[BackendName, WeightsName]:
    """The backend for a model, and the form of its linear weights, with ``free`` bytes of memory."""
    if str(model.device).split(":")[0] != "cpu":
        return "torch", "plain"
    from aftertune.engine.cpu import backend

    return backend.choose(model, free)


def backend_for(model: Any, budget: Budget) -> AttentionBackend:
    """The backend that a budget names. Raises ResourceError where it is not available here."""
    if budget.backend == "torch" and budget.weights == "plain":
        return TorchBackend(model)
    from aftertune.engine.cpu import backend

    return backend.make_backend(model, budget)
