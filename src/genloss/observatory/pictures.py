"""What rounds of images made, to be looked at: the first records of a round in one picture.

    grid(folder, 3)          PNG bytes: a column for each of the first classes, in it its first records; None: no images
    kinds(folder)            what the columns are

Records are noise from a stream of their own: two arms with one seed begin the records of a round from the same noise,
so that what stands in one place of their grids differs by the models alone. Images in files are data of a model or a
user: they are decoded as small PNGs and nothing else, and what is shown was encoded here. One that is damaged, or too
large, is left blank."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.rundir import round_name
from genloss.observatory.samples import printable

IMAGE, LABEL = "image", "label"
ACROSS, DOWN = 10, 4  # pictures of a grid: the classes of MNIST and CIFAR-10 have room
READ = 4096  # records of a file that are looked at
MOST = 1 << 20  # pixels of an image, and bytes of its file
CELL = 64  # pixels a side that a picture is shown with, at least; larger ones are made as small
GAP, BLANK = 1, 128  # pixels between pictures; their grey


def _path(folder: Path, n: int) -> Path:
    """Records that round n made; in round 0 the real ones."""
    return folder / "rounds" / round_name(n) / "generated.parquet" if n else folder / "data" / "train.parquet"


def _labels(path: Path) -> np.ndarray | None:
    """The labels of a file's first records, -1 where none is known; None of a file without images, or a damaged one."""
    try:
        schema = pq.read_schema(path)
        if IMAGE not in schema.names or not pa.types.is_binary(schema.field(IMAGE).type):
            return None
        size = min(READ, pq.read_metadata(path).num_rows)
        if LABEL not in schema.names or not pa.types.is_integer(schema.field(LABEL).type):
            return np.full(size, -1)
        return np.asarray(records.read(path, [LABEL], (0, size)).column(LABEL).fill_null(-1).to_numpy())
    except (OSError, pa.ArrowException, UserError):
        return None


def kinds(folder: Path) -> list[tuple[int, str]]:
    """(number, name) of the classes that have a column, the first ones of the real data; [] where there is none."""
    known = _labels(_path(folder, 0))
    numbers = [] if known is None else [int(k) for k in np.unique(known[known >= 0])[:ACROSS]]
    try:
        names = json.loads((folder / "data" / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        names = []
    known_names = names if isinstance(names, list) else []
    return [(k, printable(str(known_names[k]))[:40] if k < len(known_names) else str(k)) for k in numbers]


def _chosen(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """int [rows, columns]: the number of the record in each cell, -1 for none."""
    if not classes:
        cells = np.full(ACROSS * DOWN, -1)
        cells[: len(labels)] = np.arange(len(labels))[: len(cells)]
        return cells.reshape(DOWN, ACROSS)
    cells = np.full((DOWN, len(classes)), -1)
    for column, label in enumerate(classes):
        found = np.flatnonzero(labels == label)[:DOWN]
        cells[: len(found), column] = found
    return cells


def _decoded(item: bytes | None) -> np.ndarray | None:
    """uint8 [h, w, 3] of the bytes of a small PNG; None of anything else."""
    from PIL import Image

    try:
        if not item or len(item) > MOST:
            return None
        with Image.open(io.BytesIO(item), formats=["PNG"]) as image:
            if not 0 < image.width * image.height <= MOST:
                return None
            picture = image.convert("RGB")
    except Exception:  # Pillow raises many kinds; all mean that it is no picture
        return None
    if max(picture.size) > CELL:
        picture.thumbnail((CELL, CELL))
    return np.asarray(picture)


def grid(folder: Path, n: int, scale: int = 1) -> bytes | None:
    """PNG of the first records that round n made, of each class that has a column; n = 0: of the real ones. Each pixel
    is `scale` pixels a side. None where there are no images."""
    from PIL import Image

    path = _path(folder, n)
    labels = _labels(path)
    if labels is None or not len(labels):
        return None
    cells = _chosen(labels, [k for k, _ in kinds(folder)])
    at = np.unique(cells[cells >= 0])
    try:
        items = dict(zip(at.tolist(), records.take([path], at).column(IMAGE).to_pylist(), strict=True))
    except (OSError, pa.ArrowException, UserError):
        return None
    drawn = {number: picture for number, item in items.items() if (picture := _decoded(item)) is not None}
    if not drawn:
        return None
    height = max(p.shape[0] for p in drawn.values()) + GAP
    width = max(p.shape[1] for p in drawn.values()) + GAP
    whole = np.full((height * cells.shape[0] - GAP, width * cells.shape[1] - GAP, 3), BLANK, np.uint8)
    for (row, column), number in np.ndenumerate(cells):
        if (picture := drawn.get(int(number))) is not None:
            top, left = row * height, column * width
            whole[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    file = io.BytesIO()
    Image.fromarray(whole.repeat(scale, axis=0).repeat(scale, axis=1)).save(file, "PNG")
    return file.getvalue()


def zoom(folder: Path) -> int:
    """By how much pictures of a run are enlarged, so that they are seen: small ones to about CELL pixels."""
    image = grid(folder, 0)
    if image is None:
        return 1
    from PIL import Image

    with Image.open(io.BytesIO(image)) as whole:
        columns = len(kinds(folder)) or ACROSS
        return max(1, round(CELL * columns / max(whole.width, 1)))
