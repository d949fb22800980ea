"""FABRIC (von Rütte et al. 2023): does feedback through attention raise a preference that did not give it, against as
many images without feedback, and what does that cost in diversity?"""

from __future__ import annotations

from typing import Any

from genloss.observatory.compare import Contrast, Panel, Study, Value

SEEDS = "seed=0,1,2,3,4"
WEIGHTS = (0.1, 0.3, 0.8)


def arm(**options: Any) -> dict[str, Any]:
    known = {"sides": "both", "weight": 0.3, "start": 0.0, "end": 0.8, "dropout": 0.0}
    return {"control": options.pop("control", "none"), **{f"recipe.{k}": v for k, v in (known | options).items()}}


NONE, BOTH, LIKED, DISLIKED = arm(weight=0), arm(), arm(sides="liked"), arm(sides="disliked")
RANDOM = arm(sides="liked", control="random")
EARLY, LATE, DROPOUT = arm(end=0.4), arm(start=0.4), arm(dropout=0.3)
ARMS = {
    "likes and dislikes": BOTH,
    "likes": LIKED,
    "dislikes": DISLIKED,
    "likes at random": RANDOM,
}
OTHERS = {f"w = {w}": arm(weight=w) for w in WEIGHTS} | {"early": EARLY, "late": LATE, "dropout": DROPOUT}


def mean(where: dict[str, Any], round: int = -1) -> Value:
    return Value("preference", where, round)


def varied(where: dict[str, Any]) -> Value:
    return Value("pixel_diversity", where)


def least(where: dict[str, Any]) -> Value:
    return Value("preference_min", where)


STUDY = Study(
    "fabric",
    "von Rütte et al. 2023, arXiv 2307.10159",
    (
        (f"recipe.weight=0,{','.join(map(str, WEIGHTS))}", SEEDS),
        ("recipe.weight=0.3", "recipe.sides=liked,disliked", SEEDS),
        ("recipe.weight=0.3", "recipe.sides=liked", "control=random", SEEDS),
        ("recipe.weight=0.3", "recipe.end=0.4", SEEDS),
        ("recipe.weight=0.3", "recipe.start=0.4", SEEDS),
        ("recipe.weight=0.3", "recipe.dropout=0.3", SEEDS),
    ),
    (
        Contrast("after three rounds of feedback the mean is higher than without", mean(BOTH), mean(NONE)),
        Contrast("and so is the least of a session", least(BOTH), least(NONE)),
        Contrast(
            "and the largest, than all that was drawn without feedback until then",
            Value("preference_max", BOTH),
            Value("preference_max_so_far", NONE),
        ),
        Contrast("the mean rises over the rounds", mean(BOTH), mean(BOTH, 1)),
        Contrast(
            "images are more like the hidden target than without",
            Value("target_similarity", BOTH),
            Value("target_similarity", NONE),
        ),
        Contrast("diversity falls", varied(NONE), varied(BOTH)),
        Contrast("likes alone raise the mean", mean(LIKED), mean(NONE)),
        Contrast("more than likes at random", mean(LIKED), mean(RANDOM)),
        Contrast("dislikes alone raise the mean", mean(DISLIKED), mean(NONE)),
        Contrast("a larger weight raises it more: 0.8 against 0.1", mean(arm(weight=0.8)), mean(arm(weight=0.1))),
        Contrast("feedback in early steps does more than in as many late ones", mean(EARLY), mean(LATE)),
        Contrast("dropout keeps more diversity", varied(DROPOUT), varied(BOTH)),
        Contrast("and costs some of the mean", mean(BOTH), mean(DROPOUT)),
    ),
    (
        *(
            Panel(
                f"{title} without feedback",
                {name: Value(metric, where) for name, where in ARMS.items()},
                rounds=True,
                against=Value(base, NONE),
            )
            for title, metric, base in (
                ("mean preference of a session, above that", "preference", "preference"),
                ("its least, above that", "preference_min", "preference_min"),
                ("its largest, above that of all rounds so far", "preference_max", "preference_max_so_far"),
                ("diversity of a session, above that", "pixel_diversity", "pixel_diversity"),
            )
        ),
        Panel(
            "mean preference, last round, above that without feedback",
            {k: mean(v) for k, v in OTHERS.items()},
            against=mean(NONE),
        ),
        Panel(
            "diversity, last round, above that without feedback",
            {k: varied(v) for k, v in OTHERS.items()},
            against=varied(NONE),
        ),
    ),
)
