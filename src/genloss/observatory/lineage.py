"""`genloss trace DIR RECORD`: where a record comes from, what became of it, and which rounds learned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from genloss.core import records
from genloss.core.errors import UserError


def find(folder: Path, record: str) -> tuple[Path, dict[str, Any]] | None:
    """The first file of the run that holds a record whose id begins with `record`, and the record."""
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


def trace(folder: Path, record: str) -> int:
    if not (folder / "rounds").is_dir():
        raise UserError(str(folder), None, "is no run directory (no rounds/)")
    found = find(folder, record)
    if found is None:
        raise UserError("record", record, f"no record of {folder} has an id that begins so")
    _show(folder, *found, depth=0)
    return 0


def _show(folder: Path, path: Path, row: dict[str, Any], depth: int) -> None:
    pad = "    " * depth
    made = (
        "real data"
        if row["origin"] == records.REAL
        else f"made in round {row['generation']} by model {row['generation'] - 1}"
    )
    print(f"{pad}{row['id']}  {made}, recipe {row['recipe']}, in {path.relative_to(folder)}")
    if row.get("reason"):
        score = "" if row.get("score") is None else f", score {row['score']:.4g}"
        print(f"{pad}    verdict: {row['reason']}{score}")
    used = []
    for shard in sorted(folder.glob("rounds/*/train/*.parquet")):
        if pc.any(pc.equal(records.read(shard, columns=["id"])["id"], row["id"])).as_py():
            used.append(int(shard.parent.parent.name))
    print(f"{pad}    trained on in rounds: {', '.join(map(str, sorted(set(used)))) or 'none'}")
    for key in ("text", "prompt", "response"):
        if row.get(key):
            print(
                f"{pad}    {key}: {row[key][:300]!r}"
            )  # model output is data: shown quoted, control characters escaped
    for parent in row["parents"]:
        above = find(folder, parent)
        if above and depth < 10:
            print(f"{pad}    from:")
            _show(folder, *above, depth + 1)
