"""Corpora of images: where real pictures come from. One dataclass each; `pictures` yields them one after the other.

    genloss run domain=images                                                          # sprites, drawn: factors known
    genloss run domain=images domain/corpus=digits                                     # scikit-learn's, 8x8, grey
    genloss run domain=images domain/corpus=image_folder domain.corpus.path=my/images  # labels: the folders in it
    genloss run domain=images domain/corpus=idx domain.corpus.images=train-images-idx3-ubyte.gz \\
        domain.corpus.labels_file=train-labels-idx1-ubyte.gz                           # the layout of (Fashion-)MNIST
    genloss run domain=images domain/corpus=nouns domain.corpus.path=image-data.json   # parts of 32x32, @nouns/assets
    genloss run domain=images domain/corpus=image_datasets domain.corpus.path=hub:NAME

Files of users are data: what does not fit is refused in one line that names it. Pictures stream: one is in memory, with
what is read ahead of it."""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, cast

import numpy as np

from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, first_line, nearest, one_of, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import in_project
from genloss.core.seeds import generator
from genloss.domains.images import sprites
from genloss.domains.images.pictures import SUFFIXES, load
from genloss.language.corpus import PATH, Datasets, shown_name

LABELS = "labels.json"  # of the data: the names of the classes
CHANNELS = (1, 3)
LARGEST = 1024  # pixels a side
DRAWN = 256  # pictures that are drawn together


class Picture(NamedTuple):
    name: str
    image: np.ndarray  # uint8 [h, w, c]
    label: int  # -1: none is known
    factors: Mapping[str, int]  # what it was drawn from; {} if that is not known


