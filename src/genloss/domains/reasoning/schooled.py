"""A student that knows something before it sees a seed: a base that was trained once on problems of its own.

    genloss run domain=reasoning model=schooled mixing=real_only size=100 trainer.steps=60 trainer.lr=1e-3

A model from scratch learns a few hundred seeds by heart before it can do anything else, so that what it gets wrong says little.
The systems that genloss rebuilds start from a pretrained model; this is one of 0.1 M parameters, made in half a minute. Cold
starts begin from it (mixing.init=cold). It is a pure function of this config, the tokenizer and the splits that it leaves alone:
the copy in the store (bases/) only saves the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genloss.core import records
from genloss.core.contracts import Fit
from genloss.core.errors import UserError, require
from genloss.core.files import locked
from genloss.core.hashes import canonical, code_hash, folder_hash, sha256_file, sha256_text, version
from genloss.core.plugin import build
from genloss.core.seeds import seed_of
from genloss.curate.duplicates import normal
from genloss.domains.reasoning import held_out
from genloss.domains.reasoning.tasks import Problem, Task
from genloss.language.model import Scratch

if TYPE_CHECKING:
    from genloss.domains.text import Text

PATIENCE = 20  # blocks without a new problem after which a family is exhausted


@dataclass
class Schooled(Scratch):
    """`fresh`, a random one, becomes the base by `steps` steps on `examples` problems of `tasks`, the same for every seed of a run."""

    tasks: dict[str, Any] = field(default_factory=dict)  # name: a Task, as in domain.tasks
    examples: int = 3000
    steps: int = 600
    batch: int = 64
    lr: float = 4e-3
    school_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("examples", "steps", "batch"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.lr > 0, "lr", self.lr, "greater than 0")
        if not self.tasks:
            raise UserError("tasks", None, "names no family of problems; model=scratch needs none")
        self.families = {name: build(value, Task, f"tasks.{name}") for name, value in self.tasks.items()}  # type: ignore[type-abstract]

    def check(self, domain: Text) -> None:
        if getattr(domain, "payload", ()) != ("prompt", "response"):
            raise UserError("model", "schooled", "learns problems; use it with domain=reasoning")
        for name, task in self.families.items():
            try:
                task.check()
            except UserError as error:
                raise error.under(f"model.tasks.{name}") from None

    def fingerprint(self) -> str:
        return sha256_text("".join(sorted({code_hash(type(task).__module__) for task in self.families.values()})))

    def base(self, fit: Fit) -> Path:
        """The folder of the base for the tokenizer and the splits in `fit.data`; made if it is not in the store."""
        from genloss.core.places import store_root
        from genloss.language.trainer import Supervised
        from genloss.language.training import train

        text = "genloss.language"
        parts = {
            "config": asdict(self),
            "code": [code_hash(m) for m in (__name__, f"{text}.training", f"{text}.packing", f"{text}.model")],
            "families": self.fingerprint(),
            "tokenizer": folder_hash(fit.data / "tokenizer"),
            "splits": [sha256_file(fit.data / f"{name}.parquet") for name in ("train", *held_out(fit.data))],
            "context": fit.options["context"],
            "libraries": [version(name) for name in ("torch", "transformers", "tokenizers", "numpy")],
        }
        folder = store_root() / "bases" / sha256_text(canonical(parts))[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):  # arms that begin together make it once
            if not folder.is_dir():
                aside = folder.with_name(f".{folder.name}")
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                records.write(self.problems(fit.data), aside / "school.parquet")
                trainer = Supervised(steps=self.steps, batch=self.batch, lr=self.lr, validate_every=self.steps)
                train(
                    replace(
                        fit,
                        trainer=trainer,
                        shards=[aside / "school.parquet"],
                        weights=[1.0],
                        start=None,
                        out=aside,
                        seed=seed_of(self.school_seed, "school"),
                    )
                )
                (aside / "model").rename(folder)
                shutil.rmtree(aside)
        return folder

    def problems(self, data: Path) -> Any:
        """`examples` different problems, shared by the families, none of them trained on later or held out."""
        known = [records.read(data / "train.parquet", columns=["prompt"]), *held_out(data).values()]
        seen = {normal(prompt) for table in known for prompt in table.column("prompt").to_pylist()}
        made: list[Problem] = []
        for i, (name, task) in enumerate(self.families.items()):
            count = (self.examples + i) // len(self.families)
            found = list(islice(self._distinct(name, task, seen), count))
            if len(found) < count:
                raise UserError(
                    f"model.tasks.{name}", None, f"has only {len(found)} other problems, and {count} are asked for"
                )
            made += found
        columns = {"prompt": [p.prompt for p in made], "response": [p.solution or p.answer for p in made]}
        return records.make_table(dict(columns), origin=records.REAL, generation=0, recipe="school")

    def _distinct(self, name: str, task: Task, seen: set[str]) -> Iterator[Problem]:
        block = idle = 0
        while idle < PATIENCE:
            idle += 1
            for problem in task.problems(seed_of(self.school_seed, "school", name, block)):
                if normal(problem.prompt) not in seen:
                    seen.add(normal(problem.prompt))
                    idle = 0
                    yield problem
            block += 1
