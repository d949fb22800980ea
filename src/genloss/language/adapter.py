"""Adapters: a few trained numbers on top of a frozen model (Hu et al. 2021, arXiv 2106.09685), by the library peft.

    genloss run model=smollm2 model/adapter=lora model.adapter.r=16
    genloss run model=smollm2 model/adapter=dora trainer.start=previous    # the last adapter further
    genloss run model=smollm2 model/adapter=lora trainer.start=stacked     # a new one on the last model, frozen

A round saves its adapter alone, as peft does: `adapter_model.safetensors` (float32) and `adapter_config.json`, which
names the base by the sha256 of its files (genloss.language.saved). A stacked adapter has those that it was trained on
beside it, in `below-00/`, `below-01/` ..., the oldest first; the files are those of the rounds before, so that a disk
holds them once.

Where a model only has to be used, its adapters are merged in single precision (`merged`): W + s B A is then exact to
rounding, and the model is a plain one that samples and scores as fast as its base. Merged into bfloat16, most of s B A
would be smaller than half a step between numbers and vanish. While it trains nothing is merged: the base stays in its
own precision, the adapters are float32."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genloss.core.contracts import Plugin
from genloss.core.errors import UserError, require
from genloss.language.saved import ADAPTER

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the last
WEIGHTS = "adapter_model.safetensors"
NEWEST = "default"  # peft's name of the adapter in the folder itself
BELOW = "below-{:02d}"  # of those that it was trained on


@dataclass
class Lora(Plugin):
    """Low-rank adapters: W + s B A with B A of rank `r`. s is alpha / r, or with `use_rslora` alpha / √r (Kalajdzievski
    2023, arXiv 2312.03732). `use_dora` learns the length of each row of W apart (Liu et al. 2024, arXiv
    2402.09353)."""

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # of what goes into A, while it trains
    # names of linear layers, or ends of names; a regular expression of whole names; or all-linear
    target_modules: Any = ALL_LINEAR
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        require(self.r >= 1, "r", self.r, "at least 1")
        require(self.alpha > 0, "alpha", self.alpha, "greater than 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        many = isinstance(self.target_modules, list) and all(isinstance(t, str) for t in self.target_modules)
        named = bool(self.target_modules) and (many or isinstance(self.target_modules, str))
        require(named, "target_modules", self.target_modules, "a list of names, a regular expression, or all-linear")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise UserError("target_modules", self.target_modules, f"is no regular expression ({error})") from None

    def config(self) -> Any:
        """As peft takes it."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides it, whatever it is
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )

    def fits(self, model: Any) -> None:
        """Refuse targets that a model has not (UserError); it may be one without memory."""
        names = linear(model)
        widest = max((max(model.get_submodule(name).weight.shape) for name in names), default=0)
        require(self.r <= widest, "r", self.r, f"at most {widest}, the width of this model's widest layer")
        if self.target_modules == ALL_LINEAR:
            return
        if isinstance(self.target_modules, str):
            missing = [] if any(re.fullmatch(self.target_modules, n) for n in names) else [self.target_modules]
        else:
            missing = [t for t in self.target_modules if not any(f".{n}".endswith(f".{t}") for n in names)]
        if isinstance(self.target_modules, str) and not missing:
            last = model.get_output_embeddings()
            others = [n for n, m in model.named_modules() if n not in names and m is not last]
            other = next((n for n in others if n and re.fullmatch(self.target_modules, n)), None)
            if other:
                raise UserError("target_modules", self.target_modules, f"fits {other} too, which is no linear layer")
        if missing:
            ends = ", ".join(dict.fromkeys(n.rpartition(".")[2] for n in names))
            why = f"is no linear layer of this model, which has {ends}"
            raise UserError("target_modules", missing[0], f"{why}; name some of them, or {ALL_LINEAR}")

    def numbers(self, model: Any) -> int:
        """How many numbers such an adapter of a model has; it may be one without memory."""
        names = linear(model)
        if isinstance(self.target_modules, list):
            names = [n for n in names if any(f".{n}".endswith(f".{t}") for t in self.target_modules)]
        elif self.target_modules != ALL_LINEAR:
            names = [n for n in names if re.fullmatch(self.target_modules, n)]
        shapes = [model.get_submodule(name).weight.shape for name in names]
        return sum(self.r * sum(shape) + (max(shape) if self.use_dora else 0) for shape in shapes)

    def on(self, base: Any, start: Path | None, stacked: bool, seed: int) -> Any:
        """`base` with what is trained: a new adapter; the newest one of the model at `start`, further; or, if
        `stacked`, a new one on all of that model's. `seed`: of a new one's A (its B is 0)."""
        import torch
        from peft import get_peft_model

        _quiet()
        if start is None:
            torch.manual_seed(seed)
            return get_peft_model(base, self.config())
        known = stack(start)
        if not stacked:
            return opened(base, known, [*map(BELOW.format, range(len(known) - 1)), NEWEST], trained=True)
        names = [BELOW.format(i) for i in range(len(known))]
        model = opened(base, known, names)
        torch.manual_seed(seed)
        model.add_adapter(NEWEST, self.config())
        _activate(model, [*names, NEWEST], trained=True)
        return model


