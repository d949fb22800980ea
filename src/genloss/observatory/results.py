"""Finished rounds as numbers: the arms of a folder, and the metrics of every round.

rounds_of(Path("runs/text-replace-none-s0-1a2b"))[3]["distinct_2"]     one number of round 3
arms_of(Path("runs/sweep-1234abcd"))               [("replace seed 0", its folder), ...]
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from genloss.core.contracts import Domain, Plugin
from genloss.core.errors import UserError
from genloss.core.files import read_json
from genloss.core.hashes import sha256_text
from genloss.core.places import load_params
from genloss.core.plugin import locate
from genloss.core.rundir import manifest_at, round_name

TURN = 0.01  # by which share of itself a loss must rise above its least value to have turned

Arm = tuple[str, Path]  # name, folder
Rounds = dict[int, dict[str, float]]  # {round: {metric: number}}
Read = tuple[str, Rounds]  # name of an arm, its finished rounds


def rounds_of(folder: Path) -> Rounds:
    """The finished rounds of a run directory; without those that an earlier, longer config left there."""
    params = folder / "params.yaml"
    last = load_params(params).get("rounds") if params.is_file() else None
    found = {}
    for path in sorted((folder / "rounds").glob("[0-9]*/metrics.json")):
        if last is not None and int(path.parent.name) > last:
            continue
        found[int(path.parent.name)] = metrics_of(path.parent)
    return found


def without_rounds(folder: Path) -> UserError:
    """Why a folder has no finished round."""
    if (folder / "dvc.lock").is_file():
        return UserError(str(folder), None, f"its data are not here; `genloss pull {folder}` fetches them")
    if (folder / "params.yaml").is_file():
        return UserError(str(folder), None, "has no finished round yet; its command goes on from where it was")
    return UserError(str(folder), None, "is no run directory (no params.yaml)")


def metrics_of(folder: Path) -> dict[str, float]:
    """The numbers of one finished round. UserError if they are not those that its manifest was written with."""
    entered = manifest_at(folder).get("metrics")  # None: of before 2026-11-27

    def numbers(text: str) -> dict[str, float]:
        if entered not in (None, sha256_text(text)):
            raise ValueError
        return {str(name): float(value) for name, value in json.loads(text).items()}

    return read_json(folder / "metrics.json", dict, "run again (nothing computed is lost)", numbers)


def manifest(folder: Path, n: int) -> dict[str, Any]:
    """What the manifest of a round says. UserError of one that is not there, or damaged."""
    home = folder / "rounds" / round_name(n)
    if found := manifest_at(home):
        return found
    raise UserError(str(home / "manifest.json"), None, "is not there; run its command again")


def added_to(folder: Path, n: int) -> list[str]:
    """The numbers of a round that were added after it (`genloss report --metrics`), without floors."""
    names = [name for metric in manifest(folder, n).get("added", {}).values() for name in metric["result"]]
    return [name for name in names if name != "n_samples" and not name.endswith("_floor")]


AGAIN = "run the sweep again (nothing computed is lost)"


class Notes(NamedTuple):
    """What a sweep's folder says of it."""

    command: list[str]  # arguments of `genloss run`
    scheme: int | None  # by which arms are named; None: of before there was one
    arms: dict[str, dict[str, Any]]  # by id, in their order: name, state, dir (relative to the sweep), error


def notes_of(folder: Path) -> Notes:
    """Of a sweep's folder. UserError of a file of it that is not there, or damaged."""

    def whole(said: dict[str, Any]) -> tuple[list[str], int | None, list[str]]:
        return _words(said.get("command", [])), said.get("scheme"), _words(said["arms"])

    command, scheme, order = read_json(folder / "sweep.json", whole, AGAIN)
    return Notes(command, scheme, {arm: note_of(folder, arm) for arm in order})


