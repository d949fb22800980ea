"""Self-Instruct (Wang et al. 2023): does the pool of tasks stay varied?"""

from genloss.observatory.compare import Contrast, Panel, Study, Value

SEEDS = "seed=0,1,2"
OFF = 1.0  # threshold that drops nothing
THRESHOLDS = (0.85, 0.9, 0.95, OFF)
SOURCES = ("seeds", "mixed", "machine")


def arm(metric: str, source: str, threshold: float = 0.9, round: int | None = None) -> Value:
    where = {"recipe.source": source, "curation.novelty.threshold": threshold}
    return Value(metric, where) if round is None else Value(metric, where, round)


STUDY = Study(
    name="self_instruct",
    paper="Wang et al. 2023, arXiv 2212.10560",
    sweeps=(
        (
            f"recipe.source={','.join(SOURCES)}",
            f"curation.novelty.threshold={','.join(map(str, THRESHOLDS))}",
            SEEDS,
        ),
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
        Contrast("the same with the filter at 0.9", arm("new_cells", "mixed"), arm("new_cells", "machine")),
        Contrast("without the filter the pool is larger", arm("pool_size", "mixed", OFF), arm("pool_size", "mixed")),
        Contrast(
            "and of no more cells: at most 5 apart",
            arm("pool_cells", "mixed", OFF),
            arm("pool_cells", "mixed"),
            "same",
            5.0,
        ),
        Contrast(
            "nor of more different requests: at most 50 apart",
            arm("pool_texts", "mixed", OFF),
            arm("pool_texts", "mixed"),
            "same",
            50.0,
        ),
        Contrast("the filter costs valid requests", arm("new_right", "mixed", OFF), arm("new_right", "mixed")),
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
