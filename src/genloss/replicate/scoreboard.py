"""The scoreboard: the arms of cases are run, and what they measured is held against the predictions.

    lines = run_cases(select(["mad_bias"]), Path(".genloss/replicate"), jobs=2, fresh=False)
    all(line.ok for line in lines)

A case lives in a folder of its name: its arms, and a store of its own, so that finished stages are not computed again
and `fresh` forgets this case alone. All of them take two minutes on two cores, and 3 GB of disk.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from genloss.core.errors import UserError, nearest
from genloss.core.files import write_atomic
from genloss.core.machine import end_with
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.replicate.case import CLAIM, READING, WRONG, Case, Check, Results
from genloss.replicate.cases import CASES
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.identity import arm_id

LEVEL = 0.01  # chance that any true claim of the whole scoreboard fails, by simulation (benchmarks/null_tables.py)
NORMAL = 0.0075  # what that would be were the means of chains normal; some samples are skewed
FAR = 4.0  # standard errors: a claim is never accepted beyond, a wrong prediction must be


@dataclass(frozen=True)
class Line:
    """A check that was carried out."""

    case: Case
    check: Check
    expected: float
    measured: float
    error: float  # standard error of `measured`
    bound: float  # of |z|, for claims
    seconds: float  # that computing the case took

    @property
    def z(self) -> float:
        return (self.measured - self.expected) / self.error if self.error > 0 else float("nan")

    @property
    def ok(self) -> bool:
        """nan is never ok: chains that all say the same measure nothing."""
        if self.check.kind == WRONG:
            return abs(self.z) > FAR
        return self.check.kind == READING or abs(self.z) < self.bound

    @property
    def verdict(self) -> str:
        if self.check.kind == CLAIM:
            return "reproduced" if self.ok else "NOT REPRODUCED"
        if self.check.kind == WRONG:
            return "refuted, as it must be" if self.ok else "NOT REFUTED"
        return "excluded" if abs(self.z) > FAR else "not told apart" if abs(self.z) < self.bound else "doubtful"


def bound() -> float:
    """|z| that a claim may have: Bonferroni's, over the claims of the whole scoreboard, whichever part of it is run."""
    claims = sum(check.kind == CLAIM for case in CASES for check in case.checks())
    return min(FAR, NormalDist().inv_cdf(1 - NORMAL / (2 * claims)))


def select(names: Sequence[str], others: Sequence[str] = ()) -> list[Case]:
    """Cases by any of their names, in the scoreboard's order; all if none is named. UserError if one is unknown, which
    names the `others` that could have been meant, too."""
    known = set().union(*(case.names for case in CASES))
    for name in names:
        if name.lower() not in known:
            raise UserError("case", name, f"unknown; {nearest(name, [*known, *others])}")
    chosen = {name.lower() for name in names}
    return [case for case in CASES if not chosen or case.names & chosen]


# -- running -----------------------------------------------------------------------------------------------------------

Work = tuple[str, str, tuple[str, ...], Path]  # case, arm, overrides, root
Ran = tuple[Path, float]  # an arm's folder, the seconds that computing it took


def run_arm(case: str, arm: str, overrides: Sequence[str], root: Path) -> Ran:
    """Run an arm to its end, or find it finished."""
    began = time.perf_counter()
    cfg = compose([f"experiment={case}", *overrides, "tracking=none", "runtime.workers=1"])
    folder = root / case / f"{arm}-{arm_id(cfg)[:8]}"
    store = Store(root / case / "store")
    write_atomic(folder / "params.yaml", to_yaml(cfg))
    Loop(Experiment(cfg), RunDir(folder, store)).run()
    note = folder / "seconds.json"
    if store.computed or not note.is_file():
        write_atomic(note, json.dumps(round(time.perf_counter() - began, 2)))
    return folder, float(json.loads(note.read_text()))


def run_cases(cases: Sequence[Case], root: Path, jobs: int, fresh: bool) -> list[Line]:
    """All arms, `jobs` at a time in folders below `root`, then the checks of every case."""
    if fresh:
        for case in cases:
            shutil.rmtree(root / case.name, ignore_errors=True)
    work: list[Work] = [(case.name, arm, options, root) for case in cases for arm, options in case.arms.items()]
    found: dict[tuple[str, str], Ran] = {}
    for (name, arm, *_), ran in (side_by_side if jobs > 1 and len(work) > 1 else one_by_one)(work, jobs):
        found[name, arm] = ran
        print(f"[{len(found)}/{len(work)}] {name} {arm}: {ran[1]:.1f} s", file=sys.stderr, flush=True)
    limit = bound()
    return [line for case in cases for line in check_case(case, {a: found[case.name, a] for a in case.arms}, limit)]


def one_by_one(work: Sequence[Work], jobs: int) -> Iterator[tuple[Work, Ran]]:
    """In this process, whatever `jobs` says."""
    for item in work:
        yield item, run_arm(*item)


def side_by_side(work: Sequence[Work], jobs: int) -> Iterator[tuple[Work, Ran]]:
    """In processes of one thread each, as they end. If one fails, those that have not begun never do."""
    context = multiprocessing.get_context("spawn")
    with one_thread(), ProcessPoolExecutor(jobs, context, end_with, (os.getpid(),)) as pool:
        futures = {pool.submit(run_arm, *item): item for item in work}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are started meanwhile compute with one thread: the arms are what runs side by side."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def check_case(case: Case, arms: dict[str, Ran], limit: float) -> list[Line]:
    """Carry out the checks of a case on its finished arms. limit: |z| that a claim may have."""
    results = Results({arm: folder for arm, (folder, _) in arms.items()})
    seconds = sum(s for _, s in arms.values())
    lines = []
    for check in case.checks():
        expected = check.expected(results) if callable(check.expected) else check.expected
        sample = check.measured(results)
        error = float(sample.std(ddof=1) / len(sample) ** 0.5)
        lines.append(Line(case, check, float(expected), float(sample.mean()), error, limit, seconds))
    return lines
