"""Conversations: messages, the templates that write them as one text, and what of it is learned.

    [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]     # as the Hugging Face tools have it

Templates are those of transformers (Jinja, in a sandbox). What the assistant says is marked in them, by `{% generation
%}`: without the marks nobody can tell which tokens are its own, and `loss=assistant` is refused. Of a tokenizer that is
trained here the template is `turns`; `chatml` is that of SmolLM2 and Qwen 2 with the marks that theirs lack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from genloss.core.contracts import Conversation
from genloss.core.errors import UserError, first_line

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
TURNS = (*(f"<|{role}|>" for role in ROLES), "<|end|>")  # the special tokens of templates/turns.jinja
LOSSES = ("assistant", "all")  # on what the assistant says; on every token, as Baize's released code has it
LOST = ("tool_calls", "function_call", "tool_call_id")  # of a message: more than it says
OWN = Path(__file__).parent / "templates"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def wrong(messages: Any) -> str:
    """What is wrong with a conversation, in a few words; '' if nothing is: perhaps one system message, then user and
    assistant in turn, the assistant last, and nobody says nothing."""
    if isinstance(messages, str | Mapping):
        return f"messages is {type(messages).__name__}, and not a list of them"
    if not isinstance(messages, Sequence) or not messages:
        return "has no messages"
    wanted: tuple[str, ...] = (SYSTEM, USER)
    for i, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            return f"message {i} is not a role and a content"
        role, content = message["role"], message["content"]
        if role not in ROLES:
            return f"message {i} has the role {role!r}, which is none of {', '.join(ROLES)}"
        if content is not None and not isinstance(content, str):
            return f"message {i} ({role}) holds {type(content).__name__}, and not text"
        if not (content or "").strip():
            return f"message {i} ({role}) is empty"
        if lost := next((key for key in LOST if message.get(key)), ""):
            return f"message {i} ({role}) has {lost}, which would be lost: here a message is its text"
        if message.get("weight") == 0:
            return f"message {i} ({role}) has the weight 0, and all that the assistant says is learned"
        if role not in wanted:
            return f"message {i} is by {role}, where {' or '.join(wanted)} is due"
        wanted = (ASSISTANT,) if role == USER else (USER,)
    return "" if messages[-1]["role"] == ASSISTANT else f"ends with {messages[-1]['role']}, so the answer is missing"


def said_by(role: str, messages: Conversation) -> list[str]:
    return [m["content"] for m in messages if m["role"] == role]


def answered(messages: Conversation, said: str) -> list[dict[str, str]]:
    """The conversation with another last turn."""
    return [
        *({"role": m["role"], "content": m["content"]} for m in messages[:-1]),
        {"role": ASSISTANT, "content": said},
    ]


def learned(offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> list[bool]:
    """Which tokens, at these characters, are in the spans: of each, from the token with its first character to that
    with its last."""
    mask = [False] * len(offsets)
    for first, end in spans:
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > first]
        if inside:
            mask[inside[0] : inside[-1] + 1] = [True] * (inside[-1] + 1 - inside[0])
    return mask


def own_template(name: str) -> Path | None:
    """The file of a template of ours."""
    file = OWN / f"{name}.jinja"
    return file if name.isidentifier() and file.is_file() else None


@cache
def own_templates() -> frozenset[str]:
    """The texts of all templates of ours."""
    return frozenset(file.read_text(encoding="utf-8") for file in OWN.glob("*.jinja"))


def template_text(file: Path, key: str, name: str) -> str:
    """The template in a file. key, name: of it, for errors."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(key, name, f"is no file of text in UTF-8 ({first_line(error)})") from None


def refused(why: str) -> UserError:
    """Of a conversation that a template does not write."""
    return UserError("domain.template", None, f"refuses a conversation ({why})")
