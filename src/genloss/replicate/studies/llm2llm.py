"""LLM2LLM: is it the errors that make its data good? At equal budgets, against random seeds, all data, one batch, continued training."""

from __future__ import annotations

from typing import Any

from genloss.replicate.study import Contrast, Panel, Study, Value

SEEDS = "seed=0,1,2,3,4"
ONE_ROUND = ("rounds=1", "~schedule", "+schedule={1:{trainer:{steps:500}}}")


def arm(
    choose: str = "errors", errors: str = "seeds", init: str = "cold", n: int | None = 200, noise: float = 0.0,
    mixing: str = "accumulate",
) -> dict[str, Any]:  # fmt: skip
    return {
        "recipe.choose": choose, "recipe.errors": errors, "mixing.init": init, "recipe.n": n, "recipe.teacher.noise": noise,
        "mixing": mixing,
    }  # fmt: skip


def accuracy(where: dict[str, Any], round: int = -1, task: str = "") -> Value:
    return Value(f"accuracy{task and '/'}{task}", where, round)


ERRORS, RANDOM, ALL, ONCE = arm(), arm("random"), arm(errors="all"), arm(n=800)
ERRORS_WARM, RANDOM_WARM, ALL_WARM, ONCE_WARM = (
    where | {"mixing.init": "warm"} for where in (ERRORS, RANDOM, ALL, ONCE)
)
RULE, LONGER = arm(n=None), arm(mixing="real_only")
NOISY, COIN = arm(noise=0.2), arm(noise=0.5)

STUDY = Study(
    "llm2llm",
    "Lee et al. 2024, arXiv 2403.15042",
    (
        ("recipe.choose=errors,random", "mixing.init=cold,warm", SEEDS),
        ("recipe.choose=errors", "recipe.errors=all", "mixing.init=cold,warm", SEEDS),
        ("recipe.choose=errors", "recipe.n=800", *ONE_ROUND, "mixing.init=cold,warm", SEEDS),
        ("recipe.choose=errors", "recipe.teacher.noise=0.2,0.5", SEEDS),
        ("recipe.choose=errors", "recipe.n=null", SEEDS),
        ("recipe.choose=errors", "mixing=real_only", *ONE_ROUND, SEEDS),
    ),
    (
        Contrast("LLM2LLM beats fine-tuning on the seeds (GSM8K, 2 % seeds: +24.2 points)", accuracy(RULE), accuracy(RULE, 0)),
        Contrast("the same with a fixed budget, against as many steps on the seeds", accuracy(ERRORS), accuracy(LONGER)),
        Contrast("errors beat random seeds at equal budget", accuracy(ERRORS), accuracy(RANDOM)),
        Contrast("the same, continued", accuracy(ERRORS_WARM), accuracy(RANDOM_WARM)),
        Contrast("errors beat random seeds after one round", accuracy(ERRORS, 1), accuracy(RANDOM, 1)),
        Contrast("parents among the seeds beat parents among all data", accuracy(ERRORS), accuracy(ALL)),
        Contrast("the same, continued", accuracy(ERRORS_WARM), accuracy(ALL_WARM)),
        Contrast("four small rounds beat one large one", accuracy(ERRORS), accuracy(ONCE)),
        Contrast("the same, continued", accuracy(ERRORS_WARM), accuracy(ONCE_WARM)),
        Contrast("training from the base beats continued training", accuracy(ERRORS), accuracy(ERRORS_WARM)),
        Contrast("20 % wrong labels cost accuracy", accuracy(ERRORS), accuracy(NOISY)),
        Contrast("50 % cost more", accuracy(NOISY), accuracy(COIN)),
        Contrast("even with 50 % it beats fine-tuning on the seeds", accuracy(COIN), accuracy(COIN, 0)),
        Contrast("problems of one operation: errors beat random seeds", accuracy(ERRORS, task="one"), accuracy(RANDOM, task="one")),
        Contrast("of two", accuracy(ERRORS, task="two"), accuracy(RANDOM, task="two")),
        Contrast("of three", accuracy(ERRORS, task="three"), accuracy(RANDOM, task="three")),
    ),
    (
        Panel(
            "accuracy",
            {
                "seeds": accuracy(RULE, 0), "seeds, as many steps": accuracy(LONGER), "LLM2LLM": accuracy(RULE),
                "errors": accuracy(ERRORS), "random": accuracy(RANDOM), "all errors": accuracy(ALL), "one batch": accuracy(ONCE),
                "20 % noise": accuracy(NOISY), "50 % noise": accuracy(COIN),
            },
            published={"seeds": 0.0152, "LLM2LLM": 0.2570}, published_title="published: GSM8K, 2 % seeds, LLaMA-2-7B",
        ),
        Panel(
            "accuracy by round",
            {
                "errors": accuracy(ERRORS), "random": accuracy(RANDOM), "all errors": accuracy(ALL),
                "errors, continued": accuracy(ERRORS_WARM), "random, continued": accuracy(RANDOM_WARM),
            },
            rounds=True,
        ),
        Panel(
            "seeds right by round",
            {
                name: Value("generate/seed_accuracy", where)
                for name, where in (("errors", ERRORS), ("random", RANDOM), ("errors, continued", ERRORS_WARM))
            },
            rounds=True,
        ),
    ),
)  # fmt: skip
