"""LLM2LLM (Lee et al. 2024): is it the errors that make its data good? At equal budgets, against random seeds, all
data, one batch, continued training."""

from __future__ import annotations

from typing import Any

from genloss.observatory.compare import Contrast, Panel, Study, Value

FIVE, THREE = "seed=0,1,2,3,4", "seed=0,1,2"
ERRORS_ONLY = "recipe.choose=errors"
ONE_ROUND = ("rounds=1", "~schedule", "+schedule={1:{trainer:{steps:400}}}")
SUMS = "{_target_: genloss.domains.reasoning.arithmetic.Arithmetic, operations: [2, 3], operators: '+-', share: 1.0}"
LONG = "{_target_: genloss.domains.reasoning.arithmetic.Arithmetic, operations: [4], share: 1.0}"
RARE_TASKS = ("domain/tasks=skills", "domain.tasks.sums.share=9")  # one seed in ten is a product


def arm(**options: Any) -> dict[str, Any]:
    """What selects an arm: the experiment's values, and `options` with _ for a dot."""
    usual = {
        "recipe_choose": "errors",
        "recipe_errors": "seeds",
        "recipe_n": 200,
        "recipe_teacher_noise": 0.0,
        "trainer_start": "base",
        "mixing": "accumulate",
        "domain_tasks_sums_share": None,
        "domain_probes_sums_share": None,
    }
    return {key.replace("_", "."): value for key, value in (usual | options).items()}


def accuracy(where: dict[str, Any], round: int = -1, task: str = "") -> Value:
    return Value(f"accuracy{task and '/'}{task}", where, round)


def probed(where: dict[str, Any], family: str, round: int = -1) -> Value:
    """Accuracy on a family that no round trains on."""
    return Value(f"probe_accuracy/{family}", where, round)


ERRORS, RANDOM = arm(), arm(recipe_choose="random")
ERRORS_WARM, RANDOM_WARM = (where | {"trainer.start": "previous"} for where in (ERRORS, RANDOM))
ALL, ONCE, RULE = arm(recipe_errors="all"), arm(recipe_n=600), arm(recipe_n=None)
LONGER = arm(mixing="real_only")
NOISY, COIN = arm(recipe_teacher_noise=0.2), arm(recipe_teacher_noise=0.5)
PROBED, PROBED_WARM = (where | {"domain.probes.sums.share": 1.0} for where in (ERRORS, ERRORS_WARM))
RARE, RARE_RANDOM = (where | {"domain.tasks.sums.share": 9.0} for where in (ERRORS, RANDOM))

STUDY = Study(
    "llm2llm",
    "Lee et al. 2024, arXiv 2403.15042",
    (
        ("recipe.choose=errors,random", FIVE),
        (*RARE_TASKS, "recipe.choose=errors,random", FIVE),
        (ERRORS_ONLY, "recipe.teacher.noise=0.2,0.5", THREE),
        (ERRORS_ONLY, "recipe.errors=all", THREE),
        (ERRORS_ONLY, *ONE_ROUND, "recipe.n=600", THREE),
        (ERRORS_ONLY, *ONE_ROUND, "mixing=real_only", THREE),
        (ERRORS_ONLY, "recipe.n=null", THREE),
        ("recipe.choose=errors,random", "trainer.start=previous", THREE),
        (
            ERRORS_ONLY,
            f"+domain.probes.sums={SUMS}",
            f"+domain.probes.long={LONG}",
            "domain.context=64",
            "trainer.start=base,previous",
            THREE,
        ),
    ),
    (
        # the rare skill after one round: later all seeds are right, nothing is added, and budgets differ
        Contrast(
            "LLM2LLM beats fine-tuning on the seeds (GSM8K, 2 % seeds: +24.2 points)", accuracy(RULE), accuracy(RULE, 0)
        ),
        Contrast("the same with 200 a round, against as many steps on the seeds", accuracy(ERRORS), accuracy(LONGER)),
        Contrast("errors beat random seeds at equal budget", accuracy(ERRORS), accuracy(RANDOM)),
        *(
            Contrast(f"on problems of {task} operations", accuracy(ERRORS, task=task), accuracy(RANDOM, task=task))
            for task in ("one", "two", "three")
        ),
        Contrast("errors beat random seeds, continued training", accuracy(ERRORS_WARM), accuracy(RANDOM_WARM)),
        Contrast(
            "a skill that one seed in ten needs: errors beat random seeds",
            accuracy(RARE, 1, "products"),
            accuracy(RARE_RANDOM, 1, "products"),
        ),
        Contrast(
            "the skill of the other nine",
            accuracy(RARE, 1, "sums"),
            accuracy(RARE_RANDOM, 1, "sums"),
        ),
        Contrast("all of that test together", accuracy(RARE, 1), accuracy(RARE_RANDOM, 1)),
        Contrast("parents among the seeds beat parents among all data", accuracy(ERRORS), accuracy(ALL)),
        Contrast("three small rounds beat one large one", accuracy(ERRORS), accuracy(ONCE)),
        Contrast("training from the base beats continued training", accuracy(ERRORS), accuracy(ERRORS_WARM)),
        Contrast(
            "sums, that the base was schooled on and nothing since: forgotten from round 0 to 3",
            probed(PROBED, "sums", 0),
            probed(PROBED, "sums"),
        ),
        Contrast("the same, continued training", probed(PROBED_WARM, "sums", 0), probed(PROBED_WARM, "sums")),
        Contrast(
            "four operations, one more than in training: better after round 3",
            probed(PROBED, "long"),
            probed(PROBED, "long", 0),
        ),
        Contrast("20 % wrong labels cost accuracy", accuracy(ERRORS), accuracy(NOISY)),
        Contrast("50 % cost more", accuracy(NOISY), accuracy(COIN)),
        Contrast("even with 50 % it beats fine-tuning on the seeds", accuracy(COIN), accuracy(COIN, 0)),
    ),
    (
        Panel(
            "accuracy",
            {
                "seeds": accuracy(RULE, 0),
                "seeds, longer": accuracy(LONGER),
                "LLM2LLM": accuracy(RULE),
                "errors": accuracy(ERRORS),
                "random": accuracy(RANDOM),
                "all errors": accuracy(ALL),
                "one batch": accuracy(ONCE),
                "20 % noise": accuracy(NOISY),
                "50 % noise": accuracy(COIN),
            },
            published={"seeds": 0.0152, "LLM2LLM": 0.2570},
            published_title="published: GSM8K, 2 % seeds",
        ),
        Panel(
            "accuracy by round",
            {
                "errors": accuracy(ERRORS),
                "random": accuracy(RANDOM),
                "errors, continued": accuracy(ERRORS_WARM),
                "random, continued": accuracy(RANDOM_WARM),
            },
            rounds=True,
        ),
        Panel(
            "not trained on",
            {
                f"{words}, {name}": probed(where, family)
                for family, words in (("sums", "sums"), ("long", "four operations"))
                for name, where in (("cold", PROBED), ("continued", PROBED_WARM))
            },
            rounds=True,
        ),
        Panel(
            "nine sums to a product",
            {
                f"{task}, {name}": accuracy(where, task=task)
                for task in ("sums", "products")
                for name, where in (("errors", RARE), ("random", RARE_RANDOM))
            },
            rounds=True,
        ),
    ),
)
