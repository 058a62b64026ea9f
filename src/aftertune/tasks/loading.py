"""Owns what the items of tasks ask, as text: what is looked for in training data.

    questions((TaskSpec(name="gsm8k_cot"),), LoadOptions())[0].texts
        ("Q: Janet's ducks lay 16 eggs …\\nA:", "Janet's ducks lay 16 eggs …", "Janet sells 16 - 3 - 4 = …")

The items are those that an evaluation of the same specification asks; no prompts with examples are built.

What was asked, as people read it: owns the question, the choices and the right answer of a document.

    asked(task, doc, 12)      Asked(question="Which gas …?", choices=("oxygen", …), gold=(2,))

Items that lm-eval would score wrongly without a word are refused here, by number: no choices, an empty choice where a
metric divides by its length, and a right answer that is none of the choices.

Names in, tasks out: each with its resolved settings, its items by content hash, and its requests.

    [hellaswag] = load((TaskSpec(name="hellaswag", sample=300),), LoadOptions())
    hellaswag.settings.n, len(hellaswag.requests)       300, 1200

Some items of loaded tasks: what is asked in one stage of an evaluation, or was asked before it was stopped.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aftertune import catalog
from aftertune.catalog import METRICS, MetricKey
from aftertune.errors import TaskError
from aftertune.sources import packs
from aftertune.sources.hub import reachable
from aftertune.study import TaskSpec
from aftertune.tasks import data, lm_eval_index
from aftertune.tasks.data import LocalData
from aftertune.values import Asked, Item, Question, Request, TaskSettings, digest, json_ready


def question_of(task: Any, doc: Mapping[str, Any], index: int) -> Asked:
    """The document as it was put to a model. Raises TaskError for one that cannot be scored."""
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
    question, right = (target, text) if getattr(task, "multiple_input", 0) else (text, target)
    gold = tuple(_number(g, choices) for g in (right if isinstance(right, list | tuple) else [right]))
    name = task.config.task
    if not choices:
        raise TaskError(f"task {name!r}, item {index}: it has no choices; mend or leave out this document")
    metrics = [m.name for m in METRICS.values() if m.length and m.name in task.higher_is_better()]
    if "" in choices and metrics:
        raise TaskError(f"task {name!r}, item {index}: choice {choices.index('') + 1} of {len(choices)} is empty, and "
                        f"{metrics[0]} divides by its length; mend or leave out this document")
    wrong = [g for g in gold if not 0 <= g < len(choices)]
    if (wrong or not gold) and task.config.process_results is None:
        raise TaskError(f"task {name!r}, item {index}: the right answer {right!r} is none of its {len(choices)} "
                        f"choices (0 to {len(choices) - 1}); mend or leave out this document")
    return Asked(question=str(question), choices=choices, gold=tuple(g for g in gold if g not in wrong))


def _number(gold: Any, choices: tuple[str, ...]) -> int:
    """Number of the right choice, -1 where it is none of them."""
    if isinstance(gold, str):
        return choices.index(gold) if gold in choices else -1
    return int(gold) if isinstance(gold, int | float) else -1


#: lm-eval's seed of the few-shot samplers.
FEWSHOT_SEED = 1234
#: The filter of generated answers that carries the verdict where a task has it.
FLEXIBLE = "flexible-extract"
_KINDS = {"loglikelihood": "score", "loglikelihood_rolling": "rolling", "generate_until": "generate"}

TemplateFunction = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What decides the prompts beside the task itself.

    template: renders chat messages (None where the model has none); template_hash: its identity. source:
    "auto" takes the Hub where it is reachable and packs otherwise; "hub" and "pack" insist.
    """

    apply_chat_template: bool = False
    template: TemplateFunction | None = None
    template_hash: str | None = None
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = False
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    include_path: Path | None = None
    allow_task_code: bool = False
    source: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """One task ready to run. requests: in order of items; instances: lm-eval's, parallel to ``positions``
    (the request positions of each instance, one per repeat). group: lm-eval groups to aggregate, by name."""

    settings: TaskSettings
    items: tuple[Item, ...]
    requests: tuple[Request, ...]
    task: Any
    positions: tuple[tuple[int, ...], ...]
    groups: Mapping[str, Any] = field(default_factory=dict)


