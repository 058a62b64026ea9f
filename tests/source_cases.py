"""Small model folders for the tests of the sources room: plain files written without torch, and tiny real
models and tokenizers made by transformers and tokenizers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    "vocab_size": 16, "rope_theta": 10000.0, "attention_dropout": 0.0, "use_cache": True,
    "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.40.0",
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Three named tensors with random content."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (16, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8),
              "model.norm.weight": (8,)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, *, config: dict[str, Any] | None = None, shards: int = 1,
                 weights: dict[str, np.ndarray] | None = None) -> Path:
    """A model folder: config.json, the weights in ``shards`` files, and a small tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    words = {"model": {"vocab": {"a": 0, "b": 1}}, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    weights = tensors() if weights is None else weights
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(sorted(weights))}
    for name in names:
        save_file({t: weights[t] for t, n in where.items() if n == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def tiny_tokenizer(*, pad: bool = True, words: int = 60) -> Any:
    """A word-level tokenizer with ``words`` words and <unk>, <s>, </s> (and <pad>)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(["<pad>"] if pad else [])]
    vocabulary = {t: i for i, t in enumerate([*special, *(f"w{i}" for i in range(words))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>",
                                        eos_token="</s>", pad_token="<pad>" if pad else None)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return tokenizer


def tiny_llama(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, pad: bool = True,
               words: int = 60, vocab: int = 64) -> Path:
    """A seeded random Llama with its tokenizer, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden,
                         num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer(pad=pad, words=words).save_pretrained(folder)
    return folder


def tiny_adapter(base: Path, out: Path, *, targets: tuple[str, ...] = ("q_proj", "v_proj"),
                 seed: int = 1, fresh: bool = False) -> Path:
    """A LoRA adapter of ``base`` with random (not zero) weights, saved by PEFT. fresh: as before the first step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base),
                           LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name and not fresh:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(out)
    return out


def flip_byte(path: Path, at: int = -1) -> None:
    """Change one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


#: Status and error code of models that cannot be had.
ANSWERS = {
    "/api/models/acme/absent": (404, "RepoNotFound"), "/api/models/acme/gated": (403, "GatedRepo"),
    "/api/models/acme/secret": (401, ""), "/api/models/acme/broken": (500, ""),
    "/api/models/acme/tiny": (404, "RevisionNotFound"),
}


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the Hub does for models that cannot be had."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0].split("/revision/")[0]
        status, code = ANSWERS.get(path, (404, "RepoNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "Bearer hf_SECRET is not allowed")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@contextlib.contextmanager
def answering_hub(patch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server on this machine in place of the Hub, and leave to ask it."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        patch.delenv(name, raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    patch.setenv("HF_TOKEN", "hf_SECRET")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
