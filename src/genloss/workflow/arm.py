"""Running one arm to its end, or one round of it for DVC."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from genloss.core.errors import UserError, one_line
from genloss.core.files import keep, write_atomic
from genloss.core.places import load_params, project_root, store_root
from genloss.core.plugin import plain
from genloss.core.progress import Progress, drawn
from genloss.core.rundir import RunDir, round_name
from genloss.core.store import Kept, Store
from genloss.experiment import Experiment, whole
from genloss.loop import Loop, Models
from genloss.observatory.report import PAGE, write_report
from genloss.observatory.results import rounds_of, shown
from genloss.stages import ALL, TRAIN
from genloss.workflow.compose import to_yaml
from genloss.workflow.disk import checked, needed_by_others, tidy
from genloss.workflow.dvc import dvc_yaml
from genloss.workflow.dvc_cache import commit, committed, forget
from genloss.workflow.dvc_config import configure
from genloss.workflow.identity import arm_id, differences, label
from genloss.workflow.params import rounds_for_dvc
from genloss.workflow.shown import Shown


def arm_dir(cfg: DictConfig) -> Path:
    return project_root() / "runs" / f"{label(cfg)}-{arm_id(cfg)}"


def open_run(folder: Path, cfg: DictConfig, sweep: Path | None = None) -> RunDir:
    """The run directory of `cfg`; a folder that holds another config is refused."""
    run = RunDir(folder, Store(store_root()), sweep)
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
        if to_yaml(there) == to_yaml(cfg):
            return run
    write_atomic(params, to_yaml(cfg))  # also how it runs, which is no part of what it is: where MLflow is, say
    return run


def refuse_other_data(run: RunDir, experiment: Experiment) -> None:
    """Refuse to go on with an arm whose files outside of the run, a corpus say, have changed since: a name would stand
    for two results. DVC, which is asked to follow changes, runs such rounds again."""
    for n in sorted({*experiment.different(), 1}):
        x, stages = experiment.at_round(n), run.manifest("train", n).get("stages", {})
        keys = {id(part): key for key, plugin in x.plugins() for part in whole(plugin)}
        for stage in (stage for stage in ALL if stage.name in stages):
            then = stages[stage.name]["config"].get("files", [])
            parts = [part for plugin in stage.plugins(x) for part in whole(plugin)]
            now = [(part, text) for part in parts if (text := part.fingerprint())]
            if [text for _, text in now] != then:
                key = next((keys.get(id(part)) for part, text in now if text not in then), None)
                remedy = "put them back, or move or delete that folder for an arm of the new ones"
                why = f"its files have changed since {run.root} was made from them; {remedy}"
                raise experiment.placed(UserError(key or stage.name, None, why), n)


def run_arm(cfg: DictConfig, name: str | None = None, states: Path | None = None, sweep: Path | None = None) -> Path:
    """Run one arm to its end, or find that it is finished; returns its folder."""
    from genloss.workflow import tracking as track

    experiment = Experiment(cfg)
    folder = arm_dir(cfg)
    costs = ""
    if sweep is None:  # which else has done it for all of its arms
        tidy()
        costs = checked([experiment], [folder])
    run = open_run(folder, cfg, sweep)
    refuse_other_data(run, experiment)
    keep(folder / "dvc.yaml", dvc_yaml(folder / "params.yaml", code=False))  # `dvc repro` goes on with it, too
    configure(folder)  # always: a remote may be new
    progress = Progress(
        name or label(cfg),
        experiment.rounds,
        states / f"{arm_id(cfg)}.json" if states else None,
        lines=not drawn(),
    )
    try:
        with track.Tracker(run, cfg, sweep, name) as tracker:
            loop = Loop(experiment, run, progress, needed_by_others(sweep, arm_id(cfg)))
            sys.stderr.write(costs)  # nothing is wrong that can be known before work
            loop.run(after_round=tracker.round)
            commit(folder)
            if sweep is None:  # whose page shows all of its arms
                _report(folder)
            forget(folder)
            loop.models.end()
    except BaseException:
        progress.end("failed")
        raise
    progress.end("finished")
    return folder


def _report(folder: Path) -> None:
    """The report of an arm that is finished, and stays so whatever is wrong with a page of it."""
    try:
        write_report([(folder.name, folder)], folder / "report", redraw=False, html=folder / PAGE)
    except Exception as error:
        why = f"the report is not made ({one_line(error)}); `genloss report {os.path.relpath(folder)}` makes it"
        print(f"genloss: warning: {why}", file=sys.stderr)


def retired(experiment: Experiment, sweep: Path) -> None:
    """Let the store drop what an arm of a sweep has kept for others, as far as they have ended."""
    run = RunDir(arm_dir(experiment.cfg), Store(store_root()))
    Models(experiment, run, needed_by_others(sweep, arm_id(experiment.cfg))).end()


def one_model(folder: Path, n: int) -> Path:
    """`genloss model`: the folder of a round's model, which is computed again if it was not kept."""
    folder = folder.resolve()
    cfg = load_params(folder / "params.yaml")
    experiment = Experiment(cfg)
    if not 0 <= n <= experiment.rounds:
        raise UserError("--round", n, f"must lie in 0..{experiment.rounds} (rounds={experiment.rounds})")
    run = RunDir(folder, Store(store_root()))
    loop = Loop(experiment, run, Progress(f"round {n}", experiment.rounds))
    if run.holds(n):
        return run.round(n) / "model"
    absent = loop.models.absent()
    with loop.progress.stage(n, "train") as report:
        found = run.fetch(loop.work(TRAIN, n, report), n, folder / "models" / round_name(n))
    run.store.drop(absent)  # models that it was continued from; what was there others may need
    return found


def finished(experiment: Experiment, name: str, sweep: Path, shown: Shown) -> bool:
    """Whether nothing is left to do for an arm of a sweep: every stage is there under its key and undamaged, DVC holds
    it and MLflow shows it. What is wrong with it, running it says."""
    cfg = experiment.cfg
    folder = arm_dir(cfg)
    params = folder / "params.yaml"
    if not params.is_file() or params.read_text(encoding="utf-8") != to_yaml(cfg):
        return False
    run = RunDir(folder, Kept(store_root()))
    try:
        refuse_other_data(run, experiment)
        Loop(experiment, run).run()
        configure(folder)  # a remote may be new
        return committed(folder) and shown.arm(folder, cfg, sweep, name)
    except (UserError, OSError):
        return False


def headline(folder: Path) -> float | None:
    """The metric that the run's domain names first, after the last round; None if it is not among the run's metrics."""
    rounds = rounds_of(folder)
    return rounds[max(rounds)].get(shown(folder / "params.yaml")[0]) if rounds else None


def one_round(folder: Path, number: int) -> int:
    """`genloss round N`: what a DVC stage calls, in its run directory."""
    folder = folder.resolve()
    cfg = load_params(folder / "params.yaml")
    if plain(cfg.dvc) != plain(rounds_for_dvc(cfg)):
        raise UserError(
            str(folder / "params.yaml"),
            None,
            "dvc.rounds is not what rounds and schedule say; "
            f"`genloss compose --dir {os.path.relpath(folder)}` writes it",
        )
    experiment = Experiment(cfg)
    if not 0 <= number <= experiment.rounds:
        raise UserError("round", number, f"must lie in 0..{experiment.rounds} (rounds={experiment.rounds})")
    run = RunDir(folder, Store(store_root()))
    loop = Loop(experiment, run, Progress(f"round {number}", experiment.rounds))
    if number == 0:
        loop.prepare()
        loop.greet()
    loop.round(number)
    return 0
