"""What a page shows beside metrics, read from the files of finished rounds.

composition(folder, 3)          {0: 512, 1: 256, 2: 256}: records of round 3's training set by their generation
costs(folder)                   {"generate": 12.4, "train": 80.1}: seconds of all rounds by stage
side_by_side(groups, rounds)    the same prompt over rounds and arms, with loops, copies and lost words marked
word_counts(groups)             how many different words occur once, twice, 3 or 4 times ... in generated and real text

Texts of models are data: they are cut to LONGEST characters, and what a terminal or a browser would obey is replaced.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.hashes import sha256_text
from genloss.core.rundir import round_name
from genloss.core.words import standing, terms
from genloss.observatory.groups import Group, Member
from genloss.observatory.results import manifest
from genloss.observatory.samples import MESSAGES, OWN, printable, written

LONGEST = 600  # characters of a text that are shown
PROMPTS = 6  # that are shown side by side
READ, BYTES = 2048, 1 << 25  # records of a file that are looked at, and about how many bytes
ACROSS = 12  # arms side by side
COPIED = 8  # words in a row that also stand in a real training record
LOOP = re.compile(r"(?P<a>.{2,60}?)(?P=a){2,}", re.DOTALL)  # characters three times or more in a row, anywhere
SHORTEST = 12  # characters of a loop, together
BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, None))  # how often a word occurs


def stages(folder: Path, n: int) -> dict[str, Any]:
    """What a finished round's manifest says of its stages; {} of one that is damaged or of another time."""
    try:
        return dict(manifest(folder, n)["stages"])
    except UserError:
        return {}


def composition(folder: Path, n: int) -> dict[int, int]:
    """Records of a round's training set by their generation; 0: real. {} where that is not known."""
    found: Counter[int] = Counter()
    try:
        for shard in stages(folder, n)["mix"]["result"]["shards"]:
            found[int(shard["generation"])] += int(shard["realised"])
    except (KeyError, TypeError, ValueError):  # no such stage, or of another time
        return {}
    return dict(found)


def costs(member: Member) -> dict[str, float]:
    """Seconds that the stages of all rounds took to compute, also those that came from the store."""
    found: dict[str, float] = {}
    for n in member.rounds:
        for name, stage in stages(member.folder, n).items():
            seconds = stage.get("seconds")
            found[name] = found.get(name, 0.0) + (seconds if isinstance(seconds, int | float) else 0.0)
    return found


# -- texts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One text of one arm and round: pieces, each with its marks ("loop", "copy", "lost"); what became of it."""

    pieces: Sequence[tuple[str, str]]
    said: str


@dataclass(frozen=True)
class Prompt:
    """A row of texts that continue one prompt, or, where recipes have none, that stand at one place of their files."""

    text: str
    cells: Mapping[tuple[int, int], Cell]  # by (index of the group, round)


