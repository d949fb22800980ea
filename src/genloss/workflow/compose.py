"""Config: conf/ composed by Hydra, checked against the plug-ins' schemas, and named by its hash.

`compose([...])` gives what `genloss run ...` would run; `Experiment(cfg)` builds every plug-in, which is where a bad
value is refused; `arm_id(cfg)` is the identity of an arm: the hash of its resolved config without operational keys.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genloss.core.errors import UserError, nearest, require
from genloss.core.plugin import build, fill
from genloss.core.store import canonical, sha256_text

# Keys that change how a run is carried out, never what it computes.
OPERATIONAL = ("runtime", "tracking", "dvc")
KEYS = (
    "size", "rounds", "seed", "control", "domain", "model", "recipe", "curation", "mixing", "trainer", "metrics",
    "schedule", *OPERATIONAL,
)  # fmt: skip


def project_root() -> Path:
    """The project that owns conf/, the store and mlruns/: the nearest folder upwards that has conf/config.yaml.

    Inside `dvc exp run --temp` or `--queue`, DVC copies the project away and names the real one in DVC_ROOT.
    """
    override = os.environ.get("GENLOSS_PROJECT") or (
        os.environ.get("DVC_ROOT") if ".dvc/tmp/exps" in Path.cwd().as_posix() else None
    )
    if override:
        return Path(override).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "conf" / "config.yaml").is_file():
            return folder
    return here


def conf_dir() -> Path:
    """conf/ of the project, else the one that the package ships."""
    for folder in (
        project_root() / "conf",
        Path(__file__).parents[1] / "conf",  # a wheel
        Path(__file__).resolve().parents[3] / "conf",  # a checkout, installed editable
    ):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError("conf", str(project_root() / "conf"), "no config.yaml there; run genloss inside its project")


def store_root() -> Path:
    return Path(os.environ.get("GENLOSS_STORE") or project_root() / ".genloss" / "store")


def hydra_error(error: Exception, overrides: Sequence[str] = ()) -> UserError:
    """Hydra's and OmegaConf's multi-line messages as one line with the nearest name; `overrides` are all that were given."""
    override = getattr(error, "override", None)  # what the user typed, where Hydra says so
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if "Available options in" in text:  # a group option that does not exist
        missing = text.split("Could not find '")[-1].split("'")[0] if "Could not find '" in text else lines[0]
        group, _, name = missing.rpartition("/")
        options = text.split("Available options in")[1].partition(":")[2].partition("Config search path")[0].split()
        extra = "; pip install 'genloss[slurm]' brings it" if name.startswith("submitit") else ""
        return UserError(group, name, f"unknown; {nearest(name, options)}{extra}")
    if "Could not override" in text:
        key = text.split("Could not override '")[1].split("'")[0]
        within = str(getattr(error.__cause__, "full_key", ""))  # of a value that is a dict: which of its keys
        add = f"; +{within}=... adds it" if within.startswith(f"{key}.") else ""
        key = within if add else key
        close = nearest(key.rpartition(".")[2], _siblings(key, overrides))
        return UserError(key, None, f"no such key; {close}{add}")
    if type(error).__name__ == "OverrideParseException" and override:
        return UserError(str(override), None, f"is no override ({lines[0]}); write key=value")
    return UserError("config", None, text)


def _siblings(key: str, overrides: Sequence[str]) -> list[str]:
    """The names that exist beside `key`, in the groups that were chosen."""
    try:
        parent = key.rpartition(".")[0]
        chosen = [o for o in overrides if (conf_dir() / o.partition("=")[0]).is_dir() and "," not in o]
        config = compose(chosen, raw=True)
        node = OmegaConf.select(config, parent) if parent else config
        return [str(k) for k in node] if isinstance(node, DictConfig) else []
    except Exception:  # only to suggest a name
        return []


def compose(overrides: Sequence[str] = (), *, raw: bool = False) -> DictConfig:
    """Compose conf/config.yaml with Hydra overrides, resolved; without the `hydra` node. raw: neither resolved
    nor with errors of one line."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = hydra_compose("config", overrides=list(overrides))
        return cfg if raw else resolve(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        if raw:
            raise
        raise hydra_error(error, overrides) from None
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy with every interpolation resolved and every `???` refused."""
    if "schedule" not in cfg:  # `~schedule` drops the overrides of an experiment, not the key
        cfg = OmegaConf.merge({"schedule": {}}, cfg)  # type: ignore[assignment]
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise UserError(str(key), None, str(error).splitlines()[0]) from None
    assert isinstance(container, dict)
    return OmegaConf.create({k: v for k, v in container.items() if k != "hydra"})


def to_yaml(cfg: DictConfig) -> str:
    """The text of params.yaml; the same bytes that `dvc exp run -S` writes."""
    return OmegaConf.to_yaml(cfg)


def load_params(path: Path) -> DictConfig:
    """params.yaml of a run directory."""
    try:
        cfg = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(
            str(path), None, "not there; name a run directory, or write it with `genloss compose`"
        ) from None
    except Exception as error:
        raise UserError(str(path), None, f"is not readable YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(cfg, DictConfig):
        raise UserError(str(path), None, "must hold a mapping; write it with `genloss compose`")
    return cfg


def plain(node: Any) -> Any:
    """Plain dicts and lists of a config node."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def arm_identity(cfg: DictConfig) -> dict[str, Any]:
    return {k: plain(v) for k, v in cfg.items() if k not in OPERATIONAL}  # type: ignore[misc]


def arm_id(cfg: DictConfig) -> str:
    """16 hex digits that name the resolved config without operational keys."""
    return sha256_text(canonical(arm_identity(cfg)))[:16]


def label(cfg: DictConfig) -> str:
    """A readable name for an arm's folder: domain, regime, curation, seed. The hash is what identifies it."""
    curation = "+".join(str(k) for k in cfg.curation) or "none"
    parts = [cfg.domain.name, cfg.mixing.name, curation, f"s{cfg.seed}"]
    if cfg.control != "none":
        parts.insert(3, f"{cfg.control}-control")
    return "-".join(str(p) for p in parts)


def differences(configs: Sequence[DictConfig]) -> list[dict[str, Any]]:
    """For each config, the flattened keys in which the configs differ (names in place of whole groups)."""
    flat = [dict(flatten(arm_identity(c))) for c in configs]
    keys = sorted({k for f in flat for k in f})
    varying = [k for k in keys if len({canonical(f.get(k)) for f in flat}) > 1]
    return [{k: f.get(k) for k in varying} for f in flat]


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """[("mixing.real.n", 10), ...]; empty mappings stay as they are."""
    if isinstance(value, Mapping) and value:
        return [pair for k, v in value.items() for pair in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, value)]


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
