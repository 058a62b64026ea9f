"""Identifies the model of an evaluation, and what answers for it, before anything is loaded.

    model = identify(EvalSpec(model="./base", adapter="./orders", tasks=…))
    model.identity.fingerprint, model.tokenizer, model.template

An engine that loads weights from this machine gets an identity by content. An engine that has its model behind a name
(a server, files of another format) gives an identity that is only stated: the name and the address, marked as not
verified, and never proof that two evaluations asked the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aftertune import sources
from aftertune.engine import devices
from aftertune.errors import InputError, SourceError
from aftertune.harness.engines import HarnessEngine, ServerTemplate
from aftertune.harness.llama_cpp import LlamaCppEngine, check_file
from aftertune.harness.server import MessagesTemplate, ServerEngine, is_server, server_address
from aftertune.harness.server_client import stated_name
from aftertune.harness.table import OPTIONS, EngineFacts, check_engine
from aftertune.sources.hub import offline_only
from aftertune.sources.live import LiveBase, dtype_name
from aftertune.sources.resolve import AdapterSource, ModelSource, looks_like_path, read_json
from aftertune.sources.tokenizers import choose_tokenizer, tokenizer_note
from aftertune.study import EvalSpec
from aftertune.tasks.chat_template import ChatTemplate, get_chat_template, template_date
from aftertune.values import ModelIdentity, digest
from aftertune.values.reported import STATED

NOT_STATED = "not stated"
#: Arguments of lm-eval's classes for servers that change no answer.
TRANSPORT = frozenset({"num_concurrent", "max_retries", "timeout", "verify_certificate", "ca_cert_path", "batch_size"})
#: Arguments that hold secrets.
SECRET = frozenset({"auth_token", "header", "api_key", "watsonx_credentials"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedModel:
    """A model with what answers for it.

    source, adapter, tokenizer: None where the engine has the model behind a name. stated: what the user states about
    such a model. arguments: of lm-eval's class. code_digest: of the model's own Python files, None where none run.
    generation: the generation config of a model in memory, None where it is read from the files.
    """

    identity: ModelIdentity
    facts: EngineFacts
    device: str = NOT_STATED
    dtype: str = NOT_STATED
    template: ChatTemplate | ServerTemplate | MessagesTemplate | None = None
    source: ModelSource | None = None
    adapter: AdapterSource | None = None
    tokenizer: Any = None
    code_digest: str | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    engine: HarnessEngine | ServerEngine | LlamaCppEngine | None = None
    generation: Any = None


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A model that is not named by its files, and what an evaluation must know about it. load: called when it is
    needed."""

    load: Callable[[], Any]
    evaluated: EvaluatedModel


def live_model(spec: EvalSpec, model: Any, base: LiveBase, identity: ModelIdentity) -> LiveModel:
    """A model in memory, such as one in training, as the model of an evaluation. identity: of what it is now."""
    return LiveModel(lambda: model, EvaluatedModel(
        identity=identity, facts=check_engine(spec.engine, ()), device=str(model.device).removesuffix(":0"),
        dtype=dtype_name(model), template=_template(spec, base.tokenizer), source=base.source,
        tokenizer=base.tokenizer, generation=model.generation_config))


def identify(spec: EvalSpec) -> EvaluatedModel:
    """Find the model of an evaluation, and check that the engine takes everything that was asked for.

    Raises InputError for a setting that the engine does not take, SourceError for a model, adapter or tokenizer that
    cannot be used, and ResourceError if a package is missing.
    """
    fields = EvalSpec.model_fields
    given = {n for n in OPTIONS if getattr(spec, n) != fields[n].get_default(call_default_factory=True)}
    facts = check_engine(spec.engine, given)
    _check_arguments(spec)
    if is_server(spec.engine):
        return _served(spec, facts)
    if spec.engine == "llamacpp":
        return _gguf(spec, facts)
    if facts.kind == "names":
        return _stated(spec, facts)
    try:
        return _local(spec, facts)
    except SourceError:
        if facts.kind != "loads" or spec.adapter or Path(spec.model).exists() or looks_like_path(spec.model):
            raise
        return _stated(spec, facts)


def _check_arguments(spec: EvalSpec) -> None:
    """Raise InputError for secrets in the arguments of lm-eval's class: they would be stored with the command."""
    secret = next((name for name in spec.engine_args if name in SECRET), None)
    address = urlsplit(str(spec.engine_args.get("base_url") or ""))
    if secret is not None or address.username or address.password or address.query:
        what = secret or "base_url with a login or a query"
        raise InputError(f"--engine-args {what}: a key does not belong on the command line, which is stored with the "
                         "results; set it in the environment (OPENAI_API_KEY for lm-eval's local-completions)")


# --- Weights on this machine ---

def _local(spec: EvalSpec, facts: EngineFacts) -> EvaluatedModel:
    device = devices.choose_device(spec.device)
    if spec.quantize is not None:
        sources.require_nf4(device)
    dtype = devices.choose_dtype(spec.dtype, device)
    source = _source(spec, facts)
    identity, stated = sources.fingerprint_model(source), {}
    if spec.tokenizer is None:
        tokenizer = sources.load_tokenizer(source)
    else:
        folder = sources.adapter_folder(spec.adapter)[0] if spec.adapter else None
        tokenizer, where, source = choose_tokenizer(spec.tokenizer, source, spec.adapter, folder)
        stated = {facts.takes["tokenizer"]: str(where)} if facts.takes["tokenizer"] else {}
    adapter = None
    if spec.adapter is not None:
        adapter = sources.resolve_adapter(spec.adapter, source, identity)
        identity = sources.fingerprint_model(source, adapter)
        if spec.tokenizer is None and (note := tokenizer_note(adapter, tokenizer, source)):
            tokenizer.notes = (*tokenizer.notes, note)
    if spec.tokenizer is not None:
        identity = replace(identity, tokenizer=sources.fingerprint_tokenizer(where))
        tokenizer.notes = (*tokenizer.notes, f"the tokenizer is that of {spec.tokenizer}"
                           + (f", with {source.rows} embedding rows" if source.rows else ""))
    return EvaluatedModel(
        identity=identity, facts=facts, device=device, dtype=dtype, template=_template(spec, tokenizer),
        source=source, adapter=adapter, tokenizer=tokenizer, code_digest=sources.fingerprint_code(source),
        arguments=_load_arguments(spec, facts, source, adapter, dtype) | stated if facts.kind == "loads" else {})


