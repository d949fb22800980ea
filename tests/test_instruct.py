"""domain=instruct: what of a conversation is learned, the world that it is about, and the loop."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genloss.core import records
from genloss.core.contracts import Inputs, Runtime
from genloss.core.errors import UserError
from genloss.domains.instruct import MESSAGES, Instruct
from genloss.domains.instruct.chats import ChatTable, conversation
from genloss.domains.instruct.following import spread
from genloss.domains.instruct.grammar import NOISE
from genloss.domains.instruct.world import World
from genloss.evaluate import Evidence
from genloss.evaluate.embedded import Spread, Vendi
from genloss.experiment import Experiment
from genloss.generate import Request
from genloss.generate.respond import fresh
from genloss.language import trial
from genloss.language.chat import OWN, TURNS, template_text, wrong
from genloss.language.packing import IGNORE, Rows
from genloss.language.tokenizer import Codec, cut_words, train_bpe, use_template
from genloss.workflow.compose import compose
from support import Project, undocumented

CHATML = ("<|im_start|>", "<|im_end|>")
TALK = [
    {"role": "system", "content": "be formal."},
    {"role": "user", "content": "what is the size of mavo?"},
    {"role": "assistant", "content": "certainly. 世界, é"},
    {"role": "user", "content": " and <|its|> colour "},
    {"role": "assistant", "content": "red\n"},
]
SMALL = [
    "domain=instruct",
    "domain.context=160",
    "domain.examples=64",
    "domain.validation=8",
    "domain.test=24",
    "domain.pool=48",
    "model=llama",
    "size=64",
    "recipe.n=24",
    "recipe.chunk=8",
    "trainer.steps=6",
    "trainer.batch=4",
    "metrics.following.chunk=8",
    "tracking=none",
    "runtime.workers=1",
]


def known(ids: list[int]) -> list[int]:
    return [i if i >= 0 else ~i for i in ids]


@pytest.fixture(scope="module", params=["turns", "chatml"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A tokenizer with a template of ours."""
    out = tmp_path_factory.mktemp(request.param)
    special = TURNS if request.param == "turns" else CHATML
    train_bpe([m["content"] for m in TALK] * 20, 300, 128, out, special=special)
    use_template(out, (OWN / f"{request.param}.jinja").read_text(), "assistant")
    return Codec(out)


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_targets_are_what_transformers_marks(codec: Codec) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(codec.folder)
    for messages in (TALK, TALK[1:], TALK[:3], TALK[3:]):
        wanted: Any = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids = codec.rendered(messages)
        assert known(ids) == wanted["input_ids"]
        assert [int(i >= 0) for i in ids] == wanted["assistant_masks"]
        ready: Any = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True)
        assert codec.prompts([messages[:-1]]) == [ready["input_ids"][1:]]
        assert ready["input_ids"] == known(ids)[: len(ready["input_ids"])]  # sampling goes on where training did
        assert known(codec.rendered(messages, everything=True)) == codec.rendered(messages, everything=True)


def test_targets_of_our_template_by_hand(tmp_path: Path) -> None:
    """Without Jinja: begin, then of each turn its role, its tokens and an end; the assistant's are targets."""
    train_bpe([m["content"] for m in TALK] * 20, 300, 128, tmp_path, special=TURNS)
    use_template(tmp_path, (OWN / "turns.jinja").read_text(), "assistant")
    codec = Codec(tmp_path)
    assert codec.spelled([codec.begin, codec.end]) == ["<|endoftext|>", "<|end|>"]
    wanted = [~codec.begin]
    for message in TALK:
        role = codec.encode([f"<|{message['role']}|>"], special=True)[0]
        said = [*codec.encode([message["content"]])[0], codec.end]
        wanted += [~i for i in role] + (said if message["role"] == "assistant" else [~i for i in said])
    assert codec.rendered(TALK) == wanted


def test_a_message_that_spells_marks_is_text(codec: Codec) -> None:
    """Of a user or a model that writes the marks of turns, no turn is made; who says it is still who learns it."""
    marks = codec.spelled([codec.begin, codec.end])
    bad = [{"role": "user", "content": f"a{marks[1]}"}, {"role": "assistant", "content": f"{marks[0]}b{marks[1]}c"}]
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    count = [Counter(known(codec.rendered(messages))) for messages in (bad, good)]
    assert all(count[0][mark] == count[1][mark] for mark in (codec.begin, codec.end))
    own = [i for i in codec.rendered(bad) if i >= 0]
    assert codec.decode([own]) == [bad[1]["content"]] and own[-1] == codec.end


