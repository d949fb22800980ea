"""Faults, at every point of a command: nothing is lost, the hashes are equal, nothing is left behind, and MLflow's
states are true.

`make faults` runs them all; `make test` kills at random moments (tests/test_crash.py). What is killed is forked from
this process, which imports what it needs and computes nothing, and so is what it starts: `dvc commit`, the rounds of
`dvc repro`, the workers of joblib. tests/shim.py says where the fault comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import shim
from genloss.core.files import DVCS, sweep
from genloss.core.hashes import sha256_file
from genloss.workflow.dvc_cache import md5
from genloss.workflow.mlflow_run import SWEEP as SWEEP_TAG
from support import Project, Result, forked, frozen, hashes
from test_crash import preload, records

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]  # hundreds of commands each

LIBRARIES = (
    "joblib",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "dvc.cli",
    "dvc.commands.commit",
    "dvc.commands.repro",
    "dvc.repo",
    "dvc.stage.run",
    "hydra_plugins.hydra_joblib_launcher._core",
    "genloss.cli",
    "genloss.domains.lab.gaussian",
    "genloss.workflow.hydra_app",
    "genloss.workflow.sweep",
    "genloss.workflow.dvc_cache",
    "genloss.workflow.dvc_config",
    "genloss.workflow.tracking",
    "genloss.workflow.verify",
    "genloss.observatory.report",
)
ARM = ["domain=gaussian", "domain.chains=3", "size=20", "rounds=1", "tracking=mlflow"]
SHARE = int(os.environ.get("GENLOSS_SHARE", 1))  # GENLOSS_SHARE=10 make faults: every tenth point, for a first look
RUN = ("genloss", "run", *ARM)
SWEEP = ("genloss", "run", "-m", *ARM, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
KILLED = -9
CACHE = ".dvc/cache/files/md5"


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    preload(LIBRARIES)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's, with no run in it."""
    home = Project.make(tmp_path_factory.mktemp("database") / "project")

    def make() -> None:
        from genloss.workflow.mlflow_run import connect, store_uri

        connect(store_uri(None), "genloss")

    assert ended(home, make).code == 0
    return home.root / "mlruns" / "mlflow.db"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Victim:
    """The run that no fault comes to."""
    victim = Victim.make(tmp_path_factory.mktemp("calm"), *RUN, database=database)
    victim.ok()
    return victim


@pytest.fixture(scope="module")
def calm_sweep(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Victim:
    victim = Victim.make(tmp_path_factory.mktemp("sweep"), *SWEEP, database=database)
    victim.ok()
    return victim


@pytest.fixture
def wild(tmp_path: Path, database: Path) -> Victim:
    return Victim.make(tmp_path, *RUN, database=database)


# -- commands whose processes are forked -------------------------------------------------------------------------------


def fork_what_it_starts() -> None:
    """Seconds of imports for each `dvc commit`, `genloss round` and worker are what kills by the hundred cannot pay."""
    import dvc.stage.run
    from dvc.cli import main as dvc_main
    from dvc.exceptions import DvcException
    from hydra.core.utils import JobReturn, JobStatus
    from hydra_plugins.hydra_joblib_launcher import _core

    from genloss import cli
    from genloss.workflow import dvc_cache

    def commit(folder: Path) -> subprocess.CompletedProcess:
        words = dvc_cache.COMMIT[len(dvc_cache.DVC) :]
        done = ended(Project(folder), lambda: sys.exit(dvc_main(words)))
        return subprocess.CompletedProcess(words, done.code, done.err)

    def stage(_: Any, line: str, **options: Any) -> None:
        done = ended(Project(Path.cwd()), lambda: cli.main(line.split()[1:]))
        print(done.err, file=sys.stderr)
        if done.code:
            raise DvcException(f"{line} ended with {done.code}")

    def workers(jobs: Iterable[tuple[Callable, tuple, dict]]) -> list[JobReturn]:
        here, silent = Project(Path.cwd()), Path(os.devnull)
        at_work = [forked(here, partial(call, *given, **more), silent) for call, given, more in jobs]
        assert [os.waitpid(pid, 0)[1] for pid in at_work] == [0] * len(at_work)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in at_work]

    dvc_cache.run_dvc = commit
    dvc.stage.run._run = stage
    _core.Parallel = lambda **options: workers


