"""Baize: transcripts and what of them is kept, voices, self-chat, and the best of several answers by a judge."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.contracts import LAST, ROUND0, Decoding, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.curate import Context
from genloss.curate.choose import best_of_each
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.choosing import NoisyJudge
from genloss.domains.instruct.world import World
from genloss.evaluate import Evidence
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.language.chat import ASSISTANT, OWN, TURNS, USER, wrong
from genloss.language.tokenizer import Codec, load_codec, train_bpe, use_template
from genloss.language.voices import EVERYONE, voiced
from genloss.systems.baize.judge import Judge, score_of
from genloss.systems.baize.metric import ResponseEntropy
from genloss.systems.baize.recipe import Baize, fitting, opening
from genloss.systems.baize.transcript import AI, HUMAN, Talk, Turn, kept, of_ids, of_text
from genloss.workflow.compose import compose
from support import Project, Result, serving, undocumented

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
MADE = list(itertools.islice(World(dialogues=0.6).conversations(), 200))
TALKS = [m for m in MADE if len(m) > 3]
ASKED = [{"role": USER, "content": "why?"}]


# -- transcripts -------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.lists(
        st.builds(
            Turn, st.sampled_from([USER, ASSISTANT, ""]), st.sampled_from(["a", "", " \n", "b c"]), st.booleans()
        ),
        max_size=12,
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_what_is_kept_is_a_conversation(turns: list[Turn], most: int, system: bool) -> None:
    start = [*([{"role": "system", "content": "be kind."}] if system else []), *ASKED]
    talk = kept(start, turns, most)
    if talk.messages:
        assert wrong(talk.messages) == ""
        assert talk.messages[: len(start)] == start
        added = talk.messages[len(start) :]
        assert added == [{"role": t.role, "content": t.content} for t in turns[: len(added)]]
        assert all(t.whole for t in turns[: len(added)])
        assert sum(m["role"] == USER for m in talk.messages) <= most
        assert (talk.tail == "") == (len(added) == len(turns))
    else:
        first = turns[0] if turns else Turn(USER, "", True)
        assert first.role != ASSISTANT or not first.whole or not first.content.strip()
        assert talk.tail


@settings(max_examples=300)
@given(st.lists(st.sampled_from([HUMAN, AI, "a", " ", "\n", "[|", "Human", "|]", "é"]), max_size=20), st.booleans())
def test_any_text_with_tags_is_read(parts: list[str], ended: bool) -> None:
    talk = kept(ASKED, of_text("".join(parts), ended), 3)
    assert not talk.messages or wrong(talk.messages) == ""
    assert not any(tag in m["content"] for m in talk.messages for tag in (HUMAN, AI))


@pytest.mark.parametrize(
    ("text", "ended", "said", "tail"),
    [
        ("It is.", True, ["It is."], ""),
        ("It is.", False, [], "half_open"),
        (f"A {HUMAN} B {AI} C", True, ["A", "B", "C"], ""),
        (f"A {HUMAN} B {AI} C", False, ["A"], "half_open"),
        (f"A {HUMAN} B", True, ["A"], "unanswered"),
        (f"A {HUMAN} B {HUMAN} C {AI} D", True, ["A"], "out_of_order"),
        (f"A {HUMAN}  {AI} D", True, ["A"], "empty"),
        (f" {HUMAN} Why? {AI} A", True, ["A"], ""),  # the transcript again, from its beginning
        (f"{AI} A", True, ["A"], ""),
        (f"{AI} {HUMAN} B", True, [], "empty"),
        ("", True, [], "empty"),
        (f"A {HUMAN} B {AI} C {HUMAN} D {AI} E", True, ["A", "B", "C"], "too_many"),
    ],
)
def test_transcripts_by_hand(text: str, ended: bool, said: list[str], tail: str) -> None:
    talk = kept(ASKED, of_text(text, ended), 2)
    assert [m["content"] for m in talk.messages[1:]] == said and talk.tail == tail


@pytest.fixture(scope="module", params=["turns", "chatml"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    out = tmp_path_factory.mktemp(request.param)
    special = TURNS if request.param == "turns" else CHATML
    train_bpe([m["content"] for talk in MADE for m in talk], 400, 192, out, special=special)
    use_template(out, (OWN / f"{request.param}.jinja").read_text(), "all")
    return Codec(out)


def test_voices_begin_where_training_went_on(codec: Codec, tmp_path: Path) -> None:
    """A conversation that waits for the user is the beginning of the whole; what follows is its turn and its end."""
    as_user = Codec(voiced(codec.folder, tmp_path, USER) / "tokenizer")
    everyone = Codec(voiced(codec.folder, tmp_path, EVERYONE) / "tokenizer")
    assert as_user.end == codec.end and as_user.begin == codec.begin
    assert everyone.spelled([everyone.end]) == ["<|endoftext|>"]
    for talk in TALKS:
        whole = codec.rendered(talk, everything=True)
        at = next(i for i, m in enumerate(talk) if m["role"] == ASSISTANT) + 1
        ready = as_user.chat(talk[:at])
        assert ready == whole[: len(ready)]
        rest = whole[len(ready) :]
        assert codec.decode([rest[: rest.index(codec.end)]])[0] == talk[at]["content"]
        begun = codec.rendered(talk, everything=True)
        assert everyone.prompts([opening(talk)]) == codec.prompts([opening(talk)])
        assert everyone.prompts([opening(talk)])[0] == begun[1 : 1 + len(codec.prompts([opening(talk)])[0])]
    made = voiced(codec.folder, tmp_path, USER) / "tokenizer" / "tokenizer.json"
    before = made.stat().st_mtime_ns
    voiced(codec.folder, tmp_path, USER)
    assert made.stat().st_mtime_ns == before  # a rerun finds it


def test_a_transcript_in_tokens_is_read_back(codec: Codec) -> None:
    for talk in TALKS:
        start = opening(talk)
        said = codec.rendered(talk, everything=True)[1 + len(codec.prompts([start])[0]) :]
        assert kept(start, of_ids(said, codec), 9) == Talk(talk, "")
        short = kept(start, of_ids(said[: said.index(codec.end)], codec), 9)
        assert short == Talk([], "half_open")
        first = said.index(codec.end) + 1
        again = kept(start, of_ids([*said[:first], *said], codec), 9)  # the assistant's words, where the user is due
        assert again.tail == "ill_formed" and len(again.messages) == len(start) + 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_tokens_are_read(data: st.DataObject) -> None:
    codec = _turns()
    marks = [codec.encode([mark], special=True)[0][0] for mark in TURNS]
    ids = data.draw(st.lists(st.sampled_from([*marks, *codec.encode(["a b\n"])[0]]), max_size=30))
    talk = kept(ASKED, of_ids(ids, codec), 3)
    assert not talk.messages or wrong(talk.messages) == ""


_known: list[Codec] = []


def _turns() -> Codec:
    if not _known:
        import tempfile

        out = Path(tempfile.mkdtemp())
        train_bpe(["a b c"], 300, 64, out, special=TURNS)
        use_template(out, (OWN / "turns.jinja").read_text(), "all")
        _known.append(Codec(out))
        _known[0].prompts([ASKED])  # reads all of the folder
        shutil.rmtree(out)
    return _known[0]


def test_a_conversation_is_shortened_to_its_room(codec: Codec) -> None:
    talk = next(t for t in TALKS if t[0]["role"] == USER)
    longest = len(codec.rendered(talk))
    assert fitting(Talk(talk, ""), codec, longest) == Talk(talk, "")
    assert fitting(Talk(talk, ""), codec, longest - 1) == Talk(talk[:-2], "too_long")
    assert fitting(Talk(talk, ""), codec, 3) == Talk([], "too_long")


# -- self-chat ---------------------------------------------------------------------------------------------------------

SMALL = [
    "experiment=baize",
    "domain.context=144",
    "domain.examples=256",
    "domain.validation=8",
    "domain.test=24",
    "domain.pool=48",
    "domain.corpus.topics=1",
    "domain.corpus.entities=4",
    "size=256",
    "rounds=1",
    "recipe.n=24",
    "recipe.author.chunk=8",
    "recipe.author.temperature=0.3",
    "trainer.steps=80",
    "trainer.batch=8",
    "metrics.following.chunk=8",
    "tracking=none",
    "hydra.mode=RUN",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    project = Project.make(tmp_path_factory.mktemp("baize") / "project")
    with project.here():
        yield project.ok("run", *SMALL)


def request_of(run: Result, scratch: Path, workers: int) -> Request:
    folder = run.folder
    scratch.mkdir(parents=True, exist_ok=True)
    model = folder / "rounds" / "00" / "model"
    return Request(
        Experiment(compose(SMALL)).domain,
        1,
        7,
        model,
        folder / "data",
        Inputs({LAST: (model,), ROUND0: (model,)}),
        scratch,
        Runtime(workers),
        account=scratch / "account",
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_self_chat_is_the_same_for_any_number_of_workers(run: Result, tmp_path: Path, version: str) -> None:
    from genloss.backends.author import Author

    recipe = Baize(n=24, version=version)
    recipe.writer = recipe.answerer = Author(chunk=8, temperature=0.3)
    found = [recipe.generate(request_of(run, tmp_path / str(workers), workers)) for workers in (1, 3)]
    assert found[0][0].equals(found[1][0]) and found[0][1] == found[1][1]
    table, told = found[0]
    counts = told["counts"]
    assert 0 < len(table) == counts["dialogues"] == 24 - counts["rejected"]
    assert sum(v for k, v in counts.items() if k.startswith("rejected_")) == counts["rejected"]
    made = table.column("messages").to_pylist()
    assert not any(wrong(messages) for messages in made)
    pool = records.read(run.folder / "data" / "prompts.parquet")
    of = dict(zip(pool.column("id").to_pylist(), pool.column("messages").to_pylist(), strict=True))
    used = [parents for (parents,) in table.column("parents").to_pylist()]
    assert len(set(used)) == len(used)
    for messages, parent in zip(made, used, strict=True):
        start = opening(of[parent])
        assert messages[: len(start)] == start
    assert undocumented(f"generate/{name}" for name in counts) == []
    # a kill loses nothing that is finished: a rerun in the same folder finds it, and samples nothing
    shutil.rmtree(tmp_path / "1" / "voices", ignore_errors=True)
    again, _ = recipe.generate(request_of(run, tmp_path / "1", 1))
    assert again.equals(table)


def test_the_loop(run: Result) -> None:
    metrics = json.loads((run.folder / "rounds" / "01" / "metrics.json").read_text())
    assert metrics["generate/seeds"] == 24 and metrics["generate/dialogues"] == metrics["n_generated"] > 0


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_model_that_never_ends_is_one_line(run: Result, tmp_path: Path, version: str) -> None:
    author = {"_target_": "genloss.backends.author.Author", "new_tokens": 1}
    with pytest.raises(
        UserError, match=r"^recipe\.author=last: made no conversation of 24 .*\((\d empty, )?\d+ half_open\)"
    ):
        Baize(n=24, version=version, author=author).generate(request_of(run, tmp_path, 1))


def test_a_server_is_told_in_words(run: Result, tmp_path: Path) -> None:
    """v1: one request a seed question; v2: the answer, then the user, and so on, up to the most turns."""
    domain = Experiment(compose(SMALL)).domain
    assert isinstance(domain, Instruct)

    def behave(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        text = f"yes. {HUMAN} and why? {AI} so it is." if "transcript" in body["messages"][-1]["content"] else "so."
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}).encode()

    for version, turns in (("v1", 2), ("v2", 3)):
        with serving(behave) as server:
            node = {"_target_": "genloss.backends.openai.OpenAI", "model": "m", "url": server.url, "api": "chat"}
            author = {"_target_": "genloss.backends.author.Author", "backend": node, "new_tokens": 30}
            recipe = Baize(n=4, version=version, ask="words", author=author)
            table, told = recipe.generate(request_of(run, tmp_path / version, 2))
            asked = [body["messages"][-1]["content"] for body in server.bodies]
        assert len(table) == 4 and told["counts"]["turns"] == turns
        assert told["counts"]["requests"] == len(asked) and told["prompts"]["version"] == 1
        seeds = [opening(m)[-1]["content"] for m in table.column("messages").to_pylist()]
        for seed in seeds:
            assert any(seed in text for text in asked)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.loss=assistant"], "recipe.ask=template: needs a model that has learned what users say"),
        (["domain.loss=assistant"], "; set domain.loss=all, or recipe.ask=words"),
        (["recipe.n=49"], "recipe.n=49: must be at most 48"),
        (["recipe.version=v3"], "recipe.version=v3: unknown"),
        (["recipe.turns=0"], "recipe.turns=0: must be at least 1"),
        (["+recipe.assistant.model=last"], "recipe.assistant"),
        (
            [
                "recipe/backend@recipe.author.backend=openai",
                "recipe.author.backend.model=m",
                "recipe.author.new_tokens=9",
            ],
            "recipe.ask=template: needs a model in this process",
        ),
        (["recipe=respond", "curation=judge", "recipe.n=24"], "nothing to choose from with recipe.samples=1"),
        (["curation=noisy_judge", "curation.noisy_judge.sigma=-1"], "sigma=-1.0: must be a number, at least 0"),
        (["curation=noisy_judge", "curation.noisy_judge.scale=stars"], "scale=stars: unknown"),
    ],
)
def test_bad_input_is_one_line(overrides: list[str], words: str) -> None:
    known = [o for o in SMALL if not o.startswith("recipe.") or "recipe=respond" not in overrides]
    with pytest.raises(UserError) as caught:
        Experiment(compose([*known, *overrides]))
    assert words in str(caught.value) and "\n" not in str(caught.value)


# -- the best of several answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(1, 0.0), (2, 0.5642), (4, 1.0294), (8, 1.4236)])
def test_order_statistics_of_the_best(n: int, expected: float) -> None:
    """E[max of n N(0, 1)], and r of it where the judge's scores correlate with the truth by r."""
    rng = np.random.default_rng(5)
    truth = rng.standard_normal(20000 * n)
    names = np.repeat([str(i) for i in range(20000)], n).tolist()
    for sigma in (0.0, 1.0):
        score = truth + sigma * rng.standard_normal(len(truth))
        best = truth[best_of_each(names, score)]
        r = 1 / np.hypot(1, sigma)
        assert len(best) == 20000
        assert abs(best.mean() - r * expected) < 4 * best.std() / np.sqrt(len(best))


