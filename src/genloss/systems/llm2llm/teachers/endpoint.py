"""A teacher behind an OpenAI-compatible chat endpoint, a hosted or a local one.

    export OPENAI_API_KEY=...            # only there: never in the config, the records or a message
    genloss run domain=reasoning recipe=llm2llm recipe/teacher=endpoint recipe.teacher.model=gpt-4o-mini
    genloss run ... recipe/teacher=endpoint recipe.teacher.url=http://localhost:8000/v1 recipe.teacher.model=my-model

The messages have the structure of Lee et al. (2024, appendix): a tutor's rules, one worked example, then the missed problem with
its gold answer; asked again, it is shown what was kept, and asked for others. The words are ours. A chat model at temperature 1
does not give the same bytes twice; what it gave is kept, and the rounds after it are reproducible from there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genloss.core.errors import UserError, require
from genloss.core.files import write_atomic
from genloss.domains.reasoning.tasks import Problem
from genloss.generate import Request
from genloss.systems.llm2llm.teachers import UNPARSEABLE, Ask, Teacher, read

if TYPE_CHECKING:
    from genloss.core.contracts import Experiment

LARGEST = 1 << 18  # bytes of a reply that are read
LISTS = 20  # beginnings of a list in a reply that are tried
THREADS = 4  # asks at a time, unless runtime.workers says otherwise
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # HTTP: worth another try

RULES = """You are an experienced tutor. A student was given a problem and did not solve it. You get the problem and its correct \
answer, and write new practice problems that train what the student lacks.
Rules:
1. Each new problem needs the same skill as the given one and is about as difficult.
2. It is worded and laid out exactly as the given one, with other content.
3. It is not the given problem, and no two new problems are the same.
4. It stands on its own: everything needed to solve it is in it.
5. It has exactly one correct answer.
6. Work the answer out carefully before you write it down; a wrong answer harms the student.
7. The answer is written in exactly the form of the given answer.
8. Reply with nothing but a JSON list of objects, each with the two texts "problem" and "answer"."""

EXAMPLE_ASKED = """Problem:
A crate holds 6 rows of 4 bottles, and 5 bottles are taken out. How many are left?
Correct answer:
6 * 4 = 24. 24 - 5 = 19. The answer is 19.
Write 1 new problem."""

EXAMPLE_TOLD = json.dumps(
    [
        {
            "problem": "A hall has 7 rows of 8 chairs, and 9 chairs are broken. How many can be used?",
            "answer": "7 * 8 = 56. 56 - 9 = 47. The answer is 47.",
        }
    ]
)


class Passing(Exception):
    """Trouble that may be over at the next try."""


@dataclass
class Endpoint(Teacher):
    """Each ask is one request, tried `attempts` times; a round's asks end after `seconds`. What was received stays: the same
    command goes on from there."""

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
    paid = True

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        require(
            address.scheme in ("http", "https") and bool(address.hostname), "url", self.url, "http://... or https://..."
        )
        require("@" not in address.netloc, "url", None, "without a password; name an environment variable in key")
        require(re.fullmatch(r"[A-Za-z_]\w*", self.key) is not None, "key", None, "the name of an environment variable")
        require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        require(1 <= self.attempts <= 100, "attempts", self.attempts, "from 1 to 100")
        require(self.pause >= 0, "pause", self.pause, "at least 0 seconds")
        for name in ("timeout", "seconds"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0 seconds")

    def check(self, experiment: Experiment) -> None:
        for library in ("requests", "tenacity"):
            if importlib.util.find_spec(library) is None:
                raise UserError("_target_", "Endpoint", f"needs {library}; pip install 'genloss[teacher]'")

    # -- what is asked -------------------------------------------------------------------------------------------------

    def messages(self, ask: Ask) -> list[dict[str, str]]:
        many = "1 new problem" if ask.n == 1 else f"{ask.n} new problems"
        parts = ["Problem:", ask.parent.prompt, "Correct answer:", ask.parent.solution or ask.parent.answer]
        if ask.kept:
            parts += ["These are written already; write others:", *(f"- {p.prompt}" for p in ask.kept)]
        elif ask.attempt:
            parts += ["What you wrote before could not be used, or exists already; write something else."]
        return [
            {"role": "system", "content": RULES},
            {"role": "user", "content": EXAMPLE_ASKED},
            {"role": "assistant", "content": EXAMPLE_TOLD},
            {"role": "user", "content": "\n".join([*parts, f"Write {many}."])},
        ]

    # -- what comes back -----------------------------------------------------------------------------------------------

    def teach(self, asks: list[Ask], request: Request) -> Iterator[tuple[int, list[Problem | str]]]:
        """In the order in which the replies come. A reply is on the disk before the next one is asked for, and is removed when
        the recipe has dealt with it."""
        if asks[0].attempt == 0:
            self.end = time.monotonic() + self.seconds
        folder, stop = request.scratch / "replies", threading.Event()
        pool = ThreadPoolExecutor(request.runtime.workers or THREADS)
        try:
            sent = {pool.submit(self.received, ask, folder, stop): ask for ask in asks}
            position = {ask.number: i for i, ask in enumerate(asks)}
            failed: UserError | None = None
            for future in as_completed(sent):
                ask = sent[future]
                try:
                    text = future.result()
                except UserError as error:  # those on their way are waited for and kept
                    failed = failed or error
                    continue
                if text is not None:
                    yield position[ask.number], parse(text, ask, request)
                    _place(folder, ask).unlink(missing_ok=True)
            if failed:
                raise failed
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def received(self, ask: Ask, folder: Path, stop: threading.Event) -> str | None:
        """The text of a reply, now on the disk; None after another ask has failed."""
        path = _place(folder, ask)
        if path.is_file():  # received before a kill
            return str(json.loads(path.read_text()))
        if stop.is_set():
            return None
        try:
            text = self.reply(ask)
        except UserError:
            stop.set()
            raise
        write_atomic(path, json.dumps(text))
        return text

    def reply(self, ask: Ask) -> str:
        """The text of the reply to one ask; UserError after the last attempt."""
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
            return attempts(self.post, ask)
        except Passing as trouble:
            tried = attempts.statistics.get("attempt_number", self.attempts)
            raise self.stopped(f"gave no reply in {tried} attempts (the last: {trouble})") from None

    def stopped(self, why: str) -> UserError:
        return UserError(
            "recipe.teacher.url", self.url, f"{why}; what was received is kept: run again to go on from there"
        )

    def post(self, ask: Ask) -> str:
        import requests

        body: dict[str, Any] = {
            "model": self.model,
            "messages": self.messages(ask),
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        address = f"{self.url.rstrip('/')}/chat/completions"
        limit = min(time.monotonic() + self.timeout, self.end)
        wait = max(0.1, limit - time.monotonic())
        try:
            with requests.post(
                address,
                json=body | self.options,
                auth=self.sign,
                timeout=wait,
                stream=True,
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            ) as reply:
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
        except requests.Timeout:
            raise Passing("timeout") from None
        except (requests.RequestException, OSError) as error:
            raise Passing(type(error).__name__) from None
        except Exception as error:  # urllib3's own, while the body is read
            if type(error).__module__.startswith("urllib3"):
                raise Passing(type(error).__name__) from None
            raise
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise Passing("no chat completion")
        return text

    def sign(self, prepared: Any) -> Any:
        """The key, as an `auth` of requests: a header of ours would give way to the user's netrc."""
        key = os.environ.get(self.key)
        if key:
            prepared.headers["Authorization"] = f"Bearer {key}"
        return prepared


def _place(folder: Path, ask: Ask) -> Path:
    return folder / f"{ask.number:06d}.json"


def parse(text: str, ask: Ask, request: Request) -> list[Problem | str]:
    """What a reply holds, at most `ask.n` of it; a reply without a list is unparseable, an empty list is empty."""
    listed = first_list(text)
    if listed is None:
        return [UNPARSEABLE]
    found: list[Problem | str] = []
    for item in listed[: ask.n]:
        problem, answer = (item.get(key) if isinstance(item, dict) else None for key in ("problem", "answer"))
        if isinstance(problem, str) and isinstance(answer, (str, int)):
            found.append(read(problem.strip(), str(answer).strip(), ask, request))
        else:
            found.append(UNPARSEABLE)
    return found or ["empty"]


def first_list(text: str) -> list[Any] | None:
    """The first JSON list of objects in a text (models wrap it in words); an empty one if that is all there is."""
    decoder = json.JSONDecoder()
    empty = None
    for match in list(re.finditer(r"\[", text))[:LISTS]:
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if value and isinstance(value[0], dict):
            return value
        if value == []:
            empty = value
    return empty
