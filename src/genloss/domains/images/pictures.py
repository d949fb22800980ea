"""Pictures as records hold them, PNG bytes, and as arrays; and pictures of users, every one of which may be bad.

    decode(encode(array))                       uint8 [n, h, w, c], the same array
    load("cat.jpg", size=32, channels=3)        uint8 [32, 32, 3], or one line that says what is wrong with it

What `load` converts: the picture is turned as its EXIF data say, what is transparent lies on white, palettes and CMYK
become RGB, grey is repeated for three channels and colour becomes luma (ITU-R 601) for one; with `size` the centre
square is scaled (Lanczos). What it refuses: what is no picture, is cut off, has several frames, more than 8 bits a
channel, no pixels, or more of them than MOST."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core.errors import UserError, first_line

MOST = 64_000_000  # pixels of a user's picture: 256 MB as it is decoded
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # read by Pillow itself, without another program
MODES = {1: "L", 3: "RGB"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def encode(pictures: np.ndarray) -> list[bytes]:
    """PNG bytes [n] of uint8 [n, h, w, c], c 1 or 3; the same bytes for the same pixels and Pillow."""
    from PIL import Image

    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] not in MODES:
        raise ValueError(f"pictures are uint8 [n, h, w, 1 or 3], not {pictures.dtype} {list(pictures.shape)}")
    found = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(file, "PNG", compress_level=6)
        found.append(file.getvalue())
    return found


def decode(column: pa.Array | pa.ChunkedArray | Iterable[bytes]) -> np.ndarray:
    """uint8 [n, h, w, c] of PNG bytes [n]; they must have one size and one mode, grey or RGB."""
    from PIL import Image

    items = column.to_pylist() if isinstance(column, pa.Array | pa.ChunkedArray) else list(column)
    found: np.ndarray | None = None
    first = ""
    for i, item in enumerate(items):
        key = f"image of record {i}"
        try:
            with Image.open(io.BytesIO(item or b""), formats=["PNG"]) as image:
                shape = f"{image.width}x{image.height} {image.mode}"
                first = first or shape
                if shape != first or image.mode not in MODES.values() or image.width * image.height > MOST:
                    raise UserError(key, shape, f"must be grey or RGB, and as the first record's, {first}")
                pixels = np.asarray(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(key, None, f"is no PNG ({_said(error, 'record')}); make the records again") from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if found is None:
            found = np.empty((len(items), *pixels.shape), np.uint8)
        found[i] = pixels
    return np.zeros((0, 1, 1, 1), np.uint8) if found is None else found


def load(
    source: str | Path | bytes,
    *,
    size: int | None = None,
    channels: int = 3,
    key: str = "image",
    name: str | None = None,
) -> np.ndarray:
    """uint8 [h, w, channels] of a user's picture, scaled to [size, size] if there is a size; UserError names `key` and
    `name`, or the file."""
    from PIL import Image, ImageOps

    if name is None and not isinstance(source, bytes):
        name = str(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source

    def refuse(why: str) -> UserError:
        return UserError(key, name, f"{why}, or take it out")

    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):
            raise refuse("is no file; replace it")  # a pipe would be waited for
        with warnings.catch_warnings():  # one of bombs, which are refused below, and others of odd metadata
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST:
                    raise refuse(f"has {image.width} x {image.height} pixels, more than {MOST}; scale it down")
                if image.width * image.height == 0:
                    raise refuse("has no pixels; replace it")
                frames = getattr(image, "n_frames", 1)
                if frames != 1:
                    raise refuse(f"is animated ({frames} frames); save one frame as PNG")
                if _deep(image, file):
                    raise refuse("has more than 8 bits a channel; save it with 8")
                image.load()
                picture = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise refuse(f"has more than {MOST} pixels; scale it down") from None
    except OSError as error:
        if error.errno:  # of the file system: it is not there, or may not be read
            raise UserError(key, name, f"cannot be read ({error.strerror}); mend it, or take it out") from None
        raise refuse(f"is no whole picture ({_said(error, name)}); save it again as PNG") from None
    except (SyntaxError, ValueError, EOFError, MemoryError, IndexError, KeyError, TypeError) as error:
        raise refuse(f"is no whole picture ({_said(error, name)}); save it again as PNG") from None
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    picture = picture.convert("RGB") if picture.mode not in ("1", "L", "RGB") else picture
    picture = picture.convert(MODES[channels])
    if size is not None and picture.size != (size, size):
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.LANCZOS)
    return np.array(picture).reshape(picture.height, picture.width, channels)


def _deep(image: Any, file: Any) -> bool:
    """Whether a channel has more than 8 bits. Pillow cuts those of a colour PNG to 8 and does not say so."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "PNG":
        at = 24  # of the IHDR chunk, which is the first: bits a channel
        if isinstance(file, io.BytesIO):
            return file.getvalue()[at : at + 1] == b"\x10"
        with Path(file).open("rb") as head:
            return head.read(at + 1)[at:] == b"\x10"
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,))) > 8  # BitsPerSample
    return False


def _said(error: BaseException, name: Any) -> str:
    """What Pillow says, without objects that it names."""
    said = first_line(error)
    return "unknown format, or cut off" if said.startswith("cannot identify image file") else said
