"""Backends: one interface, and what each of them promises of the records that it writes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from conftest import Trained
from genloss.backends.ctranslate2 import ARCHITECTURES, CTranslate2
from genloss.backends.openai import OpenAI
from genloss.backends.spending import Budget, Limits
from genloss.backends.torch import Torch
from genloss.core.contracts import Decoding, Inputs, Runtime
from genloss.core.errors import UserError
from genloss.core.records import CUT, ENDED
from genloss.generate import Request
from genloss.generate.sample import Sample
from genloss.language import decision
from genloss.language.checkers import Pattern
from genloss.language.model import load
from genloss.language.tokenizer import load_codec
from genloss.workflow.compose import compose
from support import serving

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


# -- constrained decoding ----------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "kind": {"enum": ["old", "quiet"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["age", "kind", "tags"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    found = json.loads(text)
    tags = found["tags"]
    return (
        set(found) == {"age", "kind", "tags"}
        and type(found["age"]) is int
        and 10 <= found["age"] <= 99
        and found["kind"] in ("old", "quiet")
        and len(tags) <= 2
        and all(tag in (True, False) for tag in tags)
    )


NESTED = """start: item
item: "(" item* ")" | WORD
WORD: /[a-z]{1,3}/"""  # no regular language


def is_nested(text: str) -> bool:
    from lark import Lark

    return bool(Lark(NESTED).parse(text))


@pytest.mark.parametrize(
    ("constraint", "longest", "matches"),
    [
        ({"regex": r"[A-Z][a-z]{2,6}( [0-9]+)?\."}, 24, re.compile(r"[A-Z][a-z]{2,6}( [0-9]+)?\.").fullmatch),
        ({"choice": ["The old river.", "The old", "(a|b)*", "\u00e9t\u00e9"]}, 24, None),
        ({"json": PERSON}, 48, is_person),
        ({"lark": NESTED}, 24, is_nested),
    ],
    ids=["regex", "choice", "json", "lark"],
)
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_what_ends_matches(trained: Trained, constraint: dict[str, Any], longest: int, matches: Any, arch: str) -> None:
    """With prompts of several lengths, however many workers there are, and whatever else the options are."""
    decoding = Decoding(longest, chunk=9, constraint=constraint, temperature=1.5, repetition_penalty=1.1)
    said = [
        Torch().of(trained.models[arch], trained.data, Runtime(workers)).respond(PROMPTS, decoding, seed=3)
        for workers in (1, 2)
    ]
    assert said[0] == said[1] and said[0].finish.count(ENDED) >= len(PROMPTS) // 3
    for text, finish in zip(said[0].texts, said[0].finish, strict=True):
        if finish == ENDED:
            assert matches(text) if matches else text in constraint["choice"], text
    assert len(set(said[0].texts)) > (2 if "choice" in constraint else 8)
    greedy = replace(decoding, bias=0.0)
    assert ENDED in Torch().of(trained.models[arch], trained.data).respond(PROMPTS[:4], greedy).finish


def test_prose_has_the_form_that_format_keeps(trained: Trained) -> None:
    prose = compose(["recipe=prose"]).recipe.constraint
    said = Torch().of(trained.llama, trained.data, Runtime(1)).respond(PROMPTS, Decoding(24, constraint=prose), seed=3)
    ended = [text for text, finish in zip(said.texts, said.finish, strict=True) if finish == ENDED]
    assert len(ended) >= 8 and Pattern(prose.regex).valid(ended).all()


def test_a_choice_is_drawn_by_its_tokens(trained: Trained) -> None:
    """Where choices differ in their first token, that decides: by its share among the tokens that are left."""
    codec, model = load_codec(trained.data / "tokenizer"), load(trained.llama)
    choices = ["a", "e", "t"]
    ids = decision.labels(codec, choices)
    p = decision.label_probabilities(model, codec, [[codec.begin]], ids)[0]
    drawn = Decoding(3, chunk=500, constraint={"choice": choices})
    said = Torch().of(trained.llama, trained.data).respond([""] * 3000, drawn, seed=4).texts
    assert chisquare([said.count(choice) for choice in choices], 3000 * p).pvalue > 0.001


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"regex": "("}, r"recipe.constraint.regex=\(: is not understood by llguidance"),
        ({"lark": "start: ("}, r"recipe.constraint.lark=start: \(: is not understood by llguidance"),
        ({"lark": "start: word"}, r"recipe.constraint.lark=start: word: is not understood by llguidance"),
        ({"json": {"type": "objec"}}, "recipe.constraint.json=.*is not understood by llguidance"),
        ({"regex": r"[^\s\S]"}, r"recipe.constraint.regex=.*: is matched by no text"),
        ({"json": {"$ref": "#"}}, r"recipe.constraint.json=.*: is matched by no text"),
        ({"choice": []}, "recipe.constraint.choice=.*: must be a list of texts"),
        ({"choice": ["a", "a"]}, "must be texts that differ"),
        ({"regexp": "a"}, "recipe.constraint=regexp: unknown; did you mean regex"),
        ({"regex": "a", "choice": ["b"]}, "must be one of regex, choice, json"),
    ],
)
def test_bad_constraints(constraint: dict[str, Any], words: str) -> None:
    from genloss.experiment import Experiment

    cfg = compose([])
    cfg.recipe.constraint = constraint
    with pytest.raises(UserError, match=words):
        Experiment(cfg)
    for name in ("ctranslate2", "openai"):
        cfg = compose([f"recipe/backend={name}", "recipe.prompts=real", *(SERVER[1:] if name == "openai" else [])])
        cfg.recipe.constraint = {"choice": ["a", "b"]}
        with pytest.raises(UserError, match=r"recipe\.constraint="):
            Experiment(cfg)


def test_a_constraint_that_is_too_much_ends_the_round(trained: Trained) -> None:
    """Texts that need not match are no records."""
    too_much = Decoding(24, chunk=4, constraint={"regex": "(x{1,1000}){1000}"})
    with pytest.raises(UserError, match=r"recipe.constraint: is too much for llguidance \("):
        Torch().of(trained.llama, trained.data, Runtime(1)).respond(PROMPTS[:4], too_much, seed=3)


# -- decisions ---------------------------------------------------------------------------------------------------------


def test_decisions_are_those_of_transformers(trained: Trained) -> None:
    """`pipeline("decision")`, which asks one prompt at a time; for all of its kinds of questions."""
    from transformers import PreTrainedTokenizerFast, pipeline
    from transformers.decision import DecisionConfig

    template = "{{ state }}? {% for o in question.options %}{{ question.labels[loop.index0] }} {{ o }} {% endfor %}:"
    kinds: dict[str, dict[str, Any]] = {
        "choice": {"type": "choice", "criteria": {"calm": "a", "angry": None, "old": None}},
        "score": {"type": "score", "criteria": ["Can wait", "This week", "Today", "Now"]},
        "noul": {"type": "noul", "instructions": "Is it old?"},
    }
    names = {"choice": ["A", "B", "C"], "score": ["A", "B", "C", "D"], "noul": ["Y", "N"]}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained.data / "tokenizer")
    model = load(trained.llama)
    decide = pipeline(
        "decision",
        model=model,
        tokenizer=tokenizer,
        decision_config=DecisionConfig(chat_template=template, labels={"noul": ["Y", "N"]}),
    )
    states = ["The old river", "A market", "The council builds the narrow bridge"]
    theirs = [decide({"state": state, "questions": kinds}) for state in states]
    codec = load_codec(trained.data / "tokenizer")
    for kind, question in kinds.items():
        options = list(question["criteria"]) if kind == "choice" else ["true", "false"]
        options = [str(i) for i in range(4)] if kind == "score" else options
        shown = " ".join(f"{name} {option}" for name, option in zip(names[kind], options, strict=True))
        prompts = codec.encode([f"{state}? {shown} :" for state in states])
        p = decision.label_probabilities(model, codec, prompts, decision.labels(codec, names[kind]))
        assert p.sum(axis=1) == pytest.approx(1)
        for row, answer in zip(p, (each[kind] for each in theirs), strict=True):
            if kind == "noul":
                assert row[0] == pytest.approx(answer["noul"], abs=1e-5)
                continue
            assert row == pytest.approx(list(answer["probabilities"].values()), abs=1e-5)
            if kind == "score":
                assert decision.scores(row[None])[0] == pytest.approx(answer["score"], abs=1e-4)
    with pytest.raises(UserError, match="different single tokens"):
        decision.labels(codec, ["A", "harbour and winter"])


# -- ctranslate2 -------------------------------------------------------------------------------------------------------


GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"max_position_embeddings": 48, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "GPT2": GPT,
    "GPTBigCode": GPT,
    "GPTJ": GPT | {"rotary_dim": 4},
    "CodeGen": GPT | {"rotary_dim": 4},
    "GPTNeoX": {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"},
    "Gemma": LLAMA | {"head_dim": 8},
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": LLAMA | {"head_dim": 8},
    "Olmo": LLAMA,
}


def class_of(arch: str) -> str:
    return {"GPT2": "GPT2LMHeadModel"}.get(arch, f"{arch}ForCausalLM")


def saved_as(arch: str, trained: Trained, folder: Path) -> Path:
    """A tiny random model of an architecture, whose next tokens are far from each other."""
    import transformers

    codec = load_codec(trained.data / "tokenizer")
    ends: dict[str, Any] = {"bos_token_id": codec.begin, "eos_token_id": codec.end, "pad_token_id": codec.end}
    torch.manual_seed(3)
    config = getattr(transformers, f"{arch}Config")(vocab_size=codec.size, **ends, **SHAPES[arch])
    model = getattr(transformers, class_of(arch))(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("arch", sorted(set(SHAPES) - {"Olmo"}))
def test_greedy_decoding_is_the_same_by_all(trained: Trained, tmp_path: Path, arch: str) -> None:
    """In float32: by torch, by CTranslate2, and by generate() of transformers, a prompt at a time."""
    folder, greedy = saved_as(arch, trained, tmp_path / "model"), Decoding(30, bias=0.0, chunk=5)
    ours = Torch().of(folder, trained.data).respond(PROMPTS[:8], greedy).texts
    assert len(set(ours)) > 2
    if class_of(arch) in ARCHITECTURES:
        assert CTranslate2().of(folder, trained.data, Runtime(2)).respond(PROMPTS[:8], greedy).texts == ours
    codec, model = load_codec(trained.data / "tokenizer"), load(folder)
    for prompt, text in zip(PROMPTS[:4], ours, strict=False):
        ids = torch.tensor([[codec.begin, *codec.encode([prompt])[0]]])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": codec.end, "pad_token_id": codec.end}
        made = model.generate(ids, max_length=31, attention_mask=torch.ones_like(ids), **options)
        assert codec.decode([made[0, ids.shape[1] :].tolist()]) == [text]


def test_all_architectures_are_tested() -> None:
    assert set(ARCHITECTURES) <= {class_of(arch) for arch in SHAPES}


def records_of(
    trained: Trained, scratch: Path, n: int, workers: int, backend: CTranslate2 | None = None, **options: Any
) -> Any:
    scratch.mkdir(exist_ok=True)
    of = (backend or CTranslate2()).of(trained.llama, trained.data, Runtime(workers))
    decoding = Decoding(**{"max_tokens": 24, "chunk": 8, **options})
    return of.respond((PROMPTS * 9)[:n], decoding, seed=5, scratch=scratch)


def test_a_chunk_is_the_same_in_every_run(trained: Trained, tmp_path: Path) -> None:
    """Of any number of workers, with more chunks, and of a run that goes on after a kill."""
    whole = records_of(trained, tmp_path / "1", 60, 1)
    assert len(set(whole.texts)) > 40 and {CUT, ENDED} == set(whole.finish)
    for workers in (2, 3):
        assert records_of(trained, tmp_path / str(workers), 60, workers) == whole
    kept = tmp_path / "3"
    for number in (1, 4):
        (kept / f"chunk-{number:06d}.json").unlink()
    assert records_of(trained, kept, 60, 1) == whole
    assert records_of(trained, tmp_path / "fewer", 32, 1).texts == whole.texts[:32]
    more = records_of(trained, tmp_path / "kept", 60, 1, keep_prompt=True, logprobs=True)
    assert [p + t for p, t in zip(PROMPTS * 9, whole.texts, strict=False)] == more.texts
    ended = [end == ENDED for end in more.finish]
    assert [len(x) for x in more.logprobs] == [len(ids) + end for ids, end in zip(more.ids, ended, strict=True)]
    int8 = records_of(trained, tmp_path / "8", 60, 2, CTranslate2("int8"))
    assert int8 != whole and len(set(int8.texts)) > 40


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 7}, {"top_p": 0.6, "temperature": 2.0}, {"top_k": 20, "top_p": 0.7}],
    ids=str,
)
@pytest.mark.parametrize("length", [2, 5])
def test_both_engines_draw_from_one_distribution(
    trained: Trained, tmp_path: Path, options: dict[str, Any], length: int
) -> None:
    """Also of a later token, with prompts of several lengths."""
    decoding = Decoding(max_tokens=length, chunk=500, **options)
    prompts = ["", "The old", "T"] * 1000 if length > 2 else [""] * 3000
    ours, theirs = (
        backend.of(trained.llama, trained.data, Runtime(2)).respond(prompts, decoding, seed=9).texts
        for backend in (Torch(), CTranslate2())
    )
    last = [[text[-2:] for text in texts] for texts in (ours, theirs)]
    assert alike(*last) > 0.001


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.min_p=0.1"], "recipe.min_p=0.1: is no option of CTranslate2"),
        (["recipe.bias=0.5"], "recipe.bias=0.5: is no option of CTranslate2"),
        (["recipe.repetition_penalty=1.2"], "recipe.repetition_penalty=1.2: is no option"),
        (["recipe.backend.compute_type=int4"], "recipe.backend.compute_type=int4: unknown; did you mean int8"),
        (
            ["model=pretrained", "model.path={olmo}", "domain.tokenizer={tokenizer}"],
            "recipe.backend=OlmoForCausalLM: is none of those that CTranslate2 writes",
        ),
    ],
)
def test_what_ctranslate2_cannot_do(trained: Trained, tmp_path: Path, overrides: list[str], words: str) -> None:
    """Is refused before any work."""
    from genloss.experiment import Experiment

    places = {"olmo": tmp_path / "olmo", "tokenizer": trained.data / "tokenizer"}
    if "{olmo}" in str(overrides):
        saved_as("Olmo", trained, places["olmo"])
    given = [override.format(**places) for override in overrides]
    with pytest.raises(UserError, match=words):
        Experiment(compose(["recipe/backend=ctranslate2", "domain.context=48", *given]))


# -- openai: servers that speak vLLM's shape ---------------------------------------------------------------------------

WORDS = ["river", "bridge", "market", "harbour", "winter", "letter", "council", "island"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GENLOSS_STORE", str(tmp_path / "store"))


class VLLM:
    """A server's answers: words by the seed, of which a sixth ends at each; what it `ignores` it does not look at."""

    def __init__(self, *ignores: str, model: str = "m"):
        self.ignores, self.model = ignores, model
        self.entropy = np.random.default_rng(0)

    def __call__(self, number: int, body: dict[str, Any]) -> Any:
        heard = {key: value for key, value in body.items() if key not in self.ignores}
        rng = np.random.default_rng(heard["seed"]) if "seed" in heard else self.entropy
        greedy = not heard.get("temperature") or heard.get("top_k") == 1 or heard.get("top_p", 1) < 0.01
        most = heard.get("max_tokens", 64)
        words: list[str] = []
        while len(words) < most and (greedy or rng.random() > 1 / 6):
            words.append(f" {WORDS[0 if greedy else rng.integers(len(WORDS))]}")
        cut = len(words) == most
        text = "".join(words)
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if cut else "stop"}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": f"<think>hm</think>\n{text}"}
            choice["logprobs"] = {"content": [{"token": w, "logprob": -2.0} for w in words]}
        else:
            choice |= {"text": text, "logprobs": {"tokens": words, "token_logprobs": [-2.0] * len(words)}}
        if "logprobs" not in heard:
            choice["logprobs"] = None
        if "some logprobs" in self.ignores:
            choice["logprobs"]["token_logprobs"] = [-2.0]
        if "finish_reason" in self.ignores:
            choice["finish_reason"] = None
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": len(words) + (not cut)}
        counted = {} if "usage" in self.ignores else {"usage": usage}
        said = {"object": "text_completion", "model": self.model, "choices": [choice], **counted}
        return 200, json.dumps(said).encode()


