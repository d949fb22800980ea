"""An OpenAI-compatible server, a hosted or a local one (vLLM, SGLang, llama.cpp, `transformers serve`).

    export OPENAI_API_KEY=...            # only there: never in the config, the records or a message

    endpoint = Endpoint(url="http://localhost:8000/v1", model="my-model")
    asked = [(7, Question({"messages": [{"role": "user", "content": "2+2?"}]}, stream=1))]
    for number, reply in endpoint.replies(asked, workers=4): ...

A server does not give the same bytes twice. So each reply is on the disk before it is handed on, below replies/ of the
store, under the hash of what was asked: address, body, and the random stream that it stands for (two records with one
prompt are two replies). The same question is never paid twice, after a kill, a failure, or when a finished stage is
computed again; `rm -r .genloss/store/replies` asks anew.

What a server ignores is not ignored here: each reply is compared with what was asked of it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from genloss.backends.reply import SPENT, NoReply, Reply, complaint, read, tokens_of, wait_of
from genloss.backends.spending import Budget, Ledger, ask
from genloss.core.errors import UserError, first_line, require
from genloss.core.files import write_first
from genloss.core.hashes import canonical, sha256_text
from genloss.core.places import has_secret, store_root

if TYPE_CHECKING:
    from genloss.core.contracts import Experiment

THREADS = 4  # requests at a time, unless runtime.workers says otherwise
AHEAD = 16  # questions for each of them that wait, or whose replies do
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP: worth another try, unless the server says one of SPENT
CHAT, COMPLETIONS = "/chat/completions", "/completions"
OURS = ("model", "messages", "prompt", "temperature", "top_p", "n")  # of a request; no `options`
NAMED = re.compile(r"\{([A-Za-z_]\w*)\}")  # in an address: a variable of the environment

GREETING = "Say yes."
SECRET = 8  # characters of the shortest secret that is looked for in what a server says

Messages = list[dict[str, str]]  # of role and content


class Passing(Exception):
    """Trouble that may be over at the next try; `wait`: the seconds that the server asks for before it."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(f"{why}, which asks for {wait:g} seconds" if wait else why)
        self.wait = wait


class Question(NamedTuple):
    """What a reply is a reply to."""

    body: Mapping[str, Any]  # of the request, without model and options; it has `messages`, or `prompt`
    stream: int | str = 0  # the random stream that the reply stands for


