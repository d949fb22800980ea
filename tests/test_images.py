"""Domain images: what is real, how it is trained and sampled, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from genloss.core import records
from genloss.core.contracts import Fit, Runtime
from genloss.core.errors import UserError
from genloss.core.plugin import build
from genloss.core.seeds import generator
from genloss.domains.images import Images
from genloss.domains.images.corpora import ImageFolder
from genloss.domains.images.model import SavedUNet, UNet, load
from genloss.domains.images.pictures import encode
from genloss.domains.images.sampling import Step, guided, sample
from genloss.domains.images.trainer import Diffusion
from genloss.experiment import Experiment
from genloss.workflow.compose import compose
from support import killed, killer

# A run of seconds
SMALL = [
    "domain=images",
    "domain/corpus=digits",
    "size=48",
    "rounds=2",
    "tracking=none",
    "trainer.steps=6",
    "trainer.batch=8",
    "trainer.validate_every=3",
    "trainer.validation_rows=8",
    "model.channels=[8,16]",
    "recipe.chunk=16",
    "recipe.steps=3",
    "metrics.denoising.max_records=16",
    "metrics.denoising.least=2",
    "runtime.workers=1",
]
TINY = UNet(channels=[8, 16])
DIGITS = {"_target_": "genloss.domains.images.corpora.Digits"}
OFTEN = 1e-9  # minutes: a checkpoint at each step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images") / "data"
    Images(corpus=DIGITS).prepare(out)
    return out


@pytest.fixture
def fit(data: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """`fit(name, **changes)` trains a tiny model in a folder of that name; returns it and the results."""

    def train(name: str, trainer: Diffusion | None = None, **changes: Any) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        known: dict[str, Any] = {
            "model": TINY,
            "trainer": trainer or Diffusion(steps=6, batch=8, validate_every=3, validation_rows=8),
            "data": data,
            "shards": [data / "train.parquet"],
            "weights": [1.0],
            "start": None,
            "seed": 1,
            "out": out,
            "options": {"side": 8, "channels": 1},
        }
        made = Fit(**{**known, **changes})
        return out, made.trainer.train(made)

    return train


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    trainer = Diffusion(steps=20, batch=16)
    options = {"side": 8, "channels": 1}
    trainer.train(Fit(TINY, trainer, data, [data / "train.parquet"], [1.0], None, 0, out, options))
    return out / "model"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def drawn(folder: Path, n: int = 20, **options: Any) -> np.ndarray:
    labels = np.arange(n) % 10
    return np.concatenate(list(sample(folder, n, labels, **{"seed": 3, "steps": 4, "chunk": 8, **options})))


# -- the whole loop ----------------------------------------------------------------------------------------------------


def test_a_run_end_to_end(main: Callable[..., Any]) -> None:
    result = main("run", *SMALL)
    assert result.code == 0, result.err
    run = result.folder
    for n in (1, 2):
        made = records.read(run / f"rounds/{n:02d}/generated.parquet")
        assert made.schema.field("image").type == pa.binary() and made.schema.field("label").type == pa.int32()
        assert len(made) == 48 and len(set(made["id"].to_pylist())) == 48
        real = set(records.read(run / "data/train.parquet", ["label"])["label"].to_pylist())
        assert set(made["label"].to_pylist()) <= real
        metrics = json.loads((run / f"rounds/{n:02d}/metrics.json").read_text())
        assert 0 < metrics["denoising_loss"] <= metrics["denoising_loss_worst"] < 10
        assert (run / f"rounds/{n:02d}/model/diffusion_pytorch_model.safetensors").is_file()
    verified = main("verify", run)
    assert verified.code == 0, verified.err


@pytest.mark.parametrize("mixing", ["accumulate", "synthetic_augmentation", "fresh", "weighted_fresh"])
def test_mixing_with_real_images(main: Callable[..., Any], mixing: str) -> None:
    """Real records have columns that generated ones lack; both are trained on, with the weights of their shards."""
    result = main("run", *SMALL, f"mixing={mixing}", "trainer.start=previous", "recipe.bias=0.5")
    assert result.code == 0, result.err
    mixed = json.loads((result.folder / "rounds/02/train/mix.json").read_text())["shards"]
    assert {shard["origin"] for shard in mixed} == {"real", "synthetic"}


# -- real data ---------------------------------------------------------------------------------------------------------


def test_no_picture_is_in_two_splits(data: Path) -> None:
    domain = Images(corpus=DIGITS)
    splits = {name: records.read(data / f"{name}.parquet") for name in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 1797 and len(splits["test"]) == 180 and len(splits["validation"]) == 90
    seen = [{image.tobytes() for image in domain.pixels(table)} for table in splits.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    from sklearn.datasets import load_digits

    known = load_digits()
    table = splits["test"]
    for image, label, name in zip(domain.pixels(table), table["label"].to_pylist(), table["document"], strict=True):
        assert label == known.target[int(name.as_py())]
        assert np.array_equal(image[..., 0], np.rint(known.images[int(name.as_py())] * 255 / 16))


def test_sprites_have_factors(tmp_path: Path) -> None:
    from genloss.domains.images import sprites

    domain = Images(corpus={"_target_": "genloss.domains.images.corpora.Sprites", "n": 300, "label": "colour"})
    assert domain.prepare(tmp_path)["pictures"] == 300
    table = records.read(tmp_path / "train.parquet")
    assert set(sprites.FACTORS) <= set(table.column_names) and table["label"].equals(table["colour"])
    seen = sprites.read(domain.pixels(table)).factors
    assert all(np.mean(seen[name] == table[name].to_numpy()) > 0.9 for name in sprites.FACTORS)
    assert json.loads((tmp_path / "labels.json").read_text()) == list(sprites.FACTORS["colour"])


def idx(path: Path, array: np.ndarray) -> Path:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(head + array.tobytes())
    return path


@pytest.fixture
def fashion(tmp_path: Path) -> dict[str, Any]:
    """Files of the layout of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40, dtype=np.uint8) % 4
    return {
        "_target_": "genloss.domains.images.corpora.Idx",
        "images": str(idx(tmp_path / "images-idx3-ubyte.gz", images)),
        "labels_file": str(idx(tmp_path / "labels-idx1-ubyte", labels)),
    }


