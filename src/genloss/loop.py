"""The loop. Every system that genloss runs is these five stages, round after round; only their plug-ins differ.

    round 0:    mix (real data) -> train -> evaluate
    round n:    generate (model n-1) -> curate -> mix (real + kept of past rounds) -> train -> evaluate

    loop = Loop(Experiment(compose(["rounds=1", "size=256"])), RunDir(Path("runs/try"), Store(store_root())))
    loop.run()

What a stage reads, writes and depends on is in genloss.stages; nothing here knows which domain it runs.
"""

from __future__ import annotations

from collections.abc import Callable

from genloss.core.errors import UserError
from genloss.core.progress import Progress
from genloss.core.rundir import RunDir
from genloss.core.store import Done
from genloss.experiment import Experiment
from genloss.stages import CURATE, DATA, EVALUATE, GENERATE, MIX, TRAIN, Job, Stage
from genloss.summary import Summary


class Loop:
    """One arm. `run` runs all rounds; `round(n)` runs one and needs the rounds before it in the directory."""

    def __init__(self, experiment: Experiment, run: RunDir, progress: Progress | None = None):
        self.experiment = experiment
        self.run_dir = run
        self.progress = progress or Progress.silent()
        self.summary = Summary(experiment, run)
        for n in experiment.different():
            x = experiment.at_round(n)
            try:
                x.trainer.ready(x.runtime)
                x.model.ready(x)
            except UserError as error:
                raise experiment.placed(error, n) from None

    def run(self, after_round: Callable[[int], None] = lambda n: None) -> None:
        self.prepare()
        for n in range(self.experiment.rounds + 1):
            self.round(n)
            after_round(n)

    def prepare(self) -> None:
        """Split the real data, and refuse what can only be known now: a mix of more records than there can be."""
        x, done = self.experiment, self.do(DATA, 0)
        bounds = {n: x.at_round(n).recipe.at_most() for n in range(1, x.rounds + 1)}
        at_most = {n: bound for n, bound in bounds.items() if bound is not None}
        x.regime.check_available(done.result["train"], x.size, at_most)

    def round(self, n: int) -> dict[str, float]:
        """One turn of the recursion; returns its metrics."""
        if n > 0:
            self.do(GENERATE, n)
            self.do(CURATE, n)
        self.do(MIX, n)
        trained = self.do(TRAIN, n)
        if error := self.experiment.at_round(n).trainer.ended(trained.result):
            self.summary.write(n)
            raise self.experiment.placed(error, n)
        self.do(EVALUATE, n)
        return self.summary.write(n)

    def do(self, stage: Stage, n: int) -> Done:
        """Have the results of a stage in the run directory: present already, from the store, or computed now."""
        with self.progress.stage(n, stage.name) as report:
            x, computed = self.experiment.at_round(n), self.run_dir.store.computed
            try:
                done = self.run_dir.ensure(
                    stage.work(Job(x, n, self.run_dir, report)), n, waiting=self.progress.waiting
                )
            except UserError as error:
                raise self.experiment.placed(error, n) from None
            if stage is TRAIN:
                self.progress.loss = done.result.get("loss")
            if stage is TRAIN and computed == self.run_dir.store.computed and (missed := x.trainer.missed()):
                self.progress.note(f"round {n} train: was finished before, so {missed}")
            return done
