"""Self-Instruct (Wang et al. 2023): does the pool of tasks stay varied?"""

from genloss.observatory.compare import Contrast, Panel, Study, Value

SEEDS = "seed=3,4,5,6,7"  # 0 to 2 were looked at, after which the lines at 0.95 and the control were added
OFF = 1.0  # threshold that drops nothing
THRESHOLDS = (0.85, 0.9, 0.95, OFF)
SOURCES = ("seeds", "mixed", "machine")


def arm(metric: str, source: str, threshold: float = 0.9, round: int = -1, control: str = "none") -> Value:
    where = {"recipe.source": source, "curation.novelty.threshold": threshold, "control": control}
    return Value(metric, where, round)


STUDY = Study(
    name="self_instruct",
    paper="Wang et al. 2023, arXiv 2212.10560",
    sweeps=(
        (
            f"recipe.source={','.join(SOURCES)}",
            f"curation.novelty.threshold={','.join(map(str, THRESHOLDS))}",
            SEEDS,
        ),
        ("recipe.source=mixed", "curation.novelty.threshold=0.9,0.95", "control=random", SEEDS),
    ),
    lines=(
        Contrast(
            "shown machine-made requests alone, new ones of round 4 are of fewer cells than after 3 + 1",
            arm("new_cells", "mixed", OFF),
            arm("new_cells", "machine", OFF),
        ),
        Contrast(
            "and than shown seeds alone, as Alpaca does",
            arm("new_cells", "seeds", OFF),
            arm("new_cells", "machine", OFF),
        ),
        Contrast(
            "machine-made alone: fewer cells in round 4 than in round 1",
            arm("new_cells", "machine", OFF, 1),
            arm("new_cells", "machine", OFF),
        ),
        Contrast(
            "with the filter at 0.95 they are fewer than after 3 + 1 too",
            arm("new_cells", "mixed", 0.95),
            arm("new_cells", "machine", 0.95),
        ),
        Contrast("and with the filter at 0.9", arm("new_cells", "mixed"), arm("new_cells", "machine")),
        *(
            line
            for threshold in (0.95, 0.9)
            for line in (
                Contrast(
                    f"without the filter the pool is larger than with {threshold:g}",
                    arm("pool_size", "mixed", OFF),
                    arm("pool_size", "mixed", threshold),
                ),
                Contrast(
                    f"and of no more cells: with {threshold:g} there are more",
                    arm("pool_cells", "mixed", threshold),
                    arm("pool_cells", "mixed", OFF),
                ),
                Contrast(
                    f"more than in equally many at random ({threshold:g})",
                    arm("pool_cells", "mixed", threshold),
                    arm("pool_cells", "mixed", threshold, control="random"),
                ),
                Contrast(
                    f"nor of more different requests: at most 50 apart ({threshold:g})",
                    arm("pool_texts", "mixed", OFF),
                    arm("pool_texts", "mixed", threshold),
                    "same",
                    50.0,
                ),
                Contrast(
                    f"the filter costs valid requests ({threshold:g})",
                    arm("new_right", "mixed", OFF),
                    arm("new_right", "mixed", threshold),
                ),
            )
        ),
    ),
    panels=(
        Panel(
            "effective number of cells of new requests, no filter",
            {source: arm("new_cells", source, OFF) for source in SOURCES},
            rounds=True,
        ),
        Panel(
            "effective number of cells of the pool, 3 + 1",
            {f"at most {t:g}" if t < OFF else "no filter": arm("pool_cells", "mixed", t) for t in THRESHOLDS},
            rounds=True,
        ),
        Panel(
            "requests in the pool after round 4, 3 + 1",
            {f"at most {t:g}" if t < OFF else "no filter": arm("pool_size", "mixed", t) for t in THRESHOLDS},
        ),
        Panel(
            "right answers to new requests of round 4",
            {f"at most {t:g}" if t < OFF else "no filter": arm("new_right", "mixed", t) for t in THRESHOLDS},
        ),
    ),
)
