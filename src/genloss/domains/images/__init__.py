"""The domain of images: PNG bytes and labels, and small diffusion models.

    genloss run domain=images                                                        # sprites, whose factors are known
    genloss run domain=images domain/corpus=digits size=1000
    genloss run -m domain=images mixing=replace,accumulate recipe.bias=1,0.5 seed=0,1,2    # Alemohammad et al. 2024

A record is an image and its label (-1: none is known). Pictures are split into train, validation and test; no model
ever trains on the last two. What a corpus knows of its pictures beside the label, the factors that they were drawn
from, are further columns of real records alone: of generated ones they have to be read from their pixels."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import capabilities, records
from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, require
from genloss.core.plugin import build, named
from genloss.core.seeds import generator
from genloss.domains import RecordDomain
from genloss.domains.images.corpora import LABELS, ImageCorpus, several
from genloss.domains.images.model import DiffusionModel
from genloss.domains.images.pictures import decode, encode
from genloss.domains.images.trainer import Diffusion

SHARES = ("test_share", "validation_share")
ROWS = 1024  # pictures that are written together


@dataclass
class Images(RecordDomain, capabilities.Images, capabilities.Embeds):
    name: str = "images"
    corpus: Any = field(default_factory=dict)
    test_share: float = 0.1  # of the pictures
    validation_share: float = 0.05
    split_seed: int = 0  # not the run's seed: all seeds share one split, so that their spread is that of training
    payload = ("image", "label")
    headline = "denoising_loss"
    panels = (
        "feature_frechet",
        "manifold_recall",
        "manifold_precision",
        "sprite_tail",
        "sprite_entangled",
        "sprite_outside",
    )
    models = (DiffusionModel,)
    trainers = (Diffusion,)

    def __post_init__(self) -> None:
        for key in SHARES:
            require(0 < getattr(self, key) < 1, key, getattr(self, key), "a share of the pictures in (0, 1)")
        shares = sum(getattr(self, key) for key in SHARES)
        require(shares < 1, "test_share", self.test_share, "so small that the two shares are less than 1 together")
        self.source = build(self.corpus, ImageCorpus, "corpus", group="domain/corpus")

    def parts(self) -> Mapping[str, Plugin]:
        return {"corpus": self.source}

    def check(self, experiment: Experiment) -> None:
        if find_spec("diffusers") is None:
            raise UserError("domain", "images", "needs the extra: pip install 'genloss[images]'")

    @property
    def side(self) -> int:
        return self.source.side

    @property
    def channels(self) -> int:
        return self.source.channels

    def config(self, stage: str) -> dict[str, Any]:
        if stage == "data":
            return named({f.name: getattr(self, f.name) for f in fields(self)})
        return {"side": self.side, "channels": self.channels}

    def record_bytes(self) -> int:
        return self.side**2 * self.channels + 200  # of pixels that PNG cannot shorten; ids, scores and reasons

    def pixels(self, table: pa.Table) -> np.ndarray:
        return decode(table.column("image"))

    def embed(self, table: pa.Table, data: Path, store: Path | None = None) -> np.ndarray:
        from genloss.domains.images.features import network_of

        network = network_of(self, data, store)
        return np.concatenate([network.vectors(self.pixels(part)) for part in records.parts(table)])

    # -- data --------------------------------------------------------------------------------------------------------

    def prepare(self, out: Path) -> dict[str, Any]:
        """A file without a name holds the pixels while they are put in order. In memory are names, labels and factors
        alone, and 16 bytes a picture."""
        labels = self.source.labels()
        several(labels)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            known = Known(self.source.copies)
            for picture in self.source.pictures():
                shape = (self.side, self.side, self.channels)
                if picture.image.shape != shape or picture.image.dtype != np.uint8:
                    made = f"{picture.name}, {picture.image.shape} of {picture.image.dtype}"
                    raise UserError("domain.corpus", made, f"pictures are uint8 {shape}")
                if not -1 <= picture.label < max(1, len(labels)):
                    raise UserError(
                        "domain.corpus", f"{picture.name}, label {picture.label}", f"has {len(labels)} labels"
                    )
                file.write(picture.image.tobytes())
                known.add(picture.name, picture.label, picture.factors, picture.image.tobytes())
            file.flush()
            if len(known) < 3:
                why = "train, validation and test need one each: give at least 3"
                raise UserError("domain.corpus", f"{len(known)} pictures", why)
            pixels = np.memmap(file, np.uint8, "r", shape=(len(known), self.side, self.side, self.channels))
            result: dict[str, Any] = {"pictures": len(known)}
            for split, order in self._splits(known).items():
                if not len(order):
                    why = "this split has no picture that is not in another one; give more pictures"
                    raise UserError("domain.corpus", split, why)
                records.write_parts(self._tables(pixels, known, order, split), out / f"{split}.parquet")
                result[split] = len(order)
        (out / LABELS).write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
        return result

    def _splits(self, known: Known) -> dict[str, np.ndarray]:
        """Numbers of the pictures of each split. A picture stays in the first of test, validation, train that has it,
        but for those of a corpus that draws them: there a copy is a draw like any other."""
        order = generator(self.split_seed, "pictures").permutation(len(known))
        counts = [max(1, round(getattr(self, key) * len(known))) for key in SHARES]
        parts = np.split(order, np.cumsum(counts))
        made: dict[str, np.ndarray] = {}
        held_out = known.digests[:0]
        for name, part in zip(("test", "validation", "train"), parts, strict=True):
            made[name] = part if known.copies else part[~records.among(known.digests[part], held_out)]
            held_out = np.unique(np.concatenate([held_out, known.digests[part]]))
        return made

    def _tables(self, pixels: np.ndarray, known: Known, order: np.ndarray, split: str) -> Iterator[pa.Table]:
        recipe = f"corpus/{split}"
        for first in range(0, len(order), ROWS):
            at = order[first : first + ROWS]
            made = {"image": pa.array(encode(pixels[at]), pa.binary()), "label": pa.array(known.labels[at], pa.int32())}
            table = records.make_table(made, origin=records.REAL, generation=0, recipe=recipe, first=first)
            table = table.append_column("document", pa.array([known.names[i] for i in at], pa.string()))
            for name, values in known.factors.items():
                table = table.append_column(name, pa.array(values[at], pa.int32()))
            yield table


class Known:
    """What is known of pictures beside their pixels, in the order in which they came."""

    def __init__(self, copies: bool):
        self.copies = copies
        self.names: list[str] = []
        self._labels: list[int] = []
        self._factors: dict[str, list[int]] = {}
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str, label: int, factors: Mapping[str, int], pixels: bytes) -> None:
        self._labels.append(label)
        for factor, value in factors.items():
            self._factors.setdefault(factor, []).append(value)
        self._digests += hashlib.blake2b(pixels, digest_size=16).digest()
        self.names.append(name)

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self._labels, dtype=np.int32)

    @property
    def factors(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(values, dtype=np.int32) for name, values in self._factors.items()}

    @property
    def digests(self) -> np.ndarray:
        return np.frombuffer(bytes(self._digests), dtype="S16")
