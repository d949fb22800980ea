"""Peak memory: of rounds, of a corpus, of records; and how long a corpus takes beside reading and tokenising it.

    python benchmarks/memory.py                     # all of it, about ten minutes on two cores
    python benchmarks/memory.py rounds              # one of rounds, corpus, records
    python benchmarks/memory.py corpus 20 200       # of these sizes, in MB
    python benchmarks/memory.py records 100000 1000000

Every number is of a process of its own. `peak` is its largest resident memory over what it had before the stage began,
when all libraries were loaded and had been used once; `own` is the same without the pages of mapped files, which the
kernel takes back when it needs them. The records come from a sampler that says random words at once: the model's own
memory is that of a chunk (benchmarks/generation.py). Bound of the rounds: from round 2 to round 10 within 5 %."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common import scratch, table
from genloss import stages
from genloss.core import records
from genloss.core.capabilities import able
from genloss.core.contracts import Backend, Inputs, Replies, Sampling, silent
from genloss.domains.text import Text
from genloss.experiment import Experiment
from genloss.generate.sample import Sample
from genloss.language.corpus import Sotu
from genloss.language.packing import PORTION, Rows
from genloss.language.tokenizer import load_codec
from genloss.mix.shards import mix
from genloss.workflow.compose import compose
from overhead import project

ROUNDS = """
import resource
from genloss.workflow.compose import compose
from genloss.domains.text import Text
from genloss.experiment import Experiment
from genloss.loop import Loop
from genloss.workflow.arm import arm_dir, open_run
cfg = compose(["mixing=accumulate", "rounds=10", "trainer.steps=60", "tracking=none", "runtime.workers=1"])
def peak(n):
    value = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew for every round
    print(n, value, flush=True)