@dataclass
class Endpoint:
    """Each request is tried `attempts` times; those of a round end after `seconds`. What was received stays: the same
    command goes on from there. Errors are UserErrors whose keys are relative to these fields."""

    url: str = "https://api.openai.com/v1"  # a query stays (?api-version=...); {NAME} is a variable of the environment
    model: str = "???"
    key: str = "OPENAI_API_KEY"  # name of the environment variable; unset: no key is sent
    options: dict[str, Any] = field(default_factory=dict)  # anything else of the request, such as {max_tokens: 500}
    timeout: float = 60.0  # seconds of one request, from the first byte to the last
    attempts: int = 4  # of one request
    pause: float = 1.0  # seconds before the second attempt, at most; doubled with each one
    seconds: float = 3600.0  # of all requests of a round
    budget: Budget = field(default_factory=Budget)  # no part of the arm's identity: it can be raised

    def __post_init__(self) -> None:
        secret = "without a secret; name an environment variable in key, or {NAME} where the address holds it"
        require(not has_secret(self.url), "url", None, secret)
        try:
            address = urlsplit(self.url)
            known = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            known = False
        require(known, "url", self.url, "http://... or https://...")
        require(re.fullmatch(r"[A-Za-z_]\w*", self.key) is not None, "key", None, "the name of an environment variable")
        named = self.model == self.model.strip() and self.model.isprintable() and 0 < len(self.model) <= 200
        require(named, "model", repr(self.model), "a model's name: one line of 1 to 200 characters")
        for name in OURS:
            require(name not in self.options, f"options.{name}", self.options.get(name), "absent: it is set here")
        require(1 <= self.attempts <= 100, "attempts", self.attempts, "from 1 to 100")
        require(self.pause >= 0, "pause", self.pause, "at least 0 seconds")
        for name in ("timeout", "seconds"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0 seconds")
        self.end = math.inf  # of time.monotonic
        self.ledgers: list[Ledger] = []
        self.found = 0  # replies of this round that were on the disk

    def check(self, experiment: Experiment) -> None:
        """UserError where a library that it needs is not installed."""
        for library in ("openai", "tenacity", "jsonschema"):
            if importlib.util.find_spec(library) is None:
                raise UserError("_target_", type(self).__name__, f"needs {library}; pip install 'genloss[openai]'")

    def greeting(self) -> Question:
        """A question whose reply shows whether the server is there, and is the one that is meant."""
        return Question({"messages": [{"role": "user", "content": GREETING}]}, "greeting")

    def greet(self, account: Path) -> None:
        with TemporaryDirectory() as scratch:  # what it costs counts for the sweep, and for no round
            self.begin_round(Path(scratch), account)
            self.reply(self.greeting())

    def begin_round(self, scratch: Path, account: Path) -> None:
        """The `seconds` of a round begin now, and its budget holds; without it there is no end. scratch: the round's
        folder; account: the file in which a sweep counts what it has spent."""
        for name in NAMED.findall(self.url):
            if not os.environ.get(name):
                raise UserError("url", self.url, f"names {name}, which is no variable of the environment; set it")
        self.end, self.found = time.monotonic() + self.seconds, 0
        self.ledgers = [self.ledger(scratch), Ledger(account, self.budget.sweep, self.budget, "sweep")]

    def ledger(self, scratch: Path) -> Ledger:
        """What a round has spent."""
        return Ledger(scratch / "spent.json", self.budget.round, self.budget, "round")

    def costs(self, scratch: Path) -> dict[str, float]:
        """What a round has spent, by the names of metrics; `found`: replies that were there already."""
        names = {"requests": "requests", "sent": "tokens_sent", "written": "tokens_written", "money": "money"}
        spent = self.ledger(scratch).spent()
        counts = {names[key]: value for key, value in spent.items() if key != "money" or value}
        return counts | ({"replies_found": float(self.found)} if self.found else {})

    # -- many requests -------------------------------------------------------------------------------------------------

    def replies(
        self, asked: Iterable[tuple[int, Question]], workers: int = 0
    ) -> Generator[tuple[int, Reply], None, None]:
        """(number, reply) of every question, in their order; `workers` requests at a time (0: THREADS). After a failure
        the requests on their way are waited for, and their replies kept; then it is raised, as UserError."""
        stop, threads = threading.Event(), workers or THREADS
        pool = ThreadPoolExecutor(threads)
        waiting: deque[tuple[int, Future[Reply]]] = deque()
        try:
            for number, question in asked:
                self.found += self.place(question).is_file()
                waiting.append((number, pool.submit(self._answered, question, stop)))
                while len(waiting) > AHEAD * threads or (waiting and waiting[0][1].done()):
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except Stopped:  # by a failure behind it
            errors = [error for _, future in waiting if (error := future.exception())]
            raise next(error for error in errors if not isinstance(error, Stopped)) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _answered(self, question: Question, stop: threading.Event) -> Reply:
        try:
            return self.reply(question, stop)
        except BaseException:
            stop.set()
            raise

    # -- one question --------------------------------------------------------------------------------------------------

    def reply(self, question: Question, stop: threading.Event | None = None) -> Reply:
        """The reply to one question, from the disk if it is there; UserError after the last attempt. Stopped once
        `stop` is set."""
        place = self.place(question)
        if known := _kept(place):
            return known
        place.unlink(missing_ok=True)  # damaged
        content = self._received(question, stop or threading.Event())
        self.compare(question, read(content))
        text = content.decode(errors="replace")
        kept = {"url": self.url, "body": self.body(question), "stream": str(question.stream), "content": text}
        # two arms may ask the same at the same time: the first reply is that of both, now and in a rerun
        write_first(place, json.dumps(kept))
        return _kept(place) or read(content)

    def forget(self, questions: Iterable[Question]) -> None:
        """Ask again the next time."""
        for question in questions:
            self.place(question).unlink(missing_ok=True)

    def place(self, question: Question) -> Path:
        """Where the reply to a question is kept."""
        name = sha256_text(canonical([self.url, self.body(question), str(question.stream)]))
        return store_root() / "replies" / name[:2] / f"{name}.json"

    def body(self, question: Question) -> dict[str, Any]:
        return {"model": self.model, **question.body, **self.options}

    def compare(self, question: Question, reply: Reply) -> None:
        """Refuse a reply that shows that the server ignored what it was asked for."""
        body = self.body(question)
        if reply.model is not None and not same_model(self.model, reply.model):
            said = "".join(c for c in reply.model if c.isprintable())[:200]
            raise UserError("model", self.model, f"the server answers as {said}; name that one, or start the one meant")
        limit = next((body[k] for k in ("max_tokens", "max_completion_tokens") if isinstance(body.get(k), int)), None)
        if limit and reply.counted and reply.counted[1] > limit + 1:  # some count an end
            raise self.ignored("max_tokens", f"it was {limit}, and the reply has {reply.counted[1]} tokens")
        if body.get("logprobs") and self.said(reply):
            had, written = len(reply.logprobs or []), reply.counted[1] if reply.counted and "prompt" in body else 0
            if had == 0 or had < written - 1:  # the end of a text may have none
                held = f"the reply has {had or 'none'}{f' for {written} tokens' if had else ''}"
                raise self.ignored("logprobs", f"{held}; do without them, or ask a server that has them")
        shape = body.get("response_format")
        shape = shape if isinstance(shape, dict) and shape.get("type", "").startswith("json") else None
        if shape and not reply.cut and (why := misses(self.said(reply), shape)):
            raise self.ignored("response_format", f"the reply {why}")

    def said(self, reply: Reply) -> str:
        """The text of a reply that is meant."""
        return reply.text

    def ignored(self, name: str, how: str) -> UserError:
        return UserError("url", self.url, f"the server ignores {name}: {how}")

    def _received(self, question: Question, stop: threading.Event) -> bytes:
        """The body of the reply, after at most `attempts` requests."""
        import tenacity

        left = self.end - time.monotonic()
        if left <= 0:
            raise self.stopped(f"took longer than seconds={self.seconds:g}")
        grows = tenacity.wait_random_exponential(multiplier=self.pause, max=60)

        def once() -> bytes:
            if stop.is_set():
                raise Stopped
            return self.post(question)

        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts)
            | tenacity.stop_before_delay(left)
            | tenacity.stop_when_event_set(stop),
            wait=lambda state: grows(state) + asked_for(state),
            sleep=tenacity.sleep_using_event(stop),
            retry=tenacity.retry_if_exception_type(Passing),
            reraise=True,
        )
        try:
            return attempts(once)
        except Passing as trouble:
            if stop.is_set():
                raise Stopped from None
            tried = attempts.statistics.get("attempt_number", self.attempts)
            raise self.stopped(f"gave no reply in {tried} attempts (the last: {trouble})") from None

    def stopped(self, why: str) -> UserError:
        return UserError("url", self.url, f"{why}; what was received is kept: run again to go on from there")

    def post(self, question: Question) -> bytes:
        """One attempt, paid for, also where its reply is cut off; raises Passing where another may help."""
        from genloss.backends.wire import Broken, Came, exchange  # loads the client

        try:
            ask(self.ledgers)
        except UserError as error:
            raise error.under("budget") from None
        key, body, came = os.environ.get(self.key, ""), self.body(question), Came()
        try:
            exchange(self.address("messages" in body), body, key, max(0.1, self._limit()), came)
        except Broken as trouble:
            if came.status == 200 or (came.asked and not came.status):
                self._pay(came.content, body)
            raise Passing(str(trouble)) from None
        came.content = self._masked(came.content)
        if came.status != 200:
            raise self._refusal(came, key)
        self._pay(came.content, body)
        try:
            read(came.content, key)
        except NoReply as trouble:
            raise Passing(str(trouble)) from None
        return came.content

    def _masked(self, content: bytes) -> bytes:
        """Without what a server may repeat of the secrets that it was sent. A local server's key may be any word, which
        texts have too."""
        for name in (self.key, *NAMED.findall(self.url)):
            if len(secret := os.environ.get(name, "")) >= SECRET:
                content = content.replace(secret.encode(), b"***")
        return content

    def _limit(self) -> float:
        return min(self.timeout, self.end - time.monotonic())

    def _pay(self, content: bytes, body: Mapping[str, Any]) -> None:
        """Count what a reply has cost, or the part of it that was received."""
        asked = body["prompt"] if "prompt" in body else "".join(m["content"] for m in body["messages"])
        sent, written = tokens_of(content, asked)
        for ledger in self.ledgers:
            ledger.pay(sent, written)

    def address(self, chat: bool = True) -> str:
        """Where a question is posted to."""
        known: SplitResult = urlsplit(NAMED.sub(lambda name: os.environ.get(name[1], name[0]), self.url))
        path = known.path.rstrip("/")
        path = path.removesuffix(CHAT) if path.endswith(CHAT) else path.removesuffix(COMPLETIONS)
        return known._replace(path=path + (CHAT if chat else COMPLETIONS), fragment="").geturl()

    def _refusal(self, came: Any, key: str) -> Exception:
        """What an error of HTTP means."""
        status = came.status
        code, words = complaint(came.content, key)
        if status in PASSING and code not in SPENT:
            return Passing(f"HTTP {status}", wait_of(came.headers))
        said = f" ({words})" if words and status != 401 else ""  # 401 may quote a part of the key
        hint = f"; put the key into the variable {self.key}" if status in (401, 403) else ""
        if 300 <= status < 400:
            hint = "; it is a redirect, which is not followed: name the address itself"
        return self.stopped(f"answers HTTP {status}{said}{hint}")


