"""Mixing: counts add up for every config of the schema, the presets are the named regimes, and whole shards are hard
links."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from genloss.core import records
from genloss.core.errors import UserError
from genloss.domains.text import Text
from genloss.experiment import Experiment
from genloss.mix import Budget, Mixing, Real, Regime, Synthetic
from genloss.mix.shards import mix
from genloss.workflow.compose import compose

REAL = 40  # real training records
TEXT = Text(corpus={"_target_": "genloss.language.corpus.Sotu"})  # whose records are mixed one by one


def make(folder: Path, real: int, kept: list[int]) -> tuple[Path, dict[int, Path]]:
    """Files of real records r0, r1, ... and of each round's kept records g1-0, g1-1, ..."""
    data = folder / "data" / "train.parquet"
    table = records.make_table({"text": [f"r{i}" for i in range(real)]}, origin="real", generation=0, recipe="c")
    records.write(table, data)
    paths = {}
    for j, n in enumerate(kept, 1):
        texts = [f"g{j}-{i}" for i in range(n)]
        table = records.make_table({"text": texts}, origin="synthetic", generation=j, recipe="s")
        table = table.append_column("score", [[0.0] * n]).append_column("reason", [["kept"] * n])
        paths[j] = folder / "rounds" / f"{j:02d}" / "kept.parquet"
        records.write(table, paths[j])
    return data, paths


def always(mixing: Mixing, rounds: int) -> Regime:
    return Regime((mixing,) * (rounds + 1))


def mixed(mixing: Mixing, n: int, data: Path, kept: dict[int, Path], out: Path, seed: int = 0) -> tuple[dict, list]:
    """(mix.json, [(shard entry, texts)])"""
    window = mixing.rounds_in_window(n) if n else []
    result = mix(always(mixing, n), TEXT, n, data, {j: kept[j] for j in window}, out, seed)
    assert json.loads((out / "mix.json").read_text()) == result
    found = [(s, records.read(out / s["file"], columns=["text"])["text"].to_pylist()) for s in result["shards"]]
    assert sorted(p.name for p in out.iterdir()) == sorted(["mix.json", *(s["file"] for s in result["shards"])])
    return result, found


# -- the schema ----------------------------------------------------------------------------------------------------

counts = st.none() | st.integers(1, 50)


