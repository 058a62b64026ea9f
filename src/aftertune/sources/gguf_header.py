"""Checks the header of a GGUF file against the size of the file, before a reader takes its word for anything.

    check_gguf(Path("model.gguf"))              SourceError for counts, lengths or offsets that the file cannot hold
    check_sizes(metadata, shapes, path)         SourceError for layers and sizes that its tensors do not have

A file of 49 bytes can claim an array of 2^64 values, and a reader that believes it takes all memory. transformers
builds all layers that the metadata claim, four billion too, and leaves out tensors of further ones. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import SourceError, shown

#: Bytes of a metadata value by its type; a string (8) and an array (9) have their own length.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
#: Limits of a header: its tensors, its metadata keys, the values of all its arrays, dimensions, and nested arrays.
MAX_TENSORS, MAX_KEYS, MAX_VALUES = bounds.GGUF_TENSORS, bounds.GGUF_KEYS, bounds.GGUF_VALUES
MAX_DIMENSIONS, MAX_NESTED = bounds.GGUF_DIMENSIONS, bounds.GGUF_NESTED


class _Damaged(ValueError):
    """What the file claims cannot be."""


class _Header:
    """A position in the bytes of a file. order: "<" or ">"."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.order, self.values = data, 4, "<", 0

    def number(self, form: str) -> int:
        """The next integer, "I" or "Q"."""
        size = struct.calcsize(form)
        self.need(size)
        (value,) = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += size
        return int(value)

    def need(self, size: int) -> None:
        """Raise _Damaged unless the file has ``size`` more bytes."""
        if size > len(self.data) - self.at:
            raise _Damaged(f"byte {self.at:,} is followed by {len(self.data) - self.at:,} bytes, but {size:,} are "
                           "claimed")

    def skip_string(self) -> None:
        """Skip a text with its length."""
        length = self.number("Q")
        self.need(length)
        self.at += length

    def skip_value(self, kind: int, depth: int = 0) -> None:
        """Skip a metadata value."""
        if kind == _STRING:
            self.skip_string()
        elif kind == _ARRAY:
            if depth >= MAX_NESTED:
                raise _Damaged(f"arrays are nested deeper than {MAX_NESTED}")
            inner, count = self.number("I"), self.number("Q")
            self.values += count
            if self.values > MAX_VALUES:
                raise _Damaged(f"its metadata has more than {MAX_VALUES:,} values")
            if inner in _SIZES:
                self.need(count * _SIZES[inner])
                self.at += count * _SIZES[inner]
            else:
                for _ in range(count):
                    self.skip_value(inner, depth + 1)
        elif kind in _SIZES:
            self.need(_SIZES[kind])
            self.at += _SIZES[kind]
        else:
            raise _Damaged(f"a metadata value has the unknown type {kind}")


def check_gguf(path: Path) -> None:
    """Raise SourceError where the header of a GGUF file claims what the file cannot hold. Takes a fraction of a second.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Header(data))
    except (_Damaged, ValueError, struct.error) as error:
        reason = f": {error}" if isinstance(error, _Damaged) else ""
        raise SourceError(f"{path}: truncated or damaged GGUF file ({path.stat().st_size} bytes){reason}; download it "
                          "again") from None


def _check(header: _Header) -> None:
    if header.data[:4] != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    if header.number("I") > 0xFFFF:
        header.order = ">"
    tensors, keys = header.number("Q"), header.number("Q")
    for what, count, most in (("tensors", tensors, MAX_TENSORS), ("metadata keys", keys, MAX_KEYS)):
        if count > most:
            raise _Damaged(f"it claims {count:,} {what}, but at most {most:,} are read")
    for _ in range(keys):
        header.skip_string()
        header.skip_value(header.number("I"))
    ends = [_tensor(header) for _ in range(tensors)]
    header.need(max(ends, default=0))  # the data begin after the header, at the next multiple of the alignment


def _tensor(header: _Header) -> int:
    """Skip the entry of a tensor; the offset of its end from the start of the data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    header.skip_string()
    dimensions = header.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise _Damaged(f"a tensor has {dimensions:,} dimensions, but at most {MAX_DIMENSIONS} are allowed")
    elements = math.prod(header.number("Q") for _ in range(dimensions))
    kind, offset = header.number("I"), header.number("Q")
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _Damaged(f"a tensor has the unknown type {kind}") from None
    return offset + elements // int(block) * int(size)


_BLOCK = re.compile(r"(.*\.)?blk\.(\d+)\.")
#: Sizes in the metadata, after the name of the architecture. None of them is larger than every tensor.
_SIZE_KEYS = ("embedding_length", "feed_forward_length", "vocab_size", "expert_count", "rope.dimension_count",
              "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length")


def check_sizes(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise SourceError if the metadata say another number of layers than the tensors have, another width than the
    token embedding, or a size that is larger than all of them.

    shapes: tensor name -> shape, fastest dimension first.
    """
    prefix = f"{metadata.get('general.architecture')}."
    largest = max((n for shape in shapes.values() for n in shape), default=0)
    for key in (f"{prefix}{name}" for name in _SIZE_KEYS):
        values = metadata.get(key, 0)
        numbers = values if isinstance(values, list) else [values]  # one for each layer
        if not all(isinstance(n, int) and 0 <= n <= largest for n in numbers):
            raise _unlike(path, f"{key} is {shown(values)}", f"a whole number up to {largest:,}, the largest dimension "
                          "of its tensors")
    layers: dict[str, set[str]] = defaultdict(set)  # an encoder and a decoder are counted on their own
    for match in filter(None, map(_BLOCK.match, shapes)):
        layers[match[1] or ""].add(match[2])
    stored = {len(numbers) for numbers in layers.values()} or {0}
    claimed = metadata.get(f"{prefix}block_count", min(stored))
    if claimed not in stored:
        count = " or ".join(map(str, sorted(stored)))
        raise _unlike(path, f"{prefix}block_count is {shown(claimed)}, but its tensors are of {count} layers", count)
    embedding = shapes.get("token_embd.weight", ())
    width = metadata.get(f"{prefix}embedding_length")
    if width is not None and len(embedding) == 2 and width != embedding[0]:
        raise _unlike(path, f"{prefix}embedding_length is {width}, but its token embedding has {embedding[0]} columns",
                      str(embedding[0]))


def _unlike(path: Path, found: str, allowed: str) -> SourceError:
    return SourceError(f"{path}: {found}; allowed is {allowed}; download the file again, or use another conversion of "
                       "the model")
