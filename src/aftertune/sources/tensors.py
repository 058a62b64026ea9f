"""Reads tensors of safetensors and GGUF files through a memory map, without torch.

    for info, data in read_bytes(Path("model.safetensors")):
        info.name, info.dtype, info.shape, len(data)

    gguf = read_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    gguf.metadata["general.architecture"]        # "llama"
    gguf.tensors[0].name, .dtype, .shape         # "blk.0.attn_k.weight", "Q4_1", (576, 192)

Safetensors format (https://github.com/huggingface/safetensors, "Format"): 8 bytes with the little-endian header length
N, N bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the data. The offsets count from the
start of the data.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aftertune import bounds
from aftertune.errors import SourceError, shown
from aftertune.paths import is_file
from aftertune.sources.gguf_header import check_gguf, check_sizes
from aftertune.values import digest, from_json, json_ready

# --- GGUF files ---

@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """A stored tensor. shape: in the file's order, fastest dimension first. data: raw blocks, not dequantised."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufContents:
    """The content of a GGUF file. metadata: every key except the ``GGUF.*`` counts that the reader adds."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def function_metadata(self) -> dict[str, Any]:
        """The keys that define the forward pass: the architecture and the keys that begin with its name.

        Names, authors, licence, ``general.file_type`` and ``general.quantization_version`` describe the file (each
        tensor has its own type). The tokenizer's keys have a fingerprint of their own.
        """
        prefix = f"{self.architecture}."
        return {k: v for k, v in self.metadata.items() if k == "general.architecture" or k.startswith(prefix)}

    def tokenizer_metadata(self) -> dict[str, Any]:
        """Tokens, merges, special ids and the chat template."""
        return {k: v for k, v in self.metadata.items() if k.startswith("tokenizer.")}


#: Characters of the name of an architecture.
_LONGEST_NAME = 100


def read_gguf(path: Path) -> GgufContents:
    """Read a GGUF file; its tensors stay memory-mapped.

    Raises SourceError for a truncated or damaged file. Takes seconds, because the reader goes through every token.
    """
    from gguf import GGUFReader

    check_gguf(path)
    try:
        reader = GGUFReader(path)
        metadata = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    except (MemoryError, SystemError) as error:  # numpy and Python's own C code raise the second one without memory
        raise MemoryError from error
    except Exception as error:  # of numpy and gguf, of many kinds
        raise SourceError(f"{path}: truncated or damaged GGUF file ({path.stat().st_size} bytes, "
                          f"{type(error).__name__}); download it again") from error
    tensors = tuple(GgufTensor(name=str(t.name), dtype=t.tensor_type.name, data=t.data,
                               shape=tuple(int(n) for n in t.shape))
                    for t in sorted(reader.tensors, key=lambda t: str(t.name)))
    _refuse_part(path, metadata)
    name = metadata.get("general.architecture")
    if not tensors or not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise SourceError(f"{path}: a GGUF file without weights or architecture, perhaps only a vocabulary; give "
                          "a complete model")
    return GgufContents(metadata=metadata, tensors=tensors)


def _refuse_part(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise SourceError where the file is one of several that are one model."""
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        raise SourceError(f"{path}: this is one of the {parts:,} parts of a split GGUF; join the parts first with "
                          "`llama-gguf-split --merge FIRST_PART OUT.gguf`")


# --- Safetensors files ---

#: Limit of the format on the size of the header, in bytes.
HEADER_LIMIT = bounds.SAFETENSORS_HEADER
#: Bits of one value by dtype, as in the safetensors library.
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
         "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32,
         "F32": 32, "C64": 64, "U64": 64, "I64": 64, "F64": 64}
#: PEFT's names of an adapter's tensors: MODULE_PREFIX begins the name of a tensor of one module of the base;
#: SHARED_PREFIX alone begins that of a tensor that all layers share (VeRA's ``base_model.vera_A``).
MODULE_PREFIX, SHARED_PREFIX = "base_model.model.", "base_model."
#: How the names of token embeddings end.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "token_embd.weight", "embed_in.weight", "word_embeddings.weight")
#: The first bytes of a Git LFS pointer.
LFS_MARK = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A stored tensor. begin, end: byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def is_shared(name: str) -> bool:
    """True if ``name`` is an adapter's tensor that all layers share."""
    return name.startswith(SHARED_PREFIX) and not name.startswith(MODULE_PREFIX)


