"""Lineage: what `genloss trace` says is what walking through the records one by one gives."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genloss.core import records
from genloss.observatory.ancestry import NOBODY, Population, depth, effective, keys
from genloss.observatory.lineage import summary, traced
from support import Project, Result, staged

HOSTILE = "\x1b[31mred\u202eevil\nnext <script>alert(1)</script>"


def put(
    path: Path, texts: Sequence[str], generation: int, parents: Any = None, reason: str | None = None, recipe: str = "r"
) -> list[str]:
    """Write records to a file; returns their ids."""
    origin = records.SYNTHETIC if generation else records.REAL
    table = records.make_table({"text": texts}, origin=origin, generation=generation, recipe=recipe, parents=parents)
    if reason is not None:
        table = table.append_column("score", pa.array([0.5] * len(texts), pa.float64()))
        table = table.append_column("reason", pa.array([reason] * len(texts), pa.string()))
    records.write(table, path)
    return [str(name) for name in table["id"].to_pylist()]


def mixed(home: Path, shards: dict[str, tuple[Path, int, list[int] | None, float]]) -> None:
    """Write a training set of {file: (source, generation, rows or None for a link, weight)}."""
    home.mkdir(parents=True, exist_ok=True)
    for name, (source, _, rows, _) in shards.items():
        if rows is None:
            os.link(source, home / name)
        else:
            records.choose(source, np.array(sorted(rows)), home / name)
    said = [{"file": name, "generation": g, "weight": w} for name, (_, g, _, w) in shards.items()]
    (home / "mix.json").write_text(json.dumps({"shards": said}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two real records; round 1 makes three of the first and drops one of them; round 2 one of two of these."""
    folder = tmp_path / "run"
    real = put(folder / "data/train.parquet", ["one", HOSTILE], 0)
    prompt = put(folder / "data/prompts.parquet", ["a prompt"], 0, recipe="held")
    kept = put(folder / "rounds/01/kept.parquet", ["c", "d"], 1, [[real[0]], [real[0], prompt[0]]], "kept")
    put(folder / "rounds/01/rejected.parquet", ["e"], 1, [[real[0]]], f"rules: {HOSTILE}", recipe="x")
    put(folder / "rounds/02/kept.parquet", ["f", "g"], 2, [[kept[0], kept[1]], []], "kept")
    put(folder / "rounds/02/rejected.parquet", [], 2, [], "")
    curation = {"curation": [["rules", {}], ["dedup", {}]]}
    (folder / "rounds/01/manifest.json").write_text(staged(curate={"config": curation}))
    source = folder / "data/train.parquet"
    mixed(folder / "rounds/00/train", {"00-real.parquet": (source, 0, None, 1.0)})
    mixed(folder / "rounds/01/train", {"00-g01.parquet": (folder / "rounds/01/kept.parquet", 1, None, 1.0)})
    mixed(
        folder / "rounds/02/train",
        {
            "00-real.parquet": (source, 0, [1], 2.0),
            "01-g01.parquet": (folder / "rounds/01/kept.parquet", 1, [1], 1.0),
            "02-g02.parquet": (folder / "rounds/02/kept.parquet", 2, None, 1.0),
        },
    )
    return folder


def of(path: Path, row: int = 0) -> str:
    return str(records.read(path)["id"][row])


def call(tmp_path: Path, *arguments: str) -> Result:
    return Project(tmp_path).call("trace", *arguments)


def test_a_record_is_followed_back_to_real_ones_and_forward(run: Path) -> None:
    found = traced(run, of(run / "rounds/01/kept.parquet", 1))
    real, prompt = of(run / "data/train.parquet"), of(run / "data/prompts.parquet")
    assert found["record"]["decision"] == "kept by rules, dedup" and found["record"]["score"] == 0.5
    assert found["record"]["trained_in"] == [1, 2]
    assert set(found["ancestors"]) == {real, prompt} and found["missing"] == []
    assert found["ancestors"][real]["trained_in"] == [0] and found["ancestors"][prompt]["trained_in"] == []
    (below,) = found["descendants"]
    assert (below["round"], below["kind"], below["records"]) == (2, "kept", 1)
    assert below["trained_in"] == {2: 1} and below["first"][0]["texts"] == {"text": "f"}

    found = traced(run, real)
    kinds = {(each["round"], each["kind"]): each["records"] for each in found["descendants"]}
    assert kinds == {(1, "kept"): 2, (1, "rejected"): 1, (2, "kept"): 1}
    assert found["descendants"][0]["trained_in"] == {1: 2, 2: 1}
    assert found["descendants"][1]["trained_in"] == {}


