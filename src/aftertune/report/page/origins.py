"""Where the figures come from: the commands in their order, what ran them, what each thing was by content, and what
a fine-tune cost against what was expected of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aftertune.report import format as fmt
from aftertune.report.facts import device_text, run_facts
from aftertune.report.names import task_title
from aftertune.report.results import Results
from aftertune.report.table import part_text
from aftertune.reported import proven
from aftertune.values import Evaluation, ModelIdentity, TaskSettings, Tuning


@dataclass(frozen=True, slots=True)
class Command:
    """One command line; runs: what it made, in order."""

    line: str
    started: str
    runs: list[str]

    @property
    def note(self) -> str:
        shown = ", ".join(self.runs[:4]) + (f" and {len(self.runs) - 4} more" if len(self.runs) > 4 else "")
        return f"{self.started.replace('T', ' ')[:16]} UTC: {shown}"


@dataclass(frozen=True, slots=True)
class Origins:
    """commands: of a terminal; settings: (runs, facts) of each combination of machine, versions and code; models,
    data, tasks: rows of text."""

    commands: list[Command]
    settings: list[tuple[str, list[tuple[str, str]]]]
    models: list[tuple[str, ...]]
    data: list[tuple[str, ...]]
    tasks: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Cost:
    """A fine-tune's peak memory and time: expected, real, and real as a share of expected."""

    name: str
    memory: tuple[str, str, str]
    seconds: tuple[str, str, str]


def origins(results: Results) -> Origins:
    """Everything that is needed to do it again."""
    return Origins(commands=_commands(results), settings=_settings(results), models=_models(results),
                   data=_data(results.tunings), tasks=_tasks(results.evaluations))


def costs(tunings: Sequence[Tuning]) -> list[Cost]:
    """Of the fine-tunes that were estimated beforehand."""
    found = []
    for tuning in tunings:
        if any(f"estimated_{name}" in tuning.cost for name in ("memory", "seconds")):
            memory = _against(tuning, "memory", lambda v: f"{v / 2**30:.2f} GiB")
            found.append(Cost(fmt.visible(tuning.name), memory, _against(tuning, "seconds", fmt.duration)))
    return found


def _against(tuning: Tuning, name: str, told: Callable[[float], str]) -> tuple[str, str, str]:
    expected, real = tuning.cost.get(f"estimated_{name}"), tuning.cost.get(name)
    share = f"{100 * real / expected:.0f} %" if real is not None and expected else fmt.DASH
    return (fmt.DASH if expected is None else told(expected), fmt.DASH if real is None else told(real), share)


def _commands(results: Results) -> list[Command]:
    """Command lines by the time they were first given."""
    runs = [(r.provenance.started, f"{kind} {fmt.visible(r.name)}", fmt.visible(r.provenance.command))
            for kind, made in (("fine-tune", results.tunings), ("evaluation", results.evaluations)) for r in made
            if r.provenance is not None]
    found: dict[str, Command] = {}
    for started, name, line in sorted(runs, key=lambda run: run[0]):
        found.setdefault(line, Command(line, started, [])).runs.append(name)
    return list(found.values())


def _settings(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the runs had in common: machine, versions and code, each combination once."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    runs: list[Evaluation | Tuning] = [*results.tunings, *results.evaluations]
    for run in runs:
        if run.provenance is not None:
            device = run.device if isinstance(run, Evaluation) else str(run.settings.get("device") or "cpu")
            facts = [("Device", device_text(device, run.provenance)),
                     *(f for f in run_facts(run.provenance) if f[0] != "Duration")]
            found.setdefault(tuple(facts), []).append(fmt.visible(run.name))
    total = sum(map(len, found.values()))
    return [("all runs" if len(names) == total else f"{len(names)} of {total} runs: {', '.join(names[:6])}"
             + (" …" if len(names) > 6 else ""), [(k, fmt.visible(v)) for k, v in facts])
            for facts, names in found.items()]


def _models(results: Results) -> list[tuple[str, ...]]:
    """Source, weights, configuration, tokenizer and adapter of each model, by content."""
    models: dict[tuple[str, str], ModelIdentity] = {}
    for model in (*(e.model for e in results.evaluations), *(t.base for t in results.tunings)):
        models.setdefault((model.fingerprint, model.tokenizer), model)
    return [(fmt.visible(m.adapter_source or m.source, 120),
             *((fmt.short(part) if part else fmt.DASH) if proven(m) else "not proven"
               for part in (m.weights, m.config, m.tokenizer, m.adapter))) for m in models.values()]


def _data(tunings: Sequence[Tuning]) -> list[tuple[str, ...]]:
    """Training data of each fine-tune: file, examples, fingerprint."""
    rows = [(fmt.visible(t.data_source, 120), fmt.count(t.examples), fmt.short(t.data)) for t in tunings]
    return list(dict.fromkeys(rows))


def _tasks(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    """Each task as it was asked: version, data, items, and the fingerprints of items and prompts."""
    rows = [(fmt.visible(task_title(t.task)), t.version, fmt.visible(f"{t.data}, {t.split}", 120),
             part_text(t) or f"all {fmt.count(t.n)}", f"{t.num_fewshot}-shot{_template(t)}", fmt.short(t.items),
             fmt.short(t.prompts)) for e in evaluations for t in e.tasks]
    return list(dict.fromkeys(rows))


def _template(task: TaskSettings) -> str:
    return ", chat template" if task.chat_template else ""
