"""Write locales/en/nodeDefs.json, the texts of the nodes as the page's other languages translate them.

    python dev.py run tools/locales.py

The nodes themselves are the source; tests/server/test_locales.py finds what is out of date and what lacks a translation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tools.server import Server

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "zh", "ja", "ko")


def texts_of(info: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a node, in the layout of a locale: from its entry in the server's object_info."""
    inputs = {}
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            _, *options = info["input"][section][name]
            inputs[name] = {"name": name, "tooltip": options[0]["tooltip"]}
    outputs = {
        str(index): {"name": name, "tooltip": tooltip}
        for index, (name, tooltip) in enumerate(
            zip(info["output_name"], info["output_tooltips"], strict=True)
        )
    }
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def main() -> None:
    """Start a server, ask it for the pack's nodes, write their texts."""
    host = Path(os.environ["JEPA_HOST"])
    with Server(host, {"custom_nodes/jepa-guidance": ROOT}, cpu=True) as server:
        info = server.object_info()
    ours = {
        name: texts_of(entry)
        for name, entry in sorted(info.items())
        if entry["python_module"].startswith("custom_nodes.jepa-guidance")
    }
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    file.write_text(json.dumps(ours, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
