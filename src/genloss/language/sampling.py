"""Sampling: many records at once, each from its own random stream, the same bytes on any number of workers.

Records are computed in chunks of fixed size (`recipe.chunk`): record i is always row i mod chunk of chunk i // chunk,
with one thread a chunk and chunks in parallel, so neither order, nor workers, nor a resume can change it. A token costs
one uniform number (inverse CDF), not one a vocabulary entry. Keys and values live in one preallocated slab a layer;
rows that have ended leave the batch. `transformers`' generate() does none of these (it draws from global state and
concatenates its cache). With `recipe.backend.kernel=fused` records of a Llama-like model depend on no others at all,
and are computed in any company (genloss.language.fused).

    begin -> model -> logits -> penalty, temperature, top-k, top-p, min-p -> cumulative sum -> first token above u
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from threading import Lock
from typing import Any

import psutil
import torch

from genloss.core.contracts import Decoding, Replies, Sampling
from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.machine import cores
from genloss.core.records import CUT, ENDED
from genloss.core.seeds import uniforms
from genloss.language.constraint import Masks
from genloss.language.decode import new_cache, stepper
from genloss.language.drawing import adjust, draw
from genloss.language.likelihood import token_logprobs
from genloss.language.model import device_of, load, one_thread
from genloss.language.tokenizer import Codec, load_codec

LEAVE = 0.75  # rows that have ended leave the batch when fewer than this share are still going
FEW = 8  # rows that a batch keeps: products of fewer are computed by other kernels, with other roundings
SLOTS = 128  # records that a thread of the fused kernel computes at a time
MEMORY = 0.25  # of the machine's, for keys and values


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
        if left < LEAVE * len(alive) and len(alive) > FEW:
            index = going.nonzero()[:, 0]
            if left < FEW:
                index = torch.cat([index, (~going).nonzero()[: FEW - left, 0]])
            cache.batch_select_indices(index)
            alive, step, going = alive[index], step[index], going[index]
            seen = seen[index] if seen is not None else None
    ids = tokens.cpu().numpy()
    return [row[:n].tolist() for row, n in zip(ids, length.tolist(), strict=True)], count


class Asked:
    """A request in chunks: what they begin with, and what is kept of them in its scratch folder."""

    def __init__(self, request: Sampling, codec: Codec, model: Any):
        self.request, self.options, self.codec, self.model = request, request.decoding, codec, model
        self.chunks = -(-request.n // self.options.chunk)

    def rows(self, number: int) -> int:
        return min(self.options.chunk, self.request.n - number * self.options.chunk)

    def uniforms(self, number: int, rows: int) -> Any:
        return uniforms(self.request.seed, number, rows, self.options.max_tokens)

    def prompts(self, number: int) -> list[list[int]] | None:
        """Token ids that the records of a chunk begin with; encoded when they are needed, since all of them together
        are larger than their texts."""
        if self.request.prompts is None:
            return None
        at = number * self.options.chunk
        texts = list(self.request.prompts[at : at + self.rows(number)])
        return [ids[: self.options.prefix] for ids in self.codec.encode(texts)]

    def found(self, number: int) -> Replies | None:
        """What was kept of a chunk that was finished before a kill."""
        if not (kept := self._kept(number)).is_file():
            return None
        return Replies(**json.loads(kept.read_text()))

    def keep(self, number: int, ids: list[list[int]], prompts: Sequence[Sequence[int]] | None) -> Replies:
        finish = [CUT if len(row) == self.options.max_tokens else ENDED for row in ids]
        given = [0] * len(ids) if prompts is None else [len(prompt) for prompt in prompts]
        tokens = sum(map(len, ids)) - sum(given) + finish.count(ENDED)  # an end is sampled too
        said = [row[n:] for row, n in zip(ids, given, strict=True)]
        details: dict[str, Any] = {}
        if self.options.logprobs:
            ended = [end == ENDED for end in finish]
            details = {"ids": said, "logprobs": token_logprobs(self.model, self.codec, ids, given, ended)}
        made = Replies(self.codec.decode(ids if self.options.keep_prompt else said), tokens, finish, **details)
        write_atomic(self._kept(number), json.dumps(made._asdict()))
        return made

    def _kept(self, number: int) -> Any:
        return self.request.scratch / f"chunk-{number:06d}.json"


def sample(request: Sampling) -> Iterator[Replies]:
    """Yield texts, tokens sampled and how each text ended, chunk by chunk, in order. Finished chunks are kept in
    `request.scratch`."""
    codec = load_codec(request.data / "tokenizer")
    device = device_of(request.runtime)
    one_thread()
    torch.use_deterministic_algorithms(device == "cpu")  # CUDA has no deterministic cumulative sum
    model = load(request.model).to(device)
    asked = Asked(request, codec, model)
    workers = 1 if device == "cuda" else request.runtime.workers or cores()
    by = _by_record if request.decoding.kernel == "fused" else _by_chunk
    done = 0
    for made in by(model, asked, workers):
        done += len(made.texts)
        request.report(done, request.n, "records")
        yield made


def _by_chunk(model: Any, asked: Asked, workers: int) -> Iterator[Replies]:
    model.set_attn_implementation("genloss_one_query")
    options, codec = asked.options, asked.codec
    workers = min(workers, asked.chunks, _room(model, options) // options.chunk)
    if not workers:
        most = f"at most {_room(model, options)} records of {options.max_tokens} tokens have room in memory at a time"
        raise UserError("recipe.chunk", options.chunk, f"their keys and values are too many: {most}")

    def make(number: int) -> Replies:
        if found := asked.found(number):
            return found
        rows, own = asked.rows(number), asked.prompts(number)
        # where rows depend on how many they are, the last chunk is computed whole and cut, so that asking for more
        # records changes none of the first ones
        few = max(rows, min(FEW, options.chunk))
        computed = few if few == options.chunk or rows_alike(model, options.chunk) else options.chunk
        filled = None if own is None else own + [own[-1]] * (computed - rows)
        u = torch.from_numpy(asked.uniforms(number, computed))
        ids, _ = sample_chunk(model, codec, u, filled, options)
        return asked.keep(number, ids[:rows], own)

    with ThreadPoolExecutor(workers, initializer=one_thread) as pool:
        yield from pool.map(make, range(asked.chunks))


def _room(model: Any, options: Decoding) -> int:
    """Records whose keys and values fit into free memory."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    each = 2 * config.num_hidden_layers * groups * width * (options.max_tokens + 1) * model.dtype.itemsize
    cuda = model.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    return int(free * MEMORY) // each


