"""Packing loses nothing, exceeds nothing, and depends only on its seed. Scoring is what a plain loop would compute."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.errors import UserError
from genloss.language import packing
from genloss.language.model import load
from genloss.language.packing import IGNORE, Rows, fit
from genloss.language.scoring import losses
from genloss.language.tokenizer import END, Codec, load_codec
from genloss.language.training import masks_documents


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 40))
def test_fit_holds_every_piece_once_within_capacity(lengths: list[int], capacity: int) -> None:
    bins = fit(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    loads = sorted(sum(lengths[i] for i in b) for b in bins)
    assert all(0 < x <= capacity for x in loads)
    # any fit that opens a bin only when it must: no two bins could be one
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


def test_fit_chooses_the_fullest_bin_that_has_room() -> None:
    assert fit([7, 5, 5, 3], 10) == [[0, 3], [1, 2]]  # worst fit would have put 3 elsewhere or opened a third
    assert fit([6, 7, 3, 4], 10) == [[1, 2], [0, 3]]


def shards(folder: Path, *parts: list[str]) -> list[Path]:
    paths = []
    for i, texts in enumerate(parts):
        paths.append(folder / f"{i}.parquet")
        table = records.make_table({"text": texts}, origin="real", generation=0, recipe="test")
        records.write(table, paths[-1])
    return paths


def sequences(inputs: np.ndarray, targets: np.ndarray, begin: int) -> list[list[int]]:
    """The sequences of one row, cut where a target is not the next input."""
    found: list[list[int]] = []
    used = int((targets != IGNORE).sum())
    assert (targets[:used] != IGNORE).all(), "padding is at the end only"
    for i in range(used):
        if i == 0 or inputs[i] == begin or targets[i - 1] != inputs[i]:
            found.append([int(inputs[i])])
        found[-1].append(int(targets[i]))
    return found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(alphabet="abc é.", min_size=1, max_size=150), min_size=1, max_size=40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 2),
)
def test_an_epoch_holds_every_token_of_every_record_once(trained, tmp_path, texts, seed, epoch) -> None:
    codec = load_codec(trained.data / "tokenizer")
    context = 24
    rows = list(Rows(shards(tmp_path, texts), [1.0], codec, context, seed).epoch(epoch))
    assert all(len(part) == context for row in rows for part in row)
    wanted: Counter[tuple[int, ...]] = Counter()
    for ids in codec.encode(texts):
        whole = [codec.begin, *ids, codec.end]
        for at in range(0, len(whole) - 1, context):
            wanted[tuple(whole[at : at + context + 1])] += 1
    got: Counter[tuple[int, ...]] = Counter()
    whole_starts = 0
    for inputs, targets, weights, _ in rows:
        found = sequences(inputs, targets, codec.begin)
        whole_starts += inputs[0] == codec.begin
        got.update(tuple(s) for s in found)
        assert ((weights == 1) == (targets != IGNORE)).all()
    # the number of predicted tokens is exact, and so is every target
    assert sum(len(s) - 1 for s in got.elements()) == sum(len(s) - 1 for s in wanted.elements())
    assert Counter(t for s in got.elements() for t in s[1:]) == Counter(t for s in wanted.elements() for t in s[1:])
    if all(len(ids) + 1 <= context for ids in codec.encode(texts)):  # no record was cut
        assert got == wanted and whole_starts == len(rows)


def test_rows_depend_on_seed_and_epoch_alone(trained) -> None:
    codec = load_codec(trained.data / "tokenizer")

    def rows(seed: int, epoch: int) -> np.ndarray:
        data = Rows([trained.data / "train.parquet"], [1.0], codec, 48, seed)
        return np.stack([r[0] for r in data.epoch(epoch)])

    same, other_seed, other_epoch = rows(3, 1), rows(4, 1), rows(3, 2)
    assert np.array_equal(rows(3, 1), same)
    n = min(len(same), len(other_seed), len(other_epoch))
    assert not np.array_equal(same[:n], other_seed[:n]) and not np.array_equal(same[:n], other_epoch[:n])
    # iterating is the epochs one after the other
    endless = iter(Rows([trained.data / "train.parquet"], [1.0], codec, 48, 3))
    first = [next(endless)[0] for _ in range(len(rows(3, 0)) + 2)]
    assert np.array_equal(np.stack(first[-2:]), same[:2])


def test_weights_follow_the_shard_of_the_record(trained, tmp_path: Path) -> None:
    codec = load_codec(trained.data / "tokenizer")
    a, b = ["aaa aaa aaa"] * 5, ["bbb bbb"] * 7
    data = Rows(shards(tmp_path, a, b), [0.25, 2.0], codec, 32, 0)
    weight: Counter[float] = Counter()
    for _, targets, weights, _ in data.epoch(0):
        weight.update(float(w) for w, t in zip(weights, targets, strict=True) if t != IGNORE)
    tokens = {k: sum(len(i) + 1 for i in codec.encode(v)) for k, v in (("a", a), ("b", b))}
    assert weight == {0.25: tokens["a"], 2.0: tokens["b"]}


# -- scoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_losses_equal_a_plain_loop_over_texts(trained, arch: str) -> None:
    folder = trained.models[arch]
    codec, model = load_codec(trained.data / "tokenizer"), load(folder)
    texts = records.read(trained.data / "test.parquet").column("text").to_pylist()[:20]
    texts += ["", "a", " ".join(texts[:4])]  # empty, short, and longer than the context
    nats, tokens = losses(folder, trained.data, texts, trained.context)
    for i, ids in enumerate(codec.encode(texts)):
        whole = [codec.begin, *ids, codec.end]
        expected = 0.0
        for at in range(0, len(whole) - 1, trained.context):
            window = torch.tensor([whole[at : at + trained.context + 1]])
            with torch.inference_mode():
                logp = torch.log_softmax(model(window[:, :-1]).logits[0].double(), dim=-1)
            expected -= float(logp.gather(1, window[0, 1:, None]).sum())
        assert tokens[i] == len(whole) - 1
        assert nats[i] == pytest.approx(expected, rel=1e-4)
    assert tokens.max() > trained.context  # one of them needed windows


def test_the_trained_model_prefers_its_language(trained) -> None:
    held_out = records.read(trained.data / "test.parquet").column("text").to_pylist()[:10]
    backwards = [t[::-1] for t in held_out]
    (a, n), (b, m) = (losses(trained.llama, trained.data, t, trained.context) for t in (held_out, backwards))
    assert a.sum() / n.sum() + 0.5 < b.sum() / m.sum()


def test_ids_of_a_tokenizer_may_have_gaps(tmp_path: Path) -> None:
    """The model needs a row for the largest id, whatever the number of tokens."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 700, END: 900}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    codec = Codec(tmp_path)
    assert (codec.size, codec.end, codec.encode(["b"])) == (901, 900, [[700]])


