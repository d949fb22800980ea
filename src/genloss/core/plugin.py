"""Plug-ins are dataclasses: their fields are the schema of their YAML, their `__post_init__` refuses bad values.

    # conf/curation/shorter.yaml            # anywhere importable
    shorter:                                @dataclass
      _target_: mylab.curators.Shorter      class Shorter(Curator):
      characters: 200                           characters: int = 500

`build` is the only place where a config turns into an object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genloss.core.errors import UserError, first_line, nearest, require
from genloss.core.limits import check_limits
from genloss.core.places import option_files

T = TypeVar("T")


def imported(target: Any, base: type[T], key: str, origin: str = "", group: str = "") -> type[T]:
    """The class that `target` (a dotted path) names; it must be a subclass of `base`. For the error, origin: whose
    `base` it is; group: of options, some of which are such classes."""
    module_name, _, name = str(target).rpartition(".")
    if not all(part.isidentifier() for part in str(target).split(".")):  # a leading dot, say, which import resolves
        raise UserError(f"{key}._target_", shown(target), "names no class; write package.module.Class")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}._target_", target, f"cannot be imported ({error}); name a class as package.module.Class"
        ) from None
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        why = f"must be a class derived from {origin}{base.__name__}{fitting(group, (base,))}"
        raise UserError(f"{key}._target_", target, why)
    return cls


def fitting(group: str, kinds: tuple[type, ...]) -> str:
    """What an error of a wrong class adds: the options of `group` that are of these `kinds`."""
    names = []
    for path in option_files(group) if group else ():
        with contextlib.suppress(Exception):  # of another's plug-in, whose import may raise anything
            target = yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"]
            if issubclass(imported(target, object, group), kinds):
                names.append(path.stem)
    return f"; use {group}={', '.join(dict.fromkeys(names))}" if names else ""


def locate(target: str, base: type[T], key: str, group: str = "") -> type[T]:
    """The plug-in that `target` names: a dataclass derived from `base`."""
    cls = imported(target, base, key, group=group)
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{key}._target_", target, "must be a dataclass: write @dataclass above it")
    return cast("type[T]", cls)


def build(config: Mapping[str, Any], base: type[T], key: str, group: str = "") -> T:
    """Make the plug-in that `config` describes; errors name the full key below `key`, and options of `group`."""
    values = mapping(config, key)
    if "_target_" not in values:
        # Hydra merges: options that an experiment gives to a part stay when another part is chosen
        why = f"has no _target_, a class derived from {base.__name__}"
        raise UserError(key, None, f"{why}; '~{key}' takes away what an option that is not chosen has left")
    return fill(locate(values.pop("_target_"), base, key, group), values, key)


def mapping(value: Any, key: str) -> dict[str, Any]:
    """A node of the config that must have keys below it."""
    if not isinstance(value, Mapping):
        raise UserError(key, shown(value), "must have keys below it; set one of those instead")
    return dict(value)


def shown(value: Any) -> Any:
    """A value as it is written in a config."""
    return "null" if value is None else value


def fill(cls: type[T], values: Mapping[str, Any], key: str) -> T:
    """A dataclass from plain values, checked against the types of its fields and the ranges of its numbers."""
    nodes = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    names, kinds = list(nodes), get_type_hints(cls)
    for name in mapping(values, key):
        if name not in names:
            remedy = "~ before its key takes away what another option has left"
            raise UserError(f"{key}.{name}", values[name], f"unknown option; {nearest(str(name), names)}; {remedy}")
    try:
        schema = OmegaConf.structured(cls, flags={"readonly": False})
        for name, value in values.items():
            kind = OmegaConf.get_type(schema, name)
            if dataclasses.is_dataclass(kind):
                fill(kind, value, name)  # alone first, for the full key of its errors
            elif nodes[name].default_factory is dict:
                mapping(value, name)
            if kind is bool and not isinstance(value, bool):
                raise UserError(name, shown(value), "must be true or false")  # OmegaConf takes 5 for true
            if kind is str and isinstance(value, bool | float):  # 1e3 would be the text 1000.0
                raise UserError(name, value, "must be a text; quote it inside of the quotes for the shell")
            if get_origin(kinds[name]) is list:
                require(isinstance(value, list), name, shown(value), "a list, as in [a, b]")
            if kinds[name] == list[str] and not all(isinstance(item, str) for item in value):
                raise UserError(name, value, 'must be a list of texts; quote what is one, as in ["5"]')
        node = OmegaConf.merge(schema, OmegaConf.create(dict(values)))
        assert isinstance(node, DictConfig)
        made = OmegaConf.to_object(node)
        check_limits(made)
    except UserError as error:
        raise error.under(key, names) from None
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None) or "?"
        value = OmegaConf.select(OmegaConf.create(dict(values)), str(name)) if name != "?" else None
        raise UserError(f"{key}.{name}", value, first_line(error)) from None
    assert isinstance(made, cls)
    return made


def without_effect(plugin: Any, names: Iterable[str], here: str) -> None:
    """Refuse options of a plug-in that differ from their defaults and change nothing `here`: they would only rename the
    arm."""
    for f in dataclasses.fields(plugin):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.name in names and getattr(plugin, f.name) != default:
            raise UserError(
                f.name, shown(getattr(plugin, f.name)), f"has no effect {here}; leave it at {shown(default)}"
            )


def plain(node: Any) -> Any:
    """Plain dicts and lists of a config node."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def named(config: Any) -> Any:
    """A copy of plain config in which an option of genloss is its class's name; where that class lies is no part of
    what it is.

    A `_target_` outside genloss keeps its path: nobody keeps the names of others apart.
    """
    if isinstance(config, Mapping):
        return {k: _name(v) if k == "_target_" else named(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [named(item) for item in config]
    return config


def _name(target: Any) -> Any:
    return target.rpartition(".")[2] if isinstance(target, str) and target.startswith("genloss.") else target


def without(config: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Plain config from which `keys` are taken (dots lead into a group), and groups that they alone stood in."""
    for key in keys:
        first, _, rest = key.partition(".")
        node = config.get(first)
        if not rest:
            config.pop(first, None)
        elif isinstance(node, dict) and node:
            without(node, [rest])
            if not node:
                del config[first]
    return config


def no_numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """What is infinite or no number (nan) anywhere in plain config or results, with its key."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield from no_numbers(item, f"{key}.{name}" if key else str(name))


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """[("mixing.real.n", 10), ...]; empty mappings stay as they are."""
    if isinstance(value, Mapping) and value:
        return [pair for k, v in value.items() for pair in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, value)]
