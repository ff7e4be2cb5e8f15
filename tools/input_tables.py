"""The tables of inputs and presets in docs/, from the nodes' own schemas.

    python dev.py run tools/input_tables.py        write them into the pages

tests/tools/test_input_tables.py fails when a page is out of date.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tools.markers import fill, table

ROOT = Path(__file__).absolute().parents[1]
DOCS = ROOT / "docs"
# The nodes of each page, in the order of its tables.
PAGES = {
    "guidance.md": (
        "JEPAGuidance",
        "JEPAGuidanceSettings",
        "JEPAGuidedKSampler",
        "JEPAStrengthStrip",
        "JEPAPlotTrace",
        "JEPADemoClass",
    ),
    "encoders.md": ("JEPAEncoderLoader", "JEPACombineEncoders"),
    "scoring.md": (
        "JEPAScoreImage",
        "JEPAReference",
        "JEPAReferenceFolder",
        "JEPAPromptReference",
        "JEPASaveReference",
        "JEPALoadReference",
        "JEPACombineReferences",
        "JEPARarityMap",
        "JEPARankImages",
        "JEPAScoreFolder",
        "JEPAPickImages",
    ),
    "search.md": ("JEPARareSearch", "JEPAPromptFit", "JEPAPromptMap"),
    "compare.md": ("JEPABoostAndSkip", "JEPACads", "JEPASelfGuidedMinority", "JEPAMinorityPrompt"),
    "djepa.md": ("DJEPALoader", "DJEPASampler"),
}
# Menus whose entries are the host's or depend on the files of the machine.
MENUS = {
    ("JEPAGuidedKSampler", "sampler_name"): "as in KSampler",
    ("JEPAGuidedKSampler", "scheduler"): "as in KSampler",
    ("JEPAStrengthStrip", "sampler_name"): "as in KSampler",
    ("JEPAStrengthStrip", "scheduler"): "as in KSampler",
    ("JEPAEncoderLoader", "encoder"): "the encoders above, and files in models/jepa",
    ("JEPAPromptReference", "sampler_name"): "as in KSampler",
    ("JEPAPromptReference", "scheduler"): "as in KSampler",
    ("JEPARareSearch", "sampler_name"): "as in KSampler",
    ("JEPARareSearch", "scheduler"): "as in KSampler",
    ("JEPAPromptFit", "model"): "the CLIPs of the encoders' table, and files in models/jepa",
    ("JEPALoadReference", "file"): "files in models/jepa_references",
    ("DJEPALoader", "model"): "the bundled model, and files in models/djepa",
}


def load_pack() -> None:
    """Make the package jepa_guidance importable, loaded as a host loads it. Later calls do nothing."""
    if "jepa_guidance" in sys.modules:
        return
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    spec = importlib.util.spec_from_file_location(
        "jepa_guidance", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["jepa_guidance"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["jepa_guidance"])


async def node_classes() -> list[Any]:
    """The pack's nodes, as the host asks for them."""
    extension = importlib.import_module("jepa_guidance.nodes").JEPAExtension()
    await extension.on_load()
    nodes: list[Any] = await extension.get_node_list()
    return nodes


def schemas() -> dict[str, Any]:
    """{node id: schema} of all nodes."""
    with ThreadPoolExecutor(1) as pool:  # the caller's thread may have an event loop of its own
        nodes = pool.submit(asyncio.run, node_classes()).result()
    found = [node.define_schema() for node in nodes]
    return {schema.node_id: schema for schema in found}


def cells(node: str, entry: Any) -> list[str]:
    """The row of an input: its name, default, values, meaning."""
    kind: str = entry.get_io_type()
    values = {"BOOLEAN": "on, off", "STRING": "text"}.get(kind, kind)
    if kind in ("INT", "FLOAT"):
        values = f"{shown(entry.min)} to {shown(entry.max)}"
    elif kind == "COMBO":
        values = MENUS.get((node, entry.id)) or ", ".join(entry.options)
    default = shown(getattr(entry, "default", None))
    if entry.optional and (getattr(entry, "force_input", None) or not default):
        default = "none"  # a link that may be missing
    # further paragraphs list what the page has a table of
    meaning = entry.tooltip.partition("\n")[0]
    return [entry.id, default, values, meaning]


def shown(value: Any) -> str:
    """A value as a node shows it; empty for None."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def input_tables(nodes: tuple[str, ...], found: dict[str, Any]) -> dict[str, str]:
    """The tables of a page by the names of their markers; a row that stands above already is only referred to."""
    texts: dict[str, str] = {}
    written: dict[tuple[str, ...], str] = {}
    for node in nodes:
        rows, above = [], {}
        for entry in found[node].inputs:
            row = cells(node, entry)
            if tuple(row) in written:
                above[entry.id] = written[tuple(row)]
            else:
                written[tuple(row)] = found[node].display_name
                rows.append(row)
        texts[f"inputs of {node}"] = table(["input", "default", "values", "meaning"], rows) + repeated(above)
    return texts


def repeated(above: dict[str, str]) -> str:
    """A sentence about the inputs, by name, that a node above has too."""
    return "".join(
        f"\n{', '.join(name for name, other in above.items() if other == node)}: as in {node}.\n"
        for node in dict.fromkeys(above.values())
    )


def presets_table() -> str:
    """What each preset sets: a row for each input, a column for each preset; empty where the settings count."""
    module = importlib.import_module("jepa_guidance.nodes.guidance_presets")
    presets: dict[str, dict[str, Any]] = module.PRESETS
    times = ["the strength counts", *(f"{module.TIMES.get(preset, 1):g} times" for preset in presets)]
    names = dict.fromkeys(name for values in presets.values() for name in values)
    rows = [[name, *(shown(values.get(name)) for values in presets.values())] for name in names]
    return table(["input", *presets], [times, *rows])


def pages() -> dict[Path, str]:
    """Every page as it should be."""
    load_pack()
    found = schemas()
    texts = {page: input_tables(nodes, found) for page, nodes in PAGES.items()}
    texts["guidance.md"]["presets"] = presets_table()
    return {
        DOCS / page: fill((DOCS / page).read_text(encoding="utf-8"), parts) for page, parts in texts.items()
    }


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
