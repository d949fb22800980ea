"""What runs take on disk: told in a line before they begin, refused where it cannot be, and what nobody needs deleted.

Models are counted by what they follow from (`lineage`), so that those which several arms share count once. All of it is
an estimate from the config, and rather too much: hard links make one file of what run directory, store and DVC's cache
hold of one content, and records are compressed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.contracts import silent
from genloss.core.errors import UserError
from genloss.core.files import read_json, write_atomic
from genloss.core.hashes import canonical, sha256_text
from genloss.core.places import project_root, store_root
from genloss.core.plugin import plain, without
from genloss.core.retention import Keep
from genloss.core.rundir import CLAIM, RunDir
from genloss.core.store import Kept
from genloss.experiment import OPERATIONAL, Experiment
from genloss.language.saved import models_root
from genloss.observatory.results import AGAIN, note_of
from genloss.stages import ALL, DATA, EVALUATE, TRAIN, Job
from genloss.workflow.dvc_config import cache_dir

SHARED = "shared.json"  # of a sweep: which arms share models
CHECKPOINT = 12  # bytes of a checkpoint for a number that is trained: it and two moments, in float32
AT_WORK = 3  # models that an arm needs at a time: that of round 0, the last one, and the next
PLACED = ("model", "domain", "recipe", "curation")  # groups that may name files of the user's
FILES = 3  # files that a record is in: generated, kept or rejected, mixed


# -- who shares models with whom ---------------------------------------------------------------------------------------


def lineage(experiment: Experiment, run: RunDir) -> list[str]:
    """For each round a name of what its model follows from, as far as configs say: two arms in which it is the same
    have the same model."""
    found, before = [], ""
    for n in range(experiment.rounds + 1):
        x = experiment.at_round(n)
        job = Job(x, n, run, silent)
        # whole groups too: what their places name is not in the config of a stage
        said: list[Any] = [
            without(plain(x.cfg), OPERATIONAL)[key] for key in (("model", "domain") if n == 0 else PLACED)
        ]
        for stage in ALL:
            if n >= stage.first and stage is not EVALUATE and not (stage is DATA and n > 0):
                said.append([stage.name, stage.config(job), stage.seed(job)])
        before = sha256_text(canonical([before, said]))[:16]
        found.append(before)
    return found


def share(folder: Path, arms: Sequence[tuple[str, Experiment, Path]]) -> None:
    """Note in a sweep's folder which arms share models of which rounds. arms: (id, experiment, folder)."""
    groups: dict[tuple[int, str], list[str]] = {}
    if any(x.keep.dropped(x.rounds) for _, x, _ in arms):
        for name, x, home in arms:
            for n, line in enumerate(lineage(x, RunDir(home, Kept(store_root())))):
                groups.setdefault((n, line), []).append(name)
    shared = [{"round": n, "arms": names} for (n, _), names in groups.items() if len(names) > 1]
    write_atomic(folder / SHARED, json.dumps(shared))


def needed_by_others(sweep: Path | None, arm: str) -> Callable[[int], bool]:
    """Whether another arm of the sweep, one that has not ended, has the same model of a round as this one."""
    path = sweep / SHARED if sweep else None
    groups = read_json(path, list, AGAIN) if path and path.is_file() else []
    beside = {g["round"]: [other for other in g["arms"] if other != arm] for g in groups if arm in g["arms"]}

    def finished(other: str) -> bool:
        assert sweep is not None
        return (sweep / "arms" / f"{other}.json").is_file() and note_of(sweep, other)["state"] == "finished"

    return lambda n: not all(map(finished, beside.get(n, ())))


# -- what it costs -----------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Bytes that are still to be written: of models that stay, of records, and of what is there while arms work."""

    models: int = 0
    count: int = 0
    records: int = 0
    work: int = 0

    @property
    def all(self) -> int:
        return self.models + self.records + self.work

    def on(self, store: bool) -> int:
        """Of a disk: what is there while arms work lies on the store's alone."""
        return self.all if store else self.all - self.work


def cost(arms: Sequence[Experiment], folders: Sequence[Path], jobs: int = 1, keep: Keep | None = None) -> Cost:
    """Of arms that run `jobs` at a time; what is there already costs nothing. keep: in place of their own."""
    found, there = Cost(), set[str]()
    stays: dict[str, int] = {}
    lines: dict[str, list[int]] = {}  # of models that go: their sizes, one an arm
    most, working = 0, 0
    for x, home in zip(arms, folders, strict=True):
        run, rule = RunDir(home, Kept(store_root())), keep or x.keep
        dropped = rule.dropped(x.rounds)
        going = dropped - rule.reference
        made = _made(run, x.rounds)
        if set(made) >= set(range(x.rounds + 1)) and not any(n not in dropped and not run.holds(n) for n in made):
            continue
        working += 1
        try:
            sizes = [x.at_round(n).model.size(x.at_round(n)) for n in range(x.rounds + 1)]
        except UserError as error:
            raise error.under("model") from None
        for n, line in enumerate(lineage(x, run)):
            if n in made and run.holds(n):
                there.add(line)
            elif n not in going or x.at_round(n).trainer.start == "stacked":  # adapters below others stay with them
                stays[line] = sizes[n].saved
            elif n not in made:
                lines.setdefault(line, []).append(sizes[n].saved)
        record = x.domain.record_bytes()
        for n in range(1, x.rounds + 1):
            if n not in made:
                found.records += FILES * record * (x.at_round(n).recipe.at_most() or x.size)
        biggest = max(sizes, key=lambda size: size.saved)
        passing = min(AT_WORK, len(going)) * biggest.saved
        most = max(most, passing + (2 * CHECKPOINT * biggest.trained if _checkpoints(x) else 0))
    left = [size for line, size in stays.items() if line not in there]
    found.models, found.count = sum(left), len(left)
    waiting = sum(max(each) for line, each in lines.items() if len(each) > 1 and line not in stays)  # for the others
    found.work = min(jobs, working) * most + waiting
    return found


