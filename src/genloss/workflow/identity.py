"""What an arm is called: the hash of its resolved config, its folder's label, and what tells the arms of a sweep apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genloss.core.hashes import canonical, sha256_text
from genloss.core.plugin import flatten, plain
from genloss.experiment import OPERATIONAL


def arm_identity(cfg: DictConfig) -> dict[str, Any]:
    return {k: plain(v) for k, v in cfg.items() if k not in OPERATIONAL}  # type: ignore[misc]


def arm_id(cfg: DictConfig) -> str:
    """16 hex digits that name the resolved config without operational keys."""
    return sha256_text(canonical(arm_identity(cfg)))[:16]


def label(cfg: DictConfig) -> str:
    """A readable name for an arm's folder: domain, regime, curation, seed. The hash is what identifies it."""
    curation = "+".join(str(k) for k in cfg.curation) or "none"
    parts = [cfg.domain.name, cfg.mixing.name, curation, f"s{cfg.seed}"]
    if cfg.control != "none":
        parts.insert(3, f"{cfg.control}-control")
    return "-".join(str(p) for p in parts)


def differences(configs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """For each config, the flattened keys in which the configs differ (names in place of whole groups)."""
    flat = [dict(flatten(arm_identity(c))) for c in configs]
    keys = sorted({k for f in flat for k in f})
    varying = [k for k in keys if len({canonical(f.get(k)) for f in flat}) > 1]
    return [{k: f.get(k) for k in varying} for f in flat]


CHOICES = ("name", "_target_", "arch")  # keys that say which option of a group was chosen, the plainest first
CHAINS = ("curation", "metrics", "domain.tasks", "domain.probes")  # groups of several options


def names_of(configs: Sequence[DictConfig]) -> list[str]:
    """What tells the arms of a sweep apart: the values that differ, short. What follows from a choice that is named already, or
    from the seed (path: runs/critic-*-s${seed}-*), is left out."""
    varying = differences(configs)
    values = {key: [v[key] for v in varying] for key in varying[0]}
    chosen: dict[str, list[str]] = {}  # by the group: a text for each arm
    for group in CHAINS:
        nodes = [OmegaConf.select(cfg, group) or {} for cfg in configs]
        texts = ["+".join(map(str, node)) or "none" for node in nodes]
        if len(set(texts)) > 1:
            chosen[group] = texts
    for last in CHOICES:
        for key in values:
            group, _, end = key.rpartition(".")
            if group and end == last and not any(f"{group}.".startswith(f"{g}.") for g in chosen):
                chosen[group] = [str(v).rpartition(".")[2] if last == "_target_" else str(v) for v in values[key]]
    seeds = [str(cfg.seed) for cfg in configs]
    known = {"": seeds} | {group: list(zip(texts, seeds, strict=True)) for group, texts in chosen.items()}

    def follows(key: str, of: Sequence[Any]) -> bool:
        texts = [canonical(v) for v in of]
        return any(
            (not group or key.startswith(f"{group}.") or key == group)
            and 1 < len(set(by)) == len(set(zip(by, texts, strict=True)))
            for group, by in known.items()
        )

    rest = {
        k: v for k, v in values.items() if k != "seed" and not follows(k, v) and not any(isinstance(x, dict) for x in v)
    }
    first = {
        "mixing": [cfg.mixing.name for cfg in configs],
        "curation": ["+".join(map(str, cfg.curation)) or "none" for cfg in configs],
    }
    columns = [
        texts for group, texts in first.items() if group in chosen or any(k.startswith(f"{group}.") for k in rest)
    ]
    columns += [texts for group, texts in chosen.items() if group not in first]
    for key, each in rest.items():
        shown = ["+".join(map(str, v)) if isinstance(v, list) else v for v in each]
        columns.append([f"{key.rpartition('.')[2]}={v}" for v in shown])
    if "seed" in values:
        columns.append([f"seed {v}" for v in values["seed"]])
    names = [" ".join(parts) for parts in zip(*columns, strict=True)] if columns else [label(cfg) for cfg in configs]
    if len(set(names)) == len(names):
        return names
    return [f"{name} {arm_id(cfg)[:6]}" for name, cfg in zip(names, configs, strict=True)]
