"""Loads lm-eval tasks: their settings, their items with content hashes, and the requests to a model.

    [hellaswag] = load((TaskSpec(name="hellaswag", sample=300),), LoadOptions())
    hellaswag.settings.n, len(hellaswag.requests)       300, 1200

    questions((TaskSpec(name="gsm8k_cot"),), LoadOptions())[0].texts
        ("Q: Janet's ducks lay 16 eggs …\\nA:", "Janet's ducks lay 16 eggs …", "Janet sells 16 - 3 - 4 = …")

Items that lm-eval would silently score wrongly raise a TaskError with their number: items without choices, with an
empty choice if a metric divides by its length, or with a right answer that is none of the choices.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aftertune import catalog
from aftertune.catalog import METRICS, MetricKey
from aftertune.errors import TaskError
from aftertune.sources import all_packs
from aftertune.sources.generation import check_settings
from aftertune.sources.hub import reachable
from aftertune.sources.limits import template_fault
from aftertune.study import TaskSpec
from aftertune.tasks import chance, data, lm_eval_index
from aftertune.tasks.data import LocalData
from aftertune.tasks.data_faults import columns_hint, data_fault
from aftertune.tasks.letters import letters_task
from aftertune.tasks.seeding import TaskRandomness, sample_indices, unchanged_randomness
from aftertune.tasks.targets import target_tasks
from aftertune.tasks.task_fields import LOADERS, refuse_generation_code
from aftertune.values import Asked, Item, Question, Request, TaskSettings, digest, json_ready

# --- The question text of an item ---

def question_of(task: Any, doc: Mapping[str, Any], index: int) -> Asked:
    """The question, choices and right answer of a document. Raises TaskError if the document cannot be scored."""
    if task.OUTPUT_TYPE == "multiple_choice" and getattr(task, "config", None) is not None:
        return _choice(task, doc, index)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Asked()
    target = task.doc_to_target(doc)
    if isinstance(target, int) and getattr(task.config, "doc_to_choice", None) is not None:
        target = task.doc_to_choice(doc)[target]
    references = target if isinstance(target, list | tuple) else [target]
    return Asked(question=str(task.doc_to_text(doc)), reference=" | ".join(map(str, references)).strip())


def _choice(task: Any, doc: Mapping[str, Any], index: int) -> Asked:
    choices = tuple(str(c) for c in task.doc_to_choice(doc))
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    question, answer = (target, text) if getattr(task, "multiple_input", 0) else (text, target)
    gold = tuple(_choice_index(g, choices) for g in (answer if isinstance(answer, list | tuple) else [answer]))
    name = task.config.task
    if not choices:
        raise _without_choices(name, index)
    metrics = [m.name for m in METRICS.values() if m.length and m.name in task.higher_is_better()]
    if "" in choices and metrics:
        raise TaskError(f"task {name!r}, item {index}: choice {choices.index('') + 1} of {len(choices)} is empty, but "
                        f"{metrics[0]} divides by its length; fix or remove this document")
    wrong = [g for g in gold if not 0 <= g < len(choices)]
    if (wrong or not gold) and task.config.process_results is None:
        raise TaskError(f"task {name!r}, item {index}: the right answer {answer!r} is none of its {len(choices)} "
                        f"choices (0 to {len(choices) - 1}); fix or remove this document")
    return Asked(question=str(question), choices=choices, gold=tuple(g for g in gold if g not in wrong))


def _without_choices(name: str, index: int) -> TaskError:
    return TaskError(f"task {name!r}, item {index}: the item has no choices; fix or remove this document")


def _choice_index(gold: Any, choices: tuple[str, ...]) -> int:
    """Index of the right choice; -1 if it is none of them."""
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else -1
    return int(gold) if isinstance(gold, int | float) else -1


# --- From names to loaded tasks ---

#: lm-eval's seed for drawing few-shot examples.
FEWSHOT_SEED = 1234
#: The filter whose metric is the primary one if a task with generated answers has it.
FLEXIBLE_FILTER = "flexible-extract"
_KINDS = {"loglikelihood": "score", "loglikelihood_rolling": "rolling", "generate_until": "generate"}

TemplateFunction = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """The options that decide the prompts, together with the task itself.

    template: renders chat messages; None if the model has no chat template.
    template_hash: sha256 of the template's text. template_date: the date that it writes, as YYYY-MM-DD.
    template_arguments: further variables of the template.
    source: "auto" uses the Hub if it can be reached, otherwise packs; "hub" and "pack" use only that.
    check_generation: refuse generation settings that have no effect in transformers.
    documents: by task, the processed documents to use in place of its data set.
    """

    apply_chat_template: bool = False
    template: TemplateFunction | None = None
    template_hash: str | None = None
    template_date: str | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    include_path: Path | None = None
    allow_task_code: bool = False
    source: str = "auto"
    check_generation: bool = True
    documents: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """A task that is ready to run.

    requests: in the order of ``items``.
    task: lm-eval's task object with its instances.
    positions: for each instance, the positions of its requests, one per repeat.
    groups: lm-eval's groups that the task belongs to, by name.
    """

    settings: TaskSettings
    items: tuple[Item, ...]
    requests: tuple[Request, ...]
    task: Any
    positions: tuple[tuple[int, ...], ...]
    groups: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_choice(self) -> float | None:
        """1 / requests of the first item, for multiple choice. It was once taken for the level of a guess and is part
        of the ids of evaluations, which must not change."""
        first = sum(r.item == self.requests[0].item for r in self.requests) if self.requests else 0
        return 1 / first if self.settings.output_type == "multiple_choice" and first else None


@unchanged_randomness()
def load(specs: Sequence[TaskSpec], options: LoadOptions, failed: dict[str, str] | None = None) -> list[LoadedTask]:
    """Load all tasks. The positions of their requests are numbered through all tasks.

    failed: gets the reason for each task that cannot be loaded, by name, and the others are returned. Without it, the
    first one raises TaskError: it has no data, or items that cannot be scored. A name that is unknown or given twice
    always raises.
    """
    start, loaded = 0, []
    incomplete: set[str] = set()
    for spec, task, label, groups in find_tasks(specs, options, failed):
        try:
            built = _build(spec, task, label, groups, options, start)
        except TaskError as error:
            if failed is None:
                raise
            failed[task.config.task] = str(error)
            incomplete |= groups.keys()
            continue
        start += len(built.requests)
        loaded.append(built)
    return [without_groups(task, incomplete) for task in loaded]


def without_groups(loaded: LoadedTask, names: Collection[str]) -> LoadedTask:
    """The task without these groups: a group has no score where one of its tasks failed."""
    if loaded.groups.keys().isdisjoint(names):
        return loaded
    groups = {name: group for name, group in loaded.groups.items() if name not in names}
    return replace(loaded, groups=groups, settings=replace(loaded.settings, groups=tuple(groups)))


def tasks_without(loaded: Sequence[LoadedTask], failed: Collection[str]) -> list[LoadedTask]:
    """The tasks without the failed ones, with the positions that they have where only they are loaded."""
    incomplete = {name for task in loaded if task.settings.task in failed for name in task.groups}
    result, start = [], 0
    for task in [without_groups(t, incomplete) for t in loaded if t.settings.task not in failed]:
        shift = start - task.requests[0].position
        result.append(task if not shift else replace(
            task, requests=tuple(replace(r, position=r.position + shift, item=r.item + shift) for r in task.requests),
            positions=tuple(tuple(p + shift for p in positions) for positions in task.positions)))
        start += len(task.requests)
    return result


def find_tasks(specs: Sequence[TaskSpec], options: LoadOptions, failed: dict[str, str] | None = None
               ) -> list[tuple[TaskSpec, Any, str, dict[str, Any]]]:
    """lm-eval's task objects for the names: (spec, task, origin of its documents, its groups) of each.

    failed: as in `load`. Raises TaskError if a task is unknown, named twice, or without data.
    """
    lm_eval_index.hide_warnings()  # before a target task is made, which needs no manager
    manager = None
    rows: list[tuple[TaskSpec, Any, str, dict[str, Any]]] = []
    names: list[tuple[TaskSpec, str]] = []
    for spec in specs:
        if spec.target is not None:
            names.append((spec, spec.name))
            continue
        manager = manager or lm_eval_index.manager(options.include_path, allow_code=options.allow_task_code)
        names += [(spec, name) for name in lm_eval_index.expand(manager, spec.name)]
    for spec, name in names:
        try:
            rows += _leaf_tasks(manager, name, spec, options) if spec.target is None else _target_rows(spec, options)
        except TaskError as error:
            if failed is None:
                raise
            failed[name] = str(error)
    _check_unique([task.config.task for _, task, _, _ in rows])
    return rows


def _check_unique(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TaskError(f"task {name!r} is named twice, perhaps through a group; name it once")
        seen.add(name)


def _target_rows(spec: TaskSpec, options: LoadOptions) -> list[tuple[TaskSpec, Any, str, dict[str, Any]]]:
    """The rows of `find_tasks` for a target task: one, or one for each slice."""
    assert spec.target is not None
    found, groups = target_tasks(spec, allow_code=options.allow_task_code)
    return [(spec, task, f"file:{spec.target.file.name}", groups) for task in found]


def _leaf_tasks(manager: Any, name: str, spec: TaskSpec, options: LoadOptions
                ) -> list[tuple[TaskSpec, Any, str, dict[str, Any]]]:
    """The rows of `find_tasks` for one name in the index: a task, or all tasks of a group."""
    sources = _local_sources(manager, name, spec, options)
    config = lm_eval_index.config(manager, name)
    if config.get("unsafe_code"):
        raise _unsafe(name)
    if not reachable():
        _stay_offline()
    try:
        if sources is not None:
            lm_eval_index.set_task_class(manager, list(sources), data.local_task(sources))
        with hide_progress():
            loaded = manager.load([name])
        groups = loaded.get("groups", {})
        rows = [_row(spec, task_name, task, sources or {}, groups) for task_name, task in loaded["tasks"].items()]
        return [_by_letter(row) for row in rows] if spec.letters else rows
    except TaskError:
        raise
    except Exception as error:  # lm-eval, datasets and the code of tasks raise many types of errors here
        raise _unavailable(name, error, config) from error


def _row(spec: TaskSpec, name: str, task: Any, sources: Mapping[str, LocalData], groups: Mapping[str, Any]
         ) -> tuple[TaskSpec, Any, str, dict[str, Any]]:
    """The row of `find_tasks` for a task. Raises TaskError if it runs code or needs more than text."""
    if getattr(task, "UNSAFE_CODE", False):
        raise _unsafe(name)
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name!r} needs images or sound; choose a text task")
    label = sources[name].label if name in sources else f"hub:{task.config.dataset_path}"
    return spec, task, label, {n: g for n, g in groups.items() if any(t is task for t in g.get_all_tasks())}


def _by_letter(row: tuple[TaskSpec, Any, str, dict[str, Any]]) -> tuple[TaskSpec, Any, str, dict[str, Any]]:
    """The row with its task asked by letter. It belongs to no group, whose score has another meaning."""
    spec, task, label, _ = row
    with (getattr(task, "randomness", None) or TaskRandomness()).running():
        return spec, letters_task(task, _choice), label, {}


def _unsafe(name: str) -> TaskError:
    return TaskError(f"task {name!r} runs the model's answers as code, which aftertune never does; choose another task")


def _local_sources(manager: Any, name: str, spec: TaskSpec, options: LoadOptions) -> dict[str, LocalData] | None:
    """Local documents of the tasks that ``name`` stands for, by task name; None if they come from the Hub."""
    if name in options.documents:
        return {name: data.stored_data(options.documents[name], lm_eval_index.config(manager, name))}
    if spec.data is not None:
        return {name: data.file_data(name, spec.data, lm_eval_index.config(manager, name))}
    if data.choose_source(name, options.source) == "pack":
        return {n: file for n in catalog.leaves(name) if (file := data.pack_data(n)) is not None}
    if options.source == "pack":
        raise TaskError(f"task {name!r}: no installed pack has its data; installed packs have: "
                        f"{_benchmark_list(data.covered_benchmarks())}")
    return None


def _stay_offline() -> None:
    """Stop the libraries from trying to reach the Hub again and again; they still read their caches."""
    import datasets.config
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True


@contextlib.contextmanager
def hide_progress() -> Iterator[None]:
    """Hide what lm-eval and datasets print to stderr inside this block; their errors are raised as usual."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _benchmark_list(names: list[str]) -> str:
    """The names in one phrase, with a count instead of the members of a family."""
    families = [family for n in names if (family := catalog.BENCHMARKS[n].family)]
    short = ", ".join(n for n in names if not catalog.BENCHMARKS[n].family)
    subjects = "".join(f" and {families.count(f)} {f}_* subjects" for f in dict.fromkeys(families))
    return short + subjects or f"nothing (install with `{all_packs()[0].install}`)"


