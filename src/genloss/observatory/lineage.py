"""Lineage: where a record comes from, what became of it, and which rounds learned from it.

    genloss trace runs/text-replace-none-s0-1a2b 3f9c        # a record by its id, or the beginning of it

The records that it was made from are shown below it, indented, up to ten steps back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from genloss.core import records
from genloss.core.errors import UserError
from genloss.observatory.results import without_rounds

DEPTH = 10  # steps back
LONGEST = 300  # characters of a text that are shown


def trace(folder: Path, record: str) -> int:
    """`genloss trace`: print the lineage of the record of a run directory whose id begins with `record`."""
    if not (folder / "rounds").is_dir():
        raise without_rounds(folder)
    found = find(folder, record)
    if found is None:
        raise UserError("record", record, f"no record of {folder} has an id that begins so")
    _show(folder, *found, depth=0)
    return 0


def find(folder: Path, record: str) -> tuple[Path, dict[str, Any]] | None:
    """The first file of the run that holds a record whose id begins with `record`, and the record as a row; UserError
    if several of its ids do."""
    files = [
        *sorted(folder.glob("rounds/*/kept.parquet")),
        *sorted(folder.glob("rounds/*/rejected.parquet")),
        *sorted(folder.glob("rounds/*/generated.parquet")),
        *sorted(folder.glob("data/*.parquet")),
    ]
    for path in files:
        table = records.read(path)
        hits = table.filter(pc.starts_with(table["id"], record))
        if len(hits) > 1 and len(set(hits["id"].to_pylist())) > 1:
            raise UserError("record", record, f"fits {len(hits)} ids in {path.name}; give more digits")
        if len(hits):
            return path, hits.to_pylist()[0]
    return None


def learned(folder: Path, record: str) -> list[int]:
    """The rounds whose training set has the record of this id."""
    shards = sorted(folder.glob("rounds/*/train/*.parquet"))
    found = {
        int(shard.parent.parent.name)
        for shard in shards
        if pc.any(pc.equal(records.read(shard, columns=["id"])["id"], record)).as_py()
    }
    return sorted(found)


def _show(folder: Path, path: Path, row: dict[str, Any], depth: int) -> None:
    """Print a record, then what it was made from. Model output is data: shown quoted, control characters escaped."""
    pad = "    " * depth
    made = f"made in round {row['generation']} by model {row['generation'] - 1}"
    origin = "real data" if row["origin"] == records.REAL else made
    print(f"{pad}{row['id']}  {origin}, recipe {row['recipe']}, in {path.relative_to(folder)}")
    if row.get("reason"):
        score = "" if row.get("score") is None else f", score {row['score']:.4g}"
        print(f"{pad}    decision: {row['reason']}{score}")
    print(f"{pad}    trained on in rounds: {', '.join(map(str, learned(folder, row['id']))) or 'none'}")
    for key in ("text", "prompt", "response"):
        if row.get(key):
            print(f"{pad}    {key}: {row[key][:LONGEST]!r}")
    for message in row.get("messages") or ():
        print(f"{pad}    {message['role']}: {message['content'][:LONGEST]!r}")
    for parent in row["parents"]:
        above = find(folder, parent)
        if above and depth < DEPTH:
            print(f"{pad}    from:")
            _show(folder, *above, depth + 1)
