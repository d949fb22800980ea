"""Sampling with feedback: at every step the references are noised to that step, and the model looks at them.

    feedback = Feedback(weight=0.3)
    with Attention.of(unet) as attention:
        guide = Guide(attention, feedback, liked, disliked, seed=7)
        images = denoise(unet, scheduler, streams, shape, told, untold, guidance=3, guide=guide)

Liked references are seen by the pass that is told the class or the prompt, disliked ones by the pass that is not, from
which guidance (Ho & Salimans 2022) leads away; without guidance dislikes would have no effect, and are refused. Both
are encoded without class or prompt. Their noise has a stream of its own for each reference and step: what the sampler
draws is the same with feedback and without, and a weight of 0 gives the same images bit for bit. (In the original both
draw from one generator.)

`Guide` works in any loop that can call it; `denoise` is one for diffusers' UNets and schedulers, `stable` one for the
parts of a StableDiffusionPipeline."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genloss.core.errors import UserError, require
from genloss.core.seeds import generator, seed_of
from genloss.systems.fabric.attention import Attention

CHUNK = 16  # references that are encoded together
Told = Mapping[str, torch.Tensor]  # what a UNet is told beside x and t, by the names of its arguments


@dataclass(frozen=True)
class Feedback:
    """How references act. weight: w of liked ones; negative: w of disliked ones is weight · negative; they act in steps
    from `start` to `end`, shares of all steps (von Rütte et al.: 0 to 0.8); dropout: the probability that an image is
    not told its class, or a prompt loses a word."""

    weight: float = 0.3
    negative: float = 0.5
    start: float = 0.0
    end: float = 0.8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.weight <= 100, "weight", self.weight, "in [0, 100] (0: no feedback)")
        require(0 <= self.negative <= 100, "negative", self.negative, "in [0, 100] (0: no dislikes)")
        require(0 <= self.start <= self.end <= 1, "start", self.start, "a share of the steps, at most end")
        require(0 <= self.dropout <= 1, "dropout", self.dropout, "a probability")

    def acts(self, step: int, steps: int) -> bool:
        return self.start * steps <= step < self.end * steps


class Guide:
    """Feedback on the passes of one model. liked, disliked: float [n, channels, height, width], in the space in which
    the model denoises. A reference's noise depends on its content, the step and the seed alone."""

    def __init__(
        self,
        attention: Attention,
        feedback: Feedback,
        liked: torch.Tensor,
        disliked: torch.Tensor,
        *,
        seed: int,
        chunk: int = CHUNK,
    ):
        sides = {"liked": (liked, feedback.weight), "disliked": (disliked, feedback.weight * feedback.negative)}
        self.sides = {name: side for name, side in sides.items() if len(side[0]) and side[1] > 0}
        self.attention, self.feedback, self.seed, self.chunk = attention, feedback, seed, chunk
        self.names = {name: [_digest(z) for z in each] for name, (each, _) in self.sides.items()}

    def predict(
        self,
        told: Callable[[], torch.Tensor],
        untold: Callable[[], torch.Tensor],
        encode: Callable[[torch.Tensor], Any],
        scheduler: Any,
        t: torch.Tensor,
        step: int,
        steps: int,
        guidance: float,
    ) -> torch.Tensor:
        """(1 + guidance) told - guidance untold. told, untold: the two passes; encode: a pass over references as the
        model takes them, without class or prompt."""
        if guidance == 0 and "disliked" in self.sides:
            why = "has nothing to act on without guidance; set guidance above 0, or negative to 0"
            raise UserError("negative", self.feedback.negative, why)
        if self.sides and self.feedback.acts(step, steps):
            self._encode(encode, scheduler, t, step)
        liked, disliked = (self.sides[name][1] if name in self.sides else 1.0 for name in ("liked", "disliked"))
        try:
            with self.attention.look_at("liked", liked):
                with_it = told()
            if step == 0:
                self.attention.check()
            if guidance == 0:
                return with_it
            with self.attention.look_at("disliked", disliked):
                without = untold()
        finally:
            self.attention.forget()
        return with_it + guidance * (with_it - without)

    def _encode(self, encode: Callable[[torch.Tensor], Any], scheduler: Any, t: torch.Tensor, step: int) -> None:
        total = sum(len(each) for each, _ in self.sides.values())
        for name, (each, _) in self.sides.items():
            for first in range(0, len(each), self.chunk):
                some = each[first : first + self.chunk]
                names = self.names[name][first : first + self.chunk]
                noise = torch.from_numpy(np.stack([self._noise(n, step, some.shape[1:]) for n in names])).to(some)
                noised = scheduler.add_noise(some, noise, t.reshape(1).expand(len(some)))
                with self.attention.remember(name):
                    encode(scheduler.scale_model_input(noised, t))
                if (fit := self.attention.fits(total, some.device.type)) < total:
                    self.attention.forget()
                    why = f"have more keys and values than memory is for; {fit} fit: give feedback on fewer images"
                    raise UserError("feedback", f"{total} references", why)

    def _noise(self, name: str, step: int, shape: Sequence[int]) -> np.ndarray:
        return generator(self.seed, "reference", name, step).standard_normal(tuple(shape), dtype=np.float32)


