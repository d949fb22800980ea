"""Ratings and pointwise information: by hand, nested, and on a model that knows what it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import LAST, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.curate import Context
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.judging import PointwiseInformation, Rating
from genloss.domains.instruct.world import World
from genloss.experiment import Experiment
from genloss.language.model import load
from genloss.language.tokenizer import load_codec
from genloss.workflow.compose import compose
from support import Project
from test_instruct import SMALL
from test_pretrained import SMOLLM2, needs_smollm2


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Of a finished run whose model knows little."""
    home = Project.make(tmp_path_factory.mktemp("judging") / "project")
    folder = home.root / home.ok("run", *SMALL, "rounds=0").folder
    domain = Experiment(compose([*SMALL, "rounds=0"])).domain
    inputs = Inputs({LAST: (folder / "rounds/00/model",)})
    return Context(domain, 1, 3, folder / "data", inputs, Runtime(2), scratch=tmp_path_factory.mktemp("scratch"))


def table(context: Context) -> pa.Table:
    return records.read(context.data / "test.parquet")


def test_a_rating_is_an_expected_grade(context: Context) -> None:
    """Of the digits' probabilities alone; and what is at least 4.5 is among what is at least 3.5."""
    some, domain = table(context), context.domain
    assert isinstance(domain, Instruct) and isinstance(domain.source, World)
    said = Rating(least=1.0).decide(some, context)
    assert said.keep.all() and (said.score >= 1).all() and (said.score <= 5).all()
    codec, model = load_codec(context.data / "tokenizer"), load(context.inputs[LAST])
    import torch

    digits = [codec.encode([d])[0][0] for d in "12345"]
    for i, messages in enumerate(some.column("messages").to_pylist()[:4]):
        asked = domain.source.ask_rate(messages[-2]["content"], messages[-1]["content"])
        ids = [codec.begin, *codec.prompts([[{"role": "user", "content": asked}]])[0]]
        with torch.inference_mode():
            p = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double()[digits], 0)
        assert said.score[i] == pytest.approx(float((p * torch.arange(1, 6)).sum()), abs=1e-5)
    middle = float(np.median(said.score))
    kept = [set(np.flatnonzero(Rating(least=least).decide(some, context).keep)) for least in (middle, 1.0)]
    assert kept[0] < kept[1]
    half = Rating(least=None, fraction=0.5).decide(some, context).keep
    assert half.sum() == round(0.5 * len(some))


@pytest.mark.parametrize(
    ("curator", "what"),
    [(Rating(least=None, fraction=0.5), "the judge"), (PointwiseInformation(), "the information of a request")],
)
def test_equal_scores_are_told_and_go_by_position(
    context: Context, capsys: pytest.CaptureFixture[str], curator: Rating | PointwiseInformation, what: str
) -> None:
    same = table(context).take([0] * 7)
    kept = [curator.decide(same, context).keep.tolist() for _ in range(2)]
    assert kept == [[True] * 4 + [False] * 3] * 2  # round(3.5)
    assert f"warning: {what} gives all 7 records" in capsys.readouterr().err


def test_pointwise_information_is_a_difference_of_losses(context: Context) -> None:
    some, domain = table(context).slice(0, 6), context.domain
    assert isinstance(domain, Instruct)
    rows = [m for m in some.column("messages").to_pylist() if len(m) == 2]
    short = pa.table({"messages": pa.array(rows, MESSAGES)})
    said = PointwiseInformation().decide(short, context)
    bare = [[{"role": "user", "content": "Say something."}, m[-1]] for m in rows]
    both = [
        domain.losses(context.inputs[LAST], context.data, pa.table({"messages": pa.array(x, MESSAGES)}), Runtime(1))
        for x in (rows, bare)
    ]
    np.testing.assert_allclose(said.score, (both[1][0] - both[0][0]) / both[0][1], atol=1e-5)
    assert said.keep.sum() == round(0.5 * len(rows)) and set(said.score[said.keep]) >= {said.score.max()}


@needs_smollm2
def test_information_tells_an_answer_from_that_to_another_request(context: Context, tmp_path: Path) -> None:
    pairs = {
        "What is the capital of France?": "The capital of France is Paris.",
        "How do I boil an egg?": "Put the egg into boiling water and wait for eight minutes.",
        "Name a large animal of the sea.": "The blue whale is the largest animal of the sea.",
        "Why do leaves fall in autumn?": "Trees drop their leaves in autumn to save water in the winter.",
    }
    answers = list(pairs.values())
    rows = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, others in zip(pairs, zip(answers, answers[1:] + answers[:1], strict=True), strict=True)
        for said in others
    ]
    curator = PointwiseInformation(
        author={"_target_": "genloss.backends.author.Author", "model": SMOLLM2, "template": "chatml"}
    )
    score = curator.decide(pa.table({"messages": pa.array(rows, MESSAGES)}), context).score.reshape(-1, 2)
    assert (score[:, 0] > score[:, 1]).all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["curation=rating", "curation.rating.fraction=0.5"], "curation.rating.least=4.5: must be set, or fraction"),
        (["curation=rating", "curation.rating.least=6"], "curation.rating.least=6.*a grade from 1 to 5"),
        (["curation=pointwise_information", "curation.pointwise_information.generic=' '"], "generic=.*a request"),
        (["curation=pointwise_information", "curation.pointwise_information.fraction=0"], "fraction=0.*in"),
    ],
)
def test_bad_values(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose([*SMALL, *overrides]))
