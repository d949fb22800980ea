"""The log-probability of each token of texts that are token ids already.

    token_logprobs(model, codec, [[5, 7], [9]], given=[0, 0], ended=[True, False])    # [[-1.2, -0.3, -4.0], [-2.2]]
    first_logprobs(folder, codec, ["2+2="], ["4", "5"])                               # [[-0.1, -3.2]]

One forward pass over what was sampled, and not a number taken from each step of the sampling: a step stays as fast as
it is, and the number is the model's own, before penalty, temperature and truncation, as servers report it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genloss.core.contracts import Prompt, Report, Runtime, silent
from genloss.core.errors import UserError
from genloss.core.files import write_atomic
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


@torch.inference_mode()
def first_logprobs(
    folder: Path,
    codec: Codec,
    prompts: Sequence[Prompt],
    choices: Sequence[str],
    runtime: Runtime | None = None,
    report: Report = silent,
    kept: Path | None = None,
) -> np.ndarray:
    """ln p of the first token of each choice after each prompt, float64 [prompts, choices], under a saved model.
    kept: a folder of this call alone, where what is finished survives a kill. UserError if a prompt is longer than a
    model with learned positions has."""
    from genloss.language.model import device_of, load, one_thread

    first = [ids[0] if ids else -1 for ids in codec.encode(list(choices))]
    if len(set(first)) < len(first) or -1 in first:
        raise UserError("choices", list(choices), "begin with the same token, or with none; choose others")
    runtime = runtime or Runtime()
    one_thread()
    device = device_of(runtime)
    torch.use_deterministic_algorithms(device == "cpu")
    model: Any = load(folder).to(device)
    sequences = [[codec.begin, *ids] for ids in codec.prompts(prompts)]
    room = getattr(model.config, "max_position_embeddings", None)
    rotary = getattr(model.config, "rope_parameters", None) is not None  # which goes on beyond what it was trained on
    if room and not rotary and (longest := max(map(len, sequences), default=0)) > room:
        raise UserError("prompts", f"{longest} tokens", f"are more than the {room} positions that the model has")
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found = np.zeros((len(sequences), len(first)))
    for at in range(0, len(order), ROWS):
        batch = order[at : at + ROWS]
        file = kept / f"{at}.json" if kept else None
        if file and file.is_file():
            found[batch] = json.loads(file.read_text(encoding="utf-8"))
            continue
        width = max(len(sequences[i]) for i in batch)
        padded = torch.tensor([sequences[i] + [codec.end] * (width - len(sequences[i])) for i in batch]).to(device)
        last = torch.tensor([len(sequences[i]) - 1 for i in batch], device=device)
        hidden = model(input_ids=padded, use_cache=False, logits_to_keep=torch.unique(last)).logits
        place = torch.searchsorted(torch.unique(last), last)
        logits = hidden[torch.arange(len(batch), device=device), place, : codec.size]
        found[batch] = torch.log_softmax(logits.double(), dim=-1)[:, first].cpu().numpy()
        if file:
            write_atomic(file, json.dumps(found[batch].tolist()))
        report(at + len(batch), len(order), "prompts")
    return found