def _digest(z: torch.Tensor) -> str:
    return hashlib.sha256(z.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def streams(seed: int, rows: int, first: int = 0) -> list[torch.Generator]:
    """The sampler's random streams, one an image."""
    return [torch.Generator().manual_seed(seed_of(seed, "image", first + i)) for i in range(rows)]


@torch.inference_mode()
def denoise(
    unet: Any,
    scheduler: Any,
    draws: Sequence[torch.Generator],
    shape: Sequence[int],
    told: Told,
    untold: Callable[[int], Told],
    *,
    guidance: float,
    guide: Guide | None = None,
    eta: float = 0.0,
) -> torch.Tensor:
    """x of len(draws) images, float [rows, *shape], by a scheduler whose timesteps are set. untold: what so many rows
    are told where they are told nothing. guide: None is the baseline, plain guidance."""
    rows, steps = len(draws), len(scheduler.timesteps)
    x = torch.cat([torch.randn(1, *shape, generator=draw) for draw in draws]).to(unet.device, unet.dtype)
    x = x * scheduler.init_noise_sigma
    accepted = inspect.signature(scheduler.step).parameters
    more = {k: v for k, v in {"generator": list(draws), "eta": eta}.items() if k in accepted}
    for step, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)

        def run(z: torch.Tensor, what: Told, t: torch.Tensor = t) -> torch.Tensor:
            found: torch.Tensor = unet(z, t, **what).sample
            return found

        def with_it(seen: torch.Tensor = seen) -> torch.Tensor:
            return run(seen, told)

        def without(seen: torch.Tensor = seen) -> torch.Tensor:
            return run(seen, untold(rows))

        if guide:
            predicted = guide.predict(
                with_it, without, lambda z: run(z, untold(len(z))), scheduler, t, step, steps, guidance
            )
        else:
            predicted = with_it()
            if guidance:
                predicted = predicted + guidance * (predicted - without())
        x = scheduler.step(predicted, t, x, **more).prev_sample
    return x


def dropped_labels(labels: torch.Tensor, none: int, dropout: float, seed: int, first: int = 0) -> torch.Tensor:
    """Classes of images, int [rows], of which each is `none` with probability `dropout`, by a stream of its own."""
    drop = [generator(seed, "dropout", first + i).random() < dropout for i in range(len(labels))]
    return torch.where(torch.tensor(drop, device=labels.device), none, labels)


def dropped_words(prompt: str, dropout: float, seed: int, number: int) -> str:
    """The prompt of image `number` without the words that it loses, each with probability `dropout`."""
    words, rng = prompt.split(" "), generator(seed, "dropout", number)
    return " ".join(word for word in words if rng.random() >= dropout)


@torch.inference_mode()
def latents(pipe: Any, images: np.ndarray) -> torch.Tensor:
    """Images uint8 [n, height, width, 3] where a StableDiffusionPipeline denoises: the mode of its VAE's posterior, so
    that nothing is drawn."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(pipe.vae.device, pipe.vae.dtype) / 127.5 - 1
    if not len(pixels):
        return pixels.new_zeros(0, pipe.unet.config.in_channels, 1, 1)
    modes = [pipe.vae.encode(some).latent_dist.mode() for some in pixels.split(CHUNK)]
    return torch.cat(modes) * pipe.vae.config.scaling_factor


@torch.inference_mode()
def stable(
    pipe: Any,
    prompt: str | Sequence[str],
    n: int,
    *,
    seed: int,
    liked: np.ndarray | None = None,
    disliked: np.ndarray | None = None,
    feedback: Feedback | None = None,
    guidance: float = 5.0,
    steps: int = 20,
    size: int = 512,
    eta: float = 0.0,
    first: int = 0,
) -> np.ndarray:
    """uint8 [n, size, size, 3]: images of a prompt, or of one each, by the parts of a StableDiffusionPipeline, with
    feedback on liked and disliked images, uint8 [m, height, width, 3]. guidance: w, which is guidance_scale - 1 of
    diffusers (the paper's 6 is 5 here)."""
    feedback, none = feedback or Feedback(), np.zeros((0, size, size, 3), np.uint8)
    each = [prompt] * n if isinstance(prompt, str) else prompt
    prompts = [dropped_words(text, feedback.dropout, seed, first + i) for i, text in enumerate(each)]
    device, side = pipe.unet.device, size // pipe.vae_scale_factor
    told = pipe.encode_prompt(prompts, device, 1, False)[0]
    nothing = pipe.encode_prompt([""], device, 1, False)[0]
    pipe.scheduler.set_timesteps(steps, device=device)
    with Attention.of(pipe.unet) as attention:
        references = [latents(pipe, none if images is None else images) for images in (liked, disliked)]
        x = denoise(
            pipe.unet,
            pipe.scheduler,
            streams(seed, n, first),
            (pipe.unet.config.in_channels, side, side),
            {"encoder_hidden_states": told},
            lambda rows: {"encoder_hidden_states": nothing.expand(rows, -1, -1)},
            guidance=guidance,
            guide=Guide(attention, feedback, references[0], references[1], seed=seed),
            eta=eta,
        )
    pixels = torch.cat([pipe.vae.decode(some / pipe.vae.config.scaling_factor).sample for some in x.split(CHUNK)])
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
