"""Preferences that stand in for a person: each gives every image a number from 0 to 1, more is liked more.

    Hue([0, 255, 255])                                    how alike an image's colour is to one
    Brightness()                                          how bright it is
    Ink()                                                 how much of it is bright
    Resemblance(factors={shape: star, colour: cyan})      how alike its pixels are to a hidden target
    Factors(factors={shape: star, colour: cyan})          which of these a reader of sprites finds in it

A new one is a dataclass derived from `Preference`; a config names it by its class (`_target_`). One gives the feedback
(genloss.systems.fabric.curator), another judges (genloss.systems.fabric.metric): what is scored by the preference that
is followed would show only that it is followed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from genloss.core.capabilities import Images, able
from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import sha256_file
from genloss.core.places import in_project
from genloss.domains.images import sprites
from genloss.domains.images.pictures import load

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601


class Preference(Plugin, ABC):
    """How much images are liked."""

    needs: ClassVar[tuple[type, ...]] = (Images,)

    @abstractmethod
    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """float64 [n] in [0, 1] of images uint8 [n, height, width, channels]."""


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n] of the rows of a [n, d] with b [d]; 0 where one is nothing but zeros. No value is negative, so none is
    below 0."""
    found = a.reshape(len(a), -1).astype(float)
    size = np.linalg.norm(found, axis=1) * np.linalg.norm(b)
    return np.clip(found @ b.ravel().astype(float) / np.where(size > 0, size, 1), 0, 1)


@dataclass
class Hue(Preference):
    """The cosine of an image's mean colour with `colour`: neither brightness nor what is shown matters."""

    colour: list[int] = field(default_factory=lambda: [0, 255, 255])  # red, green, blue

    def __post_init__(self) -> None:
        ok = len(self.colour) == 3 and all(0 <= c <= 255 for c in self.colour) and any(self.colour)
        require(ok, "colour", self.colour, "red, green and blue from 0 to 255, and not black")

    def check(self, experiment: Experiment) -> None:
        if able(experiment.domain, Images).channels != 3:
            raise UserError("colour", self.colour, "needs images in colour, and those of the domain are grey")

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        return cosines(pixels.mean(axis=(1, 2)), np.array(self.colour))


@dataclass
class Brightness(Preference):
    """Mean luma, as a share of white's."""

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        mean = pixels.mean(axis=(1, 2)) / 255
        found: np.ndarray = mean @ LUMA if mean.shape[1] == 3 else mean[:, 0]
        return found


@dataclass
class Ink(Preference):
    """The share of pixels whose luma is above `threshold` of white's."""

    threshold: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.threshold < 1, "threshold", self.threshold, "in [0, 1)")

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        luma = pixels @ LUMA if pixels.shape[3] == 3 else pixels[..., 0].astype(float)
        found: np.ndarray = (luma > self.threshold * 255).mean(axis=(1, 2))
        return found


def indices(factors: Mapping[str, str], key: str) -> dict[str, int]:
    """Factors of sprites by their numbers."""
    for name, value in factors.items():
        one_of(key, name, sprites.FACTORS)
        one_of(f"{key}.{name}", value, sprites.FACTORS[name])
    return {name: sprites.FACTORS[name].index(value) for name, value in factors.items()}


PLAIN = {"size": "large", "x": "middle", "y": "middle", "rotation": "upright", "texture": "solid"}


@dataclass
class Resemblance(Preference):
    """The cosine of an image's pixels with those of a hidden target: the picture at `path`, or a sprite of `factors`
    (those that are not named: as PLAIN)."""

    factors: dict[str, str] = field(default_factory=dict)
    path: str = ""

    def __post_init__(self) -> None:
        one = bool(self.path) != bool(self.factors)
        require(one, "factors", self.factors, "given, or path: the target is a sprite or a picture")
        self._at = indices(PLAIN | self.factors, "factors") if self.factors else {}
        if self.factors and not {"shape", "colour"} <= set(self.factors):
            raise UserError("factors", self.factors, "needs a shape and a colour")

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return sha256_file(in_project(self.path, "path")) if self.path else ""

    def check(self, experiment: Experiment) -> None:
        domain = able(experiment.domain, Images)
        if self.factors and (domain.side, domain.channels) != (sprites.SIDE, 3):
            raise UserError("factors", self.factors, "name a sprite, and the domain has other images; give a path")
        if self.path:
            self._loaded(domain.side, domain.channels)

    def _loaded(self, size: int, channels: int) -> np.ndarray:
        return load(in_project(self.path, "path"), size=size, channels=channels, key="path")

    @cached_property
    def _sprite(self) -> np.ndarray:
        drawn: np.ndarray = sprites.draw({name: np.array([at]) for name, at in self._at.items()})[0]
        return drawn

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        target = self._loaded(pixels.shape[1], pixels.shape[3]) if self.path else self._sprite
        return cosines(pixels, target)


@dataclass
class Factors(Preference):
    """The share of `factors` that the reader of sprites finds in an image; 0 where it finds no sprite."""

    factors: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.factors), "factors", self.factors, "factors of sprites, as in {shape: star, colour: cyan}")
        self._at = indices(self.factors, "factors")

    def check(self, experiment: Experiment) -> None:
        domain = able(experiment.domain, Images)
        if (domain.side, domain.channels) != (sprites.SIDE, 3):
            raise UserError("factors", self.factors, "are those of sprites, and the domain has other images")

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        found = sprites.read(pixels)
        right = np.mean([found.factors[name] == at for name, at in self._at.items()], axis=0)
        return np.where(found.readable, right, 0.0)


def same(a: Any, b: Any) -> bool:
    """Whether two preferences are one."""
    return type(a) is type(b) and bool(a == b)
