"""Same config, same bytes, however it is carried out; and what arms have in common is computed once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from genloss.core.places import load_params
from genloss.core.store import Store
from support import Project, hashes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Project, Path]:
    """A finished run of two rounds."""
    home = Project.make(tmp_path_factory.mktemp("base") / "project")
    return home, home.ok("run", *tiny).folder


def test_run_directory(base: tuple[Project, Path]) -> None:
    home, folder = base
    names = {str(p.relative_to(folder)) for p in folder.glob("rounds/*/*")}
    for n in ("01", "02"):
        expected = [
            "generated.parquet",
            "kept.parquet",
            "rejected.parquet",
            "train",
            "model",
            "metrics.json",
            "manifest.json",
        ]
        assert {f"rounds/{n}/{name}" for name in expected} <= names
    assert {f"rounds/00/{name}" for name in ("train", "model", "metrics.json", "manifest.json")} <= names
    metrics = json.loads((folder / "rounds/02/metrics.json").read_text())
    assert all(isinstance(value, float) for value in metrics.values())
    manifest = json.loads((folder / "rounds/02/manifest.json").read_text())
    found = hashes(folder)
    for stage in ("generate", "curate", "mix", "train"):
        for name, digest in manifest["stages"][stage]["files"].items():
            assert found[f"rounds/02/{name}"] == digest
    # the run directory, the store and DVC's cache hold one copy
    path = folder / "rounds/02/model/model.safetensors"
    assert path.samefile(Store(home.store).blob(manifest["stages"]["train"]["files"]["model/model.safetensors"]))
    assert any(path.samefile(cached) for cached in home.root.glob(".dvc/cache/files/md5/*/*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_same_bytes_from_an_empty_store(
    base: tuple[Project, Path], tmp_path: Path, tiny: list[str], workers: int
) -> None:
    again = Project.make(tmp_path / "again")
    folder = again.ok("run", *tiny, f"runtime.workers={workers}").folder
    assert folder.name == base[1].name  # how it is run is no part of what it is
    assert hashes(folder) == hashes(base[1])


def test_another_seed_is_other_data(base: tuple[Project, Path], tiny: list[str]) -> None:
    home, folder = base
    other = hashes(home.ok("run", *tiny, "seed=1").folder)
    mine = hashes(folder)
    differing = {name for name in mine if mine[name] != other.get(name)}
    assert {"rounds/00/model/model.safetensors", "rounds/01/generated.parquet"} <= differing
    assert not any(name.startswith("data/") for name in differing)


def test_run_directory_resumes_without_its_store(base: tuple[Project, Path], tmp_path: Path, tiny: list[str]) -> None:
    """A directory that came by copy is as good as one that was computed here."""
    _, folder = base
    home = Project.make(tmp_path / "elsewhere")
    shutil.copytree(folder, home.root / "runs" / folder.name)
    shutil.rmtree(home.root / "runs" / folder.name / "rounds" / "02")
    assert home.ok("run", *tiny).folder.name == folder.name
    assert hashes(home.root / "runs" / folder.name) == hashes(folder)


ARMS = ["mixing=replace,accumulate", "curation=none,dedup", "rounds=1"]


def check_sharing(home: Project, sweep: Path) -> dict[str, dict[str, str]]:
    arms = [json.loads(p.read_text()) for p in sorted((sweep / "arms").glob("*.json"))]
    assert len(arms) == 4 and {a["state"] for a in arms} == {"finished"}
    folders = [(sweep / a["dir"]).resolve() for a in arms]
    keys = [json.loads((f / "rounds/00/manifest.json").read_text())["stages"]["train"]["key"] for f in folders]
    assert len(set(keys)) == 1
    assert home.stages()["data"] == 1
    assert home.stages()["generate"] == 1  # the four models 1 learn from what the one model 0 wrote
    assert home.stages()["train"] <= 1 + 4  # fewer where `dedup` drops nothing
    found = {}
    for folder in folders:
        cfg = load_params(folder / "params.yaml")
        found[f"{cfg.mixing.name} {list(cfg.curation)}"] = hashes(folder)
    return found


def test_round_0_is_trained_once_serially_and_in_parallel(tmp_path: Path, tiny: list[str]) -> None:
    serial, parallel = Project.make(tmp_path / "serial"), Project.make(tmp_path / "parallel")
    one = check_sharing(serial, serial.ok("run", "-m", *tiny, *ARMS).folder)
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    result = parallel.spawn("genloss", "run", "-m", *tiny, *ARMS, *launcher)
    assert result.code == 0, result.err
    two = check_sharing(parallel, result.folder)
    assert one == two
    assert serial.stages() == parallel.stages()
    # every stage that ran is in the store once, and no lock or scratch was left behind for another to trip over
    assert not list(parallel.store.glob("scratch/*"))


def test_a_grammar_is_what_is_written(tmp_path: Path, tiny: list[str]) -> None:
    """recipe.constraint.lark from the command line, by the round's records; curation by the same form keeps them."""
    import pyarrow.parquet as pq

    home = Project.make(tmp_path / "project")
    grammar = 'start: WORD (" " WORD)*\nWORD: /[a-z]{1,7}/'
    words = "{_target_: genloss.language.checkers.Pattern, pattern: '[a-z]{1,7}( [a-z]{1,7})*'}"
    lark = f"+recipe.constraint.lark='{grammar}'"
    curation = [
        "curation=format",
        "~curation.format.checks.length",
        "~curation.format.checks.prose",
        f"+curation.format.checks.words={words}",
    ]
    folder = home.ok("run", *tiny, lark, *curation, "rounds=1").folder
    assert load_params(folder / "params.yaml").recipe.constraint.lark == grammar
    table = pq.read_table(folder / "rounds/01/generated.parquet")
    kept = set(pq.read_table(folder / "rounds/01/kept.parquet")["text"].to_pylist())
    ended = [
        text for text, end in zip(table["text"].to_pylist(), table["finish"].to_pylist(), strict=True) if end == "end"
    ]
    assert len(set(ended)) > 3 and set(ended) <= kept