Loop(Experiment(cfg), open_run(arm_dir(cfg), cfg)).run(peak)
"""
WORDS = 8  # of a record that is sampled
SIZE = 1024  # records that evaluation looks at


def words_of_english() -> tuple[np.ndarray, np.ndarray]:
    """Words of the default corpus, and the share of each."""
    counts = Counter(word for _, text in Sotu().documents() for word in text.split())
    share = np.array(list(counts.values()), dtype=float)
    return np.array(list(counts), dtype=object), share / share.sum()


def write_corpus(path: Path, megabytes: float) -> int:
    """Documents of four lines of random words, about 1 kB each. Returns how many."""
    words, share = words_of_english()
    rng, size, count = np.random.default_rng(0), 0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for said in rng.choice(words, (1000, 4, 40), p=share):
                size += file.write(json.dumps({"text": "\n".join(" ".join(line) for line in said)}) + "\n")
                count += 1
    return count


@dataclass
class Replay(Backend):
    """Says random words at once."""

    def sample(self, request: Sampling) -> Iterator[Replies]:
        words, share = words_of_english()
        rng = np.random.default_rng(request.seed)
        for at in range(0, request.n, request.decoding.chunk):
            n = min(request.decoding.chunk, request.n - at)
            texts = [" ".join(said) for said in rng.choice(words, (n, WORDS), p=share)]
            yield Replies(texts, n * WORDS, [records.ENDED] * n)


# -- what is measured --------------------------------------------------------------------------------------------------


def field(name: str) -> float:
    """MB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measured(task: Callable[[], object]) -> dict[str, float]:
    """Seconds, and MB over what the process has now."""
    before, own, done = field("VmRSS"), field("RssAnon"), threading.Event()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    most = [own]

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], field("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    try:
        task()
    finally:
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
    return {"seconds": seconds, "peak": field("VmHWM") - before, "own": most[0] - own}


def experiment(corpus: Path, *overrides: str) -> Experiment:
    return Experiment(compose(["domain/corpus=table", f"domain.corpus.path={corpus}", *overrides]))


def read_and_tokenise(x: Experiment, tokenizer: Path) -> int:
    """Nothing but that: documents as they come, ids in portions."""
    domain, codec, held, size, tokens = x.domain, load_codec(tokenizer), [], 0, 0
    assert isinstance(domain, Text)
    for _, text in domain.source.documents():
        held.append(text)
        size += len(text)
        if size > PORTION:
            tokens += sum(map(len, codec.encode(held)))
            held, size = [], 0
    return tokens + sum(map(len, codec.encode(held)))


CHAINS = {
    "curate: rules, dedup, random": "[rules,dedup,random]",
    "curate: top": "top",
    "curate: near_dedup": "near_dedup",
}
OF_CORPORA = ("read and tokenise", "data: split, passages, tokenizer", "train: read")
OF_RECORDS = ("generate", *CHAINS, "mix", "train: read", "evaluate")
WARM = 2000  # records of a first call, which loads what is loaded late


def job(folder: Path, n: int, *overrides: str) -> Any:
    """A stage's job whose files lie in `folder`; the real data are there."""
    x = experiment(folder / "corpus.jsonl", f"recipe.n={n}", f"size={SIZE}", *overrides)
    able(x.recipe, Sample).writer = Replay()
    run = SimpleNamespace(done=lambda *_: None, account=folder, data=folder / "data", round=lambda n: folder)
    return SimpleNamespace(
        x=x, n=1, data=folder / "data", round=folder, run=run, report=silent, model=lambda n: folder,
        inputs=lambda plugins: Inputs({}),
    )  # fmt: skip


def read_rows(shards: list[Path], tokenizer: Path, folder: Path) -> None:
    """What a training does before its first step, and 1000 rows."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = Rows(shards, [1.0] * len(shards), load_codec(tokenizer), 128, 1, folder=folder)
    for _ in islice(rows, 1000):
        pass


def work(what: str, folder: Path, n: int) -> Callable[[], object]:
    """One stage over what lies in `folder`."""
    data = folder / "data"
    if what == "read and tokenise":
        x = experiment(folder / "corpus.jsonl")
        return lambda: read_and_tokenise(x, data / "tokenizer")
    if what == "data: split, passages, tokenizer":
        x = experiment(folder / "corpus.jsonl")
        return lambda: x.domain.prepare(data)
    if what == "train: read":
        shards = sorted((folder / "train").glob("*.parquet")) or [data / "train.parquet"]
        return lambda: read_rows(shards, data / "tokenizer", folder / "tokens")
    if what == "mix":
        x = Experiment(compose(["mixing=replace", f"mixing.synthetic.n={n * 9 // 10}", f"size={SIZE}"]))
        kept = {1: folder / "generated.parquet"}
        return lambda: mix(x.regime, x.domain, 1, data / "train.parquet", kept, folder / "train", 1)
    if what == "generate":
        generate = job(folder, n)
        return lambda: stages.GENERATE.execute(generate, folder, folder)
    if what == "evaluate":
        evaluate = job(folder, n, "metrics=[diversity,rare_words,repetition,overlap,compression]")
        return lambda: stages.EVALUATE.execute(evaluate, folder, folder)
    curate = job(folder, n, f"curation={CHAINS[what]}")
    return lambda: stages.CURATE.execute(curate, folder, folder)


# -- tables ------------------------------------------------------------------------------------------------------------


def apart(what: str, folder: Path, n: int) -> dict[str, float]:
    """`step` in a process of its own."""
    command = [sys.executable, __file__, "step", what, str(folder), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(what: str, n: str, found: dict[str, float]) -> list[str]:
    return [what, n, f"{found['seconds']:.1f}", f"{found['peak']:.0f}", f"{found['own']:.0f}"]


HEAD = ["stage", "size", "seconds", "peak MB", "own MB"]


def prepared(folder: Path, megabytes: float) -> int:
    """A corpus and the data made of it. Returns its documents."""
    folder.mkdir(parents=True, exist_ok=True)
    count = write_corpus(folder / "corpus.jsonl", megabytes)
    experiment(folder / "corpus.jsonl").domain.prepare(folder / "data")
    return count


def of_corpora(sizes: list[int]) -> None:
    rows = []
    for megabytes in sizes:
        with scratch() as name:
            folder = Path(name)
            prepared(folder / "warm", 1)
            count = write_corpus(folder / "corpus.jsonl", megabytes)
            shutil.copytree(folder / "warm" / "data" / "tokenizer", folder / "data" / "tokenizer")
            size = f"{megabytes} MB, {count} documents"
            found = [apart(what, folder, 0) for what in OF_CORPORA]
            rows += [row(what, size, each) for what, each in zip(OF_CORPORA, found, strict=True)]
            ratio = found[1]["seconds"] / found[0]["seconds"]
            rows.append(["data, times reading and tokenising", size, f"{ratio:.2f}", "", ""])
    table("A corpus (JSONL)", HEAD, rows)


def of_records(counts: list[int]) -> None:
    rows = []
    for n in counts:
        with scratch() as name:
            folder = Path(name)
            for each in (folder / "warm", folder):
                prepared(each, 4)
            for what in OF_RECORDS:
                work(what, folder / "warm", WARM)()
                rows.append(row(what, str(n), apart(what, folder, n)))
    table(f"Records of {WORDS} words", HEAD, rows)


def of_rounds() -> None:
    with scratch() as name:
        folder = project(Path(name) / "project")
        env = {k: v for k, v in os.environ.items() if k != "GENLOSS_PROJECT"}
        done = subprocess.run(
            [sys.executable, "-c", ROUNDS], cwd=folder, env=env, capture_output=True, text=True, check=True
        )
    peaks = {int(n): int(kb) / 1024 for n, kb in (line.split() for line in done.stdout.splitlines())}
    table(
        "Peak memory of accumulate",
        ["round", "peak MB", "against round 2"],
        [[str(n), f"{mb:.0f}", f"{100 * (mb / peaks[2] - 1):+.1f} %"] for n, mb in peaks.items()],
    )
    late = [mb / peaks[2] - 1 for n, mb in peaks.items() if n >= 2]
    print(f"\nfrom round 2 to 10: {100 * min(late):+.1f} % to {100 * max(late):+.1f} %; bound: 5 %")


def main() -> None:
    what, *numbers = sys.argv[1:] or ["all"]
    if what == "step":
        stage, folder, n = numbers[0], Path(numbers[1]), int(numbers[2])
        work(stage, folder / "warm", WARM)()
        print(json.dumps(measured(work(stage, folder, n))))
        return
    if what in ("all", "rounds"):
        of_rounds()
    if what in ("all", "corpus"):
        of_corpora([int(n) for n in numbers] or [20, 200])
    if what in ("all", "records"):
        of_records([int(n) for n in numbers] or [100_000, 1_000_000])


if __name__ == "__main__":
    main()