def test_idx_files(fashion: dict[str, Any], tmp_path: Path) -> None:
    domain = Images(corpus=fashion)
    assert (domain.side, domain.channels) == (8, 1)
    domain.prepare(tmp_path / "data")
    test = records.read(tmp_path / "data/test.parquet")
    with gzip.open(fashion["images"]) as file:
        raw = np.frombuffer(file.read()[16:], dtype=np.uint8).reshape(40, 8, 8)
    for name, label, image in zip(test["document"], test["label"], domain.pixels(test), strict=True):
        assert label.as_py() == int(name.as_py()) % 4 and np.array_equal(image[..., 0], raw[int(name.as_py())])


def test_nouns(tmp_path: Path) -> None:
    """A body of runs: two columns and a row that is left out, then one that ends early."""
    part = {"filename": "a", "data": "0x00" + "02" + "06" + "03" + "04" + "0201" + "0100" + "0102"}
    said: dict[str, Any] = {
        "bgcolors": ["0a0b0c", "d5d7e1"],
        "palette": ["", "ff0000", "00ff00"],
        "images": {name: [part, {**part, "filename": "b"}] for name in ("bodies", "accessories", "heads", "glasses")},
    }
    path = tmp_path / "image-data.json"
    path.write_text(json.dumps(said))
    domain = Images(corpus={"_target_": "genloss.domains.images.corpora.Nouns", "path": str(path), "n": 5})
    for picture in domain.source.pictures():
        ground = bytes.fromhex(said["bgcolors"][picture.factors["backgrounds"]])
        assert picture.image.shape == (32, 32, 3) and bytes(picture.image[0, 0]) == ground
        assert picture.image[2, 4:6].tolist() == [[255, 0, 0]] * 2
        assert bytes(picture.image[3, 4]) == ground and picture.image[3, 5].tolist() == [0, 255, 0]
        assert picture.label == picture.factors["glasses"]
    wrong: list[dict[str, Any]] = [
        {"palette": [""]},
        {"bgcolors": []},
        {"bgcolors": ["0a", "0b"]},  # no colours, which would be grey ones
        {"bgcolors": ["0a0b0c0d", "d5d7e1ff"]},
        {"images": {**said["images"], "heads": [{"filename": "a", "data": 5}]}},
        {"images": {**said["images"], "heads": []}},
    ]
    for change in wrong:
        path.write_text(json.dumps({**said, **change}))
        with pytest.raises(UserError, match=r"is no image-data.json of @nouns/assets"):
            domain.source.labels()


