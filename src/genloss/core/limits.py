"""The ranges of the numbers of a config, by their names, which mean the same in every plug-in of genloss.

A plug-in's own checks say what its method needs (`__post_init__`); these say what no machine can carry out and what a
library would meet with a traceback. Numbers of other people's plug-ins are theirs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from genloss.core.errors import UserError

SEEDS = 2**63 - 1
WHOLE = (0, 10**9)  # of whole numbers that the table does not name
REAL = (-1e9, 1e9)
LEAST = 1e-12  # what is nearer to 0 is meant to be 0

LIMITS: dict[str, tuple[float, float]] = {
    # the run
    "rounds": (0, 10_000),
    "size": (1, 10**8),
    "seed": (0, SEEDS),
    "split_seed": (0, SEEDS),
    "school_seed": (0, SEEDS),
    "workers": (0, 4096),
    "devices": (1, 4096),
    "num_nodes": (1, 4096),
    # models
    "vocabulary": (2, 10**7),
    "context": (1, 10**6),
    "layers": (1, 1000),
    "width": (1, 10**5),
    "heads": (1, 10**4),
    "feed_forward": (1, 10**6),
    "initial_std": (LEAST, 100),
    "components": (1, 10**4),
    "iterations": (1, 10**6),
    # training
    "batch": (1, 10**6),
    "threads": (1, 1024),
    "tokens": (1, 10**13),
    "lr": (LEAST, 1e6),
    "step_size": (LEAST, 1e6),
    "group": (2, 10**5),
    "prompts": (1, 10**6),
    "passes": (1, 10**4),
    # records
    "n": (1, 10**8),
    "samples": (1, 10**5),
    "chunk": (1, 10**6),
    "max_tokens": (1, 10**6),
    "prompt_tokens": (1, 10**6),
    "temperature": (1e-6, 1000),  # logits are divided by it
    "Endpoint.temperature": (0, 1000),  # only sent
    "repetition_penalty": (0.01, 100),
    "truncation": (0, 100),
    "exponent": (0, 100),
    "c": (0.001, 100),
    "k": (1, 10**5),
    "ngram": (1, 1000),
    "permutations": (16, 4096),
    "power": (-10, 10),
    "value": (0, 1e6),
    # the lab: an array has chains x records x dimension numbers, and a covariance dimension squared
    "chains": (2, 10**7),
    "dimension": (1, 10**4),
    "length": (1, 10**6),
}
LEAST_OF = {"truncation": 0.01}  # 0 is off; a normal number is drawn until it lies within it, and that is to end


def check_limits(plugin: Any) -> None:
    """Refuse numbers of a dataclass of genloss that lie outside of their range (UserError)."""
    if not type(plugin).__module__.startswith("genloss."):
        return
    for f in dataclasses.fields(plugin):
        check_limit(f.name, getattr(plugin, f.name), type(plugin).__name__)


def check_limit(name: str, value: Any, owner: str = "") -> None:
    """Refuse `name=value` of the class `owner`, or a list of which one is such a number."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        general = LIMITS.get(name, WHOLE if isinstance(number, int) else REAL)
        low, high = LIMITS.get(f"{owner}.{name}", general)
        least = LEAST_OF.get(name, LEAST)
        if not math.isfinite(number) or not low <= number <= high:
            raise UserError(name, number, f"must lie in [{shown(low)}, {shown(high)}]")
        if 0 < abs(number) < least:  # so 0 is in the range
            raise UserError(name, number, f"must be 0, or {least:g} and more")


def shown(bound: float) -> str:
    """A bound as it is written; whole numbers have all their digits."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
