"""Critics and what refining with one is worth.

genloss run experiment=critic                                       # critique: of a critic in training
genloss run experiment=shepherd recipe=refine metrics=[accuracy,refinement]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from genloss.core import records
from genloss.core.capabilities import Verifies, able
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, require
from genloss.core.seeds import seed_of
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.arithmetic import Arithmetic
from genloss.domains.reasoning.tasks import BLOCK, Problem
from genloss.evaluate import Evidence, Metric
from genloss.systems.shepherd.critic import TrainedCritic
from genloss.systems.shepherd.refine import Refine
from genloss.systems.shepherd.task import TYPES, Critique, Said, parts, read

SPOKEN = ("ok", *TYPES, "unparseable")  # what a critic may say


@dataclass
class Critiques(Metric):
    """How good model n is as a critic, decoding greedily: verdict_accuracy; critique/phi = P(accepts | right) and
    critique/psi = P(accepts | wrong), critique/p_star; type_accuracy and step_accuracy, of the wrong solutions that it
    rejects; confusion/TRUE/SAID, the share of the solutions with error TRUE ("ok": none) of which it says SAID;
    critique/unparseable; and length_bias, P(accepts | right, long) - P(accepts | right, short), long being above the
    median number of characters.

    It makes its own solutions, half of them right whatever `share_right` is, since a family without right solutions has
    none to measure phi on; none of the solved problems is in the training data. A solution is right if it has no error:
    critique/accidents is the share of those with an error that end in the right number nevertheless."""

    panels = ("verdict_accuracy",)
    max_records: int = 1000
    chunk: int = 512
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        require(self.max_records >= 2, "max_records", self.max_records, "at least 2")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        families = able(experiment.domain, Reasoning).families
        if not any(isinstance(f, Critique) for f in families.values()):
            raise UserError(
                "_target_", None, "needs critiques; use experiment=critic, or domain/tasks=[critique,arithmetic]"
            )
        alone = not any(isinstance(f, Arithmetic) and f.solutions for f in families.values())
        if alone and any(isinstance(f, Critique) and f.reference for f in families.values()):
            raise UserError(
                "_target_", None, "needs a critic that can solve too: use domain/tasks=[critique,arithmetic]"
            )

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = able(evidence.domain, Reasoning)
        (family, *_) = (f for f in domain.families.values() if isinstance(f, Critique))
        train = records.read(evidence.data / "train.parquet", columns=["prompt"]).column("prompt").to_pylist()
        known = {parts(prompt)[0] for prompt in train}
        test = list(self._fresh(family, known, evidence.seed))
        critic = TrainedCritic(evidence.model, evidence.data, domain.context, family.reference, self.chunk)
        problems, solutions = zip(*(parts(p.prompt) for p in test), strict=True)
        said = critic.critiques(problems, solutions, evidence.runtime, evidence.report)
        return confusion([p.answer for p in test], said) | self._others(test, said)

    def _fresh(self, family: Critique, known: set[str], seed: int) -> Iterator[Problem]:
        """max_records problems that are not among the `known` ones; half of them right."""
        balanced = replace(family, share_right=0.5)
        wanted = {True: self.max_records // 2, False: self.max_records - self.max_records // 2}
        seen: set[str] = set()
        for block in range(50 + 10 * self.max_records // BLOCK):
            for problem in balanced.problems(seed_of(seed, "critiques", block)):
                ok = problem.answer == "ok"
                key = parts(problem.prompt)[0]
                if wanted[ok] and key not in known and key not in seen:
                    seen.add(key)
                    wanted[ok] -= 1
                    yield problem
            if not any(wanted.values()):
                return
        raise UserError(
            "max_records", self.max_records, "is more than the family has beside its training data; lower it"
        )

    @staticmethod
    def _others(test: list[Problem], said: list[Said | None]) -> dict[str, float]:
        right = np.array([p.answer == "ok" for p in test])
        accepted = np.array([s is not None and s.ok for s in said])
        ends = np.array([p.difficulty.endswith("ends=right") for p in test])
        found = {"critique/accidents": float(ends[~right].mean())}
        length = np.array([len(parts(p.prompt)[1]) for p in test])[right]
        long = length > np.median(length)
        if long.any():
            found["length_bias"] = float(accepted[right][long].mean() - accepted[right][~long].mean())
        return found


def confusion(answers: list[str], said: list[Said | None]) -> dict[str, float]:
    """The numbers of `Critiques` that follow from n true critiques and what a critic said (None: unparseable)."""
    true = [read(a) for a in answers]
    spoken = np.array(["unparseable" if s is None else "ok" if s.ok else s.kind for s in said], dtype=object)
    actual = np.array(["unparseable" if t is None else "ok" if t.ok else t.kind for t in true], dtype=object)
    right, accepted = actual == "ok", spoken == "ok"
    found = {"verdict_accuracy": ((right == accepted) & (spoken != "unparseable")).mean()}
    found["critique/unparseable"] = (spoken == "unparseable").mean()
    if right.any():
        found["critique/phi"] = accepted[right].mean()
    if not right.all():
        found["critique/psi"] = accepted[~right].mean()
    if found.get("critique/phi", 0) + found.get("critique/psi", 0) > 0 and right.any() and not right.all():
        found["critique/p_star"] = found["critique/phi"] / (found["critique/phi"] + found["critique/psi"])
    rejected = ~right & ~accepted & (spoken != "unparseable")
    if rejected.any():
        found["type_accuracy"] = (spoken == actual)[rejected].mean()
        found["step_accuracy"] = np.mean(
            [
                s.step == t.step
                for s, t, r in zip(said, true, rejected, strict=True)
                if r and s is not None and t is not None
            ]
        )
    for kind in ("ok", *TYPES):
        rows = actual == kind
        if rows.any():
            found |= {f"confusion/{kind}/{word}": (spoken[rows] == word).mean() for word in SPOKEN}
    return {name: float(value) for name, value in found.items()}


@dataclass
class Refinement(Metric):
    """Of records that recipe=refine made: refine/before and refine/after (share of right first and last responses),
    refine/gain, refine/fixed (wrong ones that became right) and refine/broken (right ones that became wrong), as shares
    of all, refine/samples (responses drawn for each), refine/accepted (share that the critic accepts in the end),
    refine/phi and refine/psi (share of right and of wrong first responses that it accepts)."""

    panels = ("refine/gain",)
    needs = (Verifies,)

    def check(self, experiment: Experiment) -> None:
        if not isinstance(experiment.recipe, Refine):
            raise UserError("_target_", None, f"needs recipe=refine (it is {type(experiment.recipe).__name__})")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        if evidence.generated is None:
            return {}
        domain = able(evidence.domain, Verifies)
        table = records.read(evidence.generated)
        after = domain.verify(table).right
        first = table.set_column(table.column_names.index("response"), "response", table.column("first"))
        before = domain.verify(first).right
        said = table.column("critiques").to_pylist()
        accepted, finally_ = (np.array([each[at] == "ok" for each in said]) for at in (0, -1))
        found = {
            "before": before.mean(),
            "after": after.mean(),
            "gain": after.mean() - before.mean(),
            "fixed": (~before & after).mean(),
            "broken": (before & ~after).mean(),
            "samples": np.mean(table.column("attempts").to_numpy()),
            "accepted": finally_.mean(),
        }
        if before.any():
            found["phi"] = accepted[before].mean()
        if not before.all():
            found["psi"] = accepted[~before].mean()
        return {f"refine/{name}": float(value) for name, value in found.items()}
