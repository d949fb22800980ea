"""Backends: one interface, and what each of them promises of the records that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Trained
from genloss.backends.torch import Torch
from genloss.core.contracts import Decoding, Inputs, Runtime
from genloss.core.records import CUT, ENDED
from genloss.generate import Request
from genloss.generate.sample import Sample
from genloss.language.model import load
from genloss.language.tokenizer import load_codec

PROMPTS = ["The old", "", "A quiet river", "The"] * 6


def asked(trained: Trained, scratch: Path) -> Request:
    scratch.mkdir(exist_ok=True)
    account = scratch / "account.json"
    return Request(trained.domain, 1, 11, trained.llama, trained.data, Inputs({}), scratch, Runtime(1), account=account)


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_log_probabilities_are_the_models_own(trained: Trained, arch: str) -> None:
    """Of each token that was sampled, its end included, whatever the decoding was: token by token, by the library."""
    decoding = Decoding(24, temperature=0.7, top_k=40, repetition_penalty=1.2, chunk=7, logprobs=True)
    said = Torch().of(trained.models[arch], trained.data, Runtime(2)).respond(PROMPTS, decoding, seed=3)
    assert said.ids is not None and said.logprobs is not None and {CUT, ENDED} == set(said.finish)
    codec, model = load_codec(trained.data / "tokenizer"), load(trained.models[arch])
    assert codec.decode(said.ids) == said.texts
    for prompt, ids, logprobs, finish in zip(PROMPTS, said.ids, said.logprobs, said.finish, strict=True):
        given = codec.encode([prompt])[0]
        whole = [codec.begin, *given, *ids, *([codec.end] if finish == ENDED else [])]
        with torch.inference_mode():
            p = torch.softmax(model(torch.tensor([whole])).logits[0, :, : codec.size].double(), dim=-1)
        expected = [float(p[at - 1, whole[at]].log()) for at in range(1 + len(given), len(whole))]
        assert logprobs == pytest.approx(expected, abs=1e-4)


def test_a_recipe_keeps_them(trained: Trained, tmp_path: Path) -> None:
    """Beside records that are the same without, ids included."""
    options: dict[str, Any] = {"n": 20, "max_tokens": 24, "chunk": 8}
    plain, _ = Sample(**options).generate(asked(trained, tmp_path / "a"))
    for _ in range(2):  # found again after a kill
        more, _ = Sample(**options, logprobs=True).generate(asked(trained, tmp_path / "b"))
        assert more.drop_columns(["logprob"]).equals(plain)
        assert all(-24 * 8 < x < 0 for x in more["logprob"].to_pylist())
