"""Beyond Model Collapse (Feng et al. 2025): what is a selection of a generator's answers worth, after one round and
after five? And the best of k?"""

from __future__ import annotations

from typing import Any

from genloss.observatory.compare import SAME, Contrast, Panel, Study, Trend, Value

FIVE, SEEDS = "seed=0,1,2,3,4", "seed=0,1,2"
PSI = (0.1, 0.3, 0.5)
TRIES = (2, 4, 8, 16)
UNTRAINED = "+schedule={1:{trainer:{steps:1}}}"  # what was chosen is measured, not what it teaches
JUDGES = {"weak": 200, "strong": 3000}  # real problems that they learned from; the generator has 500
FEWER = 1154  # about as many as exact keeps of 2,400
REGIMES = (
    "replace",
    "replace_keep",
    "sliding_window",
    "accumulate",
    "accumulate_subsample",
    "synthetic_augmentation",
    "prev_ratio",
    "fresh",
    "weighted_fresh",
    "real_only",
)


def agreement(name: str) -> str:
    """A curator of its own name: what the model of that name and of the same seed answers too."""
    path = f"runs/{name}-replace-none-s${{seed}}-*/rounds/00/model"
    return f"+curation.agree_{name}={{_target_: genloss.domains.reasoning.answers.Agree, judge: '{path}'}}"


def arm(curation: str = "none", options: dict[str, Any] | None = None, control: str = "none") -> dict[str, Any]:
    known = {
        "curation": curation,
        "control": control,
        "domain.name": "reasoning",
        "rounds": 1,
        "recipe.n": 2400,
        "recipe.bias": 0,
    }
    return known | (options or {})


def best(selector: str, k: int) -> dict[str, Any]:
    """The best of k sampled answers."""
    return arm(
        "best_of", {"recipe.n": 500, "recipe.bias": 1, "recipe.samples": k, "curation.best_of.selector": selector}
    )


def iterated(regime: str, curation: str) -> dict[str, Any]:
    return arm(curation, {"mixing": regime, "rounds": 5, "recipe.n": 2000})


def tries(k: int, by: str) -> str:
    """The paper has the best of 50 beams, shown beside our best of 16."""
    return f"best of {k}{' (there 50)' if k == max(TRIES) else ''}, {by}"


def accuracy(where: dict[str, Any], round: int = -1) -> Value:
    return Value("accuracy", where, round)


def kept(where: dict[str, Any]) -> Value:
    return Value("kept_accuracy", where)


NONE, EXACT, LIKELIHOOD = arm(), arm("exact"), arm("likelihood")
NOISY = [arm("noisy", {"curation.noisy.psi": psi}) for psi in PSI]
RANDOM, RANDOM_HALF = arm("exact", control="random"), arm("likelihood", control="random")
ONE_SAMPLE = arm(options={"recipe.n": 500, "recipe.bias": 1})
UNSELECTED = arm(options={"recipe.n": FEWER})
LARGER, LARGER_EXACT = (arm(c, {"recipe.n": 6000}) for c in ("none", "exact"))  # 3 x 3
SAMPLED, SAMPLED_EXACT = (arm(c, {"recipe.bias": 1}) for c in ("none", "exact"))
MANY, MANY_EXACT = (arm(c, {"recipe.n": 12_000}) for c in ("none", "exact"))
JUDGED = {name: arm(f"agree_{name}") for name in JUDGES}
AS_MANY = {name: arm(f"agree_{name}", control="random") for name in JUDGES}
VERIFIERS = [NONE, *NOISY[::-1], EXACT]  # by their p*
RECURSIVE = [r for r in REGIMES if r != "real_only"]

