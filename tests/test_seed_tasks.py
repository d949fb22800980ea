"""The seed tasks of domain=instruct: their layout, and that no two of them ask for nearly the same."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import combinations
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

TASKS = [
    json.loads(line)
    for line in (files("genloss.domains.instruct") / "seed_tasks.jsonl").read_text("utf-8").splitlines()
]
INSTANCES = [(task, instance) for task in TASKS for instance in task["instances"]]
# what a language model cannot take or make, as Self-Instruct and Alpaca refuse it
UNFIT = r"images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram"


def test_counts() -> None:
    assert len(TASKS) == 175
    assert sum(task["is_classification"] for task in TASKS) == 26
    for key in ("id", "name", "instruction"):
        assert len({task[key] for task in TASKS}) == 175, key
    assert sum(task["instances"][0]["input"] == "" for task in TASKS) == 101  # as SEED_TASKS.md says


def test_fields_and_types() -> None:
    fields = {"id": str, "name": str, "instruction": str, "instances": list, "is_classification": bool}
    for task in TASKS:
        assert {key: type(value) for key, value in task.items()} == fields, task["id"]
        assert task["instances"], task["id"]
    for task, instance in INSTANCES:
        assert {key: type(value) for key, value in instance.items()} == {"input": str, "output": str}, task["id"]
        assert all(text == text.strip() for text in (task["instruction"], *instance.values())), task["id"]


def test_lengths_in_words() -> None:
    for task, instance in INSTANCES:
        assert 4 <= len(task["instruction"].split()) <= 60, task["id"]
        assert len(instance["input"].split()) <= 100, task["id"]
        assert 1 <= len(instance["output"].split()) <= 150, task["id"]


def test_a_language_model_can_do_them() -> None:
    assert [task["id"] for task in TASKS if re.search(rf"\b({UNFIT})\b|://", task["instruction"], re.IGNORECASE)] == []
    assert all(task["instruction"][0].isascii() and task["instruction"][0].isalpha() for task in TASKS)


def test_an_input_has_one_output_and_an_output_is_no_copy() -> None:
    for task in TASKS:
        inputs = [instance["input"] for instance in task["instances"]]
        assert len(set(inputs)) == len(inputs), task["id"]
    assert [task["id"] for task, instance in INSTANCES if instance["input"] == instance["output"]] == []


def test_labels_are_named_and_differ() -> None:
    for task in TASKS:
        if task["is_classification"]:
            labels = [instance["output"] for instance in task["instances"]]
            assert len(set(labels)) == len(labels) >= 2, task["id"]
            for label in labels:
                assert re.search(rf"(?<![\w-]){re.escape(label)}(?![\w-])", task["instruction"]), (task["id"], label)


def test_no_two_instructions_are_alike() -> None:
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    instructions = [task["instruction"] for task in TASKS]
    nearest = max((rouge.score(a, b)["rougeL"].fmeasure, a, b) for a, b in combinations(instructions, 2))
    assert nearest[0] < 0.7, nearest


def test_what_the_answers_compute() -> None:
    """Answers that are programs, data or patterns do what their tasks say."""
    by_name = {task["name"]: [instance["output"] for instance in task["instances"]] for task in TASKS}
    names: dict[str, Any] = {}
    for name in ("second_largest", "docstring_to_code"):
        exec(by_name[name][0], names)
    assert [names["second_largest"](v) for v in ([3, 1, 3, 2], [5, 5], [])] == [2, None, None]
    assert names["runs"]("aabccc") == [2, 1, 3]
    exec(by_name["find_the_bug"][0].partition("\n\n")[2], names)
    assert names["mean"]([1, 2, 6]) == 3
    names["slugify"] = lambda text: text.lower().replace(" ", "-")
    exec(by_name["slugify_tests"][0], names)
    names["test_lower_cases"]()
    names["test_replaces_each_space"]()
    times = re.compile(by_name["regex_time_of_day"][0].splitlines()[0])
    assert [bool(times.match(t)) for t in ("07:45", "23:10", "24:00", "7:45", "12:60")] == [True, True] + [False] * 3
    for name in ("book_as_json", "trip_as_json", "repair_json"):
        assert json.loads(by_name[name][0].partition("\n\n")[0]), name
