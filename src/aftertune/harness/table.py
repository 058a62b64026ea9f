"""Lists what each engine takes, so that an engine that cannot do a part of what was asked is refused before it starts.

    facts = engine_facts("lm-eval:vllm")
    facts.takes                                     {"adapter": "lora_local_path", "dtype": "dtype", …}
    check_engine("lm-eval:vllm", {"quantize"})      raises InputError: lm-eval:vllm does not take --quantize …

The engines are aftertune's own and every model class of lm-eval 0.4.13 (``lm_eval.models.MODEL_MAPPING``). There are
four kinds:

    own      packed and plain; ``lm-eval:hf`` runs on the same loaded model
    loads    lm-eval's class loads the weights from the folder whose files identify the model
    names    the class has a server, or files of another format, behind a name: the identity is what was stated
    refused  the class cannot give the answers that an evaluation here needs
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

from aftertune.errors import InputError, ResourceError, nearest

EngineKind = Literal["own", "loads", "names", "refused"]
#: Settings of an evaluation that an engine may not take, with their options.
OPTIONS = {"adapter": "--adapter", "quantize": "--quantize", "revision": "--revision", "dtype": "--dtype",
           "device": "--device", "memory": "--memory", "threads": "--threads", "tokenizer": "--tokenizer",
           "trust_remote_code": "--trust-remote-code", "apply_chat_template": "--apply-chat-template",
           "enable_thinking": "--enable-thinking", "think_end_token": "--think-end-token",
           "engine_args": "--engine-args"}
_ALL = dict.fromkeys(OPTIONS, "")
#: Settings that are settled before lm-eval's class gets a prompt or a folder.
_PROMPTS = {"revision": "", "apply_chat_template": "", "enable_thinking": "", "engine_args": ""}
_EVERY_REQUEST = frozenset({"score", "rolling", "generate"})
_API = ("aiohttp", "requests", "tenacity", "tqdm")
_PIP_API = "pip install 'lm-eval[api]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What one engine takes.

    takes: setting -> argument of lm-eval's class, "" where the class does not need to know it. model: the argument for
    the model. requests: kinds of requests that it answers. packages, install: what must be installed, and the command
    for it. variable: environment variable with the key of the server. reason: why it is refused. chats_only: whether
    it takes messages and no plain prompts.
    """

    kind: EngineKind
    takes: Mapping[str, str] = field(default_factory=dict)
    model: str = "pretrained"
    requests: frozenset[str] = _EVERY_REQUEST
    packages: tuple[str, ...] = ()
    install: str = ""
    variable: str = ""
    reason: str = ""
    chats_only: bool = False


def _own(**without: str) -> EngineFacts:
    return EngineFacts(kind="own", takes={k: v for k, v in _ALL.items() if k not in without and k != "engine_args"})


def _loads(package: str, install: str, **takes: str) -> EngineFacts:
    model = takes.pop("model", "pretrained")
    return EngineFacts(kind="loads", takes={**_PROMPTS, **takes}, model=model, packages=(package,), install=install)


def _server(requests: Collection[str], takes: Mapping[str, str], *, model: str = "model",
            packages: tuple[str, ...] = _API, install: str = _PIP_API, variable: str = "") -> EngineFacts:
    return EngineFacts(kind="names", takes={"engine_args": "", **takes}, model=model, requests=frozenset(requests),
                       packages=packages, install=install, variable=variable,
                       chats_only="score" not in requests and "apply_chat_template" in takes)


def _files(package: str, install: str, model: str = "pretrained") -> EngineFacts:
    return EngineFacts(kind="names", takes={"engine_args": ""}, model=model, packages=(package,), install=install)


def _refused(reason: str) -> EngineFacts:
    return EngineFacts(kind="refused", reason=reason)


_TEXTS, _SHORT = frozenset({"generate"}), frozenset({"score", "generate"})
_COMPLETIONS = {"tokenizer": "tokenizer", "apply_chat_template": ""}
_CHAT = {"apply_chat_template": ""}
_REASONING = {**_CHAT, "think_end_token": "think_end_token"}
_HF = _own(memory="lm-eval chooses its own batches")
_VLLM = _loads("vllm", "pip install 'lm-eval[vllm]'", adapter="lora_local_path", dtype="dtype", tokenizer="tokenizer",
               trust_remote_code="trust_remote_code", think_end_token="think_end_token")
