"""Models of the domain of images: a small UNet that denoises (Ho et al. 2020), told the class of what it denoises.

    genloss run domain=images model.channels=[32,64,64] model.attention=2 model.prediction=epsilon
    genloss run domain=images model=saved_unet model.path=my/unet

A saved model is the layout of diffusers: config.json and diffusion_pytorch_model.safetensors of a UNet2DModel, the
averaged weights alone, and scheduler/, the noise that it was trained with. Of K classes the UNet has K + 1: number K is
none, which guidance without a classifier needs (Ho & Salimans 2022)."""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genloss.core.capabilities import Images, able
from genloss.core.contracts import Experiment, Fit, Model, Size
from genloss.core.errors import UserError, first_line, one_of, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import in_project
from genloss.domains.images.corpora import LABELS
from genloss.language.saved import PICKLED

if TYPE_CHECKING:
    import torch

PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon"}
SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler"
SPACINGS = ("leading", "linspace", "trailing")  # of timesteps that are sampled at
MOST_STEPS = 10_000  # timesteps of noise
SAVED = ("config.json", WEIGHTS, f"{SCHEDULER}/scheduler_config.json")


class DiffusionModel(Model):
    """A UNet2DModel of diffusers and the noise that it is trained with. A subclass without a `base` to begin from makes
    both afresh (`initial`)."""

    needs: ClassVar[tuple[type, ...]] = (Images,)

    @abstractmethod
    def most_steps(self) -> int:
        """How many timesteps its noise has, known before a training: a sampler can take no more."""

    def initial(self, fit: Fit) -> tuple[Any, Any]:
        """(UNet in training mode, its DDPMScheduler) that a training begins with."""
        assert fit.start, "a model without a base makes its own"
        unet, scheduler = load(fit.start)
        return unet.train(), scheduler

    def steps_of_noise(self, fit: Fit) -> int:
        """How many timesteps that has."""
        return int(noise_of(fit.start).config.num_train_timesteps) if fit.start else self.most_steps()

    def save(self, unet: Any, scheduler: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write a UNet with these weights, and its scheduler, to a folder."""
        from safetensors.torch import save_file

        unet.save_config(folder)
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})
        scheduler.save_config(folder / SCHEDULER)
        for file in ("config.json", f"{SCHEDULER}/scheduler_config.json"):
            said = json.loads((folder / file).read_text(encoding="utf-8"))
            said.pop("_name_or_path", None)  # where it was loaded from is no part of what it is
            (folder / file).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass
class UNet(DiffusionModel):
    """A UNet from scratch. Each level has half of the pixels a side of the one before."""

    channels: list[int] = field(default_factory=lambda: [16, 32, 64])  # of each level
    layers: int = 1  # residual blocks a level
    attention: int = 1  # self-attention at so many of the lowest levels; 0: none
    head_width: int = 8  # channels a head of it
    groups: int = 8  # of the normalisation
    dropout: float = 0.0
    prediction: str = "v"  # v = sqrt(a) noise - sqrt(1 - a) image (Salimans & Ho 2022), or epsilon: the noise
    timesteps: int = 1000
    schedule: str = "cosine"  # of the noise (Nichol & Dhariwal 2021), or linear (Ho et al. 2020)

    def __post_init__(self) -> None:
        require(1 <= len(self.channels) <= 6, "channels", self.channels, "a list of 1 to 6 numbers, one a level")
        for key in ("layers", "head_width", "groups"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for width in self.channels:
            even = width >= 1 and width % self.groups == 0
            require(even, "channels", self.channels, f"multiples of groups={self.groups}")
        levels = len(self.channels)
        require(0 <= self.attention <= levels, "attention", self.attention, f"0 to {levels}, a number of levels")
        for width in self.channels[levels - self.attention :]:
            fits = width % self.head_width == 0
            require(fits, "head_width", self.head_width, f"a divisor of channels={self.channels} where attention is")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require(2 <= self.timesteps <= MOST_STEPS, "timesteps", self.timesteps, f"from 2 to {MOST_STEPS}")
        one_of("prediction", self.prediction, PREDICTIONS)
        one_of("schedule", self.schedule, SCHEDULES)

    def check(self, experiment: Experiment) -> None:
        side, halved = able(experiment.domain, Images).side, 2 ** (len(self.channels) - 1)
        why = f"must have so few levels that {halved} divides the {side} pixels a side of the images"
        if side % halved:
            raise UserError("channels", self.channels, why)

    def size(self, experiment: Experiment) -> Size:
        import torch

        domain = able(experiment.domain, Images)
        with torch.device("meta"):
            numbers = sum(p.numel() for p in self.made(domain.side, domain.channels, 10).parameters())
        return Size(4 * numbers, numbers)

    def most_steps(self) -> int:
        return self.timesteps

    def initial(self, fit: Fit) -> tuple[Any, Any]:
        if fit.start:
            return super().initial(fit)
        import torch
        from diffusers import DDPMScheduler

        torch.manual_seed(fit.seed)
        unet = self.made(fit.options["side"], fit.options["channels"], classes(fit.data))
        scheduler = DDPMScheduler(
            num_train_timesteps=self.timesteps,
            beta_schedule=SCHEDULES[self.schedule],
            prediction_type=PREDICTIONS[self.prediction],
            timestep_spacing="trailing",  # a sample begins where the noise is all there is (Lin et al. 2024)
        )
        return unet.train(), scheduler

    def made(self, side: int, channels: int, classes: int) -> Any:
        """The UNet, of torch's random numbers."""
        from diffusers import UNet2DModel

        plain, there = len(self.channels) - self.attention, self.attention
        return UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=self.layers,
            block_out_channels=tuple(self.channels),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * there,
            up_block_types=("AttnUpBlock2D",) * there + ("UpBlock2D",) * plain,
            add_attention=there > 0,
            attention_head_dim=self.head_width,
            norm_num_groups=self.groups,
            dropout=self.dropout,
            num_class_embeds=classes + 1,
        )


