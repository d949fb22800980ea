"""An OpenAI-compatible chat endpoint, a hosted or a local one (vLLM, `transformers serve`).

    export OPENAI_API_KEY=...            # only there: never in the config, the records or a message

    endpoint = Endpoint(url="http://localhost:8000/v1", model="my-model")
    for number, text in endpoint.replies({7: [{"role": "user", "content": "2+2?"}]}, folder, workers=4): ...

A chat model at temperature 1 does not give the same bytes twice. A reply is therefore on the disk before the next one
is asked for, and is not asked for again after a kill.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import threading
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from genloss.backends.spending import Budget, Ledger, ask
from genloss.backends.thoughts import without_thoughts
from genloss.core.errors import UserError, require
from genloss.core.files import write_atomic
from genloss.core.places import has_secret

if TYPE_CHECKING:
    from genloss.core.contracts import Experiment

LARGEST = 1 << 18  # bytes of a reply that are read
THREADS = 4  # requests at a time, unless runtime.workers says otherwise
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP: worth another try
# ... unless the server says one of these: nothing but money helps
SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
CHAT = "/chat/completions"
OURS = ("model", "messages", "temperature", "top_p", "n")  # of a request; no `options`
TEXTS = ("text", "output_text")  # of the parts of a content
DAY = 86_400.0
BYTES = 3  # of a token, where a server does not count them
MOST = 10**7  # tokens of a conversation or its reply; a server that counts more is not believed

Messages = list[dict[str, str]]  # of role and content


class Passing(Exception):
    """Trouble that may be over at the next try; `wait`: the seconds that the server asks for before it."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(f"{why}, which asks for {wait:g} seconds" if wait else why)
        self.wait = wait


