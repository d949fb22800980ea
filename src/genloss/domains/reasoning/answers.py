"""Selection of answers to problems: by the truth, by a noisy verifier, by another model, the best of k.

    genloss run -m domain=reasoning curation=none,exact,noisy,likelihood,agree
    genloss run domain=reasoning curation=[best_of,exact] recipe.samples=8
    genloss run domain=reasoning curation=agree 'curation.agree.judge=runs/reasoning-*-s0-*/rounds/00/model'

What a selection is worth is measured on what it kept: its φ, ψ and p* are in the metrics (evaluate.accuracy).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from genloss.core.capabilities import Responds, Scores, Texts, Verifies, able
from genloss.core.contracts import LAST, ROUND0, Decoding, Experiment
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import folder_hash
from genloss.core.places import find_folder
from genloss.core.retention import check_kept
from genloss.core.seeds import generator
from genloss.curate import Context, Decision, Rated, RecordCurator, decision
from genloss.curate.choose import best_of_each, needs_several
from genloss.curate.noise import NoisyRates
from genloss.domains.reasoning import Reasoning


def failures(right: np.ndarray, parsed: np.ndarray) -> np.ndarray:
    """What each response is, in a word."""
    return np.where(right, "right", np.where(parsed, "wrong", "unparseable")).astype(object)


@dataclass
class Exact(RecordCurator, Rated):
    """Keep right answers alone: φ = 1, ψ = 0."""

    needs = (Verifies,)

    def rates(self) -> tuple[float, float]:
        return 1.0, 0.0

    def decide(self, table: pa.Table, context: Context) -> Decision:
        right, parsed = able(context.domain, Verifies).verify(table)
        return decision(right, right.astype(float), failures(right, parsed))


@dataclass
class Noisy(NoisyRates, RecordCurator):
    """Keep right answers with probability phi and wrong ones with psi, each on its own draw. Feng et al. (2024, section
    5) have phi = 1 and psi = p_noise, for which p* = 1 / (1 + p_noise)."""

    phi: float = 1.0
    needs = (Verifies,)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        right, parsed = able(context.domain, Verifies).verify(table)
        chance = np.where(right, self.phi, self.psi)
        return decision(generator(context.seed, "noisy").random(len(table)) < chance, chance, failures(right, parsed))


SELECTORS = ("exact", "likelihood", "random")


@dataclass
class BestOf(RecordCurator):
    """Of the responses to one problem keep one: a right one (the first; if none is, the first of all), the one that the
    generator finds likeliest, or any. Feng et al. (2024, section 5) choose among beams: with the truth a generator is
    far better than its own choice. `curation=[best_of,exact]` drops the problems that no response solves."""

    selector: str = "exact"
    needs = (Verifies, Scores)

    def __post_init__(self) -> None:
        one_of("selector", self.selector, SELECTORS)

    def reads(self) -> tuple[str, ...]:
        return (LAST,) if self.selector == "likelihood" else ()

    def check(self, experiment: Experiment) -> None:
        needs_several(experiment, "selector", self.selector)

    def decide(self, table: pa.Table, context: Context) -> Decision:
        if self.selector == "exact":
            score = able(context.domain, Verifies).verify(table).right.astype(float)
        elif self.selector == "likelihood":
            scores = able(context.domain, Scores)
            nats, tokens = scores.losses(context.inputs[LAST], context.data, table, context.runtime, context.report)
            score = -nats / np.maximum(tokens, 1)
        else:
            score = generator(context.seed, "best of").random(len(table))
        return decision(best_of_each(able(context.domain, Texts).texts(table), score), score, "not the best")


OWN = (ROUND0, LAST)


@dataclass
class Agree(RecordCurator):
    """Keep an answer that another model gives too, decoding greedily: a verifier that is itself a solver, weaker or
    stronger (Feng et al. 2024, section 6, select summaries by a stronger model). The truth is not looked at: the
    judge's answer stands in its place, so what is the same answer is what the family of problems says (2/4 and 1/2;
    eigenvalues within the tolerance)."""

    # round0, last (the generator), or a model's folder in a run directory, RUN/rounds/NN/model; * may stand in it
    judge: str = "round0"
    chunk: int = 512
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        if self.judge in OWN:
            return
        check_kept(self._folder(), "judge", self.judge)
        known = json.loads((self._folder() / "config.json").read_text(encoding="utf-8"))
        room = known.get("max_position_embeddings", known.get("n_positions", 0))  # gpt2 has a name of its own for it
        context = able(experiment.domain, Responds).context
        wanted = f"a model with a context of at least {context} tokens, domain.context; it has {room}"
        require(room >= context, "judge", self.judge, wanted)

    def reads(self) -> tuple[str, ...]:
        return (self.judge,) if self.judge in OWN else ()

    def _folder(self) -> Path:
        """Of the judge, RUN/rounds/NN/model."""
        folder = find_folder(self.judge, "judge", "no folder has this name; name round0, last, or RUN/rounds/NN/model")
        for needed in (folder / "config.json", self._data(folder) / "tokenizer" / "tokenizer.json"):
            if not needed.is_file():
                raise UserError("judge", self.judge, f"is no model of a run directory: {needed} is missing")
        return folder

    @staticmethod
    def _data(model: Path) -> Path:
        return model.absolute().parents[2] / "data" if len(model.absolute().parents) > 2 else model

    def places(self) -> tuple[str, ...]:
        return () if self.judge in OWN else ("judge",)

    def fingerprint(self) -> str:
        if self.judge in OWN:
            return ""
        folder = self._folder()
        return folder_hash(folder) + folder_hash(self._data(folder) / "tokenizer")

    def decide(self, table: pa.Table, context: Context) -> Decision:
        domain = able(context.domain, Reasoning)
        if self.judge in OWN:
            model, data = context.inputs[self.judge], context.data
        else:
            model = self._folder()
            data = self._data(model)
        problems = table.column("prompt").combine_chunks().dictionary_encode()
        greedy = Decoding(domain.context, bias=0.0, chunk=self.chunk)
        backend = domain.backend(model, data, context.runtime)
        said = backend.respond(problems.dictionary.to_pylist(), greedy, report=context.report).texts
        asked = zip(table.column("task").to_pylist(), problems.indices.to_pylist(), strict=True)
        answers = [domain.final(task, said[i]) for task, i in asked]
        judged = table.set_column(table.column_names.index("answer"), "answer", pa.array(answers, pa.string()))
        same, parsed = domain.verify(judged)
        return decision(same, same.astype(float), np.where(parsed, "disagrees", "unparseable").astype(object))
