"""Domains: one folder a world. `RecordDomain` is the base of those whose records are chosen one by one.

    @dataclass
    class Mine(RecordDomain): ...        # prepare, config, and its capabilities (genloss.core.capabilities)

A new domain is one package with a dataclass derived from it, its models and trainers, and `conf/domain/NAME.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from genloss.core.contracts import Curated, Domain
from genloss.curate import Context, Curator, curate
from genloss.mix import Regime
from genloss.mix.shards import record_shards


class RecordDomain(Domain):
    """Records are curated and mixed one by one."""

    def curate(self, table: pa.Table, curators: Mapping[str, Curator], control: str, context: Context) -> Curated:
        return curate(table, curators, control, context)

    def shards(
        self, regime: Regime, n: int, sources: Mapping[str, Path], out: Path, rng: np.random.Generator
    ) -> dict[str, Any]:
        return record_shards(regime, n, sources, out, rng)
