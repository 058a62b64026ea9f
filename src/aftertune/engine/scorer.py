"""Log-probabilities of continuations: one forward pass over a batch of rows.

Packed rows get a 4-D float mask (0 where a query sees a key, the dtype's minimum elsewhere) and depths as
position ids; plain rows are single sequences, padded on the right, with no mask, as lm-eval runs them. In
both only the positions that predict a target go through the output head, and log-softmax is in float32.

    Scorer(model, packed=True).run(rows)   ->  {position: TokenScores(logprobs=[targets], greedy=True)}
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aftertune.engine.trie import Row, sees

#: Rows of logits turned into float32 at a time.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Natural log-probability of each target token [targets]; greedy: every one was the argmax."""

    logprobs: NDArray[np.float32]
    greedy: bool

    @property
    def total(self) -> float:
        return float(self.logprobs.sum(dtype=np.float32))


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """The config of the language model, inside a composite one too."""
    return unwrapped(model).config.get_text_config()


class Scorer:
    """Scores rows with one model, packed or plain."""

    def __init__(self, model: Any, *, packed: bool) -> None:
        self.model = model
        self.packed = packed
        base = unwrapped(model)
        self._keeps = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._config = text_config(model)
        self._mask_kinds = _mask_kinds(base, self._config) if packed else None

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> dict[int, TokenScores]:
        """Scores of every branch of ``rows``, by request position."""
        length = max(row.length for row in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        keep = torch.zeros(len(rows), length, dtype=torch.bool)
        for r, row in enumerate(rows):
            tokens[r, : row.length] = torch.from_numpy(row.tokens)
            keep[r, torch.from_numpy(row.keep)] = True
        logits = self._forward(tokens.to(self.device), keep.to(self.device), self._layout(rows, length))
        return _read(logits, rows)

    def _layout(self, rows: list[Row], length: int) -> dict[str, Any]:
        """Mask and position ids of packed rows; nothing for plain ones."""
        if not self.packed:
            return {}
        depth = torch.zeros(len(rows), length, dtype=torch.long)
        for r, row in enumerate(rows):
            depth[r, : row.length] = torch.from_numpy(row.depth)
        kinds = self._mask_kinds
        if isinstance(kinds, dict):
            mask: Any = {name: self._mask(rows, length, width) for name, width in kinds.items()}
        else:
            mask = self._mask(rows, length, kinds)
        return {"attention_mask": mask, "position_ids": depth.to(self.device)}

    def _mask(self, rows: list[Row], length: int, width: int | None) -> torch.Tensor:
        """[rows, 1, length, length] additive mask in the model's dtype."""
        seen = torch.from_numpy(sees(rows, length, width)).to(self.device)
        dtype = self.model.dtype
        mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=self.device)
        return mask.masked_fill_(seen, 0)[:, None]

    def _forward(self, tokens: torch.Tensor, keep: torch.Tensor, layout: dict[str, Any]) -> torch.Tensor:
        """Logits [kept positions of all rows, vocabulary], row by row."""
        if self._keeps:
            logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=keep, **layout).logits
            return logits.reshape(-1, logits.shape[-1])
        head = unwrapped(self.model).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][keep][None],))
        try:
            logits = self.model(input_ids=tokens, use_cache=False, **layout).logits
        finally:
            hook.remove()
        return logits.reshape(-1, logits.shape[-1])


def _read(logits: torch.Tensor, rows: list[Row]) -> dict[int, TokenScores]:
    """Gather each branch's targets from the kept logits."""
    flat: list[NDArray[np.int64]] = []
    offset = 0
    for row in rows:
        flat += [offset + np.searchsorted(row.keep, b.nodes) for b in row.branches]
        offset += len(row.keep)
    branches = [b for row in rows for b in row.branches]
    index = torch.from_numpy(np.concatenate(flat)).to(logits.device)
    target = torch.from_numpy(np.concatenate([b.targets for b in branches])).to(logits.device)
    norm = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    best = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    for start in range(0, len(logits), CHUNK):
        part = logits[start: start + CHUNK].float()
        norm[start: start + CHUNK] = torch.logsumexp(part, dim=-1)
        best[start: start + CHUNK] = part.argmax(dim=-1)
    logprobs = (logits[index, target].float() - norm[index]).cpu().numpy()
    greedy = (best[index] == target).cpu().numpy()
    scores, start = {}, 0
    for branch in branches:
        end = start + len(branch.targets)
        scores[branch.position] = TokenScores(logprobs[start:end], bool(greedy[start:end].all()))
        start = end
    return scores


def _mask_kinds(base: Any, config: Any) -> dict[str, int | None] | int | None:
    """Which masks the model takes: one per layer type (window or None), or one for all layers.

    Asks the library (``create_masks_for_generate``), since 66 modelling files take a dict of masks and the
    others raise on one.
    """
    from transformers import masking_utils

    width = getattr(config, "sliding_window", None) or None
    make = getattr(base, "create_masks_for_generate", masking_utils.create_masks_for_generate)
    probe = make(config=config, inputs_embeds=torch.zeros(1, 4, 1), attention_mask=None, past_key_values=None,
                 position_ids=None)
    if isinstance(probe, dict):
        return {name: width if name == "sliding_attention" else None for name in probe}
    return width
