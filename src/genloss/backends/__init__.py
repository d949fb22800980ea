"""Backends: who goes on from prompts. torch, the model of the round in this process; ctranslate2, the same by a faster
engine; openai, another model behind an OpenAI-compatible server.

A backend is a dataclass derived from `genloss.core.contracts.Backend` and a file in conf/recipe/backend/; recipes that
have one derive from `Asks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genloss.backends.torch import Torch
from genloss.core.contracts import Backend
from genloss.core.plugin import build, plain


def made(config: Any) -> Backend:
    """The backend that the node `backend` of a plug-in describes; without one it is `Torch`."""
    node: Mapping[str, Any] = plain(config)
    return build(node, Backend, "backend") if node else Torch()
