"""DVC's pipeline of a run: dvc.yaml, made from the stages and from params.yaml."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from genloss.core.errors import UserError
from genloss.core.files import OUTPUTS
from genloss.core.places import in_project, load_params, on_hub, project_root
from genloss.core.plugin import flatten, plain
from genloss.core.source import is_project
from genloss.experiment import KEYS, OPERATIONAL
from genloss.observatory.report import SUMMARY
from genloss.observatory.results import shown
from genloss.stages import ALL, DATA, MIX, TRAIN

# What a round's result depends on: everything but how it is carried out, and not the number of rounds, so that adding a
# round leaves the ones before it as they are.
PARAMS = [key for key in KEYS if key not in (*OPERATIONAL, "rounds", "schedule")]


def parameters(cfg: Mapping[str, Any]) -> list[str]:
    """PARAMS for DVC: of a group with keys that are no part of an arm, its other keys."""

    def parts(key: str, node: Any) -> list[str]:
        if key in OPERATIONAL:
            return []
        if not isinstance(node, Mapping) or not any(other.startswith(f"{key}.") for other in OPERATIONAL):
            return [key]
        return [part for name, value in node.items() for part in parts(f"{key}.{name}", value)]

    return [part for key in PARAMS for part in parts(key, cfg.get(key))]


def outputs(n: int, folder: str) -> list[str]:
    """What the stages of round 0, or of a later one, write; `folder` is the round's."""
    stages = [s for s in ALL if s.first <= n and not (s is DATA and n > 0)]
    written = [path if s is DATA else f"{folder}/{path}" for s in stages for path in s.writes]
    return [*written, f"{folder}/metrics.json", f"{folder}/manifest.json"]


def dvc_yaml(params: Path, code: bool) -> str:
    """The pipeline of the run with these params: one stage a round, unrolled through foreach. Rounds run again when the
    user's data change, and with `code` when source of the project does, genloss's or the user's."""
    cfg = load_params(params)
    source = [*(["src/genloss", *own_packages(params)] if code else []), *own_data(cfg, params.parent)]
    # in the root `dvc exp run -S trainer=NAME` may bring other keys than this file would name
    depends = PARAMS if code else parameters(plain(cfg))
    before = [
        f"rounds/${{item.prev}}/{name}" for name in (*MIX.writes, TRAIN.writes[0])
    ]  # what was trained on, and the model
    first = {
        "cmd": "genloss round 0",
        **({"deps": source} if source else {}),
        "params": depends,
        "outs": outputs(0, "rounds/00"),
    }
    later = {
        "foreach": "${dvc.rounds}",
        "do": {
            "cmd": "genloss round ${key}",
            "deps": [*source, *DATA.writes, *before],
            "params": [*depends, "dvc.rounds.${key}"],
            "outs": outputs(1, "rounds/${key}"),
        },
    }
    last = {
        "cmd": "genloss report . --out report",
        "deps": ["rounds"],
        "params": ["rounds"],
        "outs": ["report"],
        "metrics": [SUMMARY],  # of many hundred numbers those that a table of experiments has room for
    }
    head = "# Written by `genloss compose`. One stage a round; "
    head += "`dvc repro` runs what changed, from the first such round on.\n"
    plots = [{name: {"x": "round", "y": {"report/rounds.csv": name}, "x_label": "round"}} for name in shown(params)]
    stages = {"round-0": first, "round": later, "report": last}
    return head + yaml.safe_dump({"stages": stages, "plots": plots}, sort_keys=False, width=110)


def own_data(cfg: DictConfig, home: Path) -> list[str]:
    """The files and folders outside of the run that its config names by `path`, `tokenizer` or `judge`: a corpus, a
    saved model, a grammar. Relative to `home`, the run's folder, if the project has them. Another arm is none: its
    name says what it is."""
    home, project, found = home.resolve(), project_root(), set()
    for key, value in flatten(plain(cfg)):
        if key.rpartition(".")[2] not in ("path", "tokenizer", "judge") or not isinstance(value, str):
            continue
        if not value or on_hub(value, key):
            continue
        place = in_project(value, key).resolve()
        ours = place.is_relative_to(home) and place.relative_to(home).parts[:1] in [(out,) for out in OUTPUTS]
        if place.exists() and place != project and not ours and not (place / "params.yaml").is_file():
            _check(place, key, value)
            found.add(os.path.relpath(place, home) if place.is_relative_to(project) else str(place))
    return sorted(found)


def _check(place: Path, key: str, value: str) -> None:
    """Refuse a folder that DVC would not take after all rounds, for what is in it, whether or not the run reads that: a
    link to nothing, a pipe (DVC waits for somebody who writes to it), a .dvcignore, a name that is not UTF-8."""
    for folder, _, names in os.walk(place):
        for name in names:
            path = Path(folder) / name
            if not path.exists():
                why = "a link to nothing"
            elif not path.is_file():
                why = "no file"
            elif name == ".dvcignore":
                why = "which is for the root of a project"
            elif name.encode(errors="replace").decode() != name:
                why = "its name is not UTF-8"
            else:
                continue
            shown = os.fsencode(path.relative_to(place)).decode(errors="backslashreplace")
            wrong = f"holds {shown} ({why}), and DVC, which looks after the whole folder, does not take it"
            raise UserError(key, value, f"{wrong}; move it elsewhere")


def own_packages(params: Path) -> list[str]:
    """The packages, or single modules, of the classes that `params` names, as far as they are neither genloss nor
    installed; relative to the folder of `params`, without those that lie elsewhere: DVC would find them nowhere else.
    """
    root, found = params.resolve().parent, set()
    for top in re.findall(r"\b_target_: ['\"]?(\w+)", params.read_text()):
        if top == "genloss" or not is_project(top):
            continue
        spec = importlib.util.find_spec(top)
        assert spec is not None  # is_project has found it
        places = [Path(p).resolve() for p in spec.submodule_search_locations or [spec.origin or ""]]
        found |= {place.relative_to(root).as_posix() for place in places if place.is_relative_to(root)}
    return sorted(found)
