"""A server with OpenAI's completions API that answers with a tiny model, as vLLM or llama.cpp would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class ModelServer(ThreadingHTTPServer):
    """style: "vllm" (gives log-probabilities of prompts and tokens) or "llamacpp" (does not). names: of its models.
    fails: status codes to answer with before anything else. halves: how many answers break off in the middle. asked:
    what was posted; paths: what was asked at all. longest: characters of a prompt; a longer one is refused with 400.
    odd: the status of every path but those of OpenAI's API, 0 for what the style has there."""

    daemon_threads = True

    def __init__(self, folder: Path, style: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.style, self.version, self.raw = style, "0.99", b""
        self.fails: list[int] = []
        self.names, self.paths = ["tiny"], list[str]()
        self.halves, self.longest, self.odd = 0, 10**6, 0
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.lock = threading.Lock()
        self.drops_system = self.adds_bos = False
        self.after = -1  # answers before the connection is dropped; -1: never

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def prompt(self, messages: list[dict[str, str]]) -> str:
        if self.drops_system:
            messages = [m for m in messages if m["role"] != "system"]
        ends = messages[-1]["role"] == "assistant"  # both servers continue an answer
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not ends,
                                                      continue_final_message=ends))

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"]
        text, count, reason = self.generated(ids, body)
        choice: dict[str, Any] = {"text": text, "finish_reason": reason}
        if body.get("echo"):
            choice |= {"logprobs": self.logprobs(ids) if self.style == "vllm" else None}
        return {"choices": [choice], "usage": {"completion_tokens": count}}

    def generated(self, ids: list[int], body: dict[str, Any]) -> tuple[str, int, str]:
        import torch

        with torch.no_grad():
            made = self.model.generate(torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False,
                                       pad_token_id=0, eos_token_id=self.tokenizer.eos_token_id)[0, len(ids):]
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        for stop in body.get("stop", []):
            if stop in text:
                return text.split(stop)[0], len(made), "stop"
        ended = int(made[-1]) == self.tokenizer.eos_token_id
        return text, len(made), "stop" if ended else "length"

    def logprobs(self, ids: list[int]) -> dict[str, Any]:
        """Of the prompt and of one generated token, as vLLM gives them."""
        import torch

        with torch.no_grad():
            rows = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        whole = [*ids, int(rows[-1].argmax())]
        values = [None, *(float(rows[n, token]) for n, token in enumerate(whole[1:]))]
        best = [None, *(float(row.max()) for row in rows)]
        tokens = [self.tokenizer.decode([token]) for token in whole]
        return {"tokens": tokens, "token_logprobs": values,
                "top_logprobs": [None if b is None else {"best": b} for b in best]}


class Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_GET(self) -> None:
        vllm = self.server.style == "vllm"
        self.server.paths.append(self.path)
        if self.server.odd and not self.path.startswith("/v1/"):
            self.reply({"error": "odd"}, self.server.odd)
            return
        self.reply({"/v1/models": {"data": [{"id": name, "owned_by": "vllm" if vllm else "llamacpp"}
                                            for name in self.server.names]},
                    "/version": {"version": self.server.version} if vllm else None,
                    "/props": None if vllm else {"build_info": "b6123-abc", "model_path": "/home/me/tiny-q8_0.gguf",
                                                 "chat_template": "{{ messages }}",
                                                 "default_generation_settings": {"n_ctx": 1024, "params": {
                                                     "temperature": 0.8}}}}.get(self.path))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, body, self.headers.get("Authorization")))
            server.paths.append(self.path)
            half, server.halves = server.halves > 0, max(server.halves - 1, 0)
            fails = server.fails.pop(0) if server.fails else 0
            if server.after == 0:
                self.close_connection = True
                return
            server.after -= server.after > 0
        if fails:
            self.reply({"error": {"message": f"failed with {fails}"}}, fails)
        elif half:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{\"choices\": [")
            self.close_connection = True
        elif server.odd and not self.path.startswith("/v1/"):
            self.reply({"error": "odd"}, server.odd)
        elif body.get("model") not in (None, *server.names):
            self.reply({"error": {"message": f"no model {body['model']}"}}, 404)
        elif len(str(body.get("prompt", ""))) > server.longest:
            self.reply({"error": {"message": "exceeds the available context size"}}, 400)
        elif server.raw:
            self.wfile.write(server.raw)
        elif self.path == "/tokenize" and server.style == "vllm":
            self.reply({"tokens": server.tokenizer(body["prompt"])["input_ids"]})
        elif self.path == "/apply-template" and server.style == "llamacpp":
            self.reply({"prompt": server.prompt(body["messages"])})
        elif self.path == "/tokenize" and "content" in body:
            added = [server.tokenizer.bos_token_id] if server.adds_bos else []
            self.reply({"tokens": [*added, *server.tokenizer(body["content"], add_special_tokens=False)["input_ids"]]})
        elif self.path == "/v1/completions":
            with server.lock:
                self.reply(server.completion(body))
        elif self.path == "/v1/chat/completions":
            with server.lock:
                prompt = server.prompt(body["messages"])
                found = server.completion({**body, "prompt": prompt})
            choice = found["choices"][0]
            self.reply({"choices": [{"message": {"content": choice["text"]},
                                     "finish_reason": choice["finish_reason"]}]})
        else:
            self.reply(None)

    def reply(self, value: Any, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(404 if value is None else status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextmanager
def served(folder: Path, style: str = "vllm") -> Iterator[ModelServer]:
    """The server, running in a thread."""
    with ModelServer(folder, style) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
