"""Scoring: the loss of each text under a model, every text on its own from document start to its end,
or to where it was cut off.

Texts longer than the model's context are cut into windows that do not overlap; the protocol changes a perplexity by up
to 1.6 times, so it is fixed here and the same for every number that genloss reports.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genloss.core.contracts import Report, Runtime, silent
from genloss.core.machine import cores
from genloss.language.model import device_of, load, one_thread
from genloss.language.packing import IGNORE, known
from genloss.language.tokenizer import Codec, load_codec

BATCH = 64  # windows computed together, fewer for large vocabularies
CELLS = 1 << 25  # of logits held at once


@dataclass(frozen=True)
class Window:
    """Token ids that are scored together, of record `record`; those that are no targets are complements
    (genloss.language.packing)."""

    record: int
    ids: list[int]


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
    runtime = runtime or Runtime()
    one_thread()
    device = device_of(runtime)
    torch.use_deterministic_algorithms(device == "cpu")
    model = load(model_folder).to(device)
    windows = [w for w in windows if len(w.ids) > 1]  # of nothing that was cut off nothing is predicted
    order = sorted(range(len(windows)), key=lambda w: len(windows[w].ids))
    nats, tokens = np.zeros(n), np.zeros(n)
    rows = max(1, min(BATCH, CELLS // (context * codec.size)))
    batches = [[windows[w] for w in order[at : at + rows]] for at in range(0, len(order), rows)]
    workers = 1 if device == "cuda" else runtime.workers or cores()
    done = 0
    with ThreadPoolExecutor(workers, initializer=one_thread) as pool:
        for batch, sums in zip(batches, pool.map(lambda batch: nats_of(model, codec, batch), batches), strict=True):
            for w, found in zip(batch, sums, strict=True):
                nats[w.record] += found
                tokens[w.record] += sum(i >= 0 for i in w.ids[1:])
            done += len(batch)
            report(done, len(order), "texts")
    return nats, tokens


@torch.inference_mode()
def nats_of(model: Any, codec: Codec, batch: list[Window]) -> np.ndarray:
    """[windows] of windows that are computed together."""
    width = max(len(w.ids) for w in batch) - 1
    inputs = torch.full((len(batch), width), codec.end, dtype=torch.long)
    targets = torch.full((len(batch), width), IGNORE, dtype=torch.long)
    for r, w in enumerate(batch):
        last = len(w.ids) - 1
        ids = np.asarray(w.ids)
        inputs[r, :last] = torch.from_numpy(known(ids[:-1]))
        targets[r, :last] = torch.from_numpy(np.where(ids[1:] < 0, IGNORE, ids[1:]))
    logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float()
    # [tokens, vocabulary]: along an inner axis torch sums float32 in vectors of partial sums, along an outer one one by
    # one, which at 49 k tokens lost 1.4e-4 nats each
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten().to(model.device), ignore_index=IGNORE, reduction="none"
    )
    return each.view(targets.shape).double().sum(dim=1).cpu().numpy()
