"""What an OpenAI-compatible server's reply says: chat completions and completions, whole or as a stream of events.

    reply = read(b'{"choices": [{"text": "4", "finish_reason": "stop"}], "model": "m"}')
    reply.text, reply.finish, reply.model

Servers differ in what they leave out, and what they send is untrusted: nothing here raises anything but `NoReply`."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from genloss.core.words import characters

# What a server calls an error that nothing but money helps against
SPENT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
TEXTS = ("text", "output_text")  # of the parts of a content
BROKEN = ("abort", "error")  # of finish_reason: it is no reply
CUT_OFF = ("length", "max_tokens", "model_length", "content_filter")  # of finish_reason: the text is not whole
DAY = 86_400.0
BYTES = 3  # of a token, where a server does not count them
MOST = 10**7  # tokens of a conversation or its reply; a server that counts more is not believed


class NoReply(ValueError):
    """A body that is no completion; `words`: what it says of an error, if anything."""

    def __init__(self, words: str = ""):
        super().__init__(f"no completion{f' ({words})' if words else ''}")


class Reply(NamedTuple):
    text: str  # as it was sent; '' if the model said nothing
    finish: str | None = None  # finish_reason; None: the server does not say
    model: str | None = None  # what the server says it is
    logprobs: list[float] | None = None  # of the text's tokens
    choices: int = 1
    counted: tuple[int, int] | None = None  # tokens sent and written, where the server counts them

    @property
    def cut(self) -> bool:
        """Whether the server says that the text is not whole."""
        return self.finish in CUT_OFF


BAD = (ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration, OverflowError)


def read(content: bytes, key: str = "") -> Reply:
    """The first choice of a completion, or of a stream of them. Raises NoReply, whose words do not show the key."""
    try:
        known = chunks(content)
        texts = [text for chunk in known for text in contents(chunk)]
        choices = [first(chunk["choices"]) for chunk in known if chunk["choices"]]
        finish = next((c["finish_reason"] for c in reversed(choices) if c.get("finish_reason")), None)
        if not choices or finish in BROKEN:
            raise NoReply(f"finish_reason {finish}" if choices else "no choice")
        model = next((chunk["model"] for chunk in known if chunk.get("model")), None)
        logprobs = [_logprobs(choice) for choice in choices if choice.get("logprobs")]
        return Reply(
            characters("".join(texts)),
            finish if isinstance(finish, str) else None,
            model if isinstance(model, str) else None,
            [number for each in logprobs for number in each] if logprobs else None,
            max(len(chunk["choices"]) for chunk in known),
            counted(known),
        )
    except NoReply:
        raise
    except BAD:
        _, words = complaint(content, key)
        raise NoReply(words) from None


def chunks(content: bytes) -> list[Any]:
    """The completion in a body, or those of an event stream (the reply to options={stream: true})."""
    lines = re.split(r"\r?\n", content.decode(errors="replace"))  # other ends of lines are text
    if not any(line.startswith("data:") for line in lines[:10]):
        return [json.loads(content)]
    events = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    return [json.loads(event) for event in events if event != "[DONE]"]


def first(choices: Any) -> Any:
    """The first choice, which need not be sent first."""
    return min(choices, key=lambda choice: choice.get("index") or 0)


def contents(completion: Any) -> list[str]:
    """The texts of the first choice: its own, or those of its message or delta, whose content is a text, parts of it,
    or null."""
    choices = completion["choices"]
    if not choices and completion.get("object") in ("chat.completion.chunk", "text_completion"):
        return []  # the last of a stream counts tokens
    choice = first(choices)
    if "text" in choice:
        return [choice["text"]] if isinstance(choice["text"], str) else []
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


def _logprobs(choice: Any) -> list[float]:
    """Of the tokens of a choice, as either of the two interfaces writes them."""
    known = choice["logprobs"]
    numbers = known.get("token_logprobs") or [token["logprob"] for token in known.get("content") or []]
    found = [math.nan if number is None else float(number) for number in numbers]
    if not all(-math.inf < number <= 1e-3 for number in found):  # rounding may leave a little above 0
        raise NoReply("logprobs that are none")
    return found


def counted(known: list[Any]) -> tuple[int, int] | None:
    """Tokens (sent, written), as the server counts them; None if it does not, or cannot be believed."""
    try:
        usage = next(chunk["usage"] for chunk in reversed(known) if chunk.get("usage"))
        sent, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except BAD:
        return None
    return (sent, written) if 0 <= sent <= MOST and 0 <= written <= MOST else None


def tokens_of(content: bytes, asked: str) -> tuple[int, int]:
    """Tokens (sent, written) of a reply, as the server counts them or by the length of the texts."""
    try:
        found = counted(chunks(content))
    except BAD:
        found = None
    return found or (len(asked.encode(errors="replace")) // BYTES, len(content) // BYTES)


def wait_of(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks for: of retry-after-ms, or of Retry-After, a number or a date; 0 without them."""
    found = {name.lower(): value for name, value in headers.items()}
    said = found.get("retry-after", "")
    for text, unit in ((found.get("retry-after-ms", ""), 1000), (said, 1)):
        with contextlib.suppress(ValueError):
            return min(max(0.0, float(text) / unit), DAY)
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
    except BAD:
        pass
    text = text.replace(key, "***") if key else text  # before it is cut: a part of a key is one, too
    return code, " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())[:200]
