"""One token further: keys and values in a preallocated slab, and a decode step with few operations.

`transformers` concatenates its cache at every step, and its modules cost more Python than arithmetic at these sizes:
with two chunks in two threads, both wait for the interpreter lock. A plain Llama therefore decodes here with 15
operations a layer; every other architecture, and the prompt, goes through the library's own forward (docs/decisions.md,
"Sampling").

    step = stepper(model, longest)
    logits = step(tokens [rows, new], cache, slot of the first, padding)      # [rows, vocabulary]

Prompts of several lengths stand side by side, with padding on the left that nothing looks at (`padding` [rows]: how
much; None where there is none), so that the token that is next has one slot for all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Step = Callable[[torch.Tensor, Cache, int, torch.Tensor | None], torch.Tensor]


class SlabLayer(DynamicLayer):
    """Keys and values of one layer in a preallocated slab [rows, heads, length, width]; `update` returns views."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.used = length, 0
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.length, width)
        self.values = value_states.new_empty(rows, heads, self.length, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.used

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        # only what is filled moves
        for name in ("keys", "values"):
            slab = getattr(self, name)
            moved = slab.new_empty(len(beam_idx), *slab.shape[1:])
            moved[:, :, : self.used] = slab[beam_idx, :, : self.used]
            setattr(self, name, moved)


def new_cache(config: Any, length: int) -> Cache:
    """A slab for plain attention; what the library prefers for anything else (sliding windows, state spaces)."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if kinds == {"full_attention"} and getattr(text, "sliding_window", None) is None:
        return Cache(layers=[SlabLayer(length) for _ in range(text.num_hidden_layers)])
    return DynamicCache(config=config)


def one_query(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Attention of one new position, grouped by key-value head: two matrix products, 1.3-1.6 times as fast on CPU as
    SDPA, which is made for long queries (docs/decisions.md). Longer queries go to SDPA."""
    rows, heads, length, width = query.shape
    if length != 1 or attention_mask is not None or query.is_cuda:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    scaled = query.view(rows, key.shape[1], -1, width) * (width**-0.5 if scaling is None else scaling)
    weights = torch.softmax(scaled @ key.transpose(-1, -2), dim=-1)
    return (weights @ value).reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register("genloss_one_query", one_query)
AttentionMaskInterface.register("genloss_one_query", sdpa_mask)


def stepper(model: Any, longest: int, padding: int = 0) -> Step:
    """The function that takes `model` one step further, for sequences of at most `longest` tokens, with at most so much
    padding before them."""

    def library(tokens: torch.Tensor, cache: Cache, slot: int, before: torch.Tensor | None) -> torch.Tensor:
        slots = torch.arange(slot + tokens.shape[1], device=tokens.device)[None]
        places, mask = slots[:, slot:], None
        if before is not None:
            places = (places - before[:, None]).clamp(0, longest - 1)  # rows that have ended go on beside the others
            mask = (slots >= before[:, None]).long()
        out = model(
            input_ids=tokens,
            past_key_values=cache,
            use_cache=True,
            position_ids=places,
            attention_mask=mask,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    config = model.config
    plain = (
        type(model) is LlamaForCausalLM
        and model.dtype == torch.float32
        and (config.rope_parameters or {}).get("rope_type", "default") == "default"
        and isinstance(new_cache(config, 1).layers[0], SlabLayer)
    )
    if not plain:
        return library
    one = llama_step(model, longest + padding)
    return lambda tokens, *at: (one if tokens.shape[1] == 1 else library)(tokens, *at)


def llama_step(model: LlamaForCausalLM, longest: int) -> Step:
    """A Llama layer (Touvron et al. 2023) for one new token: projections side by side in one matrix, queries scaled in
    advance."""
    base: Any = model.model
    config: Any = model.config
    heads: int = config.num_attention_heads
    groups: int = config.num_key_value_heads
    width: int = base.layers[0].self_attn.head_dim
    positions = torch.arange(longest, device=model.device)[None]
    cos, sin = base.rotary_emb(base.embed_tokens.weight, positions)
    # rotate_half(x) * sin = (second half, first half) * (-sin, sin)
    cos, sin = cos[0], sin[0] * torch.cat([-torch.ones(width // 2), torch.ones(width - width // 2)]).to(sin)

    def beside(*linears: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        biases = [linear.bias for linear in linears]
        return torch.cat([x.weight for x in linears]), None if biases[0] is None else torch.cat(biases)

    layers = [
        (
            layer.input_layernorm,
            beside(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
            layer.self_attn.scaling,
            layer.self_attn.o_proj,
            layer.post_attention_layernorm,
            beside(layer.mlp.gate_proj, layer.mlp.up_proj),
            layer.mlp.act_fn,
            layer.mlp.down_proj,
        )
        for layer in base.layers
    ]

    def norm(x: torch.Tensor, by: Any) -> torch.Tensor:
        return functional.rms_norm(x, by.weight.shape, by.weight, by.variance_epsilon)

    def step(tokens: torch.Tensor, cache: Cache, slot: int, padding: torch.Tensor | None) -> torch.Tensor:
        x = functional.embedding(tokens[:, 0], base.embed_tokens.weight)
        rows = len(x)
        c, s, hidden = cos[slot], sin[slot], None
        if padding is not None:
            c, s = cos[slot - padding, None], sin[slot - padding, None]
            hidden = (torch.arange(slot + 1, device=padding.device) < padding[:, None])[:, None, None]
        slabs: Any = cache.layers
        for slab, (before, qkv, scaling, o, between, gate_up, act, down) in zip(slabs, layers, strict=True):
            found = functional.linear(norm(x, before), *qkv).view(rows, heads + 2 * groups, width)
            turn = found[:, : heads + groups]
            half = turn.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
            turned = torch.addcmul(turn * c, half, s)
            key, value = slab.update(turned[:, heads:, None], found[:, heads + groups :, None])
            query = turned[:, :heads].view(rows, groups, heads // groups, width) * scaling
            scores = query @ key.transpose(-1, -2)
            if hidden is not None:
                scores = scores.masked_fill_(hidden, -torch.inf)
            weights = torch.softmax(scores, dim=-1)
            x = x + functional.linear((weights @ value).view(rows, -1), o.weight, o.bias)
            gate, up = functional.linear(norm(x, between), *gate_up).chunk(2, dim=-1)
            x = x + functional.linear(act(gate) * up, down.weight, down.bias)
        return functional.linear(norm(x, base.norm), model.lm_head.weight)

    return step
