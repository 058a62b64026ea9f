"""Writes the commands of a study's cells with their dependencies, for make, Slurm or a shell.

    print(make_file(study.study, rows, RunCall("study.yaml")))      targets for `make -j 4`
    print(slurm_script(study.study, rows, RunCall("study.yaml")))   sbatch lines with --dependency=afterok
    print(shell_script(study.study, rows, RunCall("study.yaml")))   one command after another, in an order that works

Each command runs one cell, into the same ledger and output folder, and the last one writes the record. A command that
is given again continues, and does nothing for a cell that is done. A name with a control character is refused: behind
a line break of a study that others wrote, a shell or make would read further commands.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aftertune.errors import InputError, is_hidden, shown

#: Name of the last target: it needs all cells.
RECORD = "record"


@dataclass(frozen=True, slots=True)
class RunCall:
    """What all commands share. file: of the study; sets: its changes; out: folder of the run, None for the usual one;
    gpu: whether each cell needs one."""

    file: str
    sets: tuple[str, ...] = ()
    out: Path | None = None
    gpu: bool = False

    def words(self, cell: str = "") -> list[str]:
        """The words after ``aftertune`` that run a cell; of the whole study, and its record, without one."""
        out = [] if self.out is None else ["--out", str(self.out)]
        words = ["run", self.file, *(["--cell", cell] if cell else []), *(w for s in self.sets for w in ("--set", s)),
                 *out]
        for word in words:
            _check_word(word)
        return words


def _check_word(word: str) -> None:
    """Raise InputError for a word with a line break or another control character."""
    if any(map(is_hidden, word)):
        raise InputError(f"--commands: {shown(word)} has a line break or another control character, which a script "
                         "cannot hold; give another name to the file, the folder or the link")


@dataclass(frozen=True, slots=True)
class CommandRow:
    """One cell that is left to run. needs: names of the cells before it; memory: bytes, None if not known."""

    name: str
    needs: tuple[str, ...] = ()
    memory: int | None = None


def targets_of(rows: Sequence[CommandRow]) -> dict[str, str]:
    """Name of a cell -> a word for it, each of its own, as make and a shell take it: "tune-careful"."""
    targets: dict[str, str] = {}
    for row in rows:
        word = re.sub(r"[^A-Za-z0-9_.-]+", "-", row.name).strip("-.") or "cell"
        taken = {RECORD, "all", *targets.values()}
        targets[row.name] = next(w for w in (word, *(f"{word}-{n}" for n in range(2, len(rows) + 4))) if w not in taken)
    return targets


def make_file(study: str, rows: Sequence[CommandRow], call: RunCall) -> str:
    """A Makefile with a target for each cell."""
    targets = targets_of(rows)
    names = " ".join(targets.values())
    lines = [f"# The cells of study {study}. Run them two at a time with: OMP_NUM_THREADS=1 make -f FILE -j 2",
             "AFTERTUNE ?= aftertune", f".PHONY: {RECORD} {names}".rstrip(), "", f"{RECORD}: {names}".rstrip(),
             _recipe(call.words())]
    for row in rows:
        lines += ["", f"{targets[row.name]}: {' '.join(_needed(row, targets))}".rstrip(), _recipe(call.words(row.name))]
    return "\n".join(lines)


def _recipe(words: Sequence[str]) -> str:
    return f"\t$(AFTERTUNE) {shlex.join(words).replace('$', '$$')}"


def slurm_script(study: str, rows: Sequence[CommandRow], call: RunCall) -> str:
    """A shell script that submits a Slurm job for each cell. Further options come from SBATCH_FLAGS."""
    targets = targets_of(rows)
    variables = {name: "job_" + re.sub(r"[^A-Za-z0-9_]", "_", target) for name, target in targets.items()}
    if len(set(variables.values())) < len(variables):
        variables = {name: f"job_{number}" for number, name in enumerate(variables, 1)}
    lines = ["#!/bin/sh", f"# Submits the cells of study {study}. SBATCH_FLAGS has what your cluster needs, such as "
             "--partition=short --time=2:00:00", "set -eu", 'SBATCH_FLAGS="${SBATCH_FLAGS:-}"']
    for row in rows:
        after = [f"${{{variables[name]}}}" for name in row.needs if name in variables]
        lines.append(f"{variables[row.name]}=$({_sbatch(targets[row.name], call.words(row.name), after, row, call)})")
    everything = [f"${{{variable}}}" for variable in variables.values()]
    lines.append(_sbatch(RECORD, call.words(), everything, CommandRow(RECORD), RunCall(call.file)))
    return "\n".join(lines)


def _sbatch(job: str, words: Sequence[str], after: Sequence[str], row: CommandRow, call: RunCall) -> str:
    memory = "" if row.memory is None or call.gpu else f" --mem={math.ceil(row.memory / 2**20)}M"
    gpu = " --gpus=1" if call.gpu else ""
    needs = f' --dependency="afterok:{":".join(after)}"' if after else ""
    wrapped = shlex.quote(shlex.join(["aftertune", *words]))
    return f"sbatch --parsable --job-name={job}{memory}{gpu}{needs} $SBATCH_FLAGS --wrap={wrapped}"


def shell_script(study: str, rows: Sequence[CommandRow], call: RunCall) -> str:
    """The commands one after another, each with the cells that it needs in a comment."""
    lines = [f"# The cells of study {study}, in an order that works."]
    named = {row.name for row in rows}
    for row in rows:
        needs = [name for name in row.needs if name in named]
        lines += [f"# {row.name}" + (f", after {', '.join(needs)}" if needs else ""),
                  shlex.join(["aftertune", *call.words(row.name)])]
    return "\n".join([*lines, "# the record and the page, after all of them", shlex.join(["aftertune", *call.words()])])


def _needed(row: CommandRow, targets: Mapping[str, str]) -> list[str]:
    return [targets[name] for name in row.needs if name in targets]


#: Form of ``plan --commands`` -> what writes it.
FORMS = {"make": make_file, "slurm": slurm_script, "plain": shell_script}
