"""Llama-like models on CPUs, near the speed of their matrix products: `recipe.backend.kernel=fused`, extra `fast`.

    pip install 'genloss[fast]'
    genloss run recipe.backend.kernel=fused
    genloss run recipe.backend.kernel=fused recipe.backend.compute_type=int8     # or bfloat16: faster, another model

A step takes any tokens of any records, each at its own position: the next token of some and prompts of others, without
padding. Matrix products are oneDNN's, on weights that are packed once; all between them are compiled kernels
(genloss.language.kernels). A slot holds the keys and values of one record; when the record ends, the next one gets it.

    fused = Fused(model, "float32")             # weights, for all threads
    batch = Batch(fused, slots, longest)        # keys and values, for one thread
    hidden = batch.step(tokens, slots, positions)

What a token gives does not depend on the tokens beside it, which `Fused` measures on the machine at hand: so a record
is the same whatever is computed with it, and records may be asked for in any number, order and company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from genloss.core.contracts import Decoding
from genloss.core.errors import UserError
from genloss.language import kernels
from genloss.language.drawing import DIVERGED, NoProbabilities, adjust, draw
from genloss.language.tokenizer import Codec

ROUND = 16  # a step's tokens are rounded up to a multiple: oneDNN compiles a product for every size
TOKENS = 256  # of a step, at most, where there are prompts to read
LOGITS = 1 << 22  # computed at once
SMALL = 1 << 16  # weights of a matrix that packing does not pay for
STATIC = ("default", "linear", "llama3", "yarn")  # rotary frequencies that do not depend on the length


def unfit(model: Any) -> str | None:
    """Why a model cannot be decoded here; None: it can."""
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    config = model.config
    if type(model) not in (LlamaForCausalLM, Qwen2ForCausalLM):
        return f"is for Llama and Qwen2, and this is a {type(model).__name__}"
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return f"computes in float32 on CPUs, not in {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    if (config.rope_parameters or {}).get("rope_type", "default") not in STATIC:
        return f"knows no {config.rope_parameters['rope_type']} positions"
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "knows no sliding windows"
    if config.hidden_act != "silu":
        return f"knows no {config.hidden_act}"
    if model.model.layers[0].self_attn.head_dim % 4:
        return "needs heads whose width is a multiple of 4"
    return None


class Linear:
    """x W^T + b of linear layers side by side, their weights packed for oneDNN where torch has it."""

    def __init__(self, *layers: Any):
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.outputs, self.inputs = weight.shape
        self.bias = torch.cat(biases) if biases else None
        self.weight = self.pack(weight)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        # a call of oneDNN costs 10 microseconds more than one of the BLAS
        self.packed = weight.numel() >= SMALL and torch.backends.mkldnn.is_available()
        return torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS) if self.packed else weight

    def __call__(self, x: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(x)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "").numpy()
        return functional.linear(given, self.weight, self.bias).numpy()


class Half(Linear):
    """The same in bfloat16: inputs, weights and results are rounded to 8 bits of precision."""

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        self.bias = None if self.bias is None else self.bias.bfloat16()
        return torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), TOKENS)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(x).bfloat16()
        return torch.ops.mkldnn._linear_pointwise(given, self.weight, self.bias, "none", [], "").float().numpy()


class Quantized(Linear):
    """The same on integers of 8 bits: each row of the inputs and each output's weights are scaled by their own largest
    number to [-127, 127] and rounded; sums are exact (dynamic W8A8; Dettmers et al. 2022, section 2.1, vector-wise)."""

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        scales = weight.abs().amax(1).clamp(min=1e-30) / 127
        self.scales = scales.numpy()
        self.shift = np.zeros(self.outputs, np.float32) if self.bias is None else self.bias.numpy()
        self.one, self.zero = torch.ones(self.outputs), torch.zeros(self.outputs, dtype=torch.int64)
        whole = (weight / scales[:, None]).round().to(torch.int8)
        return torch.ops.onednn.qlinear_prepack(whole, [TOKENS, self.inputs])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        given, scales = np.empty(x.shape, np.uint8), np.empty(len(x), np.float32)
        kernels.quantize(x, given, scales)
        made = self.product(torch.from_numpy(given)).numpy()
        kernels.rescale(made, scales, self.scales, self.shift)
        return made

    def product(self, given: torch.Tensor) -> torch.Tensor:
        """float32 [rows, outputs] of whole numbers; 128 stands for 0."""
        options: Any = (self.one, self.zero, None, 1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise(given, 1.0, 128, self.weight, *options)


def exact(outputs: int, inputs: int) -> bool:
    """Whether this machine's products of that shape are: older ones let sums of two overflow."""
    rng = np.random.default_rng(0)
    layer = torch.nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (outputs, inputs)))  # times 127 are the weights
    layer.weight.copy_(signs)
    given = torch.from_numpy(rng.choice([1, 255], (ROUND, inputs)).astype(np.uint8))
    wanted = (given.double() - 128) @ signs.T * 127
    return torch.equal(Quantized(layer).product(given), wanted.float())


