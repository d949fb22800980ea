"""Sampling: the same bytes however the work is cut, and exactly the distribution that the recipe's options describe."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Trained
from genloss.core import records
from genloss.core.contracts import PREVIOUS, Decoding, Inputs, Runtime, Sampling
from genloss.core.seeds import uniforms
from genloss.generate import Request
from genloss.generate.sample import Sample
from genloss.language.drawing import adjust, draw
from genloss.language.model import load
from genloss.language.sampling import sample, sample_chunk
from genloss.language.tokenizer import load_codec


def options(**values: Any) -> Decoding:
    return Decoding(**({"max_tokens": 40, "chunk": 8} | values))


def texts(
    trained: Trained, scratch: Path, n: int, workers: int = 1, *, seed: int = 5, arch: str = "llama", **values: Any
) -> list[str]:
    model, runtime = trained.models[arch], Runtime(workers=workers)
    request = Sampling(model, trained.data, n, seed, options(**values), None, scratch, runtime)
    scratch.mkdir(exist_ok=True)
    return [t for some in sample(request) for t in some.texts]


# -- the same records, however they are computed -------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_records_do_not_depend_on_workers_number_or_a_kill(trained: Trained, tmp_path: Path, arch: str) -> None:
    whole = texts(trained, tmp_path / "1", 50, arch=arch)
    assert len(whole) == 50 and len(set(whole)) > 40
    for workers in (2, 3):
        assert texts(trained, tmp_path / str(workers), 50, workers, arch=arch) == whole
    # a longer request begins with the shorter one
    assert texts(trained, tmp_path / "n20", 20, 2, arch=arch) == whole[:20]
    # a kill leaves some chunks in scratch, not always the first ones
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "1", killed)
    chunks = sorted(killed.glob("chunk-*.json"))
    assert len(chunks) == 7
    for path in chunks[::2]:
        path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in chunks[1::2]}
    assert texts(trained, killed, 50, 2, arch=arch) == whole
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "finished chunks were computed again"


def test_a_resume_may_ask_for_another_number(trained: Trained, tmp_path: Path) -> None:
    first = texts(trained, tmp_path / "a", 24)
    other = texts(trained, tmp_path / "b", 50)
    assert other[:24] == first


def test_another_seed_gives_other_records(trained: Trained, tmp_path: Path) -> None:
    found = [texts(trained, tmp_path / str(seed), 16, seed=seed) for seed in (1, 2)]
    assert not set(found[0]) & set(found[1])


# -- greedy decoding is transformers' ------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_generate(trained: Trained, arch: str, penalty: float) -> None:
    codec = load_codec(trained.data / "tokenizer")
    held_out = records.read(trained.data / "prompts.parquet").column("text").to_pylist()[:12]
    lengths = [1, 2, 3, 5, 8] * 3  # ragged: some rows are still reading their prompt while others sample
    prompts = [ids[:n] for ids, n in zip(codec.encode(held_out), lengths, strict=False)]
    u = torch.rand(len(prompts), 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = load(trained.models[arch])
    model.set_attn_implementation("genloss_one_query")
    mine, count = sample_chunk(model, codec, u, prompts, options(bias=0.0, repetition_penalty=penalty))
    reference = load(trained.models[arch])
    longest = 0
    for ids, prompt in zip(mine, prompts, strict=True):
        begun = torch.tensor([[codec.begin, *prompt]])
        extra: dict[str, Any] = {}
        if penalty != 1:  # theirs also counts the begin token, which no record contains: mask it out of theirs
            from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

            class Ours(RepetitionPenaltyLogitsProcessor):
                def __call__(self, input_ids, scores):
                    return super().__call__(input_ids[:, 1:], scores)

            extra["logits_processor"] = LogitsProcessorList([Ours(penalty)])
        theirs = reference.generate(
            begun,
            attention_mask=torch.ones_like(begun),
            max_new_tokens=40 - len(prompt),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            **extra,
        )[0, 1:].tolist()
        theirs = theirs[:-1] if theirs[-1] == codec.end else theirs
        assert ids == theirs
        longest = max(longest, len(ids) - len(prompt))
    assert longest >= (10 if penalty == 1 else 4) and count >= longest


def test_top_k_one_equals_bias_zero_equals_low_temperature(trained: Trained, tmp_path: Path) -> None:
    greedy = texts(trained, tmp_path / "bias", 8, bias=0.0)
    assert texts(trained, tmp_path / "top_k", 8, top_k=1) == greedy
    assert texts(trained, tmp_path / "cold", 8, temperature=1e-4) == greedy
    assert texts(trained, tmp_path / "top_p", 8, top_p=1e-6) == greedy
    assert texts(trained, tmp_path / "min_p", 8, min_p=0.999999) == greedy
    assert len(set(greedy)) == 1  # no prompts: every record is the one mode
    assert len(set(texts(trained, tmp_path / "faithful", 8))) == 8


# -- options, one at a time, on hand-made logits -------------------------------------------------------------------


def reference_top_p(p: np.ndarray, top_p: float) -> np.ndarray:
    """The smallest set of the most probable tokens whose mass reaches top_p (Holtzman et al. 2020), token by token."""
    kept, mass = np.zeros_like(p), 0.0
    for i in sorted(range(len(p)), key=lambda i: (-p[i], i)):
        if mass >= top_p:
            break
        kept[i] = p[i]
        mass += p[i]
    return kept


@given(st.lists(st.integers(-40, 40), min_size=2, max_size=12), st.floats(0.01, 0.99), st.integers(1, 12))
def test_truncations_equal_plain_references(raw: list[int], share: float, k: int) -> None:
    logits = torch.tensor([raw], dtype=torch.float32) / 10
    p = torch.softmax(logits, -1)[0].numpy()
    got = adjust(logits, options(top_p=share), None)[0].numpy()
    mass = np.cumsum(np.sort(p)[::-1])
    if np.abs(mass - share).min() > 1e-5:  # a tie within rounding may go either way
        assert np.allclose(got, reference_top_p(p, share))
    assert got.max() == p.max()  # never empty, and nothing is rescaled before the draw
    got = adjust(logits, options(min_p=share), None)[0].numpy()
    if np.abs(p - share * p.max()).min() > 1e-7:
        assert np.array_equal(got > 0, p >= share * p.max())
    got = adjust(logits, options(top_k=k), None)[0].numpy()
    smallest = sorted(raw, reverse=True)[min(k, len(raw)) - 1]
    assert np.array_equal(got > 0, np.array(raw) >= smallest)  # ties at the edge stay together
    assert got.sum() == pytest.approx(1, abs=1e-5)


def test_temperature_and_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.0]])
    p = adjust(logits, options(temperature=2.0), None)[0].numpy()
    e = np.exp(np.array([1.0, 0.5, -0.5, 0.0]))
    assert np.allclose(p, e / e.sum())
    seen = torch.tensor([[True, False, True, False]])
    p = adjust(logits, options(repetition_penalty=2.0), seen)[0].numpy()
    e = np.exp(np.array([1.0, 1.0, -2.0, 0.0]))  # positive logits are divided, negative ones multiplied
    assert np.allclose(p, e / e.sum())


def test_order_of_the_options() -> None:
    """Temperature comes before top_p: a hot distribution keeps more tokens at the same mass."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    cold = adjust(logits, options(top_p=0.6), None) > 0
    hot = adjust(logits, options(top_p=0.6, temperature=5.0), None) > 0
    assert cold.sum() == 1 and hot.sum() == 3


