"""What users bring to a training: the Lightning callbacks and loggers of `trainer.callbacks` and `trainer.logger`.

`known` refuses, before any work, what is no such class or has no such arguments; `brought` makes them when a training
begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from genloss.core.errors import UserError
from genloss.core.plugin import imported

if TYPE_CHECKING:
    from genloss.language.trainer import Supervised

LIGHTNING = "lightning.pytorch's "
BASES: dict[str, type[Callback] | type[Logger]] = {"callbacks": Callback, "logger": Logger}


def known(trainer: Supervised) -> None:
    """Raises UserError, its key relative to the trainer's, where a node names no class of its kind, or not its
    arguments."""
    for key, base in BASES.items():
        for name, node in getattr(trainer, key).items():
            cls = imported(node["_target_"], base, f"{key}.{name}", LIGHTNING)
            arguments = {k: v for k, v in node.items() if not k.startswith("_")}
            if _wants_folder(cls):
                arguments.setdefault("save_dir", "")
            try:
                inspect.signature(cls).bind(*node.get("_args_", ()), **arguments)
            except TypeError as error:
                raise UserError(f"{key}.{name}", node["_target_"], f"{error}; see its arguments") from None


def brought(trainer: Supervised, out: Path) -> tuple[list[Callback], list[Logger]]:
    """(callbacks, loggers), in the order of the config; a logger without a `save_dir` writes to `out`."""
    callbacks, loggers = (
        [_made(key, name, node, out) for name, node in getattr(trainer, key).items()] for key in ("callbacks", "logger")
    )
    return callbacks, loggers


@contextmanager
def in_one_line(trainer: Supervised) -> Iterator[None]:
    """As UserError: Lightning's complaints about callbacks and loggers, such as a metric to monitor that nobody
    logs."""
    try:
        yield
    except (MisconfigurationException, RuntimeError) as error:
        meant = isinstance(error, MisconfigurationException) or "conditioned on metric" in str(error)
        if not (meant and (trainer.callbacks or trainer.logger)):
            raise
        keys = [f"trainer.{key}" for key in BASES if getattr(trainer, key)]
        raise UserError(" or ".join(keys), None, " ".join(str(error).split())) from None


def _wants_folder(cls: type) -> bool:
    return issubclass(cls, Logger) and "save_dir" in inspect.signature(cls).parameters


def _made(key: str, name: str, node: dict[str, Any], out: Path) -> Any:
    base, where, target = BASES[key], f"trainer.{key}.{name}", node["_target_"]
    cls = imported(target, base, where, LIGHTNING)
    folder = {"save_dir": str(out)} if _wants_folder(cls) and "save_dir" not in node else {}
    try:
        made = instantiate(node, **folder)
    except InstantiationException as error:
        raise UserError(where, target, str(error.__cause__ or error).splitlines()[0]) from None
    if not isinstance(made, base):  # _partial_, say
        raise UserError(where, target, f"makes no {base.__name__}; leave out _partial_")
    return made
