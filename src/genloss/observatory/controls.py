"""Arms as verdicts compare them: groups of seeds with their configs, and the group that each is held against.

found = compared(grouped(...))              those with a finished round and a config
control_of(found[1], found)                 the nearest that is trained on real records alone, or the one named
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError, nearest
from genloss.core.hashes import canonical
from genloss.core.places import load_params
from genloss.core.plugin import flatten, plain
from genloss.observatory import groups
from genloss.observatory.results import Rounds

VIEWS = ("runtime", "keep", "tracking", "dvc")  # keys of a config, and what is below them, that change no number


@dataclass(frozen=True)
class Group:
    """A group of genloss.observatory.groups, as the tests see it.

    known: its config by dotted keys, without what follows from the seed. family: the same for groups that differ in
    their size alone."""

    name: str
    known: Mapping[str, Any]
    seeds: Mapping[int, Rounds]
    arms: tuple[str, ...] = ()
    family: str = ""

    @property
    def domain(self) -> str:
        return str(self.known.get("domain.name"))

    @property
    def real(self) -> bool:
        """Whether it is trained on real records alone."""
        later = [values for rounds in self.seeds.values() for n, values in rounds.items() if n > 0]
        shares = [values["train_real_fraction"] for values in later if "train_real_fraction" in values]
        return all(s == 1 for s in shares) if shares else self.known.get("mixing.name") == "real_only"


def compared(found: Sequence[groups.Group]) -> list[Group]:
    """The groups that have a finished round and a config, with what of it does not follow from the seed: seeds of a
    group have one config then, which tells `_distance` and `family` how far two groups differ."""
    read = [
        (i, g, m, _config(m.folder))
        for i, g in enumerate(found)
        for m in g.members
        if m.rounds and (m.folder / "params.yaml").is_file()
    ]
    configs = [known for _, _, _, known in read]
    by_seed, by_size = _all(configs, "seed", _follows), _all(configs, "size", lambda value, size: value == size)
    made: dict[int, Group] = {}  # by the place of the group
    for at, group, member, known in read:
        rest = _marked(known, by_seed, "seed")
        before = made.get(at, Group(group.name, rest, {}, (), canonical(_marked(rest, by_size, "size"))))
        seeds = {**before.seeds, int(known["seed"]): member.rounds}
        made[at] = replace(before, seeds=seeds, arms=(*before.arms, member.name))
    return list(made.values())


def _all(configs: Sequence[Mapping[str, Any]], key: str, follows: Callable[[Any, Any], bool]) -> set[str]:
    """The keys whose values follow from that of a key, one that differs, wherever there is a value: a regime without a
    budget has no size of it."""
    if len({known.get(key) for known in configs}) < 2:
        return set()  # what is the same by chance
    pairs = [(other, value, known.get(key)) for known in configs for other, value in known.items() if value is not None]
    return {other for other, _, _ in pairs} - {other for other, value, by in pairs if not follows(value, by)}


def _marked(known: Mapping[str, Any], keys: Collection[str], cause: str) -> dict[str, Any]:
    """A config in which values that follow from a key are the name of that key: one with and one without stay two."""
    return {key: cause if key in keys and value is not None else value for key, value in known.items()}


def _config(folder: Path) -> dict[str, Any]:
    known = dict(flatten(plain(load_params(folder / "params.yaml"))))
    return {key: value for key, value in known.items() if key.partition(".")[0] not in VIEWS}


def _follows(value: Any, seed: Any) -> bool:
    """Whether a value is the seed, or a path of an arm with that seed."""
    return value == seed if not isinstance(value, str) else f"-s{seed}-" in value


def control_of(group: Group, found: Sequence[Group], chosen: str | None = None) -> Group | None:
    """The group of its domain that a group is compared with: itself, if it is a control; None if there is none.

    chosen: names the controls: the group that is called so, or that has an arm which is, or else those of the regime
    that is called so. None: those that are trained on real records alone. Of several it is the one whose config differs
    least. UserError if nothing is called so."""
    controls = [g for g in found if g.real]
    if chosen is not None:
        named = [g for g in found if chosen == g.name or chosen in g.arms]
        controls = named or [g for g in found if g.known.get("mixing.name") == chosen]
        if not controls:
            raise UserError("--control", chosen, f"unknown; {nearest(chosen, [g.name for g in found])}")
    if any(g is group for g in controls):
        return group
    own = [g for g in controls if g.domain == group.domain]
    return min(own, key=lambda g: _distance(g.known, group.known), default=None)


def _distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """In how many keys two configs differ; the regime, in which they must, does not count."""
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys() if not key.startswith("mixing."))
