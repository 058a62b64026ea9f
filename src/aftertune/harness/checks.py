"""Refuses settings that would have no effect on the tasks of an evaluation, before anything starts.

    defaults = model_defaults(model, loaded)       fields of generation_config.json that change these tasks' texts
    check_tasks(spec, model, loaded, defaults)     raises InputError in one line
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aftertune.errors import InputError
from aftertune.harness.evaluated import EvaluatedModel
from aftertune.harness.table import check_requests
from aftertune.sources.generation import LIMITS, generation_defaults, is_sampled
from aftertune.study import EvalSpec
from aftertune.tasks import LoadedTask
from aftertune.values import TaskSettings

_KINDS = {"generate_until": "generate", "loglikelihood_rolling": "rolling"}


def model_defaults(model: EvaluatedModel, loaded: Sequence[LoadedTask]) -> dict[str, Any]:
    """The fields of the model's generation config that change the texts of these tasks; {} where none is written."""
    settings = [t.settings.generation for t in loaded if t.settings.output_type == "generate_until"]
    if not settings or model.tokenizer is None:
        return {}
    return generation_defaults(model.source, model.tokenizer, sampled=any(map(is_sampled, settings)),
                               config=model.generation)


def check_tasks(spec: EvalSpec, model: EvaluatedModel, loaded: Sequence[LoadedTask], defaults: Mapping[str, Any],
                failed: Collection[str] = ()) -> None:
    """Raise InputError for a task that the engine cannot answer, and for a setting that no task can use.

    failed: names of tasks that could not be loaded, which may use a setting.
    """
    settings = [t.settings for t in loaded]
    check_requests(spec.engine, model.facts, {s.task: _KINDS.get(s.output_type, "score") for s in settings})
    raw = next((s.task for s in settings if s.chat_template is None), None)
    if model.facts.chats_only and raw is not None:
        raise InputError(f"task {raw!r}: the engine {spec.engine} answers chats only; add --apply-chat-template")
    _check_generation(spec, settings, defaults, failed)
    if not failed:
        _check_thinking(spec, settings)


def _check_generation(spec: EvalSpec, settings: Sequence[TaskSettings], defaults: Mapping[str, Any],
                      failed: Collection[str]) -> None:
    generated = [s for s in settings if s.output_type == "generate_until"]
    names = {name for s in generated for name in (s.task, *s.groups)} | set(failed)
    if spec.gen_kwargs and not generated and not failed:
        raise InputError(f"gen_kwargs has {', '.join(spec.gen_kwargs)}, but no task here generates texts; leave it out")
    idle = next((t for t in spec.tasks if t.gen_kwargs and t.name not in names), None)
    if idle is not None:
        raise InputError(f"task {idle.name!r} has gen_kwargs, but it generates no texts; leave them out")
    given = [*spec.gen_kwargs, *(name for t in spec.tasks for name in t.gen_kwargs)]
    limit = next((name for name in given if name in (*LIMITS, "max_length")), None)
    if limit is not None and "max_new_tokens" in defaults:
        raise InputError(f"{limit!r} has no effect: the model's generation_config.json sets max_new_tokens to "
                         f"{defaults['max_new_tokens']}, which lm-eval's hf model takes first; leave {limit} out, or "
                         "remove max_new_tokens from that file")


def _check_thinking(spec: EvalSpec, settings: Sequence[TaskSettings]) -> None:
    """The rules of lm-eval's ``hf`` model for reasoning, with an error in place of a setting without effect."""
    if spec.think_end_token is not None and all(s.output_type != "generate_until" for s in settings):
        raise InputError(f"--think-end-token {spec.think_end_token}: no task here generates texts, so there is no "
                         "trace to cut; leave it out")
    if spec.enable_thinking is None:
        return
    if all(s.chat_template is None for s in settings):
        raise InputError("--enable-thinking and --no-enable-thinking are read by the chat template, which no task here "
                         "uses; add --apply-chat-template")
    if not spec.enable_thinking:
        return
    if spec.think_end_token is None:
        raise InputError("--enable-thinking needs the text that ends a trace, so that only the answer is judged: add "
                         "--think-end-token, for example </think>")
    scored = next((s.task for s in settings if s.output_type != "generate_until"), None)
    if scored is not None:
        raise InputError(f"task {scored!r} scores given answers, before which a model cannot think; leave it out, or "
                         "use --no-enable-thinking")
