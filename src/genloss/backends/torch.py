"""The reference: a saved model in this process (genloss.language.sampling). Any architecture of transformers.

    genloss run recipe/backend=torch                                              # the default
    Torch().of(run / "rounds/03/model", run / "data").respond(["3+4:"], Decoding(max_tokens=16, bias=0)).texts

Each record has its own random stream, so that it depends neither on the number of workers nor on where a run was
resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from genloss.core.contracts import Backend, Decoding, Replies, Sampling
from genloss.language.constraint import check_constraint


@dataclass
class Torch(Backend):
    """Every option of `Decoding`."""

    def check_decoding(self, decoding: Decoding, prompted: bool = True) -> None:
        check_constraint(decoding.constraint)

    def sample(self, request: Sampling) -> Iterator[Replies]:
        from genloss.language.sampling import sample  # torch and transformers take seconds to load

        return sample(request)