def ended(home: Project, action: Callable[[], object]) -> Result:
    """What became of a forked process; all that it said is in `err`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        status = os.waitpid(forked(home, action, log), 0)[1]
        return Result(os.waitstatus_to_exitcode(status), "", log.read_text() if log.exists() else "")


@dataclass
class Victim:
    """A project, and the one command whose way through faults is the test."""

    home: Project
    words: tuple[str, ...]
    folder: str = "."  # where the command runs

    @classmethod
    def make(cls, root: Path, *words: str, database: Path | None = None) -> Victim:
        """database: MLflow's, empty, which takes seconds to make."""
        home = Project.make(root / "project", DVC_NO_ANALYTICS="1", COLUMNS="120")
        home.env["DVC_SITE_CACHE_DIR"] = str(root / "site")
        if database:
            (home.root / "mlruns").mkdir()
            shutil.copy(database, home.root / "mlruns" / "mlflow.db")
        return cls(home, words)

    @property
    def points(self) -> list[str]:
        """Where faults came, in their order."""
        path = self.home.root.parent / "points"
        return path.read_text().splitlines() if path.exists() else []

    def go(self, *words: str, **env: str) -> Result:
        """Run the command, or another one, in a forked process."""
        words = words or self.words

        def act() -> None:
            os.setpgid(0, 0)  # what it starts dies with it
            os.chdir(self.folder)
            os.environ.update(env)
            sys.argv = list(words)
            fork_what_it_starts()
            shim.install()
            from dvc.cli import main as dvc_main

            from genloss import cli

            if words[0] == "dvc":
                sys.exit(dvc_main(list(words[1:])))
            cli.main(list(words[1:]))

        return ended(self.home, act)

    def ok(self, *words: str, **env: str) -> Result:
        result = self.go(*words, **env)
        assert result.code == 0, (result, self.points[-1:])
        return result

    def fault(self, kind: str, **env: str) -> Result | None:
        """Run the command until it meets a fault at a point that is new; None if it came to its end without one."""
        armed = self.home.root.parent / "armed"
        armed.touch()
        more = {"GENLOSS_POINTS": str(self.home.root.parent / "points"), "GENLOSS_ARMED": str(armed)}
        result = self.go(GENLOSS_FAULT=kind, **more, **({"GENLOSS_SHARE": str(SHARE)} | env))
        if not armed.exists():
            return result
        assert result.code == 0, (result, self.points[-1:])
        return None


# -- what must hold after all of it ------------------------------------------------------------------------------------


def arms(home: Project) -> dict[str, dict[str, str]]:
    return {path.parent.name: hashes(path.parent) for path in home.root.glob("runs/*/params.yaml")}


def files(home: Project) -> set[str]:
    """Every file of a project, but for those with which DVC and locks are at work, and those written aside: nobody
    keeps them, and they go after an hour (tests/test_store.py)."""
    names = {shim.named(str(p.relative_to(home.root))) for p in home.root.rglob("*") if p.is_file()}
    kept = re.compile(r"runs/[^/]+/(data|rounds|report)/|\.genloss/store/")
    others = re.compile(r".*/\.dvc/tmp/|.*/locks/|.*/\.running/|\.dvc/cache/(runs/|files/md5/(../|TMP))")
    return {name for name in names if not others.match(name) and (kept.match(name) or not name.endswith(".PID"))}