def written(
    trained: Trained, scratch: Path, url: str, *, decoding: Decoding | None = None, workers: int = 3, **options: Any
) -> Any:
    backend = OpenAI(**{"url": url, "model": "m", "pause": 0.0, **options})
    scratch.mkdir(exist_ok=True)
    of = backend.of(trained.llama, trained.data, Runtime(workers))
    said = of.respond(PROMPTS, decoding or Decoding(24, chunk=7, logprobs=True), seed=3, scratch=scratch)
    return said, backend.spent(scratch)


def test_a_server_goes_on_from_prompts(trained: Trained, tmp_path: Path) -> None:
    """Each record by its own seed, with its log-probabilities, cut where the server says so; a rerun asks nothing."""
    with serving(VLLM()) as server:
        options: dict[str, Any] = {"begin": "<s>"}
        said, costs = written(trained, tmp_path / "a", server.url, **options)
        assert len(server.bodies) == len(PROMPTS) + 3 == costs["requests"]
        again, free = written(trained, tmp_path / "b", server.url, **options, workers=1)
        assert again == said and free["requests"] == 0 and free["replies_found"] == len(PROMPTS)
        assert len(server.bodies) == len(PROMPTS) + 3
    assert {CUT, ENDED} == set(said.finish) and len(set(said.texts)) > 12 and said.ids is None
    assert [len(text.split()) for text in said.texts] == [len(x) for x in said.logprobs]
    sent = server.bodies[3:]
    assert len({body["seed"] for body in sent}) == len(PROMPTS)
    assert {body["prompt"] for body in sent} == {"<s>", *PROMPTS} - {""}
    codec = load_codec(trained.data / "tokenizer")
    assert all(b["max_tokens"] == 24 - len(codec.encode([b["prompt"]])[0]) for b in sent if b["prompt"] != "<s>")
    assert 0 < costs["tokens_written"] - sum(len(x) for x in said.logprobs) - said.finish.count(ENDED) <= 3 * 16


