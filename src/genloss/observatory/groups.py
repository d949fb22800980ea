"""Arms over seeds: those that differ in their seed alone are one group.

groups = grouped(arms, differing, sweeps)     what a sweep's table, figure, page and MLflow's bands are made of
groups[0].band("distinct_2", 3)               (mean, low, high) over its seeds in round 3
groups[0].members[1].unfinished               "failed after round 1 of 5: CUDA out of memory"; '' of a finished arm
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.observatory.compare import interval
from genloss.observatory.quantities import quantity
from genloss.observatory.results import Arm, Rounds, rounds_of, sweep_entries, without_rounds
from genloss.observatory.samples import printable

SEED = "seed"
LEFT_OUT = "left out"  # of an arm whose numbers are damaged
PLAIN = ("mixing", "curation")  # keys whose values say by themselves what they are


class Band(NamedTuple):
    """A mean over seeds and the ends of its 95 % interval (Student's t); of one seed the ends are nan."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Member:
    """One arm."""

    name: str
    folder: Path
    values: Mapping[str, Any]  # by key, what tells it from the others; its seed among them if seeds differ
    rounds: Rounds
    unfinished: str  # why it has not all of its rounds, or what a user must know of it; '' if it is finished

    @property
    def seed(self) -> Any:
        return self.values.get(SEED)

    @cached_property
    def domain(self) -> str:
        """Its name; '' where the arm's config is not here."""
        params = self.folder / "params.yaml"
        return str((load_params(params).get("domain") or {}).get("name", "")) if params.is_file() else ""


@dataclass(frozen=True)
class Group:
    """Arms that differ in their seed alone."""

    name: str
    values: Mapping[str, Any]
    members: Sequence[Member]

    @property
    def last(self) -> int:
        """The last round that a member has; -1 without one."""
        return max((n for m in self.members for n in m.rounds), default=-1)

    @property
    def rounds(self) -> list[int]:
        return sorted({n for m in self.members for n in m.rounds})

    def numbers(self, metric: str, n: int) -> list[float]:
        """The metric in round n, one a member that has it."""
        return [m.rounds[n][metric] for m in self.members if metric in m.rounds.get(n, {})]

    def band(self, metric: str, n: int) -> Band | None:
        """Over the seeds that have the metric in round n; None if none has."""
        found = self.numbers(metric, n)
        return band(found) if found else None


def finished(groups: Iterable[Group], arms: Sequence[Arm], where: Path) -> list[Member]:
    """The arms that have a finished round. UserError, of a report in `where`, if none has."""
    members = [m for group in groups for m in group.members]
    if found := [m for m in members if m.rounds]:
        return found
    if damaged := [m.unfinished for m in members if m.unfinished.startswith(LEFT_OUT)]:
        raise UserError(str(where), None, damaged[0])
    raise without_rounds(arms[0][1]) if arms else UserError(str(where), None, "no arm to report on")


def unit(metric: str, groups: Iterable[Group]) -> str:
    """The unit of a metric in the groups that have it; '' if it is not known, or not one."""
    having = [m for group in groups for m in group.members if any(metric in values for values in m.rounds.values())]
    units = {quantity(metric, m.domain).unit for m in having}
    return units.pop() if len(units) == 1 else ""


def band(values: Sequence[float]) -> Band:
    """Mean and interval of at least one number. A number that is none (nan, inf) leaves none of them."""
    return Band(*interval(values))


def grouped(arms: Sequence[Arm], differing: Sequence[Mapping[str, Any]], sweeps: Iterable[Path] = ()) -> list[Group]:
    """The arms in groups of different names, in the order of their first member.

    differing: of each arm, by key, what tells it from the others. sweeps: folders whose notes say how their arms ended.
    UserError if two arms differ in nothing: a seed that counts twice makes a band narrower than it is.
    """
    noted = {(s / e["dir"]).resolve(): e for s in sweeps if (s / "sweep.json").is_file() for e in sweep_entries(s)}
    found: dict[str, list[Member]] = {}
    for i, ((name, folder), values) in enumerate(zip(arms, differing, strict=True)):
        try:
            rounds = rounds_of(folder)
            why = _unfinished(folder, rounds, noted.get(folder.resolve(), {}))
        except UserError as damage:  # of one arm: the others are shown
            if len(arms) == 1:
                raise
            rounds, why = {}, f"{LEFT_OUT}: {damage}"
        member = Member(name, folder, values, rounds, why)
        key = json.dumps(_without_seed(values), sort_keys=True, default=str) if values else f"{i} of its own"
        for other in found.setdefault(key, []):
            if other.seed == member.seed:
                raise UserError(str(folder), None, f"is the same arm as {other.folder}; name one of them")
        found[key].append(member)
    names = _names(list(found.values()))
    return [Group(name, _without_seed(m[0].values), m) for name, m in zip(names, found.values(), strict=True)]


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}


def _names(found: Sequence[Sequence[Member]]) -> list[str]:
    """What groups are called. Those that would have one name, since two sweeps called their arms by what differs in
    each alone, have with it what tells them from each other, or else a number."""
    names = [_name(members) for members in found]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        rest = [_without_seed(found[i][0].values) for i in same]
        keys = telling({key: [values.get(key) for values in rest] for values in rest for key in values})
        for i, values in zip(same, rest, strict=True):
            names[i] = " ".join([name, *(f"{key}={values[key]}" for key in keys if values.get(key) is not None)])
    return [f"{name} #{i + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def telling(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The keys of columns, one value an arm, which tell arms apart that those before them do not: what only follows
    from these, as most of a config does from its domain, would make a name long."""
    found: list[str] = []
    before: set[tuple[str, ...]] = {()}
    for key in columns:
        parts = set(zip(*([str(value) for value in columns[each]] for each in (*found, key)), strict=True))
        if len(parts) > len(before):
            found, before = [*found, key], parts
    return found


def _name(members: Sequence[Member]) -> str:
    """The arms' name without the seed, with which those of a sweep end; of others, whose names are those of their
    folders, what tells them from the rest."""
    first = members[0]
    if first.seed is None:
        return first.name
    name, swept, _ = first.name.rpartition(f"seed {first.seed}")
    values = _without_seed(first.values)
    told = [str(value) if key in PLAIN else f"{key}={value}" for key, value in values.items() if value is not None]
    return (name.strip() if swept else " ".join(told)) or "all"


def _unfinished(folder: Path, rounds: Rounds, note: Mapping[str, Any]) -> str:
    """'' of an arm that has all rounds of its config and did not fail."""
    params, state = folder / "params.yaml", note.get("state", "finished")
    last = int(load_params(params).get("rounds", 0)) if params.is_file() else max(rounds, default=0)
    missing = sorted(set(range(last + 1)) - set(rounds))
    if not missing and state != "failed":
        return ""
    said = state if state != "finished" else "unfinished"
    done = max((n for n in rounds if n < missing[0]), default=-1) if missing else last
    where = ", no finished round" if done < 0 else f" after round {done} of {last}"
    error = " ".join(str(note.get("error") or "").split())  # of a file, which others may have sent
    why = f": {printable(error)}" if error else ""
    return f"{said}{where}{why}"
