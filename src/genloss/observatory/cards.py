"""What an exported round says of itself: cards for people (README.md), Croissant for programs that look for data.

Cards are Markdown with a YAML header, as the Hugging Face hub reads it. What they say comes from manifests, metrics and
lineage; no text of a record is in them, and what others have named is escaped. Configs are those of the manifests:
files of the user stand there by their sha256, so that no path of a machine is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from genloss.core.errors import UserError
from genloss.core.rundir import STAGES, round_name
from genloss.observatory import verdict
from genloss.observatory.quantities import quantity
from genloss.observatory.results import arms_of, is_metric
from genloss.observatory.tables import marked_up, piped
from genloss.observatory.verdict_words import effect_of, footnote, verdict_of

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True)
class Facts:
    """What is known of round `n` of a run, of which `run` is the name."""

    run: str
    n: int
    manifests: Mapping[int, Mapping[str, Any]]  # of the rounds up to n, as far as they are here
    domain: str
    metrics: Mapping[str, float]
    lineage: Mapping[str, Any]  # `lineage.summary`
    licence: tuple[str, str]  # an identifier of the hub, and what it is about
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)  # Parquet files by table
    schemas: Mapping[str, pa.Schema] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)  # records by table
    hashes: Mapping[str, str] = field(default_factory=dict)  # sha256 by file
    verdicts: Mapping[str, verdict.Verdicts] = field(default_factory=dict)  # by the sweep

    def config(self, stage: str) -> dict[str, Any]:
        """The config of a stage of this round, by its manifest; {} if it has no such stage, or is not here."""
        entry = self.manifests.get(0 if stage == "data" else self.n, {}).get("stages", {}).get(stage, {})
        return dict(entry.get("config", {}))


def header(values: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def block(config: Mapping[str, Any]) -> str:
    """A config as YAML in a fence that nothing in it can close."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=False)
    return f"~~~~~~~~yaml\n{text}~~~~~~~~"


def verdicts_of(folder: Path) -> dict[str, verdict.Verdicts]:
    """The verdicts.json, as they are now, of the sweeps beside a run that have it as an arm, by the sweeps' names. A
    sweep beside it that cannot be read is none of its own."""
    home, found = folder.resolve(), {}
    for path in sorted(home.parent.glob(f"*/{verdict.FILE}")):
        try:
            mine = home in [arm for _, arm in arms_of(path.parent)]
        except UserError:
            mine = False
        if mine:
            found[path.parent.name] = verdict.read(path.parent)
    return found


def _verdicts(facts: Facts) -> list[str]:
    parts = [part for name, found in facts.verdicts.items() if found.rows for part in _verdicts_of(name, found)]
    return ["## Verdicts", *parts] if parts else []


def _verdicts_of(name: str, found: verdict.Verdicts) -> list[str]:
    rows = found.rows
    head = ("arm", "control", "definition", "verdict", "since round", "effect", "95 % interval", "p (Holm)")
    shown = [
        [
            row["arm"],
            row["control"] or "",
            row["definition"],
            verdict_of(row),
            "" if row["onset"] is None else row["onset"],
            *effect_of(row),
            "" if row["p_holm"] is None else f"{row['p_holm']:.2g}",
        ]
        for row in rows
    ]
    control = f"{marked_up(found.chosen)} (`--control`)" if found.chosen else "arms on real data alone"
    said = f"Of the sweep {marked_up(name)}, all arms, as its last report has them: against {control}."
    return [said, piped(head, shown), *filter(None, [footnote(rows)])]


