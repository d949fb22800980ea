"""Curators on hand-made records with their exact decisions; chains; the random control; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from conftest import Trained
from genloss.core import records
from genloss.core.contracts import LAST, ROUND0, Inputs
from genloss.core.errors import UserError
from genloss.curate import Context, Curator, Decision, curate
from genloss.curate.choose import Random, TopFraction
from genloss.curate.duplicates import Deduplicate, Near, jaccard
from genloss.curate.novelty import Novelty
from genloss.curate.perplexity import Perplexity
from genloss.curate.rules import Complete, Rules, repeated_share
from genloss.experiment import Experiment
from genloss.language.scoring import losses
from genloss.workflow.compose import compose
from support import REPOSITORY


def table(texts: list[str]) -> pa.Table:
    return records.make_table({"text": texts}, origin="synthetic", generation=1, recipe="sample")


@pytest.fixture
def context(trained: Trained) -> Context:
    inputs = Inputs({ROUND0: (trained.llama,), LAST: (trained.gpt2,)})
    return Context(trained.domain, 1, 17, trained.data, inputs)


def run(
    curators: Mapping[str, Curator], texts: list[str], context: Context, control: str = "none"
) -> tuple[pa.Table, pa.Table, list[str]]:
    """(kept, rejected, reasons in the order of the texts)"""
    made = table(texts)
    kept, rejected, counts, _ = curate(made, curators, control, context)
    both = records.concat([kept, rejected])
    reason = dict(zip(both["id"].to_pylist(), both["reason"].to_pylist(), strict=True))
    # nothing is lost, nothing is doubled, and each part keeps the order of the records
    assert len(kept) + len(rejected) == len(made) == len(reason) == sum(counts.values())
    order = made["id"].to_pylist()
    for part in (kept, rejected):
        ids = part["id"].to_pylist()
        assert ids == [i for i in order if i in set(ids)]
    assert counts.get("kept", 0) == len(kept) and set(kept["reason"].to_pylist()) == {"kept"}
    for column in made.column_names:  # records are not changed
        assert kept[column].to_pylist() == [
            v for v, i in zip(made[column].to_pylist(), order, strict=True) if i in set(kept["id"].to_pylist())
        ]
    return kept, rejected, [reason[i] for i in order]


# -- one at a time -------------------------------------------------------------------------------------------------


def test_rules(context: Context) -> None:
    cases = {
        "A sentence that is long enough to pass.": "kept",
        "too short": "rules: too short",
        "   padded    \n": "rules: too short",
        "x" * 101: "rules: too long",
        "Broken � characters � here": "rules: broken characters",
        "One bell \x07 among many letters": "rules: broken characters",
        "tabs\tand\nnew lines are fine": "kept",
        "the a the b the c the d the e the f": "rules: one word",
        "to be or to be or to be or not": "rules: repetitive",
        "to be or not to be or whatever": "kept",
    }
    _, _, reasons = run({"rules": Rules(min_characters=12, max_characters=100)}, list(cases), context)
    assert dict(zip(cases, reasons, strict=True)) == cases


def test_repeated_share_by_hand() -> None:
    assert repeated_share("a b c a b c", 3) == pytest.approx(1 / 4)
    assert repeated_share("a a a a", 1) == pytest.approx(3 / 4)
    assert repeated_share("a b", 3) == 0 and repeated_share("", 3) == 0


@pytest.mark.parametrize("said", [["我们", "昨天", "下午", "一起", "散步"], ["ฉัน", "รัก", "เธอ", "มาก", "กว่า"]])
def test_rules_in_scripts_without_spaces(context: Context, said: list[str]) -> None:
    """A text would be one word there, which never repeats itself and is never too frequent."""
    once = "".join(said)
    cases = {once: "kept", once * 2: "rules: repetitive", once + said[0][0] * 9: "rules: one word"}
    rules = Rules(min_characters=1, max_repeated=0.2)
    assert run({"rules": rules}, list(cases), context)[2] == list(cases.values())
    n = len(once)  # of the n-grams of both, those that begin in the second are there already
    assert repeated_share(once * 2, 3) == pytest.approx((n - 2) / (2 * n - 2))


def test_exact_duplicates(context: Context, trained: Trained) -> None:
    real = records.read(trained.data / "train.parquet")["text"][0].as_py()
    texts = ["One record.", "one   RECORD.", "Another.", f" {real.upper()}", "Another."]
    _, _, reasons = run({"dedup": Deduplicate()}, texts, context)
    assert reasons == ["kept", "dedup: copy", "kept", "dedup: copy of real", "dedup: copy"]
    _, _, reasons = run({"dedup": Deduplicate(real=False)}, texts, context)
    assert reasons == ["kept", "dedup: copy", "kept", "kept", "dedup: copy"]


def words(numbers: range | list[int]) -> str:
    return " ".join(f"w{i}" for i in numbers)


def test_near_duplicates(context: Context) -> None:
    """Jaccard similarities of word 2-grams by hand, far enough from the threshold for 256 permutations."""
    base = words(range(60))
    texts = [
        base,
        words([*range(59), 999]),  # 58 of 60 shared: 0.97
        words([*range(20), *range(500, 540)]),  # 19 of 99: 0.19
        base.upper(),  # 1
        words([*range(500, 540), *range(20)]),  # near the third: 57 of 61
        "short",
        "Short",
    ]
    near = Near(threshold=0.7, ngram=2, permutations=256)
    _, _, reasons = run({"near": near}, texts, context)
    assert reasons == [
        "kept",
        "near: near copy",
        "kept",
        "near: near copy",
        "near: near copy",
        "kept",
        "near: near copy",
    ]


@pytest.mark.parametrize(("threshold", "permutations"), [(0.7, 128), (0.9, 16), (0.3, 128)])
def test_near_duplicates_are_those_of_the_exact_similarity(
    context: Context, threshold: float, permutations: int
) -> None:
    """Of pairs below the threshold none is dropped, of those at it nearly all, and copies always."""
    rng = np.random.default_rng(0)
    size, texts, similar = 100, [], []
    for pair in range(200):
        common = int(rng.integers(size // 10, size + 1))
        base = range(pair * 1000, pair * 1000 + size)
        other = range(pair * 1000 + 500, pair * 1000 + 500 + size - common)
        texts += [words(base), words([*base[:common], *other])]
        similar.append(common / (2 * size - common))
    _, _, reasons = run({"near": Near(ngram=1, threshold=threshold, permutations=permutations)}, texts, context)
    assert set(reasons[::2]) == {"kept"}
    dropped = np.array([reason != "kept" for reason in reasons[1::2]])
    above = np.array(similar) >= threshold
    assert not dropped[~above].any()
    assert dropped[above].mean() > 0.97 and dropped[np.array(similar) == 1].all()


@pytest.mark.parametrize("real", [False, True])
def test_near_duplicates_are_those_of_datasketch(context: Context, trained: Trained, real: bool) -> None:
    """Its `MinHashLSH` proposes the same pairs, of texts that are copied with errors again and again."""
    from datasketch import MinHash, MinHashLSH

    known = records.read(trained.data / "train.parquet")["text"].to_pylist() if real else []
    rng = np.random.default_rng(0)
    texts = records.read(trained.data / "test.parquet")["text"].to_pylist() + known[:20]
    for _ in range(300):
        said = texts[rng.integers(len(texts))].split()
        said[rng.integers(len(said))] = f"w{rng.integers(5)}"
        texts.append(" ".join(said))
    near = Near(threshold=0.6, ngram=2, real=real)
    shingles = [near._shingles(text) for text in known + texts]
    index = MinHashLSH(num_perm=128, params=near._bands())
    expected = []
    for i, signature in enumerate(MinHash.generator(shingles, num_perm=128, seed=1)):
        found = [j for j in index.query(signature) if jaccard(set(shingles[i]), set(shingles[j])) >= 0.6]
        if i < len(known) or not found:
            index.insert(i, signature)
        if i >= len(known):
            expected.append("" if not found else "near copy of real" if min(found) < len(known) else "near copy")
    assert near.decide(table(texts), context).reason.tolist() == expected
    assert 50 < sum(reason != "" for reason in expected) < len(texts) - 50


def test_near_duplicates_without_spaces(context: Context) -> None:
    base = "我们昨天下午一起去城里的公园散步，看见了许多人在湖边唱歌。"
    _, _, reasons = run({"near": Near(ngram=2)}, [base, base.replace("昨天", "今天"), base[::-1]], context)
    assert reasons == ["kept", "near: near copy", "kept"]


@pytest.mark.parametrize(("threshold", "permutations"), [(0.1, 16), (0.01, 128)])
def test_too_few_permutations(threshold: float, permutations: int) -> None:
    with pytest.raises(UserError, match=r"permutations.*must be at least"):
        Near(threshold=threshold, permutations=permutations)


def test_near_duplicates_of_real_data(context: Context, trained: Trained) -> None:
    real = records.read(trained.data / "train.parquet")["text"][5].as_py()
    _, _, reasons = run({"near": Near(ngram=1, threshold=0.6, real=True)}, ["Nothing like it", real + " more"], context)
    assert reasons == ["kept", "near: near copy of real"]


def test_near_agrees_with_true_similarity_at_a_distance(context: Context) -> None:
    """Random pairs: what is far above the threshold is dropped, what is far below is kept."""
    rng = np.random.default_rng(0)
    texts, expected = [], []
    for pair in range(40):
        base = [pair * 1000 + i for i in range(100)]
        changed = int(rng.integers(0, 2)) * 60 + 5  # about 0.9 or 0.2 of the words shared
        texts += [words(base), words([*base[: 100 - changed], *range(pair * 1000 + 500, pair * 1000 + 500 + changed)])]
        expected += ["kept", "near: near copy" if changed == 5 else "kept"]
    assert expected.count("kept") not in (40, 80)
    _, _, reasons = run({"near": Near(ngram=1)}, texts, context)
    assert reasons == expected


def test_random_keeps_its_fraction(context: Context) -> None:
    texts = [f"record {i}" for i in range(200)]
    kept, _, reasons = run({"random": Random(fraction=0.3)}, texts, context)
    assert len(kept) == 60 and set(reasons) == {"kept", "random: not drawn"}
    again, _, _ = run({"random": Random(fraction=0.3)}, texts, context)
    other, _, _ = run({"random": Random(0.3)}, texts, context.seeded(18))
    assert again.equals(kept) and not other["id"].equals(kept["id"])
    assert len(run({"random": Random(fraction=0.001)}, texts, context)[0]) == 1  # never none


def test_top_fraction(context: Context) -> None:
    texts = ["a a a a", "a b c", "a b a b a", "ä ö ü ß"]
    kept, rejected, reasons = run({"top": TopFraction(0.5, "distinct")}, texts, context)
    assert reasons == ["top: low distinct", "kept", "top: low distinct", "kept"]
    assert kept["score"].to_pylist() == [1, 1] and rejected["score"].to_pylist() == [0.25, 0.4]
    kept, _, _ = run({"top": TopFraction(0.5, "length")}, texts, context)
    assert kept["text"].to_pylist() == ["a b a b a", "ä ö ü ß"]  # 9 and 11 bytes
    # equal scores go by position
    kept, _, _ = run({"top": TopFraction(0.5, "length")}, ["one", "two", "six", "ten"], context)
    assert kept["text"].to_pylist() == ["one", "two"]


@pytest.mark.parametrize("judge", ["round0", "last", "folder"])
def test_perplexity(context: Context, trained: Trained, judge: str) -> None:
    texts = records.read(trained.data / "test.parquet")["text"].to_pylist()[:9]
    texts[3] = texts[3][::-1]  # improbable
    model = {"round0": trained.llama, "last": trained.gpt2, "folder": trained.gpt2}[judge]
    nats, tokens = losses(model, trained.data, texts, trained.context)
    loss = nats / tokens
    setting = str(trained.gpt2) if judge == "folder" else judge

    def chosen(keep: str, fraction: float) -> set[str]:
        kept, rejected, _ = run({"p": Perplexity(keep, fraction, setting)}, texts, context)
        both = records.concat([kept, rejected])
        score = dict(zip(both["text"].to_pylist(), both["score"].to_pylist(), strict=True))
        assert [score[t] for t in texts] == pytest.approx(loss.tolist())
        assert set(rejected["reason"].to_pylist()) == {f"p: perplexity not {keep}"}
        return set(kept["text"].to_pylist())

    order = [texts[i] for i in np.argsort(loss)]
    assert order[-1] == texts[3]
    assert chosen("low", 1 / 3) == set(order[:3])
    assert chosen("high", 1 / 3) == set(order[-3:])
    by_distance = [texts[i] for i in np.argsort(np.abs(loss - np.median(loss)))]
    assert chosen("middle", 1 / 3) == set(by_distance[:3])


def test_the_judge_is_named_to_the_loop(trained: Trained) -> None:
    assert Perplexity(judge="round0").reads() == (ROUND0,)
    assert Perplexity(judge="last").reads() == (LAST,)
    a, b = Perplexity(judge=str(trained.llama)), Perplexity(judge=str(trained.gpt2))
    assert a.fingerprint() != b.fingerprint() and len(a.fingerprint()) == 64
    assert a.reads() == b.reads() == ()


# -- chains --------------------------------------------------------------------------------------------------------


def test_a_chain_runs_in_its_order(context: Context) -> None:
    texts = ["longest of them all", "longest of them all", "middle one", "tiny"]
    first = {"dedup": Deduplicate(real=False), "top": TopFraction(2 / 3, "length")}
    _, _, reasons = run(first, texts, context)
    assert reasons == ["kept", "dedup: copy", "kept", "top: low length"]
    half = {"top": TopFraction(0.5, "length"), "dedup": Deduplicate(real=False)}
    _, _, reasons = run(half, texts, context)
    assert reasons == ["kept", "dedup: copy", "top: low length", "top: low length"]
    _, _, reasons = run(dict(reversed(half.items())), texts, context)
    assert reasons == ["kept", "dedup: copy", "kept", "top: low length"]


@pytest.mark.parametrize("control", ["none", "random"])
def test_a_table_larger_than_memory_is_curated_as_a_small_one(
    context: Context, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: str
) -> None:
    texts = [*records.read(trained.data / "train.parquet")["text"].to_pylist()[:150], "word " * 9, "tiny"]
    texts = [*texts, *(text[5:] for text in texts), *texts]
    chain = {
        "rules": Rules(),
        "dedup": Deduplicate(real=False),
        "near": Near(ngram=2),
        "top": TopFraction(0.7, "distinct"),
        "p": Perplexity("low", 0.9),
        "novelty": Novelty(0.9, real=False, earlier=False),
        "random": Random(0.9),
    }
    expected = curate(table(texts), chain, control, context)
    for module, name, size in (("core.records", "PART", 5000), ("core.records", "ROWS", 31)):
        monkeypatch.setattr(f"genloss.{module}.{name}", size)
    path = tmp_path / "x.parquet"
    records.write(table(texts), path)
    (tmp_path / "scratch").mkdir()
    made = records.load(path, tmp_path / "scratch")
    assert made.column("text").num_chunks > 5
    found = curate(made, chain, control, replace(context, scratch=tmp_path / "scratch"))
    assert found.reasons == expected.reasons and len(found.reasons) > (1 if control == "random" else 5)
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert one.drop_columns("parents").equals(other.drop_columns("parents"))
    assert not list((tmp_path / "scratch").iterdir())


def test_no_curator_keeps_all(context: Context) -> None:
    kept, rejected, reasons = run({}, ["a", "b", "a"], context)
    assert len(kept) == 3 and len(rejected) == 0 and reasons == ["kept"] * 3


def test_random_control_has_the_size_of_the_chain(context: Context) -> None:
    texts = [f"record {i} {'word ' * i}" for i in range(40)]
    chain = {"top": TopFraction(0.25, "length")}
    chosen, _, _ = run(chain, texts, context)
    control, rejected, reasons = run(chain, texts, context, control="random")
    assert len(control) == len(chosen) == 10
    assert not control["id"].equals(chosen["id"])
    assert set(rejected["reason"].to_pylist()) == {"control: random"} and reasons.count("kept") == 10
    # the choice is blind to the score: over seeds, the longest is kept about as often as it would be by chance
    longest = sum(texts[-1] in run(chain, texts, context.seeded(s), "random")[0]["text"].to_pylist() for s in range(60))
    assert 4 <= longest <= 28  # binomial(60, 1/4): beyond 3.3 standard deviations otherwise


@pytest.mark.parametrize("control", ["none", "random"])
def test_a_chain_that_keeps_nothing_says_why(context: Context, control: str) -> None:
    """Also where a random choice of none would have done the same: nothing is wrong with that."""
    with pytest.raises(UserError, match=r"kept none of 2 records in round 1 \(2 rules: too short\)"):
        curate(table(["a", "b"]), {"rules": Rules()}, control, context)


def test_a_curator_of_ones_own_that_miscounts_is_a_bug_and_not_bad_data(context: Context) -> None:
    class Wrong(Random):
        def decide(self, table: pa.Table, context: Context) -> Decision:
            return super().decide(table.slice(1), context)

    with pytest.raises(ValueError, match="curator wrong decided on 2 of 3 records"):
        curate(table(["a", "b", "c"]), {"wrong": Wrong()}, "none", context)


def test_a_run_keeps_every_generated_record(main, project: Path, tiny) -> None:
    outcome = main("run", *tiny, "rounds=1", "curation=[complete,dedup,random]", "control=random")
    assert outcome.code == 0, outcome.err
    folder = outcome.folder / "rounds" / "01"
    made, kept, rejected = (records.read(folder / f"{k}.parquet") for k in ("generated", "kept", "rejected"))
    assert sorted(made["id"].to_pylist()) == sorted(kept["id"].to_pylist() + rejected["id"].to_pylist())
    assert kept.column_names == [*made.column_names, "score", "reason"]
    assert set(rejected["reason"].to_pylist()) == {"control: random"}
    finish = made["finish"].to_pylist()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["generate/cut_off"] == finish.count("length") and len(kept) <= finish.count("end")


def test_cut_off_records_can_be_dropped(context: Context) -> None:
    made = records.with_finish(table(["a", "b", "c"]), ["end", "length", "end"])
    curated = curate(made, {"complete": Complete()}, "none", context)
    assert curated.kept["text"].to_pylist() == ["a", "c"] and curated.reasons == {"complete: cut off": 1, "kept": 2}
    assert records.with_finish(table(["a"]), ["end"])["id"] == table(["a"])["id"]
    llm2llm = [
        "domain=reasoning",
        "domain/tasks=arithmetic",
        "recipe=llm2llm",
        "mixing=accumulate",
        "curation=complete",
    ]
    with pytest.raises(UserError, match=r"curation.complete.*: needs a recipe that says how records ended; LLM2LLM"):
        Experiment(compose([*llm2llm, "curation=complete"]))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf/curation").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_curator_is_named_as_its_file(path: Path) -> None:
    """The name in chains, reasons and tables is what a user chooses it by; `none` names nobody."""
    config = yaml.safe_load(path.read_text())
    named = config.get("curation", config)  # of a file that sets more than the curator
    named.pop("defaults", None)  # of its parts
    assert list(named) == ([] if path.stem == "none" else [path.stem])
