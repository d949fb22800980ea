"""Sampling: the same bytes however the work is cut, and exactly the distribution that the recipe's options describe."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from torch.nn import functional

from conftest import Trained
from genloss.backends.torch import Torch
from genloss.core import records
from genloss.core.contracts import PREVIOUS, Decoding, Inputs, Runtime, Sampling
from genloss.core.errors import UserError
from genloss.core.records import ENDED
from genloss.core.seeds import uniforms
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.generate.sample import Sample
from genloss.language import kernels
from genloss.language.drawing import NoProbabilities, adjust, draw
from genloss.language.fused import Batch, Chunk, Fused, Half, Quantized, exact, sample_records
from genloss.language.likelihood import token_logprobs
from genloss.language.model import load, one_thread
from genloss.language.sampling import by_process, rows_alike, sample, sample_chunk
from genloss.language.tokenizer import load_codec
from genloss.workflow.compose import compose


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


@pytest.mark.parametrize("arch, kernel", [("llama", "torch"), ("gpt2", "torch"), ("llama", "fused")])
def test_records_do_not_depend_on_workers_number_or_a_kill(
    trained: Trained, tmp_path: Path, arch: str, kernel: str
) -> None:
    made = partial(texts, trained, arch=arch, kernel=kernel)
    whole = made(tmp_path / "1", 50)
    assert len(whole) == 50 and len(set(whole)) > 40
    for workers in (2, 4):
        assert made(tmp_path / str(workers), 50, workers) == whole
    # a longer request begins with the shorter one
    assert made(tmp_path / "n20", 20, 2) == whole[:20]
    # a kill leaves some chunks in scratch, not always the first ones
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "1", killed)
    chunks = sorted(killed.glob("chunk-*.json"))
    assert len(chunks) == 7
    for path in chunks[::2]:
        path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in chunks[1::2]}
    assert made(killed, 50, 2) == whole
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "finished chunks were computed again"


def test_records_in_bfloat16(trained: Trained, tmp_path: Path) -> None:
    """Of the torch kernel: the same for any workers, others than in float32, and with float32's log-probabilities."""
    made = partial(texts, trained, compute_type="bfloat16")
    whole = made(tmp_path / "1", 40)
    assert made(tmp_path / "2", 40, 2) == whole != texts(trained, tmp_path / "32", 40)
    request = Sampling(trained.llama, trained.data, 8, 5, options(logprobs=True), None, tmp_path / "3")
    request = replace(request, decoding=replace(request.decoding, compute_type="bfloat16"))
    (tmp_path / "3").mkdir()
    (said,) = sample(request)
    model, codec = load(trained.llama), load_codec(trained.data / "tokenizer")
    assert said.ids and said.logprobs == token_logprobs(
        model, codec, said.ids, [0] * 8, [f == ENDED for f in said.finish]
    )


