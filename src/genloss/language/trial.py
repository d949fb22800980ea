"""What a chat template costs, found out in a process of its own before it is used here: it is a program of whoever has
written it, and its sandbox bounds what it can reach, not how long it takes.

    endless("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})     # in a few words

Such loops take hours, and `10 ** (10 ** 9)` is one step that neither a signal nor another thread interrupts. A
process can be ended anywhere, on every system."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from genloss.core.machine import end_with
from genloss.language.chat import ASSISTANT, SYSTEM, USER

SECONDS = 10.0  # for all of TALKS; templates of known models take milliseconds
MEMORY = 1 << 33  # bytes of addresses, where the system can bound them
TOO_MUCH = 3  # what the process ends with that has none left
TALK = [{"role": role, "content": f"{role} says this. " * 20} for role in (USER, ASSISTANT)]
TALKS = (TALK[:1], TALK, [{"role": SYSTEM, "content": "Be kind."}, *TALK], TALK * 16)


@lru_cache(maxsize=16)
def _endless(template: str, special: str) -> str:
    command = [sys.executable, "-c", f"from {__name__} import _write; _write()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([template, json.loads(special)]) + "\n")
        process.stdin.flush()
        process.stdout.readline()  # the libraries are there
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"did not write {len(TALKS)} short conversations in {SECONDS:g} seconds"
    if code in (TOO_MUCH, -9):  # the kernel ends what takes the memory of others
        return f"did not write {len(TALKS)} short conversations in {MEMORY >> 30} GiB of memory"
    if code:
        raise RuntimeError(f"the process that tries a chat template ended with {code}")
    return ""


def endless(template: str, special: Mapping[str, Any]) -> str:
    """What a template takes too much of; '' if it is done with a few conversations, whatever it makes of them. special:
    the tokens that a template can name."""
    return _endless(template, json.dumps(dict(special), sort_keys=True))


def _write() -> None:
    """In the process: write TALKS by the template that comes on the standard input."""
    end_with(os.getppid())
    from transformers.utils.chat_template_utils import render_jinja_template

    template, special = json.loads(sys.stdin.readline())
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows and macOS have no such bound
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print("ready", flush=True)
    for talk in TALKS:
        for asks in (False, True):
            try:
                render_jinja_template([talk], chat_template=template, add_generation_prompt=asks, **special)
            except MemoryError:
                os._exit(TOO_MUCH)
            except Exception:  # who uses it is told what fails
                continue
