"""genloss: a laboratory for recursive training, where models learn from data that models made.

The loop is in `genloss.loop`; everything that an experiment can vary is a small plug-in around it:

    domains/   what the data and the models are        generate/  how records are made (recipes)
    curate/    which generated records survive         mix/       which records train the next model
    evaluate/  what is measured in every round

Start with `genloss run rounds=1 size=256`; `genloss --help` lists the verbs. From Python:

    sweep = genloss.run(["-m", "mixing=replace,accumulate", "seed=0,1,2"])
    frame = genloss.load(sweep)          # one row an arm and round
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from omegaconf import DictConfig

__version__ = "0.1.0"


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The resolved config that `genloss run OVERRIDES` would run, checked; UserError says what does not fit."""
    from genloss.workflow.notebook import compose as composed

    return composed(overrides)


def run(overrides: Sequence[str] = ()) -> Path:
    """What `genloss run OVERRIDES` runs, flags included: one arm, or with "-m" a sweep. Returns its folder.

    The same call resumes. UserError says what does not fit, or that arms failed.
    """
    from genloss.workflow.notebook import run as ran

    return ran(overrides)


def load(*folders: str | os.PathLike[str]) -> pd.DataFrame:
    """The finished rounds of sweeps or run directories, one row an arm and round.

    Columns: arm (its name), one for each key in which the arms differ (mixing, seed, trainer.steps ...), round, and
    every metric of docs/metrics.md, NaN where a round has it not. UserError if a folder is neither a sweep nor a run.
    """
    from pathlib import Path

    from genloss.core.errors import UserError
    from genloss.workflow.notebook import load as loaded

    for folder in folders:
        if not isinstance(folder, str | os.PathLike):
            raise UserError("genloss.load", folder, "must be a folder; several are load(one, another) or load(*list)")
    return loaded([Path(folder) for folder in folders])
