"""What the parts of genloss promise each other: plug-ins, domains, models, trainers, and what they are handed.

A plug-in is a dataclass derived from one of the bases here or in generate/, curate/, mix/, evaluate/. It says which
capabilities of the domain it `needs` (genloss.core.capabilities), refuses in `check` what cannot run, and names its own
plug-ins in `parts`: their code is then in the keys of its stages, their checks are called, their files are hashed."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from genloss.core.errors import UserError, one_of, require
from genloss.core.limits import LIMITS, check_limits

if TYPE_CHECKING:
    from omegaconf import DictConfig

Report = Callable[[float, float, str], None]  # report(done, total, unit): progress inside a stage

# of Lightning, which is not imported to check a name
STRATEGIES = (
    "auto",
    "ddp",
    "ddp_find_unused_parameters_true",
    "fsdp",
    "fsdp_cpu_offload",
    "deepspeed",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
)
STARTS = ("base", "previous", "stacked")

ROUND0 = "round0"  # the model of round 0, the frozen reference model
LAST = "last"  # model n-1
PREVIOUS = "previous"  # what curation kept in the round before; the real training data in round 1
HISTORY = "history"  # what curation kept in rounds 1 to n-1, in this order
DROPPED = "dropped"  # what curation dropped in these rounds
KEPT = "kept"  # what curation kept in this round
FIRST = "first"  # what the recipe made in round 1, before curation; nothing in round 1


def silent(done: float, total: float, unit: str) -> None:
    """A `Report` that says nothing."""


@dataclass(frozen=True)
class Runtime:
    """How work is carried out. Nothing here may change a result, so nothing here is part of an arm's identity."""

    workers: int = 0  # sampling chunks at a time; 0: one per core
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1

    def __post_init__(self) -> None:
        require(self.workers >= 0, "workers", self.workers, "at least 0 (0: one per core)")
        one_of("accelerator", self.accelerator, ("cpu", "gpu", "cuda", "auto"))
        one_of("strategy", self.strategy, STRATEGIES)
        for key in ("devices", "num_nodes"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")


class Plugin:
    """What every plug-in may say of itself."""

    needs: ClassVar[tuple[type, ...]] = ()  # capabilities that the domain must have
    stands_at = ""  # its key in the whole config, for errors that come while it works; empty outside of an experiment

    def reads(self) -> tuple[str, ...]:
        """Of ROUND0, LAST, PREVIOUS, HISTORY, DROPPED, KEPT, FIRST: what its result depends on besides real data."""
        return ()

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what cannot run with the rest of the config (UserError). A key is relative to the
        plug-in's own, unless it begins with a key of the whole config (`mixing.real.n`)."""

    def fingerprint(self) -> str:
        """Hash of files outside the run that the result depends on; '' if there are none."""
        return ""

    def places(self) -> tuple[str, ...]:
        """Fields that only say where the files of `fingerprint` lie: no part of a stage's key, so that the same files
        elsewhere give the results that are known."""
        return ()

    def classes(self) -> tuple[type, ...]:
        """Classes that it executes besides its own and those of its parts: the user's Lightning callbacks."""
        return ()

    def parts(self) -> Mapping[str, Plugin]:
        """The plug-ins that it is made of, by their keys below its own."""
        return {}

    def ready(self, experiment: Experiment) -> None:
        """Have at hand, where work begins, what it is made from, and refuse what can only be known then, or on this
        machine (UserError, like `check`)."""

    def greet(self, account: Path) -> None:
        """Refuse, before a round is trained, a service that the next one cannot use (UserError, like `check`). account:
        of `Sampling`."""
        for key, part in self.parts().items():
            try:
                part.greet(account)
            except UserError as error:
                raise error.under(key) from None


class Inputs:
    """Paths to what a plug-in `reads` of finished stages. What it has not named is not there: the stage's key would
    miss it."""

    def __init__(self, paths: Mapping[str, tuple[Path, ...]]):
        self._paths = dict(paths)

    def all(self, name: str) -> tuple[Path, ...]:
        if name not in self._paths:
            raise LookupError(f"{name} is read, and is not among the `reads` of the plug-in")
        return self._paths[name]

    def __getitem__(self, name: str) -> Path:
        (path,) = self.all(name)
        return path


class Experiment(ABC):
    """A resolved config as plug-ins (genloss.experiment), as far as checks and theory look at it."""

    cfg: DictConfig
    size: int
    rounds: int
    seed: int
    control: str
    domain: Domain
    model: Model
    trainer: Trainer
    recipe: Plugin
    mixing: Any  # genloss.mix.Mixing, a layer above
    regime: Any  # genloss.mix.Regime: the mixing of all rounds
    curators: Mapping[str, Plugin]
    metrics: Mapping[str, Plugin]
    runtime: Runtime

    @abstractmethod
    def at_round(self, n: int) -> Experiment:
        """The experiment with the overrides that `schedule` has for round n."""


class Size(NamedTuple):
    """What a model takes, about: bytes that a round saves of it, and numbers that are trained. 0: not known."""

    saved: int = 0
    trained: int = 0


class Model(Plugin):
    """What is trained: an architecture or a model to continue from. A plug-in of its domain."""

    def base(self, fit: Fit) -> Path | None:
        """The folder of the model that a training with trainer.start=base begins from; None: it begins from a fresh
        one."""
        return None

    def starts(self) -> tuple[str, ...]:
        """Those of STARTS that a training of it can have."""
        return ("base", "previous")

    def architecture(self) -> str | None:
        """The class of transformers that it is; None if it is none, or that is not known before work begins."""
        return None

    def size(self, experiment: Experiment) -> Size:
        """What it takes, for the line that says what a run will cost on disk."""
        return Size()


@dataclass
class Trainer(Plugin):
    """How it is trained: budget, optimiser, schedule. start: from the model's base, or from the model of the round
    before."""

    # base; previous: model n-1 further; stacked: a new adapter on model n-1. Round 0 always begins from the base.
    start: str = "base"
    operational: ClassVar[tuple[str, ...]] = ()  # fields that never change a result, and so are not in the key
    uses_domain: ClassVar[bool] = False  # whether `train` calls the domain, whose code is then in the key

    def __post_init__(self) -> None:
        one_of("start", self.start, STARTS)

    def missed(self) -> str:
        """What does not happen if a training is found finished, though a user may wait for it; '' if nothing."""
        return ""

    def ended(self, result: Mapping[str, Any]) -> UserError | None:
        """Why the arm ends with the training that returned `result`: it diverged, say. None: it goes on."""
        return None

    @abstractmethod
    def train(self, fit: Fit) -> dict[str, Any]:
        """Train a model; write `model/` and `training.csv` to `fit.out`. Returns small results, `tokens` (or points)
        seen among them."""


@dataclass(frozen=True)
class Fit:
    """One training: everything that `Trainer.train` may read."""

    model: Model
    trainer: Trainer
    data: Path  # folder of `prepare`
    shards: list[Path]  # Parquet files of records, in a fixed order
    weights: list[float]  # loss weight of each shard
    start: Path | None  # model to continue from; None: the model's base
    seed: int
    out: Path  # folder to write the model to
    options: dict[str, Any] = field(default_factory=dict)  # Domain.config("train")
    domain: Domain | None = None  # only of a trainer that `uses_domain`
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent
    scratch: Path | None = None  # folder of this training alone, which survives a kill; None: nothing is kept


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn, in the order in which the options act on the next-token distribution: `constraint` (tokens
    that a text cannot go on with are masked), `repetition_penalty`
    (Keskar et al. 2019), `temperature`, `top_k`, `top_p` (Holtzman et al. 2020), `min_p` (Nguyen et al. 2024), and
    `bias`, the sampling bias λ of Alemohammad et al. (2024): with probability λ a token is drawn from the distribution,
    else it is its mode; 1 is faithful, 0 greedy."""

    max_tokens: int  # the longest record, its prompt included
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    bias: float = 1.0
    prompt_tokens: int | None = None  # prompts are cut to so many; None: to max_tokens - 1
    new_tokens: int = 0  # of a record, beyond its prompt; 0: as many as max_tokens leaves
    stop: Sequence[str] = ()  # a record ends before the first of these texts that it writes
    keep_prompt: bool = False  # whether a text contains its prompt
    chunk: int = 512  # records computed together; part of the identity, since kernels differ between batch sizes
    logprobs: bool = False  # whether `Replies` has token ids and log-probabilities
    constraint: dict[str, Any] = field(default_factory=dict)  # what a text must match (genloss.language.constraint)
    kernel: str = "torch"  # of the backend torch: or fused (genloss.language.fused)
    compute_type: str = "float32"  # of the backend torch: or bfloat16; with kernel=fused int8 too

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        coldest = LIMITS["temperature"][0]
        warm = f"at least {coldest}, since logits are divided by it; bias=0 is greedy decoding"
        require(self.temperature >= coldest, "temperature", self.temperature, warm)
        require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0: off)")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1] (1: off)")
        require(0 <= self.min_p < 1, "min_p", self.min_p, "in [0, 1) (0: off)")
        require(0 <= self.bias <= 1, "bias", self.bias, "in [0, 1] (1: faithful sampling, 0: greedy)")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")
        require(self.new_tokens >= 0, "new_tokens", self.new_tokens, "at least 0 (0: as many as there is room for)")
        texts = not isinstance(self.stop, str) and all(isinstance(text, str) and text for text in self.stop)
        require(texts, "stop", self.stop, "a list of texts, none of which is empty")
        both = "off where a record stops at a text: what is cut off has log-probabilities too"
        require(not (self.stop and self.logprobs), "logprobs", self.logprobs, both)
        check_limits(self)

    def longest(self, prompt: int) -> int:
        """The most tokens of a record whose prompt has so many of them."""
        return min(self.max_tokens, prompt + self.new_tokens) if self.new_tokens else self.max_tokens

    def stopped(self, text: str) -> str | None:
        """A text up to the first of the texts to stop at; None if there is none in it."""
        ends = [at for mark in self.stop if (at := text.find(mark)) >= 0]
        return text[: min(ends)] if ends else None

    @property
    def prefix(self) -> int:
        """Tokens of a prompt that are used, at most: it leaves room for a token."""
        return self.max_tokens - 1 if self.prompt_tokens is None else self.prompt_tokens


Conversation = Sequence[Mapping[str, str]]  # messages, each with a role and a content
Prompt = str | Conversation  # what a backend goes on from: a text, or a conversation that waits for the assistant


@dataclass(frozen=True)
class Sampling:
    """One request for samples: `n` records from `model`, each with its own random stream."""

    model: Path
    data: Path  # whose tokenizer/ is the model's
    n: int
    seed: int
    decoding: Decoding
    prompts: Sequence[Prompt] | None  # one a record; None: from document start
    scratch: Path  # finished chunks are kept here and found again after a kill
    runtime: Runtime = field(default_factory=Runtime)
    report: Report = silent
    account: Path | None = None  # where a sweep counts what it has paid; None: in `scratch`


class Replies(NamedTuple):
    texts: list[str]  # one a prompt, in their order
    tokens: int  # that were sampled for them
    finish: list[str]  # how each ended: genloss.core.records.ENDED or CUT
    # With decoding.logprobs: the tokens of each text, its prompt not among them, and the natural logarithm of each
    # one's probability under the model itself, before any option of the decoding; of a text that ended also that of its
    # end, as one more number. ids: None where a backend knows only what tokens are called.
    ids: list[list[int]] | None = None
    logprobs: list[list[float]] | None = None


class Backend(Plugin, ABC):
    """Who goes on from prompts: a plug-in of a recipe, `recipe/backend=NAME` (genloss.backends)."""

    elsewhere: ClassVar[bool] = False  # whether it writes by another model than it is given

    def check_decoding(self, decoding: Decoding, prompted: bool = True) -> None:
        """Refuse an option that it does not have (UserError, whose key is the option's name). Nothing is ignored.
        prompted: whether records have prompts."""

    def check_architecture(self, name: str) -> None:
        """Refuse a class of transformers that it cannot go on with."""

    def check_conversations(self) -> None:
        """Refuse prompts that are conversations, where it cannot answer them."""

    @abstractmethod
    def sample(self, request: Sampling) -> Iterator[Replies]:
        """Go on from the prompts, in their order, some at a time. What is finished is kept in `request.scratch`, and
        found there after a kill."""

    def spent(self, scratch: Path) -> dict[str, float]:
        """What the replies that are kept in `scratch` have cost, as counts of a recipe; {} if nothing."""
        return {}

    def of(self, model: Path, data: Path, runtime: Runtime | None = None) -> Responder:
        """This backend with a model."""
        return Responder(self, model, data, runtime or Runtime())


@dataclass(frozen=True)
class Responder:
    """A backend with a model: what answers prompts."""

    backend: Backend
    model: Path  # a saved model
    data: Path  # whose tokenizer/ is the model's
    runtime: Runtime

    def respond(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        seed: int = 0,
        scratch: Path | None = None,
        report: Report = silent,
        account: Path | None = None,
    ) -> Replies:
        """Responses to the prompts, in their order. `scratch` keeps what is finished through a kill; None: nothing is
        kept."""
        known = Replies([], 0, [], [], []) if decoding.logprobs else Replies([], 0, [])
        if not prompts:
            return known
        with tempfile.TemporaryDirectory() if scratch is None else nullcontext(scratch) as folder:
            request = Sampling(
                model=self.model,
                data=self.data,
                n=len(prompts),
                seed=seed,
                decoding=decoding,
                prompts=prompts,
                scratch=Path(folder),
                runtime=self.runtime,
                report=report,
                account=account,
            )
            for some in self.backend.sample(request):
                known = Replies(
                    known.texts + some.texts,
                    known.tokens + some.tokens,
                    known.finish + some.finish,
                    None if known.ids is None or some.ids is None else known.ids + some.ids,
                    None if known.logprobs is None or some.logprobs is None else known.logprobs + some.logprobs,
                )
        return known


class Checked(NamedTuple):
    """bool [n] each: the response is right; it is an answer at all (right implies parsed)."""

    right: np.ndarray
    parsed: np.ndarray


class Domain(Plugin, ABC):
    """Data of one world: what is real, how a record looks, which models and trainers are its own. What else it can do
    are capabilities, from which it derives too. `name` labels folders and tags."""

    name: str
    payload: ClassVar[tuple[str, ...]]  # the columns that a record of this domain adds
    headline: ClassVar[str]  # the metric that tables and figures show unless told otherwise
    panels: ClassVar[tuple[str, ...]] = ()  # the metrics that figures and `dvc plots` show beside it
    models: ClassVar[tuple[type[Model], ...]]  # what can be trained here
    trainers: ClassVar[tuple[type[Trainer], ...]]  # and by what

    def config(self, stage: str) -> dict[str, Any]:
        """The part of the domain's own config that `stage` depends on (data, generate, curate, train, evaluate)."""
        return {}

    def record_bytes(self) -> int:
        """Bytes of a record in a file, at most and about; 0: not known."""
        return 0

    def theory(self, experiment: Experiment) -> list[dict[str, float]]:
        """What theory predicts of rounds 0, 1, ... of this arm, under the names of the metrics that it predicts; []
        where there is no exact expectation."""
        return []

    def expected(self, experiment: Experiment, measured: Mapping[str, float]) -> dict[str, float]:
        """What theory predicts of a round from other numbers that were `measured` in it; names as in `theory`."""
        return {}

    @abstractmethod
    def prepare(self, out: Path) -> dict[str, Any]:
        """Write the real data to `out`: records in `train.parquet` and what else the domain needs, such as disjoint
        `validation.parquet`, `test.parquet` and `prompts.parquet`. Returns small results, `train` (records) among
        them."""

    @abstractmethod
    def curate(self, table: pa.Table, curators: Mapping[str, Any], control: str, context: Any) -> Curated:
        """Run a chain of curators on generated records (genloss.curate)."""

    @abstractmethod
    def shards(
        self,
        regime: Any,
        n: int,
        sources: Mapping[str, Path],
        out: Path,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        """Write the shards of round n to `out`, as a `Regime` of genloss.mix plans them from what the sources hold
        ("real", and the number of each round in the window: files of records). Returns the number of records that are
        `requested`, and `shards`, a description of each: file, origin, generation, requested, realised, weight."""


class Curated(NamedTuple):
    """What a chain of curators made of a table; kept and rejected together are the table."""

    kept: pa.Table
    rejected: pa.Table
    reasons: Mapping[str, float]  # records by reason, `kept` among them (of chains: their mean)
    spread: float = 0.0  # of chains: the standard deviation of `kept`
