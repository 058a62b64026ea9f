"""Checks the header of a GGUF file against the size of the file, before a reader takes its word for anything.

    check_gguf(Path("model.gguf"))        SourceError for counts, lengths or offsets that the file cannot hold

A file of 49 bytes can claim an array of 2^64 values, and a reader that believes it takes all memory. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from aftertune import bounds
from aftertune.errors import SourceError

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
