"""What an arm is called: the hash of its resolved config, its folder's label, and what tells the arms of a sweep
apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genloss.core.errors import UserError
from genloss.core.hashes import canonical, sha256_text
from genloss.core.places import load_params
from genloss.core.plugin import flatten, named, plain, without
from genloss.experiment import OPERATIONAL
from genloss.observatory.groups import telling
from genloss.observatory.results import Arm

LABEL = 150  # characters of a label: a folder's name has at most 255, its hash included
TITLE = 120  # characters of a title


def arm_identity(cfg: DictConfig) -> dict[str, Any]:
    """What an arm is: its config as plain values, options by name, without the keys that change no result."""
    identity: dict[str, Any] = plain(cfg)
    rounds = {n: without(overrides or {}, OPERATIONAL) for n, overrides in (identity.pop("schedule", {}) or {}).items()}
    schedule = {str(n): overrides for n, overrides in rounds.items() if overrides}
    return named({**without(identity, OPERATIONAL), "schedule": schedule})


SCHEME = 2  # of `arm_identity`; goes up when the same config gets another name


def arm_id(cfg: DictConfig) -> str:
    """16 hex digits that name the resolved config without operational keys."""
    return sha256_text(canonical(arm_identity(cfg)))[:16]


def label(cfg: DictConfig) -> str:
    """A readable name for an arm's folder: domain, regime, curation, seed. The hash is what identifies it."""
    parts = [cfg.domain.name, cfg.mixing.name, option(cfg, "curation"), f"s{cfg.seed}"]
    if cfg.control != "none":
        parts.insert(3, f"{cfg.control}-control")
    return "-".join(str(p) for p in parts)[:LABEL]


def option(cfg: DictConfig, group: str) -> str:
    """The option of a group, as a word: "replace", "dedup+rules", "none"."""
    node = OmegaConf.select(cfg, group)
    if group in CHAINS:
        return "+".join(map(str, node or {})) or "none"
    found = [str(node[key]) for key in CHOICES if node is not None and node.get(key) is not None]
    return found[0].rpartition(".")[2] if found else "none"


LABELLED = ("domain.name", "mixing", "curation", "control", "seed")  # what a label says