def _words(said: list[str]) -> list[str]:
    if not (isinstance(said, list) and all(isinstance(word, str) for word in said)):
        raise TypeError
    return said


def note_of(folder: Path, arm: str) -> dict[str, Any]:
    """What a sweep notes of the arm with this id."""

    def whole(note: dict[str, Any]) -> dict[str, Any]:
        _words([note[key] for key in ("name", "state", "dir")])
        return {"error": None, **note}

    return read_json(folder / "arms" / f"{arm}.json", whole, AGAIN)


def sweep_entries(folder: Path) -> list[dict[str, Any]]:
    """The arms of a sweep, in their order."""
    return list(notes_of(folder).arms.values())


def arms_of(folder: Path) -> list[Arm]:
    """The arms of a sweep, or the one of a run directory."""
    folder = folder.resolve()
    if (folder / "sweep.json").is_file():
        return [(e["name"], (folder / e["dir"]).resolve()) for e in sweep_entries(folder)]
    if not (folder / "params.yaml").is_file():
        raise UserError(str(folder), None, "is neither a run directory (params.yaml) nor a sweep (sweep.json)")
    return [(folder.name, folder)]


def shown(params: Path) -> list[str]:
    """The metrics that the domain of a run is about, the most important one first."""
    domain = locate(str(load_params(params).domain._target_), Domain, "domain")
    return [domain.headline, *domain.panels]


def asked(folder: Path) -> list[str]:
    """The numbers that the metrics of a run are about which its domain is not about, and those that were added."""
    found: list[str] = []
    for name, node in (load_params(folder / "params.yaml").get("metrics") or {}).items():
        panels = None
        with contextlib.suppress(UserError):  # of a class that is gone nothing else is known
            panels = getattr(locate(str(node._target_), Plugin, f"metrics.{name}"), "panels", None)
        found += [str(name)] if panels is None else panels
    rounds = rounds_of(folder)
    found += [name for name in added_to(folder, max(rounds, default=0)) if is_metric(name)]
    return [name for name in dict.fromkeys(found) if any(name in values for values in rounds.values())]


TIMES = ("seconds/", "tokens_per_second/")  # which differ between two runs of one thing
COUNTS = ("n_", "train_", "dropped/", "generate/", *TIMES, "theory/")
BESIDE = ("_floor", "_se", "_low", "_high")  # of a metric, what it is read beside


def is_metric(name: str) -> bool:
    """Whether a number says something of what a model is or makes: no count, time or prediction, and no floor,
    standard error or end of an interval of another one."""
    return not name.startswith(COUNTS) and not name.endswith(BESIDE)


def measured(params: Path, runs: Sequence[Read]) -> list[str]:
    """Those of `shown` that an arm has; else, in a run without them, those of `asked`, or a few that it has: metrics
    before counts."""
    known = {name for _, rounds in runs for values in rounds.values() for name in values}
    about = [name for name in shown(params) if name in known]
    return (
        about
        or asked(params.parent)
        or sorted(known, key=lambda name: (name.startswith(COUNTS), name.endswith(BESIDE), name))[:3]
    )


def turned(folder: Path, rounds: Rounds) -> str:
    """A warning if a training on real records alone went on after its validation loss had turned; '' if none did."""
    for n, metrics in rounds.items():
        path = folder / "rounds" / f"{n:02d}" / "training.csv"
        if metrics.get("train_real_fraction") != 1 or not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
        losses = {int(row["step"]): float(row["validation_loss"]) for row in rows}
        least = min(losses, key=losses.__getitem__, default=0)
        if losses and losses[max(losses)] > (1 + TURN) * losses[least]:
            return (
                f"in round {n} the loss on validation turned: {losses[least]:.3f} at step {least}, "
                f"{losses[max(losses)]:.3f} at the last. It overfits its {metrics['train_records']:.0f} real records, "
                "and training on them again is no floor; take more of them (size) or fewer steps (trainer.steps)"
            )
    return ""
