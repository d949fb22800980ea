"""Selection of answers to problems: by the truth, by a noisy verifier, by another model, the best of k.

    genloss run -m domain=reasoning curation=none,exact,noisy,likelihood,agree
    genloss run domain=reasoning curation=[best_of,exact] recipe.samples=8
    genloss run domain=reasoning curation=agree 'curation.agree.judge_model=runs/reasoning-*-s0-*/rounds/00/model'

What a selection is worth is measured on what it kept: its φ, ψ and p* are in the metrics (evaluate.accuracy).
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Domain, Sampling
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import folder_hash
from genloss.core.seeds import generator
from genloss.curate import Context, Curator, Verdict, verdict
from genloss.domains.lab.verifiers import Verifier

if TYPE_CHECKING:
    from genloss.experiment import Experiment


def verifier(domain: Domain) -> Any:
    """The domain's `verify(table) -> (right, parsed)`."""
    method = getattr(domain, "verify", None)
    if method is None:
        raise UserError("_target_", None, f"needs exact answers, and {domain.name} has none; use domain=reasoning")
    return method


def failures(right: np.ndarray, parsed: np.ndarray) -> np.ndarray:
    """What each response is, in a word."""
    return np.where(right, "right", np.where(parsed, "wrong", "unparseable")).astype(object)


class AnswerCurator(Curator):
    """Needs a domain that knows the answers."""

    def check(self, experiment: Experiment) -> None:
        verifier(experiment.domain)


@dataclass
class Exact(AnswerCurator):
    """Keep right answers alone: φ = 1, ψ = 0."""

    def rates(self) -> tuple[float, float]:
        return 1.0, 0.0

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        right, parsed = verifier(context.domain)(table)
        return verdict(right, right.astype(float), failures(right, parsed))


@dataclass
class Noisy(Verifier):
    """Keep right answers with probability phi and wrong ones with psi, each on its own draw. Feng et al. (2024, section 5) have
    phi = 1 and psi = p_noise, for which p* = 1 / (1 + p_noise)."""

    phi: float = 1.0

    def check(self, experiment: Experiment) -> None:
        verifier(experiment.domain)

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        right, parsed = verifier(context.domain)(table)
        chance = np.where(right, self.phi, self.psi)
        return verdict(generator(context.seed, "noisy").random(len(table)) < chance, chance, failures(right, parsed))


SELECTORS = ("exact", "likelihood", "random")


@dataclass
class BestOf(AnswerCurator):
    """Of the responses to one problem keep one: a right one (the first; if none is, the first of all), the one that the generator
    finds likeliest, or any. Feng et al. (2024, section 5) choose among beams: with the truth a generator is far better than
    its own choice. `curation=[best_of,exact]` drops the problems that no response solves."""

    selector: str = "exact"

    def __post_init__(self) -> None:
        one_of("selector", self.selector, SELECTORS)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("data", "last") if self.selector == "likelihood" else ()

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        samples = getattr(experiment.recipe, "samples", 1)
        if samples < 2:
            raise UserError(
                "selector",
                self.selector,
                f"has nothing to choose from with recipe.samples={samples}; set it to 2 or more",
            )

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        if self.selector == "exact":
            score = verifier(context.domain)(table)[0].astype(float)
        elif self.selector == "likelihood":
            nats, tokens = context.domain.losses(context.last, context.data, table, context.runtime, context.report)
            score = -nats / np.maximum(tokens, 1)
        else:
            score = generator(context.seed, "best of").random(len(table))
        problem = np.asarray(table.column("prompt").combine_chunks().dictionary_encode().indices)
        order = np.lexsort((-score, problem))  # stable: of equal scores the first
        keep = np.zeros(len(table), dtype=bool)
        keep[order[np.flatnonzero(np.diff(problem[order], prepend=-1))]] = True
        return verdict(keep, score, "not the best")


OWN = ("round0", "last")


@dataclass
class Agree(AnswerCurator):
    """Keep an answer that another model gives too, decoding greedily: a verifier that is itself a solver, weaker or stronger (Feng
    et al. 2024, section 6, select summaries by a stronger model). The truth is not looked at: the judge's answer stands in its
    place, so what is the same answer is what the family of problems says (2/4 and 1/2; eigenvalues within the tolerance)."""

    judge_model: str = (
        "round0"  # round0, last (the generator), or a model's folder in a run directory; * may stand in it
    )
    chunk: int = 512

    def __post_init__(self) -> None:
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        if self.judge_model in OWN:
            return
        known = json.loads((self._folder() / "config.json").read_text(encoding="utf-8"))
        room = known.get("max_position_embeddings", known.get("n_positions", 0))  # gpt2 has a name of its own for it
        context = experiment.domain.config("evaluate")["context"]
        require(
            room >= context,
            "judge_model",
            self.judge_model,
            f"a model with a context of at least {context} tokens, domain.context; it has {room}",
        )

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("data", self.judge_model) if self.judge_model in OWN else ("data",)

    def _folder(self) -> Path:
        """Of the judge, RUN/rounds/NN/model."""
        from genloss.core.places import project_root

        root = project_root() / self.judge_model
        found = sorted(p for p in Path(root.anchor).glob(str(root.relative_to(root.anchor))) if p.is_dir())
        require(
            len(found) == 1,
            "judge_model",
            self.judge_model,
            f"round0, last, or the name of one folder RUN/rounds/NN/model; {len(found)} have it",
        )
        for needed in (found[0] / "config.json", self._data(found[0]) / "tokenizer" / "tokenizer.json"):
            if not needed.is_file():
                raise UserError("judge_model", self.judge_model, f"is no model of a run directory: {needed} is missing")
        return found[0]

    @staticmethod
    def _data(model: Path) -> Path:
        return model.absolute().parents[2] / "data" if len(model.absolute().parents) > 2 else model

    def fingerprint(self) -> str:
        if self.judge_model in OWN:
            return ""
        folder = self._folder()
        return folder_hash(folder) + folder_hash(self._data(folder) / "tokenizer")

    def judge(self, table: pa.Table, context: Context) -> Verdict:
        from genloss.domains.reasoning.solve import decoding

        domain: Any = context.domain
        model, data = {"round0": context.round0, "last": context.last}.get(self.judge_model), context.data
        if model is None:
            model = self._folder()
            data = self._data(model)
        problems = table.column("prompt").combine_chunks().dictionary_encode()
        asked = problems.dictionary.to_pylist()
        options = decoding(len(asked), domain.config("evaluate")["context"], self.chunk, bias=0.0)
        with tempfile.TemporaryDirectory() as scratch:
            request = Sampling(
                model=model,
                data=data,
                n=len(asked),
                seed=0,
                options=options,
                prompts=asked,
                scratch=Path(scratch),
                runtime=context.runtime,
                report=context.report,
            )
            said = [r for columns, _ in domain.sample(request) for r in columns["response"]]
        task = table.column("task").to_pylist()
        families = getattr(domain, "families", {})
        answers = [families[t].final(said[i]) for t, i in zip(task, problems.indices.to_pylist(), strict=True)]
        judged = table.set_column(table.column_names.index("answer"), "answer", pa.array(answers, pa.string()))
        same, parsed = verifier(domain)(judged)
        return verdict(same, same.astype(float), np.where(parsed, "disagrees", "unparseable").astype(object))