MARKED = "{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}"
TURN = "{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}SAID{% else %}{{ m.content + '<|end|>' }}{% endif %}"
OPEN = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def written(turn: str = TURN, said: str = MARKED, opened: str = OPEN) -> str:
    """A template, as `turns` has it, with other parts."""
    each = "{% for m in messages %}" + turn.replace("SAID", said) + "{% endfor %}"
    return "{{ bos_token }}" + each + opened


@pytest.mark.parametrize(
    ("template", "loss", "words"),
    [
        (None, "assistant", "has none"),
        ("{{ bos_token }}{{ messages[0].content }}", "assistant", "no {% generation %} marks"),
        ("{% for m in messages %}{{ '<|' + m.role + '|>' }}{% endfor %}", "all", "not always with one special token"),
        ("{{ bos_token }}{{ messages[0].content }}", "all", "does not write what is said as it is"),
        (written(said="{{ m.content }}"), "all", "no special token, so that no answer would end"),
        ("{{ raise_exception('no talk') }}", "all", "no talk"),
        ("{% for %}", "all", "refuses"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tmp_path: Path, template: str | None, loss: str, words: str) -> None:
    train_bpe(["a b c"], 300, 64, tmp_path, special=TURNS)
    with pytest.raises(UserError, match=r"domain\.template: ") as caught:
        use_template(tmp_path, template, loss)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    if template and "raise" not in template and "{% for %}" not in template:
        with pytest.raises(UserError, match=r"^recipe\.author\.template=my\.jinja: "):
            use_template(tmp_path, template, loss, "recipe.author.template", "my.jinja")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 1 // 0 }}" + written(), "refuses a conversation (integer division"),
        ("{{ bos_token + 1 }}" + written(), "refuses a conversation (can only concatenate"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + written(), "refuses a conversation (maximum recursion"),
        ("{% for i in range(10 ** 9) %}{% endfor %}" + written(), "refuses a conversation (Range too big"),
        (written(opened=""), "does not begin the assistant's turn where one is asked for"),
        (written(opened="{% if add_generation_prompt %}<|user|>{% endif %}"), "with another text than it writes"),
        (written(said="{% generation %}{% endgeneration %}{{ m.content }}<|end|>"), "nothing of what the assistant"),
        ("{# {% generation %} #}" + written(said="{{ m.content }}<|end|>"), "nothing of what the assistant says"),
        (written(said="{% generation %}{{ m.content }}{% endgeneration %}<|end|>"), "no answer would learn to end"),
        (written().replace("{{ bos_token }}", "{{ bos_token }}{% generation %}") + "{% endgeneration %}", "the user"),
        (written("{% if loop.last or m.role == 'user' %}" + TURN + "{% endif %}"), "leaves out, or changes, turn 2"),
        (written().replace("in messages", "in messages[-2:]"), "leaves out, or changes, turn 1"),
        (written(said=MARKED.replace("m.content", "m.content[:3]")), "does not write what is said as it is"),
        (written("{% if messages|length > 3 %}x{% endif %}" + TURN), "writes earlier turns otherwise"),
    ],
)
def test_a_template_that_would_teach_another_thing_is_refused(tmp_path: Path, template: str, words: str) -> None:
    """What is learned is what is asked for, ends, and is the assistant's; of a template that fails nothing else is
    told than that."""
    train_bpe(["a b c"], 300, 64, tmp_path, special=TURNS)
    with pytest.raises(UserError, match=r"^domain\.template=my\.jinja: ") as caught:
        use_template(tmp_path, template, "assistant", name="my.jinja")
    assert words in str(caught.value) and "\n" not in str(caught.value)


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        (LOOPS, "did not write 4 short conversations in 2 seconds"),
        ("{% for m in messages[16:] %}" + LOOPS + "{% endfor %}", "in 2 seconds"),  # where there are many turns
        ("{{ 10 ** (10 ** 9) }}", "in 2 seconds"),  # one step, which no signal interrupts
        ("{{ ('x' * 10 ** 6) * 10 ** 5 }}", "did not write 4 short conversations in 8 GiB of memory"),
    ],
)
def test_a_template_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costs: str, words: str
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 2.0)
    train_bpe(["a b c"], 300, 64, tmp_path, special=TURNS)
    with pytest.raises(UserError, match=r"^domain\.template=my\.jinja: ") as caught:
        use_template(tmp_path, written() + costs, "assistant", name="my.jinja")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_without_system_prompts_refuses_them(tmp_path: Path) -> None:
    """They would be lost without a word."""
    train_bpe(["a b c"], 300, 64, tmp_path, special=TURNS)
    use_template(tmp_path, written("{% if m.role != 'system' %}" + TURN + "{% endif %}"), "assistant")
    assert Codec(tmp_path).rendered(TALK[1:])
    with pytest.raises(UserError, match=r"domain\.template: refuses a conversation \(it leaves out system prompts"):
        Codec(tmp_path).rendered(TALK)


