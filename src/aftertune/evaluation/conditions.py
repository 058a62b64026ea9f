"""What a process must have in common with those that computed batches of an evaluation before, or compute some now.

    now = conditions(plan, 4, versions, "cpu")         {"plan": "9c…", "threads": 4, "torch": "2.13", …}
    followed(stored, plan, stage, now, evaluation)     the stored schedule with what this plan adds to it

Floating-point sums depend on the batches, the number of threads, the libraries and the processor. They are stored with
the first batch, and a process under other conditions is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from aftertune.engine.verify import PackingDecision
from aftertune.errors import ResumeRefused
from aftertune.values import Evaluation, digest

#: Conditions of a stored schedule that must be the same for all processes, so that floating-point sums are the same.
_CONDITIONS = ("plan", "threads", "torch", "transformers", "cpu", "device")
#: The key of an unfinished evaluation's schedule for the warnings about ``reused`` answers.
NOTES = "notes"


def conditions(plan: Any, threads: int, versions: Mapping[str, str], device: str) -> dict[str, Any]:
    """The conditions of this process. versions: of the installed packages; device: with the name of the GPU."""
    import torch

    return {"plan": plan.digest, "threads": threads, "torch": versions.get("torch"),
            "transformers": versions.get("transformers"), "cpu": torch.backends.cpu.get_cpu_capability(),
            "device": device}


def new_schedule(plan: Any, now: Mapping[str, Any], budget: Mapping[str, int], reused: Collection[str],
                 notes: Sequence[str] = ()) -> dict[str, Any]:
    """The schedule of an evaluation that begins. reused: tasks whose answers another evaluation had; notes: about them.
    """
    alone = getattr(plan, "alone", ())
    return {**{k: v for k, v in now.items() if k != "device"}, "budget": dict(budget), "note": plan.decision.note,
            "halvings": [], **({"reused": sorted(reused)} if reused else {}), **({NOTES: list(notes)} if notes else {}),
            **({"encoded_alone": sorted(alone)} if alone else {})}


def followed(stored: dict[str, Any], plan: Any, stage: int | None, now: Mapping[str, Any], evaluation: Evaluation
             ) -> dict[str, Any]:
    """The schedule of an evaluation with what this plan adds to it. Raises ResumeRefused where the conditions differ.

    stage: its number, where there are several. now: the conditions of this process.
    """
    then = {**stored, "device": _without_number(evaluation.device)}
    now = {**now, "device": _without_number(now["device"])}
    if stage is not None:
        stages = [*stored.get("stages", ())]
        if stage == len(stages):
            stages.append({"plan": plan.digest, "longest": plan.longest, "decision": asdict(plan.decision)})
            stored = {**stored, "stages": stages, "note": plan.decision.note,
                      "plan": digest([s["plan"] for s in stages])}
        then["plan"] = stages[stage]["plan"]
    changed = [f"{k}: {then[k]} then, {now[k]} now" for k in _CONDITIONS if then[k] != now[k]]
    if changed:
        raise ResumeRefused(f"evaluation {evaluation.id} was started under other conditions ({'; '.join(changed)}), so "
                            "its results would be mixed; resume it under the same conditions, or start a new one with "
                            "--fork")
    return stored


def decision_of(stage: dict[str, Any]) -> tuple[PackingDecision, int]:
    """The packing decision of a stored stage, and the longest sequence that it was verified for."""
    return PackingDecision(**stage["decision"]), int(stage["longest"])


def _without_number(device: str) -> str:
    """The name of a device without the number that a GPU has in its machine."""
    return re.sub(r"^(cuda|mps):\d+", r"\1", device)
