"""The reasoning domain: problems with exact answers, and small language models that solve them.

    genloss run domain=reasoning curation=exact
    genloss run -m domain=reasoning domain.context=24 domain/tasks=gcd,eigenvalues curation=none,exact
    # tests of sums and of products too, which are never trained on
    genloss run domain=reasoning domain/tasks=arithmetic domain.context=48 +domain/tasks@domain.probes=skills

A record is a prompt and a response, with the exact answer, the task and the difficulty beside them. No two splits share
a prompt. `prompts` is the pool of fresh problems: recipes draw from it, and their models see its prompts alone.
`probes` are families that only tests are made of: what a model can do beyond its task, and what it forgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.backends.torch import Torch
from genloss.core import records
from genloss.core.capabilities import Responds, Verifies
from genloss.core.contracts import Checked, Experiment, Plugin, Prompt, Report, Responder, Runtime, silent
from genloss.core.errors import UserError, check_name, require
from genloss.core.plugin import build, named, plain
from genloss.core.seeds import generator, seed_of
from genloss.curate import rates
from genloss.domains.language import LanguageDomain
from genloss.domains.reasoning.tasks import Problem, Task, distinct
from genloss.language.tokenizer import load_codec, train_bpe
from genloss.theory.curation import verifier_odds

SPLITS = ("test", "validation", "train", "prompts")  # in this order problems are made, so a larger pool changes no test
HELD_OUT = ("validation", "test", "probe")


def held_out(data: Path) -> dict[str, pa.Table]:
    """The prompts that nothing may be trained on, by split; `probe` is there where the domain has probes."""
    paths = {name: data / f"{name}.parquet" for name in HELD_OUT}
    return {name: records.read(path, columns=["prompt"]) for name, path in paths.items() if path.is_file()}


@dataclass
class Reasoning(LanguageDomain, Responds, Verifies):
    """problems with exact answers"""

    name: str = "reasoning"
    tasks: Any = field(default_factory=dict)  # name: a Task
    probes: Any = field(default_factory=dict)  # name: a Task; test problems alone are made of these
    tokenizer: str = "bpe"  # bpe: of the training problems, digit by digit; else a saved one, as for text
    vocabulary: int = 512
    begin: str | None = None  # tokens of a saved tokenizer, as for text
    end: str | None = None
    context: int = 16  # longest problem with its response, in tokens
    examples: int = 2000  # real training problems; a regime uses the first `size` of them
    validation: int = 256
    test: int = 1000
    probe: int = 500  # problems of each family of `probes`
    pool: int = 12_000  # fresh problems that no model has seen, for all rounds together
    split_seed: int = 0  # not the run's seed: all seeds share one split
    payload = ("prompt", "response")
    headline = "accuracy"
    panels = ("label_accuracy", "kept_accuracy")

    def __post_init__(self) -> None:
        require(self.vocabulary >= 257, "vocabulary", self.vocabulary, "at least 257: 256 bytes and the end of text")
        require(self.context >= 8, "context", self.context, "at least 8 tokens")
        for key in ("examples", "validation", "test", "probe", "pool"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1 problem")
        if not self.tasks:
            raise UserError("tasks", None, "names no family of problems; choose domain/tasks=chain_sum")
        self.families, self.probing = (
            {str(name): build(value, Task, f"{key}.{name}") for name, value in plain(known).items()}
            for key, known in (("tasks", self.tasks), ("probes", self.probes))
        )
        for name in (*self.families, *self.probing):
            check_name("tasks" if name in self.families else "probes", name)
        for name in self.probing:
            if name in self.families:
                raise UserError(
                    "probes", name, "is a family of tasks too; a probe is what is not trained on, give it another name"
                )
        self.all: dict[str, Task] = self.families | self.probing

    def parts(self) -> Mapping[str, Plugin]:
        tasks = {f"tasks.{name}": task for name, task in self.families.items()}
        return tasks | {f"probes.{name}": task for name, task in self.probing.items()}

    def config(self, stage: str) -> dict[str, Any]:
        if stage == "data":
            return named({f.name: plain(getattr(self, f.name)) for f in fields(self)})
        if stage == "train":
            return {"context": self.context, "columns": list(self.payload)}
        # recipes, curators and metrics may ask the families too
        return {"context": self.context, "tasks": named(plain(self.tasks)), "probes": named(plain(self.probes))}

    # -- data --------------------------------------------------------------------------------------------------------

    def prepare(self, out: Path) -> dict[str, Any]:
        sizes = {"test": self.test, "validation": self.validation, "train": self.examples, "prompts": self.pool}
        made: dict[str, list[tuple[str, Problem]]] = {split: [] for split in SPLITS}
        seen: set[str] = set()
        counts = {split: self._counts(n) for split, n in sizes.items()}
        for name in self.families:
            problems = iter(self._distinct(name, seen, sum(counts[split][name] for split in SPLITS)))
            for split in SPLITS:
                made[split] += [(name, next(problems)) for _ in range(counts[split][name])]
        if self.probing:
            made["probe"] = [(name, p) for name in self.probing for p in self._distinct(name, seen, self.probe)]
        result: dict[str, Any] = {}
        for split, found in made.items():
            found = [found[i] for i in generator(self.split_seed, split).permutation(len(found))]
            made[split] = found
            columns: dict[str, Any] = {
                "prompt": [p.prompt for _, p in found],
                "response": [p.solution or p.answer for _, p in found],
                "answer": [p.answer for _, p in found],
                "task": [name for name, _ in found],
                "difficulty": [p.difficulty for _, p in found],
            }
            table = records.make_table(columns, origin=records.REAL, generation=0, recipe=f"tasks/{split}")
            records.write(table, out / f"{split}.parquet")
            result[split] = len(found)
        texts = [text for _, p in made["train"] for text in (p.prompt, p.solution or p.answer)]
        self.make_tokenizer(texts, out / "tokenizer")
        codec = load_codec(out / "tokenizer")
        everything = [p for found in made.values() for _, p in found]
        lengths = [
            codec.encode(said)
            for said in ([p.prompt for p in everything], [p.solution or p.answer for p in everything])
        ]
        longest = max(len(a) + len(b) + 1 for a, b in zip(*lengths, strict=True))
        require(
            longest <= self.context, "domain.context", self.context, f"at least {longest} tokens, the longest problem"
        )
        return result | {"longest": longest}

    def train_tokenizer(self, texts: Iterable[str], out: Path) -> None:
        train_bpe(texts, self.vocabulary, self.context, out, digits=True)

    def _counts(self, n: int) -> dict[str, int]:
        """How many of n problems each family gives, by its share (largest remainders)."""
        total = sum(task.share for task in self.families.values())
        exact = {name: n * task.share / total for name, task in self.families.items()}
        counts = {name: int(value) for name, value in exact.items()}
        rest = sorted(counts, key=lambda name: counts[name] - exact[name])
        for name in rest[: n - sum(counts.values())]:
            counts[name] += 1
        return counts

    def _distinct(self, name: str, seen: set[str], count: int) -> list[Problem]:
        """So many problems of a family, none with a key (its prompt, as a rule) that was `seen` before."""
        seeds = partial(seed_of, self.split_seed, "problems", name)
        found = list(islice(distinct(self.all[name], seen, seeds), count))
        if len(found) < count:
            kind = "tasks" if name in self.families else "probes"
            why = f"has only {len(found)} different problems, and {count} are asked for"
            remedy = "widen its parameters, or lower domain.examples, domain.pool or domain.probe"
            raise UserError(f"domain.{kind}.{name}", None, f"{why}; {remedy}")
        return found

    def expected(self, experiment: Experiment, measured: Mapping[str, float]) -> dict[str, float]:
        """Of a selection whose φ and ψ are given, from how many labels are right (Feng et al. 2024, arXiv
        2406.07515)."""
        given = rates(experiment.curators, experiment.control)
        if given is None or "label_accuracy" not in measured:
            return {}
        q, (phi, psi) = measured["label_accuracy"], given
        if q * phi + (1 - q) * psi == 0:  # nothing can be kept
            return {}
        return {"kept_accuracy": verifier_odds(q, phi, psi), "p_star": phi / (phi + psi)}

    # -- models: imported when used, since torch and transformers take seconds to load ---------------------------------

    def verify(self, table: pa.Table) -> Checked:
        """Which responses of a table of records are right."""
        task = np.asarray(table.column("task").to_pylist(), dtype=object)
        right, parsed = np.zeros(len(table), dtype=bool), np.zeros(len(table), dtype=bool)
        for name, family in self.all.items():
            rows = np.flatnonzero(task == name)
            if len(rows):
                part = table.take(pa.array(rows))
                right[rows], parsed[rows] = family.verify(
                    part.column("response").combine_chunks(), part.column("answer").combine_chunks()
                )
        return Checked(right, parsed)

    def final(self, task: str, response: str) -> str:
        """The answer that a response to a problem of the family `task` ends in."""
        return self.all[task].final(response)

    def texts(self, table: pa.Table) -> list[str]:
        return table.column("prompt").to_pylist()

    def prompts(self, table: pa.Table) -> list[Prompt]:
        return table.column("prompt").to_pylist()

    def answered(self, table: pa.Table, responses: Sequence[str]) -> pa.Table:
        return table.set_column(table.column_names.index("response"), "response", pa.array(responses, pa.string()))

    def backend(self, model: Path, data: Path, runtime: Runtime) -> Responder:
        return Torch().of(model, data, runtime)

    def losses(
        self, model: Path, data: Path, table: pa.Table, runtime: Runtime, report: Report = silent
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each response given its prompt, its end included if it has one; what is beyond the context is not
        counted."""
        from genloss.language.packing import sequences
        from genloss.language.scoring import Window, score

        codec = load_codec(data / "tokenizer")
        windows = [Window(i, ids[: self.context + 1]) for i, ids in enumerate(sequences(table, codec, self.payload))]
        return score(model, codec, windows, len(windows), self.context, runtime, report)
