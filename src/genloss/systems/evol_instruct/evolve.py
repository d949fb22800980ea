"""Evol-Instruct on conversations: a language model rewrites instructions, harder or easier, and answers them.

    genloss run domain=instruct domain/corpus=seed_tasks model=smollm2 model/adapter=lora domain.template=chatml \\
        domain.context=512 recipe=evolve recipe.author.new_tokens=128 mixing=accumulate rounds=4
    genloss run ... recipe=evolve recipe/backend@recipe.author.backend=openai recipe.author.backend.model=NAME
    genloss run ... recipe=evolve 'recipe.operators=[add_constraint,deepen,concretize,reasoning,complicate,breadth]'

WizardLM (Xu et al. 2023, arXiv 2304.12244, section 3) with the downward evolution of WizardMath (Luo et al. 2023, arXiv
2308.09583). What is written is data: it is compared, and never obeyed. On expressions, where every step is exact, the
same loop is recipe=evol_instruct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from genloss.backends.author import author_of
from genloss.core import records
from genloss.core.capabilities import Finishes
from genloss.core.contracts import HISTORY, Experiment, Plugin, Prompt, Replies
from genloss.core.errors import UserError, one_of, require
from genloss.core.prompts import Told
from genloss.core.seeds import generator, seed_of
from genloss.core.words import terms
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.generate import Recipe, Request
from genloss.language.chat import ASSISTANT, USER
from genloss.systems.evol_instruct.edits import DOWN, OPERATORS, UP

RULES = ("no_information", "sorry", "empty", "copies")
SEED = "seed"
SHORT = 80  # words of an answer that says sorry


class Parent(NamedTuple):
    """The latest instruction of a line, and the record that holds it."""

    id: str
    instruction: str
    lineage: str


def asked(text: str) -> Prompt:
    return [{"role": USER, "content": text}]


@dataclass
class Evolve(Told, Recipe, Finishes):
    """Round n takes the latest kept instruction of each seed's line (in round 1 the last requests of the first `n` real
    conversations), draws one of `operators` uniformly for each, and asks the author for the new one, then for an
    answer to it. What `eliminate` strikes out makes no record, and its parent is evolved again in the next round.

    no_information   the author itself calls the two equal (`judge`, greedy), or they are the same text
    sorry            the answer has "sorry" in it and fewer than 80 words
    empty            the instruction or the answer is empty, or has nothing but punctuation and idle words
    copies           the instruction repeats a piece of the author's orders (`boilerplate` of the words)

    An instruction that was cut off before its end (unfinished) is always struck out.

    Records have one column more: `lineage` ("seed>deepen>breadth")."""

    name: str = "evolve"
    n: int = 175  # seeds, and instructions a round
    operators: list[str] = field(default_factory=lambda: [*UP, *DOWN])
    eliminate: list[str] = field(default_factory=lambda: [*RULES])
    judge: bool = True  # whether the author is asked if the two are equal; else the texts alone are compared
    author: Any = field(default_factory=dict)
    prompts: str = ""  # another file of words than evolve.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("evolve.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {
        **dict.fromkeys(OPERATORS, ("instruction",)),
        "same": ("first", "second"),
        "boilerplate": (),
        "idle": (),
    }
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1 instruction")
        require(bool(self.operators), "operators", "[]", f"some of {', '.join(OPERATORS)}")
        for key, known in (("operators", OPERATORS), ("eliminate", RULES)):
            for name in getattr(self, key):
                one_of(key, name, known)
            twice = [name for name, count in Counter(getattr(self, key)).items() if count > 1]
            require(not twice, key, twice[:1], "named once each")
        self.writer = author_of(self.author)

    def at_most(self) -> int:
        return self.n

    def reads(self) -> tuple[str, ...]:
        return (HISTORY, *self.writer.reads())

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.writer}

    def check(self, experiment: Experiment) -> None:
        self.words()

    def pool(self, request: Request) -> list[Parent]:
        """The latest kept instruction of every line, in the order of the seeds."""
        seeds = records.read(request.data / "train.parquet", columns=["id", "messages"]).slice(0, self.n)
        found = {row["id"]: Parent(row["id"], _request(row["messages"]), SEED) for row in seeds.to_pylist()}
        root = {name: name for name in found}
        for path in request.inputs.all(HISTORY):
            for row in records.read(path, columns=["id", "messages", "lineage", "parents"]).to_pylist():
                (parent,) = row["parents"]
                if (line := root.get(parent)) is not None:
                    root[row["id"]] = line
                    found[line] = Parent(row["id"], _request(row["messages"]), row["lineage"])
        return list(found.values())

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        words, pool = self.words(), self.pool(request)
        drawn = generator(request.seed, "operators").integers(len(self.operators), size=len(pool)).tolist()
        operators = [self.operators[i] for i in drawn]
        orders = [
            asked(words.fill(operator, instruction=parent.instruction))
            for operator, parent in zip(operators, pool, strict=True)
        ]
        wrote = self._write(orders, request, "instructions")
        made = [text.strip() for text in wrote.texts]
        said = self._write([asked(text or "?") for text in made], request, "answers")
        answers = [text.strip() for text in said.texts]
        struck = self.struck(pool, made, answers)
        unfinished = [i for i, end in enumerate(wrote.finish) if end == records.CUT]
        for i in unfinished:
            struck[i] = "unfinished"
        left = [i for i, why in enumerate(struck) if not why]
        if self.judge and "no_information" in self.eliminate and left:
            pairs = [asked(words.fill("same", first=pool[i].instruction, second=made[i])) for i in left]
            verdicts = self._write(pairs, request, "verdicts", bias=0.0, new_tokens=4)
            for i, verdict in zip(left, verdicts.texts, strict=True):
                struck[i] = "no_information" if "equal" in verdict.lower() else ""
        kept = [i for i, why in enumerate(struck) if not why]
        counts: dict[str, Any] = {"pool": len(pool), "evolved": len(kept)}
        counts |= {f"drawn/{name}": operators.count(name) for name in self.operators}
        counts |= {f"eliminated/{name}": n for name, n in sorted(Counter(filter(None, struck)).items())}
        if not kept:
            why = f"left none of {len(pool)} instructions in round {request.round} ({dict(Counter(struck))})"
            raise UserError("recipe.eliminate", self.eliminate, f"{why}; ask another author, or strike out less")
        messages = [[{"role": USER, "content": made[i]}, {"role": ASSISTANT, "content": answers[i]}] for i in kept]
        table = records.make_table(
            {
                "messages": pa.array(messages, MESSAGES),
                "lineage": [f"{pool[i].lineage}>{operators[i]}" for i in kept],
            },
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=[[pool[i].id] for i in kept],
        )
        finish = [said.finish[i] for i in kept]
        counts |= {"cut_off": finish.count(records.CUT), **self.writer.spent(request)}
        found = {"tokens": wrote.tokens + said.tokens, "counts": counts, **self.told_by()}
        return records.with_finish(table, finish), found

    def struck(self, pool: Sequence[Parent], made: Sequence[str], answers: Sequence[str]) -> list[str]:
        """The rule that strikes out each new instruction, as far as texts tell; '' if none does."""
        words = self.words()
        orders = [piece.strip().lower() for piece in words["boilerplate"].split("|") if piece.strip()]
        idle = set(words["idle"].split())
        found = []
        for parent, text, answer in zip(pool, made, answers, strict=True):
            broken = {
                "empty": any(set(terms(said)) <= idle for said in (text, answer)),
                "copies": any(piece in text.lower() for piece in orders),
                "no_information": records.normal(text) == records.normal(parent.instruction),
                "sorry": "sorry" in answer.lower() and len(answer.split()) < SHORT,
            }
            unwritten = not text or not answer  # no record at all, whatever is struck out
            rules = [rule for rule, is_so in broken.items() if is_so and rule in self.eliminate]
            found.append("empty" if unwritten else (rules or [""])[0])
        return found

    def _write(self, prompts: list[Prompt], request: Request, name: str, **changes: Any) -> Replies:
        assert isinstance(request.domain, Instruct)
        seed = seed_of(request.seed, name)
        return self.writer.write(prompts, request, request.domain.context, seed=seed, name=name, **changes)


def _request(messages: Sequence[Mapping[str, str]]) -> str:
    """What a conversation asks last."""
    return next(m["content"] for m in reversed(messages) if m["role"] == USER)
