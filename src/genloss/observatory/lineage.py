"""Lineage: where a record comes from, what was made from it, and which rounds learned from it.

    genloss trace runs/text-replace-none-s0-1a2b 3f9c        # a record by its id, or the beginning of it
    genloss trace runs/text-replace-none-s0-1a2b --summary   # all rounds: generations, ancestors, what was dropped

Files are read column by column and part by part, each once: what is held of each record is a few numbers
(genloss.observatory.ancestry). Texts are read for the records that are shown. They are data, and shown as Python writes
strings: what a terminal would obey is escaped."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.files import read_json
from genloss.core.rundir import manifest_at, round_name
from genloss.observatory.ancestry import NOBODY, Population, backward, children, depth, effective, families, keys
from genloss.observatory.results import without_rounds
from genloss.observatory.samples import MESSAGES, written
from genloss.observatory.tables import aligned

LONGEST = 300  # characters of a text that are shown
FEW = 20  # records that are shown of many
TOP = 10  # ancestors that a summary shows
NARROW = ("id", "parents", "origin", "generation", "recipe", "score", "reason")
TEXTS = ("text", "prompt", "response", "answer", MESSAGES)  # payloads that are shown


class Place(NamedTuple):
    """A file of records and what it holds: kept, rejected, generated (not curated yet), or a split of the real data."""

    path: Path
    generation: int
    kind: str


class Shard(NamedTuple):
    """A file of a training set. `same`: the place that is the same file, if it was used whole."""

    path: Path
    generation: int
    weight: float
    same: Place | None


class Missing(UserError):
    """A file of a training set that is not here."""


class Run:
    """The files of a run directory, as far as they are there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rounds = sorted(int(p.name) for p in (folder / "rounds").glob("[0-9]*") if p.name.isdigit())
        if not self.rounds:
            raise without_rounds(folder)

    def round(self, n: int) -> Path:
        return self.folder / "rounds" / round_name(n)

    @cached_property
    def real(self) -> list[Place]:
        """The splits of the real data, the training records first."""
        found = sorted(self.folder.glob("data/*.parquet"), key=lambda path: (path.stem != "train", path.name))
        return [Place(path, 0, path.stem) for path in found]

    def made(self, n: int) -> list[Place]:
        """The records of round n: kept and rejected; before curation, generated."""
        home = self.round(n)
        names = ["kept", "rejected"] if (home / "kept.parquet").is_file() else ["generated"]
        places = [Place(home / f"{name}.parquet", n, name) for name in names]
        return [place for place in places if place.path.is_file()]

    @cached_property
    def places(self) -> list[Place]:
        """All of them, the real data first."""
        return [*self.real, *(place for n in self.rounds for place in self.made(n))]

    def trained(self, n: int) -> bool:
        """Whether round n has a training set, of which files may be missing."""
        return (self.round(n) / "train" / "mix.json").is_file()

    def mixed(self, n: int) -> list[Shard]:
        """The training set of round n; [] if it is not there yet. Missing if a file of it is."""
        home = self.round(n) / "train"
        if not self.trained(n):
            return []

        def shards(mix: dict[str, Any]) -> list[Shard]:
            return [self._shard(home / s["file"], int(s["generation"]), float(s["weight"])) for s in mix["shards"]]

        return read_json(home / "mix.json", shards, "run again to restore it")

    def _shard(self, path: Path, generation: int, weight: float) -> Shard:
        if not path.is_file():
            raise Missing(str(path), None, "is missing; `dvc checkout` or run again to restore it")
        # what comes first in its generation of the population of `summary`
        sources = [place for place in self.made(generation) if place.kind == "kept"] if generation else self.real[:1]
        same = next((place for place in sources if place.path.samefile(path)), None)
        return Shard(path, generation, weight, same)

    def curators(self, n: int) -> list[str] | None:
        """The names of the curators that round n had, by its manifest; None if none says it."""
        found = manifest_at(self.round(n))
        try:
            return [str(name) for name, _ in found["stages"]["curate"]["config"]["curation"]]
        except (KeyError, TypeError, ValueError):  # there is none, or it is a stranger's
            return None

    def scan(self, place: Place | Shard, *columns: str) -> Iterator[pa.Table]:
        """`records.scan`; UserError where these are no records with ids."""
        for part in records.scan(place.path, columns):
            if missing := [name for name in columns if name in ("id", "parents") and name not in part.column_names]:
                raise UserError(str(place.path), None, f"has no {missing[0]}: these are no records that can be traced")
            yield part


