"""The store: once over processes, whole after a kill, one line on damage; and the run directory on top of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from genloss.core.errors import UserError
from genloss.core.files import link, locked, sweep, write_atomic
from genloss.core.hashes import canonical, sha256_file, sha256_text, tree_hash
from genloss.core.rundir import RunDir
from genloss.core.store import Store, Work
from genloss.observatory.results import metrics_of
from genloss.workflow.dvc_cache import DVC

Execute = Callable[[Path, Path], dict[str, Any]]


def work(execute: Execute | None = None, **changes: Any) -> Work:
    def write(out: Path, scratch: Path) -> dict[str, Any]:
        (out / "sub").mkdir()
        (out / "a.txt").write_text("a")
        (out / "sub" / "b.txt").write_text("b")
        return {"n": 1}

    values: dict[str, Any] = {"stage": "demo", "config": {"x": 1}, "inputs": {}, "seed": 0, "code": {}, "libraries": {}}
    return Work(**(values | changes), execute=execute or write)


# A process that computes one stage; it counts its computations in a file and may take its time.
PROGRAM = """
import sys, time, pathlib
from genloss.core.store import Store, Work
root, log, seconds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
def execute(out, scratch):
    with log.open("a") as file:
        file.write("begun\\n")
    done = len(list(scratch.glob("part-*")))
    for i in range(done, 5):
        (scratch / f"part-{i}").write_text(str(i))
        with log.open("a") as file:
            file.write(f"part {i}\\n")
        time.sleep(seconds / 5)
    (out / "a.txt").write_text("".join((scratch / f"part-{i}").read_text() for i in range(5)))
    return {"parts": 5}
store = Store(root)
done = store.get(Work("demo", {}, {}, 0, {}, {}, execute))
print(done.files["a.txt"], store.computed, store.reused)
"""


def start(root: Path, log: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(log), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_processes_compute_one_key_once(tmp_path: Path) -> None:
    jobs = [start(tmp_path / "store", tmp_path / "log", 0.5) for _ in range(5)]
    results = [job.communicate(timeout=60)[0].split() for job in jobs]
    assert all(job.returncode == 0 for job in jobs)
    assert {r[0] for r in results} == {sha256_text("01234")}
    assert sum(int(r[1]) for r in results) == 1 and sum(int(r[2]) for r in results) == 4
    assert (tmp_path / "log").read_text().count("begun") == 1


def test_a_kill_leaves_a_store_that_goes_on_where_it_was(tmp_path: Path) -> None:
    root, log = tmp_path / "store", tmp_path / "log"
    job = start(root, log, 60)
    deadline = time.time() + 30
    while not (log.is_file() and "part 0" in log.read_text()):
        assert time.time() < deadline
        time.sleep(0.02)
    waiting = start(root, log, 0)  # holds on until the lock is free, which a kill makes it
    time.sleep(0.3)
    assert waiting.poll() is None
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    out = waiting.communicate(timeout=60)[0].split()
    assert waiting.returncode == 0 and out == [sha256_text("01234"), "1", "0"]
    lines = log.read_text().splitlines()
    assert lines.count("begun") == 2 and lines.count("part 0") == 1  # the part that was finished was kept
    assert not list((root / "scratch").iterdir())


def test_a_stage_is_computed_once_and_its_files_are_blobs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, again = store.get(work()), store.get(work())
    assert first == again and (store.computed, store.reused) == (1, 1)
    assert first.files == {"a.txt": sha256_text("a"), "sub/b.txt": sha256_text("b")} and first.result == {"n": 1}
    for digest in first.files.values():
        assert sha256_text(store.blob(digest).read_text()) == digest
        assert store.blob(digest).stat().st_mode & 0o222 == 0


@pytest.mark.parametrize("at", ["os.replace", "shutil.rmtree"])
def test_a_kill_when_a_stage_is_entered_leaves_nothing(tmp_path: Path, at: str) -> None:
    """Before its record is renamed, and before its scratch folder is deleted."""
    program = f"""
import os, pathlib, shutil, sys
from genloss.core import store
def execute(out, scratch):
    (scratch / "part").touch()
    {at} = lambda *places, **more: os._exit(9)
    return {{}}
