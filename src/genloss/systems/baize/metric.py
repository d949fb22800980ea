"""How much a chat model's answers vary."""

from __future__ import annotations

from dataclasses import dataclass

from genloss.core import records
from genloss.core.contracts import Decoding
from genloss.core.errors import require
from genloss.domains.instruct import Instruct
from genloss.evaluate import Evidence, Metric


@dataclass
class ResponseEntropy(Metric):
    """Of model n's sampled answers (temperature 1, one each) to the last requests of the frozen real test split:
    response_entropy, the mean of -ln p(answer) in nats, an unbiased estimate of the entropy of an answer given its
    request; an end counts, and of an answer that is cut off at domain.context what is there. Self-distillation that
    keeps the best answers lowers it. response_entropy_token: per token."""

    max_records: int = 512
    chunk: int = 256  # requests answered together
    needs = (Instruct,)

    def __post_init__(self) -> None:
        require(self.max_records >= 1, "max_records", self.max_records, "at least 1")
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def measure(self, evidence: Evidence) -> dict[str, float]:
        domain = evidence.domain
        assert isinstance(domain, Instruct)
        test = records.read(evidence.data / "test.parquet").slice(0, self.max_records)
        said = domain.backend(evidence.model, evidence.data, evidence.runtime).respond(
            domain.prompts(test),
            Decoding(domain.context, chunk=self.chunk, logprobs=True),
            seed=evidence.seed,
            report=evidence.report,
        )
        assert said.logprobs is not None
        total = -sum(map(sum, said.logprobs))
        tokens = sum(map(len, said.logprobs))
        return {"response_entropy": total / len(said.logprobs), "response_entropy_token": total / max(1, tokens)}
