"""The self-consuming loop (Briesch et al. 2023): what becomes of right records, and of different right ones, when a
weak and a strong generator train on their own output, alone or with a quarter of fresh data?"""

from __future__ import annotations

from genloss.observatory.compare import Contrast, Panel, Study, Value

STEPS = {"weak (150 steps)": 150, "strong (600 steps)": 600}
SEEDS = "seed=0,1,2,3,4"
FRESH = 0.25


def of(metric: str, mixing: str, steps: int, round: int = -1) -> Value:
    """Of what model `round` - 1 wrote."""
    return Value(metric, {"mixing": mixing, "trainer.steps": steps}, round)


STUDY = Study(
    "self_consuming",
    "Briesch et al. 2023, arXiv 2311.16822",
    (
        ("mixing=replace", "trainer.steps=150,600", SEEDS),
        ("mixing=fresh", f"mixing.value={FRESH}", "trainer.steps=150,600", SEEDS),
    ),
    tuple(
        line
        for name, steps in STEPS.items()
        for line in (
            Contrast(
                f"{name}, its own data alone: the share of right records rises",
                of("valid", "replace", steps),
                of("valid", "replace", steps, 1),
            ),
            Contrast(
                f"{name}, its own data alone: the share of different right ones falls",
                of("valid_distinct", "replace", steps, 1),
                of("valid_distinct", "replace", steps),
            ),
            Contrast(
                f"{name}: a quarter of fresh data keeps more different right ones",
                of("valid_distinct", "fresh", steps),
                of("valid_distinct", "replace", steps),
            ),
            Contrast(
                f"{name}: and the held-out loss lower",
                of("heldout_bits_per_byte", "replace", steps),
                of("heldout_bits_per_byte", "fresh", steps),
            ),
        )
    ),
    tuple(
        Panel(
            f"{title}, {name}",
            {"its own data alone": of(metric, "replace", steps), "25 % fresh": of(metric, "fresh", steps)},
            rounds=True,
        )
        for name, steps in STEPS.items()
        for metric, title in (("valid", "right records"), ("valid_distinct", "different right records"))
    ),
)
