"""Selection and extinction of tokens, exactly: what curation does to a distribution when samples are endless, and how
many tokens die out when they are not.

    bradley_terry([0.5, 0.5], [0.0, 1.0], k=2)        [0.384, 0.616]: one of two kept by preference
    tilt(p, reward, rounds)                           its limit of many candidates
    extinct(p, first=1000, then=1000, rounds=10)      chances to be gone after 0, 1, ... ten rounds of replace
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from genloss.core.errors import require

Numbers = Sequence[float] | np.ndarray
STEP = 0.2  # of the integral: a trapezoid in log s, whose error falls as exp(-pi^2 / STEP)
REACH = 40.0  # e^-40 of the integral is left out below, and e^-e^4 above
CHUNK = 256  # tokens at a time


def bradley_terry(p: Numbers, reward: Numbers, k: int, flipped: float = 0.0) -> np.ndarray:
    """p_{t+1} = p_t H^K: of k draws from p one is kept with probability softmax(reward) (Ferbach et al. 2024, arXiv
    2407.09499: H^K(x) = E[K e^r(x) / (e^r(x) + sum_{i<K} e^r(x_i))]). flipped: share of the groups that prefer the
    worst, softmax(-reward) (Wei & Zhang 2025, arXiv 2505.09768).

    1 / (a + S) is the integral of e^{-s (a + S)} over s > 0, in which the K - 1 rivals are independent: one integral
    an outcome, for any K and vocabulary."""
    p, r = np.asarray(p, dtype=float), np.asarray(reward, dtype=float)
    require(k >= 1, "k", k, "at least 1 candidate")
    require(0 <= flipped <= 1, "flipped", flipped, "a share in [0, 1]")
    if flipped:
        return (1 - flipped) * bradley_terry(p, r, k) + flipped * bradley_terry(p, -r, k)
    t = np.arange(-REACH - r.max(), 4 - r.min(), STEP)
    rate = np.exp(t[:, None] + r)  # s e^r
    alive = np.exp(-rate)
    found = k * p * STEP * (((alive @ p) ** (k - 1)) @ (rate * alive))
    return found / found.sum()


def tilt(p: Numbers, reward: Numbers, rounds: float = 1.0) -> np.ndarray:
    """p e^{rounds r}, normalised: `bradley_terry` with endlessly many candidates (Ferbach et al. 2024). So does a
    temperature T tilt by the log-probabilities themselves: p^{1/T} (Marchi et al. 2024, arXiv 2404.02325)."""
    p, r = np.asarray(p, dtype=float), np.asarray(reward, dtype=float)
    found = p * np.exp(rounds * (r - r.max()))
    return found / found.sum()


def verifier_odds(q: float, phi: float, psi: float, rounds: int = 1) -> float:
    """The share of correct records after a verifier that keeps correct ones with chance phi and wrong ones with chance
    psi: a round multiplies the odds by phi / psi (Feng et al. 2025, arXiv 2406.07515)."""
    kept, wrong = q * phi**rounds, (1 - q) * psi**rounds
    require(kept + wrong > 0, "phi", phi, "such that something is kept")
    return kept / (kept + wrong)


@lru_cache(maxsize=2)
def binomial(now: int, then: int) -> np.ndarray:
    """[now + 1, then + 1]: chance of j copies among `then` draws of a token that has k copies among `now`."""
    return _binomial(np.arange(now + 1) / now, then)


def _binomial(chance: np.ndarray, n: int) -> np.ndarray:
    """Probabilities [len(chance), n + 1] of the binomial law."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, n + 1)))])
    k = np.arange(n + 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        hit, miss = np.log(chance)[:, None], np.log1p(-chance)[:, None]
        log = np.where(k > 0, k * hit, 0.0) + np.where(k < n, (n - k) * miss, 0.0)
    return np.exp(log + logs[n] - logs - logs[::-1])


def extinct(p: Numbers, first: int, then: int, rounds: int) -> np.ndarray:
    """Chance [rounds + 1, V] of each token to have no copy in the training set of round 0, 1, ..., `rounds` under
    replace, with `first` records in round 0 and `then` in every later one. The copies are a Markov chain, Binomial(N,
    k/N) given k, absorbed at 0 (Shumailov et al. 2024, the discrete case): the Wright-Fisher model of drift. Tokens
    left: (1 - extinct).sum(axis=1)."""
    chances, token = np.unique(np.asarray(p, dtype=float), return_inverse=True)
    gone = np.zeros((first + 1, rounds + 1))  # by the copies in round 0
    gone[0, 0] = 1.0
    later = np.eye(1, then + 1)[0]  # by the copies in a later round: chance to be gone so many rounds on
    for n in range(1, rounds + 1):
        gone[:, n] = binomial(first, then) @ later
        later = binomial(then, then) @ later
    # never the laws of all tokens at once
    parts = [_binomial(chances[i : i + CHUNK], first) @ gone for i in range(0, len(chances), CHUNK)]
    return np.concatenate(parts)[token].T