def folder_of(root: Path, classes: dict[str, int], side: int = 8) -> Path:
    rng = np.random.default_rng(1)
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i, raw in enumerate(encode(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))):
            (root / name / f"{i}.png").write_bytes(raw)
    return root


def test_a_folder_of_folders(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "mine", {"cats": 6, "dogs": 5})
    corpus = {"_target_": "genloss.domains.images.corpora.ImageFolder", "path": str(root), "side": 8}
    larger = encode(np.zeros((1, 20, 30, 3), dtype=np.uint8))[0]  # is cut and scaled
    (root / "dogs/5.png").write_bytes(larger)
    shutil.copytree(root / "cats", root / ".ipynb_checkpoints")  # what is hidden is no class
    (root / "dogs/._5.png").write_bytes(b"what macOS leaves beside a file")
    Images(corpus=corpus).prepare(tmp_path / "data")
    table = records.concat(
        [records.read(tmp_path / f"data/{name}.parquet") for name in ("train", "validation", "test")]
    )
    for name, label in zip(table["document"].to_pylist(), table["label"].to_pylist(), strict=True):
        assert label == ["cats", "dogs"].index(name.partition("/")[0])
    assert table.num_rows == 12


def test_datasets(tmp_path: Path) -> None:
    import datasets

    raw = encode(np.random.default_rng(2).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    held = {"image": [{"bytes": each, "path": None} for each in raw], "label": [0, 1] * 6}
    datasets.Dataset.from_dict(held, features=features).save_to_disk(str(tmp_path / "set"))
    corpus = {"_target_": "genloss.domains.images.corpora.ImageDatasets", "path": str(tmp_path / "set"), "side": 8}
    source = Images(corpus=corpus).source
    assert source.labels() == ["a", "b"]
    assert [picture.label for picture in source.pictures()] == [0, 1] * 6
    assert encode(np.stack([picture.image for picture in source.pictures()])) == raw
    bad = {"image": [*raw[:7], raw[7][:50], *raw[8:]], "label": ["a", None] * 6}
    datasets.Dataset.from_dict(bad).save_to_disk(str(tmp_path / "bad"))
    source = Images(corpus={**corpus, "path": str(tmp_path / "bad")}).source
    assert source.labels() == ["a"]  # none is no class
    with pytest.raises(UserError, match=r"domain\.corpus\.path=.*bad, row 7: is no whole picture"):
        list(source.pictures())


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_loss_falls(fit) -> None:
    folder, result = fit("a", Diffusion(steps=80, batch=32, lr=3e-3, validate_every=10, validation_rows=32))
    rows = [line.split(",") for line in (folder / "training.csv").read_text().splitlines()[1:]]
    validation = [float(row[3]) for row in rows if row[3]]
    assert len(validation) == 8 and validation[-1] < 0.8 * validation[0]
    assert result["steps"] == 80 and result["images"] == 80 * 32


def test_others_can_load_the_model(model: Path) -> None:
    """By diffusers alone; number K is the class of none."""
    from diffusers import DDPMScheduler, UNet2DModel

    theirs = UNet2DModel.from_pretrained(model)
    ours, scheduler = load(model)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    assert theirs.config.num_class_embeds == 11 and theirs.config.sample_size == 8
    assert DDPMScheduler.from_pretrained(model / "scheduler").config == scheduler.config
    assert "_name_or_path" not in json.loads((model / "config.json").read_text())


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_attention_is_at_the_lowest_levels(levels: int) -> None:
    """Each layer of self-attention has as many tokens as its level has pixels: on the way down, between, and up."""
    from diffusers.models.attention_processor import Attention

    unet, tokens = UNet(channels=[8, 8, 8], attention=levels).made(8, 1, 10), []
    for module in unet.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _, given, __: tokens.append(given[0].shape[-1] ** 2))
    unet(torch.zeros(1, 1, 8, 8), 0, class_labels=torch.zeros(1, dtype=torch.int64))
    sides = [8, 4, 2][3 - levels :]
    down = [side**2 for side in sides]
    assert tokens == (down + [4] + [side**2 for side in sides[::-1] for _ in range(2)] if levels else [])