def shown(home: Project) -> Counter[tuple[str, str]]:
    """The runs that MLflow shows, by name and state; no point of them is there twice."""
    with contextlib.closing(sqlite3.connect(home.root / "mlruns" / "mlflow.db")) as database:
        active = "FROM runs WHERE lifecycle_stage = 'active'"
        twice = f"""SELECT key, step, count(*) FROM metrics WHERE run_uuid IN (SELECT run_uuid {active})
                    GROUP BY run_uuid, key, step HAVING count(*) > 1"""
        assert database.execute(twice).fetchall() == []
        return Counter(database.execute(f"SELECT name, status {active}").fetchall())


def sweeps_shown(home: Project) -> list[str]:
    """The states of MLflow's runs that are sweeps."""
    with contextlib.closing(sqlite3.connect(home.root / "mlruns" / "mlflow.db")) as database:
        rows = database.execute("SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = ?", (SWEEP_TAG,))
        return [state for (state,) in rows]


def same(wild: Victim, calm: Victim) -> None:
    """Nothing is lost, nothing is left, and MLflow says so."""
    assert arms(wild.home) == arms(calm.home) and any(arms(calm.home).values())
    assert records(wild.home) == records(calm.home)
    assert shown(wild.home) == shown(calm.home) and {state for _, state in shown(calm.home)} <= {"FINISHED"}
    assert files(wild.home) == files(calm.home)
    wrong = [path.name for path in (wild.home.root / CACHE).glob("*/*") if not is_object(path)]
    assert [name for name in wrong if not DVCS.search(name)] == []  # DVC leaves what it was writing when killed


def is_object(path: Path) -> bool:
    """Whether a file of DVC's cache is what its name says."""
    return md5(path) == (path.parent.name + path.name).removesuffix(".dir")


def killed_everywhere(wild: Victim, calm: Victim, **env: str) -> None:
    """Kill the command at every point, and go on."""
    began, before = time.monotonic(), frozen(wild.home.store)
    while result := wild.fault("kill", **env):
        assert result.code == KILLED, (result, wild.points[-1:])
        after = frozen(wild.home.store)
        assert {path: after.get(path) for path in before} == before, wild.points[-1]  # no record is written again
        before = after
        for left in (Path(wild.folder) / "dvc.lock", Path(wild.folder) / ".dvc/tmp/rwlock"):
            if wild.words[0] == "dvc" and left.exists() and not left.stat().st_size:
                left.unlink()  # DVC refuses what a kill has left empty, for good; `genloss run` deletes it
    wild.ok()
    print(f"{len(wild.points)} kills in {time.monotonic() - began:.0f} s")
    if wild.words[0] == "dvc":
        sweep(Path(wild.folder))  # what DVC was writing when killed stays until the next `genloss run`
    same(wild, calm)


# -- kills -------------------------------------------------------------------------------------------------------------


def test_a_run_is_killed_at_every_point(tmp_path: Path, calm: Victim) -> None:
    """`dvc commit`, MLflow's statements, and the making of its database among them."""
    killed_everywhere(Victim.make(tmp_path, *RUN), calm)


@pytest.mark.parametrize("models", ["last", "none"])
def test_a_run_that_keeps_few_models_is_killed_at_every_point(tmp_path: Path, database: Path, models: str) -> None:
    """Where weights go, and where they are linked to be read, too; no training that was finished is done again."""
    words = (*RUN, "rounds=2", f"keep.models={models}")
    calm, wild = (Victim.make(tmp_path / name, *words, database=database) for name in ("calm", "wild"))
    calm.ok()
    killed_everywhere(wild, calm)
    assert weights_in_store(wild.home) == weights_in_store(calm.home)


def weights_in_store(home: Project) -> list[str]:
    """Of trainings, those whose weights are there."""
    blobs = {path.parent.name + path.name for path in home.store.glob("blobs/*/*")}
    found = [json.loads(path.read_text())["files"] for path in home.store.glob("stages/train/*.json")]
    return sorted(files["model/model.safetensors"] for files in found if files["model/model.safetensors"] in blobs)


