"""prov.json of an exported round: which stages, of which rounds, made it from what (W3C PROV-JSON, submission of
2013-04-24, www.w3.org/submissions/prov-json).

Artifacts are found by their hash: what a stage has read has in its manifest the sha256 of the files that another one
has written, so that the graph says what was, not what a config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genloss.core.hashes import tree_hash
from genloss.core.rundir import round_name

PREFIX = {"run": "urn:genloss:run:", "key": "urn:genloss:key:", "genloss": "urn:genloss:"}


def _artifacts(files: Mapping[str, str]) -> dict[str, str]:
    """{hash: name} of what a stage has written: all of it, and each file or folder at its top."""
    names = sorted({name if "/" not in name else f"{name.partition('/')[0]}/" for name in files})
    found = {tree_hash({f: h for f, h in files.items() if f.startswith(name)}): name for name in names}
    return found | ({tree_hash(dict(files)): ""} if len(names) > 1 else {})


def provenance(manifests: Mapping[int, Mapping[str, Any]], n: int, dataset: str, model: str) -> dict[str, Any]:
    """The graph of rounds 0..n, as far as their manifests are here, as PROV-JSON. dataset, model: names of what was
    exported."""
    entity: dict[str, Any] = {}
    activity: dict[str, Any] = {}
    used: dict[str, Any] = {}
    made: dict[str, Any] = {}
    derived: dict[str, Any] = {}
    with_agent: dict[str, Any] = {}
    known: dict[str, str] = {}  # entities by hash
    for m, manifest in sorted(manifests.items()):
        for stage, entry in manifest.get("stages", {}).items():
            act = f"key:{entry['key']}"
            activity[act] = {
                "prov:label": f"{stage} of round {m}",
                "genloss:stage": stage,
                "genloss:round": m,
                "genloss:seed": str(entry["seed"]),
                "genloss:seconds": entry["seconds"],
            }
            with_agent[f"_:by{len(with_agent)}"] = {"prov:activity": act, "prov:agent": "genloss:genloss"}
            for name, digest in sorted(entry["inputs"].items()):
                if digest not in known:  # of a round that is not here
                    known[digest] = f"genloss:{digest}"
                    entity[known[digest]] = {"prov:label": name, "genloss:sha256": digest}
                used[f"_:use{len(used)}"] = {"prov:activity": act, "prov:entity": known[digest], "prov:role": name}
            home = "data" if stage == "data" else f"rounds/{round_name(m)}"
            for digest, name in _artifacts(entry["files"]).items():
                label = f"{home}/{name}" if name else f"all files of {stage} in {home}"
                known[digest] = f"run:{home}/{name or f'all-of-{stage}'}".rstrip("/")
                this = known[digest]
                entity[this] = {"prov:label": label, "genloss:sha256": digest}
                made[f"_:made{len(made)}"] = {"prov:entity": this, "prov:activity": act}
    for name, source in {
        dataset: f"run:rounds/{round_name(n)}/train",
        model: f"run:rounds/{round_name(n)}/model",
    }.items():
        if source in entity:
            entity[f"genloss:export/{name}"] = {"prov:label": name}
            derived[f"_:from{len(derived)}"] = {
                "prov:generatedEntity": f"genloss:export/{name}",
                "prov:usedEntity": source,
            }
    version = manifests.get(n, {}).get("libraries", {}).get("genloss", "")
    return {
        "prefix": PREFIX,
        "entity": entity,
        "activity": activity,
        "agent": {
            "genloss:genloss": {
                "prov:type": {"$": "prov:SoftwareAgent", "type": "prov:QUALIFIED_NAME"},
                "prov:label": f"genloss {version}".rstrip(),
            }
        },
        "used": used,
        "wasGeneratedBy": made,
        "wasDerivedFrom": derived,
        "wasAssociatedWith": with_agent,
    }
