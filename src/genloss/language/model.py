"""Models of the text domain: a fresh GPT-2 or Llama of any size, or any saved causal language model to continue from.

genloss run model=llama                       # 0.1 M parameters: seconds a round on one core
genloss run model=gpt2 model.layers=4
genloss run model=pretrained model.path=my/model recipe.n=64
genloss run model=pretrained model.path=hub:OWNER/NAME model.revision=COMMIT model/adapter=lora
genloss run experiment=smollm2                # SmolLM2-135M, with adapters

load(run / "rounds/03/model")                 # the model of a round, whether saved whole or as an adapter
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from genloss.core.capabilities import Tokenized, able
from genloss.core.contracts import STARTS, Experiment, Fit, Model, Plugin, Runtime, Size
from genloss.core.errors import UserError, first_line, one_of, require
from genloss.core.hashes import sha256_file
from genloss.core.places import on_hub
from genloss.core.plugin import build
from genloss.language import saved
from genloss.language.adapter import Lora, merged
from genloss.language.adapter import save as save_adapter
from genloss.language.tokenizer import load_codec, vocabulary_of

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


class TextModel(Model):
    """`fresh` gives the model that a training without a `start` begins with."""

    needs: ClassVar[tuple[type, ...]] = (Tokenized,)

    def fresh(self, vocabulary: int, begin: int, end: int, context: int, seed: int) -> Any:
        raise NotImplementedError

    def initial(self, fit: Fit) -> Any:
        """The model that a training begins with, in training mode."""
        if fit.start:
            return load(fit.start).train()
        codec = load_codec(fit.data / "tokenizer")
        return self.fresh(codec.size, codec.begin, codec.end, fit.options["context"], fit.seed).train()

    def save(self, model: Any, fit: Fit, weights: dict[str, Any] | None = None) -> None:
        """Write what was trained to model/ of `fit.out`. weights: where a strategy of Lightning holds them."""
        write(model, fit, weights)


@dataclass
class Scratch(TextModel):
    """A random decoder-only transformer: arch llama (Touvron et al. 2023) or gpt2 (Radford et al. 2019).

    `initial_std` matters at this size: with the library's 0.02 a width of 64 stays on the plateau of the loss for
    hundreds of steps, and when it leaves is luck. 0.08 settles for every seed (docs/decisions.md, "Settled training").
    """

    arch: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 1  # llama only; fewer key-value heads make sampling faster (Shazeer 2019)
    feed_forward: int = 160
    initial_std: float = 0.08
    options: dict[str, Any] = field(default_factory=dict)  # any other argument of the transformers config
    compile: bool = False  # by torch.compile, while it trains

    def __post_init__(self) -> None:
        one_of("arch", self.arch, ("llama", "gpt2"))
        for key in ("layers", "width", "heads", "kv_heads", "feed_forward"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads={self.heads}")
        require(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads={self.heads}")

    def check(self, experiment: Experiment) -> None:
        """Whether transformers takes the options: it knows their names, and a model can be made (without memory)."""
        check_compiler(self.compile)
        if not self.options:  # else its import costs seconds
            return
        import torch

        try:
            with torch.device("meta"):
                config = self.fresh(vocabulary=300, begin=0, end=0, context=64, seed=0).config
        except Exception as error:  # whatever the library says of them
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError("options", self.options, f"is refused by transformers ({said[-1].strip()})") from None
        known = {f.name for f in fields(config)} | set(config.attribute_map) | {"rope_theta", "rope_scaling"}
        for name in self.options:
            one_of("options", name, known)

    def initial(self, fit: Fit) -> Any:
        model = super().initial(fit)
        if self.compile:
            model.compile()
        return model

    def architecture(self) -> str:
        return {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[self.arch]

    def size(self, experiment: Experiment) -> Size:
        import torch

        domain = able(experiment.domain, Tokenized)
        with torch.device("meta"):
            numbers = _numbers(self.fresh(getattr(domain, "vocabulary", 512), 0, 0, domain.context, seed=0))
        return Size(4 * numbers, numbers)

    def fresh(self, vocabulary: int, begin: int, end: int, context: int, seed: int) -> Any:
        import torch

        quiet()
        special: dict[str, Any] = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end, "use_cache": True}
        torch.manual_seed(seed)
        if self.arch == "llama":
            from transformers.models.llama import LlamaConfig, LlamaForCausalLM

            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=self.width,
                    intermediate_size=self.feed_forward,
                    num_hidden_layers=self.layers,
                    num_attention_heads=self.heads,
                    num_key_value_heads=self.kv_heads,
                    max_position_embeddings=context,
                    tie_word_embeddings=True,
                    initializer_range=self.initial_std,
                    **special,
                    **self.options,
                )
            )
        from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

        no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_embd=self.width,
                n_inner=self.feed_forward,
                n_layer=self.layers,
                n_head=self.heads,
                n_positions=context,
                initializer_range=self.initial_std,
                **special,
                **(no_dropout | self.options),
            )
        )


@dataclass
class Pretrained(TextModel):
    """Any causal language model of transformers that somebody saved: a folder, hub:OWNER/NAME, a GGUF file, or one of
    these in a Python package, as package:MODULE/PATH. Safetensors only, no remote code; every cold start begins from
    it. Its tokenizer is the domain's (`domain.tokenizer`), unless told otherwise.

    dtype is what is saved. Without an adapter all weights are trained in float32 and rounded once, at the end of a
    round: in bfloat16 nearly every step would be smaller than half the distance to the next number, and be lost. With
    one they are frozen, in `dtype`, and the adapter is float32."""

    path: str = "???"
    revision: str | None = None  # of hub:NAME: a commit, since names move
    sha256: str | None = None  # of a file, or of the model in a folder: others are refused
    dtype: str = "auto"  # auto: the checkpoint's
    attention: str = "sdpa"  # while it trains: an implementation of transformers
    gradient_checkpointing: bool = False  # computes activations twice instead of keeping them
    compile: bool = False  # by torch.compile, while it trains
    adapter: dict[str, Any] = field(default_factory=dict)  # a Lora; empty: all weights are trained

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, ("auto", *DTYPES))
        one_of("attention", self.attention, ATTENTION)
        self.lora = build(self.adapter, Lora, "adapter") if self.adapter else None

    def parts(self) -> Mapping[str, Plugin]:
        return {"adapter": self.lora} if self.lora else {}

    def architecture(self) -> str | None:
        return saved.architecture(self.path, self.revision)

    def starts(self) -> tuple[str, ...]:
        return STARTS if self.lora else super().starts()

    # -- the files -----------------------------------------------------------------------------------------------------

    def folder(self) -> Path:
        return saved.folder_of(self.path, "model.path", self.revision)

    def places(self) -> tuple[str, ...]:
        return ("path", "revision", "sha256")

    def fingerprint(self) -> str:
        return saved.identity(self.folder())

    def check(self, experiment: Experiment) -> None:
        domain = able(experiment.domain, Tokenized)
        check_compiler(self.compile)
        saved.check_saved(self.path, "path")
        if self.revision and not on_hub(self.path):
            raise UserError("revision", self.revision, "is of a model on a hub, and model.path is none; leave it out")
        if self.sha256 and not on_hub(self.path):
            saved.check_sha256(saved.place_of(self.path), self.path, self.sha256, "sha256")
        if domain.tokenizer == "bpe":
            why = f"a pretrained model needs its own tokenizer: leave it out, or set domain.tokenizer={self.path}"
            raise UserError("domain.tokenizer", "bpe", why)
        if self.lora and self.lora.use_dora and experiment.trainer.start == "stacked":
            why = "takes no DoRA: peft measures the rows of the base alone, not with the adapters between"
            raise UserError("trainer.start", "stacked", f"{why}; set model.adapter.use_dora=false")
        if folder := saved.at_hand(self.path, "path", self.revision):
            self._fits(folder, domain)

    def ready(self, experiment: Experiment) -> None:
        folder = self.folder()
        if self.sha256 and on_hub(self.path):
            saved.check_sha256(folder, self.path, self.sha256, "sha256")
        self._fits(folder, able(experiment.domain, Tokenized))
        saved.remember(folder)

    def _fits(self, folder: Path, domain: Tokenized) -> None:
        """Refuse a folder that holds no model which can be trained here."""
        config = saved.config(folder)
        pickled = sorted(f.name for pattern in saved.PICKLED for f in folder.glob(pattern))
        if (folder / saved.ADAPTER).is_file():
            raise UserError("path", self.path, "holds an adapter, and no model; merge it into its base first")
        if not any(folder.glob("*.safetensors")):
            held = (
                f"only pickled weights ({pickled[0]}), which run code when they are read" if pickled else "no weights"
            )
            raise UserError("path", self.path, f"holds {held}; save the model as safetensors")
        if wrong := saved.damaged(folder):
            raise UserError("path", self.path, f"is damaged: {wrong}; copy or download it again")
        if quantised := config.get("quantization_config"):
            method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
            why = f"holds {method} weights, which cannot be trained; name the model that it was made from"
            raise UserError("path", self.path, why)
        if "auto_map" in config and not _known(config.get("model_type")):
            why = f"cannot be loaded: {config.get('model_type')} is no architecture of transformers, and code that lies"
            raise UserError("path", self.path, f"{why} beside a model is never run")
        text = config.get("text_config") or config
        room = next((text[k] for k in ("max_position_embeddings", "n_positions", "max_seq_len") if k in text), None)
        if isinstance(room, int) and domain.context > room:
            why = f"is more than the model can read, {room} tokens; lower it"
            raise UserError("domain.context", domain.context, why)
        _same_tokens(folder, domain)
        if self.lora:
            model = _without_memory(folder, sha256_file(folder / "config.json"))
            try:
                self.lora.fits(model)
            except UserError as error:
                raise error.under("adapter") from None

    def _saves(self) -> str:
        """The dtype of what is saved, by its name."""
        if self.dtype != "auto":
            return self.dtype
        config = saved.config(self.folder())
        kept = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        return kept if kept in DTYPES else "float32"

    def size(self, experiment: Experiment) -> Size:
        folder = saved.at_hand(self.path, "path", self.revision)
        if folder is None:  # what a GGUF file will be
            file = None if on_hub(self.path) else saved.place_of(self.path)
            return Size(4 * file.stat().st_size if file and not self.lora else 0)
        model = _without_memory(folder, sha256_file(folder / "config.json"))
        if self.lora:
            numbers = self.lora.numbers(model)
            return Size(4 * numbers, numbers)
        numbers = _numbers(model)
        return Size(numbers * (4 if self._saves() == "float32" else 2), numbers)

    # -- the training --------------------------------------------------------------------------------------------------

    def fresh(self, vocabulary: int, begin: int, end: int, context: int, seed: int) -> Any:
        import torch

        folder = self.folder()
        try:
            model, unused = _read(folder, self._saves() if self.lora else "float32")
        except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
            raise UserError("model.path", self.path, f"cannot be loaded ({first_line(error)})") from None
        if unused:
            why = f"{len(unused)} of its weights ({unused[0]} first) are none of a {type(model).__name__} of its config"
            print(f"genloss: warning: model.path={self.path}: {why}, and are not used", file=sys.stderr)
        if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
            raise UserError("model.path", self.path, "holds weights that are no numbers; it has diverged")
        if looks_ahead(model):
            why = "is no causal language model: what it says of a token depends on those after it"
            raise UserError("model.path", self.path, f"{why}; choose another")
        if model.config.get_text_config().vocab_size < vocabulary:
            raise UserError(
                "domain.tokenizer", None, f"has {vocabulary} tokens, more than the model at {self.path} knows"
            )
        return model

    def initial(self, fit: Fit) -> Any:
        if self.lora is None and fit.start:
            model = load(fit.start)
        else:
            codec = load_codec(fit.data / "tokenizer")
            model = self.fresh(codec.size, codec.begin, codec.end, fit.options["context"], fit.seed)
        if self.lora:
            model = self.lora.on(model, fit.start, fit.trainer.start == "stacked", fit.seed)
        try:
            model.set_attn_implementation(self.attention)
        except (ImportError, ValueError) as error:
            why = f"is not to be had for this model here ({first_line(error)}); set model.attention=eager"
            raise UserError("model.attention", self.attention, why) from None
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile:
            model.compile()
        return model.train()

    def save(self, model: Any, fit: Fit, weights: dict[str, Any] | None = None) -> None:
        if self.lora is None:
            write(model, fit, weights, self._saves())
            return
        folder, base = fit.out / "model", self.folder()
        save_adapter(model, folder, saved.remember(base), fit.start, weights)
        shutil.copyfile(base / "config.json", folder / "config.json")  # says what the adapter is of
        beside(fit, folder)


def check_compiler(wanted: bool) -> None:
    """Refuse to compile models where nothing can: torch.compile writes C++."""
    known = [os.environ.get("CXX", ""), "g++", "clang++"]
    if wanted and not any(shutil.which(name) for name in known if name):
        raise UserError("compile", True, "needs a C++ compiler, and there is no g++ or clang++; leave it false")


def _numbers(model: Any) -> int:
    """Parameters of a model, those that are tied once."""
    return sum(p.numel() for p in model.parameters())


def _known(architecture: Any) -> bool:
    """Whether it is one of transformers'."""
    from transformers import CONFIG_MAPPING

    return architecture in CONFIG_MAPPING