@st.composite
def mixings(draw: st.DrawFn) -> Mixing:
    """Any mixing that the schema allows."""
    by = draw(st.sampled_from(["counts", "fraction", "ratio", "weight"]))
    value = None if by == "counts" else draw(st.floats(0, 3 if by == "ratio" else 1))
    kind = draw(st.sampled_from(["none", "fixed", "fresh", "fixed+fresh"]))
    budget = draw(st.sampled_from(["grow", "fixed", "schedule"]))
    try:
        return Mixing(
            real=Real(kind, draw(st.integers(1, 20)) if "fresh" in kind else draw(counts)),
            window=draw(st.sampled_from(["none", "last", "all", 1, 2, 7])),
            synthetic=Synthetic(draw(counts)),
            by=by,
            value=value,
            budget=Budget(
                budget,
                draw(counts.filter(bool)) if budget != "grow" else None,
                draw(st.floats(0, 1.5)) if budget == "schedule" else 0.0,
            ),
            replacement=draw(st.booleans()) if budget != "grow" else False,
        )
    except UserError:
        assume(False)
        raise


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mixing=mixings(), kept=st.lists(st.integers(1, 30), min_size=1, max_size=3), seed=st.integers(0, 3))
def test_any_mixing(tmp_path_factory, mixing: Mixing, kept: list[int], seed: int) -> None:
    n = len(kept)
    folder = tmp_path_factory.mktemp("mix")
    data, paths = make(folder, REAL, kept)
    try:
        always(mixing, n).check_available(REAL, REAL)
        result, shards = mixed(mixing, n, data, paths, folder / "train", seed)
    except UserError as error:
        event("refused")
        # a refusal is right only where something is asked for that is not there, or nothing would be left
        assert error.key.startswith(("mixing.", "size")) and "\n" not in str(error)
        return
    event(mixing.by)
    assert shards, "an empty training set"
    texts = [t for _, ts in shards for t in ts]
    real = [t for s, ts in shards for t in ts if s["origin"] == "real"]
    synthetic = [t for s, ts in shards for t in ts if s["origin"] == "synthetic"]
    # realised counts are rows on disk
    for shard, ts in shards:
        assert shard["realised"] == len(ts) > 0
        if shard["origin"] == "real":
            assert shard["generation"] == 0 and all(t.startswith("r") for t in ts)
        else:
            assert all(t.startswith(f"g{shard['generation']}-") for t in ts)
    assert len(texts) == len(real) + len(synthetic)
    # only what is in reach, and nothing twice unless drawn with replacement
    window = (
        []
        if mixing.window == "none"
        else {"last": [n], "all": list(range(1, n + 1))}.get(
            mixing.window, list(range(max(1, n - (mixing.window if isinstance(mixing.window, int) else 1) + 1), n + 1))
        )
    )
    per_round = {j: min(kept[j - 1], mixing.synthetic.n or kept[j - 1]) for j in window}
    first = mixing.real.n or REAL
    reach = set()
    if mixing.real.kind.startswith("fixed"):
        reach |= {f"r{i}" for i in range(first)}
    if mixing.real.kind.endswith("fresh"):
        reach |= {f"r{i}" for i in range(n * first, (n + 1) * first)}
    assert set(real) <= reach
    assert {int(t[1:].split("-")[0]) for t in synthetic} <= set(window)
    if not mixing.replacement:
        assert len(set(texts)) == len(texts)
        for j in window:
            assert sum(t.startswith(f"g{j}-") for t in synthetic) <= per_round[j]
    # the size is the budget's
    if mixing.budget.kind == "fixed":
        assert len(texts) == mixing.budget.n == result["requested"]
    elif mixing.budget.kind == "schedule":
        assert len(texts) == max(1, round((mixing.budget.n or 0) * n**mixing.budget.power)) == result["requested"]
    # the meaning of `value`
    value = mixing.value or 0.0
    if mixing.by == "fraction":
        assert len(real) == round(value * len(texts))
    if mixing.budget.kind == "grow":
        if mixing.by in ("counts", "weight"):
            assert len(real) == len(reach) and len(synthetic) == sum(per_round.values())
        if mixing.by == "ratio":
            assert len(real) == len(reach) and len(synthetic) == round(value * len(real))
        if mixing.by == "fraction" and 0 < value < 1:  # as large as the scarcer side allows
            one_more = len(texts) + 2
            assert one_more * value > len(reach) or one_more * (1 - value) > sum(per_round.values())
    if mixing.by == "weight":
        weight = {o: sum(s["weight"] * len(t) for s, t in shards if s["origin"] == o) for o in ("real", "synthetic")}
        assert weight["real"] + weight["synthetic"] == pytest.approx(len(texts), abs=1e-6 * len(texts))
        if real and synthetic:  # else one side alone is all of the loss
            assert weight["real"] / len(texts) == pytest.approx(value, abs=1e-9)
    else:
        assert all(s["weight"] == 1 for s, _ in shards)
    # the same seed, the same set; round 0 is the same real slice whatever the regime
    again = mixed(mixing, n, data, paths, folder / "again", seed)
    assert again == (result, shards)
    zero = mixed(mixing, 0, data, paths, folder / "zero", seed)[1]
    assert [ts for _, ts in zero] == [[f"r{i}" for i in range(min(first, REAL))]]


# -- the named regimes ---------------------------------------------------------------------------------------------

N = 12
R0 = {f"r{i}" for i in range(N)}


def G(j: int) -> set[str]:
    return {f"g{j}-{i}" for i in range(N)}


def preset(name: str, *more: str) -> Mixing:
    return Experiment(compose([f"mixing={name}", f"size={N}", "rounds=3", *more])).mixing