def _kept(place: Path) -> Reply | None:
    """A reply that is on the disk; None if there is none that can be read."""
    try:
        return read(json.loads(place.read_text(encoding="utf-8"))["content"].encode())
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


class Stopped(Exception):
    """A request that was not sent, since another one has failed."""


def misses(text: str, shape: Mapping[str, Any]) -> str:
    """How a text misses the response_format that was asked for; '' if it does not. Raises UserError if that has a
    schema that is none."""
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "is no JSON"
    schema = (shape.get("json_schema") or {}).get("schema")
    if schema is None:
        return ""
    try:
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema, registry=Registry()).validate(value)  # fetches nothing
    except ValidationError as error:
        return f"is JSON of another schema ({first_line(ValueError(error.message[:100]))})"
    except (SchemaError, Unresolvable, RecursionError) as error:
        why = f"has no schema that can be checked ({first_line(error)})"
        raise UserError("response_format", None, why) from None
    return ""


def same_model(asked: str, said: str) -> bool:
    """Whether a server's name of its model is that which was asked for: also with a date or revision behind it, or
    without the owner or folder before it."""
    one, other = (name.lower().rstrip("/") for name in (asked, said))
    names = {one, one.rpartition("/")[2]}, {other, other.rpartition("/")[2]}
    return any(re.fullmatch(re.escape(a) + r"([-:][\d.-]+)?(@.+)?", b) for a in names[0] for b in names[1])


def asked_for(state: Any) -> float:
    """Seconds that the server asked for, at the last attempt of tenacity."""
    error = state.outcome.exception()
    return error.wait if isinstance(error, Passing) else 0.0