def plain(text: str) -> str:
    """A word of a record, as it is if it is printable, else escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


# -- one record --------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A record and where it lies."""

    place: Place
    row: int
    values: dict[str, Any]  # of its narrow columns


def find(run: Run, prefix: str) -> Found:
    """The record whose id begins with `prefix`; UserError if there is none, or if several ids do."""
    first: tuple[Place, int] | None = None
    seen: set[str] = set()
    for place in run.places if prefix else ():
        at = 0
        for part in run.scan(place, "id"):
            ids = part["id"]
            for i in np.flatnonzero(pc.starts_with(ids, prefix).to_numpy()):
                first = first or (place, at + int(i))
                seen.add(ids[int(i)].as_py())
                if len(seen) > 1:
                    why = "begins several ids; give more digits" if len(prefix) < 32 else "is no single record"
                    raise UserError("record", prefix, why)
            at += len(part)
    if first is None:
        raise UserError("record", prefix, f"no record of {run.folder} has an id that begins so")
    place, row = first
    return Found(place, row, _row(place, row, NARROW))


def _row(place: Place, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
    names = records.columns(place.path)
    return dict(records.read(place.path, [n for n in columns if n in names], (row, 1)).to_pylist()[0])


def texts(found: Found) -> dict[str, str]:
    """The beginnings of a record's texts, by column."""
    row = _row(found.place, found.row, TEXTS)
    return {name: written(value)[:LONGEST] for name, value in row.items() if value and isinstance(value, str | list)}


def ancestors(run: Run, start: Found) -> dict[str, Found]:
    """Every record of earlier rounds that one was made from, by id, back to the real data; each file is read once."""
    found: dict[str, Found] = {}
    wanted = set(start.values["parents"] or ())
    for place in reversed([p for p in run.places if p.generation < start.place.generation]):
        if not wanted:
            break
        known = np.sort(keys(pa.array(sorted(wanted), pa.string())))
        first = 0
        for part in run.scan(place, *NARROW):
            for i in np.flatnonzero(records.among(keys(part["id"]), known)):
                values = part.slice(int(i), 1).to_pylist()[0]
                if values["id"] in wanted:
                    found[values["id"]] = Found(place, first + int(i), values)
                    wanted.discard(values["id"])
                    wanted |= set(values["parents"] or ()) - found.keys()
            first += len(part)
    return found


class Offspring(NamedTuple):
    """The records of a file that descend from one."""

    place: Place
    keys: np.ndarray  # uint64, rising
    reasons: Counter[str]
    few: list[Found]


def offspring(run: Run, start: Found) -> list[Offspring]:
    """Everything that later rounds made from a record, directly or not, file by file; each is read once."""
    known = keys(pa.array([start.values["id"]], pa.string()))
    made = []
    for n in [n for n in run.rounds if n > start.place.generation]:
        of_round = [_below(run, place, known) for place in run.made(n)]
        made += [each for each in of_round if len(each.keys)]
        known = np.unique(np.concatenate([known, *(each.keys for each in of_round)]))
    return made


def _below(run: Run, place: Place, known: np.ndarray) -> Offspring:
    found: list[np.ndarray] = []
    reasons: Counter[str] = Counter()
    few: list[Found] = []
    first = 0
    for part in run.scan(place, *NARROW):
        rows = children(part["parents"], known)
        if len(rows):
            some = part.take(pa.array(rows))
            found.append(keys(some["id"]))
            if "reason" in some.column_names:
                reasons.update(some["reason"].cast(pa.string()).fill_null("").to_pylist())
            for row, values in zip(rows[: FEW - len(few)], some.slice(0, FEW - len(few)).to_pylist(), strict=True):
                few.append(Found(place, first + int(row), values))
        first += len(part)
    return Offspring(place, np.unique(np.concatenate([known[:0], *found])), reasons, few)


def learned(run: Run, wanted: np.ndarray, homes: Mapping[Path, np.ndarray]) -> dict[int, np.ndarray]:
    """The rounds whose training sets have some of the records with these keys (uint64, rising), and which. homes: of
    the files that were searched, those that are in them; a shard that is one of these is not read again."""
    found = {}
    for n in run.rounds:
        parts = [np.zeros(0, dtype=np.uint64)]
        for shard in run.mixed(n):
            if shard.same is not None and shard.same.path in homes:
                parts.append(homes[shard.same.path])
                continue
            for part in run.scan(shard, "id"):
                mine = keys(part["id"])
                parts.append(mine[records.among(mine, wanted)])
        if len(here := np.unique(np.concatenate(parts))):
            found[n] = here
    return found


def traced(folder: Path, prefix: str) -> dict[str, Any]:
    """The lineage of the record whose id begins with `prefix`, for JSON: `record`, `ancestors` (each with its decision,
    the rounds that trained on it, and its parents), `missing` (parents that are in no file of the run) and
    `descendants` (file by file: how many, why, in which rounds' training sets, and the first FEW of them)."""
    run = Run(folder)
    start = find(run, prefix)
    above, below = ancestors(run, start), offspring(run, start)
    line = [start, *above.values()]
    own = keys(pa.array([each.values["id"] for each in line], pa.string()))
    homes: dict[Path, np.ndarray] = {}
    for place in run.places:
        mine = [own[i : i + 1] for i, each in enumerate(line) if each.place == place]
        mine += [each.keys for each in below if each.place == place]
        homes[place.path] = np.unique(np.concatenate([own[:0], *mine]))
    taught = learned(run, np.unique(np.concatenate([own, *(each.keys for each in below)])), homes)

    def told(found: Found) -> dict[str, Any]:
        values, key = found.values, keys(pa.array([found.values["id"]], pa.string()))
        return {
            "id": values["id"],
            "origin": values["origin"],
            "generation": values["generation"],
            "recipe": values["recipe"],
            "file": str(found.place.path.relative_to(folder)),
            "decision": _decision(run, found),
            "score": values.get("score"),
            "trained_in": [n for n, here in taught.items() if records.among(key, here)[0]],
            "parents": values["parents"] or [],
            "texts": texts(found),
        }

    ids = {start.values["id"], *above}
    return {
        "record": told(start),
        "ancestors": {name: told(found) for name, found in above.items()},
        "missing": sorted({p for each in line for p in each.values["parents"] or () if p not in ids}),
        "descendants": [
            {
                "round": each.place.generation,
                "kind": each.place.kind,
                "records": len(each.keys),
                "reasons": dict(sorted(each.reasons.items())),
                "trained_in": {n: count for n, here in taught.items() if (count := _common(each.keys, here))},
                "first": [told(found) for found in each.few],
            }
            for each in below
        ],
    }


def _common(some: np.ndarray, others: np.ndarray) -> int:
    return int(records.among(some, others).sum())


def _decision(run: Run, found: Found) -> str:
    """What curation did with a record, and who."""
    if found.place.kind == "kept":
        curators = run.curators(found.place.generation)
        who = "whom is not known: no manifest says it" if curators is None else ", ".join(curators)
        return f"kept by {who or 'all: there was no curator'}"
    if found.place.kind == "rejected":
        return f"dropped by {found.values.get('reason')}"
    return "" if found.place.generation == 0 else "not curated yet"


def _lines(about: Mapping[str, Any]) -> list[str]:
    """A record's own lines."""
    n = about["generation"]
    origin = "real data" if about["origin"] == records.REAL else f"made in round {n} by model {n - 1}"
    lines = [f"{plain(about['id'])}  {origin}, recipe {plain(about['recipe'])}, in {about['file']}"]
    if about["decision"]:
        score = "" if about["score"] is None else f" (score {about['score']:.4g})"
        lines.append(f"    decision: {plain(about['decision'])}{score}")
    lines.append(f"    trained on in rounds: {', '.join(map(str, about['trained_in'])) or 'none'}")
    return lines + [f"    {name}: {text!r}" for name, text in about["texts"].items()]


def _back(found: Mapping[str, Any], about: Mapping[str, Any], pad: str, told: set[str]) -> Iterator[str]:
    """A record and below it, indented, what it was made from; each is told once."""
    yield from (pad + line for line in _lines(about))
    for parent in about["parents"][:FEW]:
        if parent in told:
            yield f"{pad}    from: {plain(parent)}, told above"
        elif parent in found["missing"]:
            yield f"{pad}    from: {plain(parent)}, which is in no earlier file of this run"
        else:
            told.add(parent)
            yield f"{pad}    from:"
            yield from _back(found, found["ancestors"][parent], f"{pad}        ", told)
    if len(about["parents"]) > FEW:
        yield f"{pad}    from: {len(about['parents']) - FEW} more; --json has all"


def _forward(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["descendants"]:
        yield "nothing was made from it"
    for each in found["descendants"]:
        why = ", ".join(f"{count} {plain(reason)}" for reason, count in each["reasons"].items() if reason != "kept")
        yield f"made from it in round {each['round']}: {each['records']} {each['kind']}" + (f" ({why})" if why else "")
        rounds = ", ".join(f"{count} in round {n}" for n, count in each["trained_in"].items())
        if each["kind"] == "kept":
            yield f"    trained on: {rounds or 'in no round'}"
        for about in each["first"]:
            text = next(iter(about["texts"].values()), "")
            yield f"    {plain(about['id'])}  {text[:80]!r}"
        if each["records"] > len(each["first"]):
            yield f"    and {each['records'] - len(each['first'])} more"


def trace(folder: Path, record: str, as_json: bool = False) -> int:
    """`genloss trace RUN ID`: print where a record comes from and what became of it."""
    found = traced(folder, record)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        told = {found["record"]["id"]}
        print("\n".join([*_back(found, found["record"], "", told), *_forward(found)]))
    return 0


# -- all of them -------------------------------------------------------------------------------------------------------


def summary(folder: Path) -> dict[str, Any]:
    """What the training sets of a run consist of, for JSON: `rounds`, `influential` (the real records that count most
    in the last training set) and `missing` (what could not be read, in words).

    Of each round: records; made, kept, dropped (by reason); shares, by generation of origin; depth
    (`ancestry.depth`); named, the share that goes back to real records by the ids of parents; ancestors, how many of
    these there are, and effective (`ancestry.effective`). Shares are of the loss: records times `weight` of mix.json,
    which is 1 unless mixing.by=weight.
    """
    run = Run(folder)
    last = max(run.rounds)
    kept = {n: [place for place in run.made(n) if place.kind == "kept"] for n in range(1, last + 1)}
    mixed: dict[int, list[Shard]] = {}
    for n in range(last + 1):
        with contextlib.suppress(Missing):
            mixed |= {n: shards} if (shards := run.mixed(n)) else {}
    if not mixed:
        raise without_rounds(folder)
    missing = [] if run.real else ["data: the real records are not here"]
    missing += [f"round {n}: the kept records are not here" for n in kept if not kept[n]]
    for n in (n for n in range(last + 1) if n not in mixed):
        what = "files of the training set are" if run.trained(n) else "the training set is"
        missing.append(f"round {n}: {what} not here")
    generations = [run.real, *(kept[n] for n in range(1, last + 1))]
    people = Population(np.concatenate([_keys(run, p) for p in places] or [_NONE]) for places in generations)
    bred = {n: families((t for p in kept[n] for t in run.scan(p, "parents")), people) for n in kept if kept[n]}
    depths: dict[int, float] = {}
    told: list[dict[str, Any]] = []
    worth = np.zeros(0)
    for n, shards in mixed.items():
        weights = np.zeros(len(people))
        sums: dict[int, float] = {}
        count = 0
        for shard in shards:
            size = _weigh(run, shard, people, weights)
            count += size
            sums[shard.generation] = sums.get(shard.generation, 0.0) + size * shard.weight
        total = sum(sums.values()) or 1.0
        shares = {g: value / total for g, value in sorted(sums.items())}
        if (known := depth(shares, depths)) is not None:
            depths[n] = known
        worth, _ = backward(weights, people, bred)
        told.append(
            {
                "round": n,
                "records": count,
                **_decided(run, n),
                "shares": shares,
                "depth": known,
                "named": float(worth.sum()) / total,
                "ancestors": int(np.count_nonzero(worth)),
                "effective": effective(worth),
            }
        )
    return {
        "run": folder.resolve().name,
        "rounds": told,
        "influential": _influential(run, people, worth),
        "missing": missing,
    }


_NONE = np.zeros(0, dtype=np.uint64)


def _keys(run: Run, place: Place) -> np.ndarray:
    """uint64 [records]: those of a file."""
    made = np.empty(records.count(place.path), dtype=np.uint64)
    first = 0
    for part in run.scan(place, "id"):
        made[first : first + len(part)] = keys(part["id"])
        first += len(part)
    return made


def _weigh(run: Run, shard: Shard, people: Population, weights: np.ndarray) -> int:
    """Add a shard's records to the weights [all records]; returns how many they are. One that is nobody known counts
    nowhere."""
    size = records.count(shard.path)
    if shard.same is not None:
        first = int(people.edges[shard.generation])  # the file that a shard may be comes first in its generation
        weights[first : first + size] += shard.weight
        return size
    for part in run.scan(shard, "id"):
        at = people.find(keys(part["id"]))
        np.add.at(weights, at[at != NOBODY], shard.weight)
    return size


def _decided(run: Run, n: int) -> dict[str, Any]:
    """How many records round n made and kept, and how many it dropped, by reason."""
    counts = {place.kind: records.count(place.path) for place in run.made(n)} if n else {}
    dropped: Counter[str] = Counter()
    for place in run.made(n) if n else ():
        if place.kind == "rejected":
            for part in run.scan(place, "reason"):
                for each in part["reason"].cast(pa.string()).value_counts().to_pylist():
                    dropped[each["values"] or ""] += each["counts"]
    return {"made": sum(counts.values()), "kept": counts.get("kept", 0), "dropped": dict(dropped.most_common())}


def _influential(run: Run, people: Population, worth: np.ndarray) -> list[dict[str, Any]]:
    """The TOP real records of greatest worth; none if all are worth the same."""
    if len(np.unique(worth[worth > 0])) < 2:
        return []
    found = []
    edges = np.cumsum([0, *(records.count(place.path) for place in run.real)])
    for at in np.argsort(-worth, kind="stable")[:TOP]:
        if worth[at] == 0:
            break
        which = int(np.searchsorted(edges, at, side="right")) - 1
        place, row = run.real[which], int(at - edges[which])
        record = Found(place, row, _row(place, row, ("id",)))
        share = float(worth[at] / worth.sum())
        found.append({"id": record.values["id"], "worth": float(worth[at]), "share": share, "texts": texts(record)})
    return found


def summary_text(about: Mapping[str, Any]) -> str:
    """`summary` as text: a table of rounds, what was dropped and why, the ancestors that count most."""
    last = max((g for row in about["rounds"] for g in row["shares"]), default=0)
    head = ["round", "records", "real", *(f"g{g:02d}" for g in range(1, last + 1))]
    head += ["depth", "named", "ancestors", "effective"]
    rows = []
    for row in about["rounds"]:
        shares = [f"{row['shares'][g]:.3f}" if g in row["shares"] else "" for g in range(last + 1)]
        depth_ = "" if row["depth"] is None else f"{row['depth']:.2f}"
        more = [depth_, f"{row['named']:.3f}", str(row["ancestors"]), f"{row['effective']:.1f}"]
        rows.append([str(row["round"]), str(row["records"]), *shares, *more])
    lines = [aligned(head, rows, range(len(head)))]
    for row in about["rounds"]:
        if row["made"]:
            why = "".join(f", {count} {plain(reason)}" for reason, count in row["dropped"].items())
            lines.append(f"round {row['round']}: made {row['made']}, kept {row['kept']}{why}")
    if about["influential"]:
        lines += ["", "real records that count most in the last training set:"]
    for each in about["influential"]:
        text = next(iter(each["texts"].values()), "")
        lines.append(f"{each['share']:7.2%}  {each['worth']:8.2f}  {plain(each['id'])}  {text[:80]!r}")
    return "\n".join([*lines, *(f"missing: {line}" for line in about["missing"])])


def summarise(folder: Path, as_json: bool = False) -> int:
    """`genloss trace RUN --summary`."""
    about = summary(folder)
    print(json.dumps(about, indent=1) if as_json else summary_text(about))
    return 0
