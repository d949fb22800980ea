"""Selection by the rewards of reinforced Evol-Instruct (WizardMath: Luo et al. 2023, arXiv 2308.09583, section 2):
r = r_I * r_A.

    genloss run ... recipe=evol_instruct curation=evol_reward
    genloss run -m ... recipe=evol_instruct curation=instruction_reward,process_reward,evol_reward
    genloss run ... curation=evol_reward 'curation.evol_reward.factors=[outcome]' curation.evol_reward.select=sample
    genloss run experiment=critic       # then it can judge:
    genloss run ... curation=evol_reward 'curation.evol_reward.factors=[instruction,critic]'

r_I rates the problem (is it well formed, new, answerable?), r_A the worked solution step by step; both are judged with
noise that is set here. trainer=grpo reinforces by the same `ResponseReward`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genloss.core.contracts import Experiment, Plugin, Runtime
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import build, plain
from genloss.core.seeds import generator
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.arithmetic import Step, Tree, expression, largest, needs_expressions, read_steps
from genloss.domains.reasoning.arithmetic import value as exact
from genloss.domains.reasoning.critics import StepCritic
from genloss.language.grpo import Reward
from genloss.systems.evol_instruct.edits import BLANK, canonical

FACTORS = ("outcome", "instruction", "process", "critic", "random")
COMBINE = ("minimum", "product")


# -- what is judged ----------------------------------------------------------------------------------------------------


def check_steps(tree: Tree, said: Sequence[Step]) -> tuple[list[bool], bool]:
    """(is each step right?, is the problem done after them?). A step is right if it computes rightly an operation that
    stands in what is left of the problem; what it claims is then put in that place, so a later step is judged on its
    own."""
    verdicts = []
    for step in said:
        reduced = _reduce(tree, step)
        if reduced is not None:
            tree = reduced
        verdicts.append(reduced is not None and exact((step.operator, step.left, step.right)) == step.result)
    return verdicts, isinstance(tree, int)


def _reduce(tree: Tree, step: Step) -> Tree | None:
    """The tree with the first operation that `step` names replaced by its claim; None if there is no such operation."""
    if isinstance(tree, int):
        return None
    operator, left, right = tree
    if (operator, left, right) == (step.operator, step.left, step.right):
        return step.result
    for side, part in ((1, left), (2, right)):
        reduced = _reduce(part, step)
        if reduced is not None:
            return (operator, reduced, right) if side == 1 else (operator, left, reduced)
    return None


def final(response: str) -> str:
    """The number after the last equals sign, or the whole."""
    return response.strip().rpartition("=")[2]


def quality(prompt: str, evolved_from: str | None, twice: bool, bound: int) -> dict[str, float]:
    """What r_I is made of, each in [0, 1]. The paper has definition, precision and integrity; novelty is ours (the
    paper's elimination asks for it):

    definition  1 if the text is an expression, blanks taken for numbers, else 0
    integrity   0 if a number of it is not given, else 1
    precision   1 if every result is within the bound, else bound / the largest
    novelty     0 if it is equivalent to its parent or stands twice in the round, else 1
    """
    filled = expression(prompt.replace(BLANK, "1"))
    tree = expression(prompt)
    novel = not twice
    if tree is not None and evolved_from:
        parent = expression(evolved_from)
        novel = novel and (parent is None or canonical(parent) != canonical(tree))
    over = max(1.0, largest(tree) / bound) if tree is not None else 1.0
    return {
        "definition": float(filled is not None),
        "integrity": float(BLANK not in prompt),
        "precision": 1.0 / over,
        "novelty": float(novel),
    }


@dataclass
class ResponseReward(Reward):
    """r in [0, 1] of n responses: the product of `factors`, so it is 0 where one of them is 0.

    instruction (r_I): the product of `quality`'s four parts. With probability `noise` the judge gives a problem a
    number uniform in [0, 1] instead; all responses to one problem have the same r_I.

    process (r_A): each step is accepted with probability phi if it is right and psi if it is wrong, and scored by how
    likely it is to be right given that verdict, both being equally likely before: phi / (phi + psi) if accepted, (1 -
    phi) / (2 - phi - psi) if rejected. `combine` takes the minimum or the product of the steps' scores; WizardMath's
    first version does not say which (the product prefers short solutions). Whether the problem is done is judged like
    one more step. A response that cannot be read as steps has r_A = 0.

    critic: a trained one judges the steps, and the end, in place of the noisy checker: each is scored by the
    probability that it is right given that those before it are, so that their product is P(ok). Its errors are its own;
    phi and psi do not touch it.

    outcome: one such verdict on the final answer alone. random: uniform, whatever the response; a control.
    """

    factors: list[str] = field(default_factory=lambda: ["instruction", "process"])
    phi: float = 0.9
    psi: float = 0.2
    noise: float = 0.1
    combine: str = "minimum"
    bound: int = 99  # largest result that a good problem has; that of the tasks
    critic: Any = None  # for the factor of this name: a StepCritic
    needs = (Reasoning,)

    def __post_init__(self) -> None:
        if not self.factors:
            raise UserError("factors", "[]", f"is empty; choose from {', '.join(FACTORS)}")
        for name in self.factors:
            one_of("factors", name, FACTORS)
        for key in ("phi", "psi", "noise"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        require(self.phi + self.psi > 0, "phi", self.phi, "greater than 0 where psi=0, or every reward is 0")
        one_of("combine", self.combine, COMBINE)
        require(self.bound >= 1, "bound", self.bound, "at least 1")
        used = "critic" in self.factors
        if used and not self.critic:
            raise UserError("critic", None, "is needed by the factor critic; name a plug-in that gives step rewards")
        self.step_critic: StepCritic | None = build(plain(self.critic), StepCritic, "critic") if used else None

    def parts(self) -> Mapping[str, Plugin]:
        return {"critic": self.step_critic} if self.step_critic else {}

    def check(self, experiment: Experiment) -> None:
        needs_expressions(experiment, "_target_", "judges expressions")

    def scores(self, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The noisy checker's scores of right and wrong steps (or answers)."""
        accepted = rng.random(len(right)) < np.where(right, self.phi, self.psi)
        yes = self.phi / (self.phi + self.psi)
        no = (1 - self.phi) / max(2 - self.phi - self.psi, 1e-12)
        return np.where(accepted, yes, no)

    def instruction(self, prompts: Sequence[str], evolved_from: Sequence[str | None], seed: int) -> np.ndarray:
        """r_I [n]."""
        rng = generator(seed, "instruction")
        first: dict[str, str | None] = {}
        for text, parent in zip(prompts, evolved_from, strict=True):
            first.setdefault(text, parent)
        trees = {text: expression(text) for text in first}
        forms = {text: canonical(tree) if tree is not None else text for text, tree in trees.items()}
        seen: set[str] = set()
        rated: dict[str, float] = {}
        for text, parent in first.items():
            parts = quality(text, parent, forms[text] in seen, self.bound)
            seen.add(forms[text])
            guess, flip = rng.random(2)
            rated[text] = guess if flip < self.noise else math.prod(parts.values())
        return np.array([rated[text] for text in prompts])

    def process(self, prompts: Sequence[str], responses: Sequence[str], seed: int) -> np.ndarray:
        """r_A [n]."""
        rng = generator(seed, "process")
        found = np.zeros(len(prompts))
        for i, (text, response) in enumerate(zip(prompts, responses, strict=True)):
            said, tree = read_steps(response), expression(text)
            if not said:
                continue
            right, done = ([False] * len(said), False) if tree is None else check_steps(tree, said)
            scores = self.scores(np.array([*right, done]), rng)
            found[i] = scores.min() if self.combine == "minimum" else scores.prod()
        return found

    def judged(self, prompts: Sequence[str], responses: Sequence[str], runtime: Runtime | None) -> np.ndarray:
        """r_A [n] by the critic; the same question is asked once."""
        pairs = list(zip(prompts, responses, strict=True))
        asked = list(dict.fromkeys(pairs))
        assert self.step_critic is not None
        steps = self.step_critic.step_rewards([p for p, _ in asked], [r for _, r in asked], runtime)
        known = dict(zip(asked, map(self.weigh, steps), strict=True))
        return np.array([known[pair] for pair in pairs])

    def weigh(self, reached: np.ndarray) -> float:
        """r_A of P(nothing is wrong up to step k) for every k."""
        if self.combine == "product":
            return float(reached[-1])
        before = np.append(1.0, reached[:-1])
        return float(np.divide(reached, before, out=np.zeros(len(reached)), where=before > 0).min())

    def outcome(self, prompts: Sequence[str], responses: Sequence[str], seed: int) -> np.ndarray:
        trees = [expression(text) for text in prompts]
        right = [t is not None and final(r) == str(exact(t)) for t, r in zip(trees, responses, strict=True)]
        return self.scores(np.array(right, dtype=bool), generator(seed, "outcome"))

    def of(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        seed: int,
        evolved_from: Sequence[str | None] | None = None,
        runtime: Runtime | None = None,
    ) -> np.ndarray:
        """r [n] of responses to problems; evolved_from: their parents' texts, where they are known."""
        r = np.ones(len(prompts))
        for name in self.factors:
            if name == "instruction":
                r = r * self.instruction(prompts, evolved_from or [None] * len(prompts), seed)
            elif name == "random":
                r = r * generator(seed, "random").random(len(prompts))
            elif name == "critic":
                r = r * self.judged(prompts, responses, runtime)
            else:
                r = r * getattr(self, name)(prompts, responses, seed)
        return r
