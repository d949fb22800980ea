"""Scoring: the loss of each text under a model, every text on its own from document start to its end.

Texts longer than the model's context are cut into windows that do not overlap; the protocol changes a perplexity by up to 1.6
times, so it is fixed here and the same for every number that genloss reports.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genloss.domains import Report, Runtime, silent
from genloss.domains.text.model import device_of, load
from genloss.domains.text.packing import IGNORE
from genloss.domains.text.tokenizer import load_codec

BATCH = 64  # windows computed together, fewer for large vocabularies
CELLS = 1 << 25  # of logits held at once


@torch.inference_mode()
def losses(
    model_folder: Path,
    data: Path,
    texts: list[str],
    context: int,
    runtime: Runtime | None = None,
    report: Report = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """(nats [n], predicted tokens [n]) of each text under the model; the end of the text is predicted too."""
    torch.set_num_threads(1)
    device = device_of(runtime or Runtime())
    torch.use_deterministic_algorithms(device == "cpu")
    codec = load_codec(data / "tokenizer")
    model = load(model_folder).to(device)
    windows: list[tuple[int, list[int]]] = []
    for i, ids in enumerate(codec.encode(texts)):
        sequence = [codec.begin, *ids, codec.end]
        windows += [(i, sequence[at : at + context + 1]) for at in range(0, len(sequence) - 1, context)]
    order = sorted(range(len(windows)), key=lambda w: len(windows[w][1]))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    rows = max(1, min(BATCH, CELLS // (context * codec.size)))
    for at in range(0, len(order), rows):
        batch = [windows[w] for w in order[at : at + rows]]
        width = max(len(s) for _, s in batch) - 1
        inputs = torch.full((len(batch), width), codec.end, dtype=torch.long)
        targets = torch.full((len(batch), width), IGNORE, dtype=torch.long)
        for r, (_, s) in enumerate(batch):
            inputs[r, : len(s) - 1] = torch.tensor(s[:-1])
            targets[r, : len(s) - 1] = torch.tensor(s[1:])
        logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float()
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets.to(model.device), ignore_index=IGNORE, reduction="none"
        )
        sums = each.double().sum(dim=1).cpu().numpy()
        for r, (i, s) in enumerate(batch):
            nats[i] += sums[r]
            tokens[i] += len(s) - 1
        report(min(at + rows, len(order)), len(order), "texts")
    return nats, tokens
