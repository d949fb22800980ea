"""Studies: claims over arms and seeds, on real runs of the lab (`genloss replicate NAME`)."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from genloss.core.errors import UserError
from genloss.observatory.compare import (
    GREATER,
    LEVEL,
    OPEN,
    SAME,
    Arms,
    Contrast,
    Outcome,
    Panel,
    Statement,
    Study,
    Trend,
    Value,
    measure,
    together,
    trend,
)
from genloss.observatory.figures import panels_figure
from genloss.replicate.study import check, insert, replicate_study, studies
from support import Project, forked, frozen

REPLACE, ACCUMULATE = ({"mixing": name} for name in ("replace", "accumulate"))
DIVERSITY = [Value("diversity", where) for where in (ACCUMULATE, REPLACE)]
LOSES = Contrast("replacing loses more", DIVERSITY[0], DIVERSITY[1])
STUDY = Study(
    "shumailov_gaussian",
    "Shumailov et al. 2024, arXiv 2305.17493",
    (
        (
            "mixing=replace,accumulate",
            "seed=0,1,2",
            "rounds=4",
            "domain.chains=300",
            "domain.batch=20",
            "model.estimator=mle",
            "tracking=none",
        ),
    ),
    (
        LOSES,
        Contrast("both drift by less than all", Value("drift", REPLACE), Value("drift", ACCUMULATE), SAME, 1.0),
    ),
    (
        Panel("diversity", {"replace": DIVERSITY[1], "accumulate": DIVERSITY[0]}, published={"replace": 0.3}),
        Panel("diversity by round", {"replace": DIVERSITY[1], "accumulate": DIVERSITY[0]}, rounds=True),
    ),
)


@pytest.fixture
def arms(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Arms:
    monkeypatch.chdir(project)
    monkeypatch.setenv("GENLOSS_PROJECT", str(project))
    assert replicate_study(STUDY, project / "docs", jobs=2) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if " holds " in line]
    assert len(lines) == 2 and all(line.count("holds") == 2 for line in lines)  # alone and among both
    assert len({line.index("holds") for line in lines}) == 1  # in columns, whatever the claims are called
    return Arms(list((project / "runs").glob("gaussian-*")))


def test_a_study(project: Path, arms: Arms) -> None:
    page = (project / "docs/shumailov_gaussian.md").read_text()
    assert "| replacing loses more | > 0 | +" in page and "| accumulate |" in page
    assert (project / "docs/shumailov_gaussian.png").read_bytes().startswith(b"\x89PNG")

    assert measure(replace(LOSES, first=DIVERSITY[1], second=DIVERSITY[0]), arms).verdict == "the opposite"
    assert measure(replace(LOSES, kind=SAME, margin=1e-6), arms).verdict in ("the opposite", "not shown")
    assert measure(replace(LOSES, second=DIVERSITY[0]), arms).verdict == "not shown"  # an arm against itself
    assert "The seeds were fixed" in page and "interval lies on one side" in page

    rounds = tuple(range(5))
    drift = tuple(Value("drift", REPLACE, n) for n in rounds)
    kept = tuple(Value("diversity", REPLACE, n) for n in rounds)
    assert measure(Trend("both fall", drift, kept), arms).verdict == "the opposite"

    with pytest.raises(UserError, match="selects two arms"):
        measure(Contrast("", Value("diversity", {}), Value("diversity", {})), arms)
    with pytest.raises(UserError, match="selects no arm"):
        measure(Contrast("", Value("diversity", {"mixing": "fresh"}), Value("diversity", {})), arms)
    with pytest.raises(UserError, match="is not in round"):
        measure(Contrast("", Value("diversit", REPLACE), DIVERSITY[0]), arms)
    with pytest.raises(UserError, match="too few"):
        one, other = (Value("diversity", {**w, "seed": 1}) for w in (ACCUMULATE, REPLACE))
        measure(Contrast("", one, other), arms)


def test_a_study_that_is_killed_ends_with_its_sweep_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the command alone: nobody goes on in the background, and what was finished is not computed again."""
    home = Project.make(tmp_path / "project")

    def replicate() -> object:
        return replicate_study(STUDY, home.root / "docs", jobs=2)

    command, log = forked(home, replicate), tmp_path / "child.log"
    while home.stages()["train"] < 4:
        assert os.waitpid(command, os.WNOHANG)[0] == 0, log.read_text()
        time.sleep(0.01)
    [sweep] = [p for p in psutil.Process(command).children() if "run" in p.cmdline()]
    os.kill(command, signal.SIGKILL)
    os.waitpid(command, 0)
    at_work = [sweep, *sweep.children(recursive=True)]
    assert not psutil.wait_procs(at_work, timeout=20)[1]
    before = frozen(home.store)
    assert os.waitstatus_to_exitcode(os.waitpid(forked(home, replicate), 0)[1]) == 0, log.read_text()
    assert len(before) >= 4 and before.items() < frozen(home.store).items()


