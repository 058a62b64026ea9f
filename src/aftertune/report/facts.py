"""Describes evaluations, fine-tunes and training data as (label, value) pairs: the metadata lists of a report.

    evaluation_facts(evaluation, tuning)
        [("Evaluation Date", "2026-11-23"), ("Model Path", "package:…"), ("Weights", "3f0c…"), …]
    data_facts(tuning.counts, tuning.overlap)
        [("Data Rows", "999: 892 trained on, 93 held out; left out: 14 duplicates"), ("Data Learned", "135,902 …"), …]

The labels follow model evaluation records (Evaluation Date, Model Path, Evaluation Command, Fine-tuning Method,
Training Data Size, Device, Batch Plan, Data Type). The values are plain text that is not escaped yet. CODE lists the
labels whose values are shown as code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aftertune.catalog import MetricKey, is_bounded
from aftertune.methods import method_title
from aftertune.redaction import redact
from aftertune.report import formatting as fmt
from aftertune.report.checkpoints import choice_lines
from aftertune.report.cures import confirmed_lines
from aftertune.report.names import task_title
from aftertune.report.results import Family
from aftertune.report.sentences import watch_facts
from aftertune.report.table import held_out_line, part_text
from aftertune.values import Early, EarlyUnit, Evaluation, ModelIdentity, Overlap, Provenance, TaskSettings, Tuning
from aftertune.values.reported import identity_note

Counts = Mapping[str, Mapping[str, int]]

# --- Training data ---
_USED = {"training": "trained on", "held_out": "held out", "validation": "for validation", "replayed": "replayed"}
_LEFT_OUT = {"duplicates": "duplicates", "alike": "duplicates except for case, spaces or Unicode form",
             "empty": "without a completion", "unfinished": "without an end", "loops": "that repeat themselves",
             "unreadable": "unreadable",
             "in_held_out_file": "with a prompt of the held-out file",
             "set_aside": "in the new or held-out data", "not_drawn": "not drawn"}
_FILES = {"data": "Data Rows", "replay_data": "Data Rows of Replay"}
_SIDES = {"training": "Data Learned", "replay": "Data Learned of Replay", "held out": "Data Measured",
          "validation": "Data Validated"}
#: The number of item indices that are listed.
NAMED = 12


def data_facts(counts: Counts, overlap: Sequence[Overlap]) -> list[tuple[str, str]]:
    """A line for each file, each part of the data and each task that was searched for; [] without counts."""
    files = [(label, _rows_text(counts[name])) for name, label in _FILES.items() if name in counts]
    sides = [(label, _learned_text(counts[name])) for name, label in _SIDES.items() if name in counts]
    return [*files, *sides, *((f"Data Overlap, {task_title(o.task)}", overlap_text(o)) for o in overlap)]


def overlap_text(overlap: Overlap) -> str:
    """How many of a task's items are in the training data, by which match, and which ones."""
    count = len(overlap.items)
    if not count:
        return f"none of {fmt.count(overlap.n)} items is in the training data, exactly or with 13 words in a row"
    indices = ", ".join(map(str, overlap.items[:NAMED])) + (" …" if count > NAMED else "")
    first = next(iter(overlap.found), None)
    example = f"; the first in {first['in']}: {fmt.visible(str(first['words']), 80)!r}" if first else ""
    return (f"{fmt.count(count)} of {fmt.count(overlap.n)} items are in the training data "
            f"({len(overlap.exact)} exactly, {len(overlap.ngram)} with 13 words in a row): {indices}{example}")


def _rows_text(counts: Mapping[str, int]) -> str:
    used = ", ".join(_counted(counts, _USED))
    left_out = ", ".join(_counted(counts, _LEFT_OUT)) or "nothing"
    return f"{fmt.count(counts['rows'])}: {used}; left out: {left_out}"


def _learned_text(side: Mapping[str, int]) -> str:
    share = fmt.percent(side["learned"] / max(side["tokens"], 1))
    learned, tokens, rows = (fmt.count(side[name]) for name in ("learned", "tokens", "rows"))
    text = f"{learned} of {tokens} tokens ({share}) in {rows} rows"
    shortened = {"cut": "cut at the end because they are too long",
                 "masked": "left out because the prompt alone fills the maximum length",
                 "refused": "left out because the template refuses them"}
    return "; ".join([text, *_counted(side, shortened)])


def _counted(counts: Mapping[str, int], words: Mapping[str, str]) -> Iterator[str]:
    """Yield a text such as "14 duplicates" for each count that is not zero."""
    return (f"{fmt.count(counts[name])} {text}" for name, text in words.items() if counts.get(name))


# --- Evaluations and fine-tunes ---
#: Steps over which the anchor's term is averaged.
ANCHORED_STEPS = 10
Facts = list[tuple[str, str]]

#: Labels whose values are shown as code.
CODE = frozenset({"Model Path", "Model Fingerprint", "Adapter Path", "Evaluation Command", "Training Command",
                  "Weights", "Configuration", "Tokenizer", "Adapter", "Training Data Fingerprint", "Revision",
                  "Output", "Evaluation", "Tuning", "Result Fingerprint"})