@dataclass
class Endpoint:
    """Each request is tried `attempts` times; those of a round end after `seconds`. What was received stays: the same
    command goes on from there. Errors are UserErrors whose keys are relative to these fields."""

    url: str = "https://api.openai.com/v1"  # with or without /chat/completions; a query stays (?api-version=...)
    model: str = "???"
    key: str = "OPENAI_API_KEY"  # name of the environment variable; unset: no key is sent
    temperature: float | None = 1.0  # null: not sent; some models refuse it
    top_p: float | None = 1.0  # null: not sent
    options: dict[str, Any] = field(default_factory=dict)  # anything else of the request, such as {seed: 1}
    timeout: float = 60.0  # seconds of one request
    attempts: int = 4  # of one request
    pause: float = 1.0  # seconds before the second attempt, at most; doubled with each one
    seconds: float = 3600.0  # of all requests of a round
    budget: Budget = field(default_factory=Budget)  # no part of the arm's identity: it can be raised

    def __post_init__(self) -> None:
        require(not has_secret(self.url), "url", None, "without a secret; name an environment variable in key")
        try:
            address = urlsplit(self.url)
            known = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            known = False
        require(known, "url", self.url, "http://... or https://...")
        require(re.fullmatch(r"[A-Za-z_]\w*", self.key) is not None, "key", None, "the name of an environment variable")
        named = self.model == self.model.strip() and self.model.isprintable() and 0 < len(self.model) <= 200
        require(named, "model", repr(self.model), "a model's name: one line of 1 to 200 characters")
        cold, top = self.temperature, self.top_p
        require(cold is None or cold >= 0, "temperature", cold, "at least 0, or null: not sent")
        require(top is None or 0 < top <= 1, "top_p", top, "in (0, 1], or null: not sent")
        for name in OURS:
            require(name not in self.options, f"options.{name}", self.options.get(name), "absent: it is set here")
        require(1 <= self.attempts <= 100, "attempts", self.attempts, "from 1 to 100")
        require(self.pause >= 0, "pause", self.pause, "at least 0 seconds")
        for name in ("timeout", "seconds"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0 seconds")
        self.end = math.inf  # of time.monotonic
        self.ledgers: list[Ledger] = []

    def check(self, experiment: Experiment) -> None:
        """UserError where a library that it needs is not installed."""
        for library in ("requests", "tenacity"):
            if importlib.util.find_spec(library) is None:
                raise UserError("_target_", type(self).__name__, f"needs {library}; pip install 'genloss[teacher]'")

    def begin(self, scratch: Path, account: Path) -> None:
        """The `seconds` of a round begin now, and its budget holds; without it there is no end. scratch: the round's
        folder; account: the file in which a sweep counts what it has spent."""
        self.end = time.monotonic() + self.seconds
        self.ledgers = [self.ledger(scratch), Ledger(account, self.budget.sweep, self.budget, "sweep")]

    def ledger(self, scratch: Path) -> Ledger:
        """What a round has spent."""
        return Ledger(scratch / "spent.json", self.budget.round, self.budget, "round")

    # -- many requests -------------------------------------------------------------------------------------------------

    def replies(
        self, asked: Mapping[int, Messages], folder: Path, workers: int = 0
    ) -> Generator[tuple[int, str], None, None]:
        """(number, text of the reply) of every conversation in `asked`, once, in the order in which the replies come;
        `workers` at a time (0: THREADS). A reply lies in `folder` from when it is received until the next one is asked
        of this iterator. After a failure, the requests on their way are waited for and kept; then it is raised, as
        UserError."""
        stop = threading.Event()
        pool = ThreadPoolExecutor(workers or THREADS)
        try:
            sent = {pool.submit(self.received, m, place(folder, i), stop): i for i, m in asked.items()}
            failed: UserError | None = None  # the first
            for future in as_completed(sent):
                try:
                    text = future.result()
                except UserError as error:
                    failed = failed or error
                    continue
                if text is not None:
                    yield sent[future], text
                    place(folder, sent[future]).unlink(missing_ok=True)
            if failed:
                raise failed
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def received(self, messages: Messages, path: Path, stop: threading.Event) -> str | None:
        """The text of a reply, now in `path`; None after another request has failed."""
        if path.is_file():  # received before a kill
            return str(json.loads(path.read_text()))
        if stop.is_set():
            return None
        try:
            text = self.reply(messages, stop)
        except UserError:
            stop.set()
            raise
        write_atomic(path, json.dumps(text))
        return text

    # -- one request ---------------------------------------------------------------------------------------------------

    def reply(self, messages: Messages, stop: threading.Event | None = None) -> str:
        """The text of the reply to one conversation; UserError after the last attempt, or once `stop` is set."""
        import tenacity

        stop = stop or threading.Event()
        left = self.end - time.monotonic()
        if left <= 0:
            raise self.stopped(f"took longer than seconds={self.seconds:g}")
        grows = tenacity.wait_random_exponential(multiplier=self.pause, max=60)

        def once() -> str:
            if stop.is_set():
                raise Passing("another request has failed")
            return self.post(messages)

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
            tried = attempts.statistics.get("attempt_number", self.attempts)
            raise self.stopped(f"gave no reply in {tried} attempts (the last: {trouble})") from None

    def stopped(self, why: str) -> UserError:
        return UserError("url", self.url, f"{why}; what was received is kept: run again to go on from there")

    def post(self, messages: Messages) -> str:
        """One attempt; raises Passing where another may help."""
        import requests

        body: dict[str, Any] = {"model": self.model, "messages": messages}
        body |= {k: v for k, v in (("temperature", self.temperature), ("top_p", self.top_p)) if v is not None}
        try:
            ask(self.ledgers)
        except UserError as error:
            raise error.under("budget") from None
        limit = min(time.monotonic() + self.timeout, self.end)
        try:
            with requests.post(
                self.address(),
                json=body | self.options,
                auth=self.sign,
                timeout=max(0.1, limit - time.monotonic()),
                stream=True,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            ) as reply:
                content = self.content(reply, limit, messages)
        except requests.Timeout as error:
            if isinstance(error, requests.ReadTimeout):  # the request is there, and nothing of its reply
                self.pay(b"", messages)
            raise Passing("timeout") from None
        except (requests.RequestException, OSError) as error:
            raise Passing(type(error).__name__) from None
        except Exception as error:  # urllib3's own, while the body is read
            if type(error).__module__.startswith("urllib3"):
                raise Passing(type(error).__name__) from None
            raise
        return chat_text(content, os.environ.get(self.key, ""))

    def pay(self, content: bytes, messages: Messages) -> None:
        """Count what a reply has cost, or the part of it that was received."""
        sent, written = tokens_of(content, messages)
        for ledger in self.ledgers:
            ledger.pay(sent, written)

    def address(self) -> str:
        """Where a conversation is posted to."""
        known: SplitResult = urlsplit(self.url)
        path = known.path.rstrip("/")
        return known._replace(path=path if path.endswith(CHAT) else path + CHAT, fragment="").geturl()

    def content(self, reply: Any, limit: float, messages: Messages) -> bytes:
        """The body of a reply of requests, read until time.monotonic() = limit, and paid for, also where it is cut off;
        raises what an error of HTTP means."""
        content, status = b"", reply.status_code
        try:
            while piece := reply.raw.read1(LARGEST):
                content += piece
                if len(content) > LARGEST:
                    raise Passing(f"more than {LARGEST} bytes")
                if time.monotonic() > limit:  # the timeout of the library is that of one piece
                    raise Passing("timeout")
        finally:
            if status == 200:
                self.pay(content, messages)
        if status == 200:
            return content
        code, words = complaint(content, os.environ.get(self.key, ""))
        if status in PASSING and code not in SPENT:
            raise Passing(f"HTTP {status}", wait_of(reply.headers))
        said = f" ({words})" if words and status != 401 else ""  # 401 may quote a part of the key
        hint = f"; put the key into the variable {self.key}" if status in (401, 403) else ""
        if 300 <= status < 400:
            hint = "; it is a redirect, which is not followed: name the address itself"
        raise self.stopped(f"answers HTTP {status}{said}{hint}")

    def sign(self, prepared: Any) -> Any:
        """The key, as an `auth` of requests: a header of ours would give way to the user's netrc."""
        key = os.environ.get(self.key)
        if key:
            prepared.headers["Authorization"] = f"Bearer {key}"
        return prepared


def place(folder: Path, number: int) -> Path:
    """Where the reply to a conversation waits."""
    return folder / f"{number:06d}.json"


def asked_for(state: Any) -> float:
    """Seconds that the server asked for, at the last attempt of tenacity."""
    error = state.outcome.exception()
    return error.wait if isinstance(error, Passing) else 0.0


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds of Retry-After, a number or a date; 0 without one."""
    said = headers.get("Retry-After", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(0.0, seconds), DAY)


def complaint(content: bytes, key: str = "") -> tuple[str, str]:
    """(code, words) of a server's error, the words on one line, short and without the key: they are untrusted."""
    text = content.decode(errors="replace")
    code = ""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        if isinstance(found, dict):
            code = next((found[k] for k in ("code", "type") if found.get(k) in SPENT), "")
            found = found.get("message") or found.get("detail") or found
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, AttributeError, RecursionError, TypeError):
        pass
    text = text.replace(key, "***") if key else text  # before it is cut: a part of a key is one, too
    return code, " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())[:200]


