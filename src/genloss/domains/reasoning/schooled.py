"""A student that knows something before it sees a seed: a base that was trained once on problems of its own.

    genloss run domain=reasoning model=schooled mixing=real_only size=100 trainer.steps=60 trainer.lr=1e-3

A model from scratch learns a few hundred seeds by heart before it can do anything else, so that what it gets wrong says
little. The systems that genloss rebuilds start from a pretrained model; this is one of 0.1 M parameters, made in half a
minute. Cold starts begin from it (trainer.start=base). It is a pure function of this config, the tokenizer and the
splits that it leaves alone: the copy in the store (bases/) only saves the time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from genloss.core import code, records
from genloss.core.contracts import Fit, Plugin
from genloss.core.errors import UserError, require
from genloss.core.files import locked
from genloss.core.hashes import canonical, folder_hash, sha256_file, sha256_text
from genloss.core.places import store_root
from genloss.core.plugin import build, named
from genloss.core.records import normal
from genloss.core.seeds import seed_of
from genloss.domains.reasoning import Reasoning, held_out
from genloss.domains.reasoning.tasks import Problem, Task, distinct
from genloss.language.model import Scratch
from genloss.language.trainer import Supervised


@dataclass
class Schooled(Scratch):
    """`fresh`, a random one, becomes the base by `steps` steps on `examples` problems of `tasks`, the same for every
    seed of a run."""

    tasks: dict[str, Any] = field(default_factory=dict)  # name: a Task, as in domain.tasks
    examples: int = 3000
    steps: int = 600
    batch: int = 64
    lr: float = 4e-3
    school_seed: int = 0
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("examples", "steps", "batch"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.lr > 0, "lr", self.lr, "greater than 0")
        if not self.tasks:
            raise UserError("tasks", None, "names no family of problems; model=scratch needs none")
        self.families = {name: build(value, Task, f"tasks.{name}") for name, value in self.tasks.items()}

    def parts(self) -> Mapping[str, Plugin]:
        return {f"tasks.{name}": task for name, task in self.families.items()}

    def base(self, fit: Fit) -> Path:
        """The folder of the base for the tokenizer and the splits in `fit.data`; made if it is not in the store."""
        reached = code.reach([Schooled, Supervised, *map(type, self.families.values())])
        parts = {
            "config": named(asdict(self)),
            "code": reached.modules(),
            "libraries": reached.versions(),
            "tokenizer": folder_hash(fit.data / "tokenizer"),
            "splits": [sha256_file(fit.data / f"{name}.parquet") for name in ("train", *held_out(fit.data))],
            "context": fit.options["context"],
        }
        folder = store_root() / "bases" / sha256_text(canonical(parts))[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):  # arms that begin together make it once
            if not folder.is_dir():
                aside = folder.with_name(f".{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                self._school(fit, aside)
                (aside / "model").rename(folder)
                shutil.rmtree(aside)
        return folder

    def _school(self, fit: Fit, out: Path) -> None:
        """Train a random model on problems of `tasks`."""
        shard = out / "school.parquet"
        records.write(self.problems(fit.data), shard)
        random = Scratch(**{f.name: getattr(self, f.name) for f in fields(Scratch)})
        trainer = Supervised(steps=self.steps, batch=self.batch, lr=self.lr, validate_every=self.steps)
        seed = seed_of(self.school_seed, "school")
        own: dict[str, Any] = {
            "shards": [shard],
            "weights": [1.0],
            "start": None,
            "seed": seed,
            "out": out,
            "scratch": None,
        }
        result = trainer.train(replace(fit, model=random, trainer=trainer, **own))
        if "diverged" in result:
            why = f"the base's training diverged: from step {result['diverged']} on its loss is no number; lower it"
            raise UserError("model.lr", self.lr, why)

    def problems(self, data: Path) -> pa.Table:
        """`examples` different problems, shared by the families, none of them trained on later or held out."""
        known = [records.read(data / "train.parquet", columns=["prompt"]), *held_out(data).values()]
        seen = {normal(prompt) for table in known for prompt in table.column("prompt").to_pylist()}
        made: list[Problem] = []
        for i, (name, task) in enumerate(self.families.items()):
            count = (self.examples + i) // len(self.families)
            seeds = partial(seed_of, self.school_seed, "school", name)
            found = list(islice(distinct(task, seen, seeds, attrgetter("prompt")), count))
            if len(found) < count:
                why = f"has only {len(found)} other problems, and {count} are asked for"
                raise UserError(f"model.tasks.{name}", None, why)
            made += found
        columns = {"prompt": [p.prompt for p in made], "response": [p.solution or p.answer for p in made]}
        return records.make_table(dict(columns), origin=records.REAL, generation=0, recipe="school")
