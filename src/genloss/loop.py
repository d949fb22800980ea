"""The loop. Every system that genloss runs is these five stages, round after round; only their plug-ins differ.

    round 0:    mix (real data) -> train -> evaluate
    round n:    generate (model n-1) -> curate -> mix (real + kept of past rounds) -> train -> evaluate

    loop = Loop(Experiment(compose(["rounds=1", "size=256"])), RunDir(Path("runs/try"), Store(store_root())))
    loop.run()

What a stage reads, writes and depends on is in genloss.stages; nothing here knows which domain it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from genloss.core.contracts import Report, silent
from genloss.core.errors import UserError
from genloss.core.progress import Progress
from genloss.core.retention import weights
from genloss.core.rundir import RunDir
from genloss.core.store import Done, Work
from genloss.experiment import Experiment
from genloss.stages import ALL, CURATE, DATA, EVALUATE, GENERATE, MIX, TRAIN, Job, Stage
from genloss.summary import Summary


class Loop:
    """One arm. `run` runs all rounds; `round(n)` runs one and needs the rounds before it in the directory. others: of
    `Models`."""

    def __init__(
        self,
        experiment: Experiment,
        run: RunDir,
        progress: Progress | None = None,
        others: Callable[[int], bool] = lambda n: False,
    ):
        self.experiment = experiment
        self.run_dir = run
        self.models = Models(experiment, run, others)
        self.progress = progress or Progress.silent()
        self.summary = Summary(experiment, run)
        for n in experiment.different():
            try:
                experiment.at_round(n).ready()
            except UserError as error:
                raise experiment.placed(error, n) from None

    def run(self, after_round: Callable[[int], None] = lambda n: None) -> None:
        self.prepare()
        self.greet()
        for n in range(self.experiment.rounds + 1):
            self.round(n)
            after_round(n)

    def prepare(self) -> None:
        """Split the real data, and refuse what can only be known now: a mix of more records than there can be."""
        x, done = self.experiment, self.do(DATA, 0)
        bounds = {n: x.at_round(n).recipe.at_most() for n in range(1, x.rounds + 1)}
        at_most = {n: bound for n, bound in bounds.items() if bound is not None}
        x.regime.check_available(done.result["train"], x.size, at_most)

    def greet(self) -> None:
        """Refuse before hours of training what the next round would find out behind them: a server that is down, or is
        not the one that is meant."""
        left = [n for n in range(1, self.experiment.rounds + 1) if not self.run_dir.done(GENERATE.name, n)]
        if not left:
            return
        n, x = left[0], self.experiment.at_round(left[0])
        for key, plugin in x.plugins():
            try:
                plugin.greet(self.run_dir.account)
            except UserError as error:
                raise self.experiment.placed(error.under(key), n) from None

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
                done = self.run_dir.ensure(self.work(stage, n, report), n, waiting=self.progress.waiting)
            except UserError as error:
                raise self.experiment.placed(error, n) from None
            self.models.used(stage, n)
            if stage is TRAIN:
                self.progress.loss = done.result.get("loss")
            if stage is TRAIN and computed == self.run_dir.store.computed and (missed := x.trainer.missed()):
                self.progress.note(f"round {n} train: was finished before, so {missed}")
            return done

    def work(self, stage: Stage, n: int, report: Report = silent) -> Work:
        """A stage of a round, ready to run."""

        def again(m: int) -> Work:
            work = self.work(TRAIN, m, report)

            def ready(scratch: Path) -> None:
                self.progress.note(f"round {n} {stage.name}: the model of round {m} was not kept, and is trained again")
                work.ready(scratch)

            return replace(work, ready=ready)

        return stage.work(Job(self.experiment.at_round(n), n, self.run_dir, report, again=again))


class Models:
    """The models of an arm, as far as they are needed: those that are not kept (`keep.models`) go from the store after
    their last use. others: whether another arm, one that has not ended, has the same model of a round."""

    def __init__(self, experiment: Experiment, run: RunDir, others: Callable[[int], bool] = lambda n: False):
        self.experiment, self.run, self.others = experiment, run, others
        run.dropped = experiment.keep.dropped(experiment.rounds)

    @cached_property
    def last(self) -> dict[int, tuple[int, int]]:
        """When the model of a round is needed for the last time: (round, place of the stage in ALL)."""
        return {
            read.round: (n, i)
            for n in range(self.experiment.rounds + 1)
            for i, stage in enumerate(ALL)
            if n >= stage.first and not (stage is DATA and n > 0)
            for read in stage.reads(Job(self.experiment.at_round(n), n, self.run, silent)).values()
            if read.stage == TRAIN.name
        }

    def used(self, stage: Stage, n: int) -> None:
        """Let go of those that a stage has just used for the last time."""
        now = n, ALL.index(stage)
        if self.run.dropped and now in self.last.values():
            self._drop(
                {m for m, last in self.last.items() if last == now}, needed=lambda m: self.last[m] > now and m <= n
            )

    def end(self) -> None:
        """Let go of all that are not kept, at the end of an arm."""
        if self.run.dropped:
            self._drop(set(self.last), needed=lambda m: False)

    def _drop(self, over: set[int], needed: Callable[[int], bool]) -> None:
        going = self.run.dropped - self.experiment.keep.reference
        goes = {m for m in over if m in going and not self.others(m)}
        # what is stacked on another adapter holds that too, so files count and not rounds
        kept = {digest for m in self.last if m not in goes and (m in over or needed(m)) for digest in self._weights(m)}
        self.run.store.drop(sorted({digest for m in goes for digest in self._weights(m)} - kept))

    def absent(self) -> list[str]:
        """sha256 of weights of the arm that the store does not have."""
        digests = {digest for m in range(self.experiment.rounds + 1) for digest in self._weights(m)}
        return sorted(digest for digest in digests if not self.run.store.blob(digest).is_file())

    def _weights(self, m: int) -> list[str]:
        done = self.run.done(TRAIN.name, m)
        return [done.files[name] for name in weights(done.files)] if done else []