def title(cfg: DictConfig) -> str:
    """What a run is called that stands among others of its project: its label, and what differs from the defaults of
    its domain."""
    from genloss.workflow.compose import compose

    try:
        usual = compose([f"domain={cfg.domain.name}"])
    except UserError:  # a domain of the user's that is no option
        return label(cfg)
    before, after = differences([usual, cfg])
    whole = {(canonical(before[k]), canonical(after[k])) for k in ("size", "rounds", "seed") if k in after}
    rest = {
        key: value
        for key, value in after.items()
        if not any(_within(key, known) for known in LABELLED)
        and not ("." in key and (canonical(before[key]), canonical(value)) in whole)  # follows: n: ${size}
    }
    said = [f"{key.rpartition('.')[2]}={_text(value)}" for key, value in rest.items() if value is not None]
    text = " ".join([label(cfg), *said])
    return text if len(text) <= TITLE else f"{text[: TITLE - 9]} … {arm_id(cfg)[:6]}"


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def differences(configs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """For each config, the flattened keys in which the configs differ (names in place of whole groups)."""
    flat = [dict(flatten(arm_identity(c))) for c in configs]
    keys = sorted({k for f in flat for k in f})
    varying = [k for k in keys if len({canonical(f.get(k)) for f in flat}) > 1]
    return [{k: f.get(k) for k in varying} for f in flat]


CHOICES = ("name", "_target_", "arch")  # keys that say which option of a group was chosen, the plainest first
CHAINS = ("curation", "metrics", "domain.tasks", "domain.probes")  # groups of several options
FIRST = ("mixing", "curation")  # what a name begins with, if it differs

Column = list[Any]  # one value for each arm
Columns = dict[str, Column]  # by key, or by group


def varied(configs: Sequence[DictConfig]) -> tuple[Columns, Columns]:
    """In what arms differ: (groups by the option that was chosen, single values by their key). The first groups are
    mixing and curation, also where only a value below them differs; the last value is the seed.

    A value that follows from a choice, from the seed (path: runs/critic-*-s${seed}-*), or from the size (n: ${size}) is
    left out.
    """
    differ = differences(configs)
    values = {key: [arm[key] for arm in differ] for key in differ[0]}
    chosen = _chains(configs)
    chosen |= _options(values, chosen)
    seeds = [cfg.seed for cfg in configs]
    whole = [values[key] for key in ("size", "rounds") if key in values]
    rest = {key: column for key, column in values.items() if _is_news(key, column, chosen, seeds, whole)}
    first = [group for group in FIRST if group in chosen or any(_within(key, group) for key in rest)]
    groups = {group: [option(cfg, group) for cfg in configs] for group in first}
    others = sorted((group for group in chosen if group not in FIRST), key=lambda group: group != "domain")
    groups |= {group: chosen[group] for group in others}  # what follows from the domain comes after it
    return groups, rest | ({"seed": seeds} if "seed" in values else {})


def told(configs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """Of each arm, by key, what tells it from the others."""
    if not configs:
        return []
    groups, values = varied(configs)
    columns = groups | values
    return [{key: column[i] for key, column in columns.items()} for i in range(len(configs))]


def differing(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Of each arm, by key, what tells it from the others; nothing of one whose config is not here."""
    there = [(folder / "params.yaml").is_file() for _, folder in arms]
    known = iter(
        told(
            [load_params(folder / "params.yaml") for (_, folder), is_there in zip(arms, there, strict=True) if is_there]
        )
    )
    return [next(known) if is_there else {} for is_there in there]


def names_of(configs: Sequence[DictConfig]) -> list[str]:
    """What tells arms apart, short: the options that were chosen, then the values that differ and do not follow from
    these, then the seed."""
    groups, values = varied(configs)
    needed = {*FIRST, *telling({key: column for key, column in (groups | values).items() if key != "seed"})}
    columns = [column for group, column in groups.items() if group in needed]
    for key in [key for key in values if key in needed or key == "seed"]:
        column = values[key]
        before = "seed " if key == "seed" else f"{key.rpartition('.')[2]}="
        columns.append(["" if value is None else f"{before}{_text(value)}" for value in column])
    if not columns:
        return [label(cfg) for cfg in configs]
    names = [" ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]
    if len(set(names)) == len(names):
        return names
    return [f"{name} {arm_id(cfg)[:6]}" for name, cfg in zip(names, configs, strict=True)]


def _chains(configs: Sequence[DictConfig]) -> Columns:
    """The groups of several options in which the arms differ: "dedup+rules"."""
    columns = {group: [option(cfg, group) for cfg in configs] for group in CHAINS}
    return {group: column for group, column in columns.items() if len(set(column)) > 1}


def _options(values: Columns, chains: Columns) -> Columns:
    """The other groups in which the arms differ, by the name of the option; a plainer name comes before a class."""
    found: Columns = {}
    for choice in CHOICES:
        for key, column in values.items():
            group, _, last = key.rpartition(".")
            if group and last == choice and not any(_within(group, other) for other in (*chains, *found)):
                found[group] = [
                    "none" if value is None else str(value).rpartition(".")[2] if choice == "_target_" else str(value)
                    for value in column
                ]
    return found


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _is_news(key: str, column: Column, chosen: Columns, seeds: Column, whole: Sequence[Column]) -> bool:
    """Whether a key tells something that neither the seed, nor size or rounds (`whole`), nor a chosen option of its
    group tells already."""
    if key == "seed" or any(isinstance(value, dict) for value in column):
        return False
    by_seed = all(value is None or _says(value, seed) for value, seed in zip(column, seeds, strict=True))
    if (by_seed and _follows(column, seeds)) or ("." in key and any(_repeats(column, other) for other in whole)):
        return False
    return not any(
        _within(key, group) and _follows(column, list(zip(options, seeds, strict=True)) if by_seed else options)
        for group, options in chosen.items()
    )


def _says(value: Any, seed: int) -> bool:
    """Whether a value is the seed, or a text with it (a path of an arm): only then does it follow from the seed. The
    size of arms with some seeds, in one of two sweeps, is a function of the seed too, and does not."""
    if isinstance(value, bool):
        return False
    return value == seed or (isinstance(value, str) and bool(re.search(rf"(?<!\d){seed}(?!\d)", value)))


def _repeats(column: Column, other: Column) -> bool:
    """Whether a key has the value of another one in every arm that has it."""
    return all(value is None or value == first for value, first in zip(column, other, strict=True))


def _follows(column: Column, cause: Column) -> bool:
    """Whether a column is a function of another, one that differs between arms."""
    pairs = {(by, canonical(value)) for by, value in zip(cause, column, strict=True)}
    return 1 < len(set(cause)) == len(pairs)