def test_a_chat_answers_without_its_thoughts(trained: Trained, tmp_path: Path) -> None:
    with serving(VLLM()) as server:
        options: dict[str, Any] = {"api": "chat", "system": "Be brief.", "max_tokens": 5}
        said, _ = written(trained, tmp_path, server.url, **options)
    assert all(text == text.strip() and "think" not in text for text in said.texts)
    assert [m["role"] for m in server.bodies[-1]["messages"]] == ["system", "user"]
    assert {body["max_tokens"] for body in server.bodies} == {5} and server.bodies[-1]["logprobs"] is True


@pytest.mark.parametrize(
    ("server", "decoding", "words"),
    [
        (VLLM("temperature", "seed"), {}, None),
        (VLLM("max_tokens"), {}, "ignores max_tokens"),
        (VLLM("logprobs"), {"logprobs": True}, "ignores logprobs"),
        (VLLM("some logprobs"), {"logprobs": True}, "ignores logprobs: the reply has 1 for"),
        (VLLM("top_k"), {"top_k": 5}, "ignores top_k: top_k=1 gives different texts"),
        (VLLM("top_p"), {"top_p": 0.5}, "ignores top_p: top_p=0.001 gives different texts"),
        (VLLM("finish_reason", "usage"), {}, "ignores finish_reason"),
        (VLLM(), {"constraint": {"json": PERSON}}, "ignores response_format: the reply is no JSON"),
        (VLLM(model="gpt-2"), {}, r"recipe.backend.model=m: the server answers as gpt-2"),
    ],
)
def test_what_a_server_ignores_is_refused(
    trained: Trained, tmp_path: Path, server: VLLM, decoding: dict[str, Any], words: str | None
) -> None:
    """At the start, in one line."""
    with serving(server) as there:
        options = Decoding(24, chunk=64, **decoding)
        if words is None:
            words = "ignores temperature: 2 gives ' river river"
        with pytest.raises(UserError, match=words) as refused:
            written(trained, tmp_path, there.url, decoding=options, begin="<s>", workers=1)
        assert len(there.bodies) <= 6 and "\n" not in str(refused.value)


