"""recipe=stable_diffusion: a tiny random StableDiffusionPipeline that diffusers has saved to disk draws a round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import Inputs, Runtime
from genloss.core.errors import UserError
from genloss.domains.images import Images
from genloss.domains.images.pictures import encode, load
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.systems.fabric.sampler import stable
from genloss.systems.fabric.stable import StableDiffusion, load_pipeline
from genloss.workflow.compose import compose
from support import Project
from test_fabric import tiny_pipeline
from test_images import SMALL as TINY_RUN

DIGITS = Images(corpus={"_target_": "genloss.domains.images.corpora.Digits"})
SMALL: dict[str, Any] = {"size": 16, "steps": 2, "chunk": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stable") / "pipeline"
    tiny_pipeline().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("digits")
    DIGITS.prepare(made)
    return made


@pytest.fixture
def request_of(data: Path, tmp_path: Path) -> Callable[[str], Request]:
    def of(scratch: str) -> Request:
        (tmp_path / scratch).mkdir()
        return Request(
            DIGITS, 1, 5, Path(), data, Inputs({}), tmp_path / scratch, Runtime(1), account=tmp_path / "account"
        )

    return of


def test_a_round(folder: Path, request_of: Callable[[str], Request], data: Path) -> None:
    """Each record is what the pipeline draws of its prompt from its own stream: of any number of records the same, and
    what a kill has left is not drawn again."""
    recipe = StableDiffusion(path=str(folder), n=7, **SMALL)
    request = request_of("seven")
    table, _ = recipe.generate(request)
    assert len(table) == 7 and DIGITS.pixels(table).shape == (7, 8, 8, 1)
    labels = table["label"].to_pylist()
    assert table["prompt"].to_pylist() == [f"a picture of {label}" for label in labels] and len(set(labels)) > 2
    assert table["recipe"].to_pylist() == ["stable_diffusion"] * 7
    fewer, _ = replace(recipe, n=3).generate(request_of("three"))
    assert fewer["image"].to_pylist() == table["image"].to_pylist()[:3]
    assert sorted(file.name for file in request.scratch.glob("chunk-*")) == [f"chunk-{i:08d}.parquet" for i in (0, 4)]

    pipe = load_pipeline(folder, "ddim", "cpu")
    told = table["prompt"].to_pylist()
    drawn = stable(pipe, [*told[4:], told[6]], 4, seed=5, first=4, guidance=6.5, steps=2, size=16)
    scaled = np.stack([load(png, size=8, channels=1) for png in encode(drawn[:3])])
    np.testing.assert_array_equal(scaled, DIGITS.pixels(table)[4:])

    first = request.scratch / "chunk-00000000.parquet"
    white = np.full((4, 8, 8, 1), 255, np.uint8)
    records.write(pa.table({"image": pa.array(encode(white), pa.binary())}), first)
    again, _ = recipe.generate(request)
    np.testing.assert_array_equal(DIGITS.pixels(again)[:4], white)
    assert again["image"].to_pylist()[4:] == table["image"].to_pylist()[4:]


def test_prompts_of_a_list(folder: Path, request_of: Callable[[str], Request]) -> None:
    texts = ["a cat", "a dog at night"]
    recipe = StableDiffusion(path=str(folder), n=8, prompts=texts, scheduler="euler", **SMALL)
    table, _ = recipe.generate(request_of("texts"))
    assert set(table["prompt"].to_pylist()) == set(texts) and set(table["label"].to_pylist()) == {-1}
    assert len(np.unique(DIGITS.pixels(table), axis=0)) == 8


def test_a_run(tmp_path: Path, folder: Path) -> None:
    """The command, and a UNet that learns what was drawn; where the folder lies is no part of the stage."""
    project = Project.make(tmp_path / "project")
    arm = project.ok(
        "run",
        *TINY_RUN,
        "rounds=1",
        "recipe=stable_diffusion",
        f"recipe.path={folder}",
        "recipe.size=16",
        "recipe.steps=1",
    ).folder
    assert records.count(arm / "rounds/01/generated.parquet") == 48
    stage = json.loads((arm / "rounds/01/manifest.json").read_text())["stages"]["generate"]
    assert "path" not in stage["config"]["recipe"] and stage["config"]["files"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(folder: Path, *more: str) -> str:
    overrides = ["domain=images", "domain/corpus=digits", "recipe=stable_diffusion", f"recipe.path={folder}", *more]
    with pytest.raises(UserError) as error:
        Experiment(compose(overrides))
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["recipe.prompt=a picture"], "a text with {label} in it, or give prompts"),
        (['recipe.prompts=["a cat"," "]'], "texts with words"),
        (["recipe.size=15"], "a multiple of 2"),
        (["recipe.size=4"], "at least the 8 pixels"),
        (["recipe.scheduler=euler", "recipe.eta=1"], "0 with recipe.scheduler=euler"),
        (["recipe.guidance=-1"], "at least 0"),
    ],
)
def test_bad_options_are_refused(folder: Path, overrides: list[str], line: str) -> None:
    assert line in refused(folder, *overrides)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    assert "holds no pipeline of diffusers" in refused(tmp_path)

    def changed(name: str, change: Callable[[Path], object]) -> Path:
        made = tmp_path / name
        shutil.copytree(folder, made)
        change(made)
        return made

    def index(**said: Any) -> Callable[[Path], None]:
        def change(made: Path) -> None:
            file = made / "model_index.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | said))

        return change

    def pickled(made: Path) -> None:
        (made / "unet/diffusion_pytorch_model.safetensors").rename(made / "unet/diffusion_pytorch_model.bin")

    xl = changed("xl", index(_class_name="StableDiffusionXLPipeline"))
    assert "holds a StableDiffusionXLPipeline; give the folder of a StableDiffusionPipeline" in refused(xl)
    foreign = changed("foreign", index(unet=["my_module", "MyUNet"]))
    assert "has MyUNet as its unet, and UNet2DConditionModel is what can be loaded" in refused(foreign)
    assert "pickled weights (unet/diffusion_pytorch_model.bin)" in refused(changed("pickled", pickled))
    empty = changed("empty", lambda made: (made / "vae/diffusion_pytorch_model.safetensors").unlink())
    assert "has no weights in vae" in refused(empty)
    bare = changed("bare", lambda made: shutil.rmtree(made / "scheduler"))
    assert "no readable scheduler/scheduler_config.json" in refused(bare)
    torn = changed("torn", lambda made: (made / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"x"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(torn, "ddim", "cpu")
