"""report.html, and what it is made of: arms over seeds, marks in texts, charts."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig
from scipy import stats

from genloss.core import records
from genloss.core.errors import UserError
from genloss.core.files import write_atomic
from genloss.core.plugin import locate
from genloss.core.words import standing, terms
from genloss.evaluate import Metric
from genloss.observatory import controls, definitions, readings, report, svg, verdict, verdict_words
from genloss.observatory.figures import rounds_figure
from genloss.observatory.groups import band, grouped
from genloss.observatory.page import page
from genloss.observatory.report import PAGE, write_report, write_summary
from genloss.observatory.results import arms_of, is_metric
from genloss.observatory.tables import spans
from genloss.workflow.compose import compose, to_yaml
from genloss.workflow.identity import differing, told
from support import REPOSITORY, Project, staged, undocumented

CHROMIUM = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
HOSTILE = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"><!-- ",
    "\x1b[31mred\x1b[0m \u202edesrever\u202c \u0645\u0631\u062d\u0628\u0627",
    "=HYPERLINK(\"http://x\") & 'quotes' | pipes",
    "x" * 10_000_000,
]


def arm(folder: Path, texts: Sequence[Sequence[str]], real: Sequence[str] = ("a b",), **values: Any) -> Path:
    """A run directory: texts that each round made from 1 on, metrics that fall."""
    overrides = [f"{key}={value}" for key, value in values.items() if key != "metrics"]
    write_atomic(folder / "params.yaml", to_yaml(compose([*overrides, f"rounds={len(texts)}"])))
    records.write(
        records.make_table({"text": list(real)}, origin=records.REAL, generation=0, recipe="corpus/train"),
        folder / "rounds/00/train/00-real.parquet",
    )
    for n in range(len(texts) + 1):
        if n:
            made = records.make_table({"text": list(texts[n - 1])}, origin=records.SYNTHETIC, generation=n, recipe="s")
            records.write(made, folder / f"rounds/{n:02d}/generated.parquet")
        shards = [{"generation": g, "realised": 10} for g in range(n + 1)]
        made = staged(mix={"result": {"shards": shards}, "seconds": 1.0}, train={"seconds": 2.0})
        write_atomic(folder / f"rounds/{n:02d}/manifest.json", made)
        metrics = {"heldout_bits_per_byte": 2.0 + n, "distinct_2": 0.5, "distinct_2_floor": 0.8}
        write_atomic(folder / f"rounds/{n:02d}/metrics.json", json.dumps(metrics | values.get("metrics", {})))
    return folder


class Elements(HTMLParser):
    """The elements of a page, and the texts that it shows side by side."""

    def __init__(self, html: str):
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


def browsed(path: Path, tmp_path: Path) -> str:
    """The page's elements after its scripts have run."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: how a browser shows the page is not tested")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_hostile_records_are_text_in_the_browser(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [HOSTILE])
    write_report([("<b>bold</b> =1+1", folder)], folder / "report", html=folder / PAGE)
    assert "<b>" not in (folder / "report/report.md").read_text()
    html = (folder / PAGE).read_text()
    assert len(html) < 500_000
    before = Elements(html)
    assert before.names.count("script") == 2 and "img" not in before.names and "b" not in before.names
    shown = browsed(folder / PAGE, tmp_path)
    after = Elements(shown)
    assert after.names.count("script") == 2 and "img" not in after.names
    assert re.search("<title>run</title>", shown) and "&lt;script&gt;document.title" in shown
    assert "\x1b" not in shown and "\u202e" not in shown and "10,000,000 characters" in shown
    assert "\u0645\u0631" in shown


def test_a_page_names_no_address(tmp_path: Path) -> None:
    """It opens without a network: nothing is loaded, and its policy would let nothing load."""
    folder = arm(tmp_path / "run", [["a b c"]])
    write_report([("run", folder)], folder / "report", html=folder / PAGE)
    found = Elements((folder / PAGE).read_text())
    assert {value[0] for tag, name, value in found.attributes if name in ("src", "href")} == {"#"}
    assert any("default-src 'none'" in value for _, _, value in found.attributes)
    assert "Licen" in (Path(readings.__file__).parent / "static/uPlot.LICENSE").read_text()


