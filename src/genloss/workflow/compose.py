"""Config: conf/ composed by Hydra, checked against the plug-ins' schemas, and named by its hash.

`compose([...])` gives what `genloss run ...` would run; `Experiment(cfg)` builds every plug-in, which is where a bad
value is refused; `arm_id(cfg)` is the identity of an arm: the hash of its resolved config without operational keys.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genloss.core.errors import UserError, first_line, nearest
from genloss.core.places import conf_dir, is_group, options
from genloss.core.plugin import flatten, shown
from genloss.core.schedule import each_round

CHAINS = ("curation", "metrics", "domain/tasks")  # groups of which several options are chosen: group=[a,b]


def hydra_error(error: Exception, overrides: Sequence[str] = (), there: DictConfig | None = None) -> UserError:
    """Hydra's and OmegaConf's multi-line messages as one line with the nearest name; `overrides` are all that were
    given, to conf/ or to the config that is `there`."""
    override = getattr(error, "override", None)  # what the user typed, where Hydra says so
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if "Available options in" in text:  # a group option that does not exist
        missing = text.split("Could not find '")[-1].split("'")[0] if "Could not find '" in text else lines[0]
        group, _, name = missing.rpartition("/")
        options = text.split("Available options in")[1].partition(":")[2].partition("Config search path")[0].split()
        extra = "; pip install 'genloss[slurm]' brings it" if name.startswith("submitit") else ""
        return UserError(group, name, f"unknown; {nearest(name, options)}{extra}")
    if "Could not override" in text:
        key = text.split("Could not override '")[1].split("'")[0]
        within = str(getattr(error.__cause__, "full_key", ""))  # of a value that is a dict: which of its keys
        inside = within.startswith(f"{key}.")
        return _no_such_key(within if inside else key, inside, overrides, there)
    if "Error merging override" in text:  # a list where keys belong, or keys where a list does
        key, _, value = text.split("Error merging override ")[1].partition("=")
        return UserError(key.lstrip("+"), value, f"is of another shape than {key.lstrip('+')} is; see --cfg job")
    if type(error).__name__ == "OverrideParseException" and override:
        wrong = UserError(str(override), None, f"is no override ({lines[0]}); write key=value")
        return _unquoted(str(override)) or wrong
    return UserError("config", None, text)


def _unquoted(override: str) -> UserError | None:
    """What to say of an override that is one as soon as its value is quoted."""
    key, sign, value = override.partition("=")
    quoted = (f"{key}={quote}{value}{quote}" for quote in "\"'" if quote not in value)
    found = next((text for text in quoted if sign and value and _parsed(text) is not None), None)
    if found is None:
        return None
    why = "holds signs that Hydra reads as its own; quote the value, and all of it for the shell"
    return UserError(key, value, f"{why}: {shlex.quote(found)}")


def _no_such_key(key: str, inside: bool, overrides: Sequence[str], there: DictConfig | None) -> UserError:
    """inside: the key is one of a value that is a dict."""
    parent, _, name = key.rpartition(".")
    known = _siblings(key, overrides, there)
    if known is None and "." in parent and not key.startswith("schedule."):
        return _no_such_key(parent, inside, overrides, there)
    if known and not key.startswith("schedule."):
        add = f"; +{key}=... adds it" if inside else ""
        return UserError(key, None, f"no such key; {nearest(name, known)}{add}")
    if parent in CHAINS:
        return UserError(key, None, f"none is chosen; {parent}=NAME chooses, {nearest(name, options(parent))}")
    group, _, part = key.rpartition("/")
    if is_group(key):
        return UserError(key, None, f"is of other options of {group}: the chosen one has no {part}")
    return UserError(key, None, f"is not there yet; write +{key}=...")


def check_underived(key: str) -> None:
    if key.partition(".")[0] == "dvc":
        raise UserError(key, None, "follows from rounds and schedule; leave it out")


@cache
def _parsed(text: str) -> Any:
    """An override as Hydra reads it, once for all arms of a sweep; None of what is none: Hydra says where."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        [override] = OverridesParser.create().parse_overrides([text])
    except OverrideParseException:
        return None
    return override


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what Hydra would take in silence (of a list it keeps the last option) or meet with a traceback."""
    for text in overrides:
        if (override := _parsed(text)) is None:
            continue
        group, value = override.key_or_group, override.value()
        check_underived(group)
        if override.is_sweep_override() or override.is_delete() or not is_group(group):
            continue
        names = value if isinstance(value, list) else [value]
        if isinstance(value, list) and group not in CHAINS:
            joined = ",".join(map(str, value))
            raise UserError(group, f"[{joined}]", f"takes one option; a sweep is -m {group}={joined or 'a,b'}")
        for name in names:
            if not isinstance(name, str | dict) or name == {}:  # {}: see `check_empty`
                raise UserError(group, shown(name), f"is no name of an option; {nearest(str(name), options(group))}")


def check_empty(overrides: Sequence[str], cfg: DictConfig) -> None:
    """Refuse `key={}` that has left keys there, since Hydra merges what is given with what there was. cfg: what the
    overrides have made."""
    for text in overrides:
        override = _parsed(text)
        if override is None or override.is_sweep_override() or override.is_delete():
            continue
        for key, value in flatten(override.value(), override.key_or_group):
            node = OmegaConf.select(cfg, key) if value == {} else None
            if isinstance(node, DictConfig) and node:
                why = f"leaves {', '.join(map(str, node))} there, since values are merged"
                raise UserError(key, "{}", f"{why}; '~{key}.NAME' takes one away, '~{key}' all")


def _siblings(key: str, overrides: Sequence[str], there: DictConfig | None) -> list[str] | None:
    """The names that exist beside `key`, in the groups that were chosen; None if nothing holds any there."""
    try:
        parent = key.rpartition(".")[0]
        chosen = [o for o in overrides if is_group(o.partition("=")[0].partition("@")[0]) and "," not in o]
        config = compose(chosen, raw=True) if there is None else there
        node = OmegaConf.select(config, parent) if parent else config
        return [str(k) for k in node] if isinstance(node, DictConfig) else None
    except Exception:  # only to suggest a name
        return None


def compose(overrides: Sequence[str] = (), *, raw: bool = False) -> DictConfig:
    """Compose conf/config.yaml with Hydra overrides, resolved; without the `hydra` node. raw: neither resolved
    nor with errors of one line."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    if not raw:
        check_overrides(overrides)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra_compose("config", overrides=list(overrides))
        return cfg if raw else resolve(cfg, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        if raw:
            raise
        raise hydra_error(error, overrides) from None
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def resolve(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """A copy without the node `hydra`, with every interpolation resolved and every `???` refused. overrides: what has
    made it."""
    check_empty(overrides, cfg)
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if "schedule" not in cfg:  # `~schedule` drops the overrides of an experiment, not the key
        merged = OmegaConf.merge({"schedule": {}}, cfg)
        assert isinstance(merged, DictConfig)
        cfg = merged
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise UserError(str(key), None, first_line(error)) from None
    assert isinstance(container, dict)
    if isinstance(container["schedule"], dict) and isinstance(container.get("rounds"), int):
        container["schedule"] = each_round(container["schedule"], container["rounds"])
    return OmegaConf.create(container)


def to_yaml(cfg: DictConfig) -> str:
    """The text of params.yaml; the same bytes that `dvc exp run -S` writes."""
    return OmegaConf.to_yaml(cfg)
