"""Sampling speed against transformers' generate() and CTranslate2, each at its best of some settings, on the same model
and prompts.

    pip install ctranslate2                        # its rows are left out without it
    python benchmarks/generation.py demo           # 0.12 M parameters, from document start
    python benchmarks/generation.py 2m             # 2.2 M parameters, 16 tokens of prompt and 112 new ones
    python benchmarks/generation.py 135m           # SmolLM2-135M, the same; install it as conf/model/smollm2.yaml says
    python benchmarks/generation.py 135m-low       # the same in bfloat16 and int8, against CTranslate2's

The first three are in float32. Contenders take turns, and the best of their turns counts; one to five minutes on two
cores. Tokens are those that belong to a record, its end among them; padding after a record's end counts for nobody.
Loading a model is not measured. The bounds on two cores: 5, 5.5 and 2 times generate(), and CTranslate2's speed.
Bits per byte are those of what was sampled, under the model in float32: what lower precision changes is seen there.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from common import demo_model, scratch, table
from genloss.core.contracts import Decoding, Fit, Runtime, Sampling
from genloss.core.machine import cores
from genloss.core.records import read, write
from genloss.experiment import Experiment
from genloss.language import sampling
from genloss.language.model import Pretrained, load
from genloss.language.packing import given
from genloss.language.scoring import Window, score
from genloss.language.tokenizer import load_codec
from genloss.workflow.compose import compose

SMALL = ["model.width=192", "model.layers=4", "model.heads=6", "model.kv_heads=6", "model.feed_forward=512"]
LONGEST = 128  # tokens of a record, its prompt included


@dataclass
class Size:
    records: int
    prompt: int
    turns: int
    chunk: int
    ours: list[tuple[str, str]]  # kernel, compute_type
    generate: list[tuple[int, int]]  # batch, threads
    ctranslate2: list[tuple[int, str]]  # batch, compute_type
    bound: float | None  # of the ratio to generate()


BOTH = [("fused", "float32"), ("torch", "float32")]
BATCHES = [(batch, "float32") for batch in (32, 64, 128)]
SIZES = {
    "demo": Size(2048, 0, 3, 256, BOTH, [(256, 1), (512, 1), (256, 2), (512, 2)], BATCHES, 5.0),
    "2m": Size(512, 16, 2, 128, BOTH, [(128, 2), (256, 2), (512, 2)], BATCHES, 5.5),
    "135m": Size(128, 16, 1, 64, BOTH[:1], [(32, 2), (64, 2), (128, 2)], BATCHES[:2], 2.0),
    "135m-low": Size(
        128,
        16,
        2,
        64,
        [("fused", "int8"), ("fused", "bfloat16"), ("fused", "float32")],
        [],
        [(16, "int8"), (32, "int8"), (64, "int8"), (32, "bfloat16"), (64, "bfloat16")],
        None,
    ),
}


def model_of(size: str, folder: Path) -> tuple[Path, Path]:
    """(folder with a tokenizer/, model folder)"""
    if size == "demo":
        _, data, model = demo_model(folder)
        return data, model
    data, out = folder / "data", folder / "fit"
    x = Experiment(compose([*SMALL, "domain.vocabulary=2048"] if size == "2m" else ["experiment=smollm2"]))
    x.domain.prepare(data)
    if size.startswith("135m"):
        assert isinstance(x.model, Pretrained)
        return data, x.model.folder()
    real = folder / "real.parquet"
    write(read(data / "train.parquet").slice(0, 64), real)
    x = Experiment(compose([*SMALL, "domain.vocabulary=2048", "trainer.steps=1", "trainer.warmup=0"]))
    x.trainer.train(Fit(x.model, x.trainer, data, [real], [1.0], None, 1, out, x.domain.config("train")))
    return data, out / "model"


class Contest:
    """The contenders' models, loaded once, and their prompts."""

    def __init__(self, size: Size, data: Path, model: Path, folder: Path):
        self.size, self.data, self.model, self.folder = size, data, model, folder
        self.codec, self.loaded = load_codec(data / "tokenizer"), load(model)
        texts = read(data / "prompts.parquet").column("text").to_pylist()[: 2 * size.records]
        long = [(t, ids[: size.prompt]) for t, ids in zip(texts, self.codec.encode(texts), strict=True)]
        long = [(t, ids) for t, ids in long if len(ids) == size.prompt]
        self.texts, self.ids = (list(some) for some in zip(*(long * size.records)[: size.records], strict=True))
        self.turn = 0
        self.made: dict[str, list[list[int]]] = {}  # the last turn's records

    def ours(self, how: str, kernel: str, compute_type: str) -> float:
        """Tokens per second."""
        self.turn += 1
        options: dict[str, Any] = {"kernel": kernel, "compute_type": compute_type, "keep_prompt": True}
        decoding = Decoding(LONGEST, prompt_tokens=self.size.prompt or None, chunk=self.size.chunk, **options)
        prompts = self.texts if self.size.prompt else None
        place = self.folder / f"scratch-{self.turn}"
        request = Sampling(self.model, self.data, self.size.records, self.turn, decoding, prompts, place, Runtime())
        vars(sampling)["load"] = lambda folder: self.loaded  # loading is not measured
        began = time.perf_counter()
        made = list(sampling.sample(request))
        took = time.perf_counter() - began
        self.made[how] = self.codec.encode([text for some in made for text in some.texts])
        return sum(some.tokens for some in made) / took

    @torch.inference_mode()
    def generate(self, batch: int, threads: int) -> float:
        torch.set_num_threads(threads)
        self.loaded.set_attn_implementation("sdpa")
        began, tokens = time.perf_counter(), 0
        for at in range(0, self.size.records, batch):
            given = torch.tensor([[self.codec.begin, *ids] for ids in self.ids[at : at + batch]])
            made = self.loaded.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=True,
                top_k=0,
                max_new_tokens=LONGEST - self.size.prompt,
                eos_token_id=self.codec.end,
                pad_token_id=self.codec.end,
            )[:, given.shape[1] :]
            ended = (made == self.codec.end).int().cumsum(1)
            tokens += int((ended == 0).sum() + (ended.max(1).values > 0).sum())
        return tokens / (time.perf_counter() - began)

    def bits(self, how: str) -> float:
        """Per byte, of what was sampled, without prompts, under the model in float32."""
        prompt = self.size.prompt
        windows = [
            Window(i, [self.codec.begin, *given(ids[:prompt]), *ids[prompt:]]) for i, ids in enumerate(self.made[how])
        ]
        nats, _ = score(self.model, self.codec, windows, len(windows), LONGEST)
        written = self.codec.decode([ids[prompt:] for ids in self.made[how]])
        return float(nats.sum()) / math.log(2) / sum(len(text.encode()) for text in written)

    def convert(self) -> Path:
        """The model as CTranslate2 reads it."""
        import ctranslate2

        source, target = self.folder / "source", self.folder / "converted"
        shutil.copytree(self.model, source)
        for file in (self.data / "tokenizer").iterdir():
            shutil.copy(file, source / file.name)
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(target))
        return target

    def ctranslate2(self, how: str, generator: Any, batch: int) -> float:
        name = self.codec._tokenizer.id_to_token
        given = [[name(i) for i in [self.codec.begin, *ids]] for ids in self.ids]
        new = LONGEST - self.size.prompt
        began = time.perf_counter()
        made = generator.generate_batch(
            given,
            max_batch_size=batch,
            max_length=new,
            sampling_topk=0,
            include_prompt_in_result=False,
            end_token=name(self.codec.end),
        )
        took = time.perf_counter() - began
        lengths = [len(result.sequences_ids[0]) for result in made]
        self.made[how] = [[*ids, *result.sequences_ids[0]] for ids, result in zip(self.ids, made, strict=True)]
        return sum(n + (n < new) for n in lengths) / took