def test_metrics_that_were_asked_for_are_among_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the domain's own: by their names, by what a metric is about, and those that were added later."""
    numbers = {"vendi": 5.0, "on_topic": 0.5, "repetition": 0.1, "loops": 0.2, "coverage_d1": 0.3, "topic_cosine": 0.1}
    folder = arm(tmp_path / "run", [["a"]], metrics=numbers)
    chosen = "metrics=[heldout,diversity,repetition,topics,vendi]"
    write_atomic(folder / "params.yaml", to_yaml(compose(["rounds=1", chosen])))
    manifest = json.loads((folder / "rounds/01/manifest.json").read_text())
    manifest["added"] = {"loops": {"key": "", "files": {}, "result": {"loops": 0.2}, "seconds": 0.0}}
    (folder / "rounds/01/manifest.json").write_text(json.dumps(manifest))
    drawn: list[list[str]] = []
    monkeypatch.setattr(report, "rounds_figure", lambda groups, path, metrics, also: drawn.append(list(metrics)))
    write_report([("run", folder)], folder / "report", html=folder / PAGE)
    assert drawn == [["heldout_bits_per_byte", "coverage_d1", "on_topic", "vendi", "loops"]]
    told = re.findall('data-metric="([^"]+)"', (folder / PAGE).read_text())
    assert told[:5] == drawn[0] and set(told[5:]) == {"distinct_2", "repetition", "topic_cosine"}
    write_summary(folder)
    assert {"vendi", "on_topic", "loops"} <= json.loads((folder / "summary.json").read_text()).keys()


def test_what_a_metric_is_about_is_a_number_of_it() -> None:
    """Of every option, as docs/metrics.md has them; else the report would leave it out without a word."""
    for file in sorted((REPOSITORY / "conf/metrics").glob("*.yaml")):
        node = yaml.safe_load(file.read_text())[file.stem]
        panels = locate(node["_target_"], Metric, "metrics").panels
        assert panels is None or not undocumented(panels), file


def test_cells_begin_no_formula(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["a"]], metrics={"drift": -0.5})
    write_report([("=cmd|' /C calc'!A0", folder), ("@x", folder), ("plain", folder)], tmp_path)
    rows = list(csv.DictReader((tmp_path / "rounds.csv").open()))
    assert {row["arm"] for row in rows} == {"'=cmd|' /C calc'!A0", "'@x", "plain"}
    assert float(rows[0]["drift"]) == -0.5


def test_bands_are_t_intervals() -> None:
    values = [1.0, 1.5, 3.0, 2.2]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert band(values) == pytest.approx((sum(values) / 4, low, high))
    assert math.isnan(band([1.0]).low)


def swept(tmp_path: Path, seeds: Sequence[int] = (0, 1, 2)) -> list[tuple[str, Path]]:
    found = []
    for mixing in ("real_only", "replace"):
        for seed in seeds:
            rise = {"loss_under_round0": 1.0 + seed}
            folder = arm(tmp_path / f"{mixing}{seed}", [["a b"], ["b c"]], mixing=mixing, seed=seed, metrics=rise)
            found.append((f"{mixing} seed {seed}", folder))
    return found


def test_arms_that_differ_in_their_seed_are_one_row(tmp_path: Path) -> None:
    arms = swept(tmp_path)
    text = write_report(arms, tmp_path / "out", "loss_under_round0", differing=differing(arms))
    assert [line.split()[:4] for line in text.splitlines()[4:6]] == [
        ["real_only", "3", "2.000", "±2.484"],
        ["replace", "3", "2.000", "±2.484"],
    ]
    rows = list(csv.DictReader((tmp_path / "out/rounds.csv").open()))
    assert list(rows[0])[:4] == ["arm", "round", "mixing", "seed"] and len(rows) == 18
    assert {row["seed"] for row in rows if row["mixing"] == "replace"} == {"0", "1", "2"}


def drawn_names(html: str) -> list[str]:
    """The names of the lines of a page's first chart."""
    return [series["name"] for series in next(iter(data_of(html)["charts"].values()))["series"]]


def data_of(html: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)[0])


def test_groups_of_run_directories_are_called_by_what_differs(tmp_path: Path) -> None:
    """Names of folders hold no "seed N"."""
    arms = [(folder.name, folder) for _, folder in swept(tmp_path)]
    text = write_report(arms, tmp_path, None, True, differing(arms), [], tmp_path / PAGE)
    assert re.search(r"^real_only +3 .*\nreplace +3 ", text, re.M)
    assert {(row["arm"], row["control"]) for row in verdict.read(tmp_path).rows} == {("replace", "real_only")}
    assert drawn_names((tmp_path / PAGE).read_text()) == ["real_only", "replace"]
    seeds = [arm for arm in arms if "replace" in arm[0]]
    assert [g.name for g in grouped(seeds, differing(seeds))] == ["all"]