def read_header(path: Path) -> tuple[TensorInfo, ...]:
    """The tensors of a safetensors file, in name order. The size of the file must agree with the header.

    Raises SourceError for a truncated or damaged file and for a file of another format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(LFS_MARK))
        if head == LFS_MARK:
            raise SourceError(f"{path}: found a Git LFS pointer instead of weights; download the file with "
                              "`git lfs pull`")
        length = int.from_bytes(head[:8], "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise SourceError(f"{path}: truncated or not safetensors: its header claims {length} bytes, the "
                              f"file has {size}; download it again")
        file.seek(8)
        raw = file.read(length)
    try:
        entries: dict[str, Any] = from_json(raw)
        entries.pop("__metadata__", None)
        infos = tuple(_info(name, entry, 8 + length) for name, entry in sorted(entries.items()))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise SourceError(f"{path}: the safetensors header is damaged; download the file again") from None
    _check_sizes(path, infos)
    _check_extent(path, infos, 8 + length, size)
    return infos


def _info(name: str, entry: dict[str, Any], start: int) -> TensorInfo:
    begin, end = (int(n) for n in entry["data_offsets"])
    return TensorInfo(name=name, dtype=str(entry["dtype"]), shape=tuple(int(n) for n in entry["shape"]),
                      begin=start + begin, end=start + end)


def _check_sizes(path: Path, infos: tuple[TensorInfo, ...]) -> None:
    """Raise SourceError unless each tensor has as many bytes as its dtype and shape say."""
    for info in infos:
        bits = _BITS.get(info.dtype)
        if bits is None:
            raise SourceError(f"{path}: the tensor {shown(info.name)} has the unknown dtype {shown(info.dtype)}; known "
                              f"are {', '.join(_BITS)}; download the file again")
        if min(info.shape, default=0) < 0 or math.prod(info.shape) * bits != 8 * (info.end - info.begin):
            raise SourceError(f"{path}: the tensor {shown(info.name)} has {shown(info.end - info.begin)} bytes, which "
                              f"is not {info.dtype} of shape {shown(list(info.shape))}; download the file again")


def _check_extent(path: Path, infos: tuple[TensorInfo, ...], start: int, size: int) -> None:
    expected = max((i.end for i in infos), default=start)
    if expected != size:
        raise SourceError(f"{path}: truncated or damaged: the header says {expected} bytes, the file has "
                          f"{size}; download it again")
    if any(not start <= i.begin <= i.end for i in infos):
        raise SourceError(f"{path}: the safetensors header has offsets outside the data; download the file "
                          "again")


def read_bytes(path: Path) -> Iterator[tuple[TensorInfo, memoryview]]:
    """Each tensor of a safetensors file with its raw bytes, which are valid until the next one is read."""
    infos = read_header(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for info in infos:
            with memoryview(data) as view, view[info.begin:info.end] as raw:
                yield info, raw


#: Floating-point dtypes that `as_float32` reads, as numpy names their bytes. BF16 has the upper half of a float32.
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def as_float32(info: TensorInfo, raw: memoryview) -> Any:
    """A copy of the values of a stored floating-point tensor, as a numpy array in float32.

    raw: its bytes, as `read_bytes` gives them. Raises SourceError for another dtype.
    """
    import numpy as np

    if info.dtype not in _FLOATS:
        raise SourceError(f"the tensor {shown(info.name)} is stored as {info.dtype}; allowed are "
                          f"{', '.join(_FLOATS)}; use weights that are not quantised")
    values = np.frombuffer(raw, dtype=_FLOATS[info.dtype]).reshape(info.shape)
    if info.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder: ``model.safetensors``, or the shards that its index lists.

    Empty if there are none. Raises SourceError if a shard is missing or the index is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if not index.is_file():
        return ()
    try:
        names = sorted(set(from_json(index.read_bytes())["weight_map"].values()))
        outside = [n for n in names if Path(n).name != n]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise SourceError(f"{index}: not an index of shards; download it again") from None
    if outside:
        raise SourceError(f"{index}: lists {outside[0]!r}, which is not a plain file name; download it again")
    missing = [n for n in names if not is_file(folder / n)]
    if missing:
        first = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise SourceError(f"{folder}: {len(missing)} of {len(names)} shards in the index are missing: {first}; "
                          "download them")
    return tuple(folder / n for n in names)


class TensorFolder:
    """The tensors of a model folder by name. Each is read when it is asked for. Raises SourceError for damaged files.

    infos: name -> the stored tensor. used: the names that were found.
    """

    def __init__(self, folder: Path) -> None:
        self.infos: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        self.used: set[str] = set()
        for path in weight_files(folder):
            for info in read_header(path):
                self.infos[info.name], self._files[info.name] = info, path

    def find(self, parameter: str) -> str | None:
        """The name in the files of a parameter of the model; files may leave out or add the prefix of its body."""
        found = parameter if parameter in self.infos else next(
            (n for n in self.infos if parameter.endswith(f".{n}") or n.endswith(f".{parameter}")), None)
        if found is not None:
            self.used.add(found)
        return found

    def read(self, name: str) -> Any:
        """The values of a tensor in float32."""
        info = self.infos[name]
        with self._files[name].open("rb") as file:
            file.seek(info.begin)
            return as_float32(info, memoryview(file.read(info.end - info.begin)))


def check_index(folder: Path) -> None:
    """Raise SourceError if the index lists tensors that are in no shard."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    listed = set(from_json(index.read_bytes())["weight_map"])
    stored = {info.name for path in weight_files(folder) for info in read_header(path)}
    if listed - stored:
        raise SourceError(f"{index}: lists {len(listed - stored)} tensors that are in no shard, first "
                          f"{min(listed - stored)!r}; download the shards again")


