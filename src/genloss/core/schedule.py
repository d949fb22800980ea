"""`schedule`: which keys of the config single rounds have of their own.

++schedule.3.recipe.temperature=0.7             # round 3
++schedule.from3to5.recipe.temperature=0.7      # rounds 3, 4 and 5
++schedule.from3.recipe.temperature=0.7         # round 3 and all after it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

RANGE = re.compile(r"from(\d+)(?:to(\d+))?")


def each_round(schedule: Mapping[Any, Any], rounds: int) -> dict[Any, Any]:
    """The same schedule round by round: what it says of one round comes before what it says of several, and of those
    the later entry holds. What names no round, or rounds that are not there, stays, to be refused by its name."""
    spans, rest = [], {}
    for key, overrides in schedule.items():
        found = RANGE.fullmatch(str(key))
        first, last = (int(found[1]), int(found[2] or rounds)) if found else (0, 0)
        if 1 <= first <= last <= rounds and (overrides is None or isinstance(overrides, Mapping)):
            spans.append((range(first, last + 1), overrides or {}))
        else:
            rest[key] = overrides
    made: dict[Any, Any] = {}
    for span, overrides in spans:
        for n in span:
            made[str(n)] = _merged(made.get(str(n), {}), overrides)
    single = {str(key): key for key in rest}
    return {
        **{single.get(n, n): _merged(more, rest.pop(single[n])) if n in single else more for n, more in made.items()},
        **rest,
    }


def _merged(first: Any, second: Any) -> Any:
    if not isinstance(second, Mapping | None):
        return second  # no overrides: refused by its name
    return OmegaConf.to_container(OmegaConf.merge(first, dict(second or {})))