def test_groups_of_two_sweeps_with_one_name_stay_apart(tmp_path: Path) -> None:
    """Each sweep names its arms by what differs in it alone, and no name of an arm comes twice."""
    arms = []
    for size, seeds in ((10, (0, 1, 2)), (20, (3, 4, 5))):
        for mixing in ("real_only", "replace"):
            for seed in seeds:
                folder = arm(tmp_path / f"{mixing}{seed}", [["a"]], mixing=mixing, seed=seed, size=size)
                arms.append((f"{mixing} seed {seed}", folder))
    groups = grouped(arms, differing(arms))
    assert [(g.name, [m.seed for m in g.members]) for g in groups] == [
        ("real_only size=10", [0, 1, 2]),
        ("replace size=10", [0, 1, 2]),
        ("real_only size=20", [3, 4, 5]),
        ("replace size=20", [3, 4, 5]),
    ]
    assert [(g.name, sorted(g.seeds)) for g in controls.compared(groups)] == [
        (g.name, [m.seed for m in g.members]) for g in groups
    ]
    alike = grouped([("a", arms[0][1]), ("a", arms[1][1])], [{}, {}])
    assert [(g.name, len(g.members)) for g in alike] == [("a #1", 1), ("a #2", 1)]
    assert [sorted(g.arms) for g in controls.compared(alike)] == [["a"], ["a"]]


def test_run_directories_are_named_by_what_differs(tmp_path: Path) -> None:
    """As the arms of a sweep are, so that a control is found by its regime; of two domains as well."""
    home = Project.make(tmp_path / "project")
    lab = ["domain=gaussian", "size=10", "domain.chains=10", "rounds=1", "tracking=none"]
    labs = [home.ok("run", *lab, f"mixing={m}", "seed=3").folder for m in ("real_only", "replace")]
    assert home.ok("report", str(labs[0])).out.splitlines()[4].startswith(labs[0].name)  # alone: nothing differs
    done = home.ok("report", *map(str, labs), "--control", "real_only").out
    assert re.search(r"^real_only  .*\nreplace  ", done, re.M) and "1 seed that both have" in done
    texts = [arm(tmp_path / f"text-{m}", [["a"]], mixing=m, seed=3) for m in ("real_only", "replace")]
    done = home.ok("report", *map(str, [*labs, *texts]), "--control", "real_only", "--out", str(tmp_path / "out")).out
    rows = verdict.read(tmp_path / "out").rows
    assert {(row["arm"], row["control"]) for row in rows} == {
        ("replace gaussian", "real_only gaussian"),
        ("replace text", "real_only text"),
    }
    html = (tmp_path / "out/report.html").read_text()
    assert html.index('data-metric="heldout_bits_per_byte"') < html.index("<h3>")  # among the first of both domains
    assert "· variance a dimension</span>" in html and "· bits/byte</span>" in html


def test_an_arm_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    """Its seed would count twice."""
    arms = swept(tmp_path)
    shutil.copytree(arms[0][1], tmp_path / "copy")
    arms.append(("copy", tmp_path / "copy"))
    with pytest.raises(UserError, match=r"copy: is the same arm as .*/real_only0; name one of them"):
        grouped(arms, differing(arms))


def test_names_are_text_in_markdown(tmp_path: Path) -> None:
    arms = [(name.replace("replace", "[re](x)|<b>"), folder) for name, folder in swept(tmp_path)]
    write_report(arms, tmp_path, differing=differing(arms), sweeps=[])
    words = (tmp_path / "report.md").read_text()
    assert "\\[re\\](x)\\|&lt;b>" in words and "[re]" not in words and "real_only" in words


def test_verdicts_of_other_arms_go(tmp_path: Path) -> None:
    arms = swept(tmp_path)
    write_report(arms, tmp_path, differing=differing(arms))
    assert verdict.read(tmp_path).rows
    write_report(arms[:1], tmp_path)
    assert not verdict.read(tmp_path).rows


def test_an_arm_that_failed_is_marked_and_its_change_is_not_mixed_with_others(tmp_path: Path) -> None:
    arms = swept(tmp_path)
    (arms[5][1] / "rounds/02/metrics.json").unlink()
    shutil.rmtree(arms[4][1] / "rounds")
    order = [name for name, _ in arms]
    write_atomic(tmp_path / "sweep.json", json.dumps({"arms": order}))
    for name, folder in arms:
        state = {"state": "failed", "error": "out of <memory>"} if folder == arms[5][1] else {"state": "finished"}
        write_atomic(tmp_path / f"arms/{name}.json", json.dumps({"name": name, "dir": folder.name} | state))
    assert arms_of(tmp_path) == arms
    groups = grouped(arms, differing(arms), [tmp_path])
    assert [[m.unfinished for m in g.members] for g in groups] == [
        ["", "", ""],
        ["", "unfinished, no finished round", "failed after round 1 of 2: out of <memory>"],
    ]
    text = write_report(arms, tmp_path, None, True, differing(arms), [tmp_path], tmp_path / PAGE)
    assert re.search(r"replace +1 of 3 +2\.000 .*\+2\.000$", text, re.M)  # not +1.000, what the failed one had risen
    assert "replace seed 2: failed after round 1 of 2: out of <memory>" in text
    html = (tmp_path / PAGE).read_text()
    assert "failed after round 1 of 2: out of &lt;memory&gt;" in html and "(unfinished)" in html