def test_a_server_that_was_mended_is_asked_again(trained: Trained, tmp_path: Path) -> None:
    server = VLLM("temperature", "seed")
    with serving(server) as there:
        with pytest.raises(UserError, match="ignores temperature"):
            written(trained, tmp_path / "a", there.url, begin="<s>", workers=1)
        server.ignores = ()
        said, _ = written(trained, tmp_path / "b", there.url, begin="<s>")
    assert len(said.texts) == len(PROMPTS)


def test_a_server_that_says_nothing_is_told(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = {"text": "", "finish_reason": "stop"}
    with serving(lambda number, body: (200, json.dumps({"model": "m", "choices": [silent]}).encode())) as server:
        said, _ = written(trained, tmp_path, server.url, begin="<s>", decoding=Decoding(24, chunk=7))
    assert said.texts == [""] * len(PROMPTS)
    assert f"{len(PROMPTS)} of {len(PROMPTS)} replies of {server.url} are empty" in capsys.readouterr().err


def test_a_server_that_repeats_nothing_is_said_to(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a rerun has the same records all the same."""
    with serving(VLLM("seed")) as server:
        first, _ = written(trained, tmp_path / "a", server.url, begin="<s>")
        assert "does not repeat a reply for a seed" in capsys.readouterr().err
        again, _ = written(trained, tmp_path / "b", server.url, begin="<s>")
    assert first == again
    with serving(VLLM("finish_reason")) as server:  # counts its tokens
        said, _ = written(trained, tmp_path / "c", server.url, begin="<s>")
    assert {CUT, ENDED} == set(said.finish)


def dying(handler: Any) -> None:
    """In the middle of a reply."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"text": "')


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (dying, "gave no reply in 2 attempts"),
        ((500, b""), "HTTP 500"),
        (lambda handler: time.sleep(1), "last: timeout"),
        ((200, b"<html>garbage"), "no completion"),
        ((200, b'{"choices": [{"text": 5}]}'), "ignores finish_reason"),
    ],
    ids=["stops in the middle", "broken", "slow", "garbage", "other garbage"],
)
def test_nothing_that_was_received_is_lost(trained: Trained, tmp_path: Path, trouble: Any, words: str) -> None:
    """A server that goes bad after ten replies, and is mended."""
    bad, good = True, VLLM()
    behave: Callable[[int, dict[str, Any]], Any] = lambda n, body: trouble if bad and n >= 10 else good(n, body)  # noqa: E731
    options: dict[str, Any] = {"begin": "<s>", "attempts": 2, "timeout": 0.5}
    with serving(behave) as server:
        with pytest.raises(UserError, match=words):
            written(trained, tmp_path, server.url, **options)
        assert len(server.bodies) <= 10 + 2 * 3
        bad = False
        server.bodies.clear()
        said, _ = written(trained, tmp_path, server.url, **options)
        assert len(server.bodies) == len(PROMPTS) + 3 - 10
    with serving(good) as other:
        undisturbed, _ = written(trained, tmp_path / "b", other.url, **options)
    assert said == undisturbed


