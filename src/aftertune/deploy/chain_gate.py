"""The gate over the links of a checked chain: it fails at the first link that lost more than a limit, or has a fault.

    links = gate_chain(Path("orders-deploy"), {"orders": 0.03}, ledger=ledger)
    links[-1].failed        the last one is the first broken link, if any is broken

Each link is compared with the first one, with the limits as margins (`aftertune.comparison.gate`). The links after the
first broken one are not looked at: they were made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aftertune.catalog import LETTERS
from aftertune.comparison.compatibility import OF_TEMPLATE
from aftertune.comparison.gate import gate
from aftertune.deploy.stored_check import read_check
from aftertune.errors import InputError
from aftertune.values import Comparison, GateLine, Margin

if TYPE_CHECKING:
    from aftertune.ledger import Ledger


@dataclass(frozen=True, slots=True)
class GatedLink:
    """A link with the outcome of each limit. faults: what is wrong with its files or prompts."""

    name: str
    comparison: Comparison
    lines: tuple[GateLine, ...]
    faults: tuple[str, ...]

    @property
    def failed(self) -> bool:
        return bool(self.faults) or any(line.failed for line in self.lines)


def gate_chain(folder: Path, limits: Mapping[str, float | Margin], *, ledger: Ledger, require_proof: bool = False
               ) -> tuple[GatedLink, ...]:
    """The links after the first one, up to the first that is broken. folder: of the check (``check-deploy --out``).

    Tasks that a chain asks by letter may be named without the ending. Raises InputError where the folder has no check,
    or the ledger has not its evaluations, and what `aftertune.comparison.gate` raises.
    """
    check = read_check(folder)
    evaluations = []
    for link in check.links:
        try:
            evaluations.append(ledger.find_evaluation(link.evaluation))
        except InputError:
            raise InputError(f"{folder}: the evaluation of {link.name} ({link.evaluation}) is not in this ledger; "
                             "check the chain again, or choose the ledger (AFTERTUNE_LEDGER)") from None
    asked = {t.task for t in evaluations[0].tasks}
    limits = {f"{task}{LETTERS}" if task not in asked and f"{task}{LETTERS}" in asked else task: limit
              for task, limit in limits.items()}
    found: list[GatedLink] = []
    for link, evaluation in zip(check.links[1:], evaluations[1:], strict=True):
        comparison, lines = gate(evaluations[0], evaluation, limits, ledger=ledger, require_proof=require_proof,
                                 force=OF_TEMPLATE)
        named = tuple(replace(line, task=f"{link.name}, {line.task}") for line in lines)
        found.append(GatedLink(link.name, comparison, named, link.faults))
        if found[-1].failed:
            break
    return tuple(found)