def test_a_damaged_arm_costs_a_line_and_no_report(tmp_path: Path) -> None:
    arms = swept(tmp_path)
    (arms[4][1] / "rounds/01/metrics.json").write_text('{"entropy_1": NaN')
    text = write_report(arms, tmp_path / "out", "loss_under_round0", differing=differing(arms))
    assert "replace seed 1: left out: " in text and "metrics.json: is damaged" in text
    for damaged in ("{", "{}", '{"stages": {"mix": {}}}'):
        (arms[4][1] / "rounds/01/manifest.json").write_text(damaged)
        said = write_report(arms, tmp_path / "out", "loss_under_round0", differing=differing(arms))
        assert "rounds/01/manifest.json: is damaged" in said and "real_only" in said
    for _, folder in arms:
        (folder / "rounds/01/metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"left out: \S*metrics.json: is damaged"):
        write_report(arms, tmp_path / "out", "loss_under_round0", differing=differing(arms))


def test_verdicts_come_first(tmp_path: Path) -> None:
    groups = grouped(arms := swept(tmp_path), differing(arms))
    row = dict.fromkeys(verdict.KEYS) | {"arm": "replace", "control": "real_only", "seeds": 3, "reason": ""}
    yes = row | {"definition": "held-out <loss>", "verdict": "yes", "onset": 1}
    yes |= {"effect": math.log(2), "interval": [0.0, math.log(4)], "scale": "log ratio"}
    more = row | {"definition": "tails", "verdict": "cannot tell", "more_seeds": 4, "p": float("nan")}
    more |= {"missing_rounds": [2]}
    never = row | {"definition": "variance", "verdict": "not testable", "reason": "no <variance>"}
    none = row | {"definition": "none", "verdict": "no"}
    html = page(groups, ["heldout_bits_per_byte"], verdicts=[yes, more, never, none])
    assert "<b>replace</b>: collapse by 1 of 2 definitions, since round 1" in html
    assert html.index('id="verdicts"') < html.index('id="arms"') < html.index('id="metrics"')
    assert "held-out &lt;loss&gt;" in html and "no &lt;variance&gt;" in html and "4 more seeds may tell" in html
    assert "Against <b>real_only</b>" in html and "×2</td><td" in html and "1 to 4" in html
    assert "cannot tell†: 4 more seeds" in html and "† on fewer rounds than other arms" in html
    assert "●" in html and "yes†" not in html
    assert "No verdicts: they need" in page(groups, ["heldout_bits_per_byte"])
    lone = [
        row | {"definition": name, "verdict": "not testable", "reason": "no <control>"} for name in ("tail", "none")
    ]
    html = page(groups, ["heldout_bits_per_byte"], verdicts=lone)
    assert "verdicts: not testable: no &lt;control&gt;" in html and "Against <b>" not in html


def test_an_open_verdict_asks_for_seeds_in_one_way(tmp_path: Path) -> None:
    """In the page as in the text."""
    groups = grouped(arms := swept(tmp_path), differing(arms))
    row = dict.fromkeys(verdict.KEYS) | {
        "arm": "replace",
        "control": "real_only",
        "seeds": 3,
        "reason": "",
        "verdict": "cannot tell",
    }
    for seeds, words in ((1, "1 more seed"), (7, "7 more seeds"), (definitions.MOST, "over 1000 more seeds")):
        rows = [row | {"definition": name, "more_seeds": seeds} for name in (*definitions.DEFINITIONS, "none")]
        html = page(groups, ["heldout_bits_per_byte"], verdicts=rows)
        assert f"cannot tell by 8 of 8 definitions; {words} may tell" in html and f"cannot tell: {words}<" in html
        assert f"cannot tell: {words} " in verdict_words.shown(rows)


@pytest.mark.parametrize(
    ("numbers", "said"), [((), ""), ((3,), "3"), ((1, 0), "0, 1"), ((0, 1, 2, 4, 9, 8, 7), "0 to 2, 4, 7 to 9")]
)
def test_numbers_in_short(numbers: Sequence[int], said: str) -> None:
    assert spans(numbers) == said


def test_many_arms_stay_readable(tmp_path: Path) -> None:
    """What many say is said once, a control that differs stands beside its arm, and a box chooses arms by name."""
    arms = []
    for size in (10, 20, 30, 40, 50, 60):
        for mixing, rise in (("real_only", 0.0), ("replace", 1.0)):
            for seed in range(3):
                metrics = {"heldout_bits_per_byte": 2.0 + rise + 0.01 * seed}
                folder = arm(
                    tmp_path / f"{mixing}{size}{seed}", [["a"]], mixing=mixing, size=size, seed=seed, metrics=metrics
                )
                arms.append((f"{mixing} size={size} seed {seed}", folder))
    text = write_report(arms, tmp_path, differing=differing(arms), html=tmp_path / PAGE)
    html = (tmp_path / PAGE).read_text()
    three = "replace size=10, replace size=20, replace size=30"
    assert f"<li><b>{three} and 2 more</b>: collapse by 1 of 2 definitions" in html
    assert "<li><b>replace size=60</b>: collapse by 1 of 3 definitions" in html  # scaling is said of the largest
    assert "Against the control of each" in html and "<td>real_only size=20</td><td><span" in html
    assert html.count('class="part p0"') == 3 and "<td>0 to 2</td>" in html  # one figure of two rounds, and the legend
    assert f"the largest of its sizes ({three} and 2 more)" in text and 'id="arms-named"' in html
    few = [(name, folder) for name, folder in arms if "size=10 " in name]
    write_report(few, tmp_path, differing=differing(few), html=tmp_path / PAGE)
    html = (tmp_path / PAGE).read_text()
    assert "Against <b>real_only size=10</b>" in html and "arms-named" not in html.split("<script", 1)[0]


def test_what_is_wrong_with_many_arms_is_said_once(tmp_path: Path) -> None:
    arms = []
    for seed in range(6):
        folder = arm(tmp_path / str(seed), [["a"]], seed=seed, metrics={"train_real_fraction": 1, "train_records": 64})
        if seed < 5:
            write_atomic(folder / "rounds/00/training.csv", f"step,validation_loss\n2,3\n4,3.{5 + seed // 4}\n")
        arms.append((f"a seed {seed}", folder))
    text = write_report(arms[:4], tmp_path, html=tmp_path / PAGE)
    assert "warning: a seed 0, a seed 1, a seed 2, a seed 3: in round 0 the loss on validation turned: 3.000 at" in text
    text = write_report(arms, tmp_path, html=tmp_path / PAGE)
    for said in (text, (tmp_path / "report.md").read_text(), (tmp_path / PAGE).read_text()):
        assert said.count("loss on validation turned") == 1
        assert "warning: a seed 0, a seed 1, a seed 2 and 2 more (numbers of the first): in round 0" in said


def test_a_legend_of_many_names_fits_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.pyplot as plt

    seen = []
    close = plt.close

    def look(figure: Any) -> None:
        box, (axis, *_) = figure.legends[0].get_window_extent(), figure.axes
        seen.append((box, figure.bbox, axis.get_window_extent().height))
        close(figure)

    monkeypatch.setattr(plt, "close", look)
    folder = arm(tmp_path / "run", [["a"]])
    for count in (2, 40):
        arms = [(f"a rather long name of an arm {i}", folder) for i in range(count)]
        rounds_figure(grouped(arms, [{"name": name} for name, _ in arms]), tmp_path / "a.png", ["distinct_2"] * 2)
    for legend, figure, _ in seen:
        assert legend.x0 >= 0 and legend.x1 <= figure.x1 and legend.y0 >= 0
    assert seen[1][2] == pytest.approx(seen[0][2], rel=0.1)  # the panels are as high as those of few


def marked(groups: Any, n: int) -> dict[str, str]:
    """{mark: text} of the first record of round n."""
    (first, *_) = readings.side_by_side(groups, [1, 2])
    return {marks: text for text, marks in first.cells[0, n].pieces if marks}


def test_loops_copies_and_lost_words_are_marked(tmp_path: Path) -> None:
    real = "the quick brown fox jumps over the lazy dog again"
    texts = [f"so {real.upper()} and more", "go on, go on, go on, go on"]
    folder = arm(tmp_path / "run", [[texts[0]], [texts[1]]], [real])
    groups = grouped([("run", folder)], [{}])
    first = marked(groups, 1)
    assert set(first) == {"copy", "copy lost"} and "QUICK" not in first["copy"].split()
    assert marked(groups, 2) == {"loop": "go on, go on, go on, "}
    cells = readings.side_by_side(groups, [1, 2])[0].cells
    assert ["".join(text for text, _ in cells[0, n].pieces) for n in (1, 2)] == texts


@pytest.mark.parametrize(
    "text", ["It's 12 o'clock", "日本語 and ไทย text", "a_b--c! \u0130stanbul caf\u00e9s", "", "...", "\u3000一二34三"]
)
def test_terms_stand_where_they_are(text: str) -> None:
    found = standing(text)
    assert [term for term, _, _ in found] == terms(text)
    assert all(text[a:b].lower() == term for term, a, b in found)


def test_texts_of_a_file_that_was_written_again_are_new(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["old"]])
    assert readings.generated(folder, 1)[0][0]["text"] == "old"
    arm(folder, [["new text"]])
    assert readings.generated(folder, 1)[0][0]["text"] == "new text"


