"""Lineage of ten million records: time and peak memory of `genloss trace`.

    python benchmarks/lineage.py                 # 10 rounds of 10^6 records, a tenth of it real; minutes, 2 GB of disk
    python benchmarks/lineage.py --records 100000

A run directory is made as the loop would leave it: each round makes records of 64 words' length, half of them from real
records and half from the round before, keeps four fifths, and trains on a sample of all rounds so far. Each command
then runs in a process of its own; `peak` is its largest resident memory, the interpreter and libraries among it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from common import scratch, table
from genloss.core import records

ROUNDS = 10
PART = 50_000  # records that are made together
CHILD = """
import resource, sys
from genloss.cli import main
try:
    main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    status = open("/proc/self/status").read()  # ru_maxrss would be that of the process that forked, if it was larger
    print(used.ru_utime + used.ru_stime, status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def ids(rng: np.random.Generator, n: int) -> np.ndarray:
    """[n] random ids, as bytes."""
    return np.frombuffer(rng.bytes(16 * n).hex().encode(), dtype="S32")


def parts(
    rng: np.random.Generator, names: np.ndarray, generation: int, parents: np.ndarray | None, reason: str | None
) -> Iterator[pa.Table]:
    """Records with these ids, in parts; parents: the id of each one's parent."""
    words = ["the", "state", "of", "union", "people", "war", "peace", "work"]
    for first in range(0, len(names), PART):
        mine = names[first : first + PART]
        n = len(mine)
        text = " ".join(rng.choice(words, 64 + PART // 100))
        starts = rng.integers(0, PART // 100, n)
        columns = {
            "id": pa.array(mine.astype(str), pa.string()),
            "text": pa.array([text[i : i + 256] for i in starts.tolist()]),
            "origin": pa.array([records.SYNTHETIC if generation else records.REAL] * n),
            "generation": pa.array(np.full(n, generation, dtype=np.int32)),
            "parents": pa.ListArray.from_arrays(
                np.arange(n + 1, dtype=np.int32) * (parents is not None),
                pa.array([] if parents is None else parents[first : first + PART].astype(str), pa.string()),
            ),
            "recipe": pa.array(["sample"] * n),
        }
        if reason is not None:
            columns |= {"score": pa.array(rng.random(n)), "reason": pa.array([reason] * n)}
        yield pa.table(columns)


def build(run: Path, total: int) -> str:
    """Write the run; returns the id of a real record that has descendants."""
    rng = np.random.default_rng(0)
    size = total // (ROUNDS + 1)
    real = ids(rng, size)
    records.write_parts(parts(rng, real, 0, None, None), run / "data/train.parquet")
    sources, before, known = {0: (run / "data/train.parquet", size)}, real, real[0]
    for n in range(ROUNDS + 1):
        home = run / f"rounds/{n:02d}"
        if n:
            made, half = ids(rng, size), size // 2
            parents = np.concatenate([rng.choice(real, half), rng.choice(before, size - half)])
            keep = rng.random(size) < 0.8
            kept, lost = made[keep], made[~keep]
            records.write_parts(parts(rng, kept, n, parents[keep], "kept"), home / "kept.parquet")
            records.write_parts(parts(rng, lost, n, parents[~keep], "rules: short"), home / "rejected.parquet")
            sources[n] = (home / "kept.parquet", len(kept))
            known, before = parents[keep][0] if n == 1 else known, kept
        shards = []
        for generation, (path, count) in sources.items():
            rows = np.sort(rng.permutation(count)[: count // (n + 1)])
            records.choose(path, rows, home / f"train/{generation:02d}.parquet")
            shards.append({"file": f"{generation:02d}.parquet", "generation": generation, "weight": 1.0})
        (home / "train/mix.json").write_text(json.dumps({"shards": shards}))
    return str(known, "ascii")


def measured(*arguments: str) -> list[str]:
    """[seconds, CPU seconds, peak MB] of a `genloss` command."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    cpu, kilobytes = done.stderr.split()[-2:]
    return [f"{time.perf_counter() - began:.1f}", f"{float(cpu):.1f}", f"{int(kilobytes) / 1024:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10**7)
    total = parser.parse_args().records
    with scratch() as folder:
        run = Path(folder) / "run"
        known = build(run, total)
        rows = [
            [name, *measured("trace", str(run), *arguments)]
            for name, arguments in {
                "trace --summary": ["--summary"],
                "trace of a real record": [known],
                "trace --help (what starting costs)": ["--help"],
            }.items()
        ]
    table(f"{total:,} records in {ROUNDS} rounds", ["command", "s", "CPU s", "peak MB"], rows)


if __name__ == "__main__":
    main()