def _unavailable(name: str, error: Exception, config: Mapping[str, Any]) -> TaskError:
    """The error for a task whose data cannot be loaded, with the reason in one line. config: of its file."""
    fault = data_fault(config, error)
    if fault is not None:
        return TaskError(f"task {name!r} cannot be loaded: {fault}")
    text = template_fault(error) + columns_hint(config, error)
    hint = ""
    if config.get("dataset_path") not in LOADERS and not reachable():
        hint = f"; the Hub cannot be reached, and installed packs have: {_benchmark_list(data.covered_benchmarks())}"
        row = catalog.BENCHMARKS.get(name)
        if row and row.pack and row.pack.lacks:
            hint += f"; {name} needs a {row.pack.lacks} file for its examples: --task-data {name}=FILE"
        if "data_files" in (config.get("dataset_kwargs") or {}):
            hint = f"; for local files, set dataset_path to one of {', '.join(LOADERS)}"
    return TaskError(f"task {name!r} cannot be loaded: {text}{hint}")


def _build(spec: TaskSpec, task: Any, label: str, groups: dict[str, Any], options: LoadOptions, start: int
           ) -> LoadedTask:
    """Apply the few-shot count, generation settings and template to a task, and build its items and requests.

    start: position of the first request. Raises TaskError, whatever the task raises.
    """
    randomness = getattr(task, "randomness", None) or TaskRandomness()
    try:
        with hide_progress(), randomness.running():
            return _built(spec, task, label, groups, options, start)
    except TaskError:
        raise
    except Exception as error:  # lm-eval and the code of tasks raise many types of errors here
        raise _prompt_error(task, error) from error


