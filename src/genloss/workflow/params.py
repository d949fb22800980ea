"""`genloss compose`: params.yaml and dvc.yaml, of the project or of one run directory."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.places import load_params, project_root
from genloss.experiment import GROUPS, Experiment
from genloss.workflow.compose import check_underived, compose, hydra_error, resolve, to_yaml


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
    """`genloss compose`: conf/ plus overrides, resolved, to params.yaml of the project; or a run directory's,
    changed."""
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
    write_atomic(path, text)
    from genloss.workflow.dvc import dvc_yaml

    write_atomic(path.with_name("dvc.yaml"), dvc_yaml(path, code=path.parent == project_root()))
    print(path)
    if overrides and folder is None:
        again = "`dvc exp run -S ...` composes from conf/ alone, without these overrides; give it all of them"
        print(f"genloss: `dvc repro` runs this; {again}, or write them into conf/experiment/NAME.yaml", file=sys.stderr)
    return 0