def test_the_average_is_that_of_the_weights(fit) -> None:
    """ema=0 saves the last weights; after one step an average is what it was made of."""
    last, _ = fit("last", Diffusion(steps=3, batch=8, ema=0.0))
    mean, _ = fit("mean", Diffusion(steps=3, batch=8, ema=0.9))
    first, _ = fit("first", Diffusion(steps=1, batch=8, ema=0.9))
    same, _ = fit("same", Diffusion(steps=1, batch=8, ema=0.0))
    assert files(first / "model") == files(same / "model")
    assert files(last / "model") != files(mean / "model")


def test_killed_at_any_step_it_goes_on_to_the_same_bytes(fit, tmp_path: Path) -> None:
    trainer = Diffusion(steps=7, batch=8, accumulate=2, validate_every=2, validation_rows=8, checkpoint_minutes=OFTEN)
    plain, _ = fit("plain", replace(trainer, checkpoint_minutes=0))
    out, scratch = tmp_path / "killed", tmp_path / "scratch"
    scratch.mkdir()
    step = 2
    while killed(lambda: fit("killed", trainer, scratch=scratch, report=killer(step))):  # noqa: B023
        shutil.rmtree(out)  # as the store does
        step += 1
    assert step == 8
    assert files(out) == files(plain)


def test_weights_of_shards_are_those_of_the_loss(fit, data: Path) -> None:
    """A shard without weight teaches nothing: equal to a training where its images are others."""
    other = data.parent / "other.parquet"
    table = records.read(data / "train.parquet", rows=(0, 64))
    records.write(table, data.parent / "some.parquet")
    flipped = pa.array(encode(255 - Images(corpus=DIGITS).pixels(table)), pa.binary())
    records.write(table.set_column(table.column_names.index("image"), "image", flipped), other)
    some = data.parent / "some.parquet"
    folders = [fit(str(i), shards=[some, each], weights=[2.0, 0.0])[0] for i, each in enumerate((some, other))]
    heavier, _ = fit("heavier", shards=[some, other], weights=[1.0, 1.0])
    assert files(folders[0] / "model") == files(folders[1] / "model") != files(heavier / "model")


def test_on_two_devices(fit) -> None:
    """The losses of one, to the last bits, with batches that cannot be divided."""
    trainer = Diffusion(steps=3, batch=5, validate_every=3, validation_rows=7)
    one, _ = fit("one", trainer)
    two, _ = fit("two", trainer, runtime=Runtime(devices=2, strategy="ddp"))
    curves = [
        [float(x) for line in (f / "training.csv").read_text().splitlines()[1:] for x in line.split(",") if x]
        for f in (one, two)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=2e-4)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"scheduler": "euler"}, {"eta": 1.0}], ids=str)