def test_a_server_that_is_down(trained: Trained, tmp_path: Path) -> None:
    with serving(VLLM()) as server:
        pass
    with pytest.raises(UserError, match=r"recipe.backend.url=.*gave no reply in 2 attempts \(the last: ConnectError"):
        written(trained, tmp_path, server.url, begin="<s>", attempts=2)


SERVER = ["recipe/backend=openai", "recipe.backend.model=m"]


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (None, r"recipe.backend.url=\S+: gave no reply in 1 attempts"),
        (VLLM(model="gpt-2"), "recipe.backend.model=m: the server answers as gpt-2"),
    ],
)
def test_a_server_is_tried_before_round_0_is_trained(
    project: Path, tiny: list[str], tmp_path: Path, server: Any, words: str
) -> None:
    from genloss.core.rundir import RunDir
    from genloss.core.store import Store
    from genloss.experiment import Experiment
    from genloss.loop import Loop

    def run(url: str) -> None:
        of = [f"recipe.backend.url={url}", "recipe.backend.attempts=1", "recipe.prompts=real"]
        x = Experiment(compose([*tiny, *SERVER, *of]))
        with pytest.raises(UserError, match=words):
            Loop(x, RunDir(tmp_path / "run", Store(project / ".genloss/store"))).run()

    with serving(server or VLLM()) as there:
        if server:
            run(there.url)
    if server is None:
        run(there.url)
    assert (tmp_path / "run/data").is_dir() and not (tmp_path / "run/rounds/00/model").exists()


