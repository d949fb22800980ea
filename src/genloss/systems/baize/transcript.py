"""Transcripts: the turns of a text, or of tokens, that a model wrote for both sides, and which are a conversation.

    kept(opening, of_text("Blue. [|Human|] Why? [|AI|] It", ended=False), most=3)     # the last turn is half-open

What is kept is a conversation by `genloss.language.chat.wrong`; the tail from the first turn on that is none is
dropped, with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from genloss.core.contracts import Conversation
from genloss.language.chat import ASSISTANT, USER
from genloss.language.tokenizer import Codec

HUMAN, AI = "[|Human|]", "[|AI|]"  # the tags that Baize writes before a turn
TAGS = re.compile(r"(\[\|Human\|\]|\[\|AI\|\])")
ROLE = {HUMAN: USER, AI: ASSISTANT}
# why a tail is dropped
OUT_OF_ORDER, EMPTY, HALF_OPEN, ILL_FORMED = "out_of_order", "empty", "half_open", "ill_formed"
UNANSWERED, TOO_MANY, TOO_LONG = "unanswered", "too_many", "too_long"


class Turn(NamedTuple):
    role: str  # '': of nobody
    content: str
    whole: bool  # whether it has ended


class Talk(NamedTuple):
    messages: list[dict[str, str]]  # [] where not even the first answer is one
    tail: str  # why what came after it was dropped; '' if nothing was


def kept(opening: Conversation, turns: Iterable[Turn], most: int) -> Talk:
    """The longest beginning that is a conversation of at most so many turns of the user. opening: a conversation that
    waits for the assistant."""
    messages = [dict(m) for m in opening]
    asked, tail, due = sum(m["role"] == USER for m in opening), "", ASSISTANT
    for turn in turns:
        tail = fault(turn, due)
        if not tail and due == USER and asked == most:
            tail = TOO_MANY
        if tail:
            break
        messages.append({"role": turn.role, "content": turn.content})
        asked += turn.role == USER
        due = USER if due == ASSISTANT else ASSISTANT
    if messages[-1]["role"] == USER:  # nobody answers it
        messages, tail = messages[:-1], tail or UNANSWERED
    return Talk(messages if len(messages) > len(opening) else [], tail)


def fault(turn: Turn, due: str) -> str:
    """Why a turn does not go on with a conversation in which `due` is to speak; '' if it does."""
    if not turn.role:
        return ILL_FORMED
    if turn.role != due:
        return OUT_OF_ORDER
    if not turn.whole:
        return HALF_OPEN
    return "" if turn.content.strip() else EMPTY


def of_text(text: str, ended: bool) -> list[Turn]:
    """The turns of a text with tags that goes on from the assistant's tag. A model that begins the transcript again,
    with a turn of the user, repeats the question; that turn is left out. ended: whether the model ended the text
    itself."""
    first, *rest = TAGS.split(text)
    parts = [(AI, first), *zip(rest[::2], rest[1::2], strict=True)]
    if not first.strip() and len(parts) > 1:
        parts = parts[1:]
        if parts[0][0] == HUMAN and len(parts) > 1:
            parts = parts[1:]
    last = len(parts) - 1
    return [Turn(ROLE[tag], said.strip(), i < last or ended) for i, (tag, said) in enumerate(parts)]


def of_ids(ids: Sequence[int], codec: Codec) -> list[Turn]:
    """The turns of tokens that go on from the mark of the assistant's turn, by the codec's template. A turn that does
    not begin as its template has it, or holds the mark of another, is nobody's."""
    marks = {who: codec.encode([opening], special=True)[0][1:] for who, opening in codec.openings().items()}
    pieces: list[list[int]] = [[]]
    for i in ids:
        if i == codec.end:
            pieces.append([])
        else:
            pieces[-1].append(i)
    turns = []
    for number, piece in enumerate(pieces):
        whole = number < len(pieces) - 1
        if not whole and number and not codec.decode([piece])[0].strip() and not _marked(piece, codec):
            break  # nothing, or what the template writes behind a turn
        who, said = ASSISTANT, piece
        if number:
            who = next((role for role, mark in marks.items() if piece[: len(mark)] == mark), "")
            said = piece[len(marks[who]) :] if who else piece
        if _marked(said, codec):
            who = ""
        turns.append(Turn(who, codec.decode([said])[0], whole))
    return turns


def _marked(ids: Sequence[int], codec: Codec) -> bool:
    return any(codec.is_special(token) for token in codec.spelled(ids))
