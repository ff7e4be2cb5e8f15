"""pyproject.toml: nothing to install for users of ComfyUI, everything that jepa_core imports for others."""

from __future__ import annotations

import ast
import sys

import tomllib

from jepa_core.architectures import OLDEST_TRANSFORMERS
from tests.conftest import ROOT
from tools.environment.pinned import requirement_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imported(package: str, *, without: str | None = None) -> set[str]:
    """The top-level modules that a package's files import, without its own and the standard library's.

    Args:
        without: a folder whose files do not count.
    """
    nodes = [
        node
        for file in (ROOT / package).rglob("*.py")
        if without is None or not file.is_relative_to(ROOT / without)
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
    extras = {
        name: {
            "PIL" if line.startswith("Pillow") else requirement_name(line).replace("-", "_") for line in lines
        }
        for name, lines in PROJECT["optional-dependencies"].items()
    }
    assert extras["core"] == imported("jepa_core", without="jepa_core/folders")
    # each names the smaller one
    assert extras["cluster"] == {"jepa_guidance", "ray"}
    # torch and transformers bring numpy
    together = extras["core"] | extras["folders"] | extras["cluster"]
    assert together - {"jepa_guidance"} == imported("jepa_core") - {"numpy"}
    core = PROJECT["optional-dependencies"]["core"]
    assert f"transformers>={'.'.join(map(str, OLDEST_TRANSFORMERS))}" in core
