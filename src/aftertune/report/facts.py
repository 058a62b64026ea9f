"""What is known about a run besides its scores, as (label, value) pairs: the metadata list of a report.

    evaluation_facts(evaluation, tuning)
        [("Evaluation Date", "2026-11-23"), ("Model Path", "package:…"), ("Weights", "3f0c…"), …]

Labels follow the form of model evaluation records (Evaluation Date, Model Path, Evaluation Command,
Fine-tuning Method, Training Data Size, Device, Batch Plan, Data Type). Values are finished text, not escaped
for a format; CODE names the labels whose values are code.

What a fine-tune's data came to, as (label, value) pairs: what was left out, what is learned, what evaluations share.

    data_facts(tuning.counts, tuning.overlap)
        [("Data Rows", "999: 892 trained on, 93 held out; left out: 14 duplicates"), ("Data Learned", "135,902 …"), …]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aftertune.methods import method_title
from aftertune.report import formatting as fmt
from aftertune.report.names import task_title
from aftertune.report.results import Family
from aftertune.report.sentences import watch_facts
from aftertune.report.table import held_out_line, part_text
from aftertune.values import Early, Evaluation, ModelIdentity, Overlap, Provenance, TaskSettings, Tuning
from aftertune.values.reported import proven

Counts = Mapping[str, Mapping[str, int]]

_USED = {"training": "trained on", "held_out": "held out", "validation": "for validation", "replayed": "replayed"}
_LEFT_OUT = {"duplicates": "duplicates", "alike": "duplicates but for case, spaces or Unicode form",
             "empty": "without a completion", "unreadable": "unreadable", "in_held_out_file":
             "with a prompt of the held-out file", "set_aside": "new or held out themselves", "not_drawn": "not drawn"}
_FILES = {"data": "Data Rows", "replay_data": "Data Rows of Replay"}
_SIDES = {"training": "Data Learned", "replay": "Data Learned of Replay", "held out": "Data Measured",
          "validation": "Data Validated"}
#: So many indices of items are named.
NAMED = 12


def data_facts(counts: Counts, overlap: Sequence[Overlap]) -> list[tuple[str, str]]:
    """A line for each file, each side and each task that was looked for; nothing for a tuning without counts."""
    files = [(label, _rows(counts[name])) for name, label in _FILES.items() if name in counts]
    sides = [(label, _learned(counts[name])) for name, label in _SIDES.items() if name in counts]
    return [*files, *sides, *((f"Data Overlap, {task_title(o.task)}", overlap_text(o)) for o in overlap)]


def overlap_text(overlap: Overlap) -> str:
    """How many of a task's items the training data shows, how, and which."""
    count = len(overlap.items)
    if not count:
        return f"none of {fmt.count(overlap.n)} items is in the training data, exactly or with 13 words in a row"
    named = ", ".join(map(str, overlap.items[:NAMED])) + (" …" if count > NAMED else "")
    first = next(iter(overlap.found), None)
    where = f"; the first in {first['in']}: {fmt.visible(str(first['words']), 80)!r}" if first else ""
    return (f"{fmt.count(count)} of {fmt.count(overlap.n)} items are in the training data "
            f"({len(overlap.exact)} exactly, {len(overlap.ngram)} with 13 words in a row): {named}{where}")


def _rows(found: Mapping[str, int]) -> str:
    used = ", ".join(_told(found, _USED))
    left = ", ".join(_told(found, _LEFT_OUT)) or "nothing"
    return f"{fmt.count(found['rows'])}: {used}; left out: {left}"


def _learned(side: Mapping[str, int]) -> str:
    share = fmt.percent(side["learned"] / max(side["tokens"], 1))
    learned, tokens, rows = (fmt.count(side[name]) for name in ("learned", "tokens", "rows"))
    text = f"{learned} of {tokens} tokens ({share}) in {rows} rows"
    more = {"cut": "cut at the end, being too long", "masked": "left out, their prompt filling the length"}
    return "; ".join([text, *_told(side, more)])


def _told(found: Mapping[str, int], words: Mapping[str, str]) -> Iterator[str]:
    return (f"{fmt.count(found[name])} {text}" for name, text in words.items() if found.get(name))


Facts = list[tuple[str, str]]

#: Labels whose values are shown as code.
CODE = frozenset({"Model Path", "Model Fingerprint", "Adapter Path", "Evaluation Command", "Training Command",
                  "Weights", "Configuration", "Tokenizer", "Adapter", "Training Data Fingerprint", "Revision",
                  "Output", "Evaluation", "Tuning", "Result Fingerprint"})


