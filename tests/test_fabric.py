"""FABRIC: self-attention that also looks at references, exact on tiny models; sampling with feedback."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genloss.core.errors import UserError
from genloss.systems.fabric import attention as fabric_attention
from genloss.systems.fabric.attention import Attention
from genloss.systems.fabric.sampler import (
    Feedback,
    Guide,
    denoise,
    dropped_labels,
    dropped_words,
    latents,
    stable,
    streams,
)

K, SHAPE = 4, (3, 16, 16)


@pytest.fixture(scope="module")
def small() -> Any:
    """A UNet2DModel of K classes and none."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet: Any = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=K + 1,
    )
    return unet.eval()


def conditional(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=more.pop("attention_head_dim", 2),
        cross_attention_dim=32,
        norm_num_groups=8,
        **more,
    )
    return unet.eval()


@pytest.fixture(scope="module")
def told() -> Any:
    return conditional()


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline()


def tiny_pipeline() -> Any:
    """A StableDiffusionPipeline of tiny random parts."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    known = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(known)}, merges=[], model_max_length=16)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(known),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    made: Any = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=conditional(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def noise(n: int, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def drawn(
    unet: Any,
    liked: torch.Tensor | None = None,
    disliked: torch.Tensor | None = None,
    draws: list[torch.Generator] | None = None,
    scheduler: Any = None,
    chunk: int = 16,
    guided: bool = True,
    **options: Any,
) -> torch.Tensor:
    """Four images of the classes 0 to 3 in six steps."""
    from diffusers import DDIMScheduler

    scheduler = scheduler or DDIMScheduler()
    scheduler.set_timesteps(6)
    none = torch.zeros(0, *SHAPE)
    with Attention.of(unet) as attention:
        return denoise(
            unet,
            scheduler,
            draws or streams(3, 4),
            SHAPE,
            {"class_labels": torch.arange(4)},
            lambda rows: {"class_labels": torch.full((rows,), K)},
            guidance=2.0,
            guide=Guide(
                attention,
                Feedback(**options),
                none if liked is None else liked,
                none if disliked is None else disliked,
                seed=5,
                chunk=chunk,
            )
            if guided
            else None,
        )


# -- attention ---------------------------------------------------------------------------------------------------------


def kinds(small: Any, told: Any) -> list[tuple[Any, torch.Tensor, dict[str, torch.Tensor]]]:
    return [
        (small, noise(2), {"class_labels": torch.tensor([1, K])}),
        (told, noise(2, (4, 8, 8)), {"encoder_hidden_states": noise(2, (5, 32), 2)}),
    ]


@torch.inference_mode()
def test_without_references_a_unet_computes_what_it_did(small: Any, told: Any) -> None:
    for unet, x, more in kinds(small, told):
        before = unet(x, 500, **more).sample
        with Attention.of(unet) as attention:
            assert torch.equal(unet(x, 500, **more).sample, before)
            with attention.look_at("liked", 0.3):
                assert torch.equal(unet(x, 500, **more).sample, before)
            attention.check()


@torch.inference_mode()
@pytest.mark.parametrize("weight", [1e-6, 0.1, 1.0, 7.0, 100.0])
def test_an_image_that_is_its_own_reference_is_as_without(small: Any, told: Any, weight: float) -> None:
    """In every layer at once, through the whole UNet."""
    for unet, x, more in kinds(small, told):
        for row in range(2):
            one, its = x[row : row + 1], {k: v[row : row + 1] for k, v in more.items()}
            with Attention.of(unet) as attention:
                before = unet(one, 500, **its).sample
                for _ in range(2):  # twice itself is itself, too
                    with attention.remember("liked"):
                        unet(one, 500, **its)
                    with attention.look_at("liked", weight):
                        seen = unet(one, 500, **its).sample
                    assert (seen - before).abs().max() < 1e-5
    layer, x = next(iter(layers_of(small))), noise(2, (32, 8, 8))
    with Attention.of(small) as attention:
        before = layer(x[:1])
        with attention.remember("liked"):
            layer(x[:1])
        with attention.look_at("liked", weight):
            assert (layer(x[:1]) - before).abs().max() < 1e-6
            assert (layer(x[1:]) - before).abs().max() > 1e-3  # another image does see it


def layers_of(unet: Any) -> list[Any]:
    with Attention.of(unet) as attention:
        return list(attention.layers.values())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 50), st.integers(1, 9), st.integers(1, 9))
def test_a_weight_is_its_logarithm_added(seed: int, weight: float, own: int, others: int) -> None:
    """Scaled by w after the softmax and normalised again, as the paper says it."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 2, n, 8, generator=rng, dtype=torch.float64) for n in (own, own + others, own + others))
    mask = torch.zeros(1, 1, 1, own + others, dtype=torch.float64)
    mask[..., own:] = math.log(weight)
    ours = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    p = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    p[..., own:] *= weight
    theirs = (p / p.sum(-1, keepdim=True)) @ v
    assert (ours - theirs).abs().max() < 1e-12