# -- records that were cut off -----------------------------------------------------------------------------------------


def with_cut(folder: Path, texts: list[str], cut: list[int]) -> Path:
    """A shard of generated records, those of `cut` without an end."""
    table = records.make_table({"text": texts}, origin="synthetic", generation=1, recipe="sample")
    finish = [records.CUT if i in cut else records.ENDED for i in range(len(texts))]
    path = folder / "cut.parquet"
    records.write(records.with_finish(table, finish), path)
    return path


def test_what_was_cut_off_gets_no_end(trained, tmp_path: Path) -> None:
    """Neither as a target of training nor in a loss; the real records beside it, which have no such column, do."""
    codec = load_codec(trained.data / "tokenizer")
    real, made = ["The old garden."] * 3, ["a b c", "The river and the", "d", "x " * 60]
    paths = [*shards(tmp_path, real), with_cut(tmp_path, made, [1, 3])]
    rows = list(Rows(paths, [1.0, 1.0], codec, 24, 0).epoch(0))
    targets = Counter(int(t) for _, targets, *_ in rows for t in targets if t != IGNORE)
    wanted = Counter(i for ids in codec.encode(real + made) for i in ids)
    assert targets == wanted + Counter({codec.end: 3 + 2})

    cut = records.cut_off(records.read(paths[1]))
    assert cut.tolist() == [False, True, False, True] and not records.cut_off(records.read(paths[0])).any()
    nats, tokens = losses(trained.llama, trained.data, made, trained.context, cut=cut)
    whole, ended = losses(trained.llama, trained.data, made, trained.context)
    assert (ended - tokens).tolist() == [0, 1, 0, 1]
    model = load(trained.llama)
    for i, ids in enumerate(codec.encode(made)):
        last = [codec.begin, *ids][(len(ids) // trained.context) * trained.context :]
        with torch.inference_mode():
            end = -float(torch.log_softmax(model(torch.tensor([last])).logits[0, -1].double(), dim=-1)[codec.end])
        assert whole[i] - nats[i] == pytest.approx(end if cut[i] else 0.0, abs=1e-3)


def test_of_nothing_nothing_is_predicted(trained) -> None:
    cut = np.ones(2, dtype=bool)
    nats, tokens = losses(trained.llama, trained.data, ["", ""], trained.context, cut=cut)
    assert nats.tolist() == tokens.tolist() == [0.0, 0.0]


# -- the file of token ids ---------------------------------------------------------------------------------------------


def test_a_shard_is_encoded_once(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In portions, into a file that is there as a whole or not at all; whoever comes next maps it."""
    codec, context = load_codec(trained.data / "tokenizer"), 24
    paths = [*shards(tmp_path, ["The old garden.", "", "é " * 50]), with_cut(tmp_path, ["a b", "c"] * 40, [3])]

    def rows(folder: Path | None) -> list[np.ndarray]:
        return [part for row in Rows(paths, [1.0, 0.5], codec, context, 0, folder=folder).epoch(0) for part in row]

    whole = rows(None)
    monkeypatch.setattr(packing, "PORTION", 1)  # a record at a time
    folder = tmp_path / "tokens"
    with monkeypatch.context() as broken:
        broken.setattr(packing.os, "replace", lambda *_: 1 / 0)  # killed before the file has its name
        with pytest.raises(ZeroDivisionError):
            rows(folder)
    assert not list(folder.glob("*.tokens"))
    assert all(map(np.array_equal, rows(folder), whole))
    monkeypatch.setattr(codec, "encode", lambda texts: 1 / 0)
    assert all(map(np.array_equal, rows(folder), whole))
    assert {p.name for p in folder.glob("*.tokens")} == {"0.tokens", "cut.tokens"}


def test_positions_beyond_32_bits(tmp_path: Path) -> None:
    """Of ids (a file that is almost all hole): 9 GB of them are read as a few."""
    n = (1 << 31) + 50
    ids = np.memmap(tmp_path / "ids", np.int32, "w+", shape=(n,))
    ids[-40:] = np.arange(40)
    edges = np.array([0, 8, n - 40, n - 20, n], dtype=np.int64)
    codec = Codec.__new__(Codec)
    codec.end = 0
    rows = Rows([], [1.0], codec, 19, 0)
    rows.shards, rows.first = [packing.Tokens(edges, np.asarray(ids))], np.array([0, 4])
    pieces = [*rows._pieces(np.array([2, 3]))]
    assert [p.start for p in pieces] == [n - 40, n - 20]
    assert rows.row(pieces[1:]).inputs.tolist() == list(range(20, 39))


def test_of_an_answer_longer_than_a_row_the_rest_is_not_learned(trained, tmp_path: Path) -> None:
    """The next row would have the answer without what it answers. A text goes on in the next row."""
    codec, file = load_codec(trained.data / "tokenizer"), tmp_path / "pairs.parquet"
    columns: dict[str, Any] = {"prompt": ["one two"] * 2, "response": ["three", "four five six seven eight " * 9]}
    table = records.make_table(columns, origin=records.REAL, generation=0, recipe="seed")
    records.write(table, file)
    rows = Rows([file], [1.0], codec, 24, 0, ("prompt", "response"))
    pieces = [piece for row in rows.plan(0) for piece in row]
    assert rows.shortened == 1 and len(pieces) == 2
    edges = rows.shards[0].edges
    assert sorted(p.start for p in pieces) == edges[:2].tolist() and max(p.length for p in pieces) == 25
    text = Rows([file], [1.0], codec, 24, 0, ("response",))
    assert text.shortened == 0 and len(list(text.plan(0))) > 2


def test_nothing_to_learn_from_is_refused(trained, tmp_path: Path) -> None:
    """Without a row an endless training would look for one for ever."""
    empty = with_cut(tmp_path, ["", ""], [0, 1])
    with pytest.raises(UserError, match="its records are empty"):
        next(iter(Rows([empty], [1.0], load_codec(trained.data / "tokenizer"), 24, 0)))


# -- attention within a record -----------------------------------------------------------------------------------------

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": TINY | {"num_key_value_heads": 2},
    "qwen2": TINY | {"num_key_value_heads": 2},
    "gpt_neox": TINY,
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 48},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packed_losses_are_those_of_records_alone(trained, tmp_path: Path, arch: str, attention: str) -> None:
    """With trainer.document_mask; without it they are not, so that the test can fail."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    codec = load_codec(trained.data / "tokenizer")
    known = ARCHITECTURES[arch] | {"vocab_size": codec.size, "attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, initializer_range=0.3, **known)).eval()
    paths = [
        *shards(tmp_path, ["The old garden.", "a b", "The river and", "x"]),
        with_cut(tmp_path, ["a", "to see"], [1]),
    ]
    rows = Rows(paths, [1.0, 1.0], codec, 48, 0)
    plans = list(rows.plan(0))
    assert max(map(len, plans)) > 2
    wanted = {}
    with torch.inference_mode():
        for piece in (piece for plan in plans for piece in plan):
            ids = torch.from_numpy(rows.shards[piece.shard].ids[piece.start : piece.start + piece.length].astype(int))
            logits = model(input_ids=ids[None, :-1]).logits[0]
            wanted[piece] = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        batch = [torch.from_numpy(np.stack(part)) for part in zip(*map(rows.row, plans), strict=True)]
        masked = model(input_ids=batch[0], position_ids=batch[3], use_cache=False).logits
        across = model(input_ids=batch[0], use_cache=False).logits
    far = 0.0
    for r, plan in enumerate(plans):
        expected = torch.cat([wanted[piece] for piece in plan])
        used = len(expected)
        found, other = (
            torch.nn.functional.cross_entropy(m[r, :used], batch[1][r, :used], reduction="none")
            for m in (masked, across)
        )
        assert torch.allclose(found, expected, atol=1e-5, rtol=0), (found - expected).abs().max()
        far = max(far, float((other - expected).abs().max()))
    assert far > 0.1 and masks_documents(model)


def test_a_model_without_masks_for_packed_rows_is_known() -> None:
    class Blind(torch.nn.Module):
        """Adds what came before, whatever its position."""

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids, 9).cumsum(dim=1))

    assert not masks_documents(Blind())
