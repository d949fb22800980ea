"""`genloss push` and `genloss pull`: the arms of a sweep by DVC's remote, and what belongs into Git beside them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from genloss.core.errors import UserError, nearest
from genloss.core.files import write_atomic
from genloss.core.places import project_root
from genloss.observatory.results import Arm, arms_of
from genloss.workflow.dvc_cache import DVC, committed
from genloss.workflow.dvc_config import configure, remotes
from genloss.workflow.sweep import true_arms

SMALL = ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc/config", "what_if.json")  # of an arm
OF_SWEEP = ("sweep.json", "arms/*.json", "report.html", "verdicts.json", "report.md", "rounds.*")


def push(folder: Path, remote: str | None) -> int:
    """Send the data of all arms to the remote, and say which small files bring them to others by Git."""
    folder = folder.resolve()
    arms = true_arms(folder)
    for name, arm in arms:
        if not (arm / "params.yaml").is_file() or not committed(arm):
            raise UserError(name, None, f"is not finished ({arm}); run its command again, then push")
    for _, arm in arms:
        configure(arm)  # the remote may be newer than the arm
    _check_remote(arms[0][1], remote)
    code = _each(arms, ["push"], remote)
    if code == 0:
        patterns = OF_SWEEP if (folder / "sweep.json").is_file() else ()
        small = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        small += [arm / name for _, arm in arms for name in SMALL if (arm / name).is_file()]
        listed = folder / "share.txt"
        root = project_root()
        write_atomic(listed, "".join(f"{os.path.relpath(path, root)}\n" for path in [*small, listed]))
        command = f"git add -f --pathspec-from-file={shlex.quote(os.path.relpath(listed, root))}"
        print(f"\npushed {len(arms)} arms; in the project's root, for others:\n  {command} && git commit -m 'a sweep'")
    return code


def pull(folder: Path, remote: str | None) -> int:
    """Fetch the data of all arms, from what Git has of a sweep."""
    arms = arms_of(folder.resolve())
    for name, arm in arms:
        lock = arm / "dvc.lock"
        if not (lock.is_file() and lock.stat().st_size):
            raise UserError(
                name,
                None,
                f"has no dvc.lock, or an empty one ({arm}); check out what `genloss push` lists in share.txt",
            )
    for _, arm in arms:
        configure(arm)
    _check_remote(arms[0][1], remote)
    return _each(arms, ["pull"], remote)


def _check_remote(arm: Path, remote: str | None) -> None:
    """Refuse what DVC would say of each arm, and of the wrong folder."""
    known, default = remotes(arm)
    wanted = remote or default
    if wanted in known:
        return
    why = f"unknown; {nearest(wanted, known)}" if wanted and known else "there is none"
    raise UserError("--remote", wanted, f"{why}; make one in {project_root()}: dvc remote add -d NAME URL")


def _each(arms: Sequence[Arm], verb: Sequence[str], remote: str | None) -> int:
    """A DVC command in each arm; 1 if one failed, after all have been tried."""
    failed = 0
    for name, arm in arms:
        print(f"{name}:", flush=True)
        command = [*DVC, "--wait-for-lock", *verb, *(["-r", remote] if remote else [])]
        if subprocess.run(command, cwd=arm, check=False).returncode != 0:
            failed += 1
            print(f"genloss: {verb[0]} of {name} failed ({arm})", file=sys.stderr)
    return 1 if failed else 0