def _template(spec: EvalSpec, tokenizer: Any) -> ChatTemplate | None:
    thinking = {} if spec.enable_thinking is None else {"enable_thinking": spec.enable_thinking}
    return get_chat_template(tokenizer, template_date(tokenizer, spec.template_date), **thinking)


def _source(spec: EvalSpec, facts: EngineFacts) -> ModelSource:
    options: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    if facts.kind == "own":
        source = sources.resolve_model(spec.model, **options)
        return replace(source, quantization=spec.quantize) if spec.quantize else source
    with offline_only():  # what is not here is left to lm-eval's class, under its name
        source = sources.resolve_model(spec.model, **options)
    if source.gguf_file is not None:
        raise InputError(f"{spec.model}: the engine {spec.engine} takes a folder with safetensors, no GGUF file; use "
                         "packed, plain or lm-eval:hf")
    return source


def _load_arguments(spec: EvalSpec, facts: EngineFacts, source: ModelSource, adapter: AdapterSource | None,
                    dtype: str) -> dict[str, Any]:
    """The arguments of a class that loads the weights by itself. Raises InputError for an adapter that it cannot load.
    """
    values: dict[str, Any] = {"dtype": dtype, "trust_remote_code": spec.trust_remote_code or None,
                              "think_end_token": spec.think_end_token}
    arguments = {facts.takes[n]: v for n, v in values.items() if v is not None and facts.takes.get(n)}
    if adapter is not None:
        config = read_json(adapter.path / "adapter_config.json")
        extras = [n for n in ("use_dora", "modules_to_save", "trainable_token_indices") if config.get(n)]
        if adapter.peft_type != "LORA" or extras or config.get("bias", "none") != "none":
            raise InputError(f"{spec.adapter}: the engine {spec.engine} loads only plain LoRA adapters, not "
                             f"{extras[0] if extras else adapter.peft_type}; use packed, plain or lm-eval:hf")
        arguments |= {facts.takes["adapter"]: str(adapter.path), "max_lora_rank": int(config.get("r", 16))}
    return {facts.model: str(source.path), **arguments, **spec.engine_args}


# --- A model behind a name ---

def _stated(spec: EvalSpec, facts: EngineFacts) -> EvaluatedModel:
    """The identity that the user states, with lm-eval's class ready to ask the model."""
    answers = {k: v for k, v in sorted(spec.engine_args.items()) if k not in TRANSPORT}
    stated = {"model": spec.model, **answers}
    if "base_url" in answers:
        stated["base_url"] = _address(str(answers["base_url"]))
    mark = STATED + digest([spec.engine, stated])
    arguments = {**({facts.model: spec.model} if facts.model else {}), **spec.engine_args}
    for name in ("tokenizer", "think_end_token", "trust_remote_code", "dtype"):
        if facts.takes.get(name) and getattr(spec, name) not in (None, False, "auto"):
            arguments[facts.takes[name]] = getattr(spec, name)
    engine = HarnessEngine.by_name(spec.engine.removeprefix("lm-eval:"), arguments, batch_size=1, device=None)
    return EvaluatedModel(
        identity=ModelIdentity(source=spec.model, weights=mark, config=mark, tokenizer=mark, revision=spec.revision),
        facts=facts, stated=stated, arguments=arguments, engine=engine,
        template=ServerTemplate(engine) if "apply_chat_template" in facts.takes else None)


def _served(spec: EvalSpec, facts: EngineFacts) -> EvaluatedModel:
    """A model of a server with OpenAI's API: what is stated, and what the server reports of itself."""
    engine = ServerEngine(server_address(spec.engine), spec.model, spec.engine_args)
    name = stated_name(engine.client, spec.model)
    stated: dict[str, Any] = {"model": name, "base_url": engine.client.url}
    if engine.facts:
        stated["reported"] = engine.facts
    mark = STATED + digest(["openai", stated])
    able = facts.requests if engine.scores else facts.requests - {"score"}
    return EvaluatedModel(
        identity=ModelIdentity(source=name, weights=mark, config=mark, tokenizer=mark, revision=spec.revision),
        facts=replace(facts, requests=able), stated=stated, engine=engine, template=engine.template)


def _gguf(spec: EvalSpec, facts: EngineFacts) -> EvaluatedModel:
    """A GGUF file that llama.cpp runs in this process. Its identity is that of its content."""
    source = sources.resolve_model(spec.model, revision=spec.revision)
    engine = LlamaCppEngine(check_file(source.gguf_path, spec.model), spec.engine_args, threads=spec.threads)
    return EvaluatedModel(identity=sources.fingerprint_model(source), facts=facts, device="cpu", dtype="as stored",
                          source=source, engine=engine, template=engine.template)


def _address(url: str) -> str:
    """An address without login and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
