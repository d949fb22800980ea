"""Sweeps: many arms of one command, checked before the first one starts, resumed by the same command."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from genloss.core.errors import UserError, one_line, without_secrets
from genloss.core.files import write_atomic
from genloss.core.hashes import canonical, sha256_text
from genloss.core.places import load_params, project_root
from genloss.core.progress import Live
from genloss.core.replaced import replaced
from genloss.core.signals import Stopped
from genloss.experiment import Experiment
from genloss.observatory.results import Arm, arms_of, note_of, notes_of, sweep_entries
from genloss.workflow import disk
from genloss.workflow.arm import arm_dir, finished, headline, retired, run_arm
from genloss.workflow.dvc import own_data
from genloss.workflow.identity import SCHEME, arm_id, differing, label, names_of
from genloss.workflow.shown import Shown

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


MOST_ARMS = 10_000
NAMED: list[Path] = []  # what this process has named as its last line


def expand(parser: OverridesParser, params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: each combination of the swept values, the last one varying fastest.

    `params` (hydra.sweeper.params of an experiment file) come first; `arguments` (the command line) replace them.
    """
    given = parser.parse_overrides(list(arguments))
    named = {override.key_or_group for override in given}
    defaults = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    choices: dict[str, list[str]] = {}  # by key: of two overrides of one key the last one holds
    for override in [o for o in defaults if o.key_or_group not in named] + given:
        choices[override.get_key_element()] = _values(override)
    if (arms := math.prod(map(len, choices.values()))) > MOST_ARMS:
        raise UserError("sweep", f"{arms} arms", f"must have at most {MOST_ARMS}; sweep over fewer values")
    return [list(job) for job in itertools.product(*choices.values())]