def _same_tokens(folder: Path, domain: Tokenized) -> None:
    """Refuse a tokenizer whose tokens have other numbers than in the one that lies beside the model."""
    other = saved.at_hand(domain.tokenizer, "domain.tokenizer")
    own, given = (f / "tokenizer.json" if f else None for f in (folder, other))
    if not (own and given and own.is_file() and given.is_file()) or sha256_file(own) == sha256_file(given):
        return
    known, chosen = (vocabulary_of(file) for file in (own, given))
    moved = [token for token, i in chosen.items() if known.get(token, i) != i or token not in known]
    if moved:
        why = f"is not this model's: {len(moved)} of its {len(chosen)} tokens have other numbers there, or none"
        raise UserError("domain.tokenizer", domain.tokenizer, f"{why} ({moved[0]!r}); leave it out for the model's own")


@cache
def _without_memory(folder: Path, config: str) -> Any:
    """The model in a folder, without its weights. config: sha256 of its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet()
    try:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
        raise UserError("path", str(folder), f"cannot be loaded ({first_line(error)})") from None


def looks_ahead(model: Any) -> bool:
    """Whether what a model says of a token depends on those after it."""
    import torch

    model.eval()
    with torch.inference_mode():
        tokens = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2]], device=model.device)
        first, second = model(input_ids=tokens, use_cache=False).logits[:, :2].float()
    return not torch.allclose(first, second, atol=1e-3, rtol=1e-3, equal_nan=True)


# -- loading and saving ------------------------------------------------------------------------------------------------


def quiet() -> None:
    """No progress bars of the library: a model here loads in milliseconds, and genloss shows its own progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def read(folder: Path, dtype: str) -> Any:
    """A saved causal language model in `dtype`: safetensors alone, no remote code. Raises what transformers raises."""
    return _read(folder, dtype)[0]


