"""Evol-Instruct: every round rewrites each problem once, into a harder or an easier one, and the last model answers.

    genloss run experiment=evol_instruct hydra.mode=RUN
    genloss run domain=reasoning domain/tasks=arithmetic domain.context=64 recipe=evol_instruct curation=exact rounds=4
    genloss run ... 'recipe.operators=[add_constraint,deepen,concretize,reasoning,complicate,breadth]'     # up only

The loop of WizardLM (Xu et al. 2023, arXiv 2304.12244) with the downward evolution of WizardMath (Luo et al. 2023,
arXiv 2308.09583) on expressions (genloss.domains.reasoning.arithmetic), where a rewriting is an edit of a tree and the
answer is exact:

    the paper's prompt              the edit                                                        3*4 becomes
    add constraint                  one more term at the end                                        3*4+5
    deepen                          the whole becomes the right side of a new operation             9-3*4
    concretize                      a number becomes an operation with that value                   (1+2)*4
    increase reasoning steps        a number becomes two operations                                 3*(2+4-5)
    complicate input                a number becomes one that is larger than the task's             3*27
    breadth (rarer, as long)        another problem with as many operations                         6-8
    downward, easier                an innermost operation becomes a number                         3+2*4 becomes 3+8
    downward, new topic             another problem with fewer operations                           7+1-4 becomes 2*6
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.capabilities import Finishes, Repeats, able
from genloss.core.contracts import HISTORY, Decoding, Experiment, Replies
from genloss.core.errors import UserError, one_of, require
from genloss.core.seeds import generator
from genloss.domains.reasoning import Reasoning, held_out
from genloss.domains.reasoning.arithmetic import (
    Arithmetic,
    Tree,
    expression,
    largest,
    needs_expressions,
    operations,
    prompt,
    solution,
)
from genloss.domains.reasoning.arithmetic import value as exact
from genloss.generate import Recipe, Request
from genloss.systems.evol_instruct.edits import DOWN, OPERATORS, UP, canonical, careless

RULES = ("no_information", "beyond", "empty", "copies")
LABELS = ("policy", "exact")
SEED = "seed"  # the first word of every lineage
ATTEMPTS = 20  # of one edit, until it is within the limits


# -- the evolver -------------------------------------------------------------------------------------------------------


class Parent(NamedTuple):
    """A problem that is evolved, and the record that holds it."""

    id: str
    prompt: str
    tree: Tree
    task: str
    lineage: str


class Evolved(NamedTuple):
    """What became of one problem: its new text, or the rule that eliminated it."""

    operator: str
    prompt: str
    eliminated: str  # "" if it is kept


@dataclass
class EvolInstruct(Recipe, Repeats, Finishes):
    """Round n takes the latest kept problem of each seed's line (in round 1 the seeds, the first `n` training
    problems), draws one of `operators` uniformly for each, and edits it (arXiv 2304.12244, section 3). A problem that
    `eliminate` strikes out makes no record: its parent is evolved again in the next round, as in the paper; so is the
    parent of one that curation drops.

    The paper's four rules, translated: `no_information` (equivalent to its parent: order, grouping, +0 and *1 do not
    count), `beyond` (a result beyond the bound, more than `most` operations, or longer than the context: the paper's
    "sorry"), `empty` (no expression), `copies` (the parent's very text). Problems of the test and validation sets are
    always struck out.

    With probability `noise` an edit is careless (see `careless`). Without elimination those reach the model, and it is
    for the instruction reward to find them (genloss.systems.evol_instruct.reward), as in WizardMath.

    Records have two columns more: `lineage` ("seed>deepen>breadth") and `evolved_from`, the parent's text; `answer` is
    the value of the text, and empty where it has none."""

    name: str = "evol_instruct"
    n: int = 1500  # seeds, and problems a round
    operators: list[str] = field(default_factory=lambda: [*UP, *DOWN])
    eliminate: list[str] = field(default_factory=lambda: [*RULES])
    noise: float = 0.0  # probability that an edit is careless
    most: int = 6  # operations of a problem, at most
    label: str = "policy"  # who answers: policy (model n-1), or exact
    samples: int = 4  # responses of the policy to each problem
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    chunk: int = 512  # responses computed together; part of the identity, since kernels differ between batch sizes
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 problem")
        if not self.operators:
            raise UserError("operators", "[]", f"is empty; choose from {', '.join(OPERATORS)}")
        for key, known in (("operators", OPERATORS), ("eliminate", RULES)):
            for name in getattr(self, key):
                one_of(key, name, known)
            twice = [name for name, count in Counter(getattr(self, key)).items() if count > 1]
            require(not twice, key, twice[:1], "named once each")
        require(0 <= self.noise <= 1, "noise", self.noise, "a probability in [0, 1]")
        require(1 <= self.most <= 12, "most", self.most, "from 1 to 12 operations")
        one_of("label", self.label, LABELS)
        require(self.samples >= 1, "samples", self.samples, "at least 1 response to each problem")
        alone = self.label == "policy" or self.samples == 1
        require(alone, "samples", self.samples, "1 where label=exact: a problem has one solution")
        self.decoding(8)  # refuses the rest

    def decoding(self, context: int) -> Decoding:
        return Decoding(context, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, chunk=self.chunk)

    def at_most(self) -> int:
        return self.n * self.samples

    def reads(self) -> tuple[str, ...]:
        return (HISTORY,)

    def check(self, experiment: Experiment) -> None:
        needs_expressions(experiment, "_target_", "edits expressions")
        seeds = able(experiment.domain, Reasoning).examples
        require(self.n <= seeds, "n", self.n, f"at most the training problems, domain.examples={seeds}")

    # -- one problem ---------------------------------------------------------------------------------------------------

    def evolve(
        self, parent: Parent, family: Arithmetic, context: int, held_out: set[str], rng: np.random.Generator
    ) -> Evolved:
        """One edit by a random operator. A careful one is drawn again, `ATTEMPTS` times at most, while a rule strikes
        it out; a careless one is not looked at again, except by `eliminate`."""
        operator = self.operators[int(rng.integers(len(self.operators)))]
        edit = OPERATORS[operator]
        if rng.random() < self.noise:
            text = careless(edit(parent.tree, rng, family), rng, family)
            return Evolved(operator, text, self.struck(parent, text, family, context, held_out, self.eliminate))
        for _ in range(ATTEMPTS):
            text = prompt(edit(parent.tree, rng, family))
            why = self.struck(parent, text, family, context, held_out, RULES)
            if not why:
                break
        return Evolved(operator, text, why)

    def struck(
        self, parent: Parent, text: str, family: Arithmetic, context: int, held_out: set[str], rules: Any
    ) -> str:
        """The first rule that strikes the problem out; "" if none does."""
        tree = expression(text)
        known = None if tree is None else canonical(tree)
        if "empty" in rules and tree is None:
            return "empty"
        if "copies" in rules and text == parent.prompt:
            return "copies"
        if "no_information" in rules and known == canonical(parent.tree):
            return "no_information"
        if "beyond" in rules and tree is not None:
            # a token is a character or more
            long = len(text) + len(solution(tree)) + 2 > context
            if largest(tree) > family.bound or operations(tree) > self.most or long:
                return "beyond"
        return "held_out" if text in held_out else ""

    # -- one round -----------------------------------------------------------------------------------------------------

    def pool(self, request: Request) -> list[Parent]:
        """The problems to evolve: of each seed's line the latest kept one that is an expression."""
        columns = ["id", "prompt", "task"]
        seeds = records.read(request.data / "train.parquet", columns=columns).slice(0, self.n)
        found: dict[str, Parent] = {}
        root: dict[str, str] = {}  # of every record
        for row in seeds.to_pylist():
            tree = expression(row["prompt"])
            if tree is not None:
                found[row["id"]] = Parent(row["id"], row["prompt"], tree, row["task"], SEED)
                root[row["id"]] = row["id"]
        for path in request.inputs.all(HISTORY):
            latest: dict[str, Parent] = {}
            for row in records.read(path, columns=[*columns, "lineage", "parents"]).to_pylist():
                (parent,) = row["parents"]
                line = root.get(parent)
                if line is None:  # of a seed beyond `n`
                    continue
                root[row["id"]] = line
                tree = expression(row["prompt"])
                if tree is not None and line not in latest:
                    latest[line] = Parent(row["id"], row["prompt"], tree, row["task"], row["lineage"])
            found |= latest
        if not found:
            raise UserError("recipe.n", self.n, "finds no seed that is an expression; use domain/tasks=arithmetic")
        return list(found.values())

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        domain = able(request.domain, Reasoning)
        context = domain.context
        tests = {text for table in held_out(request.data).values() for text in table.column("prompt").to_pylist()}
        rng = generator(request.seed, "evolve")
        pool = self.pool(request)
        made = [(p, self.evolve(p, able(domain.families[p.task], Arithmetic), context, tests, rng)) for p in pool]
        new = [(p, e) for p, e in made if not e.eliminated]
        counts = {"pool": len(pool), "evolved": len(new)}
        counts |= {f"drawn/{name}": sum(e.operator == name for _, e in made) for name in self.operators}
        struck = Counter(e.eliminated for _, e in made if e.eliminated)
        counts |= {f"eliminated/{name}": count for name, count in sorted(struck.items())}
        if not new:
            raise UserError(
                "recipe.operators",
                self.operators,
                f"evolved none of {len(pool)} problems in round {request.round} "
                f"({dict(struck)}); raise recipe.most or domain.context, or lower recipe.noise",
            )
        rows = [pair for pair in new for _ in range(self.samples)]
        prompts = [e.prompt for _, e in rows]
        trees = [expression(text) for text in prompts]
        said = Replies([solution(t) if t is not None else "" for t in trees], 0, [records.ENDED] * len(trees))
        if self.label == "policy":
            backend = domain.backend(request.model, request.data, request.runtime)
            said = backend.respond(
                prompts, self.decoding(context), seed=request.seed, scratch=request.scratch, report=request.report
            )
        payload: dict[str, Any] = {
            "prompt": prompts,
            "response": said.texts,
            "answer": [str(exact(t)) if t is not None else "" for t in trees],
            "task": [p.task for p, _ in rows],
            "difficulty": [f"operations={operations(t)}" if t is not None else "" for t in trees],
            "lineage": [f"{p.lineage}>{e.operator}" for p, e in rows],
            "evolved_from": [p.prompt for p, _ in rows],
        }
        table = records.make_table(
            payload,
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=[[p.id] for p, _ in rows],
        )
        counts["cut_off"] = said.finish.count(records.CUT)
        return records.with_finish(table, said.finish), {"tokens": said.tokens, "counts": counts}
