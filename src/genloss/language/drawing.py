"""The next token from a model's logits: what the decoding options make of them, and the draw by one uniform number.

p = adjust(logits, options, seen)      # [rows, vocabulary]
tokens = draw(p, u, options.bias)      # [rows]
"""

from __future__ import annotations

import torch

from genloss.core.contracts import Decoding
from genloss.core.errors import UserError

DIVERGED = "gives probabilities that are no numbers; its training has diverged"


class NoProbabilities(UserError):
    """Of a model whose numbers are none."""


def adjust(logits: torch.Tensor, options: Decoding, seen: torch.Tensor | None) -> torch.Tensor:
    """Next-token probabilities [rows, vocabulary] after the decoding options, in their documented order."""
    if seen is not None:
        penalty = options.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if options.temperature != 1:
        logits = logits / options.temperature
    if 0 < options.top_k < logits.shape[-1]:
        smallest = logits.topk(options.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    p = torch.softmax(logits, dim=-1)
    if options.top_p < 1:
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(dim=-1) - ordered >= options.top_p  # the token that crosses top_p stays
        p = p.masked_fill(outside.gather(-1, index.argsort(dim=-1)), 0.0)
    if options.min_p > 0:
        p = p.masked_fill(p < options.min_p * p.amax(dim=-1, keepdim=True), 0.0)
    return p


def draw(p: torch.Tensor, u: torch.Tensor, bias: float) -> torch.Tensor:
    """Tokens [rows] by inverse CDF: the first whose cumulative probability exceeds u. p [rows, vocabulary] >= 0 need
    not sum to one. With probability 1 - `bias` the mode instead, decided by the same u. UserError where p is no
    number."""
    mode = None
    if bias < 1:
        mode = p.argmax(dim=-1)
        faithful = u >= 1 - bias
        u = torch.where(faithful, (u - (1 - bias)) / max(bias, 1e-12), u).clamp(0, 1 - 1e-12)
    total = p.cumsum(dim=-1, dtype=torch.float64)
    if not bool(total[:, -1].isfinite().all()):  # else the last token would be drawn, in silence
        raise NoProbabilities("model", None, DIVERGED)
    token = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True)[:, 0]
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(dim=-1) if bool((token > p.shape[-1] - 1).any()) else None
    token = token if last is None else torch.minimum(token, last)
    return token if mode is None else torch.where(faithful, token, mode)
