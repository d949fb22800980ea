"""How likely each of a few answers is: the logits of their labels after a prompt, by one forward pass, many prompts at
once. There is nothing to parse, so no answer is unparseable.

    labels(codec, ["A", "B", "C"])                             # [35, 36, 37]; UserError if one is no single token
    p = label_probabilities(model, codec, prompts, ids)        # float64 [n, labels], rows sum to 1
    scores(p)                                                  # float64 [n]: the expected level, 0 for the first label

The semantics are those of `pipeline("decision")` of transformers 5.23 (`choice`, `score` and `noul` of its System One
interface), which asks one prompt at a time: a softmax over the labels' logits alone, after the whole prompt. The words
of a prompt are the caller's; one that is a conversation is made by `Codec.chat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from genloss.core.errors import UserError
from genloss.language.tokenizer import Codec

ROWS = 64  # prompts that are read together
CELLS = 1 << 14  # of their tokens


def labels(codec: Codec, texts: Sequence[str]) -> list[int]:
    """The token of each label [labels]; UserError unless they are single tokens, and different ones."""
    found = codec.encode(list(texts))
    if any(len(ids) != 1 for ids in found) or len({ids[0] for ids in found}) < len(found):
        raise UserError("labels", list(texts), "must be different single tokens of the model's tokenizer; take letters")
    return [ids[0] for ids in found]


@torch.inference_mode()
def label_probabilities(
    model: Any, codec: Codec, prompts: Sequence[Sequence[int]], ids: Sequence[int], temperature: float = 1.0
) -> np.ndarray:
    """float64 [n, labels]: the probability of each label given each prompt (token ids, with whatever begins them), and
    that one of them is next."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    if len(prompts) and lengths.min() < 1:
        raise UserError("prompts", None, "must have at least one token each")
    found = np.empty((len(prompts), len(ids)))
    order = np.argsort(lengths, kind="stable")
    at = 0
    while at < len(order):
        rows = order[at : at + ROWS]
        rows = rows[: max(1, CELLS // int(lengths[rows[-1]]))]
        width = int(lengths[rows[-1]])
        # padding on the right: a causal model does not look there
        padded = torch.tensor([[*prompts[i], *[codec.end] * (width - lengths[i])] for i in rows])
        ends = torch.from_numpy(lengths[rows] - 1)
        kept, place = ends.unique(return_inverse=True)  # of logits, the vocabulary is the largest part
        out = model(input_ids=padded.to(model.device), use_cache=False, logits_to_keep=kept.to(model.device))
        logits = out.logits[torch.arange(len(rows)), place][:, list(ids)]
        found[rows] = torch.softmax(logits.double() / temperature, dim=-1).cpu().numpy()
        at += len(rows)
    return found


def scores(probabilities: np.ndarray) -> np.ndarray:
    """float64 [n]: the expected level, where the labels are levels from the lowest, number 0, on."""
    return probabilities @ np.arange(probabilities.shape[1])
