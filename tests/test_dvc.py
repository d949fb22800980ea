"""DVC: repro, push, pull, reuse of a prefix, what-if in an arm's folder, experiments, and commits under load."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from genloss.core.places import load_params
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.dvc import dvc_yaml
from support import REPOSITORY, Project, hashes


def plain_project(root: Path, **env: str) -> Project:
    """A project with a DVC root as the repository has it; found by its conf/, not by a variable."""
    home = Project.make(root, **env)
    del home.env["GENLOSS_PROJECT"]
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "src/genloss", root / "src/genloss", ignore=shutil.ignore_patterns("__pycache__"))
    return home


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Project, Path]:
    """A finished run of three rounds, not by DVC."""
    home = Project.make(tmp_path_factory.mktemp("base") / "project")
    return home, home.ok("run", *tiny, "rounds=3").folder


def test_committed_params_and_pipeline_are_current() -> None:
    assert (REPOSITORY / "params.yaml").read_text() == to_yaml(compose()), "run `genloss compose`"
    assert (REPOSITORY / "dvc.yaml").read_text() == dvc_yaml(REPOSITORY / "params.yaml", code=True), (
        "run `genloss compose`"
    )


def test_compose_check(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    assert home.call("compose", "--check").code == 1
    home.ok("compose")
    assert home.call("compose", "--check").code == 0
    assert home.call("compose", "--check", "rounds=9").code == 1


def test_compose_takes_options_outside_the_project(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    (tmp_path / "my conf/curation").mkdir(parents=True)
    half = "half:\n  _target_: genloss.curate.choose.Random\n  fraction: 0.5\n"
    (tmp_path / "my conf/curation/half.yaml").write_text(half)
    home.ok("compose", "--config-dir", "../my conf", "curation=[half]")
    assert list(load_params(home.root / "params.yaml").curation) == ["half"]
    refused = home.call("compose", "--config-dir", "nowhere", "curation=[half]")
    assert (refused.code, refused.err) == (2, "genloss: --config-dir=nowhere: is no folder\n")


def test_the_root_depends_on_packages_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package and a module below the project; neither one that lies elsewhere, nor what is installed."""
    curator = "from dataclasses import dataclass\nfrom genloss.curate.choose import Random\n"
    curator += "@dataclass\nclass Mine(Random):\n    share: float = 0.5\n"
    home = Project.make(tmp_path / "project")
    for path in ("project/ownlab/curators.py", "project/ownfile.py", "elsewhere/otherlab/curators.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(curator)
    (home.root / ".venv/lib/site-packages/someones").mkdir(parents=True)
    (home.root / ".venv/lib/site-packages/someones/curators.py").write_text(curator)
    for path in ("project", "elsewhere", "project/.venv/lib/site-packages"):
        monkeypatch.syspath_prepend(tmp_path / path)
    named = {"a": "ownlab.curators", "b": "ownfile", "c": "otherlab.curators", "d": "someones.curators"}
    home.ok("compose", *(f"+curation.{k}={{_target_: {module}.Mine}}" for k, module in named.items()))
    stages = yaml.safe_load((home.root / "dvc.yaml").read_text())["stages"]
    assert stages["round-0"]["deps"] == ["src/genloss", "ownfile.py", "ownlab"]
    assert stages["round"]["do"]["deps"][:3] == ["src/genloss", "ownfile.py", "ownlab"]
    assert "ownlab" not in dvc_yaml(home.root / "params.yaml", code=False)  # an arm's folder


def test_repro_from_nothing_adds_rounds_and_reuses_the_prefix(
    base: tuple[Project, Path], tmp_path: Path, tiny: list[str]
) -> None:
    home = plain_project(tmp_path / "project")
    home.dvc("config", "core.no_scm", "true")
    home.ok("compose", *tiny, "rounds=1")
    assert ran(home.dvc("repro")) == ["round-0", "round@01", "report"]
    assert hashes(home.root) == hashes(base[1], 1)
    assert "up to date" in home.dvc("repro")
    home.ok("compose", *tiny, "rounds=2")
    assert ran(home.dvc("repro")) == ["round@02", "report"]
    assert hashes(home.root) == hashes(base[1], 2)
    assert "heldout_bits_per_byte" in home.dvc("metrics", "show", "--md")
    assert "round@02" in home.dvc("dag", "--mermaid")
    home.dvc("plots", "show", "--out", "plots")
    assert "heldout_bits_per_byte" in (home.root / "plots/index.html").read_text()


def test_push_pull_and_what_if(base: tuple[Project, Path], tmp_path: Path, tiny: list[str]) -> None:
    there = plain_project(tmp_path / "there", GENLOSS_STORE=base[0].env["GENLOSS_STORE"])  # spares the computing
    there.git("init", "-q")
    there.dvc("remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    sweep = there.ok("run", "-m", *tiny, "rounds=3", "mixing=replace,accumulate").folder
    arms = [there.root / "runs" / p.name for p in sorted((there.root / "runs").glob("text-*"))]
    assert sweep.is_dir() and len(arms) == 2
    there.ok("push", str(sweep))
    clone = plain_project(tmp_path / "clone")
    there.git("add", "-f", f"--pathspec-from-file=runs/{sweep.name}/share.txt")  # as it says
    for name in there.spawn("git", "ls-files", "runs").out.split():
        (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(there.root / name, clone.root / name)
    clone.ok("pull", str(clone.root / "runs" / sweep.name))
    for arm in arms:
        copy = clone.root / "runs" / arm.name
        assert hashes(copy) == hashes(arm)
        assert "up to date" in clone.dvc("repro", cwd=copy)
        assert "up to date" in clone.dvc("status", cwd=copy)
    table = clone.ok("report", str(clone.root / "runs" / sweep.name)).out
    assert table.splitlines()[:5] == there.ok("report", str(sweep)).out.splitlines()[:5]
    copy = clone.root / "runs" / base[1].name
    before = hashes(copy)
    assert before == hashes(base[1])
    new = Path(clone.ok("compose", "--dir", str(copy), "+schedule.3.recipe.temperature=0.7").out.strip())
    assert new.parent == copy.parent and new != copy and json.loads((new / "what_if.json").read_text())["of"]
    assert ran(clone.dvc("repro", cwd=new)) == ["round@03", "report"]
    after = hashes(new)
    assert hashes(copy) == before and "up to date" in clone.dvc("status", cwd=copy)  # an arm of its own
    assert {n for n in before if before[n] != after.get(n)} >= {"rounds/03/generated.parquet"}
    assert {n for n in before if before[n] != after.get(n) and not n.startswith("rounds/03/")} == set()
    again = clone.ok("compose", "--dir", str(copy), "++schedule.3.recipe.temperature=0.7")  # the same arm
    assert Path(again.out.strip()) == new and "up to date" in clone.dvc("status", cwd=new)
    copy = Path(clone.ok("compose", "--dir", str(new), "rounds=2", "~schedule.3").out.strip())
    clone.dvc("repro", cwd=copy)
    assert not (copy / "rounds/03").exists()
    assert [line.split(",")[1] for line in (copy / "report/rounds.csv").read_text().splitlines()[1:]] == ["0", "1", "2"]
    (copy / "params.yaml").write_text((copy / "params.yaml").read_text().replace("prev: '01'", "prev: '00'"))
    refused = clone.spawn("genloss", "round", "2", cwd=copy)
    assert refused.code == 2 and "genloss compose --dir ." in refused.err


def test_an_edited_folder_is_not_taken_for_the_old_arm(
    base: tuple[Project, Path], tmp_path: Path, tiny: list[str]
) -> None:
    home = Project.make(tmp_path / "project", GENLOSS_STORE=base[0].env["GENLOSS_STORE"])
    folder = home.ok("run", *tiny).folder
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace("temperature: 1.0", "temperature: 0.7", 1))
    refused = home.call("run", *tiny)
    assert refused.code == 2 and "temperature" in refused.err and str(folder) in refused.err


def test_experiments_in_a_clone(base: tuple[Project, Path], tmp_path: Path, tiny: list[str]) -> None:
    origin = plain_project(tmp_path / "origin", GENLOSS_STORE=base[0].env["GENLOSS_STORE"])
    origin.ok("compose", *tiny, "rounds=2")
    origin.git("init", "-q")
    origin.git("add", ".")
    origin.git("commit", "-qm", "project")
    origin.git("clone", "-q", str(origin.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", dict(origin.env))
    settings = [part for override in tiny if not override.startswith("rounds") for part in ("-S", override)]
    clone.dvc("exp", "run", *settings, "-S", "rounds=1", "-n", "one")
    assert hashes(clone.root) == hashes(base[1], 1)
    assert "rounds" in clone.dvc("params", "diff")
    assert "one" in clone.dvc("exp", "show", "--csv")
    clone.dvc("exp", "run", *settings, "-S", "rounds=1", "-S", "mixing=accumulate", "--temp", "-n", "two")
    assert "two" in clone.dvc("exp", "show", "--csv")


def test_parallel_commits_share_a_cache(base: tuple[Project, Path], tmp_path: Path) -> None:
    """24 at a time, the number that failed most often when arms were stages of one DVC project."""
    from genloss.workflow import dvc as versioning

    home = Project.make(tmp_path / "project")
    folders = []
    for i in range(24):
        folder = home.root / "runs" / f"arm-{i}"
        shutil.copytree(base[1], folder, ignore=shutil.ignore_patterns(".dvc", "dvc.lock"))
        (folder / "rounds/03/rejected.parquet").unlink()
        (folder / "rounds/03/rejected.parquet").write_text(str(i))
        folders.append(folder)
    with home.here():
        for folder in folders:
            versioning.configure(folder)
            (folder / "dvc.yaml").write_text(dvc_yaml(folder / "params.yaml", code=False))
        began = time.monotonic()
        with ThreadPoolExecutor(len(folders)) as pool:
            codes = list(pool.map(lambda f: home.spawn(*versioning.COMMIT, cwd=f).code, folders))
        assert codes == [0] * len(folders)
        print(f"{len(folders)} commits in {time.monotonic() - began:.1f} s")
        assert all(versioning.committed(folder) for folder in folders)
    shared = [(folder / "rounds/01/generated.parquet").stat().st_ino for folder in folders]
    assert len(set(shared)) <= 2  # one copy in the cache, linked to by every arm (a race may leave another)
    for folder in folders[:2]:
        assert yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["round@03"]["outs"]
        assert "up to date" in home.dvc("status", cwd=folder)
