"""Sprites: 32 x 32 pictures with known factors, whose joint distribution is exact, and a reader that finds the factors.

    factors = sample(1000, rng)              # {"shape": int [1000], ...}, indices into FACTORS
    pictures = draw(factors, rng)            # uint8 [1000, 32, 32, 3]; without rng the ideal picture of each
    found = read(pictures)                   # the factors again, and how alike each picture is to what was read

One shape of one colour on black. The distribution is a product of five independent blocks,

    p = p(shape, colour) p(size, texture) p(x) p(y) p(rotation)

The two pairs follow Zipf's law over the cells that are possible, ranked so that each shape and each colour has common
and rare cells; six of the 36 pairs of shape and colour and one of the nine of size and texture are impossible: a
picture of one is a hallucination, made of parts that all are real. Two factors of different blocks are independent:
what they share in a sample, it has entangled.

All shapes look different at all rotations, so that every picture has one reading. Pictures of the same factors differ
in what no factor says (half a pixel of place, a few degrees, brightness), so that a copy is told from a picture that is
merely alike. The reader compares a picture with the ideal one of every cell by the cosine of their pixels, which
brightness does not change; below ALIKE there is no sprite in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

SIDE = 32  # pixels
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": ("square", "triangle", "cross", "star", "half", "bar"),
    "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "size": ("large", "medium", "small"),
    "x": ("left", "middle", "right"),
    "y": ("top", "middle", "bottom"),
    "rotation": ("upright", "tilted", "turned"),  # by 0, 22.5 and 45 degrees
    "texture": ("solid", "striped", "checked"),
}
BLOCKS = (("shape", "colour"), ("size", "texture"), ("x",), ("y",), ("rotation",))  # independent of each other
KIND = ("shape", "colour", "size", "texture")  # what makes a mode: what a picture shows, not where
COLOURS = np.array([(1, 0.2, 0.2), (0.2, 1, 0.2), (0.25, 0.35, 1), (1, 1, 0.2), (1, 0.2, 1), (0.2, 1, 1)])
RADII = np.array([9.0, 7.0, 5.0])  # pixels
PLACES = np.array([-4.0, 0.0, 4.0])  # pixels from the centre
TURNS = np.deg2rad([0.0, 22.5, 45.0])
EXPONENT = 1.2  # of Zipf's law
JITTER_PLACE, JITTER_TURN, JITTER_LIGHT = 0.5, np.deg2rad(4.0), 0.2  # at most: pixels, radians, share
DARK = 0.35  # of the other half of a texture
ALIKE = 0.85  # cosine below which a picture shows no sprite; a real one has 0.88 and more
FAINT = 0.03  # root mean square of the pixels, in [0, 1], below which it is empty
BLOCK = 2048  # pictures that are worked on together


# -- the distribution --------------------------------------------------------------------------------------------------


def _zipf(possible: np.ndarray) -> np.ndarray:
    """Zipf's law over the possible cells [a, b], ranked along wrapped diagonals: every row and column has cells of high
    and of low rank."""
    a, b = possible.shape
    row, column = np.indices((a, b))
    order = np.lexsort((row.ravel(), ((column - row) % max(a, b)).ravel(), ~possible.ravel()))
    p = np.zeros(a * b)
    n = int(possible.sum())
    p[order[:n]] = np.arange(1.0, n + 1) ** -EXPONENT
    return (p / p.sum()).reshape(a, b)


def _possible(first: str, second: str) -> np.ndarray:
    a, b = len(FACTORS[first]), len(FACTORS[second])
    row, column = np.indices((a, b))
    if (first, second) == ("shape", "colour"):
        return (row + column) % 6 != 5  # one colour of each shape, and one shape of each colour
    return ~((row == FACTORS["size"].index("small")) & (column == FACTORS["texture"].index("checked")))


@cache
def tables() -> dict[tuple[str, ...], np.ndarray]:
    """The exact probabilities of each block, over its factors in their order."""
    pairs = {block: _zipf(_possible(*block)) for block in BLOCKS if len(block) == 2}
    single = {"x": [0.25, 0.5, 0.25], "y": [0.25, 0.5, 0.25], "rotation": [0.6, 0.25, 0.15]}
    return {block: pairs[block] if len(block) == 2 else np.array(single[block[0]]) for block in BLOCKS}


def probability(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Exact probability [n] of each combination; of the blocks that `factors` has whole."""
    found = np.ones(len(next(iter(factors.values()))))
    for block, table in tables().items():
        if all(name in factors for name in block):
            found = found * table[tuple(np.asarray(factors[name]) for name in block)]
    return found


