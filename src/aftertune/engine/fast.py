"""What packed rows compute with: layouts of torch operators, or on a CPU packed weights, kernels and fused layers.

    fast = Fast(model, budget)
    scorer = Scorer(model, packed=True, kit=fast.kit)
    with fast.on():
        scorer.run(rows)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from aftertune.engine import kernels, layouts, native
from aftertune.engine.adapters import steady
from aftertune.engine.blocks import Blocks
from aftertune.engine.linears import Linears
from aftertune.engine.schedule import TILED, Budget
from aftertune.errors import ResourceError


class Fast:
    """The means that a budget names, for one model. kit: the module of the layouts' classes."""

    def __init__(self, model: Any, budget: Budget) -> None:
        if budget.kernels and kernels.missing():
            raise ResourceError(f"this evaluation was begun with compiled kernels, and here are none: "
                                f"{kernels.missing()}; go on with it where it was begun, or begin anew with --fork")
        if budget.prepacked == TILED and not kernels.tiled():
            raise ResourceError("this evaluation was begun on a processor with matrix registers (AMX), and here are "
                                "none; go on with it where it was begun, or begin anew with --fork")
        self.budget = budget
        self.kit: Any = native if budget.kernels else layouts
        self.model = model
        self.linears = Linears(model, tiled=budget.prepacked == TILED)
        self.blocks = Blocks(model, self.linears)

    @contextlib.contextmanager
    def on(self, *, alone: bool = False) -> Iterator[None]:
        """The model computes with them meanwhile. alone: its weights may be in packed copies alone until then."""
        with contextlib.ExitStack() as stack:
            if self.budget.prepacked:
                stack.enter_context(self.linears.packed(alone=alone))
            stack.enter_context(steady(self.model, self.linears.weight))
            if self.budget.kernels:
                stack.enter_context(self.blocks.fused())
            yield
