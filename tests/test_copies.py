"""Memorisation against plain Python; copies of real records and of earlier rounds are kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genloss.core import records
from genloss.core.contracts import HISTORY, Inputs
from genloss.evaluate.copies import Copies, Runs, nearest, shingles
from test_metrics import evidence


def random_texts(n: int, seed: int, kinds: int = 4) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [[f"w{i}" for i in rng.integers(0, kinds, rng.integers(0, 15))] for _ in range(n)]


def longest_by_hand(text: list[str], others: list[list[str]]) -> int:
    return max(
        (
            j - i
            for other in others
            for i in range(len(text))
            for j in range(i + 1, len(text) + 1)
            if any(other[k : k + j - i] == text[i:j] for k in range(len(other)))
        ),
        default=0,
    )


def test_longest_runs_are_those_of_plain_python() -> None:
    texts, others = random_texts(25, 0), random_texts(20, 1)
    runs = Runs(texts)
    assert runs.longest(others).tolist() == [longest_by_hand(text, others) for text in texts]
    assert runs.longest(texts).tolist() == [len(text) for text in texts]  # itself; no run crosses two texts
    assert runs.longest([["never", "seen"]]).tolist() == [0] * 25
    assert runs.longest([]).tolist() == [0] * 25


def test_nearest_is_the_highest_jaccard_similarity() -> None:
    texts, others = random_texts(30, 2), random_texts(30, 3)

    def similarity(a: list[str], b: list[str]) -> float:
        x, y = shingles(a, 2), shingles(b, 2)
        return len(x & y) / len(x | y)

    expected = [max(similarity(text, other) for other in others) for text in texts]
    assert nearest(texts, others, 2) == pytest.approx(expected)


def test_real_and_earlier_are_kept_apart(tmp_path: Path) -> None:
    real = ["the old bridge crosses the quiet river in winter", "a short one"]
    earlier = ["models wrote this long sentence about nothing at all"]
    made = [
        "The old bridge  crosses the quiet river in winter",  # of real, case and space apart
        "models wrote this long sentence about nothing at all today",  # near one of an earlier round
        "entirely new words stand here and nowhere else",
        "x the old bridge crosses y",
    ]
    held_out = ["unrelated text one", "unrelated text two", "unrelated text three", "unrelated text four"]
    table = records.make_table({"text": earlier}, origin="synthetic", generation=1, recipe="sample")
    records.write(table, tmp_path / "kept.parquet")
    at = evidence(tmp_path, real, held_out, made)
    first = Copies().measure(replace(at, inputs=Inputs({HISTORY: ()})))
    assert not any("earlier" in name for name in first)
    found = Copies().measure(replace(at, round=2, inputs=Inputs({HISTORY: (tmp_path / "kept.parquet",)})))
    assert first.items() <= found.items()
    assert found["copies_real"] == found["near_copies_real"] == 1 / 4
    assert found["copies_earlier"] == 0 and found["near_copies_earlier"] == 1 / 4
    assert found["longest_run_real"] == 9 and found["longest_run_earlier"] == 9
    assert found["run_real"] == pytest.approx((1 + 0 + 0 + 4 / 6) / 4)
    assert found["run_earlier"] == pytest.approx((0 + 9 / 10 + 0 + 0) / 4)
    assert found["copies_real_floor"] == found["longest_run_earlier_floor"] == 0
