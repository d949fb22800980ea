"""FABRIC's sessions: preferences, who gives feedback, the recipe, the metric, and runs of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import DROPPED, HISTORY, Inputs
from genloss.core.errors import UserError
from genloss.curate import Context
from genloss.domains.images import Images, sprites
from genloss.domains.images.pictures import encode
from genloss.domains.images.sampling import sample
from genloss.evaluate import Evidence
from genloss.experiment import Experiment
from genloss.systems.fabric.curator import SESSION, Clicks, Preferred
from genloss.systems.fabric.metric import Liking, diversity
from genloss.systems.fabric.preferences import Brightness, Factors, Hue, Ink, Resemblance
from genloss.workflow.compose import compose
from support import Project, undocumented

TARGET = {"shape": "star", "colour": "cyan"}
FABRIC = "genloss.systems.fabric.preferences"
TINY = [
    "experiment=fabric",
    "hydra.mode=RUN",
    "size=64",
    "trainer.steps=4",
    "trainer.batch=8",
    "model.channels=[8,16]",
    "recipe.n=3",
    "recipe.sessions=2",
    "recipe.label=3",
    "recipe.steps=3",
    "rounds=3",
    "tracking=none",
]
DOMAIN = Images(corpus={"_target_": "genloss.domains.images.corpora.Sprites", "n": 200})


def drawn(**factors: str) -> np.ndarray:
    plain = {"shape": "bar", "colour": "red", "size": "large", "x": "middle", "y": "middle", "rotation": "upright"}
    named = plain | {"texture": "solid"} | factors
    return sprites.draw({k: np.array([sprites.FACTORS[k].index(v)]) for k, v in named.items()})


def images(*pictures: np.ndarray, sessions: list[int] | None = None) -> pa.Table:
    payload = {"image": pa.array(encode(np.concatenate(pictures)), pa.binary()), "label": [3] * len(pictures)}
    table = records.make_table(payload, origin=records.SYNTHETIC, generation=1, recipe="fabric")
    return table.append_column(SESSION, pa.array(sessions or [0] * len(table), pa.int32()))


# -- preferences -------------------------------------------------------------------------------------------------------


def test_preferences_are_between_0_and_1_and_say_what_they_mean() -> None:
    star, red, moved = drawn(**TARGET), drawn(shape="star"), drawn(**TARGET, x="right")
    black, white = np.zeros_like(star), np.full_like(star, 255)
    some = np.concatenate([star, red, moved, black, white])
    assert Brightness().scores(some)[-2:] == pytest.approx([0, 1])
    assert Brightness().scores(some[..., :1])[-2:] == pytest.approx([0, 1])
    assert Ink().scores(np.concatenate([black, white])) == pytest.approx([0, 1])
    half = np.concatenate([np.full((1, 4, 8, 1), v, np.uint8) for v in (127, 128)], axis=1)
    assert Ink().scores(half) == pytest.approx([0.5]) and Ink(0.9).scores(half) == 0
    hue = Hue([51, 255, 255]).scores(some)  # cyan as sprites have it
    assert hue == pytest.approx([1, 0.6 / np.sqrt(1.08 * 2.04), 1, 0, 2.2 / np.sqrt(3 * 2.04)], abs=0.01)
    assert Factors(TARGET).scores(some) == pytest.approx([1, 0.5, 1, 0, 0])
    alike = Resemblance(TARGET).scores(some)
    assert alike[0] == pytest.approx(1) and alike[3] == 0 and 0 < alike[2] < 0.9 and alike[1] < 0.5
    for of in (Brightness(), Hue(), Ink(), Factors(TARGET), Resemblance(TARGET)):
        assert ((of.scores(some) >= 0) & (of.scores(some) <= 1)).all()


def test_a_hidden_target_may_be_a_picture(tmp_path: Path) -> None:
    (path := tmp_path / "target.png").write_bytes(encode(drawn(**TARGET))[0])
    scores = Resemblance(path=str(path)).scores(np.concatenate([drawn(**TARGET), drawn(**TARGET, x="left")]))
    assert scores == pytest.approx(
        Resemblance(TARGET).scores(np.concatenate([drawn(**TARGET), drawn(x="left")])), abs=1
    )
    assert scores[0] == pytest.approx(1) and scores[1] < 0.9


@pytest.mark.parametrize(
    ("experiment", "override", "says"),
    [
        (
            "fabric",
            "curation.preferred.liked=9",
            "liked=9: with curation.preferred.disliked=1 is more than recipe.n=8 images",
        ),
        ("fabric", "curation.preferred.liked=0", "curation.preferred.liked=0: must be at least 1"),
        ("fabric", "curation=none", "curation=none: gives no feedback; set curation=preferred, or curation=clicks"),
        ("fabric", "recipe.guidance=0", "recipe.guidance=0.0: has no pass for dislikes to act in"),
        ("fabric", "recipe.start=0.9", "recipe.start=0.9: must be a share of the steps, at most recipe.end=0.8"),
        ("fabric", "recipe.weight=-1", "recipe.weight=-1.0: must be in [0, 100]"),
        ("fabric", "recipe.sides=left", "recipe.sides=left: unknown"),
        ("fabric", "recipe.n=0", "recipe.n=0: must be at least 1"),
        ("fabric", "recipe.scheduler=euler recipe.eta=1", "recipe.eta=1.0: must be 0 with recipe.scheduler=euler"),
        (
            "fabric",
            "model.timesteps=5 recipe.steps=6",
            "recipe.steps=6: must be at most 5, the timesteps of the model's noise",
        ),
        ("fabric", "model.attention=0", "leaves a UNet without the self-attention that FABRIC works through"),
        (
            "fabric/person",
            "curation.clicks.liked=[12]",
            "curation.clicks.liked=[12]: must be numbers of images, of which",
        ),
        (
            "fabric/person",
            "rounds=1 +schedule.1.curation.clicks.disliked=[99]",
            "schedule.1.curation.clicks.disliked=[99]: must be numbers of images, of which a round has 12",
        ),
        ("fabric", "trainer.start=base", "trainer.start=base: must be previous"),
        ("fabric", "+metrics.preference.preference.threshold=1", "preference.preference.threshold=1.0: must be"),
        ("fabric/sprites", "recipe.label=-1", "recipe.label=-1: must be the number of a class"),
        ("fabric/sprites", "curation.preferred.preference.colour=[0,0,0]", "preference.colour=[0, 0, 0]: must be red"),
        ("fabric/sprites", "metrics.preference.preference.factors.shape=sta", "factors.shape=sta: unknown"),
        ("fabric/sprites", "+metrics.preference.target.path=a.png", "metrics.preference.target.factors="),
        ("fabric/sprites", "domain/corpus=digits", "colour=[0, 255, 255]: needs images in colour"),
    ],
)
def test_configs_that_are_refused(experiment: str, override: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        Experiment(compose([f"experiment={experiment}", *override.split()]))
    assert says in str(refused.value)


def test_the_judge_must_not_be_who_gives_the_feedback() -> None:
    same = f"curation.preferred.preference._target_={FABRIC}.Ink"
    with pytest.raises(UserError, match=r"^metrics\.preference\.preference=Ink: is also what gives the feedback"):
        Experiment(compose(["experiment=fabric", same]))
    Experiment(compose(["experiment=fabric", same, "+curation.preferred.preference.threshold=0.2"]))  # is another one
    for experiment in ("fabric", "fabric/sprites", "fabric/recursion"):
        Experiment(compose([f"experiment={experiment}"]))


# -- feedback ----------------------------------------------------------------------------------------------------------


def context() -> Context:
    return Context(DOMAIN, 1, 0, Path(), Inputs({}))


def test_the_best_of_each_session_is_liked_and_the_worst_disliked() -> None:
    dark, grey, light = (np.full((1, 32, 32, 3), v, np.uint8) for v in (10, 100, 250))
    table = images(grey, dark, light, light, light, dark, sessions=[0, 0, 0, 1, 1, 1])
    said = Preferred({"_target_": f"{FABRIC}.Brightness"}).decide(table, context())
    assert said.keep.tolist() == [False, False, True, True, False, False]  # of equal ones the first
    assert said.reason.tolist()[:2] == ["left", "disliked"] and said.reason.tolist()[4:] == ["left", "disliked"]
    assert said.score == pytest.approx(np.array([100, 10, 250, 250, 250, 10]) / 255)
    alone = Preferred({"_target_": f"{FABRIC}.Brightness"}, disliked=0).decide(table.drop_columns([SESSION]), context())
    assert alone.keep.sum() == 1 and "disliked" not in alone.reason.tolist()
    few = Preferred({"_target_": f"{FABRIC}.Brightness"}, liked=2, disliked=2).decide(table, context())
    assert few.keep.tolist() == [True, False, True, True, True, False]  # none is both


def test_clicks() -> None:
    table = images(*[drawn()] * 4)
    said = Clicks([2, 0], [3]).decide(table, context())
    assert said.keep.tolist() == [True, False, True, False] and said.reason.tolist()[1::2] == ["left", "disliked"]
    for liked, disliked, says in (
        ([], [1], r"curation\.clicks\.liked=\[\]: likes none of the 4 images of round 1; like at least one"),
        ([4], [], r"curation\.clicks\.liked=\[4\]: round 1 has 4 images"),
        ([0], [7], r"curation\.clicks\.disliked=\[7\]: round 1 has 4 images"),
    ):
        with pytest.raises(UserError, match=says):
            Clicks(liked, disliked).decide(table, context())
    for liked, disliked in (([1, 1], []), ([-1], []), ([1], [1])):
        with pytest.raises(UserError, match="must be"):
            Clicks(liked, disliked)


# -- what is measured --------------------------------------------------------------------------------------------------


def test_diversity_is_that_of_all_pairs() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    flat = pixels.reshape(7, -1).astype(float)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(flat, 2)]
    assert diversity(pixels) == pytest.approx(1 - np.mean(cosines))
    assert diversity(pixels[:1]) is None and diversity(np.stack([pixels[0]] * 3)) == pytest.approx(0, abs=1e-12)


def test_what_is_measured(tmp_path: Path) -> None:
    star, red, other = drawn(**TARGET), drawn(shape="star"), drawn()
    real = images(*[red] * 4)
    for name in ("test", "validation", "train"):
        records.write(real, tmp_path / f"{name}.parquet")
    records.write(images(red, other, red, red, sessions=[0, 0, 1, 1]), tmp_path / "generated.parquet")
    records.write(images(star, sessions=[1]), tmp_path / "kept.parquet")
    records.write(images(other, other, sessions=[0, 1]), tmp_path / "rejected.parquet")
    inputs = Inputs({HISTORY: (tmp_path / "kept.parquet",), DROPPED: (tmp_path / "rejected.parquet",)})
    known: dict[str, Any] = {"domain": DOMAIN, "seed": 0, "size": 8, "n_real": 4, "data": tmp_path}
    metric = Liking(
        {"_target_": f"{FABRIC}.Factors", "factors": TARGET}, {"_target_": f"{FABRIC}.Resemblance", "factors": TARGET}
    )
    evidence = Evidence(
        **known, round=2, model=Path(), round0=Path(), generated=tmp_path / "generated.parquet", inputs=inputs
    )
    found = metric.measure(evidence)
    assert found["preference"] == pytest.approx((0.25 + 0.5) / 2)
    assert (found["preference_min"], found["preference_max"]) == (0.25, 0.5)
    assert found["preference_max_so_far"] == 0.75  # session 0 had a red star, session 1 a cyan one before
    assert found["preference_floor"] == 0.5 and found["pixel_diversity_floor"] == pytest.approx(0, abs=1e-9)
    assert found["pixel_diversity"] == pytest.approx(diversity(np.concatenate([red, other])) / 2)  # type: ignore[operator]
    assert not undocumented(list(found))
    assert found["target_similarity"] == pytest.approx(
        Resemblance(TARGET).scores(np.concatenate([red, other, red, red])).mean()
    )
    own = Liking(metric.preference).measure(evidence)  # the target is a real image of the class: all are red stars
    assert own["target_similarity_max"] == pytest.approx(1) and own["target_similarity_floor"] == pytest.approx(1)
    first = metric.measure(Evidence(**known, round=0, model=Path(), round0=Path(), generated=None))
    assert set(first) == {"preference_floor", "target_similarity_floor", "pixel_diversity_floor"}


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Path]]:
    project = Project.make(tmp_path_factory.mktemp("fabric") / "project")
    found = {}
    for name, more in {
        "both": [],
        "none": ["recipe.weight=0"],
        "never": ["recipe.end=0"],
        "liked": ["recipe.sides=liked"],
        "latest": ["recipe.remember=1"],
        "dropout": ["recipe.dropout=1", "recipe.weight=0"],
    }.items():
        before = set((project.root / "runs").glob("*-*"))
        project.ok("run", *TINY, *more)
        (found[name],) = set((project.root / "runs").glob("*-*")) - before
    return project, found


def made(run: Path, n: int, file: str = "generated") -> pa.Table:
    return records.read(run / f"rounds/{n:02d}/{file}.parquet")


def test_without_weight_a_session_is_the_plain_sampler(arms: tuple[Project, dict[str, Path]]) -> None:
    _, found = arms
    for n in (1, 2, 3):
        table, seed = made(found["none"], n), json.loads((found["none"] / f"rounds/{n:02d}/manifest.json").read_text())
        plain = sample(
            found["none"] / f"rounds/{n - 1:02d}/model",
            6,
            [3] * 6,
            seed=seed["stages"]["generate"]["seed"],
            steps=3,
            guidance=2.0,
            chunk=3,
        )
        assert table.column("image").to_pylist() == encode(np.concatenate(list(plain)))
        assert made(found["never"], n).column("image").equals(table.column("image"))
        assert made(found["both"], n).column("image").equals(table.column("image")) == (n == 1)


def test_records_know_their_references(arms: tuple[Project, dict[str, Path]]) -> None:
    _, found = arms
    for n in (1, 2, 3):
        for name, sides, most in (
            ("both", ("kept", "rejected"), 99),
            ("liked", ("kept",), 99),
            ("latest", ("kept", "rejected"), 1),
        ):
            table = made(found[name], n)
            assert table.column(SESSION).to_pylist() == [0, 0, 0, 1, 1, 1]
            for session in (0, 1):
                expected = []
                for side in sides:
                    ids = []
                    for j in range(1, n):
                        for row in made(found[name], j, side).to_pylist():
                            if row[SESSION] == session and (side == "kept" or row["reason"] == "preferred: disliked"):
                                ids.append(row["id"])
                    expected += ids[-most:]
                for row in table.to_pylist()[3 * session : 3 * session + 3]:
                    assert row["parents"] == expected
    counts = json.loads((found["both"] / "rounds/03/metrics.json").read_text())
    assert counts["generate/liked"] == counts["generate/disliked"] == 4


def test_the_model_stays(arms: tuple[Project, dict[str, Path]]) -> None:
    _, found = arms
    models = [
        (found["both"] / f"rounds/{n:02d}/model/diffusion_pytorch_model.safetensors").read_bytes() for n in range(4)
    ]
    assert len(set(models)) == 1


def test_dropout_takes_the_class(arms: tuple[Project, dict[str, Path]]) -> None:
    _, found = arms
    assert not made(found["dropout"], 1).column("image").equals(made(found["none"], 1).column("image"))


def test_a_session_is_verified_and_replayed(arms: tuple[Project, dict[str, Path]]) -> None:
    project, found = arms
    assert project.ok("verify", str(found["both"])).code == 0
    again = Project.make(project.root.parent / "again")
    again.ok("run", *TINY)
    (other,) = (again.root / "runs").glob("*-*")
    for n in (1, 2, 3):
        for file in ("generated", "kept", "rejected"):
            path = f"rounds/{n:02d}/{file}.parquet"
            assert (other / path).read_bytes() == (found["both"] / path).read_bytes()


def test_what_is_liked_is_what_the_next_model_learns(tmp_path: Path) -> None:
    project = Project.make(tmp_path / "project")
    small = [o for o in TINY if not o.startswith(("experiment", "recipe.n", "rounds", "hydra"))]
    result = project.call(
        "run", "experiment=fabric/recursion", *small, "rounds=2", "recipe.n=4", "metrics=[preference]",
        "curation.preferred.liked=2", "curation.preferred.disliked=1",
    )  # fmt: skip
    assert result.code == 0, result.err
    (run,) = (project.root / "runs").glob("*-*")
    mixed = json.loads((run / "rounds/02/train/mix.json").read_text())["shards"]
    assert [s["realised"] for s in mixed] == [64, 4, 4]
    models = [(run / f"rounds/{n:02d}/model/diffusion_pytorch_model.safetensors").read_bytes() for n in range(3)]
    assert len(set(models)) == 3
