"""MLflow: one run of means and bands for the arms of a sweep that differ in their seed alone.

MLflow draws no band over runs (mlflow issues 3762, 4277 and 13502, open), so a group of arms is a run of its own
beside those of its seeds, below the run of its sweep: `round/NAME` is the mean over seeds, under the name that the
seeds' runs have, so that one chart shows both; `round_low/NAME` and `round_high/NAME` are the ends of its 95 %
interval, in sections of their own below. Only metrics have them, no floors, counts or times: a page of MLflow has one
chart a name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genloss.core.hashes import sha256_json
from genloss.observatory.figures import COLOURS
from genloss.observatory.groups import Group
from genloss.observatory.results import is_metric
from genloss.observatory.tables import spans
from genloss.workflow.mlflow_run import (
    BATCH,
    DIR,
    KEY,
    NOTE,
    PROJECT,
    Run,
    alone,
    found,
    here,
    place,
    safe,
    sweep_id,
    value,
)

GROUP = "genloss.group"  # a sweep and the name of a group of its arms
KINDS = ("round", "round_low", "round_high")  # MLflow's page has a section each, by the alphabet
COLOUR = "mlflow.runColor"  # else a hash, which gives two lines of a chart one colour
WRITTEN = "mlflow.genloss.band"  # digest of what was written; the last thing that is


def write_bands(client: Any, experiment: str, parent: str, sweep: Path, groups: Sequence[Group]) -> None:
    """Write what MLflow lacks of the groups of a sweep that have several seeds with finished rounds. parent: id of the
    sweep's run."""
    for i, group in enumerate(groups):
        if sum(bool(m.rounds) for m in group.members) > 1:
            _write(client, experiment, parent, sweep, group, COLOURS[i % len(COLOURS)])


def named(sweep: Path, group: str) -> str:
    """What the tag GROUP says of a group of a sweep."""
    return safe(f"{sweep_id(sweep)}: {group}")


def _write(client: Any, experiment: str, parent: str, sweep: Path, group: Group, colour: str) -> None:
    from mlflow.entities import Metric, Param

    name = named(sweep, group.name)
    points = sorted(_points(group))
    seeds = spans(m.seed for m in group.members if m.rounds)
    about = "; ".join(f"{key}: {said}" for key, said in group.values.items())
    tags = {
        GROUP: name,
        DIR: place(sweep),
        PROJECT: here(),
        "mlflow.parentRunId": parent,
        "genloss.seeds": seeds,
        COLOUR: colour,
    }
    unfinished = "; ".join(f"{m.name}: {m.unfinished}" for m in group.members if m.unfinished)
    note = f"Mean and 95 % interval (Student's t) over seeds {seeds}. {about}"
    note += f". {unfinished}" if unfinished else ""
    tags |= {NOTE: value(note)}
    digest = sha256_json([group.name, points, note, colour])[:16]
    with alone(client.tracking_uri):
        there = found(client, experiment, GROUP, name)
        if there and there[0].data.tags.get(WRITTEN) == digest:
            return
        for old in there:  # MLflow forgets no point
            client.delete_run(old.info.run_id)
        # as those of its arms
        params = [Param(safe(key), value(said)) for key, said in group.values.items() if said is not None]
        run = client.create_run(experiment, run_name=f"{group.name} (mean of seeds)"[:KEY], tags=tags)
        made = Run(client, experiment, run)
        for at in range(0, len(params), 100):
            client.log_batch(made.run_id, params=params[at : at + 100])
        now = int(time.time() * 1000)
        for at in range(0, len(points), BATCH):
            some = [Metric(key, number, now, n) for key, n, number in points[at : at + BATCH]]
            client.log_batch(made.run_id, metrics=some)
        made.tag({WRITTEN: digest})
        made.state("FAILED" if unfinished else "FINISHED", unfinished)


def _points(group: Group) -> Iterator[tuple[str, int, float]]:
    """(name, round, number)."""
    known = {name for m in group.members for values in m.rounds.values() for name in values}
    for name in filter(is_metric, known):
        for n in group.rounds:
            if (found := group.band(name, n)) is None:
                continue
            for kind, number in zip(KINDS, found, strict=True):
                if math.isfinite(number):
                    yield safe(f"{kind}/{name}"), n, number