def test_who_kept_a_record_is_said_where_a_manifest_says_it(run: Path) -> None:
    manifest, record = run / "rounds/01/manifest.json", of(run / "rounds/01/kept.parquet", 1)
    manifest.write_text(staged(curate={"config": {"curation": []}}))
    assert traced(run, record)["record"]["decision"] == "kept by all: there was no curator"
    manifest.write_text("{}")
    assert "manifest.json: is damaged" in call(run.parent, str(run), record).err
    manifest.unlink()
    assert traced(run, record)["record"]["decision"] == "kept by whom is not known: no manifest says it"


def test_the_last_round_is_followed_through_both_of_its_parents(run: Path) -> None:
    found = traced(run, of(run / "rounds/02/kept.parquet"))
    assert [each["texts"]["text"] for each in found["ancestors"].values()] == ["c", "d", "a prompt", "one"]
    said = call(run.parent, str(run), of(run / "rounds/02/kept.parquet")).out
    assert said.count(f"{of(run / 'data/train.parquet')}  real data") == 1 and "told above" in said
    assert said.splitlines()[-1] == "nothing was made from it"


def test_a_summary_has_shares_ancestors_and_reasons(run: Path) -> None:
    """Round 2, in weights: 2 of the second real record; 1 of g01, half of it of `one`, half of the prompt; 1 of f, half
    of it from `one` and half from the same two; 1 of g, from nobody."""
    zero, one, two = summary(run)["rounds"]
    assert zero["shares"] == {0: 1.0} and zero["depth"] == 0 and zero["effective"] == 2
    assert one["shares"] == {1: 1.0} and one["depth"] == 1 and one["named"] == 1
    assert one["ancestors"] == 2 and one["effective"] == pytest.approx(2**2 / (1.5**2 + 0.5**2))
    assert (one["made"], one["kept"], one["dropped"]) == (3, 2, {f"rules: {HOSTILE}": 1})
    assert two["shares"] == pytest.approx({0: 2 / 5, 1: 1 / 5, 2: 2 / 5}) and two["records"] == 4
    assert two["depth"] == pytest.approx(1 / 5 + 2 / 5 * 2) and two["named"] == pytest.approx(4 / 5)
    worth = [2, 0.5 + 0.75, 0.5 + 0.25]
    assert two["effective"] == pytest.approx(sum(worth) ** 2 / sum(w * w for w in worth))
    first = summary(run)["influential"][0]
    assert (first["id"], first["worth"], first["share"]) == (of(run / "data/train.parquet", 1), 2.0, 0.5)