LINEAR = {"float32": Linear, "bfloat16": Half, "int8": Quantized}  # by compute_type


class Layer(NamedTuple):
    before: np.ndarray
    qkv: Linear
    o: Linear
    between: np.ndarray
    gate_up: Linear
    down: Linear


class Fused:
    """The weights of a model, packed for products of `compute_type`. UserError where the model is of another kind, or
    where this machine computes a row in another way when it stands beside others."""

    @torch.inference_mode()
    def __init__(self, model: Any, compute_type: str = "float32"):
        if why := unfit(model):
            raise UserError("backend.kernel", "fused", f"{why}; set it to torch")
        base, config, linear = model.model, model.config, LINEAR[compute_type]
        attention = base.layers[0].self_attn
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width: int = attention.head_dim
        self.scaling, self.epsilon = np.float32(attention.scaling), np.float32(config.rms_norm_eps)
        self.embedding = base.embed_tokens.weight.numpy()
        self.norm = base.norm.weight.numpy()
        self.layers = [
            Layer(
                layer.input_layernorm.weight.numpy(),
                linear(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                linear(layer.self_attn.o_proj),
                layer.post_attention_layernorm.weight.numpy(),
                linear(layer.mlp.gate_proj, layer.mlp.up_proj),
                linear(layer.mlp.down_proj),
            )
            for layer in base.layers
        ]
        self.head = linear(model.lm_head)
        self.rotary = base.rotary_emb
        first = self.layers[0]
        for each in (first.qkv, first.o, first.gate_up, first.down, self.head):
            if isinstance(each, Quantized) and not exact(each.outputs, each.inputs):
                why = "this machine's sums of 8-bit products overflow; set it to float32"
                raise UserError("backend.compute_type", compute_type, why)
            if not rows_alike(each):
                why = "needs matrix products that compute every row alike, and this machine's do not"
                raise UserError("backend.kernel", "fused", f"{why}; set it to torch")

    def angles(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin [length, width / 2]."""
        cos, sin = self.rotary(torch.zeros(1), torch.arange(length)[None])
        half = self.width // 2
        return cos[0, :, :half].contiguous().numpy(), sin[0, :, :half].contiguous().numpy()


def rounded(n: int) -> int:
    return -(-n // ROUND) * ROUND


def rows_alike(linear: Linear) -> bool:
    """Whether rows are computed alike, to the last bit, wherever they stand and whatever their number."""
    most = min(TOKENS, max(2 * ROUND, LOGITS // linear.outputs // ROUND * ROUND))
    x = np.random.default_rng(0).standard_normal((most, linear.inputs), np.float32)
    whole = linear(x)
    return all(
        np.array_equal(linear(x[most - rows - at : most - at]), whole[most - rows - at : most - at])
        for rows in range(ROUND, most, ROUND)
        for at in [min(ROUND // 2 + 1, most - rows)]
    )


class Batch:
    """Keys and values of `slots` records of at most `longest` tokens, and room for a step, for one thread."""

    def __init__(self, fused: Fused, slots: int, longest: int):
        self.fused, self.slots, length = fused, slots, rounded(longest)
        self.tokens = rounded(max(slots, TOKENS))  # of a step, at most
        shape = (slots + 1, fused.groups)  # the last slot is of the tokens that fill a step up
        # zeros: what is not there yet is read too, with weight 0
        self.keys = [np.zeros((*shape, fused.width, length), np.float32) for _ in fused.layers]
        self.values = [np.zeros((*shape, length, fused.width), np.float32) for _ in fused.layers]
        self.cos, self.sin = fused.angles(length)
        hidden, first = fused.embedding.shape[1], fused.layers[0]
        self.x, self.normed = (np.empty((self.tokens, hidden), np.float32) for _ in range(2))
        self.heard = np.empty((self.tokens, first.o.inputs), np.float32)
        self.inner = np.empty((self.tokens, first.down.inputs), np.float32)

    def step(self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Read tokens [n], each at its position of its slot, after all before it there. Returns what the head reads
        [n, hidden], valid until the next step."""
        n, fused = rounded(len(tokens)), self.fused
        fill = n - len(tokens)
        if fill:
            tokens, positions = np.pad(tokens, (0, fill)), np.pad(positions, (0, fill))
            slots = np.pad(slots, (0, fill), constant_values=self.slots)
        x, normed, heard, inner = self.x[:n], self.normed[:n], self.heard[:n], self.inner[:n]
        x[:] = 0
        more = fused.embedding[tokens]
        for layer, keys, values in zip(fused.layers, self.keys, self.values, strict=True):
            kernels.add_norm(x, more, layer.before, fused.epsilon, normed)
            qkv = layer.qkv(normed)
            kernels.attend(qkv, slots, positions, self.cos, self.sin, keys, values, fused.scaling, heard)
            kernels.add_norm(x, layer.o(heard), layer.between, fused.epsilon, normed)
            kernels.swiglu(layer.gate_up(normed), inner)
            more = layer.down(inner)
        kernels.add_norm(x, more, fused.norm, fused.epsilon, normed)
        return normed[: n - fill]

    def logits(self, hidden: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The next token's [rows, vocabulary], some rows at a time."""
        n, head = len(hidden), self.fused.head
        parts = -(-n // max(ROUND, LOGITS // head.outputs))
        rows = rounded(-(-n // max(1, parts)))
        for at in range(0, n, rows or 1):
            some = hidden[at : at + rows]
            fill = rounded(len(some)) - len(some)
            full = np.pad(some, ((0, fill), (0, 0))) if fill else some
            yield slice(at, at + len(some)), head(full)[: len(some)]


class Chunk:
    """Records that are kept together, and what has come of them. Several threads may compute them."""

    def __init__(self, number: int, u: np.ndarray, prompts: Sequence[Sequence[int]] | None):
        self.number, self.u, self.prompts = number, u, prompts
        self.ids: list[list[int]] = [[] for _ in u]
        self._left, self._lock = len(u), Lock()

    def prompt(self, row: int) -> Sequence[int]:
        return self.prompts[row] if self.prompts is not None else ()

    def ended(self, row: int, ids: list[int]) -> bool:
        """Keep what a record has become. Returns whether it was the last one."""
        with self._lock:
            self.ids[row] = ids
            self._left -= 1
            return self._left == 0


@torch.inference_mode()
def sample_records(
    fused: Fused, codec: Codec, waiting: Iterator[tuple[Chunk, int]], longest: int, slots: int, options: Decoding
) -> Iterator[Chunk]:
    """Compute records, (chunk, row) of `waiting`, each as soon as a slot is free. Yields a chunk when its last record
    has ended. A token at t of `longest`, the prompt included, is drawn by u[row, t], as in genloss.language.sampling.
    """
    batch = Batch(fused, slots, longest)
    chosen = Chooser(codec, slots, options)
    known = np.zeros((slots, longest + 1), np.int64)  # begin, prompt, what was drawn
    have, read = np.zeros(slots, np.int64), np.zeros(slots, np.int64)  # tokens that are known, and in the slabs
    most = np.full(slots, longest)
    u = np.zeros((slots, longest))
    owner: dict[int, tuple[Chunk, int]] = {}
    free = list(range(slots))
    while True:
        while free and (entry := next(waiting, None)) is not None:
            chunk, row = entry
            slot, prompt = free.pop(), chunk.prompt(row)
            owner[slot] = entry
            known[slot, 0], known[slot, 1 : 1 + len(prompt)] = codec.begin, prompt
            have[slot], read[slot], u[slot] = 1 + len(prompt), 0, chunk.u[row]
            most[slot] = options.longest(len(prompt))
            chosen.begin(slot, prompt)
        busy = np.flatnonzero(have)
        if not len(busy):
            return
        want = have[busy] - read[busy]
        take = np.clip(batch.tokens - (want.cumsum() - want), 0, want)
        which = np.repeat(busy, take)
        positions = read[which] + np.arange(len(which)) - np.repeat(take.cumsum() - take, take)
        hidden = batch.step(known[which, positions], which, positions)
        read[busy] += take
        ready = take == want
        who, last = busy[ready], take.cumsum()[ready] - 1
        drawn = np.empty(len(who), np.int64)
        for some, logits in batch.logits(hidden[last]):
            drawn[some] = chosen(logits, u[who[some], have[who[some]] - 1], who[some])
        known[who, have[who]] = drawn
        have[who] += 1
        for slot in who[(drawn == codec.end) | (have[who] > most[who])].tolist():
            chunk, row = owner.pop(slot)
            ids = known[slot, 1 : have[slot]].tolist()
            have[slot] = 0
            free.append(slot)
            if chunk.ended(row, ids[:-1] if ids[-1] == codec.end else ids):
                yield chunk


class Chooser:
    """The next token of some slots, from their logits."""

    def __init__(self, codec: Codec, slots: int, options: Decoding):
        self.size, self.options = codec.size, options
        cut = 0 < options.top_k < codec.size or options.top_p < 1 or options.min_p > 0
        self.plain = not cut and options.bias == 1 and options.repetition_penalty == 1
        self.cold = np.float32(1 / options.temperature)
        self.seen = None
        if options.repetition_penalty != 1:
            self.seen = torch.zeros(slots, codec.size, dtype=torch.bool)

    def begin(self, slot: int, prompt: Sequence[int]) -> None:
        if self.seen is not None:
            self.seen[slot] = False
            self.seen[slot, list(prompt)] = True

    def __call__(self, logits: np.ndarray, u: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Tokens [rows] by uniform numbers [rows]. Overwrites the logits."""
        if self.plain:
            tokens = np.empty(len(u), np.int64)
            kernels.draw(logits, self.size, self.cold, u, tokens)
            if (tokens < 0).any():
                raise NoProbabilities("model", None, DIVERGED)
            return tokens
        seen = None if self.seen is None else self.seen[slots]
        tokens = draw(
            adjust(torch.from_numpy(logits)[:, : self.size], self.options, seen),
            torch.from_numpy(u),
            self.options.bias,
        ).numpy()
        if self.seen is not None:
            self.seen[slots, tokens] = True
        return tokens
