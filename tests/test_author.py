"""Models in a role, the words that they are told, and where their texts stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Trained
from genloss.backends.author import Author
from genloss.backends.ctranslate2 import CTranslate2
from genloss.backends.torch import Torch
from genloss.core.contracts import LAST, ROUND0, Decoding, Inputs, Prompt, Runtime
from genloss.core.errors import UserError
from genloss.core.prompts import Prompts
from genloss.core.records import CUT, ENDED
from genloss.curate import Context
from genloss.language.model import load
from genloss.language.tokenizer import load_codec
from support import Project, serving
from test_pretrained import SMOLLM2, needs_smollm2

PROMPTS = ["The old", "", "A quiet river", "The"] * 6


def work(trained: Trained, scratch: Path) -> Context:
    inputs = Inputs({LAST: (trained.llama,), ROUND0: (trained.gpt2,)})
    scratch.mkdir(exist_ok=True)
    return Context(trained.domain, 1, 3, trained.data, inputs, Runtime(2), scratch=scratch)


# -- where a text stops ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [Torch(), Torch("fused"), CTranslate2()], ids=["torch", "fused", "ctranslate2"])
def test_a_text_stops_before_what_it_must_not_write(trained: Trained, backend: Any) -> None:
    """The same text, cut: greedy, so that the backends agree, and sampled."""
    for bias in (0.0, 1.0):
        if bias and isinstance(backend, CTranslate2):
            continue  # records of a chunk share its stream
        of = backend.of(trained.llama, trained.data, Runtime(2))
        whole = of.respond(PROMPTS, Decoding(40, bias=bias, chunk=7), seed=3)
        short = of.respond(PROMPTS, Decoding(40, bias=bias, chunk=7, stop=["he", "\n", " a "]), seed=3)
        cut = [min((t.find(s) for s in ("he", "\n", " a ") if s in t), default=len(t)) for t in whole.texts]
        assert short.texts == [t[:n] for t, n in zip(whole.texts, cut, strict=True)]
        found = [n < len(t) for t, n in zip(whole.texts, cut, strict=True)]
        assert any(found)
        assert short.finish == [ENDED if f else w for f, w in zip(found, whole.finish, strict=True)]
        assert short.tokens <= whole.tokens


@pytest.mark.parametrize("backend", [Torch(), Torch("fused"), CTranslate2()], ids=["torch", "fused", "ctranslate2"])
def test_a_text_has_so_many_tokens_of_its_own(trained: Trained, backend: Any) -> None:
    of = backend.of(trained.llama, trained.data, Runtime(2))
    whole = of.respond(PROMPTS, Decoding(40, bias=0.0, chunk=7), seed=3)
    short = of.respond(PROMPTS, Decoding(40, bias=0.0, chunk=7, new_tokens=5), seed=3)
    codec = load_codec(trained.data / "tokenizer")
    assert CUT in short.finish and short.tokens <= 5 * len(PROMPTS)
    for long, text, finish in zip(whole.texts, short.texts, short.finish, strict=True):
        assert long.startswith(text.rstrip("\ufffd")) and (finish == CUT or text == long)
        assert len(codec.encode([text])[0]) <= 5


def test_a_server_stops_too(trained: Trained, tmp_path: Path) -> None:
    """It is sent what it has to stop at, and cut where it goes on all the same."""
    choice = {"message": {"role": "assistant", "content": "one\ntwo"}, "finish_reason": "length"}
    with serving(lambda number, body: (200, json.dumps({"choices": [choice]}).encode())) as server:
        options = {"model": "m", "url": server.url, "api": "chat"}
        author = Author(backend={"_target_": "genloss.backends.openai.OpenAI", **options}, new_tokens=9, bias=0)
        asked = [[{"role": "user", "content": "count"}]] * 2  # of a domain whose tokenizer has no template
        said = author.write(asked, work(trained, tmp_path), 64, seed=1, name="count", stop=["\n"])
    assert said.texts == ["one", "one"] and said.finish == [ENDED] * 2
    assert all(body["stop"] == ["\n"] and body["max_tokens"] == 9 for body in server.bodies)
    assert author.spent(work(trained, tmp_path))["requests"] == len(server.bodies)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": [""]}, "stop=.*none of which is empty"),
        ({"stop": "\n"}, "stop=.*a list of texts"),
        ({"stop": ["a"], "logprobs": True}, "logprobs=True: must be off"),
        ({"new_tokens": -1}, "new_tokens=-1"),
    ],
)
def test_bad_ends(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Decoding(40, **options)


# -- who writes --------------------------------------------------------------------------------------------------------


def test_an_author_is_a_model_of_the_run(trained: Trained, tmp_path: Path) -> None:
    for model, folder in ((LAST, trained.llama), (ROUND0, trained.gpt2)):
        author = Author(model=model, bias=0, max_tokens=24)
        said = author.write(PROMPTS, work(trained, tmp_path / model), 40, seed=1, name="a")
        greedy = Decoding(24, bias=0, chunk=64)
        assert said.texts == Torch().of(folder, trained.data, Runtime(1)).respond(PROMPTS, greedy).texts
        assert author.reads() == (model,) and author.fingerprint() == ""
        assert list((tmp_path / model / "a").iterdir()), "nothing was kept for a rerun"


def test_an_author_of_another_run(trained: Trained, project: Path, tmp_path: Path) -> None:
    """By its pattern; known by what its files hold, and not by its place."""
    run = project / "runs" / "backward-s0-abc"
    shutil.copytree(trained.llama, run / "rounds" / "00" / "model")
    shutil.copytree(trained.data / "tokenizer", run / "data" / "tokenizer")
    author = Author(model="runs/backward-s0-*/rounds/00/model", bias=0, max_tokens=24)
    said = author.write(PROMPTS, work(trained, tmp_path / "w"), 40, seed=1, name="a")
    assert (
        said.texts
        == Author(bias=0, max_tokens=24).write(PROMPTS, work(trained, tmp_path / "o"), 40, seed=1, name="a").texts
    )
    assert author.reads() == () and author.places() == ("model", "tokenizer")
    mark = author.fingerprint()
    shutil.move(run, run.with_name("backward-s0-def"))
    assert author.fingerprint() == mark
    with pytest.raises(UserError, match="no folder has this name"):
        Author(model="runs/none-*/rounds/00/model").fingerprint()


@needs_smollm2
def test_an_author_that_somebody_saved(trained: Trained, project: Path, tmp_path: Path) -> None:
    """With its own tokenizer and template, beside a run that has others."""
    author = Author(model=SMOLLM2, template="chatml", max_tokens=96, new_tokens=24, bias=0)
    question: Prompt = [{"role": "user", "content": "What is the capital of France? One word."}]
    asked = [question, "The capital of France is"]
    said = author.write(asked, work(trained, tmp_path / "w"), 40, seed=1, name="a", stop=["."])
    assert all("Paris" in text and "." not in text for text in said.texts)
    chances = author.choices(["2 + 2 ="], [" ", "x"], work(trained, tmp_path / "w"))
    assert chances[0, 0] > chances[0, 1]


def test_two_saved_authors_have_tokenizers_of_their_own(trained: Trained, project: Path, tmp_path: Path) -> None:
    """Those of one recipe share its scratch folder."""
    folders = []
    for name in ("one", "two"):
        shutil.copytree(trained.llama, project / name)
        shutil.copytree(trained.data / "tokenizer", project / name, dirs_exist_ok=True)
        folders.append(Author(model=name).at_work(work(trained, tmp_path / "scratch"))[1])
    assert len(set(folders)) == 2 and all((folder / "tokenizer").is_dir() for folder in folders)


def test_the_template_of_a_saved_author_is_tried_before_any_work(trained: Trained, tmp_path: Path) -> None:
    """Its own or another; of any plug-in, also one that is asked in a late round alone."""
    home = Project.make(tmp_path / "project")
    for name, template in (("mute", "{{ raise_exception('no talk') }}"), ("odd", "{{ bos_token }}hello")):
        shutil.copytree(trained.llama, home.root / name)
        shutil.copytree(trained.data / "tokenizer", home.root / name, dirs_exist_ok=True)
        (home.root / name / "chat_template.jinja").write_text(template)
    (home.root / "my.jinja").write_text("{% for %}")
    tiny = ["domain=instruct", "model=llama", "size=16", "rounds=1", "trainer.steps=1", "tracking=none"]
    judge = "curation.judge.author"
    for options, words in (
        (["recipe=evolve", "recipe.author.model=mute"], "recipe.author.template: refuses a conversation (no talk)"),
        (["recipe=evolve", "recipe.author.model=odd"], "recipe.author.template: does not write what is said as it is"),
        (
            ["recipe=evolve", "recipe.author.model=odd", "recipe.author.template=my.jinja"],
            "recipe.author.template=my.jinja: refuses a conversation",
        ),
        (
            ["recipe=respond", "recipe.samples=2", "curation=judge", f"{judge}.model=mute"],
            f"{judge}.template: refuses a conversation",
        ),
        (
            ["recipe=respond", "recipe.samples=2", "curation=judge", "rounds=2", f"+schedule.2.{judge}.model=mute"],
            f"{judge}.template: refuses a conversation",
        ),
    ):
        done = home.call("run", *tiny, *options)
        assert done.code == 2 and len(done.refusals) == 1, done.err
        assert done.refusals[0].startswith(f"genloss: {words}"), done.err
    assert not home.stages()


def test_probabilities_of_choices(trained: Trained, tmp_path: Path) -> None:
    """Of the first token of each, after prompts of several lengths: the library's own, one prompt at a time."""
    codec, model = load_codec(trained.data / "tokenizer"), load(trained.llama)
    prompts = [text * k for k, text in enumerate(PROMPTS, 1)][:9]
    found = Author().choices(prompts, ["a", "b", "1"], work(trained, tmp_path))
    first = [codec.encode([c])[0][0] for c in ("a", "b", "1")]
    for prompt, row in zip(prompts, found, strict=True):
        ids = torch.tensor([[codec.begin, *codec.encode([prompt])[0]]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, -1, : codec.size].double()
        np.testing.assert_allclose(row, torch.log_softmax(logits, 0)[first].numpy(), atol=1e-5)
    with pytest.raises(UserError, match="begin with the same token"):
        Author().choices(prompts, ["a", "a"], work(trained, tmp_path))


def test_bad_authors() -> None:
    with pytest.raises(UserError, match="template=chatml: must be empty where the author is no saved model"):
        Author(template="chatml")
    with pytest.raises(UserError, match="temperature=0"):
        Author(temperature=0)


# -- what it is told ---------------------------------------------------------------------------------------------------


def test_words_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("version: 1\nasked: 'Do $what for $$5.'\n")
    words = Prompts.read(file, {"asked": ("what",)})
    assert words.fill("asked", what="$HOME ${x}") == "Do $HOME ${x} for $5."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1\n", "exactly the keys version, asked"),
        ("version: 1\nasked: no place\n", "asked must have the places \\$what, and has none"),
        ("version: 1\nasked: $what $more\n", "and has more, what"),
        ("version: 1\nasked: $what for $5\n", "write \\$\\$ for a dollar"),
        ("version: x\nasked: $what\n", "is no file of prompts"),
        ("[", "is no file of prompts"),
    ],
)
def test_bad_words(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        Prompts.read(file, {"asked": ("what",)})