store.Store(pathlib.Path(sys.argv[1])).get(store.Work("demo", {{}}, {{}}, 0, {{}}, {{}}, execute))
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 9
    Store(tmp_path).get(Work("demo", {}, {}, 0, {}, {}, lambda out, scratch: {}))
    assert [p.name.endswith(".json") for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "locks"] == [True]
    assert not list((tmp_path / "scratch").iterdir())


def test_what_a_disk_does_not_delete_goes_with_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while another process is at work there."""
    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", lambda *_, **__: None)
        run.ensure(work(), 0)
    [left] = (tmp_path / "store" / "scratch").iterdir()
    with ThreadPoolExecutor() as pool:
        with locked(tmp_path / "store" / "locks" / left.name):
            other = pool.submit(run.ensure, work(), 0)
            assert wait([other], timeout=0.5).not_done and left.is_dir()
        assert other.result() and not left.exists()


def test_a_failure_leaves_no_record(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(out: Path, scratch: Path) -> dict:
        (out / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.get(work(fail))
    assert not list((tmp_path / "stages").rglob("*.json")) and not list((tmp_path / "blobs").rglob("*/*"))
    assert set(store.get(work()).files) == {"a.txt", "sub/b.txt"}  # nothing of the failure is left in it


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "other"},
        {"config": {"x": 2}},
        {"inputs": {"i": "0"}},
        {"seed": 1},
        {"code": {"genloss.core.store": "0"}},
        {"libraries": {"numpy": "2.0"}},
    ],
)
def test_everything_that_matters_is_in_the_key(change: dict) -> None:
    assert work(**change).key != work().key


def test_what_does_not_matter_is_not_in_the_key() -> None:
    assert work(lambda out, scratch: {}).key == work().key
    assert work(code={"a": "1", "b": "2"}).key == work(code={"b": "2", "a": "1"}).key
    assert work(config={"x": 1, "y": 2}).key == work(config={"y": 2, "x": 1}).key
    with pytest.raises(ValueError):
        canonical({"x": float("nan")})


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'{"key": "k"}', b"\xff\xfe"])
def test_a_damaged_record_is_one_line_whose_remedy_works(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    before = store.get(work())
    [record] = (tmp_path / "stages").rglob("*.json")
    record.write_bytes(content)
    with pytest.raises(UserError, match="damaged; delete it and run again") as caught:
        store.get(work())
    assert caught.value.key == str(record)
    record.unlink()
    assert store.get(work()).files == before.files


def test_one_digit_of_a_result_is_damage(tmp_path: Path) -> None:
    """In the store's record and in the manifest; records without a hash are of older versions."""
    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    results = work(lambda out, scratch: {"loss": 2.3434, "by": {2: 1, 10: 2}}, stage="evaluate")
    assert run.ensure(results, 1).result["loss"] == 2.3434
    assert run.ensure(results, 1).result == {"loss": 2.3434, "by": {"2": 1, "10": 2}}
    [record] = (tmp_path / "store/stages").rglob("*.json")
    for path in (run.manifest_path("evaluate", 1), record):
        text = path.read_text()
        path.write_text(text.replace("2.3434", "2.3435"))
        with pytest.raises(UserError, match="is damaged; delete it and run again") as caught:
            run.ensure(results, 1)
        assert caught.value.key == str(path)
        path.unlink()
        run.ensure(results, 1)
        assert "2.3434" in path.read_text()
    digest = json.loads(record.read_text())["sha256"]
    record.write_text(record.read_text().replace(f',"sha256":"{digest}"', ""))
    assert run.store.lookup(results, results.key) is not None


