"""Novelty: drop what is too similar to a seed or to an earlier record, by ROUGE-L (Self-Instruct, Wang et al. 2023,
arXiv 2212.10560, section 2.2: above 0.7; LLM2LLM, Lee et al. 2024, arXiv 2403.15042: above 0.95).

    genloss run curation=novelty
    genloss run domain=reasoning curation=novelty curation.novelty.threshold=0.95

F-measure and, of English, tokens are those of the `rouge-score` library without stemming, to the last bit, so that its
decisions at a threshold are ours. That library knows ASCII alone: here letters and digits of all scripts count, and the
operators beside numbers, without which 3-4-2 is 3+4*2. The longest common subsequences are computed bit by bit in
parallel by RapidFuzz (benchmarks/novelty.py)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import regex

from genloss.core import records
from genloss.core.capabilities import Responds, Texts, able
from genloss.core.contracts import HISTORY, Experiment
from genloss.core.errors import require
from genloss.core.machine import cores
from genloss.core.words import spaced
from genloss.curate import Context, Decision, RecordCurator, decision

BLOCK = 256  # records that are compared together
WIDE = 1 << 14  # others that they are compared with at a time
ROUNDING = 1e-6  # more than float32 can be off
SURROGATES = range(0xD800, 0xE000)  # no characters
OPERATOR = "[-+*/^=<>≤≥≠]"
RUN = rf"(?:[()]\s?)*{OPERATOR}(?:\s?[()]|\s?{OPERATOR})*"  # with the parentheses at its sides
TOKEN = regex.compile(rf"[\p{{L}}\p{{M}}\p{{N}}]+|(?<=[0-9]\s?){RUN}|{RUN}(?=\s?[0-9])")
SAME = str.maketrans("−×·÷", "-**/")  # the operators of print


def tokens(text: str) -> list[str]:
    """Lower case; runs of letters and digits, and where a script writes no spaces each character; each operator of a
    run that stands beside a digit, with its parentheses. Digits of any script are those of ASCII."""
    text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(SAME)
        text = spaced(re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text))
    found = TOKEN.findall(text)
    return [part for token in found for part in ([token] if token[0].isalnum() else token.replace(" ", ""))]


@dataclass
class Alphabet:
    """One character for each distinct token, so that a text is a string whose characters are its tokens."""

    known: dict[str, str] = field(default_factory=dict)

    def encode(self, texts: Iterable[str]) -> list[str]:
        return ["".join(self._character(t) for t in tokens(text)) for text in texts]

    def _character(self, token: str) -> str:
        if token not in self.known:
            number = len(self.known) + 1
            self.known[token] = chr(number if number < SURROGATES.start else number + len(SURROGATES))
        return self.known[token]


def _rough(rows: list[str], columns: list[str], workers: int) -> np.ndarray:
    """2 LCS / (a + b), float32 [rows, columns]: ROUGE-L F but for rounding."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cdist

    return cdist(rows, columns, scorer=Indel.normalized_similarity, dtype=np.float32, workers=workers)


def _exact(rough: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """F from precision and recall, in rouge-score's order of operations, for pairs of texts of a and b tokens."""
    common = np.rint(rough.astype(float) * (a + b) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = common / a, common / b
        return np.where(common > 0, 2 * precision * recall / (precision + recall), 0.0)


def _lengths(texts: list[str]) -> np.ndarray:
    return np.fromiter(map(len, texts), float, len(texts))


def rouge_l(rows: list[str], columns: list[str], workers: int = 1) -> np.ndarray:
    """ROUGE-L F of every pair of encoded texts, float64 [rows, columns]."""
    return _exact(_rough(rows, columns, workers), _lengths(rows)[:, None], _lengths(columns)[None, :])


def nearest(rows: list[str], columns: list[str], workers: int = 1) -> np.ndarray:
    """The largest ROUGE-L F of each row, float64 [rows]; only pairs that can be the largest are computed exactly."""
    found = np.zeros(len(rows))
    a, b = _lengths(rows), _lengths(columns)
    for at in range(0, len(columns), WIDE):
        rough = _rough(rows, columns[at : at + WIDE], workers)
        row, column = np.nonzero(rough >= rough.max(axis=1, keepdims=True) - ROUNDING)
        np.maximum.at(found, row, _exact(rough[row, column], a[row], b[at + column]))
    return found


@dataclass
class Novelty(RecordCurator):
    """Drop a record whose ROUGE-L to a real training record (`real`), a record that an earlier round kept (`earlier`),
    or a kept one before it in this round is above `threshold`; its score is the largest of them. Exactly at the
    threshold is kept. Records are compared in their order, which is part of the result.

    What records are compared with is in memory, 90 bytes and two to four a token each; time grows with its square, long
    before memory does."""

    threshold: float = 0.7
    column: str = ""  # of the record that is compared; empty: what the domain compares (text; prompt; requests)
    real: bool = True
    earlier: bool = True
    needs = (Texts,)

    def __post_init__(self) -> None:
        require(
            0 <= self.threshold <= 1, "threshold", self.threshold, "in [0, 1] (1: only what is beyond a copy, nothing)"
        )

    def check(self, experiment: Experiment) -> None:
        domain = experiment.domain
        columns = () if isinstance(domain, Responds) and domain.converses else domain.payload
        known = self.column in ("", *columns)
        require(known, "column", self.column, f"one of {', '.join(columns)}, or empty" if columns else "empty")

    def reads(self) -> tuple[str, ...]:
        return (HISTORY,) if self.earlier else ()

    def decide(self, table: pa.Table, context: Context) -> Decision:
        alphabet = Alphabet()
        sources = [context.data / "train.parquet"] if self.real else []
        sources += list(context.inputs.all(HISTORY)) if self.earlier else []
        pool = [text for path in sources for part in self._texts(path, context) for text in alphabet.encode(part)]
        workers = context.runtime.workers or cores()
        n = len(table)
        score, keep = np.zeros(n), np.ones(n, dtype=bool)
        for at in range(0, n, BLOCK):
            block = alphabet.encode(self._said(table.slice(at, BLOCK), context))
            score[at : at + BLOCK] = nearest(block, pool, workers)
            among = rouge_l(block, block, workers)
            for i in range(len(block)):
                before = among[i, :i][keep[at : at + i]]
                score[at + i] = max(score[at + i], float(before.max(initial=0.0)))
                keep[at + i] = score[at + i] <= self.threshold
            pool += [text for text, kept in zip(block, keep[at : at + BLOCK], strict=True) if kept]
            context.report(min(at + BLOCK, n), n, "records")
        return decision(keep, score, "too similar")

    def _said(self, table: pa.Table, context: Context) -> list[str]:
        return table.column(self.column).to_pylist() if self.column else able(context.domain, Texts).texts(table)

    def _texts(self, path: Path, context: Context) -> Iterator[list[str]]:
        columns = [self.column] if self.column else context.domain.payload
        return (self._said(part, context) for part in records.batches(path, columns))
