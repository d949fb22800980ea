"""A resolved config as plug-ins: building an Experiment refuses every bad value before any work.

    x = Experiment(compose(["mixing=accumulate", "rounds=3"]))       # genloss.workflow.compose
    x.domain, x.recipe, x.curators, x.at_round(2).trainer

Every check of every plug-in is called here, for every domain: kinds (is this a model of this domain?), capabilities
(has the domain what the plug-in needs?), then each plug-in's own `check`, that of its parts, and all of that again for
each round that differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genloss.core import contracts
from genloss.core.contracts import Domain, Model, Plugin, Runtime, Trainer
from genloss.core.errors import UserError, check_name, nearest, require
from genloss.core.limits import check_limit
from genloss.core.places import has_secret, option_files, options
from genloss.core.plugin import build, fill, fitting, flatten, locate, mapping, no_numbers, plain, shown
from genloss.core.retention import Keep
from genloss.curate import Curator
from genloss.evaluate import Metric
from genloss.generate import Recipe
from genloss.mix import Mixing, Regime

# Keys that change how a run is carried out, never what it computes; dots lead into a group.
OPERATIONAL = (
    "runtime",
    "keep",
    "tracking",
    "dvc",
    "trainer.logger",
    "trainer.diverged",
    "trainer.checkpoint_minutes",
    "recipe.teacher.budget",
    "recipe.backend.budget",
)
# What a config must have, each with keys of its own; conf/ has a group of options for each.
GROUPS = ("domain", "model", "recipe", "curation", "mixing", "trainer", "metrics", "tracking")
NAMED = ("domain", "mixing", "recipe")  # those with a `name`, which folders, columns and tags carry
# What one round can have of its own; the rest is that of the whole run: its real data, its size, its seed.
SCHEDULED = ("model", "recipe", "curation", "control", "mixing", "trainer", "metrics", "runtime")
# Where MLflow can be: schemes of `tracking.uri`
WEB = ("http", "https")
TRACKED = (*WEB, "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")
UNWRITTEN = ("runtime", "keep", "dvc", "schedule")  # may be absent: what runs of before have not written, or follows
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


NO_SECRET = (
    "without a password or token, since it is written to params.yaml; a server of MLflow takes it from "
    "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN, a database from a file (~/.pgpass)"
)


def check_address(uri: str) -> None:
    """Refuse what cannot be an address of MLflow (UserError with the key `uri`)."""
    scheme, sign, rest = uri.partition(":")
    kind = scheme.partition("+")[0]
    require(kind in TRACKED, "uri", uri, f"null or of {', '.join(TRACKED)}")
    if kind == "databricks":  # or databricks://PROFILE
        return
    if kind in ("sqlite", "file"):
        named = rest.removeprefix("///" if kind == "sqlite" else "//")
        full = bool(named.strip("/ ")) and (kind == "file" or named != rest)
        require(full, "uri", uri, "sqlite:///FILE" if kind == "sqlite" else "file:FOLDER")
        return
    try:
        parts = urlsplit(uri)
        there = bool(parts.hostname or (parts.path.strip("/") and kind not in WEB)) and parts.port != 0
    except ValueError:  # of a port
        there = False
    ok = sign and rest.startswith("//") and there and not any(c.isspace() for c in uri)
    require(bool(ok), "uri", uri, f"{scheme}://HOST, with :PORT perhaps")


@dataclass
class Tracking:
    """The schema of the node `tracking`, which genloss.workflow.tracking reads."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "genloss"

    def __post_init__(self) -> None:
        require(not has_secret(self.uri or ""), "uri", None, NO_SECRET)
        if self.uri is not None:
            check_address(self.uri)
        require(bool(self.experiment.strip()), "experiment", repr(self.experiment), "a name")


