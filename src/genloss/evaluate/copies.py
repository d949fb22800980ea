"""Memorisation: what of a sample was said before, by real records and by earlier generations, kept apart.

genloss run metrics=[heldout,copies]

A copy of real text is a privacy and a copyright question; a copy of an earlier generation is how a loop closes on
itself. Words are those of genloss.evaluate.diversity; case and punctuation do not hide a copy. Windows of words have
names, which no two unlike ones share; the names are sorted, so that the work grows with the words and their logarithm,
and references are read in parts that are as long as the sample."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from genloss.core import records
from genloss.core.contracts import HISTORY
from genloss.core.errors import require
from genloss.evaluate import Evidence, SampleMetric
from genloss.evaluate.diversity import words

PART = 1 << 22  # characters of a reference that are compared together, at least
PAIRS, ENTRIES = 1 << 17, 1 << 23  # pairs of texts, and shingles of theirs, that are compared together
EPSILON = 1e-9  # of a product that rounding may have put above a whole number


class Ids(dict[str, int]):
    """The number of each word, from 1 on, in the order in which they come."""

    def __missing__(self, word: str) -> int:
        self[word] = found = len(self) + 1
        return found


@dataclass(frozen=True)
class Coded:
    """Texts as numbers: the words of each, and a 0 that ends it."""

    words: np.ndarray  # int32 [words + texts]
    lengths: np.ndarray  # int64 [texts], words of each

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], ids: Ids) -> Coded:
        found, lengths = array("i"), array("q")
        for text in texts:
            found.extend(map(ids.__getitem__, text))
            found.append(0)
            lengths.append(len(text))
        return cls(np.frombuffer(found, dtype=np.int32), np.frombuffer(lengths, dtype=np.int64))


def in_order(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys, int64 [n], as they rise, and where each of them was, int32 [n]."""
    import torch  # sorts in half of numpy's time

    rising, order = torch.sort(torch.from_numpy(keys))
    del keys  # 20 million are 160 MB
    return rising.numpy(), order.to(torch.int32).numpy()


def begins(rising: np.ndarray) -> np.ndarray:
    """bool [n]: where another value begins."""
    found = np.ones(len(rising), dtype=bool)
    np.not_equal(rising[1:], rising[:-1], out=found[1:])
    return found


def since(begin: np.ndarray) -> np.ndarray:
    """int32 [n]: the last place at which something began."""
    return np.maximum.accumulate(np.where(begin, np.arange(len(begin), dtype=np.int32), 0))


