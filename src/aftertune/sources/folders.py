"""Owns the check of a model folder before anything heavy is loaded.

    config = check_folder(Path("out/merged"), "out/merged")     # its config.json, or one clear SourceError
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aftertune.errors import SourceError
from aftertune.sources.tensors import check_index, read_header, weight_files

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
