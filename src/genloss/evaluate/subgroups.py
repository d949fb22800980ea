"""Loss of held-out real data by subgroup: a mean hides who is forgotten first.

    genloss run metrics=[heldout,subgroups]                                 # by how rare a record's words are
    genloss run metrics=[heldout,subgroups] metrics.subgroups.by=length
    genloss run metrics=[heldout,subgroups] metrics.subgroups.by=document "metrics.subgroups.pattern='^([0-9]{3})'"

`by` is rarity, length, or a column of the domain's test.parquet, such as `document`, the name that a corpus gives its
document: there `pattern` takes the part that names the group, a source, a topic or a decade."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import regex

from genloss.core import records
from genloss.core.capabilities import Documents, Scores, able
from genloss.core.contracts import Experiment
from genloss.core.errors import UserError, nearest, require
from genloss.evaluate import Evidence, Metric
from genloss.evaluate.diversity import words
from genloss.language.checkers import SECONDS

REST = "rest"  # of the records whose group is too small, or that the pattern does not match


def bands(values: np.ndarray, count: int) -> list[str]:
    """The names [n] of groups of equally many records, from the lowest values to the highest; equal ones stay together
    as far as their order allows."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return [f"band{1 + int(r * count // len(values))}" for r in rank]


@dataclass
class Subgroups(Metric):
    """group_loss/NAME (nats/token): loss of model n on the test records of a group, each from document start, its end
    included; group_records/NAME: how many. Groups of fewer than `least` records are taken together as `rest`, and so
    are all but the `groups` largest. group_loss_worst: the highest of them. Of rarity and length there are `bands`
    groups of equally many, band1 the most frequent words (mean log frequency in round 0's real records) or the shortest
    texts. The floor of these is their value in round 0."""

    panels = ("group_loss_worst",)
    by: str = "rarity"
    pattern: str | None = None  # of a column: a regular expression, whose first group names the subgroup
    bands: int = 4
    groups: int = 12
    least: int = 20
    max_records: int = 1024
    needs = (Documents, Scores)

    def __post_init__(self) -> None:
        require(2 <= self.bands <= 20, "bands", self.bands, "from 2 to 20")
        require(1 <= self.groups <= 100, "groups", self.groups, "from 1 to 100")
        require(self.least >= 1, "least", self.least, "at least 1")
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")
        try:
            compiled = regex.compile(self.pattern or "()")
        except regex.error as error:
            raise UserError("pattern", self.pattern, f"is no regular expression ({error})") from None
        require(compiled.groups >= 1, "pattern", self.pattern, "with a group, in brackets, that names the subgroup")

    def check(self, experiment: Experiment) -> None:
        if self.pattern and self.by in ("rarity", "length"):
            raise UserError("pattern", self.pattern, f"has no effect with by={self.by}; it is for a column")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        path = evidence.data / "test.parquet"
        test = records.read(path, rows=(0, min(self.max_records, records.count(path))))
        names = self._named(test, evidence)
        nats, tokens = able(evidence.domain, Scores).losses(
            evidence.model, evidence.data, test, evidence.runtime, evidence.report
        )
        found = {}
        for name in sorted(set(names)):
            here = np.array([each == name for each in names])
            found[f"group_loss/{name}"] = float(nats[here].sum() / tokens[here].sum())
            found[f"group_records/{name}"] = float(here.sum())
        worst = max(value for name, value in found.items() if name.startswith("group_loss/"))
        return found | {"group_loss_worst": worst}

    def _named(self, test: pa.Table, evidence: Evidence) -> list[str]:
        """The group [n] of each record."""
        texts = evidence.texts(test)
        if self.by == "length":
            return bands(np.array([len(text) for text in texts]), self.bands)
        if self.by == "rarity":
            counts = Counter(word for text in evidence.real_texts() for word in words(text))
            rare = [-np.mean([np.log1p(counts[word]) for word in words(text)] or [0.0]) for text in texts]
            return bands(np.array(rare), self.bands)
        if self.by not in test.column_names:
            known = nearest(self.by, ["rarity", "length", *test.column_names])
            raise UserError("metrics.subgroups.by", self.by, f"is no column of the test data; {known}")
        names = [self._part(str(value)) for value in test.column(self.by).to_pylist()]
        common = Counter(name for name in names if name != REST).most_common(self.groups)
        large = {name for name, count in common if count >= self.least}
        return [name if name in large else REST for name in names]

    def _part(self, value: str) -> str:
        """The group that a value names, as a word that metrics can have."""
        if self.pattern:
            try:
                match = regex.search(self.pattern, value, timeout=SECONDS)
            except TimeoutError:
                match = None
            value = (match.group(1) or "") if match else ""
        return "".join(c if c.isalnum() or c in "_-." else "_" for c in value)[:64] or REST