#: Labels of the commands, which a page that has them to copy leaves out of the facts.
COMMANDS = frozenset({"Evaluation Command", "Training Command"})


def evaluation_facts(evaluation: Evaluation, tuning: Tuning | None) -> Facts:
    """The date, model, command, method, device, batch plan, data type, engine, versions and tasks of an evaluation."""
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
    if evaluation.stated:
        facts.append(("Stated to the Engine", mapping_text(evaluation.stated)))
    note = f", ran as {evaluation.engine_note}" if evaluation.engine_note else ""
    facts.append(("Engine", f"{evaluation.engine}{note}"))
    facts += run_facts(provenance)
    facts += [(f"Task {task_title(t.task)}", task_text(t)) for t in evaluation.tasks]
    if evaluation.early is not None:
        facts.append(("Early Stop", early_stop_text(evaluation.early)))
    facts += [("Warning", warning) for warning in evaluation.warnings]
    return _visible(facts)


def tuning_facts(tuning: Tuning) -> Facts:
    """The base, data, method, resolved settings, versions and notes of a fine-tune."""
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
    if tuning.cure is not None:
        facts += [("Cure", line) for line in confirmed_lines(tuning.cure)]
    facts += [*anchor_facts(tuning), *watch_facts(tuning.watch), *checkpoint_facts(tuning), *cost_facts(tuning.cost)]
    facts += data_facts(tuning.counts, tuning.overlap)
    facts += [("Output", tuning.output), *run_facts(provenance)]
    facts += [("Note", note) for note in tuning.notes]
    return _visible(facts)


def anchor_facts(tuning: Tuning) -> Facts:
    """What kept the model near its base while it trained, how far it was from it at the end, and what that added to the
    loss; [] without an anchor."""
    setting = tuning.settings.get("anchor")
    if not setting:
        return []
    where = "" if str(setting).startswith("l2") else \
        " on the replayed rows" if "replay" in tuning.settings else " on the prompts"
    last = [step for step in tuning.steps if "anchor_kl" in step or "anchor_distance" in step][-ANCHORED_STEPS:]
    if not last:
        return [("Anchor", f"{setting}{where}")]
    term, loss = (sum(step[key] for step in last) / len(last) for key in ("anchor", "loss"))
    if "anchor_kl" in last[0]:
        mean = sum(step["anchor_kl"] for step in last) / len(last)
        distance = f"{mean:.4f} nats per token from the base"
    else:
        distance = f"the weights are {last[-1]['anchor_distance']:.3g} from those of the base"
    span = f"the last {len(last)} steps" if len(last) > 1 else "the last step"
    return [("Anchor", f"{setting}{where}: {distance}; over {span} it added {term:.4f} to a loss of {loss:.4f}")]


def checkpoint_facts(tuning: Tuning) -> Facts:
    """The kept checkpoints, which of them is handed on, and how it was chosen."""
    facts: Facts = []
    if tuning.choice is not None:
        facts += [("Checkpoint Choice", line) for line in choice_lines(tuning.choice)]
    if tuning.checkpoints and tuning.final_step is not None:
        facts.append(("Final Weights", f"of step {fmt.count(tuning.final_step)}"))
    facts += [("Kept Checkpoint", f"step {fmt.count(c.step)}: {c.folder}, fingerprint {fmt.short(c.result)}, "
               f"{c.size / 2**20:,.1f} MiB") for c in tuning.checkpoints]
    return facts


def cost_facts(cost: Mapping[str, float]) -> Facts:
    """The memory and time that a fine-tune took, with the estimates."""
    def amount(name: str) -> str:
        return f"{cost[name] / 2**30:.2f} GiB" if name.endswith("memory") else fmt.duration(cost[name])

    labels = {"memory": "Peak Memory", "seconds": "Training Time"}
    estimates = {name: f" (estimated: {amount(f'estimated_{name}')})" for name in labels if f"estimated_{name}" in cost}
    return [(label, amount(name) + estimates.get(name, "")) for name, label in labels.items() if name in cost]


def model_facts(model: ModelIdentity) -> Facts:
    """The source of a model and its fingerprints."""
    facts: Facts = [("Model Path", model.source)]
    if model.revision:
        facts.append(("Revision", model.revision))
    if note := identity_note(model):
        return [*facts, ("Identity", note)]
    facts += [("Model Fingerprint", fmt.short(model.fingerprint)), ("Weights", fmt.short(model.weights)),
              ("Configuration", fmt.short(model.config)), ("Tokenizer", fmt.short(model.tokenizer))]
    if model.quantization:
        facts.append(("Quantization", f"{model.quantization.upper()}, linear layers, at load time"))
    if model.adapter_source:
        facts.append(("Adapter Path", model.adapter_source))
    if model.adapter:
        facts.append(("Adapter", fmt.short(model.adapter)))
    if model.trust_remote_code:
        facts.append(("Model Code", "code from the model's own repository was run (trust_remote_code)"))
    return facts


