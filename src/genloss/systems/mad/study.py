"""Do precision and recall of diffusion models go the ways that Model Autophagy Disorder says?"""

from __future__ import annotations

from genloss.observatory.compare import Contrast, Panel, Study, Value

BIASED = 0.5  # λ, w = 1
REAL = {
    "accumulate": "real data and all samples",
    "fresh": "half of the data fresh",
    "synthetic_augmentation": "real data and the last sample",
}
PRECISION, RECALL, FRECHET = "manifold_precision", "manifold_recall", "feature_frechet"
FRESH = 100  # n_r, new real images a round, of the arms that look for the threshold
# the share of n_r, by n_s, synthetic images beside it; of no synthetic ones the loop is none
SHARES = {0: 1.0, 100: 0.5, 300: 0.25, 900: 0.1}
CHOSEN = {"none": "the half that lies farthest apart", "random": "as many at random"}


def of(metric: str, mixing: str, bias: float, round: int = -1) -> Value:
    """Of what model `round` - 1 drew."""
    return Value(metric, {"mixing": mixing, "recipe.bias": bias, "curation": "none"}, round)


def beside(synthetic: int) -> Value:
    """The distance of a loop with so many synthetic images beside FRESH real ones."""
    where = {"mixing": "fresh", "mixing.real.n": FRESH, "mixing.value": SHARES[synthetic], "recipe.bias": 1.0}
    return Value(FRECHET, where)


def chosen(metric: str, control: str) -> Value:
    return Value(metric, {"curation": "diverse", "control": control, "recipe.bias": 1.0})


STUDY = Study(
    "mad",
    "Alemohammad et al. 2024, arXiv 2307.01850",
    (
        ("mixing=replace", f"recipe.bias=1.0,{BIASED}", "seed=0,1,2"),
        ("mixing=accumulate", f"recipe.bias={BIASED}", "seed=0,1,2"),
        # so many new ones a round as the digits have for three rounds; half of what a model trains on are of them
        ("mixing=fresh", "mixing.real.n=375", f"recipe.bias={BIASED}", "seed=0,1,2"),
        ("mixing=synthetic_augmentation", f"recipe.bias={BIASED}", "seed=0,1,2"),
        # round 0 is that of the other arms, so that all are compared with the same real images
        *(
            (
                "mixing=fresh",
                f"mixing.real.n={FRESH}",
                "+mixing.real.first=400",
                f"mixing.value={share}",
                f"mixing.budget.n={FRESH + synthetic}",
                f"recipe.n={max(400, synthetic)}",
                "recipe.bias=1.0",
                "seed=0,1,2",
            )
            for synthetic, share in SHARES.items()
        ),
        ("curation=diverse", "control=none,random", "recipe.n=800", "recipe.bias=1.0", "seed=0,1,2"),
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
        Contrast(
            f"{FRESH} fresh and as many synthetic images: nearer to real ones than {FRESH} fresh ones alone",
            beside(0),
            beside(FRESH),
        ),
        *(
            Contrast(
                f"{FRESH} fresh and {synthetic} synthetic images: farther from real ones than {FRESH} fresh ones alone",
                beside(synthetic),
                beside(0),
            )
            for synthetic in (300, 900)
        ),
        Contrast(
            "fully synthetic, the half of the samples that lies farthest apart: recall is above that of a random half",
            chosen(RECALL, "none"),
            chosen(RECALL, "random"),
        ),
        Contrast(
            "fully synthetic, the half of the samples that lies farthest apart: nearer to real ones than a random half",
            chosen(FRECHET, "random"),
            chosen(FRECHET, "none"),
        ),
    ),
    (
        *(
            Panel(
                title,
                {
                    "fully synthetic, λ = 1": of(metric, "replace", 1.0),
                    f"fully synthetic, λ = {BIASED}": of(metric, "replace", BIASED),
                    **{f"{mixing}, λ = {BIASED}": of(metric, mixing, BIASED) for mixing in REAL},
                },
                rounds=True,
            )
            for metric, title in ((PRECISION, "precision"), (RECALL, "recall"), (FRECHET, "Fréchet distance"))
        ),
        Panel(
            f"Fréchet distance, λ = 1, {FRESH} fresh and",
            {f"{synthetic} synthetic images" if synthetic else "none": beside(synthetic) for synthetic in SHARES},
            rounds=True,
        ),
        *(
            Panel(
                f"{title}, λ = 1, fully synthetic,",
                {name: chosen(metric, control) for control, name in CHOSEN.items()},
                rounds=True,
            )
            for metric, title in ((RECALL, "recall"), (FRECHET, "Fréchet distance"))
        ),
    ),
)
