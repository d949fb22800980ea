"""The stages of a round: what each reads, writes and depends on. Keys, manifests and DVC's stage file are made from
this list.

    run.ensure(GENERATE.work(Job(x, 3, run, report)), 3)      # round 3's records: found, or computed

A stage is a pure function of its part of the config, the hashes of what it reads, its seed and its code. `Stage.work`
says all of it; `RunDir.ensure` computes only what was never computed. Its code is what can be reached from the stage
and its plug-ins (genloss.core.code), so that nothing here has to name a module."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from genloss.core import code, records
from genloss.core.contracts import (
    DROPPED,
    FIRST,
    HISTORY,
    KEPT,
    LAST,
    PREVIOUS,
    ROUND0,
    Domain,
    Fit,
    Inputs,
    Plugin,
    Report,
)
from genloss.core.plugin import named, plain, without
from genloss.core.rundir import RunDir, round_name
from genloss.core.seeds import seed_of
from genloss.core.store import Work
from genloss.curate import Context
from genloss.curate import write as write_curated
from genloss.evaluate import Evidence, evaluate
from genloss.experiment import OPERATIONAL, Experiment, whole
from genloss.generate import Request
from genloss.mix.shards import mix

# Members of plug-ins that no stage uses, and those of a domain that a stage uses only if it says so in `calls`: their
# code is not in its key.
BEFORE_WORK = frozenset(
    {
        *("check", "fingerprint", "places", "parts", "classes", "needs", "at_most", "ended", "starts", "ready"),
        *("architecture", "size", "record_bytes", "greet", "reads_models", "panels"),
    }
)
NOT_CALLED = BEFORE_WORK | {
    "prepare",
    "curate",
    "shards",
    "config",
    "theory",
    "expected",
    "models",
    "trainers",
    "headline",
    "embed",
}


class Artifact(NamedTuple):
    """Files of a finished stage whose name begins with `prefix`."""

    stage: str
    round: int
    prefix: str = ""

    def path(self, run: RunDir) -> Path:
        return run.folder(self.stage, self.round) / self.prefix


REAL = Artifact("data", 0)


def artifacts(name: str, n: int) -> tuple[Artifact, ...]:
    """What a plug-in's `reads` means in round n >= 1."""
    if name == ROUND0:
        return (Artifact("train", 0, "model/"),)
    if name == LAST:
        return (Artifact("train", n - 1, "model/"),)
    if name == PREVIOUS:
        return (Artifact("curate", n - 1, "kept.parquet") if n > 1 else Artifact("data", 0, "train.parquet"),)
    if name == HISTORY:
        return tuple(Artifact("curate", j, "kept.parquet") for j in range(1, n))
    if name == DROPPED:
        return tuple(Artifact("curate", j, "rejected.parquet") for j in range(1, n))
    if name == KEPT:
        return (Artifact("curate", n, "kept.parquet"),)
    if name == FIRST:
        return (Artifact("generate", 1, "generated.parquet"),) if n > 1 else ()
    raise LookupError(f"{name} is nothing that a plug-in can read")


def nowhere(n: int) -> Work:
    raise LookupError(f"the model of round {n} is not in the run directory, and this job cannot compute it again")


@dataclass(frozen=True)
class Job:
    """One stage of one round of one run."""

    x: Experiment  # as this round has it
    n: int
    run: RunDir
    report: Report
    config: Mapping[str, Any] = field(default_factory=dict)  # `Stage.config`, which is in the key
    again: Callable[[int], Work] = nowhere  # the training of a round
    places: Mapping[Artifact, Path] = field(default_factory=dict)  # of models that are not in the run directory

    @property
    def data(self) -> Path:
        return self.run.data

    @property
    def round(self) -> Path:
        return self.run.round(self.n)

    def path(self, artifact: Artifact) -> Path:
        return self.places.get(artifact) or artifact.path(self.run)

    def model(self, n: int) -> Path:
        return self.path(Artifact("train", n, "model/"))

    def fetched(self, artifacts: Iterable[Artifact], scratch: Path) -> dict[Artifact, Path]:
        """Where those models are that the run directory does not hold: below `scratch`, computed again if need be."""
        missing = {a for a in artifacts if a.stage == "train" and not self.run.holds(a.round)}
        return {
            a: self.run.fetch(self.again(a.round), a.round, scratch / "models" / round_name(a.round))
            for a in sorted(missing)
        }

    def inputs(self, plugins: list[Plugin]) -> Inputs:
        """Paths to what the plug-ins read."""
        names = {name for plugin in plugins for name in plugin.reads()} if self.n > 0 else set()
        return Inputs({name: tuple(self.path(a) for a in artifacts(name, self.n)) for name in names})