class ImageCorpus(Plugin, ABC):
    """Real pictures, all of one size. `check` is cheap and runs before any work; `fingerprint` hashes what `pictures`
    reads. copies: whether equal pictures are draws of their own, and not one that the corpus has several times."""

    copies: ClassVar[bool] = False

    @property
    @abstractmethod
    def side(self) -> int:
        """Pixels a side."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """1: grey; 3: RGB."""

    @abstractmethod
    def labels(self) -> list[str]:
        """The names of the classes; [] if there are none."""

    @abstractmethod
    def pictures(self) -> Iterator[Picture]: ...


def several(labels: Sequence[str]) -> None:
    """Refuse one class: a model could not be guided by it, and what is not it would never have been seen."""
    if len(labels) == 1:
        why = "is the only class; give at least two, or pictures without any (a folder without folders in it)"
        raise UserError("domain.corpus", f"{labels[0]!r}", why)


def check_shape(side: int, channels: int) -> None:
    require(4 <= side <= LARGEST, "side", side, f"from 4 to {LARGEST} pixels")
    require(channels in CHANNELS, "channels", channels, "1 (grey) or 3 (RGB)")


# -- drawn ---------------------------------------------------------------------------------------------------------


@dataclass
class Sprites(ImageCorpus):
    """Small figures that are drawn from known factors (genloss.domains.images.sprites), whose joint distribution has
    long tails: modes, tails and impossible combinations can be counted. label: the factor that models are told."""

    n: int = 20_000
    label: str = "shape"
    seed: int = 0
    copies = True
    side = 32
    channels = 3

    def __post_init__(self) -> None:
        require(self.n >= 3, "n", self.n, "at least 3 pictures: train, validation and test need one each")
        one_of("label", self.label, sprites.FACTORS)

    def labels(self) -> list[str]:
        return list(sprites.FACTORS[self.label])

    def pictures(self) -> Iterator[Picture]:
        drawn = sprites.sample(self.n, generator(self.seed, "sprites"))
        for first in range(0, self.n, DRAWN):
            some = {name: values[first : first + DRAWN] for name, values in drawn.items()}
            for i, image in enumerate(sprites.draw(some, generator(self.seed, "drawn", first))):
                factors = {name: int(values[i]) for name, values in some.items()}
                yield Picture(f"{first + i:06d}", image, factors[self.label], factors)


@dataclass
class Nouns(ImageCorpus):
    """Figures of 32x32 put together from the parts of Nouns (npm package @nouns/assets, image-data.json; the art is
    CC0), each part drawn evenly. label: the part that models are told."""

    path: str = "???"
    n: int = 20_000
    label: str = "glasses"
    seed: int = 0
    copies = True
    side = 32
    channels = 3
    PARTS: ClassVar[tuple[str, ...]] = ("bodies", "accessories", "heads", "glasses")  # in the order of drawing
    BACKGROUND: ClassVar[str] = "backgrounds"

    def __post_init__(self) -> None:
        require(self.n >= 3, "n", self.n, "at least 3 pictures: train, validation and test need one each")
        one_of("label", self.label, (*self.PARTS, self.BACKGROUND))

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return sha256_file(self._file())

    def _file(self) -> Path:
        return in_project(self.path, PATH)

    def check(self, experiment: Experiment) -> None:
        self._read()

    def _read(self) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
        """(names of what each factor can be; the pictures of each part, uint8 [n, 32, 32, 4], the last channel 1 where
        it draws)."""
        try:
            said = json.loads(self._file().read_text(encoding="utf-8"))
            palette = [_colour(text) for text in said["palette"]]
            grounds = [_colour(text) for text in said["bgcolors"]]
            names = {part: [str(each["filename"]) for each in said["images"][part]] for part in self.PARTS}
            drawn = {
                part: np.stack([_part(each["data"], palette) for each in said["images"][part]]) for part in self.PARTS
            }
            ground = np.ones((len(grounds), self.side, self.side, 4), dtype=np.uint8)
            ground[..., :3] = np.array(grounds, dtype=np.uint8)[:, None, None]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            why = f"is no image-data.json of @nouns/assets ({first_line(error)})"
            raise UserError(PATH, self.path, why) from None
        names[self.BACKGROUND] = [str(text) for text in said["bgcolors"]]
        return names, drawn | {self.BACKGROUND: ground}

    def labels(self) -> list[str]:
        return self._read()[0][self.label]

    def pictures(self) -> Iterator[Picture]:
        _, parts = self._read()
        rng = generator(self.seed, "nouns")
        chosen = {part: rng.integers(0, len(drawn), self.n) for part, drawn in parts.items()}
        for i in range(self.n):
            factors = {part: int(values[i]) for part, values in chosen.items()}
            image = parts[self.BACKGROUND][factors[self.BACKGROUND]][..., :3].copy()
            for part in self.PARTS:
                over = parts[part][factors[part]]
                there = over[..., 3] > 0
                image[there] = over[there][:, :3]
            yield Picture(f"{i:06d}", image, factors[self.label], factors)


def _colour(text: str) -> tuple[int, int, int]:
    """RGB of six hex digits; black of none, which is what nothing is drawn in."""
    red, green, blue = bytes.fromhex(text) if text else (0, 0, 0)
    return red, green, blue


def _part(data: str, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """uint8 [32, 32, 4] of a part: a byte for the palette, four for its bounds (top, right, bottom, left), then pairs
    (length, colour) of runs that fill the bounds row by row; colour 0 draws nothing."""
    raw = bytes.fromhex(data.removeprefix("0x"))
    top, right, bottom, left = raw[1:5]
    runs = np.frombuffer(raw[5:], dtype=np.uint8).reshape(-1, 2)
    colours = np.repeat(runs[:, 1], runs[:, 0])
    high, wide = bottom - top + 1, right - left  # a part that is none has no width
    box = np.zeros(high * wide, dtype=np.uint8)  # a run may end before the bounds do
    box[: len(colours)] = colours
    table = np.array([(*rgb, 1) for rgb in palette], dtype=np.uint8)
    table[0] = 0
    made = np.zeros((32, 32, 4), dtype=np.uint8)
    made[top : bottom + 1, left:right] = table[box.reshape(high, wide)]
    return made


def _unreadable(error: OSError) -> None:
    raise UserError(PATH, shown_name(Path(error.filename)), f"cannot be read ({error.strerror}); mend it") from None


# -- read ----------------------------------------------------------------------------------------------------------


@dataclass
class Digits(ImageCorpus):
    """1,797 handwritten digits, 8x8, grey, that scikit-learn brings (Alpaydin & Kaynak 1998, UCI)."""

    side = 8
    channels = 1

    def labels(self) -> list[str]:
        return [str(i) for i in range(10)]

    def pictures(self) -> Iterator[Picture]:
        from sklearn.datasets import load_digits

        found = load_digits()
        images = np.rint(found.images * (255 / 16)).astype(np.uint8)
        for i, (image, label) in enumerate(zip(images, found.target.tolist(), strict=True)):
            yield Picture(f"{i:04d}", image[..., None], label, {})


@dataclass
class ImageFolder(ImageCorpus):
    """Image files below a folder, links among them, in the order of their names, each turned, cut and scaled to
    squares by genloss.domains.images.pictures.load. The folders directly in it are the classes; without any there are
    none."""

    path: str = "???"
    side: int = 32
    channels: int = 3

    def __post_init__(self) -> None:
        check_shape(self.side, self.channels)

    def _root(self) -> Path:
        return in_project(self.path, PATH)

    def names(self) -> list[str]:
        """Of the files, relative to the folder; without hidden ones, such as copies in .ipynb_checkpoints."""
        root = self._root()
        found = []
        for folder, below, files in os.walk(root, onerror=_unreadable, followlinks=True):
            here = Path(folder)
            below[:] = [name for name in below if not name.startswith(".")]
            for link in (here / name for name in below if (here / name).is_symlink()):
                if here.resolve().is_relative_to(link.resolve()):
                    raise UserError(PATH, shown_name(link), "is a link to a folder that it is in; take it out")
            seen = (name for name in files if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))
            found += [str((here / name).relative_to(root)) for name in seen]
        return sorted(found, key=lambda name: name.replace("/", "\0"))

    def check(self, experiment: Experiment) -> None:
        if not self._root().is_dir():
            raise UserError(PATH, self.path, "is no folder; give a folder of images")
        names = self.names()
        if not names:
            raise UserError(PATH, self.path, f"holds no images ({', '.join(SUFFIXES)})")
        bare = [name for name in names if "/" not in name]
        if bare and len(bare) < len(names):
            why = (
                f"holds images beside folders of images ({shown_name(Path(bare[0]))}); put each into one of the folders"
            )
            raise UserError(PATH, self.path, why)
        several(self.labels())
        for name in names:
            self._load(name)

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return tree_hash({name: sha256_file(self._root() / name) for name in self.names()})

    def labels(self) -> list[str]:
        return sorted({shown_name(Path(name.partition("/")[0])) for name in self.names() if "/" in name})

    def _load(self, name: str) -> np.ndarray:
        return load(self._root() / name, size=self.side, channels=self.channels, key=PATH)

    def pictures(self) -> Iterator[Picture]:
        number = {label: i for i, label in enumerate(self.labels())}
        for name in self.names():
            label = number.get(shown_name(Path(name.partition("/")[0])), -1) if "/" in name else -1
            yield Picture(shown_name(Path(name)), self._load(name), label, {})


@dataclass
class Idx(ImageCorpus):
    """Two idx files, perhaps packed by gzip: uint8 images [n, side, side] or [n, side, side, channels], and labels
    [n]. names: of the classes; none: the numbers."""

    images: str = "???"
    labels_file: str = "???"
    names: list[str] = field(default_factory=list)

    def check(self, experiment: Experiment) -> None:
        shape = self._shape()
        if len(shape) not in (3, 4) or shape[1] != shape[2] or (len(shape) == 4 and shape[3] not in CHANNELS):
            raise UserError("domain.corpus.images", self.images, f"holds {shape}, and not [n, side, side] of images")
        check_shape(shape[1], self.channels)
        with _idx(self.labels_file, "domain.corpus.labels_file") as (_, counted):
            if len(counted) != 1 or counted[0] != shape[0]:
                why = f"holds {counted}, and not a label for each of {shape[0]} images"
                raise UserError("domain.corpus.labels_file", self.labels_file, why)
        several(self.labels())

    def places(self) -> tuple[str, ...]:
        return ("images", "labels_file")

    def fingerprint(self) -> str:
        files = {"images": self.images, "labels": self.labels_file}
        return tree_hash({k: sha256_file(in_project(v, f"domain.corpus.{k}")) for k, v in files.items()})

    def _shape(self) -> tuple[int, ...]:
        with _idx(self.images, "domain.corpus.images") as (_, shape):
            return shape

    @property
    def side(self) -> int:
        return self._shape()[1]

    @property
    def channels(self) -> int:
        return (*self._shape(), 1)[3]

    def _numbers(self) -> np.ndarray:
        key = "domain.corpus.labels_file"
        with _idx(self.labels_file, key) as (file, shape):
            return np.frombuffer(_taken(file, math.prod(shape), self.labels_file, key, last=True), dtype=np.uint8)

    def labels(self) -> list[str]:
        numbers = self._numbers()
        highest = int(numbers.max()) if len(numbers) else -1
        if self.names and highest >= len(self.names):
            raise UserError("domain.corpus.names", self.names, f"has no name for class {highest}")
        known = np.unique(numbers)
        return list(self.names) or ([str(i) for i in range(highest + 1)] if len(known) > 1 else [str(i) for i in known])

    def pictures(self) -> Iterator[Picture]:
        numbers, key = self._numbers(), "domain.corpus.images"
        with _idx(self.images, key) as (file, shape):
            one = (*shape[1:], 1)[:3]
            for i in range(shape[0]):
                taken = _taken(file, math.prod(one), self.images, key, last=i + 1 == shape[0])
                raw = np.frombuffer(taken, dtype=np.uint8)
                yield Picture(f"{i:06d}", raw.reshape(one), int(numbers[i]), {})


class _idx:
    """An idx file that is open behind its head: (file, shape). UserError, which names it, for any other."""

    def __init__(self, path: str, key: str):
        self.path, self.key = path, key

    def __enter__(self) -> tuple[IO[bytes], tuple[int, ...]]:
        place = in_project(self.path, self.key)
        try:
            self.file = cast("IO[bytes]", gzip.open(place) if place.suffix == ".gz" else place.open("rb"))
        except OSError as error:
            raise UserError(self.key, self.path, f"cannot be read ({error.strerror})") from None
        head = _taken(self.file, 4, self.path, self.key)
        if head[:2] != b"\0\0" or head[2] != 8 or not 1 <= head[3] <= 4:
            raise UserError(self.key, self.path, "is no idx file of bytes; it begins with 0, 0, 8 and the dimensions")
        sides = struct.unpack(f">{head[3]}I", _taken(self.file, 4 * head[3], self.path, self.key))
        return self.file, tuple(sides)

    def __exit__(self, *_: Any) -> None:
        self.file.close()


def _taken(file: IO[bytes], size: int, path: str, key: str, last: bool = False) -> bytes:
    """The next bytes of a file, all of them. No more than the file has is asked for: its head may say anything. last:
    nothing may follow them."""
    parts: list[bytes] = []
    left = size
    try:
        while left and (part := file.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
        more = last and not left and file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(key, path, f"cannot be read ({first_line(error)})") from None
    if left:
        raise UserError(key, path, f"ends {left} bytes before its head says")
    if more:
        raise UserError(key, path, "goes on behind what its head says; one of the two is wrong")
    return b"".join(parts)


@dataclass
class ImageDatasets(ImageCorpus):
    """A data set of the library `datasets`, by hub:NAME or a folder, as for texts (genloss.language.corpus.Datasets):
    a column of images, and perhaps one of labels (label: "": none)."""

    path: str = "???"
    config: str | None = None
    split: str = "train"
    column: str = "image"
    label: str = "label"
    revision: str | None = None  # pin it: the hub's main branch moves
    side: int = 32
    channels: int = 3

    def __post_init__(self) -> None:
        check_shape(self.side, self.channels)
        self._set = Datasets(self.path, self.config, self.split, self.column, self.revision)

    def check(self, experiment: Experiment) -> None:
        self._set.check(experiment)

    def places(self) -> tuple[str, ...]:
        return self._set.places()

    def fingerprint(self) -> str:
        return self._set.fingerprint()

    def _rows(self) -> Any:
        """The data set, with images as the bytes of their files."""
        import datasets

        try:
            data = self._set.rows()
            known = data.column_names or list(next(iter(data), ()))
        except UserError:
            raise
        except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
            raise UserError(PATH, self.path, f"datasets cannot load it ({first_line(error)})") from None
        for key, name in (("column", self.column), ("label", self.label)):
            if name and name not in known:
                raise UserError(f"domain.corpus.{key}", name, f"no such column; {nearest(name, known)}")
        if isinstance((data.features or {}).get(self.column), datasets.Image):
            data = data.cast_column(self.column, datasets.Image(decode=False))
        return data.select_columns([name for name in (self.column, self.label) if name])

    def labels(self) -> list[str]:
        if not self.label:
            return []
        rows = self._rows()
        names = getattr((rows.features or {}).get(self.label), "names", None)
        return list(names) if names else sorted({str(row[self.label]) for row in rows if row[self.label] is not None})

    def pictures(self) -> Iterator[Picture]:
        number = {name: i for i, name in enumerate(self.labels())}
        rows = self._rows()
        numbered = bool(getattr((rows.features or {}).get(self.label), "names", None))
        for i, row in enumerate(rows):
            held = row[self.column]
            raw = held.get("bytes") or held.get("path") if isinstance(held, Mapping) else held
            if not isinstance(raw, bytes | str):
                why = f"holds {type(held).__name__} in row {i}, and no image; name a column of images"
                raise UserError("domain.corpus.column", self.column, why)
            said = row.get(self.label) if self.label else None
            label = -1 if said is None else int(said) if numbered else number[str(said)]
            image = load(raw, size=self.side, channels=self.channels, key=PATH, name=f"{self.path}, row {i}")
            yield Picture(f"{i:06d}", image, label, {})
