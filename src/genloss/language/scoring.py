"""Scoring: the loss of each text under a model, every text on its own from document start to its end,
or to where it was cut off.

Texts longer than the model's context are cut into windows that do not overlap; the protocol changes a perplexity by up
to 1.6 times, so it is fixed here and the same for every number that genloss reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from genloss.core.contracts import Report, Runtime, silent
from genloss.language.model import device_of, load
from genloss.language.packing import IGNORE
from genloss.language.tokenizer import Codec, load_codec

BATCH = 64  # windows computed together, fewer for large vocabularies
CELLS = 1 << 25  # of logits held at once


@dataclass(frozen=True)
class Window:
    """Token ids that are scored together: of record `record`, without its first `given` ids after the beginning."""

    record: int
    ids: list[int]
    given: int = 0


def losses(
    model_folder: Path,
    data: Path,
    texts: list[str],
    context: int,
    runtime: Runtime | None = None,
    report: Report = silent,
    cut: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(nats [n], predicted tokens [n]) of each text under the model; the end of the text is predicted too, but for
    those of `cut` [n], which were cut off before it."""
    codec = load_codec(data / "tokenizer")
    cut = np.zeros(len(texts), dtype=bool) if cut is None else cut
    windows: list[Window] = []
    for i, ids in enumerate(codec.encode(texts)):
        sequence = [codec.begin, *ids, *([] if cut[i] else [codec.end])]
        windows += [Window(i, sequence[at : at + context + 1]) for at in range(0, len(sequence) - 1, context)]
    return score(model_folder, codec, windows, len(texts), context, runtime, report)


@torch.inference_mode()
def score(
    model_folder: Path,
    codec: Codec,
    windows: list[Window],
    n: int,
    context: int,
    runtime: Runtime | None = None,
    report: Report = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """(nats [n], predicted tokens [n]) of the n records that the windows belong to."""
    torch.set_num_threads(1)
    device = device_of(runtime or Runtime())
    torch.use_deterministic_algorithms(device == "cpu")
    model = load(model_folder).to(device)
    windows = [w for w in windows if len(w.ids) > 1]  # of nothing that was cut off nothing is predicted
    order = sorted(range(len(windows)), key=lambda w: len(windows[w].ids))
    nats, tokens = np.zeros(n), np.zeros(n)
    rows = max(1, min(BATCH, CELLS // (context * codec.size)))
    for at in range(0, len(order), rows):
        batch = [windows[w] for w in order[at : at + rows]]
        width = max(len(w.ids) for w in batch) - 1
        inputs = torch.full((len(batch), width), codec.end, dtype=torch.long)
        targets = torch.full((len(batch), width), IGNORE, dtype=torch.long)
        for r, w in enumerate(batch):
            last = len(w.ids) - 1
            inputs[r, :last] = torch.tensor(w.ids[:-1])
            targets[r, w.given : last] = torch.tensor(w.ids[1 + w.given :], dtype=torch.long)
        logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float()
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets.to(model.device), ignore_index=IGNORE, reduction="none"
        )
        sums = each.double().sum(dim=1).cpu().numpy()
        for r, w in enumerate(batch):
            nats[w.record] += sums[r]
            tokens[w.record] += max(0, len(w.ids) - 1 - w.given)
        report(min(at + rows, len(order)), len(order), "texts")
    return nats, tokens