def answers(right: list[list[bool]]) -> pa.Table:
    """A record for each answer: right ones, and ones that say too little."""
    talks = [m for m in MADE if len(m) == 2 and "word" in m[0]["content"]][: len(right)]
    made, parents = [], []
    for i, (talk, oks) in enumerate(zip(talks, right, strict=True)):
        for ok in oks:
            made.append([talk[0], talk[1] if ok else {"role": ASSISTANT, "content": "nothing"}])
            parents.append([f"seed{i}"])
    payload = {"messages": pa.array(made, MESSAGES)}
    return records.make_table(payload, origin=records.SYNTHETIC, generation=1, recipe="respond", parents=parents)


def context(tmp_path: Path, data: Path | None = None) -> Context:
    corpus = {"_target_": "genloss.domains.instruct.world.World", "dialogues": 0.6}
    return Context(Instruct(corpus=corpus), 1, 3, data or tmp_path, Inputs({}), scratch=tmp_path)


def test_the_noisy_judge_keeps_one_of_each(tmp_path: Path) -> None:
    table = answers([[False, True, False, True], [False] * 4, [True, False, True, True]])
    for scale in ("right", "grade"):
        made = NoisyJudge(scale=scale).decide(table, context(tmp_path))
        assert np.flatnonzero(made.keep).tolist() == [1, 4, 8]
        assert made.score[1] == (1 if scale == "right" else 5) and made.score[0] == (0 if scale == "right" else 2)
    noisy = NoisyJudge(sigma=1.0)
    first, again = (noisy.decide(table, context(tmp_path)) for _ in range(2))
    assert np.array_equal(first.score, again.score) and first.keep.sum() == 3
    other = noisy.decide(table, context(tmp_path).seeded(4))
    assert not np.array_equal(first.score, other.score)
    alone = answers([[True], [False]])
    assert NoisyJudge().decide(alone, context(tmp_path)).keep.all()  # n = 1: the control


