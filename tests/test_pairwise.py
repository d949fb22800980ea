"""Which of two answers is better: both orders, ties, biases; a judge that always says A; the answer that wins most."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.contracts import LAST, ROUND0, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.curate import Context
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.following import Following
from genloss.domains.instruct.pairwise import Judged, MostWins, WinRate, letter, shares
from genloss.domains.instruct.world import World
from genloss.evaluate import Evidence
from genloss.evaluate.selected import answers
from genloss.experiment import Experiment
from genloss.language.chat import ASSISTANT, USER
from genloss.language.tokenizer import load_codec
from genloss.workflow.compose import compose
from support import Project, serving, undocumented
from test_instruct import SMALL

RUN = [*SMALL, "rounds=1", "metrics=[following,win_rate]", "recipe.samples=3", "curation=pairwise"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Project.make(tmp_path_factory.mktemp("pairwise") / "project")
    return home.root / home.ok("run", *RUN).folder


def the_domain() -> Instruct:
    domain = Experiment(compose(RUN)).domain
    assert isinstance(domain, Instruct)
    return domain


def evidence(folder: Path, n: int, scratch: Path | None = None) -> Evidence:
    model, first = (folder / f"rounds/{i:02d}/model" for i in (n, 0))
    generated = folder / f"rounds/{n:02d}/generated.parquet" if n else None
    return Evidence(
        *(the_domain(), n, 3, 24, 64, folder / "data", model, first, generated, Inputs({}), Runtime(1)), scratch=scratch
    )


@pytest.fixture
def context(folder: Path, tmp_path: Path) -> Context:
    model = (folder / "rounds/00/model",)
    inputs = Inputs({LAST: model, ROUND0: model})
    return Context(the_domain(), 1, 3, folder / "data", inputs, Runtime(1), scratch=tmp_path)


def candidates(told: list[tuple[str, str]]) -> pa.Table:
    """Records of (request, answer), those with one request answering one."""
    messages = [[{"role": USER, "content": a}, {"role": ASSISTANT, "content": b}] for a, b in told]
    payload = {"messages": pa.array(messages, MESSAGES)}
    parents = [[f"r-{a}"] for a, _ in told]
    return records.make_table(payload, origin=records.SYNTHETIC, generation=1, recipe="x", parents=parents)


# -- pairs, by hand ----------------------------------------------------------------------------------------------------

PREFERENCE = st.sampled_from([0.0, 0.5, 1.0])
PAIRS = st.lists(st.tuples(PREFERENCE, PREFERENCE, st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)


def test_what_one_pair_says() -> None:
    straight = np.array([1, 0, 1, 0, 0.5, 1, 0.5])
    swapped = np.array([0, 1, 1, 0, 0.5, 0.5, 1])
    assert Judged(straight, swapped).won.tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5, 0.5]


@given(st.integers(1, 20).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n)))
def test_a_judge_that_always_says_a(sizes: list[int]) -> None:
    judged, long = Judged(np.ones(len(sizes)), np.ones(len(sizes))), np.array(sizes)
    assert (judged.won == 0.5).all() and judged.first_shown == 1
    share, differ = judged.longer(long, np.full(len(sizes), 5))
    assert differ == (long != 5).sum() and (share == 0.5 if differ else np.isnan(share))


@given(PAIRS)
def test_it_does_not_matter_which_answer_of_a_pair_is_named_first(pairs: list[Any]) -> None:
    straight, swapped, one, two = (np.array(column) for column in zip(*pairs, strict=True))
    here, there = Judged(straight, swapped), Judged(swapped, straight)
    np.testing.assert_array_equal(here.won, 1 - there.won)
    assert here.first_shown == pytest.approx(there.first_shown)
    np.testing.assert_allclose(here.longer(one, two), there.longer(two, one))


def test_a_judge_of_length_has_all_of_that_bias() -> None:
    one, two = np.array([3, 1, 2]), np.array([1, 3, 2])
    judged = Judged(np.array([1, 0, 0.5]), np.array([0, 1, 0.5]))  # the longer one
    assert judged.longer(one, two) == (1.0, 2) and judged.first_shown == 0.5


def test_shares_of_wins_are_those_of_a_tournament() -> None:
    one, two = np.array([0, 0, 1, 4]), np.array([1, 2, 2, 5])
    won = shares(7, one, two, np.array([1, 0.5, 0, 1]))
    np.testing.assert_array_equal(won, [0.75, 0, 0.75, np.nan, 1, 0, np.nan])


def test_a_reply_names_a_letter() -> None:
    assert [letter(t) for t in ("A", " b.", "**A**: because", "Answer B", "(a)")] == [1, 0, 1, 0, 1]
    assert [letter(t) for t in ("", "Both", "neither A", "C", "An answer")] == [0.5] * 5


# -- a judge that is a model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def always_a(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An author: a model whose last norm gives the embedding of A whatever it reads, so that A is likelier than B."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    out = tmp_path_factory.mktemp("always_a") / "model"
    shutil.copytree(folder / "data/tokenizer", out)
    codec = load_codec(out)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=codec.size, n_positions=4096, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[codec.encode(["A"])[0][0]])
    model.save_pretrained(out)
    return {"_target_": "genloss.backends.author.Author", "model": str(out)}


def test_the_rate_of_a_judge_that_always_says_a(folder: Path, always_a: dict[str, Any], tmp_path: Path) -> None:
    metric = WinRate(judge="author", author=always_a, reference="real", chunk=8)
    found = metric.measure(evidence(folder, 1, tmp_path))
    assert found["win_rate"] == 0.5 and found["win_ties"] == 1 and found["win_rate_se"] == 0
    assert found["win_judged"] > 12 and found["win_position_bias"] == 1 and found["win_length_bias"] == 0.5
    assert found["win_undecided"] == 0
    assert undocumented(found) == []


def test_of_ties_alone_the_first_by_id_is_kept(
    context: Context, always_a: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = candidates([(f"what is {r}?", f"it is {i}") for r in "ab" for i in range(3)])
    ids = made.column("id").to_pylist()
    first = sorted([min(ids[:3]), min(ids[3:])])
    for order in (range(6), [5, 3, 1, 0, 2, 4]):
        some = made.take(list(order))
        said = MostWins(judge="author", author=always_a).decide(some, context)
        assert sorted(np.array(some.column("id").to_pylist())[said.keep]) == first
        assert (said.score == 0.5).all() and set(said.reason[~said.keep]) == {"not the best"}
    assert "the judge ties all 6 pairs" in capsys.readouterr().err


def test_what_a_judge_has_said_survives_a_kill(context: Context, always_a: dict[str, Any]) -> None:
    """It is read, not asked again; what is lost is asked again."""
    made = candidates([(f"what is {r}?", f"it is {i}") for r in range(12) for i in range(3)])
    judge = MostWins(judge="author", author=always_a)
    whole = judge.decide(made, context)
    assert context.scratch is not None
    (kept,) = context.scratch.glob("choices-*")
    files = sorted(kept.iterdir(), key=lambda file: int(file.stem))
    assert [file.name for file in files] == ["0.json", "32.json", "64.json"]  # 36 pairs, twice
    files[1].unlink()
    np.testing.assert_array_equal(judge.decide(made, context).keep, whole.keep)
    said = json.loads(files[0].read_text())
    files[0].write_text(json.dumps([[b, a] for a, b in said]))  # as if it had said B
    assert (judge.decide(made, context).score != whole.score).any()
    other = candidates([("what is this?", f"it is {i}") for i in range(3)])
    judge.decide(other, context)  # other pairs have a folder of their own
    assert len(list(context.scratch.glob("choices-*"))) == 2


def test_a_judge_behind_a_server(folder: Path, context: Context, tmp_path: Path) -> None:
    def served(of: Callable[[str, str], str]) -> dict[str, float]:
        def behave(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
            asked = body["messages"][-1]["content"]
            first, _, second = (
                asked.partition("Answer A:\n")[2].partition("\n\nReply with")[0].partition("\n\nAnswer B:\n")
            )
            choice = {"message": {"role": ASSISTANT, "content": of(first, second)}, "finish_reason": "stop"}
            return 200, json.dumps({"choices": [choice]}).encode()

        with serving(behave) as server:
            backend = {"_target_": "genloss.backends.openai.OpenAI", "model": "m", "url": server.url, "api": "chat"}
            author = {"_target_": "genloss.backends.author.Author", "backend": backend, "new_tokens": 8, "bias": 0.0}
            scratch = tmp_path / str(server.server_address[1])
            scratch.mkdir()
            metric = WinRate(judge="author", author=author, reference="real", chunk=8, max_records=12)
            return metric.measure(evidence(folder, 1, scratch))

    found = served(lambda first, second: "A")
    assert (found["win_rate"], found["win_ties"], found["win_position_bias"]) == (0.5, 1, 1)
    found = served(lambda first, second: "A" if len(first) > len(second) else "B")
    assert found["win_length_bias"] == 1 and found["win_position_bias"] <= 0.5
    found = served(lambda first, second: "I cannot say.")
    assert (found["win_rate"], found["win_undecided"], found["win_position_bias"]) == (0.5, 1, 0.5)


def test_a_prompt_that_the_judge_has_no_positions_for_is_refused(context: Context, always_a: dict[str, Any]) -> None:
    made = candidates([("what?", "it is red " * 2000), ("what?", "it is blue")])
    with pytest.raises(UserError, match="tokens: are more than the 4096 positions that the model has"):
        MostWins(judge="author", author=always_a).decide(made, context)


# -- a judge that knows ------------------------------------------------------------------------------------------------


def test_the_loop_has_rates_and_keeps_one_answer_of_each(folder: Path) -> None:
    first, second = (json.loads((folder / f"rounds/{n:02d}/metrics.json").read_text()) for n in (0, 1))
    assert first["win_rate"] == 0.5 and first["win_ties"] == 1 and first["win_judged"] == 0
    assert "win_position_bias" not in first and second["win_pairs"] == 24
    assert second["win_judged"] == 0 or second["win_position_bias"] == 0.5  # the truth has no place
    assert undocumented(second) == []
    kept = records.read(folder / "rounds/01/kept.parquet")
    asked = [parents[0] for parents in kept.column("parents").to_pylist()]
    generated = records.read(folder / "rounds/01/generated.parquet").column("parents").to_pylist()
    assert len(set(asked)) == len(asked) and set(asked) == {parents[0] for parents in generated}


def test_what_two_metrics_ask_of_a_model_it_is_asked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`following` and `win_rate` look at the same greedy answers, of model n and of that of round 0."""
    asked: list[Path] = []
    backend = Instruct.backend

    def counted(self: Instruct, model: Path, *more: Any) -> Any:
        asked.append(model)
        return backend(self, model, *more)

    monkeypatch.setattr(Instruct, "backend", counted)
    x = evidence(folder, 1)
    test = records.read(x.data / "test.parquet")
    Following()._forgotten(np.ones(len(test), dtype=bool), test, x)
    WinRate().measure(x)
    assert sorted(asked) == [x.round0, x.model]
    assert answers(x, the_domain().prompts(test), 256, bias=1.0) and len(asked) == 3  # sampled ones are others