@dataclass
class SavedUNet(DiffusionModel):
    """A UNet2DModel that somebody saved with diffusers, with its scheduler/; every cold start begins from it.
    Safetensors alone: pickled weights run code when they are read."""

    path: str = "???"

    def _folder(self) -> Path:
        return in_project(self.path, "model.path")

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return tree_hash({name: sha256_file(self._folder() / name) for name in SAVED})

    def check(self, experiment: Experiment) -> None:
        domain = able(experiment.domain, Images)
        check_saved(self._folder(), self.path, "path")
        said = _config(self._folder())
        for key, wanted in (
            ("sample_size", domain.side),
            ("in_channels", domain.channels),
            ("out_channels", domain.channels),
        ):
            if said.get(key) != wanted:
                raise UserError("path", self.path, f"has {key}={said.get(key)}, and the images of the domain {wanted}")
        check_loads(self._folder(), self.path, "path")

    def most_steps(self) -> int:
        return int(noise_of(self._folder()).config.num_train_timesteps)

    def base(self, fit: Fit) -> Path:
        told, known = _config(self._folder()).get("num_class_embeds"), classes(fit.data)
        if told != known + 1:
            why = f"has num_class_embeds={told}, and the data {known} classes: {known + 1} with that of none"
            raise UserError("model.path", self.path, why)
        return self._folder()


def classes(data: Path) -> int:
    """K of prepared data."""
    return len(json.loads((data / LABELS).read_text(encoding="utf-8")))


def features(unet: Any) -> int:
    """Numbers that one image has in a UNet, of one layer at each of its levels."""
    side, widths = unet.config.sample_size, unet.config.block_out_channels
    return int(sum(width * (side >> level) ** 2 for level, width in enumerate(widths)))


def _config(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def check_saved(folder: Path, shown: str, key: str) -> None:
    """Refuse a folder that holds no UNet2DModel in safetensors (UserError)."""
    if _config(folder).get("_class_name") != "UNet2DModel":
        raise UserError(key, shown, "is no folder of a UNet2DModel that diffusers has saved")
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled and not (folder / WEIGHTS).is_file():
        why = f"holds only pickled weights ({pickled[0]}), which run code when they are read; save it as safetensors"
        raise UserError(key, shown, why)
    for name in SAVED:
        if not (folder / name).is_file():
            raise UserError(key, shown, f"has no {name}; save the UNet and its scheduler with diffusers")


def check_loads(folder: Path, shown: str, key: str) -> None:
    """Refuse a folder whose config, weights and noise do not go together, by the names and shapes of the weights alone
    (UserError): what a config says may be larger than any memory."""
    import torch
    from diffusers import UNet2DModel
    from safetensors import safe_open

    said = _config(folder)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            held = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if not 0 < said.get("layers_per_block", 1) <= len(held):
            raise ValueError(f"layers_per_block={said['layers_per_block']}, and {len(held)} weights")
        with torch.device("meta"):
            wanted = {name: tuple(each.shape) for name, each in UNet2DModel.from_config(said).state_dict().items()}
        for name in sorted(held.keys() | wanted.keys()):
            if held.get(name) != wanted.get(name):
                raise ValueError(f"{name} is {held.get(name)}, and {wanted.get(name)} by config.json")
        noise_of(folder)
    except Exception as error:  # diffusers raises many kinds of a config that somebody has changed
        raise UserError(key, shown, f"cannot be loaded ({first_line(error)}); save it with diffusers again") from None


def noise_of(folder: Path) -> Any:
    """The DDPMScheduler of a saved model. ValueError: it is the noise of no training here."""
    from diffusers import DDPMScheduler

    file = f"{SCHEDULER}/scheduler_config.json"
    said = json.loads((folder / file).read_text(encoding="utf-8"))
    steps = said.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"{file} has num_train_timesteps={steps}, and not 2 to {MOST_STEPS}")
    for key, known in (("prediction_type", tuple(PREDICTIONS.values())), ("timestep_spacing", SPACINGS)):
        if said.get(key, known[0]) not in known:
            raise ValueError(f"{file} has {key}={said[key]}, and none of {', '.join(known)}")
    scheduler = DDPMScheduler.from_config(said)
    if not bool(scheduler.alphas_cumprod.isfinite().all()) or len(scheduler.alphas_cumprod) != steps:
        raise ValueError(f"the betas of {file} are no noise of {steps} timesteps")
    return scheduler


def load(folder: Path) -> tuple[Any, Any]:
    """(UNet in evaluation mode, its DDPMScheduler) of a saved model. UserError where it cannot be loaded."""
    from diffusers import UNet2DModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_saved(folder, "", str(folder))
    try:
        unet = UNet2DModel.from_config(_config(folder))
        unet.load_state_dict(load_file(folder / WEIGHTS))  # not from_pretrained, which makes up what is missing
        scheduler = noise_of(folder)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(str(folder), None, f"cannot be loaded ({first_line(error)}); delete it and run again") from None
    return unet.eval(), scheduler
