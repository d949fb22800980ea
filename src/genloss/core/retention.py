"""Which models stay on disk, and what is left in the place of one that does not.

    genloss run keep.models=last               # or all, none, 'keep.models={every: 2}'
    genloss model runs/ARM --round 3           # one that was not kept: found or computed again, in runs/ARM/models/03

What goes are weights: the safetensors below model/ of a round. Config and tokenizer stay, with a note, dropped.json,
that names what was there and its sha256: DVC, for which model/ is an output of the round and an input of the next one,
then sees a change of the weights all the same. It changes no result, so it is no part of an arm or of a stage's key."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError, require

NOTE = "dropped.json"  # in model/, in the place of weights
WEIGHTS = "model/*.safetensors"  # * stands for folders too: adapters lie in some


@dataclass
class Keep:
    """The schema of the node `keep`."""

    models: Any = "all"  # all, last, none, or {every: k}: those of rounds 0, k, 2 k ..., and the last one

    def __post_init__(self) -> None:
        every = self.models.get("every") if isinstance(self.models, Mapping) and len(self.models) == 1 else None
        known = self.models in ("all", "last", "none") if isinstance(self.models, str) else isinstance(every, int)
        whole = not isinstance(every, bool) and (every is None or every >= 1)
        require(known and whole, "models", self.models, "all, last, none, or {every: k} with a whole k of at least 1")

    def model(self, n: int, last: int) -> bool:
        """Whether the model of round n stays, of an arm whose last round is `last`."""
        if isinstance(self.models, Mapping):
            return n % self.models["every"] == 0 or n == last
        return self.models == "all" or (self.models == "last" and n == last)

    def dropped(self, last: int) -> frozenset[int]:
        """The rounds of such an arm whose model goes."""
        return frozenset(n for n in range(last + 1) if not self.model(n, last))

    @property
    def reference(self) -> frozenset[int]:
        """Those of these whose model the store keeps all the same: with the last one goes that of round 0, which arms
        share and metrics compare with, so that a run which is extended by a round trains nothing again."""
        return frozenset([0] if self.models == "last" else [])


def weights(files: Iterable[str]) -> set[str]:
    """Those of a training's files that are weights."""
    return {name for name in files if fnmatch.fnmatchcase(name, WEIGHTS)}


def note(files: Mapping[str, str]) -> str:
    """What stands in the place of weights. files: a training's, with their sha256."""
    gone = {name.removeprefix("model/"): files[name] for name in sorted(weights(files))}
    return json.dumps({"files": gone, "again": "genloss model RUN --round N"}, indent=1) + "\n"


def again(run: Path, n: int) -> str:
    """The command that has the model of a round again."""
    return f"genloss model {run} --round {n}"


def check_kept(folder: Path, key: str | None = None, value: Any = None) -> None:
    """Refuse the folder of a model whose weights were not kept (UserError); `key` and `value` name it otherwise."""
    if (folder / NOTE).is_file():
        home = folder.absolute()
        command = again(home.parents[2], int(home.parent.name)) if home.parent.name.isdigit() else "genloss model"
        raise UserError(
            key or str(folder), value, f"was not kept (keep.models); `{command}` computes it again, beside the rounds"
        )