def _read(folder: Path, dtype: str) -> tuple[Any, list[str]]:
    """(the model, names of saved weights that it has no use for)."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # else the error names none of them
    )
    model, found = loaded
    if wrong := sorted(found["mismatched_keys"], key=str):
        name, held, wanted = wrong[0]
        raise ValueError(f"{name} has the shape {list(held)} in its file, and {list(wanted)} by its config.json")
    if missing := sorted(found["missing_keys"]):  # they would be random, and others each time
        raise ValueError(f"its files lack {len(missing)} of a {type(model).__name__}'s weights, {missing[0]} first")
    return model, sorted(found["unexpected_keys"])


def load(folder: Path, dtype: str = "float32") -> Any:
    """A model that a run saved, or any saved one, to sample from or to score with: in evaluation mode, computing in
    `dtype`, an adapter merged into its base. What was saved in bfloat16 is the same numbers in float32."""
    base = saved.base_of(folder)
    try:
        if base:
            return merged(read(base, dtype), folder).eval()
        return read(folder, dtype).eval()
    except Exception as error:  # the libraries raise many kinds; all mean that it cannot be loaded
        raise UserError(str(folder), None, f"cannot be loaded ({first_line(error)}); delete it and run again") from None


def write(model: Any, fit: Fit, weights: dict[str, Any] | None = None, dtype: str = "float32") -> None:
    """Save a model to model/ of `fit.out`, in `dtype`, with its tokenizer: its own weights, or `weights`, where a
    strategy of Lightning holds them."""
    import torch

    folder, kind = fit.out / "model", getattr(torch, dtype)
    weights = model.state_dict() if weights is None else weights
    tied = {name: source for name, source in model.all_tied_weights_keys.items() if source in weights}
    # from a GPU each of two tied weights comes as a copy of its own; one tensor for both is saved once
    moved = {
        name: tensor.detach().to("cpu", kind if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in weights.items()
        if name not in tied
    }
    generation, end = model.generation_config, load_codec(fit.data / "tokenizer").end
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if end not in ends:  # a document that ends; the model's own end is that of a turn of a chat
        generation.eos_token_id = [end, *(known for known in ends if known is not None)]
    generation.do_sample = True
    model.save_pretrained(folder, state_dict={name: moved[tied.get(name, name)] for name in weights})
    if dtype != "float32":
        model.config.dtype = kind  # save_pretrained says that of the weights in memory
        model.config.save_pretrained(folder)
    beside(fit, folder)


def beside(fit: Fit, folder: Path) -> None:
    """Put the tokenizer beside a model, so that transformers alone can use it."""
    for file in (fit.data / "tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)


def device_of(runtime: Runtime) -> str:
    import torch

    if runtime.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return "cuda"
    return "cpu"


def one_thread() -> None:
    """Of torch, in this thread; a new one has as many as there are cores, whatever others were told."""
    import torch

    torch.set_num_threads(1)
