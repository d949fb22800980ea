"""Loops, agreement, names and numbers, by hand; JSON and XML that parse."""

from __future__ import annotations

from pathlib import Path

import pytest

from genloss.core.errors import UserError
from genloss.evaluate.forms import Agreement, Facts, Loops, looped, names_in, numbers_in
from genloss.evaluate.validity import Json, Xml
from test_embedding import sentences
from test_metrics import evidence


@pytest.mark.parametrize(
    ("text", "loop"),
    [("a b a b a b", True), ("x a a a", True), ("a b a b", False), ("a a a x", False), ("", False), ("a b c", False)],
)
def test_loops(text: str, loop: bool) -> None:
    assert looped(text.split(), period=2, times=3) == loop


def test_loops_of_a_sample(tmp_path: Path) -> None:
    found = Loops().measure(evidence(tmp_path, ["x"], ["a b", "c d"] * 8, ["so so so", "fine"] * 8))
    assert found == {"loops": 0.5, "loops_floor": 0}


def test_names_and_numbers() -> None:
    text = (
        "In 1945 President Truman met Mr. Attlee. Congress gave $3,500.50 and I left for New York. The 2nd man was 7."
    )
    assert numbers_in(text) == {"1945", "3,500.50", "7"}
    assert names_in(text) == {"President Truman", "Mr", "New York"}  # what begins a sentence says nothing
    assert names_in("we saw Lincoln's, and Grant") == {"Lincoln", "Grant"}


def test_facts_by_hand(tmp_path: Path) -> None:
    real = ["it was Ann who met Bob in 1900", "so said Eve"]
    made = ["then Ann met Bob in 1900", "then Ann met Eve in 1950", "then Zoe came"]
    found = Facts(found=1).measure(evidence(tmp_path, real, ["we saw Ann", "we saw Max", "none here"], made))
    assert found["numbers_known"] == 1 / 2 and found["numbers_found"] == 2
    assert found["names_known"] == 4 / 5 and found["names_known_floor"] == 1 / 2
    # Ann+Bob, Ann+1900, Bob+1900 are real; Ann+Eve, Ann+1950, Eve+1950 are not
    assert found["name_pairs_found"] == 6 and found["name_pairs_known"] == 1 / 2
    assert "numbers_known_floor" not in found and found["numbers_found_floor"] == 0


def test_agreement_is_of_a_text_with_itself(tmp_path: Path) -> None:
    topics = ("sea", "farm", "court")
    real = [s for i, topic in enumerate(topics) for s in sentences(topic, 60, i)]
    held_out = [s for i, topic in enumerate(topics) for s in sentences(topic, 12, 10 + i)]
    mixed = [f"{a} {b}" for a, b in zip(sentences("sea", 36, 20), sentences("court", 36, 21), strict=True)]
    embedding = {"_target_": "genloss.language.embedding.Ngrams", "dimensions": 3}
    found = Agreement(embedding=embedding).measure(evidence(tmp_path, real, held_out, mixed))
    assert found["agreement_floor"] > found["agreement_shuffled_floor"] + 0.3
    assert found["agreement"] < 0.2 and abs(found["agreement"] - found["agreement_shuffled"]) < 0.1


def test_json_and_its_schema() -> None:
    texts = ['{"age": 3}', '{"age": "x"}', "[1, NaN]", "", "[" * 100_000, '{"age": 3} more']
    assert Json().valid(texts).tolist() == [True, True, False, False, False, False]
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    assert Json(schema=schema).valid(texts).tolist() == [True, False, False, False, False, False]
    with pytest.raises(UserError, match="is no JSON Schema"):
        Json(schema={"type": "objekt"}).check(None)  # type: ignore[arg-type]


def test_xml_without_a_document_type() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    assert Xml().valid(["<a><b/>text</a>", "<a>", "text", bomb, "<a>\ud800</a>"]).tolist() == [True] + [False] * 4
