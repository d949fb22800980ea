"""Verdicts: tests of the eight definitions of collapse, on simulated sweeps and on the lab's."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.observatory import definitions, verdict
from genloss.observatory.compare import LEVEL, holm
from genloss.observatory.controls import Group, compared
from genloss.observatory.definitions import DEFINITIONS, READS, needed, power, unbounded, useless
from genloss.observatory.groups import grouped
from genloss.observatory.quantities import quantity
from genloss.observatory.report import write_report
from genloss.observatory.results import Arm, Rounds
from genloss.observatory.verdict import NO, NONE, OPEN, UNTESTABLE, YES, Row, onset, verdicts
from genloss.observatory.verdict_words import shown
from genloss.workflow import mlflow_run
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.identity import differing
from genloss.workflow.tracking import verdict_tags
from support import Project

LAST = 8  # round of a simulated arm
RISK, SPREAD = "heldout_bits_per_byte", "entropy_1"


def group(name: str, rise: float = 0.0, seeds: int = 5, unit: float = 1.0, seed: int = 0, sd: float = 0.02) -> Group:
    """Arms of text whose risk rises, and whose spread falls, by so much (in logarithms) up to the last round."""
    rng = np.random.default_rng([seed, *name.encode()])
    rounds: dict[int, Rounds] = {
        s: {
            n: {
                RISK: unit * 2.5 * math.exp(rise * n / LAST + sd * rng.standard_normal()),
                SPREAD: 8 * math.exp(-rise * n / LAST + sd * rng.standard_normal()),
            }
            for n in range(LAST + 1)
        }
        for s in range(seeds)
    }
    known = {"domain.name": "text", "mixing.name": "real_only" if name == "real" else "replace", "size": 100}
    return Group(name, known, rounds, (name,), name)


def by_name(rows: list[Row], arm: str) -> dict[str, Row]:
    return {row["definition"]: row for row in rows if row["arm"] == arm}


def test_what_collapses_is_told_from_what_does_not() -> None:
    rows = verdicts([group("real"), group("bad", 1.0), group("good")])
    bad, good = by_name(rows, "bad"), by_name(rows, "good")
    assert {name for name, row in bad.items() if row["verdict"] == YES} == {"any_rise", "diverging", "variance"}
    assert bad["catastrophic"]["verdict"] == NO and bad[NONE]["verdict"] == NO  # 6.8 bits of 8
    assert bad["any_rise"]["effect"] == pytest.approx(1.0, abs=0.05)
    low, high = bad["any_rise"]["interval"]
    assert low < bad["any_rise"]["effect"] < high and bad["variance"]["effect"] < 0
    assert bad["any_rise"]["onset"] in (1, 2) and bad["any_rise"]["metric"] == RISK
    assert YES not in {row["verdict"] for name, row in good.items() if name != NONE}
    assert all(row["control"] == "real" for row in rows) and "real" not in {row["arm"] for row in rows}
    assert good["entanglement"]["verdict"] == UNTESTABLE and "no metric" in good["entanglement"]["reason"]
    worst = by_name(verdicts([group("real"), group("bad", 1.5)]), "bad")["catastrophic"]
    assert worst["verdict"] == YES and worst["onset"] > 4


@settings(deadline=None, max_examples=15)
@given(unit=st.floats(1e-3, 1e3), rise=st.floats(0, 0.5))
def test_a_unit_changes_no_verdict(unit: float, rise: float) -> None:
    def numbers(unit: float) -> list[list[float]]:
        rows = verdicts([group("real", unit=unit), group("bad", rise, unit=unit)])
        kept = [r for r in rows if r["definition"] in ("any_rise", "diverging")]
        return [[r["effect"], *r["interval"], r["p"]] for r in kept]

    np.testing.assert_allclose(numbers(unit), numbers(1.0), rtol=1e-6, atol=1e-9)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order_and_never_lowers_p(p: list[float]) -> None:
    found = holm(p)
    assert all(a <= b <= 1 for a, b in zip(p, found, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all() if p else found == []
    assert not p or min(found) == pytest.approx(min(1.0, len(p) * min(p)))


def test_an_onset_is_the_begin_of_an_unbroken_run() -> None:
    up, none = np.array([1.0, 1.1, 0.9]), np.array([1.0, -1.1, 0.1])
    assert onset({1: none, 2: up, 3: up}) == 2
    assert onset({1: up, 2: none, 3: up}) == 3
    assert onset({1: up, 2: up, 3: none}) is None
    assert onset({1: -up, 2: up}) == 2


def test_null_sweeps_rarely_say_yes() -> None:
    """200 sweeps of two arms: at most 5 % of them, and two standard errors."""
    sweeps = [[group("real", seed=i, seeds=3), *(group(f"arm {a}", seed=i, seeds=3) for a in "ab")] for i in range(200)]
    wrong = sum(any(r["verdict"] == YES and r["definition"] != NONE for r in verdicts(sweep)) for sweep in sweeps)
    assert wrong / 200 < LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 200)


def test_seeds_that_are_asked_for_decide() -> None:
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((20_000, 5)) + 1.2
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(5))
    assert power(1.2, 5, 0.05) == pytest.approx((t > 2.1318).mean(), abs=0.01)
    n = needed(1.2, 0.05)
    assert power(1.2, n, 0.05) >= definitions.POWER > power(1.2, n - 1, 0.05)
    assert needed(0.0, 0.05) > definitions.MOST
    few = by_name(verdicts([group("real", seeds=3, sd=0.1), group("bad", 0.3, seeds=3, sd=0.1)]), "bad")["any_rise"]
    assert few["verdict"] == OPEN and 1 <= few["more_seeds"] < 40
    more = 3 + 3 * few["more_seeds"]
    enough = by_name(verdicts([group("real", seeds=more, sd=0.1), group("bad", 0.3, seeds=more, sd=0.1)]), "bad")
    assert enough["any_rise"]["verdict"] == YES


def test_a_line_is_told_from_a_curve() -> None:
    n = np.arange(13.0)
    assert unbounded(n, n) > 0 > unbounded(n, np.cumsum(1 / np.maximum(n, 1) ** 2) - 1)
    assert unbounded(n, 1 - 0.5**n) < 0 and unbounded(n, 0 * n) == 0


def without(g: Group, metric: str, at: tuple[int, ...] | None = None, value: float | None = None) -> Group:
    def of(n: int, values: Mapping[str, float]) -> dict[str, float]:
        if at is not None and n not in at:
            return dict(values)
        return {k: v for k, v in values.items() if k != metric} | ({metric: value} if value is not None else {})

    return Group(
        g.name, g.known, {s: {n: of(n, v) for n, v in r.items()} for s, r in g.seeds.items()}, g.arms, g.family
    )


def reason(found: list[Group], definition: str = "any_rise", chosen: str | None = None) -> tuple[str, str]:
    row = by_name(verdicts(found, chosen), "bad")[definition]
    return row["verdict"], row["reason"]


def test_what_a_sweep_lacks_is_named() -> None:
    real, bad = group("real"), group("bad", 1.0)
    assert reason([bad])[0] == UNTESTABLE and "mixing=real_only" in reason([bad])[1]
    one = reason([group("real", seeds=1), group("bad", 1.0, seeds=1)])
    assert one == (UNTESTABLE, "1 seed that both have; at least 3 are needed")
    assert reason([real, without(bad, RISK)]) == (UNTESTABLE, f"{RISK} is missing, or no number, in round 1")
    gone = reason([real, without(bad, RISK, (5,), math.nan)])
    assert gone == (UNTESTABLE, f"{RISK} is missing, or no number, in round 5")
    assert reason([real, without(bad, RISK, (5,), math.inf)]) == gone
    assert reason([real, without(bad, RISK)], "variance")[0] == YES  # the rest is made
    short = Group("bad", bad.known, {s: {n: r[n] for n in range(4)} for s, r in bad.seeds.items()}, ("bad",), "bad")
    word, note = reason([real, short])
    assert word == YES and note == "up to round 3 of 8: not every seed is further"
    assert (
        reason([real, short], "diverging")[1]
        == f"4 rounds with {RISK}; at least 5 are needed to tell a line from a curve"
    )
    hole = Group("bad", bad.known, {s: {n: v for n, v in r.items() if n != 4} for s, r in bad.seeds.items()}, ("bad",))
    assert reason([real, hole]) == (YES, "without round 4")
    holes = {s: {n: v for n, v in r.items() if n in (0, 8)} for s, r in bad.seeds.items()}
    assert reason([real, Group("bad", bad.known, holes)]) == (YES, "without rounds 1, 2, 3, 4, 5 …")
    assert "not testable: " in shown(verdicts([bad])) and "\n" not in shown(verdicts([bad]))
    assert shown(verdicts([real])) == "verdicts: every arm is the control"


def test_a_seed_that_ended_early_cuts_no_other() -> None:
    """Of an arm, or of the control, which all arms share; as long as enough are left."""

    def ended(g: Group, at: dict[int, int]) -> Group:
        seeds = {s: {n: v for n, v in r.items() if n <= at.get(s, LAST)} for s, r in g.seeds.items()}
        return Group(g.name, g.known, seeds, g.arms, g.family)

    real, bad = group("real"), group("bad", 1.0)
    left = "seed 3 left out: it ended at round 1"
    for found in ([real, ended(bad, {3: 1})], [ended(real, {3: 1}), bad]):
        row = by_name(verdicts(found), "bad")["any_rise"]
        assert (row["verdict"], row["reason"], row["seeds"]) == (YES, left, 4)
        assert reason(found, "diverging") == (YES, left)
    some = [real, ended(bad, {0: 6, 1: 6, 2: 6, 3: 1})]  # one alone is whole, and no test
    assert reason(some) == (YES, f"up to round 6 of 8: not every seed is further; {left}")
    few = [real, ended(group("bad", 1.0, seeds=3), {0: 1})]
    assert by_name(verdicts(few), "bad")["any_rise"]["seeds"] == 3


def test_a_verdict_on_fewer_rounds_than_others_have_is_marked() -> None:
    def until(g: Group, last: int, without: int = -1) -> Group:
        seeds = {s: {n: v for n, v in r.items() if n <= last and n != without} for s, r in g.seeds.items()}
        return Group(g.name, g.known, seeds, g.arms, g.family)

    real, bad, good = group("real"), group("bad", 1.0), group("good")
    assert {tuple(row["missing_rounds"] or ()) for row in verdicts([real, bad, good])} == {()}
    for found, missing in (
        ([real, until(bad, LAST, 4), good], [4]),
        ([real, until(bad, 5), good], [6, 7, 8]),
        ([until(real, 5), bad], [6, 7, 8]),  # of the control
    ):
        rows = verdicts(found)
        own = by_name(rows, "bad")
        assert own["any_rise"]["missing_rounds"] == own[NONE]["missing_rounds"] == missing
        assert own["tail"]["verdict"] == UNTESTABLE and own["tail"]["missing_rounds"] is None
        said = shown(rows).splitlines()
        assert " yes†, since" in said[2] and any(line.startswith("any_rise†") for line in said)
        assert len(found) == 2 or "†" not in said[3]
        assert any(line.startswith("† on fewer rounds") for line in said)


def test_a_control_is_the_nearest_on_real_data_or_the_one_that_is_named() -> None:
    def at(g: Group, name: str, **keys: str) -> Group:
        return Group(name, dict(g.known) | keys, g.seeds, (f"{name} seed 0",), name)

    real, bad = group("real"), group("bad", 1.0)
    found = [at(real, "real"), at(real, "real dedup", curation="dedup"), bad, at(bad, "bad dedup", curation="dedup")]
    controls = {row["arm"]: row["control"] for row in verdicts(found)}
    assert controls == {"bad": "real", "bad dedup": "real dedup"}
    named = {row["arm"]: row["control"] for row in verdicts(found, "bad")}
    assert named == {"real": "bad", "real dedup": "bad", "bad dedup": "bad"}
    with pytest.raises(UserError, match="--control=bda: unknown; did you mean bad"):
        verdicts(found, "bda")


def test_a_regime_names_its_groups_in_every_domain() -> None:
    def at(g: Group, name: str, **keys: str) -> Group:
        return Group(name, dict(g.known) | keys, g.seeds, (f"{name} seed 0",), name)

    real, bad = group("real"), group("bad", 1.0)
    lab = {"domain.name": "gaussian"}
    found = [at(real, "real text"), at(bad, "bad text"), at(real, "real lab", **lab), at(bad, "bad lab", **lab)]
    expected = {"bad text": "real text", "bad lab": "real lab"}
    assert {row["arm"]: row["control"] for row in verdicts(found, "real_only")} == expected
    assert {row["arm"]: row["control"] for row in verdicts(found)} == expected
    one = verdicts(found, "real lab")  # one group alone: what is of another domain has none
    assert {row["arm"]: row["control"] for row in one} == {"bad lab": "real lab", "real text": None, "bad text": None}
    assert "there is no control of its domain, text" in one[0]["reason"]


def test_scaling_needs_three_sizes() -> None:
    def at(name: str, size: int, exponent: float) -> Group:
        made = group(name, seed=size, sd=0.01)
        seeds = {
            s: {n: values | {RISK: values[RISK] * size**exponent} for n, values in rounds.items()}
            for s, rounds in made.seeds.items()
        }
        return Group(f"{name} {size}", dict(made.known) | {"size": size}, seeds, (f"{name} {size}",), name)

    sizes = (100, 1000, 10_000)
    found = [at(name, size, e) for name, e in (("real", -0.3), ("bad", -0.1)) for size in sizes]
    rows = {row["arm"]: row for row in verdicts(found) if row["definition"] == "scaling"}
    assert rows["bad 10000"]["verdict"] == YES and rows["bad 10000"]["effect"] == pytest.approx(0.2, abs=0.02)
    assert "largest" in rows["bad 100"]["reason"]
    few = [row for row in verdicts([g for g in found if g.known["size"] > 100]) if row["definition"] == "scaling"]
    assert {row["reason"] for row in few} == {"needs arms of at least 3 sizes, there are 2"}


def test_a_regime_has_its_sizes_also_where_others_have_no_budget(tmp_path: Path) -> None:
    """A budget of `accumulate_subsample` is the size; `replace` has none."""
    arms = []
    for regime, size, seed in itertools.product(("real_only", "replace", "accumulate_subsample"), (20, 40, 80), (3, 4)):
        cfg = compose(["domain=gaussian", f"mixing={regime}", f"size={size}", f"seed={seed}", "rounds=0"])
        folder = tmp_path / f"{regime}-{size}-{seed}"
        write_atomic(folder / "params.yaml", to_yaml(cfg))
        write_atomic(folder / "rounds/00/metrics.json", "{}")
        arms.append((f"{regime} size={size} seed {seed}", folder))
    found = compared(grouped(arms, differing(arms)))
    assert len(found) == 9 and len({g.family for g in found}) == 3
    assert all(len(definitions._family(g, found)) == 3 for g in found)
    one = compared(grouped(arms[:1], differing(arms[:1])))[0]
    assert one.known["size"] == 20


def test_every_domain_has_its_readings() -> None:
    """And the baselines that are of no use are worse than what is learned from real data."""
    known = {"domain.modes": 25, "domain.spacing": 1.0, "domain.std": 0.1, "domain.vocabulary": 50}
    assert useless("gmm", "log_likelihood", known) == pytest.approx(-1 - math.log(2 * math.pi * 2.01))
    assert useless("categorical", "heldout_loss", known) == pytest.approx(math.log(50))
    assert useless("reasoning", "accuracy", known) is None
    roles = {definitions.RISK, definitions.SPREAD, definitions.MODES, definitions.TAIL, definitions.OUTSIDE}
    assert all(set(of) <= roles for of in READS.values())
    for domain, of in READS.items():
        for reading in itertools.chain(*of.values()):
            assert quantity(reading.metric, domain).unit, reading
            assert not reading.log or quantity(reading.metric, domain).low >= 0, reading
    risks = {(d, r.metric): quantity(r.metric, d).ended(r.worse) for d, of in READS.items() for r in of["risk"]}
    assert {key for key, ended in risks.items() if ended} == {
        *((domain, "accuracy") for domain in ("reasoning", "classification")),
        ("instruct", "followed"),
        ("categorical", "drift"),
    }


# -- the lab -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> list[Arm]:
    folder, found = tmp_path_factory.mktemp("verdicts"), []
    for regime in ("real_only", "accumulate", "replace"):
        for seed in range(4):
            options = ["domain=categorical", "domain.vocabulary=60", "size=60", "domain.chains=100", "rounds=8"]
            cfg = compose([*options, f"mixing={regime}", f"seed={seed}", "tracking=none", "runtime.workers=1"])
            write_atomic(folder / f"{regime}-{seed}/params.yaml", to_yaml(cfg))
            Loop(Experiment(cfg), RunDir(folder / f"{regime}-{seed}", Store(folder / "store"))).run()
            found.append((f"{regime} seed {seed}", folder / f"{regime}-{seed}"))
    return found


def test_on_the_lab_verdicts_are_those_of_theory(lab: list[Arm]) -> None:
    found = compared(grouped(lab, differing(lab)))
    assert [(g.name, sorted(g.seeds), g.real) for g in found] == [
        ("real_only", [0, 1, 2, 3], True),
        ("accumulate", [0, 1, 2, 3], False),
        ("replace", [0, 1, 2, 3], False),
    ]
    rows = verdicts(found)
    replace, accumulate = by_name(rows, "replace"), by_name(rows, "accumulate")
    for name in ("any_rise", "tail", "variance"):
        assert replace[name]["verdict"] == YES, name
    assert replace["tail"]["onset"] == 1  # O5: from the first round on
    assert accumulate["tail"]["verdict"] == NO and accumulate["tail"]["effect"] == 0  # the real data stay
    assert accumulate["variance"]["verdict"] == NO
    assert replace["diverging"]["reason"] == "drift has bounds, and cannot diverge"


def test_a_report_begins_with_verdicts(lab: list[Arm], tmp_path: Path) -> None:
    text = write_report(lab, tmp_path, differing=differing(lab))
    words = (tmp_path / "report.md").read_text()
    assert words.startswith("# Verdicts\n\n| arm | against | catastrophic |") and "lost_mass" in words
    assert "yes, since 1" in text and "replace  real_only" in " ".join(text.split()).replace(
        "replace real", "replace  real"
    )
    whole = json.loads((tmp_path / "verdicts.json").read_text())
    assert (whole["schema"], whole["alpha"], whole["control"]) == (2, LEVEL, None)
    assert whole["verdicts"] == verdict.read(tmp_path).rows and len(whole["verdicts"]) == 2 * (len(DEFINITIONS) + 1)
    assert verdict.read(tmp_path / "elsewhere") == (None, [])
    write_report(lab, tmp_path, control="accumulate", differing=differing(lab))
    again = verdict.read(tmp_path)
    assert again.chosen == "accumulate" and {row["control"] for row in again.rows} == {"accumulate"}
    (tmp_path / "verdicts.json").write_text("{")
    with pytest.raises(UserError, match=r"verdicts\.json: is damaged; delete it and `genloss report"):
        verdict.read(tmp_path)
    alone = tmp_path / "alone"
    assert "verdicts: not testable: there is no control" in write_report(lab[-1:], alone)
    assert not (alone / "verdicts.json").exists()


def test_tags_say_what_is_so_of_an_arm() -> None:
    rows = verdicts([group("real"), group("bad", 1.0), group("good")])
    tags = verdict_tags(rows)
    assert tags["verdict.any"] == tags["verdict.any_rise"] == YES and tags["verdict.tail"] == UNTESTABLE
    assert verdict_tags([r for r in rows if r["arm"] == "good"])["verdict.any_rise"] in (NO, OPEN)


def test_a_sweep_ends_with_verdicts_that_mlflow_can_filter(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    home = Project.make(tmp_path / "project")
    options = ["domain=categorical", "domain.vocabulary=40", "size=40", "domain.chains=50", "rounds=2"]
    done = home.ok("run", "-m", *options, "mixing=real_only,replace", "seed=0,1,2")
    assert "yes, since 1" in done.out and verdict.read(done.folder).rows
    client = MlflowClient(f"sqlite:///{home.root / 'mlruns/mlflow.db'}")
    where = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(where, "tags.`verdict.tail` = 'yes' and metrics.`verdict/effect_tail/real_only` > 0")
    assert {run.data.tags["regime"] for run in found} == {"replace"} and len(found) == 3
    (parent,) = client.search_runs(where, "tags.`verdict.any` = 'yes' and tags.`genloss.sweep` != ''")
    assert parent.data.tags["verdict.tail"] == YES
    home.ok("report", str(done.folder), "--control", "replace")
    first = client.search_runs(where, "tags.regime = 'real_only'")[0]
    assert first.data.tags["verdict.control"] == "replace" and first.data.metrics["verdict/effect_tail/replace"] < 0
    replace = client.search_runs(where, "tags.regime = 'replace'")[0]
    effects = {name for name in replace.data.metrics if name.startswith("verdict/effect_")}
    assert effects and all(name.endswith("/real_only") for name in effects)  # of before, and still so
    home.ok("report", str(done.folder))
    view = mlflow_run.Run(client, replace.info.experiment_id, client.get_run(replace.info.run_id))
    view.numbers({"verdict/effect_tail/real_only": None, "verdict/effect_new/real_only": None})
    now = client.get_run(replace.info.run_id).data.metrics
    assert math.isnan(now["verdict/effect_tail/real_only"]) and "verdict/effect_new/real_only" not in now
    home.ok("report", str(done.folder))
    assert client.get_run(replace.info.run_id).data.metrics["verdict/effect_tail/real_only"] > 0
    real = client.search_runs(where, "tags.regime = 'real_only'")
    assert real and not any(tag.startswith("verdict.") for run in real for tag in run.data.tags)
    damaged = next(home.root.glob("runs/categorical-replace-*/rounds/01/manifest.json"))
    damaged.unlink()  # of the store as well
    damaged.write_text("{}")
    said = home.ok("report", str(done.folder))
    assert f"left out: {damaged}: is damaged" in said.out and "MLflow does not take arm categorical-replace" in said.err
