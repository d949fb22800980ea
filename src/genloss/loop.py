"""The loop. Every system that genloss runs is these five stages, round after round; only their plug-ins differ.

    round 0:    mix (real data) -> train -> evaluate
    round n:    generate (model n-1) -> curate -> mix (real + kept of past rounds) -> train -> evaluate

A stage is described as `Work` (what it depends on, and what to do) and handed to `RunDir.ensure`, which takes it from the run
directory or the store if it was ever computed, and computes it otherwise. Nothing here knows which domain it runs.

    loop = Loop(Experiment(compose(["rounds=1", "size=256"])), RunDir(Path("runs/try"), Store(store_root())))
    loop.run()
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from genloss.core import records
from genloss.core.contracts import Fit
from genloss.core.files import write_atomic
from genloss.core.plugin import plain
from genloss.core.progress import Progress
from genloss.core.rundir import RunDir
from genloss.core.seeds import seed_of
from genloss.core.store import Done, Work
from genloss.curate import Context, curate
from genloss.curate import write as write_curated
from genloss.evaluate import Evidence, evaluate
from genloss.experiment import Experiment
from genloss.generate import Request

STAGES = ("data", "generate", "curate", "mix", "train", "evaluate")


class Loop:
    """One arm. `run` runs all rounds; `round(n)` runs one and needs the rounds before it in the directory."""

    def __init__(self, experiment: Experiment, run: RunDir, progress: Progress | None = None):
        self.base = experiment
        self.dir = run
        self.progress = progress or Progress.silent()
        self.runtime = experiment.runtime

    def run(self, after_round: Callable[[int], None] = lambda n: None) -> None:
        self.prepare()
        for n in range(self.base.rounds + 1):
            self.round(n)
            after_round(n)

    def prepare(self) -> None:
        """Split the real data, and refuse what can only be known now: more real records than there are."""
        done = self.data()
        self.base.mixing.check(done.result["train"], self.base.rounds, self.base.size)

    def round(self, n: int) -> dict[str, float]:
        """One turn of the recursion; returns its metrics."""
        x = self.base.at_round(n)
        if n > 0:
            self.generate(x, n)
            self.curate(x, n)
        self.mix(x, n)
        self.train(x, n)
        self.evaluate(x, n)
        return self.write_metrics(n)

    # -- the stages ------------------------------------------------------------------------------------------------

    def data(self) -> Done:
        domain = self.base.domain

        def execute(out: Path, scratch: Path) -> dict[str, Any]:
            return domain.prepare(out)

        config = {"domain": domain.config("data"), "files": domain.fingerprint()}
        return self._ensure("data", 0, config, {}, 0, (type(domain).__module__,), execute)

    def generate(self, x: Experiment, n: int) -> Done:
        previous = self.dir.data / "train.parquet" if n == 1 else self.dir.round(n - 1) / "kept.parquet"
        inputs = {"model": self.dir.hash_of("train", n - 1, "model/")} | self._reads(x.recipe.reads, n)
        seed = seed_of(x.seed, "generate", n)
        past = range(1, n) if "history" in x.recipe.reads else ()

        def execute(out: Path, scratch: Path) -> dict[str, Any]:
            request = Request(
                x.domain,
                n,
                seed,
                self.dir.round(n - 1) / "model",
                self.dir.data,
                previous,
                scratch,
                self.runtime,
                self._report,
                tuple(self.dir.round(j) / "kept.parquet" for j in past),
            )
            table, result = x.recipe.generate(request)
            records.write(table, out / "generated.parquet")
            return {"records": len(table), **result}

        config = {
            "recipe": plain(x.cfg.recipe),
            "domain": x.domain.config("generate"),
            "round": n,
            "files": x.recipe.fingerprint(),
        }
        return self._ensure("generate", n, config, inputs, seed, (type(x.recipe).__module__,), execute, x)

    def curate(self, x: Experiment, n: int) -> Done:
        inputs = {"generated": self.dir.hash_of("generate", n, "")}
        for curator in x.curators.values():
            inputs |= self._reads(curator.reads, n)
        past = range(1, n) if any("history" in c.reads for c in x.curators.values()) else ()
        seed = seed_of(x.seed, "curate", n)

        def execute(out: Path, scratch: Path) -> dict[str, Any]:
            context = Context(
                x.domain,
                n,
                seed,
                self.dir.data,
                self.dir.round(0) / "model",
                self.dir.round(n - 1) / "model",
                self.runtime,
                self._report,
                tuple(self.dir.round(j) / "kept.parquet" for j in past),
            )
            table = records.read(self.dir.round(n) / "generated.parquet")
            kept, rejected, reasons = curate(table, x.curators, x.control, context)
            write_curated(kept, rejected, out)
            return {"kept": len(kept), "rejected": len(rejected), "reasons": reasons}

        config = {
            "curation": [[name, value] for name, value in plain(x.cfg.curation).items()],  # their order matters
            "control": x.control,
            "round": n,
            "files": [c.fingerprint() for c in x.curators.values()],
            "domain": x.domain.config("evaluate"),
        }
        modules = ("genloss.curate", *(type(c).__module__ for c in x.curators.values()))
        return self._ensure("curate", n, config, inputs, seed, modules, execute, x)

    def mix(self, x: Experiment, n: int) -> Done:
        window = x.mixing.rounds_in_window(n) if n > 0 else []
        inputs = {"data": self.dir.hash_of("data", 0, "train.parquet")}
        inputs |= {f"kept-{j:02d}": self.dir.hash_of("curate", j, "kept.parquet") for j in window}
        seed = seed_of(x.seed, "mix", n)

        def execute(out: Path, scratch: Path) -> dict[str, Any]:
            kept = {j: self.dir.round(j) / "kept.parquet" for j in window}
            return x.mixing.mix(n, self.dir.data, kept, out / "train", seed)

        # round 0 is real data whatever the regime: every arm with equally much of it shares it
        config: dict[str, Any] = (
            {"real": x.mixing.real.n} if n == 0 else {"mixing": self._unnamed(plain(x.cfg.mixing)), "round": n}
        )
        return self._ensure("mix", n, config, inputs, seed, ("genloss.mix",), execute)

    def train(self, x: Experiment, n: int) -> Done:
        warm = n > 0 and x.mixing.init == "warm"
        inputs = {"train": self.dir.hash_of("mix", n, "train/"), "data": self.dir.hash_of("data", 0, "")}
        if warm:
            inputs["start"] = self.dir.hash_of("train", n - 1, "model/")
        seed = seed_of(x.seed, "train", n)

        def execute(out: Path, scratch: Path) -> dict[str, Any]:
            folder = self.dir.round(n) / "train"
            mixed = json.loads((folder / "mix.json").read_text())["shards"]
            fit = Fit(
                model=x.model,
                trainer=x.trainer,
                data=self.dir.data,
                shards=[folder / s["file"] for s in mixed],
                weights=[s["weight"] for s in mixed],
                start=self.dir.round(n - 1) / "model" if warm else None,
                seed=seed,
                out=out,
                options=x.domain.config("train"),
                runtime=self.runtime,
                report=self._report,
            )
            return x.domain.train(fit)

        config = {
            "model": plain(x.cfg.model),
            "trainer": plain(x.cfg.trainer),
            "domain": x.domain.config("train"),
            "files": x.model.fingerprint() + x.trainer.fingerprint(),
        }
        modules = (type(x.model).__module__, type(x.trainer).__module__)
        return self._ensure("train", n, config, inputs, seed, modules, execute, x)

    def evaluate(self, x: Experiment, n: int) -> Done:
        inputs = {
            "data": self.dir.hash_of("data", 0, ""),
            "model": self.dir.hash_of("train", n, "model/"),
            "round0": self.dir.hash_of("train", 0, "model/"),
        }
        if n > 0:
            inputs["generated"] = self.dir.hash_of("generate", n, "")
        kept = None
        if n > 0 and any("kept" in metric.reads for metric in x.metrics.values()):
            inputs["kept"] = self.dir.hash_of("curate", n, "kept.parquet")
            kept = self.dir.round(n) / "kept.parquet"
        n_real = self._real_records()

        def execute(out: Path, scratch: Path) -> dict[str, Any]:
            evidence = Evidence(
                domain=x.domain,
                round=n,
                seed=seed_of(0, "evaluate"),
                size=x.size,
                n_real=n_real,
                data=self.dir.data,
                model=self.dir.round(n) / "model",
                round0=self.dir.round(0) / "model",
                generated=self.dir.round(n) / "generated.parquet" if n > 0 else None,
                kept=kept,
                runtime=self.runtime,
                report=self._report,
            )
            return evaluate(x.metrics, evidence)

        config = {
            "metrics": plain(x.cfg.metrics),
            "size": x.size,
            "n_real": n_real,
            "domain": x.domain.config("evaluate"),
        }
        modules = ("genloss.evaluate", *(type(m).__module__ for m in x.metrics.values()))
        return self._ensure("evaluate", n, config, inputs, 0, modules, execute, x)

    # -- metrics.json: what was measured, what was counted, how long it took ------------------------------------------

    def write_metrics(self, n: int) -> dict[str, float]:
        done = {stage: self.dir.done(stage, n) for stage in STAGES}
        metrics: dict[str, float] = {}
        if done["evaluate"]:
            metrics |= done["evaluate"].result
        if done["curate"]:
            metrics |= {
                "n_kept": done["curate"].result["kept"],
                "n_rejected": done["curate"].result["rejected"],
            }
            for reason, count in done["curate"].result["reasons"].items():
                if reason != "kept":
                    metrics["dropped/" + "_".join(reason.replace(":", " ").split())] = count
        if done["generate"]:
            metrics["n_generated"] = done["generate"].result["records"]
            metrics |= {f"generate/{name}": v for name, v in done["generate"].result.get("counts", {}).items()}
        if done["mix"]:
            shards = done["mix"].result["shards"]
            metrics["train_requested"] = done["mix"].result["requested"]
            metrics["train_records"] = sum(s["realised"] for s in shards)
            metrics["train_real"] = sum(s["realised"] for s in shards if s["origin"] == records.REAL)
            for s in shards:
                if s["origin"] == records.SYNTHETIC:
                    metrics[f"train_generation_{s['generation']:02d}"] = s["realised"]
            metrics["train_real_fraction"] = metrics["train_real"] / max(1, metrics["train_records"])
        for stage, entry in done.items():
            if entry and (stage != "data" or n == 0):
                metrics[f"seconds/{stage}"] = entry.seconds
                if "tokens" in entry.result and entry.seconds > 0:
                    metrics[f"tokens_per_second/{stage}"] = entry.result["tokens"] / entry.seconds
        if n < len(self._theory):
            metrics |= {f"theory/{name}": value for name, value in self._theory[n].items()}
        expected = self.base.domain.expected(self.base.at_round(n), metrics)
        metrics |= {f"theory/{name}": value for name, value in expected.items()}
        metrics = {k: float(v) for k, v in sorted(metrics.items()) if math.isfinite(v)}
        path = self.dir.round(n) / "metrics.json"
        text = json.dumps(metrics, indent=1) + "\n"
        if not path.is_file() or path.read_text() != text:
            write_atomic(path, text)
        return metrics

    @cached_property
    def _theory(self) -> list[dict[str, float]]:
        return self.base.domain.theory(self.base)

    # -- plumbing ----------------------------------------------------------------------------------------------------

    def _ensure(
        self,
        stage: str,
        n: int,
        config: dict[str, Any],
        inputs: dict[str, str],
        seed: int,
        modules: tuple[str, ...],
        execute: Callable[[Path, Path], dict[str, Any]],
        x: Experiment | None = None,
    ) -> Done:
        domain = (x or self.base).domain
        # curators may ask the domain for losses, which is what its evaluation depends on
        part = {"curate": "evaluate"}.get(stage, stage)
        needs_domain = stage not in ("mix",)
        work = Work(
            stage=stage,
            config=config,
            inputs=inputs,
            seed=seed,
            modules=modules + (domain.code(part) if needs_domain else ()),
            libraries=domain.libraries(part) if needs_domain else ("numpy", "pyarrow"),
            execute=execute,
        )
        with self.progress.stage(n, stage) as report:
            self._report = report
            return self.dir.ensure(work, n, waiting=self.progress.waiting)

    def _reads(self, names: tuple[str, ...], n: int) -> dict[str, str]:
        """Hashes of what a plug-in says it reads."""
        found = {}
        for name in names:
            if name == "data":
                found["data"] = self.dir.hash_of("data", 0, "")
            elif name == "round0":
                found["round0"] = self.dir.hash_of("train", 0, "model/")
            elif name == "last":
                found["last"] = self.dir.hash_of("train", n - 1, "model/")
            elif name == "previous" and n > 1:
                found["previous"] = self.dir.hash_of("curate", n - 1, "kept.parquet")
            elif name == "history":
                found |= {f"kept-{j:02d}": self.dir.hash_of("curate", j, "kept.parquet") for j in range(1, n)}
        return found

    def _real_records(self) -> int:
        """Real records that round 0 was trained on."""
        mixed = self.dir.done("mix", 0)
        return sum(s["realised"] for s in mixed.result["shards"]) if mixed else self.base.size

    @staticmethod
    def _unnamed(mixing: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in mixing.items() if k not in ("name", "init")}