def _built(spec: TaskSpec, task: Any, label: str, groups: dict[str, Any], options: LoadOptions, start: int
           ) -> LoadedTask:
    name = task.config.task
    chat = options.apply_chat_template if spec.apply_chat_template is None else spec.apply_chat_template
    if chat and options.template is None:
        raise TaskError(f"task {name!r} uses the chat template, but the model's tokenizer has none; "
                        "set apply_chat_template to false")
    generation = {**options.gen_kwargs, **spec.gen_kwargs}
    if task.OUTPUT_TYPE == "generate_until" and generation:
        task.set_config(key="generation_kwargs", value=generation, update=True)
        if options.check_generation:
            check_settings(generation, task.config.generation_kwargs, name)
    refuse_generation_code(task.get_config("generation_kwargs") or {}, name)
    default = task.get_config("num_fewshot")  # as in lm-eval, a 0 in the task's YAML is not changed
    if spec.num_fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=spec.num_fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    multiturn = options.fewshot_as_multiturn or (chat and spec.target is not None)
    documents = getattr(task, "task_docs", None)  # reading eval_docs again can shuffle again
    total = len(task.eval_docs if documents is None else documents)
    chosen = _chosen(task, spec, total)
    task.build_all_requests(
        limit=spec.limit if chosen is None else None, samples=chosen, rank=0, world_size=1, cache_requests=False,
        system_instruction=options.system_instruction, apply_chat_template=chat,
        fewshot_as_multiturn=multiturn, chat_template=options.template if chat else None)
    order = sorted(chosen) if chosen is not None else None
    _check_complete(task, name, order or range(min(spec.limit or total, total)))
    cluster_field = spec.target.cluster if spec.target else catalog.cluster_field(name)
    items, requests, positions = _requests(task, cluster_field, order, start)
    settings = _settings(spec, task, label, tuple(groups), items, requests, total) | {"cluster": cluster_field}
    if chat:
        settings = settings | {"chat_template": options.template_hash, "template_date": options.template_date,
                               "template_arguments": options.template_arguments}
    settings |= {"system_instruction": options.system_instruction, "fewshot_as_multiturn": multiturn,
                 "code": getattr(task, "code", {}), "scorers": getattr(task, "scorers", ())}
    return LoadedTask(settings=TaskSettings(**settings), items=items, requests=requests, task=task,
                      positions=positions, groups=groups)


