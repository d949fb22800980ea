"""`genloss compose`: params.yaml and dvc.yaml, of the project or of one run directory."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genloss.core.errors import UserError
from genloss.core.files import link, write_atomic
from genloss.core.places import load_params, project_root
from genloss.core.rundir import round_name
from genloss.experiment import GROUPS, Experiment
from genloss.observatory.results import rounds_of
from genloss.workflow.compose import check_underived, compose, hydra_error, resolve, to_yaml
from genloss.workflow.identity import arm_id, label


def rounds_for_dvc(cfg: DictConfig) -> DictConfig:
    """The node `dvc`: what DVC's foreach needs, derived from `rounds` and `schedule`."""
    from hydra_plugins.genloss import unroll

    return OmegaConf.create({"rounds": unroll(cfg.rounds, cfg.schedule)})


def change(path: Path, overrides: Sequence[str]) -> DictConfig:
    """params.yaml of a run directory with other values, in Hydra's syntax; conf/ and its groups are not asked."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    there = load_params(path)  # its errors are the better ones
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        check_underived(key)
        if isinstance(there.get(key), DictConfig) and not value.startswith("{"):
            other = f"; another option is another arm: genloss run {key}={value}" if key in GROUPS else ""
            raise UserError(key, value, f"--dir takes values alone, as in {key}.KEY=VALUE{other}")
    with tempfile.TemporaryDirectory(prefix="genloss-compose-") as alone:  # Hydra would take rounds/ for a config group
        shutil.copyfile(path, Path(alone) / path.name)
        try:
            with initialize_config_dir(alone, version_base="1.3"):
                cfg = resolve(hydra_compose(path.stem, overrides=list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise hydra_error(error, there=there) from None
    cfg.dvc = rounds_for_dvc(cfg)
    return cfg


def compose_params(overrides: Sequence[str], check: bool, folder: Path | None = None) -> int:
    """`genloss compose`: conf/ plus overrides, resolved, to params.yaml of the project; or a run directory's, changed:
    another arm, in a folder of its own beside it, which is printed."""
    path = (folder or project_root()).resolve() / "params.yaml"
    if folder is None:
        cfg = compose(overrides)
    else:
        cfg = change(path, overrides)
    Experiment(cfg)
    text = to_yaml(cfg)
    if check:
        current = path.is_file() and path.read_text() == text
        print(f"{path}: {'current' if current else 'stale; run `genloss compose`'}")
        return 0 if current else 1
    if folder is not None and path.parent != project_root() and arm_id(cfg) != arm_id(load_params(path)):
        print(what_if(path.parent, cfg, overrides))
        return 0
    from genloss.workflow.dvc import dvc_yaml

    write_atomic(path, text)
    write_atomic(path.with_name("dvc.yaml"), dvc_yaml(path, code=path.parent == project_root()))
    print(path)
    if overrides and folder is None:
        again = "`dvc exp run -S ...` composes from conf/ alone, without these overrides; give it all of them"
        print(f"genloss: `dvc repro` runs this; {again}, or write them into conf/experiment/NAME.yaml", file=sys.stderr)
    return 0


def what_if(old: Path, cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """The folder of an arm that differs from the one in `old`, with that one's rounds, of which `dvc repro` runs again
    what follows from the difference; what_if.json there says what it came from."""
    from genloss.workflow.dvc import dvc_yaml
    from genloss.workflow.dvc_config import configure

    new = old.parent / f"{label(cfg)}-{arm_id(cfg)}"
    if (new / "params.yaml").is_file() and arm_id(load_params(new / "params.yaml")) != arm_id(cfg):
        raise UserError(str(new), None, "holds another config than its name says; delete it")
    if not (new / "dvc.lock").is_file() and (old / "dvc.lock").is_file():
        later = {round_name(n) for n in rounds_of(old) if n > cfg.rounds}
        for path in [*old.glob("data/**/*"), *old.glob("rounds/**/*")]:
            name = path.relative_to(old)
            if path.is_file() and not path.name.startswith(".") and name.parts[1] not in later:
                link(path, new / name)
        shutil.copyfile(old / "dvc.lock", new / "dvc.lock")  # no link: DVC writes into it
    write_atomic(new / "params.yaml", to_yaml(cfg))
    write_atomic(new / "dvc.yaml", dvc_yaml(new / "params.yaml", code=False))
    origin = {"of": os.path.relpath(old, new), "overrides": list(overrides)}
    write_atomic(new / "what_if.json", json.dumps(origin, indent=1))
    configure(new)
    return new
