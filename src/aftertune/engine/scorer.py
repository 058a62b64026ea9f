"""Computes log-probabilities of continuations with one forward pass over a batch of rows.

    Scorer(model, packed=True).run(rows)      # {position: TokenScores(logprobs=[targets], greedy=True)}

Packed rows are concatenated into one flat batch, with depths as position ids and the attention of attention.py. Plain
rows are single sequences, padded on the right and without a mask, as in lm-eval. In both cases only the positions that
predict a target go through the output head, and log-softmax is computed in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aftertune.engine.attention import AttentionBackend, Prefix, TorchBackend, attending, reading
from aftertune.engine.packing import PackedRow, prompt_row

#: Rows of logits that are converted to float32 at a time, on a CPU.
CHUNK = 32


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The scores of one request.

    logprobs: natural log-probability of each target token [targets]; greedy: True if every target was the argmax; top:
    the largest logit at these positions, from which `verify` computes the rounding error of a low precision.
    """

    logprobs: NDArray[np.float32]
    greedy: bool
    top: float = 0.0

    @property
    def total(self) -> float:
        return float(self.logprobs.sum(dtype=np.float32))


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """The config of the language model, also of one inside a composite model."""
    return unwrapped(model).config.get_text_config()


def config_number(config: Any, name: str) -> int:
    """An integer of a config; 0 if it is missing or differs between layers."""
    try:
        value = getattr(config, name, 0)
    except RuntimeError:  # raised by transformers for a value that differs between layers
        return 0
    return int(value) if isinstance(value, int | float) else 0


