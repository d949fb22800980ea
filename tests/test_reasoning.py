"""The reasoning domain: problems with exact answers, verification, and the loop of Feng et al. (2024) over them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.capabilities import able
from genloss.core.contracts import LAST, Curated, Decoding, Fit, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.core.records import normal
from genloss.core.rundir import RunDir
from genloss.core.store import Store
from genloss.curate import Context, curate, rates
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.checks import expressions, integers, spectra, texts
from genloss.domains.reasoning.schooled import Schooled
from genloss.domains.reasoning.tasks import Gym
from genloss.experiment import Experiment
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import load_codec
from genloss.loop import Loop
from genloss.workflow.compose import compose
from support import REPOSITORY

TINY = [
    "domain=reasoning",
    "rounds=2",
    "size=96",
    "domain.examples=128",
    "domain.validation=32",
    "domain.test=64",
    "domain.pool=200",
    "recipe.n=40",
    "recipe.chunk=16",
    "metrics.accuracy.chunk=32",
    "trainer.steps=60",
    "trainer.batch=16",
    "tracking=none",
    "runtime.workers=1",
    "domain/tasks=gcd",  # small divisors are common, so that a model is right sometimes after seconds
]
GYM = "genloss.domains.reasoning.tasks.Gym"


def loop(folder: Path, *overrides: str) -> Loop:
    return Loop(Experiment(compose([*TINY, *overrides])), RunDir(folder / "run", Store(folder / "store")))


def prepared(folder: Path, *overrides: str) -> tuple[Experiment, Path]:
    x = Experiment(compose([*TINY, *overrides]))
    x.domain.prepare(folder)
    return x, folder


@pytest.fixture(scope="module")
def solver(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path, Path]:
    """(experiment, data, model): a generator that is right sometimes."""
    folder = tmp_path_factory.mktemp("reasoning")
    x, data = prepared(folder / "data")
    shards = [data / "train.parquet"]
    fit = Fit(x.model, x.trainer, data, shards, [1.0], None, 1, folder / "fit", x.domain.config("train"))
    fit.out.mkdir()
    x.trainer.train(fit)
    return x, data, fit.out / "model"


# -- data --------------------------------------------------------------------------------------------------------------


def test_no_two_splits_share_a_problem(tmp_path: Path) -> None:
    x, data = prepared(tmp_path, "domain/tasks=[chain_sum,gcd,eigenvalues]", "domain.context=24")
    prompts = [
        normal(p)
        for split in ("train", "validation", "test", "prompts")
        for p in records.read(data / f"{split}.parquet").column("prompt").to_pylist()
    ]
    assert len(set(prompts)) == len(prompts) == 128 + 32 + 64 + 200
    table = records.read(data / "prompts.parquet")
    counts = {name: table.column("task").to_pylist().count(name) for name in ("chain_sum", "gcd", "eigenvalues")}
    assert sorted(counts.values()) == [66, 67, 67]
    assert able(x.domain, Reasoning).verify(table).right.all()


def test_probes_are_tested_and_never_trained_on(tmp_path: Path) -> None:
    arithmetic = "+domain/tasks@domain.probes=arithmetic"
    taught = "{gcd: ${domain.tasks.gcd}, known: ${domain.probes.arithmetic}}"
    run = loop(
        tmp_path,
        arithmetic,
        "domain.probe=40",
        "domain.context=48",
        "domain.probes.arithmetic.operations=[1]",
        "rounds=1",
        "model=schooled",
        "~model.tasks.sums",
        f"+model.tasks={taught}",
        "model.examples=60",
        "model.steps=5",
        "trainer.steps=5",
    )
    run.run()
    data = run.run_dir.root / "data"
    probe = records.read(data / "probe.parquet")
    assert probe.column("task").to_pylist() == ["arithmetic"] * 40
    asked = {normal(p) for p in probe.column("prompt").to_pylist()}
    assert len(asked) == 40
    assert able(run.experiment.domain, Reasoning).verify(probe).right.all()
    school = able(run.experiment.model, Schooled).problems(data)
    learned = [records.read(data / "train.parquet"), records.read(data / "prompts.parquet"), school]
    assert not asked & {normal(p) for table in learned for p in table.column("prompt").to_pylist()}
    for n in (0, 1):
        found = json.loads((run.run_dir.round(n) / "metrics.json").read_text())
        assert found["probe_accuracy"] == found["probe_accuracy/arithmetic"] in [k / 40 for k in range(41)]
        assert "accuracy/arithmetic" not in found


def test_a_larger_pool_changes_no_test_problem(tmp_path: Path) -> None:
    _, small = prepared(tmp_path / "small")
    _, large = prepared(tmp_path / "large", "domain.pool=300", "domain.examples=200")
    for split in ("test", "validation"):
        a, b = (records.read(folder / f"{split}.parquet").column("prompt").to_pylist() for folder in (small, large))
        assert a == b


def test_eigenvalues_are_those_of_the_matrix() -> None:
    from genloss.domains.reasoning.tasks import Eigenvalues

    for problem in Eigenvalues(sizes=[2, 5], entries=10, decimals=2).problems(3)[:50]:
        body = problem.prompt.removeprefix("Eigenvalues of [").removesuffix("]:")
        matrix = np.array([[int(v) for v in line.split()] for line in body.split(";")])
        assert (matrix == matrix.T).all() and problem.difficulty == f"size={len(matrix)}"
        said = np.array([float(v) for v in problem.answer.split()])
        np.testing.assert_allclose(said, np.linalg.eigvalsh(matrix)[::-1], atol=0.0051)


def test_digits_are_single_tokens(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "domain/tasks=chain_sum")
    codec = load_codec(data / "tokenizer")
    (ids,) = codec.encode(["State the final answer to the following arithmetic problem: 12 - 345 ="])
    assert len(ids) == 8  # the phrase, five digits, the sign, the end
    assert codec.decode([ids]) == ["State the final answer to the following arithmetic problem: 12 - 345 ="]
    spelled = codec.encode(["-0 ünï <|endoftext|>"])  # characters as any others, and no end
    assert codec.decode(spelled) == ["-0 ünï <|endoftext|>"] and codec.end not in spelled[0]


# -- training ----------------------------------------------------------------------------------------------------------


def test_only_responses_are_targets(solver: tuple[Experiment, Path, Path]) -> None:
    x, data, _ = solver
    codec = load_codec(data / "tokenizer")
    context = x.domain.config("train")["context"]
    table = records.read(data / "train.parquet")
    wanted = dict(zip(table.column("prompt").to_pylist(), table.column("response").to_pylist(), strict=True))
    rows = list(Rows([data / "train.parquet"], [1.0], codec, context, 0, ("prompt", "response")).epoch(0))
    assert len(rows) == len(table)
    for inputs, targets, weights, _ in rows:
        asked = targets != IGNORE
        *said, end = targets[asked].tolist()
        first = int(np.flatnonzero(asked)[0])
        (prompt,) = codec.decode([inputs[1 : first + 1].tolist()])
        assert inputs[0] == codec.begin and end == codec.end
        assert codec.decode([said]) == [wanted[prompt]]
        assert (weights[asked] == 1).all()


def test_gradient_comes_from_responses_alone(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    """The first loss of a training is the mean loss of the responses, as `losses` has it, and prompts are not in it."""
    from dataclasses import replace

    from genloss.language.trainer import Supervised

    x, data, model = solver
    table = records.read(data / "train.parquet").slice(0, 16)
    records.write(table, tmp_path / "some.parquet")
    assert isinstance(x.trainer, Supervised)
    trainer = replace(x.trainer, steps=1, batch=16)
    out = tmp_path / "fit"
    out.mkdir()
    options = x.domain.config("train")
    found = trainer.train(Fit(x.model, trainer, data, [tmp_path / "some.parquet"], [1.0], model, 1, out, options))
    nats, tokens = able(x.domain, Reasoning).losses(model, data, table, x.runtime)
    assert found["loss"] == pytest.approx(nats.sum() / tokens.sum(), rel=1e-4)
    lengths = [len(r) + 1 for r in table.column("response").to_pylist()]  # of digits, each a token
    assert tokens.tolist() == lengths


# -- verification ------------------------------------------------------------------------------------------------------


HOSTILE = [
    "",
    " ",
    "\x00",
    "1" * 5000 + "x",
    "(" * 3000,
    "__import__('os').system('true')",
    "9**9**9**9",
    "１２",
    "1e999",
    "NaN",
    "Infinity",
    "\ud7ff",
    "5;5",
    "<b>5</b>",
    "=5",
    "0x5",
    "5.0.0",
    "--5",
    "+-5",
    None,
]


def test_integers() -> None:
    said = ["7", " 7\n", "+7", "007", "-7", "8", "7.0", "7 7", "-0", "-000", "12345678901234567890123", *HOSTILE]
    true = ["7", "7", "7", "7", "7", "7", "7", "7", "0", "0", "12345678901234567890123", *["5"] * len(HOSTILE)]
    right, parsed = integers(said, true)
    assert right.tolist() == [True, True, True, True, False, False, False, False, True, True, True] + [False] * len(
        HOSTILE
    )
    assert parsed.tolist() == [True] * 6 + [False, False] + [True] * 3 + [False] * len(HOSTILE)


def test_texts() -> None:
    right, parsed = texts(["a  b", "a b ", "A b", "", None], ["a b"] * 5)
    assert right.tolist() == [True, True, False, False, False]
    assert parsed.tolist() == [True, True, True, False, False]


def test_spectra() -> None:
    said = ["3.0 -1.0", "-1, 3", "+3; -1.0", "3.1 -1.0", "3.3 -1.0", "3.0", "3 -1 0", "3 x", "0 0", "0.1 0", *HOSTILE]
    true = [*["3.0 -1.0"] * 8, "0.0 0.0", "0.0 0.0", *["5.0 5.0"] * len(HOSTILE)]
    right, parsed = spectra(said, true, tolerance=0.05)
    hostile = [s == "5;5" for s in HOSTILE]  # which is two numbers
    # 0.1 / 4 is within 5 %, 0.3 / 4 is not
    assert right.tolist() == [True, True, True, True, False, False, False, False, True, False, *hostile]
    assert parsed.tolist() == [True] * 5 + [False] * 3 + [True, True, *hostile]


def test_expressions() -> None:
    pytest.importorskip("math_verify")
    said = [
        r"\frac{2}{4}",
        "0.5",
        "1/3",
        "2^{2^{2^{9}}}",
        "9^9^9^9",
        r"\input{/etc/passwd}",
        "((1+x)^{99})^{99}",
        r"\binom{99999999}{5000000}",
        "(a+b+c+d+e+f)^8",
        *HOSTILE,
    ]
    right, parsed = expressions(said, [r"\frac{1}{2}"] * len(said))
    assert right.tolist() == [True, True] + [False] * (len(said) - 2)
    assert parsed[:5].tolist() == [True, True, True, False, False]


# -- curation ----------------------------------------------------------------------------------------------------------


def answered(responses: list[str], answers: list[str], prompts: list[str] | None = None) -> pa.Table:
    n = len(responses)
    payload: dict[str, Any] = {
        "prompt": prompts or [f"{i} =" for i in range(n)],
        "response": responses,
        "answer": answers,
        "task": ["gcd"] * n,
        "difficulty": [""] * n,
    }
    return records.make_table(payload, origin="synthetic", generation=1, recipe="solve")


def chosen(
    table: pa.Table, tmp_path: Path, *overrides: str, model: Path | None = None, data: Path | None = None
) -> Curated:
    x = Experiment(compose([*TINY, *overrides]))
    inputs = Inputs({LAST: (model,)} if model else {})
    context = Context(x.domain, 1, 0, data or tmp_path, inputs, x.runtime)
    return curate(table, x.curators, x.control, context)


def test_exact_keeps_the_right_ones(tmp_path: Path) -> None:
    kept, rejected, counts, _ = chosen(
        answered(["1", "2", "x", "04"], ["1", "1", "1", "4"]), tmp_path, "curation=exact"
    )
    assert kept["response"].to_pylist() == ["1", "04"]
    assert rejected["reason"].to_pylist() == ["exact: wrong", "exact: unparseable"]
    assert counts == {"kept": 2, "exact: wrong": 1, "exact: unparseable": 1}


def test_noisy_has_the_given_rates(tmp_path: Path) -> None:
    n = 4000
    table = answered([str(i % 2) for i in range(n)], ["1"] * n)
    options = ("curation=noisy", "curation.noisy.phi=0.8", "curation.noisy.psi=0.3")
    kept, rejected, _, _ = chosen(table, tmp_path, *options)
    right = np.array(kept["response"].to_pylist()) == "1"
    assert abs(right.sum() / (n / 2) - 0.8) < 4 * np.sqrt(0.16 / (n / 2))
    assert abs((~right).sum() / (n / 2) - 0.3) < 4 * np.sqrt(0.21 / (n / 2))
    assert set(rejected["reason"].to_pylist()) == {"noisy: right", "noisy: wrong"}
    again, _, _, _ = chosen(table, tmp_path, *options)
    assert again["id"].to_pylist() == kept["id"].to_pylist()


def test_best_of_keeps_one_of_each_problem(tmp_path: Path) -> None:
    table = answered(["1", "2", "3", "5", "x", "6"], ["2"] * 3 + ["9"] * 3, ["a ="] * 3 + ["b ="] * 3)
    samples = "recipe.samples=3"
    kept, _, _, _ = chosen(table, tmp_path, "curation=best_of", samples)
    assert kept["response"].to_pylist() == ["2", "5"]  # a right one, or the first
    kept, _, _, _ = chosen(table, tmp_path, "curation=[best_of,exact]", samples)
    assert kept["response"].to_pylist() == ["2"]
    kept, _, _, _ = chosen(table, tmp_path, "curation=best_of", "curation.best_of.selector=random", samples)
    assert kept["prompt"].to_pylist() == ["a =", "b ="]


def test_likelihood_is_the_generators_own(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    _, data, model = solver
    test = records.read(data / "test.parquet").slice(0, 4)
    prompts, answers = (test.column(key).to_pylist() for key in ("prompt", "answer"))
    said = [r for a in answers for r in (a, "=" * 6)]
    table = answered(said, [a for a in answers for _ in range(2)], [p for p in prompts for _ in range(2)])
    options = ("curation=best_of", "curation.best_of.selector=likelihood", "recipe.samples=2")
    kept, _, _, _ = chosen(table, tmp_path, *options, model=model, data=data)
    assert kept["response"].to_pylist() == answers
    kept, _, _, _ = chosen(table, tmp_path, "curation=likelihood", model=model, data=data)
    assert sorted(kept["response"].to_pylist()) == sorted(answers)


# -- sampling and the loop ---------------------------------------------------------------------------------------------


def test_same_bytes_for_any_number_of_workers(solver: tuple[Experiment, Path, Path], tmp_path: Path) -> None:
    x, data, model = solver
    domain = able(x.domain, Reasoning)
    prompts = records.read(data / "prompts.parquet").column("prompt").to_pylist()[:70]
    found = []
    for workers in (1, 2):
        backend = domain.backend(model, data, Runtime(workers=workers))
        sampled = Decoding(domain.context, chunk=16)
        found.append(backend.respond(prompts, sampled, seed=5, scratch=tmp_path / str(workers)).texts)
    assert found[0] == found[1] and len(found[0]) == 70


def test_loop_with_exact_selection(tmp_path: Path) -> None:
    run = loop(tmp_path, "curation=exact", "recipe.samples=2")
    run.run()
    folders = [run.run_dir.round(n) for n in range(3)]
    first, *later = [json.loads((f / "metrics.json").read_text()) for f in folders]
    assert first["accuracy"] == first["accuracy/gcd"] and "label_accuracy" not in first
    used: set[str] = set()
    for folder, metrics in zip(folders[1:], later, strict=True):
        generated = records.read(folder / "generated.parquet")
        assert len(generated) == 80
        prompts = generated.column("prompt").to_pylist()
        assert prompts[0::2] == prompts[1::2]  # two samples of each
        assert not used & set(prompts)  # every round has problems of its own
        used |= set(prompts)
        right = able(run.experiment.domain, Reasoning).verify(generated).right
        assert metrics["label_accuracy"] == pytest.approx(right.mean())
        assert metrics["n_kept"] == right.sum() > 0
        assert (metrics["kept_accuracy"], metrics["phi"], metrics["psi"], metrics["p_star"]) == (1, 1, 0, 1)
    train = records.read(run.run_dir.data / "train.parquet").column("prompt").to_pylist()
    assert not used & set(train)


def test_metrics_of_a_random_control(tmp_path: Path) -> None:
    run = loop(tmp_path, "curation=exact", "control=random", "rounds=1")
    run.run()
    metrics = json.loads((run.run_dir.round(1) / "metrics.json").read_text())
    generated = records.read(run.run_dir.round(1) / "generated.parquet")
    right = able(run.experiment.domain, Reasoning).verify(generated).right
    ids = records.read(run.run_dir.round(1) / "kept.parquet").column("id").to_pylist()
    kept = np.isin(generated.column("id").to_pylist(), ids)
    assert kept.sum() == right.sum() > 0
    assert metrics["phi"] == pytest.approx(kept[right].mean())
    assert metrics["psi"] == pytest.approx(kept[~right].mean())
    assert metrics["p_star"] == pytest.approx(metrics["phi"] / (metrics["phi"] + metrics["psi"]))


def test_two_runs_are_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        run = loop(tmp_path / name, "rounds=1", "trainer.steps=20")
        run.run()
        files = ["data/train.parquet", "rounds/01/generated.parquet", "rounds/01/model/model.safetensors"]
        found.append([hashlib.sha256((run.run_dir.root / f).read_bytes()).hexdigest() for f in files])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["curation=none"], (1, 1)),
        (["curation=exact"], (1, 0)),
        (["curation=noisy", "curation.noisy.phi=0.9", "curation.noisy.psi=0.3"], (0.9, 0.3)),
        (["curation=[noisy,random]", "curation.noisy.phi=0.9", "curation.noisy.psi=0.3"], (0.45, 0.15)),
        (["curation=exact", "control=random"], (1, 1)),
        (["curation=likelihood"], None),
        (["curation=[noisy,likelihood]"], None),
    ],
)
def test_theory_stands_beside_what_is_measured(overrides: list[str], given: tuple[float, float] | None) -> None:
    x = Experiment(compose([*TINY, *overrides]))
    assert rates(x.curators, x.control) == (None if given is None else pytest.approx(given))
    found = x.domain.expected(x, {"label_accuracy": 0.4})
    if given is None:
        assert found == {}
    else:
        phi, psi = given
        assert found["kept_accuracy"] == pytest.approx(0.4 * phi / (0.4 * phi + 0.6 * psi))
        assert found["p_star"] == pytest.approx(phi / (phi + psi))


def test_a_noisy_selection_keeps_what_theory_says(tmp_path: Path) -> None:
    run = loop(tmp_path, "rounds=1", "curation=noisy", "curation.noisy.psi=0.3", "domain.pool=1200", "recipe.n=1200")
    run.run()
    found = json.loads((run.run_dir.round(1) / "metrics.json").read_text())
    assert 0.05 < found["label_accuracy"] < 0.95
    assert abs(found["kept_accuracy"] - found["theory/kept_accuracy"]) < 4 * found["kept_accuracy_se"]
    assert abs(found["p_star"] - found["theory/p_star"]) < 0.05 and found["theory/p_star"] == pytest.approx(1 / 1.3)


@pytest.mark.parametrize("kind", ["qwen2", "gpt_neox"])
def test_any_saved_causal_language_model_solves_problems(kind: str, solver: tuple, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    _, data, _ = solver
    saved = tmp_path / "saved"
    shutil.copytree(data / "tokenizer", saved)
    ids = {name: load_codec(saved).begin for name in ("bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(
        kind,
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        **ids,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(saved)
    run = loop(
        tmp_path,
        "model=pretrained",
        f"model.path={saved}",
        f"domain.tokenizer={saved}",
        "rounds=1",
        "curation=likelihood",
        "trainer.steps=10",
    )
    run.run()
    made = records.read(run.run_dir.round(1) / "generated.parquet")
    assert len(made) == 40 and 0 < json.loads((run.run_dir.round(1) / "metrics.json").read_text())["n_kept"] < 40
    learned = json.loads((run.run_dir.round(1) / "model/config.json").read_text())
    assert learned["model_type"] == kind


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.tasks.gcd.family=gdc"], ["domain.tasks.gcd.family=gdc", "gcd"]),
        *(
            (
                [f"+domain.tasks.x={{_target_: {GYM}, family: {family}, compare: {compare}}}"],
                [f"domain.tasks.x.compare={compare}", f"does not fit {family}", "of 60 exact answers", "text"],
            )
            for family, compare in (
                ("coin_flip", "integer"),
                ("ransom_note", "expression"),
                ("time_intervals", "expression"),
                ("family_relationships", "expression"),
            )
        ),
        (["domain.tasks.gcd.parameters.min_value=999"], ["domain.tasks.gcd.parameters", "max_value"]),
        (["+domain.tasks.gcd.parameters.seed=1"], ["parameters.seed", "absent"]),
        (["domain.tasks.gcd.compare=eval"], ["compare=eval", "integer"]),
        (
            [f"+domain.tasks.x={{_target_: {GYM}, family: countdown, compare: scorer}}"],
            ["domain.tasks.x.compare=scorer", "text"],
        ),
        ([f"+domain.tasks.x={{_target_: {GYM}, family: number_sorting}}"], ["compare=integer", "does not fit"]),
        (
            ["+domain.tasks.x={_target_: genloss.domains.reasoning.tasks.Eigenvalues, sizes: [1]}"],
            ["domain.tasks.x.sizes=1"],
        ),
        (["+domain/tasks@domain.probes=gcd"], ["domain.probes=gcd", "another name"]),
        ([f"+domain.probes.x={{_target_: {GYM}, family: gdc}}"], ["domain.probes.x.family=gdc", "gcd"]),
        (["domain.probe=0"], ["domain.probe=0", "at least 1"]),
        (["recipe.n=101"], ["recipe.n=101", "at most 100", "domain.pool=200"]),
        (["recipe.samples=2", "recipe.bias=0"], ["recipe.samples=2", "greedy"]),
        (["recipe=sample"], ["recipe=Sample", "needs records that are documents", "use domain=text"]),
        (
            ["+metrics.heldout={_target_: genloss.evaluate.loss.HeldOut}"],
            ["metrics.heldout=HeldOut", "domain=reasoning has none", "use domain=text"],
        ),
        (["curation=best_of", "recipe.samples=1"], ["curation.best_of.selector", "recipe.samples=1"]),
        (["curation=noisy", "curation.noisy.phi=1.5"], ["curation.noisy.phi=1.5", "[0, 1]"]),
        (["curation=truncate"], ["curation.truncate=Truncate", "one mean", "use domain=gaussian"]),
    ],
)
def test_bad_input(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Experiment(compose([*TINY, *overrides]))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("option", ["curation=exact", "recipe=solve"])
def test_answers_need_a_domain_that_has_them(option: str) -> None:
    with pytest.raises(UserError, match="text has none"):
        Experiment(compose([option]))


def test_an_exhausted_family_is_refused(tmp_path: Path) -> None:
    x = Experiment(compose([*TINY, "domain.tasks.gcd.parameters.max_value=10"]))
    with pytest.raises(UserError, match=r"domain.tasks.gcd: has only 100 different problems, and 424"):
        x.domain.prepare(tmp_path)


def test_a_context_that_is_too_short_is_refused(tmp_path: Path) -> None:
    x = Experiment(compose([*TINY, "domain.context=8"]))
    with pytest.raises(UserError, match=r"domain.context=8: must be at least 1\d tokens"):
        x.domain.prepare(tmp_path)


def test_the_difficulty_of_a_family_may_be_a_number() -> None:
    made = Gym("gsm_symbolic").problems(0)
    assert len(made) == 1000 and all(isinstance(p.difficulty, str) for p in made)


def test_what_a_family_cannot_make_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its own code raises."""
    import reasoning_gym

    class Broken:
        def __getitem__(self, i: int) -> Any:
            raise IndexError("two\nlines")

    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda *_, **__: Broken())
    with pytest.raises(UserError, match=r"family=gcd: cannot make problem 0 .*IndexError: two lines"):
        Gym("gcd").problems(0)


def test_the_table_of_families_is_true() -> None:
    """A few lines of it; `python benchmarks/families.py` makes all."""
    lines = (REPOSITORY / "docs" / "families.md").read_text().splitlines()
    table = {cells[0].strip(): cells[1:4] for line in lines if len(cells := line.strip("|").split("|")) == 5}
    for name in ("aiw", "coin_flip", "ransom_note", "chain_sum"):
        unfit = [len(Gym(name).unfit(c)) for c in ("integer", "text", "expression")]
        assert [60 - int(cell) for cell in table[name]] == unfit
