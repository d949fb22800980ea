"""What a model thinks aloud before it answers, which is no part of its answer: drafts stand there."""

from __future__ import annotations

import re

# How models mark what they think before they answer. The last pair is that of gpt-oss, whose thoughts end where the
# answer's channel begins.
WORD = r"(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)"
THOUGHT = rf"<{WORD}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>(?:analysis|commentary)"
THOUGHT_OVER = rf"</{WORD}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>"


def without_thoughts(text: str) -> str:
    """A reply without what the model thought aloud. A thought without an end (the reply was cut off) goes to the end of
    the text; one without a beginning (which some templates put into the prompt) begins where the text does."""
    flags = re.IGNORECASE | re.DOTALL
    text = re.sub(rf"(?:{THOUGHT}).*?(?:{THOUGHT_OVER})", "", text, flags=flags)
    text = re.split(THOUGHT_OVER, text, flags=flags)[-1]
    return re.split(THOUGHT, text, flags=flags)[0]
