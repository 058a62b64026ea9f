"""Writes a Hugging Face model card: README.md with its YAML header, and the files of ``.eval_results``.

    card = write_card(tuning, results)
    card.readme                          ---\\nbase_model: …\\n---\\n\\n# careful …
    card.results["hellaswag.yaml"]       - dataset: {id: Rowan/hellaswag, task_id: hellaswag} …

    subject = Subject.of(evaluation, results)
    header(subject).to_yaml()            base_model: Qwen/Qwen2.5-0.5B, library_name: peft, model-index: …
    entries(subject)["hellaswag.yaml"]   one result for the benchmark's page on the Hub

A card is made for publishing: `published` replaces paths by names and removes secrets. It has a verdict only if a
comparison in the ledger has one. Scores are the ledger's values, as fractions. A task that was stopped early has an
estimate and no score, so it is left out of the header and of ``.eval_results``. A score of a part of a task or of
another split is marked as such, and is in ``.eval_results`` only if that is asked for.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aftertune.catalog import BENCHMARKS
from aftertune.methods import writes_adapter
from aftertune.redaction import published
from aftertune.report import documents as md
from aftertune.report import formatting as fmt
from aftertune.report.facts import CODE, Facts, evaluation_facts, method_text, model_facts, tuning_facts
from aftertune.report.names import metric_title, source_title, task_title
from aftertune.report.record import comparison_blocks, headline_blocks, score_blocks
from aftertune.report.results import Results, newest, tuning_of
from aftertune.report.sentences import observations
from aftertune.report.table import score_interval, score_part
from aftertune.sources.readme import header_fields, license_of, sealed
from aftertune.study.data import data_on_hub
from aftertune.study.presets import base_on_hub
from aftertune.values import Comparison, Evaluation, ModelIdentity, Score, TaskSettings, Tuning
from aftertune.values.reported import STATED, proven


# --- The model ---
@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that a card describes, without paths and secrets.

    evaluations: the evaluation that the card is about, or all evaluations of what a tuning made. comparisons: of this
    model with others, without forced ones; the newest of each pair, those with proven lineage first. others: the
    evaluations that it was compared with.
    """

    name: str
    tuning: Tuning | None
    evaluations: tuple[Evaluation, ...]
    comparisons: tuple[Comparison, ...]
    others: tuple[Evaluation, ...]

    @classmethod
    def of(cls, about: Evaluation | Tuning, results: Results) -> Subject:
        """The model of an evaluation, or the one that a tuning made. results: everything in the ledger."""
        done, tunings = [e for e in results.evaluations if e.status == "done"], results.tunings
        if isinstance(about, Tuning):
            tuning: Tuning | None = about
            own = [e for e in done if (source := tuning_of(e, tunings)) is not None and source.id == about.id]
        else:
            tuning, own = tuning_of(about, tunings), [about]
        ids = {e.id for e in own}
        comparisons = sorted(newest([c for c in results.comparisons if c.tuned in ids and not c.forced]),
                             key=lambda c: not c.lineage)
        others = {c.base for c in comparisons}
        return cls(name=published(about.name), tuning=published(tuning), evaluations=published(tuple(own)),
                   comparisons=published(tuple(comparisons)),
                   others=published(tuple(e for e in done if e.id in others - ids)))

    @property
    def model(self) -> ModelIdentity | None:
        """The model as it was evaluated, or None if it was not."""
        return self.evaluations[0].model if self.evaluations else None

    @property
    def adapter(self) -> bool:
        """True if the model is an adapter for its base."""
        if self.model is not None:
            return self.model.adapter is not None
        return self.tuning is not None and writes_adapter(self.tuning.method)

    @property
    def base(self) -> ModelIdentity | None:
        """The model that it was made from, or None if the ledger does not know it."""
        if self.tuning is not None:
            return self.tuning.base
        return self.model.stored if self.model is not None and self.adapter else None

    def scores(self) -> list[tuple[Evaluation, Score]]:
        """The scores of tasks that ran to their end; of two measurements the one on more items, then the newer one."""
        best: dict[tuple[str, str, str], tuple[Evaluation, Score]] = {}
        for evaluation in self.evaluations:
            for score in evaluation.scores:
                key = (score.task, score.metric, score.filter)
                previous = best.get(key)
                if evaluation.stopped(score.task) or not math.isfinite(score.value):
                    continue
                if previous is None or previous[1].n <= score.n:
                    best[key] = (evaluation, score)
        return list(best.values())

    def left_out(self) -> list[str]:
        """The tasks that were stopped early and therefore have no score."""
        names = ((e, name) for e in self.evaluations
                 for name in (*(s.task for s in e.scores), *(t.task for t in e.tasks if e.drawn_unequally(t.task))))
        return list(dict.fromkeys(name for e, name in names if e.stopped(name)))