def texts(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The first READ records of a file as rows, or BYTES of them, and the name of the column with their text; ([], '')
    of a file without texts, or a damaged one."""
    try:
        now = path.stat()
    except OSError:
        return [], ""
    return _texts(path, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=4)  # files of up to BYTES each, which the next question is about
def _texts(path: Path, changed: int, size_then: int) -> tuple[list[dict[str, Any]], str]:
    """`texts` of a file as it was then."""
    try:
        schema = pq.read_schema(path)
        names = [f.name for f in schema if f.name not in OWN and (pa.types.is_string(f.type) or f.name == MESSAGES)]
        if not names:
            return [], ""
        known = [name for name in ("id", "parents", *names, records.FINISH) if name in schema.names]
        rows: list[dict[str, Any]] = []
        size = 0
        for part in records.batches(path, known):
            rows += part.to_pylist()
            size += part.nbytes
            if len(rows) >= READ or size >= BYTES:
                break
    except (OSError, pa.ArrowException, UserError):
        return [], ""
    column = next((name for name in ("response", "text") if name in names), names[-1])
    return [row | {column: written(row[column] or "")} for row in rows[:READ]], column


def generated(folder: Path, n: int) -> tuple[list[dict[str, Any]], str]:
    """Records that round n made."""
    return texts(folder / "rounds" / round_name(n) / "generated.parquet")


def first_texts(folder: Path, n: int, count: int) -> Iterator[tuple[str, str, str]]:
    """(prompt, text, how it ended) of the first records that round n made."""
    rows, column = generated(folder, n)
    parents = [row["parents"][0] for row in rows[:count] if row.get("parents")]
    prompts = _prompts(folder, parents) if parents else {}
    for row in rows[:count]:
        parent = next(iter(row.get("parents") or ()), "")
        said = row.get("prompt") if column != "prompt" else ""
        prompt = str(said or prompts.get(parent, ""))
        yield prompt[:LONGEST], row[column][:LONGEST], str(row.get(records.FINISH) or "")


def real(folder: Path) -> list[str]:
    """Texts of the real records that round 0 trains on."""
    found: list[str] = []
    for path in sorted((folder / "rounds/00/train").glob("*real*.parquet")):
        rows, column = texts(path)
        found += [row[column] for row in rows]
    return found


def side_by_side(groups: Sequence[Group], rounds: Sequence[int]) -> list[Prompt]:
    """PROMPTS rows, those first that the most arms and rounds have. Of each of the first ACROSS groups its first seed
    is read.

    Marks: a loop (LOOP; what the metric `loops` counts is told in words, and ends a record); a copy, COPIED words in a
    row that stand in a real record of the arm's training set; a lost word, a word of that set which no record of the
    arm's last round uses any more.
    """
    members = [next((m for m in group.members if m.rounds), group.members[0]) for group in groups[:ACROSS]]
    found: dict[str, dict[tuple[int, int], tuple[str, int, str]]] = {}  # beginning, length, how it ended
    said: dict[str, str] = {}
    marks = {}
    for i, member in enumerate(members):
        last = max((n for n in member.rounds if n), default=0)
        for n in [n for n in rounds if n and n in member.rounds]:
            rows, column = generated(member.folder, n)
            for at, row in enumerate(rows):
                prompt = str(row.get("prompt") or "") if column != "prompt" else ""
                parent = next(iter(row.get("parents") or ()), "")
                key = sha256_text(prompt) if prompt else str(parent) or f"\0{at:06d}"
                said.setdefault(key, shortened(prompt))
                text = row[column]
                cell = (text[:LONGEST], len(text), str(row.get(records.FINISH) or ""))
                found.setdefault(key, {}).setdefault((i, n), cell)
        marks[i] = _Marks(member.folder, last)
    first = sorted(found, key=lambda key: (-len(found[key]), key if key[0] == "\0" else ""))[:PROMPTS]
    for member in members:
        if unknown := [key for key in first if not said[key] and key[0] != "\0"]:
            said |= {key: shortened(text) for key, text in _prompts(member.folder, unknown).items()}
    return [
        Prompt(
            said[key],
            {at: Cell(marks[at[0]].pieces(text, length), end) for at, (text, length, end) in found[key].items()},
        )
        for key in first
    ]


def _prompts(folder: Path, ids: Sequence[str]) -> dict[str, str]:
    """{id: text} of those of the records that stand in the run's split of prompts; of a conversation what was asked."""
    path = folder / "data/prompts.parquet"
    try:
        column = next(name for name in ("text", MESSAGES) if name in pq.read_schema(path).names)
        parts = (part.filter(pc.is_in(part["id"], pa.array(ids))) for part in records.batches(path, ["id", column]))
        rows = [row for part in parts for row in part.to_pylist()]
        return {row["id"]: written(row[column][:-1] if column == MESSAGES else row[column]) for row in rows}
    except (OSError, pa.ArrowException, UserError, KeyError, StopIteration):  # none there, damaged, or without texts
        return {}


def shortened(text: str) -> str:
    cut = printable(text[:LONGEST])
    return cut if len(text) <= LONGEST else f"{cut} … ({len(text):,} characters)"


class _Marks:
    """What marks the texts of one arm."""

    def __init__(self, folder: Path, last: int):
        sources = [terms(text) for text in real(folder)]
        self.known = {word for source in sources for word in source}
        self.runs = {hash(tuple(s[i : i + COPIED])) for s in sources for i in range(len(s) - COPIED + 1)}
        rows, column = generated(folder, last)
        self.left = {word for row in rows for word in terms(row[column])}

    def pieces(self, text: str, length: int) -> list[tuple[str, str]]:
        """A text of so many characters, of which the first are given, in pieces of the same marks, in its order."""
        shown = printable(text)
        flags = [0] * len(shown)
        for a, b in self._loops(shown):
            for i in range(a, b):
                flags[i] |= 1
        found = standing(shown)
        for i in range(len(found) - COPIED + 1):
            if hash(tuple(w for w, _, _ in found[i : i + COPIED])) in self.runs:
                for j in range(found[i][1], found[i + COPIED - 1][2]):
                    flags[j] |= 2
        for word, a, b in found:
            if word in self.known and word not in self.left:
                for j in range(a, b):
                    flags[j] |= 4
        pieces: list[tuple[str, str]] = []
        start = 0
        for i in range(1, len(shown) + 1):
            if i == len(shown) or flags[i] != flags[start]:
                named = [name for bit, name in ((1, "loop"), (2, "copy"), (4, "lost")) if flags[start] & bit]
                pieces.append((shown[start:i], " ".join(named)))
                start = i
        if length > len(text):
            pieces.append((f" … ({length:,} characters)", ""))
        return pieces

    @staticmethod
    def _loops(text: str) -> Iterator[tuple[int, int]]:
        for m in LOOP.finditer(text):
            if m.end() - m.start() >= SHORTEST and m.group().strip():
                yield m.start(), m.end()


def word_counts(groups: Sequence[Group]) -> dict[str, Any]:
    """{"real": counts, "arms": {index of the group: counts}}: how many different words occur as often as each of BINS
    says, in the real records of round 0 and in those that a group's last round made, a mean over seeds; {} without
    texts. Only arms whose files have as many records as the real one compare; `records` has the numbers."""
    sources: list[str] = []
    arms: dict[int, list[float]] = {}
    counted: dict[str, int] = {}
    for i, group in enumerate(groups):
        found = []
        for member in group.members:
            rows, column = generated(member.folder, max((n for n in member.rounds if n), default=0))
            if rows:
                found.append(_binned(row[column] for row in rows))
                counted[group.name] = len(rows)
            sources = sources or real(member.folder)
        if found:
            arms[i] = [sum(column) / len(found) for column in zip(*found, strict=True)]
    if not arms:
        return {}
    return {"real": _binned(sources), "arms": arms, "records": {"real": len(sources), **counted}}


def _binned(of: Any) -> list[int]:
    counts = Counter(word for text in of for word in terms(text))
    often = Counter(counts.values())
    return [sum(c for times, c in often.items() if a <= times and (b is None or times <= b)) for a, b in BINS]