# -- the draw ------------------------------------------------------------------------------------------------------


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    expected = p / p.sum() * counts.sum()
    used = expected > 0
    return float(((counts[used] - expected[used]) ** 2 / expected[used]).sum())


@pytest.mark.parametrize("scale", [1.0, 0.3])  # what truncation leaves does not sum to one
def test_draws_follow_the_probabilities(scale: float) -> None:
    p = np.array([0.0, 0.4, 0.0, 0.05, 0.3, 0.05, 0.2, 0.0]) * scale
    n = 40_000
    u = torch.from_numpy(uniforms(7, 0, n, 1)[:, 0])
    tokens = draw(torch.tensor(p, dtype=torch.float32).expand(n, -1), u, 1.0).numpy()
    counts = np.bincount(tokens, minlength=8)
    assert (counts[p == 0] == 0).all()
    assert chi_square(counts, p) < 18.47  # chi-square with 4 degrees of freedom, p = 0.001; the seed is fixed


@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, 1 - 2**-53])
def test_no_draw_hits_probability_zero_at_the_edges(u: float) -> None:
    for p in ([0.0, 0.0, 1e-30, 0.0], [0.0, 0.1, 0.9, 0.0], [0.3, 0.0, 0.7, 0.0, 0.0], [0.0] * 9 + [1e-8] + [0.0] * 90):
        row = torch.tensor([p], dtype=torch.float32)
        for bias in (1.0, 0.5, 0.0):
            assert p[int(draw(row, torch.tensor([u], dtype=torch.float64), bias))] > 0


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_draw_is_the_inverse_of_the_cumulative_distribution(p: list[float], u: float) -> None:
    p[0] = p[0] if any(p) else 1.0
    total = np.cumsum(np.array(p, dtype=np.float32).astype(np.float64))
    expected = int(np.flatnonzero(total > u * total[-1])[0]) if (total > u * total[-1]).any() else None
    token = int(draw(torch.tensor([p], dtype=torch.float32), torch.tensor([u], dtype=torch.float64), 1.0))
    assert p[token] > 0
    if expected is not None:
        assert token == expected


def test_bias_mixes_the_mode_with_the_distribution() -> None:
    p, n, bias = np.array([0.1, 0.5, 0.4]), 40_000, 0.25
    u = torch.from_numpy(uniforms(8, 0, n, 1)[:, 0])
    tokens = draw(torch.tensor(p, dtype=torch.float32).expand(n, -1), u, bias).numpy()
    mixture = bias * p + (1 - bias) * np.array([0, 1, 0])
    assert chi_square(np.bincount(tokens, minlength=3), mixture) < 13.82  # 2 degrees of freedom, p = 0.001