def test_processes_make_the_records_of_one(trained: Trained, tmp_path: Path) -> None:
    """As on several GPUs, here on the CPU."""
    prompts = records.read(trained.data / "prompts.parquet").column("text").to_pylist()[:20]
    decoding = options(prompt_tokens=6, logprobs=True)

    def asked(name: str) -> Sampling:
        (tmp_path / name).mkdir(exist_ok=True)
        return Sampling(trained.llama, trained.data, 20, 5, decoding, prompts, tmp_path / name)

    whole = list(sample(asked("one")))
    assert list(by_process(asked("two"), ["cpu", "cpu"])) == whole and len(whole) == 3
    (tmp_path / "one/chunk-000001.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    assert list(by_process(asked("one"), ["cpu"])) == whole and len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished chunks were computed again"
    with pytest.raises(UserError, match="none: cannot be loaded"):
        list(by_process(replace(asked("three"), model=tmp_path / "none"), ["cpu", "cpu"]))


@pytest.mark.parametrize("kernel", ["torch", "fused"])
def test_the_last_chunk_is_not_computed_whole(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    whole = texts(trained, tmp_path / "whole", 64, chunk=64, kernel=kernel)
    computed = []

    def watched(model: Any, codec: Any, u: torch.Tensor, *rest: Any) -> Any:
        computed.append(len(u))
        return sample_chunk(model, codec, u, *rest)

    monkeypatch.setattr("genloss.language.sampling.sample_chunk", watched)
    for n in (3, 9, 37):
        assert texts(trained, tmp_path / str(n), n, chunk=64, kernel=kernel) == whole[:n]
    assert computed == ([8, 9, 37] if kernel == "torch" else [])
    # where this machine's products differ between batch sizes, it is
    monkeypatch.setattr("genloss.language.sampling.rows_alike", lambda *_: False)
    assert texts(trained, tmp_path / "unlike", 9, chunk=64) == whole[:9] and computed[-1] == 64


def test_rows_alike_sees_a_difference(trained: Trained) -> None:
    model = load(trained.llama)
    assert rows_alike(model, 64, 9)
    model.model.norm.forward = (lambda norm: lambda x: norm(x) * (1 + 1e-5 * len(x)))(model.model.norm.forward)
    assert not rows_alike(model, 64, 9)


def test_keys_and_values_have_a_bound(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer chunks at a time where memory is short, and one clear line where not even one has room."""
    whole = texts(trained, tmp_path / "whole", 40)
    config = load(trained.llama).config
    width = config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 41 * 4  # keys and values; tokens, bytes
    memory = SimpleNamespace(available=0)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    memory.available = 4 * 9 * each  # a quarter is for keys and values: of one chunk of 8, not of two
    assert texts(trained, tmp_path / "short", 40, 2) == whole
    memory.available = 4 * 7 * each
    with pytest.raises(UserError, match=r"recipe\.chunk=8: .*at most 7 records"):
        texts(trained, tmp_path / "too short", 40)
    fused = texts(trained, tmp_path / "fused", 40, kernel="fused")
    memory.available = 0
    assert texts(trained, tmp_path / "one by one", 40, 2, kernel="fused") == fused


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
    lengths = [1, 2, 3, 5, 8] * 3  # ragged: the shorter ones are padded
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


SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False},
    "Qwen2ForCausalLM": {"num_key_value_heads": 2, "intermediate_size": 48},
    "GPT2LMHeadModel": {},
    "GPTNeoXForCausalLM": {"intermediate_size": 48},
    "MistralForCausalLM": {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 6},
    "Lfm2ForCausalLM": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},  # with a state
    "BloomForCausalLM": {},  # whose positions are distances
}


def random_model(name: str) -> Any:
    kind: Any = getattr(transformers, name)
    torch.manual_seed(0)
    config = kind.config_class(**SMALL, **FAMILIES[name], max_position_embeddings=64, initializer_range=0.3)
    model = kind(config).eval()
    for parameter in model.parameters():  # biases and norms too
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return model


def decoded(
    model: Any, u: np.ndarray, prompts: list[list[int]] | None, decoding: Decoding, slots: int = 5
) -> list[list[int]]:
    """By the kernel that `decoding` names; token 0 begins a record, 1 ends it."""
    codec: Any = SimpleNamespace(begin=0, end=1, size=61)
    if decoding.kernel == "torch":
        model.set_attn_implementation("genloss_one_query")
        return sample_chunk(model, codec, torch.from_numpy(u), prompts, decoding)[0]
    chunk = Chunk(0, u, prompts)
    waiting = ((chunk, row) for row in range(len(u)))
    assert list(sample_records(Fused(model, decoding.compute_type), codec, waiting, u.shape[1], slots, decoding)) == [
        chunk
    ]
    return chunk.ids


def prompted(n: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 61, int(k)).tolist() for k in rng.integers(0, longest, n)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kernel", ["torch", "fused"])
def test_greedy_equals_generate_for_any_family(name: str, kernel: str) -> None:
    one_thread()  # with more the library's steps wait for each other on a busy machine
    model, prompts = random_model(name), prompted(12, 12)
    decoding = Decoding(40, bias=0.0, kernel=kernel)
    if kernel == "fused" and name not in ("LlamaForCausalLM", "Qwen2ForCausalLM"):
        with pytest.raises(
            UserError, match=f"kernel=fused: is for Llama and Qwen2, and this is a {name}; set it to torch"
        ):
            decoded(model, np.zeros((12, 40)), prompts, decoding)
        return
    mine = decoded(model, np.zeros((12, 40)), prompts, decoding)
    reference = random_model(name)
    for ids, prompt in zip(mine, prompts, strict=True):
        begun = torch.tensor([[0, *prompt]])
        given: dict[str, Any] = {"attention_mask": torch.ones_like(begun), "eos_token_id": 1, "pad_token_id": 1}
        theirs = reference.generate(begun, do_sample=False, max_new_tokens=40 - len(prompt), **given)[0, 1:].tolist()
        assert ids == (theirs[:-1] if theirs[-1] == 1 else theirs)
    assert len({tuple(ids) for ids in mine}) > 3


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.7, "top_k": 20},
        {"repetition_penalty": 1.5, "top_p": 0.9},
        {"compute_type": "bfloat16"},
        {"compute_type": "int8"},
    ],
)
def test_a_record_of_the_fused_kernel_is_the_same_in_any_company(values: dict[str, Any]) -> None:
    model, prompts, u = random_model("Qwen2ForCausalLM"), prompted(300, 30), uniforms(1, 0, 300, 40)
    decoding = Decoding(40, kernel="fused", **values)
    ids = decoded(model, u, prompts, decoding, slots=300)  # their prompts are more tokens than a step takes
    for slots in (1, 7, 64):
        assert decoded(model, u, prompts, decoding, slots=slots) == ids
    some = [5, 17, 200]
    assert decoded(model, u[some], [prompts[i] for i in some], decoding) == [ids[i] for i in some]
    # the torch kernel rounds in other ways, which few records show
    if "compute_type" not in values:
        same = decoded(model, u, prompts, replace(decoding, kernel="torch"))
        assert np.mean([a == b for a, b in zip(ids, same, strict=True)]) > 0.97


def test_fewer_bits_give_nearly_the_same_logits() -> None:
    model = random_model("LlamaForCausalLM")
    tokens, found = np.arange(16) + 20, {}
    for kind in ("float32", "bfloat16", "int8"):
        fused = Fused(model, kind)
        batch = Batch(fused, 16, 16)
        hidden = batch.step(tokens, np.arange(16), np.zeros(16, np.int64))
        found[kind] = next(batch.logits(hidden))[1].ravel()
    for kind in ("bfloat16", "int8"):
        assert 0.99 < np.corrcoef(found["float32"], found[kind])[0, 1] < 1 - 1e-9


@pytest.mark.parametrize("bias", [False, True])
def test_products_of_8_and_16_bits_are_what_they_say(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = (
        torch.nn.Linear(96, 80, bias=bias).requires_grad_(False),
        torch.randn(16, 96) * torch.logspace(-3, 3, 16)[:, None],
    )
    b = layer.bias if bias else torch.zeros(80)
    rows, columns = x.abs().amax(1) / 127, layer.weight.abs().amax(1) / 127
    whole = (x / rows[:, None]).round().double() @ (layer.weight / columns[:, None]).round().double().T
    wanted = whole * rows[:, None] * columns + b
    quantized = Quantized(layer)
    assert exact(80, 96)
    np.testing.assert_allclose(quantized(x.numpy()), wanted.numpy(), rtol=1e-5, atol=1e-5)
    half = functional.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16() if bias else None).float()
    np.testing.assert_allclose(Half(layer)(x.numpy()), half.numpy(), rtol=1e-2, atol=1e-2)
    x[3, 5] = torch.nan
    assert np.isnan(quantized(x.numpy())[3]).all() and np.isfinite(quantized(x.numpy())[4]).all()


@pytest.mark.parametrize("kernel", ["torch", "fused"])
def test_samples_are_distributed_as_those_of_generate(kernel: str) -> None:
    """Pairs of tokens after one prompt: chi-square of two samples, on a vocabulary of 61."""
    model, n = random_model("LlamaForCausalLM"), 4000
    ids = decoded(model, uniforms(9, 0, n, 4), [[7, 8]] * n, Decoding(4, kernel=kernel), slots=128)
    torch.manual_seed(0)
    begun = torch.tensor([[0, 7, 8]] * n)
    given: dict[str, Any] = {"attention_mask": torch.ones_like(begun), "eos_token_id": 1, "pad_token_id": 1}
    theirs = random_model("LlamaForCausalLM").generate(begun, do_sample=True, top_k=0, max_new_tokens=2, **given)
    pairs = [[*row[2:], 1, 1][:2] for row in ids], theirs[:, 3:].tolist()
    counts = np.array([np.bincount([61 * a + b for a, b in some], minlength=61 * 61) for some in pairs])
    common = counts.sum(0) >= 20
    table = np.column_stack([counts[:, common], counts[:, ~common].sum(1)])
    assert table.shape[1] > 30 and chi2_contingency(table).pvalue > 0.001


def test_the_fused_kernel_needs_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genloss.backends.torch.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"kernel=fused: needs numba; pip install 'genloss\[fast\]'"):
        Torch(kernel="fused")
    assert Torch().kernel == "torch"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=gpt2"], r"backend\.kernel=fused: is for LlamaForCausalLM and Qwen2ForCausalLM, .* a GPT2LMHeadModel"),
        (["+recipe.constraint.regex=a+"], r"constraint=.*: is none of recipe\.backend\.kernel=fused"),
        (["recipe.backend.compute_type=int4"], r"recipe\.backend\.compute_type=int4: .*int8"),
        (["recipe.backend.kernel=torch", "recipe.backend.compute_type=int8"], r"compute_type=int8: .*kernel=fused too"),
        (["recipe.backend.kernel=slow"], r"backend\.kernel=slow: unknown; known: fused, torch"),
    ],
)
def test_what_the_fused_kernel_has_not(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Experiment(compose(["recipe.backend.kernel=fused", *overrides]))


@pytest.mark.parametrize("kernel", ["torch", "fused"])
def test_a_diverged_model_is_named(kernel: str) -> None:
    model = random_model("LlamaForCausalLM")
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(NoProbabilities, match="diverged"):
        decoded(model, uniforms(1, 0, 4, 8), None, Decoding(8, kernel=kernel))


def test_a_machine_whose_rows_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genloss.language.fused.rows_alike", lambda linear: False)
    with pytest.raises(UserError, match="compute every row alike, and this machine's do not; set it to torch"):
        Fused(random_model("LlamaForCausalLM"))


@given(st.integers(1, 700), st.floats(0, 1, exclude_max=True), st.floats(0.3, 3), st.integers(0, 99))
def test_the_fused_draw_is_the_inverse_of_the_cumulative_distribution(
    size: int, u: float, temperature: float, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(0, 8, (1, size + 3)).astype(np.float32)
    logits[0, ::3] = -np.inf if size > 1 else 0
    tokens = np.empty(1, np.int64)
    exact = np.exp((logits[0, :size].astype(float) - logits[0, :size].max()) * np.float32(1 / temperature)).cumsum()
    kernels.draw(logits, size, np.float32(1 / temperature), np.array([u]), tokens)
    token = int(tokens[0])
    assert 0 <= token < size and (size == 1 or token % 3)
    low = exact[token - 1] if token else 0.0
    assert low / exact[-1] - 1e-6 <= u <= exact[token] / exact[-1] + 1e-6


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
        longer, _ = replace(recipe, keep_prompt=True).generate(request("b"))
        assert longer["text"].to_pylist() == [
            b + t for b, t in zip(begins, table["text"].to_pylist(), strict=True)
        ]  # the prompt, and nothing else, was removed


def test_prompts_are_read_as_they_are_needed(trained: Trained, tmp_path: Path) -> None:
    """A million of them, as token ids, would take gigabytes; and no prompt depends on the others."""

    class Asked(list[str]):
        slices: ClassVar[list[int]] = []

        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            self.slices.append(len(found))
            return found

        def __iter__(self) -> Any:
            raise AssertionError("all at once")

    prompts = records.read(trained.data / "prompts.parquet")["text"].to_pylist()[:20]
    decoding = options(prompt_tokens=4, keep_prompt=True)

    def made(prompts: list[str], scratch: str) -> list[str]:
        folder = tmp_path / scratch
        folder.mkdir()
        request = Sampling(trained.llama, trained.data, 20, 5, decoding, prompts, folder, Runtime(workers=1))
        return [text for some in sample(request) for text in some.texts]

    assert made(Asked(prompts), "a") == made(prompts, "b") and Asked.slices == [8, 8, 4]


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