def test_the_rate_against_real_answers_is_that_of_their_grades(folder: Path) -> None:
    x = evidence(folder, 1)
    found = WinRate(reference="real", judge="right", chunk=8).measure(x)
    followed = json.loads((folder / "rounds/01/metrics.json").read_text())["followed"]
    assert found["win_rate"] == pytest.approx(followed / 2)  # real ones are right: at best a tie
    assert found["win_ties"] == pytest.approx(followed)


def test_the_best_of_the_world_is_the_one_with_the_best_grade(context: Context) -> None:
    """And the order statistic of it: a right one wherever there is one."""
    domain = the_domain()
    world = domain.source
    assert isinstance(world, World)
    told = [m for m in records.read(context.data / "test.parquet").column("messages").to_pylist() if len(m) == 2]
    wrong = ["buy now!", "red", "- size of x: tiny"]
    made = candidates([(m[0]["content"], said) for m in told for said in (*wrong, m[1]["content"])])
    grades = world.grades(made.column("messages").to_pylist()).reshape(len(told), -1)
    said = MostWins(judge="grade").decide(made, context)
    keep, score = said.keep.reshape(grades.shape), said.score.reshape(grades.shape)
    assert (keep.sum(axis=1) == 1).all() and (grades[keep] == 5).all()
    below = (grades[:, :, None] > grades[:, None, :]).sum(axis=2)
    alike = (grades[:, :, None] == grades[:, None, :]).sum(axis=2) - 1
    np.testing.assert_allclose(score, (below + alike / 2) / 3)
    right = MostWins(judge="right").decide(made, context)
    assert domain.verify(made.filter(pa.array(right.keep))).right.all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["metrics=[following,win_rate]", "metrics.win_rate.judge=me"], "metrics.win_rate.judge=me"),
        (["metrics=[following,win_rate]", "metrics.win_rate.reference=last"], "metrics.win_rate.reference=last"),
        (
            ["metrics=[following,win_rate]", "metrics.win_rate.judge=author", "metrics.win_rate.author.model=last"],
            "in each round",
        ),
        (["metrics=[following,win_rate]", "metrics.win_rate.max_records=0"], "max_records=0"),
        (["curation=pairwise"], "nothing to choose from with recipe.samples=1"),
        (["curation=pairwise", "domain/corpus=seed_tasks", "recipe.samples=2"], "judge=grade.*set it to author"),
        (
            ["metrics=[following,win_rate]", "metrics.win_rate.judge=right", "domain/corpus=seed_tasks"],
            "judge=right.*to author",
        ),
    ],
)
def test_bad_values(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose([*SMALL, "rounds=1", *overrides]))