def evaluation_facts(evaluation: Evaluation, tuning: Tuning | None) -> Facts:
    """Date, model, fingerprints, command, method, data, device, plan, type, engine, versions, tasks."""
    provenance = evaluation.provenance
    facts: Facts = [("Evaluation", evaluation.id)]
    if provenance is not None:
        facts.append(("Evaluation Date", provenance.started[:10]))
    facts += model_facts(evaluation.model)
    if provenance is not None:
        facts.append(("Evaluation Command", provenance.command))
    if tuning is not None:
        facts += [("Fine-tuning Method", method_text(tuning)),
                  ("Training Data Size", f"{fmt.count(tuning.examples)} examples"), ("Tuning", tuning.id)]
    facts.append(("Device", device_text(evaluation.device, provenance)))
    facts.append(("Batch Plan", plan_text(evaluation.schedule)))
    facts.append(("Data Type", evaluation.dtype))
    note = f", ran as {evaluation.engine_note}" if evaluation.engine_note else ""
    facts.append(("Engine", f"{evaluation.engine}{note}"))
    facts += run_facts(provenance)
    facts += [(f"Task {task_title(t.task)}", task_text(t)) for t in evaluation.tasks]
    if evaluation.early is not None:
        facts.append(("Early Stop", early_stop_text(evaluation.early)))
    facts += [("Warning", warning) for warning in evaluation.warnings]
    return _shown(facts)


def tuning_facts(tuning: Tuning) -> Facts:
    """Base, data, method, every resolved setting, versions and notes of one fine-tune."""
    provenance = tuning.provenance
    facts: Facts = [("Tuning", tuning.id)]
    if provenance is not None:
        facts.append(("Training Date", provenance.started[:10]))
    facts += model_facts(tuning.base)
    facts += [("Fine-tuning Method", method_text(tuning)), ("Training Data", tuning.data_source),
              ("Training Data Fingerprint", fmt.short(tuning.data)),
              ("Training Data Size", f"{fmt.count(tuning.examples)} examples"), ("Seed", str(tuning.seed))]
    if tuning.trainable_parameters is not None:
        facts.append(("Trainable Parameters", fmt.count(tuning.trainable_parameters)))
    facts.append(("Settings", mapping_text(tuning.settings)))
    if provenance is not None:
        facts.append(("Training Command", provenance.command))
    if tuning.result:
        facts.append(("Result Fingerprint", fmt.short(tuning.result)))
    if tuning.held_out is not None:
        n, before, after, difference, interval = held_out_line(tuning.held_out)
        facts.append(("Held-out Loss", f"{before} before, {after} after ({difference} nats per token, 95 % "
                                       f"interval {interval}, {n} examples)"))
    facts += [*watch_facts(tuning.watch), *cost_facts(tuning.cost), *data_facts(tuning.counts, tuning.overlap)]
    facts += [("Output", tuning.output), *run_facts(provenance)]
    facts += [("Note", note) for note in tuning.notes]
    return _shown(facts)


def cost_facts(cost: Mapping[str, float]) -> Facts:
    """What a tuning took, beside what was expected of it."""
    def told(name: str) -> str:
        return f"{cost[name] / 2**30:.2f} GiB" if name.endswith("memory") else fmt.duration(cost[name])

    labels = {"memory": "Peak Memory", "seconds": "Training Time"}
    return [(label, told(name) + (f" (estimated: {told(f'estimated_{name}')})" if f"estimated_{name}" in cost else ""))
            for name, label in labels.items() if name in cost]


def model_facts(model: ModelIdentity) -> Facts:
    """Where a model came from and its fingerprints, each on its own."""
    facts: Facts = [("Model Path", model.source)]
    if model.revision:
        facts.append(("Revision", model.revision))
    if not proven(model):
        return [*facts, ("Identity", "not proven: imported results name their weights, they do not show them")]
    facts += [("Model Fingerprint", fmt.short(model.fingerprint)), ("Weights", fmt.short(model.weights)),
              ("Configuration", fmt.short(model.config)), ("Tokenizer", fmt.short(model.tokenizer))]
    if model.quantization:
        facts.append(("Quantization", f"{model.quantization.upper()}, linear layers, when loaded"))
    if model.adapter_source:
        facts.append(("Adapter Path", model.adapter_source))
    if model.adapter:
        facts.append(("Adapter", fmt.short(model.adapter)))
    if model.trust_remote_code:
        facts.append(("Model Code", "code from the model's own repository was run (trust_remote_code)"))
    return facts