def build_task(spec: TaskSpec, task: Any, options: LoadOptions) -> LoadedTask:
    """A task that was made from rows, ready to run."""
    return _build(spec, task, "stored", {}, options, 0)


def _prompt_error(task: Any, error: Exception) -> TaskError:
    """The error for prompts that cannot be built; the usual reason is that there are too few examples."""
    name, wanted = task.config.task, int(task.get_config("num_fewshot") or 0)
    pool = len(getattr(getattr(task, "sampler", None), "df", None) or ())
    split = getattr(getattr(task, "fewshot_cfg", None), "split", None)
    from_scored = split is not None and split == task.config.test_split
    if wanted > pool - from_scored:
        itself = ", including the question itself" if from_scored else ""
        return TaskError(f"task {name!r}: num_fewshot is {wanted}, but there are {pool} examples to draw from{itself}; "
                         f"use {max(pool - from_scored, 0)} at most (--num-fewshot)")
    config = {key: getattr(task.config, key, None) for key in ("dataset_path", "dataset_name", "dataset_kwargs")}
    return TaskError(f"task {name!r}: its prompts cannot be built: {template_fault(error)}"
                     f"{columns_hint(config, error)}; fix the task file or its data")


def _check_complete(task: Any, name: str, indices: Sequence[int]) -> None:
    """Raise TaskError if an item has no requests: lm-eval silently skips items without choices."""
    doc_ids = {instance.doc_id for instance in task.instances}
    for doc_id, index in enumerate(indices):
        if doc_id not in doc_ids:
            raise _without_choices(name, index)


