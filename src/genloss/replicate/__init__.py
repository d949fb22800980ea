"""`genloss replicate`: published results of the field, run through the same loop as everything else, on a scoreboard.

    genloss replicate --list
    genloss replicate mad_bias kazdan          # a case, or all cases of a paper
    genloss replicate --write                  # all of them, to docs/scoreboard.md

A case lives in .genloss/replicate/NAME: its arms and a store of its own, so that finished stages are not computed again and
`--fresh` forgets this case alone. All of them take two minutes on two cores, and 3 GB there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from genloss.core.errors import UserError, nearest
from genloss.replicate.case import CLAIM, READING, WRONG, Case, Check, Results

LEVEL = 0.01  # chance that any true claim of the whole scoreboard fails
FAR = 4.0  # standard errors: a claim is never accepted beyond, a wrong prediction must be


@dataclass(frozen=True)
class Line:
    """A check that was carried out."""

    case: Case
    check: Check
    expected: float
    measured: float
    error: float
    bound: float
    seconds: float  # of the case

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
    from genloss.replicate.cases import CASES

    claims = sum(check.kind == CLAIM for case in CASES for check in case.checks())
    return min(FAR, NormalDist().inv_cdf(1 - LEVEL / (2 * claims)))


def select(names: Sequence[str]) -> list[Case]:
    """Cases by any of their names, in the scoreboard's order."""
    from genloss.replicate.cases import CASES

    known = set().union(*(case.names for case in CASES))
    for name in names:
        if name.lower() not in known:
            raise UserError("case", name, f"unknown; {nearest(name, known)}")
    chosen = {name.lower() for name in names}
    return [case for case in CASES if not chosen or case.names & chosen]


def listing() -> str:
    from genloss.replicate.cases import CASES
    from genloss.replicate.study import studies

    width = max(len(name) for name in [*(case.name for case in CASES), *(study.name for study in studies())])
    cases = [f"{case.name:<{width}}  {case.paper}: {case.where}" for case in CASES]
    long = [f"{study.name:<{width}}  {study.paper}" for study in studies()]
    return "\n".join([*cases, "", "studies of small models, by name alone (minutes to half an hour each):", *long])


# -- running ---------------------------------------------------------------------------------------------------------------


def place() -> Path:
    from genloss.core.places import project_root

    return project_root() / ".genloss" / "replicate"


def run_arm(case: str, arm: str, overrides: Sequence[str], root: Path) -> tuple[Path, float]:
    """Run an arm to its end or find it finished: (its folder, the seconds that computing it took)."""
    from genloss.core.files import write_atomic
    from genloss.core.rundir import RunDir
    from genloss.core.store import Store
    from genloss.experiment import Experiment
    from genloss.loop import Loop
    from genloss.workflow.compose import compose, to_yaml
    from genloss.workflow.identity import arm_id

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


def run_cases(cases: Sequence[Case], jobs: int, fresh: bool) -> list[Line]:
    """All arms, `jobs` at a time, then the checks of every case whose arms are there."""
    root = place()
    if fresh:
        for case in cases:
            shutil.rmtree(root / case.name, ignore_errors=True)
    work = [(case.name, arm, overrides, root) for case in cases for arm, overrides in case.arms.items()]
    found: dict[tuple[str, str], tuple[Path, float]] = {}
    if jobs == 1 or len(work) == 1:
        for item in work:
            found[item[:2]] = run_arm(*item)
            _say(len(found), len(work), item, found[item[:2]][1])
    else:
        import multiprocessing

        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: the arms are what runs side by side
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures: dict[Future[tuple[Path, float]], tuple[str, str, tuple[str, ...], Path]] = {
                pool.submit(run_arm, *item): item for item in work
            }
            try:
                for future in as_completed(futures):
                    item = futures[future]
                    found[item[:2]] = future.result()
                    _say(len(found), len(work), item, found[item[:2]][1])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                if before is None:
                    del os.environ["OMP_NUM_THREADS"]
                else:
                    os.environ["OMP_NUM_THREADS"] = before
    limit = bound()
    return [line for case in cases for line in judge(case, {a: found[case.name, a] for a in case.arms}, limit)]


def _say(done: int, of: int, item: tuple[str, str, tuple[str, ...], Path], seconds: float) -> None:
    print(f"[{done}/{of}] {item[0]} {item[1]}: {seconds:.1f} s", file=sys.stderr, flush=True)


def judge(case: Case, arms: dict[str, tuple[Path, float]], limit: float) -> list[Line]:
    results = Results({arm: folder for arm, (folder, _) in arms.items()})
    seconds = sum(s for _, s in arms.values())
    lines = []
    for check in case.checks():
        value = check.expected(results) if callable(check.expected) else check.expected
        measured, error = check.measured(results)
        lines.append(Line(case, check, float(value), measured, error, limit, seconds))
    return lines


def replicate(names: Sequence[str], write: bool = False, fresh: bool = False, jobs: int = 2) -> int:
    """`genloss replicate`: 1 if a claim is not reproduced, or a wrong prediction is not refuted."""
    from genloss.core.files import write_atomic
    from genloss.core.places import project_root
    from genloss.replicate.board import html, markdown, summary, table
    from genloss.replicate.study import replicate_study, studies

    chosen = [study for study in studies() if study.name in names]
    if chosen:
        if len(chosen) < len(names):
            raise UserError(
                "case", " ".join(names), "mixes studies with cases of the scoreboard; name one kind at a time"
            )
        if fresh:
            raise UserError("--fresh", None, "is for cases; a study's arms are in runs/, delete those")
        return max(replicate_study(study, write, max(1, jobs)) for study in chosen)
    began = time.perf_counter()
    cases = select(names)
    if write and names:
        raise UserError("--write", None, "writes the whole scoreboard; leave the names out")
    lines = run_cases(cases, max(1, jobs), fresh)
    print(table(lines))
    print(f"\n{summary(lines)}; {time.perf_counter() - began:.0f} s")
    out = project_root() / "docs" if write else place()
    write_atomic(out / "scoreboard.md", markdown(lines))
    page = place() / "scoreboard.html"
    write_atomic(page, html(lines))
    print(f"written: {out / 'scoreboard.md'}, {page}")
    return 0 if all(line.ok for line in lines) else 1
