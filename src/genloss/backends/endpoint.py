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
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genloss.core.errors import UserError, require
from genloss.core.files import write_atomic

if TYPE_CHECKING:
    from genloss.core.contracts import Experiment

LARGEST = 1 << 18  # bytes of a reply that are read
THREADS = 4  # requests at a time, unless runtime.workers says otherwise
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP: worth another try

Messages = list[dict[str, str]]  # of role and content

# How models mark what they think before they answer. The last pair is that of gpt-oss, whose thoughts end where the
# answer's channel begins.
WORD = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
THOUGHT = rf"<{WORD}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>(?:analysis|commentary)"
THOUGHT_OVER = rf"</{WORD}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>"


class Passing(Exception):
    """Trouble that may be over at the next try."""


@dataclass
class Endpoint:
    """Each request is tried `attempts` times; those of a round end after `seconds`. What was received stays: the same
    command goes on from there. Errors are UserErrors whose keys are relative to these fields."""

    url: str = "https://api.openai.com/v1"
    model: str = "???"
    key: str = "OPENAI_API_KEY"  # name of the environment variable; unset: no key is sent
    temperature: float = 1.0
    top_p: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)  # anything else of the request, such as {seed: 1}
    timeout: float = 60.0  # seconds of one request
    attempts: int = 4  # of one request
    pause: float = 1.0  # seconds before the second attempt, at most; doubled with each one
    seconds: float = 3600.0  # of all requests of a round

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        known = address.scheme in ("http", "https") and bool(address.hostname)
        require(known, "url", self.url, "http://... or https://...")
        require("@" not in address.netloc, "url", None, "without a password; name an environment variable in key")
        require(re.fullmatch(r"[A-Za-z_]\w*", self.key) is not None, "key", None, "the name of an environment variable")
        require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        require(1 <= self.attempts <= 100, "attempts", self.attempts, "from 1 to 100")
        require(self.pause >= 0, "pause", self.pause, "at least 0 seconds")
        for name in ("timeout", "seconds"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0 seconds")
        self.end = math.inf  # of time.monotonic

    def check(self, experiment: Experiment) -> None:
        """UserError where a library that it needs is not installed."""
        for library in ("requests", "tenacity"):
            if importlib.util.find_spec(library) is None:
                raise UserError("_target_", type(self).__name__, f"needs {library}; pip install 'genloss[teacher]'")

    def begin(self) -> None:
        """The `seconds` of a round begin now; without it there is no end."""
        self.end = time.monotonic() + self.seconds

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
            failed: UserError | None = None
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
            text = self.reply(messages)
        except UserError:
            stop.set()
            raise
        write_atomic(path, json.dumps(text))
        return text

    # -- one request ---------------------------------------------------------------------------------------------------

    def reply(self, messages: Messages) -> str:
        """The text of the reply to one conversation; UserError after the last attempt."""
        import tenacity

        left = self.end - time.monotonic()
        if left <= 0:
            raise self.stopped(f"took longer than seconds={self.seconds:g}")
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts) | tenacity.stop_before_delay(left),
            wait=tenacity.wait_random_exponential(multiplier=self.pause, max=60),
            retry=tenacity.retry_if_exception_type(Passing),
            reraise=True,
        )
        try:
            return attempts(self.post, messages)
        except Passing as trouble:
            tried = attempts.statistics.get("attempt_number", self.attempts)
            raise self.stopped(f"gave no reply in {tried} attempts (the last: {trouble})") from None

    def stopped(self, why: str) -> UserError:
        return UserError("url", self.url, f"{why}; what was received is kept: run again to go on from there")

    def post(self, messages: Messages) -> str:
        """One attempt; raises Passing where another may help."""
        import requests

        body: dict[str, Any] = {"model": self.model, "messages": messages}
        body |= {"temperature": self.temperature, "top_p": self.top_p}
        limit = min(time.monotonic() + self.timeout, self.end)
        try:
            with requests.post(
                f"{self.url.rstrip('/')}/chat/completions",
                json=body | self.options,
                auth=self.sign,
                timeout=max(0.1, limit - time.monotonic()),
                stream=True,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            ) as reply:
                return chat_text(self.content(reply, limit))
        except requests.Timeout:
            raise Passing("timeout") from None
        except (requests.RequestException, OSError) as error:
            raise Passing(type(error).__name__) from None
        except Exception as error:  # urllib3's own, while the body is read
            if type(error).__module__.startswith("urllib3"):
                raise Passing(type(error).__name__) from None
            raise

    def content(self, reply: Any, limit: float) -> bytes:
        """The body of a reply of requests, read until time.monotonic() = limit."""
        if reply.status_code in PASSING:
            raise Passing(f"HTTP {reply.status_code}")
        if reply.status_code != 200:
            hint = f"; put the key into the variable {self.key}" if reply.status_code in (401, 403) else ""
            raise self.stopped(f"answers HTTP {reply.status_code}{hint}")
        content = b""
        while piece := reply.raw.read1(LARGEST):
            content += piece
            if len(content) > LARGEST:
                raise Passing(f"more than {LARGEST} bytes")
            if time.monotonic() > limit:  # the timeout of the library is that of one piece
                raise Passing("timeout")
        return content

    def sign(self, prepared: Any) -> Any:
        """The key, as an `auth` of requests: a header of ours would give way to the user's netrc."""
        key = os.environ.get(self.key)
        if key:
            prepared.headers["Authorization"] = f"Bearer {key}"
        return prepared


def place(folder: Path, number: int) -> Path:
    """Where the reply to a conversation waits."""
    return folder / f"{number:06d}.json"


def chat_text(content: bytes) -> str:
    """The text of a chat completion; raises Passing if it is none."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise Passing("no chat completion")
    return without_thoughts(text)


def without_thoughts(text: str) -> str:
    """A reply without what the model thought aloud, which is no part of its answer: drafts stand there. A thought
    without an end (the reply was cut off) goes to the end of the text; one without a beginning (which some templates
    put into the prompt) begins where the text does."""
    flags = re.IGNORECASE | re.DOTALL
    text = re.sub(rf"(?:{THOUGHT}).*?(?:{THOUGHT_OVER})", "", text, flags=flags)
    text = re.split(THOUGHT_OVER, text, flags=flags)[-1]
    return re.split(THOUGHT, text, flags=flags)[0].strip()
