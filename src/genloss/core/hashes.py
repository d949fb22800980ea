"""Hashes: of values, files, folders, and the versions of libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()  # a file's name may not be UTF-8


def sha256_json(value: Any) -> str:
    """Of a value as it is read from JSON again: keys are text."""
    return sha256_text(canonical(json.loads(canonical(value))))


_hashes: dict[tuple[int, int, int, int], str] = {}


def sha256_file(path: Path) -> str:
    """sha256 of a file; remembered for this process while inode (one for all links to it), size and time of change
    stay."""
    status = path.stat()
    mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if mark not in _hashes:
        with path.open("rb") as file:
            _hashes[mark] = hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[mark]


def tree_hash(files: dict[str, str]) -> str:
    """One sha256 for a set of files (name -> sha256)."""
    return sha256_text("\n".join(f"{name} {digest}" for name, digest in sorted(files.items())))


def folder_hash(folder: Path) -> str:
    """One sha256 for the files directly in a folder: a saved model or tokenizer outside of the run."""
    return tree_hash({f.name: sha256_file(f) for f in folder.iterdir() if f.is_file()})


@cache
def version(library: str) -> str:
    """The installed version of a distribution, or of the one that a top-level module is from; 'absent' if there is
    none."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.metadata.packages_distributions().get(library)
        return importlib.metadata.version(found[0]) if found else "absent"
