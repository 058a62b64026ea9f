"""Tells which generation settings change a text: those of a task, and those that a model brings along.

    generation_defaults(source, tokenizer)     {"repetition_penalty": 1.1, "eos_token_id": [7]}
    check_settings({"top_p": 0.9}, {"top_p": 0.9, "do_sample": False}, "gsm8k")      raises InputError

lm-eval's ``hf`` model calls transformers' ``generate`` with the settings of the task. What these do not set is taken
from the model's ``generation_config.json``, or, if there is none, from its config.json: a repetition penalty, further
end tokens, ``max_new_tokens`` (which then counts in place of lm-eval's ``max_gen_toks``). So these fields decide a
text as much as the weights do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aftertune.errors import InputError, nearest
from aftertune.sources.library_errors import load_errors, quiet
from aftertune.sources.resolve import ModelSource, read_fields

FILE = "generation_config.json"
#: lm-eval's names of the token limit, in its order of precedence.
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
#: Settings that are not transformers': lm-eval's, and the end of a reasoning trace.
OWN = frozenset({"until", "think_end_token", *LIMITS})
#: Fields of a generation config that change no text, or that every call of ``generate`` sets itself.
NO_EFFECT = frozenset({
    "bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config",
    "max_length", "do_sample", "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "compile_config", "disable_compile", "prefill_chunk_size", "low_memory", "is_assistant",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "continuous_batching_config", "chat_format",
    "max_window_size", "trust_remote_code", "assistant_confidence_threshold", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_lookbehind", "target_lookbehind"})
#: Fields that change only sampled texts, and fields that change only texts of several beams.
SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"})
BEAMS = frozenset({"early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"})
#: Values of other fields at which they have no effect. None has none in any field.
NEUTRAL = {"repetition_penalty": 1.0, "num_beams": 1, "typical_p": 1.0, "min_length": 0, "min_new_tokens": 0,
           "no_repeat_ngram_size": 0, "num_return_sequences": 1, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
           "renormalize_logits": False, "remove_invalid_values": False, "guidance_scale": 1.0, "token_healing": False}


def text_settings(values: Mapping[str, Any], *, sampled: bool) -> dict[str, Any]:
    """The settings in ``values`` that change a text. sampled: whether it is sampled. Unknown names count."""
    beams = values.get("num_beams") not in (None, 1)
    unused = NO_EFFECT | (frozenset() if sampled else SAMPLING) | (frozenset() if beams else BEAMS)
    return {k: v for k, v in values.items() if k not in unused and v not in (None, [], NEUTRAL.get(k))}


def generation_defaults(source: ModelSource | None, tokenizer: Any, *, sampled: bool = False, config: Any = None
                        ) -> dict[str, Any]:
    """The fields of the model's generation config that change its texts.

    sampled: whether a text is sampled. config: the generation config of a model in memory; None: that of the files.
    ``eos_token_id`` has the end tokens beside the tokenizer's own, sorted. Raises SourceError for a file that cannot be
    read.
    """
    known = vars(_generation_config(None))
    values = changed_fields(_generation_config(source) if config is None else config)
    ends = values.get("eos_token_id")
    values["eos_token_id"] = sorted({*(ends if isinstance(ends, list) else [ends])} - {None, tokenizer.eos_token_id})
    own_code = source is not None and source.trust_remote_code  # which may read fields of its own
    return {k: v for k, v in text_settings(values, sampled=sampled).items() if k in known or own_code}


def changed_fields(config: Any) -> dict[str, Any]:
    """The fields of a generation config that differ from transformers' defaults."""
    values: dict[str, Any] = config.to_diff_dict()
    return values


def _generation_config(source: ModelSource | None) -> Any:
    """The generation config that transformers gives the model; of a GGUF only one that lies beside it. None: the empty
    one."""
    from transformers import GenerationConfig

    if source is None or (source.gguf_file and not (source.path / FILE).is_file()):
        return GenerationConfig()
    with quiet(), load_errors(source, f"its generation settings ({FILE})"):
        if (source.path / FILE).is_file():
            read_fields(source.path / FILE)  # transformers takes a damaged file for none
            return GenerationConfig.from_pretrained(source.path, local_files_only=True)
        return GenerationConfig.from_pretrained(source.path, config_file_name="config.json", local_files_only=True,
                                                _from_model_config=True)


def check_settings(given: Mapping[str, Any], settings: Mapping[str, Any], task: str) -> None:
    """Raise InputError for a setting in ``given`` that would have no effect.

    given: what the user asks for. settings: all settings of the task, these included, as lm-eval would take them.
    """
    known = {k for k in vars(_generation_config(None)) if not k.startswith("_")} - NO_EFFECT | OWN | {
        "max_length", "do_sample"}
    for name in given:
        if name not in known:
            allowed = ", ".join(sorted(known))
            reason = "has no effect on a text" if name in NO_EFFECT else "is no generation setting"
            raise InputError(f"task {task!r}: {name!r} {reason}{nearest(name, sorted(known))}; leave it out; allowed: "
                             f"{allowed}")
    if unused := _unused(given, settings):
        raise InputError(f"task {task!r}: {unused}")


def _unused(given: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What has no effect beside the other settings, and what to do; "" if everything has one."""
    limits = [name for name in LIMITS if settings.get(name) is not None]
    if extra := [name for name in limits[1:] if name in given]:
        return f"{extra[0]!r} has no effect beside {limits[0]!r}, which lm-eval takes first; leave one of them out"
    if not is_sampled(settings):
        if idle := sorted(SAMPLING & given.keys() - {"temperature"}):
            return (f"{idle[0]!r} has no effect on greedy texts; leave it out, or add do_sample=true and a temperature "
                    "above 0")
        if given.get("temperature"):
            return "'temperature' has no effect with do_sample=false; leave it out, or set do_sample=true"
    if settings.get("num_beams") in (None, 1) and (idle := sorted(BEAMS & given.keys())):
        return f"{idle[0]!r} has no effect with one beam; leave it out, or add num_beams=N"
    return ""


def is_sampled(settings: Mapping[str, Any]) -> bool:
    """Whether lm-eval samples texts under these settings."""
    if settings.get("do_sample") is None:
        return float(settings.get("temperature") or 0.0) > 0
    return bool(settings["do_sample"])