def chat_text(content: bytes, key: str = "") -> str:
    """The text of a chat completion, or of a stream of them, without thoughts; '' if the model said nothing. Raises
    Passing if it is none, whose words do not show the key."""
    try:
        parts = [said for chunk in chunks(content) for said in contents(chunk)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        _, words = complaint(content, key)
        raise Passing(f"no chat completion{f' ({words})' if words else ''}") from None
    return without_thoughts("".join(parts)).strip()


def tokens_of(content: bytes, messages: Messages) -> tuple[int, int]:
    """Tokens (sent, written) of a reply, as the server counts them or by the length of the texts."""
    try:
        usage = next(chunk["usage"] for chunk in reversed(chunks(content)) if chunk.get("usage"))
        sent, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        if not (0 <= sent <= MOST and 0 <= written <= MOST):
            raise ValueError
        return sent, written
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration, OverflowError):
        sent = sum(len(m["content"].encode(errors="replace")) for m in messages)
        return sent // BYTES, len(content) // BYTES


def chunks(content: bytes) -> list[Any]:
    """The completion in a body, or those of an event stream (the reply to options={stream: true})."""
    lines = content.decode(errors="replace").splitlines()
    if not any(line.startswith("data:") for line in lines[:10]):
        return [json.loads(content)]
    events = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return [json.loads(event) for event in events if event != "[DONE]"]


def contents(completion: Any) -> list[str]:
    """The texts of the first choice: of its message or its delta, whose content is a text, parts of it, or null."""
    choices = completion["choices"]
    if not choices and completion.get("object") == "chat.completion.chunk":  # the last of a stream counts tokens
        return []
    choice = choices[0]
    content = (choice["message"] if "message" in choice else choice["delta"]).get("content")
    if content is None:  # it refuses, calls tools, or ended while it thought
        return []
    if isinstance(content, str):
        return [content]
    texts = [part if isinstance(part, str) else part.get("text") for part in content if kind(part) in TEXTS]
    return [text for text in texts if isinstance(text, str)]


def kind(part: Any) -> str:
    """Of a part of a content: thoughts are no text."""
    return "text" if isinstance(part, str) else str(part.get("type", "text"))
