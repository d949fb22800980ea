"""Metrics of 100,000 records of 64 words, and self-BLEU and near copies against nltk and plain Python.

    python benchmarks/metrics.py            # a few minutes
    python benchmarks/metrics.py 10000      # of so many records

Records are windows of the default corpus, each of which has a copy of another one in ten cases. Bounds, of 100,000: the
metrics of the default experiment that look at no model take 60 s together; self-BLEU and near copies have the values of
nltk and of plain Python, and are quicker."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nltk.metrics import jaccard_distance
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from common import scratch, table
from genloss.core import records
from genloss.core.contracts import HISTORY, Inputs
from genloss.core.plugin import build, plain
from genloss.core.words import grams as ngrams
from genloss.domains.text import Text
from genloss.evaluate import Evidence, Metric
from genloss.evaluate.copies import Coded, Ids, Windows
from genloss.evaluate.lexical import self_bleu
from genloss.language.corpus import Sotu
from genloss.workflow.compose import compose

WORDS, SECONDS = 64, 60.0
CORE = ("diversity", "rare_words", "repetition", "overlap", "compression")
MORE = (
    *("self_bleu", "tail_exponent", "rarefaction", "ngram_kl", "vendi", "spread", "manifold", "frechet", "frontier"),
    *("loops", "agreement", "facts", "copies"),
)
SMALL, NEAR = 150, 1_500  # texts that slow references compare, each with each: by BLEU, by their shingles


def windows(n: int, seed: int) -> list[str]:
    """n texts of WORDS words of the corpus; one in ten is a copy of another one, with a word changed."""
    said = list(itertools.chain.from_iterable(text.split() for _, text in Sotu().documents()))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(said) - WORDS, n)
    texts = [said[i : i + WORDS] for i in starts.tolist()]
    for i in range(0, n - 1, 10):
        texts[i] = [*texts[i + 1][:-1], "changed"]
    return [" ".join(text) for text in texts]


def evidence(folder: Path, n: int) -> Evidence:
    for seed, (name, count) in enumerate(
        {"train": n, "test": n // 2, "validation": n - n // 2, "generated": n}.items()
    ):
        made = records.make_table({"text": windows(count, seed)}, origin="real", generation=0, recipe=name)
        records.write(made, folder / f"{name}.parquet")
    text = Text(corpus={"_target_": "genloss.language.corpus.Sotu"})
    generated, inputs = folder / "generated.parquet", Inputs({HISTORY: ()})
    return Evidence(text, 1, 7, n, n, folder, folder, folder, generated, inputs)


def timed(action: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> tuple[float, Any]:
    """Seconds of CPU, which a busy machine makes little longer, and what was found."""
    began = clock()
    found = action()
    return clock() - began, found


def of_all(n: int) -> bool:
    """Seconds of each metric, the sample and its floor; whether the core ones keep the bound."""
    configs = plain(compose([f"metrics=[{','.join(CORE + MORE)}]"]).metrics)
    rows, total, cpu = [], 0.0, 0.0
    with scratch() as folder:
        at = evidence(Path(folder), n)
        assert at.sample is not None and len(at.floor) == n  # read before the clock starts
        for name in CORE + MORE:
            metric = build(configs[name], Metric, name)
            measure = partial(timed, partial(metric.measure, at))
            seconds, (of_cpu, found) = timed(measure, time.perf_counter)
            if name in CORE:
                total, cpu = total + seconds, cpu + of_cpu
            kind = "core" if name in CORE else ""
            rows.append([name, kind, f"{seconds:.1f}", f"{of_cpu:.1f}", str(len(found))])
    bound = SECONDS * n / 100_000
    title = f"{n:,} records of {WORDS} words: core {total:.1f} s (bound {bound:.0f}), {cpu:.1f} s of CPU"
    table(title, ["metric", "", "s", "s of CPU", "numbers"], rows)
    return total <= bound


def plain_bleu(texts: list[list[str]]) -> np.ndarray:
    """Self-BLEU by its definition, without a library."""
    found = []
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        logs, zeros = 0.0, 0
        for size in range(1, 5):
            grams = [tuple(text[k : k + size]) for k in range(len(text) - size + 1)]
            matches = 0
            for gram in set(grams):
                best = max(sum(tuple(o[k : k + size]) == gram for k in range(len(o) - size + 1)) for o in others)
                matches += min(grams.count(gram), best)
            zeros += matches == 0
            logs += np.log((matches or 0.5**zeros) / len(grams)) / 4
        length = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
        found.append(np.exp(logs) * min(1.0, np.exp(1 - length / len(text))))
    return np.array(found)


def near_copies(texts: list[list[str]], others: list[list[str]]) -> np.ndarray:
    """Which texts are near another one, as the metric has it."""
    ids = Ids()
    own = Coded.of(texts, ids)
    return Windows(own, Coded.of(others, ids)).near(5, 0.7, np.ones(len(texts), dtype=bool))


def against() -> bool:
    """Self-BLEU and nearest copies against nltk and plain Python: whether all values are the same, and ours quicker."""
    texts = [text.split() for text in windows(SMALL, 9)]
    few = texts[:30]  # what plain Python takes minutes for
    smooth = SmoothingFunction().method3
    ours, mine = timed(lambda: self_bleu(texts))
    theirs, nltk = timed(
        lambda: np.array(
            [sentence_bleu(texts[:i] + texts[i + 1 :], t, smoothing_function=smooth) for i, t in enumerate(texts)]
        )
    )
    few_ours, few_mine = timed(lambda: self_bleu(few))
    slow, by_hand = timed(lambda: plain_bleu(few))
    same = np.allclose(mine, nltk) and np.allclose(few_mine, by_hand)

    texts = [text.split() for text in windows(NEAR, 9)]
    others = [text.split() for text in windows(NEAR, 10)] + [[*text[1:], "more"] for text in texts[::3]]
    near_copies(few, few)  # torch and scipy are imported before the clock starts
    quick, near = timed(lambda: near_copies(texts, others))
    sets = [[set(ngrams(text, 5)) for text in side] for side in (texts, others)]
    theirs_near, nltk_near = timed(lambda: [min(jaccard_distance(a, b) for b in sets[1]) <= 0.3 for a in sets[0]])
    plain_near, hand = timed(lambda: [max(len(a & b) / len(a | b) for b in sets[1]) >= 0.7 for a in sets[0]])
    same &= near.tolist() == nltk_near == hand and 0 < near.sum() < len(near)
    table(
        f"against references, the same values: {same}",
        ["", "texts", "s of CPU", "times as long as ours"],
        [
            ["self-BLEU, nltk", str(SMALL), f"{theirs:.2f}", f"{theirs / ours:.0f}"],
            ["self-BLEU, plain Python", str(len(few)), f"{slow:.2f}", f"{slow / few_ours:.0f}"],
            ["near copies, nltk", str(NEAR), f"{theirs_near:.2f}", f"{theirs_near / quick:.0f}"],
            ["near copies, plain Python", str(NEAR), f"{plain_near:.2f}", f"{plain_near / quick:.0f}"],
        ],
    )
    return bool(same) and theirs > ours and slow > few_ours and min(theirs_near, plain_near) > quick


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    kept = [against(), of_all(n)]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
