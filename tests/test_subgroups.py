"""Loss by subgroup: the groups partition the records, and together they are the loss on all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Trained
from genloss.core import records
from genloss.core.errors import UserError
from genloss.evaluate import Evidence
from genloss.evaluate.loss import HeldOut
from genloss.evaluate.subgroups import Subgroups, bands


def of(trained: Trained) -> Evidence:
    return Evidence(trained.domain, 0, 7, 48, 48, trained.data, trained.llama, trained.llama, None)


def test_bands_are_of_equal_size() -> None:
    assert bands(np.array([5, 1, 9, 3]), 2) == ["band2", "band1", "band2", "band1"]
    assert bands(np.arange(8)[::-1], 4) == [f"band{i}" for i in (4, 4, 3, 3, 2, 2, 1, 1)]


@pytest.mark.parametrize("by", ["rarity", "length", "document"])
def test_groups_together_are_the_whole(trained: Trained, by: str) -> None:
    found = Subgroups(by=by, least=1, groups=3).measure(of(trained))
    names = [name.removeprefix("group_loss/") for name in found if name.startswith("group_loss/")]
    whole = HeldOut().measure(of(trained))
    assert sum(found[f"group_records/{name}"] for name in names) == records.count(trained.data / "test.parquet")
    losses = [found[f"group_loss/{name}"] for name in names]
    assert min(losses) <= whole["heldout_loss"] <= max(losses) == found["group_loss_worst"]


def test_a_pattern_names_the_groups(trained: Trained, tmp_path: Path) -> None:
    table = records.read(trained.data / "test.parquet")
    names = [f"{('1790', '1985')[i % 2]}-{'<b>' if i % 2 else 'x'}" for i in range(len(table))]
    at = table.column_names.index("document")
    for path in trained.data.iterdir():
        if path.name != "test.parquet":
            (tmp_path / path.name).symlink_to(path.absolute())
    records.write(table.set_column(at, "document", [names]), tmp_path / "test.parquet")
    evidence = replace(of(trained), data=tmp_path)
    found = Subgroups(by="document", pattern=r"^(\d{3})", least=1).measure(evidence)
    assert {name for name in found if name.startswith("group_loss/")} == {"group_loss/179", "group_loss/198"}
    whole = Subgroups(by="document", least=1).measure(evidence)
    assert "group_loss/1985-_b_" in whole  # markup does not become part of a name
    small = Subgroups(by="document", pattern=r"^(\d{3})", least=10**6).measure(evidence)
    assert set(small) == {"group_loss/rest", "group_records/rest", "group_loss_worst"}


def test_what_cannot_be_grouped_is_refused(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"by=documen: is no column of the test data; did you mean document\?"):
        Subgroups(by="documen").measure(of(trained))
    with pytest.raises(UserError, match=r"pattern=.*: is no regular expression"):
        Subgroups(by="document", pattern="(")
    with pytest.raises(UserError, match="pattern=a: must be with a group"):
        Subgroups(by="document", pattern="a")
