"""Memorisation against plain Python; copies of real records and of earlier rounds are kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.contracts import HISTORY, Inputs
from genloss.evaluate import copies
from genloss.evaluate.copies import Coded, Copies, Ids, Windows
from test_metrics import evidence

# few words, so that texts share long runs
TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=20).map("".join), max_size=12)


def windows(texts: list[str], others: list[str]) -> Windows:
    """Of texts whose words are letters."""
    ids = Ids()
    own = Coded.of(texts, ids)
    return Windows(own, Coded.of(others, Ids(ids)))


def longest_by_hand(text: str, others: list[str]) -> int:
    return max(
        (j - i for i in range(len(text)) for j in range(i, len(text) + 1) if any(text[i:j] in o for o in others)),
        default=0,
    )


def shingles(text: str, size: int) -> set[str]:
    return {text[i : i + size] for i in range(len(text) - size + 1)} or {text}


def near_by_hand(text: str, others: list[str], size: int, threshold: float) -> bool:
    mine, sets = shingles(text, size), [shingles(other, size) for other in others]
    return any(len(mine & said) / len(mine | said) >= threshold for said in sets)


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Texts and others: of both some are one of the others with a word changed, added or left out."""
    texts, others = draw(TEXTS.filter(len)), draw(TEXTS)
    for text in draw(st.lists(st.sampled_from([*texts, *others]), max_size=8)):
        at = draw(st.integers(0, len(text)))
        changed = text[:at] + draw(st.sampled_from(["", "a", "x", "y"])) + text[at + draw(st.integers(0, 1)) :]
        draw(st.sampled_from([texts, others])).append(changed)
    return texts, others


@settings(max_examples=300, deadline=None)
@given(
    samples(),
    st.integers(1, 9),
    st.sampled_from([0.05, 0.3, 0.5, 2 / 3, 0.7, 0.9, 1.0]),
    st.sampled_from([(1 << 17, 1 << 23), (2, 7)]),
    st.booleans(),
)
def test_runs_and_near_copies_are_those_of_plain_python(
    both: tuple[list[str], list[str]], size: int, threshold: float, room: tuple[int, int], run_first: bool
) -> None:
    texts, others = both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "PAIRS", room[0]), patch.setattr(copies, "ENTRIES", room[1])
        at = windows(texts, others)
        expected = [longest_by_hand(text, others) for text in texts]
        assert not run_first or at.longest().tolist() == expected
        asked = np.arange(len(texts)) % 5 > 0
        near = [near_by_hand(text, others, size, threshold) for text in texts]
        assert at.near(size, threshold, asked).tolist() == (np.array(near) & asked).tolist()
        assert at.longest().tolist() == expected


def test_longest_runs_of_long_texts() -> None:
    """Of lengths around powers of two, within one text and not over its end."""
    rng = np.random.default_rng(0)
    said = [chr(c) for c in rng.integers(0x4E00, 0x9000, 3000)]
    text = "".join(said)
    texts = ["-" * (i % 3) + text[i : i + n] + "+" for i, n in enumerate([1, 2, 3, 63, 64, 65, 127, 128, 129, 1000])]
    assert windows(texts, [text]).longest().tolist() == [1, 2, 3, 63, 64, 65, 127, 128, 129, 1000]
    assert windows(texts, texts).longest().tolist() == [len(t) for t in texts]
    assert windows([text], [text[:50], text[50:]]).longest().tolist() == [2950]
    assert windows(["abc", ""], ["xyz"]).longest().tolist() == [0, 0]
    assert windows(["abc"], []).longest().tolist() == [0]
    assert windows([""], [""]).near(5, 1.0, np.array([True])).tolist() == [True]


def test_a_reference_in_parts_is_read_whole() -> None:
    texts = [f"{'word ' * (i % 7)}{i}" for i in range(200)]
    parts = list(copies._parts(iter(texts), 100))
    assert [text for part in parts for text in part] == texts and len(parts) > 10
    sizes = [sum(map(len, part)) for part in parts]
    assert all(100 <= size < 140 for size in sizes[:-1]) and sizes[-1] < 150
    assert list(copies._parts(iter(["long" * 100]), 100)) == [["long" * 100]] and list(copies._parts(iter([]), 9)) == []


def test_parts_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(1, 30))) for _ in range(120)]
    at = evidence(tmp_path, texts[:60], texts[60:90], [*texts[50:70], *texts[90:100]])
    whole = Copies().measure(at)
    monkeypatch.setattr(copies, "PART", 1)
    monkeypatch.setattr(copies, "_parts", lambda said, size, parts=copies._parts: parts(said, 60))
    assert Copies().measure(at) == whole and 0 < whole["copies_real"] < 1


def test_real_and_earlier_are_kept_apart(tmp_path: Path) -> None:
    real = ["the old bridge crosses the quiet river in winter", "a short one"]
    earlier = ["models wrote this long sentence about nothing at all"]
    made = [
        "The old bridge  crosses the quiet river in winter",  # of real, case and space apart
        "models wrote this long sentence about nothing at all today",  # near one of an earlier round
        "entirely new words stand here and nowhere else",
        "x the old bridge crosses y",
    ]
    made *= 4
    held_out = ["unrelated text one", "unrelated text two", "unrelated text three", "unrelated text four"] * 4
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
