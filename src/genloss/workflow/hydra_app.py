"""Running: one arm, a sweep of arms, one round for DVC.

An arm's folder is runs/NAME-HASH, where HASH names its resolved config: running the same command again resumes, and what is
finished is skipped. A sweep's folder is runs/sweep-HASH; it lists its arms. Hydra composes the configs and launches the jobs;
arms share the store, so what two arms have in common is computed once, in parallel jobs too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genloss.core.places import conf_dir
from genloss.core.plugin import plain
from genloss.experiment import Experiment
from genloss.workflow.compose import compose, hydra_error
from genloss.workflow.sweep import SWEEP, _failure, expand, finish_sweep, job, live, prepare_sweep

# -- one arm ---------------------------------------------------------------------------------------------------------------


# -- sweeps ------------------------------------------------------------------------------------------------------------------


# -- Hydra -------------------------------------------------------------------------------------------------------------------


def hydra_main(arguments: list[str]) -> int:
    """`genloss run ...`, with everything that a Hydra app has."""
    import hydra
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_args(arguments)
    plain_hydra = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    sys.argv = ["genloss", *arguments]
    if args.shell_completion and os.environ.get("COMP_LINE", "").startswith("genloss run "):
        # Hydra completes for a command without verbs
        os.environ["COMP_LINE"] = "genloss " + os.environ["COMP_LINE"].removeprefix("genloss run ")
        os.environ["COMP_POINT"] = str(int(os.environ["COMP_POINT"]) - len("run "))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, and become one line
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)
    if plain_hydra:
        _guard(app, args.overrides)
        return 0
    configs, many = _configs(args.overrides, args.multirun)
    for cfg in configs:
        Experiment(cfg)
    from genloss.workflow import tracking as track

    track.prepare(configs[0])  # the database exists before parallel jobs meet
    if not many:
        os.environ.pop(SWEEP, None)
        _guard(app, args.overrides)
        if _failure:
            raise _failure.pop()
        return 0
    folder = prepare_sweep(configs)
    os.environ[SWEEP] = str(folder)
    print(f"genloss: {len(configs)} arms; {folder}", file=sys.stderr)
    with live(folder / "progress", configs):
        _guard(app, args.overrides)
    return finish_sweep(folder)


def _configs(overrides: list[str], multirun: bool) -> tuple[list[DictConfig], bool]:
    """The resolved configs that a command line means, and whether it is a sweep."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        mode, params = _hydra_node(overrides)
        many = multirun or mode == "MULTIRUN"
        if not many:
            return [compose(overrides)], False
        given = {o.split("=")[0].lstrip("+~") for o in overrides}
        return expand([*(f"{k}={v}" for k, v in params.items() if k not in given), *overrides]), True
    except (HydraException, OmegaConfBaseException) as error:
        raise hydra_error(error, overrides) from None


def _hydra_node(overrides: list[str]) -> tuple[str | None, dict[str, Any]]:
    """hydra.mode and hydra.sweeper.params of a command line, which an experiment file may set."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    # a sweep's first values stand for all: only the hydra node is read here
    single = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                return "MULTIRUN", {}
            value = next(iter(override.sweep_string_iterator()))
            single.append(f"{override.get_key_element()}={value}")
        else:
            single.append(str(override.input_line))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        from hydra.types import RunMode

        node = loader.load_configuration("config", single, run_mode=RunMode.RUN).hydra
        mode = OmegaConf.select(node, "mode")
        params = plain(OmegaConf.select(node, "sweeper.params") or {})
    return (getattr(mode, "name", mode), {str(k): v for k, v in params.items()})


def _guard(app: Any, overrides: Sequence[str]) -> None:
    """Run a Hydra app; its errors become one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        raise hydra_error(error, overrides) from None
