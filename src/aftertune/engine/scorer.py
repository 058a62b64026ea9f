"""Log-probabilities of continuations: one forward pass over a batch of rows.

Packed rows lie end to end in one flat batch, with depths as position ids, and ours is the attention; plain rows are
single sequences, padded on the right, with no mask, as lm-eval runs them. In both only the positions that predict a
target go through the output head, and log-softmax is in float32.

    Scorer(model, packed=True).run(rows)   ->  {position: TokenScores(logprobs=[targets], greedy=True)}
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
from aftertune.engine.packing import PackedRow, path

#: Rows of logits turned into float32 at a time, on a CPU.
CHUNK = 32


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Natural log-probability of each target token [targets]; greedy: every one was the argmax; top: the largest
    logit met on the way, which tells how coarse a low precision is here."""

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
    """The config of the language model, inside a composite one too."""
    return unwrapped(model).config.get_text_config()


def config_number(config: Any, name: str) -> int:
    """A whole number of a config; 0 where it has none, or a different one for each layer."""
    try:
        value = getattr(config, name, 0)
    except RuntimeError:  # transformers raises it for what differs from layer to layer
        return 0
    return int(value) if isinstance(value, int | float) else 0


class Scorer:
    """Scores rows with one model, packed or plain. backend: what computes packed rows; torch, if not given."""

    def __init__(self, model: Any, *, packed: bool, backend: AttentionBackend | None = None) -> None:
        self.model = model
        self.packed = packed
        self.backend: AttentionBackend = backend or TorchBackend(model)
        self._keeps = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
        self._prefix: tuple[tuple[int, ...], Prefix] | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @torch.inference_mode()
    def run(self, rows: Sequence[PackedRow], prefix: tuple[int, ...] = ()) -> dict[int, TokenScores]:
        """Scores of every branch of ``rows``, by request position. prefix: tokens before every row (packed only)."""
        if not self.packed:
            return _read(self._padded(rows), rows, self.summary)
        with attending(self.model, self.backend.rows(rows, prefix=self.prefix(prefix))):
            return _read(self.flat(rows), rows, self.summary)

    def summary(self, logits: torch.Tensor) -> Summary:
        """What log-probabilities need of logits [kept, vocabulary]."""
        found = self.backend.summarize(logits) if self.packed else None
        return Summary(logits, *(found or _norms(logits)))

    def flat(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        """Logits [kept positions of all rows, vocabulary] of rows that lie end to end, under a layout in force."""
        starts = np.cumsum([0, *(row.length for row in rows)])[:-1]
        keep = torch.from_numpy(np.concatenate([s + row.keep for s, row in zip(starts, rows, strict=True)]))
        with reading(keep):
            return self.forward(_joined(rows, "tokens"), keep, _joined(rows, "depth"))

    def prefix(self, tokens: tuple[int, ...]) -> Prefix | None:
        """Keys and values of ``tokens``; the last ones asked for are kept."""
        if not tokens:
            return None
        if self._prefix is None or self._prefix[0] != tokens:
            self._prefix = None  # let go of the old one before the new one is made
            self._prefix = (tokens, self._compute(tokens))
        return self._prefix[1]

    def _compute(self, tokens: tuple[int, ...]) -> Prefix:
        prefix, one = self.backend.prefix(len(tokens)), path(tokens)
        with attending(self.model, self.backend.rows([one], keep=prefix.keep)):
            self.flat([one])
        return prefix

    def _padded(self, rows: Sequence[PackedRow]) -> torch.Tensor:
        """The same of single sequences, padded on the right, without a mask."""
        length = max(row.length for row in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        keep = torch.zeros(len(rows), length, dtype=torch.bool)
        for r, row in enumerate(rows):
            tokens[r, : row.length] = torch.from_numpy(row.tokens)
            keep[r, torch.from_numpy(row.keep)] = True
        return self.forward(tokens, keep)

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor, depth: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [kept, vocabulary]. keep: bool [rows, length], or indices into one flat row."""
        keep, tokens = keep.to(self.device), torch.atleast_2d(tokens).to(self.device)
        options: dict[str, Any] = {} if depth is None else {"position_ids": depth[None].to(self.device)}
        if self._keeps and keep.ndim == 1:  # masks of two dimensions are younger than the releases that we take
            logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=keep, **options).logits
            return logits.reshape(-1, logits.shape[-1])
        place = keep if keep.ndim == 2 else (slice(None), keep)
        head = unwrapped(self.model).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][place].reshape(1, -1, args[0].shape[-1]),))
        try:
            logits = self.model(input_ids=tokens, use_cache=False, **options).logits
        finally:
            hook.remove()
        return logits.reshape(-1, logits.shape[-1])


def _joined(rows: Sequence[PackedRow], name: str) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))


@dataclass(frozen=True, slots=True)
class Summary:
    """Logits [kept, vocabulary] and what is known of each row [kept]: norm, the log of its sum of exponentials; top,
    its largest logit; best, the index of that (float32, float32, int64), None where it was not looked for."""

    logits: torch.Tensor
    norm: torch.Tensor
    top: torch.Tensor
    best: torch.Tensor | None = None


def _read(logits: torch.Tensor, rows: Sequence[PackedRow], summary: Callable[[torch.Tensor], Summary]
          ) -> dict[int, TokenScores]:
    """Gather each branch's targets from the kept logits."""
    flat: list[NDArray[np.int64]] = []
    offset = 0
    for row in rows:
        flat += [offset + np.searchsorted(row.keep, b.nodes) for b in row.branches]
        offset += len(row.keep)
    branches = [b for row in rows for b in row.branches]
    index = torch.from_numpy(np.concatenate(flat)).to(logits.device)
    target = torch.from_numpy(np.concatenate([b.targets for b in branches])).to(logits.device)
    known = summary(logits)
    chosen = logits[index, target].float()
    logprobs = (chosen - known.norm[index]).cpu().numpy()
    sizes = [len(b.targets) for b in branches]
    greedy, tops = _greedy(known, chosen, index, target, sizes).cpu().numpy(), known.top[index].cpu().numpy()
    scores, start = {}, 0
    for branch in branches:
        end = start + len(branch.targets)
        scores[branch.position] = TokenScores(logprobs[start:end], bool(greedy[start:end].all()),
                                              float(tops[start:end].max()))
        start = end
    return scores


def _greedy(known: Summary, chosen: torch.Tensor, index: torch.Tensor, target: torch.Tensor, sizes: list[int]
            ) -> torch.Tensor:
    """Was each target the argmax? Of equal logits the first one is; they are looked at only where it matters."""
    if known.best is not None:
        return known.best[index] == target
    best = chosen == known.top[index]
    ties = _whole(best, sizes)
    if bool(ties.any()):
        best[ties] = known.logits[index[ties]].argmax(-1) == target[ties]
    return best


def _whole(flags: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """``flags`` where all flags of a part are set, else False; the parts lie end to end, of these sizes."""
    size = torch.tensor(sizes, device=flags.device)
    part = torch.repeat_interleave(torch.arange(len(sizes), device=flags.device), size)
    found = torch.zeros(len(sizes), dtype=torch.long, device=flags.device).index_add_(0, part, flags.long())
    return (found == size)[part]


def _norms(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the sum of exponentials, and the largest logit, of each row; float32 [rows].

    In chunks that stay in the cache, with one buffer: temporaries of this size cost more than the sums.
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