def run_facts(provenance: Provenance | None) -> Facts:
    """Versions, code state and duration of a run."""
    if provenance is None:
        return []
    facts: Facts = []
    if provenance.versions:
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in sorted(provenance.versions.items()))))
    if provenance.git:
        state = " with uncommitted changes" if provenance.dirty else ""
        facts.append(("Code", f"commit {fmt.short(provenance.git)}{state}"))
    if provenance.seconds is not None:
        facts.append(("Duration", fmt.duration(provenance.seconds)))
    return facts


def method_text(tuning: Tuning) -> str:
    """The method as people write it."""
    backend = tuning.settings.get("backend")
    return method_title(tuning.method) + (f" by {backend}" if backend else "")


def kind_text(evaluation: Evaluation, home: Family, tuning: Tuning | None) -> str:
    """What an evaluated model is in its family: "base", "LoRA, 600 examples", or "" where not known."""
    if tuning is not None:
        return f"{method_text(tuning)}, {fmt.count(tuning.examples)} examples"
    return "base" if evaluation.model.fingerprint == home.root and home.has_tuned else ""


def plan_text(schedule: Mapping[str, Any]) -> str:
    """The batch plan that ran: budget, slots, threads and halvings, and its digest."""
    told_elsewhere = ("note", "seconds", "torch", "transformers", "stages")
    shown = {k: v for k, v in schedule.items() if k not in told_elsewhere}
    if isinstance(shown.get("plan"), str):
        shown["plan"] = fmt.short(shown["plan"])
    return mapping_text(shown) or "not recorded"


def mapping_text(values: Mapping[str, Any]) -> str:
    """A mapping as ``key value`` pairs sorted by key; long lists by their count."""
    return ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in sorted(values.items())
                     if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({mapping_text(value)})" if value else "none"
    if isinstance(value, list | tuple):
        if not value:
            return "none"
        short = len(value) <= 8 and all(isinstance(v, str | int | float) for v in value)
        return "[" + ", ".join(map(_listed, value)) + "]" if short else f"{fmt.count(len(value))} entries"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _listed(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else _plain(value)


def early_stop_text(early: Early) -> str:
    """How an evaluation was to be stopped early, and where each verdict fell."""
    parts = [f"against evaluation {early.against}", f"random order of seed {early.seed}"]
    if early.min_items:
        parts.append(f"{fmt.count(early.min_items)} items at least")
    if early.max_width is not None:
        parts.append(f"interval at most {fmt.points(early.max_width).lstrip('+')} points wide")
    units = [f"{task_title(u.name)}: {fmt.count(u.used)} of {fmt.count(u.items)} items, a look every {u.batch}, "
             f"margin ±{fmt.points(early.margins.get(u.name)).lstrip('+')}, order {fmt.short(u.order)}"
             for u in early.units]
    return "; ".join([", ".join(parts), *units])


def task_text(task: TaskSettings) -> str:
    """How one task was run: version, items, examples, data, split, template, generation settings."""
    template = "chat template on" if task.chat_template else "chat template off"
    if task.chat_template and task.fewshot_as_multiturn:
        template += " (examples as turns)"
    parts = [part_text(task) or f"all {fmt.count(task.n)} items", f"{task.num_fewshot}-shot", template,
             f"data {task.data}, split {task.split}", f"version {task.version}"]
    if task.system_instruction:
        parts.append(f"system instruction {task.system_instruction!r}")
    if task.generation:
        parts.append(f"generation ({mapping_text(task.generation)})")
    if task.chance is not None:
        parts.append(f"chance {fmt.percent(task.chance)}")
    return ", ".join([*parts, f"items {fmt.short(task.items)}, prompts {fmt.short(task.prompts)}"])


def device_text(device: str, provenance: Provenance | None) -> str:
    """The device with what is known of the machine: "CPU (Xeon 8481C, 2 cores, 7.8 GiB)"."""
    hardware = provenance.hardware if provenance is not None else {}
    chips = hardware.get("gpus") if device != "cpu" else None
    parts = [", ".join(chips) if chips else hardware.get("cpu")]
    if hardware.get("cores"):
        parts.append(f"{hardware['cores']} cores")
    if hardware.get("memory"):
        parts.append(f"{hardware['memory'] / 2**30:.1f} GiB")
    known = ", ".join(str(part) for part in (*parts, hardware.get("platform")) if part)
    return f"{device.upper()} ({known})" if known else device.upper()


def _shown(facts: Facts) -> Facts:
    """Facts as they can be looked at; a command is of use only whole."""
    return [(label, fmt.visible(value, 8000 if label.endswith("Command") else 600)) for label, value in facts if value]