class Scorer:
    """Scores rows with one model, packed or plain. backend: computes packed rows; torch by default."""

    def __init__(self, model: Any, *, packed: bool, backend: AttentionBackend | None = None) -> None:
        self.model = model
        self.packed = packed
        self.backend: AttentionBackend = backend or TorchBackend(model)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
        self._prefix: tuple[tuple[int, ...], Prefix] | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @torch.inference_mode()
    def run(self, rows: Sequence[PackedRow], prefix: tuple[int, ...] = ()) -> dict[int, TokenScores]:
        """Scores of every branch of ``rows``, by request position. prefix: tokens before every row (packed only)."""
        if not self.packed:
            return _branch_scores(self._padded(rows), rows, self.summary)
        with attending(self.model, self.backend.rows(rows, prefix=self.prefix(prefix))):
            return _branch_scores(self.flat(rows), rows, self.summary)

    def summary(self, logits: torch.Tensor) -> Summary:
        """The numbers of logits [kept, vocabulary] from which log-probabilities are computed."""
        from_backend = self.backend.summarize(logits) if self.packed else None
        return Summary(logits, *(from_backend or _log_norms(logits)))

    def flat(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        """Logits [kept positions of all rows, vocabulary] of concatenated rows. Must run inside `attending`."""
        starts = np.cumsum([0, *(row.length for row in rows)])[:-1]
        keep = torch.from_numpy(np.concatenate([s + row.keep for s, row in zip(starts, rows, strict=True)]))
        with reading(keep):
            return self.forward(_joined(rows, "tokens"), keep, _joined(rows, "depth"))

    def prefix(self, tokens: tuple[int, ...]) -> Prefix | None:
        """Keys and values of ``tokens``; None for no tokens. The most recent prefix is cached."""
        if not tokens:
            return None
        if self._prefix is None or self._prefix[0] != tokens:
            self._prefix = None  # frees the old prefix before the new one is computed
            self._prefix = (tokens, self._compute_prefix(tokens))
        return self._prefix[1]

    def _compute_prefix(self, tokens: tuple[int, ...]) -> Prefix:
        prefix, row = self.backend.prefix(len(tokens)), prompt_row(tokens)
        with attending(self.model, self.backend.rows([row], keep=prefix.keep)):
            self.flat([row])
        return prefix

    def _padded(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        """Logits [kept positions of all rows, vocabulary] of single sequences, padded on the right, without a mask."""
        length = max(row.length for row in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        keep = torch.zeros(len(rows), length, dtype=torch.bool)
        for r, row in enumerate(rows):
            tokens[r, : row.length] = torch.from_numpy(row.tokens)
            keep[r, torch.from_numpy(row.keep)] = True
        return self.forward(tokens, keep)

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor, depth: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [kept, vocabulary] of tokens [rows, length] or [length].

        keep: bool [rows, length], or indices into one flat row; depth: position ids of a flat row [length].
        """
        keep, tokens = keep.to(self.device), torch.atleast_2d(tokens).to(self.device)
        options: dict[str, Any] = {} if depth is None else {"position_ids": depth[None].to(self.device)}
        if self._takes_logits_to_keep and keep.ndim == 1:  # older releases of transformers take no 2-D mask
            logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=keep, **options).logits
            return logits.reshape(-1, logits.shape[-1])
        head = unwrapped(self.model).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (_kept(args[0], keep, tokens.shape[1]),))
        try:
            logits = self.model(input_ids=tokens, use_cache=False, **options).logits
        finally:
            hook.remove()
        return logits.reshape(-1, logits.shape[-1])


def _kept(hidden: torch.Tensor, keep: torch.Tensor, length: int) -> torch.Tensor:
    """The hidden states at the kept positions [1, kept, width], from those of all positions [rows, length, width].

    A prompt-learning adapter puts tokens of its own before the ``length`` tokens of a row; these are never kept.
    """
    own = hidden[:, hidden.shape[1] - length:]
    return own[keep if keep.ndim == 2 else (slice(None), keep)].reshape(1, -1, hidden.shape[-1])


def _joined(rows: Sequence[PackedRow], name: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))


@dataclass(frozen=True, slots=True)
class Summary:
    """Logits [kept, vocabulary] and three numbers of each row [kept].

    norm: log of the sum of exponentials (float32); top: the largest logit (float32); best: the index of the largest
    logit (int64), None if the backend does not compute it.
    """

    logits: torch.Tensor
    norm: torch.Tensor
    top: torch.Tensor
    best: torch.Tensor | None = None


def _branch_scores(logits: torch.Tensor, rows: Sequence[PackedRow], summarize: Callable[[torch.Tensor], Summary]
                   ) -> dict[int, TokenScores]:
    """The scores of each branch, by request position, from logits [kept positions of all rows, vocabulary]."""
    flat: list[NDArray[np.int64]] = []
    offset = 0
    for row in rows:
        flat += [offset + np.searchsorted(row.keep, b.nodes) for b in row.branches]
        offset += len(row.keep)
    branches = [b for row in rows for b in row.branches]
    index = torch.from_numpy(np.concatenate(flat)).to(logits.device)
    target = torch.from_numpy(np.concatenate([b.targets for b in branches])).to(logits.device)
    summary = summarize(logits)
    target_logits = logits[index, target].float()
    logprobs = (target_logits - summary.norm[index]).cpu().numpy()
    sizes = [len(b.targets) for b in branches]
    greedy = _is_argmax(summary, target_logits, index, target, sizes).cpu().numpy()
    tops = summary.top[index].cpu().numpy()
    scores, start = {}, 0
    for branch in branches:
        end = start + len(branch.targets)
        scores[branch.position] = TokenScores(logprobs[start:end], bool(greedy[start:end].all()),
                                              float(tops[start:end].max()))
        start = end
    return scores


def _is_argmax(summary: Summary, target_logits: torch.Tensor, index: torch.Tensor, target: torch.Tensor,
               sizes: list[int]) -> torch.Tensor:
    """bool [targets]: was each target the argmax? Of equal logits, the first one is.

    Ties are resolved only for branches whose targets all have the largest logit; elsewhere they change no result.
    """
    if summary.best is not None:
        return summary.best[index] == target
    largest = target_logits == summary.top[index]
    to_check = _all_in_segment(largest, sizes)
    if bool(to_check.any()):
        largest[to_check] = summary.logits[index[to_check]].argmax(-1) == target[to_check]
    return largest


def _all_in_segment(flags: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """For each flag: are all flags of its segment set? The segments are consecutive and have these sizes."""
    size = torch.tensor(sizes, device=flags.device)
    segment = torch.repeat_interleave(torch.arange(len(sizes), device=flags.device), size)
    count = torch.zeros(len(sizes), dtype=torch.long, device=flags.device).index_add_(0, segment, flags.long())
    return (count == size)[segment]


def _log_norms(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the sum of exponentials and largest logit of each row, both float32 [rows].

    Computed in chunks that fit in the cache, with one buffer: large temporaries cost more time than the sums.
    """
    chunk = CHUNK if logits.device.type == "cpu" else 16 * CHUNK
    buffer = torch.empty(min(chunk, len(logits)), logits.shape[-1], dtype=torch.float32, device=logits.device)
    norm, top = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
    for start in range(0, len(logits), chunk):
        part = logits[start: start + chunk]
        largest = part.amax(-1).float()
        top[start: start + chunk] = largest
        work = torch.sub(part, largest[:, None], out=buffer[: len(part)]).exp_()
        norm[start: start + chunk] = work.sum(-1).log_().add_(largest)
    return norm, top
