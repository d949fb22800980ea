"""GRPO: a small policy reinforced by a reward, group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300,
section 4).

    genloss run ... recipe=evol_instruct trainer=grpo trainer.start=previous
    genloss run -m ... trainer=grpo trainer.start=previous 'trainer.reward.factors=[outcome],[random]'

    step: `prompts` problems of the training set -> `group` responses each -> r -> A = (r - mean) / std of the group
          -> clipped policy gradient, with a penalty for leaving the model that the round began with

Only the problems of the training set are used; their responses are the policy's own, made anew at each step. Round 0
has no model to start from: it is trained on worked solutions, by the options of Supervised. WizardMath (arXiv
2308.09583) uses PPO with r = r_I * r_A; GRPO needs no model of the value. What this changes: within a group all
responses share r_I, so that it cancels in A. With scale=std it acts only where it is 0; with scale=none (Liu et al.
2025, arXiv 2503.20783) it weights its problem.

A reward of your own is a dataclass derived from Reward, and its name in the config (`trainer.reward._target_`). The
steps themselves are genloss.language.reinforcement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genloss.core.capabilities import Responds
from genloss.core.contracts import Experiment, Fit, Plugin, Runtime
from genloss.core.errors import UserError, one_of, require
from genloss.core.plugin import build, plain
from genloss.language.trainer import Supervised

SCALE = ("std", "none")


class Reward(Plugin, ABC):
    """What responses earn. A plug-in of the trainer: a dataclass, whose fields are the keys below `trainer.reward`."""

    @abstractmethod
    def of(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        seed: int,
        evolved_from: Sequence[str | None] | None = None,
        runtime: Runtime | None = None,
    ) -> np.ndarray:
        """r [n] of n responses, each to the prompt in its place. A function of its arguments: what is drawn is drawn
        from `seed`. evolved_from: the texts that the prompts were made from, None where there is none."""


@dataclass
class Grpo(Supervised):
    """`steps` and the other options of Supervised are those of round 0; `updates` and what follows those of the rounds
    after it.

    A step sees prompts * group responses: with updates = steps and prompts * group = batch it is as large as a
    supervised one. Adam without weight decay: the penalty holds the policy where it came from.
    """

    updates: int = 100  # steps of reinforcement
    prompts: int = 8  # problems a step
    group: int = 8  # responses to each
    passes: int = 1  # gradient steps on the same responses
    step_size: float = 1.0e-4  # learning rate of reinforcement, constant
    clip_ratio: float = 0.2  # ε: beyond 1 ± ε the ratio of new to old probability earns nothing
    kl: float = 0.04  # β: weight of the divergence from the model that the round began with
    scale: str = "std"  # std: A has unit variance in its group; none: it has not
    temperature: float = 1.0  # of the responses
    reward: Any = field(default_factory=dict)  # a Reward
    needs = (Responds,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("updates", "prompts", "passes"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.group >= 2, "group", self.group, "at least 2: a response is compared with the others of its group")
        require(self.clip_ratio > 0, "clip_ratio", self.clip_ratio, "greater than 0")
        require(self.kl >= 0, "kl", self.kl, "at least 0 (0: off)")
        one_of("scale", self.scale, SCALE)
        self.reward_function: Reward = build(plain(self.reward), Reward, "reward")

    def parts(self) -> Mapping[str, Plugin]:
        return {"reward": self.reward_function}

    def check(self, experiment: Experiment) -> None:
        super().check(experiment)
        name = type(self).__name__
        if self.start != "previous":
            said = f"continues from the model before: set trainer.start=previous (it is {self.start})"
            raise UserError("_target_", name, said)
        if experiment.runtime.devices != 1 or experiment.runtime.num_nodes != 1:
            raise UserError("_target_", name, "runs on one device; set runtime.devices=1")

    def train(self, fit: Fit) -> dict[str, Any]:
        if fit.start is None:  # round 0
            return super().train(fit)
        from genloss.language.reinforcement import Reinforcement  # torch takes seconds to load

        return Reinforcement(self, fit).run()

    def ended(self, result: Mapping[str, Any]) -> UserError | None:
        rate = "lr" if "loss" in result and "kl" not in result else "step_size"  # of round 0, of those after it
        return None if self.diverged == "go_on" else self._diverged(rate, result)
