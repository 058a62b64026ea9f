"""Defines what all specifications share: the base class `Spec`, the marker `Flag`, and types of fields.

    class Part(Spec):
        every: Annotated[Positive, Flag("--every"), Field(description="Steps between two of them.")] = 50

    parse_memory("8GiB")        8589934592
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


class Flag:
    """Marks a field that is an option of the command line.

    names: of the option; none for the field's own name with dashes. A name without dashes is an argument.
    form, example: how one KEY=VALUE of a mapping is written, for the help and for errors. repeatable: a list of texts
    is given by repeating the option, not with commas, which may be in the texts.
    """

    def __init__(self, *names: str, form: str = "", example: str = "", repeatable: bool = False) -> None:
        self.names, self.form, self.example, self.repeatable = names, form, example, repeatable


class Spec(BaseModel):
    """A strict, frozen part of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def parse_memory(text: str) -> int:
    """Bytes of "8GiB", "500MB" or "1000000"; raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 8GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _memory(text: str) -> str:
    parse_memory(text)
    return text


def _engine_name(name: str) -> str:
    if name in ("packed", "plain", "llamacpp") or (name.startswith("lm-eval:") and len(name) > len("lm-eval:")):
        return name
    if name.startswith("openai:"):
        return f"openai:{server_url(name.removeprefix('openai:'))}"
    raise ValueError("Input should be packed, plain, llamacpp, openai:URL or lm-eval:NAME")


def server_url(text: str) -> str:
    """The address of a server's API, such as ``http://127.0.0.1:8080/v1``, from any form that people write.

    Raises ValueError for what is no address, and for one with a login or a query, which would be stored.
    """
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("The address of a server must not have a login or a query, because it is stored with the "
                         "results; set the key in the environment variable OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("Input should be openai: and the address of a server, for example "
                         "openai:http://127.0.0.1:8080/v1")
    path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/chat")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{path or '/v1'}"


def _day(value: Any) -> Any:
    """A day as YYYY-MM-DD; YAML reads such a text as a date."""
    if isinstance(value, date):
        return value.isoformat()[:10]
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a day; write it as YYYY-MM-DD, for example 2025-01-31") from None


def _kept(value: Any) -> Any:
    """A number of checkpoints in text, as the command line gives it, as a number."""
    if isinstance(value, bool):
        raise ValueError("it is neither all nor a number of checkpoints; write all, or a number above 0")
    if isinstance(value, str) and value != "all":
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{value!r} is neither all nor a number of checkpoints; write all, or a number above 0")
        return int(value)
    return value


def _counted(value: object) -> object:
    """TASK=N; in Python also {"TASK": N}, as of `keep`."""
    if isinstance(value, dict) and len(value) == 1:
        (task, count), = value.items()
        return f"{task}={count}"
    return value


Positive = Annotated[int, Field(gt=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy takes no other
Share = Annotated[float, Field(gt=0, lt=0.9)]
Points = Annotated[float, Field(gt=0, le=100)]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]*$")]
Memory = Annotated[str, AfterValidator(_memory)]
CountedTask = Annotated[str | None, BeforeValidator(_counted), Field(
    description="The task that shows what was learned, with its number of items: an lm-eval task, or a .jsonl file of "
                "held-out prompts and completions.")]
KeptCount = Annotated[Literal["all"] | Positive | None, BeforeValidator(_kept)]
# Fields that several specifications have, with their descriptions.
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], Field(description="Data type of the weights.")]
Device = Annotated[str, Field(description="Device: auto, cuda, cuda:N, mps or cpu.")]
EngineName = Annotated[str, AfterValidator(_engine_name), Field(
    description="Engine: packed, plain, llamacpp (a GGUF file), openai:URL (a server) or lm-eval:NAME.")]
Quantize = Annotated[Literal["nf4"] | None, Field(
    description="nf4: load the linear layers of the base in 4 bits, as qlora does. Default: as they are stored.")]
Revision = Annotated[str | None, Field(description="Branch, tag or commit of a model on the Hub.")]
RemoteCode = Annotated[bool, Field(description="Run the Python code that comes with the model.")]
Threads = Annotated[Positive | None, Field(description="Number of CPU threads.")]
Chat = Annotated[bool, Field(description="Format prompts with the model's chat template.")]
TemplateDate = Annotated[str | None, BeforeValidator(lambda value: value if value is None else _day(value)), Field(
    description="Date that the chat template writes, if it writes one, as YYYY-MM-DD. Default: 2024-07-26 for a "
                "template that asks for the date of the day, else its own.")]
Thinking = Annotated[bool | None, Field(
    description="Tell the chat template to let the model think, or not to. Default: as the template does.")]
ThinkEnd = Annotated[str | None, Field(
    min_length=1, description="Text that ends a reasoning trace, such as </think>; what is before it is cut off "
                              "before the answer is judged.")]
EngineArgs = Annotated[dict[str, Any], Field(
    description="Arguments of lm-eval's model class, for engines that load or serve a model by themselves: "
                "base_url=URL,num_concurrent=4 or JSON.")]
TaskSource = Annotated[Literal["auto", "hub", "pack"], Field(
    description="Where tasks take their documents from: the Hub, an offline pack, or auto.")]
