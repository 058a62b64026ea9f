"""Defines a task of one's own in an evaluation without a study: a file of held-out rows, and how answers are judged.

    OwnTask(target="held.jsonl", scorer=("json", "rouge"), target_shots="train.jsonl=3").tasks()
        the target task `held`, and `held_3shot`, which shows three examples of train.jsonl in every prompt
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from aftertune.study.fields import Flag, Positive, Spec
from aftertune.study.scorer import SCORER_FORMS
from aftertune.study.watch import Scorers, TargetSpec, WatchedTarget

#: Settings of tasks that say nothing about a target task.
LM_EVAL_ALONE = ("num_fewshot", "letters")


def explain_value(error: ValueError) -> str:
    """The reason of a ValueError, also of one that pydantic wrapped."""
    if isinstance(error, ValidationError):
        return "; ".join(str(p["msg"]).removeprefix("Value error, ") for p in error.errors()[:3])
    return str(error)


class OwnTask(Spec):
    """A target task, as options of an evaluation."""

    target: Annotated[str | None, Flag(form="[NAME=]FILE"), Field(
        description="Task of your own: a JSON Lines file of held-out rows with prompt and completion (the reference). "
                    "The name is that of the file by default.")] = None
    scorer: Annotated[Scorers, Flag(repeatable=True, form="SCORER"), Field(
        description=f"How answers to the target are judged: {SCORER_FORMS}. Repeatable: each has metrics "
                    "of its own, and the first one gets the verdict. Python needs --allow-task-code. Default: exact."
    )] = ()
    slice: Annotated[str | None, Flag(form="COLUMN"), Field(
        min_length=1, description="Column of the target's rows: each of its values is a row of its own, with a "
                                  "verdict.")] = None
    target_tokens: Annotated[Positive, Flag(), Field(description="Longest answer to the target in tokens.")] = 128
    target_shots: Annotated[str | None, Flag(form="FILE=K"), Field(
        description="Also ask the target with the first K rows of a file (training data) as examples in the prompt, as "
                    "the task NAME_Kshot: it shows what prompting alone would do.")] = None

    def tasks(self) -> list[dict[str, Any]]:
        """The tasks as fields of a `TaskSpec`: the target, and the same with examples if they are asked for; none
        without a target. Raises ValueError for options that say nothing usable."""
        if self.target is None:
            given = [name for name in ("scorer", "slice", "target_shots") if getattr(self, name)]
            if given or "target_tokens" in self.model_fields_set:
                raise ValueError(f"`{(given or ['target_tokens'])[0]}` has no effect without `target`")
            return []
        watched = WatchedTarget.model_validate(self.target)  # reads [NAME=]FILE
        rows = TargetSpec(file=watched.file, scorer=self.scorer, slice=self.slice, max_tokens=self.target_tokens)
        tasks: list[dict[str, Any]] = [{"name": watched.name, "target": rows}]
        if self.target_shots is not None:
            file, count = self._shots(watched.file)
            examples = rows.model_copy(update={"shots_file": file, "slice": None})
            tasks.append({"name": f"{watched.name}_{count}shot", "target": examples, "num_fewshot": count})
        return tasks

    def _shots(self, held_out: Path) -> tuple[Path, int]:
        """The file of the examples, and their number."""
        file, _, count = (self.target_shots or "").rpartition("=")
        if not file or not count.isdecimal() or not 0 < int(count) <= 100:
            raise ValueError(f"`target_shots` is {self.target_shots!r}; write FILE=K, with 1 to 100 examples, for "
                             "example orders_train.jsonl=3")
        if Path(file).resolve() == held_out.resolve():
            raise ValueError(f"`target_shots` names {file}, the file that is asked, so prompts would show their own "
                             "answers; give rows of the training data")
        return Path(file), int(count)
