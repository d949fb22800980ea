"""The skills of the small world (domain=instruct): what is written is right, what is changed is not, and their laws."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.errors import UserError
from genloss.domains.instruct import Instruct
from genloss.domains.instruct.following import cells, spread
from genloss.domains.instruct.grammar import FORMATS, REGISTERS, STEPS, legal
from genloss.domains.instruct.skills import DEMONSTRATIONS, GRADES, SKILLS
from genloss.domains.instruct.world import World

ALL = dict.fromkeys(SKILLS, 0.2)
WORLD = World(skills=ALL)
MADE = list(itertools.islice(WORLD.conversations(), 12000))
OF = {name: [m for m in MADE if WORLD.skill(m) == name] for name in SKILLS}
WORLDS = st.builds(
    World,
    topics=st.integers(1, 8),
    entities=st.integers(5, 30),
    steps=st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=4, max_size=4).filter(any),
    skills=st.just(ALL),
    seed=st.integers(0, 2**31),
)


def said(messages: list[dict[str, str]], answer: str) -> list[dict[str, str]]:
    return [*messages[:-1], {"role": "assistant", "content": answer}]


def test_without_skills_nothing_has_changed() -> None:
    """Hashes of the data as it was before there were skills."""

    def of(world: World) -> str:
        return hashlib.sha256(json.dumps(list(itertools.islice(world.conversations(), 3000))).encode()).hexdigest()[:16]

    assert of(World()) == of(World(skills={"answer": 2.0})) == "613cf1a47b79b0d6"
    assert of(World(seed=3, topics=8, entities=30, systems=0.5, dialogues=0.5)) == "6f324512f80d19ba"


@settings(max_examples=60)
@given(WORLDS)
def test_what_a_world_writes_it_reads(world: World) -> None:
    made = list(itertools.islice(world.conversations(), 150))
    checked = world.verify(made)
    assert checked.right.all() and checked.parsed.all()
    for messages in made:
        if (skill := world.skill(messages)) != "answer":
            assert [turn.skill for turn in world.read(messages).turns] == [skill] and len(messages) == 2


def test_shares_are_those_of_the_config() -> None:
    for name in SKILLS:
        assert len(OF[name]) / len(MADE) == pytest.approx(0.2, abs=0.015)
    found = Counter(m[-1]["content"] for m in OF["rate"])
    assert set(found) == set(map(str, GRADES))
    assert all(n / len(OF["rate"]) == pytest.approx(0.2, abs=0.03) for n in found.values())
    assert {WORLD.skill(m) for m in itertools.islice(World(skills={"rate": 1.0}).conversations(), 50)} == {"rate"}


def test_proposals_follow_their_law() -> None:
    """Of each cell the number of proposals, beside the sum of its probabilities: within 4.5 standard deviations, which
    one of 132 cells is beyond in one of a thousand tests; and by k, that the law is not that of one demonstration."""
    counts = Counter[Any]()
    mean, variance = defaultdict[Any, float](float), defaultdict[Any, float](float)
    sizes = Counter[int]()
    for messages in OF["propose"]:
        shown = WORLD.demonstrations(messages[0]["content"])
        sizes[len(shown)] += 1
        law = WORLD.proposal_law([each.cell for each in shown])
        assert sum(law.values()) == pytest.approx(1)
        for cell, p in law.items():
            mean[cell] += p
            variance[cell] += p * (1 - p)
        made = WORLD.request(messages[1]["content"])
        assert made is not None and made.cell in law
        counts[made.cell] += 1
    assert set(sizes) == set(range(1, DEMONSTRATIONS + 1))
    wide = [cell for cell in mean if variance[cell] > 5]
    assert len(wide) > 50 and all(abs(counts[cell] - mean[cell]) < 4.5 * variance[cell] ** 0.5 for cell in wide)


def test_the_law_of_proposals_by_hand() -> None:
    two = [("bird", "word", "plain", 1), ("boat", "list", "plain", 0)]
    found = WORLD.proposal_law(two)  # word and 0 steps is none: three pairs, two topics, one register
    assert found == {
        (topic, name, "plain", steps): pytest.approx(1 / 6)
        for topic in ("bird", "boat")
        for name, steps in (("word", 1), ("list", 1), ("list", 0))
    }
    assert WORLD.proposal_law(two[:1]) == {two[0]: 1.0}
    assert WORLD.proposal_law([two[0], two[0], ("boat", "word", "plain", 1)])["bird", "word", "plain", 1] == 2 / 3


def test_a_proposal_that_is_changed_is_wrong() -> None:
    for messages in OF["propose"][:400]:
        shown = messages[0]["content"].split("\n")[1:]
        assert not any(WORLD.read(said(messages, copy)).right for copy in shown)
        assert all(WORLD.read(said(messages, copy)).parsed for copy in shown)
        requests = WORLD.demonstrations(messages[0]["content"])
        for at, values in enumerate((WORLD.kinds, FORMATS, REGISTERS, STEPS)):
            made = WORLD.request(messages[1]["content"])
            assert made is not None
            for value in set(values) - {each.cell[at] for each in requests}:
                cell: Any = [*made.cell[:at], value, *made.cell[at + 1 :]]
                if legal(cell[1], cell[3]):
                    assert not WORLD.read(said(messages, of_cell(cell))).right
    asked = WORLD.ask_propose([f"what is the colour of {WORLD.kinds['bird'][0]}? one word.", "nonsense"])
    assert WORLD.checked(asked, f"what is the colour of {WORLD.kinds['bird'][1]}? one word.") == (False, True)
    assert WORLD.checked("more like these:\n", "nonsense") == (False, False)


def of_cell(cell: Any, who: int = 0) -> str:
    """A request of a cell."""
    topic, name, register, steps = cell
    first = {"plain": "what is ", "formal": "could you kindly give ", "casual": "hey, "}[register]
    path = "a portrait of " if not steps else "the age of " + "the friend of " * (steps - 1)
    ends = {"word": " one word.", "sentence": " in a sentence.", "list": " as a list."}
    return f"{first}{path}{WORLD.kinds[topic][who]}?{ends[name]}"


@given(st.sampled_from(sorted(WORLD.law)), st.sampled_from(sorted(WORLD.law)), st.integers(0, 9))
def test_a_description_asks_for_its_cell(cell: Any, other: Any, who: int) -> None:
    asked = WORLD.ask_describe(*cell)
    assert WORLD.skill_of(asked) == "describe" and WORLD.described(asked) == cell
    assert WORLD.checked(asked, of_cell(other, who)) == (cell == other, True)
    assert WORLD.checked(asked, "nonsense") == (False, False)


def test_descriptions_are_as_they_are_written_here() -> None:
    assert WORLD.ask_describe("bird", "list", "formal", 2) == "a request about a bird: formal, as a list, two steps."
    assert WORLD.ask_describe("boat", "word", "plain", 1) == "a request about a boat: plain, in one word, one step."
    assert WORLD.described("a request about a bird: plain, in one word, a portrait.") is None  # no such requests
    assert WORLD.described("a request about a dog: plain, in one word, one step.") is None


def test_what_was_asked_is_known_from_lists_and_sentences() -> None:
    for one, two in itertools.pairwise(OF["recall"][:600]):
        asked, answer = (m["content"] for m in one)
        request = WORLD.recalled(asked.removeprefix("what was asked?\n"))
        assert request is not None and WORLD.request(answer) == request
        assert WORLD.answers(request, WORLD.read_reply(asked.removeprefix("what was asked?\n")))
        assert WORLD.read(said(one, two[1]["content"])).right == (WORLD.request(two[1]["content"]) == request)
    for answer in ("red", "certainly. red", "", "home | news | about", "the colour of nobody is red."):
        assert WORLD.recalled(answer) is None
        assert not WORLD.checked(WORLD.ask_recall(answer), of_cell(("bird", "list", "plain", 1)))[0]


def test_each_digit_but_one_is_wrong() -> None:
    for messages in OF["rate"][:300]:
        right = [g for g in "0123456" if WORLD.read(said(messages, g)).right]
        assert right == [messages[1]["content"]]
        assert not WORLD.read(said(messages, "0")).parsed and not WORLD.read(said(messages, "five")).parsed


def test_the_rubric_by_hand() -> None:
    who, other = WORLD.kinds["bird"][:2]
    at = WORLD.facts
    friend = at[who, "friend"]
    colours = [c for c in ("red", "blue", "green") if c not in (at[friend, "colour"], at[who, "colour"])]
    asked = f"what is the colour of the friend of {who}? as a list."
    first, last = f"- friend of {who}: {friend}", f"- colour of {friend}: {at[friend, 'colour']}"
    grades = {
        f"{first}\n{last}": 5,
        f"certainly.\n{first}\n{last}": 4,
        f"the friend of {who} is {friend}. {friend} has the colour {at[friend, 'colour']}.": 4,
        at[friend, "colour"]: 4,
        first: 3,
        last: 2,  # not about the subject
        friend: 3,
        f"{first}\n- colour of {friend}: {colours[0]}": 3,
        f"{first}\n{last}\n- size of {who}: {at[who, 'size']}": 3,
        f"{last}\n{first}": 2,
        f"- colour of {who}: {at[who, 'colour']}": 2,
        f"- friend of {other}: {at[other, 'friend']}": 2,
        colours[0]: 2,
        f"{first}\nhome | news | about": 1,
        f"{first}\n- colour of": 1,
        "": 1,
        asked: 1,
    }
    assert {text: WORLD.grade(asked, text) for text in grades} == grades
    assert WORLD.grade("nonsense", first) == 2 and WORLD.grade("nonsense", "no | thing") == 1
    portrait = f"what is a portrait of {who}? as a list."
    told = [f"- {what} of {who}: {at[who, what]}" for what in ("kind", "colour", "size", "age")]
    assert WORLD.grade(portrait, "\n".join(told[::-1])) == 5
    assert WORLD.grade(portrait, "\n".join(told[:3])) == 3
    assert WORLD.grade(portrait, at[who, "age"]) == 3  # a portrait has no word


@given(st.text(), st.text())
def test_any_two_texts_have_a_grade(request: str, answer: str) -> None:
    grade = WORLD.grade(request, answer)
    assert grade in GRADES
    asked = WORLD.ask_rate(request, answer)
    assert WORLD.skill_of(asked) == "rate"
    if "\n" not in request:
        assert WORLD.checked(asked, str(grade)) == (True, True)
    for ask in (WORLD.ask_recall(answer), WORLD.ask_propose([request]), WORLD.ask_propose([])):
        assert WORLD.checked(ask, answer)[0] in (False, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skills": {"anwser": 1.0}}, "skills=anwser: unknown; did you mean answer?"),
        ({"skills": {"rate": -1.0}}, "skills.rate=-1.0: must be a share"),
        ({"skills": {"answer": 0.0}}, "skills={'answer': 0.0}: must be shares, of which one is not 0"),
        ({"skills": {"rate": 1.0}, "entities": 4}, "entities=4: must be at least 5"),
    ],
)
def test_bad_shares_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        World(**options)
    assert str(caught.value).startswith(words)


def test_splits_and_metrics_of_several_skills(tmp_path: Path) -> None:
    """Descriptions are few, and ask for many requests: they are compared by both."""
    corpus = {"_target_": "genloss.domains.instruct.world.World", "skills": ALL}
    domain = Instruct(corpus=corpus, examples=2000, validation=50, test=400, pool=100, context=256)
    counts = domain.prepare(tmp_path)
    assert counts["train"] == 2000
    train = records.read(tmp_path / "train.parquet")
    found = Counter(WORLD.skill(m) for m in train.column("messages").to_pylist())
    assert found["describe"] > 330
    texts = [t for n in ("test", "train") for t in domain.texts(records.read(tmp_path / f"{n}.parquet"))]
    assert len(set(texts)) == 2400
    test = records.read(tmp_path / "test.parquet")
    messages = test.column("messages").to_pylist()
    right = np.array([WORLD.skill(m) in ("answer", "rate") for m in messages])
    shown = cells(WORLD, test, right)
    assert {name: shown[f"followed/{name}"] for name in SKILLS} == {
        name: float(name in ("answer", "rate")) for name in SKILLS
    }
    assert shown["breadth"] == 1 and shown["followed/format_word"] == 1
    rated = np.array([WORLD.skill(m) == "rate" for m in messages])
    assert cells(WORLD, test.filter(rated), right[rated]) == spread(WORLD, []) == {}