def test_long_prompts_are_cut(tmp_path: Path) -> None:
    """In the page, and in the table that MLflow has."""
    folder = arm(tmp_path / "run", [["a"]])
    made = records.make_table(
        {"prompt": ["p" * 10_000], "response": ["r" * 10_000]}, origin="real", generation=1, recipe="s"
    )
    records.write(made, folder / "rounds/01/generated.parquet")
    assert [tuple(map(len, row)) for row in readings.first_texts(folder, 1, 8)] == [(600, 600, 0)]
    (prompt,) = readings.side_by_side(grouped([("run", folder)], [{}]), [1])
    assert prompt.text == "p" * 600 + " … (10,000 characters)"
    text = "".join(text for text, _ in prompt.cells[0, 1].pieces)
    assert text == "r" * 600 + " … (10,000 characters)"


def test_one_prompt_stands_beside_itself(tmp_path: Path) -> None:
    folders = [arm(tmp_path / str(i), [["x", "y"]] * 2) for i in range(2)]
    for i, folder in enumerate(folders):
        prompts = records.make_table({"text": ["one", "two"]}, origin=records.REAL, generation=0, recipe="corpus")
        records.write(prompts, folder / "data/prompts.parquet")
        ids = prompts["id"].to_pylist()
        for n in (1, 2):  # in another order in each round and arm
            order = [0, 1] if (i + n) % 2 else [1, 0]
            made = records.make_table(
                {"text": [f"goes on from {('one', 'two')[k]}" for k in order]},
                origin=records.SYNTHETIC,
                generation=n,
                recipe="sample",
                parents=[[ids[k]] for k in order],
            )
            records.write(made, folder / f"rounds/{n:02d}/generated.parquet")
    found = readings.side_by_side(grouped([(f.name, f) for f in folders], [{}, {}]), [1, 2])
    assert [prompt.text for prompt in found] == ["one", "two"]
    for prompt in found:
        assert set(prompt.cells) == {(0, 1), (0, 2), (1, 1), (1, 2)}
        for cell in prompt.cells.values():
            assert "".join(text for text, _ in cell.pieces) == f"goes on from {prompt.text}"