def _chosen(task: Any, spec: TaskSpec, total: int) -> set[int] | None:
    """Indices of the items that are asked where they are not the first ones; None where they are, or for all items.

    The items of a slice were chosen from the whole file.
    """
    chosen = getattr(task, "chosen", None)
    if chosen is None:
        return sample_indices(total, spec)
    return None if len(chosen) == total else set(chosen)


def _requests(task: Any, cluster_field: str | None, order: list[int] | None, start: int
              ) -> tuple[tuple[Item, ...], tuple[Request, ...], tuple[tuple[int, ...], ...]]:
    """Items, requests and the request positions of each instance. order: item index of each doc_id; None if equal."""
    items: dict[int, Item] = {}
    requests: list[Request] = []
    positions = []
    for instance in task.instances:
        doc_id = instance.doc_id
        if doc_id not in items:
            doc = json_ready(dict(instance.doc))
            items[doc_id] = Item(task=task.config.task, index=order[doc_id] if order else doc_id, hash=digest(doc),
                                 doc=doc, cluster=catalog.cluster_label(cluster_field, doc),
                                 asked=question_of(task, instance.doc, order[doc_id] if order else doc_id))
        repeats = []
        for _ in range(instance.repeats or 1):
            repeats.append(start + len(requests))
            requests.append(_request(instance, repeats[-1], start + len(items) - 1))
        positions.append(tuple(repeats))
    return tuple(items.values()), tuple(requests), tuple(positions)


