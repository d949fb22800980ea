"""The sweep as a Hydra sweeper: what Hydra offers works, with any launcher, and ends as our sweep or Hydra's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback

import genloss
from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.observatory.results import sweep_entries
from genloss.workflow.arm import headline
from genloss.workflow.sweep import expand
from support import REPOSITORY, Project

TINY = ["domain=gaussian", "size=20", "rounds=1", "tracking=none"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.make(tmp_path_factory.mktemp("sweep") / "project")


def names(sweep: Path) -> list[str]:
    """The arms of a sweep, in their order, all of them finished."""
    order = json.loads((sweep / "sweep.json").read_text())["arms"]
    notes = [json.loads((sweep / "arms" / f"{arm}.json").read_text()) for arm in order]
    assert {note["state"] for note in notes} == {"finished"}
    assert all((sweep / note["dir"] / "rounds/01/metrics.json").is_file() for note in notes)
    return [note["name"] for note in notes]


# -- expanding -----------------------------------------------------------------------------------------------------


def test_expanding() -> None:
    def of(*arguments: str, **params: str) -> list[list[str]]:
        return expand(OverridesParser.create(), params, arguments)

    assert of("a=1,2", "b=x") == [["a=1", "b=x"], ["a=2", "b=x"]]
    assert of("a=1,2", "b=3,4") == [[f"a={a}", f"b={b}"] for a in (1, 2) for b in (3, 4)]
    assert of("a=range(1,4)") == [["a=1"], ["a=2"], ["a=3"]]
    assert of("a=none,[x,y]", "~c") == [["a=none", "~c"], ["a=[x,y]", "~c"]]
    assert of("a=1,2", "a=3") == [["a=3"]]  # the last one holds, as in Hydra
    assert of("b=5", a="1,2") == [["a=1", "b=5"], ["a=2", "b=5"]]
    assert of("+a=5", a="1,2", b="x") == [["b=x", "+a=5"]]  # the command line comes before an experiment's params
    assert of() == [[]]
    with pytest.raises(UserError, match=r"a=interval\(0,1\)"):
        of("a=interval(0,1)")
    for endless in ("range(0,1000000000)", "shuffle(range(0,1000000000))", "range(0,1,0)", "range(0,1,1e-9)"):
        with pytest.raises(UserError, match="too many"):
            of(f"a={endless}")
    with pytest.raises(UserError, match="no values"):
        of("a=range(5,5)")
    with pytest.raises(UserError, match="1000000 arms"):
        of("a=range(0,1000)", "b=range(0,1000)")


# -- launchers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [[], JOBLIB])
def test_a_sweep_with_any_launcher(home: Project, launcher: list[str]) -> None:
    """In this process, and in workers that know nothing but their overrides."""
    command = ["run", "-m", *TINY, f"size={21 + len(launcher)}", "mixing=replace,accumulate", *launcher]
    result = home.ok(*command)
    assert result.out.splitlines()[-1] == f"sweep: {result.folder}"
    assert names(result.folder) == ["replace", "accumulate"]
    assert {"report.md", "rounds.csv", "rounds.png"} <= {p.name for p in result.folder.iterdir()}
    assert not (result.folder / "progress").exists()
    assert f"genloss ui runs/{result.folder.name} " in result.out and "2 arms" in result.err
    models = {p: p.stat().st_mtime_ns for p in home.root.glob("runs/*/rounds/*/model/*")}
    again = home.ok(*command)  # finished arms are skipped
    assert again.folder == result.folder and models
    assert models == {p: p.stat().st_mtime_ns for p in home.root.glob("runs/*/rounds/*/model/*")}
    assert "round 0" not in again.err


def test_an_arm_that_fails_in_a_worker(home: Project) -> None:
    one = home.ok("run", *TINY, "size=31", "seed=1").folder
    shutil.rmtree(one)
    one.write_text("a file where a folder should be")
    command = ["run", "-m", *TINY, "size=31", "seed=0,1", *JOBLIB]
    result = home.call(*command)
    assert result.code == 1 and result.out.splitlines()[-1].startswith("sweep: ")
    assert "genloss: failed: seed 1: " in result.err and "1 of 2 arms failed" in result.err
    assert "Traceback" not in result.err and "Error executing job" not in result.err
    assert "reproduce an arm (seed 0)" in result.out  # not the last one, which failed
    one.unlink()
    assert names(home.ok(*command).folder) == ["seed 0", "seed 1"]


def test_a_report_of_an_interrupted_sweep(home: Project) -> None:
    sweep = home.ok("run", "-m", *TINY, "size=33", "seed=0,1", "tracking=mlflow").folder
    order = json.loads((sweep / "sweep.json").read_text())["arms"]
    note = sweep / "arms" / f"{order[1]}.json"
    entry = json.loads(note.read_text())
    shutil.rmtree(sweep / entry["dir"])
    note.write_text(json.dumps(entry | {"state": "waiting"}))  # as a kill before its first round leaves it
    result = home.ok("report", str(sweep))
    assert "seed 0" in result.out and "seed 1: waiting, no finished round" in result.out and "warning" not in result.err


def test_a_sweep_of_another_shape_is_one_line(home: Project, tmp_path: Path) -> None:
    """It names the file that is damaged, of a sweep of many arms."""
    (tmp_path / "arms").mkdir()
    whole, note = tmp_path / "sweep.json", tmp_path / "arms/a.json"
    bad = ["[]", "5", "null", "{}", "{", "\udcff", "[" * 100_000]
    good, again = '{"arms": ["a"]}', "run the sweep again (nothing computed is lost)"
    for file, sweep, arm in [
        *((whole, text, "{}") for text in (*bad, '{"arms": 5}', '{"arms": [["a"]]}', '{"arms": [], "command": [3]}')),
        *((note, good, text) for text in (*bad, '{"name": "a", "state": "x"}', '{"name": "", "state": "", "dir": 3}')),
    ]:
        whole.write_text(sweep, errors="surrogateescape")
        note.write_text(arm, errors="surrogateescape")
        for verb in ("report", "forecast"):
            said = home.call(verb, str(tmp_path))
            assert (said.code, said.err) == (2, f"genloss: {file}: is damaged; delete it and {again}\n"), (sweep, arm)
    note.unlink()
    assert home.call("report", str(tmp_path)).err == f"genloss: {note}: is not there; {again}\n"
    note.write_text('{"name": "a", "state": "finished", "dir": "."}')
    assert sweep_entries(tmp_path)[0]["error"] is None


def test_hydras_own_sweeper(home: Project) -> None:
    before = set(home.root.glob("runs/*"))
    for launcher in ([], JOBLIB):
        result = home.spawn("genloss", "run", "-m", *TINY, "seed=40,41", "hydra/sweeper=basic", *launcher)
        assert result.code == 0, result.err
        runs = [Path(line.removeprefix("run: ")) for line in result.out.splitlines()]
        assert [load_params(run / "params.yaml").seed for run in sorted(runs)] == [40, 41]
        assert set(home.root.glob("runs/*")) - before == set(runs)  # arms, and no sweep of ours
    bad = home.call("run", "-m", *TINY, "seed=40,-1", "hydra/sweeper=basic")
    assert bad.code == 2 and bad.err.splitlines()[-1] == "genloss: seed=-1: must be at least 0"


def test_a_report_leaves_out_an_arm_that_is_another(home: Project) -> None:
    """Under its old name nobody would see that the numbers are not those of the sweep."""
    command = ["run", "-m", *TINY, "size=23", "mixing=replace,accumulate"]
    sweep = home.ok(*command).folder
    arm = next((home.root / "runs").glob(f"gaussian-replace-*{_arm(sweep, 0)}"))
    params = (arm / "params.yaml").read_text()
    (arm / "params.yaml").write_text(params.replace("size: 23", "size: 24"))
    result = home.ok("report", str(sweep))
    assert "replace: is left out" in result.err and str(arm) in result.err
    assert "\naccumulate " in result.out and "\nreplace " not in result.out
    again = home.call(*command)
    assert again.code == 1 and "belongs to another config" in again.err and "\nreplace " not in again.out
    sweep.joinpath("sweep.json").write_text(sweep.joinpath("sweep.json").read_text().replace('"scheme"', '"older"'))
    assert "\nreplace " in home.ok("report", str(sweep)).out  # of arms that were named otherwise nobody knows


def _arm(sweep: Path, i: int) -> str:
    return str(json.loads((sweep / "sweep.json").read_text())["arms"][i])


# -- what Hydra offers ---------------------------------------------------------------------------------------------


def test_options_of_another_folder(home: Project, tmp_path: Path) -> None:
    """--config-dir, of one run and of every arm of a sweep."""
    (tmp_path / "mixing").mkdir()
    text = (REPOSITORY / "conf/mixing/accumulate.yaml").read_text()
    (tmp_path / "mixing/mine.yaml").write_text(text.replace("name: accumulate", "name: mine"))
    one = home.ok("run", "--config-dir", str(tmp_path), *TINY, "mixing=mine").folder
    assert load_params(one / "params.yaml").mixing.name == "mine"
    for launcher in ([], JOBLIB):
        sweep = home.ok("run", "-m", "--config-dir", str(tmp_path), *TINY, "mixing=mine,replace", *launcher).folder
        assert names(sweep) == ["mine", "replace"]
    assert "mixing=mine: unknown" in home.call("run", "-m", *TINY, "mixing=mine,replace").err


def test_another_config(home: Project) -> None:
    (home.root / "conf/small.yaml").write_text("defaults: [config, _self_]\nsize: 17\n")
    try:
        sweep = home.ok(
            "run", "-m", "--config-name", "small", "domain=gaussian", "rounds=1", "tracking=none", "seed=0,1"
        )
    finally:
        (home.root / "conf/small.yaml").unlink()
    assert names(sweep.folder) == ["seed 0", "seed 1"]
    arms = [json.loads(p.read_text()) for p in sweep.folder.glob("arms/*.json")]
    assert {load_params(sweep.folder / arm["dir"] / "params.yaml").size for arm in arms} == {17}


def test_a_report_of_several_sweeps_tells_their_arms_apart(home: Project, tmp_path: Path) -> None:
    """Each sweep names its arms by what differs within it; and one arm of both is there once."""
    sweeps = [home.ok("run", "-m", *TINY, f"size={size}", "seed=0,1").folder for size in (18, 19)]
    sweeps.append(home.ok("run", "-m", *TINY, "size=18", "seed=1,2").folder)
    home.ok("report", *map(str, sweeps), "--out", str(tmp_path))
    rows = {line.partition(",")[0] for line in (tmp_path / "rounds.csv").read_text().splitlines()[1:]}
    assert rows == {"size=18 seed 0", "size=18 seed 1", "size=19 seed 0", "size=19 seed 1", "size=18 seed 2"}
    with home.here():
        assert set(genloss.load(*sweeps)["arm"]) == rows


def test_glob(home: Project) -> None:
    sweep = home.ok("run", "-m", *TINY, "mixing=glob(re*,exclude=*_only)").folder
    options = sorted(p.stem for p in (REPOSITORY / "conf/mixing").glob("re*.yaml") if not p.stem.endswith("_only"))
    assert len(options) > 1 and sorted(names(sweep)) == options


def test_an_experiment_that_is_a_sweep(home: Project) -> None:
    path = home.root / "conf/experiment/two_seeds.yaml"
    params = "mixing: replace,accumulate\n      seed: 50\n"
    path.write_text(f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      {params}")
    command = ["run", "experiment=two_seeds", *TINY]
    try:
        first = home.ok(*command)
        assert names(first.folder) == ["replace", "accumulate"]
        assert home.ok(*command, "-m").folder == first.folder
        other = home.ok(*command, "mixing=fresh", "seed=51,52")  # in place of the experiment's
        assert names(other.folder) == ["seed 51", "seed 52"]
        one = home.ok(*command, "hydra.mode=RUN")
        assert one.out.splitlines()[-1] == f"run: {one.folder}" and "\ndiversity  " in one.out
    finally:
        path.unlink()


def test_a_folder_of_ones_own(home: Project) -> None:
    sweep = home.ok("run", "-m", *TINY, "seed=60,61", 'hydra.sweep.dir="it\'s mine/a, b"').folder
    assert sweep == home.root / "it's mine/a, b" and names(sweep) == ["seed 60", "seed 61"]


class Keep(Callback):
    """Keeps what jobs return, for the test below."""

    returned: ClassVar[list[Any]] = []

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        self.returned.append(job_return.return_value)


def test_a_job_returns_its_headline(home: Project, tmp_path: Path) -> None:
    """For sweepers that optimise."""
    Keep.returned.clear()
    keep = "+hydra.callbacks.keep._target_=test_sweep.Keep"
    one = home.ok("run", *TINY, "seed=70", keep).folder
    metrics = json.loads((one / "rounds/01/metrics.json").read_text())
    assert Keep.returned == [headline(one)] and headline(one) in metrics.values()
    home.ok("run", "-m", *TINY, "seed=70,71", keep)
    home.ok("run", "-m", *TINY, "seed=70,71", keep, "hydra/sweeper=basic")
    assert Keep.returned[1:3] == Keep.returned[3:5] and Keep.returned[1] == Keep.returned[0] != Keep.returned[2]
    assert headline(tmp_path) is None  # no round
    (one / "rounds/01/manifest.json").unlink()  # which has the hash of the numbers
    (one / "rounds/01/metrics.json").write_text('{"other": 1.0}')
    assert headline(one) is None


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["-m", "seed=0,-1"], ["seed=-1", "at least 0"]),
        (["-m", "seed=0,1", "sizes=3"], ["sizes", "did you mean size?"]),
        (["-m", "mixing=replace,acumulate"], ["mixing=acumulate", "did you mean accumulate?"]),
        (["-m", "seed=interval(0,1)"], ["seed=interval(0,1)", "range(...)"]),
        (["seed=0,1"], ["seed=0,1", "--multirun"]),
        (["-m", "seed=0,1", "hydra/sweeper=bsic"], ["hydra/sweeper=bsic", "did you mean basic?"]),
        (["-m", "hydra.launcher.n_jobs=1,2", *JOBLIB[:1]], ["hydra.launcher.n_jobs=1,2"]),
        (["-m", "--cfg", "job"], ["Only one of"]),
        (["--config-dir", "/nowhere"], ["/nowhere"]),
    ],
)
def test_an_error_is_one_line(home: Project, arguments: list[str], words: list[str]) -> None:
    before = sorted(home.root.glob("runs/*"))
    result = home.call("run", *arguments, *TINY)
    assert result.code == 2 and result.out == ""
    assert len(result.err.splitlines()) == 1 and result.err.startswith("genloss: ")
    assert all(word in result.err for word in words), result.err
    assert sorted(home.root.glob("runs/*")) == before


# -- what it costs, and on what it stands --------------------------------------------------------------------------


def test_start_is_light(home: Project) -> None:
    """Hydra imports the plug-in at every start, also where nothing runs."""
    code = (
        "import sys; from genloss.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
        "assert 'hydra_plugins.genloss_sweeper' in sys.modules\n"
        "heavy = ('torch', 'mlflow', 'pyarrow', 'genloss.loop', 'genloss.workflow.sweep')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert home.spawn("python", "-c", code).out.splitlines()[-1] == "[]"


def test_a_finished_sweep_is_found_so(tmp_path: Path) -> None:
    """Nothing is launched, and nothing heavy imported; what is damaged or missing is found as ever."""
    home = Project.make(tmp_path / "project")
    command = ["run", "-m", *TINY, "tracking=mlflow", "mixing=replace,accumulate"]
    home.ok(*command)
    sweep = home.ok(*command).folder
    code = (
        f"import sys; from genloss.cli import main\ntry: main({command})\nexcept SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'mlflow', 'matplotlib', 'scipy.stats') if m in sys.modules])"
    )
    found = home.spawn("python", "-c", code)
    assert found.out.splitlines()[-1] == "[]", found.err
    assert found.out.splitlines()[:-1] == home.ok(*command).out.splitlines()  # table, next commands, folder
    arm = next(home.root.glob("runs/gaussian-accumulate-*"))
    figure, table = sweep / "rounds.png", sweep / "report.md"
    drawn = figure.stat().st_mtime_ns
    home.ok(*command)
    assert figure.stat().st_mtime_ns == drawn
    table.write_text("of an interrupted sweep")
    home.ok(*command)
    assert figure.stat().st_mtime_ns > drawn and "accumulate" in table.read_text()

    lost = arm / "rounds/01/metrics.json"
    text = lost.read_text()
    lost.unlink()
    home.ok(*command)
    assert lost.read_text() == text
    broken = next((arm / "rounds/01/model").iterdir())
    broken.chmod(0o644)
    broken.write_bytes(b"x" + broken.read_bytes())
    said = home.call(*command)
    assert said.code == 1 and "is damaged" in said.err and "accumulate" in said.err


def test_only_the_public_interface_of_hydra_is_used() -> None:
    sources = {path: path.read_text() for path in (REPOSITORY / "src").rglob("*.py")}
    assert any("hydra" in text for text in sources.values())
    for path, text in sources.items():
        assert "hydra._internal" not in text and "load_configuration" not in text, path
