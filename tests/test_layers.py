"""The layer check of `make test` (import-linter, pyproject.toml) fails on each kind of import that it forbids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {  # contract: (a module, what it must not import)
    "Imports go down only": ("core/hashes.py", "genloss.loop"),
    "A system imports no other system": ("systems/shepherd/__init__.py", "genloss.systems.llm2llm"),
    "A domain imports no other domain": ("domains/text/__init__.py", "genloss.domains.reasoning"),
    "No import circles": ("core/errors.py", "genloss.core.plugin"),
}


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
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


@pytest.mark.parametrize("contract", FORBIDDEN)
def test_a_violation_breaks_its_contract(tree: Path, contract: str):
    module, other = FORBIDDEN[contract]
    path = tree / "src/genloss" / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\nimport {other}\n", encoding="utf-8")
    result = lint(tree)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout, result.stdout


def test_a_new_folder_must_name_its_layer(tree: Path):
    (tree / "src/genloss/somewhere.py").write_text('"""Nowhere in the list."""\n', encoding="utf-8")
    result = lint(tree)
    assert result.returncode == 1 and "genloss.somewhere" in result.stdout, result.stdout + result.stderr
