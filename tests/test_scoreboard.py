"""The scoreboard: a few cases with all of their checks, that a wrong prediction is noticed, and the whole of it
(`make replicate`)."""

from __future__ import annotations

import dataclasses
import html.parser
import json
from pathlib import Path

import pytest

from genloss.cli import main
from genloss.core.errors import UserError
from genloss.experiment import Experiment
from genloss.replicate import listing
from genloss.replicate.case import CLAIM, WRONG
from genloss.replicate.cases import CASES, accumulated, c4, log_variance, psi, released, subsampled
from genloss.replicate.pages import html as page
from genloss.replicate.pages import markdown, table
from genloss.replicate.scoreboard import FAR, bound, check_case, run_cases, select
from genloss.replicate.study import studies
from genloss.theory.linear import ridge_accuracy
from genloss.workflow.compose import compose
from genloss.workflow.identity import arm_id
from support import Project, experiment_arms

REPOSITORY = Path(__file__).resolve().parents[1]
FEW = ("mad_bias", "truncation", "he_golden")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory):
    home = Project.make(tmp_path_factory.mktemp("scoreboard") / "project")
    with home.here():
        yield home, run_cases(select(FEW), home.root / ".genloss/replicate", jobs=1, fresh=False)


def test_a_few_cases_with_all_their_checks(few) -> None:
    _, lines = few
    assert {line.case.name for line in lines} == set(FEW)
    for line in lines:
        assert line.ok, (line.case.name, line.check.states, line.expected, line.measured, line.error)
        if line.check.kind == WRONG:
            assert abs(line.z) > FAR
    assert all(any(line.check.kind == WRONG for line in lines if line.case.name == name) for name in FEW)


def test_a_wrong_prediction_is_noticed(few) -> None:
    """As a claim it is not reproduced; and a true one that is said to be wrong is not refuted."""
    home, _ = few
    case = next(c for c in CASES if c.name == "mad_bias")
    swapped = {CLAIM: WRONG, WRONG: CLAIM}
    turned = dataclasses.replace(
        case, checks=lambda: [dataclasses.replace(c, kind=swapped.get(c.kind, c.kind)) for c in case.checks()]
    )
    with home.here():
        arms = {a: (next((home.root / ".genloss/replicate/mad_bias").glob(f"{a}-*")), 1.0) for a in case.arms}
        found = check_case(turned, arms, bound())
    assert not any(line.ok for line in found)
    assert {line.verdict for line in found} == {"NOT REPRODUCED", "NOT REFUTED"}


def test_a_finished_case_is_not_run_again(few) -> None:
    home, lines = few
    notes = {p: p.stat().st_mtime_ns for p in home.root.glob(".genloss/replicate/mad_bias/*/seconds.json")}
    with home.here():
        again = run_cases(select(["mad_bias"]), home.root / ".genloss/replicate", jobs=1, fresh=False)
        assert notes == {p: p.stat().st_mtime_ns for p in notes} and notes
        assert [line.measured for line in again] == [line.measured for line in lines if line.case.name == "mad_bias"]
        forgotten = run_cases(select(["mad_bias"]), home.root / ".genloss/replicate", jobs=1, fresh=True)
    assert all(p.stat().st_mtime_ns > before for p, before in notes.items())
    assert [line.measured for line in forgotten] == [line.measured for line in again]


def test_tables(few) -> None:
    _, lines = few
    broken = dataclasses.replace(lines[0], check=dataclasses.replace(lines[0].check, states="<b>a|b</b> & c"))
    text = markdown([broken, *lines[1:]])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == len(lines) + 2 and "a\\|b" in text and "<b>" not in text
    document = page([broken, *lines[1:]])
    assert "<b>" not in document and "&lt;b&gt;a|b" in document and "<script" not in document and "http" not in document
    html.parser.HTMLParser().feed(document)
    assert table(lines).count("\n") == len(lines) + 1


def test_a_case_is_refused_or_found_by_name_or_author() -> None:
    with pytest.raises(UserError, match="did you mean mad_bias"):
        select(["mad_bais"])
    assert {case.name for case in select(["kazdan"])} >= {"kazdan_accumulate", "kazdan_subsample"}
    assert {case.name for case in select(["mad"])} == {"mad_bias", "mad_fresh"} and len(select(["alemohammad"])) == 3
    assert select([]) == list(CASES)
    with pytest.raises(SystemExit) as code:
        main(["replicate", "mad_bias", "--write"])
    assert code.value.code == 2


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["replicate", "--list"])
    assert capsys.readouterr().out.strip() == listing()
    cases, _, long = listing().partition("\n\nstudies")
    assert len(cases.splitlines()) == len(CASES) >= 14
    assert [line.split()[0] for line in long.splitlines()[1:]] == [study.name for study in studies()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_experiment_runs_the_arms_of_its_case(case) -> None:
    """`genloss run experiment=NAME` sweeps over arms that the scoreboard has; it may have more."""
    arms = {}
    for arm, overrides in case.arms.items():
        cfg = compose([f"experiment={case.name}", *overrides])
        Experiment(cfg)
        arms[arm] = arm_id(cfg)
    swept = {arm_id(cfg) for cfg in experiment_arms(case.name)}
    assert swept <= set(arms.values())
    assert len(set(arms.values())) == len(arms)
    text = (REPOSITORY / f"conf/experiment/{case.name}.yaml").read_text().splitlines()
    assert text[:2] == ["# @package _global_", f"# genloss run experiment={case.name}"]
    kinds = [check.kind for check in case.checks()]
    assert CLAIM in kinds and WRONG in kinds


def test_closed_forms() -> None:
    """Reference values of the literature notes, and special functions against SciPy."""
    from scipy import special

    for x in (0.5, 3.0, 49.5):
        assert psi(x) == pytest.approx(special.digamma(x), rel=1e-9)
        assert psi(x, 1) == pytest.approx(special.polygamma(1, x), rel=1e-9)
    assert log_variance(100, 50) == pytest.approx(-0.5068, abs=5e-5)
    assert 0.5 + 2 - 2 * c4(100) ** 50 == pytest.approx(0.7372, abs=5e-5)
    assert accumulated(10, 10**5) == pytest.approx(0.84344, abs=5e-6)
    assert subsampled(10, 10**5) == pytest.approx(0.73899, abs=1e-5)
    assert released(400, 0.2, 0.1, 100, 1.0, 1.0) == pytest.approx(ridge_accuracy(400, 0.2, 0.1, 100, 1.0))


@pytest.mark.replicate
@pytest.mark.timeout(1800)
def test_the_whole_scoreboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Project.make(tmp_path / "project")
    with home.here():
        main(["replicate", "--write"])
    assert "NOT" not in capsys.readouterr().out
    assert (home.root / "docs/scoreboard.md").is_file() and (home.root / ".genloss/replicate/scoreboard.html").is_file()
    assert all(json.loads(p.read_text()) > 0 for p in home.root.glob(".genloss/replicate/*/*/seconds.json"))