def test_first_tokens_of_samples_follow_the_model(trained: Trained) -> None:
    """The whole path, from uniforms to tokens: first tokens of many records against the model's own distribution."""
    codec, model = load_codec(trained.data / "tokenizer"), load(trained.llama)
    with torch.inference_mode():
        p = torch.softmax(model(torch.tensor([[codec.begin]])).logits[0, -1, : codec.size].double(), -1).numpy()
    n = 4000
    ids, _ = sample_chunk(model, codec, torch.from_numpy(uniforms(3, 0, n, 1)), None, options())
    counts = np.bincount([row[0] if row else codec.end for row in ids], minlength=codec.size)
    common = p > 5 / n
    both = np.append(counts[common], counts[~common].sum()), np.append(p[common], p[~common].sum())
    freedom = len(both[0]) - 1
    assert freedom >= 1 and chi_square(*both) < freedom + 4 * (2 * freedom) ** 0.5 + 4


# -- records end, and prompts --------------------------------------------------------------------------------------


def test_records_stay_within_max_tokens(trained: Trained, tmp_path: Path) -> None:
    codec = load_codec(trained.data / "tokenizer")
    model = load(trained.llama)
    for longest in (1, 7):
        ids, count = sample_chunk(model, codec, torch.from_numpy(uniforms(1, 0, 40, longest)), None, options())
        assert max(map(len, ids)) == longest and all(codec.end not in row for row in ids)
        assert count == sum(min(longest, len(row) + 1) for row in ids)


def test_how_records_end(trained: Trained, tmp_path: Path) -> None:
    """The model said so, or they were cut off: the finish that the ids show, also after a kill."""
    codec, decoding = load_codec(trained.data / "tokenizer"), options(max_tokens=24, chunk=64)
    u = torch.from_numpy(uniforms(5, 0, 64, 24))
    ids, _ = sample_chunk(load(trained.llama), codec, u, None, decoding)
    finish = ["length" if len(row) == 24 else "end" for row in ids]
    assert {"length", "end"} == set(finish)
    for _ in range(2):
        (made,) = sample(Sampling(trained.llama, trained.data, 60, 5, decoding, None, tmp_path, Runtime(workers=1)))
        assert made.finish == finish[:60] and len(made.texts) == 60


@pytest.mark.parametrize("keep", [False, True])
def test_prompts_are_recorded_as_parents(trained: Trained, tmp_path: Path, keep: bool) -> None:
    recipe = Sample(n=70, max_tokens=40, chunk=16, prompts="real", prompt_tokens=6, keep_prompt=keep)

    def request(scratch: str) -> Request:
        (tmp_path / scratch).mkdir()
        return Request(
            trained.domain,
            1,
            11,
            trained.llama,
            trained.data,
            Inputs({}),
            tmp_path / scratch,
            Runtime(1),
            account=tmp_path / "account.json",
        )

    table, _ = recipe.generate(request("a"))
    assert len(table) == 70 and set(table["origin"].to_pylist()) == {"synthetic"}
    pool = records.read(trained.data / "prompts.parquet")
    sources = dict(zip(pool["id"].to_pylist(), pool["text"].to_pylist(), strict=True))
    parents = table["parents"].to_pylist()
    assert all(len(p) == 1 and p[0] in sources for p in parents)
    uses = [sum(p == [i] for p in parents) for i in sources]
    assert max(uses) - min(uses) <= 1  # each prompt as often as the others
    codec = load_codec(trained.data / "tokenizer")
    begins = [codec.decode([codec.encode([sources[p[0]]])[0][:6]])[0] for p in parents]
    same = sum(t.startswith(b) for t, b in zip(table["text"].to_pylist(), begins, strict=True))
    assert same == 70 if keep else same < 10
    if not keep:
        longer, _ = Sample(**{**vars(recipe), "keep_prompt": True}).generate(request("b"))
        assert longer["text"].to_pylist() == [
            b + t for b, t in zip(begins, table["text"].to_pylist(), strict=True)
        ]  # the prompt, and nothing else, was removed


def test_previous_prompts_come_from_the_last_round(trained: Trained, tmp_path: Path) -> None:
    previous = records.make_table({"text": ["The old garden"]}, origin="synthetic", generation=1, recipe="sample")
    records.write(previous, tmp_path / "kept.parquet")
    recipe = Sample(n=3, max_tokens=40, chunk=4, prompts="previous", prompt_tokens=4, keep_prompt=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inputs = Inputs({PREVIOUS: (tmp_path / "kept.parquet",)})
    request = Request(trained.domain, 2, 0, trained.llama, trained.data, inputs, scratch, Runtime(1), account=scratch)
    table, _ = recipe.generate(request)
    assert table["parents"].to_pylist() == [[previous["id"][0].as_py()]] * 3
    codec = load_codec(trained.data / "tokenizer")
    begin = codec.decode([codec.encode(["The old garden"])[0][:4]])[0]
    assert all(t.startswith(begin) for t in table["text"].to_pylist())