def _request(instance: Any, position: int, item: int) -> Request:
    kind, args = _KINDS[instance.request_type], instance.args
    texts = args[:1] if kind in ("generate", "rolling") else args[:2]
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise TaskError(f"task {instance.task_name!r}: a prompt or an answer of document {instance.doc_id} is "
                        f"{type(wrong).__name__}, not text; write doc_to_text and doc_to_target as templates")
    if kind == "rolling":
        return Request(position=position, kind="rolling", context="", continuation=args[0], item=item)
    if kind == "generate":
        return Request(position=position, kind="generate", context=args[0], generation=args[1], item=item)
    return Request(position=position, kind="score", context=args[0], continuation=args[1], item=item)


def _settings(spec: TaskSpec, task: Any, label: str, groups: tuple[str, ...], items: tuple[Item, ...],
              requests: tuple[Request, ...], total: int) -> dict[str, Any]:
    name, config = task.config.task, task.config
    generates = task.OUTPUT_TYPE == "generate_until"
    generation = json_ready(dict(config.generation_kwargs or {})) if generates else {}
    better = {str(k): bool(v) for k, v in task.higher_is_better().items()}
    partial = len(items) < total
    return {
        "task": name, "version": str(task.VERSION), "output_type": str(task.OUTPUT_TYPE),
        "num_fewshot": int(task.get_config("num_fewshot") or 0), "n": len(items), "n_total": total,
        "split": config.test_split if task.has_test_docs() else config.validation_split, "data": label,
        "items": digest([i.hash for i in items]),
        "prompts": digest([[r.context, r.continuation] for r in requests]),
        "primary": primary_metric(better if spec.target is None else dict(list(better.items())[:1]),
                                  [f.name for f in task._filters], task.OUTPUT_TYPE),
        "higher_is_better": better, "generation": generation,
        "limit": spec.limit if partial and spec.limit else None,
        "sample": spec.sample if partial and spec.sample else None,
        "sample_seed": spec.sample_seed if partial and spec.sample else None,
        "chance": _chance(task, items, requests),
        "groups": groups, "target": spec.target is not None,
    }


def _chance(task: Any, items: Sequence[Item], requests: Sequence[Request]) -> float | None:
    """The expected score of a guess, the mean over the items; None where answers cannot be guessed."""
    name, levels = task.config.task, []
    prompts: dict[int, list[tuple[str, str]]] = {}
    for request in requests:
        prompts.setdefault(request.item, []).append((request.context, request.continuation))
    for item, asked_prompts in zip(items, prompts.values(), strict=True):
        asked = item.asked or Asked()
        if task.OUTPUT_TYPE == "multiple_choice":
            levels.append(chance.guess(asked.choices, asked.gold) if asked.choices else chance.request_guess(
                asked_prompts, mutual_info="acc_mutual_info" in task.higher_is_better()))
        elif task.OUTPUT_TYPE == "generate_until":
            levels.append(chance.guess(_listed_choices(task, item)) or
                          chance.generated_guess(name, item.doc, asked.question, asked.reference))
    return chance.task_chance(name, levels) if levels else None


