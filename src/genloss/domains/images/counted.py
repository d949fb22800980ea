"""Sprites, counted: which factors a sample shows, against their exact distribution.

    genloss run domain=images metrics=[denoising,sprites]

The factors are read from pixels (sprites.read). How often the reader is right is measured on held-out real records,
whose factors are known, as they are (the floor of sprite_reader) and with as much noise as the sample has, and what it
may have got wrong widens the intervals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Images
from genloss.core.contracts import Domain, Experiment
from genloss.core.errors import UserError, require
from genloss.core.seeds import generator
from genloss.domains.images import sprites
from genloss.domains.images.corpora import Sprites
from genloss.domains.images.metrics import pixels
from genloss.domains.images.sprites import BLOCKS, FACTORS, KIND
from genloss.evaluate import Evidence, SampleMetric

MOST = 2048  # held-out real records on which the reader is tried with noise
FEW = 64  # readable records below which their factors are not counted
APART = [  # pairs of factors that are independent in real records
    pair for one, other in itertools.combinations(BLOCKS, 2) for pair in itertools.product(one, other)
]


def wilson(count: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share of which `count` of n were seen (Wilson 1927)."""
    p, spread = count / n, z * z / n
    middle, half = p + spread / 2, z * np.sqrt(p * (1 - p) / n + spread / (4 * n))
    return float(max(0.0, (middle - half) / (1 + spread))), float(min(1.0, (middle + half) / (1 + spread)))


def shared(one: np.ndarray, other: np.ndarray, a: int, b: int) -> float:
    """Mutual information in nats of two factors of a and b values, without its bias of (a - 1)(b - 1) / 2n (Miller
    1955): 0 on average where they are independent, and below 0 by chance."""
    n = len(one)
    joint = np.bincount(one * b + other, minlength=a * b).reshape(a, b) / n
    alone = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    found = (joint[seen] * np.log(joint[seen] / alone[seen])).sum()
    present = [(joint.sum(axis=axis) > 0).sum() for axis in (0, 1)]
    return float(found - (present[0] - 1) * (present[1] - 1) / (2 * n))


def tail_of(p: np.ndarray, mass: float) -> np.ndarray:
    """bool: the rarest of the modes that are possible, which have `mass` together at most."""
    order = np.argsort(p, kind="stable")
    rare = np.zeros(len(p), dtype=bool)
    rare[order] = np.cumsum(p[order]) <= mass
    return rare & (p > 0)


def expected_modes(p: np.ndarray, n: int) -> float:
    """How many of the modes n independent draws have, on average: Σ 1 - (1 - p)^n."""
    return float(-np.expm1(n * np.log1p(-p)).sum())


def _read(table: pa.Table, evidence: Evidence) -> sprites.Read:
    """A part at a time: of a large sample not all pixels are in memory."""
    return sprites.joined([sprites.read(pixels(part, evidence)) for part in records.parts(table)])


