"""The log-probability of each token of texts that are token ids already.

    token_logprobs(model, codec, [[5, 7], [9]], given=[0, 0], ended=[True, False])    # [[-1.2, -0.3, -4.0], [-2.2]]

One forward pass over what was sampled, and not a number taken from each step of the sampling: a step stays as fast as
it is, and the number is the model's own, before penalty, temperature and truncation, as servers report it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genloss.language.tokenizer import Codec

CELLS = 1 << 24  # logits that are computed together
ROWS = 32


@torch.inference_mode()
def token_logprobs(
    model: Any, codec: Codec, ids: Sequence[list[int]], given: Sequence[int], ended: Sequence[bool]
) -> list[list[float]]:
    """Natural logarithms of the probabilities of the tokens of each text [n], without its first `given` ones, which
    were its prompt; of a text that `ended` that of its end too."""
    sequences = [[codec.begin, *row, *([codec.end] if end else [])] for row, end in zip(ids, ended, strict=True)]
    longest = max(map(len, sequences), default=1)
    rows = max(1, min(ROWS, CELLS // (longest * codec.size)))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found: list[list[float]] = [[] for _ in sequences]
    for at in range(0, len(order), rows):
        batch = order[at : at + rows]
        width = max(len(sequences[i]) for i in batch) - 1
        if not width:
            continue
        # padding on the right: a causal model does not look there
        padded = torch.tensor([sequences[i] + [codec.end] * (width + 1 - len(sequences[i])) for i in batch])
        logits = model(input_ids=padded[:, :-1].to(model.device), use_cache=False).logits[..., : codec.size]
        each = torch.log_softmax(logits.float(), dim=-1).gather(-1, padded[:, 1:, None].to(model.device))[..., 0]
        for i, row in zip(batch, each.tolist(), strict=True):
            found[i] = row[given[i] : len(sequences[i]) - 1]
    return found