def test_a_conversation_stands_under_what_was_asked(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["x"]])

    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "how old?"}, {"role": "assistant", "content": answer}]

    made = records.make_table({"messages": [said("two")]}, origin=records.REAL, generation=0, recipe="corpus")
    records.write(made, folder / "data/prompts.parquet")
    answer = records.make_table(
        {"messages": [said("three")]},
        origin=records.SYNTHETIC,
        generation=1,
        recipe="respond",
        parents=[made["id"].to_pylist()],
    )
    records.write(answer, folder / "rounds/01/generated.parquet")
    (prompt,) = readings.side_by_side(grouped([("run", folder)], [{}]), [1])
    assert prompt.text == "user: how old?"
    assert "".join(text for text, _ in prompt.cells[0, 1].pieces) == "user: how old?\nassistant: three"


def test_a_manifest_that_says_nothing_costs_no_report(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["a"]])
    for shards, seconds in (([{"generation": 0}], "soon"), ("none", None), ([3], {})):
        made = staged(mix={"result": {"shards": shards}, "seconds": seconds}, train={"seconds": 2.0})
        write_atomic(folder / "rounds/01/manifest.json", made)
        write_report([("run", folder)], tmp_path, html=tmp_path / PAGE)
        assert readings.composition(folder, 1) == {} and readings.composition(folder, 0) == {0: 10}
        assert readings.costs(grouped([("run", folder)], [{}])[0].members[0]) == {"mix": 1.0, "train": 4.0}
    write_atomic(folder / "rounds/01/manifest.json", '{"stages": [1]}')
    assert readings.composition(folder, 1) == {}


def test_what_rounds_were_made_of(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["a a b"], ["a c"]], ["a b b d"])
    (group,) = grouped([("run", folder)], [{}])
    assert readings.composition(folder, 2) == {0: 10, 1: 10, 2: 10}
    assert readings.costs(group.members[0]) == {"mix": 3.0, "train": 6.0}
    counts = readings.word_counts([group])
    assert counts["real"][:3] == [2, 1, 0] and counts["arms"] == {0: [2, 0, 0, 0, 0, 0, 0, 0]}
    (folder / "rounds/01/manifest.json").write_text("{")
    (folder / "rounds/01/generated.parquet").write_bytes(b"PAR1")
    assert readings.composition(folder, 1) == {} and readings.texts(folder / "rounds/01/generated.parquet") == ([], "")