def test_the_rule_for_models_is_changed_and_killed_at_every_point(tmp_path: Path, database: Path) -> None:
    """From all to the last one: store, run and DVC's cache let go of what they had."""
    words = (*RUN, "rounds=2", "keep.models=last")
    calm, wild = (Victim.make(tmp_path / name, *RUN, "rounds=2", database=database) for name in ("calm", "wild"))
    for victim in (calm, wild):
        victim.ok()
        victim.words = words
    calm.ok()
    killed_everywhere(wild, calm)
    assert weights_in_store(wild.home) == weights_in_store(calm.home)


def test_dvc_repro_is_killed_at_every_point(tmp_path: Path, database: Path) -> None:
    """In the arm's folder, from nothing; its rounds and its report too."""
    calm, wild = (Victim.make(tmp_path / name, *RUN, database=database) for name in ("calm", "wild"))
    for victim in (calm, wild):
        victim.ok()
        [arm] = victim.home.root.glob("runs/*")
        for name in ("data", "rounds", "report", ".dvc/tmp", "../../.genloss", "../../.dvc/cache"):
            shutil.rmtree(arm / name)
        for name in ("dvc.lock", "summary.json"):
            (arm / name).unlink()
        victim.words, victim.folder = ("dvc", "repro"), str(arm)
    calm.ok()
    killed_everywhere(wild, calm)


def test_a_joblib_sweep_is_killed_at_every_second_point(tmp_path: Path, calm_sweep: Victim, database: Path) -> None:
    """The parent and all workers."""
    killed_everywhere(Victim.make(tmp_path, *SWEEP, database=database), calm_sweep, GENLOSS_SHARE=str(2 * SHARE))


@pytest.mark.parametrize(
    "where", ["rename .*stages/train", "sql .* INSERT INTO metrics", "rename .*manifest.json", "write .*dvc.lock"]
)
def test_a_worker_is_killed(tmp_path: Path, calm_sweep: Victim, database: Path, where: str) -> None:
    """Of joblib's own kind, and the `dvc commit` that it starts, which is tried again."""
    victim = Victim.make(tmp_path, *SWEEP, database=database)
    armed = tmp_path / "armed"
    armed.touch()
    env = {"GENLOSS_FAULT": "killself", "GENLOSS_SHARE": "1", "GENLOSS_WHERE": where, "GENLOSS_ARMED": str(armed)}
    env |= {"GENLOSS_POINTS": str(tmp_path / "points"), "PYTHONPATH": with_shim(tmp_path / "site-shim")}
    result = Project(victim.home.root, victim.home.env | env).spawn(*SWEEP)
    assert not armed.exists() and "Traceback" not in result.err
    if "dvc.lock" in where:
        assert result.code == 0, result.err
    else:
        assert result.code == 1 and "a worker was killed" in result.err
        assert sweeps_shown(victim.home) == ["KILLED"]
    victim.ok()
    same(victim, calm_sweep)


