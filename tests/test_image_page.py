"""Pictures in the report: what is shown is encoded here, and stands where its class and record do."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from genloss.core import records
from genloss.observatory.pictures import ACROSS, BLANK, CELL, DOWN, grid, kinds, zoom
from genloss.observatory.report import PAGE, write_report
from test_images import SMALL
from test_page import Elements, arm, browsed

SIDE = 8
NAMES = ["cat", "<img src=x>"]


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def plain(value: int, side: int = SIDE) -> bytes:
    return png(np.full((side, side, 3), value, np.uint8))


def put(path: Path, items: list[bytes], labels: list[int] | None) -> None:
    made: dict[str, pa.Array] = {"image": pa.array(items, pa.binary())}
    if labels is not None:
        made["label"] = pa.array(labels, pa.int32())
    records.write(records.make_table(made, origin="synthetic", generation=1, recipe="s"), path)


def run(folder: Path, items: list[bytes], labels: list[int] | None = None) -> Path:
    """A run directory whose round 1 made these."""
    arm(folder, [["a"]])
    put(folder / "rounds/01/generated.parquet", items, labels)
    put(folder / "data/train.parquet", [plain(10 + k) for k in range(4)], [0, 1, 0, 1] if labels else None)
    (folder / "data/labels.json").write_text(json.dumps(NAMES))
    return folder


def shown(image: bytes | None) -> np.ndarray:
    assert image is not None
    return np.asarray(Image.open(io.BytesIO(image)))


def cells(image: bytes | None, side: int = SIDE) -> list[list[int]]:
    """The value in the middle of each cell."""
    return shown(image)[side // 2 :: side + 1, side // 2 :: side + 1, 0].tolist()


def test_a_column_is_a_class_and_a_place_a_record(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", [plain(100 + i) for i in range(10)], [1, 1, 0, 7, 1, 0, 1, 1, 1, 0])
    assert [k for k, _ in kinds(folder)] == [0, 1]
    b = BLANK
    assert cells(grid(folder, 1)) == [[102, 100], [105, 101], [109, 104], [b, 106]]  # 7 is no class of the real ones
    assert cells(grid(folder, 0)) == [[10, 11], [12, 13], [b, b], [b, b]]
    assert shown(grid(folder, 1, 3)).shape[0] == 3 * shown(grid(folder, 1)).shape[0]


def test_without_labels_records_stand_in_their_order(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", [plain(i) for i in range(100)])
    assert cells(grid(folder, 1)) == np.arange(ACROSS * DOWN).reshape(DOWN, ACROSS).tolist()
    assert 4 <= zoom(folder) <= CELL // SIDE


def test_what_is_no_small_picture_is_left_blank(tmp_path: Path) -> None:
    bomb = (
        b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    )
    bomb += zlib.crc32(bomb[12:]).to_bytes(4, "big")
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    bad: list[bytes] = [
        b"",
        b"<svg onload=alert(1)>",
        plain(1)[:50],
        bomb,
        jpeg.getvalue(),
        b"x" * (2 << 20),
    ]
    folder = run(tmp_path / "run", [*bad, plain(7)])
    assert cells(grid(folder, 1))[0] == [BLANK] * 6 + [7] + [BLANK] * (ACROSS - 7)
    put(folder / "rounds/01/generated.parquet", bad, None)
    assert grid(folder, 1) is None


def test_large_pictures_are_made_small_and_odd_ones_fit(tmp_path: Path) -> None:
    items = [plain(5, 300), png(np.full((10, 90), 9, np.uint8)), png(np.full((4, 4, 4), 3, np.uint8))]
    image = shown(grid(run(tmp_path / "run", items), 1))
    assert image.shape == ((CELL + 1) * DOWN - 1, (CELL + 1) * ACROSS - 1, 3)
    assert image[CELL // 2, CELL // 2, 0] == 5 and image[0, CELL + 1, 0] == 9 and image[0, 2 * (CELL + 1), 0] == 3


def test_what_holds_no_images_has_no_grid(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["a"]])
    assert grid(folder, 1) is None and grid(folder, 2) is None and kinds(folder) == [] and zoom(folder) == 1
    (folder / "rounds/01/generated.parquet").write_bytes(b"PAR1 and nothing")
    assert grid(folder, 1) is None
    put(folder / "rounds/01/generated.parquet", [], None)
    assert grid(folder, 1) is None


def test_the_page_shows_pictures_that_it_encoded_itself(tmp_path: Path) -> None:
    secret = png(np.full((SIDE, SIDE, 3), 200, np.uint8))
    hidden = (
        secret[:-12]
        + (4).to_bytes(4, "big")
        + b"tEXt"
        + b"evil"
        + zlib.crc32(b"tEXtevil").to_bytes(4, "big")
        + secret[-12:]
    )
    folder = run(tmp_path / "run", [hidden] * 9, [0, 1] * 4 + [0])
    write_report([("run", folder)], folder / "report", html=folder / PAGE)
    html = (folder / PAGE).read_text()
    found = Elements(html)
    images = [value for tag, name, value in found.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 2 and all(value.startswith("data:image/png;base64,") for value in images)
    assert "<img src=x>" not in html and "&lt;img src=x&gt;" in html
    made = base64.b64decode(images[1].partition(",")[2])
    assert made == grid(folder, 1) and b"evil" not in made
    write_report([("run", folder)], folder / "report", html=folder / PAGE)
    assert (folder / PAGE).read_text() == html
    assert len(re.findall("<img", browsed(folder / PAGE, tmp_path))) == 2


@pytest.mark.parametrize(
    "columns", [{"image": pa.array(["text"])}, {"image": pa.array([b"x"]), "label": pa.array(["a"])}]
)
def test_columns_of_another_kind_are_no_images(tmp_path: Path, columns: dict[str, pa.Array]) -> None:
    folder = arm(tmp_path / "run", [["a"]])
    records.write(pa.table(columns), folder / "rounds/01/generated.parquet")
    assert grid(folder, 1) is None


def test_a_run_of_digits_is_measured_and_shown(main, project: Path) -> None:
    """Metrics of any images, the report, and MLflow's page, which finds the pictures of each round by their names."""
    small = [option for option in SMALL if not option.startswith(("tracking=", "rounds="))]
    metrics = "metrics=[denoising,image_distance,image_manifold,memorisation]"
    outcome = main(
        "run", *small, metrics, "rounds=1", "metrics.image_distance.fit=128", "metrics.image_manifold.fit=128"
    )
    assert outcome.code == 0, outcome.err
    found = json.loads((outcome.folder / "rounds/01/metrics.json").read_text())
    for name in (
        "feature_frechet",
        "kernel_distance",
        "feature_spread",
        "manifold_recall",
        "near_copies",
        "memorisation",
    ):
        assert {name, f"{name}_floor"} <= set(found)
    assert found["feature_frechet"] > found["feature_frechet_floor"]  # six steps of training make no digits
    assert (outcome.folder / "report.html").read_text().count("<img") == 2
    [images] = project.glob("mlruns/artifacts/*/artifacts/images")
    steps = sorted(path.name.split("+")[:3] for path in images.glob("*.png"))
    assert steps == [["pictures", "step", "0"], ["pictures", "step", "1"]]
    assert len(list(images.glob("*+compressed.webp"))) == 2
    for path in images.glob("pictures+step+1+*.png"):
        assert path.read_bytes() == grid(outcome.folder, 1, zoom(outcome.folder))


