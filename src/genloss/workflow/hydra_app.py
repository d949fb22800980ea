"""Running: one arm, a sweep of arms, one round for DVC.

An arm's folder is runs/NAME-HASH, where HASH names its resolved config: running the same command again resumes, and what is
finished is skipped. A sweep's folder is runs/sweep-HASH; it lists its arms. Hydra composes the configs and launches the jobs;
arms share the store, so what two arms have in common is computed once, in parallel jobs too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genloss.core.errors import UserError
from genloss.core.progress import Live, Progress
from genloss.core.rundir import RunDir
from genloss.core.store import Store, canonical, sha256_text, write_atomic
from genloss.loop import Loop
from genloss.workflow.compose import (
    Experiment,
    arm_id,
    compose,
    conf_dir,
    differences,
    hydra_error,
    label,
    load_params,
    plain,
    project_root,
    resolve,
    store_root,
    to_yaml,
)  # fmt: skip

SWEEP = "GENLOSS_SWEEP"  # the sweep's folder, for the jobs that Hydra launches


# -- one arm ---------------------------------------------------------------------------------------------------------------


def arm_dir(cfg: DictConfig) -> Path:
    return project_root() / "runs" / f"{label(cfg)}-{arm_id(cfg)}"


def open_run(folder: Path, cfg: DictConfig) -> RunDir:
    """The run directory of `cfg`; a folder that holds another config is refused."""
    run = RunDir(folder, Store(store_root()))
    params = folder / "params.yaml"
    if params.is_file():
        there = load_params(params)
        if arm_id(there) != arm_id(cfg):
            keys = ", ".join(differences([there, cfg])[0]) or "keys"
            raise UserError(
                str(folder),
                None,
                f"belongs to another config (it differs in {keys}); use another folder or delete it",
            )
    else:
        write_atomic(params, to_yaml(cfg))
    return run


def run_arm(cfg: DictConfig, name: str | None = None, states: Path | None = None, sweep: Path | None = None) -> Path:
    """Run one arm to its end, or find that it is finished; returns its folder."""
    from genloss.workflow import dvc as versioning
    from genloss.workflow import tracking as track

    experiment = Experiment(cfg)
    folder = arm_dir(cfg)
    run = open_run(folder, cfg)
    progress = Progress(name or label(cfg), experiment.rounds, states / f"{arm_id(cfg)}.json" if states else None,
                        lines=not sys.stderr.isatty())  # fmt: skip
    loop = Loop(experiment, run, progress)
    tracker = track.Tracker(folder, cfg, sweep)
    try:
        loop.run(after_round=tracker.round)
        versioning.commit(folder)
        tracker.finish()
    except BaseException:
        progress.end("failed")
        raise
    progress.end("finished")
    return folder


def one_round(folder: Path, number: int) -> int:
    """`genloss round N`: what a DVC stage calls, in its run directory."""
    folder = folder.resolve()
    cfg = load_params(folder / "params.yaml")
    if plain(cfg.dvc) != plain(rounds_for_dvc(cfg)):
        raise UserError(
            str(folder / "params.yaml"),
            None,
            f"dvc.rounds is not what rounds and schedule say; `genloss compose --dir {os.path.relpath(folder)}` writes it",
        )
    experiment = Experiment(cfg)
    if not 0 <= number <= experiment.rounds:
        raise UserError("round", number, f"must lie in 0..{experiment.rounds} (rounds={experiment.rounds})")
    run = RunDir(folder, Store(store_root()))
    loop = Loop(experiment, run, Progress(f"round {number}", experiment.rounds))
    if number == 0:
        loop.prepare()
    loop.round(number)
    return 0


def rounds_for_dvc(cfg: DictConfig) -> DictConfig:
    """The node `dvc`: what DVC's foreach needs, derived from `rounds` and `schedule`."""
    from hydra_plugins.genloss import unroll

    return OmegaConf.create({"rounds": unroll(cfg.rounds, cfg.schedule)})


