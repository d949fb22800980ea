"""The reference: a saved model in this process (genloss.language.sampling). Any architecture of transformers.

    genloss run recipe/backend=torch                                              # the default
    genloss run recipe.backend.kernel=fused          # Llama-like models on CPUs, faster: pip install 'genloss[fast]'
    genloss run recipe.backend.compute_type=bfloat16 # faster where the hardware has it, and another model
    Torch().of(run / "rounds/03/model", run / "data").respond(["3+4:"], Decoding(max_tokens=16, bias=0)).texts

Each record has its own random stream, so that it depends neither on the number of workers nor on where a run was
resumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

from genloss.core.contracts import Backend, Decoding, Replies, Sampling
from genloss.core.errors import UserError, one_of
from genloss.language.constraint import check_constraint

COMPUTES = {"torch": ("float32", "bfloat16"), "fused": ("float32", "bfloat16", "int8")}  # by kernel
FUSED = ("LlamaForCausalLM", "Qwen2ForCausalLM")  # of genloss.language.fused, which checks more where work begins


@dataclass
class Torch(Backend):
    """Every option of `Decoding`. kernel: fused rounds in other ways than torch, so that it is part of the identity.
    compute_type: of the matrix products while sampling; training, losses and log-probabilities are in float32."""

    kernel: str = "torch"
    compute_type: str = "float32"

    def __post_init__(self) -> None:
        one_of("kernel", self.kernel, tuple(COMPUTES))
        if self.compute_type == "int8" and self.kernel == "torch":
            raise UserError("compute_type", "int8", "is of the compiled kernels; set kernel=fused too")
        one_of("compute_type", self.compute_type, COMPUTES[self.kernel])
        if self.kernel == "fused" and find_spec("numba") is None:
            raise UserError("kernel", self.kernel, "needs numba; pip install 'genloss[fast]'")

    def classes(self) -> tuple[type, ...]:
        if self.kernel == "torch":
            return ()
        from genloss.language.fused import Fused

        return (Fused,)

    def check_decoding(self, decoding: Decoding, prompted: bool = True) -> None:
        check_constraint(decoding.constraint)
        if decoding.constraint and self.kernel == "fused":
            raise UserError("constraint", decoding.constraint, "is none of backend.kernel=fused; set that to torch")

    def check_architecture(self, name: str) -> None:
        if self.kernel == "fused" and name not in FUSED:
            why = f"is for {' and '.join(FUSED)}, and the model is a {name}; set it to torch"
            raise UserError("backend.kernel", self.kernel, why)

    def sample(self, request: Sampling) -> Iterator[Replies]:
        from genloss.language.sampling import sample  # torch and transformers take seconds to load

        decoding = replace(request.decoding, kernel=self.kernel, compute_type=self.compute_type)
        return sample(replace(request, decoding=decoding))
