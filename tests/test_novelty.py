"""ROUGE-L novelty: the decisions of the rouge-score library."""

from __future__ import annotations

import os
from pathlib import Path

import absl.logging
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from genloss.core import records
from genloss.core.contracts import HISTORY, Inputs
from genloss.core.errors import UserError
from genloss.curate import Context
from genloss.curate.novelty import Alphabet, Novelty, nearest, rouge_l, tokens
from genloss.experiment import Experiment
from genloss.workflow.compose import compose

# absl, which rouge-score imports, closes the stream of its handler when logging is configured: not that of the tests

absl.logging.get_absl_handler().python_handler.stream = Path(os.devnull).open("w")  # noqa: SIM115  # open as long as the tests run

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
DOMAIN = Experiment(compose([])).domain
TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "B", "c", "d-e", "f_g", "", "7"]), max_size=12).map(" ".join), min_size=1, max_size=8
)


def library(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


@given(TEXTS, TEXTS)
def test_every_number_is_the_librarys(rows: list[str], columns: list[str]) -> None:
    alphabet = Alphabet()
    a, b = alphabet.encode(rows), alphabet.encode(columns)
    expected = np.array([[library(x, y) for y in columns] for x in rows])
    assert (rouge_l(a, b) == expected).all()
    assert (nearest(a, b) == expected.max(axis=1)).all()


def table(texts: list[str], generation: int = 1) -> pa.Table:
    return records.make_table({"text": texts}, origin=records.SYNTHETIC, generation=generation, recipe="sample")


def context(folder: Path, real: list[str], earlier: list[str]) -> Context:
    records.write(table(real, 0), folder / "data/train.parquet")
    records.write(table(earlier), folder / "kept.parquet")
    return Context(DOMAIN, 2, 0, folder / "data", Inputs({HISTORY: (folder / "kept.parquet",)}))


@given(TEXTS, TEXTS, TEXTS, st.sampled_from([0.0, 0.5, 0.7, 2 / 3, 1.0]))
def test_decisions_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, real: list[str], earlier: list[str], new: list[str], threshold: float
) -> None:
    made = context(tmp_path_factory.mktemp("novelty"), real, earlier)
    said = Novelty(threshold=threshold).decide(table(new, 2), made)
    pool = [*real, *earlier]
    for text, keep, score in zip(new, said.keep, said.score, strict=True):
        expected = max((library(text, other) for other in pool), default=0.0)
        assert score == expected and keep == (expected <= threshold)
        pool += [text] if keep else []


def test_more_records_than_a_block(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    new = [" ".join(map(str, rng.integers(0, 9, 5))) for _ in range(600)]
    said = Novelty(threshold=0.7).decide(table(new, 2), context(tmp_path, ["x"], ["0 1 2 3 4"]))
    kept = [text for text, keep in zip(new, said.keep, strict=True) if keep]
    assert 1 < len(kept) < 600
    encoded = Alphabet().encode(kept)
    assert np.tril(rouge_l(encoded, encoded), -1).max() <= 0.7  # no kept pair is more similar than that


def test_exactly_the_threshold_is_kept(tmp_path: Path) -> None:
    ten = [f"w{i}" for i in range(10)]
    new = [" ".join([*ten[:7], "x", "y", "z"]), " ".join([*ten[:8], "x", "y"])]
    said = Novelty(threshold=0.7, earlier=False).decide(table(new), context(tmp_path, [" ".join(ten)], []))
    assert said.keep.tolist() == [library(new[0], " ".join(ten)) <= 0.7, False] == [True, False]


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_bad_threshold(threshold: float) -> None:
    with pytest.raises(UserError, match="threshold"):
        Novelty(threshold=threshold)


SCRIPTS = (
    "我们昨天去公园散步。",
    "مرحبا بالعالم الجميل",
    "Мы вчера гуляли в парке",
    "हम कल पार्क में टहलने गए",
    "วันนี้อากาศดีมาก",
    "3+4*2:",
)


@pytest.mark.parametrize("text", SCRIPTS)
def test_words_are_those_of_any_script(tmp_path: Path, text: str) -> None:
    other = "一二三四五 один два ثلاثة एक สอง 7*7"
    said = Novelty().decide(table([text, other, text, text]), context(tmp_path, ["x"], ["y"]))
    assert said.keep.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("3-4-2:", "3+4*2:", False),
        ("3-(4-2):", "(3-4)-2:", False),
        ("3 × 4 − 2", "3*4-2", True),
        ("٣+٤:", "3+4:", True),
        ("३ * (-४)", "3*(-4)", True),
        ("cafe\u0301", "café", True),
        ("a well-known, (old) and/or new = true", "a well known old and or new true", True),
    ],
)
def test_operators_count_beside_numbers_and_digits_are_digits(a: str, b: str, same: bool) -> None:
    assert (tokens(a) == tokens(b)) == same
