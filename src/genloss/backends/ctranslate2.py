"""The model of the round by CTranslate2 (Klein et al. 2020): float32, or int8, which is faster and another model.

    genloss run recipe/backend=ctranslate2 recipe.backend.compute_type=int8

The model is converted once a round. CTranslate2's seed is global and read when a worker makes its first draw, so each
chunk (`recipe.chunk`) has a fresh worker with a seed of its own, on one thread: the chunk, not the record, is what is
the same in every run, whatever the number of workers and wherever a run was resumed. Asking for more records changes
those of the last chunk, if it was not full. Prompts of one length go through the model together.

In float32 greedy decoding gives the tokens of `torch`, and sampling its distributions. Log-probabilities are the
model's own, in float32 whatever the type here, by one forward pass of transformers over what was sampled."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.contracts import Backend, Decoding, Experiment, Replies, Sampling
from genloss.core.errors import UserError, first_line, one_of
from genloss.core.files import write_atomic
from genloss.core.machine import cores
from genloss.core.records import CUT, ENDED
from genloss.core.seeds import seed_of
from genloss.language import saved
from genloss.language.stops import stopped
from genloss.language.tokenizer import Codec, load_codec

# Those whose greedy tokens are transformers' own, by test. CTranslate2 4.8 lists others too, which it cannot convert
# beside transformers 5.23 (GPT-NeoX, OPT, Phi, MPT), or of which it makes another model (Gemma 2).
ARCHITECTURES = (
    *("BloomForCausalLM", "CodeGenForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM"),
    *("GPTJForCausalLM", "GemmaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"),
    "Qwen3ForCausalLM",
)
SEEDS = 1 << 31
SEEDING = threading.Lock()  # the seed is that of the process


@dataclass
class CTranslate2(Backend):
    compute_type: str = "float32"  # float32; int8: weights and products of 8 bits

    def __post_init__(self) -> None:
        one_of("compute_type", self.compute_type, ("float32", "int8"))

    def check(self, experiment: Experiment) -> None:
        if importlib.util.find_spec("ctranslate2") is None:
            raise UserError("_target_", "CTranslate2", "needs ctranslate2; pip install 'genloss[ctranslate2]'")

    def check_architecture(self, name: str) -> None:
        if name not in ARCHITECTURES:
            why = f"is none of those that CTranslate2 writes as transformers does ({', '.join(ARCHITECTURES)})"
            raise UserError("backend", name, f"{why}; take the backend torch")

    def check_decoding(self, decoding: Decoding, prompted: bool = True) -> None:
        for name, plain in (("min_p", 0), ("repetition_penalty", 1)):
            if getattr(decoding, name) != plain:
                why = f"is no option of CTranslate2; leave it at {plain}, or take the backend torch"
                raise UserError(name, getattr(decoding, name), why)
        if decoding.constraint:
            raise UserError("constraint", decoding.constraint, "is none of CTranslate2; take the backend torch")
        if decoding.bias not in (0, 1):
            why = "is no option of CTranslate2; 1 samples, 0 is greedy, and recipe/backend=torch has what is between"
            raise UserError("bias", decoding.bias, why)

    def sample(self, request: Sampling) -> Iterator[Replies]:
        options, codec = request.decoding, load_codec(request.data / "tokenizer")
        folder = self.converted(request, codec)
        scorer = _Scorer(request, codec) if options.logprobs else None
        prompts: list[list[int]] = [[]] * request.n
        if request.prompts is not None:
            prompts = [ids[: options.prefix] for ids in codec.prompts(request.prompts)]
        chunks = -(-request.n // options.chunk)

        def make(number: int) -> Replies:
            kept = request.scratch / f"chunk-{number:06d}.json"
            if kept.is_file():
                return Replies(**json.loads(kept.read_text()))
            own = prompts[number * options.chunk : (number + 1) * options.chunk]
            ids, finish = self.written(folder, codec, own, options, seed_of(request.seed, "chunk", number))
            tokens = sum(map(len, ids)) + finish.count(ENDED)
            shown = [p + row for p, row in zip(own, ids, strict=True)] if options.keep_prompt else ids
            made = Replies(codec.decode(shown), tokens, finish)
            made = stopped(made, options, codec, ids, own)
            if scorer:
                made = made._replace(ids=ids, logprobs=scorer(own, ids, finish))
            write_atomic(kept, json.dumps(made._asdict()))
            return made

        done = 0
        with ThreadPoolExecutor(min(chunks, request.runtime.workers or cores()) or 1) as pool:
            for made in pool.map(make, range(chunks)):
                done += len(made.texts)
                request.report(done, request.n, "records")
                yield made

    def written(
        self, folder: Path, codec: Codec, prompts: list[list[int]], options: Decoding, seed: int
    ) -> tuple[list[list[int]], list[str]]:
        """(token ids without the prompt, how it ended) of each record of a chunk, by a fresh worker."""
        import ctranslate2

        (begin,) = codec.spelled([codec.begin])
        draw = {
            "sampling_topk": (options.top_k if options.top_k < codec.size else 0) if options.bias else 1,  # 0: all
            "sampling_topp": options.top_p,
            "sampling_temperature": options.temperature,
        }
        with SEEDING:
            ctranslate2.set_random_seed(seed % SEEDS)
            worker = ctranslate2.Generator(
                str(folder), compute_type=self.compute_type, inter_threads=1, intra_threads=1
            )
            worker.generate_batch([[begin]], max_length=1, sampling_topk=0)  # it takes the seed now
        beyond = json.loads((folder / "beyond.json").read_text())
        ids: list[list[int]] = [[]] * len(prompts)
        finish = [CUT] * len(prompts)
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            room = options.longest(length) - length
            found = worker.generate_batch(
                [[begin, *codec.spelled(prompts[i])] for i in rows],
                max_length=room,
                end_token=[codec.end],
                include_prompt_in_result=False,
                suppress_sequences=beyond or None,
                **draw,
            )
            for i, result in zip(rows, found, strict=True):
                ids[i] = list(result.sequences_ids[0])
                finish[i] = CUT if len(ids[i]) >= room else ENDED
        return ids, finish

    def converted(self, request: Sampling, codec: Codec) -> Path:
        """The folder of the model as CTranslate2 reads it; made in `request.scratch`, once."""
        folder = request.scratch / f"ctranslate2-{self.compute_type}"
        if folder.is_dir():
            return folder
        from ctranslate2.converters import TransformersConverter
        from transformers import PreTrainedTokenizerFast

        from genloss.language.model import load

        model = load(request.model)  # an adapter is merged
        self.check_architecture(type(model).__name__)

        class Converter(TransformersConverter):
            def load_model(self, *_: Any, **__: Any) -> Any:
                return model

            def load_tokenizer(self, *_: Any, **__: Any) -> Any:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(request.data / "tokenizer")
                tokenizer.unk_token = tokenizer.unk_token or tokenizer.eos_token  # some loaders want one
                return tokenizer

        aside = folder.with_name(f".{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        kept = saved.base_of(request.model) or request.model
        try:
            Converter(str(kept)).convert(str(aside), quantization=self.compute_type, force=True)
        except Exception as error:  # the library raises many kinds; all mean that it cannot be converted
            why = f"CTranslate2 cannot convert {type(model).__name__} ({first_line(error)})"
            raise UserError("recipe.backend", "CTranslate2", f"{why}; take the backend torch") from None
        known = json.loads((aside / "vocabulary.json").read_text(encoding="utf-8"))
        if known[: codec.size] != codec.spelled(range(codec.size)):
            why = "takes tokens by their names, and this tokenizer has gaps between its numbers"
            raise UserError("recipe.backend", "CTranslate2", f"{why}; take the backend torch")
        # rows of the matrix that are no tokens, and are not to be sampled
        write_atomic(aside / "beyond.json", json.dumps([[token] for token in known[codec.size :]]))
        os.replace(aside, folder)
        return folder


class _Scorer:
    """The log-probabilities of what was sampled; one at a time, since the model has its own threads."""

    def __init__(self, request: Sampling, codec: Codec):
        from genloss.language.model import load

        self.model, self.codec, self.lock = load(request.model), codec, threading.Lock()

    def __call__(self, prompts: list[list[int]], ids: list[list[int]], finish: list[str]) -> list[list[float]]:
        from genloss.language.likelihood import token_logprobs

        whole = [prompt + row for prompt, row in zip(prompts, ids, strict=True)]
        ended = [end == ENDED for end in finish]
        with self.lock:
            return token_logprobs(self.model, self.codec, whole, list(map(len, prompts)), ended)