def test_records_depend_on_their_stream_alone(model: Path, options: dict[str, Any]) -> None:
    """The same bytes on any number of workers; asking for more, or from a later one on, changes none."""
    one = drawn(model, runtime=Runtime(workers=1), **options)
    assert one.shape == (20, 8, 8, 1) and one.dtype == np.uint8 and len({image.tobytes() for image in one}) == 20
    assert np.array_equal(drawn(model, runtime=Runtime(workers=3), **options), one)
    assert np.array_equal(drawn(model, 13, **options), one[:13])
    labels = np.arange(20) % 10
    later = np.concatenate(list(sample(model, 12, labels[8:], seed=3, first=8, steps=4, chunk=8, **options)))
    assert np.array_equal(later, one[8:])
    apart = drawn(model, chunk=5, **options).astype(int)  # kernels differ in the last bits
    assert abs(apart - one).max() <= 1
    assert not np.array_equal(drawn(model, seed=4, **options), one)


def test_finished_chunks_are_found(model: Path, tmp_path: Path) -> None:
    whole = drawn(model, scratch=tmp_path)
    kept = sorted(tmp_path.glob("chunk-*.parquet"))
    assert len(kept) == 3
    kept[1].unlink()
    calls: list[int] = []

    def count(step: Step) -> torch.Tensor:
        calls.append(step.first)
        return guided(step)

    assert np.array_equal(drawn(model, scratch=tmp_path, hook=count), whole)
    assert set(calls) == {8} and len(calls) == 4  # the steps of the chunk that was missing


def test_guidance_and_bias_say_the_same(model: Path) -> None:
    plain = drawn(model)
    assert np.array_equal(drawn(model, guidance=0.0, bias=1.0), plain)
    assert np.array_equal(drawn(model, bias=0.25), drawn(model, guidance=3.0))
    assert not np.array_equal(drawn(model, guidance=3.0), plain)


def test_guidance_is_that_of_its_formula(model: Path) -> None:
    unet, scheduler = load(model)
    x = torch.from_numpy(generator(0, "x").standard_normal((2, 1, 8, 8), dtype=np.float32))
    labels = torch.tensor([3, 4])
    step = Step(unet, scheduler, x, torch.tensor(500), labels, 10, 1.5, 0, 1, 0)
    with torch.inference_mode():
        told, not_told = unet(x, 500, labels).sample, unet(x, 500, torch.tensor([10, 10])).sample
        assert torch.allclose(guided(step), 2.5 * told - 1.5 * not_told, atol=1e-6)