# --- The YAML that the Hub reads ---
def header(subject: Subject, license_: str | None = None) -> Any:
    """The metadata as huggingface_hub's ModelCardData; unknown fields are left out."""
    from huggingface_hub.repocard_data import ModelCardData

    tuning = subject.tuning
    results = [_result(e, s) for e, s in subject.scores()]
    return ModelCardData(
        library_name=_library(subject), model_name=fmt.visible(subject.name),
        **header_fields(subject.base, adapter=subject.adapter, method=tuning.method if tuning else None,
                        data=tuning.data_source if tuning else None, license_=license_),
        **({"model-index": [{"name": fmt.visible(subject.name), "results": results}]} if results else {}))


def _library(subject: Subject) -> str | None:
    source = "" if subject.model is None else subject.model.source
    return "peft" if subject.adapter else None if source.endswith(".gguf") else "transformers"


def _result(evaluation: Evaluation, score: Score) -> dict[str, Any]:
    """One entry of a model-index."""
    task = _settings(evaluation, score)
    data, part = _data(task, score.task)
    interval = score_interval(score)
    args = {"task": score.task, "filter": score.filter, "n": score.n, "stderr": _number(score.stderr),
            "low": interval and interval[0], "high": interval and interval[1],
            "num_fewshot": task.num_fewshot if task else None, "evaluation": evaluation.id}
    return {"task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"type": data or score.task, "name": fmt.visible(task_title(score.task)), "config": part,
                        "split": task.split if task and data else None},
            "metrics": [{"type": score.metric, "value": score.value, "name": _metric(evaluation, score),
                         "args": {k: v for k, v in args.items() if v is not None}}]}


def _metric(evaluation: Evaluation, score: Score) -> str:
    """The metric with its task, and with the part of the task if not all items were asked."""
    part = _part(evaluation, score)
    title = f"{metric_title(score.metric, score.filter)} on {task_title(score.task)}"
    return fmt.visible(f"{title} ({part})" if part else title)


def _part(evaluation: Evaluation, score: Score) -> str:
    """Of which items a score is, if not of all that the benchmark is scored on; "" for a score of the benchmark."""
    part = score_part(evaluation, score.task)
    tasks = [t for t in evaluation.tasks if score.task in (t.task, *t.groups)]
    total = sum(t.n_total for t in tasks)
    own = BENCHMARKS[score.task].items.get("hub") if score.task in BENCHMARKS else None
    splits = ", ".join(dict.fromkeys(t.split for t in tasks))
    other = f"split {splits} with {fmt.count(total)} items, where the benchmark has {fmt.count(own)}" \
        if own is not None and tasks and total != own else ""
    return "; ".join(filter(None, (f"partial: {part}" if part else "", other)))


def _settings(evaluation: Evaluation, score: Score) -> TaskSettings | None:
    """The task of a score; for a group its first task."""
    members = (t for t in evaluation.tasks if score.task in t.groups)
    return evaluation.task(score.task) or next(members, None)


def _data(task: TaskSettings | None, name: str) -> tuple[str | None, str | None]:
    """The Hub data set of a task and its configuration; (None, None) for the user's own data."""
    listed = BENCHMARKS[name].hub if name in BENCHMARKS else None
    stated = task.data.removeprefix("hub:") if task is not None and task.data.startswith("hub:") else None
    if stated is not None:
        return stated, listed[1] if listed and listed[0] == stated else None
    return listed if listed and task is not None and task.data.startswith("pack:") else (None, None)


def entries(subject: Subject, *, partial: bool = False) -> dict[str, str]:
    """File name -> YAML with the score of the primary metric, for each task whose data set is on the Hub.

    partial: also scores of a part of the items or of another split, which are marked. Without it they are left out,
    because the page of the benchmark shows them beside those of all items.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    files: dict[str, str] = {}
    for evaluation, score in subject.scores():
        data, _ = _data(_settings(evaluation, score), score.task)
        if score.primary and data is not None and score.fraction and (partial or not _part(evaluation, score)):
            started = evaluation.provenance.started if evaluation.provenance else None
            entry = EvalResultEntry(dataset_id=data, task_id=_page(score.task), value=score.value,
                                    date=started, notes="; ".join(_notes(evaluation, score)))
            files[_file(score.task)] = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return files


def _file(task: str) -> str:
    """The name of a task's file in ``.eval_results``."""
    return re.sub(r"[^\w.-]+", "_", task) + ".yaml"


def _page(task: str) -> str:
    """The name under which the Hub lists the results of a task."""
    return BENCHMARKS[task].page or task if task in BENCHMARKS else task


