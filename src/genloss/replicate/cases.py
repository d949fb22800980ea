"""The published results: what the paper says, what theory predicts for the very run, and what must not hold.

Rounds count from 0: a paper's n-th fit is round n - 1. Predictions are closed forms written out here, or what the
engine of genloss.theory said for the arm ("engine"). Where a paper and our derivation differ, both are lines of the
table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from genloss.replicate.case import (
    READING,
    WRONG,
    Case,
    Check,
    Results,
    Sample,
    bend,
    log_slope,
    log_slope_of,
    mean,
    second,
    slope,
    spread,
    theory,
)

MAD = "Alemohammad et al. 2024, arXiv 2307.01850"
KAZDAN = "Kazdan et al. 2025, arXiv 2410.16713"
SHUMAILOV = "Shumailov et al. 2024, arXiv 2305.17493"


def psi(x: float, order: int = 0) -> float:
    """The digamma function, or (order 1) its derivative: the recurrence to x > 20, then the asymptotic series."""
    total = 0.0
    while x < 20:
        total += -1 / x if order == 0 else 1 / x**2
        x += 1
    if order == 0:
        return total + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4)
    return total + 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3) - 1 / (30 * x**5)


def c4(n: int) -> float:
    """E of the standard deviation of n standard normal points, unbiased variance."""
    return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))


def log_variance(n: int, fits: int) -> float:
    """E log v after so many unbiased fits: each multiplies v by a chi-square over its n - 1 degrees of freedom."""
    return fits * (psi((n - 1) / 2) + math.log(2 / (n - 1)))


def accumulated(n: int, fits: int) -> float:
    return math.prod(1 - 1 / (n * i * i) for i in range(1, fits + 1))


def subsampled(n: int, fits: int) -> float:
    return (1 - 1 / n) * math.prod(1 - (3 * n - 1) / (i * n * (i * n - 1)) for i in range(2, fits + 1))


def shumailov_gaussian() -> list[Check]:
    grown = 0.5 + 2 - 2 * c4(100) ** 50
    return [
        Check(
            "the variance goes to 0 almost surely: E log v after 50 fits to 100 points",
            "50 [ψ(99/2) + ln(2/99)]",
            log_variance(100, 50),
            mean("n100", 49, "log_diversity"),
        ),
        Check(
            "its spread over runs, Var log v", "50 ψ'(99/2)", 50 * psi(99 / 2, 1), spread("n100", 49, "log_diversity")
        ),
        Check("the mean walks away: E μ² = σ² n/M", "50/100", 0.5, mean("n100", 49, "drift")),
        Check("E W2² grows without bound", "n/M + 2 - 2 c4(M)^n", grown, mean("n100", 49, "w2")),
        Check("the paper's first order, E W2² ≈ (3/2) σ² n/M", "3/2 · 50/100", 0.75, mean("n100", 49, "w2"), READING),
        Check(
            "the same with 25 points, through E √v",
            "c4(25)^50",
            c4(25) ** 50,
            lambda r: r.chains("n25", 49, "diversity") ** 0.5,
        ),
        Check(
            "first order at n = 2M, which would make E √v half: too late for it",
            "1 - n/(4M)",
            0.5,
            lambda r: r.chains("n25", 49, "diversity") ** 0.5,
            READING,
        ),
        Check(
            "a fit that divides by M: E log v",
            "50 [ψ(99/2) + ln(2/100)]",
            log_variance(100, 50) + 50 * math.log(99 / 100),
            mean("n100", 49, "log_diversity"),
            WRONG,
        ),
    ]


def mad_bias() -> list[Check]:
    return [
        Check("E Σ_t = λ E Σ_{t-1}: E v after 10 rounds", "0.8^10", 0.8**10, mean("biased", 10, "diversity")),
        Check(
            "the mean stops early: E μ²",
            "Σ_{i=0..10} 0.8^i / 100",
            sum(0.8**i for i in range(11)) / 100,
            mean("biased", 10, "drift"),
        ),
        Check("without bias E v stays 1, though v itself dies", "1.0^10", 1.0, mean("faithful", 10, "diversity")),
        Check(
            "without bias v dies none the less: E log v",
            "11 [ψ(99/2) + ln(2/99)]",
            log_variance(100, 11),
            mean("faithful", 10, "log_diversity"),
        ),
        Check(
            "a fit that divides by N",
            "0.99 (0.99 · 0.8)^10",
            0.99 * (0.99 * 0.8) ** 10,
            mean("biased", 10, "diversity"),
            WRONG,
        ),
    ]


def mad_fresh() -> list[Check]:
    limit = (0.1**2 / 10 + 0.9**2 / 90) / (1 - 0.9**2)
    return [
        Check(
            "the loop settles: E μ² after 20 rounds",
            "engine",
            theory("start10", 20, "drift"),
            mean("start10", 20, "drift"),
        ),
        Check("the same from 50 real points", "engine", theory("start50", 20, "drift"), mean("start50", 20, "drift")),
        Check(
            "after 20 rounds the start hardly shows: difference of E μ² between 10 and 50 real points",
            "engine, both",
            lambda r: r.theory("start10", 20, "drift") - r.theory("start50", 20, "drift"),
            lambda r: r.chains("start10", 20, "drift") - r.chains("start50", 20, "drift"),
        ),
        Check(
            "the limit of a mean whose variance is known",
            "(p²/n_r + (1-p)²/n_s) / (1 - (1-p)²)",
            limit,
            mean("start10", 20, "drift"),
            READING,
        ),
        Check(
            "in round 1 the start still shows: difference of E μ²",
            "engine, both",
            lambda r: r.theory("start10", 1, "drift") - r.theory("start50", 1, "drift"),
            lambda r: r.chains("start10", 1, "drift") - r.chains("start50", 1, "drift"),
        ),
        Check("no fresh data: E μ² of replace", "1/10 + 20/90", 1 / 10 + 20 / 90, mean("start10", 20, "drift"), WRONG),
    ]


def kazdan_accumulate() -> list[Check]:
    root = math.pi / math.sqrt(10)
    return [
        Check(
            "accumulate keeps the variance: E v after 30 fits to 10 points a round",
            "Π_{i≤30} (1 - 1/(10 i²))",
            accumulated(10, 30),
            mean("accumulate", 29, "diversity"),
        ),
        Check("its limit", "sin(π/√10) / (π/√10)", math.sin(root) / root, mean("accumulate", 29, "diversity"), READING),
        Check("replace loses it: E v", "0.9^5", 0.9**5, mean("replace", 4, "diversity")),
        Check(  # E v = 0.9^30 is that of rare chains, of which 4,000 have too few for a test
            "after 30 fits: E log v",
            "30 [ψ(9/2) + ln(2/10)]",
            log_variance(10, 30) + 30 * math.log(9 / 10),
            mean("replace", 29, "log_diversity"),
        ),
        Check(
            "what the variance loses the mean gains: E μ² + E v under accumulate", "1", 1.0, second("accumulate", 29)
        ),
        Check("and under replace", "1", 1.0, second("replace", 9)),
        Check("accumulate as if it were replace", "0.9^30", 0.9**30, mean("accumulate", 29, "diversity"), WRONG),
        Check("accumulate as if the estimator were unbiased", "1", 1.0, mean("accumulate", 29, "diversity"), WRONG),
    ]


def kazdan_subsample() -> list[Check]:
    return [
        Check(
            "between replace and accumulate: E v after 25 fits to 10 points",
            "(1 - 1/N) Π_{i=2..25} (1 - (3N-1)/(iN(iN-1)))",
            subsampled(10, 25),
            mean("subsample", 24, "diversity"),
        ),
        Check("already after 5", "the same, to i = 5", subsampled(10, 5), mean("subsample", 4, "diversity")),
        Check(
            "it levels off: what the last ten rounds lost",
            "the same, i = 15 against i = 25",
            subsampled(10, 15) - subsampled(10, 25),
            lambda r: r.chains("subsample", 14, "diversity") - r.chains("subsample", 24, "diversity"),
        ),
        Check("E μ² + E v", "1", 1.0, second("subsample", 24)),
        Check(
            "accumulate's product", "Π (1 - 1/(N i²))", accumulated(10, 25), mean("subsample", 24, "diversity"), WRONG
        ),
        Check("replace's power", "0.9^25", 0.9**25, mean("subsample", 24, "diversity"), WRONG),
    ]


def kazdan_kde() -> list[Check]:
    variance = 0.9 + 0.25
    for _ in range(15):
        variance = 0.9 * variance + 0.25
    return [
        Check("replace diverges: E μ² + E v after 16 fits", "1 + 16 h²", 1 + 16 * 0.25, second("replace", 15)),
        Check("replace: E v alone", "v' = (1 - 1/N) v + h²", variance, mean("replace", 15, "diversity")),
        Check(
            "accumulate grows as a logarithm: E μ² + E v",
            "1 + h² Σ_{i≤16} 1/i",
            1 + 0.25 * sum(1 / i for i in range(1, 17)),
            second("accumulate", 15),
        ),
        Check(
            "accumulate: E v alone",
            "engine",
            theory("accumulate", 15, "diversity"),
            mean("accumulate", 15, "diversity"),
        ),
        Check("accumulate as replace", "1 + 16 h²", 1 + 16 * 0.25, second("accumulate", 15), WRONG),
        Check(
            "a fit without the kernel's variance: E μ² + E v of accumulate", "1", 1.0, second("accumulate", 15), WRONG
        ),
    ]


def xu_growth() -> list[Check]:
    def kept(power: float) -> float:
        return 0.9 * math.prod(1 - 1 / round(10 * t**power) for t in range(1, 13))

    arms = (("linear", 1.0), ("superlinear", 1.5))
    return [
        *(
            Check(
                f"sets of 10 t^{power:g}: E v after 13 fits",
                "0.9 Π (1 - 1/n_t)",
                kept(power),
                mean(arm, 12, "diversity"),
            )
            for arm, power in arms
        ),
        Check(
            "growth faster than linear settles: what rounds 7 to 12 lose",
            "the products' difference",
            kept(1.5) * (1 / math.prod(1 - 1 / round(10 * t**1.5) for t in range(7, 13)) - 1),
            lambda r: r.chains("superlinear", 6, "diversity") - r.chains("superlinear", 12, "diversity"),
        ),
        Check(
            "a growth of t^1.5 as if it were linear",
            "0.9 Π (1 - 1/(10 t))",
            kept(1.0),
            mean("superlinear", 12, "diversity"),
            WRONG,
        ),
        Check("linear growth as none", "0.9^13", kept(0.0), mean("linear", 12, "diversity"), WRONG),
    ]


def bertrand() -> list[Check]:
    return [
        *(
            Check(f"λ = {value}: {says}", "engine", theory(arm, 20, "diversity"), mean(arm, 20, "diversity"))
            for arm, value, says in (
                ("tenth", 0.1, "stays near the truth, E v after 20 rounds"),
                ("half", 0.5, "stays"),
                ("double", 2.0, "a finite loss, beyond the paper's bound"),
            )
        ),
        Check(
            "λ = 0.1 has settled: change of E v over the last 10 rounds",
            "engine",
            lambda r: r.theory("tenth", 20, "diversity") - r.theory("tenth", 10, "diversity"),
            lambda r: r.chains("tenth", 20, "diversity") - r.chains("tenth", 10, "diversity"),
        ),
        Check(
            "fully synthetic training collapses: E v",
            "(1 - 1/20) (1 - 1/40)^20",
            0.95 * 0.975**20,
            mean("synthetic", 20, "diversity"),
        ),
        Check("E μ² + E v at λ = 2", "1", 1.0, second("double", 20)),
        Check(
            "λ = 2 as if fully synthetic",
            "(1 - 1/20) (1 - 1/40)^20",
            0.95 * 0.975**20,
            mean("double", 20, "diversity"),
            WRONG,
        ),
    ]


def he_golden() -> list[Check]:
    golden = (5**0.5 - 1) / 2

    def limit(w: float) -> float:
        return (w * w + (1 - w) ** 2) / (1 - (1 - w) ** 2)

    return [
        Check(
            "at w = 1/golden ratio the limit's variance times n_r is w",
            "V(w) n_r = w = 0.618",
            golden,
            mean("golden", 12, "drift", 50),
        ),
        Check("pooling (w = 1/2) gives 2/3", "V(1/2) n_r", 2 / 3, mean("pooled", 12, "drift", 50)),
        Check("real data alone give 1", "V(1) n_r", 1.0, mean("real", 12, "drift", 50)),
        *(
            Check(f"w = {w}", "(w² + (1-w)²) / (1 - (1-w)²)", limit(w), mean(arm, 12, "drift", 50))
            for arm, w in (("low", 0.4), ("high", 0.8))
        ),
        Check(
            "pooling is worse than golden, by",
            "2/3 - 0.618",
            2 / 3 - golden,
            lambda r: 50 * (r.chains("pooled", 12, "drift") - r.chains("golden", 12, "drift")),
        ),
        Check(
            "golden with the variance fitted too",
            "engine",
            theory("golden", 12, "drift", 50),
            mean("golden", 12, "drift", 50),
            READING,
        ),
        Check("golden no better than pooling", "V(1/2) n_r", 2 / 3, mean("golden", 12, "drift", 50), WRONG),
    ]


def truncation() -> list[Check]:
    def factor(c: float) -> float:
        return 1 - 2 * c * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) / math.erf(c / math.sqrt(2))

    return [
        Check(
            "truncation narrows the model each round: E v after 5 rounds, c = 1.5",
            "(1 - 2cφ(c)/(2Φ(c)-1))^5",
            factor(1.5) ** 5,
            mean("c15", 5, "diversity"),
        ),
        Check("c = 2", "the same", factor(2.0) ** 5, mean("c20", 5, "diversity")),
        Check(
            "the mean's walk, c = 2: E μ²",
            "Σ_{i≤5} f^i / 50",
            sum(factor(2.0) ** i for i in range(6)) / 50,
            mean("c20", 5, "drift"),
        ),
        Check("c = 1.5 with the factor of c = 2", "f(2)^5", factor(2.0) ** 5, mean("c15", 5, "diversity"), WRONG),
    ]


# -- tokens ------------------------------------------------------------------------------------------------------------


def zipf(n: int, exponent: float = 1.0) -> np.ndarray:
    p = np.arange(1.0, n + 1) ** -exponent
    return p / p.sum()


def branching(copies: np.ndarray | float, fits: int) -> np.ndarray:
    """Chance to be gone after so many fits of a token with so many expected copies, as a branching process of Poisson
    offspring: the limit of a rare token in a large set."""
    q = 0.0
    for _ in range(fits - 1):
        q = float(np.exp(q - 1))
    return np.exp(-copies * (1 - q))


def token(arm: str, n: int, which: int) -> Callable[[Results], Sample]:
    """E p of a token."""
    return lambda r: r.model(arm, n)["p"][:, which]


def shumailov_discrete() -> list[Check]:
    p = zipf(1000)
    fresh = float((1 - (1 - p) ** 1000).sum())
    return [
        *(
            Check(
                f"tokens that are left after {n + 1} fits to 1000 records",
                "exact chain, Σ (1 - P(extinct))",
                theory("replace", n, "support"),
                mean("replace", n, "support"),
            )
            for n in (0, 4, 9, 19)
        ),
        Check("no token is favoured: E p of the commonest stays", "p_1(0)", float(p[0]), token("replace", 19, 0)),
        Check(
            "E (1 - Σp²) after 20 fits",
            "(1 - 1/1000)^20 (1 - Σp_0²)",
            0.999**20 * float(1 - p @ p),
            mean("replace", 19, "diversity"),
        ),
        Check(
            "tokens left, each a branching process",
            "Σ 1 - exp(-Np(1 - q_20)), q' = e^(q-1)",
            float((1 - branching(1000 * p, 20)).sum()),
            mean("replace", 19, "support"),
            READING,
        ),
        Check(
            "no absorption: as many tokens as in one fit",
            "Σ 1 - (1-p)^1000",
            fresh,
            mean("replace", 19, "support"),
            WRONG,
        ),
    ]


def seddik_mixing() -> list[Check]:
    p = zipf(50)
    h = float(1 - p @ p)
    return [
        *(
            Check(
                f"1 - S after {n + 1} fits to 50 records",
                "(1 - 1/50)^m (1 - S_0)",
                0.98 ** (n + 1) * h,
                mean("replace", n, "diversity"),
            )
            for n in (0, 9, 20)
        ),
        Check(
            "with as many real records beside them it stays: 1 - S",
            "engine",
            theory("mixed", 20, "diversity"),
            mean("mixed", 20, "diversity"),
        ),
        Check(
            "it has settled: change over the last ten rounds",
            "engine",
            lambda r: r.theory("mixed", 20, "diversity") - r.theory("mixed", 10, "diversity"),
            lambda r: r.chains("mixed", 20, "diversity") - r.chains("mixed", 10, "diversity"),
        ),
        Check(
            "half real as if only the noise halved",
            "(1 - 1/100)^21 (1 - S_0)",
            0.99**21 * h,
            mean("mixed", 20, "diversity"),
            WRONG,
        ),
    ]


TAIL = [4, 9, 14, 19, 24, 29, 34, 39]  # rounds of fits 5, 10, ..., 40


def dohmatob_tails() -> list[Check]:
    def predicted(arm: str) -> Callable[[Results], float]:
        return lambda r: log_slope_of([r.theory(arm, n, "lost_mass") for n in TAIL], TAIL)

    return [
        *(
            Check(
                f"β = {beta}: real mass of the lost tokens, log-log slope over fits 5 to 40",
                "exact chain",
                predicted(arm),
                log_slope(arm, TAIL, "lost_mass"),
            )
            for arm, beta in (("steep15", 1.5), ("steep20", 2.0))
        ),
        Check(
            "β = 1.5: lost mass after 40 fits",
            "exact chain",
            theory("steep15", 39, "lost_mass"),
            mean("steep15", 39, "lost_mass"),
        ),
        Check(
            "β = 1.5: the slope of endless vocabularies and sets",
            "c = 1 - 1/β",
            1 / 3,
            log_slope("steep15", TAIL, "lost_mass"),
            READING,
        ),
        Check("β = 2: the same", "c = 1 - 1/β", 0.5, log_slope("steep20", TAIL, "lost_mass"), READING),
        Check(
            "β = 2 with the slope of β = 1.5",
            "exact chain",
            predicted("steep15"),
            log_slope("steep20", TAIL, "lost_mass"),
            WRONG,
        ),
    ]


def suresh_forgetting() -> list[Check]:
    from genloss.theory.curation import extinct

    counts = [1] * 4 + [2] * 4 + [4] * 4 + [8] * 4 + [140]
    gone = extinct([c / 200 for c in counts], 200, 200, 31)

    def share(first: int, fits: int) -> Callable[[Results], Sample]:
        return lambda r: (r.model("replace", fits - 1)["p"][:, first : first + 4] == 0).mean(axis=1)

    return [
        *(
            Check(
                f"a word expected {c} times is gone after {4 * c} fits, with probability",
                "exact chain",
                float(gone[4 * c - 1, first]),
                share(first, 4 * c),
            )
            for first, c in ((0, 1), (4, 2), (8, 4), (12, 8))
        ),
        Check(
            "linear in the count: 8 copies and 32 fits against 4 and 16",
            "exact chain, the difference",
            float(gone[31, 12] - gone[15, 8]),
            lambda r: (
                (r.model("replace", 31)["p"][:, 12:16] == 0).mean(axis=1)
                - (r.model("replace", 15)["p"][:, 8:12] == 0).mean(axis=1)
            ),
        ),
        Check(
            "8 copies and 32 fits in a large set", "exp(-c · 2/n) = e^(-1/2)", math.exp(-0.5), share(12, 32), READING
        ),
        Check(
            "8 copies and 32 fits, as a branching process",
            "exp(-8 (1 - q_32)), q' = e^(q-1)",
            float(branching(8.0, 32)),
            share(12, 32),
            READING,
        ),
        Check(
            "the paper's bound Pr(left after k) >= 1 - e^(-c/k), as if it were the value",
            "e^(-8/32)",
            math.exp(-0.25),
            share(12, 32),
            READING,
        ),
        Check(
            "a time that the count does not change: 8 copies after 16 fits as 4 copies",
            "exact chain of 4 copies",
            float(gone[15, 8]),
            share(12, 16),
            WRONG,
        ),
    ]


def jangjoo_one_real_point() -> list[Check]:
    h = 1 - 1 / 40
    return [
        Check(
            "no real point: diversity dies", "(1 - 1/40)^61 H_0", (1 - 1 / 40) ** 61 * h, mean("none", 60, "diversity")
        ),
        *(
            Check(
                f"{m} real of 40: H/H_0 after 60 rounds",
                "engine",
                theory(arm, 60, "diversity", 1 / h),
                mean(arm, 60, "diversity", 1 / h),
            )
            for arm, m in (("one", 1), ("five", 5))
        ),
        Check(
            "one real point, in sets of any size",
            "2m/(2m+1) = 2/3",
            2 / 3,
            mean("one", 60, "diversity", 1 / h),
            READING,
        ),
        Check(
            "five real points, in large sets",
            "2m/(2m+1) = 10/11",
            10 / 11,
            mean("five", 60, "diversity", 1 / h),
            READING,
        ),
        Check("2/3 without a real point", "2/3", 2 / 3, mean("none", 60, "diversity", 1 / h), WRONG),
    ]


def marchi_temperature() -> list[Check]:
    odds = math.log(0.5 / 0.2)

    def measured(arm: str, n: int) -> Callable[[Results], Sample]:
        return lambda r: np.log(r.model(arm, n)["p"][:, 0] / r.model(arm, n)["p"][:, 2])

    return [
        *(
            Check(f"T = {t}: log-odds of two tokens after {n} rounds", "ln(5/2) / T^n", odds / t**n, measured(arm, n))
            for arm, t, n in (("cold", 0.8, 2), ("cold", 0.8, 4), ("warm", 1.25, 2), ("warm", 1.25, 4))
        ),
        Check("T = 0.8 sharpens", "ln(5/2), unchanged", odds, measured("cold", 4), WRONG),
        Check("T = 1.25 flattens, it does not sharpen", "ln(5/2) T^4", odds * 1.25**4, measured("warm", 4), WRONG),
    ]


REWARDS = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
SIX = [0.3, 0.25, 0.2, 0.12, 0.08, 0.05]


def curated(rounds: int, flipped: float = 0.0) -> list[np.ndarray]:
    """p of rounds 0, 1, ... with endless samples."""
    from genloss.theory.curation import bradley_terry

    found = [np.array(SIX)]
    for _ in range(rounds):
        found.append(bradley_terry(found[-1], REWARDS, 2, flipped))
    return found


def preference(arm: str, n: int) -> Callable[[Results], Sample]:
    """E e^r."""
    return lambda r: r.model(arm, n)["p"] @ np.exp(REWARDS)


def ferbach_curation() -> list[Check]:
    from genloss.theory.curation import tilt

    p, good = curated(5), np.exp(REWARDS)
    return [
        *(
            Check(
                f"p of the best outcome after {n} rounds of K = 2",
                "p_{t+1} = p_t H², exact",
                float(p[n][5]),
                token("curated", n, 5),
            )
            for n in (1, 3, 5)
        ),
        Check("E e^r grows: after 5 rounds", "p_5 · e^r", float(p[5] @ good), preference("curated", 5)),
        Check("the worst outcome after 5 rounds", "p_t H²", float(p[5][0]), token("curated", 5, 0)),
        Check(
            "the limit of endless K, for K = 2: p of the best after 5 rounds",
            "p e^{5r} / Z",
            float(tilt(SIX, REWARDS, 5)[5]),
            token("curated", 5, 5),
            WRONG,
        ),
        Check("no curation: p of the best outcome stays", "p_0", 0.05, token("curated", 5, 5), WRONG),
    ]


def wei_adversarial() -> list[Check]:
    p, good = curated(5, 0.2), np.exp(REWARDS)
    clean = curated(5)
    best = token("turned", 5, 5)
    return [
        *(
            Check(
                f"a fifth prefers the worst: p of the best outcome after {n} rounds",
                "0.8 p H(r) + 0.2 p H(-r), exact",
                float(p[n][5]),
                token("turned", n, 5),
            )
            for n in (1, 5)
        ),
        Check("E e^r after 5 rounds", "the same", float(p[5] @ good), preference("turned", 5)),
        Check("as if nobody opposed", "p_t H²", float(clean[5][5]), best, WRONG),
    ]


# -- linear models -----------------------------------------------------------------------------------------------------


def gerstgrasser_regression() -> list[Check]:
    one = 5 / 14
    shared = one * sum(1 / i**2 for i in range(1, 11))
    fresh = sum(5 / (i * (20 * i - 6)) for i in range(1, 11))
    return [
        *(
            Check(f"replace, n = {n}: E test error", "n σ²d/(T-d-1)", n * one, mean("replace_shared", n - 1, "risk"))
            for n in (1, 5, 10)
        ),
        Check("replace with a design drawn anew, n = 10", "the same", 10 * one, mean("replace_fresh", 9, "risk")),
        Check(
            "accumulate, n = 10, one design as in the proof",
            "σ²d/(T-d-1) Σ 1/i²",
            shared,
            mean("accumulate_shared", 9, "risk"),
        ),
        Check(
            "accumulate, n = 10, a design drawn anew", "Σ σ²d/(i(iT-d-1))", fresh, mean("accumulate_fresh", 9, "risk")
        ),
        Check(
            "the bound, as if it were the value",
            "π²/6 σ²d/(T-d-1)",
            math.pi**2 / 6 * one,
            mean("accumulate_shared", 9, "risk"),
            READING,
        ),
        Check(
            "the theorem's sum for a design drawn anew",
            "σ²d/(T-d-1) Σ 1/i²",
            shared,
            mean("accumulate_fresh", 9, "risk"),
            WRONG,
        ),
        Check("accumulate as replace", "10 σ²d/(T-d-1)", 10 * one, mean("accumulate_shared", 9, "risk"), WRONG),
    ]


def dohmatob_regression() -> list[Check]:
    one = 0.25 * 10 / 29
    every = list(range(10))
    return [
        Check("the error grows linearly: slope over rounds", "σ²d/(T-d-1)", one, slope("replace", every, "risk")),
        Check(
            "it does not bend: slope of rounds 5 to 9 minus that of 0 to 4",
            "0",
            0.0,
            bend("replace", every[:5], every[5:], "risk"),
        ),
        Check("after 10 fits", "10 σ²d/(T-d-1)", 10 * one, mean("replace", 9, "risk")),
        Check("the slope of T much larger than d", "σ²d/T", 0.25 * 10 / 40, slope("replace", every, "risk"), WRONG),
    ]


def dohmatob_strong() -> list[Check]:
    def limit(n: int) -> float:
        phi = 20 / n
        return 0.09 * 20 / (n - 21) + 0.1**2 + phi * 0.1 * 0.9 / (1 - phi)

    clean = 0.09 * 20 / (400 - 21)
    return [
        *(
            Check(
                f"n = {n}, a tenth of the labels from a wrong model: E risk",
                "engine, exact for any n and d",
                theory(arm, 1, "risk"),
                mean(arm, 1, "risk"),
            )
            for arm, n in (("n100", 100), ("n400", 400))
        ),
        *(
            Check(
                f"n = {n}: the law of high dimension",
                "σ²d/(n-d-1) + c²(p2² + φ p1 p2/(1-φ))",
                limit(n),
                mean(arm, 1, "risk"),
                READING,
            )
            for arm, n in (("n100", 100), ("n400", 400))
        ),
        Check("n = 400, real labels alone: E risk", "σ²d/(n-d-1)", clean, mean("n400", 0, "risk")),
        Check("a tenth of wrong labels does no harm at n = 400", "σ²d/(n-d-1)", clean, mean("n400", 1, "risk"), WRONG),
        Check("only the floor, at n = 400", "σ²d/(n-d-1) + p2² c²", clean + 0.01, mean("n400", 1, "risk"), WRONG),
    ]


def feng_verifier() -> list[Check]:
    return [
        Check("p = p* = 3/4: as good as a coin, for any number of points", "1/2", 0.5, mean("at", 1, "accuracy")),
        *(
            Check(
                f"p = {p} {side} p*: accuracy with 400 points of 40 dimensions",
                "ridge_accuracy, up to O(1/d)",
                theory(arm, 1, "accuracy_asymptotic"),
                mean(arm, 1, "accuracy"),
            )
            for arm, p, side in (("below", 0.6, "below"), ("above", 0.9, "above"))
        ),
        Check(
            "p = 0.6 is past saving, as it would be unverified: accuracy 1/2 or less",
            "1/2",
            0.5,
            mean("below", 1, "accuracy"),
            WRONG,
        ),
        Check("p = 0.9 is saved: accuracy 1/2 or more", "1/2", 0.5, mean("above", 1, "accuracy"), WRONG),
    ]


def released(points: int, error: float, ridge: float, dimension: int, separation: float, kept: float) -> float:
    """The accuracy that github.com/elfirdoussilab1/Synthetic-data computes (rmt_results.py, 0206998) where there is no
    real data, and phi = psi = kept. Its fixed point for delta treats a point that is kept with this chance as one that
    has this weight."""
    eta, mu2, fair, delta = dimension / points, separation**2, kept * (1 - 2 * error), 1.0
    for _ in range(1000):
        delta = eta / (ridge + kept / (1 + kept * delta))
    one = 1 + kept * delta
    theta = ridge + kept / one
    first = mu2 / theta / (1 + kept * mu2 / (theta * one))
    second_order = mu2 / theta**2 / (1 + kept * mu2 / (theta * one)) ** 2
    h = 1 - kept * eta / (theta * one) ** 2
    moment = fair**2 * (first**2 + second_order) / h + eta / (h * theta**2) * (kept - 2 * fair**2 * first / one)
    m = fair * first
    return 0.5 * math.erfc(-abs(m) / math.sqrt(2 * (moment - m * m)))


def firdoussi_pruning() -> list[Check]:
    from genloss.theory.linear import ridge_accuracy

    kept = mean("pruned", 1, "accuracy")
    return [
        Check(
            "accuracy after a verifier keeps 30 % blindly",
            "ridge_accuracy(0.3 m, ε', γ/0.3)",
            theory("pruned", 1, "accuracy_asymptotic"),
            kept,
        ),
        Check(
            "the released code", "a weight in place of a chance", released(400, 0.2, 0.1, 200, 1.0, 0.3), kept, READING
        ),
        Check(
            "as if nothing had been dropped",
            "ridge_accuracy(m, ε', γ)",
            ridge_accuracy(400, 0.2, 0.1, 200, 1.0),
            kept,
            WRONG,
        ),
    ]


def yi_verifier() -> list[Check]:
    def angle(n: int) -> Callable[[Results], Sample]:
        return lambda r: np.arctan2(r.model("loop", n)["w"][:, 1], r.model("loop", n)["w"][:, 0])

    own = math.pi / 6
    return [
        *(
            Check(
                f"the model's angle to the truth after {n} rounds: half-way to the verifier each time",
                "(1 - 2^-n) π/6",
                (1 - 2.0**-n) * own,
                angle(n),
            )
            for n in (1, 2, 4)
        ),
        Check("the loop stays at the truth", "0", 0.0, angle(4), WRONG),
        Check("the verifier is reached in one round", "π/6", own, angle(1), WRONG),
    ]


CASES = (
    Case(
        "shumailov_gaussian",
        SHUMAILOV,
        "theorem 3.1, one dimension",
        {"n100": ("domain.batch=100",), "n25": ("domain.batch=25",)},
        shumailov_gaussian,
    ),
    Case(
        "mad_bias",
        MAD,
        "section 3.1, sampling bias λ",
        {"biased": ("recipe.bias=0.8",), "faithful": ("recipe.bias=1.0",)},
        mad_bias,
    ),
    Case(
        "mad_fresh",
        MAD,
        "Fig. 10, fresh data loop",
        {"start10": ("mixing.real.n=10",), "start50": ("mixing.real.n=50",)},
        mad_fresh,
    ),
    Case(
        "kazdan_accumulate",
        KAZDAN,
        "Gaussian models, replace and accumulate",
        {"accumulate": ("mixing=accumulate",), "replace": ("mixing=replace",)},
        kazdan_accumulate,
    ),
    Case("kazdan_subsample", KAZDAN, "accumulate-subsample, Gaussian", {"subsample": ()}, kazdan_subsample),
    Case(
        "kazdan_kde",
        KAZDAN,
        "kernel density estimates",
        {"replace": ("mixing=replace",), "accumulate": ("mixing=accumulate",)},
        kazdan_kde,
    ),
    Case(
        "xu_growth",
        "Xu et al. 2025, arXiv 2505.13947",
        "growth of the sample size",
        {"linear": ("mixing.budget.power=1.0",), "superlinear": ("mixing.budget.power=1.5",)},
        xu_growth,
    ),
    Case(
        "bertrand",
        "Bertrand et al. 2024, arXiv 2310.00429",
        "stability of iterative retraining",
        {
            "tenth": ("mixing.value=0.1",),
            "half": ("mixing.value=0.5",),
            "double": ("mixing.value=2.0",),
            "synthetic": ("mixing=replace", "mixing.value=null"),
        },
        bertrand,
    ),
    Case(
        "he_golden",
        "He, Xu & Cheng 2025, arXiv 2502.18049",
        "weighted training, golden ratio",
        {
            name: (f"mixing.value={w}",)
            for name, w in (("low", 0.4), ("pooled", 0.5), ("golden", 0.6180339887498949), ("high", 0.8), ("real", 1.0))
        },
        he_golden,
    ),
    Case(
        "truncation",
        MAD,
        "truncation as sampling bias",
        {"c15": ("recipe.truncation=1.5",), "c20": ("recipe.truncation=2.0",)},
        truncation,
    ),
    Case("shumailov_discrete", SHUMAILOV, "discrete distributions, absorption", {"replace": ()}, shumailov_discrete),
    Case(
        "seddik_mixing",
        "Seddik et al. 2024, arXiv 2404.05090",
        "fully synthetic and partly synthetic training",
        {"replace": ("mixing=replace",), "mixed": ("mixing=synthetic_augmentation",)},
        seddik_mixing,
    ),
    Case(
        "dohmatob_tails",
        "Dohmatob et al. 2024, arXiv 2402.07043",
        "tails of p ~ i^-β",
        {"steep15": ("domain.exponent=1.5",), "steep20": ("domain.exponent=2.0",)},
        dohmatob_tails,
    ),
    Case(
        "suresh_forgetting",
        "Suresh et al. 2025, arXiv 2412.17646",
        "forgetting time of a word",
        {"replace": ()},
        suresh_forgetting,
    ),
    Case(
        "jangjoo_one_real_point",
        "Jangjoo, Marsili & Roudi 2026, PRL 136, 197301",
        "one real point prevents absorption",
        {"none": ("mixing.value=0.0",), "one": ("mixing.value=0.025",), "five": ("mixing.value=0.125",)},
        jangjoo_one_real_point,
    ),
    Case(
        "marchi_temperature",
        "Marchi et al. 2024, arXiv 2404.02325",
        "temperature other than 1",
        {"cold": ("recipe.temperature=0.8",), "warm": ("recipe.temperature=1.25",)},
        marchi_temperature,
    ),
    Case(
        "ferbach_curation",
        "Ferbach et al. 2024, arXiv 2407.09499",
        "curation by Bradley-Terry, H^K",
        {"curated": ()},
        ferbach_curation,
    ),
    Case(
        "wei_adversarial", "Wei & Zhang 2025, arXiv 2505.09768", "adversarial curation", {"turned": ()}, wei_adversarial
    ),
    Case(
        "gerstgrasser_regression",
        "Gerstgrasser et al. 2024, arXiv 2404.01413",
        "theorems 1 and 2",
        {
            f"{mixing}_{design}": (f"mixing={mixing}", f"domain.design={design}")
            for mixing in ("replace", "accumulate")
            for design in ("shared", "fresh")
        },
        gerstgrasser_regression,
    ),
    Case(
        "dohmatob_regression",
        "Dohmatob et al. 2024, arXiv 2402.07712",
        "linear growth over rounds",
        {"replace": ()},
        dohmatob_regression,
    ),
    Case(
        "dohmatob_strong",
        "Dohmatob et al. 2025, arXiv 2410.04840",
        "strong model collapse",
        {"n100": ("size=100",), "n400": ("size=400",)},
        dohmatob_strong,
    ),
    Case(
        "feng_verifier",
        "Feng et al. 2025, arXiv 2406.07515",
        "breakdown point p*",
        {"below": ("domain.error=0.6",), "at": ("domain.error=0.75",), "above": ("domain.error=0.9",)},
        feng_verifier,
    ),
    Case(
        "firdoussi_pruning",
        "Firdoussi et al. 2024, arXiv 2410.08942",
        "accuracy after pruning",
        {"pruned": ()},
        firdoussi_pruning,
    ),
    Case(
        "yi_verifier", "Yi et al. 2025, arXiv 2510.16657", "the verifier's knowledge centre", {"loop": ()}, yi_verifier
    ),
)