@torch.inference_mode()
def test_a_layer_does_what_the_paper_says(small: Any) -> None:
    """A layer of a UNet against the formula, written out."""
    layer, w = layers_of(small)[0], 0.4
    x, references = noise(2, (32, 8, 8)), noise(3, (32, 8, 8), 9)

    def tokens(z: torch.Tensor) -> torch.Tensor:
        return layer.group_norm(z.flatten(2)).transpose(1, 2)

    with Attention.of(small) as attention:
        for some in references.split(2):  # encoded in parts
            with attention.remember("liked"):
                layer(some)
        with attention.look_at("liked", w):
            ours = layer(x)
    own, other = tokens(x), tokens(references).flatten(0, 1).expand(2, -1, -1)
    both = torch.cat([own, other], 1)

    def heads(z: torch.Tensor) -> torch.Tensor:
        return z.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    q, k, v = heads(layer.to_q(own)), heads(layer.to_k(both)), heads(layer.to_v(both))
    p = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    p[..., own.shape[1] :] *= w
    found = ((p / p.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2)
    theirs = (layer.to_out[0](found).transpose(1, 2).reshape(x.shape) + x) / layer.rescale_output_factor
    assert (ours - theirs).abs().max() < 1e-5


def test_processors_come_back(small: Any, told: Any) -> None:
    for unet, _, _ in kinds(small, told):
        before = [layer.processor for layer in layers_of(unet)]
        with pytest.raises(RuntimeError, match="broken"), Attention.of(unet):
            raise RuntimeError("broken")
        assert [layer.processor for layer in layers_of(unet)] == before
    assert len(layers_of(told)) * 2 == len(told.attn_processors)  # attn1 alone, of attn1 and attn2


def test_processors_that_are_replaced_are_noticed(small: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    with Attention.of(small) as attention:
        small(noise(1), 500, class_labels=torch.tensor([0]))
        attention.check()
        attention.layers[name := list(attention.layers)[1]].set_processor(AttnProcessor())
        with pytest.raises(UserError, match=rf"unet={name}: is not computed by the processor"):
            attention.check()
    with Attention.of(small) as attention, pytest.raises(UserError, match="not computed by"):
        attention.check()  # no pass has asked them


def test_what_fabric_cannot_work_through_is_refused(small: Any) -> None:
    with pytest.raises(UserError, match="unet=Linear: has no self-attention"), Attention.of(torch.nn.Linear(1, 1)):
        pass
    layer = layers_of(small)[0]
    before = layer.processor

    class Other:
        pass

    layer.set_processor(Other())
    try:
        with pytest.raises(UserError, match=r"unet=Other: computes .*; FABRIC takes the place of"), Attention.of(small):
            pass
    finally:
        layer.set_processor(before)


# -- sampling ----------------------------------------------------------------------------------------------------------


def schedulers() -> list[Callable[[], Any]]:
    from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

    return [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler]


@pytest.mark.parametrize("made", schedulers())
def test_a_weight_of_0_is_the_baseline(small: Any, made: Callable[[], Any]) -> None:
    references = noise(2, seed=8)
    plain = drawn(small, scheduler=made(), guided=False)
    assert torch.equal(drawn(small, references, references, scheduler=made(), weight=0.0), plain)
    assert torch.equal(drawn(small, scheduler=made(), weight=0.3), plain)  # nothing liked yet
    assert torch.equal(drawn(small, references, scheduler=made(), weight=0.3, end=0.0), plain)
    assert not torch.equal(drawn(small, references, scheduler=made(), weight=0.3), plain)
    assert (drawn(small, references, scheduler=made(), weight=1e-30) - plain).abs().max() < 1e-4  # and tends to it


@pytest.mark.parametrize("made", schedulers())
def test_references_draw_nothing_from_the_samplers_stream(small: Any, made: Callable[[], Any]) -> None:
    states = []
    for liked in (None, noise(3, seed=8)):
        torch.manual_seed(1)
        np.random.seed(1)
        draws = streams(3, 4)
        drawn(small, liked, liked, draws, scheduler=made(), weight=0.5)
        states.append([*(draw.get_state() for draw in draws), torch.get_rng_state()])
        states[-1].append(torch.from_numpy(np.random.get_state()[1].astype(np.int64)))  # type: ignore[index]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_each_side_acts_in_its_pass_and_its_window(small: Any) -> None:
    a, plain = noise(2, seed=8), drawn(small)
    made = {
        "liked": drawn(small, a),
        "disliked": drawn(small, None, a),
        "both": drawn(small, a, a),
        "early": drawn(small, a, end=0.5),
        "late": drawn(small, a, start=0.5, end=1.0),
        "all": drawn(small, a, end=1.0),
        "plain": plain,
    }
    for name, images in made.items():
        assert torch.isfinite(images).all()
        assert sum(torch.equal(images, other) for other in made.values()) == 1, name
    assert torch.equal(drawn(small, a, a, negative=0.0), made["liked"])
    assert torch.equal(drawn(small, a), made["liked"])  # again, bit for bit


def test_references_are_encoded_in_parts(small: Any) -> None:
    a = noise(5, seed=8)
    assert (drawn(small, a, chunk=2) - drawn(small, a, chunk=5)).abs().max() < 1e-3
    # order of references is order of keys: no matter
    assert (drawn(small, a.flip(0)) - drawn(small, a)).abs().max() < 1e-3


def test_more_references_than_memory_holds(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Attention.of(small) as attention, torch.inference_mode():
        with attention.remember("liked"):
            small(noise(2), 500, class_labels=torch.tensor([K, K]))
        kept = [processor.kept["liked"] for processor in attention.processors.values()]
        one = sum(tensor.numel() * 4 for each in kept for tensor in (*each.keys, *each.values)) / 2
        assert one == len(attention.layers) * 64 * 32 * 2 * 4  # of 8 x 8 tokens of 32 numbers, keys and values
        assert attention.fits(10**9) < 10**9
    monkeypatch.setattr(fabric_attention, "memory", lambda device: 3.5 * one / fabric_attention.MEMORY)
    assert torch.isfinite(drawn(small, noise(2), noise(1))).all()
    why = r"^feedback=4 references: have more keys and values than memory is for; 3 fit: give feedback on fewer images$"
    with pytest.raises(UserError, match=why):
        drawn(small, noise(2), noise(2))


def test_dislikes_without_guidance_are_refused(small: Any) -> None:
    with Attention.of(small) as attention:
        guide = Guide(attention, Feedback(), noise(0), noise(1), seed=0)
        with pytest.raises(UserError, match=r"negative=0\.5: has nothing to act on without guidance"):
            guide.predict(lambda: noise(1), lambda: noise(1), lambda z: z, None, torch.tensor(1), 0, 6, 0.0)


@pytest.mark.parametrize(
    ("option", "value"),
    [("weight", -1), ("weight", math.nan), ("negative", 1e9), ("start", 0.9), ("end", 1.5), ("dropout", 2)],
)
def test_values_of_feedback_that_are_refused(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{'start' if option == 'end' else option}="):
        Feedback(**{option: value})


def test_dropout_has_a_stream_of_its_own() -> None:
    labels = torch.arange(2000) % K
    kept = dropped_labels(labels, K, 0.3, seed=1)
    assert 0.26 < (kept == K).float().mean() < 0.34 and torch.equal(kept[kept != K], labels[kept != K])
    assert torch.equal(dropped_labels(labels[7:], K, 0.3, seed=1, first=7), kept[7:])
    assert torch.equal(dropped_labels(labels, K, 0.0, seed=1), labels)
    assert dropped_words("a red circle", 0.0, 1, 0) == "a red circle" and dropped_words("a b", 1.0, 1, 0) == ""
    assert len({dropped_words("a b c d", 0.5, 1, i) for i in range(50)}) > 5


# -- Stable Diffusion --------------------------------------------------------------------------------------------------


def test_stable_diffusion_with_feedback(pipe: Any) -> None:
    plain = stable(pipe, "a red circle", 2, seed=1, steps=4, size=16)
    assert plain.shape == (2, 16, 16, 3) and plain.dtype == np.uint8
    liked = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    off = Feedback(weight=0.0)
    assert (stable(pipe, "a red circle", 2, seed=1, steps=4, size=16, liked=liked, feedback=off) == plain).all()
    seen = stable(pipe, "a red circle", 2, seed=1, steps=4, size=16, liked=liked)
    both = stable(pipe, "a red circle", 2, seed=1, steps=4, size=16, liked=liked, disliked=liked[:1])
    assert (seen != plain).any() and (both != seen).any()
    assert latents(pipe, liked).shape == (2, 4, 8, 8) and torch.equal(latents(pipe, liked), latents(pipe, liked))


def test_its_baseline_is_the_pipeline_of_diffusers(pipe: Any) -> None:
    start = torch.cat([torch.randn(1, 4, 8, 8, generator=draw) for draw in streams(1, 2)])
    theirs = pipe(
        "a red circle",
        height=16,
        width=16,
        num_images_per_prompt=2,
        num_inference_steps=4,
        guidance_scale=6.0,
        latents=start,
        output_type="np",
    ).images
    ours = stable(pipe, "a red circle", 2, seed=1, steps=4, size=16, guidance=5.0)
    assert np.abs(ours / 255 - theirs).max() < 1.5 / 255


@torch.inference_mode()
def test_a_unet_like_that_of_sdxl() -> None:
    unet = conditional(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
    )
    more = {"text_embeds": noise(1, (32,)), "time_ids": noise(1, (6,))}
    x, text = noise(2, (4, 8, 8)), noise(1, (5, 32), 2)

    def run(z: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = unet(z, 500, text, added_cond_kwargs=more).sample
        return found

    with Attention.of(unet) as attention:
        before = run(x[:1])
        for reference, same in ((x[:1], True), (x[1:], False)):
            attention.forget()
            with attention.remember("liked"):
                run(reference)
            with attention.look_at("liked", 0.8):
                assert ((run(x[:1]) - before).abs().max() < 1e-5) == same
        attention.check()