def main(name: str) -> None:
    size = SIZES[name]
    with scratch() as temporary:
        folder = Path(temporary)
        contest = Contest(size, *model_of(name, folder), folder)
        parameters = sum(p.numel() for p in contest.loaded.parameters())
        contenders: dict[str, Callable[[], float]] = {}
        for kernel, kind in size.ours:
            how = f"genloss, {kernel}, {kind}"
            contenders[how] = partial(contest.ours, how, kernel, kind)
        for batch, threads in size.generate:
            contenders[f"generate(), batch {batch}, {threads} threads"] = partial(contest.generate, batch, threads)
        if find_spec("ctranslate2"):
            import ctranslate2

            place = str(contest.convert())
            known = ctranslate2.get_supported_compute_types("cpu")  # not bfloat16 on every machine
            asked = [(batch, kind) for batch, kind in size.ctranslate2 if kind in known]
            generators = {
                kind: ctranslate2.Generator(place, compute_type=kind, inter_threads=cores(), intra_threads=1)
                for kind in {kind for _, kind in asked}
            }
            for batch, kind in asked:
                how = f"CTranslate2, {kind}, batch {batch}, {cores()} x 1 threads"
                contenders[how] = partial(contest.ctranslate2, how, generators[kind], batch)
        found: dict[str, list[float]] = {how: [] for how in contenders}
        for _ in range(size.turns):
            for how, run in contenders.items():
                found[how].append(run())
        bits = {how: f"{contest.bits(how):.3f}" for how in contest.made}
    best = {how: max(speeds) for how, speeds in found.items()}
    peers = {
        p: max((v for k, v in best.items() if k.startswith(p)), default=0.0) for p in ("generate()", "CTranslate2")
    }
    rows = [
        [how, f"{v:,.0f}", *(f"{v / peer:.2f}" if peer else "" for peer in peers.values()), bits.get(how, "")]
        for how, v in best.items()
    ]
    title = f"Sampling: {parameters / 1e6:.2f} M parameters, {size.records} records"
    table(title, ["", "tokens/s", "ratio to generate()", "to CTranslate2", "bits per byte"], rows)
    against = f"{size.bound} times generate(), " if size.bound else ""
    print(f"\nbounds: {against}1.0 times CTranslate2")


if __name__ == "__main__":
    if sys.argv[1:] not in ([name] for name in SIZES):
        sys.exit(f"python benchmarks/generation.py {'|'.join(SIZES)}")
    main(sys.argv[1])
