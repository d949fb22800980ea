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
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from threading import Lock
from typing import Any

import psutil
import torch

from genloss.core.contracts import Decoding, Replies, Sampling, silent
from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.machine import cores, end_with
from genloss.core.records import CUT, ENDED
from genloss.core.seeds import uniforms
from genloss.language.constraint import Masks
from genloss.language.decode import new_cache, stepper
from genloss.language.drawing import adjust, draw
from genloss.language.likelihood import token_logprobs
from genloss.language.model import device_of, load, one_thread
from genloss.language.stops import stopped
from genloss.language.tokenizer import Codec, load_codec

LEAVE = 0.75  # rows that have ended leave the batch when fewer than this share are still going
FEW = 8  # rows that a batch keeps: products of fewer are computed by other kernels, with other roundings
SLOTS = 128  # records that a thread of the fused kernel computes at a time; 192 of models whose steps are short
LOOK = 8  # steps after which it is looked whether a record has written a text to stop at
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
    given: list[list[int]] = [[] for _ in range(rows)] if prompts is None else [list(prompt) for prompt in prompts]
    length = torch.tensor([len(prompt) for prompt in given], device=device)
    most = torch.tensor([min(longest, options.longest(len(prompt))) for prompt in given], device=device)
    widest, least, longest = int(length.max()), int(length.min()), int(most.max())
    tokens = torch.full((rows, longest + 1), codec.end, dtype=torch.long)  # the last is written by rows that have ended
    step = torch.full((rows, 1 + widest), codec.begin, dtype=torch.long)  # all but the last of the first are padding
    seen = None if options.repetition_penalty == 1 else torch.zeros(rows, codec.size, dtype=torch.bool)
    for i, prompt in enumerate(given):
        ids = torch.tensor(prompt, dtype=torch.long)
        tokens[i, : len(ids)] = ids
        step[i, 1 + widest - len(ids) :] = ids
        if seen is not None:
            seen[i, ids] = True
    tokens, step, seen = tokens.to(device), step.to(device), None if seen is None else seen.to(device)
    padding = None if least == widest else widest - length
    cache: Any = new_cache(model.config, longest + 1 + widest - least)
    advance = stepper(model, longest, widest - least)
    masks = Masks(options.constraint, codec, rows) if options.constraint else None
    alive, place = torch.arange(rows, device=device), length.clone()  # where the next token of each row stands
    going = place < most
    count, slot = 0, 0
    while left := int(going.sum()):
        logits = advance(step, cache, slot, padding)[:, : codec.size].float()
        slot += step.shape[1]
        if masks:
            logits = logits.masked_fill(~torch.from_numpy(masks.of(alive.tolist())).to(device), -torch.inf)
        token = draw(adjust(logits, options, seen), u[alive, place.clamp(max=longest - 1)], options.bias)
        count += left
        tokens[alive, place.clamp(max=longest)] = torch.where(going, token, codec.end)
        if masks:
            for i in going.nonzero()[:, 0].tolist():
                masks.take(int(alive[i]), int(token[i]))
        ended = going & (token == codec.end)
        length[alive] += going & ~ended
        place += 1
        going = going & ~ended & (place < most[alive])
        if options.stop and slot % LOOK == 0:
            for i in going.nonzero()[:, 0].tolist():
                row = int(alive[i])
                (said,) = codec.decode([tokens[row, len(given[row]) : int(place[i])].tolist()])
                going[i] = options.stopped(said) is None
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        step = token[:, None]
        left = int(going.sum())
        if 0 < left < LEAVE * len(alive) and len(alive) > FEW:
            index = going.nonzero()[:, 0]
            if left < FEW:
                index = torch.cat([index, (~going).nonzero()[: FEW - left, 0]])
            cache.reorder_cache(index)  # of all kinds, states too
            alive, step, going, place = alive[index], step[index], going[index], place[index]
            padding = None if padding is None else padding[index]
            seen = None if seen is None else seen[index]
    found = tokens.cpu().numpy()
    return [row[:n].tolist() for row, n in zip(found, length.tolist(), strict=True)], count


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
        some = self.request.prompts[at : at + self.rows(number)]
        return [ids[: self.options.prefix] for ids in self.codec.prompts(some)]

    def found(self, number: int) -> Replies | None:
        """What was kept of a chunk that was finished before a kill."""
        if not (kept := self._kept(number)).is_file():
            return None
        return Replies(**json.loads(kept.read_text()))

    def keep(self, number: int, ids: list[list[int]], prompts: Sequence[Sequence[int]] | None) -> Replies:
        given = [0] * len(ids) if prompts is None else [len(prompt) for prompt in prompts]
        limits = map(self.options.longest, given)
        finish = [CUT if len(row) == most else ENDED for row, most in zip(ids, limits, strict=True)]
        tokens = sum(map(len, ids)) - sum(given) + finish.count(ENDED)  # an end is sampled too
        said = [row[n:] for row, n in zip(ids, given, strict=True)]
        details: dict[str, Any] = {}
        if self.options.logprobs:
            ended = [end == ENDED for end in finish]
            details = {"ids": said, "logprobs": token_logprobs(self.model, self.codec, ids, given, ended)}
        made = Replies(self.codec.decode(ids if self.options.keep_prompt else said), tokens, finish, **details)
        made = stopped(made, self.options, self.codec, said, prompts)
        write_atomic(self._kept(number), json.dumps(made._asdict()))
        return made

    def _kept(self, number: int) -> Any:
        return self.request.scratch / f"chunk-{number:06d}.json"


