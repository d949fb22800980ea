"""genloss from Python: what `import genloss` offers (docs/python.md)."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.observatory.results import rounds_of
from genloss.workflow.identity import varied
from genloss.workflow.sweep import true_arms

if TYPE_CHECKING:
    import pandas as pd


class Tee(io.StringIO):
    """Passes on what is written, and keeps it."""

    def __init__(self, onward: Any):
        super().__init__()
        self.onward = onward

    def write(self, text: str) -> int:
        self.onward.write(text)
        return super().write(text)


def run(overrides: Sequence[str]) -> Path:
    """As `genloss run OVERRIDES`; returns the folder that it prints."""
    from genloss.workflow.hydra_app import hydra_main

    printed, argv, code = Tee(sys.stdout), sys.argv, 0
    before = {name: os.environ.get(name) for name in ("HYDRA_FULL_ERROR", "GENLOSS_PROJECT")}
    try:
        with contextlib.redirect_stdout(printed):
            code = hydra_main(list(overrides))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = argv
        for name, value in before.items():  # the next call may be of another project
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
    said = [
        line.partition(": ")[2] for line in printed.getvalue().splitlines() if line.startswith(("run: ", "sweep: "))
    ]
    if code:
        raise UserError(
            "run", " ".join(overrides), "arms failed, as standard error says; the same call tries them again"
        )
    if not said:
        raise UserError("run", " ".join(overrides), "has run nothing (--help, --cfg and the like are for the shell)")
    return Path(said[-1])


def load(folders: Sequence[Path]) -> pd.DataFrame:
    """One row an arm and round: arm, a column for each key in which the arms differ, round, every metric."""
    import pandas as pd

    arms = [arm for folder in folders for arm in true_arms(folder)]
    configs = [load_params(arm / "params.yaml") for _, arm in arms]
    groups, values = varied(configs) if configs else ({}, {})
    rows = []
    for i, (name, arm) in enumerate(arms):
        keys = {key: column[i] for key, column in (groups | values).items()}
        rows += [{"arm": name, **keys, "round": n, **metrics} for n, metrics in rounds_of(arm).items()]
    return pd.DataFrame(rows)