def change(path: Path, overrides: Sequence[str]) -> DictConfig:
    """params.yaml of a run directory with other values, in Hydra's syntax; conf/ and its groups are not asked."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    load_params(path)  # its errors are the better ones
    with tempfile.TemporaryDirectory(prefix="genloss-compose-") as alone:  # Hydra would take rounds/ for a config group
        shutil.copyfile(path, Path(alone) / path.name)
        try:
            with initialize_config_dir(alone, version_base="1.3"):
                cfg = resolve(hydra_compose(path.stem, overrides=list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise hydra_error(error) from None
    cfg.dvc = rounds_for_dvc(cfg)
    return cfg


def compose_params(overrides: Sequence[str], check: bool, folder: Path | None = None) -> int:
    """`genloss compose`: conf/ plus overrides, resolved, to params.yaml of the project; or a run directory's, changed."""
    path = (folder or project_root()).resolve() / "params.yaml"
    if folder is None:
        cfg = compose(overrides)
    else:
        cfg = change(path, overrides)
    Experiment(cfg)
    text = to_yaml(cfg)
    if check:
        current = path.is_file() and path.read_text() == text
        print(f"{path}: {'current' if current else 'stale; run `genloss compose`'}")
        return 0 if current else 1
    write_atomic(path, text)
    from genloss.workflow.dvc import dvc_yaml

    write_atomic(path.with_name("dvc.yaml"), dvc_yaml(path, code=path.parent == project_root()))
    print(path)
    return 0


# -- sweeps ------------------------------------------------------------------------------------------------------------------


