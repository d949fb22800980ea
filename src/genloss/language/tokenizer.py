"""Tokenizers: a byte-level BPE trained on the real training split, or a saved one. Always the `tokenizers` library.

    genloss run domain.tokenizer=my/tokenizer                     # or hub:OWNER/NAME@REVISION
    genloss run model=smollm2                                     # the model's own
    genloss run model=smollm2 domain.end='<|im_end|>'             # documents end with another of its tokens

A record is `begin` + tokens + `end`. Of a saved tokenizer these are its document separator, as far as it has one: what
a chat model's tokenizer calls begin and end of a sequence are the marks of a turn, which no document has. They are
written to `document.json` beside the tokenizer, whose own files stay as they are."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError, first_line, nearest
from genloss.language import saved

ENOUGH = 1 << 26  # characters that a BPE learns from: memory grows with the different words in them
END = "<|endoftext|>"  # begins and ends every record
DOCUMENT = "document.json"  # {"begin": token, "end": token}; without it they are the tokenizer's bos and eos
# What ends a document, by the makers of models; in this order, since chat models keep the one of their base.
SEPARATORS = (END, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
BEGINNINGS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<s>", "<bos>")  # what begins one


def at_most(texts: Iterable[str], characters: int) -> Iterator[str]:
    """The texts until so many characters have come."""
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def train_bpe(texts: Iterable[str], vocabulary: int, context: int, out: Path, *, digits: bool = False) -> None:
    """Byte-level BPE (Radford et al. 2019) with one special token, saved in the layout of transformers.

    digits: a token for every digit, which is what arithmetic needs at this size (Nogueira et al. 2021, arXiv
    2102.13019), and no split at spaces: the words around the numbers, the same in every problem of a family, become a
    few tokens.

    Of more than ENOUGH characters the first are taken: records lie in a random order, so they are a sample of all.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not digits)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if digits else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(at_most(texts, ENOUGH), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END, "pad_token": END}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def use_saved(name: str, out: Path, key: str, begin: str | None = None, end: str | None = None) -> None:
    """Copy a saved Hugging Face tokenizer into the run; no code of it is run. key: what an error calls it. begin, end:
    tokens of it that begin and end a document; None: as it has them."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = saved.folder_of(name, key)
    # with a tokenizer.json it is that: the class of the model beside it may put a pre-tokenizer of its own in its
    # place (Qwen2)
    known: Any = PreTrainedTokenizerFast if (source / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = known.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
        raise UserError(key, name, f"cannot be loaded ({first_line(error)})") from None
    ids, special = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    for wanted, token in (("domain.begin", begin), ("domain.end", end)):
        if token is not None and token not in ids:
            raise UserError(wanted, token, f"is no token of {name}; {nearest(token, special)}")
    found = next((token for token in SEPARATORS if token in special), tokenizer.eos_token)
    last = end or found
    if last is None:
        raise UserError(key, name, "has no end-of-text token; records could not end. domain.end=TOKEN chooses one")
    own = tokenizer.bos_token
    first = begin or (own if own and (own in BEGINNINGS or found == tokenizer.eos_token) else last)
    tokenizer.save_pretrained(out)
    (out / DOCUMENT).write_text(json.dumps({"begin": first, "end": last}) + "\n", encoding="utf-8")
    print(f"genloss: a document begins with {first} and ends with {last} ({name})", file=sys.stderr)


def vocabulary_of(file: Path) -> dict[str, int]:
    """Every token of a tokenizer.json, with its number."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises no other kind
        raise UserError("domain.tokenizer", str(file), f"cannot be read ({first_line(error)})") from None


class Codec:
    """Texts to token ids and back. Every record is `begin` + tokens + `end` (the same id for the trained BPE)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tokenizer = self._read(special=False)
        config = json.loads((folder / "tokenizer_config.json").read_text())

        def token(key: str) -> str | None:
            value = config.get(key)
            return value["content"] if isinstance(value, dict) else value

        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        document = folder / DOCUMENT
        marks = json.loads(document.read_text(encoding="utf-8")) if document.is_file() else {}
        self.end: int = ids[marks.get("end") or token("eos_token") or END]
        self.begin: int = ids.get(marks.get("begin") or token("bos_token") or "", self.end)
        self.size: int = max(ids.values()) + 1  # there may be gaps between the ids

    def _read(self, special: bool) -> Any:
        from tokenizers import Tokenizer

        tokenizer: Any = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = not special  # as the characters that they are spelled with
        return tokenizer

    @cached_property
    def _knowing(self) -> Any:
        """The tokenizer that makes special tokens of what spells them."""
        return self._read(special=True)

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Token ids without `begin` and `end`. A text that spells a special token is its characters: texts are data,
        also those that a model made. special: it is that token, for a prompt that the caller has written."""
        if special:
            return [e.ids for e in self._knowing.encode_batch_fast(list(texts), add_special_tokens=False)]
        marks = {self.begin, self.end}  # which need not be special where `domain.end` has chosen them
        return [
            [i for i in e.ids if i not in marks]
            for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def spelled(self, ids: Iterable[int]) -> list[str]:
        """What tokens are called in the vocabulary; '' of a number that is none."""
        return [self._tokenizer.id_to_token(i) or "" for i in ids]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(ids, skip_special_tokens=True)

    @cached_property
    def _chat(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(self.folder)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's next turn, by the model's own template: what
        `apply_chat_template` of transformers gives. A message that spells a special token is its characters."""
        template = self._chat
        if not template.chat_template:
            raise UserError("tokenizer", str(self.folder), "has no chat template; its model answers no conversations")

        def written(contents: Sequence[str]) -> str:
            said = [{**m, "content": content} for m, content in zip(messages, contents, strict=True)]
            return template.apply_chat_template(said, tokenize=False, add_generation_prompt=True)

        contents = [m["content"] for m in messages]
        if not any(token in content for token in self._marks for content in contents):
            return self.encode([written(contents)], special=True)[0]
        held = [f"\ue000{i}\ue001" for i in range(len(contents))]  # no text has these
        ids: list[int] = []
        for part in re.split("(\ue000\\d+\ue001)", written(held)):
            own = part in held
            ids += self.encode([contents[held.index(part)] if own else part], special=not own)[0]
        return ids

    @cached_property
    def _marks(self) -> list[str]:
        """The special tokens, as they are spelled."""
        return [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special]


@lru_cache(maxsize=4)
def load_codec(folder: Path) -> Codec:
    return Codec(folder)
