"""Texts that a record stops at: `recipe.stop=["\\nTask"]`.

    stopped(replies, Decoding(64, stop=["\\n"]), codec, ids, prompts=None)

A backend may notice late, or not at all, that a record has written one: the record is the same."""

from __future__ import annotations

from collections.abc import Sequence

from genloss.core.contracts import Decoding, Replies
from genloss.core.records import ENDED
from genloss.language.tokenizer import Codec


def stopped(
    made: Replies, options: Decoding, codec: Codec, ids: list[list[int]], prompts: Sequence[Sequence[int]] | None
) -> Replies:
    """Replies up to where they have to stop. ids: what was written, without the prompts. An end of the model's own
    behind that place is not counted among the tokens; what was written before it is."""
    if not options.stop:
        return made
    texts, finish, tokens = list(made.texts), list(made.finish), made.tokens
    for i, text in enumerate(codec.decode(ids)):
        if (short := options.stopped(text)) is not None:
            begun = codec.decode([list(prompts[i])])[0] if prompts and options.keep_prompt else ""
            tokens -= finish[i] == ENDED
            texts[i], finish[i] = begun + short, ENDED
    return made._replace(texts=texts, finish=finish, tokens=tokens)
