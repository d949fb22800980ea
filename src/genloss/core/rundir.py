"""A run directory: what an arm leaves, and what it resumes from.

    RUN/params.yaml                       the resolved config
    RUN/data/                             the real data, split once (and the tokenizer)
    RUN/rounds/NN/{generated,kept,rejected}.parquet, train/, model/, metrics.json, manifest.json

`manifest.json` grows by one entry a stage: key, inputs, seed, outputs with sha256, results, seconds. It is what makes a
directory resumable without the store (after `dvc pull`, say) and what `genloss verify` compares. What `genloss report
--metrics` has measured since is there too, as `added`: an entry a metric, which is a stage of its own.

A model that is not kept (genloss.core.retention) lies in the store alone, until nothing needs it any more; in its
folder is a note, and the manifest has `dropped`: its files, and the command that has them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError
from genloss.core.files import keep, link, locked, read_json, write_atomic
from genloss.core.hashes import sha256_file, sha256_json, sha256_text, tree_hash, version
from genloss.core.places import project_root
from genloss.core.retention import NOTE, again, note, weights
from genloss.core.store import Done, Store, Work

STAGES = (
    "data",
    "generate",
    "curate",
    "mix",
    "train",
    "evaluate",
)  # of a round, in their order; `data` is part of round 0
LIBRARIES = ("genloss", "torch", "transformers", "peft", "tokenizers", "lightning", "numpy", "pyarrow")

CLAIM = "claim.json"  # in a scratch folder


def round_name(n: int) -> str:
    return f"{n:02d}"


@lru_cache(maxsize=64)  # each stage asks for those of its round and of the one before
def _manifest(text: str) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(text)
    if "sha256" in manifest and manifest["sha256"] != _sealed(manifest)["sha256"]:
        raise ValueError("its sha256 differs")
    for entry in [*manifest["stages"].values(), *manifest.get("added", {}).values()]:
        Done.from_json(entry)
    return manifest


def manifest_at(folder: Path) -> dict[str, Any]:
    """What the manifest of a round's folder says; empty if there is none. UserError if it is not what was written."""
    path = folder / "manifest.json"
    return read_json(path, dict, "run again (nothing computed is lost)", _manifest) if path.exists() else {}


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """With a sha256 of all that it says: versions and inputs are data too. Manifests of before 2026-11-27 have none."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**said, "sha256": sha256_json(said)}


def files_of(manifest: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(stage, name, sha256) of the files that a round has by its manifest: without weights that were dropped."""
    gone = set(manifest.get("dropped", {}).get("files", ()))
    for stage, entry in manifest["stages"].items():
        yield from ((stage, name, digest) for name, digest in entry["files"].items() if name not in gone)