class Experiment(contracts.Experiment):
    """The plug-ins that a resolved config describes. Building it refuses every bad value before any work."""

    def __init__(self, cfg: DictConfig, whole: Experiment | None = None):
        """whole: the run of which this is one round."""
        check_shape(cfg)
        self.cfg = cfg
        self._schedule: dict[int, Any] = {int(n): overrides or {} for n, overrides in plain(cfg.schedule or {}).items()}
        self._rounds: dict[int, Experiment] = {}
        self.size: int = cfg.size
        self.rounds: int = cfg.rounds
        self.seed: int = cfg.seed
        self.control: str = cfg.control
        self.domain = whole.domain if whole else build(plain(cfg.domain), Domain, "domain")
        self.model = build(plain(cfg.model), Model, "model")
        self.trainer = build(plain(cfg.trainer), Trainer, "trainer")
        self.recipe: Recipe = build(plain(cfg.recipe), Recipe, "recipe")
        self.mixing = build(plain(cfg.mixing), Mixing, "mixing")
        self.regime: Regime = whole.regime if whole else Regime(tuple(map(self._mixing, range(self.rounds + 1))))
        self.curators: dict[str, Curator] = {
            str(k): build(v, Curator, f"curation.{k}") for k, v in plain(cfg.curation).items()
        }
        self.metrics: dict[str, Metric] = {
            str(k): build(v, Metric, f"metrics.{k}") for k, v in plain(cfg.metrics).items()
        }
        self.runtime = fill(Runtime, plain(cfg.get("runtime", {})), "runtime")
        self.keep = fill(Keep, plain(cfg.get("keep", {})), "keep")
        fill(Tracking, plain(cfg.tracking), "tracking")
        if self.control == "random" and not self.curators:
            raise UserError("control", "random", "needs a curation to imitate; add curation=... or set control=none")
        self._check_kinds()
        for key, plugin in self.plugins():
            self._check(key, plugin)
        for n in self._schedule:  # a late round must not be the first to find a bad value
            self.at_round(n)

    def plugins(self) -> Iterator[tuple[str, Plugin]]:
        """All plug-ins by their keys, the domain first: others ask it."""
        yield "domain", self.domain
        yield "model", self.model
        yield "trainer", self.trainer
        yield "recipe", self.recipe
        yield "mixing", self.mixing
        for name, curator in self.curators.items():
            yield f"curation.{name}", curator
        for name, metric in self.metrics.items():
            yield f"metrics.{name}", metric

    def _check_kinds(self) -> None:
        """Refuse a model or a trainer of another domain, and what needs more than the domain can."""
        kinds: Mapping[str, tuple[type, ...]] = {"model": self.domain.models, "trainer": self.domain.trainers}
        for key, plugin in self.plugins():
            if key in kinds and not isinstance(plugin, kinds[key]):
                names = ", ".join(kind.__name__ for kind in kinds[key])
                wrong = f"is no {key} of domain={self.domain.name}, which takes {names}{fitting(key, kinds[key])}"
                raise UserError(key, type(plugin).__name__, wrong)
        if self.trainer.start not in self.model.starts():
            why = f"puts a new adapter on the model before, and {type(self.model).__name__} has none"
            remedy = "add model/adapter=lora, which saved models can have (model=pretrained), or use previous"
            raise UserError("trainer.start", self.trainer.start, f"{why}; {remedy}")
        for key, plugin in self.plugins():
            try:
                parts = list(whole(plugin))
            except UserError as error:  # of a part that cannot be built
                raise error.under(key) from None
            for capability in (c for part in parts for c in part.needs):
                if not isinstance(self.domain, capability):
                    raise UserError(key, type(plugin).__name__, lacking(self.domain, capability))

    def _check(self, key: str, plugin: Plugin) -> None:
        plugin.stands_at = key
        with _below(key, plugin):
            plugin.check(self)
        for name, part in plugin.parts().items():
            self._check(f"{key}.{name}", part)

    def ready(self) -> None:
        """Have at hand, where work begins, what the plug-ins are made from, and refuse what can only be known then: of
        the trainer first, which looks at the machine, since a model may be fetched and converted."""
        for _, plugin in sorted(self.plugins(), key=lambda each: each[0] != "trainer"):
            for part in whole(plugin):
                with _below(part.stands_at, part):
                    part.ready(self)

    def at_round(self, n: int) -> Experiment:
        """This experiment with the overrides that `schedule` has for round `n`."""
        if n not in self._schedule:
            return self
        if n not in self._rounds:
            try:
                self._rounds[n] = Experiment(self._at(n), self)
            except UserError as error:
                raise error.under(f"schedule.{n}") from None
        return self._rounds[n]

    @cached_property
    def _unscheduled(self) -> DictConfig:
        cfg = self.cfg.copy()
        cfg.schedule = {}
        return cfg

    def _at(self, n: int) -> DictConfig:
        """The config of round `n`."""
        cfg = self._unscheduled
        for key, value in self._schedule[n].items():
            try:
                merged = OmegaConf.merge(cfg, {key: value})
            except OmegaConfBaseException:
                raise UserError(key, shown(value), "is of another shape than the config has there") from None
            assert isinstance(merged, DictConfig)
            cfg = merged
        return cfg

    def different(self) -> list[int]:
        """Round 0, and the rounds of which `at_round` is another."""
        return [0, *self._schedule]

    def placed(self, error: UserError, n: int) -> UserError:
        """An error of round n that names the key where the value stands: in the schedule, if that has it."""
        node: Any = self._schedule.get(n)
        for name in error.key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        return error if node is None else error.under(f"schedule.{n}")

    def _mixing(self, n: int) -> Mixing:
        if n not in self._schedule:
            return self.mixing
        try:
            return build(plain(self._at(n).mixing), Mixing, "mixing")
        except UserError as error:
            raise error.under(f"schedule.{n}") from None