def test_a_chart_takes_numbers_that_are_none_and_one_round(tmp_path: Path) -> None:
    nan = float("nan")
    assert svg.lines("all nan", [svg.Series("a", 0, [0, 1], [nan, nan])]) == ""
    drawn = svg.lines("one <b>", [svg.Series("a & b", 0, [0], [1.0], [nan], [nan])])
    assert "nan" not in drawn and "one &lt;b&gt;" in drawn and "a &amp; b" in drawn
    assert "nan" not in svg.lines("gap", [svg.Series("a", 0, [0, 1, 2], [1.0, nan, 2.0])])
    assert svg.ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0][: len(svg.ticks(0.0, 1.0))])
    assert [svg.number(v) for v in (0.0, 12345.6, 0.00001234, 1e9, 0.123456)] == [
        "0",
        "12,346",
        "1.23e-5",
        "1.00e9",
        "0.1235",
    ]
    folder = arm(tmp_path / "run", [["a"]], metrics={"broken": nan})
    write_report([("run", folder)], tmp_path, html=tmp_path / PAGE)
    assert '"y":[null,null]' in (tmp_path / PAGE).read_text()


def test_twelve_arms_of_three_seeds_fit_a_page(tmp_path: Path) -> None:
    texts = [[f"some text {i} {n} " * 60 for i in range(20)] for n in range(5)]
    metrics = {f"metric_{i}": i / 7 for i in range(60)} | {f"metric_{i}_floor": i / 9 for i in range(60)}
    first = arm(tmp_path / "first", texts, metrics=metrics)
    arms = []
    configs: list[DictConfig] = []
    for i in range(12):
        for seed in range(3):
            folder = tmp_path / f"{i}-{seed}"
            shutil.copytree(first, folder)
            cfg = compose(["rounds=5", f"size={i + 10}", f"seed={seed}"]) if not configs else configs[0].copy()
            cfg.size, cfg.seed = i + 10, seed
            configs.append(cfg)
            arms.append((f"size={i + 10} seed {seed}", folder))
    differs = [{"size": cfg.size, "seed": cfg.seed} for cfg in configs]
    write_report(arms, tmp_path / "out", None, True, differs, [], tmp_path / "out" / PAGE)
    assert (tmp_path / "out" / PAGE).stat().st_size < 2_000_000
    html = (tmp_path / "out" / PAGE).read_text()
    assert html.count("<figure") >= 62 and html.count('data-style="s') == 12


def test_parts_of_the_metrics_say_what_they_cannot_see(tmp_path: Path) -> None:
    metrics = {"loops": 0.1, "overlap_exact": 0.2, "train_real": 10.0, "vendi": 3.0}
    folder = arm(tmp_path / "run", [["a"]], metrics=metrics)
    write_report([("run", folder)], tmp_path, html=tmp_path / PAGE)
    html = (tmp_path / PAGE).read_text()
    marks = ["<h3>Semantic validity", "whether a statement is true", "Above: <code>heldout_bits_per_byte</code>"]
    marks += ["<h3>Syntactic validity", "no parser judges grammar", 'data-metric="loops"', "<h3>Epistemic validity"]
    marks += ["though it may be true", 'data-metric="overlap_exact"', "<h3>Others", 'data-metric="vendi"']
    at = [html.index(mark) for mark in marks]
    assert at == sorted(at)
    assert set(re.findall('data-metric="(.*?)"', html)) == {"heldout_bits_per_byte", "distinct_2", *metrics}
    folder = arm(tmp_path / "other", [["a"]])
    write_report([("run", folder)], tmp_path, html=tmp_path / PAGE)
    assert "Epistemic" not in (tmp_path / PAGE).read_text()


def test_metrics_that_are_one_distribution_are_one_chart(tmp_path: Path) -> None:
    bins = {f"loss_bin_{i:02d}{kind}": i / 190 for i in range(20) for kind in ("", "_floor")}
    parts = {f"group_loss/{name}": 1.0 for name in ("band1", "band2", "<rest>")} | {"group_records/band1": 30.0}
    folder = arm(tmp_path / "run", [["a"], ["b"]], metrics=bins | parts | {"group_loss_worst": 2.0})
    write_report([("run", folder)], tmp_path, html=tmp_path / PAGE)
    html = (tmp_path / PAGE).read_text()
    drawn = set(re.findall('data-metric="(.*?)"', html))
    assert drawn == {"heldout_bits_per_byte", "distinct_2", "group_loss_worst"}
    assert html.count("records by their loss under the round-0 model</figcaption>") == 1
    losses = html[html.index('<section id="groups">') :]
    assert losses.count("<title>band") == 2 and "&lt;rest&gt;</li>" in losses