def impossible(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [n]: combinations that the real distribution never has."""
    return probability(factors) == 0


def sample(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Factors of n sprites, int32 [n] each, independent draws."""
    found: dict[str, np.ndarray] = {}
    for block, table in tables().items():
        cells = rng.choice(table.size, size=n, p=table.ravel())
        for name, values in zip(block, np.unravel_index(cells, table.shape), strict=True):
            found[name] = values.astype(np.int32)
    return {name: found[name] for name in FACTORS}


def kinds(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """int [n]: the number of each one's mode, its combination of KIND, among all, impossible ones too."""
    return np.ravel_multi_index([np.asarray(factors[k]) for k in KIND], [len(FACTORS[k]) for k in KIND])


@cache
def kind_probabilities() -> np.ndarray:
    """Exact probability of every mode, in the order of `kinds`."""
    return probability(_grid(KIND))


def _grid(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    cells = np.indices([len(FACTORS[name]) for name in names]).reshape(len(names), -1)
    return dict(zip(names, cells, strict=True))


# -- drawing -----------------------------------------------------------------------------------------------------------


def _distance(shape: np.ndarray, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """About the distance in pixels [n, ...] to each one's outline, negative inside; x, y [n, ...] in its own frame."""
    found = np.empty(np.broadcast_shapes(x.shape, r.shape))
    for which, name in enumerate(FACTORS["shape"]):
        own = shape == which
        u, v, s = x[own], y[own], r[own]
        if name == "square":
            found[own] = np.maximum(np.abs(u), np.abs(v)) - 0.8 * s
        elif name == "triangle":
            sides = [np.cos(a) * u + np.sin(a) * v for a in np.deg2rad([90.0, 210.0, 330.0])]
            found[own] = np.maximum.reduce(sides) - 0.55 * s
        elif name == "cross":
            flat, tall = (np.maximum(np.abs(p) - s, np.abs(q) - 0.33 * s) for p, q in ((u, v), (v, u)))
            found[own] = np.minimum(flat, tall)
        elif name == "star":
            sector = 2 * np.pi / 5
            angle = np.abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)  # from the nearest point's axis
            length = np.hypot(u, v)
            along, beside = length * np.cos(angle), length * np.sin(angle)
            tip, inner = 1.05 * s, 0.42 * s
            dx, dy = inner * np.cos(sector / 2) - tip, inner * np.sin(sector / 2)
            found[own] = (dy * (along - tip) - dx * beside) / np.hypot(dx, dy)
        elif name == "half":
            found[own] = np.maximum(np.hypot(u, v + 0.4 * s) - s, -v - 0.4 * s)
        else:  # bar
            found[own] = np.maximum(np.abs(u) - s, np.abs(v) - 0.35 * s)
    return found


def _masks(factors: Mapping[str, np.ndarray], dx: np.ndarray, dy: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Brightness float64 [n, 32, 32] in [0, 1], by all factors but the colour; moved by dx, dy pixels and turned."""
    at = {name: np.asarray(values) for name, values in factors.items()}
    line = np.arange(SIDE) - (SIDE - 1) / 2
    px = line[None, None, :] - (PLACES[at["x"]] + dx)[:, None, None]
    py = line[None, :, None] - (PLACES[at["y"]] + dy)[:, None, None]
    angle = (TURNS[at["rotation"]] + turn)[:, None, None]
    x, y = np.cos(angle) * px + np.sin(angle) * py, -np.sin(angle) * px + np.cos(angle) * py
    inside = np.clip(0.5 - _distance(at["shape"], x, y, RADII[at["size"]][:, None, None]), 0, 1)
    # textures lie still, 2 pixels light and 2 dark: places are 4 pixels apart, so that each has the same
    stripe = ((np.arange(SIDE) // 2) % 2).astype(float)
    across, down = np.broadcast_to(stripe, inside.shape), stripe[:, None]
    checked = across * down + (1 - across) * (1 - down)
    light = np.where((at["texture"] == 1)[:, None, None], across, checked)
    light = np.where((at["texture"] == 0)[:, None, None], 1.0, DARK + (1 - DARK) * light)
    return inside * light


def draw(factors: Mapping[str, np.ndarray], rng: np.random.Generator | None = None) -> np.ndarray:
    """uint8 [n, 32, 32, 3]; rng: of what no factor says (None: nothing of it). The first n of more are the same."""
    n = len(factors["shape"])
    jitter = np.zeros((n, 4)) if rng is None else rng.random((n, 4)) * [2, 2, 2, 1] - [1, 1, 1, 0]
    pictures = np.empty((n, SIDE, SIDE, 3), np.uint8)
    for at in range(0, n, BLOCK):
        some = slice(at, at + BLOCK)
        own = {name: np.asarray(values)[some] for name, values in factors.items()}
        dx, dy, turn, dim = jitter[some].T
        mask = _masks(own, JITTER_PLACE * dx, JITTER_PLACE * dy, JITTER_TURN * turn)
        colour = COLOURS[own["colour"]] * (1 - JITTER_LIGHT * dim)[:, None]
        pictures[some] = np.rint(255 * mask[..., None] * colour[:, None, None, :])
    return pictures


# -- reading -----------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    factors: dict[str, np.ndarray]  # int32 [n] each: the likest cell, of an unreadable picture too
    alike: np.ndarray  # float64 [n]: cosine with its ideal picture
    readable: np.ndarray  # bool [n]: it shows a sprite
    noise: np.ndarray  # float64 [n]: root mean square of what its ideal picture, scaled, leaves, in [0, 1]

    def of(self, some: slice) -> Read:
        factors = {name: values[some] for name, values in self.factors.items()}
        return Read(factors, self.alike[some], self.readable[some], self.noise[some])


def joined(parts: Sequence[Read]) -> Read:
    """What was read part by part; of one part at least."""
    factors = {name: np.concatenate([part.factors[name] for part in parts]) for name in FACTORS}
    alike, readable, noise = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    return Read(factors, alike, readable, noise)


@cache
def _bank() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All combinations but of colour, and their masks, float32 [m, 1024], of length 1."""
    names = tuple(name for name in FACTORS if name != "colour")
    cells = _grid(names)
    zero = np.zeros(len(cells["shape"]))
    masks = _masks(cells, zero, zero, zero).reshape(len(zero), -1)
    return cells, (masks / np.linalg.norm(masks, axis=1, keepdims=True)).astype(np.float32)


def read(pictures: np.ndarray) -> Read:
    """The factors of pictures, uint8 or float in [0, 255] [n, 32, 32, 3]: of all combinations, impossible ones too, the
    one whose ideal picture has the highest cosine with it. A template is a mask times a colour, so that one product
    with the masks serves all colours."""
    if pictures.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(f"sprites are [n, {SIDE}, {SIDE}, 3], not {list(pictures.shape)}")
    cells, masks = _bank()
    colours = (COLOURS / np.linalg.norm(COLOURS, axis=1, keepdims=True)).astype(np.float32)
    n = len(pictures)
    best, mask, colour = np.empty(n), np.empty(n, int), np.empty(n, int)
    norm = np.empty(n)
    for at in range(0, n, BLOCK // 4):
        some = slice(at, at + BLOCK // 4)
        pixels = pictures[some].astype(np.float32).reshape(-1, SIDE * SIDE, 3) / 255
        by_mask = np.einsum("npc,mp->nmc", pixels, masks, optimize=True)  # [n, masks, channels]
        score = (by_mask @ colours.T).reshape(len(pixels), -1)
        flat = score.argmax(axis=1)
        best[some] = score[np.arange(len(pixels)), flat]
        mask[some], colour[some] = np.divmod(flat, len(colours))
        norm[some] = np.sqrt((pixels.astype(np.float64) ** 2).sum(axis=(1, 2)))
    found = {name: (colour if name == "colour" else cells[name][mask]).astype(np.int32) for name in FACTORS}
    alike = np.clip(best / np.maximum(norm, 1e-12), 0, 1)
    scale = np.sqrt(SIDE * SIDE * 3)
    noise = np.sqrt(np.maximum(norm**2 - best**2, 0)) / scale
    return Read(found, alike, (alike >= ALIKE) & (norm / scale >= FAINT), noise)
