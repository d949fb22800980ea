"""How well a diffusion model denoises real images that no model has trained on.

genloss run domain=images metrics=[denoising]"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genloss.core import records
from genloss.core.capabilities import Images, able
from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.evaluate import Evidence, Metric

TOGETHER = 64  # images that are computed together


@dataclass
class Denoising(Metric):
    """denoising_loss: mean squared error of the noise that model n predicts in real test images, told their classes
    (the loss of Ho et al. 2020, whatever the model itself predicts). Each image has `times` timesteps, spread evenly,
    and noise that is always the same. denoising_loss_worst: of the class of `least` images or more that is worst. The
    floor of these is their value in round 0."""

    max_records: int = 256
    times: int = 4
    least: int = 8
    needs = (Images,)

    def __post_init__(self) -> None:
        for key in ("max_records", "times", "least"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        path = evidence.data / "test.parquet"
        test = records.read(path, rows=(0, min(self.max_records, records.count(path))))
        labels = test.column("label").to_numpy()
        images = able(evidence.domain, Images).pixels(test).transpose(0, 3, 1, 2)
        each = self._errors(images, labels, evidence).mean(axis=1)
        found = {"denoising_loss": float(each.mean())}
        known, counts = np.unique(labels[labels >= 0], return_counts=True)
        means = [float(each[labels == k].mean()) for k in known[counts >= self.least]]
        return found | ({"denoising_loss_worst": max(means)} if means else {})

    def _errors(self, images: np.ndarray, labels: np.ndarray, evidence: Evidence) -> np.ndarray:
        """[n, times]."""
        import torch

        from genloss.domains.images.model import load
        from genloss.domains.images.training import errors, scaled
        from genloss.language.model import device_of, one_thread

        one_thread()
        device = device_of(evidence.runtime)
        unet, scheduler = load(evidence.model)
        unet = unet.to(device)
        n, last = len(images), int(scheduler.config.num_train_timesteps)
        told = torch.from_numpy(np.where(labels < 0, unet.config.num_class_embeds - 1, labels).astype(np.int64))
        alphas = scheduler.alphas_cumprod if scheduler.config.prediction_type == "v_prediction" else torch.ones(last)
        made = np.empty((n, self.times))
        with torch.inference_mode():
            for first in range(0, n, TOGETHER):
                rows = slice(first, first + TOGETHER)
                x = scaled(images[rows])
                streams = [generator(evidence.seed, "denoising", first + i) for i in range(len(x))]
                for k in range(self.times):
                    noise = np.stack([rng.standard_normal(x.shape[1:], dtype=np.float32) for rng in streams])
                    # of all images together, times * n timesteps are spread evenly
                    t = torch.arange(first, first + len(x)) + k * n
                    t = t * last // (self.times * n)
                    parts = (part.to(device) for part in (x, torch.from_numpy(noise), t, told[rows]))
                    said = errors(unet, scheduler, *parts).cpu()
                    made[rows, k] = (said * alphas[t]).numpy()  # an error of v is one of the noise, times alpha
                evidence.report(min(n, first + TOGETHER), n, "images")
        return made