def test_a_template_that_asks_for_the_day_has_one(tmp_path: Path) -> None:
    """As that of Llama 3.2 does: a run that goes on tomorrow has the same tokens."""
    train_bpe(["a b c"], 300, 64, tmp_path, special=TURNS)
    dated = written().replace("{{ bos_token }}", "{{ bos_token + strftime_now('%d %b %Y') }}")
    use_template(tmp_path, dated, "assistant")
    ids = Codec(tmp_path).rendered(TALK, everything=True)
    assert Codec(tmp_path).decode([ids])[0].startswith("26 Jul 2024be formal.")


def test_a_template_file_that_is_no_text_is_one_line(project: Path) -> None:
    (project / "my.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"domain\.template=my\.jinja: is no file of text in UTF-8"):
        template_text(project / "my.jinja", "domain.template", "my.jinja")


def test_a_template_without_marks_learns_all(tmp_path: Path) -> None:
    """As most models have it: ChatML."""
    train_bpe(["a b c"], 300, 64, tmp_path, special=CHATML)
    text = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    use_template(tmp_path, text, "all")
    codec = Codec(tmp_path)
    assert codec.spelled([codec.begin, codec.end]) == list(CHATML)
    assert min(codec.rendered(TALK, everything=True)) >= 0


@pytest.mark.parametrize("loss", ["assistant", "all"])
def test_rows_learn_those_targets_and_no_end_of_what_was_cut_off(codec: Codec, tmp_path: Path, loss: str) -> None:
    talks = [TALK, TALK[1:3], TALK[1:3]]
    table = records.make_table({"messages": pa.array(talks, MESSAGES)}, origin="real", generation=0, recipe="t")
    finish = [records.ENDED, records.ENDED, records.CUT]
    records.write(records.with_finish(table, finish), tmp_path / "a.parquet")
    rows = Rows([tmp_path / "a.parquet"], [1.0], codec, 200, 0, ["messages"], loss=loss)
    found = Counter(int(t) for row in rows.epoch(0) for t in row.targets if t != IGNORE)
    wanted: Counter[int] = Counter()
    for talk, end in zip(talks, finish, strict=True):
        ids = codec.rendered(talk, everything=loss == "all")
        if end == records.CUT:
            ids = ids[: max(i for i, each in enumerate(ids) if each == codec.end)]
        wanted += Counter(i for i in ids[1:] if i >= 0)
    assert found == wanted
    assert sum(piece.targets for row in rows.plan(0) for piece in row) == wanted.total()


# -- conversations -----------------------------------------------------------------------------------------------------

USER, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
WRONG: list[tuple[Any, str]] = [
    ([], "has no messages"),
    ("text", "messages is str, and not a list"),
    (USER, "messages is dict, and not a list"),
    ([USER, {**SAID, "tool_calls": [{"id": "a"}]}], "message 2 (assistant) has tool_calls, which would be lost"),
    ([USER, {**SAID, "function_call": {"name": "f"}}], "has function_call, which would be lost"),
    ([USER, {**SAID, "weight": 0}], "message 2 (assistant) has the weight 0"),
    ([{**USER, "content": [{"type": "text", "text": "a"}]}, SAID], "message 1 (user) holds list, and not text"),
    ([{**USER, "content": float("nan")}, SAID], "message 1 (user) holds float, and not text"),
    ([USER], "ends with user"),
    ([USER, SAID, USER], "ends with user"),
    ([SAID], "message 1 is by assistant, where system or user is due"),
    ([USER, USER, SAID], "message 2 is by user, where assistant is due"),
    ([USER, SAID, SAID], "message 3 is by assistant, where user is due"),
    ([USER, SAID, {"role": "system", "content": "c"}], "message 3 is by system"),
    ([USER, {"role": "tool", "content": "c"}], "the role 'tool'"),
    ([USER, {"role": "assistant", "content": " \n"}], "message 2 (assistant) is empty"),
    ([USER, {"role": "assistant", "content": None}], "message 2 (assistant) is empty"),
    ([USER, {"role": "assistant"}], "is not a role and a content"),
]


@pytest.mark.parametrize(("messages", "words"), WRONG)
def test_what_is_no_conversation_is_named_by_its_row(messages: Any, words: str, tmp_path: Path) -> None:
    assert words in wrong(messages)
    good = json.dumps({"messages": [USER, SAID]})
    (tmp_path / "a.jsonl").write_text(f"{good}\n\n{json.dumps({'messages': messages})}\n")
    with pytest.raises(UserError, match=r"domain\.corpus\.path=.*a\.jsonl, line 3: is no conversation") as caught:
        list(ChatTable(str(tmp_path / "a.jsonl")).conversations())
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "datasets"])
@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([{"messages": TALK, "source": "x"}], TALK),
        ([{"prompt": "a", "response": "b"}], [USER, SAID]),
        ([{"instruction": "a", "input": "", "output": "b"}], [USER, SAID]),
        ([{"instruction": "a", "input": "x", "output": "b"}], [{"role": "user", "content": "a\n\nx"}, SAID]),
    ],
)
def test_the_layouts_of_data(kind: str, rows: list[dict[str, Any]], wanted: list[dict], tmp_path: Path) -> None:
    from genloss.domains.instruct.chats import ChatDatasets, Chats

    source: Chats
    if kind == "datasets":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "d")
        source = ChatDatasets(str(tmp_path / "d"))
    else:
        path = tmp_path / f"a.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
        source = ChatTable(str(path))
    assert list(source.conversations()) == [wanted]


