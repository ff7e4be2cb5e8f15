"""The rules for imports: between layers, between the folders of host/, no cycles, and only host/comfy imports ComfyUI."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import HOST, ROOT

# Each may import those before it. host/__init__.py explains the folders, in the same order.
LAYERS = ("jepa_core", "host", "nodes")
FOLDERS = (
    "comfy",
    "gradient",
    "memory",
    "encoders",
    "scoring",
    "generators",
    "variety",
    "guidance",
    "search",
    "drawing",
)
FILES = [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]
PUBLIC = {"comfy_api"}  # the host's public interface for nodes


def imported(file: Path) -> tuple[set[str], set[str]]:
    """The imports of a file: those of this project, as dotted names from its root ("host.comfy.memory"), and all others."""
    package = file.relative_to(ROOT).parent.parts
    own: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            module = ".".join([*above, *([node.module] if node.module else [])])
            own |= {f"{module}.{alias.name}" for alias in node.names}  # a module, or a name in one
        elif isinstance(node, ast.ImportFrom):
            others.add(str(node.module))
    return own, others


def own_files(file: Path) -> set[Path]:
    """The files of this project that a file imports."""
    found = set()
    for name in imported(file)[0]:
        path = ROOT.joinpath(*name.split("."))
        places = [
            place for one in (path, path.parent) for place in (one.with_suffix(".py"), one / "__init__.py")
        ]
        found.add(next(place for place in places if place.is_file()))
    return found


def violation(file: Path, other: Path) -> str | None:
    """Why `file` may not import `other`, or None."""
    (layer, *inside), (under, *below) = (one.relative_to(ROOT).parts for one in (file, other))
    if LAYERS.index(under) > LAYERS.index(layer):
        return f"{layer} may not import {under}"
    if layer == under == "host" and len(below) > 1 and len(inside) > 1:
        folder, lower = inside[0], below[0]
        if FOLDERS.index(lower) > FOLDERS.index(folder):
            return f"host/{folder} may not import host/{lower}"
    return None


def of_the_host(name: str) -> bool:
    top = name.split(".")[0]
    return (HOST / top).is_dir() or (HOST / f"{top}.py").is_file()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_only_what_its_layer_and_folder_may(file):
    place = file.relative_to(ROOT)
    assert not [f"{place}: {why}" for other in own_files(file) if (why := violation(file, other))]
    if place.parts[:2] != ("host", "comfy"):
        host = {name.split(".")[0] for name in imported(file)[1] if of_the_host(name)}
        assert host <= (PUBLIC if place.parts[0] == "nodes" else set())


def test_every_folder_of_host_has_its_place():
    folders = {file.parent.name for file in (ROOT / "host").glob("*/__init__.py")}
    assert folders == set(FOLDERS)
    text = (ROOT / "host" / "__init__.py").read_text(encoding="utf-8")
    places = [text.index(f"\n{folder}/") for folder in FOLDERS]
    assert places == sorted(places)


def test_there_are_no_import_cycles():
    remaining = {file: own_files(file) for file in FILES}
    while free := [file for file, others in remaining.items() if not others & remaining.keys()]:
        for file in free:
            del remaining[file]
    assert not remaining, f"cyclic imports: {sorted(str(file.relative_to(ROOT)) for file in remaining)}"


@pytest.mark.parametrize(
    ("file", "other", "wrong"),
    [
        ("host/comfy/memory.py", "host/guidance/trace.py", "host/comfy may not import host/guidance"),
        ("host/guidance/patch.py", "nodes/types.py", "host may not import nodes"),
        ("jepa_core/score.py", "host/comfy/memory.py", "jepa_core may not import host"),
        ("host/drawing/pictures.py", "host/guidance/trace.py", None),
    ],
)
def test_a_violation_is_named(file, other, wrong):
    assert violation(ROOT / file, ROOT / other) == wrong


@pytest.mark.parametrize(
    "file", sorted((ROOT / "host" / "guidance").glob("*.py")), ids=lambda file: file.name
)
def test_guidance_can_be_read(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    long = {node.name: length for node in functions if (length := node.end_lineno - node.lineno + 1) > 65}
    assert not long


def test_research_takes_only_the_environment_and_markers_from_tools() -> None:
    """tools may use research, as the demo does; the other way round only what needs nothing of this project."""
    for file in sorted((ROOT / "research").rglob("*.py")):
        taken = {name for name in imported(file)[1] if name.split(".")[0] == "tools"}
        assert all(name.startswith(("tools.environment", "tools.markers")) for name in taken), file
    for file in [*sorted((ROOT / "tools" / "environment").rglob("*.py")), ROOT / "tools" / "markers.py"]:
        own = {name for name in imported(file)[1] if name.split(".")[0] in ("research", "tools")}
        assert all(name.startswith("tools.environment") for name in own), file