def test_ddim_is_diffusers(model: Path) -> None:
    """Step by step by hand, as its authors write it (Song et al. 2021, eq. 12), of a model that predicts v."""
    unet, scheduler = load(model)
    a = scheduler.alphas_cumprod
    times = np.round(np.arange(1000, 0, -250)).astype(int) - 1
    x = torch.from_numpy(generator(3, "image", 0).standard_normal((1, 1, 8, 8), dtype=np.float32))
    with torch.inference_mode():
        for t in times.tolist():
            v = unet(x, t, torch.tensor([0])).sample
            image = (a[t].sqrt() * x - (1 - a[t]).sqrt() * v).clamp(-1, 1)
            noise = a[t].sqrt() * v + (1 - a[t]).sqrt() * x
            before = a[t - 250] if t >= 250 else torch.tensor(1.0)
            x = before.sqrt() * image + (1 - before).sqrt() * noise
    mine = drawn(model, 1, chunk=1)
    assert abs(mine[0, ..., 0].astype(int) - np.rint((x[0, 0].clamp(-1, 1).numpy() + 1) * 127.5)).max() <= 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        Experiment(compose(["domain=images", *overrides]))
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["recipe.bias=0"], "recipe.bias=0.0: must be in (0, 1]"),
        (["recipe.bias=0.5", "recipe.guidance=1"], "recipe.bias=0.5: must be 1 beside recipe.guidance=1.0"),
        (["recipe.scheduler=dimm"], "recipe.scheduler=dimm: unknown; did you mean ddim?"),
        (["recipe.scheduler=euler", "recipe.eta=1"], "recipe.eta=1.0: must be 0 with recipe.scheduler=euler"),
        (["model.channels=[10]"], "model.channels=[10]: must be multiples of model.groups=8"),
        (["model.timesteps=10"], "recipe.steps=20: must be at most 10, the timesteps of the model's noise"),
        (["recipe.chunk=100000"], "recipe.chunk=100000: must be from 1 to 4096"),
        (["model.channels=[8,8,8,8,8]", "domain/corpus=digits"], "16 divides the 8 pixels a side"),
        (["model.attention=4"], "model.attention=4: must be 0 to 3, a number of levels"),
        (["model.head_width=64", "model.attention=2"], "a divisor of model.channels=[16, 32, 64] where"),
        (["runtime.strategy=fsdp"], "runtime.strategy=fsdp: splits the weights"),
        (
            ["domain/corpus=folder", "domain.corpus.path=x"],
            "derived from ImageCorpus; use domain/corpus=digits, idx, image_datasets, image_folder, nouns, sprites",
        ),
        (["domain/corpus=image_folder", "domain.corpus.path=nowhere"], "is no folder; give a folder of images"),
        (
            ["domain/corpus=idx", "domain.corpus.images=x", "domain.corpus.labels_file=y"],
            "cannot be read (No such file",
        ),
        (["metrics=[heldout]"], "needs records that are documents"),
        (["domain.test_share=0.99", "domain.validation_share=0.02"], "less than 1 together"),
        (["trainer=fixed_steps"], "is no trainer of domain=images, which takes Diffusion; use trainer=diffusion"),
        (["model=llama"], "is no model of domain=images"),
    ],
    ids=str,
)
def test_bad_options_are_refused(overrides: list[str], said: str, project: Path) -> None:
    assert said in refused(*overrides)


def test_bad_folders_are_refused(tmp_path: Path, project: Path) -> None:
    def of(root: Path) -> str:
        return refused("domain/corpus=image_folder", f"domain.corpus.path={root}", "domain.corpus.side=8")

    assert "is the only class; give at least two" in of(folder_of(tmp_path / "one", {"cats": 5}))
    beside = folder_of(tmp_path / "beside", {"cats": 2, "dogs": 2})
    shutil.copyfile(beside / "cats/0.png", beside / "0.png")
    assert "holds images beside folders of images (0.png)" in of(beside)
    shutil.rmtree(beside / "dogs")  # which names the remedy, and not that cats is the only class
    assert "holds images beside folders of images (0.png)" in of(beside)
    none = tmp_path / "none"
    none.mkdir()
    assert "holds no images (.png, " in of(none)
    torn = folder_of(tmp_path / "torn", {"cats": 2, "dogs": 2})
    (torn / "dogs/1.png").write_bytes((torn / "dogs/1.png").read_bytes()[:60])
    assert "1.png" in of(torn)
    gone = folder_of(tmp_path / "gone", {"cats": 2, "dogs": 2})
    (gone / "dogs/2.png").symlink_to("nowhere")
    assert "dogs/2.png: cannot be read (No such file" in of(gone)
    pipe = folder_of(tmp_path / "pipe", {"cats": 2, "dogs": 2})
    os.mkfifo(pipe / "cats/2.png")
    assert "cats/2.png: is no file; replace it" in of(pipe)
    loop = folder_of(tmp_path / "loop", {"cats": 2, "dogs": 2})
    (loop / "dogs/again").symlink_to(loop)
    assert "dogs/again: is a link to a folder that it is in" in of(loop)


def test_a_class_may_be_a_link(tmp_path: Path) -> None:
    """As in data sets that were put together of others: a class that is left out would be left out in silence."""
    folder_of(tmp_path / "elsewhere", {"many": 5})
    root = folder_of(tmp_path / "mine", {"cats": 4})
    (root / "dogs").symlink_to(tmp_path / "elsewhere/many")
    source = ImageFolder(path=str(root), side=8)
    assert source.labels() == ["cats", "dogs"] and [p.label for p in source.pictures()] == [0] * 4 + [1] * 5


