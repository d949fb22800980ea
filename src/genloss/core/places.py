"""Places: the project, its conf/, the store, the params of a run directory, and the paths that a config names.

The project is found once, when a command begins (`settle`); every path in a config is relative to it."""

from __future__ import annotations

import copy
import io
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from genloss.core.errors import NotThere, UserError, first_line, nearest, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

SETTINGS = "genloss.yaml"  # of a project: where else its options and plug-ins lie
MARKS = ("conf/config.yaml", SETTINGS, ".genloss/store")  # one of these is in a project's root
HUB = "hub:"  # before the name of a model, tokenizer or data set that is no folder


def _above(folder: Path) -> Path | None:
    """The project that a folder is in: the nearest one upwards.

    Inside `dvc exp run --temp` or `--queue`, DVC copies the project away and names the real one in DVC_ROOT.
    """
    folder = folder.resolve()
    if ".dvc/tmp/exps" in folder.as_posix() and (real := os.environ.get("DVC_ROOT")):
        return Path(real).resolve()
    return next((f for f in (folder, *folder.parents) if is_project(f)), None)


def project_root() -> Path:
    """The project that owns conf/, the store and mlruns/: GENLOSS_PROJECT, which `settle` sets, or the one that the
    working directory is in, or the working directory."""
    if named := os.environ.get("GENLOSS_PROJECT"):
        return Path(named).resolve()
    return _above(Path.cwd()) or Path.cwd().resolve()


def is_project(root: Path) -> bool:
    """Whether it is one, and not just where a command was called."""
    return any((root / mark).exists() for mark in MARKS)


def settle(folder: Path | None = None) -> None:
    """Find the project for this process and all that it starts, whatever becomes their working directory: that of
    `folder`, a run directory that the user names or the working directory; and make importable what its genloss.yaml
    names."""
    if not os.environ.get("GENLOSS_PROJECT"):
        os.environ["GENLOSS_PROJECT"] = str((folder and _above(folder)) or project_root())
    root = project_root()
    os.environ["GENLOSS_PROJECT"] = str(root)
    if store := os.environ.get("GENLOSS_STORE"):
        os.environ["GENLOSS_STORE"] = str(root / store)
    sys.path += [str(path) for path in _settings("python") if str(path) not in sys.path]


def _settings(key: str) -> list[Path]:
    """The folders that genloss.yaml of the project names under `key`, relative to the project; [] without one."""
    file = project_root() / SETTINGS
    if not file.is_file():
        return []
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(file), None, f"is not readable YAML ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise UserError(str(file), None, "must hold keys: conf, python")
    for name, folders in found.items():
        if name not in ("conf", "python"):
            raise UserError(f"{file}: {name}", None, f"no such key; {nearest(str(name), ('conf', 'python'))}")
        if not (isinstance(folders, list) and all(isinstance(each, str) for each in folders)):
            raise UserError(f"{file}: {name}", folders, "must be a list of folders, as in [../lab/conf]")
        for each in folders:
            if not in_project(each, f"{file}: {name}").is_dir():
                raise UserError(f"{file}: {name}", each, "is no folder")
    return [in_project(each) for each in found.get(key, [])]


def in_project(path: str, key: str = "path") -> Path:
    """A path of a config; a relative one starts at the project, wherever the command was called. UserError if it is
    empty, as that of an unset variable is, or no file can have its name."""
    if not path.strip():
        raise UserError(key, repr(path), "names nothing; give a path, which may be relative to the project")
    place = project_root() / os.path.expanduser(path)  # noqa: PTH111  of ~nobody Path makes an error
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # may be one all the same
    except (OSError, ValueError) as error:
        raise UserError(key, path, f"cannot be a path ({one_line(error)})") from None
    return place


