"""`genloss replicate`: published results of the field, run through the same loop as everything else.

    genloss replicate --list
    genloss replicate mad_bias kazdan          # a case of the scoreboard, or all cases of a paper
    genloss replicate --write                  # all cases, to docs/scoreboard.md
    genloss replicate llm2llm --write          # a study: its arms, tests and figure, to docs/llm2llm.md

Two kinds of result:

    a case      theory gives the number: case.py (what a case is), cases.py (all of them), scoreboard.py (their arms are
                run, their checks carried out), pages.py (the scoreboard as text, Markdown and HTML)
    a study     no formula gives the claim, so arms are compared over seeds: study.py runs them and writes the results;
                each study is the file systems/NAME/study.py
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.places import project_root


def listing() -> str:
    """`genloss replicate --list`: a line for each case, then one for each study."""
    from genloss.replicate.cases import CASES
    from genloss.replicate.study import studies

    width = max(len(name) for name in [*(case.name for case in CASES), *(study.name for study in studies())])
    cases = [f"{case.name:<{width}}  {case.paper}: {case.where}" for case in CASES]
    long = [f"{study.name:<{width}}  {study.paper}" for study in studies()]
    return "\n".join([*cases, "", "studies of small models, by name alone (minutes to half an hour each):", *long])


def replicate(names: Sequence[str], write: bool = False, fresh: bool = False, jobs: int = 2) -> int:
    """`genloss replicate`: 0 if all that was asked for replicates, else 1.

    names: studies, or cases and papers of the scoreboard; none: the whole scoreboard. write: into docs/, not into
    .genloss/replicate/. fresh: forget what earlier calls have computed of the cases. jobs: arms at a time.
    """
    from genloss.replicate.study import replicate_study, studies

    work = project_root() / ".genloss" / "replicate"
    out = project_root() / "docs" if write else work
    chosen = [study for study in studies() if study.name in names]
    if chosen:
        if len(chosen) < len(names):
            mixed = "mixes studies with cases of the scoreboard; name one kind at a time"
            raise UserError("case", " ".join(names), mixed)
        if fresh:
            raise UserError("--fresh", None, "is for cases; a study's arms are in runs/, delete those")
        return max(replicate_study(study, out, max(1, jobs)) for study in chosen)

    from genloss.replicate.pages import html, markdown, summary, table
    from genloss.replicate.scoreboard import run_cases, select

    began = time.perf_counter()
    cases = select(names, [study.name for study in studies()])
    if write and names:
        raise UserError("--write", None, "writes the whole scoreboard; leave the names out")
    lines = run_cases(cases, work, max(1, jobs), fresh)
    print(table(lines))
    print(f"\n{summary(lines)}; {time.perf_counter() - began:.0f} s")
    write_atomic(out / "scoreboard.md", markdown(lines))
    write_atomic(work / "scoreboard.html", html(lines))
    print(f"written: {out / 'scoreboard.md'}, {work / 'scoreboard.html'}")
    return 0 if all(line.ok for line in lines) else 1
