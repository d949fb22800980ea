"""Files of users by the command: those of Fashion-MNIST by their names and layout, Nouns' parts. And many images: what
is drawn is never in memory at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import Fit, Inputs, Runtime
from genloss.domains.images import Images
from genloss.domains.images import sampling as sampling_module
from genloss.domains.images.draw import DrawImages
from genloss.domains.images.trainer import Diffusion
from genloss.generate import Request
from support import Project
from test_images import DIGITS, SMALL, TINY, idx


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.make(tmp_path / "project")


def run(project: Project, *overrides: str) -> tuple[Path, Images]:
    """A round, and the domain that reads it."""
    small = [word for word in SMALL if not word.startswith(("domain/corpus", "rounds", "size"))]
    folder = project.ok("run", *small, "rounds=1", "size=24", *overrides).folder
    assert json.loads((folder / "rounds/01/metrics.json").read_text())["denoising_loss"] > 0
    return folder, Images(corpus=DIGITS)


def test_fashion_mnist(project: Project) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60, dtype=np.uint8) % 10
    idx(project.root / "train-images-idx3-ubyte.gz", images)
    idx(project.root / "train-labels-idx1-ubyte.gz", labels)
    folder, domain = run(
        project,
        "domain/corpus=idx",
        "domain.corpus.images=train-images-idx3-ubyte.gz",
        "domain.corpus.labels_file=train-labels-idx1-ubyte.gz",
        "domain.corpus.names=[top,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,boot]",
    )
    real = records.read(folder / "data/train.parquet")
    for name, label, image in zip(real["document"], real["label"], domain.pixels(real), strict=True):
        assert np.array_equal(image[..., 0], images[int(name.as_py())]) and label.as_py() == labels[int(name.as_py())]
    assert json.loads((folder / "data/labels.json").read_text())[9] == "boot"
    made = records.read(folder / "rounds/01/generated.parquet")
    assert domain.pixels(made).shape == (24, 28, 28, 1) and set(made["label"].to_pylist()) <= set(range(10))


def test_nouns(project: Project) -> None:
    part: dict[str, Any] = {"data": "0x00" + "02" + "06" + "03" + "04" + "0201" + "0100" + "0102"}
    parts = {
        name: [{**part, "filename": f"{name}-{i}"} for i in range(3)]
        for name in ("bodies", "accessories", "heads", "glasses")
    }
    parts["accessories"][2] = {"filename": "accessory-none", "data": "0x0000000000"}  # as in the real file
    said = {"bgcolors": ["0a0b0c", "d5d7e1"], "palette": ["", "ff0000", "00ff00"], "images": parts}
    (project.root / "image-data.json").write_text(json.dumps(said))
    folder, domain = run(
        project, "domain/corpus=nouns", "domain.corpus.path=image-data.json", "domain.corpus.n=60", "recipe.guidance=1"
    )
    real = records.read(folder / "data/train.parquet")
    assert set(real["glasses"].to_pylist()) == {0, 1, 2}
    made = records.read(folder / "rounds/01/generated.parquet")
    assert domain.pixels(made).shape == (24, 32, 32, 3) and "glasses" not in made.column_names


def test_what_is_drawn_is_never_in_memory_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 chunks only a few have been asked for when the first is taken, and what comes of them lies in a file."""
    asked = 0

    def chunk(unet: Any, scheduler: Any, labels: Any, **_: Any) -> np.ndarray:
        nonlocal asked
        asked += 1
        return np.random.default_rng(asked).integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)

    domain, data, model = Images(corpus=DIGITS), tmp_path / "data", tmp_path / "out/model"
    domain.prepare(data)
    trainer = Diffusion(steps=1, batch=8, validate_every=1, validation_rows=8)
    options = domain.config("train")
    trainer.train(Fit(TINY, trainer, data, [data / "validation.parquet"], [1.0], None, 0, model.parent, options))
    monkeypatch.setattr(sampling_module, "sample_chunk", chunk)
    images = sampling_module.sample(model, 4000, seed=0, chunk=100, runtime=Runtime(1))
    assert next(images).shape == (100, 8, 8, 1) and asked <= 4
    del images
    monkeypatch.setattr(records, "PART", 50_000)
    scratch, account = tmp_path / "scratch", tmp_path / "account"
    scratch.mkdir()
    request = Request(domain, 1, 0, model, data, Inputs({}), scratch, Runtime(1), account=account)
    before = pa.total_allocated_bytes()
    table, _ = DrawImages(n=4000, steps=1, chunk=100).generate(request)
    assert len(table) == 4000 and table.nbytes > 500_000
    assert pa.total_allocated_bytes() - before < 100_000  # the table is mapped
    assert len(set(table["id"].to_pylist())) == 4000
