"""Owns reading a GGUF file's metadata and raw tensors (before any dequantisation), memory-mapped.

    gguf = read_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    gguf.metadata["general.architecture"]        # "llama"
    gguf.tensors[0].name, .dtype, .shape         # "blk.0.attn_k.weight", "Q4_1", (576, 192)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A stored tensor. shape: in the file's order (fastest first); data: its raw blocks."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufContents:
    """All of a GGUF file. metadata: every key but the reader's own ``GGUF.*`` counts."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def function_metadata(self) -> dict[str, Any]:
        """The keys that define the forward pass: the architecture and its own keys.

        Names, authors, licence, ``general.file_type`` and ``general.quantization_version`` describe the file
        (each tensor carries its own type); tokenizer keys are fingerprinted on their own.
        """
        own = f"{self.architecture}."
        return {k: v for k, v in self.metadata.items() if k == "general.architecture" or k.startswith(own)}

    def tokenizer_metadata(self) -> dict[str, Any]:
        """Tokens, merges, special ids and the chat template."""
        return {k: v for k, v in self.metadata.items() if k.startswith("tokenizer.")}


def read_gguf(path: Path) -> GgufContents:
    """Read a GGUF file; its tensors stay memory-mapped.

    Raises SourceError for a truncated or damaged file. Takes seconds: the reader walks every token.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, UnicodeDecodeError):
        raise SourceError(f"{path}: truncated or damaged GGUF file ({path.stat().st_size} bytes); fetch it "
                          "again") from None
    tensors = tuple(GgufTensor(name=str(t.name), dtype=t.tensor_type.name, data=t.data,
                               shape=tuple(int(n) for n in t.shape))
                    for t in sorted(reader.tensors, key=lambda t: str(t.name)))
    if not tensors or "general.architecture" not in metadata:
        raise SourceError(f"{path}: a GGUF file without weights or architecture (a vocabulary only?); give a "
                          "whole model")
    return GgufContents(metadata=metadata, tensors=tensors)