def test_bad_idx_files_are_refused(fashion: dict[str, Any], tmp_path: Path, project: Path) -> None:
    def of(**changes: Any) -> str:
        known = {**fashion, **changes}
        return refused("domain/corpus=idx", *(f"domain.corpus.{k}={known[k]}" for k in ("images", "labels_file")))

    few = idx(tmp_path / "few", np.arange(39, dtype=np.uint8) % 4)
    assert "and not a label for each of 40 images" in of(labels_file=few)
    one = idx(tmp_path / "one", np.full(40, 7, dtype=np.uint8))
    assert "'7': is the only class" in of(labels_file=one)
    torn = tmp_path / "torn"
    torn.write_bytes(Path(fashion["labels_file"]).read_bytes()[:-3])
    assert "ends 3 bytes before its head says" in of(labels_file=torn)
    huge = tmp_path / "huge"
    huge.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 2**32 - 1))
    assert "holds (4294967295,), and not a label for each" in of(labels_file=huge)
    everything = tmp_path / "everything"
    everything.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 8, 8))
    assert "ends 4294967295 bytes before its head says" in of(images=everything, labels_file=huge)
    longer = tmp_path / "longer"
    longer.write_bytes(Path(fashion["labels_file"]).read_bytes() + b"x")
    assert "goes on behind what its head says" in of(labels_file=longer)
    raw = gzip.decompress(Path(fashion["images"]).read_bytes())
    longer.write_bytes(raw + b"x")
    with pytest.raises(UserError, match=r"domain\.corpus\.images=.*longer: goes on behind"):
        Images(corpus={**fashion, "images": str(longer)}).prepare(tmp_path / "data")
    text = tmp_path / "text"
    text.write_text("no idx at all")
    assert "is no idx file of bytes" in of(images=text)
    solid = idx(tmp_path / "solid", np.zeros((40, 1, 1), dtype=np.uint8))
    assert "holds (40, 1, 1), and not a label for each" in of(labels_file=solid)
    wide = idx(tmp_path / "wide", np.zeros((40, 8, 9), dtype=np.uint8))
    assert "and not [n, side, side] of images" in of(images=wide)


def test_pickled_weights_are_refused(model: Path, tmp_path: Path, project: Path) -> None:
    held = tmp_path / "saved"
    shutil.copytree(model, held)
    mine = ["domain/corpus=digits", "model=saved_unet", f"model.path={held}"]
    Experiment(compose(["domain=images", *mine]))
    assert "has sample_size=8, and the images of the domain 32" in refused(*mine[1:])
    (held / "diffusion_pytorch_model.safetensors").rename(held / "diffusion_pytorch_model.bin")
    assert "holds only pickled weights (diffusion_pytorch_model.bin), which run code" in refused(*mine)


BLOCKS = "down_block_types"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"block_out_channels": [8, 10**9]}, "cannot be loaded ("),
        ("config.json", {"layers_per_block": 10**6}, "layers_per_block=1000000, and 145 weights"),
        ("config.json", {"block_out_channels": [8, 24]}, "(16,), and (24,) by config.json"),
        ("config.json", {"num_class_embeds": 5}, "class_embedding.weight is (11, 32), and (5, 32) by config.json"),
        ("config.json", {BLOCKS: ["None", "DownBlock2D"]}, "cannot be loaded ("),
        ("config.json", {"sample_size": [8, 8]}, "has sample_size=[8, 8], and the images of the domain 8"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}, "num_train_timesteps=10000000000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "x"}, "num_train_timesteps=x, and not 2 to 10000"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10}, "recipe.steps=20: must be at most 10"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type=sample, and none of"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "x"}, "timestep_spacing=x, and none of leading"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "are no noise of 1000 timesteps"),
        ("scheduler/scheduler_config.json", [], "cannot be loaded ("),
    ],
    ids=str,
)
def test_a_saved_model_is_looked_at_before_any_work(
    file: str, change: Any, said: str, model: Path, tmp_path: Path, project: Path
) -> None:
    """By names and shapes: what a config says may be larger than any memory."""
    held = tmp_path / "saved"
    shutil.copytree(model, held)
    before = json.loads((held / file).read_text())
    (held / file).write_text(json.dumps({**before, **change} if change else change))
    assert said in refused("domain/corpus=digits", "model=saved_unet", f"model.path={held}")


