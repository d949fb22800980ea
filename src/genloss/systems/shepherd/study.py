"""Shepherd (Wang et al. 2023): a critic that is trained on typed errors, as a verifier, and to refine with."""

from genloss.observatory.compare import Contrast, Panel, Study, Trend, Value

SEEDS = "seed=3,4,5,6,7"  # 0 to 2 were looked at while the critic was settled
OWN = "runs/{}-replace-none-s${{seed}}-*"  # the critic of the same seed
# P(keep | right) and P(keep | wrong) of the critic on the generator's solutions, means of seeds 1 and 2
PHI, PSI = 0.97, 0.48


def critic(name: str, *options: str) -> str:
    """A curator of its own name, by a critic that is a run of the same name and seed."""
    fields = ", ".join(["_target_: genloss.systems.shepherd.curator.Critic", f"path: '{OWN.format(name)}'", *options])
    return f"+curation.{name.replace('-', '_')}={{{fields}}}"


CRITICS = (
    ("experiment=critic", SEEDS),
    ("experiment=critic", "domain.name=weak-critic", "trainer.steps=700", SEEDS),
    (
        "experiment=critic",
        "domain.name=wrong-critic",
        "trainer.steps=700",
        "domain.tasks.critique.share_right=0",
        SEEDS,
    ),
)
SELECTION = (
    (SEEDS, "curation=none,critic,exact"),
    (SEEDS, "curation=critic", "control=random"),
    (SEEDS, "curation=none", critic("weak-critic")),
    (SEEDS, "curation=noisy", f"curation.noisy.phi={PHI}", f"curation.noisy.psi={PSI}"),
)
FOUR = ("recipe.samples=4", "recipe.n=1500")
BEST = (
    (SEEDS, "curation=best_of", "curation.best_of.selector=exact,random", *FOUR),
    (SEEDS, "curation=critic", "curation.critic.select=best", *FOUR),
    (SEEDS, "curation=none", critic("wrong-critic", "select: best"), *FOUR),
)
REFINE = (
    (
        SEEDS,
        "curation=critic",
        "recipe=refine",
        "metrics=[accuracy,refinement]",
        "recipe.n=1500",
        "recipe.restart=step,start,random",
    ),
)


def selected(curation: str, metric: str = "accuracy", control: str = "none") -> Value:
    where = {
        "domain.name": "reasoning",
        "recipe": "solve",
        "recipe.samples": 1,
        "curation": curation,
        "control": control,
    }
    return Value(metric, where)


def best(curation: str, metric: str = "accuracy", **options: str) -> Value:
    where = {"domain.name": "reasoning", "recipe": "solve", "recipe.samples": 4, "curation": curation}
    return Value(metric, where | {f"curation.{curation}.{key}": value for key, value in options.items()})


def refined(restart: str, metric: str) -> Value:
    return Value(f"refine/{metric}", {"recipe": "refine", "recipe.restart": restart})


def trained(name: str, metric: str) -> Value:
    return Value(metric, {"domain.name": name})


ARMS = ("none", "weak_critic", "critic", "noisy", "exact")
TYPES = {
    "coherence (omission)": "omission",
    "commonsense (order)": "order",
    "redundancy (repetition)": "repetition",
    "arithmetic": "arithmetic",
    "veracity (operator)": "operator",
    "context (operand)": "operand",
    "no error": "ok",
}
PUBLISHED = dict(zip(TYPES, (875, 226, 178, 161, 143, 120, 0), strict=True))

STUDY = Study(
    name="shepherd",
    paper="Wang et al. 2023, arXiv 2308.04592",
    sweeps=CRITICS + SELECTION + BEST + REFINE,
    lines=(
        Contrast(
            "critiques without right solutions teach to reject everything (the released ones have none): "
            "φ, half against none",
            trained("critic", "critique/phi"),
            trained("wrong-critic", "critique/phi"),
        ),
        Contrast(
            "the critic accepts right solutions more than wrong ones",
            trained("critic", "critique/phi"),
            trained("critic", "critique/psi"),
        ),
        Contrast(
            "a fresh model is better with the critic's choice than with equally many at random",
            selected("critic"),
            selected("critic", control="random"),
        ),
        Contrast("and than with all", selected("critic"), selected("none")),
        Contrast("the truth is at least as good a critic", selected("exact"), selected("critic")),
        Contrast("a better critic is a better verifier", selected("critic"), selected("weak_critic")),
        Contrast(
            "errors at random with the critic's φ and ψ cost as much",
            selected("noisy"),
            selected("critic"),
            "same",
            0.05,
        ),
        Trend("p* orders the arms", tuple(selected(a, "p_star") for a in ARMS), tuple(selected(a) for a in ARMS)),
        Contrast(
            "of four samples, the critic's best is better than any",
            best("critic", select="best"),
            best("best_of", selector="random"),
        ),
        Contrast(
            "the truth's best is at least as good", best("best_of", selector="exact"), best("critic", select="best")
        ),
        Contrast("refining makes more solutions right", refined("step", "after"), refined("step", "before")),
        Contrast(
            "its steps help: from the step that it names against from the start",
            refined("step", "after"),
            refined("start", "after"),
        ),
        Contrast("against from any step", refined("step", "after"), refined("random", "after")),
    ),
    panels=(
        Panel(
            "critic names the type (share)",
            {name: trained("critic", f"confusion/{kind}/{kind}") for name, kind in TYPES.items()},
            published={name: float(count) for name, count in PUBLISHED.items()},
            published_title="Shepherd's released critiques, by type",
        ),
        Panel(
            "critic accepts (share)",
            {
                "right": trained("critic", "critique/phi"),
                "wrong": trained("critic", "critique/psi"),
                "right, weak critic": trained("weak-critic", "critique/phi"),
                "wrong, weak critic": trained("weak-critic", "critique/psi"),
                "right, wrong ones alone": trained("wrong-critic", "critique/phi"),
                "wrong, wrong ones alone": trained("wrong-critic", "critique/psi"),
            },
        ),
        Panel(
            "accuracy of the next model",
            {
                "none": selected("none"),
                "random, as many": selected("critic", control="random"),
                "weak critic": selected("weak_critic"),
                "critic": selected("critic"),
                "noisy, its φ, ψ": selected("noisy"),
                "exact": selected("exact"),
                "of 4: any": best("best_of", selector="random"),
                "of 4: wrong critic": best("wrong_critic", select="best"),
                "of 4: critic": best("critic", select="best"),
                "of 4: exact": best("best_of", selector="exact"),
            },
        ),
        Panel(
            "right solutions, refined",
            {
                "first try": refined("step", "before"),
                "from the step": refined("step", "after"),
                "from the start": refined("start", "after"),
                "from any step": refined("random", "after"),
            },
        ),
    ),
)