def _lineage(facts: Facts) -> list[str]:
    rows = [row for row in facts.lineage["rounds"] if row["round"] <= facts.n]
    last = max((g for row in rows for g in row["shares"]), default=0)
    head = ["round", "records", "real", *(f"made in {g}" for g in range(1, last + 1))]
    head += ["depth", "named", "real ancestors", "effective"]
    shown = [
        [
            row["round"],
            row["records"],
            *(f"{row['shares'].get(g, 0.0):.3f}" for g in range(last + 1)),
            "" if row["depth"] is None else row["depth"],
            row["named"],
            row["ancestors"],
            row["effective"],
        ]
        for row in rows
    ]
    dropped = [[r["round"], r["made"], r["kept"], why, n] for r in rows for why, n in r["dropped"].items()]
    text = [
        "## Lineage",
        "Share of each round's training set by generation of origin; depth is the mean number of models between real "
        "data and a record, named the share that goes back to real records by the ids of parents, and effective the "
        "number of equally frequent real ancestors that is as uneven.",
        piped(head, shown),
    ]
    if dropped:
        text.append(piped(["round", "made", "kept", "dropped because of", "records"], dropped))
    return text + [f"Not known: {marked_up(line)}." for line in facts.lineage["missing"]]


def _numbers(facts: Facts) -> list[str]:
    told = [
        [name, value, facts.metrics.get(f"{name}_floor", ""), quantity(name, facts.domain).unit]
        for name, value in sorted(facts.metrics.items())
        if is_metric(name)
    ]
    return ["## Numbers", piped(["metric", f"round {facts.n}", "of real records", "unit"], told)] if told else []


def _made(facts: Facts) -> list[str]:
    """How the records came to be, and how they are made again."""
    named = {"generate": "Recipe", "curate": "Curation", "mix": "Mixing", "train": "Training", "data": "Real data"}
    text = ["## How it was made"]
    for stage, title in named.items():
        if config := facts.config(stage):
            text += [f"### {title}", block({k: v for k, v in config.items() if k not in ("round", "control")})]
    manifest = facts.manifests.get(facts.n, {})
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("libraries", {}).items()) or "not known"
    gone = [str(m) for m in range(facts.n + 1) if m not in facts.manifests]
    keys = [
        [m, stage, entry["key"], entry["seed"]]
        for m, found in facts.manifests.items()
        for stage, entry in found.get("stages", {}).items()
    ]
    return [
        *text,
        "## How to reproduce it",
        f"Libraries: {marked_up(versions)}; Python {marked_up(manifest.get('python', 'not known'))}, "
        f"{marked_up(manifest.get('machine', 'machine not known'))}. "
        "manifests/ has, for each round, every stage with its config, inputs, seed, code, libraries, outputs and their "
        "sha256. A run with these configs has the same keys; `genloss verify RUN` computes it again from nothing and "
        "compares every hash. prov.json is the same graph in W3C PROV.",
        piped(["round", "stage", "key", "seed"], keys),
        *([f"Not known: the manifests of rounds {', '.join(gone)}, which are not here."] if gone else []),
    ]


def dataset_card(facts: Facts) -> str:
    """README.md of the data set."""
    total = facts.counts["train"]
    configs = []
    for name in ("train", "made"):
        splits = {t: files for t, files in facts.files.items() if (t == "train") == (name == "train")}
        found = [{"split": split, "path": list(files)} for split, files in splits.items()]
        if found:
            configs.append({"config_name": name, "data_files": found} | ({"default": True} if name == "train" else {}))
    licence, about = facts.licence
    head = header(
        {
            "license": licence,
            "pretty_name": f"{facts.run}, round {facts.n}",
            "tags": ["synthetic", "recursive-training", "genloss"],
            "size_categories": [next((word for limit, word in SIZES if total < limit), "n>10M")],
            "configs": configs,
        }
    )
    pictures = any("image" in schema.names for schema in facts.schemas.values())
    made = "round 0 trains on real data alone" if facts.n == 0 else f"made by model {facts.n - 1}, and kept or rejected"
    lines = [
        f"# {facts.run}, round {facts.n}",
        f"The training set of model {facts.n} of a recursive training (config `train`)"
        + (f", and the records of round {facts.n} (config `made`): {made}." if facts.n else f": {made}."),
        piped(["split", "records"], list(facts.counts.items())),
        "`generation` is 0 for real records and g for those that model g−1 made; `parents` are ids of records that one "
        "was made from; `weight` is what a record counts in the loss; `reason` is why curation kept or dropped it. "
        "What a model made may be wrong, offensive, or a copy of what it learned from.",
        *(['`image` holds PNG files: `.cast_column("image", datasets.Image())` decodes them.'] if pictures else []),
        "## Licence",
        about,
        *_lineage(facts),
        *_verdicts(facts),
    ]
    lines += _numbers(facts)
    return head + "\n" + "\n\n".join([*lines, *_made(facts)]) + "\n"


