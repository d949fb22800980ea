"""What users bring to a training: the Lightning callbacks and loggers of `trainer.callbacks` and `trainer.logger`.

`known` refuses, before any work, what is no such class or has no such arguments, and what Lightning's own callbacks
refuse when they are made; `brought` makes them when a training begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from genloss.core.errors import UserError, one_line
from genloss.core.places import in_project
from genloss.core.plugin import imported

if TYPE_CHECKING:
    from genloss.core.contracts import Fit
    from genloss.language.trainer import Descent

LIGHTNING = "lightning.pytorch's "
BASES: dict[str, type[Callback] | type[Logger]] = {"callbacks": Callback, "logger": Logger}


def known(trainer: Descent) -> None:
    """Raises UserError, its key relative to the trainer's, where a node names no class of its kind, or not its
    arguments."""
    for key, base in BASES.items():
        for name, node in getattr(trainer, key).items():
            where = f"{key}.{name}"
            cls = imported(node["_target_"], base, where, LIGHTNING)
            if node.get("_partial_"):
                raise UserError(f"{where}._partial_", True, f"makes no {base.__name__}; leave it out")
            _known_parts(node, where, _folders(cls, node, Path(), Path()))
            # Lightning's own are made without effects; loggers and those of others may have some
            if base is Callback and cls.__module__.startswith("lightning."):
                _made(key, name, node, Path(), Path())


def _known_parts(node: Any, where: str, more: Mapping[str, Any] | None = None) -> None:
    """Refuse a `_target_` that is not there or does not take its arguments (and `more`), however deep it lies."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            _takes(node, where, more or {})
        inside = list(node.items()) if node.get("_recursive_", True) else []
    else:
        inside = list(enumerate(node)) if isinstance(node, list) else []
    for name, item in inside:
        _known_parts(item, f"{where}.{name}")


def _takes(node: Mapping[str, Any], where: str, more: Mapping[str, Any]) -> None:
    target = node["_target_"]
    try:
        made = get_object(target)
    except Exception as error:  # of Hydra, or of the module that is imported
        raise UserError(f"{where}._target_", target, f"cannot be imported ({error})") from None
    arguments = {**more, **{k: v for k, v in node.items() if not str(k).startswith("_")}}
    try:
        signature = inspect.signature(made)
    except ValueError:  # of C, without a signature
        return
    except TypeError:
        raise UserError(f"{where}._target_", target, "cannot be called") from None
    try:
        bind = signature.bind_partial if node.get("_partial_") else signature.bind
        bind(*node.get("_args_", ()), **arguments)
    except TypeError as error:
        raise UserError(where, target, f"{error}; see its arguments") from None


def brought(trainer: Descent, fit: Fit) -> tuple[list[Callback], list[Logger]]:
    """(callbacks, loggers), in the order of the config. What a logger writes is no result, so one without a `save_dir`
    writes to logs/ROUND of the run directory; checkpoints are, and lie beside the model whatever loggers there are."""
    logs = fit.data.parent / "logs" / fit.shards[0].parents[1].name
    callbacks, loggers = (
        [_made(key, name, node, fit.out, logs) for name, node in getattr(trainer, key).items()] for key in BASES
    )
    return callbacks, loggers


@contextmanager
def in_one_line(trainer: Descent) -> Iterator[None]:
    """As UserError: Lightning's complaints about callbacks and loggers, such as a metric to monitor that nobody
    logs."""
    try:
        yield
    except (MisconfigurationException, RuntimeError) as error:
        meant = isinstance(error, MisconfigurationException) or "conditioned on metric" in str(error)
        if not (meant and (trainer.callbacks or trainer.logger)):
            raise
        keys = [f"trainer.{key}" for key in BASES if getattr(trainer, key)]
        raise UserError(" or ".join(keys), None, one_line(error)) from None


def _folders(cls: type, node: Mapping[str, Any], out: Path, logs: Path) -> dict[str, str]:
    """Where a node writes: a path of the config, from the project on like any other, or what it does not say.
    Lightning would take the first logger's folder for checkpoints."""
    named = {"save_dir": logs} if issubclass(cls, Logger) else {"dirpath": out / "checkpoints"}
    wanted = inspect.signature(cls).parameters if issubclass(cls, (Logger, Checkpoint)) else {}
    said = {k: node.get(k) for k in named if k in wanted}
    local = {k: path for k, path in said.items() if path is None or "://" not in str(path)}
    return {k: str(named[k] if path is None else in_project(str(path), k)) for k, path in local.items()}


def _made(key: str, name: str, node: dict[str, Any], out: Path, logs: Path) -> Any:
    base, where, target = BASES[key], f"trainer.{key}.{name}", node["_target_"]
    cls = imported(target, base, where, LIGHTNING)
    try:
        made = instantiate(node, **_folders(cls, node, out, logs))
    except InstantiationException as error:
        raise UserError(where, target, str(error.__cause__ or error)) from None
    if not isinstance(made, base):
        raise UserError(where, target, f"makes no {base.__name__}")
    return made
