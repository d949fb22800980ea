"""Places: the project, its conf/, the store, the params of a run directory."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genloss.core.errors import NotThere, UserError


def project_root() -> Path:
    """The project that owns conf/, the store and mlruns/: the nearest folder upwards that has conf/config.yaml.

    Inside `dvc exp run --temp` or `--queue`, DVC copies the project away and names the real one in DVC_ROOT.
    """
    override = os.environ.get("GENLOSS_PROJECT") or (
        os.environ.get("DVC_ROOT") if ".dvc/tmp/exps" in Path.cwd().as_posix() else None
    )
    if override:
        return Path(override).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "conf" / "config.yaml").is_file():
            return folder
    return here


def conf_dir() -> Path:
    """conf/ of the project, else the one that the package ships."""
    for folder in (
        project_root() / "conf",
        Path(__file__).parents[1] / "conf",  # a wheel
        Path(__file__).resolve().parents[3] / "conf",  # a checkout, installed editable
    ):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError("conf", str(project_root() / "conf"), "no config.yaml there; run genloss inside its project")


def options(group: str) -> list[str]:
    """The options of a group of conf/."""
    return [path.stem for path in (conf_dir() / group).glob("*.yaml")]


def store_root() -> Path:
    return Path(os.environ.get("GENLOSS_STORE") or project_root() / ".genloss" / "store")


def load_params(path: Path) -> DictConfig:
    """params.yaml of a run directory."""
    try:
        cfg = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(
            str(path), None, "not there; name a run directory, or write it with `genloss compose`"
        ) from None
    except Exception as error:
        raise UserError(str(path), None, f"is not readable YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(cfg, DictConfig):
        raise UserError(str(path), None, "must hold a mapping; write it with `genloss compose`")
    return cfg


def find_folder(pattern: str, key: str, missing: str) -> Path:
    """The one folder that `pattern` names, relative to the project; * may stand for what is not known of its name. key:
    what an error calls it; missing: what it says where there is none."""
    root = project_root() / pattern
    found = sorted(p for p in Path(root.anchor).glob(str(root.relative_to(root.anchor))) if p.is_dir())
    if not found:
        raise NotThere(key, pattern, missing)
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(key, pattern, f"names {len(found)} folders ({names}); name one")
    return found[0]
