"""Tokenizers: a byte-level BPE trained on the real training split, or a saved one. Always the `tokenizers` library."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError, first_line
from genloss.core.places import in_project, on_hub

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")  # one of them is there
END = "<|endoftext|>"  # begins and ends every record


def train_bpe(texts: list[str], vocabulary: int, context: int, out: Path, *, digits: bool = False) -> None:
    """Byte-level BPE (Radford et al. 2019) with one special token, saved in the layout of transformers.

    digits: a token for every digit, which is what arithmetic needs at this size (Nogueira et al. 2021, arXiv
    2102.13019), and no split at spaces: the words around the numbers, the same in every problem of a family, become a
    few tokens.
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
    tokenizer.train_from_iterator(texts, trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END, "pad_token": END}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def use_saved(name: str, out: Path, key: str) -> None:
    """Copy a saved Hugging Face tokenizer (a folder, or hub:NAME) into the run; no code of it is run. key: what an
    error calls it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    bare = on_hub(name, key)
    source = bare or str(in_project(name, key))
    # with a tokenizer.json it is that: the class of the model beside it may put a pre-tokenizer of its own in its
    # place (Qwen2)
    known: Any = PreTrainedTokenizerFast if not bare and (Path(source) / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = known.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
        raise UserError(key, name, f"cannot be loaded ({first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(key, name, "has no end-of-text token; records could not end")
    tokenizer.save_pretrained(out)


class Codec:
    """Texts to token ids and back. Every record is `begin` + tokens + `end` (the same id for the trained BPE)."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        config = json.loads((folder / "tokenizer_config.json").read_text())

        def token(key: str) -> str | None:
            value = config.get(key)
            return value["content"] if isinstance(value, dict) else value

        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.end: int = ids[token("eos_token") or END]
        self.begin: int = ids.get(token("bos_token") or "", self.end)
        self.size: int = max(ids.values()) + 1  # there may be gaps between the ids

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids without `begin` and `end`. A text that spells a special token is encoded as that token's characters
        would be only if the tokenizer says so: model output is data, so special ids are removed from the middle."""
        special = {self.begin, self.end}
        return [
            [i for i in e.ids if i not in special]
            for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return self._tokenizer.decode_batch(ids, skip_special_tokens=True)


@lru_cache(maxsize=4)
def load_codec(folder: Path) -> Codec:
    return Codec(folder)
