"""FABRIC (von Rütte et al. 2023, arXiv 2307.10159): rounds of images by a diffusion model that looks at what was liked
and disliked of the rounds before.

    genloss run experiment=fabric                          # a session: the model stays as round 0 made it
    genloss run experiment=fabric/recursion                # what is liked is what the next model is trained on

    model n-1, liked and disliked of rounds 1 to n-1 --sessions x n images--> curation=preferred: the best is liked

A session is one row of feedback: it has its own class, its own images and its own references. Sessions run side by
side, so that one arm is a mean over several. Round 1 has no references and is the model as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Images, able
from genloss.core.contracts import DROPPED, HISTORY, Experiment, Fit
from genloss.core.errors import UserError, one_of, require
from genloss.core.machine import cores
from genloss.domains.images.draw import Sampled
from genloss.domains.images.model import UNet
from genloss.domains.images.pictures import encode
from genloss.domains.images.trainer import Diffusion
from genloss.generate import Request
from genloss.language.curve import write_curve
from genloss.systems.fabric.curator import DISLIKED, LIKED, SESSION, Feedback, Preferred, sessions

SIDES = ("both", LIKED, DISLIKED)


class References(NamedTuple):
    """Of one session."""

    liked: np.ndarray  # uint8 [n, side, side, channels], oldest first
    disliked: np.ndarray
    ids: list[str]  # of the records that they are


@dataclass
class Fabric(Sampled):
    """Images with feedback. Sampling is that of the recipe `diffusion`; the options of feedback are explained at
    genloss.systems.fabric.sampler.Feedback."""

    name: str = "fabric"
    n: int = 8  # images of a session a round
    sessions: int = 1
    label: int | None = None  # class of all sessions; null: session j has class j, in turn
    sides: str = "both"  # what the model looks at: both, liked, disliked
    weight: float = 0.3
    negative: float = 0.5
    start: float = 0.0
    end: float = 0.8
    dropout: float = 0.0
    remember: int = 0  # references of a side, the latest; 0: all there are
    guidance: float = 2.0
    scheduler: str = "ddim"
    steps: int = 25
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sessions >= 1, "sessions", self.sessions, "at least 1")
        require(self.label is None or self.label >= 0, "label", self.label, "the number of a class, or null")
        require(self.remember >= 0, "remember", self.remember, "at least 0 (0: all)")
        require(0 <= self.weight <= 100, "weight", self.weight, "in [0, 100] (0: no feedback)")
        require(0 <= self.negative <= 100, "negative", self.negative, "in [0, 100] (0: no dislikes)")
        require(0 <= self.start <= self.end <= 1, "start", self.start, f"a share of the steps, at most end={self.end}")
        require(0 <= self.dropout <= 1, "dropout", self.dropout, "a probability")
        one_of("sides", self.sides, SIDES)
        if self.guidance == 0 and self.sides != LIKED and self.weight * self.negative > 0:
            why = "has no pass for dislikes to act in; set it above 0, or sides=liked"
            raise UserError("guidance", self.guidance, why)

    def at_most(self) -> int:
        return self.n * self.sessions

    def reads(self) -> tuple[str, ...]:
        return (HISTORY, DROPPED)

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if isinstance(experiment.model, UNet) and not experiment.model.attention:
            why = "leaves a UNet without the self-attention that FABRIC works through; give it some"
            raise UserError("model.attention", experiment.model.attention, why)
        if not any(isinstance(curator, Feedback) for curator in experiment.curators.values()):
            named = "+".join(experiment.curators) or "none"
            raise UserError("curation", named, "gives no feedback; set curation=preferred, or curation=clicks")
        for name, curator in experiment.curators.items():
            if isinstance(curator, Preferred) and curator.liked + curator.disliked > self.n:
                why = f"with curation.{name}.disliked={curator.disliked} is more than recipe.n={self.n} images"
                raise UserError(f"curation.{name}.liked", curator.liked, why)

    # -- what it makes -------------------------------------------------------------------------------------------------

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        from genloss.domains.images.model import load
        from genloss.domains.images.sampling import check_memory
        from genloss.language.model import device_of, one_thread

        device = device_of(request.runtime)
        unet, trained = load(request.model)
        known = int(unet.config.num_class_embeds or 1) - 1
        if self.label is not None and self.label >= max(known, 1):
            raise UserError("recipe.label", self.label, f"is no class: the model knows {known}, from 0")
        references = self._references(request)
        kept: list[pa.Table] = []
        workers = 1 if device == "cuda" else min(request.runtime.workers or cores(), self.sessions)
        check_memory(unet.to(device), workers * self.n, "recipe.n", self.n)

        def made(session: int) -> np.ndarray:
            return self._session(deepcopy(unet).to(device), trained, session, known, references[session], request.seed)

        one_thread()
        with ThreadPoolExecutor(workers, initializer=one_thread) as pool:
            for session, images in enumerate(pool.map(made, range(self.sessions))):
                label = self._label(session, known)
                table = records.make_table(
                    {
                        "image": pa.array(encode(images), pa.binary()),
                        "label": pa.array([label if known else -1] * self.n, pa.int32()),
                    },
                    origin=records.SYNTHETIC,
                    generation=request.round,
                    recipe=self.name,
                    parents=[references[session].ids] * self.n,
                    first=session * self.n,
                )
                kept.append(table.append_column(SESSION, pa.array([session] * self.n, pa.int32())))
                request.report((session + 1) * self.n, self.n * self.sessions, "records")
        counts = {side: sum(len(getattr(each, side)) for each in references) for side in (LIKED, DISLIKED)}
        return records.concat(kept), {"counts": counts}

    def _label(self, session: int, known: int) -> int:
        return session % max(known, 1) if self.label is None else self.label

    def _session(self, unet: Any, trained: Any, session: int, known: int, seen: References, seed: int) -> np.ndarray:
        """uint8 [n, side, side, channels]."""
        import torch

        from genloss.core.seeds import seed_of
        from genloss.domains.images.sampling import Step, sample_chunk, stepper
        from genloss.systems.fabric.attention import Attention
        from genloss.systems.fabric.sampler import Feedback as Options
        from genloss.systems.fabric.sampler import Guide, dropped_labels

        options = Options(self.weight, self.negative, self.start, self.end, self.dropout)
        first, device = session * self.n, unet.device
        labels = torch.full((self.n,), self._label(session, known), device=device)
        labels = dropped_labels(labels, known, self.dropout, seed, first) if known else labels

        def latent(images: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1

        with Attention.of(unet) as attention:
            guide = Guide(
                attention, options, latent(seen.liked), latent(seen.disliked), seed=seed_of(seed, "fabric", session)
            )

            def hook(step: Step) -> torch.Tensor:
                def untold(x: torch.Tensor) -> torch.Tensor:
                    none = torch.full((len(x),), step.none, device=x.device)
                    found: torch.Tensor = step.unet(x, step.t, class_labels=none).sample
                    return found

                return guide.predict(
                    lambda: step.predict(step.labels),
                    lambda: untold(step.x),
                    untold,
                    step.scheduler,
                    step.t,
                    step.number,
                    step.steps,
                    step.guidance,
                )

            return sample_chunk(
                unet,
                stepper(self.scheduler, trained, self.steps),
                labels,
                seed=seed,
                first=first,
                none=known,
                guidance=self.guidance,
                eta=self.eta,
                hook=hook,
            )

    def _references(self, request: Request) -> list[References]:
        """Of each session, what the model looks at."""
        domain = able(request.domain, Images)
        empty = np.zeros((0, domain.side, domain.side, domain.channels), np.uint8)
        sides = {LIKED: self._said(request, HISTORY), DISLIKED: self._said(request, DROPPED)}
        found = []
        for session in range(self.sessions):
            images: dict[str, np.ndarray] = {}
            ids: list[str] = []
            for side, tables in sides.items():
                mine = [table.filter(pa.array(sessions(table) == session)) for table in tables]
                table = records.concat(mine) if mine and self.sides in ("both", side) and self.weight > 0 else None
                if table is not None and self.remember:
                    table = table.slice(max(0, len(table) - self.remember))
                images[side] = domain.pixels(table) if table is not None and len(table) else empty
                ids += table.column("id").to_pylist() if table is not None else []
            found.append(References(images[LIKED], images[DISLIKED], ids))
        return found

    def _said(self, request: Request, name: str) -> Sequence[pa.Table]:
        tables = [records.read(path) for path in (request.inputs.all(name) if request.round > 1 else ())]
        if name == HISTORY:
            return tables
        return [
            table.filter(
                pa.array([r.endswith(f": {DISLIKED}") for r in table.column("reason").to_pylist()], pa.bool_())
            )
            for table in tables
        ]


@dataclass
class Once(Diffusion):
    """Trains round 0; after it the model stays as it is, since FABRIC trains nothing."""

    start: str = "previous"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start == "previous", "start", self.start, "previous: the model stays as it is")

    def train(self, fit: Fit) -> dict[str, Any]:
        if fit.start is None:
            return super().train(fit)
        shutil.copytree(Path(fit.start), fit.out / "model")
        write_curve(fit.out, ["step", "loss"], [])
        return {"steps": 0, "tokens": 0}
