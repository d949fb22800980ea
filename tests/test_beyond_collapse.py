"""Beyond Model Collapse: verification by another model, best of k, noisy verifiers and fast verification of
expressions."""

from __future__ import annotations

import json
import random
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from genloss.core import records
from genloss.core.capabilities import Repeats, Verifies, able
from genloss.core.contracts import LAST, ROUND0, Curated, Inputs
from genloss.core.errors import UserError
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.curate import Context, curate
from genloss.domains.reasoning import checks as verify
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.workflow.compose import compose

# a generator that is right sometimes after a second: small divisors are common
TINY = [
    "domain=reasoning",
    "domain/tasks=gcd",
    "rounds=1",
    "size=96",
    "domain.examples=128",
    "domain.validation=32",
    "domain.test=64",
    "domain.pool=80",
    "recipe.n=60",
    "recipe.chunk=16",
    "metrics.accuracy.chunk=32",
    "trainer.steps=60",
    "trainer.batch=16",
    "tracking=none",
    "runtime.workers=1",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A run whose generator answered 60 problems twice."""
    folder = tmp_path_factory.mktemp("beyond")
    loop = Loop(Experiment(compose([*TINY, "recipe.samples=2"])), RunDir(folder / "run", Store(folder / "store")))
    loop.run()
    return loop


def context_of(x: Experiment, run: Loop) -> Context:
    """Of round 1, whose last model is that of round 0."""
    model = (run.run_dir.round(0) / "model",)
    return Context(x.domain, 1, 0, run.run_dir.data, Inputs({ROUND0: model, LAST: model}), x.runtime)


def selected(run: Loop, *overrides: str) -> Curated:
    x = Experiment(compose([*TINY, "recipe.samples=2", *overrides]))
    return curate(records.read(run.run_dir.round(1) / "generated.parquet"), x.curators, "none", context_of(x, run))


# -- another model as the verifier -------------------------------------------------------------------------------------


def test_agree_keeps_what_the_judge_answers_too(ran: Loop, tmp_path: Path) -> None:
    kept, rejected, counts, _ = selected(ran, "curation=agree")
    generated = records.read(ran.run_dir.round(1) / "generated.parquet")
    # the judge's answers again, from a greedy run of the same model over the same problems
    greedy = Loop(
        Experiment(compose([*TINY, "recipe.bias=0"])),
        RunDir(tmp_path / "run", Store(ran.run_dir.root.parent / "store")),
    )
    greedy.run()
    table = records.read(greedy.run_dir.round(1) / "generated.parquet")
    said = dict(zip(table.column("prompt").to_pylist(), table.column("response").to_pylist(), strict=True))
    same = verify.integers(
        generated.column("response"), [said[p] for p in generated.column("prompt").to_pylist()]
    ).right
    assert kept.column("id").to_pylist() == generated.filter(same).column("id").to_pylist()
    assert 0 < same.sum() < len(same)
    assert set(rejected["reason"].to_pylist()) <= {"agree: disagrees", "agree: unparseable"}
    assert counts["kept"] == same.sum()


def test_agree_takes_a_model_of_another_run(ran: Loop) -> None:
    folder = ran.run_dir.root
    own, _, _, _ = selected(ran, "curation=agree")
    other, _, _, _ = selected(ran, "curation=agree", f"curation.agree.judge={folder}*/rounds/00/model")
    assert own.column("id").to_pylist() == other.column("id").to_pylist()
    better, _, _, _ = selected(ran, "curation=agree", f"curation.agree.judge={folder}/rounds/01/model")
    assert own.column("id").to_pylist() != better.column("id").to_pylist()


def test_agree_never_looks_at_the_truth(ran: Loop) -> None:
    table = records.read(ran.run_dir.round(1) / "generated.parquet")
    lies = table.set_column(table.column_names.index("answer"), "answer", [["1"] * len(table)])
    x = Experiment(compose([*TINY, "recipe.samples=2", "curation=agree"]))
    context = context_of(x, ran)
    honest, lied = (curate(t, x.curators, "none", context)[0].column("id").to_pylist() for t in (table, lies))
    assert honest == lied


def test_the_key_of_agree_holds_its_judge(ran: Loop, tmp_path: Path) -> None:
    def agree(run: Path):
        return Experiment(compose([*TINY, "curation=agree", f"curation.agree.judge={run}/rounds/00/model"])).curators[
            "agree"
        ]

    for name in ("a", "b"):
        shutil.copytree(ran.run_dir.root / "rounds/00/model", tmp_path / name / "rounds/00/model")
        shutil.copytree(ran.run_dir.data / "tokenizer", tmp_path / name / "data/tokenizer")
    assert agree(tmp_path / "a").fingerprint() == agree(tmp_path / "b").fingerprint() != ""
    config = tmp_path / "b/data/tokenizer/tokenizer_config.json"
    config.unlink()
    config.write_text("{}")
    assert agree(tmp_path / "a").fingerprint() != agree(tmp_path / "b").fingerprint()
    assert (
        "last" in Experiment(compose([*TINY, "curation=agree", "curation.agree.judge=last"])).curators["agree"].reads()
    )


def test_bad_judges_are_refused(ran: Loop, tmp_path: Path) -> None:
    def refused(folder: object, *words: str, context: int = 16) -> None:
        with pytest.raises(UserError) as error:
            Experiment(
                compose([*TINY, f"domain.context={context}", "curation=agree", f"curation.agree.judge={folder}"])
            )
        for word in ("curation.agree.judge", *words):
            assert word in str(error.value)

    refused("none/such", "RUN/rounds/NN/model", "no folder")
    refused(f"{ran.run_dir.root}/rounds/*/model", "names 2 folders (00/model, 01/model)")
    refused(ran.run_dir.root, "config.json is missing")
    refused(f"{ran.run_dir.root}/rounds/00/model", "at least 64 tokens", "it has 16", context=64)
    config = tmp_path / "gpt2/rounds/00/model/config.json"
    shutil.copytree(ran.run_dir.root / "rounds/00/model", config.parent)
    shutil.copytree(ran.run_dir.data / "tokenizer", tmp_path / "gpt2/data/tokenizer")
    config.unlink()
    config.write_text(json.dumps({"n_positions": 12}))
    refused(config.parent, "at least 16 tokens", "it has 12")
    (tmp_path / "run/rounds/00").mkdir(parents=True)
    shutil.copytree(ran.run_dir.root / "rounds/00/model", tmp_path / "run/rounds/00/model")
    refused(f"{tmp_path}/run/rounds/00/model", "tokenizer.json is missing")


# -- what a selection is worth -----------------------------------------------------------------------------------------


def test_likelihood_keeps_the_likeliest_half(ran: Loop) -> None:
    kept, rejected, _, _ = selected(ran, "curation=likelihood")
    assert len(kept) == len(rejected) == 60
    assert max(kept["score"].to_pylist()) <= min(rejected["score"].to_pylist())  # nats a token


def test_best_of_k_of_independent_tries(ran: Loop) -> None:
    """The oracle's best of k is right where any of the k is."""
    verifies = able(ran.experiment.domain, Verifies)
    generated = records.read(ran.run_dir.round(1) / "generated.parquet")
    right = verifies.verify(generated).right.reshape(60, 2)
    kept, _, _, _ = selected(ran, "curation=best_of")
    assert verifies.verify(kept).right.tolist() == right.any(axis=1).tolist()


def test_a_sweep_may_override_the_samples_of_best_of() -> None:
    x = Experiment(compose([*TINY, "curation=best_of", "recipe.samples=16"]))
    assert able(x.recipe, Repeats).samples == 16
    assert able(Experiment(compose([*TINY, "curation=best_of"])).recipe, Repeats).samples == 4


@pytest.mark.parametrize("curation", ["exact", "noisy"])
def test_unparseable_answers_have_a_reason_of_their_own(ran: Loop, tmp_path: Path, curation: str) -> None:
    folder = ran.run_dir.root.parent
    x = Experiment(compose([*TINY, f"curation={curation}", "recipe.temperature=1.5"]))  # hot: many are no numbers
    loop = Loop(x, RunDir(tmp_path / "run", Store(folder / "store")))
    loop.run()
    metrics = json.loads((loop.run_dir.round(1) / "metrics.json").read_text())
    generated = records.read(loop.run_dir.round(1) / "generated.parquet")
    parsed = able(x.domain, Verifies).verify(generated).parsed
    assert 0 < parsed.sum() < len(parsed)
    assert metrics["label_unparseable"] == pytest.approx(1 - parsed.mean())
    dropped = metrics[f"dropped/{curation}_unparseable"]
    assert dropped == (~parsed).sum() if curation == "exact" else 0 < dropped <= (~parsed).sum()


# -- expressions -------------------------------------------------------------------------------------------------------


def a_numeral(rng: random.Random) -> str:
    a, b, m = rng.randint(-40, 40), rng.choice([1, 2, 3, 4, 5, 7, 8, 9, 10, 20]), rng.choice([1, 2, 3])
    minus = "-" if a < 0 else ""
    return rng.choice(
        [
            str(a),
            f"{a}/{b}",
            rf"\frac{{{a * m}}}{{{b * m}}}",
            rf"{minus}\dfrac{{{abs(a)}}}{{{b}}}",
            f"{a}.{rng.randint(0, 99)}",
            f"{a / b:.{rng.randint(1, 6)}f}",
            f"{Fraction(a, b)}",
        ]
    )


def an_expression(rng: random.Random) -> str:
    a, b = rng.randint(1, 4), rng.randint(1, 4)
    return rng.choice(
        [
            rf"\sqrt{{{a}}}",
            rf"{a}\sqrt{{{b}}}",
            rf"\frac{{\sqrt{{{a * b}}}}}{{{b}}}",
            f"x+{a}",
            f"{a}+x",
            rf"{a}\pi",
            f"+{a}",
            f"0{a}",
            f"{a}^2",
            f"{a}-{b}",
            f"{a}+",
            f"{a}%",
            f"{a}/0",
            rf"\frac{{{a}}}{{0}}",
            rf"{a} \cdot {b}",
            "?",
            "",
        ]
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_expressions_decides_as_math_verify_does(seed: int) -> None:
    pytest.importorskip("math_verify")
    rng = random.Random(seed)
    pool = [a_numeral(rng) for _ in range(60)] + [an_expression(rng) for _ in range(30)]
    pairs = [(rng.choice(pool), rng.choice(pool)) for _ in range(250)] + [(t, t) for t in pool]
    # numerals that are nearly the same: math-verify compares decimals to six digits
    pairs += [(f"{1 / 3:.{digits}f}", "1/3") for digits in range(1, 9)] + [("0.333334", "0.333333"), ("2.0", "2")]
    right, parsed = verify.expressions(*zip(*pairs, strict=True))
    assert list(zip(right.tolist(), parsed.tolist(), strict=True)) == verify.compare(pairs)
    numerals = [verify.numeral(a) is not None and verify.numeral(b) is not None for a, b in pairs]
    assert 0.2 < np.mean(numerals) < 0.8 and 0.05 < right.mean() < 0.95


def test_processes_decide_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    rng = random.Random(3)
    said, true = ([an_expression(rng) for _ in range(60)] for _ in range(2))
    alone = verify.expressions(said, true)
    monkeypatch.setattr(verify, "POOL", 10)
    monkeypatch.setattr(verify, "cores", lambda: 2)
    asked: list[int] = []
    real = verify._in_a_process

    def counted(pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
        asked.append(len(pairs))
        return real(pairs)

    monkeypatch.setattr(verify, "_in_a_process", counted)
    together = verify.expressions(said, true)
    assert len(asked) > 1
    assert (together.right == alone.right).all() and (together.parsed == alone.parsed).all()


def test_a_pair_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    asked: list[tuple[str, str]] = []
    real = verify.compare

    def counted(pairs: list[tuple[str, str]]) -> list[tuple[bool, bool]]:
        asked.extend(pairs)
        return real(pairs)

    monkeypatch.setattr(verify, "compare", counted)
    right, parsed = verify.expressions([r"\sqrt{4}", "2", "x", "4/2"] * 50, ["2", "2.0", "2", "2"] * 50)
    assert sorted(asked) == [(r"\sqrt{4}", "2"), ("x", "2")]
    assert right.tolist() == [True, True, False, True] * 50 and parsed.all()


@pytest.mark.parametrize(
    "text", ["1_000", "１", "1e3", "0x1", "--1", "1/0", "nan", "1 2", "9" * 7, "1/-2", r"\frac{1}{2}3", "-"]
)
def test_what_is_no_numeral(text: str) -> None:
    assert verify.numeral(text) is None