def _listed_choices(task: Any, item: Item) -> tuple[str, ...]:
    """The choices of a task that generates one of them; () where its task file lists none."""
    if getattr(task.config, "doc_to_choice", None) is None:
        return ()
    return tuple(map(str, task.doc_to_choice(dict(item.doc))))


def primary_metric(metrics: Mapping[str, bool], filters: Sequence[str], output_type: str) -> MetricKey:
    """The ``metric,filter`` that gets the verdict.

    metric: acc_norm, else acc; exact_match for generated answers; bits_per_byte for rolling tasks; else the first.
    filter: flexible-extract for generated answers if the task has it; else the first.
    """
    name = next((m for m in catalog.PRIMARY if m in metrics), next(iter(metrics)))
    flexible = output_type == "generate_until" and FLEXIBLE_FILTER in filters
    return MetricKey.of(name, FLEXIBLE_FILTER if flexible else filters[0])


# --- Some items of loaded tasks, and the texts of all items ---

def subset_tasks(loaded: Sequence[LoadedTask], chosen: Mapping[str, Collection[int]]) -> list[LoadedTask]:
    """The tasks with only the chosen items, in their order; tasks without a chosen item are left out.

    chosen: task name -> indices into its ``items``.
    Requests keep their positions. The settings remain those of the complete task, from which the items were drawn.
    """
    return [_subset(task, set(indices)) for task in loaded if (indices := chosen.get(task.settings.task))]


def part_of_task(loaded: LoadedTask, indices: Collection[int], name: str) -> LoadedTask:
    """The task with only the items at these indices, as a task of its own: its settings describe these items alone.

    name: of the part, in the settings.
    """
    part = _subset(loaded, set(indices))
    return replace(part, settings=replace(
        part.settings, n=len(part.items), part=name, items=digest([i.hash for i in part.items]),
        prompts=digest([[r.context, r.continuation] for r in part.requests])))


def _subset(loaded: LoadedTask, indices: set[int]) -> LoadedTask:
    if len(indices) == len(loaded.items):
        return loaded
    index_of: dict[int, int] = {}  # lm-eval's doc_id -> index of the item
    pairs = [(i, p) for i, p in zip(loaded.task.instances, loaded.positions, strict=True)
             if index_of.setdefault(i.doc_id, len(index_of)) in indices]
    task = copy.copy(loaded.task)
    task._instances = [i for i, _ in pairs]
    kept_positions = {position for _, positions in pairs for position in positions}
    return replace(loaded, items=tuple(item for index, item in enumerate(loaded.items) if index in indices), task=task,
                   requests=tuple(r for r in loaded.requests if r.position in kept_positions),
                   positions=tuple(p for _, p in pairs))


#: A text of a document with fewer words is a label or a choice, not a question.
MIN_WORDS = 8


def questions(specs: Sequence[TaskSpec], options: LoadOptions) -> list[Question]:
    """The texts of the items that an evaluation of the same specs would use, to search training data for them.

    Prompts with few-shot examples are not built. Raises TaskError for a task that cannot be loaded.
    """
    rows = []
    for spec, task, _, _ in find_tasks(specs, options):
        documents = getattr(task, "task_docs", None)
        with hide_progress():
            docs = task.eval_docs if documents is None else documents
        chosen = _chosen(task, spec, len(docs))
        indices = sorted(chosen) if chosen is not None else range(min(spec.limit or len(docs), len(docs)))
        for index in indices:
            doc = json_ready(dict(docs[index]))
            rows.append(Question(task=task.config.task, index=index, hash=digest(doc), texts=_texts(task, doc)))
    return rows


def _texts(task: Any, doc: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompt without examples, and the document's texts of at least MIN_WORDS words."""
    prompt = task.doc_to_text(doc)
    texts = [prompt] if isinstance(prompt, str) else []  # some tasks return the index of a choice
    texts += [text for text in doc.values() if isinstance(text, str) and len(text.split()) >= MIN_WORDS]
    return tuple(dict.fromkeys(text for text in texts if text.strip()))
