"""Chooses the backend that computes packed rows: torch, or on a CPU the compiled kernels and packed weights.

    budget.backend, budget.weights = choose(model, free)       # a new run: the best one for this machine
    backend = backend_for(model, budget)                       # any run: the one that its budget names

In the engine's core only this module imports engine/cpu, and only for a model on a CPU.
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
    """The backend that a budget names. Raises ResourceError if it is not available on this machine."""
    if budget.backend == "torch" and budget.weights == "plain":
        return TorchBackend(model)
    from aftertune.engine.cpu import backend

    return backend.make_backend(model, budget)
