"""Imports go one way, and one module imports the host."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import HOST, ROOT

FILES = [file for folder in ("jepa_core", "host", "nodes") for file in sorted((ROOT / folder).rglob("*.py"))]
# What the host promises to nodes.
PUBLIC = {"comfy_api"}


def imported(file: Path) -> set[str]:
    """The first names of the modules that a file imports; those of this project begin with dots."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or "").split(".")[0])
    return found


def of_the_host(name: str) -> bool:
    return (HOST / name).is_dir() or (HOST / f"{name}.py").is_file()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_what_its_layer_may(file):
    layer = file.relative_to(ROOT).parts[0]
    names = imported(file)
    host = {name for name in names if of_the_host(name)}
    if file != ROOT / "host" / "comfy" / "internals.py":
        assert host <= (PUBLIC if layer == "nodes" else set())
    if layer == "jepa_core":
        outside = "." * len(file.relative_to(ROOT).parts)
        assert not any(name.startswith(outside) for name in names)
    if layer == "host":
        assert "..nodes" not in names