def on_hub(name: str, key: str = "path") -> str | None:
    """OWNER/NAME of `hub:OWNER/NAME`, or of `hub:OWNER/NAME@REVISION`, which a library may ask a hub for; None of
    anything else, which is a path."""
    if not name.startswith(HUB):
        return None
    bare, at, revision = name.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", bare) or (at and not re.fullmatch(r"[\w][\w./-]*", revision)):
        raise UserError(key, name, "is no name on a hub; write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
    if Path(bare).exists():  # the libraries would take it
        raise UserError(key, name, f"is meant for the hub, but {Path(bare).absolute()} is there; name that or move it")
    return bare


def revision_of(name: str) -> str | None:
    """REVISION of `hub:OWNER/NAME@REVISION`."""
    return name.partition("@")[2] or None if name.startswith(HUB) else None


# names of a query's, or words of them: whole ones, and endings (sslpassword, sessiontoken, PASSWORD1)
SECRETS = {"pass", "code", "sig", "sas", "accesskeyid"}
SECRET = re.compile(
    r".*(password|passwd|passphrase|pwd|secret|token|key|signature|auth|authorization|credentials?|jwt|bearer)\d*"
)
# ... and parts of a path: as makers of keys begin theirs, or long and of small and capital letters and digits
SECRET_PART = re.compile(r"(sk|pk|rk|hf|gh[opsu]|xox\w|glpat|nvapi|gsk|AKIA|AIza|eyJ)[-_]?[\w-]{12,}")
MIXED = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[\w-]{24,}")


def has_secret(address: str) -> bool:
    """Whether an address holds a password or a token: before its host, or in what follows its path, by the names there
    (api-key, accessToken, odbc_connect=...PWD=). A server of the web has no user without one; a database may. A part of
    a server's path is one by its looks, so that one which looks like a name or a number is missed."""
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(address)
    except ValueError:
        return "@" in address
    behind = unquote(";".join((*parts.path.split(";")[1:], parts.query, parts.fragment)))
    names = " ".join(re.findall(r"([^&;=]+)=", behind))
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", names).lower())
    named = any(word in SECRETS or SECRET.fullmatch(word) for word in words)
    web = parts.scheme in ("http", "https")
    parted = web and any(SECRET_PART.fullmatch(part) or MIXED.fullmatch(part) for part in parts.path.split("/"))
    return bool(parts.password or (web and "@" in parts.netloc) or named or parted or re.search(r":[^&;@/]+@", behind))


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


def more_conf_dirs() -> list[Path]:
    """The folders of options beside conf/ that the project's genloss.yaml names."""
    return _settings("conf")


def is_group(name: str) -> bool:
    """Whether some folder of options has this group."""
    return bool(name) and any((folder / name).is_dir() for folder in (conf_dir(), *more_conf_dirs()))


def option_files(group: str) -> Iterator[Path]:
    """The files of a group's options; of two of one name Hydra takes the first."""
    for folder in (conf_dir(), *more_conf_dirs()):
        yield from sorted((folder / group).glob("*.yaml"))


def options(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted({path.stem for path in option_files(group)})


def store_root() -> Path:
    return project_root() / (os.environ.get("GENLOSS_STORE") or ".genloss/store")


def load_params(path: Path) -> DictConfig:
    """params.yaml of a run directory."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            str(path), None, "not there; name a run directory, or write it with `genloss compose`"
        ) from None
    except OSError as error:
        raise UserError(str(path), None, f"is not readable ({error.strerror})") from None
    return copy.deepcopy(_params(path, content))


@cache  # a command asks many times, and to read YAML takes twenty times as long as to copy what it says
def _params(path: Path, content: bytes) -> DictConfig:
    from omegaconf import DictConfig, OmegaConf

    try:
        cfg = OmegaConf.load(io.BytesIO(content))
    except Exception as error:
        raise UserError(str(path), None, f"is not readable YAML ({first_line(error)})") from None
    if not isinstance(cfg, DictConfig):
        raise UserError(str(path), None, "must hold a mapping; write it with `genloss compose`")
    if isinstance(cfg.get("schedule"), DictConfig) and isinstance(cfg.get("rounds"), int):  # of `dvc exp run -S`
        from genloss.core.schedule import each_round

        cfg.schedule = each_round(cfg.schedule, cfg.rounds)
    return cfg


def find_folder(pattern: str, key: str, missing: str) -> Path:
    """The one folder that `pattern` names, relative to the project; * may stand for what is not known of its name. key:
    what an error calls it; missing: what it says where there is none."""
    root = in_project(pattern, key)
    found = sorted(p for p in Path(root.anchor).glob(str(root.relative_to(root.anchor))) if p.is_dir())
    if not found:
        raise NotThere(key, pattern, missing)
    if len(found) > 1:
        above = Path(os.path.commonpath(found))  # what they share tells nobody which is which
        names = ", ".join(str(p.relative_to(above)) for p in found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(key, pattern, f"names {len(found)} folders ({names}); name one")
    return found[0]