def test_grids_of_all_arms_have_one_scale(tmp_path: Path) -> None:
    """As wide as each other, however long the names of the arms are; else the same digit looks blurred in one."""
    names = ("a", "long" * 9)
    arms = [(name, run(tmp_path / name, [plain(i) for i in range(30)])) for name in names]
    write_report(arms, tmp_path / "report", html=tmp_path / PAGE)
    measure = "document.title = [...document.querySelectorAll('img.pictures')].map(i => Math.round(i.width)).join(' ');"
    html = re.sub("<meta http-equiv[^>]*>", "", (tmp_path / PAGE).read_text())
    (tmp_path / "measured.html").write_text(html.replace("</body>", f"<script>{measure}</script></body>"))
    found = re.search("<title>([0-9 ]+)</title>", browsed(tmp_path / "measured.html", tmp_path))
    assert found and len(found[1].split()) == 4 and len(set(found[1].split())) == 1 and int(found[1].split()[0]) > 100


def test_ten_classes_have_a_column_each(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", [plain(i) for i in range(24)], [k % 12 for k in range(24)])
    put(folder / "data/train.parquet", [plain(100 + k) for k in range(12)], list(range(12)))
    assert [k for k, _ in kinds(folder)] == list(range(10)) and cells(grid(folder, 1))[1] == list(range(12, 22))
