"""Baize's self-distillation with feedback (Xu et al. 2023) in the small world: the best of n by a noisy judge."""

from genloss.observatory.compare import Contrast, Panel, Study, Trend, Value

SEEDS = "seed=0,1,2"
SDF = "experiment=baize/sdf"
NOISE = 1.0


def sdf(metric: str, n: int, sigma: float = 0.0, start: str = "stacked", round: int = -1) -> Value:
    where = {
        "domain.name": "baize-sdf",
        "recipe.samples": n,
        "curation.noisy_judge.sigma": sigma,
        "trainer.start": start,
    }
    return Value(metric, where, round)


ARMS = [(1, 0.0), (2, 0.0), (4, 0.0), (8, 0.0), (2, NOISE), (4, NOISE), (8, NOISE)]
TITLES = {f"n = {n}" + (f", noise {sigma:g}" if sigma else ""): (n, sigma) for n, sigma in ARMS}

STUDY = Study(
    name="baize",
    paper="Xu et al. 2023, arXiv 2304.01196",
    sweeps=(
        ("experiment=baize/base", SEEDS),
        (SDF, SEEDS, "recipe.samples=1,2,4,8"),
        (SDF, SEEDS, "recipe.samples=2,4,8", f"curation.noisy_judge.sigma={NOISE}"),
        (SDF, SEEDS, "recipe.samples=4", "trainer.start=previous"),
    ),
    lines=(
        Contrast(
            "the best of four answers teaches better than any one, on equally many answers and steps (7 B: 87 to 90 %)",
            sdf("followed", 4),
            sdf("followed", 1),
        ),
        Contrast("of eight, better than of two", sdf("followed", 8), sdf("followed", 2)),
        Contrast("a judge without noise teaches better", sdf("followed", 4), sdf("followed", 4, NOISE)),
        Trend(
            "the gain follows what the judge's choice is worth: the share of right answers orders the arms",
            tuple(sdf("kept_accuracy", *arm) for arm in ARMS),
            tuple(sdf("followed", *arm) for arm in ARMS),
        ),
        Contrast(
            "the entropy of answers falls over rounds",
            sdf("response_entropy", 4, round=0),
            sdf("response_entropy", 4),
        ),
        Contrast(
            "nothing is forgotten (claimed, not measured): the share that round 0 knew is lost as by n = 1",
            sdf("forgotten", 4),
            sdf("forgotten", 1),
            "same",
            0.02,
        ),
        Contrast(
            "a new adapter forgets less than the last one further",
            sdf("forgotten", 4, start="previous"),
            sdf("forgotten", 4),
        ),
    ),
    panels=(
        Panel("followed, last round", {title: sdf("followed", *arm) for title, arm in TITLES.items()}),
        Panel("right answers among those kept", {title: sdf("kept_accuracy", *arm) for title, arm in TITLES.items()}),
        Panel(
            "entropy of an answer (nats)",
            {title: sdf("response_entropy", *arm) for title, arm in TITLES.items()},
            rounds=True,
        ),
        Panel(
            "forgotten",
            {title: sdf("forgotten", *arm) for title, arm in TITLES.items()}
            | {"n = 4, adapter further": sdf("forgotten", 4, start="previous")},
        ),
    ),
)
