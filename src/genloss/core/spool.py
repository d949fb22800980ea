"""A spool: texts that lie on disk in the order in which they came, and are read in any.

    spool = Spool(folder)
    spool.add("name", "text")           # number 0
    spool[0]                            # ("name", "text")

Memory: 8 bytes a pair, whatever its length. The file has no name, and is gone with the object or the process."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path
from typing import IO

HELD = 1 << 20  # bytes that are written together


class Spool:
    """Pairs of texts in a file below `folder`, which is as large as they are."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=HELD)  # noqa: SIM115 - its life is ours
        self._edges = array("q", [0])  # bytes
        self._written = 0  # pairs that are on disk

    def __len__(self) -> int:
        return len(self._edges) - 1

    def add(self, name: str, text: str) -> None:
        head, body = (part.encode(errors="surrogatepass") for part in (name, text))
        self._file.write(b"%d %b%b" % (len(head), head, body))
        self._edges.append(self._file.tell())

    def __getitem__(self, number: int) -> tuple[str, str]:
        if number >= self._written:
            self._file.flush()
            self._written = len(self)
        at = self._edges[number]
        size, _, rest = os.pread(self._file.fileno(), self._edges[number + 1] - at, at).partition(b" ")
        n = int(size)
        return rest[:n].decode(errors="surrogatepass"), rest[n:].decode(errors="surrogatepass")
