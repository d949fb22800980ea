"""What a reward may ask of a critic, whichever system the critic is from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from genloss.core.contracts import Plugin, Runtime


class StepCritic(Plugin, ABC):
    """Judges worked solutions step by step."""

    @abstractmethod
    def step_rewards(
        self, problems: Sequence[str], solutions: Sequence[str], runtime: Runtime | None = None
    ) -> list[np.ndarray]:
        """For step k of each solution (its parts between semicolons) the probability that nothing is wrong up to k; and
        one more number, that nothing is missing at the end either. It falls from step to step."""
