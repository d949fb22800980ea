"""Which of two answers is better: judged in both orders, to measure a model by or to choose among its answers.

    genloss run domain=instruct metrics=[following,win_rate]               # against what round 0's model answers
    genloss run domain=instruct recipe.samples=4 curation=pairwise         # of four answers the one that wins most
    genloss run ... curation=pairwise control=random                       # as many at random

The judge is what is known of the answers (`right`; `grade`, of the small world), or an author: the letter A or B that
it finds likelier as the next token, or, behind a server, the one that it writes. Judges prefer a place: so each pair is
judged twice, with the answers swapped, and what is not preferred both times is a tie, half a win (MT-bench; Zheng et
al. 2023, arXiv 2306.05685, §3.4). They also prefer long answers (there §3.3; AlpacaEval 2, Dubois et al. 2024, arXiv
2404.04475): both biases are measured beside the rate."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from genloss.backends.author import Work, author_of
from genloss.core.contracts import LAST, ROUND0, Experiment, Inputs, Plugin, Prompt
from genloss.core.errors import UserError, one_of
from genloss.core.prompts import Told
from genloss.curate import Context, Decision, RecordCurator, decision
from genloss.curate.choose import best_of_each, needs_several
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.choosing import SCALES, check_scale, requests, truth
from genloss.evaluate import Evidence
from genloss.evaluate.selected import OfAnswers, answers
from genloss.language.chat import USER

AUTHOR = "author"
LETTERS = ("A", "B")
LETTER = re.compile(r"\W*(?:answer\s+)?([AB])\b", re.IGNORECASE)
REAL = "real"


class Judged(NamedTuple):
    """Float [n] each, of n pairs: 1 where the answer that is shown first is preferred, 0 where the other one is, 0.5
    where neither is."""

    straight: np.ndarray  # the first of a pair is shown first
    swapped: np.ndarray  # the second is

    @property
    def won(self) -> np.ndarray:
        """Float [n]: 1 where the first of a pair is preferred in both orders, 0 where the second is, else 0.5."""
        return np.where(
            (self.straight == 1) & (self.swapped == 0),
            1.0,
            np.where((self.straight == 0) & (self.swapped == 1), 0, 0.5),
        )

    @property
    def first_shown(self) -> float:
        """Share of the judgements that prefer what is shown first, one without a preference as half: 0.5 is no
        bias."""
        return float(np.mean([self.straight, self.swapped]))

    def longer(self, one: np.ndarray, two: np.ndarray) -> tuple[float, int]:
        """Share of the judgements that prefer the longer answer, by the lengths [n] of the first ones and of the
        second ones, and how many pairs are not of one length; nan of none."""
        ahead = (self.straight + 1 - self.swapped) / 2  # of its two judgements, the share for the first of a pair
        differ = one != two
        share = np.where(one > two, ahead, 1 - ahead)[differ]
        return (float(share.mean()) if len(share) else float("nan")), int(differ.sum())


def letter(text: str) -> float:
    """1: a reply that names A; 0: B; 0.5: neither."""
    found = LETTER.match(text)
    return 0.5 if found is None else float(found[1].upper() == LETTERS[0])


@dataclass
class Pairwise(Told):
    """A judge of pairs of answers, for a metric or a curator."""

    judge: str = "grade"  # of the world, 1 to 5; right: 1 or 0, where it can be checked; author: a model
    author: Any = field(default_factory=dict)
    prompts: str = ""  # another file of words than pairwise.yaml
    own_prompts: ClassVar[Path] = Path(__file__).with_name("pairwise.yaml")
    wanted: ClassVar[Mapping[str, Sequence[str]]] = {"asked": ("conversation", "first", "second")}
    needs = (Instruct,)

    def __post_init__(self) -> None:
        one_of("judge", self.judge, (AUTHOR, *SCALES))
        self.model = author_of(self.author, bias=0.0)

    def parts(self) -> Mapping[str, Plugin]:
        return {"author": self.model} if self.judge == AUTHOR else {}

    def check(self, experiment: Experiment) -> None:
        self.words()
        if self.judge != AUTHOR:
            check_scale(experiment, "judge", self.judge, AUTHOR)
        elif self.model.writer.elsewhere:
            try:
                self.model.writer.check_conversations()
            except UserError as error:
                raise error.under("author", ["backend"]) from None

    def compare(
        self, domain: Instruct, table: pa.Table, one: Sequence[str], two: Sequence[str], work: Work, seed: int
    ) -> Judged:
        """Two answers, `one` [n] and `two` [n], to the last request of each of n conversations."""
        if not len(one):
            return Judged(np.zeros(0), np.zeros(0))
        if self.judge != AUTHOR:
            good = [truth(domain, domain.answered(table, texts), self.judge) for texts in (one, two)]
            ahead = (np.sign(good[0] - good[1]) + 1) / 2
            return Judged(ahead, 1 - ahead)
        words = self.words()
        asked: list[Prompt] = []
        for pairs in (zip(one, two, strict=True), zip(two, one, strict=True)):
            for messages, (first, second) in zip(table.column("messages").to_pylist(), pairs, strict=True):
                before = "\n".join(f"{m['role']}: {m['content']}" for m in messages[:-1])
                text = words.fill("asked", conversation=before, first=first, second=second)
                asked.append([{"role": USER, "content": text}])
        if self.model.writer.elsewhere:
            said = self.model.write(asked, work, domain.context, seed=seed, name="pairs")
            found = np.array([letter(text) for text in said.texts])
        else:
            logp = self.model.choices(asked, LETTERS, work)
            found = (np.sign(logp[:, 0] - logp[:, 1]) + 1) / 2
        return Judged(*found.reshape(2, -1))


def sizes(texts: Sequence[str]) -> np.ndarray:
    """int [n]: characters"""
    return np.fromiter(map(len, texts), int, len(texts))


REFERENCES = (ROUND0, REAL)


@dataclass
class WinRate(Pairwise, OfAnswers):
    """Model n's greedy answers to the last requests of the frozen real test split, against those of the model of round
    0 or the real ones (`reference`): win_rate (share of pairs that it wins, ties as half; 0.5 where all are the same),
    win_rate_se (of the mean over pairs, of one model), win_pairs (their number), win_ties (share of the pairs: no
    preference that holds in both orders, equal answers among them). Of the pairs whose answers are not equal, which are
    win_judged many: win_position_bias, the share of the judgements for the answer that is shown first (0.5: no bias; a
    judge that says A of everything has 1, and win_rate 0.5), and win_undecided, the share of them without a preference:
    an equal grade, a reply that names no letter. Of those that are not equally long in characters, which are
    win_length_pairs many: win_length_bias, the share of the judgements for the longer one, which may be the better
    one too. What is undefined is left out. The author is the same in all rounds: round0, or a model from outside of the
    run."""

    reference: str = ROUND0
    max_records: int = 512
    chunk: int = 256  # requests answered together

    def __post_init__(self) -> None:
        Pairwise.__post_init__(self)
        OfAnswers.__post_init__(self)
        one_of("reference", self.reference, REFERENCES)

    def reads(self) -> tuple[str, ...]:
        return ()  # the model of round 0 is among the evidence

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        reads = self.model.reads()
        if self.judge == AUTHOR and LAST in reads:
            why = "is another judge in each round; use round0, or a saved model"
            raise UserError("author.model", self.model.model, why)

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = evidence.domain
        assert isinstance(domain, Instruct)
        test = self.test(evidence)
        prompts = domain.prompts(test)
        own = answers(evidence, prompts, self.chunk, bias=0.0)
        if self.reference == REAL:
            other = [m[-1]["content"] for m in test.column("messages").to_pylist()]
        elif evidence.round == 0:
            other = own
        else:
            other = answers(evidence, prompts, self.chunk, bias=0.0, model=evidence.round0)
        differ = np.flatnonzero([a != b for a, b in zip(own, other, strict=True)])
        work = replace(evidence, inputs=Inputs({ROUND0: (evidence.round0,)}))
        some = [[texts[i] for i in differ] for texts in (own, other)]
        judged = self.compare(domain, test.take(differ), some[0], some[1], work, evidence.seed)
        won = np.full(len(own), 0.5)
        won[differ] = judged.won
        found = {
            "win_rate": float(won.mean()),
            "win_pairs": float(len(won)),
            "win_ties": float((won == 0.5).mean()),
            "win_judged": float(len(differ)),
        }
        if len(won) > 1:
            found["win_rate_se"] = float(won.std(ddof=1) / np.sqrt(len(won)))
        if len(differ):
            found["win_position_bias"] = judged.first_shown
            found["win_undecided"] = float(np.mean([judged.straight == 0.5, judged.swapped == 0.5]))
        bias, pairs = judged.longer(*map(sizes, some))
        return found | ({"win_length_bias": bias, "win_length_pairs": float(pairs)} if pairs else {})


@dataclass
class MostWins(Pairwise, RecordCurator):
    """Of the recipe.samples answers to a request keep the one that wins most comparisons with each of the others, ties
    as half a win; of equally good ones the first by id. The score is the share that it wins. An author judges k (k - 1)
    pairs of k answers, which is each pair twice; equal answers tie and are not judged."""

    def reads(self) -> tuple[str, ...]:
        return self.model.reads() if self.judge == AUTHOR else ()

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        needs_several(experiment, "_target_", type(self).__name__)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain = context.domain
        assert isinstance(domain, Instruct)
        asked = requests(table)
        ids = np.argsort(np.array(table.column("id").to_pylist()), kind="stable")
        groups: dict[str, list[int]] = {}
        for i in ids.tolist():
            groups.setdefault(asked[i], []).append(i)
        pairs = [pair for each in groups.values() for pair in itertools.combinations(each, 2)]
        one, two = np.array(pairs, dtype=int).reshape(-1, 2).T
        texts = [messages[-1]["content"] for messages in table.column("messages").to_pylist()]
        won = np.full(len(pairs), 0.5)
        differ = np.flatnonzero([texts[a] != texts[b] for a, b in pairs])
        first, second = ([texts[i] for i in side[differ]] for side in (one, two))
        judged = self.compare(domain, table.take(one[differ]), first, second, context, context.seed)
        won[differ] = judged.won
        if len(differ) > 1 and (judged.won == 0.5).all():
            told = "so the first by id is kept"
            print(f"genloss: warning: the judge ties all {len(differ)} pairs of answers, {told}", file=sys.stderr)
        score = shares(len(table), one, two, won)
        return decision(best_of_each(asked, score, ids), score, "not the best")


def shares(n: int, one: np.ndarray, two: np.ndarray, won: np.ndarray) -> np.ndarray:
    """Float [n]: the share of its comparisons that each of n answers wins, by pairs of them and by how the first of
    each pair fares (1, 0.5, 0); nan of an answer that has none."""
    wins = np.bincount(one, won, n) + np.bincount(two, 1 - won, n)
    played = np.bincount(one, minlength=n) + np.bincount(two, minlength=n)
    return np.divide(wins, played, out=np.full(n, np.nan), where=played > 0)
