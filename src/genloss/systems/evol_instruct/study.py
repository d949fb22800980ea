"""Evol-Instruct (Xu et al. 2023) with the rewards of WizardMath (Luo et al. 2023): which selection, which
operators, which mixture?"""

from __future__ import annotations

from typing import Any

from genloss.observatory.compare import Contrast, Panel, Study, Value

SEEDS = "seed=0,1,2"
FRESH = "seed=3,4,5,6,7"  # of the weaker base, which was added when seeds 0 to 2 of the other had been seen
UP = ["add_constraint", "deepen", "concretize", "reasoning", "complicate", "breadth"]
BOTH = [*UP, "easier", "easier_topic"]
TWO = ("instruction", "process")
FACTORS = "curation.evol_reward.factors"
PRODUCT = f"{FACTORS}=[instruction,process]"
REWARD = "trainer.reward"
ONE_ROUND = ("rounds=1", "~schedule.2", "~schedule.3", "~schedule.4")
REINFORCED = (PRODUCT, "trainer=grpo", "trainer.updates=120", f"{REWARD}.bound=19", *ONE_ROUND)
ONLY_UP = f"recipe.operators=[{','.join(UP)}]"
BASE = 400  # steps of a base that is not yet good at easy problems (0.70 of them right, seed 9)
CRITIC_TASKS = (
    "domain.tasks.critique.operations=[1,2,3]",
    "domain.tasks.arithmetic.operations=[1,2,3]",
    "domain.context=80",
)
TRUE_REWARD, TRUE_CHOICE = ((f"{key}.phi=1", f"{key}.psi=0") for key in (REWARD, "curation.evol_reward"))
EXACT = (
    "recipe.label=exact",
    "recipe.samples=1",
    "curation.evol_reward.select=sample",
    "curation.evol_reward.phi=1",
    "curation.evol_reward.psi=0",
    "curation.evol_reward.noise=0",
)


def arm(
    *factors: str,
    operators: list[str] = BOTH,
    mixing: str = "accumulate",
    control: str = "none",
    label: str = "policy",
    base: int = 2500,
    rounds: int = 4,
    phi: float | None = None,
) -> dict[str, Any]:
    return {
        "domain.name": "reasoning",
        FACTORS: list(factors or TWO),
        "recipe.operators": operators,
        "mixing": mixing,
        "control": control,
        "recipe.label": label,
        "trainer": "Supervised",
        "model.steps": base,
        "rounds": rounds,
        "curation.evol_reward.phi": phi or (1.0 if label == "exact" else 0.9),
    }


def grpo(*factors: str, many: bool = False) -> dict[str, Any]:
    """Reinforcement; many: four times the responses, exact verdicts and larger steps."""
    return arm(rounds=1) | {
        "trainer": "Grpo",
        f"{REWARD}.factors": list(factors),
        "trainer.prompts": 16 if many else 4,
    }


def accuracy(where: dict[str, Any], round: int = -1, task: str = "") -> Value:
    return Value(f"accuracy{task and '/'}{task}", where, round)


def sampled(where: dict[str, Any], round: int = 1) -> Value:
    return Value("sampled_accuracy", where, round)


OUTCOME, INSTRUCTION, PROCESS, BOTH_FACTORS = arm("outcome"), arm("instruction"), arm("process"), arm()
RANDOM, ORACLE, UP_ONLY = arm(control="random"), arm(label="exact"), arm(operators=UP)
ORACLE_UP = arm(operators=UP, label="exact")
LAST, SUBSAMPLE = arm(mixing="replace"), arm(mixing="accumulate_subsample")
CRITIC = arm("instruction", "critic")
WEAK, WEAK_UP = arm(base=BASE), arm(operators=UP, base=BASE)
WEAK_ORACLE, WEAK_ORACLE_UP = arm(label="exact", base=BASE), arm(operators=UP, label="exact", base=BASE)
CHOSEN = arm("outcome", rounds=1, phi=1.0)  # supervised, as many rows a step as GRPO with exact verdicts

