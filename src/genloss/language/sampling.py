"""Sampling: many records at once, each from its own random stream, the same bytes on any number of workers.

Records are computed in chunks of fixed size (`recipe.chunk`): record i is always row i mod chunk of chunk i // chunk,
with one thread a chunk and chunks in parallel, so neither order, nor workers, nor a resume can change it. A token costs
one uniform number (inverse CDF), not one a vocabulary entry. Keys and values live in one preallocated slab a layer;
rows that have ended leave the batch. `transformers`' generate() does none of these (it draws from global state and
concatenates its cache).

    begin -> model -> logits -> penalty, temperature, top-k, top-p, min-p -> cumulative sum -> first token above u
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from genloss.core.contracts import Decoding, Replies, Sampling
from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.machine import cores
from genloss.core.records import CUT, ENDED
from genloss.core.seeds import uniforms
from genloss.language.constraint import Masks
from genloss.language.decode import new_cache, stepper
from genloss.language.likelihood import token_logprobs
from genloss.language.model import device_of, load
from genloss.language.tokenizer import Codec, load_codec

LEAVE = 0.75  # rows that have ended leave the batch when fewer than this share are still going


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
        raise NoProbabilities("model", None, "gives probabilities that are no numbers; its training has diverged")
    token = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True)[:, 0]
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(dim=-1) if bool((token > p.shape[-1] - 1).any()) else None
    token = token if last is None else torch.minimum(token, last)
    return token if mode is None else torch.where(faithful, token, mode)


@torch.inference_mode()
def sample_chunk(
    model: Any, codec: Codec, u: torch.Tensor, prompts: Sequence[Sequence[int]] | None, options: Decoding
) -> tuple[list[list[int]], int]:
    """Sample len(u) records at once. u: float64 [rows, max_tokens] in [0, 1). prompts: token ids that a record begins
    with.

    Returns the token ids of each record (without begin and end, prompt included) and the number of tokens sampled.
    """
    rows, longest = u.shape
    device = model.device
    u = u.to(device)
    tokens = torch.full((rows, longest), codec.end, dtype=torch.long, device=device)
    forced = torch.zeros(rows, dtype=torch.long, device=device)
    if prompts is not None:
        forced = torch.tensor([len(p) for p in prompts], device=device)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.tensor(prompt, dtype=torch.long, device=device)
    shared = int(forced.min())  # prompt tokens that every row has go through the model at once
    length = torch.full((rows,), longest, dtype=torch.long, device=device)
    alive = torch.arange(rows, device=device)
    going = torch.ones(rows, dtype=torch.bool, device=device)
    cache, advance = new_cache(model.config, longest + 1), stepper(model, longest + 1)
    begin = torch.full((rows, 1), codec.begin, dtype=torch.long, device=device)
    step = torch.cat([begin, tokens[:, :shared]], dim=1)
    seen = None
    if options.repetition_penalty != 1:
        seen = torch.zeros(rows, codec.size, dtype=torch.bool, device=device)
        seen.scatter_(1, step[:, 1:], True)
    masks = Masks(options.constraint, codec, rows) if options.constraint else None
    count = 0
    for t in range(shared, longest):
        logits = advance(step, cache, t + 1 - step.shape[1])[:, : codec.size].float()
        if masks:
            logits = logits.masked_fill(~torch.from_numpy(masks.of(alive.tolist())).to(device), -torch.inf)
        p = adjust(logits, options, seen)
        token = draw(p, u[alive, t], options.bias)
        is_forced = t < forced[alive]
        token = torch.where(is_forced, tokens[alive, t], token)
        count += int((going & ~is_forced).sum())
        ended = (token == codec.end) & ~is_forced
        finished = going & ended
        length[alive[finished]] = t
        tokens[alive, t] = torch.where(going, token, codec.end)
        going = going & ~ended
        if masks:
            for i in (going & ~is_forced).nonzero()[:, 0].tolist():
                masks.take(int(alive[i]), int(token[i]))
        left = int(going.sum())
        if left == 0:
            break
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        step = token[:, None]
        if left < LEAVE * len(alive):
            index = going.nonzero()[:, 0]
            cache.batch_select_indices(index)
            alive, step, going = alive[index], step[index], going[index]
            seen = seen[index] if seen is not None else None
    ids = tokens.cpu().numpy()
    return [row[:n].tolist() for row, n in zip(ids, length.tolist(), strict=True)], count


def sample(request: Sampling) -> Iterator[Replies]:
    """Yield texts, tokens sampled and how each text ended, chunk by chunk, in order. Finished chunks are kept in
    `request.scratch`."""
    options, codec = request.decoding, load_codec(request.data / "tokenizer")
    device = device_of(request.runtime)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(device == "cpu")  # CUDA has no deterministic cumulative sum
    model = load(request.model).to(device)
    model.set_attn_implementation("genloss_one_query")
    chunks = -(-request.n // options.chunk)
    workers = 1 if device == "cuda" else min(chunks, request.runtime.workers or cores())

    def make(number: int) -> Replies:
        kept = request.scratch / f"chunk-{number:06d}.json"
        if kept.is_file():
            stored = json.loads(kept.read_text())
            return Replies(**stored)
        # the last chunk is computed whole and cut, so that asking for more records changes none of the first ones
        u = torch.from_numpy(uniforms(request.seed, number, options.chunk, options.max_tokens))
        own = None
        if request.prompts is not None:  # those of a chunk alone: as token ids they take kilobytes each
            texts = request.prompts[number * options.chunk : (number + 1) * options.chunk]
            own = [ids[: options.prefix] for ids in codec.encode(texts)]
            own = own + [own[-1]] * (options.chunk - len(own))
        ids, tokens = sample_chunk(model, codec, u, own, options)
        finish = [CUT if len(row) == options.max_tokens else ENDED for row in ids]
        size = min(len(ids), request.n - number * options.chunk)
        ids, finish = ids[:size], finish[:size]
        details: dict[str, Any] = {}
        given = [0] * size if own is None else [len(prompt) for prompt in own[:size]]
        if options.logprobs:
            ended = [end == ENDED for end in finish]
            said = [row[n:] for row, n in zip(ids, given, strict=True)]
            details = {"ids": said, "logprobs": token_logprobs(model, codec, ids, given, ended)}
        if own is not None and not options.keep_prompt:
            ids = [row[len(prompt) :] for row, prompt in zip(ids, own[:size], strict=True)]
        made = Replies(codec.decode(ids), tokens, finish, **details)
        write_atomic(kept, json.dumps(made._asdict()))
        return made

    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for made in pool.map(make, range(chunks)):
            done += len(made.texts)
            request.report(done, request.n, "records")
            yield made
