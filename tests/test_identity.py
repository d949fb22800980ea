"""An arm's identity: options by name and fields, not by where a class lies; what changes no result is no part of it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

import genloss
from genloss.core.errors import UserError
from genloss.core.places import load_params
from genloss.core.plugin import named
from genloss.experiment import Experiment
from genloss.workflow.compose import compose
from genloss.workflow.identity import arm_id, arm_identity, label

COMPOSED = compose(["domain=reasoning", "curation=dedup", "metrics=[accuracy]"])


def test_a_class_that_moves_renames_no_arm() -> None:
    cfg = compose(["curation=dedup", "+schedule.1.recipe._target_=genloss.generate.sample.Sample"])
    moved = cfg.copy()
    for group in ("recipe", "model", "curation.dedup", "schedule.1.recipe"):
        target = OmegaConf.select(cfg, group)._target_
        assert target.startswith("genloss.")
        OmegaConf.update(moved, f"{group}._target_", f"genloss.elsewhere.{target.rpartition('.')[2]}")
    assert moved != cfg and arm_id(moved) == arm_id(cfg)
    renamed = cfg.copy()
    renamed.recipe._target_ += "s"
    assert arm_id(renamed) != arm_id(cfg)
    for target in ("mylab.recipes.Sample", "yourlab.recipes.Sample"):  # nobody keeps the names of others apart
        other = cfg.copy()
        other.recipe._target_ = target
        assert arm_identity(other)["recipe"]["_target_"] == target


def test_names_are_found_at_any_depth() -> None:
    config: dict[str, Any] = {
        "a": [{"_target_": "genloss.x.Y", "n": 1}],
        "b": {"_target_": "genlossy.x.Y"},
        "c": "genloss.x.Y",
    }
    assert named(config) == {"a": [{"_target_": "Y", "n": 1}], "b": {"_target_": "genlossy.x.Y"}, "c": "genloss.x.Y"}
    assert config["a"][0]["_target_"] == "genloss.x.Y"


def test_how_a_run_is_carried_out_is_no_part_of_what_it_is() -> None:
    cfg = compose()
    for override in ("runtime.workers=7", "tracking=none", "+trainer.logger={_target_: some.Logger}"):
        other = compose([override])
        assert other != cfg and arm_id(other) == arm_id(cfg), override
        assert "logger" not in arm_identity(other)["trainer"]
    assert arm_id(compose(["trainer.steps=7"])) != arm_id(cfg)


def test_nor_is_it_in_the_schedule() -> None:
    cfg = compose()
    for override in ("runtime.workers=7", "tracking.name=none", "trainer.logger.csv._target_=some.Logger"):
        assert arm_id(compose([f"+schedule.2.{override}"])) == arm_id(cfg), override
    later = compose(["+schedule.2.trainer.steps=7"])
    assert arm_id(later) != arm_id(cfg)
    assert arm_id(compose(["+schedule.2.trainer.steps=7", "+schedule.2.runtime.workers=7"])) == arm_id(later)


def test_no_two_options_of_a_group_share_a_name() -> None:
    """A name is an identity only if it is the only one among what the same key may hold: the heirs of a base class."""
    heirs = defaultdict(set)
    for module in pkgutil.walk_packages(genloss.__path__, "genloss."):
        if module.name == "genloss.__main__":
            continue
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if not (cls.__module__.startswith("genloss.") and dataclasses.is_dataclass(cls)):
                continue
            for base in cls.__mro__[1:]:
                if base.__module__.startswith("genloss."):
                    heirs[base].add(cls)
    assert {"Curator", "Recipe", "Metric", "Corpus"} <= {base.__name__ for base in heirs}
    for base, classes in heirs.items():
        names = sorted(cls.__name__ for cls in classes)
        assert len(set(names)) == len(names), (base, names)


NAMED = ("domain", "mixing", "recipe")
CHAINS = {"curation": "curation.dedup", "metrics": "metrics.accuracy", "domain.tasks": "domain.tasks.chain_sum"}
NAMES = ("..", "../../evil", "a/b", "a\n", "", "a b", "C" * 64, "C" * 65)


@settings(max_examples=50)
@given(st.sampled_from(NAMES) | st.text(max_size=9), st.sampled_from([*NAMED, *CHAINS]))
def test_a_name_is_one_part_of_a_path_or_it_is_refused(name: str, group: str) -> None:
    """Each name that becomes a folder, a column or a tag: `name` of a group, and the keys of chains."""
    cfg = COMPOSED.copy()
    if group in NAMED:
        cfg[group].name = name
    else:
        OmegaConf.select(cfg, group)[name] = OmegaConf.select(cfg, CHAINS[group])
    assert _stays(cfg, name)


def _stays(cfg: DictConfig, name: str) -> bool:
    """Whether the name was refused, or cannot lead anywhere else."""
    try:
        Experiment(cfg)
    except UserError as error:
        return "must be a name" in str(error) and "\n" not in str(error)
    folder = Path("runs") / label(cfg)
    return re.fullmatch(r"[\w.-]+", name, re.ASCII) is not None and folder.parts == ("runs", label(cfg))


def test_a_long_chain_has_a_folder() -> None:
    cfg = COMPOSED.copy()
    cfg.curation = {f"{'long' * 10}{i}": cfg.curation.dedup for i in range(9)}
    assert len(f"{label(cfg)}-{arm_id(cfg)}") < 200


def test_a_schedule_of_several_rounds_is_that_of_each() -> None:
    several = compose(
        ["rounds=4", "++schedule.from2.recipe={temperature: 0.7, top_k: 9}", "++schedule.3.recipe.top_k=5"]
    )
    single = compose(
        ["rounds=4", *(f"++schedule.{n}.recipe={{temperature: 0.7, top_k: {5 if n == 3 else 9}}}" for n in (2, 3, 4))]
    )
    assert arm_id(several) == arm_id(single) and several.dvc == single.dvc
    two = compose(
        ["rounds=4", "++schedule.from1to2.recipe.temperature=0.7", "++schedule.from2to4.recipe.temperature=0.5"]
    )
    assert {n: o.recipe.temperature for n, o in two.schedule.items()} == {"1": 0.7, "2": 0.5, "3": 0.5, "4": 0.5}
    for wrong in ("from0to2", "from3to2", "from3to5", "from", "from2to"):
        with pytest.raises(UserError, match=rf"schedule.{wrong}: must be .* from2to4"):
            Experiment(compose(["rounds=4", f"++schedule.{wrong}.recipe.temperature=0.7"]))


def test_a_range_that_dvc_composed_is_read_as_its_rounds(tmp_path: Path) -> None:
    """`dvc exp run -S` writes params.yaml itself."""
    cfg = compose(["rounds=3", "++schedule.from2to3.recipe.temperature=0.7"])
    raw = compose(["rounds=3", "++schedule.from2to3.recipe.temperature=0.7"], raw=True)
    path = tmp_path / "params.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.masked_copy(raw, [str(k) for k in raw if k != "hydra"]), resolve=True))
    assert arm_id(load_params(path)) == arm_id(cfg) and load_params(path).dvc == cfg.dvc
