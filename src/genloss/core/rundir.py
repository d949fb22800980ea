"""A run directory: what an arm leaves, and what it resumes from.

    RUN/params.yaml                       the resolved config
    RUN/data/                             the real data, split once (and the tokenizer)
    RUN/rounds/NN/{generated,kept,rejected}.parquet, train/, model/, metrics.json, manifest.json

`manifest.json` grows by one entry a stage: key, inputs, seed, outputs with sha256, results, seconds. It is what makes a
directory resumable without the store (after `dvc pull`, say) and what `genloss verify` compares.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError
from genloss.core.files import keep, link, write_atomic
from genloss.core.hashes import sha256_file, sha256_json, sha256_text, tree_hash, version
from genloss.core.store import Done, Store, Work

STAGES = (
    "data",
    "generate",
    "curate",
    "mix",
    "train",
    "evaluate",
)  # of a round, in their order; `data` is part of round 0
LIBRARIES = ("genloss", "torch", "transformers", "tokenizers", "lightning", "numpy", "pyarrow")


def round_name(n: int) -> str:
    return f"{n:02d}"


@lru_cache(maxsize=64)  # each stage asks for those of its round and of the one before
def _manifest(text: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(text)
    if "sha256" in manifest and manifest["sha256"] != _sealed(manifest)["sha256"]:
        raise ValueError("its sha256 differs")
    for entry in manifest["stages"].values():
        Done.from_json(entry)
    return manifest


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """With a sha256 of all that it says: versions and inputs are data too. Manifests of before 2026-11-27 have none."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**said, "sha256": sha256_json(said)}


class RunDir:
    """Paths and manifests of one run, and the one way in which a stage's files get there (`ensure`)."""

    def __init__(self, root: Path, store: Store, sweep: Path | None = None):
        self.root = root.resolve()
        self.store = store
        self.account = (sweep or self.root) / "spent.json"  # what paid requests have cost, all arms together

    def round(self, n: int) -> Path:
        return self.root / "rounds" / round_name(n)

    @property
    def data(self) -> Path:
        return self.root / "data"

    def folder(self, stage: str, n: int) -> Path:
        return self.data if stage == "data" else self.round(n)

    # -- manifests ---------------------------------------------------------------------------------------------

    def manifest_path(self, stage: str, n: int) -> Path:
        return self.round(n) / "manifest.json"  # `data` is part of round 0

    def manifest(self, stage: str, n: int) -> dict[str, Any]:
        """The manifest that holds `stage` of round `n`; empty if there is none yet."""
        path = self.manifest_path(stage, n)
        try:
            return _manifest(path.read_text())
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or not what _enter wrote
            raise UserError(str(path), None, "is damaged; delete it and run again (nothing computed is lost)") from None

    def _enter(self, work: Work, n: int, done: Done) -> None:
        manifest = self.manifest(work.stage, n)
        stages = {**manifest.get("stages", {}), work.stage: {**work.identity(), **done.to_json()}}
        manifest = {
            "round": n,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "libraries": {name: version(name) for name in LIBRARIES},
            "stages": {name: stages[name] for name in STAGES if name in stages},
        }
        write_atomic(self.manifest_path(work.stage, n), json.dumps(_sealed(manifest), indent=1))

    def write_metrics(self, n: int, text: str) -> None:
        """Write metrics.json of a round, and its sha256 into the manifest; what says the same stays as it is."""
        path, manifest = self.round(n) / "metrics.json", self.manifest("evaluate", n)
        if manifest and manifest.get("metrics") != sha256_text(text):
            path.unlink(missing_ok=True)  # a kill leaves no numbers that are not the manifest's
            manifest = _sealed({**manifest, "metrics": sha256_text(text)})
            write_atomic(self.manifest_path("evaluate", n), json.dumps(manifest, indent=1))
        keep(path, text)

    def done(self, stage: str, n: int) -> Done | None:
        """What the manifest says of a stage, whether or not its key is still current."""
        entry = self.manifest(stage, n).get("stages", {}).get(stage)
        return Done.from_json(entry) if entry else None

    # -- stages ------------------------------------------------------------------------------------------------

    def intact(self, done: Done, folder: Path) -> bool:
        """Whether all files of a stage are in `folder` with the right content; UserError if one is damaged."""
        for name, digest in done.files.items():
            path = folder / name
            if not path.is_file():
                return False
            if sha256_file(path) != digest:
                blob = self.store.blob(digest)
                too = f" and {blob}, which is the same file," if blob.exists() and blob.samefile(path) else ""
                raise UserError(
                    str(path),
                    None,
                    "is damaged or was edited (its sha256 is not the manifest's); "
                    f"delete it{too} and run again to restore it (nothing else is lost)",
                )
        return True

    def ensure(self, work: Work, n: int, *, waiting: Callable[[], None] | None = None) -> Done:
        """Have the files of `work` in this directory: present already, from the store, or computed now."""
        folder = self.folder(work.stage, n)
        key = work.key
        known = self.done(work.stage, n)
        if known and known.key == key and self.intact(known, folder):
            if self.store.lookup(work, key) is None:
                self.store.adopt(known, work, folder)
            else:
                self.store.clear(key)
            self.store.reused += 1
            return known
        done = self.store.get(work, waiting=waiting)
        if known:  # files of an earlier config go, so that the folder holds what the manifest says
            for name in set(known.files) - set(done.files):
                (folder / name).unlink(missing_ok=True)
        for name, digest in done.files.items():
            target = folder / name
            if not (target.is_file() and sha256_file(target) == digest):
                link(self.store.blob(digest), target)
        self._enter(work, n, done)
        return done

    def hash_of(self, stage: str, n: int, prefix: str) -> str:
        """Hash of those files of a finished stage whose name starts with `prefix`, checked against the disk."""
        done = self.done(stage, n)
        folder = self.folder(stage, n)
        if done is None:
            raise UserError(
                str(folder), None, f"stage {stage} of round {n} is not there; run the rounds before it first"
            )
        if not self.intact(done, folder):
            missing = [name for name in done.files if not (folder / name).is_file()]
            raise UserError(str(folder / missing[0]), None, "is missing; `dvc checkout` or run again to restore it")
        return tree_hash({k: v for k, v in done.files.items() if k.startswith(prefix)})
