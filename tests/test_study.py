"""Studies: claims over arms and seeds, on real runs of the lab (`genloss replicate NAME`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from genloss.core.errors import UserError
from genloss.observatory.compare import SAME, Arms, Contrast, Panel, Study, Trend, Value, judge
from genloss.replicate.study import insert, replicate_study, studies

REPLACE, ACCUMULATE = ({"mixing": name} for name in ("replace", "accumulate"))
DIVERSITY = [Value("diversity", where) for where in (ACCUMULATE, REPLACE)]
LOSES = Contrast("replacing loses more", *DIVERSITY)
STUDY = Study(
    "shumailov_gaussian",
    "Shumailov et al. 2024, arXiv 2305.17493",
    (
        (
            "mixing=replace,accumulate",
            "seed=0,1,2",
            "rounds=3",
            "domain.chains=300",
            "domain.batch=20",
            "model.estimator=mle",
            "tracking=none",
        ),
    ),
    (
        LOSES,
        Contrast("round 0 is one", Value("diversity", REPLACE, 0), Value("diversity", ACCUMULATE, 0), SAME, 1e-9),
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
    assert replicate_study(STUDY, write=True, jobs=2) == 0
    said = capsys.readouterr().out
    assert said.count("| holds |") == 2
    return Arms(list((project / "runs").glob("gaussian-*")))


def test_a_study(project: Path, arms: Arms) -> None:
    page = (project / "docs/shumailov_gaussian.md").read_text()
    assert "| replacing loses more | > 0 | +" in page and "| accumulate |" in page
    assert (project / "docs/shumailov_gaussian.png").read_bytes().startswith(b"\x89PNG")

    assert judge(replace(LOSES, first=DIVERSITY[1], second=DIVERSITY[0]), arms).verdict == "the opposite"
    assert judge(replace(LOSES, kind=SAME, margin=1e-6), arms).verdict in ("the opposite", "not shown")
    assert judge(replace(LOSES, second=DIVERSITY[0]), arms).verdict == "not shown"  # an arm against itself

    rounds = tuple(range(4))
    drift = tuple(Value("drift", REPLACE, n) for n in rounds)
    kept = tuple(Value("diversity", REPLACE, n) for n in rounds)
    assert judge(Trend("both fall", drift, kept), arms).verdict == "the opposite"

    with pytest.raises(UserError, match="selects two arms"):
        judge(Contrast("", Value("diversity", {}), Value("diversity", {})), arms)
    with pytest.raises(UserError, match="selects no arm"):
        judge(Contrast("", Value("diversity", {"mixing": "fresh"}), Value("diversity", {})), arms)
    with pytest.raises(UserError, match="is not in round"):
        judge(Contrast("", Value("diversit", REPLACE), DIVERSITY[0]), arms)
    with pytest.raises(UserError, match="too few"):
        judge(Contrast("", *(Value("diversity", {**w, "seed": 1}) for w in (ACCUMULATE, REPLACE))), arms)


def test_results_replace_those_of_an_earlier_run() -> None:
    page = insert("# A page\n\nText.\n", "x", "one\n")
    again = insert(page + "\nMore text.\n", "x", "two\n")
    assert "one" not in again and "two" in again and again.startswith("# A page\n\nText.") and "More text." in again


def test_every_study_has_its_experiment_and_names_its_arms() -> None:
    conf = Path(__file__).parent.parent / "conf/experiment"
    for study in studies():
        assert (conf / f"{study.name}.yaml").is_file()
        assert study.lines and study.sweeps