def test_the_figure_is_written_as_svg_too(tmp_path: Path) -> None:
    folder = arm(tmp_path / "run", [["a"]])
    for name in ("a", "b"):
        write_report([("run <b>", folder)], tmp_path / name)
    drawn = (tmp_path / "a/rounds.svg").read_bytes()
    assert drawn.startswith(b"<?xml") and b"<dc:date>" not in drawn
    assert drawn == (tmp_path / "b/rounds.svg").read_bytes()  # what DVC compares


def test_times_and_they_alone_are_left_out_of_the_csv(tmp_path: Path) -> None:
    metrics = {"group_loss/second_term": 1.0, "seconds/train": 2.0, "tokens_per_second/train": 3.0}
    folder = arm(tmp_path / "run", [["a"]], metrics=metrics)
    write_report([("run", folder)], tmp_path)
    head = (tmp_path / "rounds.csv").read_text().splitlines()[0].split(",")
    assert set(metrics) & set(head) == {"group_loss/second_term"}
    found = [k for k in (*metrics, "distinct_2", "distinct_2_floor", "accuracy_se", "n_kept") if is_metric(k)]
    assert found == ["group_loss/second_term", "distinct_2"]


def test_a_page_says_how_it_is_made_again(tmp_path: Path) -> None:
    arms = swept(tmp_path)
    write_report(arms, tmp_path, None, True, differing(arms), [], tmp_path / PAGE, control="replace")
    assert " --control replace</code>" in (tmp_path / PAGE).read_text()


def test_what_tells_arms_apart() -> None:
    configs = [compose([f"mixing={m}", f"seed={s}", "rounds=1"]) for m in ("replace", "accumulate") for s in (0, 1)]
    assert told(configs) == [{"mixing": m, "seed": s} for m in ("replace", "accumulate") for s in (0, 1)]
    assert told(configs[:1]) == [{}] and told([]) == []
    sizes = [compose([f"seed={s}", f"size={size}"]) for s, size in ((0, 10), (1, 10), (2, 20), (3, 20))]
    assert told(sizes) == [{"size": cfg.size, "seed": cfg.seed} for cfg in sizes]  # no seed says a size
    critics = [compose(["curation=critic", f"seed={s}", "rounds=1"]) for s in (0, 1)]
    assert told(critics) == [{"seed": 0}, {"seed": 1}]  # a path with the seed


def test_an_arm_is_finished_without_its_page(tmp_path: Path) -> None:
    home = Project.make(tmp_path / "project")
    tiny = ["domain=gaussian", "size=10", "domain.chains=10", "rounds=1", "tracking=none"]
    run = home.ok("run", *tiny).folder
    (run / PAGE).unlink()
    (run / PAGE).mkdir()  # which no page can take the place of
    done = home.ok("run", *tiny)
    assert "warning: the report is not made (" in done.err and "makes it" in done.err


def test_a_run_and_a_sweep_end_with_a_page(tmp_path: Path) -> None:
    """What the lab knows by theory is drawn; `dvc status` of an arm stays clean with a page beside it."""
    home = Project.make(tmp_path / "project")
    tiny = ["domain=gaussian", "size=10", "domain.chains=10", "rounds=1", "tracking=none"]
    one = home.ok("run", *tiny).folder
    assert "theory ± 2 standard errors" in (one / PAGE).read_text() and not list(one.glob("report/*.html"))
    page_data = re.search('id="data">(.*?)</script>', (one / PAGE).read_text())
    assert page_data is not None
    chart = json.loads(page_data[1])["charts"]["diversity"]  # what the zoomed figure is drawn from
    (theory,) = [guide for guide in chart["guides"] if guide["kind"] == "theory0"]
    known = [json.loads((one / f"rounds/{n:02d}/metrics.json").read_text()) for n in (0, 1)]
    assert theory["y"] == pytest.approx([values["theory/diversity"] for values in known], rel=1e-5)
    reach = [2 * values["diversity_se"] for values in known]
    assert [b - a for a, b in zip(theory["low"], theory["y"], strict=True)] == pytest.approx(reach, rel=1e-3)
    assert chart["unit"] == "variance a dimension" and "· variance a dimension</span>" in (one / PAGE).read_text()
    home.ok("report", str(one))
    assert home.dvc("status", cwd=one).strip().endswith("up to date.")
    sweep = home.ok("run", "-m", *tiny, "mixing=replace,accumulate").folder
    html = (sweep / PAGE).read_text()
    assert "accumulate" in html and "genloss run -m domain=gaussian" in html
    assert str(tmp_path) not in html
