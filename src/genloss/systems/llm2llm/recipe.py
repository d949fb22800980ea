"""LLM2LLM (Lee et al. 2024, arXiv 2403.15042): a teacher writes new problems like those that the student gets wrong.

    genloss run domain=reasoning recipe=llm2llm mixing=accumulate size=200 rounds=1
    genloss run domain=reasoning recipe=llm2llm mixing=accumulate recipe.choose=random       # the control
    genloss run domain=reasoning recipe=llm2llm mixing=accumulate recipe.n=100               # equally many in every arm
    genloss run experiment=llm2llm
    genloss run domain=instruct recipe=llm2llm mixing=accumulate size=400 rounds=3           # requests of the world

    seeds --model n-1, greedily--> wrong ones --teacher, k each--> checked --> records of round n, parent: the seed

Algorithm 1 of the paper is `choose=errors errors=seeds n=null` with `mixing=accumulate`: the student is retrained from
its base (`trainer.start=base`) on the seeds and everything that was written so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Responds, able
from genloss.core.contracts import HISTORY, Decoding, Experiment, Plugin
from genloss.core.errors import UserError, one_of, require
from genloss.core.files import write_atomic
from genloss.core.plugin import build, plain
from genloss.core.records import normal
from genloss.core.seeds import generator
from genloss.domains.instruct import Instruct
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Recipe, Request
from genloss.language.tokenizer import load_codec
from genloss.systems.llm2llm.subjects import Subject, subject_of
from genloss.systems.llm2llm.teachers import Ask, Teacher


@dataclass
class Slot:
    """One parent: how many problems are wanted of it, and what was kept and rejected so far."""

    id: str
    task: str
    parent: Problem
    want: int
    kept: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def missing(self) -> int:
        return self.want - len(self.kept)


@dataclass
class LLM2LLM(Recipe):
    """The student answers greedily, so that what is wrong is not a matter of luck, and is judged by the labels that
    train it.

    Budget: k problems for each wrong one (the paper's rule), or `n` a round in every arm, shared among the parents as
    evenly as can be, in random order: with fewer parents than n some get more, with more of them some get none."""

    name: str = "llm2llm"
    seed_problems: int = 1000  # the first real training problems: those that train the student
    choose: str = "errors"  # errors: parents are wrong problems; random: as many, wrong or not
    errors: str = "seeds"  # seeds: parents are seeds; all: also what was written in earlier rounds
    k: int = 1  # problems for each parent
    n: int | None = None  # problems a round, whatever the number of errors; null: k for each
    attempts: int = 10  # how often the teacher is asked for what is missing of a parent
    shortfall: str = "refuse"  # what is missing after that. refuse: an error; accept: it is counted
    chunk: int = 512  # answers computed together; part of the identity
    teacher: Any = field(default_factory=dict)
    needs = (Responds,)

    def __post_init__(self) -> None:
        one_of("choose", self.choose, ("errors", "random"))
        one_of("errors", self.errors, ("seeds", "all"))
        one_of("shortfall", self.shortfall, ("refuse", "accept"))
        require(self.n is None or self.n >= 1, "n", self.n, "at least 1 problem a round, or null: k for each wrong one")
        for key in ("seed_problems", "k", "attempts", "chunk"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        self.tutor = build(plain(self.teacher), Teacher, "teacher")

    def parts(self) -> Mapping[str, Plugin]:
        return {"teacher": self.tutor}

    def at_most(self) -> int | None:
        return self.n

    def reads(self) -> tuple[str, ...]:
        return (HISTORY,)

    def check(self, experiment: Experiment) -> None:
        domain = experiment.domain
        if not isinstance(domain, Reasoning | Instruct):
            raise UserError(
                "_target_", "LLM2LLM", f"has nothing to teach in domain={domain.name}; use reasoning or instruct"
            )
        trained = experiment.mixing.real.n or domain.examples
        same = f"mixing.real.n={trained}: the seeds train the student"
        require(self.seed_problems == trained, "seed_problems", self.seed_problems, same)

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        subject = subject_of(request.domain)
        columns = ["id", *subject.columns]
        real = records.read(request.data / "train.parquet", columns=columns)
        seeds = subject.usable(real.slice(0, self.seed_problems))
        if not len(seeds):
            why = "has no conversation of one request without a system prompt among the seeds; give more"
            raise UserError("recipe.seed_problems", self.seed_problems, why)
        earlier = [records.read(path, columns=columns) for path in request.inputs.all(HISTORY)]
        pool = records.concat([seeds, *earlier]) if self.errors == "all" else seeds
        right, tokens = self.examine(pool, request)
        slots = self.parents(pool, right, request)
        taken = {"seed": real, "earlier": earlier}
        taken |= subject.held_out(request.data)
        self.ask(slots, known(taken, subject), request)
        missing = sum(slot.missing for slot in slots)
        if missing and self.shortfall == "refuse":
            said = ", ".join(f"{n} {key}" for key, n in sorted(total(slots).items()) if key.startswith("rejected"))
            more = "run again for as many more" if self.tutor.paid else "raise it"
            raise UserError(
                "recipe.attempts",
                self.attempts,
                f"is not enough: {missing} of {sum(s.want for s in slots)} new problems are "
                f"missing ({said or 'nothing was offered'}); {more}, or set recipe.shortfall=accept",
            )
        counts = {
            "seed_accuracy": float(right[: len(seeds)].mean()),
            "wrong_seeds": int((~right[: len(seeds)]).sum()),
            "wrong": int((~right).sum()),
            "parents": len(slots),
            "wanted": sum(s.want for s in slots),
            "missing": missing,
            **total(slots),
            **self.tutor.spent(request),
        }
        made = [(slot, problem) for slot in slots for problem in slot.kept]
        table = records.make_table(
            subject.payload([(slot.task, problem) for slot, problem in made]),
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=[[slot.id] for slot, _ in made],
        )
        return table, {"tokens": tokens, "counts": counts, **self.tutor.told_by()}

    def examine(self, pool: pa.Table, request: Request) -> tuple[np.ndarray, int]:
        """bool [n]: which problems of the pool model n-1 answers as their labels do; and the tokens that it took."""
        domain = able(request.domain, Responds)
        replies = domain.backend(request.model, request.data, request.runtime).respond(
            domain.prompts(pool),
            Decoding(domain.context, bias=0.0, chunk=self.chunk),
            seed=request.seed,
            scratch=request.scratch / "student",
            report=request.report,
        )
        return subject_of(request.domain).right(pool, replies.texts), replies.tokens

    def parents(self, pool: pa.Table, right: np.ndarray, request: Request) -> list[Slot]:
        """In the order of the pool."""
        subject, seed = subject_of(request.domain), request.seed
        wrong = np.flatnonzero(~right)
        order = generator(seed, "parents").permutation(wrong if self.choose == "errors" else len(pool))
        if self.n is None:
            want = dict.fromkeys(order[: len(wrong)].tolist(), self.k)
        else:
            want = Counter(np.resize(order, self.n if len(order) else 0).tolist())
        rows = pool.take(pa.array(sorted(want), pa.int64())).to_pylist()
        return [Slot(row["id"], *subject.problem(row), want[i]) for i, row in zip(sorted(want), rows, strict=True)]

    def ask(self, slots: list[Slot], taken: dict[str, str], request: Request) -> None:
        """Fill the slots; what is `taken` (a normalised prompt: where it is) may not enter."""
        codec = load_codec(request.data / "tokenizer")
        context, subject = able(request.domain, Responds).context, subject_of(request.domain)

        def fault(problem: Problem) -> str:
            """Why a problem is rejected, in a word; '' if it is not."""
            where = taken.get(normal(problem.prompt))
            if where:
                return where
            return "too long" if subject.tokens(problem, codec) > context else ""

        folder = request.scratch / "kept"
        if self.tutor.paid:
            for number, slot in enumerate(slots):
                restore(slot, folder / f"{number:06d}.json")
                taken |= {normal(p.prompt): "repeated" for p in slot.kept}
        for attempt in range(self.attempts):
            asks = [
                Ask(number, slot.task, slot.parent, slot.missing, tuple(slot.kept), attempt, slot.counts["requested"])
                for number, slot in enumerate(slots)
                if slot.missing
            ]
            if not asks:
                break
            for i, written in self.tutor.teach(asks, request):
                slot = slots[asks[i].number]
                slot.counts["requested"] += asks[i].n
                fates: list[str] = []
                for problem in written[: asks[i].n]:
                    reason = problem if isinstance(problem, str) else fault(problem)
                    fates.append(reason)
                    if reason:
                        slot.counts[f"rejected_{reason.replace(' ', '_')}"] += 1
                    else:
                        assert isinstance(problem, Problem)
                        slot.kept.append(problem)
                        taken[normal(problem.prompt)] = "repeated"
                if self.tutor.paid:
                    save(slot, folder / f"{asks[i].number:06d}.json")
                for fate in fates:
                    self.tutor.told(fate)
                request.report(sum(len(s.kept) for s in slots), sum(s.want for s in slots), "problems")


def known(tables: dict[str, Any], subject: Subject) -> dict[str, str]:
    """{normalised prompt: the name of the tables that it is in}; of several the last."""
    return {
        normal(prompt): name
        for name, found in tables.items()
        for table in (found if isinstance(found, list) else [found])
        for prompt in subject.asked(table)
    }


def total(slots: list[Slot]) -> Counter[str]:
    return sum((slot.counts for slot in slots), Counter())


def save(slot: Slot, path: Path) -> None:
    write_atomic(path, json.dumps({"id": slot.id, "kept": slot.kept, "counts": slot.counts}))


def restore(slot: Slot, path: Path) -> None:
    """What was kept of this parent before a kill."""
    if path.is_file():
        stored = json.loads(path.read_text())
        slot.kept = [Problem(*p) for p in stored["kept"]][: slot.want]
        slot.counts = Counter(stored["counts"])
