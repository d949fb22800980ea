"""Who speaks next: a chat model that has learned every turn (domain.loss=all) goes on as the user, or as everyone.

    folder = voiced(data / "tokenizer", scratch, USER)        # conversations wait for the user's next turn
    folder = voiced(data / "tokenizer", scratch, EVERYONE)    # and for all turns to come, until the document ends

A backend writes the turn that a template opens and stops at the mark that `document.json` names. So another voice is
the same tokenizer with another template and another mark, and every backend in process has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from genloss.core.errors import UserError
from genloss.language.chat import USER
from genloss.language.tokenizer import DOCUMENT, SEPARATORS, TEMPLATE, Codec

EVERYONE = "everyone"
BEFORE = "{% set asked = add_generation_prompt %}{% set add_generation_prompt = false %}"
BEHIND = "{% if asked %}{{- OPENED -}}{% endif %}"


def voiced(tokenizer: Path, folder: Path, who: str) -> Path:
    """The folder in which a tokenizer/ for this voice is; it is made if it is not there. UserError where the turns of
    the user do not end as the assistant's do."""
    made = folder / who
    if (made / "ready").is_file():
        return made
    shutil.rmtree(made, ignore_errors=True)  # half made before a kill
    shutil.copytree(tokenizer, made / "tokenizer")
    codec = Codec(tokenizer)
    begin, end = codec.spelled([codec.begin, codec.end])
    openings = codec.openings()
    if not all(opening.startswith(end) for opening in openings.values()):
        raise UserError(
            "domain.template", None, f"does not end what the user says with {end}, as the assistant's turns"
        )
    if who == USER:
        own = f"{BEFORE}{codec.template}{BEHIND.replace('OPENED', json.dumps(codec.opened(USER)))}"
        (made / "tokenizer" / TEMPLATE).write_text(own, encoding="utf-8")
    else:
        end = next((token for token in SEPARATORS if codec.is_special(token)), begin)
        (made / "tokenizer" / DOCUMENT).write_text(json.dumps({"begin": begin, "end": end}) + "\n", encoding="utf-8")
    (made / "ready").touch()
    return made
