"""An exported round is read by the libraries that it is made for, says what it is, and tells no path of the machine."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import Trained
from genloss.core import records
from genloss.core.hashes import sha256_file
from genloss.observatory.tables import marked_up
from genloss.observatory.verdict import KEYS
from genloss.workflow import export as exporting
from support import Project
from test_images import SMALL


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.make(tmp_path_factory.mktemp("export") / "project")


@pytest.fixture(scope="module")
def run(home: Project, tiny: list[str]) -> Path:
    """Round 2 trains on real records and those of rounds 1 and 2; the models of rounds 0 and 1 are not kept."""
    kind = ["mixing=accumulate", "curation=random", "recipe.prompts=real", "recipe.prompt_tokens=4", "keep.models=last"]
    return home.ok("run", *tiny, *kind).folder


@pytest.fixture(scope="module")
def out(home: Project, run: Path) -> Path:
    home.ok("export", str(run), "--to", "out")
    return home.root / "out"


READ = """
import json, sys, mlcroissant
found = mlcroissant.Dataset(jsonld=sys.argv[1])  # raises if it is not valid
sets = [each.uuid for each in found.metadata.record_sets]
print(json.dumps({name: list(found.records(name)) for name in sets}, default=lambda value:
    value.tolist() if hasattr(value, "tolist") else value.decode()))
