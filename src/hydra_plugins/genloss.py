"""Registers genloss's resolvers with every Hydra composition, also the one inside `dvc exp run -S`.

Hydra imports every module of the namespace package `hydra_plugins` before it composes; DVC has no other hook.
`${genloss.unroll:${rounds},${schedule}}` writes the loop as the map that DVC's `foreach` needs: DVC templating has no
arithmetic, so every round carries the name of the one before, and the overrides of that round alone.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from genloss.core.limits import LIMITS


def unroll(rounds: Any, schedule: Any = None) -> DictConfig:
    """{"01": {"prev": "00", "overrides": {...}}, ...} for rounds 1..`rounds`."""
    from genloss.core.schedule import each_round

    plan = OmegaConf.to_container(schedule, resolve=True) if OmegaConf.is_config(schedule) else (schedule or {})
    count = rounds if isinstance(rounds, int) and rounds <= LIMITS["rounds"][1] else 0
    plan = each_round(plan, count) if isinstance(plan, dict) else {}
    # what is no number, or too large, is left to the check of genloss.experiment, which names it
    overrides = {int(k): v for k, v in plan.items() if str(k).isdigit()}
    return OmegaConf.create(
        {f"{n:02d}": {"prev": f"{n - 1:02d}", "overrides": overrides.get(n, {})} for n in range(1, count + 1)}
    )


def golden(real: Any = 1, synthetic: Any = 1) -> float:
    """The constant loss weight of `real` fresh records beside `synthetic` ones that makes the limit's error smallest
    (He, Xu & Cheng, arXiv 2502.18049; genloss.theory.weight); of equally many 1/golden ratio = 0.618..."""
    if real == synthetic:
        return (5**0.5 - 1) / 2
    from genloss.theory import weight

    return weight(float(real), float(synthetic))


def own_tokenizer(path: Any = None, revision: Any = None) -> str:
    """The tokenizer of a domain whose model is the saved one at `path`: the model's own. bpe, which is trained, where
    the model is none."""
    if not isinstance(path, str):
        return "bpe"
    return f"{path}@{revision}" if revision and path.startswith("hub:") and "@" not in path else path


def project() -> str:
    """The project's root."""
    from genloss.core.places import project_root

    return str(project_root())


class MoreOptions(SearchPathPlugin):
    """Puts the folders of options that the project's genloss.yaml names behind its conf/, for `genloss run`, its help
    and completion, `genloss compose` and `dvc exp run -S` alike."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        from genloss.core.errors import UserError
        from genloss.core.places import conf_dir, more_conf_dirs

        try:
            ours = str(conf_dir())
        except UserError:  # there is none: another Hydra application
            return
        main = {item.path.removeprefix("file://") for item in search_path.get_path() if item.provider == "main"}
        for folder in more_conf_dirs() if ours in main else ():
            search_path.append("genloss.yaml", f"file://{folder}")


OmegaConf.register_new_resolver("genloss.project", project, replace=True)
OmegaConf.register_new_resolver("genloss.unroll", unroll, replace=True)
OmegaConf.register_new_resolver("genloss.golden", golden, replace=True)
OmegaConf.register_new_resolver("genloss.own_tokenizer", own_tokenizer, replace=True)
