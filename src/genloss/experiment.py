"""A resolved config as plug-ins: building an Experiment refuses every bad value before any work."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from genloss.core.errors import UserError, nearest, require
from genloss.core.plugin import build, fill, plain

# Keys that change how a run is carried out, never what it computes; dots lead into a group.
OPERATIONAL = ("runtime", "tracking", "dvc", "trainer.logger")
KEYS = (
    "size",
    "rounds",
    "seed",
    "control",
    "domain",
    "model",
    "recipe",
    "curation",
    "mixing",
    "trainer",
    "metrics",
    "schedule",
    *(key for key in OPERATIONAL if "." not in key),
)


class Experiment:
    """The plug-ins that a resolved config describes. Building it refuses every bad value before any work."""

    def __init__(self, cfg: DictConfig):
        from genloss.core.contracts import Domain, Model, Runtime, Trainer
        from genloss.curate import Curator
        from genloss.evaluate import Metric
        from genloss.generate import Recipe
        from genloss.mix import Mixing

        for key in cfg:
            if key not in KEYS:
                raise UserError(str(key), None, f"no such key; {nearest(str(key), KEYS)}")
        for key in ("size", "rounds", "seed"):
            require(
                isinstance(cfg.get(key), int) and not isinstance(cfg.get(key), bool),
                key,
                cfg.get(key),
                "a whole number",
            )
        require(cfg.rounds >= 0, "rounds", cfg.rounds, "at least 0 (round 0 trains on real data and always runs)")
        require(cfg.size >= 1, "size", cfg.size, "at least 1 record")
        require(cfg.seed >= 0, "seed", cfg.seed, "at least 0")
        require(cfg.control in ("none", "random"), "control", cfg.control, "none or random")
        for n in cfg.schedule or {}:
            ok = str(n).isdigit() and 1 <= int(n) <= cfg.rounds
            require(ok, f"schedule.{n}", None, f"the number of a round, 1 to {cfg.rounds}")
        self.cfg = cfg
        self.size: int = cfg.size
        self.rounds: int = cfg.rounds
        self.seed: int = cfg.seed
        self.control: str = cfg.control
        self.domain = build(plain(cfg.domain), Domain, "domain")  # type: ignore[type-abstract]
        self.model = build(plain(cfg.model), Model, "model")
        self.trainer = build(plain(cfg.trainer), Trainer, "trainer")
        self.recipe = build(plain(cfg.recipe), Recipe, "recipe")  # type: ignore[type-abstract]
        self.mixing = build(plain(cfg.mixing), Mixing, "mixing")
        self.curators = {str(k): build(v, Curator, f"curation.{k}") for k, v in plain(cfg.curation).items()}
        self.metrics = {
            str(k): build(v, Metric, f"metrics.{k}")  # type: ignore[type-abstract]
            for k, v in plain(cfg.metrics).items()
        }
        if self.control == "random" and not self.curators:
            raise UserError("control", "random", "needs a curation to imitate; add curation=... or set control=none")
        self.runtime = fill(Runtime, plain(cfg.get("runtime", {})), "runtime")
        self.domain.check(self)
        for group, plugins in (("curation", self.curators), ("metrics", self.metrics)):
            for name, plugin in plugins.items():
                try:
                    plugin.check(self)
                except UserError as error:
                    raise error.under(f"{group}.{name}") from None
        for n in cfg.schedule or {}:  # a late round must not be the first to find a bad value
            self.at_round(int(n))

    def at_round(self, n: int) -> Experiment:
        """This experiment with the overrides that `schedule` has for round `n`."""
        overrides = {int(k): v for k, v in plain(self.cfg.schedule or {}).items()}.get(n)
        if not overrides:
            return self
        cfg = OmegaConf.merge(self.cfg, {**overrides, "schedule": {}})
        assert isinstance(cfg, DictConfig)
        cfg.schedule = {}
        try:
            return Experiment(cfg)
        except UserError as error:
            raise error.under(f"schedule.{n}") from None
