"""Seeds depend on nothing but their path; ids on nothing but content; config objects refuse by their full key."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.errors import UserError, nearest
from genloss.core.plugin import build
from genloss.core.seeds import generator, seed_of, uniforms
from genloss.core.spool import Spool

parts = st.lists(st.text(alphabet="abc", min_size=1, max_size=3) | st.integers(0, 99), max_size=3)


@given(st.integers(0, 2**31), parts, st.integers(0, 2**31), parts)
def test_seeds_differ_where_their_paths_do(a: int, p: list, b: int, q: list) -> None:
    assert 0 <= seed_of(a, *p) < 2**63
    same = (str(a), *map(str, p)) == (str(b), *map(str, q))
    assert (seed_of(a, *p) == seed_of(b, *q)) == same


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    code = "from genloss.core.seeds import *; print(seed_of(0, 'train', 3), uniforms(5, 2, 2, 2).tolist())"
    seen = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PATH": ""},
    ).stdout.split(maxsplit=1)
    assert int(seen[0]) == seed_of(0, "train", 3)
    assert seen[1].strip() == str(uniforms(5, 2, 2, 2).tolist())


def test_generators_do_not_touch_shared_state() -> None:
    np.random.seed(0)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    a = generator(1, "x").random(5)
    np.random.random(3)
    assert np.array_equal(generator(1, "x").random(5), a)
    np.random.seed(0)
    generator(1, "x").random(5)
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before)


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_row_i_is_the_stream_of_record_i(seed: int, chunk: int, rows: int, more: int, columns: int) -> None:
    few, many = uniforms(seed, chunk, rows, columns), uniforms(seed, chunk, rows + more, columns)
    assert np.array_equal(many[:rows], few)
    assert ((few >= 0) & (few < 1)).all()
    assert not np.array_equal(uniforms(seed, chunk + 1, rows, columns), few)
    assert not np.array_equal(uniforms(seed + 1, chunk, rows, columns), few)


def test_uniforms_are_uniform() -> None:
    u = uniforms(3, 0, 500, 200).ravel()
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4  # chi-square, 49 degrees of freedom, p = 0.001


# -- records -------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20), max_size=20))
def test_ids_come_from_content_and_position(texts: list[str]) -> None:
    ids = records.record_ids(texts, salt="s")
    assert len(set(ids)) == len(texts) and all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
    assert records.record_ids([*texts, "more"], salt="s")[: len(texts)] == ids
    assert not set(ids) & set(records.record_ids(texts, salt="t"))
    if texts:
        assert records.record_ids([texts[0] + "!", *texts[1:]], salt="s")[1:] == ids[1:]
        assert records.record_ids([texts[0] + "!"], salt="s")[0] != ids[0]


def test_make_table() -> None:
    table = records.make_table(
        {"prompt": ["p", "q"], "response": ["r", "s"]},
        origin="synthetic",
        generation=2,
        recipe="x",
        parents=[["a"], []],
    )
    assert table.column_names == ["id", "prompt", "response", "origin", "generation", "parents", "recipe"]
    assert table.schema.field("generation").type == pa.int32()
    assert table["parents"].to_pylist() == [["a"], []]
    swapped = records.make_table(
        {"response": ["r", "s"], "prompt": ["p", "q"]}, origin="synthetic", generation=2, recipe="x"
    )
    assert swapped["id"].to_pylist() == table["id"].to_pylist()  # the order of columns and the parents do not matter
    base: dict[str, Any] = {"origin": "synthetic", "generation": 2, "recipe": "x"}
    changes: list[dict[str, Any]] = [{"origin": "real"}, {"generation": 3}, {"recipe": "y"}]
    for change in changes:
        other = records.make_table(
            {"prompt": ["p", "q"], "response": ["r", "s"]},
            **(base | change),
        )
        assert not set(other["id"].to_pylist()) & set(table["id"].to_pylist())


@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=10))
def test_write_and_read(tmp_path_factory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("records") / "sub" / "x.parquet"
    table = records.make_table({"text": texts}, origin="real", generation=0, recipe="x")
    records.write(table, path)
    assert records.read(path).equals(table)
    assert records.read(path, columns=["text"]).column_names == ["text"]
    first = path.read_bytes()
    records.write(table, path)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["x.parquet"]


def test_a_damaged_table_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="delete it and run again") as caught:
        records.read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


# -- errors and plug-ins -------------------------------------------------------------------------------------------


def test_a_user_error_is_one_line_and_crosses_processes() -> None:
    error = UserError("a.b", "x\ny", "do\n  this")
    assert str(error) == "a.b=x y: do this"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error.under("c")) == "c.a.b=x y: do this"
    assert nearest("acumulate", ["replace", "accumulate"]).startswith("did you mean accumulate?")
    assert nearest("zzz", ["replace"]) == "known: replace"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"real": {"kind": "all"}}, "mixing.real.kind=all: "),
        ({"budget": {"kind": "fixed"}}, "mixing.budget.n: must be a number"),
        ({"real": {"n": "many"}}, "mixing.real.n=many: "),
        ({"real": {"m": 1}}, "mixing.real.m=1: "),
        ({"valu": 1}, "mixing.valu=1: unknown option; did you mean value?"),
    ],
)
def test_plugins_refuse_by_their_full_key(values: dict, line: str) -> None:
    from genloss.mix import Mixing

    with pytest.raises(UserError) as caught:
        build({"_target_": "genloss.mix.Mixing", **values}, Mixing, "mixing")
    assert str(caught.value).startswith(line), str(caught.value)
    made = build({"_target_": "genloss.mix.Mixing", "real": {"n": 3}}, Mixing, "mixing")
    assert isinstance(made, Mixing) and made.real.n == 3


# -- tables larger than memory ---------------------------------------------------------------------------------------


def made(n: int, first: int = 0) -> pa.Table:
    texts = [f"text {i} {'x' * (i % 50)}" for i in range(first, first + n)]
    return records.make_table({"text": texts}, origin="synthetic", generation=1, recipe="sample", first=first)


def test_a_table_made_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = made(1000), [made(130, at) for at in range(0, 1000, 130)]
    parts[-1] = parts[-1].slice(0, 1000 - 7 * 130)
    assert records.concat(parts).equals(whole)
    assert records.spilled(parts).equals(whole) and records.spilled(parts).column("id").num_chunks == 1
    monkeypatch.setattr(records, "PART", 20_000)
    table = records.spilled(iter(parts), tmp_path)
    assert table.equals(whole) and table.column("id").num_chunks > 2
    assert not list(tmp_path.iterdir())  # its file has no name
    assert records.concat(list(records.parts(table, 77))).equals(whole)
    assert {len(part) for part in records.parts(whole, 77)} == {77, 1000 % 77}
    (number := pa.total_allocated_bytes()), (again := records.spilled(iter(parts), tmp_path))
    assert pa.total_allocated_bytes() - number < whole.nbytes / 4 and again.equals(whole)  # mapped, not copied


def test_a_file_of_several_row_groups_is_read_and_chosen_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "x.parquet", tmp_path / "y.parquet"
    monkeypatch.setattr(records, "SHARE", 20_000)
    assert records.write_parts((made(90, at) for at in range(0, 900, 90)), path) == 900
    records.write(made(50, 900), other)
    assert pq.ParquetFile(path).num_row_groups > 3
    whole = records.read(path)
    assert whole.to_pylist() == made(900).to_pylist()
    assert records.load(path).equals(whole)
    assert records.load(path, columns=["text"]).column_names == ["text"]
    rows = np.array([0, 1, 1, 88, 450, 899])
    records.choose(path, rows, tmp_path / "z.parquet")
    assert records.read(tmp_path / "z.parquet").equals(whole.take(pa.array(rows)))
    both = records.take([path, other], np.array([3, 899, 900, 949]))
    assert both["text"].to_pylist() == [made(950)["text"][i].as_py() for i in (3, 899, 900, 949)]
    none = records.take([path], np.array([], dtype=np.int64))
    assert len(none) == 0 and none.schema.equals(whole.schema)
    records.write(whole.slice(0, 0), path)
    assert len(records.load(path)) == 0


def test_digests_tell_texts_apart() -> None:
    texts = ["a", "b", "a", "", "ä", "\ud83d"]
    found = records.digests(texts)
    assert found.itemsize == 16 and len(set(found.tolist())) == 5 and found[0] == found[2]
    known = np.unique(records.digests(["b", "c", ""]))
    assert records.among(found, known).tolist() == [False, True, False, True, False, False]
    assert records.among(found, records.digests([])).tolist() == [False] * 6


@given(st.lists(st.tuples(st.text(), st.text())), st.randoms())
def test_a_spool_gives_back_what_it_got(tmp_path_factory: pytest.TempPathFactory, pairs: list, random) -> None:
    spool = Spool(tmp_path_factory.getbasetemp())
    for i, pair in enumerate(pairs):
        spool.add(*pair)
        assert spool[i] == pair and len(spool) == i + 1
    numbers = list(range(len(pairs)))
    random.shuffle(numbers)
    assert [spool[i] for i in numbers] == [pairs[i] for i in numbers]
    spool.add("half \ud83d", "3 4")
    assert spool[len(pairs)] == ("half \ud83d", "3 4")