def test_a_summary_is_what_a_walk_through_every_record_gives(tmp_path: Path) -> None:
    """Random parents over five rounds, in exact fractions, one record at a time; links and copies of shards alike."""
    rng, run = random.Random(3), tmp_path / "run"
    names = {0: put(run / "data/train.parquet", [f"r{i}" for i in range(40)], 0)}
    names[0] += put(run / "data/prompts.parquet", [f"p{i}" for i in range(7)], 0, recipe="held")
    above: dict[str, list[str]] = {}
    files, weights = {0: run / "data/train.parquet"}, {}

    def walk(name: str, weight: Fraction, worth: dict[str, Fraction]) -> None:
        if name in names[0]:
            worth[name] += weight
        for parent in above.get(name, []):
            walk(parent, weight / len(above[name]), worth)

    for n in range(6):
        if n:
            older = [name for g in range(n) for name in names[g]]
            family = [rng.choices([*older, "nobody"], k=rng.choice([0, 1, 1, 2, 3])) for _ in range(30)]
            files[n] = run / f"rounds/{n:02d}/kept.parquet"
            names[n] = put(files[n], [f"{n}.{i}" for i in range(30)], n, family, "kept")
            above.update(zip(names[n], family, strict=True))
        count = {g: 40 if g == 0 else 30 for g in files}
        rows = {g: None if g % 2 else rng.choices(range(count[g]), k=11) for g in files}
        mixed(run / f"rounds/{n:02d}/train", {f"{g}.parquet": (files[g], g, rows[g], 1.0) for g in files})
        chosen = [names[g][i] for g in files for i in (rows[g] or range(count[g]))]
        worth: dict[str, Fraction] = defaultdict(Fraction)
        for name in chosen:
            walk(name, Fraction(1), worth)
        weights[n] = worth, len(chosen)
    for again in range(2):
        for row in summary(run)["rounds"]:
            worth, size = weights[row["round"]]
            total = sum(worth.values())
            assert row["records"] == size and row["ancestors"] == len(worth)
            assert row["named"] == pytest.approx(float(total / size))
            assert row["effective"] == pytest.approx(float(total**2 / sum(w * w for w in worth.values())))
        if not again:  # what `dvc pull` across file systems leaves: files of their own
            for path in run.glob("rounds/*/train/*.parquet"):
                shutil.copyfile(path, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)


def test_texts_and_words_of_records_are_shown_escaped(run: Path) -> None:
    for arguments in ([of(run / "data/train.parquet", 1)], ["--summary"], [of(run / "rounds/01/rejected.parquet")]):
        for more in ([], ["--json"]):
            said = call(run.parent, str(run), *arguments, *more).out
            assert "evil" in said and "\x1b" not in said and "\u202e" not in said
            assert all(line.isprintable() for line in said.splitlines())


def test_json_is_what_the_functions_return(run: Path) -> None:
    name = of(run / "rounds/02/kept.parquet")
    for arguments, found in {(name,): traced(run, name), ("--summary",): summary(run)}.items():
        said = json.loads(call(run.parent, str(run), *arguments, "--json").out)
        assert said == json.loads(json.dumps(found))


def test_what_is_not_there_yet_is_said(run: Path) -> None:
    shutil.rmtree(run / "rounds/02/train")
    (run / "rounds/02/kept.parquet").rename(run / "rounds/02/generated.parquet")
    said = call(run.parent, str(run), "--summary").out
    assert "missing: round 2: the kept records are not here" in said
    assert "missing: round 2: the training set is not here" in said
    found = traced(run, of(run / "rounds/02/generated.parquet"))
    assert found["record"]["decision"] == "not curated yet" and found["record"]["trained_in"] == []
    (run / "rounds/01/kept.parquet").unlink()  # its shard is still there; whose children they are is not known
    row = summary(run)["rounds"][1]
    assert row["shares"] == {1: 1.0} and row["named"] == 0 and row["ancestors"] == 0
    assert "round 1: the kept records are not here" in summary(run)["missing"]


def test_a_round_of_which_a_file_is_missing_is_said_and_the_others_are_summed_up(run: Path) -> None:
    before = summary(run)["rounds"]
    (run / "rounds/01/train/00-g01.parquet").unlink()
    after = summary(run)
    assert after["missing"] == ["round 1: files of the training set are not here"]
    assert [row["round"] for row in after["rounds"]] == [0, 2]
    assert after["rounds"][1] == before[2] | {"depth": None}  # it has records of model 1
    refused = call(run.parent, str(run), of(run / "data/train.parquet"))
    assert refused.code == 2 and "00-g01.parquet: is missing" in refused.err


def test_a_shard_that_is_a_file_before_curation_counts_for_nobody_else(run: Path) -> None:
    """Its records are not in the population, whose next generation has their place."""
    (run / "rounds/01/kept.parquet").rename(run / "rounds/01/generated.parquet")
    put(run / "rounds/02/kept.parquet", ["f", "g"], 2, [[of(run / "data/train.parquet")]] * 2, "kept")
    row = summary(run)["rounds"][1]
    assert (row["records"], row["named"]) == (2, 0)


