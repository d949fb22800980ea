"""How varied the pool of tasks is, and how far new ones are from it.

genloss run experiment=self_instruct metrics=[instructions]
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genloss.core import records
from genloss.core.contracts import HISTORY, KEPT
from genloss.core.words import terms
from genloss.curate.novelty import BLOCK, Alphabet, nearest, rouge_l
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.chats import Messages
from genloss.domains.instruct.skills import ANSWER
from genloss.domains.instruct.world import World
from genloss.evaluate import Evidence, Metric


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# the words of an instruction before its verb; those that ask, without a verb of doing; no nouns, after which a noun may
# follow; and what ends the object of a verb
COURTESY = listed("please kindly now then first next can could would will you i want need to")
ASKING = listed("what which who whom whose when where why how is are was were do does did if the a an")
BEFORE_NOUN = listed("""the a an this that these those my your his her its our their me us him them some any each every
    all both one two three four five six seven eight nine ten several many more most""")
AFTER_NOUN = listed("""of in on at to from by with for about as into than that which who whose where when while and or
    but so if is are was were has have had can could should would may might must using between without under over
    through during per""")


def verb_noun(instruction: str) -> tuple[str, str] | None:
    """What an instruction does to what, by rule: the first word beyond courtesy, unless that asks; and the last word of
    the run after it, up to a preposition, a conjunction, an auxiliary verb or a mark. None where there are not both.
    Self-Instruct takes the root verb and its first direct object from a parser, which knows more."""
    clause = next((piece for piece in _clauses(instruction) if piece), [])
    while clause and clause[0] in COURTESY:
        clause = clause[1:]
    if not clause or clause[0] in ASKING or clause[0] in AFTER_NOUN:
        return None
    noun = ""
    for word in clause[1:]:
        if word in AFTER_NOUN:
            if noun:
                break
        elif word not in BEFORE_NOUN and not word.isdigit():
            noun = word
    return (clause[0], noun) if noun else None


def _clauses(text: str) -> Iterable[list[str]]:
    for mark in ",;:?!()\n":
        text = text.replace(mark, ".")
    return (terms(piece) for piece in text.split("."))


def effective(found: Iterable[Hashable]) -> float:
    """exp of the entropy of the values: as many equally frequent ones would be as varied. 0 of none."""
    counts = np.array(list(Counter(found).values()), dtype=float)
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return float(math.exp(-(share * np.log(share)).sum()))


@dataclass
class Instructions(Metric):
    """Of the pool of instructions, which is what curation kept of all rounds (in round 0 the seeds): pool_size,
    pool_texts (effective number of different ones, exp of their entropy), pool_pairs (different pairs of verb and
    noun), pool_pairs_effective; in the world pool_cells (effective number of topic, format, register and steps).

    Of those that this round kept: new_kept (their number), new_rouge (mean of the largest ROUGE-L of each to the seeds,
    to earlier rounds and to those before it), new_texts, new_pairs, new_pairs_effective; in the world new_cells,
    new_readable (share that the grammar has) and new_right (share whose answer is right too). Effective numbers of
    small samples are too small: compare equal numbers."""

    panels = ("pool_size", "pool_texts")
    needs = (Instruct,)

    def reads(self) -> tuple[str, ...]:
        return (KEPT, HISTORY)

    def measure(self, evidence: Evidence) -> dict[str, float]:
        seeds = self._read(evidence.data / "train.parquet", evidence)
        if evidence.generated is None:
            return {
                f"pool_{name}": value for name, value in self._varied(self._alone(seeds, evidence), evidence).items()
            }
        earlier = [m for path in evidence.inputs.all(HISTORY) for m in self._read(path, evidence)]
        new = self._read(evidence.inputs[KEPT], evidence)
        found = {f"pool_{name}": value for name, value in self._varied([*earlier, *new], evidence).items()}
        of_new = self._varied(new, evidence)
        of_new["kept"] = of_new.pop("size")
        found |= {f"new_{name}": value for name, value in of_new.items()}
        found["new_rouge"] = self._rouge([*seeds, *earlier], new, evidence)
        assert isinstance(evidence.domain, Instruct)
        if isinstance(world := evidence.domain.source, World) and new:
            read = [world.read(messages) for messages in new]
            found["new_readable"] = float(np.mean([each.cell in world.law for each in read]))
            found["new_right"] = float(np.mean([each.right for each in read]))
        return found

    @staticmethod
    def _read(path: Path, evidence: Evidence) -> list[Messages]:
        messages: list[Messages] = records.read(path, columns=["messages"]).column("messages").to_pylist()
        return messages

    @staticmethod
    def _alone(conversations: Sequence[Messages], evidence: Evidence) -> list[Messages]:
        """Those that can be seeds of recipe=self_instruct."""
        assert isinstance(evidence.domain, Instruct)
        source = evidence.domain.source
        return [
            m for m in conversations if len(m) == 2 and not (isinstance(source, World) and source.skill(m) != ANSWER)
        ]

    @staticmethod
    def _asks(conversations: Sequence[Messages], evidence: Evidence) -> list[str]:
        assert isinstance(evidence.domain, Instruct)
        return [evidence.domain.source.asks(messages) for messages in conversations]

    def _varied(self, conversations: Sequence[Messages], evidence: Evidence) -> dict[str, float]:
        assert isinstance(evidence.domain, Instruct)
        asks = self._asks(conversations, evidence)
        pairs = [pair for text in asks if (pair := verb_noun(text))]
        found = {
            "size": float(len(asks)),
            "texts": effective(map(records.normal, asks)),
            "pairs": float(len(set(pairs))),
            "pairs_effective": effective(pairs),
        }
        if isinstance(world := evidence.domain.source, World):
            cells = (world.read(messages).cell for messages in conversations)
            found["cells"] = effective(cell for cell in cells if cell in world.law)
        return found

    def _rouge(self, before: Sequence[Messages], new: Sequence[Messages], evidence: Evidence) -> float:
        alphabet = Alphabet()
        pool = alphabet.encode(self._asks(before, evidence))
        texts = alphabet.encode(self._asks(new, evidence))
        largest: list[float] = []
        for at in range(0, len(texts), BLOCK):
            block = texts[at : at + BLOCK]
            among = np.tril(rouge_l(block, block), -1).max(axis=1)
            largest += np.maximum(nearest(block, pool), among).tolist()
            pool += block
        return float(np.mean(largest)) if largest else 0.0
