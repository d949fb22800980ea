"""The layer checks of `make test` (import-linter and ruff, pyproject.toml) fail on each kind of import that they
forbid."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = [  # contract, a module, what it must not import
    ("Imports go down only", "core/hashes.py", "genloss.loop"),
    ("A system imports no other system", "systems/shepherd/__init__.py", "genloss.systems.llm2llm"),
    ("A domain imports no other domain", "domains/text/__init__.py", "genloss.domains.reasoning"),
    ("A domain imports no other domain", "domains/coins/__init__.py", "genloss.domains.text"),  # a new one
    ("A domain imports no other domain", "domains/language.py", "genloss.domains.lab.chains"),
    ("Hydra's plug-ins import genloss, not the other way round", "core/hashes.py", "hydra_plugins.genloss_sweeper"),
    ("No import circles", "core/errors.py", "genloss.core.plugin"),
]


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return spawn(tree, "-c", code, "--no-cache")


def spawn(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("contract", "module", "other"), FORBIDDEN)
def test_a_violation_breaks_its_contract(tree: Path, contract: str, module: str, other: str):
    path = tree / "src/genloss" / module
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\nimport {other}\n")
    result = lint(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout, result.stdout


def test_a_new_folder_must_name_its_layer(tree: Path):
    (tree / "src/genloss/somewhere.py").write_text('"""Nowhere in the list."""\n', encoding="utf-8")
    result = lint(tree)
    assert result.returncode == 1 and "genloss.somewhere" in result.stdout, result.stdout + result.stderr


def test_a_folder_without_init_is_refused(tree: Path):
    """import-linter would not look into it."""
    ruff = ("-m", "ruff", "check", "--no-cache", "--select", "INP", "src")
    assert spawn(tree, *ruff).returncode == 0
    (tree / "src/genloss/domains/coins").mkdir()
    (tree / "src/genloss/domains/coins/coin.py").write_text('"""Toss."""\n', encoding="utf-8")
    result = spawn(tree, *ruff)
    assert result.returncode == 1 and "INP001" in result.stdout, result.stdout + result.stderr
    selected = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]["select"]
    assert "INP" in selected


def test_the_tree_of_the_guide_is_whole():
    """docs/architecture.md names every module, but those of the published systems."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", text[: text.index("## Layers")]))
    files = [*ROOT.glob("src/genloss/*.py"), *ROOT.glob("src/genloss/*/*.py"), *ROOT.glob("src/genloss/domains/*/*.py")]
    assert {path.stem for path in files if not path.stem.startswith("__")} - named == set()
