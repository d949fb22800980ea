"""A chat endpoint's manners: what is sent, what is waited for, what is said of an error, and what may be spent."""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from genloss.backends.endpoint import Question, same_model
from genloss.backends.reply import NoReply, read, tokens_of, wait_of
from genloss.backends.spending import Budget, Ledger, Limits
from genloss.backends.thoughts import without_thoughts
from genloss.backends.wire import LARGEST
from genloss.core.errors import UserError
from genloss.systems.llm2llm.teachers.endpoint import Endpoint as Tutor
from support import Server, serving

ASKED = [{"role": "user", "content": "2+2?"}]
ANEW = itertools.count()  # no question is the one of before


def endpoint(server: Server, **options: Any) -> Tutor:
    given: dict[str, Any] = {"url": server.url, "model": "m", "pause": 0.0}
    return Tutor(**given | options)


def say(asked: Tutor, said: list[dict[str, str]] = ASKED) -> str:
    return asked.reply(asked.question(said, next(ANEW))).text


def many(asked: dict[int, list[dict[str, str]]]) -> list[tuple[int, Question]]:
    return [(number, Question({"messages": said}, next(ANEW))) for number, said in asked.items()]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("GENLOSS_STORE", str(tmp_path / "store"))


def error(status: int, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, content, {name.replace("_", "-"): value for name, value in headers.items()}


# -- what is sent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("http://h", "http://h/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions/", "http://h/v1/chat/completions"),
        ("https://h/d/x?api-version=2024", "https://h/d/x/chat/completions?api-version=2024"),
        ("https://h/d?design=sigma&max_tokens=9", "https://h/d/chat/completions?design=sigma&max_tokens=9"),
        ("https://h/d/chat/completions?api-version=2024#a", "https://h/d/chat/completions?api-version=2024"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert Tutor(url=url).address() == address


def test_null_is_not_sent() -> None:
    with serving(lambda number, body: "4") as server:
        assert say(endpoint(server, temperature=None, top_p=None, options={"seed": None})) == "4"
        say(endpoint(server))
    assert server.bodies[0] == {"model": "m", "messages": ASKED, "seed": None}
    assert (server.bodies[1]["temperature"], server.bodies[1]["top_p"]) == (1.0, 1.0)


def test_the_query_of_an_address_is_sent_as_it_is() -> None:
    with serving(lambda number, body: "4") as server:
        assert say(endpoint(server, url=f"{server.url}?api-version=2024-06-01&a=")) == "4"
    assert server.paths == ["/v1/chat/completions?api-version=2024-06-01&a="]


def test_a_key_that_is_a_word_stays_in_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    with serving(lambda number, body: "the greatest content") as server:
        asked = endpoint(server)
        question = asked.question(ASKED, next(ANEW))
        assert asked.reply(question).text == asked.reply(question).text == "the greatest content"
        monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    with serving(lambda number, body: "it is sk-0123456789") as server:
        question = asked.question(ASKED, next(ANEW))
        asked = endpoint(server)
        assert asked.reply(question).text == asked.reply(question).text == "it is ***"
        assert "sk-0123456789" not in asked.place(question).read_text()
    assert len(server.bodies) == 1


def test_two_who_ask_the_same_have_the_same_reply() -> None:
    """Also where the server never says the same twice, and both ask before either is told."""
    both = threading.Barrier(2)

    def behave(number: int, body: Any) -> str:
        both.wait(20)
        return f"number {number}"

    with serving(behave) as server:
        asked = endpoint(server)
        question = asked.question(ASKED, next(ANEW))
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(lambda _: asked.reply(question).text, range(2))
        assert one == other == asked.reply(question).text and len(server.bodies) == 2


def test_a_token_in_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays in the environment, also where the server is named."""
    with serving(lambda number, body: error(403, f"no POST to {server.paths[-1]}".encode())) as server:
        asked = endpoint(server, url=server.url.replace("/v1", "/{MY_TOKEN}/v1"))
        with pytest.raises(UserError, match="names MY_TOKEN, which is no variable"):
            asked.begin_round(Path(), Path())
        monkeypatch.setenv("MY_TOKEN", "hidden-012345")
        assert asked.address().endswith("/hidden-012345/v1/chat/completions")
        with pytest.raises(UserError, match=r"/{MY_TOKEN}/v1: answers HTTP 403") as refused:
            say(asked)
    assert "hidden" not in str(refused.value)


def test_what_the_environment_holds_for_others_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hidden")
    with serving(lambda number, body: "4") as server:
        assert say(endpoint(server, key="MY_KEY")) == "4"
    assert "hidden" not in str(server.headers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "https://h/sk-hidden1234567890/v1"}, "url: must be without a secret"),
        ({"url": "http://h/v1?api-key=hidden"}, "url: must be without a secret"),
        ({"url": "http://h/v1?pwd=hidden"}, "url: must be without a secret"),
        ({"url": "http://me:hidden@h/v1"}, "url: must be without a secret"),
        ({"url": "http://[::1/v1"}, "must be http"),
        ({"url": "http://h:port/v1"}, "must be http"),
        ({"options": {"messages": []}}, "options.messages"),
        ({"model": ""}, "model='': must be a model's name"),
        ({"model": "a\nb"}, r"model='a\\nb': must be a model's name"),
        ({"options": {"n": 4}}, "options.n=4: must be absent"),
        ({"temperature": -1.0}, "or null: not sent"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        Tutor(**options)
    assert "hidden" not in str(refused.value)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_retry_after_is_waited_for() -> None:
    with serving(lambda number, body: error(429, b"", Retry_After="0.4") if number == 0 else "4") as server:
        began = time.monotonic()
        assert say(endpoint(server)) == "4"
        assert time.monotonic() - began >= 0.4 and len(server.bodies) == 2


def test_a_wait_that_is_too_long_ends_at_once() -> None:
    with serving(lambda number, body: error(503, b"", Retry_After="3600")) as server:
        tried = endpoint(server, seconds=30.0)
        tried.end = time.monotonic() + 30
        with pytest.raises(UserError, match=r"1 attempts \(the last: HTTP 503, which asks for 3600 seconds\)"):
            say(tried)


def test_waits() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < wait_of({"Retry-After": soon}) <= 100
    for said in ("", "soon", "-3", "nan", "Mon, 01 Jan 1990 00:00:00 GMT"):
        assert wait_of({"Retry-After": said}) == 0
    assert wait_of({"Retry-After": "inf"}) == 86400
    assert wait_of({"retry-after-ms": "1500", "Retry-After": "9"}) == 1.5
    assert wait_of({"Retry-After-Ms": "soon", "Retry-After": "9"}) == 9


def test_a_failure_wakes_those_that_wait(tmp_path: Path) -> None:
    """One of two requests is refused while the other waits for an hour."""
    waits = threading.Event()

    def behave(number: int, body: dict[str, Any]) -> Any:
        if body["messages"][0]["content"] == "wait":
            waits.set()
            return error(429, b"", Retry_After="3600")
        waits.wait(20)
        return error(400, b"no")

    asked = {i: [{"role": "user", "content": said}] for i, said in enumerate(("wait", "refused"))}
    with serving(behave) as server, pytest.raises(UserError, match="HTTP 400"):
        began = time.monotonic()
        list(endpoint(server).replies(many(asked), workers=2))
    assert time.monotonic() - began < 60 and len(server.bodies) == 2


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, {"error": {"message": "temperature\x1b[31m is\nrefused"}}, r"HTTP 400 \(temperature \[31m is refused\)"),
        (400, {"error": "model m is unknown"}, r"\(model m is unknown\)"),
        (404, {"message": "no such model"}, r"\(no such model\)"),
        (422, {"detail": [{"msg": "bad"}]}, r'HTTP 422 \(\[\{"msg": "bad"\}\]\)'),
        (403, b"region of secret-12345", r"\(region of \*\*\*\); put the key"),
        (401, b"wrong key: secret-12345", r"answers HTTP 401; put the key"),
        (400, b"x" * 5000, r"\(x{200}\)"),
        (400, b"x" * 193 + b"secret-12345", r"\(x{193}\*\*\*\)"),
        (400, b"x" + b" " * 1990 + b"secret-12345", r"\(x \*\*\*\)"),
        (400, b"\xff\xfe", "HTTP 400"),
        (400, b"", "answers HTTP 400; what"),
        (402, {"error": {"message": "no balance"}}, r"HTTP 402 \(no balance\)"),
        (429, {"error": {"code": "insufficient_quota", "message": "pay first"}}, r"HTTP 429 \(pay first\)"),
        (429, {"error": {"type": "insufficient_quota", "code": None}}, "HTTP 429"),
    ],
)
def test_the_words_of_a_refusal(status: int, body: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown, once, and without the key."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret-12345")
    with serving(lambda number, said: error(status, body)) as server, pytest.raises(UserError, match=words) as refused:
        say(endpoint(server))
    assert len(server.bodies) == 1 and "secret" not in str(refused.value) and "\x1b" not in str(refused.value)


# -- replies -----------------------------------------------------------------------------------------------------------


def of(message: Any, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": message}], **more}).encode()


def stream(*deltas: Any, usage: Any = None) -> bytes:
    events = [{"object": "chat.completion.chunk", "choices": [{"delta": d}]} for d in deltas]
    if usage:
        events.append({"object": "chat.completion.chunk", "choices": [], "usage": usage})
    lines = [": a comment", *(f"data: {json.dumps(e)}" for e in events), "data: [DONE]"]
    return "\n\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (of({"content": "4"}), "4"),
        (of({"content": None, "refusal": "no"}), ""),
        (of({"role": "assistant", "tool_calls": []}), ""),
        (of({"content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]}), "42"),
        (of({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "5"}]}, {"text": "4"}]}), "4"),
        (of({"content": [{"type": "reasoning", "text": "5"}, "4"]}), "4"),
        (of({"content": []}), ""),
        (stream({"role": "assistant"}, {"content": "4"}, {"content": "2"}, {"content": None}), "42"),
        (stream({"content": "4"}, usage={"prompt_tokens": 7, "completion_tokens": 2}), "4"),
        (stream({"content": "<think>5"}, {"content": "</think>4"}), "4"),
    ],
)
def test_shapes_of_replies(content: bytes, text: str) -> None:
    assert without_thoughts(read(content).text) == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"error": {"message": "overloaded"}}', r"no completion \(overloaded\)"),
        (b'{"choices": []}', "no completion"),
        (of({"content": 4}), "no completion"),
        (of("4"), "no completion"),
        (b"null", "no completion"),
        (b"data: {", "no completion"),
    ],
)
def test_what_is_no_reply(content: bytes, words: str) -> None:
    with pytest.raises(NoReply, match=words.replace("overloaded", r"\*\*\*")):
        read(content, key="overloaded")


LIES = [{"prompt_tokens": 7, "completion_tokens": n} for n in (-1, 10**9, 10**400)]


def test_tokens_are_counted_or_estimated() -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 2}
    assert tokens_of(of({"content": "4"}, usage=used), "2+2?") == (7, 2)
    assert tokens_of(stream({"content": "4"}, usage=used), "2+2?") == (7, 2)
    for broken in (None, {}, {"prompt_tokens": "x", "completion_tokens": 1}, 5, *LIES):
        sent, written = tokens_of(of({"content": "4" * 300}, usage=broken), "2+2?")
        assert sent == 1 and 100 <= written < 300


# -- servers that do otherwise than they were asked --------------------------------------------------------------------


def schema(**of: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "record", "schema": of}}


PERSON = schema(type="object", properties={"age": {"type": "integer"}})
ELSEWHERE = schema(**{"$ref": "http://localhost:9/schema.json"})


def test_json_of_the_schema_is_taken() -> None:
    """Whatever its spaces and the order of its keys are."""
    with serving(lambda number, body: (200, of({"content": '{"b": 1,\n "age" : 7}'}))) as server:
        assert say(endpoint(server, options={"response_format": PERSON})) == '{"b": 1,\n "age" : 7}'


@pytest.mark.parametrize(
    ("options", "said", "words"),
    [
        ({}, {"model": "gpt-2"}, r"^model=m: the server answers as gpt-2; name that one"),
        (
            {"options": {"max_tokens": 5}},
            {"usage": {"prompt_tokens": 1, "completion_tokens": 99}},
            "ignores max_tokens",
        ),
        ({"options": {"logprobs": True}}, {}, "ignores logprobs: the reply has none"),
        ({"options": {"logprobs": True}}, {"logprobs": {"content": []}}, "ignores logprobs: the reply has none"),
        ({"options": {"response_format": {"type": "json_object"}}}, {}, "ignores response_format: .* no JSON"),
        ({"options": {"response_format": PERSON}}, {"text": '{"age": "old"}'}, "'old' is not of type 'integer'"),
        (
            {"options": {"response_format": ELSEWHERE}},
            {"text": "{}"},
            "^response_format: has no schema that can be checked",
        ),
    ],
)
def test_what_a_server_ignores(options: dict[str, Any], said: dict[str, Any], words: str) -> None:
    """Is told in one line, and such a reply is not kept."""
    choice = {"message": {"content": said.get("text", "four")}, "logprobs": said.get("logprobs")}
    more = {key: said[key] for key in said.keys() & {"model", "usage"}}
    with serving(lambda number, body: (200, json.dumps({"choices": [choice], **more}).encode())) as server:
        asked = endpoint(server, **options)
        with pytest.raises(UserError, match=words):
            say(asked)
        assert len(server.bodies) == 1 and not asked.place(asked.question(ASKED, next(ANEW))).parent.parent.exists()


@pytest.mark.parametrize(
    ("asked", "said", "same"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("Qwen/Qwen2.5-0.5B", "qwen2.5-0.5b", True),
        ("/models/a", "a", True),
        ("a", "b/a@1", True),
        ("a", "", False),
    ],
)
def test_names_of_one_model(asked: str, said: str, same: bool) -> None:
    assert same_model(asked, said) == same


def trickling(handler: Any) -> None:
    """A header, byte by byte: each comes long before a timeout of one piece."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def test_headers_that_trickle_end_with_the_timeout() -> None:
    began = time.monotonic()
    with serving(lambda number, body: trickling) as server, pytest.raises(UserError, match="last: timeout"):
        say(endpoint(server, timeout=0.4, attempts=2))
    assert time.monotonic() - began < 5


def test_bodies_that_are_packed_all_the_same() -> None:
    """And those that unpack to more than is read."""
    packed = gzip.compress(of({"content": "4"})), gzip.compress(b" " * (50 * LARGEST))
    with serving(lambda number, body: error(200, packed[number > 0], Content_Encoding="gzip")) as server:
        assert say(endpoint(server)) == "4"
        with pytest.raises(UserError, match=f"more than {LARGEST} bytes"):
            say(endpoint(server, attempts=1))


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_requests_are_never_exceeded(tmp_path: Path) -> None:
    """Those of a round, those that fail included; and the same folder goes on with what is left."""
    asked = dict.fromkeys(range(30), ASKED)
    with serving(lambda number, body: error(500, b"") if number % 3 == 0 else "4") as server:
        for limit, sent in ((10, 10), (10, 10), (14, 14)):
            limited = endpoint(server, budget=Budget(round=Limits(requests=limit)))
            limited.begin_round(tmp_path / "round", tmp_path / "account.json")
            with pytest.raises(UserError, match=rf"^budget.round.requests={limit}: is spent \({limit}\); .*raise it"):
                list(limited.replies(many(asked), workers=4))
            assert len(server.bodies) == sent
        assert Ledger(tmp_path / "account.json", Limits(), Budget(), "sweep").spent()["requests"] == 14


def test_a_spent_sweep_takes_no_request_of_a_round(tmp_path: Path) -> None:
    with serving(lambda number, body: "4") as server:
        limited = endpoint(server, budget=Budget(sweep=Limits(requests=1)))
        limited.begin_round(tmp_path / "round", tmp_path / "account.json")
        say(limited)
        for _ in range(3):
            with pytest.raises(UserError, match=r"^budget.sweep.requests=1: is spent"):
                say(limited)
    assert [ledger.spent()["requests"] for ledger in limited.ledgers] == [1, 1]


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"x" * (2 * LARGEST))


def halted(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "90000")
    handler.end_headers()
    handler.wfile.write(b"x" * 3000)
    handler.wfile.flush()
    time.sleep(1)


def silent(handler: Any) -> None:
    time.sleep(1)


@pytest.mark.parametrize(
    ("behave", "least"), [(endless, LARGEST // 3), (halted, 1000), (silent, 0)], ids=["endless", "halted", "silent"]
)
def test_replies_that_are_cut_off_are_paid(tmp_path: Path, behave: Any, least: int) -> None:
    """By what was received of them, and the question."""
    asked = [{"role": "user", "content": "x" * 300}]
    with serving(lambda number, body: behave) as server:
        limited = endpoint(server, budget=Budget(round=Limits(tokens=200)), attempts=8, timeout=0.4)
        limited.begin_round(tmp_path / "round", tmp_path / "account.json")
        with pytest.raises(UserError, match=r"^budget.round.tokens=200: is spent"):
            say(limited, asked)
    spent = limited.ledgers[0].spent()
    assert spent["requests"] == len(server.bodies) <= 2 and spent["sent"] == 100 * len(server.bodies)
    assert least <= spent["written"] <= LARGEST


@pytest.mark.parametrize("limits", [{"tokens": 100}, {"money": 0.0001}])
def test_tokens_and_money_end_a_sweep(tmp_path: Path, limits: dict[str, Any]) -> None:
    """Two rounds with folders of their own share what is left."""
    reply = 200, of({"content": "4"}, usage={"prompt_tokens": 30, "completion_tokens": 10})
    budget = Budget(sweep=Limits(**limits), price_sent=0.5, price_written=2.5)  # 40 tokens cost 0.00004
    with serving(lambda number, body: reply) as server:
        for folder in ("a", "b"):
            limited = endpoint(server, budget=budget)
            limited.begin_round(tmp_path / folder, tmp_path / "account.json")
            key = next(iter(limits))
            if folder == "a":
                assert say(limited) == say(limited) == "4"
                continue
            assert say(limited) == "4"
            with pytest.raises(UserError, match=rf"budget.sweep.{key}=.*is spent"):
                say(limited)
    assert len(server.bodies) == 3
    assert json.loads((tmp_path / "account.json").read_text()) == {"requests": 3, "sent": 90, "written": 30}


def test_a_breaker_on_refusals() -> None:
    tutor = Tutor(budget=Budget(refused=0.9))
    for i in range(500):
        tutor.told("" if i % 8 == 0 else "repeated")
    words = r"recipe.teacher.budget.refused=0.9: 91 of the last 100 problems could not be used \(\d+ .*unparseable"
    with pytest.raises(UserError, match=words):
        for _ in range(100):
            tutor.told("unparseable")
    for _ in range(99):  # the next call gets as many again
        tutor.told("unparseable")
    never = Tutor(budget=Budget(refused=1.0))
    for _ in range(500):
        never.told("repeated")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: Limits(requests=0), "requests=0: must be more than 0, or null"),
        (lambda: Budget(round=Limits(money=1.0)), "round.money=1.0: must be null as long as"),
        (lambda: Budget(refused=2.0), "refused=2.0: must be a share"),
    ],
)
def test_bad_budgets(bad: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        bad()


def test_a_damaged_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text('{"requests": ')
    with pytest.raises(UserError, match=r"spent.json: is damaged; delete it"):
        Ledger(tmp_path / "spent.json", Limits(), Budget(), "round").check()


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"text": "a", "finish_reason": "abort"}]},
        {"choices": [], "object": "text_completion", "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        {"choices": [{"text": "a", "logprobs": {"token_logprobs": [float("nan")]}}]},
        {"choices": [{"text": "a", "logprobs": {"token_logprobs": [5.0]}}]},
        {"choices": [{"text": "a b", "logprobs": {"token_logprobs": [None, -0.5]}}]},
        {"choices": [{"text": "a", "logprobs": {"token_logprobs": [float("-inf")]}}]},
    ],
)
def test_a_completion_that_is_none(said: dict[str, Any]) -> None:
    with pytest.raises(NoReply):
        read(json.dumps(said).encode())


def test_a_stream_ends_its_events_with_line_feeds_alone() -> None:
    event = {"choices": [{"delta": {"content": "a\u2028b\u0085c"}, "finish_reason": "stop"}]}
    sent = f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\ndata: [DONE]\n"
    assert read(sent.encode()).text == "a\u2028b\u0085c"


def test_the_first_choice_need_not_come_first() -> None:
    said = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in ((1, "no"), (0, "yes"))]
    assert read(json.dumps({"choices": said}).encode()).text == "yes"


def test_halves_of_characters_in_a_reply_are_replaced() -> None:
    assert read(b'{"choices": [{"text": "a\\ud800b \\ud83d\\ude00"}]}').text == "a\ufffdb \U0001f600"