def with_shim(at: Path) -> str:
    return f"{shim.folder(at)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def test_the_parent_of_workers_is_killed(tmp_path: Path, calm_sweep: Victim, database: Path) -> None:
    victim = Victim.make(tmp_path, *SWEEP, database=database)
    parent = subprocess.Popen(
        [sys.executable, "-m", *SWEEP],
        cwd=victim.home.root,
        env=victim.home.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not victim.home.stages()["train"] and parent.poll() is None:
        time.sleep(0.02)
    workers = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    victim.ok()
    same(victim, calm_sweep)


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path, alone: bool) -> None:
    """One bit, in the middle. alone: in this file and not in those that are the same by hard links."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    mode = path.stat().st_mode
    path.unlink() if alone else path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)


def healed(victim: Victim) -> int:
    """Run the command until it ends, and delete what its one line says; how often that was."""
    for times in range(9):
        result = victim.go()
        if result.code == 0:
            return times
        assert result.code == 2 and one_line(result), result
        named = [word.rstrip(":,") for word in result.err.splitlines()[-1].split()]
        told = [Path(word) for word in named if word.startswith(str(victim.home.root)) and Path(word).is_file()]
        assert told and "delete" in result.err, result
        for path in told:
            path.unlink(missing_ok=True)
    raise AssertionError(result)


def one_line(result: Result) -> bool:
    """Whether a command that failed says why in a line of its own, the last one."""
    return (
        "Traceback" not in result.err
        and result.err.splitlines()[-1:] != []
        and (result.err.splitlines()[-1].startswith("genloss: "))
    )


FILES = (
    "data/train.parquet",
    "rounds/01/generated.parquet",
    "rounds/01/train/00-g01.parquet",
    "rounds/01/model/model.safetensors",
    "rounds/01/metrics.json",
    "rounds/01/manifest.json",
)


def test_a_flipped_bit(calm: Victim, wild: Victim) -> None:
    """In the run directory, in the store, in DVC's cache, and in all of them at once. What is read again is found; what
    nobody reads is the next run's to find."""
    wild.ok()
    [arm] = wild.home.root.glob("runs/*")
    digest = {name: (sha256_file(arm / name), md5(arm / name)) for name in FILES}
    cache = wild.home.root / CACHE
    for name in FILES[::SHARE]:
        sha, key = digest[name]
        blob, entry = wild.home.store / "blobs" / sha[:2] / sha[2:], cache / key[:2] / key[2:]
        for place, alone in ((arm / name, True), (blob, True), (entry, True), (arm / name, False)):
            if not place.exists():
                continue  # metrics.json and manifest.json are no blobs
            flip(place, alone)
            if place == arm / name:
                found = wild.go("genloss", "verify", str(arm))
                assert found.code in (1, 2) and (found.code == 1 or one_line(found)), (name, found)
            elif place == blob:
                assert wild.go().code == 2, name  # not 0 with wrong bytes in the store
            healed(wild)
            if key not in objects(wild.home):  # it says how long a run took, and was written anew
                entry.unlink(missing_ok=True)
            same(wild, calm)
            assert wild.go("genloss", "verify", str(arm)).code == 0 or place != arm / name


def objects(home: Project) -> set[str]:
    """The objects of DVC's cache that the dvc.lock of an arm names, and those that its folders list."""
    found = set()
    for lock in home.root.glob("runs/*/dvc.lock"):
        for stage in yaml.safe_load(lock.read_text())["stages"].values():
            found |= {out["md5"] for out in stage["outs"]}
    listed = [json.loads((home.root / CACHE / name[:2] / name[2:]).read_text()) for name in found if "." in name]
    return found | {entry["md5"] for entries in listed for entry in entries}


def lie(home: Project, name: str, content: bytes) -> None:
    path = home.root / CACHE / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o444)


@pytest.mark.parametrize("content", [b"", b"other bytes"])
def test_a_lying_cache(calm: Victim, wild: Victim, content: bytes) -> None:
    """Every object that the run will need is there before it, read-only, and is something else; then every one that it
    has."""
    told = objects(calm.home)
    for name in told:
        lie(wild.home, name, content)
    wild.ok()
    [arm], [other] = wild.home.root.glob("runs/gauss*"), calm.home.root.glob("runs/gauss*")
    asked = told & objects(wild.home)
    assert {md5(other / name) for name in hashes(other)} <= asked
    for name in told - asked:  # what says how long the other run took; this one asks for none of it
        (wild.home.root / CACHE / name[:2] / name[2:]).unlink()
    same(wild, calm)
    before = {path: md5(path) for path in arm.glob("**/*") if path.is_file() and ".dvc" not in path.parts}
    for name in objects(wild.home):
        lie(wild.home, name, content)
    wild.ok()
    assert {path: md5(path) for path in before} == before  # manifests too
    same(wild, calm)


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False)
    if done.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


