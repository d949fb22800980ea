"""Self-Instruct and Alpaca: what is shown, what is thrown away and why, novelty of the pool, and bad values."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from genloss.core import records
from genloss.core.contracts import Inputs
from genloss.core.errors import UserError
from genloss.core.prompts import onward
from genloss.curate import Context
from genloss.domains.instruct import MESSAGES
from genloss.domains.instruct.tasks import SeedTasks, parts, task
from genloss.experiment import Experiment
from genloss.systems.self_instruct.heuristics import Heuristics, fault, flaw, sound
from genloss.systems.self_instruct.metric import effective, verb_noun
from genloss.systems.self_instruct.recipe import Known, SelfInstruct
from genloss.workflow.compose import compose
from support import Project, Server, serving, undocumented
from test_novelty import library  # of rouge-score

REAL = [
    *("domain=instruct", "domain/corpus=seed_tasks", "model=llama", "mixing=accumulate", "curation=novelty"),
    *("domain.examples=151", "domain.validation=8", "domain.test=15", "domain.pool=1", "size=151", "rounds=2"),
    *("domain.context=400", "domain.too_long=drop", "trainer.steps=2", "trainer.batch=2", "tracking=none"),
    *("metrics=[response_loss,instructions]", "recipe=self_instruct"),
]
SERVED = [
    *("recipe/backend@recipe.author.backend=openai", "recipe.author.backend.model=m", "recipe.author.new_tokens=256"),
    *("recipe.author.backend.api=chat", "recipe.author.backend.seeds=false", "recipe.author.chunk=4"),
]
SELF = [*REAL, *SERVED, "recipe.calls=3"]
WORLD = [
    *("experiment=self_instruct", "hydra.mode=RUN", "seed=0", "trainer.steps=5", "trainer.batch=4", "recipe.calls=96"),
    *("domain.examples=200", "domain.validation=8", "domain.test=8", "size=200", "rounds=2", "tracking=none"),
    *("recipe.author.chunk=16", "curation.novelty.threshold=0.6"),
]
WORDS = ["red", "blue", "green", "black", "white", "brown", "grey", "gold", "pink", "amber", "ivory", "violet"]


def reply(text: str, finish: str) -> tuple[int, bytes]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 4}}).encode()


def behave(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    """A server that writes tasks, some of them with the faults that are thrown away, and does them."""
    said = body["messages"][-1]["content"]
    finish = "stop"
    if body["temperature"] == 2:  # whether it samples is asked first
        return reply("a" if body.get("top_p", 1) < 0.1 else str(number), "stop")
    if said.startswith("Here is a varied list"):
        some = " ".join(random.Random(said).sample(WORDS, 6))
        items = [f"Compose a poem: {some}.", f"Is the animal wild or tame? {some}", f"Sum up the letter: {some}."]
        items += [items[0], "Do it.", "Draw the house of a friend.", "Write a program that adds numbers.", "Name the"]
        text = " " + "\n".join(f"Task {i}: {item}" for i, item in enumerate(items, 9)).removeprefix("Task 9: ")
        finish = "length"
    elif said.startswith("Can the task"):
        text = " Yes" if "wild or tame" in said.rpartition("Task:")[2] else " No"
    elif said.startswith("For each task, name"):
        text = " wild\nInput: a wolf\nLabel: tame\nInput: a cow\nLabel: tame\nInput:"
        finish = "length"
    elif "Sum up" in said.rpartition("Task:")[2]:
        text = (
            "Example 1\nInput: Dear all, we met.\nOutput: They met.\nExample 2\nInput: Dear all, we met.\nOutput: None."
        )
    else:
        text = "Output: The sea is wide."
    return reply(text, finish)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Path, Server]]:
    home = Project.make(tmp_path_factory.mktemp("self_instruct") / "project")
    with serving(behave) as server:
        yield home, home.root / home.ok("run", *SELF, f"recipe.author.backend.url={server.url}").folder, server


# -- what is thrown away -----------------------------------------------------------------------------------------------


def test_each_fault_of_an_instruction() -> None:
    assert fault("Name three rivers of Europe.") == ""
    assert fault("Name three rivers.") == "too short" and fault("") == "empty"
    assert fault("word " * 150) == "" and fault("word " * 151) == "too long"
    assert fault("Describe the IMAGE in words.") == "unfit" == fault("Please go to the shop now.")
    assert fault("Explain mapping in plain words.") == ""  # map is a word
    assert fault("Play some music for me.") == "" and fault("Play some music for me.", ["music"]) == "unfit"
    assert fault("Write a program that sorts.") == "program" and fault("Please write a program now.") == ""
    assert fault("- name a thing or two") == "punctuation" and fault("Écris une phrase sur Paris.") == "non-ASCII"


def test_each_flaw_of_an_instance() -> None:
    assert flaw(("a", "b")) == "" == flaw(("", "b"))
    assert flaw(("a", " ")) == "no output" and flaw(("a ", "a")) == "output is input"
    assert flaw(("a:", "b")) == "colon" == flaw(("", "So:"))
    assert sound([("a", "b"), ("a", "b"), ("c", "")]) == ([("a", "b")], "")
    assert sound([("a", "b"), ("a", "c"), ("d", "e")]) == ([], "contradiction")
    assert sound([("", "b"), ("", "c")]) == ([("", "b"), ("", "c")], "")  # no input is not the same input
    assert sound([("a", "a"), ("b", "")]) == ([], "output is input") and sound([]) == ([], "no output")


def test_the_curator_has_the_same_rules(tmp_path: Path) -> None:
    told = [task("Name three rivers of Europe.", "", "Rhine."), task("Draw a house for me.", "", "No.")]
    told += [task("Copy the word in capitals.", "WORD", "WORD"), task("Name four rivers of Asia.", "", "Indus, Gan")]
    made = records.make_table({"messages": pa.array(told, MESSAGES)}, origin="synthetic", generation=1, recipe="x")
    made = records.with_finish(made, [records.ENDED] * 3 + [records.CUT])
    domain = Experiment(compose(REAL)).domain
    done = Heuristics().decide(made, Context(domain, 1, 0, tmp_path, Inputs({})))
    assert done.keep.tolist() == [True, False, False, False]
    assert done.reason.tolist() == ["", "unfit", "output is input", "truncated"]


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_the_seed_tasks_are_conversations() -> None:
    tasks = list(SeedTasks().conversations())
    assert len(tasks) == 175
    asks = [SeedTasks().asks(messages) for messages in tasks]
    assert len(set(asks)) == 175 and all(fault(text) == "" for text in asks)
    assert sum(bool(parts(messages[0]["content"])[1]) for messages in tasks) == 74


def test_seeds_that_overlap_the_test_set_are_refused(project: Path) -> None:
    """Any two of them may come to lie on both sides."""
    rows = [{"instruction": f"{word} is a colour that {word}s like.", "output": word} for word in WORDS]
    rows.append({"instruction": "Name the largest river of Europe for me.", "output": "Volga"})
    rows.append({"instruction": "Name the largest river of Asia for me.", "output": "Yangtze"})
    (project / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        UserError, match=r"seeds.jsonl, line 2: asks for nearly the same as line 1 .*not overlap the test"
    ):
        Experiment(compose([*REAL, "domain.corpus.path=seeds.jsonl"]))
    (project / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[-2:]))
    with pytest.raises(UserError, match=r"ROUGE-L 0.88"):
        Experiment(compose([*REAL, "domain.corpus.path=seeds.jsonl"]))
    (project / "seeds.jsonl").write_text('{"instruction": "Do.", "instances": []}\n')
    with pytest.raises(UserError, match=r"line 1: has no instances"):
        Experiment(compose([*REAL, "domain.corpus.path=seeds.jsonl"]))


# -- what is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "machine"), [("mixed", 2), ("seeds", 0), ("machine", 8)])
def test_a_call_shows_as_many_of_each_as_it_should(source: str, machine: int) -> None:
    seeds, made = ([Known(f"{kind}{i}", "", "", "") for i in range(12)] for kind in "sm")
    recipe = SelfInstruct(calls=200, source=source)
    calls = recipe.drawn(seeds, made, 3)
    assert calls == recipe.drawn(seeds, made, 3) != recipe.drawn(seeds, made, 4)
    for shown in calls:
        assert len({known.id for known in shown}) == 8 == len(shown)
        assert sum(known in made for known in shown) == machine
    first = {shown[0].id[0] for shown in calls}  # in random order
    assert first == ({"s", "m"} if source == "mixed" else {source[0]})
    for shown in recipe.drawn(seeds, made[:1], 3):  # what is not there is made up for
        assert sum(known in made for known in shown) == min(machine, 1) and len(shown) == 8


def test_a_mark_that_a_chat_says_again_is_no_part_of_a_task() -> None:
    """Prompts end with the mark behind which a model goes on."""
    recipe = SelfInstruct()
    said = onward("Task 9: Name three rivers.\nTask 10: Sum up the letter.", "Task 8: Do it.\nTask 9:")
    assert [each[0] for each in recipe._items(said, False)] == ["Name three rivers.", "Sum up the letter."]
    assert [each[0] for each in recipe._items("Task 1: Name it.\nTask 2: Sum.", False)] == ["Name it.", "Sum."]
    whole = SelfInstruct(form="together")._items("### Task 4\nInstruction: Say it.\nInput: none\nOutput: It.", False)
    assert whole == [("Say it.", "", [("", "It.")])]
    assert onward("Answer: Yes", "Task: a\nAnswer:") == " Yes" and onward(" Yes", "Answer:") == " Yes"
    assert onward('Review: "Good.', 'x\nReview: "') == "Good." and onward("Review: ", 'x\nReview: "') == ""
    assert onward("Label: wild\nInput: a wolf", "Task: a\nLabel:") == " wild\nInput: a wolf"


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_tasks_are_written_thrown_away_and_done(served: tuple[Project, Path, Server]) -> None:
    _, folder, server = served
    train = set(records.read(folder / "data/train.parquet").column("id").to_pylist())
    first, second = (records.read(folder / f"rounds/0{n}/generated.parquet") for n in (1, 2))
    kept = set(records.read(folder / "rounds/01/kept.parquet").column("id").to_pylist())
    for n, table in ((1, first), (2, second)):
        found = json.loads((folder / f"rounds/0{n}/metrics.json").read_text())
        counts = {name.removeprefix("generate/"): v for name, v in found.items() if name.startswith("generate/")}
        assert (counts["calls"], counts["asked"], counts["items"]) == (3, 24, 24)
        for why in ("too_short", "unfit", "program", "truncated", "contradiction"):
            assert counts[f"rejected_{why}"] == 3, why
        assert counts["written"] == len(table) == 9 and counts["classification"] == 3
        for messages in table.column("messages").to_pylist():
            (asked, given), answer = parts(messages[0]["content"]), messages[1]["content"]
            if "poem" in asked:
                assert (given, answer) == ("", "The sea is wide.")
            else:
                assert (given, answer) in {("a wolf", "wild"), ("a cow", "tame")}  # the third was cut off
        assert not undocumented(found)
    for parents in first.column("parents").to_pylist():
        assert len(set(parents)) == 8 and set(parents) <= train
    for parents in second.column("parents").to_pylist():
        assert len(set(parents)) == 8
        assert len(set(parents) & kept) == min(2, len(kept)) and set(parents) <= train | kept
    lists = [b for b in server.bodies if b["messages"][-1]["content"].startswith("Here is a varied list")]
    assert all(body["temperature"] in (0.7, 2) for body in lists)
    greedy = [b for b in server.bodies if b["messages"][-1]["content"].startswith(("Can the", "For each"))]
    assert greedy and all(body["temperature"] == 0 for body in greedy)
    result = json.loads((folder / "rounds/01/manifest.json").read_text())
    assert len(re.findall(r'"sha256": "[0-9a-f]{64}"', json.dumps(result))) >= 1


def test_no_kept_pair_is_too_similar(served: tuple[Project, Path, Server]) -> None:
    """By the library itself: among each other and to the seeds."""
    _, folder, _ = served
    asks = SeedTasks().asks
    seeds = [asks(m) for m in records.read(folder / "data/train.parquet").column("messages").to_pylist()]
    kept = [
        asks(m)
        for n in (1, 2)
        for m in records.read(folder / f"rounds/0{n}/kept.parquet").column("messages").to_pylist()
    ]
    dropped = records.read(folder / "rounds/01/rejected.parquet")
    assert kept and len(dropped) and set(dropped.column("reason").to_pylist()) == {"novelty: too similar"}
    pairs = [*itertools.combinations(kept, 2), *itertools.product(kept, seeds)]
    assert max(library(a, b) for a, b in pairs) <= 0.7


def test_a_rerun_is_free_and_the_same(served: tuple[Project, Path, Server]) -> None:
    home, folder, server = served
    asked = len(server.bodies)
    again = Project.make(home.root.parent / "again")
    again.store.mkdir(parents=True)
    shutil.copytree(home.store / "replies", again.store / "replies")
    other = again.root / again.ok("run", *SELF, f"recipe.author.backend.url={server.url}").folder
    for name in ("rounds/01/kept.parquet", "rounds/02/generated.parquet"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    assert len(server.bodies) == asked


def endless(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    if body["temperature"] == 2:
        return behave(number, body)
    return reply("and so on " * 20, "length")


def copies(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    said = body["messages"][-1]["content"]
    if body["temperature"] == 2 or not said.startswith("Here is a varied list"):
        return behave(number, body)
    first = re.findall(r"Task 1: (.*)", said)[0]
    return reply(f" {first}\nTask 10: {first}\nTask 11: {first}", "stop")


def deaf(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
    return reply(str(number), "stop")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (endless, r"recipe\.author=last: wrote none of 16 tasks in round 1 \(2 truncated\)"),
        (copies, r"curation=novelty: kept none of \d records in round 1 \(\d novelty: too similar\)"),
        (deaf, r"recipe\.author\.backend\.url=http.*: the server ignores top_p"),
    ],
)
def test_an_author_of_nothing_new_is_one_line(tmp_path: Path, server: Any, words: str) -> None:
    home = Project.make(tmp_path / "project")
    with serving(server) as at:
        done = home.call("run", *REAL, *SERVED, "recipe.calls=2", "rounds=1", f"recipe.author.backend.url={at.url}")
    assert done.code == 2 and len(done.refusals) == 1 and re.search(words, done.refusals[0]), done.err


def test_alpaca_writes_whole_tasks_in_one_go(tmp_path: Path) -> None:
    def whole(number: int, body: dict[str, Any]) -> tuple[int, bytes]:
        if body["temperature"] == 2:  # as above
            return reply(str(number), "stop")
        text = (
            " Tell a joke about two hens.\nInput: none\nOutput: Two hens met.\n\n"
            "### Task 5\nInstruction: Make the sentence shorter, please.\nInput: It is so.\nOutput: So.\n\n"
            "### Task 6\nInstruction: Play us some music now.\nInput: none\nOutput: No.\n\n"
            "### Task 7\nno form at all\n\n###"
        )
        return reply(text, "stop")

    home = Project.make(tmp_path / "project")
    with serving(whole) as server:
        options = [
            *(o for o in REAL if o != "recipe=self_instruct"),
            *SERVED,
            "recipe=alpaca",
            "recipe.calls=1",
            "rounds=1",
        ]
        folder = home.root / home.ok("run", *options, f"recipe.author.backend.url={server.url}").folder
    call = next(body for body in server.bodies if body["temperature"] == 1 and "stop" in body)
    said = call["messages"][-1]["content"]
    assert said.count("### Task") == 4 and said.endswith("Instruction:") and call["stop"] == ["Task 21"]
    table = records.read(folder / "rounds/01/generated.parquet")
    told = [(*parts(m[0]["content"]), m[1]["content"]) for m in table.column("messages").to_pylist()]
    assert told[0] == ("Tell a joke about two hens.", "", "Two hens met.")
    assert told[1] == ("Make the sentence shorter, please.", "It is so.", "So.") and len(told) == 2
    found = json.loads((folder / "rounds/01/metrics.json").read_text())
    assert (found["generate/rejected_unfit"], found["generate/rejected_unparseable"]) == (1, 1)
    assert set(table.column("recipe").to_pylist()) == {"alpaca"}


def test_any_workers_give_the_same_pool(tmp_path: Path) -> None:
    """The world and a model from scratch: records and what is kept of them, byte by byte."""
    kept = []
    for workers in (1, 2):
        home = Project.make(tmp_path / str(workers))
        folder = home.root / home.ok("run", *WORLD, f"runtime.workers={workers}").folder
        kept.append([(folder / f"rounds/0{n}/{f}.parquet").read_bytes() for n in (1, 2) for f in ("generated", "kept")])
    assert kept[0] == kept[1]
    found = json.loads((folder / "rounds/02/metrics.json").read_text())
    assert not undocumented(found)
    rejected = sum(n for name, n in found.items() if name.startswith("generate/rejected_"))
    assert found["generate/items"] == found["generate/calls"] == rejected + found["generate/written"]
    assert found["generate/asked"] == 96 and 0 < found["generate/shown_machine"] <= 96
    seeds = json.loads((folder / "rounds/00/metrics.json").read_text())
    assert 0 < seeds["pool_cells"] <= seeds["pool_size"] < 200  # proposals are no seeds


# -- what is measured --------------------------------------------------------------------------------------------------


def test_effective_numbers() -> None:
    assert effective([]) == 0 and effective("aabb") == pytest.approx(2) and effective("aaa") == pytest.approx(1)
    assert 1 < effective("aaab") < 2


@pytest.mark.parametrize(
    ("instruction", "pair"),
    [
        ("Name the planets of the solar system.", ("name", "planets")),
        ("Please write a short poem about a lighthouse, and rhyme.", ("write", "poem")),
        ("Give four pieces of advice", ("give", "pieces")),
        ("Could you kindly give the friend of bupe? one word.", ("give", "friend")),
        ("What is the capital of Peru?", None),
        ("Translate.", None),
        ("", None),
    ],
)
def test_verbs_and_nouns(instruction: str, pair: tuple[str, str] | None) -> None:
    assert verb_noun(instruction) == pair


# -- bad values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "overrides", "words"),
    [
        (REAL, ["recipe.calls=0"], "recipe.calls=0: must be at least 1"),
        (REAL, ["recipe.seeds=0", "recipe.machine=0"], "recipe.seeds=0: must be at least 1 where recipe.machine=0"),
        (REAL, ["recipe.source=machines"], "recipe.source=machines.*did you mean machine"),
        (REAL, ["recipe.form=instance"], "recipe.form=instance.*did you mean instances"),
        (REAL, ["recipe.prompts=nowhere.yaml"], "recipe.prompts=.*is no file of prompts"),
        (REAL, ["domain.examples=7"], "domain.examples=7: must be at least 8: a call shows so many seeds"),
        (WORLD, ["recipe.seeds=4"], "recipe.seeds=4: must be at most 3: .*shown 4 requests at most"),
        (WORLD, ["recipe.form=together"], "recipe.form=together: must be answers"),
        (WORLD, ["recipe.ask=2"], "recipe.ask=2: must be 1"),
        (WORLD, ["domain.corpus.skills.propose=0"], "domain.corpus.skills.propose=0: must be above 0"),
        (["recipe=self_instruct"], [], "recipe=SelfInstruct: needs conversations"),
    ],
)
def test_bad_values(base: list[str], overrides: list[str], words: str, project: Path) -> None:
    options = [*base, *overrides]
    with pytest.raises(UserError, match=words):
        Experiment(compose([o for o in options if not o.startswith("hydra.")]))


def test_too_few_seeds_for_the_demonstrations(project: Path) -> None:
    """Known only when the data are there: the splits leave seven."""
    rows = [{"prompt": f"{word} {i} {word}", "response": word} for i, word in enumerate(WORDS[:10])]
    (project / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    home = Project(project, {"GENLOSS_PROJECT": str(project), "GENLOSS_STORE": str(project / ".genloss/store")})
    options = [o for o in REAL if "domain/corpus" not in o and "=8" not in o and "test=15" not in o]
    options += ["domain/corpus=chats", "domain.corpus.path=few.jsonl", "domain.validation=1", "domain.test=1"]
    done = home.call("run", *options, "size=7")
    assert done.code and "recipe.seeds=6: a call shows 8 tasks, and there are 7 seeds" in done.err
