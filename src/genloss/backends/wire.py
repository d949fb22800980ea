"""One request to an OpenAI-compatible server, by the `openai` client, within bounds.

    came = exchange("http://localhost:8000/v1/completions", {"model": "m", "prompt": "2+2="}, key="", seconds=60)
    came.status, came.headers, came.content

The client makes the request, its headers and its address. What it does not do is done below it, in the HTTP client that
it is given: an end of the whole exchange (its timeouts are those of one piece, so that a server which drips bytes of a
header is waited for forever), a limit of a body's size, no redirects, no key where none is meant (it would take
OPENAI_API_KEY and organisations from the environment), and what had come when a reply is cut off, since that is paid.
Its own retries are off: they wait beyond a deadline and repeat what only money helps."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

LARGEST = 1 << 18  # bytes of a reply that are read, unpacked
CHAT, COMPLETIONS = "/chat/completions", "/completions"
MINE = ("authorization", "openai-organization", "openai-project")  # headers that the client fills from the environment


class Broken(Exception):
    """An exchange that gave no whole reply, and why, in a few words."""


@dataclass
class Came:
    """What came back; after `Broken` as far as it came."""

    status: int = 0  # of HTTP; 0: nothing came
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    asked: bool = False  # whether the request had been sent as a whole


class Wire(httpx2.AsyncClient):
    """The HTTP client of one request."""

    def __init__(self, came: Came, key: str, query: str):
        super().__init__(timeout=None, follow_redirects=False, verify=_certificates())
        self.came, self.key, self.asked_for = came, key, query

    async def send(self, request: Any, **options: Any) -> Any:
        """A reply whose body is there."""
        for name in MINE:
            request.headers.pop(name, None)
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        if self.asked_for:  # as it is written: the client spells a query in another way
            request.url = request.url.copy_with(query=self.asked_for.encode())
        request.headers["accept-encoding"] = "identity"  # what is packed all the same is unpacked, up to the limit

        async def trace(event: str, _: Any) -> None:
            if event.endswith("send_request_body.complete"):
                self.came.asked = True

        request.extensions["trace"] = trace
        reply = await super().send(request, **{**options, "stream": True, "follow_redirects": False})
        self.came.status, self.came.headers = reply.status_code, reply.headers
        try:
            async for piece in reply.aiter_bytes():
                self.came.content += piece
                if len(self.came.content) > LARGEST:
                    self.came.content = self.came.content[:LARGEST]
                    raise Broken(f"more than {LARGEST} bytes")
        finally:
            await reply.aclose()
        # the client looks at the status, and no further: the body is in `came`, unpacked
        return httpx2.Response(reply.status_code, content=self.came.content, request=request)


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a request."""
    return httpx2.create_ssl_context()


def exchange(address: str, body: Mapping[str, Any], key: str, seconds: float, came: Came) -> None:
    """Post `body` to an address that ends in CHAT or COMPLETIONS, and write to `came` what comes back, whatever its
    status; raises Broken. seconds: for all of it."""
    asyncio.run(_within(address, body, key, seconds, came))


async def _within(address: str, body: Mapping[str, Any], key: str, seconds: float, came: Came) -> None:
    try:
        async with asyncio.timeout(seconds), Wire(came, key, urlsplit(address).query) as wire:
            await _post(wire, address, body)
    except TimeoutError:
        raise Broken("timeout") from None
    except openai.APIStatusError:
        pass  # it is in `came`
    except openai.APIConnectionError as error:
        raise Broken(type(error.__cause__ or error).__name__) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError, OSError, ValueError) as error:
        raise Broken(type(error).__name__) from None


async def _post(wire: Wire, address: str, body: Mapping[str, Any]) -> None:
    """By the resource of the client that the address names."""
    known = urlsplit(address)
    chat = known.path.endswith(CHAT)
    base = known._replace(path=known.path.removesuffix(CHAT if chat else COMPLETIONS), query="").geturl()
    client = openai.AsyncOpenAI(
        base_url=base,
        api_key=wire.key or "none",
        max_retries=0,
        timeout=None,
        http_client=wire,
    )
    resource: Any = client.chat.completions if chat else client.completions
    first = "messages" if chat else "prompt"
    rest = {name: value for name, value in body.items() if name not in ("model", first)}
    await resource.with_raw_response.create(model=body["model"], **{first: body[first]}, extra_body=rest)