@contextmanager
def _below(key: str, plugin: Plugin) -> Iterator[None]:
    """Errors of a plug-in name its keys in the whole config."""
    try:
        yield
    except UserError as error:
        first = error.key.partition(".")[0]
        own: set[str] = {f.name for f in fields(plugin)} if is_dataclass(plugin) else set()
        error = error.naming(key, own.difference(KEYS))
        raise error if first in KEYS and first not in own else error.under(key) from None


def check_shape(cfg: DictConfig) -> None:
    """Refuse unknown and missing keys, one value where keys belong, numbers that are none, and bad values of the keys
    that belong to no plug-in."""
    for key in cfg:
        if key not in KEYS:
            raise UserError(str(key), None, f"no such key; {nearest(str(key), KEYS)}")
    for key in GROUPS:
        if key not in cfg:
            raise UserError(key, None, f"is missing; choose {key}=NAME of {', '.join(sorted(options(key)))}")
    for key in KEYS:
        if key not in cfg and key not in UNWRITTEN:
            raise UserError(key, None, "is missing; leave it as conf/config.yaml has it, or give it a value")
    for key in GROUPS:
        node = mapping(plain(cfg[key]), key)
        if key in NAMED:
            check_name(f"{key}.name", node.get("name"))
        if key in ("curation", "metrics"):
            for name in node:
                check_name(key, name)
    for key, number in no_numbers(plain(cfg)):
        raise UserError(key, number, "must be a finite number")
    for key, text in flatten(plain(cfg)):
        odd = isinstance(text, str) and any(not (c.isprintable() or c in "\n\t") for c in text)
        require(not odd, key, text, "text without control characters")
    for key in ("size", "rounds", "seed"):
        whole = isinstance(cfg.get(key), int) and not isinstance(cfg.get(key), bool)
        require(whole, key, cfg.get(key), "a whole number")
    require(cfg.rounds >= 0, "rounds", cfg.rounds, "at least 0 (round 0 trains on real data and always runs)")
    require(cfg.size >= 1, "size", cfg.size, "at least 1 record")
    require(cfg.seed >= 0, "seed", cfg.seed, "at least 0")
    for key in ("size", "rounds", "seed"):
        check_limit(key, cfg[key])
    require(cfg.control in ("none", "random"), "control", cfg.control, "none or random")
    schedule = {} if cfg.get("schedule") is None else mapping(plain(cfg.schedule), "schedule")
    for n, overrides in schedule.items():
        ok = str(n).isdigit() and 1 <= int(n) <= cfg.rounds
        which = f"the number of a round, 1 to {cfg.rounds}, or of several, as from2to4 or from3"
        require(ok, f"schedule.{n}", None, f"{which}; raise rounds, or leave the schedule out with '~schedule'")
        if not isinstance(overrides, Mapping | None):
            raise UserError(
                f"schedule.{n}", overrides, f"is one value; name what changes, as in schedule.{n}.KEY=VALUE"
            )
        for key, value in (overrides or {}).items():
            where = f"schedule.{n}.{key}"
            if key not in SCHEDULED:
                of_all = "is that of the whole run, and no round's own" if key in KEYS else "is no such key"
                raise UserError(where, None, f"{of_all}; a schedule may change {', '.join(SCHEDULED)}")
            if key != "control" and not isinstance(value, Mapping):
                raise UserError(where, shown(value), f"is one value; name what changes, as in {where}.KEY=VALUE")


def whole(plugin: Plugin) -> Iterator[Plugin]:
    """A plug-in and all of its parts."""
    yield plugin
    for part in plugin.parts().values():
        yield from whole(part)


def lacking(domain: Domain, capability: type) -> str:
    """What a plug-in is told that needs what the domain has not, with the domains that have it."""
    what = (capability.__doc__ or capability.__name__).partition("\n")[0].rstrip(".")
    able = [name for name, kind in known_domains().items() if issubclass(kind, capability)]
    remedy = f"; use domain={', '.join(able)}" if able else ""
    return f"needs {what}, and domain={domain.name} has none{remedy}"


def known_domains() -> Mapping[str, type[Domain]]:
    """The options of conf/domain/ with their classes."""
    found: dict[str, type[Domain]] = {}
    for path in option_files("domain"):
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        node = config.get("domain", config)
        if "_target_" in node:
            found.setdefault(path.stem, locate(node["_target_"], Domain, f"conf/domain/{path.name}"))
    return found
