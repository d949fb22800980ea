"""`genloss run`: a Hydra application whose job is one arm.

Hydra composes the configs and launches the jobs; a sweep's arms are listed and checked by
hydra_plugins/genloss_sweeper.py. An arm's folder is runs/NAME-HASH, where HASH names its resolved config: running the
same command again resumes, and what is finished is skipped. Arms share the store, so what two arms have in common is
computed once, in parallel jobs too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from genloss.core.errors import UserError
from genloss.core.machine import end_with
from genloss.core.places import conf_dir, settle
from genloss.core.replaced import replaced
from genloss.core.signals import stoppable

if TYPE_CHECKING:
    from omegaconf import DictConfig


FLAGS = ("Only one of --run", "The --resolve flag")  # how Hydra's ValueErrors about its flags begin
MANY = ("-m", "--multirun")


MAIN = "GENLOSS_MAIN"  # the process that the user has started, for the workers of a launcher


class Refused(BaseException):
    """Carries an error of a single run out of Hydra, which prints more than one line before it passes on an
    Exception."""

    def __init__(self, error: UserError | OSError):
        super().__init__(error)
        self.error = error


def hydra_main(arguments: list[str]) -> int:
    """`genloss run ARGUMENTS`, with everything that a Hydra application has; errors of Hydra become one line."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from genloss.workflow.compose import check_overrides, hydra_error

    settle()  # before hydra.job.chdir may change the working directory
    overrides = [a for a in arguments if a.startswith("~") or ("=" in a and not a.startswith("-"))]
    many = [
        a for a in arguments if a in MANY
    ]  # first: argparse takes overrides from one place alone, before it or after
    sys.argv = ["genloss", *many, *(a for a in arguments if a not in MANY)]
    os.environ[MAIN] = str(os.getpid())
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)
    try:
        check_overrides(overrides)
        app()
    except Refused as refused:
        raise refused.error from None
    except (HydraException, OmegaConfBaseException) as error:
        raise hydra_error(error, overrides) from None
    except ValueError as error:
        if str(error).startswith(FLAGS):
            raise UserError("flags", None, str(error)) from None
        raise
    return 0


def job(cfg: DictConfig) -> float | None:
    """What Hydra calls for every arm: its headline metric after the last round, for sweepers that optimise; None
    without one.

    As an arm of a sweep of ours a failure is written down, not raised, so that the other arms go on.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from genloss.workflow.arm import headline, run_arm
    from genloss.workflow.compose import resolve
    from genloss.workflow.sweep import live, name_folder, run_in_sweep, sweep_of

    if os.environ.get(MAIN) == str(os.getppid()):  # a worker; on another machine nobody watches
        end_with(os.getppid())
    hydra = HydraConfig.get()
    settle(Path(hydra.runtime.cwd))  # on another machine, perhaps
    sweep = sweep_of(hydra)
    if sweep is not None:
        with stoppable(ends=os.environ.get(MAIN) != str(os.getpid())):  # a worker has not come by `main`
            return run_in_sweep(resolve(cfg), sweep)
    try:
        resolved = resolve(cfg, hydra.overrides.task)
        with live(None, [resolved]) as states:
            folder = run_arm(resolved, states=states)
    except (UserError, OSError) as error:
        if hydra.mode == RunMode.RUN:
            raise Refused(error) from None
        raise
    except Exception as error:
        if hydra.mode == RunMode.RUN and (told := replaced(error)):
            raise Refused(told) from None
        raise
    if hydra.mode == RunMode.RUN:
        from genloss.observatory.results import asked, measured, rounds_of
        from genloss.observatory.tables import numbers

        rounds = rounds_of(folder)
        about = dict.fromkeys([*measured(folder / "params.yaml", [("run", rounds)]), *asked(folder)])
        print(f"{numbers(rounds, list(about))}\n")
    name_folder("run", folder)
    return headline(folder)