class Stage(ABC):
    """A stage says what it depends on, and computes into an empty folder `out`; `scratch` survives a kill."""

    name: ClassVar[str]
    writes: ClassVar[tuple[str, ...]]  # files and folders, in the round's folder
    first: ClassVar[int] = 0  # round
    calls: ClassVar[frozenset[str]] = frozenset()  # of NOT_CALLED, the domain's methods that this stage calls

    @abstractmethod
    def plugins(self, x: Experiment) -> list[Plugin]:
        """Those that it calls: their code, and that of their parts, is in the key."""

    @abstractmethod
    def config(self, job: Job) -> dict[str, Any]: ...

    @abstractmethod
    def reads(self, job: Job) -> dict[str, Artifact]: ...

    def seed(self, job: Job) -> int:
        return seed_of(job.x.seed, self.name, job.n)

    @abstractmethod
    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]: ...

    def code(self, x: Experiment) -> code.Reach:
        """What it can execute: itself, its plug-ins and their parts; of the domain's methods those that are called
        here."""
        parts = [part for plugin in self.plugins(x) for part in whole(plugin)]
        classes = {c for part in parts for c in (type(part), *part.classes())}
        without = {c: NOT_CALLED - self.calls if issubclass(c, Domain) else BEFORE_WORK for c in classes}
        return code.reach([type(self), *classes], without)

    def work(self, job: Job) -> Work:
        """The stage with everything that its outputs depend on."""
        plugins = [part for plugin in self.plugins(job.x) for part in whole(plugin)]
        reached = self.code(job.x)
        config = self.config(job)
        files = [text for plugin in plugins if (text := plugin.fingerprint())]
        if files:
            config["files"] = files
        reads, places = self.reads(job), dict[Artifact, Path]()

        def ready(scratch: Path) -> None:
            job.run.claim(scratch, self.name, job.n)
            places.update(job.fetched(reads.values(), scratch))

        return Work(
            stage=self.name,
            config=config,
            inputs={key: job.run.hash_of(*artifact) for key, artifact in reads.items()},
            seed=self.seed(job),
            code=reached.modules(),
            libraries=reached.versions(),
            ready=ready,
            execute=lambda out, scratch: self.execute(replace(job, config=config, places=places), out, scratch),
        )


def _read_by(plugins: list[Plugin], n: int) -> dict[str, Artifact]:
    """What plug-ins read, by a name for the manifest."""
    found: dict[str, Artifact] = {}
    for name in sorted({name for plugin in plugins for name in plugin.reads()}):
        many = artifacts(name, n)
        found |= {f"{name}-{a.round:02d}" if name in (HISTORY, DROPPED) else name: a for a in many}
    return found


def _places(plugin: Plugin, prefix: str = "") -> Iterator[str]:
    """The keys, in a plug-in's config, of what only says where files lie (`Plugin.places`)."""
    yield from (f"{prefix}{name}" for name in plugin.places())
    for key, part in plugin.parts().items():
        yield from _places(part, f"{prefix}{key}.")


def content(config: dict[str, Any], plugin: Plugin) -> dict[str, Any]:
    """The config of a plug-in for a key: options by name, without the places of files, whose hash is there."""
    return without(named(config), _places(plugin))


class Data(Stage):
    """Split the real data; what it writes lies in data/."""

    name = "data"
    writes = ("data",)
    calls = frozenset({"prepare"})

    def plugins(self, x: Experiment) -> list[Plugin]:
        return [x.domain]

    def config(self, job: Job) -> dict[str, Any]:
        return {"domain": content(job.x.domain.config("data"), job.x.domain)}

    def reads(self, job: Job) -> dict[str, Artifact]:
        return {}

    def seed(self, job: Job) -> int:
        return 0  # of the domain's config: all seeds share one split

    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
        return job.x.domain.prepare(out)


