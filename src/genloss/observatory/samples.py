"""What a round made, to be read: its records as text.

genloss samples runs/text-replace-none-s0-1a2b --round 3      # a few records of round 3, kept and rejected
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genloss.core import records
from genloss.core.errors import UserError
from genloss.observatory.results import without_rounds

OWN = ("id", "origin", "generation", "parents", "recipe", "score", "reason", records.FINISH, "document")  # no payload
TOLD = ("reason", "score", records.FINISH)  # before the text
MESSAGES = "messages"  # the column of conversations
LONGEST = 2000  # characters of a text that are shown


def samples(folder: Path, n: int, count: int) -> str:
    """The first `count` records of round n as text, with what became of each; in round 0 the real ones that it
    trains on; '' where records are no text."""
    round_folder = folder / "rounds" / f"{n:02d}"
    paths = [round_folder / "kept.parquet", round_folder / "rejected.parquet"] if n else [folder / "data/train.parquet"]
    shown = [line for path in paths if path.is_file() for line in _shown(path, count)]
    return "\n\n".join(shown) + "\n" if shown else ""


def _shown(path: Path, count: int) -> list[str]:
    schema = pq.read_schema(path)
    names = [f.name for f in schema if f.name not in OWN and (pa.types.is_string(f.type) or f.name == MESSAGES)]
    if not names:
        return []
    size = min(count, pq.read_metadata(path).num_rows)
    known = [name for name in ("id", *TOLD, *names) if name in schema.names]
    lines = []
    for row in records.read(path, known, (0, size)).to_pylist():
        said = [row["id"][:8], "real" if path.name == "train.parquet" else path.stem]
        said += [f"{name} {row[name]}" for name in TOLD if row.get(name) not in (None, "", "kept")]
        texts = [(f"{k}: " if len(names) > 1 else "") + printable(written(row[k])[:LONGEST]) for k in names if row[k]]
        lines.append("\n".join([f"-- {', '.join(said)}", *texts]))
    return lines


def written(value: Any) -> str:
    """A text, or messages a line each."""
    return value if isinstance(value, str) else "\n".join(f"{m['role']}: {m['content']}" for m in value)


def printable(text: str) -> str:
    """Text of a model, without what a terminal would obey."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text)


def show(folder: Path, n: int | None, count: int) -> int:
    """`genloss samples`: print records of round n, of the last one without it."""
    rounds = sorted(int(p.name) for p in (folder / "rounds").glob("[0-9]*") if (p / "manifest.json").is_file())
    if not rounds:
        raise without_rounds(folder)
    if n is not None and n not in rounds:
        raise UserError("--round", n, f"is not there; {folder} has rounds {rounds[0]} to {rounds[-1]}")
    if count < 1:
        raise UserError("--count", count, "must be at least 1")
    chosen = rounds[-1] if n is None else n
    text = samples(folder, chosen, count)
    if not text:
        raise UserError(
            str(folder), None, f"has no text in round {chosen}; `genloss report` shows its numbers, and pictures"
        )
    print(text, end="")
    return 0
