"""pyproject.toml: nothing to install for users of ComfyUI, everything that jepa_core imports for others."""

from __future__ import annotations

import ast
import sys

import tomllib

from jepa_core.architectures import OLDEST_TRANSFORMERS
from tests.conftest import ROOT
from tools.environment.pinned import requirement_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imported(package: str) -> set[str]:
    """The top-level modules that a package's files import, without its own and the standard library's."""
    nodes = [
        node
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
    ]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {package}


def test_nothing_is_installed_into_comfyui():
    # the registry reads the dependencies; ComfyUI-Manager runs these files
    assert PROJECT["dependencies"] == []
    assert not [name for name in ("requirements.txt", "install.py") if (ROOT / name).exists()]


def test_the_extra_has_what_jepa_core_imports():
    core = PROJECT["optional-dependencies"]["core"]
    assert {requirement_name(line).replace("-", "_") for line in core} == imported("jepa_core")
    assert f"transformers>={'.'.join(map(str, OLDEST_TRANSFORMERS))}" in core