def test_weights_that_are_none_are_refused_before_any_work(model: Path, tmp_path: Path, project: Path) -> None:
    held = tmp_path / "saved"
    shutil.copytree(model, held)
    weights = held / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for raw in (whole[:-8], b"", b"\xff" * 8 + b"{}", b"\x80\x04pickled"):
        weights.write_bytes(raw)
        why = refused("domain/corpus=digits", "model=saved_unet", f"model.path={held}")
        assert "cannot be loaded (Error while deserializing header" in why and "save it with diffusers again" in why


def test_more_images_than_memory_holds_are_refused(model: Path, fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genloss.domains.images.sampling.memory", lambda device: 1e6)
    with pytest.raises(UserError, match=r"recipe\.chunk=400: 400 images at once take 0 GB, and there are 0; lower it"):
        drawn(model, 1, chunk=400, runtime=Runtime(workers=1))
    monkeypatch.setattr("genloss.language.training.memory", lambda device: 1e6)
    with pytest.raises(UserError, match=r"trainer\.batch=32: the residual blocks of 32 images take"):
        fit("large", Diffusion(steps=1, batch=32))


def test_a_damaged_model_is_refused(model: Path, tmp_path: Path) -> None:
    held = tmp_path / "saved"
    shutil.copytree(model, held)
    weights = held / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be loaded"):
        load(held)


def test_a_saved_model_is_what_training_begins_from(fit, model: Path, tmp_path: Path) -> None:
    """With a rate of nothing it stays what it was; of other classes it is refused."""
    still = Diffusion(steps=1, batch=8, lr=1e-12, weight_decay=0.0, ema=0.0)
    folder, _ = fit("a", still, model=SavedUNet(path=str(model)))
    before, after = load(model)[0].state_dict(), load(folder / "model")[0].state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    said = json.loads((tmp_path / "a/model/config.json").read_text())
    assert said == json.loads((model / "config.json").read_text())
    data = tmp_path / "data"
    data.mkdir()
    (data / "labels.json").write_text("[]")
    with pytest.raises(UserError, match=r"has num_class_embeds=11, and the data 0 classes"):
        fit("b", still, model=SavedUNet(path=str(model)), data=data)


def test_guidance_needs_classes(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "bare", {".": 12})
    domain = build(
        {
            "_target_": "genloss.domains.images.Images",
            "corpus": {"_target_": "genloss.domains.images.corpora.ImageFolder", "path": str(root), "side": 8},
        },
        Images,
        "domain",
    )
    domain.prepare(tmp_path / "data")
    assert records.read(tmp_path / "data/train.parquet")["label"].to_pylist() == [-1] * 10
    trainer, out = Diffusion(steps=2, batch=4), tmp_path / "out"
    out.mkdir()
    options = {"side": 8, "channels": 3}
    shards = [tmp_path / "data/train.parquet"]
    trainer.train(Fit(TINY, trainer, tmp_path / "data", shards, [1.0], None, 0, out, options))
    assert np.concatenate(list(sample(out / "model", 3, seed=0, steps=2, chunk=2))).shape == (3, 8, 8, 3)
    with pytest.raises(UserError, match=r"recipe.guidance=1.0: needs classes, and this model knows none"):
        list(sample(out / "model", 3, seed=0, guidance=1.0))
    with pytest.raises(UserError, match=r"are to be -1 to -1, one an image"):
        list(sample(out / "model", 3, [1, 1, 1], seed=0))
