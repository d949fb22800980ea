"""Self-Instruct and Alpaca: a model that is shown some tasks writes new ones, and then does them.

    genloss run experiment=self_instruct             # the small world; arms: whose tasks are shown, how novel they are
    genloss run experiment=self_instruct/real        # SmolLM2, 175 seed tasks
    genloss run ... recipe=alpaca                    # three seeds shown, whole tasks written in one go

Wang et al. 2023 (arXiv 2212.10560, section 2), Taori et al. 2023. The pool is the seeds (real training conversations
with one request and no system prompt) and what earlier rounds kept; novelty against it is curation=novelty. What is
written is data: it is read, and never obeyed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from genloss.backends.author import author_of
from genloss.core import records
from genloss.core.contracts import HISTORY, Experiment, Plugin, Prompt, Replies
from genloss.core.errors import UserError, one_of, require
from genloss.core.prompts import Told, onward
from genloss.core.seeds import generator, seed_of
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.skills import DEMONSTRATIONS, PROPOSE
from genloss.domains.instruct.tasks import parts, task
from genloss.domains.instruct.world import World
from genloss.generate import Recipe, Request
from genloss.language.chat import USER
from genloss.language.tokenizer import load_codec
from genloss.systems.self_instruct.heuristics import UNFIT, Pair, fault, sound

SOURCES = ("mixed", "seeds", "machine")
ANSWERS, INSTANCES, TOGETHER = FORMS = ("answers", "instances", "together")
MOST = 5  # instances of a task
NONE = "none"  # the input of a whole task that has none
GREEDY = {"bias": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # T = 0

ITEM = re.compile(r"\n\s*Task \d+:")
WHOLE = re.compile(r"\n\s*### Task \d+")
FIELDS = re.compile(r"(?:\s*Instruction:)?(.*?)\n\s*Input:(.*?)\n\s*Output:(.*)", re.DOTALL)
GIVEN = re.compile(r"(?:^|\n)\s*(?:Input:(.*?)\n)?\s*Output:(.*?)(?=\n\s*(?:Example \d+|Input:|Output:)|\Z)", re.DOTALL)
LABELLED = re.compile(r"(?:^|\n)\s*Label:(.*?)\n\s*Input:(.*?)(?=\n\s*Label:|\Z)", re.DOTALL)
# the first of a list, which begins behind such a mark, and in a chat often with it
AGAIN = re.compile(r"\A\s*(?:### Task \d+|Task \d+:)")


class Known(NamedTuple):
    """A task of the pool."""

    id: str
    instruction: str
    input: str
    output: str


@dataclass
class New:
    """A task that is being written. why: it was thrown away; '' so far."""

    parents: list[str]
    instruction: str
    why: str = ""
    pairs: list[Pair] = field(default_factory=list)


def asked(text: str) -> Prompt:
    return [{"role": USER, "content": text}]


@dataclass
class SelfInstruct(Told, Recipe):
    """A call shows `seeds` + `machine` tasks in random order and asks for `ask` more. What earlier rounds have not kept
    is made up for by seeds, so a call always shows as many. `source`: mixed, or all of them seeds, or machine-made.

    The instruction is checked by the heuristics of this system (`unfit`), then `form` says how the task is done:

    answers     the author answers the instruction, sampled as it was written
    instances   Self-Instruct: is it a classification task (`classify`)? Then labels first and an input for each, else
                inputs first and their outputs, at most five; all of it greedy. One that is sound, drawn, is the record
    together    Alpaca: instruction, input and output are written in one go

    In the world (domain/corpus=world) the author is asked in the world's words (`World.ask_propose`), for one request a
    call, shown at most four, and form=answers. Counts: asked (tasks), calls, shown_machine (tasks of earlier rounds
    that were shown), items (that could be told apart), rejected_REASON, classification, written."""

    name: str = "self_instruct"
    calls: int = 25  # a round
    ask: int = 8  # tasks that are asked for in a call
    seeds: int = 6  # shown in a call
    machine: int = 2
    source: str = "mixed"
    form: str = INSTANCES
    classify: bool = True  # false: all are done with inputs first
    unfit: list[str] = field(default_factory=lambda: [*UNFIT])  # words that no instruction may have
    author: Any = field(default_factory=dict)
    prompts: str = ""  # another file of words than words.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("words.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {
        "instructions": ("tasks", "next"),
        "together": ("many", "tasks", "next"),
        "classification": ("instruction",),
        "output_first": ("instruction",),
        "input_first": ("instruction",),
    }
    needs = (Instruct,)

    def __post_init__(self) -> None:
        for key in ("calls", "ask"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("seeds", "machine"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        require(self.shown >= 1, "seeds", self.seeds, "at least 1 where machine=0: something has to be shown")
        one_of("source", self.source, SOURCES)
        one_of("form", self.form, FORMS)
        require(all(isinstance(w, str) and w for w in self.unfit), "unfit", self.unfit, "words, none of them empty")
        self.writer = author_of(self.author)

    @property
    def shown(self) -> int:
        return self.seeds + self.machine

    def at_most(self) -> int:
        return self.calls * self.ask

    def reads(self) -> tuple[str, ...]:
        return (HISTORY, *self.writer.reads())

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.writer}

    def check(self, experiment: Experiment) -> None:
        domain = experiment.domain
        assert isinstance(domain, Instruct)
        enough = f"at least {self.shown}: a call shows so many seeds"
        require(domain.examples >= self.shown, "domain.examples", domain.examples, enough)
        if not isinstance(domain.source, World):
            self.words()
            return
        require(self.form == ANSWERS, "form", self.form, f"{ANSWERS}: requests of the world have no other instances")
        require(self.ask == 1, "ask", self.ask, "1: a model of the world writes one request a call")
        few = (
            f"at most {DEMONSTRATIONS - self.machine}: a model of the world is shown {DEMONSTRATIONS} requests at most"
        )
        require(self.shown <= DEMONSTRATIONS, "seeds", self.seeds, few)
        share = domain.source.shares.get(PROPOSE, 0)
        can = bool(share) or not self.writer.own
        require(can, "domain.corpus.skills.propose", share, "above 0, since the model has to have learned to propose")

    # -- what is shown -------------------------------------------------------------------------------------------------

    def pool(self, request: Request) -> tuple[list[Known], list[Known]]:
        """(seeds, machine-made tasks)"""
        train = request.data / "train.parquet"
        made = [known for path in request.inputs.all(HISTORY) for known in self._known(path, request)]
        return self._known(train, request), made

    @staticmethod
    def _known(path: Path, request: Request) -> list[Known]:
        assert isinstance(request.domain, Instruct)
        rows = records.read(path, columns=["id", "messages"]).to_pylist()
        found = []
        for row in rows:
            if not request.domain.source.is_pair(row["messages"]):
                continue
            question, answer = (message["content"] for message in row["messages"])
            found.append(Known(row["id"], *parts(question), answer))
        return found

    def drawn(self, seeds: Sequence[Known], made: Sequence[Known], seed: int) -> list[list[Known]]:
        """What each call shows."""
        wanted = {"mixed": self.machine, "seeds": 0, "machine": self.shown}[self.source]
        theirs = min(wanted, len(made))
        rng = generator(seed, "demonstrations")
        calls = []
        for _ in range(self.calls):
            some = [made[i] for i in rng.choice(len(made), theirs, replace=False)] if theirs else []
            some += [seeds[i] for i in rng.choice(len(seeds), self.shown - theirs, replace=False)]
            calls.append([some[i] for i in rng.permutation(len(some))])
        return calls

    # -- a round -------------------------------------------------------------------------------------------------------

    def generate(self, request: Request) -> tuple[pa.Table, dict[str, Any]]:
        assert isinstance(request.domain, Instruct)
        in_world = isinstance(request.domain.source, World)
        seeds, made = self.pool(request)
        if len(seeds) < self.shown:
            why = f"a call shows {self.shown} tasks, and there are {len(seeds)} seeds; show fewer, or give more"
            raise UserError("recipe.seeds", self.seeds, why)
        new, calls, tokens = self._propose(self.drawn(seeds, made, request.seed), request)
        ids = {known.id for known in made}
        counts: dict[str, Any] = {
            "asked": self.at_most(),
            "calls": len(calls),  # that had room
            "shown_machine": sum(known.id in ids for shown in calls for known in shown),
            "items": len(new),
        }
        for each in new:
            each.why = each.why or fault(each.instruction, self.unfit)
        if self.form == ANSWERS:
            tokens += self._answer(new, request)
        elif self.form == INSTANCES:
            tokens += self._instances(new, request, counts)
        for each in new:
            if not each.why:
                each.pairs, each.why = sound(each.pairs)
        rng = generator(request.seed, "instances")
        kept = [each for each in new if not each.why]
        chosen = [each.pairs[int(rng.integers(len(each.pairs)))] for each in kept]
        reasons = Counter(each.why.replace(" ", "_") for each in new if each.why)
        counts |= {f"rejected_{why}": n for why, n in sorted(reasons.items())}
        counts |= {"written": len(kept), **self.writer.spent(request)}
        if not kept:
            said = ", ".join(f"{n} {why}" for why, n in sorted(reasons.items()))
            why = f"wrote none of {self.at_most()} tasks in round {request.round} ({said or 'no items'})"
            raise UserError(
                "recipe.author", self.writer.model, f"{why}; ask another model, or for more with recipe.calls"
            )
        messages = [task(each.instruction, *pair) for each, pair in zip(kept, chosen, strict=True)]
        table = records.make_table(
            {"messages": pa.array(messages, MESSAGES)},
            origin=records.SYNTHETIC,
            generation=request.round,
            recipe=self.name,
            parents=[each.parents for each in kept],
        )
        return table, {"tokens": tokens, "counts": counts, **({} if in_world else self.told_by())}

    def _propose(
        self, calls: Sequence[Sequence[Known]], request: Request
    ) -> tuple[list[New], list[Sequence[Known]], int]:
        """New tasks, in the order of the calls; the calls that were made, since what is shown can leave no room for
        more; and the tokens that they took."""
        assert isinstance(request.domain, Instruct)
        source, words = request.domain.source, self.words()
        prompts: list[Prompt] = []
        for shown in calls:
            many = self.shown + self.ask
            if isinstance(source, World):
                prompts.append(asked(source.ask_propose([known.instruction for known in shown])))
            elif self.form == TOGETHER:
                text = "\n\n".join(whole(i, known) for i, known in enumerate(shown, 1))
                prompts.append(words.fill("together", many=many, tasks=text, next=self.shown + 1).rstrip())
            else:
                text = "\n".join(f"Task {i}: {known.instruction}" for i, known in enumerate(shown, 1))
                prompts.append(words.fill("instructions", tasks=text, next=self.shown + 1).rstrip())
        end = [] if isinstance(source, World) else [f"Task {self.shown + self.ask + 1}"]
        fits = self._fits(prompts, request)
        left = [prompt for prompt, does in zip(prompts, fits, strict=True) if does]
        said = self._write(left, request, "instructions", stop=end)
        new: list[New] = []
        made = [shown for shown, does in zip(calls, fits, strict=True) if does]
        for shown, text, finish in zip(made, said.texts, said.finish, strict=True):
            parents = [known.id for known in shown]
            some = [New(parents, *found) for found in self._items(text, isinstance(source, World))]
            if finish == records.CUT and some:
                some[-1].why = "truncated"
            new += some[: self.ask]
        return new, made, said.tokens

    def _items(self, text: str, single: bool) -> list[tuple[str, str, list[Pair]]]:
        """(instruction, why it is thrown away, instances) of each task of a reply."""
        if single:
            return [(line(text), "", [])]
        text = AGAIN.sub("", text)
        if self.form != TOGETHER:
            return [(line(item), "", []) for item in ITEM.split(text)]
        found: list[tuple[str, str, list[Pair]]] = []
        for item in WHOLE.split(text):
            if match := FIELDS.fullmatch(item.rstrip().removesuffix("###").rstrip()):
                instruction, given, output = (piece.strip() for piece in match.groups())
                given = "" if given.lower().strip("<>(). ") in (NONE, "") else given
                found.append((line(instruction), "", [(given, output)]))
            else:
                found.append((line(item), "unparseable", []))
        return found

    def _answer(self, new: Sequence[New], request: Request) -> int:
        left = [each for each in new if not each.why]
        said = self._write([asked(each.instruction) for each in left], request, "answers")
        for each, text, finish in zip(left, said.texts, said.finish, strict=True):
            each.pairs = [("", text.strip())]
            if finish == records.CUT:
                each.why = "truncated"
        return said.tokens

    def _instances(self, new: Sequence[New], request: Request, counts: dict[str, Any]) -> int:
        words, tokens = self.words(), 0
        left = [each for each in new if not each.why]
        labelled = [False] * len(left)
        if self.classify:
            orders: list[Prompt] = [words.fill("classification", instruction=each.instruction) for each in left]
            said = self._write(orders, request, "classification", **GREEDY, new_tokens=4, stop=["\n"])
            labelled = [text.strip().lower().startswith("yes") for text in said.texts]
            tokens += said.tokens
            counts["classification"] = sum(labelled)
        for name, pattern, which in (("output_first", LABELLED, True), ("input_first", GIVEN, False)):
            some = [each for each, is_so in zip(left, labelled, strict=True) if is_so is which]
            orders = [words.fill(name, instruction=each.instruction) for each in some]
            said = self._write(orders, request, name, **GREEDY, stop=["\nTask:"])
            tokens += said.tokens
            for each, text, finish in zip(some, said.texts, said.finish, strict=True):
                found = pattern.findall(f"Label:{text}" if which else text)
                pairs = [(b, a) if which else (a, b) for a, b in found][:MOST]
                if finish == records.CUT and len(found) <= MOST:
                    pairs = pairs[:-1]  # nobody knows how it would have ended
                each.pairs = [(given.strip(), output.strip()) for given, output in pairs]
                if not pairs:
                    each.why = "truncated" if finish == records.CUT else "no instance"
        return tokens

    def _fits(self, prompts: Sequence[Prompt], request: Request) -> list[bool]:
        """Which prompts are not cut at their end, where the question is. A server refuses those itself."""
        if self.writer.writer.elsewhere:
            return [True] * len(prompts)
        assert isinstance(request.domain, Instruct)
        codec = load_codec(self.writer.at_work(request)[1] / "tokenizer")
        room = self.writer.decoding(request.domain.context).max_tokens
        lengths = [len(ids) for ids in codec.prompts(prompts)]
        if lengths and min(lengths) >= room:
            why = f"more than {min(lengths)}: no call has room; raise it, or show fewer with recipe.seeds"
            raise UserError("recipe.author.max_tokens", room, f"must be {why}")
        return [length < room for length in lengths]

    def _write(self, prompts: list[Prompt], request: Request, name: str, **changes: Any) -> Replies:
        assert isinstance(request.domain, Instruct)
        seed = seed_of(request.seed, name)
        said = self.writer.write(prompts, request, request.domain.context, seed=seed, name=name, **changes)
        both = zip(said.texts, prompts, strict=True)
        return said._replace(texts=[onward(text, p) if isinstance(p, str) else text for text, p in both])


def line(text: str) -> str:
    """An instruction is one line."""
    return " ".join(text.split())


def whole(number: int, known: Known) -> str:
    given = known.input or NONE
    return f"### Task {number}\nInstruction: {known.instruction}\nInput: {given}\nOutput: {known.output}"
