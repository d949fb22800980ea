"""Sweeps: many arms of one command, checked before the first one starts, resumed by the same command."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.hashes import canonical, sha256_text
from genloss.core.places import project_root
from genloss.core.progress import Live
from genloss.observatory.results import sweep_entries
from genloss.workflow.arm import arm_dir, run_arm
from genloss.workflow.compose import compose, resolve
from genloss.workflow.identity import arm_id, label, names_of

SWEEP = "GENLOSS_SWEEP"  # the sweep's folder, for the jobs that Hydra launches


def expand(overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of a sweep, before anything runs: every arm is composed and checked first."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    jobs = BasicSweeper.split_arguments(parsed, None)[0]
    return [compose(job) for job in jobs]


def sweep_dir(configs: Sequence[DictConfig]) -> Path:
    return project_root() / "runs" / f"sweep-{sha256_text(canonical(sorted(arm_id(c) for c in configs)))[:12]}"


_failure: list[Exception] = []


def job(cfg: DictConfig) -> None:
    """What Hydra calls for every arm. A failure is written down, not raised, so that the other arms go on."""
    resolved = resolve(cfg)
    if SWEEP not in os.environ:
        try:
            with live(None, [resolved]) as states:
                folder = run_arm(resolved, states=states)
        except (
            UserError,
            OSError,
        ) as error:  # raised again outside Hydra, which would print more than its one line
            _failure.append(error)
            return
        print(f"run: {folder}")
        return
    sweep = Path(os.environ[SWEEP])
    identity = arm_id(resolved)
    note = sweep / "arms" / f"{identity}.json"
    entry = json.loads(note.read_text()) if note.is_file() else {"name": label(resolved)}
    try:
        folder = run_arm(resolved, entry["name"], sweep / "progress", sweep)
        entry |= {"state": "finished", "dir": os.path.relpath(folder, sweep), "error": None}
    except KeyboardInterrupt:
        raise
    except Exception as error:
        expected = isinstance(error, (UserError, OSError))
        entry |= {
            "state": "failed",
            "dir": os.path.relpath(arm_dir(resolved), sweep),
            "error": " ".join(str(error).split()),
            "traceback": None if expected else traceback.format_exc(),
        }
    write_atomic(note, json.dumps(entry, indent=1))


@contextlib.contextmanager
def live(folder: Path | None, configs: Sequence[DictConfig]) -> Iterator[Path]:
    """Live progress of arms; yields the folder of their states."""
    states = folder or project_root() / ".genloss" / "progress" / str(os.getpid())
    shutil.rmtree(states, ignore_errors=True)
    with Live(states, len(configs)):
        yield states
    shutil.rmtree(states, ignore_errors=True)


def prepare_sweep(configs: Sequence[DictConfig]) -> Path:
    """Write down the sweep's arms, so that an interrupted sweep knows what it was to run."""
    folder = sweep_dir(configs)
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
    write_atomic(folder / "sweep.json", json.dumps({"arms": order, "command": [*sys.argv[1:]]}, indent=1))
    return folder


def finish_sweep(folder: Path) -> int:
    """Table, figure, failures, and the folder as the last line."""
    from genloss.observatory.report import next_commands, report_sweep

    entries = sweep_entries(folder)
    finished = [e for e in entries if e["state"] == "finished"]
    if finished:
        print(report_sweep(folder))
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
    print(f"sweep: {folder}")
    return 1 if failed else 0