def run_facts(provenance: Provenance | None) -> Facts:
    """The versions, git commit and duration of a run."""
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
    """The title of the method, with its backend if there is one, and with what was made of it without training."""
    backend = tuning.settings.get("backend")
    made = f", {tuning.change}" if tuning.change else ""
    return method_title(tuning.method) + (f" by {backend}" if backend else "") + made


def kind_text(evaluation: Evaluation, home: Family, tuning: Tuning | None) -> str:
    """The role of a model in its family: "base", "LoRA, 600 examples", or "" if unknown."""
    if tuning is not None:
        step = f", step {fmt.count(tuning.final_step)}" if tuning.checkpoints else ""
        return f"{method_text(tuning)}, {fmt.count(tuning.examples)} examples{step}"
    return "base" if evaluation.model.fingerprint == home.root and home.has_tuned else ""


def plan_text(schedule: Mapping[str, Any]) -> str:
    """The batch plan that ran: budget, slots, threads, out-of-memory splits and its digest."""
    in_other_facts = ("note", "seconds", "torch", "transformers", "stages")
    plan = {"OOM splits" if k == "halvings" else k: v for k, v in schedule.items() if k not in in_other_facts}
    if isinstance(plan.get("plan"), str):
        plan["plan"] = fmt.short(plan["plan"])
    return mapping_text(plan) or "not recorded"


def mapping_text(values: Mapping[str, Any]) -> str:
    """A mapping as ``key value`` pairs sorted by key; of a long list only the number of entries."""
    return ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in sorted(values.items())
                     if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({mapping_text(value)})" if value else "none"
    if isinstance(value, list | tuple):
        if not value:
            return "none"
        short = len(value) <= 8 and all(isinstance(v, str | int | float) for v in value)
        return "[" + ", ".join(map(_list_item, value)) + "]" if short else f"{fmt.count(len(value))} entries"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list_item(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else _plain(value)


def early_stop_text(early: Early) -> str:
    """The rule of early stopping, and the number of items that each verdict needed."""
    weighted = any(u.draw == "weighted" for u in early.units)
    rules = [f"compared with evaluation {early.against}",
             f"random order{' and drawing with weights' if weighted else ''}, seed {early.seed}"]
    rules.append(f"until something is proven about {'the models' if early.stop_target == 'models' else 'the full run'}")
    if early.min_items:
        rules.append(f"at least {fmt.count(early.min_items)} items")
    if early.max_items is not None:
        rules.append(f"at most {fmt.count(early.max_items)} items")
    if early.max_width is not None:
        rules.append(f"interval at most {fmt.points(early.max_width).lstrip('+')} points wide")
    units = [f"{task_title(u.name)}: {fmt.count(u.used)} of {fmt.count(u.items)} items"
             f"{', drawn with weights' if u.draw == 'weighted' else ''}, tested every {u.batch} items, "
             f"{_margin_text(early, u)}order {fmt.short(u.order)}" for u in early.units]
    return "; ".join([", ".join(rules), *units])


def _margin_text(early: Early, unit: EarlyUnit) -> str:
    """The margin of a sequential test; "" for a metric without bounds, which has no such test."""
    if not is_bounded(MetricKey(unit.key).metric, unit.tasks[0]):
        return ""
    return f"margin ±{fmt.points(early.margins.get(unit.name)).lstrip('+')}, "


def task_text(task: TaskSettings) -> str:
    """The settings of one task: version, items, examples, data, split, template and generation."""
    template = "chat template on" if task.chat_template else "chat template off"
    if task.chat_template and task.fewshot_as_multiturn:
        template += " (examples as turns)"
    if task.template_date:
        template += f" (with the date {task.template_date})"
    parts = [part_text(task) or f"all {fmt.count(task.n)} items", f"{task.num_fewshot}-shot", template,
             f"data {task.data}, split {task.split}", f"version {task.version}"]
    if task.system_instruction:
        parts.append(f"system instruction {redact(task.system_instruction)!r}")
    if task.generation:
        parts.append(f"generation ({redact(mapping_text(task.generation))})")
    if task.chance is not None:
        parts.append(f"chance {fmt.percent(task.chance)}")
    return ", ".join([*parts, f"items {fmt.short(task.items)}, prompts {fmt.short(task.prompts)}"])


def device_text(device: str, provenance: Provenance | None) -> str:
    """The device and its hardware: "CPU (Xeon 8481C, 2 cores, 7.8 GiB)"."""
    hardware = provenance.hardware if provenance is not None else {}
    chips = hardware.get("gpus") if device != "cpu" else None
    parts = [", ".join(chips) if chips else hardware.get("cpu")]
    if hardware.get("cores"):
        parts.append(f"{hardware['cores']} cores")
    if hardware.get("memory"):
        parts.append(f"{hardware['memory'] / 2**30:.1f} GiB")
    details = ", ".join(str(part) for part in (*parts, hardware.get("platform")) if part)
    return f"{device.upper()} ({details})" if details else device.upper()


def _visible(facts: Facts) -> Facts:
    """The facts made safe to display. Commands may be long, because a part of one is of no use."""
    return [(label, fmt.visible(value, 8000 if label.endswith("Command") else 600)) for label, value in facts if value]
