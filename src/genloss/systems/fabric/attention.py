"""Self-attention that also looks at reference images: the keys and values of these, appended with a weight.

    with Attention.of(unet) as attention:                # on leaving, the UNet has the processors that it had
        with attention.remember("liked"):
            unet(noised references, ...)                 # each layer keeps its keys and values
        with attention.look_at("liked", weight=0.3):
            unet(x, ...)                                 # each image of the batch sees all of them

The weight w multiplies the attention that references get, before it is normalised (von Rütte et al. 2023). That is
log w added to their logits, so one masked call of torch's scaled_dot_product_attention does it. Exact consequences,
which tests/test_fabric.py checks: without references the UNet computes what it did, bit for bit; an image that is its
own reference is computed as without, whatever w is.

It works on every layer of a UNet of diffusers whose keys come from the image itself: `attn1` of UNet2DConditionModel,
all attention of UNet2DModel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention as Layer
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn.functional import scaled_dot_product_attention

from genloss.core.errors import UserError
from genloss.core.machine import memory

MEMORY = 0.25  # of the machine's, for keys and values


@dataclass
class Kept:
    """Keys and values of references in one layer, float [references, heads, tokens, width of a head] in parts."""

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def flat(self, what: list[torch.Tensor], rows: int) -> torch.Tensor:
        """[rows, heads, references · tokens, width]: every image of a batch sees all references."""
        one = torch.cat(what).transpose(0, 1).flatten(1, 2)
        return one.expand(rows, *one.shape)


class Processor:
    """What a layer of self-attention computes: as AttnProcessor2_0 of diffusers does, with references beside its own
    keys."""

    def __init__(self, attention: Attention):
        self.attention = attention
        self.kept: dict[str, Kept] = {}
        self.calls = 0

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """The layer's output, of the shape of hidden_states: [rows, tokens, width] or [rows, width, height, width]."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UserError("unet", type(attn).__name__, "has self-attention with a mask or foreign keys: no FABRIC")
        self.calls += 1
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.view(*shape[:2], -1).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(len(projected), -1, attn.heads, projected.shape[-1] // attn.heads).transpose(1, 2)

        query, key, value = (heads(to(hidden_states)) for to in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if self.attention.remembering:
            kept = self.kept.setdefault(self.attention.remembering, Kept())
            kept.keys.append(key)
            kept.values.append(value)
        seen = self.attention.looking and self.kept.get(self.attention.looking[0])
        mask = None
        if seen and self.attention.looking:
            own = key.shape[2]
            key = torch.cat([key, seen.flat(seen.keys, len(key))], 2)
            value = torch.cat([value, seen.flat(seen.values, len(value))], 2)
            mask = key.new_zeros(1, 1, 1, key.shape[2])
            mask[..., own:] = math.log(self.attention.looking[1])
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        found = found.transpose(1, 2).reshape(len(found), -1, found.shape[1] * found.shape[3]).to(query.dtype)
        found = attn.to_out[1](attn.to_out[0](found))
        if len(shape) == 4:
            found = found.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            found = found + residual
        return found / attn.rescale_output_factor


class Attention:
    """The self-attention of one UNet, while references are looked at; made by `of`. One thread uses it at a time: what
    is looked at is state of the UNet."""

    def __init__(self, layers: dict[str, Any]):
        self.layers = layers
        self.processors = {name: Processor(self) for name in layers}
        self.remembering = ""
        self.looking: tuple[str, float] | None = None

    @classmethod
    @contextmanager
    def of(cls, unet: torch.nn.Module) -> Iterator[Attention]:
        """Put processors of this module into a UNet; whatever happens inside, it gets its own back. UserError: it has
        no self-attention, or one that other processors than diffusers' usual ones compute."""
        layers = {
            name: module
            for name, module in unet.named_modules()
            if isinstance(module, Layer) and not module.is_cross_attention
        }
        if not layers:
            raise UserError("unet", type(unet).__name__, "has no self-attention, which FABRIC works through")
        before = {name: layer.processor for name, layer in layers.items()}
        for name, processor in before.items():
            if type(processor) not in (AttnProcessor, AttnProcessor2_0):
                why = f"computes {name}; FABRIC takes the place of AttnProcessor and AttnProcessor2_0 alone"
                raise UserError("unet", type(processor).__name__, why)
        attention = cls(layers)
        try:
            for name, layer in layers.items():
                layer.set_processor(
                    cast("Any", attention.processors[name])
                )  # diffusers' type is a list of its own classes
            yield attention
        finally:
            for name, layer in layers.items():
                layer.set_processor(before[name])

    def check(self) -> None:
        """Refuse a UNet that has replaced the processors, or does not ask them (UserError): feedback would be without
        effect and nobody would notice. To be called after the first step."""
        for name, layer in self.layers.items():
            if layer.processor is not self.processors[name] or not self.processors[name].calls:
                why = "is not computed by the processor that FABRIC gave it; another library has replaced it"
                raise UserError("unet", name, why)

    @contextmanager
    def remember(self, name: str) -> Iterator[None]:
        """Passes of the UNet inside add the keys and values of their batch to those called `name`."""
        self.remembering = name
        try:
            yield
        finally:
            self.remembering = ""

    @contextmanager
    def look_at(self, name: str, weight: float) -> Iterator[None]:
        """Passes of the UNet inside see the references called `name`, with weight > 0; without any, they are as
        ever."""
        self.looking = name, weight
        try:
            yield
        finally:
            self.looking = None

    def forget(self) -> None:
        """Drop all references: those of another step are of another noise."""
        for processor in self.processors.values():
            processor.kept.clear()

    def fits(self, references: int, device: str = "cpu") -> int:
        """How many of so many references fit into MEMORY of the machine, as those that are remembered tell."""
        tensors = [t for p in self.processors.values() for kept in p.kept.values() for t in (*kept.keys, *kept.values)]
        rows = sum(len(t) for p in list(self.processors.values())[:1] for kept in p.kept.values() for t in kept.keys)
        one = sum(t.numel() * t.element_size() for t in tensors) / max(1, rows)
        return min(references, int(MEMORY * memory(device) / one)) if one else references