def load(specs: Sequence[TaskSpec], options: LoadOptions) -> list[LoadedTask]:
    """Load every task; nothing is run if any of them cannot be. Positions run through all of them."""
    start, loaded = 0, []
    for spec, task, label, groups in find(specs, options):
        one = _build(spec, task, label, groups, options, start)
        start += len(one.requests)
        loaded.append(one)
    return loaded


def find(specs: Sequence[TaskSpec], options: LoadOptions) -> list[tuple[TaskSpec, Any, str, dict[str, Any]]]:
    """lm-eval's task objects behind the names, each with where its documents come from and its groups. Raises TaskError
    for one that is unknown, asked for twice, or without data."""
    made = None
    found: list[tuple[TaskSpec, Any, str, dict[str, Any]]] = []
    for spec in specs:
        if spec.target is not None:
            found.append((spec, _target(spec), f"file:{spec.target.file.name}", {}))
            continue
        made = made or lm_eval_index.manager(options.include_path, allow_code=options.allow_task_code)
        for name in lm_eval_index.expand(made, spec.name):
            found += _lm_eval(made, name, spec, options)
    _check_unique([task.config.task for _, task, _, _ in found])
    return found


def _check_unique(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TaskError(f"task {name!r} is asked for twice (perhaps through a group); name it once")
        seen.add(name)


def _target(spec: TaskSpec) -> Any:
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(config=data.target_config(spec))


def _lm_eval(made: Any, name: str, spec: TaskSpec, options: LoadOptions
             ) -> list[tuple[TaskSpec, Any, str, dict[str, Any]]]:
    """The leaf tasks behind an index name, with where their documents come from."""
    sources = _sources(made, name, spec, options)
    if lm_eval_index.config(made, name, resolve=False).get("unsafe_code"):
        raise TaskError(f"task {name!r} runs the model's answers as code; aftertune never does")
    if not reachable():
        _stay_offline()
    try:
        if sources is not None:
            lm_eval_index.localise(made, list(sources), data.local_task(sources))
        with silent():
            loaded = made.load([name])
    except TaskError:
        raise
    except Exception as error:  # lm-eval and datasets raise many kinds here
        raise _unavailable(name, error) from error
    groups = loaded.get("groups", {})
    rows = []
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise TaskError(f"task {task_name!r} runs the model's answers as code; aftertune never does")
        if getattr(task, "MULTIMODAL", False):
            raise TaskError(f"task {task_name!r} needs images or sound; only text tasks can be evaluated")
        source = (sources or {}).get(task_name)
        label = source.label if source else f"hub:{task.config.dataset_path}"
        own = {n: g for n, g in groups.items() if any(t is task for t in g.get_all_tasks())}
        rows.append((spec, task, label, own))
    return rows


def _sources(made: Any, name: str, spec: TaskSpec, options: LoadOptions) -> dict[str, LocalData] | None:
    """Local documents for the tasks behind ``name``; None where the Hub is to be asked."""
    if spec.data is not None:
        return {name: data.file_data(name, spec.data, lm_eval_index.config(made, name, resolve=False))}
    if data.asked_from(name, options.source) == "pack":
        return {n: file for n in catalog.leaves(name) if (file := data.pack_data(n)) is not None}
    if options.source == "pack":
        raise TaskError(f"task {name!r}: no installed pack has its data; packs cover {_shown(data.covered())}")
    return None


def _stay_offline() -> None:
    """Keep the libraries from asking an unreachable Hub again and again; their caches still serve."""
    import datasets.config
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No progress bars of lm-eval and datasets meanwhile; errors are raised, so nothing is lost."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _shown(names: list[str]) -> str:
    families = [family for n in names if (family := catalog.BENCHMARKS[n].family)]
    short = ", ".join(n for n in names if not catalog.BENCHMARKS[n].family)
    subjects = "".join(f" and {families.count(f)} {f}_* subjects" for f in dict.fromkeys(families))
    return short + subjects or f"nothing here: {packs()[0].install}"


def _unavailable(name: str, error: Exception) -> TaskError:
    """Why a task's data cannot be had, in one line."""
    text = " ".join(str(error).split())[:240]
    hint = ""
    if not reachable():
        hint = f"; the Hub is not reached, and offline packs cover {_shown(data.covered())}"
        row = catalog.BENCHMARKS.get(name)
        if row and row.pack and row.pack.lacks:
            hint += f"; {name} needs a {row.pack.lacks} file for its examples: --task-data {name}=FILE"
    return TaskError(f"task {name!r} cannot be loaded: {type(error).__name__}: {text}{hint}")


def _build(spec: TaskSpec, task: Any, label: str, groups: dict[str, Any], options: LoadOptions, start: int
           ) -> LoadedTask:
    """Few-shot count, generation settings and template applied; items and requests made."""
    name = task.config.task
    chat = options.apply_chat_template if spec.apply_chat_template is None else spec.apply_chat_template
    if chat and options.template is None:
        raise TaskError(f"task {name!r} asks for the chat template, but the model's tokenizer has none; "
                        "set apply_chat_template to false")
    generation = {**options.gen_kwargs, **spec.gen_kwargs}
    if task.OUTPUT_TYPE == "generate_until" and generation:
        task.set_config(key="generation_kwargs", value=generation, update=True)
    default = task.get_config("num_fewshot")  # a zero set by the task's author stays, as in lm-eval
    if spec.num_fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=spec.num_fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    multiturn = options.fewshot_as_multiturn or (chat and spec.target is not None)
    with silent():
        total = len(task.eval_docs)
    chosen = sample(total, spec)
    try:
        with silent():
            task.build_all_requests(
                limit=spec.limit, samples=chosen, rank=0, world_size=1, cache_requests=False,
                system_instruction=options.system_instruction, apply_chat_template=chat,
                fewshot_as_multiturn=multiturn, chat_template=options.template if chat else None)
    except (AssertionError, ValueError, IndexError, KeyError) as error:
        raise _unbuildable(task, error) from error
    order = sorted(chosen) if chosen is not None else None
    _check_complete(task, name, order or range(min(spec.limit or total, total)))
    items, requests, positions = _requests(task, name, order, start)
    settings = _settings(spec, task, label, tuple(groups), items, requests, total)
    if chat:
        settings = settings | {"chat_template": options.template_hash}
    settings |= {"system_instruction": options.system_instruction, "fewshot_as_multiturn": multiturn}
    return LoadedTask(settings=TaskSettings(**settings), items=items, requests=requests, task=task,
                      positions=positions, groups=groups)


def _unbuildable(task: Any, error: Exception) -> TaskError:
    """Why a task's prompts cannot be built, in one line: most often there are too few examples."""
    name, wanted = task.config.task, int(task.get_config("num_fewshot") or 0)
    pool = len(getattr(getattr(task, "sampler", None), "df", None) or ())
    split = getattr(getattr(task, "fewshot_cfg", None), "split", None)
    own = split is not None and split == task.config.test_split
    if wanted > pool - own:
        itself = ", the question itself among them" if own else ""
        return TaskError(f"task {name!r}: {wanted} examples are asked for, but there are {pool} to draw from{itself}; "
                         f"ask for {max(pool - own, 0)} at most (--num-fewshot)")
    return TaskError(f"task {name!r}: its prompts cannot be built: {' '.join(str(error).split())[:240]}")


def _check_complete(task: Any, name: str, indices: Sequence[int]) -> None:
    """TaskError where an item is asked nothing at all: lm-eval leaves out one without choices, and says nothing."""
    asked_of = {instance.doc_id for instance in task.instances}
    for place, number in enumerate(indices):
        if place not in asked_of:
            raise TaskError(f"task {name!r}, item {number}: it has no choices; mend or leave out this document")


def sample(total: int, spec: TaskSpec) -> set[int] | None:
    """Indices of a seeded random sample, or None for all items (or the first ``limit``)."""
    if spec.sample is None or spec.sample >= total:
        return None
    return set(random.Random(spec.sample_seed).sample(range(total), spec.sample))


def _requests(task: Any, name: str, order: list[int] | None, start: int
              ) -> tuple[tuple[Item, ...], tuple[Request, ...], tuple[tuple[int, ...], ...]]:
    items: dict[int, Item] = {}
    requests: list[Request] = []
    positions = []
    field_name = catalog.cluster_field(name)
    for instance in task.instances:
        doc_id = instance.doc_id
        if doc_id not in items:
            doc = json_ready(dict(instance.doc))
            cluster = doc.get(field_name) if field_name else None
            items[doc_id] = Item(task=name, index=order[doc_id] if order else doc_id, hash=digest(doc),
                                 doc=doc, cluster=None if cluster is None else str(cluster),
                                 asked=question_of(task, instance.doc, order[doc_id] if order else doc_id))
        repeats = []
        for _ in range(instance.repeats or 1):
            repeats.append(start + len(requests))
            requests.append(_request(instance, repeats[-1], start + len(items) - 1))
        positions.append(tuple(repeats))
    return tuple(items.values()), tuple(requests), tuple(positions)


def _request(instance: Any, position: int, item: int) -> Request:
    kind, args = _KINDS[instance.request_type], instance.args
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
    choices = [sum(1 for r in requests if r.item == requests[0].item)] if requests else []
    return {
        "task": name, "version": str(task.VERSION), "output_type": str(task.OUTPUT_TYPE),
        "num_fewshot": int(task.get_config("num_fewshot") or 0), "n": len(items), "n_total": total,
        "split": config.test_split if task.has_test_docs() else config.validation_split, "data": label,
        "items": digest([i.hash for i in items]),
        "prompts": digest([[r.context, r.continuation] for r in requests]),
        "primary": primary(better, [f.name for f in task._filters], task.OUTPUT_TYPE),
        "higher_is_better": better, "generation": generation,
        "limit": spec.limit if partial and spec.limit else None,
        "sample": spec.sample if partial and spec.sample else None,
        "sample_seed": spec.sample_seed if partial and spec.sample else None,
        "chance": 1 / choices[0] if task.OUTPUT_TYPE == "multiple_choice" and choices else None,
        "cluster": catalog.cluster_field(name), "groups": groups, "target": spec.target is not None,
    }


def primary(metrics: Mapping[str, bool], filters: Sequence[str], output_type: str) -> MetricKey:
    """``metric,filter`` that carries the verdict: acc_norm, else acc; for generated answers exact_match with
    flexible-extract, else the first filter; bits_per_byte for rolling tasks; else the first metric."""
    name = next((m for m in catalog.PRIMARY if m in metrics), next(iter(metrics)))
    flexible = output_type == "generate_until" and FLEXIBLE in filters
    return MetricKey.of(name, FLEXIBLE if flexible else filters[0])


def subset_tasks(loaded: Sequence[LoadedTask], chosen: Mapping[str, Collection[int]]) -> list[LoadedTask]:
    """The tasks with only these of their items (places in ``items``), in their own order; none without an item.

    Requests keep their positions. The settings stay those of the whole: they say what the items were drawn from.
    """
    return [_part(one, set(places)) for one in loaded if (places := chosen.get(one.settings.task))]


def _part(one: LoadedTask, places: set[int]) -> LoadedTask:
    if len(places) == len(one.items):
        return one
    number: dict[int, int] = {}  # lm-eval's doc_id -> place of the item
    pairs = [(i, p) for i, p in zip(one.task.instances, one.positions, strict=True)
             if number.setdefault(i.doc_id, len(number)) in places]
    task = copy.copy(one.task)
    task._instances = [i for i, _ in pairs]
    asked = {position for _, positions in pairs for position in positions}
    return replace(one, items=tuple(item for place, item in enumerate(one.items) if place in places), task=task,
                   requests=tuple(r for r in one.requests if r.position in asked),
                   positions=tuple(p for _, p in pairs))


#: A document's text of fewer words is a label or a choice, not a question.
WORDS = 8


def questions(specs: Sequence[TaskSpec], options: LoadOptions) -> list[Question]:
    """Every item of the tasks. Raises TaskError for a task that cannot be loaded."""
    found = []
    for spec, task, _, _ in find(specs, options):
        with silent():
            docs = task.eval_docs
        chosen = sample(len(docs), spec)
        places = sorted(chosen) if chosen is not None else range(min(spec.limit or len(docs), len(docs)))
        for place in places:
            doc = json_ready(dict(docs[place]))
            found.append(Question(task=task.config.task, index=place, hash=digest(doc), texts=_texts(task, doc)))
    return found


def _texts(task: Any, doc: Mapping[str, Any]) -> tuple[str, ...]:
    prompt = task.doc_to_text(doc)
    texts = [prompt] if isinstance(prompt, str) else []  # some tasks give the number of a choice
    texts += [text for text in doc.values() if isinstance(text, str) and len(text.split()) >= WORDS]
    return tuple(dict.fromkeys(text for text in texts if text.strip()))
