"""The small words of specifications: the strict base class, and the kinds of values that flags and keys take."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["nf4"]
Positive = Annotated[int, Field(gt=0)]


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
    if name in ("packed", "plain") or (name.startswith("lm-eval:") and len(name) > len("lm-eval:")):
        return name
    raise ValueError("Input should be packed, plain or lm-eval:NAME")


#: A size of memory, as text.
Memory = Annotated[str, AfterValidator(_memory)]
EngineName = Annotated[str, AfterValidator(_engine_name)]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]*$")]


class Spec(BaseModel):
    """A strict, frozen part of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
