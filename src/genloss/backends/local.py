"""The model of a run answers prompts, in this process (genloss.language.sampling).

Local(run / "rounds/03/model", run / "data").respond(["3+4:"], Decoding(max_tokens=16, bias=0)).texts
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from genloss.core.contracts import Backend, Decoding, Replies, Report, Runtime, Sampling, silent


@dataclass(frozen=True)
class Local(Backend):
    """A saved model and the folder whose tokenizer/ it reads. Each prompt is answered from its own random stream, so
    that its response depends neither on the number of workers nor on where a run was resumed."""

    model: Path
    data: Path
    runtime: Runtime = field(default_factory=Runtime)

    def respond(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        *,
        seed: int = 0,
        scratch: Path | None = None,
        report: Report = silent,
    ) -> Replies:
        from genloss.language.sampling import sample  # torch and transformers take seconds to load

        if not prompts:
            return Replies([], 0, [])
        texts: list[str] = []
        finish: list[str] = []
        tokens = 0
        with tempfile.TemporaryDirectory() if scratch is None else nullcontext(scratch) as folder:
            request = Sampling(
                model=self.model,
                data=self.data,
                n=len(prompts),
                seed=seed,
                decoding=decoding,
                prompts=prompts,
                scratch=Path(folder),
                runtime=self.runtime,
                report=report,
            )
            for some in sample(request):
                texts += some.texts
                tokens += some.tokens
                finish += some.finish
        return Replies(texts, tokens, finish)