def _values(override: Override) -> list[str]:
    """What one override stands for: itself, or an override for each value that it sweeps over."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        value = str(override.input_line).partition("=")[2]
        raise UserError(key, value, "has no list of values; write range(...) or a,b,c, or choose another hydra/sweeper")
    count = _length(override)
    if not 0 < count <= MOST_ARMS:
        value = str(override.input_line).partition("=")[2]
        raise UserError(key, value, f"has {'no values' if count == 0 else 'too many'}; 1 to {MOST_ARMS} make a sweep")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _length(override: Override) -> float:
    """How many values an override sweeps over, without listing them: of range(0,1000000000) that would not end."""
    from hydra.core.override_parser.types import RangeSweep

    value = override.value()
    if not isinstance(value, RangeSweep):
        return len(list(override.sweep_string_iterator()))
    assert value.start is not None and value.stop is not None
    return max(0, math.ceil((value.stop - value.start) / value.step)) if value.step else math.inf


def sweep_dir(configs: Sequence[DictConfig]) -> Path:
    return project_root() / "runs" / f"sweep-{sha256_text(canonical(sorted(arm_id(c) for c in configs)))[:12]}"


def sweep_of(hydra: HydraConf) -> Path | None:
    """The sweep that a job belongs to, by its node `hydra`; None outside of a sweep of ours."""
    from hydra.types import RunMode

    folder = Path(str(hydra.sweep.dir))
    return folder if hydra.mode == RunMode.MULTIRUN and (folder / "sweep.json").is_file() else None


def run_in_sweep(cfg: DictConfig, sweep: Path) -> float | None:
    """Run an arm and note in the sweep how it ended; returns its headline metric."""
    identity = arm_id(cfg)
    note = sweep / "arms" / f"{identity}.json"
    entry = note_of(sweep, identity) if note.is_file() else {"name": label(cfg)}
    found = None
    try:
        folder = run_arm(cfg, entry["name"], sweep / "progress", sweep)
        found = headline(folder)
        entry |= {"state": "finished", "dir": os.path.relpath(folder, sweep), "error": None}
    except Exception as raised:
        error = raised if isinstance(raised, (UserError, OSError)) else replaced(raised) or raised
        expected = isinstance(error, (UserError, OSError))
        entry |= {
            "state": "failed",
            "dir": os.path.relpath(arm_dir(cfg), sweep),
            "error": one_line(error),
            "traceback": None if expected else without_secrets(traceback.format_exc()),
        }
    except Stopped as stopped:
        entry |= {"state": "interrupted", "dir": os.path.relpath(arm_dir(cfg), sweep), "error": None}
        write_atomic(note, json.dumps(entry, indent=1))
        raise stopped
    write_atomic(note, json.dumps(entry, indent=1))
    return found


def left_to_do(
    folder: Path, jobs: Sequence[list[str]], arms: Sequence[Experiment]
) -> list[tuple[list[str], Experiment]]:
    """The jobs and arms of a sweep that are not finished. They are looked at here: a launcher would compose each of
    them anew, and perhaps queue for a machine, to find that there is nothing to do."""
    shown, left = Shown(arms[0].cfg), []
    for job, arm, entry in zip(jobs, arms, sweep_entries(folder), strict=True):
        if not (entry["state"] == "finished" and finished(arm, entry["name"], folder, shown)):
            left.append((job, arm))
    return left


def look_at_disk(arms: Sequence[Experiment], jobs: int) -> None:
    """Before anything is written: see that the disk can hold the arms of a sweep, `jobs` at a time."""
    disk.tidy()
    sys.stderr.write(disk.checked(arms, [arm_dir(arm.cfg) for arm in arms], jobs))


def begin(folder: Path, arms: Sequence[Experiment], left: Sequence[Experiment]) -> None:
    """Before the first arm of a sweep runs: note which models they share, and that those which are left have not
    ended, though they had before code changed, say: they need what they share."""
    for arm in left:
        entry = note_of(folder, arm_id(arm.cfg))
        if entry["state"] == "finished":
            note = folder / "arms" / f"{arm_id(arm.cfg)}.json"
            write_atomic(note, json.dumps(entry | {"state": "waiting"}, indent=1))
    disk.share(folder, [(arm_id(arm.cfg), arm, arm_dir(arm.cfg)) for arm in arms])


def end(folder: Path, arms: Sequence[Experiment]) -> None:
    """Let the store drop models that arms have kept for each other."""
    for arm, entry in zip(arms, sweep_entries(folder), strict=True):
        if entry["state"] == "finished" and arm.keep.dropped(arm.rounds):
            retired(arm, folder)


def show(folder: Path, cfg: DictConfig, left: Sequence[object]) -> contextlib.AbstractContextManager[None]:
    """MLflow follows a sweep if there is something to show."""
    from genloss.workflow.tracking import following

    return following(folder, cfg) if left or not Shown(cfg).sweep(folder) else contextlib.nullcontext()


@contextlib.contextmanager
def live(folder: Path | None, configs: Sequence[DictConfig]) -> Iterator[Path]:
    """Live progress of arms; yields the folder of their states."""
    here = socket.gethostname()
    states = folder or project_root() / ".genloss" / "progress" / f"{here}-{os.getpid()}"
    for left in states.parent.glob("*-*") if folder is None else ():  # of runs that were killed
        host, _, number = left.name.rpartition("-")
        if host == here and number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(states, ignore_errors=True)
    try:
        with Live(states, len(configs)):
            yield states
    finally:
        shutil.rmtree(states, ignore_errors=True)


def distinct(jobs: Sequence[list[str]], configs: Sequence[DictConfig]) -> tuple[list[list[str]], list[Experiment]]:
    """Check every arm; of jobs that are one arm the first is left."""
    arms: dict[str, tuple[list[str], Experiment]] = {}
    for job, cfg in zip(jobs, configs, strict=True):
        experiment = Experiment(cfg)
        own_data(cfg, arm_dir(cfg))
        arms.setdefault(arm_id(cfg), (job, experiment))
    if same := len(jobs) - len(arms):
        print(f"genloss: {same} of {len(jobs)} combinations are an arm that is among them already", file=sys.stderr)
    return [job for job, _ in arms.values()], [experiment for _, experiment in arms.values()]


def prepare_sweep(configs: Sequence[DictConfig], chosen: str | None = None) -> Path:
    """Write the arms down, so that an interrupted sweep knows what it was to run; returns its folder.

    chosen: the folder, if the user named one.
    """
    folder = Path(chosen).resolve() if chosen else sweep_dir(configs)
    for cfg, name in zip(configs, names_of(configs), strict=True):
        note = folder / "arms" / f"{arm_id(cfg)}.json"
        if not note.is_file():
            entry = {
                "name": name,
                "state": "waiting",
                "dir": os.path.relpath(arm_dir(cfg), folder),
                "error": None,
            }
            write_atomic(note, json.dumps(entry, indent=1))
    order = [arm_id(c) for c in configs]
    write_atomic(
        folder / "sweep.json", json.dumps({"arms": order, "scheme": SCHEME, "command": sys.argv[1:]}, indent=1)
    )
    print(f"genloss: {len(configs)} arms; {folder}", file=sys.stderr)
    return folder


def true_arms(folder: Path) -> list[Arm]:
    """The arms of a sweep whose folders hold what the sweep says, or the one of a run directory; a line on standard
    error names the others. Of a sweep that was made when arms were named otherwise nobody can say."""
    arms = arms_of(folder)
    if not (folder / "sweep.json").is_file():
        return arms
    sweep = notes_of(folder)
    if sweep.scheme != SCHEME:
        return arms
    found = []
    for identity, (name, arm) in zip(sweep.arms, arms, strict=True):
        params = arm / "params.yaml"
        if params.is_file() and arm_id(load_params(params)) != identity:
            wrong = f"is left out: {arm} holds another config than the sweep's arm; delete it and run the sweep again"
            print(f"genloss: {UserError(name, None, wrong)}", file=sys.stderr)
            continue
        found.append((name, arm))
    return found


def told_apart(arms: Sequence[Arm]) -> list[Arm]:
    """The arms of several sweeps and run directories, each once. Where one has the name of its folder, or two sweeps
    gave one name to different arms, all whose configs are here are named by what differs among them."""
    once = list({folder.resolve(): (name, folder) for name, folder in reversed(arms)}.values())[::-1]
    if len(once) == 1 or len({name for name, _ in once} - {folder.name for _, folder in once}) == len(once):
        return once
    here = {folder: load_params(params) for _, folder in once if (params := folder / "params.yaml").is_file()}
    names = dict(zip(here, names_of(list(here.values())), strict=True)) if here else {}
    return [(names.get(folder, name), folder) for name, folder in once]


def name_folder(kind: str, folder: Path) -> None:
    """The last line of a command."""
    print(f"{kind}: {folder}")
    NAMED.append(folder)


def finish_sweep(folder: Path) -> int:
    """Table, figure, failures, and the folder as the last line."""
    from genloss.observatory.report import PAGE, next_commands, write_report
    from genloss.observatory.samples import printable

    entries = sweep_entries(folder)
    finished = [e for e in entries if e["state"] == "finished"]
    if finished:
        arms = true_arms(folder)
        print(printable(write_report(arms, folder, None, False, differing(arms), [folder], folder / PAGE)))
        print(next_commands(folder))
    failed = [e for e in entries if e["state"] != "finished"]
    for entry in failed:
        print(f"genloss: failed: {entry['name']}: {entry.get('error') or 'it never ended'}", file=sys.stderr)
        if entry.get("traceback"):
            print(entry["traceback"], file=sys.stderr)
    if failed:
        print(
            f"genloss: {len(failed)} of {len(entries)} arms failed; the same command tries them again",
            file=sys.stderr,
        )
    name_folder("sweep", folder)
    return 1 if failed else 0