# --- What the tensors of a model are ---

#: Endings of the names of output heads.
HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")


def is_embedding(name: str) -> bool:
    """Whether a tensor has the token embeddings."""
    return name.endswith(EMBEDDINGS)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The content of one stored tensor. sha: sha256 of its raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha: str


def digest_tensors(tensors: Iterable[StoredTensor]) -> str:
    """sha256 over (name, dtype, shape, sha256 of the bytes) in name order."""
    return digest([[t.name, t.dtype, list(t.shape), t.sha] for t in sorted(tensors, key=lambda t: t.name)])


def count_parameters(tensors: Iterable[StoredTensor]) -> int:
    """Number of values in all tensors. An output head that is a copy of the token embedding is not counted again."""
    listed = list(tensors)
    embeddings = {(t.sha, t.shape) for t in listed if t.name.endswith(EMBEDDINGS)}
    return sum(math.prod(t.shape) for t in listed
               if not (t.name.endswith(HEADS) and (t.sha, t.shape) in embeddings))


def read_gguf_facts(path: Path) -> dict[str, Any]:
    """The hashes, the architecture and the number of parameters of a GGUF file. Raises SourceError if it is damaged,
    or if its metadata and its tensors do not fit together.

    It is called in a process with limits (`aftertune.sources.gguf_child`).
    """
    contents = read_gguf(path)
    check_sizes(contents.metadata, {t.name: t.shape for t in contents.tensors}, path)
    tensors = list(_gguf_tensors(contents))
    return {"weights": digest_tensors(tensors), "config": digest(json_ready(contents.function_metadata())),
            "tokenizer": digest(json_ready(contents.tokenizer_metadata())),
            "architecture": contents.architecture, "parameters": count_parameters(tensors)}


def _gguf_tensors(contents: GgufContents) -> Iterator[StoredTensor]:
    import numpy as np

    for t in contents.tensors:
        sha = hashlib.sha256(np.ascontiguousarray(t.data).data).hexdigest()
        yield StoredTensor(t.name, t.dtype, t.shape, sha)