class Generate(Stage):
    """The recipe asks model n-1 (or a teacher) for records."""

    name = "generate"
    writes = ("generated.parquet",)
    first = 1

    def plugins(self, x: Experiment) -> list[Plugin]:
        return [x.recipe, x.domain]

    def config(self, job: Job) -> dict[str, Any]:
        x, recipe = job.x, without(plain(job.x.cfg), OPERATIONAL)["recipe"]
        return {"recipe": content(recipe, x.recipe), "domain": x.domain.config("generate"), "round": job.n}

    def reads(self, job: Job) -> dict[str, Artifact]:
        return {"data": REAL, "model": Artifact("train", job.n - 1, "model/"), **_read_by([job.x.recipe], job.n)}

    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
        x = job.x
        request = Request(
            domain=x.domain,
            round=job.n,
            seed=self.seed(job),
            model=job.model(job.n - 1),
            data=job.data,
            inputs=job.inputs([x.recipe]),
            scratch=scratch,
            runtime=x.runtime,
            report=job.report,
            rounds=x.rounds,
            account=job.run.account,
        )
        table, result = x.recipe.generate(request)
        records.write(table, out / "generated.parquet")
        return {"records": len(table), **result}


class Curate(Stage):
    """Each record gets kept/dropped, a score and a reason."""

    name = "curate"
    writes = ("kept.parquet", "rejected.parquet")
    first = 1
    calls = frozenset({"curate", "embed"})

    def plugins(self, x: Experiment) -> list[Plugin]:
        return [*x.curators.values(), x.domain]

    def config(self, job: Job) -> dict[str, Any]:
        x = job.x
        curation = plain(x.cfg.curation)
        chain = [[name, content(curation[name], each)] for name, each in x.curators.items()]  # their order matters
        return {"curation": chain, "control": x.control, "round": job.n, "domain": x.domain.config("curate")}

    def reads(self, job: Job) -> dict[str, Artifact]:
        generated = Artifact("generate", job.n)
        return {"data": REAL, "generated": generated, **_read_by(list(job.x.curators.values()), job.n)}

    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
        x = job.x
        context = Context(
            domain=x.domain,
            round=job.n,
            seed=self.seed(job),
            data=job.data,
            inputs=job.inputs(list(x.curators.values())),
            runtime=x.runtime,
            report=job.report,
            scratch=scratch,
            account=job.run.account,
            store=job.run.store.root,
        )
        table = records.load(job.round / "generated.parquet", scratch)
        curated = x.domain.curate(table, x.curators, x.control, context)
        write_curated(curated, out)
        kept = curated.reasons.get("kept", 0)
        result = {"kept": kept, "rejected": sum(curated.reasons.values()) - kept, "reasons": dict(curated.reasons)}
        return result | ({"spread": curated.spread} if curated.spread else {})


class Mix(Stage):
    """Real and kept records of past rounds become the training set of round n."""

    name = "mix"
    writes = ("train",)
    calls = frozenset({"shards"})

    def plugins(self, x: Experiment) -> list[Plugin]:
        return [x.mixing, x.domain]

    def config(self, job: Job) -> dict[str, Any]:
        real = job.x.mixing.real
        if job.n == 0:  # real data whatever the regime: every arm with equally much of it shares it
            return {"real": real.first or real.n}
        mixing = named(plain(job.x.cfg.mixing))
        config = {"mixing": {k: v for k, v in mixing.items() if k != "name"}, "round": job.n}
        return config | ({"used": job.x.regime.used(job.n, available(job))} if "fresh" in real.kind else {})

    def window(self, job: Job) -> list[int]:
        return job.x.mixing.rounds_in_window(job.n) if job.n > 0 else []

    def reads(self, job: Job) -> dict[str, Artifact]:
        kept = {f"kept-{j:02d}": Artifact("curate", j, "kept.parquet") for j in self.window(job)}
        return {"data": Artifact("data", 0, "train.parquet"), **kept}

    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
        kept = {j: job.run.round(j) / "kept.parquet" for j in self.window(job)}
        real = job.data / "train.parquet"
        return mix(job.x.regime, job.x.domain, job.n, real, kept, out / "train", self.seed(job))


