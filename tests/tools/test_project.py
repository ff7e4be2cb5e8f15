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


def test_the_extras_have_what_jepa_core_imports():
    extras = PROJECT["optional-dependencies"]
    core = extras["core"]
    named = {requirement_name(line).replace("-", "_") for lines in extras.values() for line in lines}
    modules = {"Pillow": "PIL", "pillow": "PIL"}
    ours = {"jepa_guidance"}  # a larger extra names the smaller one; torch and transformers bring numpy
    assert {modules.get(name, name) for name in named} - ours == imported("jepa_core") - {"numpy"}
    for needed in ("torch", "transformers", "safetensors", "huggingface_hub", "filelock"):
        assert any(requirement_name(line).replace("-", "_") == needed for line in core)
    assert f"transformers>={'.'.join(map(str, OLDEST_TRANSFORMERS))}" in core
