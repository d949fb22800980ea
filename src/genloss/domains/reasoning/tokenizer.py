"""The tokenizer of problems: a byte-level BPE that leaves digits alone.

Numbers are read and written digit by digit, which is what arithmetic needs at this size (Nogueira et al. 2021, arXiv
2102.13019); the words around them, the same in every problem of a family, become a few tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from genloss.language.tokenizer import END


def train_digits(texts: list[str], vocabulary: int, context: int, out: Path) -> None:
    """Train on `texts` and save in the layout of transformers, as `text.tokenizer.train_bpe` does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # no split at spaces: a phrase may become one token
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
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