def _made(run: RunDir, last: int) -> list[int]:
    """The rounds whose training is in a run directory. What is wrong with that the run says."""
    try:
        return [n for n in range(last + 1) if run.done(TRAIN.name, n)]
    except (UserError, OSError):
        return []


def _checkpoints(x: Experiment) -> bool:
    return bool(getattr(x.trainer, "checkpoint_minutes", 0))


def checked(arms: Sequence[Experiment], folders: Sequence[Path], jobs: int = 1) -> str:
    """A line that says what arms will cost on disk, '' if nothing; UserError if the disk cannot hold it."""
    there = cost(arms, folders, jobs)
    if not there.all:
        return ""
    models = f"{there.count} model{'s' * (there.count > 1)}"
    parts = [f"{models}, {amount(there.models)}"] if there.models else []
    parts += [f"records, {amount(there.records)}"] if there.records else []
    disks = list(_disks())
    for place, free, store in disks:
        if there.on(store) > free:
            raise _refused(arms, folders, jobs, there, place, free, store)
    _, free, store = min(disks, key=lambda disk: disk[1] - there.on(disk[2]) if there.on(disk[2]) else math.inf)
    parts += [f"while it works, {amount(there.work)}"] if there.work and store else []
    most = amount(there.on(store))
    beside = f", and {models} of a size that is known once the base is read" if there.count and not there.models else ""
    return f"genloss: needs at most {most} of disk ({'; '.join(parts)}){beside}; {amount(free)} are free\n"


def _refused(
    arms: Sequence[Experiment], folders: Sequence[Path], jobs: int, there: Cost, place: Path, free: int, store: bool
) -> UserError:
    need = f"needs up to {amount(there.on(store))} on the disk of {place}, where {amount(free)} are free"
    if there.on(store) - there.records < there.records:
        return UserError("size", arms[0].size, f"{need}, most of it for records; lower it or recipe.n, or free space")
    remedies = []
    for models in ("last", "none"):
        less = cost(arms, folders, jobs, Keep(models))
        if less.on(store) < there.on(store):
            remedies.append(f"keep.models={models} needs {amount(less.on(store))}")
            break
    if any("base" in x.model.starts() and getattr(x.model, "lora", 0) is None for x in arms):
        remedies.append("an adapter (model/adapter=lora) needs a hundredth for each model")
    said = "; ".join([*remedies, "or free space"])
    return UserError("keep.models", arms[0].keep.models, f"{need}; {said}")


def _disks() -> Iterator[tuple[Path, int, bool]]:
    """(place, free bytes, whether the store is there) of every disk that the project writes to."""
    seen = set[int]()
    for place in (store_root(), project_root() / "runs", cache_dir()):
        there = next(p for p in (place, *place.parents) if p.exists())
        if (device := there.stat().st_dev) not in seen:
            yield place, shutil.disk_usage(there).free, not seen
            seen.add(device)


def amount(size: float) -> str:
    """Bytes, to be read."""
    size, unit = size / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size >= 999.5:
            size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if size >= 9.95 else f"{size:.1f} {unit}"


# -- what killed stages have left --------------------------------------------------------------------------------------


def tidy() -> None:
    """Delete what killed stages have left that nobody will go on with, and say how much it was."""
    freed = sum(map(_gone, [*(store_root() / "scratch").glob("*"), *models_root().glob(".gguf-*")]))
    for link in models_root().glob("*"):
        if link.is_symlink() and not link.exists():  # the base of an adapter is elsewhere now, or nowhere
            link.unlink(missing_ok=True)
    if freed:
        print(f"genloss: deleted {amount(freed)} that killed stages had left for runs that are gone", file=sys.stderr)


def _gone(folder: Path) -> int:
    """Delete a folder that is left and that nobody needs; returns its bytes."""
    if folder.parent.name == "scratch":
        lock = store_root() / "locks" / folder.name
        needless = not _goes_on(folder)
    else:
        lock, needless = folder.with_name(f"{folder.name}.lock"), folder.suffix != ".lock"
    if not needless:
        return 0
    with contextlib.suppress(OSError), lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else somebody works there
        size = sum(p.lstat().st_size for p in folder.rglob("*") if p.lstat().st_nlink == 1)
        shutil.rmtree(folder, ignore_errors=True)
        return size
    return 0


def _goes_on(scratch: Path) -> bool:
    """Whether the run that has worked in a scratch folder would go on there."""
    try:
        claim = json.loads((scratch / CLAIM).read_text(encoding="utf-8"))
        run, stage, n = Path(claim["run"]), str(claim["stage"]), int(claim["round"])
    except FileNotFoundError:
        return True  # it has just been made, or is of a genloss that did not say
    except (ValueError, KeyError, TypeError, OSError):
        return False  # a kill has left it empty
    if not run.is_dir():
        return False
    try:
        done = RunDir(run, Kept(store_root())).done(stage, n)
    except UserError:  # damaged, which is another's to say
        return True
    return done is None or done.key in (scratch.name, claim.get("before"))