class RunDir:
    """Paths and manifests of one run, and the one way in which a stage's files get there (`ensure`)."""

    def __init__(self, root: Path, store: Store, sweep: Path | None = None):
        self.root = root.resolve()
        self.store = store
        self.account = (sweep or self.root) / "spent.json"  # what paid requests have cost, all arms together
        self.dropped: frozenset[int] = frozenset()  # rounds whose models are not kept
        self.training: tuple[int, Path] | None = None  # round that this process trains now, and its scratch folder

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
        return manifest_at(self.manifest_path(stage, n).parent)

    def _enter(self, work: Work, n: int, done: Done) -> None:
        manifest = self.manifest(work.stage, n)
        before = manifest.get("stages", {})
        stages = {**before, work.stage: {**work.identity(), **done.to_json()}}
        gone, added = manifest.get("dropped"), manifest.get("added")
        if work.stage in before and before[work.stage]["files"] != done.files:
            added = None  # was measured on other files
        manifest = {
            "round": n,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "libraries": {name: version(name) for name in LIBRARIES},
            **({"dropped": gone} if gone else {}),
            **({"added": added} if added else {}),
            "stages": {name: stages[name] for name in STAGES if name in stages},
        }
        write_atomic(self.manifest_path(work.stage, n), json.dumps(_sealed(manifest), indent=1))

    def _settle(self, n: int, done: Done) -> None:
        """After a training: weights that are not kept go from the round's folder, with a note there and in the
        manifest; the note goes where they are kept."""
        folder, names = self.round(n), sorted(weights(done.files))
        gone = n in self.dropped and bool(names)
        if gone:
            keep(folder / "model" / NOTE, note(done.files))
            for name in names:
                if (folder / name).is_file():  # of a run that kept them, perhaps under another key
                    if sha256_file(folder / name) == done.files[name]:
                        self.store.add_link(folder / name, done.files[name])
                    (folder / name).unlink()
        else:
            (folder / "model" / NOTE).unlink(missing_ok=True)
        place = os.path.relpath(self.root, project_root())
        said = {"dropped": {"files": names, "again": again(Path(place), n)}} if gone else {}
        manifest = self.manifest("train", n)
        if manifest.get("dropped") != said.get("dropped"):
            rest = {name: value for name, value in manifest.items() if name != "dropped"}
            write_atomic(self.manifest_path("train", n), json.dumps(_sealed(rest | said), indent=1))

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Held by one process at a time, to change what a finished round's manifest says of it: metrics may be added by
        several commands at once."""
        lock = self.root / ".genloss" / "manifests.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        return locked(lock)

    def write_metrics(self, n: int, text: str) -> None:
        """Write metrics.json of a round, and its sha256 into the manifest; what says the same stays as it is. Whoever
        calls it has the run `held` since it read what the text is made of."""
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

    def added(self, n: int) -> dict[str, Done]:
        """What was measured after the round, by the name of the metric."""
        entries = self.manifest("evaluate", n).get("added", {})
        return {name: Done.from_json(entry) for name, entry in entries.items()}

    def added_config(self, n: int, name: str) -> dict[str, Any]:
        """The config of such a metric, from which it can be built again."""
        return dict(self.manifest("evaluate", n)["added"][name]["metric"])

    def add(self, n: int, name: str, metric: Mapping[str, Any], work: Work, done: Done) -> None:
        """Enter what a metric has measured after the round. metric: its config."""
        with self.held():
            manifest = self.manifest("evaluate", n)
            entry = {"metric": metric, **work.identity(), **done.to_json()}
            added = {**manifest.get("added", {}), name: entry}
            manifest = {**manifest, "added": {each: added[each] for each in sorted(added)}}
            write_atomic(self.manifest_path("evaluate", n), json.dumps(_sealed(manifest), indent=1))

    # -- stages ------------------------------------------------------------------------------------------------

    def _expected(self, stage: str, n: int, done: Done) -> set[str]:
        """Names of the files of a stage that belong into this directory."""
        return set(done.files) - (weights(done.files) if stage == "train" and n in self.dropped else set())

    def intact(self, done: Done, folder: Path, names: Iterable[str] | None = None) -> bool:
        """Whether all files of a stage, or those with these names, are in `folder` with the right content; UserError if
        one is damaged."""
        for name in done.files if names is None else names:
            path, digest = folder / name, done.files[name]
            if not path.is_file():
                return False
            if sha256_file(path) != digest:
                places = [self.store.blob(digest), *sorted(self.root.rglob(path.name))]  # rounds share what is equal
                same = [str(p) for p in places if p != path and p.exists() and p.samefile(path)]
                too = f" and {' and '.join(same)}, which is the same file," if same else ""
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
        whole = not (work.stage == "train" and n in self.dropped)
        if known and known.key == key and self.intact(known, folder, self._expected(work.stage, n, known)):
            if self.store.lookup(work, key, whole) is None:
                self.store.adopt(known, work, folder)
            else:
                self.store.clear(key)
            self.store.reused += 1
            done = known
        else:
            done = self._placed(work, folder, lambda done: self._expected(work.stage, n, done), whole, waiting)
            if known:  # files of an earlier config go, so that the folder holds what the manifest says
                for name in set(known.files) - set(done.files):
                    (folder / name).unlink(missing_ok=True)
            self._enter(work, n, done)
        if work.stage == "train":
            self._settle(n, done)
        return done

    def _placed(
        self,
        work: Work,
        folder: Path,
        names: Callable[[Done], Iterable[str]],
        whole: bool = True,
        waiting: Callable[[], None] | None = None,
    ) -> Done:
        """Have files of a stage from the store, or computed now, in a folder."""
        while True:
            done = self.store.get(work, whole=whole, waiting=waiting)
            # an arm beside this one may have dropped weights since: they are computed again
            with contextlib.suppress(FileNotFoundError):
                for name in names(done):
                    target, digest = folder / name, done.files[name]
                    if not (target.is_file() and sha256_file(target) == digest):
                        link(self.store.blob(digest), target)
                return done

    def claim(self, scratch: Path, stage: str, n: int) -> None:
        """Note in a stage's scratch folder who works there: it is nobody's any more where the run is gone, or has this
        stage under a key that is neither this one nor that of before."""
        before = self.done(stage, n)
        claim = {"run": str(self.root), "stage": stage, "round": n, "before": before.key if before else None}
        (scratch / CLAIM).write_text(json.dumps(claim), encoding="utf-8")

    def holds(self, n: int) -> bool:
        """Whether the model of round n is here."""
        done = self.done("train", n)
        return bool(done) and all((self.round(n) / name).is_file() for name in weights(done.files if done else ()))

    def fetch(self, work: Work, n: int, target: Path) -> Path:
        """The model of round n, which is not in its folder, in `target`/model: from the store, or computed again.
        work: its training. UserError if that would be another model."""
        known, model = self.done("train", n), self.round(n) / "model"
        anew = f"delete {self.manifest_path('train', n)} and run again, for that one and new rounds from there on"
        if known is None or known.key != work.key:
            why = "is not here, and what is computed again would be another model: config, code or libraries differ"
            raise UserError(str(model), None, f"{why}; run its command again")
        done = self._placed(work, target, lambda done: [name for name in done.files if name.startswith("model/")])
        if done.files != known.files:
            why = "is not here, and computed again it has other bytes than before: on another machine, or on a GPU"
            raise UserError(str(model), None, f"{why}; {anew}")
        return target / "model"

    def hash_of(self, stage: str, n: int, prefix: str) -> str:
        """Hash of those files of a finished stage whose name starts with `prefix`, checked against the disk: of weights
        those that are there."""
        done = self.done(stage, n)
        folder = self.folder(stage, n)
        if done is None:
            raise UserError(
                str(folder), None, f"stage {stage} of round {n} is not there; run the rounds before it first"
            )
        here = {name for name in done.files if name not in weights(done.files) or (folder / name).is_file()}
        if not self.intact(done, folder, here):
            missing = [name for name in sorted(here) if not (folder / name).is_file()]
            raise UserError(str(folder / missing[0]), None, "is missing; `dvc checkout` or run again to restore it")
        return tree_hash({k: v for k, v in done.files.items() if k.startswith(prefix)})
