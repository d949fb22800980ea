"""genloss from Python: what `import genloss` offers (docs/python.md)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genloss.core.errors import UserError
from genloss.core.places import load_params, settle
from genloss.experiment import Experiment
from genloss.observatory.results import rounds_of
from genloss.workflow.compose import compose as composed
from genloss.workflow.identity import told
from genloss.workflow.sweep import NAMED, told_apart, true_arms

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig


@contextlib.contextmanager
def settled(folder: Path | None = None) -> Iterator[None]:
    """In the project of `folder` or of the working directory, as a command is; the next call may be of another one."""
    environment, path, argv = dict(os.environ), list(sys.path), sys.argv
    try:
        settle(folder)
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.path[:], sys.argv = path, argv


def _listed(call: str, given: object) -> None:
    if isinstance(given, str | Path):
        raise UserError(f"genloss.{call}", given, "must be in a list: [...]")


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config that `genloss run OVERRIDES` would run, checked."""
    _listed("compose", overrides)
    with settled():
        cfg = composed(overrides)
        Experiment(cfg)
        return cfg


def run(overrides: Sequence[str]) -> Path:
    """As `genloss run OVERRIDES`; returns the folder that its last line names."""
    from genloss.workflow.hydra_app import hydra_main

    _listed("run", overrides)
    NAMED.clear()
    code = 0
    with settled():
        try:
            code = hydra_main(list(overrides))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    if code:
        raise UserError(
            "run", " ".join(overrides), "arms failed, as standard error says; the same call tries them again"
        )
    if not NAMED:
        raise UserError("run", " ".join(overrides), "has run nothing (--help, --cfg and the like are for the shell)")
    return NAMED[-1]


def load(folders: Sequence[Path]) -> pd.DataFrame:
    """One row an arm and round: arm, a column for each key in which the arms differ, round, every metric."""
    import pandas as pd

    with settled(next(iter(folders), None)):
        arms = told_apart([arm for folder in folders for arm in true_arms(folder)])
    configs = [load_params(arm / "params.yaml") for _, arm in arms]
    rows = []
    for (name, arm), keys in zip(arms, told(configs), strict=True):
        rows += [{"arm": name, **keys, "round": n, **metrics} for n, metrics in rounds_of(arm).items()]
    return pd.DataFrame(rows)
