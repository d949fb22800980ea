"""Studies: claims over arms and seeds, on real runs of the lab (`genloss replicate NAME`)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from genloss.core.errors import UserError
from genloss.observatory.compare import SAME, Arms, Contrast, Panel, Study, Trend, Value, described, fits, measure
from genloss.replicate.study import insert, replicate_study, studies
from genloss.workflow.identity import arm_id
from support import experiment_arms

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
    assert replicate_study(STUDY, project / "docs", jobs=2) == 0
    said = capsys.readouterr().out
    assert said.count("| holds |") == 2
    return Arms(list((project / "runs").glob("gaussian-*")))


def test_a_study(project: Path, arms: Arms) -> None:
    page = (project / "docs/shumailov_gaussian.md").read_text()
    assert "| replacing loses more | > 0 | +" in page and "| accumulate |" in page
    assert (project / "docs/shumailov_gaussian.png").read_bytes().startswith(b"\x89PNG")

    assert measure(replace(LOSES, first=DIVERSITY[1], second=DIVERSITY[0]), arms).verdict == "the opposite"
    assert measure(replace(LOSES, kind=SAME, margin=1e-6), arms).verdict in ("the opposite", "not shown")
    assert measure(replace(LOSES, second=DIVERSITY[0]), arms).verdict == "not shown"  # an arm against itself

    rounds = tuple(range(4))
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


def test_results_replace_those_of_an_earlier_run() -> None:
    page = insert("# A page\n\nText.\n", "x", "one\n")
    again = insert(page + "\nMore text.\n", "x", "two\n")
    assert "one" not in again and "two" in again and again.startswith("# A page\n\nText.") and "More text." in again


@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_a_study_selects_arms_of_its_own_sweeps(study: Study) -> None:
    """Every `where` has one arm a seed; found out here, before half an hour of training."""
    assert (Path(__file__).parent.parent / f"conf/experiment/{study.name}.yaml").is_file()
    configs = {}
    for overrides in study.sweeps:
        once = [re.sub(r"^seed=.*", "seed=0", o) for o in overrides]  # seeds differ in nothing else
        for cfg in experiment_arms(study.name, *once):
            configs[arm_id(cfg)] = described(cfg)
    pairs = [(line.first, line.second) if isinstance(line, Contrast) else line.x + line.y for line in study.lines]
    values = [v for pair in pairs for v in pair] + [v for panel in study.panels for v in panel.values.values()]
    assert values
    for where in {str(v.where): v.where for v in values}.values():
        seeds = [known["seed"] for known in configs.values() if fits(known, where)]
        assert seeds and len(seeds) == len(set(seeds)), where