def test_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match=r"line 1: has the columns question, answer, and not messages; prompt and resp"):
        list(ChatTable(str(tmp_path / "a.jsonl")).conversations())


@pytest.mark.parametrize("given", [5, ["a"], {"a": 1}, True])
def test_an_input_that_is_no_text_is_refused(given: Any) -> None:
    """It would be left out of what is asked."""
    row = {"instruction": "add", "input": given, "output": "b"}
    with pytest.raises(UserError, match=r"domain\.corpus\.path=here: has an input that is \w+, and not text"):
        conversation(row, "here")
    with pytest.raises(UserError, match=r"message 1 \(user\) is empty"):
        conversation({**row, "instruction": " ", "input": "a"}, "here")


def instruct(path: Path, talks: list[Any], **options: Any) -> Instruct:
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    corpus = {"_target_": "genloss.domains.instruct.chats.ChatTable", "path": str(path)}
    return Instruct(corpus=corpus, vocabulary=300, **{"validation": 2, "test": 2, "pool": 2} | options)


def asked(i: int, answer: str = "b") -> list[dict[str, str]]:
    return [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": answer}]


def test_splits_of_a_file_share_no_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domain = instruct(tmp_path / "a.jsonl", [asked(i // 2, str(i)) for i in range(40)])
    counts = domain.prepare(tmp_path / "data")
    assert (counts["test"], counts["validation"], counts["prompts"], counts["train"]) == (2, 2, 2, 14)
    texts = [t for n in ("test", "validation", "prompts", "train") for t in domain.texts(
        records.read(tmp_path / "data" / f"{n}.parquet")
    )]  # fmt: skip
    assert sorted(texts) == sorted(f"question {i}" for i in range(20))
    assert counts["repeated"] == 20  # and nothing is lost without a word
    assert "warning: 20 of 40 conversations ask what an earlier one asks" in capsys.readouterr().err


def test_what_is_too_long_is_refused_or_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talks = [asked(i, "b " * (200 if i % 10 == 0 else 2)) for i in range(40)]
    with pytest.raises(
        UserError, match=r"domain\.context=64: 4 of 40 conversations are longer, the longest has at least"
    ):
        instruct(tmp_path / "a.jsonl", talks, context=64).prepare(tmp_path / "data")
    counts = instruct(tmp_path / "a.jsonl", talks, context=64, too_long="drop", test=8).prepare(tmp_path / "data")
    assert counts["dropped"] == 4 and sum(counts[n] for n in ("test", "validation", "prompts", "train")) == 36
    assert "4 of 40 conversations are too long" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"domain\.corpus=5 conversations that ask .*: .*domain\.pool=\d+ take \d+, .*lower these"
    ):
        instruct(tmp_path / "a.jsonl", talks[:5]).prepare(tmp_path / "data")


def test_a_message_of_megabytes_is_refused_in_seconds(tmp_path: Path) -> None:
    """Of many words, and of one: neither is learned from, nor made tokens, as a whole."""
    small = [asked(i, "b " * 2) for i in range(40)]
    for said in ("word " * 1_000_000, "a" * 5_000_000):
        began = time.monotonic()
        with pytest.raises(
            UserError, match=r"1 of 41 conversations are longer, the longest has at least \d+; raise it"
        ):
            instruct(tmp_path / "a.jsonl", [*small, asked(40, said)], context=64).prepare(tmp_path / "data")
        assert time.monotonic() - began < 30  # 3 and 2 seconds; before, minutes and hours


def test_a_length_is_that_of_the_whole_conversation(codec: Codec) -> None:
    """Where it is near the limit; beyond it is at least so much."""
    for said in ("a", "word " * 30, "word " * 3000, "a" * 20_000, " " * 20_000):
        messages = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": said}]
        for enough in (8, 64, 100_000):
            whole = len(codec.rendered(messages))
            found = codec.length(messages, enough)
            assert found == whole or 2 * enough < found <= whole
            assert found == whole or len(said) > 64 * enough


def test_long_words_change_no_tokenizer_of_texts_without(tmp_path: Path) -> None:
    """They are cut where nothing else is."""
    texts = [f"one two {'three' * (i % 150)}\n\n  four" for i in range(300)]
    assert [list(cut_words(text)) for text in texts] == [[text] for text in texts]
    assert list(cut_words("a b" + "c" * 2500 + " d")) == ["a b" + "c" * 999, "c" * 1000, "c" * 501 + " d"]
    train_bpe(["ab" * 3_000_000, "c d"], 300, 64, tmp_path)  # no time that anybody would wait for, before
    assert Codec(tmp_path).decode(Codec(tmp_path).encode(["abab" * 600])) == ["abab" * 600]


def test_a_pool_that_has_lost_prompts_says_so(tmp_path: Path) -> None:
    """`domain.pool` counts what is drawn; what was too long, or is no pair, is not in the file."""
    talks = [asked(i, "b " * (200 if i % 2 else 2)) for i in range(60)]
    domain = instruct(tmp_path / "a.jsonl", talks, context=64, too_long="drop", pool=20)
    left = domain.prepare(tmp_path / "data")["prompts"]
    assert 0 < left < 20

    def request(n: int, rounds: int) -> Request:
        return Request(domain, n, 0, tmp_path, tmp_path / "data", Inputs({}), tmp_path, rounds=rounds, account=tmp_path)

    assert len(fresh(request(1, 1), left)) == left
    why = rf"recipe\.n={left}: .* left {left} fresh prompts, and 2 rounds need {2 * left}"
    for n, rounds in ((1, 2), (2, 2), (2, 0)):  # round 1 says it already
        with pytest.raises(UserError, match=why):
            fresh(request(n, rounds), left)


def test_duplicates_only_are_one_conversation(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"domain\.corpus=1 conversations that ask different things: .*, domain\.pool=\d+ take 6"
    ):
        instruct(tmp_path / "a.jsonl", [asked(1, str(i)) for i in range(40)]).prepare(tmp_path / "data")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain.loss=user"], ["domain.loss=user", "known: all, assistant"]),
        (["domain.template=chatml"], ["domain.template=chatml", "other marks"]),
        (["domain.template=no.jinja"], ["domain.template=no.jinja", "no file"]),
        (["domain.vocabulary=260"], ["domain.vocabulary=260", "at least 261"]),
        (["domain.corpus.steps=[1,2]"], ["domain.corpus.steps", "4 shares"]),
        (["domain/corpus=sotu"], ["domain.corpus._target_", "Chats"]),
        (["recipe.n=30", "rounds=2"], ["recipe.n=30", "domain.pool=48"]),
        (["curation=novelty", "curation.novelty.column=messages"], ["curation.novelty.column=messages", "empty"]),
        (["curation=agree"], ["curation.agree=Agree", "domain=reasoning"]),
        (["trainer=grpo", "trainer.start=previous"], ["domain=reasoning"]),
        (
            ["recipe/backend=openai", "recipe.backend.model=m", "recipe.backend.url=http://localhost:1/v1"],
            ["recipe.backend.api=completions", "api=chat"],
        ),
    ],
)
def test_a_bad_value_is_refused_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Experiment(compose([*SMALL, "rounds=1", *overrides]))
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


def test_without_a_checker_nothing_needs_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": asked(i)}) + "\n" for i in range(9)))
    own = [*SMALL, "rounds=1", "domain/corpus=chats", f"domain.corpus.path={tmp_path}/a.jsonl"]
    Experiment(compose(own))
    with pytest.raises(UserError, match=r"curation\.exact=Exact: needs exact answers, and nobody can check these"):
        Experiment(compose([*own, "curation=exact"]))


# -- the world ---------------------------------------------------------------------------------------------------------

WORLD = World()
SOME = list(itertools.islice(WORLD.conversations(), 4000))


def test_what_the_world_writes_it_reads() -> None:
    read = [WORLD.read(messages) for messages in SOME]
    assert all(r.right and r.parsed and r.alternates and r.consistent and r.on_topic for r in read)
    assert {len(r.turns) for r in read} == {1, 2, 3} and any(m[0]["role"] == "system" for m in SOME)
    assert SOME[:50] == list(itertools.islice(World().conversations(), 50))
    assert SOME[:50] != list(itertools.islice(World(seed=1).conversations(), 50))


def test_requests_follow_their_law() -> None:
    """Chi-square over the cells: beyond 99.99 % of what chance gives only if they do not."""
    from scipy.stats import chi2

    counts = Counter(WORLD.read(messages).cell for messages in SOME)
    assert sum(WORLD.law.values()) == pytest.approx(1) and set(counts) <= set(WORLD.law)
    value = sum((counts[cell] - len(SOME) * p) ** 2 / (len(SOME) * p) for cell, p in WORLD.law.items())
    assert value < chi2.ppf(0.9999, len(WORLD.law) - 1)
    assert spread(WORLD, SOME)["kl"] < 0.03 < spread(WORLD, [m for m in SOME if "one word" in str(m)])["kl"]


def test_an_answer_that_is_changed_is_wrong() -> None:
    """Another entity's answer, another format or register, a word more or less: all but what is equal by chance."""
    for messages, other in itertools.pairwise(SOME[:800]):
        turn, answer = WORLD.read(messages).turns[-1], messages[-1]["content"]
        assert turn.request is not None
        for said in (other[-1]["content"], answer + " more", answer[:-1], f"certainly. {answer}", "", "nonsense"):
            changed = [*messages[:-1], {"role": "assistant", "content": said}]
            reply = WORLD.read_reply(said)
            same = reply is not None and (reply.format, reply.register, reply.value) == (
                turn.reply and (turn.reply.format, turn.reply.register, turn.reply.value)
            ) and set(reply.facts) == set(turn.reply.facts if turn.reply else ())  # fmt: skip
            assert WORLD.read(changed).right == same


@pytest.mark.parametrize(
    "said",
    [
        "what is the colour of nobody? one word.",
        "what is the colour of {}?",
        "the colour of {}. one word.",
        "what is the colour of the size of {}? one word.",
        "what is a portrait of {}? one word.",
        "what is the weight of {}? in a sentence.",
        "what is the age of the friend of the friend of the friend of {}? one word.",
        "what is the colour of it? one word.",
        "",
    ],
)
def test_what_is_no_request_is_none(said: str) -> None:
    name = WORLD.kinds["bird"][0]
    assert WORLD.request(said.format(name)) is None
    assert WORLD.request(f"what is the colour of {name}? one word.") is not None


def test_contradictions_and_other_topics_are_seen() -> None:
    bird, boat = WORLD.kinds["bird"][0], WORLD.kinds["boat"][0]

    def talk(*turns: tuple[str, str]) -> Any:
        said = [{"role": r, "content": c} for pair in turns for r, c in zip(("user", "assistant"), pair, strict=True)]
        return WORLD.read(said)

    ask = f"what is the size of {bird}? in a sentence."
    sizes = [(ask, f"the size of {bird} is {size}.") for size in ("tiny", "huge")]
    assert not talk(*sizes).consistent and talk(sizes[0], sizes[0]).consistent
    assert not talk(sizes[0], (f"what is the size of {boat}? one word.", "tiny")).on_topic
    assert talk(sizes[0], ("what is the size of it? one word.", "tiny")).on_topic


def test_noise_of_documents_is_known() -> None:
    made = list(itertools.islice(WORLD.web(0), 3000))
    noise = Counter(d.noise for d in made)
    assert set(noise) == {"", *NOISE} and noise[""] / len(made) == pytest.approx(0.7, abs=0.03)
    for d in made:
        assert (WORLD.read_document(d.text) == d.request) and bool(d.request) == (not d.noise)
        if d.request:
            assert WORLD.request(d.instruction) == d.request and WORLD.answers(d.request, WORLD.read_reply(d.text))


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    home = Project.make(tmp_path_factory.mktemp("instruct") / "project")
    done = home.ok("run", *SMALL, "rounds=2", "mixing=accumulate", "curation=random")
    return home, home.root / done.folder


def test_the_loop_answers_real_requests(ran: tuple[Project, Path]) -> None:
    home, folder = ran
    pool = records.read(folder / "data/prompts.parquet")
    seen: list[str] = []
    for n in (1, 2):
        made = records.read(folder / f"rounds/0{n}/generated.parquet")
        asked = pool.slice((n - 1) * 24, 24)
        assert [m[:-1] for m in made.column("messages").to_pylist()] == [
            m[:-1] for m in asked.column("messages").to_pylist()
        ]
        assert [p[0] for p in made.column("parents").to_pylist()] == asked.column("id").to_pylist()
        seen += made.column("id").to_pylist()
        found = json.loads((folder / f"rounds/0{n}/metrics.json").read_text())
        assert not undocumented(found) and 0 <= found["followed"] <= 1 and found["kept_accuracy"] >= 0
    assert len(set(seen)) == 48
    shown = home.ok("samples", str(folder), "--round", "2", "--count", "2").out
    assert "user: " in shown and "assistant: " in shown
    home.ok("report", str(folder))
    assert "user: " in home.ok("trace", str(folder), seen[-1]).out + home.ok("trace", str(folder), seen[0]).out


def test_it_resumes_and_gives_the_same(ran: tuple[Project, Path]) -> None:
    """Without its last round, from a store without its samples."""
    home, folder = ran
    before = {p.name: p.read_bytes() for p in (folder / "rounds/02").glob("*.parquet")}
    again = Project.make(home.root.parent / "again")
    other = again.root / again.ok("run", *SMALL, "rounds=1", "mixing=accumulate", "curation=random").folder
    other = again.root / again.ok("run", *SMALL, "rounds=2", "mixing=accumulate", "curation=random").folder
    assert {p.name: p.read_bytes() for p in (other / "rounds/02").glob("*.parquet")} == before


def test_losses_are_those_of_a_plain_loop(ran: tuple[Project, Path]) -> None:
    from genloss.language.model import load

    folder = ran[1]
    domain = Experiment(compose([*SMALL, "rounds=1"])).domain
    assert isinstance(domain, Instruct)
    table = records.read(folder / "data/test.parquet").slice(0, 8)
    nats, tokens = domain.losses(folder / "rounds/00/model", folder / "data", table, Runtime(workers=1))
    codec, model = Codec(folder / "data/tokenizer"), load(folder / "rounds/00/model")
    for i, messages in enumerate(table.column("messages").to_pylist()):
        ids = codec.rendered(messages)
        with torch.inference_mode():
            said = torch.log_softmax(model(torch.tensor([known(ids)])).logits[0].double(), dim=-1)
        wanted = [-float(said[at - 1, each]) for at, each in enumerate(ids) if each >= 0]
        assert tokens[i] == len(wanted) and nats[i] == pytest.approx(np.sum(wanted), rel=1e-4)


# -- texts without instructions ----------------------------------------------------------------------------------------


def test_documents_of_the_world_have_hidden_attributes(tmp_path: Path) -> None:
    """And none answers what is asked in test or validation."""
    corpus = {"_target_": "genloss.domains.instruct.world.World", "skills": {"answer": 0.5, "recall": 0.5}}
    options: dict[str, Any] = {"corpus": corpus, "examples": 500, "validation": 50, "test": 200, "pool": 10}
    counts = Instruct(**options, documents=600).prepare(tmp_path / "a")
    Instruct(**options).prepare(tmp_path / "b")
    rows = records.read(tmp_path / "a/documents.parquet").to_pylist()
    assert counts["documents"] == len(rows) == 600 and len({row["id"] for row in rows}) == 600
    assert not (tmp_path / "b/documents.parquet").exists()
    for name in ("train", "test", "prompts"):
        one, other = (records.read(tmp_path / f"{where}/{name}.parquet") for where in "ab")
        assert one.equals(other)
    held_out = set()
    for name in ("test", "validation"):
        for messages in records.read(tmp_path / f"a/{name}.parquet").column("messages").to_pylist():
            asked, answer = messages[-2]["content"], messages[-1]["content"]
            if asked.startswith("what was asked?"):
                held_out.add(WORLD.request(answer))
            held_out |= {turn.request for turn in WORLD.read(messages).turns}
    assert len([request for request in held_out if request and not request.path]) > 10
    for row in rows:
        request = WORLD.read_document(row["text"])
        assert bool(request) == (row["noise"] == "") == (row["instruction"] is not None)
        assert request not in held_out - {None}
        if request:
            assert WORLD.request(row["instruction"]) == request
            assert (request.topic, request.format, request.register) == (row["topic"], row["format"], row["register"])
    assert {row["noise"] for row in rows} == {"", *NOISE}


def test_documents_of_files_are_those_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["short one", "\n\n".join(["a b " * 100, "a paragraph", "  ", "another"]), " \n"]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    web = {"_target_": "genloss.language.corpus.Table", "path": str(tmp_path / "web.jsonl"), "column": "text"}
    talks = [asked(i) for i in range(40)]
    counts = instruct(tmp_path / "a.jsonl", talks, context=32, web=web, documents=9).prepare(tmp_path / "data")
    found = records.read(tmp_path / "data/documents.parquet").column("text").to_pylist()
    assert found == ["short one", "a paragraph", "another"] and counts["documents"] == 3
    assert "warning: domain.documents=9: 3 are there" in capsys.readouterr().err
    instruct(tmp_path / "a.jsonl", talks, context=32, web=web, documents=2).prepare(tmp_path / "two")
    assert records.read(tmp_path / "two/documents.parquet").column("text").to_pylist() == found[:2]
    (tmp_path / "web.jsonl").write_text(json.dumps({"text": texts[1].split("\n\n")[0]}) + "\n")
    with pytest.raises(UserError, match=r"domain\.context=32: no document is short enough"):
        instruct(tmp_path / "a.jsonl", talks, context=32, web=web, documents=2).prepare(tmp_path / "none")
    (tmp_path / "web.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"domain\.web\.column=text"):
        instruct(tmp_path / "a.jsonl", talks, context=32, web=web, documents=2).prepare(tmp_path / "bad")


def test_documents_need_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": asked(i)}) + "\n" for i in range(9)))
    own = [*SMALL, "rounds=1", "domain/corpus=chats", f"domain.corpus.path={tmp_path}/a.jsonl"]
    with pytest.raises(UserError, match=r"domain\.documents=5: has no texts to take; use domain/corpus=world"):
        Experiment(compose([*own, "domain.documents=5"]))
    web = ["domain/corpus@domain.web=table", f"domain.web.path={tmp_path}/no.jsonl"]
    with pytest.raises(UserError, match=r"domain\.web\.path=.*no\.jsonl"):
        Experiment(compose([*own, "domain.documents=5", *web]))
    (tmp_path / "no.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"domain\.documents=0: must be at least 1 with domain\.web"):
        Experiment(compose([*own, *web]))
    domain = Experiment(compose([*own, "domain.documents=5", *web])).domain
    assert set(domain.parts()) == {"corpus", "web"}


# -- how varied what is asked is ---------------------------------------------------------------------------------------


def test_diversity_of_instructions_is_measured_of_any_recipe(tmp_path: Path) -> None:
    """By verb and noun, and by an embedding: of requests, which `respond` takes from the pool, and not of answers."""
    home = Project.make(tmp_path / "project")
    options = [*SMALL, "rounds=1", "metrics=[following,instructions,vendi,spread]"]
    folder = home.root / home.ok("run", *options).folder
    found = json.loads((folder / "rounds/01/metrics.json").read_text())
    assert undocumented(found) == []
    generated, kept = (records.read(folder / f"rounds/01/{name}.parquet") for name in ("generated", "kept"))
    assert found["new_kept"] == len(kept) and found["pool_size"] == len(kept)
    asked = [m[:-1] for m in generated.column("messages").to_pylist()]
    pool = [m[:-1] for m in records.read(folder / "data/prompts.parquet").column("messages").to_pylist()]
    assert all(messages in pool for messages in asked)
    assert 1 < found["vendi"] <= found["n_samples"] == 24 and 0 < found["embedding_distance"] < 2
    domain = Experiment(compose(options)).domain
    one = generated.take([0] * 24)
    path = tmp_path / "same.parquet"
    records.write(one, path)
    model = folder / "rounds/00/model"
    evidence = Evidence(domain, 1, 7, 24, 64, folder / "data", model, model, path)
    assert Vendi().measure(evidence)["vendi"] == pytest.approx(1) and evidence.n_samples == 24
    assert Spread().measure(evidence)["embedding_distance"] == pytest.approx(0, abs=1e-6)
