"""Instruction backtranslation (Li et al. 2024) in the small world: does the model's own rating choose what teaches?"""

from typing import Any

from genloss.observatory.compare import Contrast, Panel, Study, Value

SEEDS = "seed=1,2,3"  # 0 was looked at while the sizes were settled
ALL, FEW = 1200, 300  # documents
RATING = "curation=rating"
ANSWERS = "followed/answer"  # of the next model, where test has both skills


def arm(
    metric: str,
    curation: str,
    round: int = 1,
    control: str = "none",
    n: int = ALL,
    tags: bool = True,
    reply: str = "digits",
) -> Value:
    """curation: none, exact, A4 or A5."""
    least = {"A4": 4.0, "A5": 4.5}.get(curation)
    where: dict[str, Any] = {
        "domain.name": "humpback" if tags else "humpback-untagged",
        "control": control,
        "recipe.n": n,
    }
    rating = {"curation.rating.least": least, "curation.rating.reply": reply} if least else {}
    where |= {"curation": "rating" if least else curation} | rating
    return Value(metric, where, round)


STUDY = Study(
    name="humpback",
    paper="Li et al. 2024, arXiv 2308.06259",
    sweeps=(
        ("experiment=humpback/backward", SEEDS),
        (SEEDS, "curation=none,exact", "rounds=1"),  # whose later rounds keep what the first one kept
        (SEEDS, RATING, "curation.rating.least=4.5", "rounds=3"),
        (SEEDS, RATING, "curation.rating.least=4.5", "curation.rating.reply=text", "rounds=1"),
        (SEEDS, RATING, "curation.rating.least=4.5", "control=random", "rounds=1"),
        (SEEDS, RATING, "curation.rating.least=4", "rounds=1"),
        (SEEDS, "curation=none", "rounds=1", f"recipe.n={FEW}"),
        (
            SEEDS,
            RATING,
            "curation.rating.least=4.5",
            "rounds=1",
            "domain.name=humpback-untagged",
            "domain.system=",
            "recipe.system=",
        ),
    ),
    lines=(
        Contrast(
            "what the model rates best teaches better than as many at random",
            arm(ANSWERS, "A5"),
            arm(ANSWERS, "A5", control="random"),
        ),
        Contrast("and than all", arm(ANSWERS, "A5"), arm(ANSWERS, "none")),
        Contrast("the seeds with A5 teach better than the seeds", arm(ANSWERS, "A5"), arm(ANSWERS, "A5", 0)),
        Contrast("A5 teaches better than A4, which is larger", arm(ANSWERS, "A5"), arm(ANSWERS, "A4")),
        Contrast("the truth is at least as good a judge", arm(ANSWERS, "exact"), arm(ANSWERS, "A5")),
        Contrast(
            "uncurated, more do not help: all against a quarter",
            arm(ANSWERS, "none"),
            arm(ANSWERS, "none", n=FEW),
            "same",
            0.03,
        ),
        Contrast("and against the seeds alone", arm(ANSWERS, "none"), arm(ANSWERS, "none", 0), "same", 0.03),
        Contrast("M1 finds more of what is right than M0 (.09 to .44)", arm("phi", "A5", 2), arm("phi", "A5")),
        Contrast("and errs less (precision .44 to .52)", arm("kept_accuracy", "A5", 2), arm("kept_accuracy", "A5")),
        Contrast("a second iteration helps", arm(ANSWERS, "A5", 2), arm(ANSWERS, "A5")),
        Contrast("tags help (60.0 to 66.5 %)", arm(ANSWERS, "A5"), arm(ANSWERS, "A5", tags=False)),
    ),
    panels=(
        Panel(
            "right answers to held-out requests, one iteration",
            {
                "seeds alone": arm(ANSWERS, "none", 0),
                "all": arm(ANSWERS, "none"),
                "a quarter": arm(ANSWERS, "none", n=FEW),
                "random, as A5": arm(ANSWERS, "A5", control="random"),
                "A4": arm(ANSWERS, "A4"),
                "A5": arm(ANSWERS, "A5"),
                "A5, no tags": arm(ANSWERS, "A5", tags=False),
                "A5, second iteration": arm(ANSWERS, "A5", 2),
                "A5, third iteration": arm(ANSWERS, "A5", 3),
                "A5, grades in words": arm(ANSWERS, "A5", reply="text"),
                "exact": arm(ANSWERS, "exact"),
            },
        ),
        Panel(
            "of the selection",
            {
                "right, before it": arm("label_accuracy", "A5"),
                "precision of M0, A5": arm("kept_accuracy", "A5"),
                "of M1": arm("kept_accuracy", "A5", 2),
                "of M2": arm("kept_accuracy", "A5", 3),
                "of M0, in words": arm("kept_accuracy", "A5", reply="text"),
                "recall of M0, A5 (φ)": arm("phi", "A5"),
                "of M1 (φ)": arm("phi", "A5", 2),
                "of M2 (φ)": arm("phi", "A5", 3),
                "of M0, in words (φ)": arm("phi", "A5", reply="text"),
                "wrong ones kept, M0 (ψ)": arm("psi", "A5"),
                "by M1 (ψ)": arm("psi", "A5", 2),
                "p* of M0, A5": arm("p_star", "A5"),
                "of M0, A4": arm("p_star", "A4"),
                "of M1, A5": arm("p_star", "A5", 2),
            },
        ),
        Panel(
            "records kept",
            {
                "A4": arm("n_kept", "A4"),
                "A5": arm("n_kept", "A5"),
                "A5, M1": arm("n_kept", "A5", 2),
                "A5, M2": arm("n_kept", "A5", 3),
                "A5, in words": arm("n_kept", "A5", reply="text"),
            },
        ),
    ),
)