def seeded(values: Mapping[str, Sequence[float] | np.ndarray]) -> Arms:
    """Arms of one metric, m: {arm: a number of each seed}."""
    arms = Arms([])
    arms.known = [
        ({"arm": name, "seed": seed}, {0: {"m": value}})
        for name, each in values.items()
        for seed, value in enumerate(each)
    ]
    return arms


def value(arm: str) -> Value:
    return Value("m", {"arm": arm})


def difference(*each: float, kind: str = GREATER, margin: float = 0.0) -> Outcome:
    return measure(Contrast("", value("a"), value("b"), kind, margin), seeded({"a": each, "b": [0.0] * len(each)}))


@settings(max_examples=300)
@given(
    each=st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=3, max_size=6),
    kind=st.sampled_from([GREATER, SAME]),
    margin=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_a_verdict_agrees_with_its_interval(each: list[float], kind: str, margin: float) -> None:
    found = difference(*each, kind=kind, margin=margin)
    if np.ptp(each) == 0:
        assert math.isnan(found.low) and found.p >= 2.0 ** (1 - len(each))
        return
    ends = (found.low, found.high)
    if kind == GREATER:
        said = "holds" if found.low > 0 else "the opposite" if found.high < 0 else "not shown"
    else:
        inside, beyond = max(map(abs, ends)) < margin, found.low > margin or found.high < -margin
        said = "holds" if inside else "the opposite" if beyond else "not shown"
    assert found.verdict == said


def test_seeds_that_all_say_the_same_prove_little() -> None:
    assert difference(0.0, 0.0, 0.0).p == 1
    assert difference(0.5, 0.5, 0.5).p == 0.25 and difference(0.5, 0.5, 0.5).verdict == "not shown"
    assert difference(*[0.1 + 0.2] * 5, 0.3).p == 2**-5 and difference(*[0.3] * 6).verdict == "holds"
    assert difference(0.0, 0.0, 0.0, kind=SAME, margin=0.1).verdict == "not shown"


def test_trends_are_exact() -> None:
    """Of five arms in one order, 2 of 120 orders are as far from none; an interval never leaves [-1, 1]."""
    rising = [[1.0, 2, 3, 4, 5]] * 3
    assert trend(rising, rising)[::2] == (1.0, pytest.approx(2 / 120))
    assert trend([r[:4] for r in rising], [r[:4] for r in rising])[2] == pytest.approx(2 / 24)  # four arms show nothing
    assert trend(rising, [[1.0] * 5] * 3) == (0.0, 0.0, 1.0)  # no order at all
    many = [list(map(float, range(12)))] * 3
    assert trend(many, [m[::-1] for m in many])[2] < 0.001
    rng = np.random.default_rng(0)
    for arms in (4, 5, 6):
        for _ in range(20):
            x, y = rng.normal(size=(2, 3, arms)).round(1)
            found = measure(
                Trend("", tuple(value(f"x{i}") for i in range(arms)), tuple(value(f"y{i}") for i in range(arms))),
                seeded({f"{n}{i}": v[:, i] for n, v in (("x", x), ("y", y)) for i in range(arms)}),
            )
            each = [stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)]
            assert found.mean == pytest.approx(np.nan_to_num(each).mean())
            assert -1 <= found.low <= found.mean <= found.high <= 1
            assert (found.verdict == OPEN) == (found.low <= 0 <= found.high)


def test_holm() -> None:
    """By hand, and as statsmodels has it: the smallest of m by m, the next by m - 1, never below the one before."""
    blank = difference(0.1, 0.2, 0.4)
    p = [0.01, 0.04, 0.03, 0.6]
    found = together([replace(blank, p=x) for x in p])
    assert [o.corrected for o in found] == pytest.approx([0.04, 0.09, 0.09, 0.6])
    assert [o.survives for o in found] == ["holds", OPEN, OPEN, OPEN]
    assert [o.corrected for o in together([replace(blank, p=x) for x in p], 2)] == pytest.approx(
        [0.08, 0.18, 0.18, 1.0]
    )


def test_a_long_name_leaves_its_bar_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inches: list[float] = []
    save = Figure.savefig

    def saved(self: Figure, *given: Any, **options: Any) -> None:
        save(self, *given, **options)
        inches.extend(axis.get_position().width * self.get_figwidth() for axis in self.axes)

    monkeypatch.setattr(Figure, "savefig", saved)
    names = ["a", "curated by a judge at 0.7, four candidates a request, of equally many tokens"]
    panel = Panel("m", {name: Value("m", {"arm": name}) for name in names})
    panels_figure([panel] * 3, seeded({name: [1.0, 2.0, 3.0] for name in names}), tmp_path / "a.png")
    assert len(inches) == 3 and min(inches) > 1.5  # of 3.9 a panel has