def test_one_digit_of_what_a_stage_was_made_from_is_damage(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    made = work(libraries={"demo": "1.2"}, stage="train")
    run.ensure(made, 0)
    path = run.manifest_path("train", 0)
    path.write_text(path.read_text().replace('"1.2"', '"1.3"'))
    with pytest.raises(UserError, match=r"manifest.json: is damaged; delete it"):
        run.ensure(made, 0)
    path.unlink()
    run.ensure(made, 0)
    assert run.manifest("train", 0)["stages"]["train"]["libraries"] == {"demo": "1.2"}


def test_metrics_are_those_of_the_manifest(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    run.ensure(work(stage="evaluate"), 1)
    run.write_metrics(1, '{"loss": 2.5}')
    assert metrics_of(run.round(1)) == {"loss": 2.5}
    for bad in ('{"loss": 2.4}', "", "[]", "{"):
        (run.round(1) / "metrics.json").write_text(bad)
        with pytest.raises(UserError, match="is damaged"):
            metrics_of(run.round(1))
        run.write_metrics(1, '{"loss": 2.5}')
        assert metrics_of(run.round(1)) == {"loss": 2.5}
    run.write_metrics(1, '{"loss": 2.6}')
    assert metrics_of(run.round(1)) == {"loss": 2.6}


def test_metrics_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    done = run.ensure(work(stage="evaluate"), 1)
    names = [f"metric_{i}" for i in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: run.add(1, name, {"_target_": name}, work(stage="evaluate"), done), names))
    assert sorted(run.added(1)) == sorted(names)


def test_a_damaged_blob_is_one_line_whose_remedy_works(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done = store.get(work())
    blob = store.blob(done.files["a.txt"])
    blob.chmod(0o644)
    blob.write_text("edited")
    with pytest.raises(UserError, match="sha256 differs") as caught:
        store.get(work())
    assert caught.value.key == str(blob) and "demo's a.txt" in str(caught.value)
    blob.unlink()
    assert store.get(work()).files == done.files and blob.read_text() == "a"


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set GENLOSS_STORE"):
        Store(tmp_path / "file" / "store")


def test_write_atomic_and_link(tmp_path: Path) -> None:
    path = tmp_path / "x" / "a.txt"
    write_atomic(path, "one")
    digest = sha256_file(path)
    write_atomic(path, "two")
    assert path.read_text() == "two" and sha256_file(path) != digest  # the remembered hash was not of the new file
    link(path, tmp_path / "y" / "b.txt")
    link(path, tmp_path / "y" / "b.txt")  # again, onto itself
    assert (tmp_path / "y" / "b.txt").samefile(path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.txt", "b.txt"]
    assert tree_hash({"a": "1", "b": "2"}) == tree_hash({"b": "2", "a": "1"}) != tree_hash({"a": "2", "b": "1"})


@pytest.mark.parametrize("how", ["write", "link"])
def test_an_error_leaves_nothing_that_was_written_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As a full disk makes it, between the beginning of a copy and its end."""

    def full(source: Path, target: Path) -> None:
        Path(target).write_text("a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(os, "link", other_disk)
    monkeypatch.setattr(os, "replace", full)
    target = tmp_path / "a.txt"
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, "x") if how == "write" else link(Path(__file__), target)
    assert not [path for path in tmp_path.iterdir() if path != target]


KILLED = """
import os, sys, pathlib
from genloss.core import files
os.replace = lambda *places: os._exit(9)
target = pathlib.Path(sys.argv[2])
files.write_atomic(target, "x") if sys.argv[1] == "write" else files.link(pathlib.Path(__file__), target)
"""


@pytest.mark.parametrize("how", ["write", "link"])
def test_a_kill_leaves_nothing_where_dvc_looks(tmp_path: Path, how: str) -> None:
    program, run = tmp_path / "program.py", tmp_path / "run"
    program.write_text(KILLED)
    write_atomic(run / "params.yaml", "")
    for name in ("rounds/01/train/mix.json", "data/train.parquet", "report/rounds.csv", "elsewhere/x"):
        assert subprocess.run([sys.executable, str(program), how, str(run / name)], check=False).returncode == 9
    left = [p for p in run.rglob("*") if p.is_file() and p.name != "params.yaml"]
    assert {str(p.relative_to(run).parent) for p in left} == {".genloss/tmp", "elsewhere"} and len(left) == 4
    dvcs = run / "rounds/01/.GUYdmWsTbh2EsYnIvA_t-g.tmp"
    dvcs.touch()
    sweep(run)
    assert all(p.is_file() for p in left) and not dvcs.exists()  # who wrote ours may be at work
    for path in left[:-1]:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genloss.core.files.OLD", -1.0)
        write_atomic(run / "rounds/.gitignore", "")
        sweep(run)
    assert sorted(p.name for p in run.rglob("*") if p.is_file()) == [".gitignore", "params.yaml"]


def test_a_worker_ends_with_its_parent() -> None:
    child = "import os, time; from genloss.core.machine import end_with; end_with(os.getppid()); "
    child += "print('works', flush=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", STARTER, sys.executable, "-c", child], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"works\n"
    ended_with(parent)


def test_dvc_ends_with_its_parent(tmp_path: Path) -> None:
    """It would keep its lock for good. Here it waits for somebody who writes into a pipe."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "texts").mkdir()
    os.mkfifo(tmp_path / "texts" / "pipe")
    parent = subprocess.Popen([sys.executable, "-c", STARTER, *DVC, "add", "texts"], cwd=tmp_path)
    while not (tmp_path / ".dvc" / "tmp" / "rwlock").exists():
        time.sleep(0.1)
    ended_with(parent)


STARTER = "import subprocess, sys; subprocess.run(sys.argv[1:])"


def ended_with(parent: subprocess.Popen) -> None:
    children = psutil.Process(parent.pid).children()
    assert children
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=300)[1] == []


# -- run directories -----------------------------------------------------------------------------------------------


def test_a_run_directory_outlives_its_store(tmp_path: Path) -> None:
    """What a directory holds (after `dvc pull`, say) is adopted, not computed."""
    first = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    done = first.ensure(work(stage="curate"), 1)
    other = RunDir(tmp_path / "run", Store(tmp_path / "new"))

    def never(out: Path, scratch: Path) -> dict:
        raise AssertionError("computed again")

    assert other.ensure(work(never, stage="curate"), 1) == done
    assert other.store.computed == 0
    # the new store can serve another arm
    arm = RunDir(tmp_path / "arm", Store(tmp_path / "new"))
    assert arm.ensure(work(never, stage="curate"), 1).files == done.files
    assert (tmp_path / "arm/rounds/01/a.txt").read_text() == "a"


def test_two_arms_share_one_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("x", "y"):
        RunDir(tmp_path / name, store).ensure(work(stage="curate"), 1)
    a, b = (tmp_path / n / "rounds/01/a.txt" for n in ("x", "y"))
    assert a.samefile(b) and store.computed == 1


def test_another_config_replaces_the_files_of_the_stage_and_no_others(tmp_path: Path) -> None:
    def file(name: str) -> Execute:
        def execute(out: Path, scratch: Path) -> dict:
            (out / name).write_text(name)
            return {}

        return execute

    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    run.ensure(work(stage="curate"), 1)
    run.ensure(work(file("t.txt"), stage="mix"), 1)
    run.ensure(work(file("c.txt"), stage="curate", config={"x": 2}), 1)
    left = sorted(p.name for p in (tmp_path / "run/rounds/01").rglob("*") if p.is_file())
    assert left == ["c.txt", "manifest.json", "t.txt"]


def test_edited_and_missing_files(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run", Store(tmp_path / "store"))
    run.ensure(work(stage="mix"), 1)
    path = tmp_path / "run/rounds/01/a.txt"
    path.unlink()
    with pytest.raises(UserError, match="is missing; `dvc checkout` or run again"):
        run.hash_of("mix", 1, "")
    run.ensure(work(stage="mix"), 1)
    assert path.read_text() == "a" and run.store.computed == 1
    path.unlink()
    path.write_text("edited")  # a file of its own: the store is whole
    with pytest.raises(UserError, match="is damaged or was edited") as caught:
        run.ensure(work(stage="mix"), 1)
    assert "which is the same file" not in str(caught.value)
    path.unlink()
    run.ensure(work(stage="mix"), 1)
    assert path.read_text() == "a" and run.store.computed == 1
    with pytest.raises(UserError, match="stage train of round 1 is not there"):
        run.hash_of("train", 1, "")


@pytest.mark.parametrize("name", ["../../notes.txt", "/etc/notes.txt", "sub/../../notes.txt"])
def test_files_of_a_strangers_manifest_stay_in_its_folder(tmp_path: Path, name: str) -> None:
    """A stage that is computed anew unlinks what its old entry names."""
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    run = RunDir(tmp_path / "runs" / "arm", Store(tmp_path / "store"))
    run.ensure(work(stage="mix"), 0)
    manifest = run.manifest_path("mix", 0)
    manifest.write_text(manifest.read_text().replace("a.txt", name))
    with pytest.raises(UserError, match="is damaged"):
        run.ensure(work(stage="mix", config={"x": 2}), 0)
    assert mine.read_text() == "mine"