def run_preset(tmp_path: Path, mixing: Mixing) -> list[list[tuple[dict, list]]]:
    data, kept = make(tmp_path, 5 * N, [N, N, N])
    always(mixing, 3).check_available(5 * N, N)
    return [mixed(mixing, n, data, kept, tmp_path / "rounds" / f"{n:02d}" / "train")[1] for n in range(4)]


def sets(shards: list[tuple[dict, list]]) -> set[str]:
    texts = [t for _, ts in shards for t in ts]
    assert len(texts) == len(set(texts))
    return set(texts)


EXACT = {
    "replace": lambda n: G(n),
    "accumulate": lambda n: R0.union(*(G(j) for j in range(1, n + 1))),
    "real_only": lambda n: R0,
    "sliding_window": lambda n: set().union(*(G(j) for j in range(max(1, n - 2), n + 1))),
    "synthetic_augmentation": lambda n: R0 | G(n),
    "weighted_fresh": lambda n: {f"r{i}" for i in range(n * N, (n + 1) * N)} | G(n),
}
# name -> (real pool, synthetic pool, real count, total)
DRAWN = {
    "replace_keep": lambda n: (R0, G(n), round(0.1 * N), N),
    "fresh": lambda n: ({f"r{i}" for i in range(n * N, (n + 1) * N)}, G(n), N // 2, N),
    "one_shot_mix": lambda n: (R0, G(n), round(0.99 * N), N),
    "prev_ratio": lambda n: (R0, G(n), N, N + N // 2),
    "accumulate_subsample": lambda n: (R0, set().union(*(G(j) for j in range(1, n + 1))), None, N),
}


def test_every_preset_is_tested() -> None:
    files = {p.stem for p in (Path(__file__).parents[1] / "conf" / "mixing").glob("*.yaml")}
    assert files == set(EXACT) | set(DRAWN)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_preset_takes_exactly(tmp_path: Path, project: Path, name: str) -> None:
    rounds = run_preset(tmp_path, preset(name))
    assert [sets(r) for r in rounds] == [R0, *(EXACT[name](n) for n in (1, 2, 3))]


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_preset_draws(tmp_path: Path, project: Path, name: str) -> None:
    rounds = run_preset(tmp_path, preset(name))
    assert sets(rounds[0]) == R0
    for n in (1, 2, 3):
        real, synthetic, count, total = DRAWN[name](n)
        found = sets(rounds[n])
        assert found <= real | synthetic and len(found) == total
        if count is not None:
            assert len(found & real) == count


def test_weighted_fresh_gives_the_real_part_its_share_of_the_loss(tmp_path: Path, project: Path) -> None:
    golden = (5**0.5 - 1) / 2
    for shards in run_preset(tmp_path, preset("weighted_fresh"))[1:]:
        weight = {s["origin"]: s["weight"] * s["realised"] for s, _ in shards}
        assert weight["real"] / sum(weight.values()) == pytest.approx(golden)


def test_all_presets_share_round_zero_and_its_key(project: Path) -> None:
    """Arms with equally much real data share round 0: the files are the same bytes."""
    shas = set()
    for i, name in enumerate(sorted(EXACT | DRAWN)):
        data, _ = make(project / str(i), 5 * N, [N])
        mix(always(preset(name), 0), TEXT, 0, data, {}, project / str(i) / "train", i)
        files = sorted((project / str(i) / "train").iterdir())
        shas.add(tuple((f.name, f.read_bytes()) for f in files))
    assert len(shas) == 1


def test_subsample_draws_evenly_from_all_generations(tmp_path: Path) -> None:
    data, kept = make(tmp_path, 100, [100, 100, 100])
    mixing = Mixing(real=Real("fixed", 100), window="all", budget=Budget("fixed", 100))
    of_real = []
    for seed in range(40):
        _, shards = mixed(mixing, 3, data, kept, tmp_path / str(seed), seed)
        of_real.append(sum(len(t) for s, t in shards if s["origin"] == "real"))
    # hypergeometric: mean 25, standard deviation 3.75; the mean of 40 lies within 5 standard errors
    assert abs(np.mean(of_real) - 25) < 5 * 3.75 / 40**0.5
    assert len(set(of_real)) > 3


def test_replacement_draws_with_replacement(tmp_path: Path) -> None:
    data, kept = make(tmp_path, 10, [10])
    mixing = Mixing(real=Real("fixed"), window="last", budget=Budget("fixed", 500), replacement=True)
    _, shards = mixed(mixing, 1, data, kept, tmp_path / "out")
    texts = [t for _, ts in shards for t in ts]
    assert len(texts) == 500 and len(set(texts)) == 20


def test_fresh_never_uses_a_record_twice(tmp_path: Path) -> None:
    data, kept = make(tmp_path, 40, [5, 5, 5])
    mixing = Mixing(real=Real("fresh", 10), window="last")
    always(mixing, 3).check_available(40, 10)
    used = [
        sets([p for p in mixed(mixing, n, data, kept, tmp_path / str(n))[1] if p[0]["origin"] == "real"])
        for n in range(4)
    ]
    assert all(len(u) == 10 for u in used)
    assert not any(a & b for a, b in itertools.combinations(used, 2))
    with pytest.raises(UserError, match="needs 50 real training records"):
        always(mixing, 4).check_available(40, 10)


@settings(max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])
@given(rounds=st.lists(mixings(), min_size=1, max_size=6), size=st.integers(1, 20))
def test_no_row_is_fresh_twice_in_any_schedule(rounds: list[Mixing], size: int) -> None:
    """A fresh row was in no round's reach before, and in reach are those that exist; what cannot be met is refused
    before any round."""
    regime = Regime(tuple(rounds))
    kept = dict.fromkeys(range(1, len(rounds)), 30)
    try:
        regime.check_available(REAL, size, kept)
    except UserError as error:
        assert error.key == "size" or error.key.partition("mixing.")[2] in ("real.n", "budget.n", "value")
        return
    touched: set[int] = set()
    for n, mixing in enumerate(rounds):
        mine = {p.name: set(range(p.first, p.first + p.size)) for p in mixing.real_parts(n, REAL, regime.used(n, REAL))}
        assert all(rows <= set(range(REAL)) for rows in mine.values())
        assert not mine.get("fresh", set()) & (touched | mine.get("real", set()))
        touched |= set().union(*mine.values())
        planned = regime.plan(n, REAL, kept)
        assert all(p.first + p.size <= REAL and p.take > 0 for p in planned if p.source == "real")


@pytest.mark.parametrize(
    ("mixing", "key"),
    [
        (Mixing(real=Real("fixed", 10), by="ratio", value=3.0), "value"),
        (Mixing(real=Real("fixed", 10), by="fraction", value=0.1, budget=Budget("fixed", 40)), "value"),
        (Mixing(real=Real("none", 10), budget=Budget("fixed", 40)), "budget.n"),
        (Mixing(real=Real("none", 10), budget=Budget("schedule", 10, power=2.0)), "budget.n"),
    ],
)
def test_more_than_a_recipe_can_make_is_refused_before_any_round(mixing: Mixing, key: str) -> None:
    regime = always(mixing, 2)
    regime.check_available(10, 10, {1: 90, 2: 90})
    regime.check_available(10, 10)  # only the round knows how many there are
    with pytest.raises(UserError) as refused:
        regime.check_available(10, 10, {1: 20, 2: 20})
    assert refused.value.key == f"mixing.{key}"


def test_a_scheduled_count_moves_what_is_fresh_afterwards() -> None:
    few, many = (Mixing(real=Real("fresh", n), window="last") for n in (5, 20))
    regime = Regime((few, many, few, few))
    rows = [
        (p.first, p.size)
        for n in range(4)
        for p in regime.plan(n, 40, dict.fromkeys(range(1, 4), 5))
        if p.source == "real"
    ]
    assert rows == [(0, 5), (5, 20), (25, 5), (30, 5)]
    with pytest.raises(
        UserError, match=r"schedule\.1\.mixing\.real\.n=20: needs 35 real training records over rounds 0 to 3"
    ):
        regime.check_available(24, 5)


@pytest.mark.parametrize("value", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("synthetic", range(1, 40))
def test_a_share_takes_as_much_as_the_scarcer_side_allows(value: float, synthetic: int) -> None:
    """In exact arithmetic: 3 / (1 - 0.7) is 9.999... in floats."""
    mixing = Mixing(real=Real("fixed", 30), by="fraction", value=value)
    share = Fraction(str(value))
    taken = {p.name: p.take for p in mixing.plan(1, 30, {1: synthetic}, used=30)}
    whole = sum(taken.values())
    assert whole == min(Fraction(30) / share, Fraction(synthetic) / (1 - share)) // 1
    assert abs(taken.get("real", 0) - share * whole) <= Fraction(1, 2)


def test_a_request_is_refused_by_the_key_that_made_it(tmp_path: Path) -> None:
    data, kept = make(tmp_path, 10, [5, 5])
    large = Mixing(real=Real("fixed", 10), budget=Budget("fixed", 99), replacement=False, window="last")
    regime = Regime((Mixing(real=Real("fixed", 10)), Mixing(real=Real("fixed", 10)), large))
    with pytest.raises(UserError, match=r"schedule\.2\.mixing\.budget\.n=99"):
        mix(regime, TEXT, 2, data, {2: kept[2]}, tmp_path / "out", 0)
    ratio = Mixing(real=Real("fixed", 10), by="ratio", value=3.0)
    with pytest.raises(UserError, match=r"schedule\.1\.mixing\.value=3"):
        mix(Regime((large, ratio)), TEXT, 1, data, {1: kept[1]}, tmp_path / "out", 0)
    with pytest.raises(UserError, match=r"^mixing\.value=3"):
        mix(Regime((ratio, ratio)), TEXT, 1, data, {1: kept[1]}, tmp_path / "out", 0)


def test_round_zero_may_have_a_size_of_its_own(tmp_path: Path) -> None:
    data, kept = make(tmp_path, 40, [5, 5])
    mixing = Mixing(real=Real("fresh", 10, first=3), window="last")
    used = [sets(mixed(mixing, n, data, kept, tmp_path / str(n))[1]) for n in range(3)]
    assert [sorted(int(t[1:]) for t in u if t[0] == "r") for u in used] == [
        list(range(3)),
        list(range(3, 13)),
        list(range(13, 23)),
    ]


def test_schedule_grows_with_its_power(tmp_path: Path) -> None:
    assert [Budget("schedule", 10, 1.5).records(n) for n in (1, 2, 3)] == [10, 28, 52]
    data, kept = make(tmp_path, 10, [60, 60])
    mixing = Mixing(real=Real("none", 10), window="last", budget=Budget("schedule", 10, 1.5))
    assert mixed(mixing, 2, data, kept, tmp_path / "out")[0]["requested"] == 28


# -- bytes ---------------------------------------------------------------------------------------------------------


def test_whole_shards_are_hard_links(tmp_path: Path) -> None:
    data, kept = make(tmp_path, 10, [10, 10, 10, 10])
    mixing = Mixing(real=Real("fixed"), window="all")
    for n in range(5):
        result, _ = mixed(mixing, n, data, kept, tmp_path / "train" / str(n))
        for shard in result["shards"]:
            source = data if shard["origin"] == "real" else kept[shard["generation"]]
            assert (tmp_path / "train" / str(n) / shard["file"]).samefile(source)
    shards = list((tmp_path / "train").rglob("*.parquet"))
    assert len(shards) == 15  # O(n^2) names,
    assert len({p.stat().st_ino for p in shards}) == 5  # O(n) files


def test_accumulating_run_stores_each_kept_file_once(main, tiny) -> None:
    """The same in a run: the shards of every round, the kept records and the store are one file each."""
    run = main("run", *tiny, "mixing=accumulate", "rounds=3")
    assert run.code == 0, run.err
    inodes: dict[int, list[int]] = {}
    for n in range(4):
        for shard in json.loads((run.folder / f"rounds/{n:02d}/train/mix.json").read_text())["shards"]:
            path = run.folder / f"rounds/{n:02d}/train/{shard['file']}"
            inodes.setdefault(shard["generation"], []).append(path.stat().st_ino)
            if shard["generation"]:
                assert path.samefile(run.folder / f"rounds/{shard['generation']:02d}/kept.parquet")
    assert {g: len(v) for g, v in inodes.items()} == {0: 4, 1: 3, 2: 2, 3: 1}
    assert all(len(set(v)) == 1 for v in inodes.values())


def test_how_a_record_ended_goes_with_it(tmp_path: Path) -> None:
    """Also where a part of a round is chosen: a training must not take a record that was cut off for a whole one."""
    data, kept = make(tmp_path, 10, [8])
    table = records.read(kept[1])
    finish = [records.CUT if i % 3 else records.ENDED for i in range(len(table))]
    records.write(records.with_finish(table, finish), kept[1])
    wanted = dict(zip(table.column("text").to_pylist(), finish, strict=True))
    mixing = Mixing(real=Real("fixed"), window="last", synthetic=Synthetic(n=5))
    result, _ = mixed(mixing, 1, data, kept, tmp_path / "out")
    (shard,) = (s for s in result["shards"] if s["origin"] == "synthetic")
    chosen = records.read(tmp_path / "out" / shard["file"])
    assert len(chosen) == 5
    for text, cut in zip(chosen.column("text").to_pylist(), records.cut_off(chosen), strict=True):
        assert cut == (wanted[text] == records.CUT)


@pytest.mark.parametrize("rows", [[], [0], [1, 1, 1, 4], range(5, 9000, 7)])
def test_what_is_chosen_is_written_as_it_was(tmp_path: Path, rows: Sequence[int]) -> None:
    """The same bytes as choosing from the whole table in memory; in portions, the same records."""
    texts = [f"{i} é" * (i % 50) for i in range(9000)]
    source, target = tmp_path / "source.parquet", tmp_path / "target.parquet"
    table = records.make_table({"text": texts}, origin="real", generation=0, recipe="c")
    records.write(records.with_finish(table, ["end"] * 9000), source)
    chosen = np.asarray(rows, dtype=np.int64)
    records.choose(source, chosen, target)
    records.write(records.read(source).take(pa.array(chosen)), tmp_path / "plain.parquet")
    assert target.read_bytes() == (tmp_path / "plain.parquet").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARE", 1000)
        records.choose(source, chosen, target)
    assert records.read(target).equals(records.read(source).take(pa.array(chosen)))
    assert len(chosen) < 100 or pq.ParquetFile(target).num_row_groups > 3


@pytest.mark.faults
def test_texts_of_more_than_two_gibibytes(tmp_path: Path) -> None:
    """Arrow's offsets have 32 bits, and neither choosing nor reading takes a column whole."""
    source, text = tmp_path / "source.parquet", "The river keeps the old garden. " * (1 << 15)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(source, schema, compression="zstd") as file:
        for at in range(0, 2300, 100):
            ids = [str(i) for i in range(at, at + 100)]
            file.write_table(pa.table({"id": ids, "text": [f"{i} {text}" for i in ids]}, schema))
    with pytest.raises(pa.ArrowException, match="overflow"):
        records.read(source).take(pa.array(np.arange(5, 2300)))
    records.choose(source, np.arange(5, 2300), tmp_path / "target.parquet")
    read = [len(t) for part in records.batches(tmp_path / "target.parquet", ["text"]) for t in part["text"].to_pylist()]
    assert len(read) == 2295 and sum(read) > 1 << 31