@pytest.mark.parametrize("studies_of", [300, pytest.param(10_000, marks=pytest.mark.replicate)])
def test_null_studies_are_wrong_as_seldom_as_they_say(studies_of: int) -> None:
    """Studies in which nothing is true: ten differences, three equivalences at the end of their margin, two trends."""
    rng = np.random.default_rng(1)
    lines: list[Statement] = [Contrast(f"{i}", value(f"a{i}"), value(f"b{i}")) for i in range(10)]
    lines += [Contrast(f"same {i}", value(f"s{i}"), value(f"b{i}"), SAME, 0.5) for i in range(3)]
    lines += [Trend(f"{n}", *(tuple(value(f"{n}{k}{j}") for j in range(5)) for k in "xy")) for n in "tu"]
    wrong, any_wrong = 0, 0
    for _ in range(studies_of):
        base = rng.normal(size=3)  # a seed's own level, which pairing removes
        arms = {f"{k}{i}": base + rng.normal(size=3) for k in "ab" for i in range(10)}
        arms |= {f"s{i}": arms[f"b{i}"] + 0.5 + rng.normal(size=3) for i in range(3)}
        own = rng.normal(size=(4, 5))  # arms differ for all seeds alike, for reasons of their own
        arms |= {
            f"{n}{k}{j}": own[2 * (n == "u") + (k == "y"), j] + 0.1 * rng.normal(size=3)
            for n in "tu"
            for k in "xy"
            for j in range(5)
        }
        found = together([measure(line, seeded(arms)) for line in lines])
        wrong += sum(o.verdict != OPEN for o in found)
        any_wrong += any(o.survives != OPEN for o in found)
    rate, family = wrong / (studies_of * len(lines)), any_wrong / studies_of
    print(f"{studies_of} null studies: {rate:.4f} of lines decided, {family:.4f} of studies after Holm")
    error = (LEVEL * (1 - LEVEL) / studies_of) ** 0.5
    assert rate < LEVEL + 3 * error / len(lines) ** 0.5 and family < LEVEL + 3 * error
    assert rate > 0.6 * LEVEL  # it is a test, and not a refusal to say anything


def test_results_replace_those_of_an_earlier_run() -> None:
    page = insert("# A page\n\nText.\n", "x", "one\n")
    again = insert(page + "\nMore text.\n", "x", "two\n")
    assert "one" not in again and "two" in again and again.startswith("# A page\n\nText.") and "More text." in again


def test_what_is_drawn_against_another_arm() -> None:
    """Of each seed: its own other arm is taken away, over the rounds and seeds that both have."""
    arms = Arms([])
    arms.known = [
        ({"arm": arm, "seed": seed}, {n: {"m": 10.0 * seed + n * more} for n in rounds})
        for arm, more, seeds, rounds in (("a", 2.0, (0, 1, 2), (1, 2, 3)), ("b", 0.5, (1, 2), (1, 2)))
        for seed in seeds
    ]
    a, b = Value("m", {"arm": "a"}), Value("m", {"arm": "b"}, 2)
    panel = Panel("", {"a": replace(a, round=2)})
    assert arms.bars(panel) == {"a": [4.0, 14.0, 24.0]}
    assert arms.bars(replace(panel, against=b)) == {"a": [3.0, 3.0]}
    assert arms.lines(panel) == {"a": {1: [2.0, 12.0, 22.0], 2: [4.0, 14.0, 24.0], 3: [6.0, 16.0, 26.0]}}
    assert arms.lines(replace(panel, against=b)) == {"a": {1: [1.5, 1.5], 2: [3.0, 3.0]}}


@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_a_study_selects_arms_of_its_own_sweeps(study: Study) -> None:
    """Every `where` has one arm a seed; found out here, before half an hour of training."""
    assert (Path(__file__).parent.parent / f"conf/experiment/{study.name}.yaml").is_file()
    check(study)


def test_what_cannot_be_measured_is_refused_before_any_arm_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("GENLOSS_PROJECT", str(project))
    two = tuple(o.replace("seed=0,1,2", "seed=0,1") for o in STUDY.sweeps[0])
    third = (*(o for o in two if not o.startswith("seed=")), "seed=2")
    check(replace(STUDY, sweeps=(two, third, third)))  # seeds of a line count over all sweeps
    nothing = Panel("", {"": Value("diversity", {"mixing": "fresh"})})
    for wrong, why in (
        (replace(STUDY, sweeps=(two,)), r"seed=\[0, 1\]: are too few for 'replacing loses more'; run at least 3"),
        (replace(STUDY, panels=(nothing,)), "selects no arm"),
        (replace(STUDY, sweeps=((*STUDY.sweeps[0], "domain.chains=1"),)), "domain.chains=1: must be at least 2"),
        (replace(STUDY, name="shumailov_gausian"), "experiment=shumailov_gausian: unknown; did you mean"),
    ):
        with pytest.raises(UserError, match=why):
            replicate_study(wrong, project / "docs", jobs=1)
    assert not (project / "runs").exists()