def test_a_noisy_judge_is_as_good_as_its_reliability(tmp_path: Path) -> None:
    """The share of right ones among the chosen: of two answers, one of which is right, P(N(1, 2σ²) > 0)."""
    from scipy.stats import norm

    n = len([m for m in MADE if len(m) == 2 and "word" in m[0]["content"]])
    hits = []
    for seed in range(40):
        table = answers([[False, True]] * n)
        made = NoisyJudge(sigma=1.0).decide(table, context(tmp_path).seeded(seed))
        hits.append(made.keep[1::2].mean())
    assert abs(np.mean(hits) - norm.cdf(1 / np.sqrt(2))) < 4 * np.std(hits) / np.sqrt(len(hits))


@pytest.mark.parametrize(
    ("text", "score"),
    [("85", 85), ("Score: 85/100", 85), ("I give it 0, no: 7.", 7), ("8.5", None), ("1000", None), ("good", None)],
)
def test_a_score_in_free_text(text: str, score: float | None) -> None:
    assert np.isnan(score_of(text)) if score is None else score_of(text) == score


def test_a_judge_of_words(run: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = answers([[False, True, False], [False, False, False]])

    def judge(say: Any) -> tuple[Any, int]:
        def behave(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
            choice = {
                "message": {"role": "assistant", "content": say(body["messages"][-1]["content"])},
                "finish_reason": "stop",
            }
            return 200, json.dumps({"choices": [choice]}).encode()

        with serving(behave) as server:
            node = {"_target_": "genloss.backends.openai.OpenAI", "model": "m", "url": server.url, "api": "chat"}
            author = {"_target_": "genloss.backends.author.Author", "backend": node, "new_tokens": 9, "bias": 0.0}
            one = Judge(author=author)
            folder = tmp_path / "scratch"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            made = one.decide(table, context(folder, run.folder / "data"))
            asked = len(server.bodies)
            again = one.decide(table, context(folder, run.folder / "data"))  # its replies survive a kill
            assert np.array_equal(made.keep, again.keep) and len(server.bodies) == asked
        return made, asked

    made, asked = judge(lambda text: "bad" if "seed" in text else ("3" if "nothing" in text else "I say 90."))
    assert np.flatnonzero(made.keep).tolist() == [1, 3] and 3 <= asked <= 8
    assert "warning" not in capsys.readouterr().err
    made, _ = judge(lambda text: "5")
    assert np.flatnonzero(made.keep).tolist() == [0, 3] and "the judge gives all 6 records 5" in capsys.readouterr().err
    made, _ = judge(lambda text: "no idea")
    assert not made.keep.any() and set(made.reason) == {"unparseable"}


# -- metrics, the study ------------------------------------------------------------------------------------------------


def test_the_entropy_of_answers_is_their_loss_under_the_model(run: Result) -> None:
    """Of answers that ended: what the domain's losses say of the same texts, put back into their conversations."""
    domain = Experiment(compose(SMALL)).domain
    assert isinstance(domain, Instruct)
    data, model = run.folder / "data", run.folder / "rounds" / "00" / "model"
    evidence = Evidence(domain, 0, 3, 24, 0, data, model, model, None, Inputs({}), Runtime(1))
    found = ResponseEntropy(chunk=8).measure(evidence)
    assert undocumented(found) == []
    test = records.read(data / "test.parquet")
    alone = [i for i, m in enumerate(test.column("messages").to_pylist()) if sum(x["role"] == USER for x in m) == 1]
    decoding = Decoding(domain.context, chunk=8, logprobs=True)
    said = domain.backend(model, data, Runtime(1)).respond(domain.prompts(test), decoding, seed=3)
    assert said.logprobs is not None
    own = [-sum(row) for row in said.logprobs]
    assert found["response_entropy"] == pytest.approx(np.mean(own))
    nats, _ = domain.losses(model, data, domain.answered(test, said.texts), Runtime(1))
    again = load_codec(data / "tokenizer").encode(said.texts)  # a text may be sampled in other tokens than its own
    assert said.ids is not None
    same = [i for i in alone if said.finish[i] == records.ENDED and again[i] == said.ids[i]]
    assert len(same) >= 6
    np.testing.assert_allclose([own[i] for i in same], nats[same], rtol=1e-3)


def test_a_new_adapter_stands_on_the_model_of_another_run(run: Result) -> None:
    """experiment=baize/sdf: by a pattern, and refused in one line where there is none."""
    found = Experiment(
        compose(["experiment=baize/sdf", "domain.context=144", f"model.path={run.folder.parent}/*/rounds/00/model"])
    )
    assert found.model.architecture() == "LlamaForCausalLM" and found.trainer.start == "stacked"
    with pytest.raises(UserError, match="no folder has this name"):
        Experiment(compose(["experiment=baize/sdf", "model.path=runs/no-such-*/rounds/00/model"]))
