"""Data simulation (ZeroGen; Ye et al. 2022): a narrow model from what a broad one wrote, against real examples."""

from genloss.observatory.compare import Contrast, Panel, Study, Value

SEEDS = "seed=0,1,2"
REAL = (30, 100, 300, 1000)  # real examples that the same small model learns from instead
SIMULATED = 3000  # `size` of the arms that learn from what is simulated


def narrow(curation: str, metric: str = "followed", control: str = "none") -> Value:
    where = {"domain.name": "narrow", "curation": curation, "control": control, "rounds": 1}
    return Value(metric, where)


def real(n: int, metric: str = "followed") -> Value:
    """Of n real examples; the simulated arms' own round 0 has learned from SIMULATED."""
    return Value(metric, {"domain.name": "narrow", "rounds": 0, "size": n})


def broad(metric: str) -> Value:
    return Value(metric, {"domain.name": "broad"})


STUDY = Study(
    name="data_simulation",
    paper="Ye et al. 2022, arXiv 2202.07922",
    sweeps=(
        ("experiment=broad", SEEDS),
        (SEEDS, "curation=none,exact"),
        (SEEDS, "curation=exact", "control=random"),
        (SEEDS, "curation=none", "rounds=0", f"size={','.join(map(str, REAL))}"),
    ),
    lines=(
        Contrast(
            "a narrow model of a tenth of its size is at least as good as the broad one that wrote its data",
            narrow("exact"),
            broad("followed/topic_bird"),
        ),
        Contrast(
            "checked data are better than equally many at random", narrow("exact"), narrow("exact", control="random")
        ),
        Contrast("and than all that was written", narrow("exact"), narrow("none")),
        Contrast(
            "elsewhere the narrow model fails, and the broad one does not",
            broad("followed"),
            narrow("exact", "elsewhere"),
        ),
        *(Contrast(f"what is simulated is better than {n} real examples", narrow("exact"), real(n)) for n in REAL),
    ),
    panels=(
        Panel(
            "questions about birds that are answered rightly",
            {
                "broad, 0.86 M": broad("followed/topic_bird"),
                "narrow, unchecked": narrow("none"),
                "narrow, random": narrow("exact", control="random"),
                "narrow, checked": narrow("exact"),
                **{f"narrow, {n} real": real(n) for n in REAL},
            },
        ),
        Panel(
            "questions about all else",
            {"broad, 0.86 M": broad("followed"), "narrow, checked": narrow("exact", "elsewhere")},
        ),
    ),
)
