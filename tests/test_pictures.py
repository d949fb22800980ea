"""Pictures of users: what is bad is refused in one line, what is odd becomes what the docstring says."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from genloss.core.errors import UserError
from genloss.domains.images.pictures import MOST, decode, encode, load


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth=8, colour=2, data=b""):
    """A PNG whose header says anything."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_encoded_is_decoded(channels):
    pictures = noise(5, 8, 12, channels)
    items = encode(pictures)
    assert items == encode(pictures)
    np.testing.assert_array_equal(decode(items), pictures)
    np.testing.assert_array_equal(decode(pa.chunked_array([pa.array(items, pa.binary())])), pictures)
    assert decode([]).shape[0] == 0


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([b"", b""], "image of record 0: is no PNG"),
        ([None], "image of record 0: is no PNG"),
        ([encode(noise(1, 8, 8, 3))[0], encode(noise(1, 8, 9, 3))[0]], "image of record 1=9x8 RGB: must be"),
        ([encode(noise(1, 8, 8, 3))[0], encode(noise(1, 8, 8, 1))[0]], "image of record 1=8x8 L: must be"),
        ([saved(Image.new("RGBA", (8, 8)))], "image of record 0=8x8 RGBA: must be"),
        ([encode(noise(1, 8, 8, 3))[0][:100]], "image of record 0: is no PNG"),
        ([saved(Image.new("RGB", (8, 8)), "JPEG")], "image of record 0: is no PNG"),
        ([png(60_000, 60_000)], "image of record 0"),
    ],
)
def test_records_that_hold_something_else_are_refused(items, said):
    with pytest.raises(UserError) as caught:
        decode(items)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def frames():
    return saved(Image.new("RGB", (8, 8)), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])


BAD = {
    "empty": (b"", "is no whole picture"),
    "text": (b"<svg></svg>", "is no whole picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is no whole picture"),
    "truncated PNG": (saved(Image.fromarray(noise(64, 64, 3)))[:6000], "is no whole picture"),
    "truncated JPEG": (saved(Image.fromarray(noise(64, 64, 3)), "JPEG")[:1000], "is no whole picture"),
    "animated GIF": (frames(), "is animated (2 frames)"),
    "animated PNG": (
        saved(Image.new("RGB", (8, 8)), save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
        "is animated",
    ),
    "16-bit grey": (saved(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999)), "more than 8 bits"),
    "16-bit RGB": (png(1, 1, 16, 2, bytes(7)), "more than 8 bits"),
    "floats": (saved(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "more than 8 bits"),
    "zero-sized": (png(0, 8), "replace it|is no whole picture"),
    "bomb": (png(9_000, 9_000), f"more than {MOST}"),
    "huge bomb": (png(60_000, 60_000), f"more than {MOST}"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_file", [False, True])
def test_bad_pictures_are_refused_in_one_line(name, as_file, tmp_path):
    content, said = BAD[name]
    source = content
    if as_file:
        source = tmp_path / "bad picture"
        source.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(source, size=8, key="domain.corpus.path")
    line = str(caught.value)
    assert any(part in line for part in said.split("|")), line
    assert line.startswith("domain.corpus.path") and "\n" not in line and "object at" not in line and len(line) < 300
    assert ("bad picture" in line) == as_file


def test_files_that_are_not_there_or_no_files(tmp_path):
    for path, said in ((tmp_path / "nothing.png", r"cannot be read \("), (tmp_path, "is no file; replace it")):
        with pytest.raises(UserError, match=said):
            load(path)


def test_conversions_are_those_that_are_stated():
    grey = Image.fromarray(np.full((8, 8), 100, np.uint8))
    np.testing.assert_array_equal(load(saved(grey)), np.full((8, 8, 3), 100))
    np.testing.assert_array_equal(load(saved(grey), channels=1), np.full((8, 8, 1), 100))
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert load(saved(red), channels=1).max() == 76  # 0.299 of 255
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    np.testing.assert_allclose(load(saved(half))[0, 0], [255, 127, 127], atol=1)
    np.testing.assert_array_equal(load(saved(Image.new("LA", (8, 8), (0, 0)))), np.full((8, 8, 3), 255))
    np.testing.assert_array_equal(load(saved(red.quantize(4))), np.array(red))
    clear = Image.new("P", (8, 8))
    clear.putpalette([0, 0, 0, 9, 9, 9])
    np.testing.assert_array_equal(load(saved(clear, transparency=0)), np.full((8, 8, 3), 255))
    np.testing.assert_array_equal(load(saved(Image.new("1", (8, 8), 1)), channels=1), np.full((8, 8, 1), 255))
    assert load(saved(red.convert("CMYK"), "JPEG"))[0, 0, 0] > 240


def test_pictures_are_cropped_to_their_centre_and_scaled():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    assert (load(saved(Image.fromarray(wide)), size=4) == 200).all()
    assert load(saved(Image.fromarray(wide))).shape == (8, 24, 3)  # without a size as it is
    assert load(saved(Image.fromarray(wide)), size=32).shape == (32, 32, 3)


def test_pictures_are_turned_as_their_camera_was(tmp_path):
    image = Image.fromarray(np.concatenate([np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    assert load(tmp_path / "turned.png")[0, 0, 0] == 255
