"""The sweeper of `genloss run -m`: all arms are composed and checked before the first one starts; the same command
resumes.

    genloss run -m seed=0,1,2                        # this one: hydra/sweeper=genloss, the default of conf/config.yaml
    genloss run -m seed=0,1,2 hydra/sweeper=basic    # Hydra's own, or any other plug-in: arms without a sweep of ours

Hydra imports this module at each start, also inside `dvc exp run -S`: what a sweep needs is imported when there is one.
It is not in sys.modules while Hydra imports it, so a dataclass here cannot have annotations that are text (no `from
__future__`)."""

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GenlossSweeperConf:
    """Schema of the node `hydra.sweeper`. params: what an experiment file sweeps over; the command line comes before
    it."""

    _target_: str = "hydra_plugins.genloss_sweeper.GenlossSweeper"
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="genloss", node=GenlossSweeperConf, provider="genloss")


class GenlossSweeper(Sweeper):
    """Every combination of the swept values is an arm of one sweep: runs/sweep-HASH, or the folder
    `hydra.sweep.dir`."""

    def __init__(self, params: Mapping[str, str] | None = None):
        self.params = dict(params or {})
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        # the launcher is made by `sweep`: it may ask for the sweep's folder, which follows from the arms
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run every arm; returns the jobs' JobReturns. Ends the process with 1 if an arm failed."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.override_parser.types import Quote, QuotedString
        from hydra.core.plugins import Plugins

        from genloss.workflow.sweep import (
            begin,
            distinct,
            end,
            expand,
            finish_sweep,
            left_to_do,
            live,
            look_at_disk,
            prepare_sweep,
            show,
        )

        context, config, task_function = self.hydra_context, self.config, self.task_function
        assert context is not None and config is not None
        jobs = expand(OverridesParser.create(context.config_loader), self.params, arguments)
        if len(jobs) > 50:  # a tenth of a second each
            print(f"genloss: {len(jobs)} arms are composed and checked first", file=sys.stderr, flush=True)
        jobs, arms = distinct(jobs, [composed(context, config, job) for job in jobs])
        configs = [arm.cfg for arm in arms]
        look_at_disk(arms, at_a_time(config))
        folder = prepare_sweep(configs, chosen_folder(config))
        config.hydra.sweep.dir = str(folder)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )
        self.launcher = launcher
        # an override reaches every worker, wherever the launcher starts it
        where = f"hydra.sweep.dir={QuotedString(str(folder), Quote.single).with_quotes()}"
        returns: Sequence[JobReturn] = []
        left = left_to_do(folder, jobs, arms)
        if left:
            begin(folder, arms, [arm for _, arm in left])
        with show(folder, configs[0], left):
            with live(folder / "progress", configs):
                try:
                    returns = launcher.launch([[*job, where] for job, _ in left], initial_job_idx=0) if left else []
                except BrokenExecutor:  # the arms that it had are among those that never ended
                    said = "genloss: a worker was killed, for want of memory perhaps; take fewer at a time"
                    print(said, file=sys.stderr)
            end(folder, arms)  # also where nothing was left: a kill may have come before it
            for done in returns:
                _ = done.return_value  # raises what is no failure of an arm but a bug
            code = finish_sweep(folder)
        if code:
            raise SystemExit(1)
        return returns


def composed(context: HydraContext, config: DictConfig, job: list[str]) -> DictConfig:
    """The config of a job, as its launcher will compose it, resolved. config: Hydra's, of the whole sweep."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from genloss.workflow.compose import check_overrides, hydra_error, resolve

    check_overrides(job)
    try:
        return resolve(context.config_loader.load_sweep_config(config, job), job)
    except (HydraException, OmegaConfBaseException) as error:
        raise hydra_error(error, job) from None


def chosen_folder(config: DictConfig) -> str | None:
    """hydra.sweep.dir, if the command line says it; else the arms name the folder."""
    given = any(str(o).lstrip("+").startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra)
    return str(config.hydra.sweep.dir) if given else None


def at_a_time(config: DictConfig) -> int:
    """How many arms a launcher runs at once, as far as its config says: joblib's n_jobs, -1 of which are all cores."""
    from genloss.core.machine import cores

    jobs = config.hydra.launcher.get("n_jobs", 1)
    return jobs if isinstance(jobs, int) and jobs > 0 else cores()