"""


def read_by_mlcroissant(home: Project, out: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each record set. In a process of its own: absl, which mlcroissant logs with, closes the standard
    error of whoever configures logging after it."""
    done = home.spawn(sys.executable, "-c", READ, str(out / "croissant.json"))
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def said(out: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(out.rglob("*")):
        if path.suffix in (".md", ".json"):
            yield path, path.read_text(encoding="utf-8")


def test_datasets_loads_it_offline(out: Path, run: Path) -> None:
    from datasets import load_dataset

    loaded: Any = load_dataset(str(out))
    rows = loaded["train"].to_list()
    shards = [records.read(path) for path in sorted((run / "rounds/02/train").glob("*.parquet"))]
    assert [row["id"] for row in rows] == [name for shard in shards for name in shard["id"].to_pylist()]
    assert [row["text"] for row in rows] == [text for shard in shards for text in shard["text"].to_pylist()]
    assert {row["generation"] for row in rows} == {0, 1, 2} and {row["weight"] for row in rows} == {1.0}
    assert all((row["document"] is None) == (row["reason"] == "kept") for row in rows)  # real or not
    made: Any = load_dataset(str(out), "made")
    for split in ("kept", "rejected"):
        table = records.read(run / f"rounds/02/{split}.parquet")
        assert made[split].to_list() == table.to_pylist()


def test_transformers_loads_its_model(out: Path, run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from genloss.language.model import load

    tokens = AutoTokenizer.from_pretrained(out / "model")("The state keeps", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out / "model")(tokens).logits
        assert torch.equal(logits, load(run / "rounds/02/model")(tokens).logits)


def test_mlcroissant_validates_and_reads_it(home: Project, out: Path, run: Path) -> None:
    kept = records.read(run / "rounds/02/kept.parquet")
    rows = read_by_mlcroissant(home, out)["kept"]
    assert [row["kept/id"] for row in rows] == kept["id"].to_pylist()
    assert [row["kept/parents"] for row in rows] == kept["parents"].to_pylist()
    assert [row["kept/generation"] for row in rows] == kept["generation"].to_pylist()
    distribution = json.loads((out / "croissant.json").read_text())["distribution"]
    assert {file["@id"]: file["sha256"] for file in distribution} == {
        str(path.relative_to(out)): sha256_file(path) for path in out.rglob("*.parquet")
    }


def test_prov_reads_the_way_from_the_corpus_to_the_dataset(out: Path) -> None:
    """Back from what was exported: every stage of rounds 0 to 2 but the last evaluation, and nothing unknown."""
    from prov.model import ProvDerivation, ProvDocument, ProvGeneration, ProvUsage

    graph = ProvDocument.deserialize(str(out / "prov.json"), format="json")
    above: dict[str, set[str]] = {}
    for kind in (ProvDerivation, ProvGeneration, ProvUsage):
        for each in graph.get_records(kind):
            ends = [str(value) for _, value in each.formal_attributes[:2]]
            above.setdefault(ends[0], set()).add(ends[1])
    names = {str(each.identifier): str(each.label) for each in graph.get_records() if each.identifier}
    seen, left = set(), ["genloss:export/dataset", "genloss:export/model"]
    while left:
        this = left.pop()
        if this not in seen:
            seen.add(this)
            left += above.get(this, ())
    stages = {names[name] for name in seen if name.startswith("key:")}
    assert stages == {"data of round 0"} | {
        *(f"{stage} of round {n}" for stage in ("generate", "curate") for n in (1, 2)),
        *(f"{stage} of round {n}" for stage in ("mix", "train") for n in (0, 1, 2)),
    }
    assert {name.partition(":")[0] for name in seen} == {"run", "key", "genloss"}
    assert {name for name in seen if name.startswith("genloss:")} == {"genloss:export/dataset", "genloss:export/model"}


def test_the_cards_say_what_it_is_and_no_path(out: Path, run: Path, home: Project, corpus: Path) -> None:
    card = (out / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "unknown" and head["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in head["configs"]] == ["train", "made"]
    for words in (
        "## Lineage",
        "### Recipe",
        "### Mixing",
        "window: all",
        "## How to reproduce",
        "--license",
        "random",
    ):
        assert words in card
    assert "| 2 | 96 | 0.500 | 0.250 | 0.250 |" in card
    manifest = json.loads((run / "rounds/02/manifest.json").read_text())
    assert json.loads((out / "manifests/02.json").read_text()) == manifest
    assert all(entry["key"] in card for entry in manifest["stages"].values())
    model = (out / "model/README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(model.split("---\n")[1])["library_name"] == "transformers"
    for path, text in said(out):
        assert str(corpus) not in text and str(home.root) not in text, path


def test_a_round_whose_weights_went_says_what_brings_them(home: Project, run: Path) -> None:
    done = home.ok("export", str(run), "--round", "0", "--to", "zero", "--license", "cc-by-4.0")
    command = f"genloss model {run} --round 0"
    assert f"the weights of round 0 were not kept; `{command}` brings them" in done.err
    zero = home.root / "zero"
    assert not list(zero.rglob("*.safetensors")) and (zero / "model/tokenizer.json").is_file()
    model = (zero / "model/README.md").read_text()
    assert "`genloss model RUN --round 0` brings them" in model and str(run) not in model
    assert yaml.safe_load(model.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "made" not in yaml.safe_load((zero / "README.md").read_text().split("---\n")[1])["configs"][0].values()
    home.ok("model", str(run), "--round", "0")
    assert home.ok("export", str(run), "--round", "0", "--to", "again").err == ""
    assert (home.root / "again/model/model.safetensors").is_file()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--to", "new", "--round", "7"], "--round=7: has no training set; "),
        (["--to", "new", "--merge"], "--merge: there is nothing to merge in round 2: the model is no adapter"),
        (["--to", "new", "--round", "1", "--merge"], "its weights were not kept; genloss model "),
        (["--to", "new", "--push", "no name"], "--push=no name: is no repository; write OWNER/NAME"),
        (["--to", "new", "--license", "my own"], "--license=my own: is no identifier"),
        (["--to", "conf"], "--to=conf: is there already"),
        (["--to", "{run}/rounds/02/new"], "lies in data, rounds, report of the run"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    home: Project, run: Path, more: list[str], words: str
) -> None:
    before = sorted(home.root.iterdir())
    refused = home.call("export", str(run), *(each.format(run=run) for each in more))
    assert refused.code == 2 and words in refused.err and len(refused.refusals) == 1
    assert sorted(home.root.iterdir()) == before


def test_a_damaged_file_is_not_exported(home: Project, run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    path = mine / "rounds/02/train/00-real.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    refused = home.call("export", str(mine), "--to", str(tmp_path / "new"))
    assert refused.code == 2 and "is damaged or was edited" in refused.err and not (tmp_path / "new").exists()
    assert "is no run directory" in home.call("export", str(tmp_path), "--to", str(tmp_path / "new")).err


def test_without_a_network_the_export_stays_and_a_line_says_how_to_send_it(
    home: Project, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused = home.call("export", str(run), "--to", "kept", "--push", "someone/something")
    assert refused.code == 2 and refused.err.startswith("genloss: --push=someone/something: cannot be sent (")
    assert "is complete" in refused.err and "hf upload someone/something" in refused.err
    assert (home.root / "kept/README.md").is_file()


def test_large_tables_become_several_files(
    home: Project, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    monkeypatch.setattr(exporting, "LARGEST", 1)
    home.ok("export", str(run), "--to", str(tmp_path / "many"))
    assert len(list((tmp_path / "many/data/train").iterdir())) == 3  # a part of each shard
    loaded: Any = load_dataset(str(tmp_path / "many"), split="train")
    assert len(loaded) == 96
    assert [len(rows) for rows in read_by_mlcroissant(home, tmp_path / "many").values()] == [48, 24, 24, 24, 24]


def test_verdicts_of_a_sweep_are_in_the_card(home: Project, run: Path, tmp_path: Path) -> None:
    mine, sweep = tmp_path / "arm", tmp_path / "sweep-1"
    shutil.copytree(run, mine)
    (sweep / "arms").mkdir(parents=True)
    (sweep / "sweep.json").write_text('{"arms": ["a"]}')
    note = {"name": "a", "dir": "../arm", "state": "finished"}
    (sweep / "arms/a.json").write_text(json.dumps(note))
    row = {**dict.fromkeys(KEYS), "arm": "a|b", "definition": "<script>\n", "verdict": "cannot tell"}
    found = {"control": "real", "scale": "log ratio", "effect": math.log(1.5), "interval": [0, math.log(2)]}
    found |= {"missing_rounds": []}
    rows = [row | found | {"p_holm": 0.0123, "onset": 3}, row | {"definition": "tail", "verdict": "not testable"}]
    (sweep / "verdicts.json").write_text(json.dumps({"schema": 2, "control": None, "verdicts": rows}))
    other = tmp_path / "a-damaged-sweep"  # of others: none of this run's
    other.mkdir()
    for name in ("sweep.json", "verdicts.json"):
        (other / name).write_text("[")
    home.ok("export", str(mine), "--to", str(tmp_path / "new"))
    for card in ("README.md", "model/README.md"):
        text = (tmp_path / "new" / card).read_text()
        assert "Of the sweep sweep-1, all arms, as its last report has them: against arms on real data" in text
        assert "None" not in text and "fewer rounds" not in text
        assert "| a\\|b | real | &lt;script> | cannot tell | 3 | ×1.5 | 1 to 2 | 0.012 |" in text
        assert "| a\\|b |  | tail | not testable |  |  |  |  |" in text
    rows[0]["missing_rounds"] = [2]
    (sweep / "verdicts.json").write_text(json.dumps({"schema": 2, "control": "a|c", "verdicts": rows}))
    home.ok("export", str(mine), "--to", str(tmp_path / "again"))
    text = (tmp_path / "again/README.md").read_text()
    assert "them: against a\\|c (`--control`)." in text and "| cannot tell† |" in text and "† on fewer rounds" in text
    (sweep / "verdicts.json").write_text("[]")
    assert "verdicts.json: is damaged" in home.call("export", str(mine), "--to", str(tmp_path / "no")).err


def test_what_was_not_pulled_is_said_and_the_round_is_exported(home: Project, run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "arm"
    shutil.copytree(run, mine)
    (mine / "rounds/00/manifest.json").unlink()
    (mine / "rounds/01/train/00-real.parquet").unlink()
    home.ok("export", str(mine), "--to", str(tmp_path / "new"))
    text = (tmp_path / "new/README.md").read_text()
    assert "Not known: the manifests of rounds 0, which are not here." in text and "### Real data" not in text
    assert "Not known: round 1: files of the training set are not here." in text
    assert not (tmp_path / "new/manifests/00.json").exists()
    refused = home.call("export", str(mine), "--round", "1", "--to", str(tmp_path / "one"))
    assert refused.code == 2 and "00-real.parquet: is missing" in refused.err


def test_cells_hold_no_markup() -> None:
    assert marked_up("a|b\nc <b> `x`_*[y](z)\x1b\u202e\\") == "a\\|b c &lt;b> \\`x\\`\\_\\*\\[y\\](z)��\\\\"


def test_an_adapter_is_exported_and_merged(home: Project, tiny: list[str], trained: Trained) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from genloss.language.model import load

    base = ["model=pretrained", f"model.path={trained.llama}", "model/adapter=lora", "rounds=0"]
    run = home.ok("run", *tiny, *base, f"domain.tokenizer={trained.data / 'tokenizer'}").folder
    home.ok("export", str(run), "--to", "lora", "--merge")
    out = home.root / "lora"
    assert (out / "model/adapter_model.safetensors").is_file()
    assert "Its base is on no hub" in (out / "model/README.md").read_text()
    tokens = torch.tensor(np.arange(8)[None])
    with torch.no_grad(), home.here():
        merged = AutoModelForCausalLM.from_pretrained(out / "merged")(tokens).logits
        assert torch.allclose(merged, load(run / "rounds/00/model")(tokens).logits, atol=1e-5)
    assert (out / "merged/tokenizer.json").is_file() and (out / "merged/README.md").is_file()
    for path, text in said(out):
        assert str(trained.llama) not in text and str(home.root) not in text, path


def test_the_labs_points_are_exported(home: Project, tmp_path: Path) -> None:
    from datasets import load_dataset

    run = home.ok("run", "domain=gaussian", "size=8", "rounds=1", "tracking=none", "mixing=accumulate").folder
    home.ok("export", str(run), "--to", str(tmp_path / "lab"))
    loaded: Any = load_dataset(str(tmp_path / "lab"), split="train")
    whole = [
        row for path in sorted((run / "rounds/01/train").glob("*.parquet")) for row in records.read(path).to_pylist()
    ]
    assert [row["points"] for row in loaded.to_list()] == [row["points"] for row in whole]
    assert "Parameters of a model of the lab" in (tmp_path / "lab/model/README.md").read_text()


def test_a_diffusion_model_is_no_language_model(home: Project, tmp_path: Path) -> None:
    """The card's code is run as it is printed; the images are what diffusers and datasets make of them."""
    from datasets import Image, load_dataset

    run = home.ok("run", *SMALL, "rounds=1").folder
    home.ok("export", str(run), "--to", str(tmp_path / "out"))
    card = (tmp_path / "out/model/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "diffusers" and "transformers" not in card.partition("## Lineage")[0]
    code = card.partition("~~~~~~~~python\n")[2].partition("~~~~~~~~")[0]
    made: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path / "out/model")), made)
    assert made["images"].shape == (8, 1, 8, 8) and made["images"].isfinite().all()
    loaded: Any = load_dataset(str(tmp_path / "out"), split="train")
    assert "cast_column" in (tmp_path / "out/README.md").read_text()
    assert loaded.cast_column("image", Image())[0]["image"].size == (8, 8)
