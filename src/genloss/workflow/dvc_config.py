"""DVC's config: the project's, read by DVC itself, and that of an arm, which is made from it.

The project's `.dvc/config` becomes an arm's `.dvc/config`, which users give to Git. Its `config.local`, with secrets
and with places of one machine, becomes the arm's `config.local`, which they do not. What DVC is told for all of a
user's projects, or of a machine's, an arm reads by itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError, one_line
from genloss.core.files import write_atomic
from genloss.core.places import project_root

CORE = {"no_scm": "true", "analytics": "false", "autostage": "false"}
LINKS = ["reflink", "hardlink", "copy"]
IGNORED = "/config.local\n/tmp\n/cache\n"


def configure(folder: Path) -> None:
    """Make `folder` a DVC project without Git that uses the project's cache and remotes; UserError if DVC cannot read
    the project's config. Keys that are in the arm's config.local alone stay there: credentials of who pulled it."""
    from dvc.config import Config, merge

    project = _config(project_root())
    shared, local = project.load_one("repo"), project.load_one("local")
    for config in (shared, local):
        config.pop("hydra", None)  # an arm's params are composed
        config["core"] = {key: value for key, value in config["core"].items() if key not in CORE}
    standard = shared["cache"].get("dir") or _default_cache()
    shared["core"] |= CORE
    shared["cache"] |= {"dir": standard, "type": LINKS}
    # runs/ may be a link to another disk, and DVC counts relative paths from where a folder really is
    home = (folder / ".dvc").resolve()
    own = Config.load_file(home / "config.local") if (home / "config.local").is_file() else {}
    own.setdefault("cache", {}).pop("dir", None)
    merge(own, local)
    if (home / "config").is_file():  # of a colleague, whose remote the arm was pulled from
        there = Config.load_file(home / "config")
        shared["core"] |= {k: v for k, v in there.get("core", {}).items() if k == "remote" and k not in shared["core"]}
        shared["remote"] |= {k: v for k, v in there.get("remote", {}).items() if k not in shared["remote"]}
    if cache_dir() != Path(standard).resolve():
        own["cache"]["dir"] = str(cache_dir())
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    _write(home / "config", shared)
    _write(home / "config.local", own)
    write_atomic(home / ".gitignore", IGNORED)


def remotes(folder: Path) -> tuple[list[str], str | None]:
    """The names of the remotes of a DVC project, and that of the default one."""
    config = _config(folder)
    return sorted(config["remote"]), config["core"].get("remote")


def cache_dir() -> Path:
    """The project's DVC cache."""
    return Path(_config(project_root())["cache"].get("dir") or _default_cache()).resolve()


def _default_cache() -> str:
    from dvc.config_schema import RelPath

    return RelPath(project_root() / ".dvc" / "cache")


def _config(project: Path) -> Any:
    """What DVC reads in a project: a dict of all levels, section -> key -> value."""
    from dvc.config import Config

    home = (project / ".dvc").resolve()
    try:
        return Config(str(home))
    except Exception as error:  # its own kinds and those of its parsers: all mean that it cannot be read
        raise UserError(
            str(home), None, f"DVC cannot read its config ({one_line(error)}); mend it with `dvc config`"
        ) from None


def _write(path: Path, config: dict[str, Any]) -> None:
    """Write one level of a config; what is relative to the project becomes relative to `path`."""
    from configobj import ConfigObj
    from dvc.config_schema import ExpPath, RelPath

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, RelPath):
            return os.path.relpath(value, path.parent)
        return value.def_path if isinstance(value, ExpPath) else value  # ~ stays ~

    sections = {name: moved(section) for name, section in config.items() if section}
    for kind in ("remote", "machine", "db"):
        for name, section in sections.pop(kind, {}).items():
            sections[f'{kind} "{name}"'] = section
    lines = ConfigObj(sections, interpolation=False).write()
    write_atomic(path, "".join(f"{line}\n" for line in lines), mode=0o600 if path.suffix == ".local" else None)