STUDY = Study(
    "beyond_collapse",
    "Feng et al. 2025, arXiv 2406.07515",
    (
        ("curation=none,likelihood,exact", FIVE),
        ("curation=noisy", f"curation.noisy.psi={','.join(map(str, PSI))}", FIVE),
        ("curation=exact,likelihood", "control=random", FIVE),
        ("curation=none", f"recipe.n={FEWER}", FIVE),
        ("curation=none,exact", "recipe.n=12000", SEEDS),
        ("curation=none,exact", "recipe.bias=1", SEEDS),
        (
            "curation=best_of",
            "curation.best_of.selector=exact,likelihood",
            f"recipe.samples={','.join(map(str, TRIES))}",
            "recipe.bias=1",
            "recipe.n=500",
            UNTRAINED,
            SEEDS,
        ),
        ("curation=none", "recipe.bias=1", "recipe.n=500", UNTRAINED, SEEDS),
        *(("curation=none", "rounds=0", f"domain.name={name}", f"size={size}", SEEDS) for name, size in JUDGES.items()),
        *(("curation=none", agreement(name), "control=none,random", SEEDS) for name in JUDGES),
        ("experiment=beyond_collapse_rounds", SEEDS),
        ("experiment=eigenvalues", SEEDS),
    ),
    (
        Contrast("all labels teach worse than the generator is", accuracy(NONE, 0), accuracy(NONE)),
        Contrast(
            "so do five times as many (in the paper up to 50 times the generator's data)",
            accuracy(MANY, 0),
            accuracy(MANY),
        ),
        Contrast("verified labels teach better than the generator is", accuracy(EXACT), accuracy(EXACT, 0)),
        Contrast("verified, so do five times as many", accuracy(MANY_EXACT), accuracy(MANY_EXACT, 0)),
        Contrast("verified labels beat all of them", accuracy(EXACT), accuracy(NONE)),
        Contrast("and as many at random", accuracy(EXACT), accuracy(RANDOM)),
        Contrast(
            "as many at random teach what equally many unselected ones do",
            accuracy(RANDOM),
            accuracy(UNSELECTED),
            SAME,
            0.05,
        ),
        Contrast("and what all teach", accuracy(RANDOM), accuracy(NONE), SAME, 0.05),
        Contrast("sampled labels, all: worse than the generator is", accuracy(SAMPLED, 0), accuracy(SAMPLED)),
        Contrast(
            "sampled labels, verified: better than the generator is",
            accuracy(SAMPLED_EXACT),
            accuracy(SAMPLED_EXACT, 0),
        ),
        Trend(
            "accuracy grows with the measured p*",
            tuple(Value("p_star", a) for a in VERIFIERS),
            tuple(map(accuracy, VERIFIERS)),
        ),
        Contrast("the truth selects better than the generator's likelihood", accuracy(EXACT), accuracy(LIKELIHOOD)),
        Contrast(
            "its likelihood selects better than chance, at equal size", accuracy(LIKELIHOOD), accuracy(RANDOM_HALF)
        ),
        Contrast(
            "best of 16 tries: by the truth, not by likelihood", kept(best("exact", 16)), kept(best("likelihood", 16))
        ),
        Contrast(
            "by likelihood it is no better than the greedy answer (19.2 against 20.2 %)",
            kept(best("likelihood", 16)),
            Value("label_accuracy", NONE),
            SAME,
            0.05,
        ),
        Contrast(
            "a stronger model selects better than a weaker one", accuracy(JUDGED["strong"]), accuracy(JUDGED["weak"])
        ),
        *(
            Contrast(
                f"a {name} model's choice teaches better than as many at random",
                accuracy(JUDGED[name]),
                accuracy(AS_MANY[name]),
            )
            for name in JUDGES
        ),
        Contrast(
            "a stronger model's choice teaches better than the generator is",
            accuracy(JUDGED["strong"]),
            accuracy(NONE, 0),
        ),
        Contrast("3 x 3: verified labels beat all", accuracy(LARGER_EXACT), accuracy(LARGER)),
        Contrast(
            "3 x 3: verified labels teach better than the generator is",
            accuracy(LARGER_EXACT),
            accuracy(LARGER_EXACT, 0),
        ),
        Contrast("3 x 3: all labels teach worse than the generator is", accuracy(LARGER, 0), accuracy(LARGER)),
        *(
            Contrast(
                f"{r}, five rounds: verified labels beat all",
                accuracy(iterated(r, "exact")),
                accuracy(iterated(r, "none")),
            )
            for r in RECURSIVE
        ),
        *(
            Contrast(
                f"{r}, five rounds, verified: better than the generator",
                accuracy(iterated(r, "exact")),
                accuracy(iterated(r, "exact"), 0),
            )
            for r in REGIMES
        ),
        *(
            Contrast(
                f"{r}, five rounds, all labels: worse than the generator",
                accuracy(iterated(r, "none"), 0),
                accuracy(iterated(r, "none")),
            )
            for r in RECURSIVE
        ),
    ),
    (
        Panel(
            "generator's answers that are right",
            {
                "greedy": Value("label_accuracy", NONE),
                "one sample": Value("label_accuracy", ONE_SAMPLE),
                **{tries(k, "truth"): kept(best("exact", k)) for k in TRIES},
                **{tries(k, "likelihood"): kept(best("likelihood", k)) for k in TRIES},
            },
            published={"greedy": 0.202, tries(16, "truth"): 0.604, tries(16, "likelihood"): 0.192},
            published_title="published: right within 1 %",
        ),
        Panel(
            "accuracy after one round",
            {
                "generator": accuracy(NONE, 0),
                "all labels": accuracy(NONE),
                "random, as many as exact": accuracy(RANDOM),
                "likelihood, half": accuracy(LIKELIHOOD),
                "random half": accuracy(RANDOM_HALF),
                "weak judge": accuracy(JUDGED["weak"]),
                "random, as many as weak": accuracy(AS_MANY["weak"]),
                "strong judge": accuracy(JUDGED["strong"]),
                "random, as many as strong": accuracy(AS_MANY["strong"]),
                **{f"noisy, ψ = {psi}": accuracy(a) for psi, a in zip(PSI[::-1], NOISY[::-1], strict=True)},
                "exact": accuracy(EXACT),
            },
        ),
        Panel(
            "other sizes and labels",
            {
                "1,154, all": accuracy(UNSELECTED),
                "12,000, all": accuracy(MANY),
                "12,000, exact": accuracy(MANY_EXACT),
                "sampled, all": accuracy(SAMPLED),
                "sampled, exact": accuracy(SAMPLED_EXACT),
                "3 x 3, generator": accuracy(LARGER, 0),
                "3 x 3, all": accuracy(LARGER),
                "3 x 3, exact": accuracy(LARGER_EXACT),
            },
        ),
        Panel(
            "measured p* of the verifier",
            {
                "all labels": Value("p_star", NONE),
                "likelihood, half": Value("p_star", LIKELIHOOD),
                "weak judge": Value("p_star", JUDGED["weak"]),
                "strong judge": Value("p_star", JUDGED["strong"]),
                **{f"noisy, ψ = {psi}": Value("p_star", a) for psi, a in zip(PSI[::-1], NOISY[::-1], strict=True)},
                "exact": Value("p_star", EXACT),
            },
        ),
        *(
            Panel(
                f"after five rounds, {words}",
                {"generator": accuracy(iterated("replace", c), 0)} | {r: accuracy(iterated(r, c)) for r in REGIMES},
            )
            for c, words in (("none", "all labels"), ("exact", "verified"))
        ),
    ),
    looked=3,  # seeds; then five of some arms
)
