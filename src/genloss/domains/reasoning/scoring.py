"""The loss of each response given its prompt: what the generator itself thinks of its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genloss.domains import Report, Runtime, silent
from genloss.domains.text.model import device_of, load
from genloss.domains.text.packing import IGNORE
from genloss.domains.text.scoring import BATCH
from genloss.domains.text.tokenizer import load_codec


@torch.inference_mode()
def losses(
    model_folder: Path,
    data: Path,
    prompts: list[str],
    responses: list[str],
    context: int,
    runtime: Runtime | None = None,
    report: Report = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """(nats [n], predicted tokens [n]) of each response and its end; what is beyond the context is not counted."""
    torch.set_num_threads(1)
    device = device_of(runtime or Runtime())
    torch.use_deterministic_algorithms(device == "cpu")
    codec = load_codec(data / "tokenizer")
    model = load(model_folder).to(device)
    given, said = codec.encode(prompts), codec.encode(responses)
    whole = [[codec.begin, *g, *s, codec.end][: context + 1] for g, s in zip(given, said, strict=True)]
    order = sorted(range(len(whole)), key=lambda i: len(whole[i]))
    nats, tokens = np.zeros(len(whole)), np.zeros(len(whole))
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        width = max(len(whole[i]) for i in batch) - 1
        inputs = torch.full((len(batch), width), codec.end, dtype=torch.long)
        targets = torch.full((len(batch), width), IGNORE, dtype=torch.long)
        for row, i in enumerate(batch):
            sequence, first = whole[i], len(given[i])
            inputs[row, : len(sequence) - 1] = torch.tensor(sequence[:-1])
            targets[row, first : len(sequence) - 1] = torch.tensor(sequence[first + 1 :], dtype=torch.long)
        logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float()
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets.to(model.device), ignore_index=IGNORE, reduction="none"
        )
        nats[batch] = each.double().sum(dim=1).cpu().numpy()
        tokens[batch] = (targets != IGNORE).sum(dim=1).numpy()
        report(min(at + BATCH, len(order)), len(order), "responses")
    return nats, tokens