def test_a_parent_in_no_file_of_the_run_is_named(run: Path) -> None:
    put(run / "rounds/02/kept.parquet", ["f"], 2, [["0" * 32]], "kept")
    name = of(run / "rounds/02/kept.parquet")
    assert traced(run, name)["missing"] == ["0" * 32]
    assert f"from: {'0' * 32}, which is in no earlier file" in call(run.parent, str(run), name).out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "record: give the id of a record, or --summary"),
        (["abc", "--summary"], "record=abc: give the id of a record, or --summary"),
        (["nosuch"], "record=nosuch: no record of"),
        ([""], "an argument: is empty; give"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_line(run: Path, arguments: list[str], words: str) -> None:
    refused = call(run.parent, str(run), *arguments)
    assert refused.code == 2 and words in refused.err and refused.err.count("\n") == 1


def test_a_beginning_of_several_ids_is_refused(run: Path) -> None:
    many = put(run / "rounds/02/kept.parquet", [str(i) for i in range(40)], 2, None, "kept")
    first = next(a[:1] for a in many if sum(b[0] == a[0] for b in many) > 1)
    assert f"record={first}: begins several ids" in call(run.parent, str(run), first).err


def test_folders_without_records_say_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "is no run directory" in call(tmp_path, str(tmp_path / "none"), "--summary").err
    name = of(run / "rounds/02/kept.parquet")
    records.write(pa.table({"points": [1.0]}), run / "rounds/01/kept.parquet")
    for arguments in ([name], ["--summary"]):
        assert "kept.parquet: has no id: these are no records" in call(tmp_path, str(run), *arguments).err
    (run / "rounds/01/kept.parquet").write_bytes(b"PAR1 torn")
    assert "kept.parquet: cannot be read" in call(tmp_path, str(run), "--summary").err
    (run / "rounds/01/train/mix.json").write_text('{"shards": [{}]}')
    assert "mix.json: is damaged" in call(tmp_path, str(run), "--summary").err
    for path in run.glob("rounds/*/train"):
        shutil.rmtree(path)
    (run / "params.yaml").touch()
    assert "has no finished round yet" in call(tmp_path, str(run), "--summary").err


def test_the_lab_has_generations_and_no_named_ancestors(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    folder = home.ok("run", "domain=gaussian", "size=8", "rounds=2", "tracking=none", "mixing=accumulate").folder
    last = summary(folder)["rounds"][-1]
    assert set(last["shares"]) == {0, 1, 2} and last["named"] == pytest.approx(last["shares"][0])
    assert "depth" in home.ok("trace", str(folder), "--summary").out


def test_equal_ids_have_equal_keys_and_others_do_not() -> None:
    rng = random.Random(0)
    names = [rng.randbytes(16).hex() for _ in range(50_000)]
    array = pa.array([names[0], *names], pa.string())
    assert (keys(array.slice(1)) == keys(pa.chunked_array([names[:7], names[7:]]))).all()
    assert keys(array)[0] == keys(array)[1] and len(np.unique(keys(array))) == len(names)
    odd = pa.array(["a", "", "ä", "a" * 33, "a"], pa.string())
    assert keys(pa.array(["a", *names[:3]], pa.string()))[1:].tolist() == keys(array)[1:4].tolist()
    assert len(np.unique(keys(odd))) == 4 and keys(odd)[0] == keys(odd)[4]
    people = Population([keys(array), keys(pa.array(["x" * 32]))])
    assert people.find(keys(pa.array([names[0], names[-1], "x" * 32, "y" * 32]))).tolist() == [
        0,
        50_000,
        50_001,
        NOBODY,
    ]
    assert Population([]).find(keys(array)).tolist() == [NOBODY] * len(array)


def test_effective_numbers_and_depths() -> None:
    assert effective(np.array([3.0, 3.0, 0.0])) == 2 and effective(np.zeros(2)) == 0
    assert depth({0: 0.5, 2: 0.5}, {1: 3.0}) == 2.0 and depth({2: 1.0}, {}) is None
