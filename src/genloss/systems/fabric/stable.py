"""Images of prompts by a saved Stable Diffusion, as the records of a round.

    genloss run domain=images recipe=stable_diffusion recipe.path=my/stable-diffusion-v1-5
    genloss run domain=images recipe=stable_diffusion recipe.path=... 'recipe.prompts=["a cat", "a dog at night"]'

The folder is the layout of diffusers' StableDiffusionPipeline: a UNet2DConditionModel with its text encoder, tokenizer,
VAE and scheduler/, in safetensors alone. It draws in every round and stays as it is: what learns is the model of the
config. What is drawn is scaled to the pixels of the domain, which may be far fewer. The sampler is that of FABRIC,
without feedback (genloss.systems.fabric.sampler)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Images, able
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, first_line, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import in_project
from genloss.core.seeds import generator
from genloss.domains.images.corpora import LABELS
from genloss.domains.images.draw import Sampled, drawn_labels
from genloss.domains.images.pictures import decode, encode, load
from genloss.generate import Request
from genloss.language.saved import PICKLED

INDEX = "model_index.json"
PIPELINE = "StableDiffusionPipeline"
# what is loaded, by these classes alone, whatever the folder names
PARTS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
WEIGHTS = ("unet", "vae", "text_encoder")
SCHEDULER = "scheduler/scheduler_config.json"
LABEL = "{label}"


@dataclass
class StableDiffusion(Sampled):
    """Sampling of a text-to-image model by diffusers' schedulers, with guidance without a classifier. A record's class
    is drawn from the real training data, as with `diffusion`, and `prompt` says it in words; or `prompts` are drawn
    from, each as often as another, and the class is not known. The prompt is kept in the column `prompt`."""

    name: str = "stable_diffusion"
    path: str = "???"
    n: int = 1024  # records a round
    prompt: str = "a picture of {label}"
    prompts: list[str] = field(default_factory=list)
    size: int = 512  # pixels a side at which is drawn
    scheduler: str = "ddim"
    steps: int = 20
    eta: float = 0.0  # noise of the steps of DDIM
    guidance: float = 6.5  # w, which is guidance_scale - 1 of diffusers
    chunk: int = 8  # records computed together; part of the identity, since kernels differ between batch sizes

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("chunk", "size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(all(text.strip() for text in self.prompts), "prompts", self.prompts, "texts with words")
        said = bool(self.prompts) or LABEL in self.prompt
        require(said, "prompt", self.prompt, f"a text with {LABEL} in it, or give prompts")

    def at_most(self) -> int:
        return self.n

    def _folder(self) -> Path:
        return in_project(self.path, "recipe.path")

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        folder = self._folder()
        return tree_hash({str(f.relative_to(folder)): sha256_file(f) for f in files_of(folder)})

    def check(self, experiment: Experiment) -> None:  # not as its base: the noise is the pipeline's, no model's
        check_pipeline(self._folder(), self.path)
        side = able(experiment.domain, Images).side
        require(self.size >= side, "size", self.size, f"at least the {side} pixels a side of the domain's images")
        factor = _pixels_of_a_latent(self._folder())
        require(self.size % factor == 0, "size", self.size, f"a multiple of {factor}, to which the VAE scales")

    # -- what it makes -------------------------------------------------------------------------------------------------

    def said(self, request: Request) -> tuple[np.ndarray, list[str]]:
        """int32 [n] and texts [n]: the class and the prompt of each record."""
        if self.prompts:
            which = generator(request.seed, "prompts").integers(0, len(self.prompts), self.n)
            return np.full(self.n, -1, np.int32), [self.prompts[i] for i in which]
        names = json.loads((request.data / LABELS).read_text(encoding="utf-8"))
        labels = drawn_labels(request, self.n)
        if not names or labels.min() < 0:
            why = f"names the class of a record with {LABEL}, and of some real ones none is known; give prompts"
            raise UserError("recipe.prompt", self.prompt, why)
        return labels, [self.prompt.replace(LABEL, str(names[i])) for i in labels]

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        labels, prompts = self.said(request)
        drawn = self._drawn(request, prompts)

        def tables() -> Iterator[pa.Table]:
            first = 0
            for images in drawn:
                rows = slice(first, first + len(images))
                table = records.make_table(
                    {"image": pa.array(encode(images), pa.binary()), "label": pa.array(labels[rows], pa.int32())},
                    origin=records.SYNTHETIC,
                    generation=request.round,
                    recipe=self.name,
                    first=first,
                )
                yield table.append_column("prompt", pa.array(prompts[rows], pa.string()))
                first = rows.stop

        return records.spilled(tables(), request.scratch), {}

    def _drawn(self, request: Request, prompts: list[str]) -> Iterator[np.ndarray]:
        """uint8 [rows, side, side, channels] of each chunk. The last one is drawn whole, and cut."""
        from genloss.language.model import device_of, one_thread
        from genloss.systems.fabric.sampler import stable

        one_thread()
        domain, pipe = able(request.domain, Images), None
        for first in range(0, self.n, self.chunk):
            kept = request.scratch / f"chunk-{first:08d}.parquet"
            mine = min(self.chunk, self.n - first)
            if kept.is_file():
                images = decode(records.read(kept).column("image"))
            else:
                pipe = pipe or load_pipeline(self._folder(), self.scheduler, device_of(request.runtime))
                some = [prompts[min(i, self.n - 1)] for i in range(first, first + self.chunk)]
                large = stable(
                    pipe,
                    some,
                    self.chunk,
                    seed=request.seed,
                    first=first,
                    guidance=self.guidance,
                    steps=self.steps,
                    size=self.size,
                    eta=self.eta,
                )[:mine]
                images = np.stack([load(png, size=domain.side, channels=domain.channels) for png in encode(large)])
                records.write(pa.table({"image": pa.array(encode(images), pa.binary())}), kept)
            request.report(first + mine, self.n, "records")
            yield images


# -- a saved pipeline --------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    """The files of a pipeline that are read: the configs, the tokenizer and the safetensors of its parts."""
    found = [folder / SCHEDULER]
    for part in PARTS:
        names = {file for end in ("*.json", "*.txt", "*.safetensors") for file in (folder / part).glob(end)}
        found += [file for file in sorted(names) if file.is_file()]
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def check_pipeline(folder: Path, shown: str) -> None:
    """Refuse a folder that holds no StableDiffusionPipeline in safetensors (UserError)."""
    index = _read(folder / INDEX)
    if index.get("_class_name") != PIPELINE:
        is_one = f"holds a {index['_class_name']}" if "_class_name" in index else "holds no pipeline of diffusers"
        raise UserError("path", shown, f"{is_one}; give the folder of a {PIPELINE}")
    for part, wanted in PARTS.items():
        named = index.get(part)
        name = named[1] if isinstance(named, list) and len(named) == 2 else named
        if name not in (wanted, f"{wanted}Fast"):
            raise UserError("path", shown, f"has {name} as its {part}, and {wanted} is what can be loaded")
    for part in WEIGHTS:
        if any((folder / part).glob("*.safetensors")):
            continue
        why = f"has no weights in {part}"
        for file in sorted(file for pattern in PICKLED for file in (folder / part).glob(pattern)):
            why = f"holds only pickled weights ({part}/{file.name}), which run code when they are read"
        raise UserError("path", shown, f"{why}; save it as safetensors with diffusers")
    for name in (*(f"{part}/config.json" for part in WEIGHTS), SCHEDULER):
        if not _read(folder / name):
            raise UserError("path", shown, f"has no readable {name}; save it with diffusers")


def _pixels_of_a_latent(folder: Path) -> int:
    """How many pixels a side the VAE makes of one number."""
    levels = _read(folder / "vae/config.json").get("block_out_channels", [0])
    return int(2 ** (len(levels) - 1))


def load_pipeline(folder: Path, scheduler: str, device: str) -> Any:
    """The pipeline, without a safety checker, which would make images black, and with the scheduler `ddim` or `euler`
    for the noise that it was trained with. UserError where it cannot be loaded."""
    import diffusers
    import transformers
    from safetensors import SafetensorError

    schedulers = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler}
    try:
        parts = {
            part: getattr(diffusers if hasattr(diffusers, kind) else transformers, kind).from_pretrained(
                folder / part,
                local_files_only=True,
                **({"use_safetensors": True} if part in WEIGHTS else {}),
            )
            for part, kind in PARTS.items()
        }
        config = {k: v for k, v in _read(folder / SCHEDULER).items() if not k.startswith("_")}
        pipe: Any = diffusers.StableDiffusionPipeline(
            **parts,
            scheduler=schedulers[scheduler].from_config(config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError("recipe.path", str(folder), f"cannot be loaded ({first_line(error)}); save it again") from None
    for part in WEIGHTS:
        parts[part].eval()
    return pipe.to(device)
