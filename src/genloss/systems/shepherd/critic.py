"""A trained critic as others may use it: critiques, the probability of "ok", and rewards of single steps.

    critic = find("runs/critic-*-s0-*")
    critic.critiques(["3+4*2:"], ["4*2=9;3+9=12"])      # [Said(ok=False, step=1, kind="arithmetic", ...)]
    critic.log_ok(["3+4*2:"], ["4*2=9;3+9=12"])         # log-probabilities [n]
    critic.step_rewards(["3+4*2:"], ["4*2=9;3+9=12"])   # an array for each: a number for each of its steps, and P(ok)

A critic that works with a reference solves each problem greedily before it judges; probabilities are those after its
own solution."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genloss.backends.torch import Torch
from genloss.core.contracts import Decoding, Experiment, Report, Runtime, silent
from genloss.core.errors import UserError
from genloss.core.hashes import canonical, folder_hash, sha256_text
from genloss.core.places import find_folder, load_params
from genloss.core.plugin import build, plain
from genloss.core.retention import check_kept
from genloss.domains.reasoning import Reasoning
from genloss.domains.reasoning.arithmetic import needs_expressions
from genloss.domains.reasoning.critics import StepCritic
from genloss.language.tokenizer import load_codec
from genloss.systems.shepherd.task import STEPS, Critique, Said, question, read

MAKE = "make one with `genloss run experiment=critic`"
LONGEST = 200  # characters of a solution that a critic reads


@dataclass(frozen=True)
class TrainedCritic:
    """A trained critic."""

    model: Path
    data: Path  # the data of its run, for the tokenizer
    context: int  # of its model, in tokens
    reference: bool  # whether it solves the problem itself first
    chunk: int = 512  # critiques written together; part of the identity, since kernels differ between batch sizes

    def fingerprint(self) -> str:
        """Hash of the model, of its tokenizer, and of how it is asked."""
        files = [folder_hash(self.model), folder_hash(self.data / "tokenizer")]
        return sha256_text(canonical([*files, self.reference, self.chunk]))

    def critiques(
        self,
        problems: Sequence[str],
        solutions: Sequence[str],
        runtime: Runtime | None = None,
        report: Report = silent,
        asked: list[str] | None = None,
    ) -> list[Said | None]:
        """What the critic says of each solution, decoding greedily; None where it is no critique, or the solution is
        too long to be read. asked: what `asked` gave, if it is known."""
        asked = self.asked(problems, solutions, runtime, report) if asked is None else asked
        return [read(text) for text in self._write(asked, runtime, report)]

    def asked(
        self, problems: Sequence[str], solutions: Sequence[str], runtime: Runtime | None = None, report: Report = silent
    ) -> list[str]:
        """What the critic is asked, its own solutions included. These are of the problems alone: each is solved
        once."""
        short = [s[: LONGEST + 1] for s in solutions]
        if not self.reference:
            return [question(p, s) for p, s in zip(problems, short, strict=True)]
        different = list(dict.fromkeys(problems))
        own = dict(zip(different, self._write(different, runtime, report), strict=True))
        return [question(p, s, own[p] or "") for p, s in zip(problems, short, strict=True)]

    def _write(self, prompts: list[str], runtime: Runtime | None, report: Report) -> list[str | None]:
        """Greedy responses; None to a prompt that is longer than the context."""
        lengths = [len(ids) for ids in load_codec(self.data / "tokenizer").encode(prompts)]
        short = [i for i, n in enumerate(lengths) if n < self.context]
        backend = Torch().of(self.model, self.data, runtime)
        greedy = Decoding(self.context, bias=0.0, chunk=self.chunk)
        found: list[str | None] = [None] * len(prompts)
        for i, text in zip(
            short, backend.respond([prompts[i] for i in short], greedy, report=report).texts, strict=True
        ):
            found[i] = text
        return found

    def log_ok(
        self,
        problems: Sequence[str],
        solutions: Sequence[str],
        runtime: Runtime | None = None,
        report: Report = silent,
        asked: list[str] | None = None,
    ) -> np.ndarray:
        """log P(the critique is "ok") of each solution [n]; -inf of one that is too long to be read."""
        asked = self.asked(problems, solutions, runtime, report) if asked is None else asked
        return self._score(asked, ["ok"] * len(asked), True, runtime, report)

    def step_rewards(
        self, problems: Sequence[str], solutions: Sequence[str], runtime: Runtime | None = None, report: Report = silent
    ) -> list[np.ndarray]:
        """For step k of a solution (its parts between semicolons): the probability that the critic says "ok" or names a
        step after k, which is that it finds nothing wrong up to k. It falls from step to step; one more number, P(ok),
        says that nothing is missing at the end either."""
        counts = [min(s.count(";") + 1, STEPS - 1) for s in solutions]
        asked = self.asked(problems, solutions, runtime, report)
        rows = [(i, k) for i, n in enumerate(counts) for k in range(1, n + 2)]
        texts = ["ok"] * len(asked) + [f"bad {k}" for _, k in rows]
        whole = np.arange(len(texts)) < len(asked)
        logs = self._score([*asked, *(asked[i] for i, _ in rows)], texts, whole, runtime, report)
        named = iter(np.exp(logs[len(asked) :]))
        found = []
        for ok, n in zip(np.exp(logs[: len(asked)]), counts, strict=True):
            each = np.array([next(named) for _ in range(n + 1)])
            found.append(np.minimum(1.0, ok + np.append(each[::-1].cumsum()[::-1][1:], 0.0)))
        return found

    def _score(
        self, asked: list[str], said: list[str], whole: bool | np.ndarray, runtime: Runtime | None, report: Report
    ) -> np.ndarray:
        """log P(the critique of asked[i] is said[i]), or begins with it where `whole` is false; [n]."""
        from genloss.language.packing import given
        from genloss.language.scoring import Window, score  # torch takes seconds to load

        codec = load_codec(self.data / "tokenizer")
        ends = np.broadcast_to(whole, len(asked))
        windows = [
            Window(i, [codec.begin, *given(a), *s, *([codec.end] if end else [])])
            for i, (a, s, end) in enumerate(zip(codec.encode(asked), codec.encode(said), ends, strict=True))
        ]
        windows = [w for w in windows if len(w.ids) <= self.context + 1]
        fits = np.zeros(len(asked), dtype=bool)
        fits[[w.record for w in windows]] = True
        nats, _ = score(self.model, codec, windows, len(asked), self.context, runtime, report)
        return np.where(fits, -nats, -np.inf)


def find(path: str, chunk: int = 512, key: str = "path") -> TrainedCritic:
    """The critic of the run directory that `path` names (a pattern may, if it matches one); relative to the project.
    key: what an error calls it."""
    folder = find_folder(path, key, f"is no run directory; {MAKE}")
    if not (folder / "params.yaml").is_file():
        raise UserError(key, path, f"is no run directory (no params.yaml); {MAKE}")
    config = plain(load_params(folder / "params.yaml").domain)
    families = [str(task.get("_target_", "")).rpartition(".")[2] for task in (config.get("tasks") or {}).values()]
    if Critique.__name__ not in families:
        what = ", ".join(sorted(set(families))) or config["name"]
        raise UserError(key, path, f"is a run of {what}, not of a critic; {MAKE}")
    domain = build(config, Reasoning, "domain")
    (family, *_) = (f for f in domain.families.values() if isinstance(f, Critique))
    critic = TrainedCritic(folder / "rounds" / "00" / "model", folder / "data", domain.context, family.reference, chunk)
    for needed in (critic.model / "config.json", critic.data / "tokenizer" / "tokenizer.json"):
        if not needed.is_file():
            name = needed.relative_to(folder)
            raise UserError(key, path, f"has no {name}: its round 0 is not finished; run it again")
    check_kept(critic.model, key, path)
    size = _json(critic.model / "config.json").get("vocab_size")
    tokens = _json(critic.data / "tokenizer" / "tokenizer.json").get("model", {}).get("vocab", {})
    if size != len(tokens):
        raise UserError(key, path, f"has a model of {size} tokens and a tokenizer of {len(tokens)}; {MAKE}")
    return critic


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def worked(experiment: Experiment) -> None:
    """Refuse problems without worked solutions: a critic has learned to read those of `arithmetic` alone."""
    needs_expressions(experiment, "_target_", "needs worked solutions", solutions=True)


@dataclass
class StepRewards(StepCritic):
    """A trained critic as the factor `critic` of a reward."""

    path: str = (
        "???"  # run directory of a critic, relative to the project; * may stand for what is not known of its name
    )

    def check(self, experiment: Experiment) -> None:
        find(self.path)

    def fingerprint(self) -> str:
        return find(self.path).fingerprint()

    def step_rewards(
        self, problems: Sequence[str], solutions: Sequence[str], runtime: Runtime | None = None
    ) -> list[np.ndarray]:
        return find(self.path).step_rewards(problems, solutions, runtime)