PLACES = {"store": ".genloss/store", "runs": "runs", "mlruns": "mlruns", "cache": ".dvc/cache"}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_and_one_that_is_read_only(calm: Victim, wild: Victim, disk: Path, place: str) -> None:
    here = wild.home.root / PLACES[place]
    here.parent.mkdir(parents=True, exist_ok=True)
    if here.exists():
        shutil.copytree(here, disk, dirs_exist_ok=True)
        shutil.rmtree(here)
    here.symlink_to(disk)
    for room in (0, 8, 16, 32):  # kB
        with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"0" * 4096)
        os.truncate(disk / "ballast", max(0, (disk / "ballast").stat().st_size - room * 1024))
        refused(wild, place)
    (disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused(wild, place)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    wild.ok()
    here.unlink()
    shutil.copytree(disk, here)  # `files` follows no links
    same(wild, calm)


def refused(victim: Victim, place: str) -> None:
    """One line; of MLflow, which is a view, a warning."""
    result = victim.go()
    if place == "mlruns":
        assert result.code == 0 and "Traceback" not in result.err, result
        assert "genloss: warning: MLflow" in result.err, result
    else:
        assert result.code == 2 and one_line(result), result


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC"])
def test_a_failing_disk_at_every_fourth_point(tmp_path: Path, calm: Victim, database: Path, kind: str) -> None:
    """Once, at what is read or written: the command ends with one line, and the next goes on; or it goes on without it
    to its end, and what it did after that point is tried in a new project."""
    codes: Counter[int] = Counter()
    began, wild = time.monotonic(), Victim.make(tmp_path / "0", *RUN, database=database)
    while result := wild.fault(kind, GENLOSS_SHARE=str(4 * SHARE)):
        assert result.code == 0 or (result.code == 2 and one_line(result)), (result, wild.points[-1:])
        codes[result.code] += 1
        if result.code == 0:
            wild.ok()
            same(wild, calm)
            met, wild = wild, Victim.make(tmp_path / str(codes.total()), *RUN, database=database)
            shutil.copy(met.home.root.parent / "points", wild.home.root.parent)
            shutil.rmtree(met.home.root.parent)
    print(f"{kind}: {codes[0]} faults without an end, {codes[2]} with one, in {time.monotonic() - began:.0f} s")
    assert codes[0] and codes[2]
    wild.ok()
    same(wild, calm)


# -- others, and time --------------------------------------------------------------------------------------------------


def test_two_users_of_one_cache(tmp_path: Path, calm: Victim, database: Path) -> None:
    """Two projects, the same arm, at the same time; one is killed while it commits, and goes on."""
    users = [Victim.make(tmp_path / name, *RUN, database=database) for name in ("one", "two")]
    for user in users:
        (user.home.root / ".dvc").mkdir()
        (user.home.root / ".dvc/config").write_text(f"[cache]\n    dir = {tmp_path / 'cache'}\n")
    with ThreadPoolExecutor() as pool:
        second = pool.submit(users[1].ok)
        while users[0].fault("kill", GENLOSS_WHERE="cache|dvc.lock|rwlock") is not None:
            pass
        second.result()
    for user in users:
        user.ok()
        assert arms(user.home) == arms(calm.home) and shown(user.home) == shown(calm.home)
    wrong = [path.name for path in (tmp_path / "cache").glob("files/md5/*/*") if not is_object(path)]
    assert [name for name in wrong if not DVCS.search(name)] == []


@pytest.mark.parametrize("shift", [-366 * 86400, 366 * 86400])
def test_a_clock_that_goes_back_or_jumps(calm: Victim, wild: Victim, shift: int) -> None:
    """Between a kill and the next command; what is there lies in the other's future, or is old."""
    for where, clock in (
        ("rename .*stages/train", 0),
        ("sql .* INSERT INTO metrics", shift / 2),
        ("write .*dvc.lock", 0),
    ):
        result = wild.fault("kill", GENLOSS_WHERE=where, GENLOSS_SHARE="1", GENLOSS_CLOCK=str(clock))
        assert result is not None and result.code == KILLED, (where, result)
        for path in wild.home.root.rglob("*"):
            then = path.stat().st_mtime - shift
            os.utime(path, (then, then))
    wild.ok(GENLOSS_CLOCK=str(shift))
    wild.ok()
    same(wild, calm)
