"""Models of the text domain: a fresh GPT-2 or Llama of any size, or any saved causal language model to continue from.

genloss run model=llama                       # 0.1 M parameters: seconds a round on one core
genloss run model=gpt2 model.layers=4
genloss run model=pretrained model.path=my/model domain.tokenizer=my/model recipe.n=64
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from genloss.core.capabilities import Tokenized, able
from genloss.core.contracts import Experiment, Model, Runtime
from genloss.core.errors import UserError, first_line, one_of, require
from genloss.core.hashes import folder_hash
from genloss.core.places import check_saved, in_project, on_hub


class TextModel(Model):
    """`fresh` gives the model that a training without a `start` begins with."""

    needs: ClassVar[tuple[type, ...]] = (Tokenized,)

    def fresh(self, vocabulary: int, begin: int, end: int, context: int, seed: int) -> Any:
        raise NotImplementedError


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

    def __post_init__(self) -> None:
        one_of("arch", self.arch, ("llama", "gpt2"))
        for key in ("layers", "width", "heads", "kv_heads", "feed_forward"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads={self.heads}")
        require(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads={self.heads}")

    def check(self, experiment: Experiment) -> None:
        """Whether transformers takes the options: it knows their names, and a model can be made (without memory)."""
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
    """Any saved `AutoModelForCausalLM`, a folder or hub:NAME. Safetensors only, no remote code; every cold start
    begins from it. Its tokenizer must be the domain's: set domain.tokenizer to the same path."""

    path: str = "???"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))

    def fingerprint(self) -> str:
        return "" if on_hub(self.path) else folder_hash(in_project(self.path))

    def check(self, experiment: Experiment) -> None:
        domain = able(experiment.domain, Tokenized)
        check_saved(self.path, "path")
        if domain.tokenizer == "bpe":
            raise UserError(
                "domain.tokenizer",
                "bpe",
                f"a pretrained model needs its own tokenizer: domain.tokenizer={self.path}",
            )

    def fresh(self, vocabulary: int, begin: int, end: int, context: int, seed: int) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        quiet()
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                on_hub(self.path) or in_project(self.path),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=getattr(torch, self.dtype),
            )
        except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
            raise UserError("model.path", self.path, f"cannot be loaded ({first_line(error)})") from None
        if model.config.get_text_config().vocab_size < vocabulary:
            raise UserError(
                "domain.tokenizer", None, f"has {vocabulary} tokens, more than the model at {self.path} knows"
            )
        return model


def quiet() -> None:
    """No progress bars of the library: a model here loads in milliseconds, and genloss shows its own progress."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load(folder: Path) -> Any:
    """A model that this run saved (safetensors, no remote code), in evaluation mode."""
    from transformers import AutoModelForCausalLM

    quiet()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; all mean that it cannot be loaded
        raise UserError(str(folder), None, f"cannot be loaded ({first_line(error)}); delete it and run again") from None
    return model.eval()


def save(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Save a model to be sampled from: its own weights, or `weights` where a strategy of Lightning holds them."""
    model.generation_config.do_sample = True
    model.save_pretrained(folder, state_dict=weights)


def device_of(runtime: Runtime) -> str:
    import torch

    if runtime.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return "cuda"
    return "cpu"