@torch.inference_mode()
def rows_alike(model: Any, rows: int) -> bool:
    """Whether this machine computes a row alike, to the last bit, beside any number of others of at least FEW:
    measured, with a prompt and a step."""
    if model.device.type != "cpu":
        return False
    tokens = torch.arange(3 * rows).view(rows, 3) % model.config.get_text_config().vocab_size
    advance = stepper(model, 4)

    def logits(some: torch.Tensor) -> torch.Tensor:
        cache = new_cache(model.config, 4)
        return torch.stack([advance(some[:, :2], cache, 0), advance(some[:, 2:], cache, 2)])

    whole = logits(tokens)
    return all(
        torch.equal(logits(tokens[:some]), whole[:, :some]) for some in range(FEW, rows, max(1, (rows - FEW) // 4))
    )


class _Shared:
    """An iterator that several threads take from, until it is closed."""

    def __init__(self, items: Iterator[Any]):
        self._items, self._lock, self._open = items, Lock(), True

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if not self._open:
                raise StopIteration
            return next(self._items)

    def close(self) -> None:
        with self._lock:
            self._open = False


def _by_record(model: Any, asked: Asked, workers: int) -> Iterator[Replies]:
    # by its name, so that an extra which is not used is not in the keys of what `torch` computes: Torch.classes
    kernel = import_module("genloss.language.fused")
    fused, options = kernel.Fused(model), asked.options
    workers = min(workers, asked.request.n)
    slots = min(SLOTS, -(-asked.request.n // workers), max(1, _room(model, options) // workers))
    made: dict[int, Future[Replies]] = {number: Future() for number in range(asked.chunks)}

    def records() -> Iterator[tuple[Any, int]]:
        for number in range(asked.chunks):
            if found := asked.found(number):
                made[number].set_result(found)
                continue
            rows = asked.rows(number)
            chunk = kernel.Chunk(number, asked.uniforms(number, rows), asked.prompts(number))
            yield from ((chunk, row) for row in range(rows))

    waiting = _Shared(records())

    def work() -> None:
        one_thread()
        try:
            for chunk in kernel.sample_records(fused, asked.codec, waiting, options.max_tokens, slots, options):
                made[chunk.number].set_result(asked.keep(chunk.number, chunk.ids, chunk.prompts))
        except BaseException as error:
            waiting.close()
            for future in list(made.values()):
                with suppress(InvalidStateError):  # done, or failed in another thread
                    future.set_exception(error)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for _ in range(workers):
                pool.submit(work)
            for number in range(asked.chunks):
                some = made[number].result()
                del made[number]  # or all texts would stay in memory
                yield some
        finally:
            waiting.close()