class Train(Stage):
    """A fresh or continued model on that set."""

    name = "train"
    writes = ("model", "training.csv")

    def plugins(self, x: Experiment) -> list[Plugin]:
        return [x.model, x.trainer, *([x.domain] if x.trainer.uses_domain else [])]

    def config(self, job: Job) -> dict[str, Any]:
        x = job.x
        config = content(plain(x.cfg.trainer), x.trainer)
        trainer = {k: v for k, v in config.items() if k not in x.trainer.operational}
        if job.n == 0:
            trainer.pop("start")  # round 0 has nothing to continue from
        return {"model": content(plain(x.cfg.model), x.model), "trainer": trainer, "domain": x.domain.config("train")}

    def continues(self, job: Job) -> bool:
        return job.n > 0 and job.x.trainer.start != "base"

    def reads(self, job: Job) -> dict[str, Artifact]:
        start = {"start": Artifact("train", job.n - 1, "model/")} if self.continues(job) else {}
        return {"data": REAL, "train": Artifact("mix", job.n, "train/"), **start}

    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
        x, folder = job.x, job.round / "train"
        mixed = json.loads((folder / "mix.json").read_text())["shards"]
        fit = Fit(
            model=x.model,
            trainer=x.trainer,
            data=job.data,
            shards=[folder / s["file"] for s in mixed],
            weights=[s["weight"] for s in mixed],
            start=job.model(job.n - 1) if self.continues(job) else None,
            seed=self.seed(job),
            out=out,
            options=job.config["domain"],
            domain=x.domain if x.trainer.uses_domain else None,
            runtime=x.runtime,
            report=job.report,
            scratch=scratch,
        )
        job.run.training = job.n, scratch
        try:
            return x.trainer.train(fit)
        finally:
            job.run.training = None


class Evaluate(Stage):
    """Held-out real data and the generated records become metrics."""

    name = "evaluate"
    writes = ()

    def plugins(self, x: Experiment) -> list[Plugin]:
        return [*x.metrics.values(), x.domain]

    def config(self, job: Job) -> dict[str, Any]:
        config, domain = plain(job.x.cfg.metrics), job.x.domain.config("evaluate")
        metrics = {name: content(config[name], metric) for name, metric in job.x.metrics.items()}
        return {"metrics": metrics, "size": job.x.size, "n_real": real_records(job), "domain": domain}

    def reads(self, job: Job) -> dict[str, Artifact]:
        model, round0 = Artifact("train", job.n, "model/"), Artifact("train", 0, "model/")
        found = {"data": REAL, "model": model, "round0": round0}
        if job.n > 0:
            found |= {"generated": Artifact("generate", job.n), **_read_by(list(job.x.metrics.values()), job.n)}
        return found

    def seed(self, job: Job) -> int:
        return 0  # the same in all arms and rounds, so that they share the samples of real text

    def execute(self, job: Job, out: Path, scratch: Path) -> dict[str, Any]:
        x = job.x
        evidence = Evidence(
            domain=x.domain,
            round=job.n,
            seed=seed_of(0, "evaluate"),
            size=x.size,
            n_real=real_records(job),
            data=job.data,
            model=job.model(job.n),
            round0=job.model(0),
            generated=job.round / "generated.parquet" if job.n > 0 else None,
            inputs=job.inputs(list(x.metrics.values())),
            runtime=x.runtime,
            report=job.report,
            scratch=scratch,
            account=job.run.account,
            store=job.run.store.root,
        )
        return evaluate(x.metrics, evidence)


def available(job: Job) -> int:
    """Real records that there are to train on."""
    split = job.run.done("data", 0)
    return split.result["train"] if split else job.x.size


def real_records(job: Job) -> int:
    """Real records that round 0 was trained on."""
    mixed = job.run.done("mix", 0)
    return sum(s["realised"] for s in mixed.result["shards"]) if mixed else job.x.size


DATA, GENERATE, CURATE, MIX, TRAIN, EVALUATE = ALL = (Data(), Generate(), Curate(), Mix(), Train(), Evaluate())
