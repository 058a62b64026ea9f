"""Reads the links of a chain from a fine-tune to where it runs, as ``--chain`` and a study's ``deploy`` name them.

    parse_links(["adapter", "gguf:q8_0"])[1]       Link(name="gguf:q8_0", kind="gguf", detail="q8_0")
    check_types(["Q8_0", "q4_k_m"])                ("q8_0", "q4_k_m")

Links:

    adapter        the fine-tune as it was trained (an adapter on its base, or whole weights)
    merged         its merged weights
    gguf:TYPE      an exported GGUF file; aftertune computes with exactly its weights
    llamacpp:TYPE  the same file in llama.cpp itself, in this process
    openai:URL     a server with OpenAI's API; openai:URL#NAME where it serves several models
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from aftertune.errors import InputError, is_hidden, nearest, shown
from aftertune.study.fields import server_url

LinkKind = Literal["adapter", "merged", "gguf", "llamacpp", "openai"]
_KINDS: tuple[LinkKind, ...] = ("adapter", "merged", "gguf", "llamacpp", "openai")
#: llama.cpp's quantiser.
QUANTIZER = "llama-quantize"
#: Types of a GGUF that are written here, and those that llama.cpp's quantiser makes.
WRITTEN_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
QUANTIZER_TYPES = ("q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
                   "iq4_nl", "iq4_xs")
EXAMPLE = "adapter,merged,gguf:q8_0,llamacpp:q8_0,openai:http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Link:
    """One form of a fine-tune. name: as it was given; detail: the type of a file, or the address of a server; model:
    the name of the model on a server, "" for the only one."""

    name: str
    kind: LinkKind
    detail: str = ""
    model: str = ""

    @property
    def scores(self) -> bool:
        """False where it surely gives no log-likelihoods of given answers."""
        return self.kind not in ("llamacpp", "openai")

    def evaluation_name(self, tuning: str) -> str:
        """The name of its evaluation in the ledger."""
        address = self.name.removeprefix("openai:").partition("//")[2]
        return f"{tuning}@" + re.sub(r"[^A-Za-z0-9_.+-]+", "-", address or self.name)


def check_types(names: Sequence[str], option: str = "--quant") -> tuple[str, ...]:
    """The names of types in lower case, each once. Raises InputError for an unknown one, or if there is none."""
    known = [*WRITTEN_TYPES, *QUANTIZER_TYPES]
    wanted = tuple(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    for name in wanted:
        if name not in known:
            raise InputError(f"{option}: {name!r} is no type of a GGUF{nearest(name, known)}; allowed are "
                             f"{', '.join(known)}")
    if not wanted:
        raise InputError(f"{option}: no type given; allowed are {', '.join(known)}")
    return wanted


def parse_links(words: Sequence[str], option: str = "--chain") -> tuple[Link, ...]:
    """The links of a chain. Raises InputError for an unknown one, one that is given twice, and fewer than two."""
    links = []
    for word in words:
        if any(map(is_hidden, word)):  # it is part of the names of cells and evaluations
            raise InputError(f"{option}: the link {shown(word)} has a line break or another control character; remove "
                             "it")
        kind, _, detail = word.partition(":")
        if kind not in _KINDS or bool(detail) != (kind in ("gguf", "llamacpp", "openai")):
            raise InputError(f"{option} {word}: unknown link; the links are adapter, merged, gguf:TYPE, llamacpp:TYPE "
                             f"and openai:URL, for example {EXAMPLE}")
        model = ""
        if kind == "openai":
            detail, _, model = detail.partition("#")
            try:
                detail = server_url(detail)
            except ValueError as error:
                raise InputError(f"{option} {word}: {str(error)[0].lower()}{str(error)[1:]}") from None
        elif detail:
            detail, = check_types((detail,), f"{option} {word}")
        links.append(Link(word, kind, detail, model))
    if len({(link.kind, link.detail, link.model) for link in links}) < len(links):
        raise InputError(f"{option}: a link is given twice ({', '.join(words)}); give each once")
    if len(links) < 2:
        raise InputError(f"{option} needs two links or more, to compare them; for example {EXAMPLE}")
    return tuple(links)


class _Deploying(Protocol):
    """A study (`aftertune.study.Study`), as far as its ``deploy`` reads it."""

    @property
    def deploy(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def tunings(self) -> Mapping[str, Any]: ...
    @property
    def bases(self) -> Mapping[str, Any]: ...
    @property
    def enable_thinking(self) -> bool | None: ...
    def early_rule(self, name: str) -> object | None:
        """When the tasks of a fine-tune stop; None where all items are asked."""


def deploy_links(study: _Deploying, tuning: str) -> tuple[Link, ...]:
    """The links of a fine-tune of a study, the fine-tune as it was trained first; () where it is not deployed."""
    words = next((words for pattern, words in study.deploy.items() if fnmatchcase(tuning, pattern)), None)
    if words is None:
        return ()
    return parse_links([*([] if words[:1] == ("adapter",) else ["adapter"]), *words], "deploy")


def check_deploy(study: _Deploying) -> None:
    """Raise ValueError, in one line, for a fine-tune that is not there, a link that cannot be read, and what a link
    cannot do."""
    for pattern in study.deploy:
        named = [name for name in study.tunings if fnmatchcase(name, pattern)]
        if not named:
            raise ValueError(f"deploy.{pattern} is no fine-tune of the study{nearest(pattern, list(study.tunings))}")
        for name in named:
            others = [other for other in study.deploy if other != pattern and fnmatchcase(name, other)]
            if others:
                raise ValueError(f"deploy names {name} twice, by {pattern} and by {others[0]}; name it once")
            _check_links(study, name)


def _check_links(study: _Deploying, name: str) -> None:
    try:
        links = deploy_links(study, name)
    except InputError as error:
        raise ValueError(f"deploy.{name}: {str(error).removeprefix('deploy').strip(' :')}") from None
    base = study.bases[study.tunings[name].base]
    if base.tokenizer is not None:
        raise ValueError(f"deploy.{name}: its base has a tokenizer of another folder, which no file for other programs "
                         "would have; leave `tokenizer` or this fine-tune out")
    if study.early_rule(name) is not None:
        raise ValueError(f"deploy.{name}: its tasks stop at their verdicts (`until_decided`), but all links are asked "
                         "the same items; leave `until_decided` or this fine-tune out")
    native = next((link for link in links if not link.scores), None)
    if native is not None and study.enable_thinking is not None:
        raise ValueError(f"deploy.{name}: {native.name} applies its own chat template, which `enable_thinking` does "
                         "not reach; leave one of them out")
