"""Accumulating real and synthetic data (Gerstgrasser et al. 2024) against training on the real data again: which is
better depends on how many real records there are for the steps. Where is real data a floor, and where is it none?"""

from __future__ import annotations

from genloss.observatory.compare import Contrast, Panel, Study, Value

RECORDS, STEPS = (128, 1024), (300, 900)
CELLS = [(size, steps) for size in RECORDS for steps in STEPS]
METRIC = "heldout_bits_per_byte"


def of(mixing: str, size: int, steps: int) -> Value:
    return Value(METRIC, {"mixing": mixing, "size": size, "trainer.steps": steps})


STUDY = Study(
    "accumulation",
    "Gerstgrasser et al. 2024, arXiv 2404.01413",
    (
        (
            "mixing=replace,accumulate,real_only",
            f"size={','.join(map(str, RECORDS))}",
            f"trainer.steps={','.join(map(str, STEPS))}",
            "seed=0,1,2",
        ),
    ),
    tuple(
        line
        for size, steps in CELLS
        for line in (
            Contrast(
                f"{size} real records, {steps} steps: replacing loses more than accumulating",
                of("replace", size, steps),
                of("accumulate", size, steps),
            ),
            Contrast(
                f"{size} real records, {steps} steps: accumulating loses more than training on them again",
                of("accumulate", size, steps),
                of("real_only", size, steps),
            ),
        )
    ),
    tuple(
        Panel(
            f"held-out bits per byte, {size} real records, {steps} steps",
            {mixing: of(mixing, size, steps) for mixing in ("replace", "accumulate", "real_only")},
            rounds=True,
        )
        for size, steps in CELLS
    ),
)
