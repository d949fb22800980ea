"""Words and n-grams of a sample, at equal size for generated and real records: self-BLEU, the tail of the frequencies,
rarefied counts of types, and the divergence from the real training data.

genloss run metrics=[heldout,self_bleu,tail_exponent,rarefaction,ngram_kl]
genloss report --metrics self_bleu,rarefaction runs/sweep-*

Words are those of genloss.evaluate.diversity."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from genloss.core.errors import require
from genloss.core.seeds import generator
from genloss.evaluate import Evidence, SampleMetric
from genloss.evaluate.diversity import first_words, ngrams, shared_words, words

# -- self-BLEU -----------------------------------------------------------------------------------------------------


def self_bleu(texts: Sequence[list[str]], order: int = 4) -> np.ndarray:
    """BLEU [n] (0 to 1) of each text with all others as its references (Zhu et al. 2018).

    As sacrebleu has it for a sentence (Post 2018): n-gram precisions up to `order`, of those orders that the text has;
    a precision of 0 is 1/2, 1/4 ... of an n-gram; brevity by the nearest length, the shorter of two. The count of an
    n-gram in the references is its highest in any other text: the two highest of all texts and who has the first are
    kept, so that the work grows with n and not with n².
    """
    n = len(texts)
    logs, orders = np.zeros(n), np.zeros(n, dtype=int)
    zeros = np.zeros(n, dtype=int)  # orders without a match so far
    matched_any = np.zeros(n, dtype=bool)
    for size in range(1, order + 1):
        counts = [ngrams([text], size) for text in texts]
        best: dict[tuple[str, ...], tuple[int, int, int]] = {}  # highest count, who has it, the next
        for i, own in enumerate(counts):
            for gram, count in own.items():
                first, who, second = best.get(gram, (0, -1, 0))
                best[gram] = (count, i, first) if count > first else (first, who, max(second, count))
        for i, own in enumerate(counts):
            total = max(0, len(texts[i]) - size + 1)
            if total == 0:
                continue
            matches = 0
            for gram, count in own.items():
                first, who, second = best[gram]
                matches += min(count, second if who == i else first)
            matched_any[i] |= matches > 0
            zeros[i] += matches == 0
            logs[i] += math.log(matches / total if matches else 0.5 ** zeros[i] / total)
            orders[i] += 1
    lengths = np.sort([len(text) for text in texts])
    found = np.zeros(n)
    for at in np.flatnonzero(matched_any).tolist():
        length = len(texts[at])
        found[at] = min(1.0, math.exp(1 - _nearest(lengths, length) / length)) * math.exp(logs[at] / orders[at])
    return found


def _nearest(lengths: np.ndarray, own: int) -> int:
    """The nearest length of another text; of two the shorter. lengths: of all texts, rising."""
    at = bisect_left(lengths, own)
    if at + 1 < len(lengths) and lengths[at + 1] == own:  # another text of this length
        return own
    before = int(lengths[at - 1]) if at > 0 else -(10**9)
    after = int(lengths[at + 1]) if at + 1 < len(lengths) else 10**9
    return before if own - before <= after - own else after


@dataclass
class SelfBleu(SampleMetric):
    """self_bleu: mean BLEU-4 of `n` records with the n - 1 others as references, 0 to 1; the lower, the more diverse.
    It rises with the number of references: n records are drawn of the sample and of its floor, or all where they have
    fewer."""

    n: int = 500
    order: int = 4
    least = 16

    def __post_init__(self) -> None:
        require(self.n >= self.least, "n", self.n, f"at least {self.least}")
        require(1 <= self.order <= 6, "order", self.order, "from 1 to 6")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        drawn = generator(evidence.seed, "self-bleu").permutation(len(table))[: self.n]
        texts = [words(text) for text in evidence.texts(table.take(pa.array(np.sort(drawn))))]
        return {"self_bleu": float(self_bleu(texts, self.order).mean())}


@dataclass
class OfWords(SampleMetric):
    """A metric of equally many words of the sample and its floor, `n_words` at most; of fewer than `least_words` it
    says nothing."""

    n_words: int = 20_000
    least = 16
    least_words: ClassVar[int] = 100

    def __post_init__(self) -> None:
        require(self.n_words >= self.least_words, "n_words", self.n_words, f"at least {self.least_words}")

    def shared(self, evidence: Evidence) -> int:
        """How many words each side has."""
        return shared_words(evidence, self.n_words)

    def lacks(self, evidence: Evidence) -> str | None:
        few = super().lacks(evidence)
        if few or (size := self.shared(evidence)) >= self.least_words:
            return few
        return f"{size} words, and {type(self).__name__} needs {self.least_words}"


# -- frequencies ---------------------------------------------------------------------------------------------------


def tail_exponent(counts: np.ndarray, x_min: int) -> float:
    """α of P(count) ∝ count^-α for counts of at least `x_min`, by maximum likelihood of the discrete law (Clauset,
    Shalizi & Newman 2009, eq. 3.5). counts: int [n] of types; those below x_min are not looked at."""
    from scipy.optimize import minimize_scalar
    from scipy.special import zeta

    tail = counts[counts >= x_min]
    mean = float(np.log(tail).mean())
    return float(minimize_scalar(lambda a: math.log(zeta(a, x_min)) + a * mean, bounds=(1.01, 20), method="bounded").x)


def chosen_x_min(counts: np.ndarray, least: int) -> int:
    """The count from which on a power law fits best: with the least Kolmogorov-Smirnov distance, of those that leave
    `least` types (Clauset et al. 2009, section 3.3)."""
    from scipy.special import zeta

    best, chosen = math.inf, 1
    for x_min in np.unique(counts):
        tail = np.sort(counts[counts >= x_min])
        if len(tail) < least:
            break
        alpha = tail_exponent(counts, int(x_min))
        values, first = np.unique(tail, return_index=True)
        above = 1 - first / len(tail)  # share of types with at least this count
        distance = float(np.abs(above - zeta(alpha, values) / zeta(alpha, x_min)).max())
        if distance < best:
            best, chosen = distance, int(x_min)
    return chosen


@dataclass
class TailExponent(OfWords):
    """tail_exponent: α of P(a word occurs k times) ∝ k^-α for k >= tail_x_min, by maximum likelihood, over equally many
    words of both sides; Zipf's law with exponent 1 is α = 2. tail_types: words of that tail; below `types` of them
    nothing is said. x_min: null chooses it on the first `n_words` words of real training records
    (Kolmogorov-Smirnov), whatever was generated, so that all rounds of an arm share it."""

    x_min: int | None = None
    types: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.x_min is None or self.x_min >= 1, "x_min", self.x_min, "at least 1, or null")
        require(self.types >= 10, "types", self.types, "at least 10")

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        size = self.shared(evidence)
        x_min = self.x_min or chosen_x_min(self._real(evidence), self.types)
        counts = _counts(evidence.texts(table), size)
        tail = int((counts >= x_min).sum())
        found = {"tail_types": float(tail), "tail_x_min": float(x_min)}
        if tail >= self.types and counts.max() > x_min:
            found["tail_exponent"] = tail_exponent(counts, x_min)
        return found

    def _real(self, evidence: Evidence) -> np.ndarray:
        """Of `evidence.size` records, where `evidence.reference` has as many as were generated."""
        return _counts(evidence.texts(evidence.some_real(evidence.size)), self.n_words)


def _counts(texts: Iterable[str], size: int) -> np.ndarray:
    """How often each word occurs among the first `size` ones."""
    return np.array(list(Counter(itertools.chain.from_iterable(first_words(texts, size))).values()), dtype=int)


def rarefied(counts: np.ndarray, size: int) -> float:
    """Expected number of types in `size` words drawn without replacement: Σ 1 - C(N - c, size) / C(N, size) (Hurlbert
    1971). counts: int [types], of N words together."""
    from scipy.special import gammaln

    total = int(counts.sum())
    rest = total - counts
    possible = rest >= size  # else a draw has the type for sure
    rest = rest[possible]
    log = gammaln(rest + 1) - gammaln(rest - size + 1) - gammaln(total + 1) + gammaln(total - size + 1)
    return float(len(counts) - np.exp(log).sum())


@dataclass
class Rarefaction(OfWords):
    """types_rarefied: different words that `n_words` words of the sample have, exactly the mean over all ways to draw
    them; types_words: how many are drawn: n_words, fewer where a side has fewer. Comparable where samples differ in
    length, which `distinct` of the first words is only on average."""

    panels = ("types_rarefied",)
    n_words: int = 5_000

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        size = self.shared(evidence)
        counts = Counter(w for text in evidence.texts(table) for w in words(text))
        found = rarefied(np.array(list(counts.values()), dtype=int), size)
        return {"types_rarefied": found, "types_words": float(size)}


# -- divergence ----------------------------------------------------------------------------------------------------


def divergence(real: Counter, made: Counter) -> float:
    """KL(real ‖ made) in nats over the n-grams of the real side, all others taken together; half a count is added to
    each (Krichevsky & Trofimov 1981), so that it is finite. Taking others together can only lower it."""
    grams = list(real)
    p = np.array([real[g] for g in grams] + [0.0]) + 0.5
    known = np.array([made[g] for g in grams], dtype=float)
    q = np.append(known, made.total() - known.sum()) + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


@dataclass
class NgramKL(OfWords):
    """ngram_kl_1 .. ngram_kl_N (nats): KL divergence of the sample's n-grams from those of real training records, over
    equally many words of each. What is compared with is the same for the sample and its floor; the floor is what two
    samples of real text differ by."""

    panels = ("ngram_kl_1",)
    max_n: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.max_n <= 4, "max_n", self.max_n, "from 1 to 4")

    def shared(self, evidence: Evidence) -> int:
        return shared_words(evidence, self.n_words, evidence.reference)

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        size = self.shared(evidence)
        real = first_words(evidence.texts(evidence.reference), size)
        made = first_words(evidence.texts(table), size)
        return {f"ngram_kl_{n}": divergence(ngrams(real, n), ngrams(made, n)) for n in range(1, self.max_n + 1)}