def test_a_budget_of_a_backend(trained: Trained, tmp_path: Path) -> None:
    with serving(VLLM()) as server:
        limited = Budget(round=Limits(requests=9))
        with pytest.raises(UserError, match=r"recipe.backend.budget.round.requests=9: is spent"):
            written(trained, tmp_path, server.url, begin="<s>", budget=limited)
        assert len(server.bodies) == 9
        written(trained, tmp_path, server.url, begin="<s>")
        assert len(server.bodies) == len(PROMPTS) + 3


TAUGHT = [
    *("domain=reasoning", "domain/tasks=arithmetic", "domain.context=48", "recipe=llm2llm", "mixing=accumulate"),
    *("recipe/teacher=model", "recipe.teacher.path=nowhere", "recipe/backend@recipe.teacher.backend=openai"),
    "recipe.teacher.backend.model=m",
]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*SERVER], "recipe.prompts=none: leaves a server nothing to go on from"),
        ([*SERVER, "recipe.prompts=real", "recipe.bias=0.5"], "recipe.bias=0.5: is no option"),
        ([*SERVER, "recipe.prompts=real", "recipe.repetition_penalty=1.1"], "recipe.repetition_penalty=1.1: is no"),
        ([*SERVER, "recipe.prompts=real", "recipe.backend.api=chatt"], "did you mean chat?"),
        ([*SERVER, "recipe.backend.url=https://u:hush@h"], "recipe.backend.url: must be without a secret"),
        (["recipe/backend=openai", "recipe.prompts=real"], r"recipe.backend.model"),
        (
            [*SERVER, "recipe.prompts=real", "+recipe.backend.options.seed=3"],
            r"recipe.backend.options.seed=3: must be absent",
        ),
        (TAUGHT, "recipe.teacher.backend=OpenAI: is another model, .* use recipe/teacher=endpoint"),
    ],
)
def test_bad_backends(overrides: list[str], words: str) -> None:
    from genloss.experiment import Experiment

    with pytest.raises(UserError, match=words) as refused:
        Experiment(compose(overrides))
    assert "hush" not in str(refused.value)