def _notes(evaluation: Evaluation, score: Score) -> Iterator[str]:
    """How a score was measured; first of all whether it is partial."""
    task = _settings(evaluation, score)
    yield _part(evaluation, score) or f"all {fmt.count(score.n)} items"
    yield fmt.visible(f"lm-eval task {score.task}, {metric_title(score.metric, score.filter)}")
    if task is not None:
        yield f"{task.num_fewshot}-shot, chat template {'on' if task.chat_template else 'off'}"
    if (error := _number(score.stderr)) is not None:
        yield f"standard error {fmt.raw(error)}"


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# --- The text ---
@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model card. results: file name in ``.eval_results`` -> its YAML; withheld: the same of what is not written,
    because it is no score of the whole benchmark. partial: the tasks of these, with the items that they were measured
    on. left_out: tasks that were stopped early. license: in the header.
    """

    readme: str
    results: Mapping[str, str]
    withheld: Mapping[str, str]
    left_out: tuple[str, ...]
    partial: Mapping[str, str]
    license: str | None


def write_card(about: Evaluation | Tuning, results: Results, *, license_: str | None = None, partial: bool = False
               ) -> Card:
    """The card of a finished evaluation's model, or of a tuning's model. results: everything in the ledger.

    license_: of the model; else that of its base, where it is known. partial: see `entries`.
    """
    subject = Subject.of(about, results)
    license_ = license_ or _license(about, results)
    own = Results(comparisons=[c for c in subject.comparisons if c.lineage])
    blocks = [f"# {md.text(fmt.visible(subject.name))}", *headline_blocks(own), _summary(subject), *_results(subject),
              *_verdicts(subject), *_base(subject), *_training(subject), *_how(subject), *_commands(subject)]
    yaml = header(subject, license_).to_yaml()
    files = entries(subject, partial=partial)
    withheld = {name: text for name, text in entries(subject, partial=True).items() if name not in files}
    parts = {s.task: _part(e, s) for e, s in subject.scores() if s.primary and _file(s.task) in withheld}
    return Card(readme=sealed(f"---\n{yaml}\n---\n\n" + "\n\n".join(blocks) + "\n"), results=files,
                withheld=withheld, left_out=tuple(subject.left_out()), partial=parts, license=license_)


def _license(about: Evaluation | Tuning, results: Results) -> str | None:
    """The license of what a model was made from, or of the model itself where nothing else is known of it."""
    tuning = about if isinstance(about, Tuning) else tuning_of(about, results.tunings)
    if tuning is not None:
        return license_of(tuning.base)
    assert isinstance(about, Evaluation)
    return license_of(about.model.stored) if proven(about.model) else None


def _summary(subject: Subject) -> str:
    """One or two sentences on what the model is."""
    tuning, base, model = subject.tuning, subject.base, subject.model
    if tuning is not None and base is not None:
        hub = data_on_hub(tuning.data_source)
        data = _link(hub, f"datasets/{hub}") if hub else md.code(fmt.visible(tuning.data_source))
        trained = replace(tuning, cure=None)
        kind = f"{md.text(method_text(trained))} fine-tune" if writes_adapter(tuning.method) else "full fine-tune"
        text = f"A {kind} of {_base_name(subject)} on {fmt.count(tuning.examples)} examples of {data}."
        if tuning.cure is not None:
            text += f" Then changed without training: {md.text(fmt.visible(tuning.cure.chosen))}."
    elif base is not None:
        text = f"An adapter for {_base_name(subject)}. How it was trained is unknown."
    else:
        text = "How this model was made is unknown."
    if model is not None and not proven(model):
        asked = "It was asked under a name" if model.weights.startswith(STATED) else "Its results were imported"
        return f"{text} {asked}, and its weights were not read."
    method = "" if base is None else ", which asks a model and its base the same questions"
    return f"{text} Its scores were measured with aftertune{method}."


def _base_name(subject: Subject) -> str:
    assert subject.base is not None
    hub = base_on_hub(subject.base)
    return _link(hub, hub) if hub else md.text(fmt.visible(source_title(subject.base.source)))


def _link(name: str, path: str) -> str:
    return f"[{md.text(name)}](https://huggingface.co/{path})"


def _results(subject: Subject) -> list[str]:
    """A table for each evaluation, with notes on partial scores."""
    if not subject.evaluations:
        return ["## Results", "*Not evaluated yet.*"]
    blocks = ["## Results"]
    for evaluation in subject.evaluations:
        if len(subject.evaluations) > 1:
            blocks.append(f"### {md.text(fmt.visible(evaluation.name))} ({md.text(evaluation.id)})")
        blocks += [*score_blocks(evaluation), *_limits(evaluation)]
    return [*blocks, "± is one standard error. Intervals of proportions are Wilson intervals. Bold: primary metrics."]


def _limits(evaluation: Evaluation) -> list[str]:
    """Notes on scores that do not cover the whole benchmark."""
    names = list(dict.fromkeys(s.task for s in evaluation.scores))
    early = [n for n in names if evaluation.stopped(n)]
    partial = [n for n in names if n not in early and score_part(evaluation, n)]
    weighted = [t.task for t in evaluation.tasks if evaluation.drawn_unequally(t.task)]
    notes = ((early, "Stopped early: early estimates, not scores; the comparisons have valid intervals"),
             (weighted, "Without a score"),
             (partial, "Measured on a part of the items, not scores of the whole benchmark"))
    return [f"**{text}:** " + "; ".join(md.text(f"{task_title(n)} ({score_part(evaluation, n)})") for n in tasks) + "."
            for tasks, text in notes if tasks]


def _verdicts(subject: Subject) -> list[str]:
    """The sentences and tables of the comparisons, or a note that there are none."""
    if not subject.comparisons:
        return [] if subject.base is None else [
            "## Compared with its base", "*Not compared with its base: this card does not show what the model "
            "learned or forgot.*"]
    blocks = ["## Compared with its base" if subject.comparisons[0].lineage else "## Compared with other models"]
    sentences = observations(subject.comparisons)
    if sentences:
        blocks.append("\n".join(f"- **{o.lead}**: {md.text(o.text)}" for o in sentences))
    for comparison in subject.comparisons:
        blocks += [f"### {md.text(fmt.visible(comparison.tuned_name))} against "
                   f"{md.text(fmt.visible(comparison.base_name))}", *comparison_blocks(comparison, tables=False)]
    return [*blocks, "In each row both models answered the same items. A verdict is proven at the 5 % level after "
            "Holm's correction over the primary metrics. *worse*: a loss is proven, but not that it exceeds the "
            "margin. *no loss*: it is proven that no more than the margin was lost. *undecided*: nothing is proven."]


def _base(subject: Subject) -> list[str]:
    model = subject.base or subject.model
    if model is None:
        return []
    facts = [(k, fmt.visible(v, 600)) for k, v in model_facts(model) if v]
    return ["## Base model" if subject.base is not None else "## Model", md.facts(facts, CODE)]


def _training(subject: Subject) -> list[str]:
    """The data and the recipe of a fine-tune, without text of its examples."""
    if subject.tuning is None:
        return []
    tuning = replace(subject.tuning, overlap=tuple(replace(o, found=()) for o in subject.tuning.overlap))
    listed_elsewhere = {"Output", "Training Command", *dict(model_facts(tuning.base))}
    facts = [fact for fact in tuning_facts(tuning) if fact[0] not in listed_elsewhere]
    data = [fact for fact in facts if fact[0].startswith(("Training Data", "Data "))]
    recipe = [fact for fact in facts if fact not in data]
    return ["## Training data", md.facts(data, CODE), "## Method and recipe", md.facts(recipe, CODE)]


def _how(subject: Subject) -> list[str]:
    blocks = ["## How it was evaluated"] if subject.evaluations else []
    for evaluation in subject.evaluations:
        listed_elsewhere = {"Evaluation Command", "Batch Plan", *dict(model_facts(evaluation.model))} - {"Quantization"}
        facts: Facts = [fact for fact in evaluation_facts(evaluation, None) if fact[0] not in listed_elsewhere]
        blocks.append(md.facts(facts, CODE))
    return blocks


def _commands(subject: Subject) -> list[str]:
    """The commands that were run, in order, then the comparisons; paths are names only."""
    steps: list[Evaluation | Tuning] = [*subject.others, *subject.evaluations]
    steps += [subject.tuning] if subject.tuning is not None else []
    runs = sorted((s.provenance.started, s.provenance.command) for s in steps if s.provenance is not None)
    lines = list(dict.fromkeys(fmt.visible(command) for _, command in runs if command))
    if not lines:
        return []
    if not all(re.match(r"aftertune (run|demo)\b", line) for line in lines):  # these compare by themselves
        lines += [_compare(c) for c in subject.comparisons]
    return ["## Reproduce", "Paths are shortened to the names of files and folders.", md.block("\n".join(lines))]


def _compare(comparison: Comparison) -> str:
    rows = [r for r in comparison.rows if r.primary and r.margin is not None]
    shares = list(dict.fromkeys(100 * r.margin for r in rows if r.fraction and r.margin is not None))
    given = [f"{shares[0]:g}"] if len(shares) == 1 else []
    given += [f"{shlex.quote(fmt.visible(r.task))}={(100 if r.fraction else 1) * (r.margin or 0):g}" for r in rows
              if not r.fraction or len(shares) > 1]
    same = comparison.base_name == comparison.tuned_name
    sides = (comparison.base, comparison.tuned) if same else (comparison.base_name, comparison.tuned_name)
    names = " ".join(shlex.quote(fmt.visible(side)) for side in sides)
    margin = "".join(f" --margin {text}" for text in given)
    return f"aftertune compare {names}{margin}{' --common' if comparison.common else ''}"