def right(found: sprites.Read, known: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [n]: it is read as a sprite, of its true mode."""
    return found.readable & np.all([found.factors[name] == known[name] for name in KIND], axis=0)


@dataclass
class SpriteCounts(SampleMetric):
    """Of all records: sprite_unreadable, the share that shows no sprite; sprite_impossible, that shows a combination
    which the real distribution never has; sprite_outside, the two together. Of the readable ones: sprite_modes, how
    many of the possible combinations of shape, colour, size and texture occur, over how many so many real records have
    on average; sprite_tail, the share in the rarest modes (which have `tail` of the real distribution) over what it is
    in the real distribution; sprite_tail_modes, how many of these occur, over the same expectation; sprite_diversity,
    the probability that two records have different modes (Gini-Simpson, unbiased); sprite_entangled, the mean mutual
    information of 19 pairs of factors that are independent in real records, without its bias; sprite_mislabelled, the
    share that shows another class than the record's label says. sprite_reader: the share of held-out real records that
    the reader gets right, with the noise of the sample; _low and _high: 95 % intervals, by the binomial law and by
    what the reader may get wrong."""

    tail: float = 0.1  # of the real distribution
    needs = (Images,)
    least = FEW

    def __post_init__(self) -> None:
        require(0 < self.tail < 1, "tail", self.tail, "a share of the real distribution in (0, 1)")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if label_of(experiment.domain) is None:
            remedy = "are known of domain/corpus=sprites alone; leave the metric sprites out"
            raise UserError("factors", experiment.domain.name, remedy)

    def each(self, tables: Sequence[pa.Table], evidence: Evidence) -> list[dict[str, float]]:
        real, *made = [_read(table, evidence) for table in tables]
        found = []
        for table, read in zip(tables, [real, *made], strict=True):
            noisy = real if read is real else self._as_noisy(tables[0], real, read, evidence)
            known = {name: tables[0].column(name).to_numpy()[: len(noisy.alike)] for name in FACTORS}
            found.append(self._counted(table, read, right(noisy, known), evidence))
        return found

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        return self.each([evidence.floor, table], evidence)[1]

    def _as_noisy(self, table: pa.Table, real: sprites.Read, read: sprites.Read, evidence: Evidence) -> sprites.Read:
        """Real records with normal noise, so that their ideal pictures leave as much as those of the sample do. Pixels
        have ends, which take some of the noise away: its size is found in a few steps."""
        images = pixels(table.slice(0, MOST), evidence)
        own, wanted = float((real.noise**2).mean()), float((read.noise**2).mean())
        if wanted <= own:
            return real.of(slice(0, MOST))
        noise = 255 * generator(evidence.seed, "reader").standard_normal(images.shape, dtype=np.float32)

        def noisy(size: float, n: int) -> sprites.Read:
            return sprites.read(np.clip(images[:n] + size * noise[:n], 0, 255))

        size = np.sqrt(wanted - own)
        for _ in range(4):
            more = float((noisy(size, 256).noise ** 2).mean()) - own
            size *= np.sqrt((wanted - own) / max(more, 1e-9))
        return noisy(min(size, 1.0), len(images))

    def _counted(self, table: pa.Table, read: sprites.Read, reader: np.ndarray, evidence: Evidence) -> dict[str, float]:
        n, readable = len(table), int(read.readable.sum())
        wrong = 1 - wilson(reader.sum(), len(reader))[0]  # at most, at 95 %
        factors = {name: values[read.readable] for name, values in read.factors.items()}
        bad = sprites.impossible(factors) if readable else np.zeros(0, dtype=bool)
        found = {
            "sprite_reader": float(reader.mean()),
            "sprite_unreadable": 1 - readable / n,
            "sprite_impossible": float(bad.sum() / n),
            "sprite_outside": 1 - float((~bad).sum() / n),
        }
        found |= _widened("sprite_impossible", bad.sum(), n, wrong)
        if readable < FEW:
            return found
        p = sprites.kind_probabilities()
        counts = np.bincount(sprites.kinds(factors), minlength=len(p))
        rare = tail_of(p, self.tail)
        found |= {
            "sprite_modes": float((counts[p > 0] > 0).sum() / expected_modes(p, readable)),
            "sprite_tail": float(counts[rare].sum() / readable / p[rare].sum()),
            "sprite_tail_modes": float((counts[rare] > 0).sum() / expected_modes(p[rare], readable)),
            "sprite_diversity": 1 - float((counts * (counts - 1.0)).sum() / (readable * (readable - 1.0))),
            "sprite_entangled": float(
                np.mean([shared(factors[f], factors[g], len(FACTORS[f]), len(FACTORS[g])) for f, g in APART])
            ),
        }
        found |= _widened("sprite_tail", counts[rare].sum(), readable, wrong, float(p[rare].sum()))
        label = label_of(evidence.domain)
        if label:
            told = table.column("label").to_numpy()[read.readable]
            found["sprite_mislabelled"] = float((told != factors[label]).mean())
        return found


def _widened(name: str, count: float, n: int, wrong: float, unit: float = 1.0) -> dict[str, float]:
    low, high = wilson(count, n)
    return {f"{name}_low": max(0.0, low - wrong) / unit, f"{name}_high": min(1.0, high + wrong) / unit}


def label_of(domain: Domain) -> str | None:
    """The factor that is the label of a domain of sprites; None if it is none of sprites."""
    source = domain.parts().get("corpus")
    return source.label if isinstance(source, Sprites) else None