def model_card(facts: Facts, how: str, base: str | None, library: Mapping[str, str], weights: str) -> str:
    """README.md of a model. how: Markdown that says how it is loaded; base: of an adapter, its name on a hub; library:
    what the header says of the one that loads it; weights: what is to be said where they are not there, else ''."""
    known: dict[str, Any] = {"license": facts.licence[0], "tags": ["recursive-training", "genloss"]}
    known |= library
    if base:
        known |= {"base_model": base}
    lines = [
        f"# Model {facts.n} of {facts.run}",
        f"Trained in round {facts.n} of a recursive training, on what models before it made, real data, or both.",
        *([f"**Weights are not here.** {weights}"] if weights else []),
        "## Use",
        how,
        "## Licence",
        facts.licence[1],
        *_lineage(facts),
        *_verdicts(facts),
    ]
    lines += _numbers(facts)
    return header(known) + "\n" + "\n\n".join([*lines, *_made(facts)]) + "\n"


# -- Croissant ---------------------------------------------------------------------------------------------------------

CONTEXT: dict[str, Any] = {  # of Croissant 1.0, as its specification gives it (docs.mlcommons.org/croissant)
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
MEANINGS = {
    "id": "made of content, position, origin, generation and recipe",
    "origin": "real or synthetic",
    "generation": "0 of real records, g of those that model g-1 made",
    "parents": "ids of the records that it was made from",
    "recipe": "what made it",
    "weight": "what it counts in the loss",
    "finish": "how the model ended it: end, or length where it was cut off",
    "score": "of curation",
    "reason": "why curation kept or dropped it",
}


def _type(kind: pa.DataType) -> str:
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) else kind
    if pa.types.is_integer(inner):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(inner) else "sc:Boolean" if pa.types.is_boolean(inner) else "sc:Text"


def croissant(facts: Facts) -> dict[str, Any]:
    """croissant.json: every file with its sha256, and the columns of every table (Croissant 1.0)."""
    files: list[dict[str, Any]] = []
    sets: list[dict[str, Any]] = []
    for name, paths in facts.files.items():
        files += [
            {
                "@type": "cr:FileObject",
                "@id": path,
                "name": path,
                "contentUrl": path,
                "encodingFormat": "application/x-parquet",
                "sha256": facts.hashes[path],
            }
            for path in paths
        ]
        for path in paths:
            part = f"{name}-{Path(path).stem}" if len(paths) > 1 else name
            columns = [
                {
                    "@type": "cr:Field",
                    "@id": f"{part}/{column.name}",
                    "name": f"{part}/{column.name}",
                    "description": MEANINGS.get(column.name, "of the record"),
                    "dataType": _type(column.type),
                    "source": {"fileObject": {"@id": path}, "extract": {"column": column.name}},
                    **({"repeated": True} if pa.types.is_nested(column.type) else {}),
                }
                for column in facts.schemas[name]
            ]
            sets.append({"@type": "cr:RecordSet", "@id": part, "name": part, "field": columns})
    stages = [stage for stage in STAGES if facts.config(stage)]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{facts.run}-round-{round_name(facts.n)}",
        "description": f"Training set and records of round {facts.n} of a recursive training ({', '.join(stages)}).",
        "license": facts.licence[0],
        "version": "1.0.0",
        "keywords": ["synthetic", "recursive training", "model collapse"],
        "distribution": files,
        "recordSet": sets,
    }