def _quiet() -> None:
    """What peft finds out by itself it tells, and what it will have to call otherwise."""
    warnings.filterwarnings("ignore", message="fan_in_fan_out", module="peft")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def linear(model: Any) -> list[str]:
    """Names of the linear layers of a causal language model but the last, which gives the logits."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's

    last = model.get_output_embeddings()
    kinds = (torch.nn.Linear, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds) and module is not last]


def stack(folder: Path) -> list[Path]:
    """The folders of a saved model's adapters, the newest last."""
    return [*sorted(inner.parent for inner in folder.glob(f"*/{ADAPTER}")), folder]


def opened(base: Any, folders: Sequence[Path], names: Sequence[str], trained: bool = False) -> Any:
    """`base` with saved adapters, in this order, all of them active. trained: the last one goes on learning; the others
    are frozen in any case, and have no dropout."""
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    _quiet()
    model: Any = None
    for folder, name in zip(folders, names, strict=True):
        learns = trained and name == names[-1]
        options: dict[str, Any] = {"adapter_name": name, "is_trainable": learns, "torch_device": "cpu"}
        if model is None:
            model = PeftModel.from_pretrained(base, str(folder), **options)
        else:
            model.load_adapter(str(folder), **options)
        if not learns:
            for module in model.modules():
                if isinstance(module, LoraLayer) and name in module.lora_dropout:
                    module.lora_dropout[name] = torch.nn.Identity()
    _activate(model, names, trained)
    return model


def _activate(model: Any, names: Sequence[str], trained: bool) -> None:
    """Make these adapters act, in this order; of them the last learns, if one does."""
    model.base_model.set_adapter(list(names))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained and f".{names[-1]}." in f"{name}.")


def merged(base: Any, folder: Path) -> Any:
    """`base`, in single precision, with the adapters in a folder merged into its weights: a plain model."""
    folders = stack(folder)
    names = [*map(BELOW.format, range(len(folders) - 1)), NEWEST]
    return opened(base, folders, names).merge_and_unload(adapter_names=names)


def save(model: Any, out: Path, base: str, start: Path | None, weights: dict[str, Any] | None = None) -> None:
    """Write the newest adapter of a model to a folder, and beside it those that it was stacked on: all of the model at
    `start`. base: the identity of what is below them. weights: of the whole model, where a strategy of Lightning holds
    them."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in model.peft_config if name != NEWEST]
    for name, folder in zip(names, stack(start) if start else [], strict=False):
        (out / name).mkdir()
        for file in (ADAPTER, WEIGHTS):
            shutil.copyfile(folder / file, out / name / file)
    found = get_peft_model_state_dict(model, state_dict=weights, adapter_name=NEWEST, save_embedding_layers=False)
    save_file({k: v.contiguous().cpu() for k, v in found.items()}, out / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config[NEWEST].to_dict() | {"base_model_name_or_path": f"sha256:{base}", "inference_mode": True}
    # peft keeps names in sets, whose order is another one in every process
    ordered = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    (out / ADAPTER).write_text(json.dumps(ordered, indent=2, sort_keys=True) + "\n", encoding="utf-8")
