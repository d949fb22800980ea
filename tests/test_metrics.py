"""Metrics against small examples by hand; floors at equal sample size; metrics.json is flat and finite."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import Trained
from genloss.core import records
from genloss.core.errors import UserError
from genloss.domains.text import Text
from genloss.evaluate import Evidence, Metric, evaluate
from genloss.evaluate.diversity import Compression, Diversity, Overlap, RareWords, Repetition, entropy_bits, words
from genloss.evaluate.loss import HeldOut, Tails
from genloss.language.scoring import losses
from genloss.observatory.quantities import Quantity, quantity
from support import described, undocumented

TEXT = Text(corpus={"_target_": "genloss.language.corpus.Sotu"})  # whose records hold a text


def evidence(folder: Path, real: list[str], held_out: list[str], generated: list[str] | None, **more: int) -> Evidence:
    """Evidence from hand-made texts; its models are never read by the metrics that only look at texts."""

    def put(name: str, texts: list[str]) -> Path:
        origin = "synthetic" if name == "generated" else "real"
        table = records.make_table({"text": texts}, origin=origin, generation=0, recipe=name)
        records.write(table, folder / f"{name}.parquet")
        return folder / f"{name}.parquet"

    put("train", real), put("test", held_out[: len(held_out) // 2]), put("validation", held_out[len(held_out) // 2 :])
    path = put("generated", generated) if generated is not None else None
    settings = {"size": 1000, "n_real": len(real)} | more
    return Evidence(TEXT, 1, 7, settings["size"], settings["n_real"], folder, folder, folder, path)


# -- by hand -------------------------------------------------------------------------------------------------------


def test_distinct_and_entropy_by_hand(tmp_path: Path) -> None:
    generated = ["a b a b", "A b"]  # words: a b a b a b; bigrams within records: ab ba ab | ab
    found = Diversity(max_n=3).measure(evidence(tmp_path, ["x"], ["a b c", "d e f"], generated))
    assert found["distinct_1"] == pytest.approx(2 / 6)
    assert found["distinct_2"] == pytest.approx(2 / 4)  # not 5: no n-gram crosses records
    assert found["distinct_3"] == pytest.approx(2 / 2)
    assert found["entropy_1"] == pytest.approx(1 + 1 / (2 * 6) / math.log(2))  # Miller-Madow
    assert found["distinct_1_floor"] == 1 and found["distinct_3_floor"] == 1


@pytest.mark.parametrize("kinds", [1, 2, 8, 100])
def test_entropy_of_a_uniform_distribution(kinds: int) -> None:
    many = Counter(dict.fromkeys(range(kinds), 10000))
    assert entropy_bits(many) == pytest.approx(math.log2(kinds), abs=1e-3)
    # the correction: a small sample of the uniform distribution is nearly unbiased
    if kinds == 8:
        rng = np.random.default_rng(0)
        mean = np.mean([entropy_bits(Counter(rng.integers(0, 8, 60).tolist())) for _ in range(500)])
        assert mean == pytest.approx(3, abs=0.02)
    assert entropy_bits(Counter()) == 0


def test_diversity_uses_equally_many_words_of_both(tmp_path: Path) -> None:
    """Distinct-n falls with length: a long sample is cut to the words of the shorter one."""
    short = ["one two three four", "five six seven eight"]  # 8 words, all distinct
    long = [" ".join(f"w{i}" for i in range(200)), "again " * 50]
    # of the first record, eight words are counted: eight different ones, or one
    for generated, distinct, entropy in ((long, 1, 3 + 7 / 16 / math.log(2)), (long[::-1], 1 / 8, 0)):
        found = Diversity(max_n=1).measure(evidence(tmp_path, ["x"], short, generated))
        assert found["distinct_1"] == pytest.approx(distinct) and found["distinct_1_floor"] == 1
        assert found["entropy_1"] == pytest.approx(entropy)
        assert found["entropy_1_floor"] == pytest.approx(3 + 7 / 16 / math.log(2))
    cut = Diversity(max_n=1, n_words=4).measure(evidence(tmp_path, ["x"], short, short))
    assert cut["entropy_1"] == pytest.approx(2 + 3 / 8 / math.log(2))


def test_words() -> None:
    assert words("It's the END, of 1790—so?") == ["it's", "the", "end", "of", "1790", "so"]
    assert words("Größe, étude") == ["größe", "étude"]


@pytest.mark.parametrize(("a", "b"), [("一", "二"), ("ก", "ข")])
def test_words_in_scripts_without_spaces(tmp_path: Path, a: str, b: str) -> None:
    """Each character is one: a text that was one word would be all distinct, and unlike any other."""
    assert words(f"{a}{b}。{a} x") == [a, b, a, "x"]
    text = a + b + a + b
    found = Diversity(max_n=2).measure(evidence(tmp_path, ["x"], ["a b c d", "e f g h"], [text, text]))
    assert found["distinct_1"] == pytest.approx(2 / 8) and found["distinct_2"] == pytest.approx(2 / 6)
    assert found["entropy_1"] == pytest.approx(1 + 1 / (2 * 8) / math.log(2))
    seen = evidence(tmp_path, [f"{a}{b}{b}", a], ["u", "v"], [f"{b}{b}", b])
    assert RareWords().measure(seen)["coverage_d1"] == 0 and RareWords().measure(seen)["coverage_d2"] == 1
    assert Repetition(ngram=2).measure(seen)["repetition"] == 0
    assert Repetition(ngram=1).measure(seen)["repetition"] == pytest.approx(1 / 4)
    assert Overlap(ngram=2).measure(seen)["overlap_2gram"] == pytest.approx(1 / 2)


def test_overlap_by_hand(tmp_path: Path) -> None:
    real = [" ".join(f"r{i}" for i in range(20)), "short real"]
    inside = " ".join(f"r{i}" for i in range(3, 16))  # exactly 13 real words in a row
    generated = [
        f"before {inside} after",
        " ".join(f"r{i}" for i in range(3, 15)) + " no r16 r17",  # 12 in a row
        "short real",  # verbatim, and too short for a 13-gram
        "something else",
        inside.upper() + "!",  # case and punctuation do not hide it
    ]
    # the sample has as many records as the held-out ones: take all five by giving five held-out ones
    found = Overlap().measure(evidence(tmp_path, real, ["u v", "w x", "y z", "q r", real[0]], generated))
    assert found["overlap_13gram"] == pytest.approx(2 / 5)
    assert found["overlap_exact"] == pytest.approx(1 / 5)
    assert found["overlap_13gram_floor"] == found["overlap_exact_floor"] == pytest.approx(1 / 5)


def test_overlap_looks_only_at_the_real_records_of_round_0(tmp_path: Path) -> None:
    real = ["in training", "never trained on"]
    found = Overlap().measure(evidence(tmp_path, real, ["a", "b"], ["in training", "never trained on"], n_real=1))
    assert found["overlap_exact"] == pytest.approx(1 / 2)


def test_coverage_deciles_by_hand(tmp_path: Path) -> None:
    # 20 words, the i-th occurs 40 - 2i times: two a decile
    real = [" ".join(f"v{i:02d}" for _ in range(40 - 2 * i)) for i in range(20)]
    generated = ["v00 v01 v02", "v18 unknown"]
    found = RareWords().measure(evidence(tmp_path, real, ["v19 v00", "nothing"], generated))
    assert [found[f"coverage_d{i}"] for i in range(1, 11)] == [1, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.5]
    assert [found[f"coverage_d{i}_floor"] for i in range(1, 11)] == [0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.5]


def test_repetition_by_hand(tmp_path: Path) -> None:
    generated = ["a b c a b c", "x y z", "x y z", "Q q q q"]
    found = Repetition().measure(evidence(tmp_path, ["x"], ["one", "two", "three", "four"], generated))
    assert found["repetition"] == pytest.approx((1 / 4 + 0 + 0 + 1 / 2) / 4)
    assert found["duplicates"] == pytest.approx(1 / 4)
    assert found["repetition_floor"] == found["duplicates_floor"] == 0


def test_compression_by_hand(tmp_path: Path) -> None:
    generated, held_out = ["spam " * 100] * 4, [f"{i * 7919 % 1009} {i}" * 60 for i in range(4)]
    found = Compression().measure(evidence(tmp_path, ["x"], held_out, generated))
    size = min(sum(len(t) + 1 for t in ts) for ts in (generated, held_out))
    raw = "\n".join(generated).encode()[:size]
    assert found["compression_ratio"] == pytest.approx(len(raw) / len(zlib.compress(raw, 9)))
    assert found["compression_ratio"] > found["compression_ratio_floor"] > 1


# -- losses --------------------------------------------------------------------------------------------------------


def test_heldout_is_total_bits_over_total_bytes(trained: Trained) -> None:
    x = Evidence(trained.domain, 0, 7, 48, 48, trained.data, trained.gpt2, trained.llama, None)
    texts = records.read(trained.data / "test.parquet")["text"].to_pylist()[:10]
    nats, tokens = losses(trained.gpt2, trained.data, texts, trained.context)
    found = HeldOut(max_records=10).measure(x)
    assert found["heldout_loss"] == pytest.approx(nats.sum() / tokens.sum())
    assert found["heldout_perplexity"] == pytest.approx(math.exp(nats.sum() / tokens.sum()))
    assert found["heldout_bits_per_byte"] == pytest.approx(
        nats.sum() / math.log(2) / sum(len(t.encode()) for t in texts)
    )
    assert found["heldout_tokens"] == tokens.sum()


def test_tails_are_under_the_frozen_reference_model(trained: Trained, tmp_path: Path) -> None:
    generated = records.make_table(
        {"text": ["The old river keeps the bright market.", "zq zq zq", ""] * 5},
        origin="synthetic",
        generation=1,
        recipe="s",
    )
    records.write(generated, tmp_path / "generated.parquet")
    x = Evidence(
        trained.domain, 1, 7, 48, 48, trained.data, trained.gpt2, trained.llama, tmp_path / "generated.parquet"
    )
    assert x.sample is not None and len(x.sample) == 15 == len(x.floor)
    nats, tokens = losses(trained.llama, trained.data, x.sample["text"].to_pylist(), trained.context)
    found = Tails().measure(x)
    assert found["loss_under_round0"] == pytest.approx((nats / tokens).mean())
    assert found["loss_under_round0_p50"] == pytest.approx(np.median(nats / tokens))
    assert found["loss_under_round0_p1"] <= found["loss_under_round0_p50"] <= found["loss_under_round0_p99"]
    assert set(found) == {k + s for k in list(found) if not k.endswith("_floor") for s in ("", "_floor")}


def test_the_floor_is_scored_once(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[pa.Table] = []
    known = type(trained.domain).losses

    def counted(*arguments: Any) -> Any:
        scored.append(arguments[3])
        return known(*arguments)

    monkeypatch.setattr(type(trained.domain), "losses", counted)
    tails, generated = Tails(), tmp_path / "generated.parquet"

    def measured(n: int, count: int, round0: Path) -> dict[str, float]:
        table = records.make_table(
            {"text": [f"The river keeps {n}."] * count}, origin="synthetic", generation=n, recipe="s"
        )
        records.write(table, generated)
        return tails.measure(Evidence(trained.domain, n, 7, 48, 48, trained.data, trained.gpt2, round0, generated))

    first, second = measured(1, 15, trained.llama), measured(2, 15, trained.llama)
    assert first["loss_under_round0_floor"] == second["loss_under_round0_floor"] and len(scored) == 3
    assert first["loss_under_round0"] != second["loss_under_round0"]
    fewer, other = measured(3, 9, trained.llama), measured(3, 9, trained.gpt2)
    assert len(scored) == 7  # other records, another model
    assert fewer["loss_under_round0_floor"] != other["loss_under_round0_floor"]


# -- the sample and its floor --------------------------------------------------------------------------------------


def test_sample_and_floor_have_one_size(tmp_path: Path) -> None:
    for size, held_out, generated, expected in [(5, 30, 40, 5), (100, 30, 40, 30), (100, 60, 40, 40)]:
        x = evidence(
            tmp_path, ["r"], [f"h{i}" for i in range(held_out)], [f"g{i}" for i in range(generated)], size=size
        )
        assert x.sample is not None
        assert x.n_samples == len(x.floor) == len(x.sample) == expected
        assert len(set(x.texts(x.floor))) == len(set(x.texts(x.sample))) == expected


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    class Broken(Metric):
        def measure(self, evidence: Evidence) -> dict[str, float]:
            return {"broken": float("nan")}

    x = evidence(tmp_path, ["r"], ["h", "i"], ["g"])
    with pytest.raises(UserError, match=r"broken=nan.*not finite in round 1"):
        evaluate({"mine": Broken()}, x)
    with pytest.raises(UserError, match="name of another"):
        evaluate({"a": Repetition(), "b": Repetition()}, x)


def test_metrics_of_a_run(main, project: Path, tiny) -> None:
    outcome = main("run", *tiny, "rounds=1", "curation=random")
    assert outcome.code == 0, outcome.err
    found = [json.loads((outcome.folder / f"rounds/{n:02d}/metrics.json").read_text()) for n in (0, 1)]
    for n, metrics in enumerate(found):
        assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())
        sampled = {k.removesuffix("_floor") for k in metrics if k.endswith("_floor")}
        assert {
            "distinct_1",
            "entropy_3",
            "coverage_d10",
            "repetition",
            "overlap_13gram",
            "compression_ratio",
            "loss_under_round0_p99",
        } <= sampled
        assert (sampled <= set(metrics)) == (n == 1)  # round 0 has generated nothing yet: floors only
        assert metrics["train_real_fraction"] == (1 if n == 0 else 0)
        assert metrics["train_records"] == (48 if n == 0 else 24)
    assert found[1]["n_generated"] == 48 and found[1]["n_kept"] == found[1]["n_rejected"] == 24
    assert found[1]["n_samples"] == 48
    assert found[1]["dropped/random_not_drawn"] == 24
    assert 1 < found[0]["heldout_bits_per_byte"] < 8


def test_units_are_those_of_the_docs() -> None:
    """Those that axes and tables show. A share lies between 0 and 1."""
    for names, cells in described():
        units = cells["unit"].split("; ")
        of = cells.get("domain", "").partition(",")[0]
        for name, unit in zip(names, units * len(names) if len(units) == 1 else units, strict=True):
            found = quantity(re.sub(r"[A-Z]{2,}", "00", name), of)
            assert found.unit == unit, name
            if unit.startswith(("share", "probability")) and name != "response_length_bias":
                assert (found.low, found.high) == (0, 1), name
    assert (
        quantity("theory/drift_limit", "gaussian") == quantity("drift_se", "gaussian") == quantity("drift", "gaussian")
    )
    assert quantity("mine") == Quantity("", -math.inf, math.inf)


def test_names_are_found_in_the_docs() -> None:
    assert not undocumented(["heldout_loss", "distinct_3_floor", "train_generation_07", "theory/drift", "refine/gain"])
    assert undocumented(["heldout_los", "theory/nothing", "distinct_9x"]) == [
        "heldout_los",
        "theory/nothing",
        "distinct_9x",
    ]