_OPTIMUM = {"dtype": "dtype", "tokenizer": "tokenizer", "trust_remote_code": "trust_remote_code"}
_LITELLM = _server(_TEXTS, _REASONING, packages=("litellm", *_API), install="pip install 'lm-eval[litellm]'")
_ANTHROPIC = _server(_TEXTS, _CHAT, packages=("anthropic", *_API), install="pip install anthropic 'lm-eval[api]'",
                     variable="ANTHROPIC_API_KEY")
_LLAMA_CPP = _server(_SHORT, {}, model="", packages=("requests",), install="pip install requests")

#: llama.cpp in this process; it has the tokenizer and the chat template of the file.
_GGUF = EngineFacts(kind="loads", takes={"engine_args": "", "threads": "", "apply_chat_template": "",
                                         "think_end_token": ""}, requests=_TEXTS, packages=("xllamacpp",),
                    install="pip install 'aftertune[llamacpp]'")
#: A server with OpenAI's API. ``engine_facts`` has it for every address. What it answers depends on the server.
_OPENAI = EngineFacts(kind="names", takes={"engine_args": "", "apply_chat_template": "", "think_end_token": ""},
                      requests=_SHORT)

_NO_CLASS = "lm-eval 0.4.13 names a class for it that it does not have"

#: Every engine by its name. The names after ``lm-eval:`` are lm-eval's.
ENGINES: dict[str, EngineFacts] = {
    "packed": _own(), "plain": _own(), "openai:URL": _OPENAI, "llamacpp": _GGUF,
    "lm-eval:hf": _HF, "lm-eval:hf-auto": _HF, "lm-eval:huggingface": _HF,
    "lm-eval:vllm": _VLLM,
    "lm-eval:sglang": _loads("sglang", "pip install 'sglang[all]'", dtype="dtype", device="device",
                             tokenizer="tokenizer_path", trust_remote_code="trust_remote_code",
                             think_end_token="think_end_token"),
    "lm-eval:trtllm": _loads("tensorrt_llm", "pip install tensorrt-llm", model="model", dtype="dtype",
                             tokenizer="tokenizer", trust_remote_code="trust_remote_code",
                             think_end_token="think_end_token"),
    "lm-eval:openvino": _loads("optimum.intel", "pip install 'lm-eval[optimum]'", **_OPTIMUM),
    "lm-eval:habana": _loads("optimum.habana", "pip install 'lm-eval[habana]'", **_OPTIMUM),
    "lm-eval:mamba_ssm": _loads("mamba_ssm", "pip install mamba-ssm", **_OPTIMUM),
    "lm-eval:onnxruntime": _files("onnxruntime", "pip install 'lm-eval[onnxruntime]'"),
    "lm-eval:onnxruntime-genai": _files("onnxruntime_genai", "pip install 'lm-eval[onnxruntime-genai]'"),
    "lm-eval:winml": _files("onnxruntime_genai", "pip install onnxruntime-genai-winml"),
    "lm-eval:megatron_lm": _files("megatron", "pip install megatron-core", model="load"),
    "lm-eval:nemo_lm": _files("nemo", "pip install nemo-toolkit", model="path"),
    "lm-eval:local-completions": _server(_EVERY_REQUEST, _COMPLETIONS),
    "lm-eval:local-chat-completions": _server(_TEXTS, _REASONING),
    "lm-eval:openai-completions": _server(_EVERY_REQUEST, {"tokenizer": "tokenizer"}, packages=(*_API, "tiktoken"),
                                          variable="OPENAI_API_KEY"),
    "lm-eval:openai-chat-completions": _server(_TEXTS, _REASONING, variable="OPENAI_API_KEY"),
    "lm-eval:anthropic-completions": _server(_TEXTS, {}, packages=("anthropic",), install="pip install anthropic",
                                             variable="ANTHROPIC_API_KEY"),
    "lm-eval:anthropic-chat": _ANTHROPIC, "lm-eval:anthropic-chat-completions": _ANTHROPIC,
    "lm-eval:litellm": _LITELLM, "lm-eval:litellm-chat": _LITELLM, "lm-eval:litellm-chat-completions": _LITELLM,
    "lm-eval:sglang-generate": _server(_SHORT, _COMPLETIONS),
    "lm-eval:gguf": _LLAMA_CPP, "lm-eval:ggml": _LLAMA_CPP,
    "lm-eval:textsynth": _server(_SHORT, {}, model="engine", packages=("requests",), install="pip install requests",
                                 variable="TEXTSYNTH_API_SECRET_KEY"),
    "lm-eval:watsonx_llm": _server(_EVERY_REQUEST, {}, model="model_id", packages=("ibm_watsonx_ai",),
                                   install="pip install 'lm-eval[ibm-watsonx-ai]'"),
    "lm-eval:dummy": _refused("its answers are random"),
    "lm-eval:ipex": _refused(_NO_CLASS), "lm-eval:neuronx": _refused(_NO_CLASS),
    "lm-eval:steered": _refused("its vectors are pickles, which can run code when they are loaded"),
    "lm-eval:hf-multimodal": _refused("it answers tasks with images only"),
    "lm-eval:hf-audiolm-qwen": _refused("it answers tasks with sound only"),
    "lm-eval:hf-mistral3": _refused("it loads a model with images; use packed, plain or lm-eval:hf"),
    "lm-eval:vllm-vlm": _refused("it answers tasks with images only; use lm-eval:vllm"),
}