def expand(overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of a sweep, before anything runs: every arm is composed and checked first."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    jobs = BasicSweeper.split_arguments(parsed, None)[0]
    return [compose(job) for job in jobs]


CHOICES = ("name", "_target_", "arch")  # keys that say which option of a group was chosen, the plainest first
CHAINS = ("curation", "metrics", "domain.tasks", "domain.probes")  # groups of several options


def names_of(configs: Sequence[DictConfig]) -> list[str]:
    """What tells the arms of a sweep apart: the values that differ, short. What follows from a choice that is named already, or
    from the seed (path: runs/critic-*-s${seed}-*), is left out."""
    varying = differences(configs)
    values = {key: [v[key] for v in varying] for key in varying[0]}
    chosen: dict[str, list[str]] = {}  # by the group: a text for each arm
    for group in CHAINS:
        nodes = [OmegaConf.select(cfg, group) or {} for cfg in configs]
        texts = ["+".join(map(str, node)) or "none" for node in nodes]
        if len(set(texts)) > 1:
            chosen[group] = texts
    for last in CHOICES:
        for key in values:
            group, _, end = key.rpartition(".")
            if group and end == last and not any(f"{group}.".startswith(f"{g}.") for g in chosen):
                chosen[group] = [str(v).rpartition(".")[2] if last == "_target_" else str(v) for v in values[key]]
    seeds = [str(cfg.seed) for cfg in configs]
    known = {"": seeds} | {group: list(zip(texts, seeds, strict=True)) for group, texts in chosen.items()}

    def follows(key: str, of: Sequence[Any]) -> bool:
        texts = [canonical(v) for v in of]
        return any(
            (not group or key.startswith(f"{group}.") or key == group) and 1 < len(set(by)) == len(set(zip(by, texts, strict=True)))
            for group, by in known.items()
        )  # fmt: skip

    rest = {
        k: v for k, v in values.items() if k != "seed" and not follows(k, v) and not any(isinstance(x, dict) for x in v)
    }
    first = {
        "mixing": [cfg.mixing.name for cfg in configs],
        "curation": ["+".join(map(str, cfg.curation)) or "none" for cfg in configs],
    }
    columns = [
        texts for group, texts in first.items() if group in chosen or any(k.startswith(f"{group}.") for k in rest)
    ]
    columns += [texts for group, texts in chosen.items() if group not in first]
    for key, each in rest.items():
        shown = ["+".join(map(str, v)) if isinstance(v, list) else v for v in each]
        columns.append([f"{key.rpartition('.')[2]}={v}" for v in shown])
    if "seed" in values:
        columns.append([f"seed {v}" for v in values["seed"]])
    names = [" ".join(parts) for parts in zip(*columns, strict=True)] if columns else [label(cfg) for cfg in configs]
    if len(set(names)) == len(names):
        return names
    return [f"{name} {arm_id(cfg)[:6]}" for name, cfg in zip(names, configs, strict=True)]


def sweep_dir(configs: Sequence[DictConfig]) -> Path:
    return project_root() / "runs" / f"sweep-{sha256_text(canonical(sorted(arm_id(c) for c in configs)))[:12]}"


_failure: list[Exception] = []


def job(cfg: DictConfig) -> None:
    """What Hydra calls for every arm. A failure is written down, not raised, so that the other arms go on."""
    resolved = resolve(cfg)
    if SWEEP not in os.environ:
        try:
            with live(None, [resolved]) as states:
                folder = run_arm(resolved, states=states)
        except (
            UserError,
            OSError,
        ) as error:  # raised again outside Hydra, which would print more than its one line
            _failure.append(error)
            return
        print(f"run: {folder}")
        return
    sweep = Path(os.environ[SWEEP])
    identity = arm_id(resolved)
    note = sweep / "arms" / f"{identity}.json"
    entry = json.loads(note.read_text()) if note.is_file() else {"name": label(resolved)}
    try:
        folder = run_arm(resolved, entry["name"], sweep / "progress", sweep)
        entry |= {"state": "finished", "dir": os.path.relpath(folder, sweep), "error": None}
    except KeyboardInterrupt:
        raise
    except Exception as error:
        expected = isinstance(error, (UserError, OSError))
        entry |= {"state": "failed", "dir": os.path.relpath(arm_dir(resolved), sweep), "error": " ".join(str(error).split()),
                  "traceback": None if expected else traceback.format_exc()}  # fmt: skip
    write_atomic(note, json.dumps(entry, indent=1))


@contextlib.contextmanager
def live(folder: Path | None, configs: Sequence[DictConfig]) -> Iterator[Path]:
    """Live progress of arms; yields the folder of their states."""
    states = folder or project_root() / ".genloss" / "progress" / str(os.getpid())
    shutil.rmtree(states, ignore_errors=True)
    with Live(states, len(configs)):
        yield states
    shutil.rmtree(states, ignore_errors=True)


def prepare_sweep(configs: Sequence[DictConfig]) -> Path:
    """Write down the sweep's arms, so that an interrupted sweep knows what it was to run."""
    folder = sweep_dir(configs)
    for cfg, name in zip(configs, names_of(configs), strict=True):
        note = folder / "arms" / f"{arm_id(cfg)}.json"
        if not note.is_file():
            entry = {
                "name": name,
                "state": "waiting",
                "dir": os.path.relpath(arm_dir(cfg), folder),
                "error": None,
            }
            write_atomic(note, json.dumps(entry, indent=1))
    order = [arm_id(c) for c in configs]
    write_atomic(folder / "sweep.json", json.dumps({"arms": order, "command": [*sys.argv[1:]]}, indent=1))
    return folder


def finish_sweep(folder: Path) -> int:
    """Table, figure, failures, and the folder as the last line."""
    from genloss.observatory.report import next_commands, report_sweep

    entries = sweep_entries(folder)
    finished = [e for e in entries if e["state"] == "finished"]
    if finished:
        print(report_sweep(folder))
        print(next_commands(folder))
    failed = [e for e in entries if e["state"] != "finished"]
    for entry in failed:
        print(f"genloss: failed: {entry['name']}: {entry.get('error') or 'it never ended'}", file=sys.stderr)
        if entry.get("traceback"):
            print(entry["traceback"], file=sys.stderr)
    if failed:
        print(
            f"genloss: {len(failed)} of {len(entries)} arms failed; the same command tries them again",
            file=sys.stderr,
        )
    print(f"sweep: {folder}")
    return 1 if failed else 0


def sweep_entries(folder: Path) -> list[dict[str, Any]]:
    """The arms of a sweep, in their order: name, state, dir (relative to the sweep), error."""
    try:
        order = json.loads((folder / "sweep.json").read_text())["arms"]
        return [json.loads((folder / "arms" / f"{a}.json").read_text()) for a in order]
    except (OSError, ValueError, KeyError):
        raise UserError(str(folder), None, "is no sweep, or a damaged one; run its command again") from None


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