STUDY = Study(
    "evol_instruct",
    "Xu et al. 2023, arXiv 2304.12244; Luo et al. 2023, arXiv 2308.09583",
    (
        (f"{FACTORS}=[outcome],[instruction],[process],[instruction,process]", SEEDS),
        (PRODUCT, ONLY_UP, SEEDS),
        (PRODUCT, "mixing=replace", SEEDS),
        (PRODUCT, "mixing=accumulate_subsample", "mixing.budget.n=400", SEEDS),
        (PRODUCT, "control=random", SEEDS),
        (PRODUCT, *EXACT, SEEDS),
        (PRODUCT, *EXACT, ONLY_UP, SEEDS),
        *(
            (PRODUCT, f"model.steps={BASE}", *labels, *only, FRESH)
            for labels in ((), EXACT)
            for only in ((), (ONLY_UP,))
        ),
        ("experiment=critic", "domain.name=steps-critic", *CRITIC_TASKS, SEEDS),
        (
            f"{FACTORS}=[instruction,critic]",
            "curation.evol_reward.critic.path='runs/steps-critic-replace-none-s${seed}-*'",
            SEEDS,
        ),
        (*REINFORCED, "trainer.prompts=4", f"{REWARD}.factors=[outcome],[instruction,process],[random]", SEEDS),
        (
            *REINFORCED,
            f"{REWARD}.factors=[outcome],[random]",
            *TRUE_REWARD,
            "trainer.step_size=3e-4",
            "trainer.prompts=16",
            SEEDS,
        ),
        (f"{FACTORS}=[outcome]", *TRUE_CHOICE, *ONE_ROUND, "+schedule.1.trainer.batch=128", SEEDS),
    ),
    (
        Contrast(
            "four rounds of evolution beat the seeds (WizardLM 13B: 58.96 against 43.44 of Alpaca)",
            accuracy(BOTH_FACTORS),
            accuracy(BOTH_FACTORS, 0),
        ),
        Contrast("exact labels and rewards beat the policy's own", accuracy(ORACLE), accuracy(BOTH_FACTORS)),
        Contrast("r = r_I r_A beats as many records at random", accuracy(BOTH_FACTORS), accuracy(RANDOM)),
        Contrast("it beats r_A alone", accuracy(BOTH_FACTORS), accuracy(PROCESS)),
        Contrast("it beats r_I alone", accuracy(BOTH_FACTORS), accuracy(INSTRUCTION)),
        Contrast("it beats the outcome alone", accuracy(BOTH_FACTORS), accuracy(OUTCOME)),
        Contrast(
            "steps judged by a trained critic: r beats as many records at random", accuracy(CRITIC), accuracy(RANDOM)
        ),
        Contrast("the same against the computed r_A (φ = 0.9, ψ = 0.2)", accuracy(CRITIC), accuracy(BOTH_FACTORS)),
        Contrast(
            "kept answers: r beats r_A alone", Value("kept_accuracy", BOTH_FACTORS), Value("kept_accuracy", PROCESS)
        ),
        Contrast(
            "kept answers: r beats the outcome alone",
            Value("kept_accuracy", BOTH_FACTORS),
            Value("kept_accuracy", OUTCOME),
        ),
        Contrast("all rounds mixed beat the last round alone", accuracy(BOTH_FACTORS), accuracy(LAST)),
        Contrast("the same with equally many records, 400", accuracy(SUBSAMPLE), accuracy(LAST)),
        Contrast(
            "easy test problems: up and down beats up only",
            accuracy(BOTH_FACTORS, task="easy"),
            accuracy(UP_ONLY, task="easy"),
        ),
        Contrast(
            "medium: up only beats up and down", accuracy(UP_ONLY, task="medium"), accuracy(BOTH_FACTORS, task="medium")
        ),
        Contrast(
            "hard: up only beats up and down", accuracy(UP_ONLY, task="hard"), accuracy(BOTH_FACTORS, task="hard")
        ),
        Contrast(
            "with exact labels, easy: up and down beats up only",
            accuracy(ORACLE, task="easy"),
            accuracy(ORACLE_UP, task="easy"),
        ),
        Contrast(
            "with exact labels, hard: up only beats up and down",
            accuracy(ORACLE_UP, task="hard"),
            accuracy(ORACLE, task="hard"),
        ),
        Contrast(
            f"base of {BASE} steps, easy: up and down beats up only",
            accuracy(WEAK, task="easy"),
            accuracy(WEAK_UP, task="easy"),
        ),
        Contrast("medium: up only beats up and down", accuracy(WEAK_UP, task="medium"), accuracy(WEAK, task="medium")),
        Contrast("hard: up only beats up and down", accuracy(WEAK_UP, task="hard"), accuracy(WEAK, task="hard")),
        Contrast(
            "with exact labels, easy: up and down beats up only",
            accuracy(WEAK_ORACLE, task="easy"),
            accuracy(WEAK_ORACLE_UP, task="easy"),
        ),
        Contrast(
            "with exact labels, hard: up only beats up and down",
            accuracy(WEAK_ORACLE_UP, task="hard"),
            accuracy(WEAK_ORACLE, task="hard"),
        ),
        Contrast(
            "problems get harder (judged difficulty: 3.00, after four rounds 7.08)",
            Value("difficulty", UP_ONLY),
            Value("difficulty", UP_ONLY, 0),
        ),
        Contrast(
            "of those that are kept, more so with up only",
            Value("difficulty", UP_ONLY),
            Value("difficulty", BOTH_FACTORS),
        ),
        Contrast(
            "GRPO on the outcome raises what is right when sampled",
            sampled(grpo("outcome")),
            sampled(grpo("outcome"), 0),
        ),
        Contrast("more than as many steps on a random reward", sampled(grpo("outcome")), sampled(grpo("random"))),
        Contrast(
            "GRPO with exact verdicts on four times as many responses: before and after",
            sampled(grpo("outcome", many=True)),
            sampled(grpo("outcome", many=True), 0),
        ),
        Contrast(
            "the same, against as many steps on a random reward",
            sampled(grpo("outcome", many=True)),
            sampled(grpo("random", many=True)),
        ),
        Contrast(
            "the same, against as many supervised steps and rows, of answers that exact verdicts chose",
            sampled(grpo("outcome", many=True)),
            sampled(CHOSEN),
        ),
        Contrast("GRPO on r_I r_A, against the random reward", sampled(grpo(*TWO)), sampled(grpo("random"))),
        Contrast(
            "GRPO on r_I r_A, against as many supervised steps (sampled)", sampled(grpo(*TWO)), sampled(BOTH_FACTORS)
        ),
        Contrast(
            "GRPO on r_I r_A, against as many supervised steps (greedy)",
            accuracy(grpo(*TWO), 1),
            accuracy(BOTH_FACTORS, 1),
        ),
    ),
    (
        Panel(
            "difficulty of the problems",
            {
                "seeds": Value("difficulty", UP_ONLY, 0),
                "C1": Value("difficulty", UP_ONLY, 1),
                "C4": Value("difficulty", UP_ONLY, 4),
                "C1, down too": Value("difficulty", BOTH_FACTORS, 1),
                "C4, down too": Value("difficulty", BOTH_FACTORS, 4),
            },
            published={"seeds": 3.00, "C1": 5.48, "C4": 7.08},
            published_title="published: judged difficulty, 1 to 10",
        ),
        Panel(
            "accuracy after four rounds",
            {
                "seeds": accuracy(BOTH_FACTORS, 0),
                "random": accuracy(RANDOM),
                "outcome": accuracy(OUTCOME),
                "r_I": accuracy(INSTRUCTION),
                "r_A": accuracy(PROCESS),
                "r_I r_A": accuracy(BOTH_FACTORS),
                "r_I, critic": accuracy(CRITIC),
                "up only": accuracy(UP_ONLY),
                "last round alone": accuracy(LAST),
                "400 of all rounds": accuracy(SUBSAMPLE),
                "exact": accuracy(ORACLE),
            },
            published={"seeds": 0.146, "r_I r_A": 0.549},
            published_title="published: GSM8K, Llama-2 and WizardMath, 7B",
        ),
        Panel(
            "accuracy by round",
            {
                "exact": accuracy(ORACLE),
                "r_I r_A": accuracy(BOTH_FACTORS),
                "outcome": accuracy(OUTCOME),
                "up only": accuracy(UP_ONLY),
                "last round alone": accuracy(LAST),
                "random": accuracy(RANDOM),
            },
            rounds=True,
        ),
        Panel(
            "right when sampled, one round",
            {
                "before": sampled(BOTH_FACTORS, 0),
                "supervised": sampled(BOTH_FACTORS),
                "GRPO, random": sampled(grpo("random")),
                "GRPO, outcome": sampled(grpo("outcome")),
                "GRPO, r_I r_A": sampled(grpo(*TWO)),
                "128 rows, supervised": sampled(CHOSEN),
                "128 rows, GRPO, random": sampled(grpo("random", many=True)),
                "128 rows, GRPO, exact": sampled(grpo("outcome", many=True)),
            },
        ),
    ),
)