def engine_facts(name: str) -> EngineFacts:
    """The facts of an engine. Raises InputError for an unknown name and for an engine that is refused."""
    facts = ENGINES.get("openai:URL" if name.startswith("openai:") else name)
    if facts is None:
        names = list(ENGINES)
        short = name.removeprefix("lm-eval:")
        raise InputError(f"engine {name!r}: lm-eval has no model class {short!r}{nearest(name, names)}; "
                         "`lm-eval:hf` runs transformers models")
    if facts.kind == "refused":
        raise InputError(f"engine {name!r} cannot be used here: {facts.reason}")
    return facts


def check_engine(name: str, given: Collection[str]) -> EngineFacts:
    """The facts of an engine that takes all settings in ``given`` and is ready to run.

    given: names of settings that are not at their default. Raises InputError for a setting that the engine does not
    take, ResourceError if a package or a key is missing.
    """
    facts = engine_facts(name)
    for setting, option in OPTIONS.items():
        if setting in given and setting not in facts.takes:
            others = [other for other, row in ENGINES.items() if setting in row.takes]
            raise InputError(f"{option} is not possible with the engine {name}, {_why(facts, setting)}; leave "
                             f"{option} out, or use {', '.join(others[:3])}{' …' if len(others) > 3 else ''}")
    if missing := [package for package in facts.packages if not _installed(package)]:
        raise ResourceError(f"the engine {name} needs the Python package {missing[0]}, which is not installed: "
                            f"{facts.install}")
    if facts.variable and not os.environ.get(facts.variable):
        raise ResourceError(f"the engine {name} needs the key of its server in the environment variable "
                            f"{facts.variable}, which is not set")
    return facts


def _why(facts: EngineFacts, setting: str) -> str:
    if facts.kind == "names":
        return "which only knows the model's name"
    if setting == "engine_args":
        return "which has options of its own"
    return "which loads and runs the model itself" if facts.kind == "loads" else "which chooses its own batches"


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # the package that contains it is missing
        return False


def check_requests(name: str, facts: EngineFacts, kinds: Mapping[str, str]) -> None:
    """Raise InputError for a task that the engine cannot answer. kinds: task -> kind of its requests."""
    texts = {"score": "log-likelihoods of given answers", "rolling": "log-likelihoods of whole documents",
             "generate": "generated texts"}
    for task, kind in kinds.items():
        if kind not in facts.requests and name.startswith("openai:"):
            raise InputError(f"task {task!r} needs {texts[kind]}, for which this server would have to give the "
                             "log-probabilities of a prompt (vLLM does); leave the task out, or evaluate the model's "
                             "files with packed")
        if kind not in facts.requests:
            others = [other for other, row in ENGINES.items() if kind in row.requests and row.kind == facts.kind]
            raise InputError(f"task {task!r} needs {texts[kind]}, which the engine {name} does not give; leave the "
                             f"task out, or use {', '.join(others[:2]) or 'packed'}")
