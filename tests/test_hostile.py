"""Folders of strangers: a saved model, tokenizer or data set is data. None of its code runs, whatever it asks and
whatever the terminal answers, and it is refused in one line or loaded without it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import Trained
from genloss.core.errors import UserError
from genloss.language.corpus import Datasets
from genloss.language.model import Pretrained, load
from genloss.language.tokenizer import use_saved
from genloss.workflow.dvc_cache import Cache


class Payload:
    """Unpickled, it runs."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.mark,)


@pytest.fixture
def hostile(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that names code of its own wherever a library looks for a name, with that code and with pickles."""
    folder, mark = tmp_path / "hostile", tmp_path / "ran"
    folder.mkdir()
    own = {name: f"own.{name}" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    config = {**json.loads((trained.llama / "config.json").read_text()), "model_type": "own", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("own.py", "hostile.py", "dataset.py", "__init__.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "data.pkl", "train.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    np.save(folder / "data.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    return folder


def tokenizer(folder: Path, out: Path) -> None:
    use_saved(str(folder), out, "domain.tokenizer")


def pretrained(folder: Path, out: Path) -> None:
    Pretrained(path=str(folder)).fresh(300, 0, 0, 48, 0)


def judge(folder: Path, out: Path) -> None:
    load(folder)


def data_set(folder: Path, out: Path) -> None:
    list(Datasets(path=str(folder)).documents())


@pytest.mark.parametrize("loader", [tokenizer, pretrained, judge, data_set])
def test_no_code_of_a_folder_runs(loader: Callable[[Path, Path], None], hostile: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        loader(hostile, tmp_path / "out")
    assert "\n" not in str(refused.value) and "cannot" in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_known_model_with_code_beside_it_is_loaded_without(hostile: Path, trained: Trained, tmp_path: Path) -> None:
    """auto_map stands beside an architecture that the library knows, and a tokenizer.json beside a class of its own."""
    for name in ("pytorch_model.bin", "config.json", "tokenizer_config.json"):
        config = json.loads((hostile / name).read_text()) if name.endswith("json") else {}
        (hostile / name).unlink()
        if name == "config.json":
            known = {**json.loads((trained.llama / name).read_text()), "auto_map": config["auto_map"]}
            (hostile / name).write_text(json.dumps(known))
        if name == "tokenizer_config.json":
            known = json.loads((trained.data / "tokenizer" / name).read_text())
            (hostile / name).write_text(json.dumps({**known, **config}))
    shutil.copy(trained.llama / "model.safetensors", hostile)
    shutil.copy(trained.data / "tokenizer" / "tokenizer.json", hostile)
    assert type(load(hostile)).__module__.startswith("transformers.")
    tokenizer(hostile, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("error", [ValueError(), ValueError("\n \n"), KeyError()])
def test_an_error_without_words_has_a_name(error: Exception) -> None:
    from genloss.core.errors import first_line

    assert first_line(error) == type(error).__name__
    assert first_line(ValueError("\n one \n two")) == "one"


def test_a_strangers_lock_names_objects_of_the_cache_alone(project: Path) -> None:
    """What is not what its name says is deleted; such a name must not lead out of the cache."""
    precious = project / "precious.txt"
    precious.touch()
    cache = Cache()
    (cache.root / "ab").mkdir(parents=True)
    (cache.root / "ab" / ("0" * 30)).write_text("damaged")
    names = [f"ab{precious}", "ab/../../../../../precious.txt", "../precious.txt", "", "ab", "ab" + "0" * 30 + "/.dir"]
    for name in [*names, "ab" + "0" * 30]:
        assert not cache.holds(name, project / "x")
    assert precious.is_file() and not list((cache.root / "ab").iterdir())