def followed(some: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places as their keys rise, and where each key begins, int32 [n]."""
    rising, order = in_order(keys)
    return some[order], since(begins(rising))


def distinct(keys: np.ndarray) -> np.ndarray:
    """The different ones of some numbers, which are sorted; np.unique takes eight times as long for millions."""
    keys.sort()
    return keys[begins(keys)]


def split(keys: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n] each: quotients and remainders."""
    quotients = (keys // base).astype(np.int32)
    return quotients, (keys - quotients.astype(np.int64) * base).astype(np.int32)


class Windows:
    """What some texts share with others, by the names of their windows of words: of one size, two have the same name
    if and only if they have the same words (Karp, Miller & Rosenberg 1972: a name of 2k words is the rank of a pair of
    names of k words). A window that is longer than its text has left ends with the text."""

    def __init__(self, own: Coded, others: Coded):
        self.own, self.texts = len(own.words), len(own.lengths)
        self.lengths = np.concatenate([own.lengths, others.lengths])
        self.first = np.cumsum(self.lengths + 1) - self.lengths - 1  # where each text begins
        numbers = np.concatenate([own.words, others.words])
        end = np.repeat(self.first + self.lengths + 1, self.lengths + 1)
        self.left = (end - np.arange(len(numbers))).astype(np.int32)  # of the text from here on, its end included
        self.levels = [numbers]  # int32 [n] each: names of 1, 2, 4 ... words from here on, which rise with the words

    def _joined(self, names: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
        """Names, int32 [n], of what two names say, here and `offset` words on; and their order, int32 [n]. A name is
        the place of the first such window in that order."""
        order, begin = followed(np.arange(len(names), dtype=np.int32), self._pairs(names, offset))
        found = np.empty_like(order)
        found[order] = begin
        return found, order

    def _pairs(self, names: np.ndarray, offset: int) -> np.ndarray:
        keys = names.astype(np.int64) * (int(names.max()) + 2)
        keys[:-offset] += np.where(self.left[:-offset] > offset, names[offset:] + 1, 0)
        return keys

    def _level(self, k: int) -> np.ndarray:
        """Names of 2^k words."""
        while len(self.levels) <= k:
            names, self.order = self._joined(self.levels[-1], 1 << len(self.levels) - 1)
            self.levels.append(names)
        return self.levels[k]

    def longest(self) -> np.ndarray:
        """int64 [n]: the most words in a row that a text shares with one of the others. Sorted by what follows, the
        place that shares most with another text has it next to it, before or after (Manber & Myers 1993). Windows that
        one side alone has are not sorted further (Larsson & Sadakane 2007)."""
        names = self._level(max(1, len(self.levels) - 1))
        order, levels = self.order.copy(), self.levels.copy()
        size, most = 1 << len(levels) - 1, int(self.lengths[: self.texts].max(initial=0))
        asked = np.ones(self.own, dtype=bool)  # places of the longest windows of their text that another one has
        some, name = order, names[order]
        while True:
            on = self._on_both(some, name) & (self.left[some] > size)
            some, name = some[on], name[on]
            hit = np.zeros(self.own, dtype=bool)
            hit[some[some < self.own]] = True
            has = np.logical_or.reduceat(hit, self.first[: self.texts])
            asked = np.where(np.repeat(has, self.lengths[: self.texts] + 1), hit, asked)
            if size >= most or not len(some):
                break
            some, again = followed(some, name.astype(np.int64) * len(order) + names[some + size])
            first = since(begins(name))
            order[name - first + np.arange(len(some), dtype=np.int32)] = some
            name += again - first
            names = names.copy()
            names[some] = name
            levels.append(names)
            size *= 2
        return self._longest(levels, order, asked)

    def _on_both(self, some: np.ndarray, name: np.ndarray) -> np.ndarray:
        """bool [n]: which of some places have a name, of those that rise, that both sides have."""
        first = np.flatnonzero(begins(name))
        both = (np.minimum.reduceat(some, first) < self.own) & (np.maximum.reduceat(some, first) >= self.own)
        return np.repeat(both, np.diff(first, append=len(name)))

    def _longest(self, levels: list[np.ndarray], order: np.ndarray, asked: np.ndarray) -> np.ndarray:
        n = len(order)
        other = order >= self.own
        place = np.arange(n, dtype=np.int32)
        before = np.maximum.accumulate(np.where(other, place, -1))
        after = np.minimum.accumulate(np.where(other, place, n)[::-1])[::-1]
        wanted = np.zeros(n, dtype=bool)
        wanted[: self.own] = asked
        wanted = wanted[order]
        best = np.zeros(self.own, dtype=np.int32)
        for near in (before, after):
            has = np.flatnonzero(wanted & (near >= 0) & (near < n))
            for some in np.array_split(has, 1 + len(has) // PAIRS):
                here = order[some]
                best[here] = np.maximum(best[here], self._common(levels, here, order[near[some]]))
        return np.maximum.reduceat(best, self.first[: self.texts]).astype(np.int64)

    def _common(self, levels: list[np.ndarray], here: np.ndarray, there: np.ndarray) -> np.ndarray:
        """int64 [n]: words that are the same from two places on, to the end of the first one's text at most."""
        same, most = np.zeros_like(here), self.left[here] - 1
        for k in reversed(range(len(levels))):
            equal = levels[k][here + same] == levels[k][there + same]
            same = np.where(equal, np.minimum(same + (1 << k), most), same)
        return same

    def near(self, size: int, threshold: float, asked: np.ndarray) -> np.ndarray:
        """bool [n]: which of the `asked` texts (bool [n]) have, with one of the others, a Jaccard similarity of at
        least `threshold` of their sets of `size` words in a row (a shorter text has itself). Exactly: a pair that is
        near shares one of its rarest shingles (prefix filter, Chaudhuri et al. 2006; Bayardo et al. 2007), and not too
        late in either (Xiao et al. 2008); those pairs are counted."""
        k = size.bit_length() - 1
        rest = size - (1 << k)
        grams = self._joined(self._level(k), rest)[0] if rest else self._level(k)
        here = self.left > size
        here[self.first] = True
        n, kinds = len(self.lengths), int(grams.max()) + 1
        keys = np.repeat(np.arange(n) * kinds, self.lengths + 1)
        keys += grams
        text, gram = split(distinct(keys[here]), kinds)
        del keys, grams
        sizes = np.bincount(text, minlength=n)
        edge = np.searchsorted(text, self.texts)
        meetings = np.bincount(gram[:edge], minlength=kinds) * np.bincount(gram[edge:], minlength=kinds)
        shared = np.flatnonzero(meetings)  # the others are rarest of all, and only count
        rarity = np.zeros(kinds, dtype=np.int32)
        rarity[shared[np.argsort(meetings[shared], kind="stable")]] = np.arange(len(shared))
        has = meetings[gram] > 0
        keys = text[has].astype(np.int64) * len(shared)
        keys += rarity[gram[has]]
        keys.sort()
        del gram, meetings, has, rarity
        return near_ones(*split(keys, max(1, len(shared))), sizes, threshold, asked)


def near_ones(
    text: np.ndarray, shingle: np.ndarray, sizes: np.ndarray, threshold: float, asked: np.ndarray
) -> np.ndarray:
    """bool [n]: which of the `asked` ones of the first n texts have a Jaccard similarity of at least `threshold` with
    one of the others. text, shingle: int32 [entries], rising; the shingles that both sides have, the rarest first.
    sizes: int64 [texts], shingles of each; those that one side alone has are rarest of all."""
    from scipy.sparse import csr_array

    n, found = len(asked), np.zeros(len(asked), dtype=bool)
    first = np.searchsorted(text, np.arange(len(sizes) + 1))
    held = np.diff(first)
    ones = np.ones(len(text), dtype=np.int32)
    sets = csr_array((ones, shingle, first), shape=(len(sizes), int(shingle.max(initial=0)) + 1))

    rest = first[1:].astype(np.int32)[text] - np.arange(len(text), dtype=np.int32)  # entries of the text from here on
    least = np.maximum(1, np.ceil(threshold * sizes - EPSILON)).astype(np.int32)  # that near texts share
    early = rest >= least[text]
    mine = np.flatnonzero(early & np.concatenate([asked, np.zeros(len(sizes) - n, dtype=bool)])[text])
    said = np.flatnonzero(early & (text >= n))
    said = said[np.argsort(shingle[said], kind="stable")]
    low, high = (np.searchsorted(shingle[said], shingle[mine], side) for side in ("left", "right"))
    end = np.cumsum(high - low)  # pairs that meet, those of a text one after the other
    at = np.concatenate([[0], end])[np.searchsorted(text[mine], np.arange(n + 1))]
    at, stop = at[:-1].copy(), at[1:]
    live = np.flatnonzero(at < stop)
    while len(live):
        now = live[:PAIRS]
        taken = np.minimum(max(1, PAIRS // len(now)), stop[now] - at[now])
        pair = np.repeat(at[now] - np.cumsum(taken) + taken, taken) + np.arange(taken.sum())
        at[now] += taken
        entry = np.searchsorted(end, pair, "right")
        here, there = mine[entry], said[high[entry] - (end[entry] - pair)]
        enough = threshold / (1 + threshold) * (sizes[text[here]] + sizes[text[there]]) - EPSILON
        able = np.minimum(rest[here], rest[there]) >= enough
        a, b = np.divmod(distinct(text[here[able]] * np.int64(len(sizes)) + text[there[able]]), len(sizes))
        weight = np.cumsum(held[a] + held[b])
        cuts = np.flatnonzero(np.diff(weight // ENTRIES)) + 1
        both = np.concatenate(
            [sets[i].multiply(sets[j]).sum(axis=1) for i, j in zip(np.split(a, cuts), np.split(b, cuts), strict=True)]
        )
        found[a[both / (sizes[a] + sizes[b] - both) >= threshold]] = True
        live = live[(at[live] < stop[live]) & ~found[live]]
    return found


@dataclass
class Copies(SampleMetric):
    """copies_real, copies_earlier: share of the records that are, case and white space apart, a real record of round
    0's training set, or one that curation kept in an earlier round. near_copies_*: share with a Jaccard similarity of
    word `ngram`s of at least `threshold` to one (copies are among them). run_*: mean over records of the longest run of
    words that is in one, as a share of the record; longest_run_*: its highest number of words. The floor of the
    `_earlier` ones is how much held-out real text is like what models made."""

    panels = ("copies_real",)
    threshold: float = 0.7
    ngram: int = 5
    least = 16

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", self.threshold, "in (0, 1]")
        require(self.ngram >= 1, "ngram", self.ngram, "at least 1")

    def reads(self) -> tuple[str, ...]:
        return (HISTORY,)

    def of(self, table: pa.Table, evidence: Evidence) -> dict[str, float]:
        return self.each([table], evidence)[0]

    def each(self, tables: Sequence[pa.Table], evidence: Evidence) -> list[dict[str, float]]:
        """The sample and its floor at once: a reference is long, and read once."""
        texts = [evidence.texts(table) for table in tables]
        found = self._against(texts, evidence.real_texts(), "real")
        earlier = evidence.inputs.all(HISTORY) if evidence.round > 1 else ()
        if earlier:
            said = (
                text
                for path in earlier
                for part in records.batches(path, evidence.domain.payload)
                for text in evidence.texts(part)
            )
            found = [a | b for a, b in zip(found, self._against(texts, said, "earlier"), strict=True)]
        return found

    def _against(self, samples: list[list[str]], others: Iterable[str], name: str) -> list[dict[str, float]]:
        texts, ids = list(itertools.chain.from_iterable(samples)), Ids()
        own = Coded.of(map(words, texts), ids)
        mine = records.digests(map(records.normal, texts))
        same, near = np.zeros(len(texts), dtype=bool), np.zeros(len(texts), dtype=bool)
        run = np.zeros(len(texts), dtype=np.int64)
        for part in _parts(others, max(PART, sum(map(len, texts)) // 2)):
            same |= records.among(mine, np.unique(records.digests(map(records.normal, part))))
            windows = Windows(own, Coded.of(map(words, part), Ids(ids)))
            near |= windows.near(self.ngram, self.threshold, ~(same | near))
            run = np.maximum(run, windows.longest())
        share = run / np.maximum(1, own.lengths)
        ends = np.cumsum([len(sample) for sample in samples])
        return [
            {
                f"copies_{name}": float(same[here].mean()),
                f"near_copies_{name}": float((same | near)[here].mean()),
                f"run_{name}": float(share[here].mean()),
                f"longest_run_{name}": float(run[here].max()),
            }
            for here in (slice(end - len(sample), end) for sample, end in zip(samples, ends, strict=True))
        ]


def _parts(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Some texts in parts of `size` characters, but for the last one, which has half of that to half as many more: a
    reference may be larger than memory."""
    part: list[str] = []
    ready, held = 0, 0  # texts of the next part, characters of all
    for text in texts:
        part.append(text)
        held += len(text)
        if not ready and held >= size:
            ready = len(part)
        if ready and held >= size * 3 // 2:
            yield part[:ready]
            part = part[ready:]
            ready, held = 0, sum(map(len, part))
    if part:
        yield part
