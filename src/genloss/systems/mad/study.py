"""Do precision and recall of diffusion models go the ways that Model Autophagy Disorder says?"""

from __future__ import annotations

from genloss.observatory.compare import Contrast, Panel, Study, Value

BIASED = 0.5  # λ, w = 1
REAL = {
    "accumulate": "real data and all samples",
    "fresh": "half of the data fresh",
}
PRECISION, RECALL = "manifold_precision", "manifold_recall"


def of(metric: str, mixing: str, bias: float, round: int = -1) -> Value:
    """Of what model `round` - 1 drew."""
    return Value(metric, {"mixing": mixing, "recipe.bias": bias}, round)


STUDY = Study(
    "mad",
    "Alemohammad et al. 2024, arXiv 2307.01850",
    (
        ("mixing=replace", f"recipe.bias=1.0,{BIASED}", "seed=0,1,2"),
        ("mixing=accumulate", f"recipe.bias={BIASED}", "seed=0,1,2"),
        # so many new ones a round as the digits have for three rounds; half of what a model trains on are of them
        ("mixing=fresh", "mixing.real.n=375", f"recipe.bias={BIASED}", "seed=0,1,2"),
    ),
    (
        Contrast(
            "fully synthetic, biased: precision rises",
            of(PRECISION, "replace", BIASED),
            of(PRECISION, "replace", BIASED, 1),
        ),
        Contrast(
            "fully synthetic, biased: recall falls",
            of(RECALL, "replace", BIASED, 1),
            of(RECALL, "replace", BIASED),
        ),
        Contrast(
            "fully synthetic, not biased: precision falls",
            of(PRECISION, "replace", 1.0, 1),
            of(PRECISION, "replace", 1.0),
        ),
        Contrast(
            "fully synthetic, not biased: recall falls",
            of(RECALL, "replace", 1.0, 1),
            of(RECALL, "replace", 1.0),
        ),
        Contrast(
            "fully synthetic: bias costs recall",
            of(RECALL, "replace", 1.0),
            of(RECALL, "replace", BIASED),
        ),
        *(
            Contrast(
                f"biased, {name}: recall is above that of the fully synthetic loop",
                of(RECALL, mixing, BIASED),
                of(RECALL, "replace", BIASED),
            )
            for mixing, name in REAL.items()
        ),
        Contrast(
            "no copies: samples of the fully synthetic, biased loop are as far from training images as from others",
            of("memorisation", "replace", BIASED),
            of("memorisation_floor", "replace", BIASED),
            "same",
            margin=0.05,
        ),
    ),
    tuple(
        Panel(
            title,
            {
                "fully synthetic, λ = 1": of(metric, "replace", 1.0),
                f"fully synthetic, λ = {BIASED}": of(metric, "replace", BIASED),
                **{f"{mixing}, λ = {BIASED}": of(metric, mixing, BIASED) for mixing in REAL},
            },
            rounds=True,
        )
        for metric, title in ((PRECISION, "precision"), (RECALL, "recall"), ("feature_frechet", "Fréchet distance"))
    ),
)