def sample(request: Sampling) -> Iterator[Replies]:
    """Yield texts, tokens sampled and how each text ended, chunk by chunk, in order. Finished chunks are kept in
    `request.scratch`."""
    runtime, device, done = request.runtime, device_of(request.runtime), 0
    if device == "cuda" and runtime.devices > 1 and request.decoding.kernel == "torch":
        found = by_process(request, [f"cuda:{i}" for i in range(runtime.devices)])
    else:
        model, asked = _ready(request, device)
        by = _by_record if request.decoding.kernel == "fused" else _by_chunk
        found = by(model, asked, 1 if device == "cuda" else runtime.workers or cores())
    for made in found:
        done += len(made.texts)
        request.report(done, request.n, "records")
        yield made


def _ready(request: Sampling, device: str) -> tuple[Any, Asked]:
    one_thread()
    torch.use_deterministic_algorithms(device == "cpu")  # CUDA has no deterministic cumulative sum
    model, options = load(request.model).to(device), request.decoding
    asked = Asked(request, load_codec(request.data / "tokenizer"), model)
    if options.kernel == "torch":
        if options.compute_type != "float32":  # log-probabilities stay those of `asked.model`
            model = deepcopy(model).to(getattr(torch, options.compute_type))
        model.set_attn_implementation("genloss_one_query")
    return model, asked


def _by_chunk(model: Any, asked: Asked, workers: int) -> Iterator[Replies]:
    options = asked.options
    workers = min(workers, asked.chunks, _batches(model, options))
    with ThreadPoolExecutor(workers, initializer=one_thread) as pool:
        yield from pool.map(
            lambda number: asked.found(number) or _chunk(model, asked, number, asked.prompts(number)),
            range(asked.chunks),
        )


def _chunk(model: Any, asked: Asked, number: int, own: list[list[int]] | None) -> Replies:
    options, rows = asked.options, asked.rows(number)
    # where rows depend on how many they are, the last chunk is computed whole and cut, so that asking for more
    # records changes none of the first ones
    few = max(rows, min(FEW, options.chunk))
    computed = few if few == options.chunk or rows_alike(model, options.chunk, few) else options.chunk
    filled = None if own is None else own + [own[-1]] * (computed - rows)
    u = torch.from_numpy(asked.uniforms(number, computed))
    ids, _ = sample_chunk(model, asked.codec, u, filled, options)
    return asked.keep(number, ids[:rows], own)


def by_process(request: Sampling, devices: Sequence[str]) -> Iterator[Replies]:
    """As `sample`, by a process on each of the devices. Which of them computes a chunk makes no difference where they
    are of one kind."""
    asked = Asked(request, load_codec(request.data / "tokenizer"), None)
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    begin = (os.getpid(), replace(request, prompts=None, report=silent), free)
    waiting: deque[Future[Replies]] = deque()
    with ProcessPoolExecutor(len(devices), context, _begin, begin) as pool:
        try:
            for number in range(asked.chunks):
                if found := asked.found(number):
                    waiting.append(Future())
                    waiting[-1].set_result(found)
                else:
                    waiting.append(pool.submit(_go_on, number, asked.prompts(number)))
                if len(waiting) == 2 * len(devices):  # or the prompts of all would be in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            why = "a process of the sampling was killed; is there memory for one a device? Finished chunks are kept"
            raise UserError("runtime.devices", len(devices), why) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_mine: dict[str, Any] = {}  # of a process of `by_process`


def _begin(parent: int, request: Sampling, free: Any) -> None:
    end_with(parent)
    _mine.update(request=request, device=free.get())


def _go_on(number: int, prompts: list[list[int]] | None) -> Replies:
    if "model" not in _mine:  # loaded here, since errors of `_begin` do not reach who has asked
        if _mine["device"].startswith("cuda"):
            torch.cuda.set_device(_mine["device"])
        _mine["model"], _mine["asked"] = _ready(_mine["request"], _mine["device"])
        _batches(_mine["model"], _mine["asked"].options)
    return _chunk(_mine["model"], _mine["asked"], number, prompts)


def _batches(model: Any, options: Decoding) -> int:
    """Chunks whose keys and values fit into free memory; UserError if none does."""
    most = _room(model, options)
    if most < options.chunk:
        why = f"at most {most} records of {options.max_tokens} tokens have room in memory at a time"
        raise UserError("recipe.chunk", options.chunk, f"their keys and values are too many: {why}")
    return most // options.chunk


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
def rows_alike(model: Any, rows: int, few: int) -> bool:
    """Whether this machine computes a row alike, to the last bit, beside `few` others as beside `rows`, or any number
    of at least FEW: measured, with a prompt and a step."""
    if model.device.type != "cpu":
        return False
    tokens = torch.arange(3 * rows).view(rows, 3) % model.config.get_text_config().vocab_size
    advance = stepper(model, 4)

    def logits(some: torch.Tensor) -> torch.Tensor:
        cache = new_cache(model.config, 4)
        return torch.stack([advance(some[:, :2], cache, 0, None), advance(some[:, 2:], cache, 2, None)])

    whole = logits(tokens)
    sizes = [few, *range(FEW, rows, max(1, (rows - FEW) // 4))]
    return all(torch.equal(logits(tokens[:some]), whole[:, :some]) for some in sizes)


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
    fused, options = kernel.Fused(model, asked.options.compute_type), asked.options
    workers = min(workers, asked.request.n)
    most = SLOTS if model.config.hidden_size > 128 else SLOTS * 3 // 2
    slots = min(most, -(-asked.request.n // workers), max(1, _room(model, options) // workers))
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