def test_a_saved_teacher_is_one_that_its_backend_has(trained: Trained) -> None:
    from genloss.experiment import Experiment

    asked = [*TAUGHT[:-3], f"recipe.teacher.path={trained.models['gpt2']}"]
    with pytest.raises(UserError, match=r"recipe\.teacher\.backend\.kernel=fused: is for Llama.* a GPT2LMHeadModel"):
        Experiment(compose([*asked, "recipe.teacher.backend.kernel=fused"]))


# -- openai: the server of transformers --------------------------------------------------------------------------------


@contextlib.contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """`transformers serve` of a saved model on the CPU, one request at a time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        child = subprocess.Popen(
            [*command, *where], stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        until = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                break
            assert child.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait()


def alike(one: list[str], other: list[str]) -> float:
    """p of a chi-square test that two samples are of one distribution; what is rare is counted together."""
    kinds, counts = np.unique(one + other, return_counts=True)
    common = list(kinds[counts >= 12])
    table = [[sample.count(kind) for kind in common] for sample in (one, other)]
    table = [[*row, len(sample) - sum(row)] for row, sample in zip(table, (one, other), strict=True)]
    return float(chi2_contingency(np.array(table)[:, np.sum(table, axis=0) > 0]).pvalue)


def test_the_server_of_transformers(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of ours behind it writes what it writes here: greedy the same, sampled from one distribution."""
    with transformers_serve(trained.llama, tmp_path / "log") as url:
        options: dict[str, Any] = {"url": url, "model": str(trained.llama), "begin": "<|endoftext|>"}
        marked = [f"<|endoftext|>{prompt}" for prompt in PROMPTS[:4]]

        def here(n: int, decoding: Decoding, prompts: list[str]) -> list[str]:
            return Torch().of(trained.llama, trained.data).respond(prompts * n, decoding, seed=1).texts

        def there(n: int, decoding: Decoding, prompts: list[str], **more: Any) -> list[str]:
            backend = OpenAI(**options, **more)
            return backend.of(trained.llama, trained.data, Runtime(1)).respond(prompts * n, decoding, seed=2).texts

        greedy = Decoding(20, bias=0.0)
        expected = here(1, greedy, PROMPTS[:4])
        said = there(1, Decoding(44, bias=0.0), marked, max_tokens=20)
        assert [text[: len(e)] for text, e in zip(said, expected, strict=True)] == expected
        few = Decoding(3)
        assert alike(here(300, few, [""]), there(300, few, [""])) > 0.001
        with pytest.raises(UserError, match="the server ignores logprobs"):
            there(1, Decoding(20, logprobs=True), ["The"])
        with pytest.raises(UserError, match=r"HTTP 422 \(Unexpected fields in the request: {'top_k'}\)"):
            there(1, Decoding(20, top_k=3), ["The"])
        with pytest.raises(UserError, match=r"HTTP 400 .*pinned to"):
            OpenAI(**options | {"model": "other/model"}).of(trained.llama, trained.data).respond(["The"], few)
    with pytest.raises(UserError, match="ConnectError"):
        there(1, few, ["gone"], attempts=1)
