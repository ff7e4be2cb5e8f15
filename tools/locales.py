"""Write locales/en/nodeDefs.json, the English texts of the nodes, which the other languages translate.

    python dev.py run tools/locales.py

The source is the nodes themselves. Prints the texts that changed, which the other languages have to follow;
tests/server/test_locales.py finds what is missing there.
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
    """A node's texts in the layout of a locale file, from its entry in the server's object_info."""
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


def changed(before: Any, after: Any, place: str = "") -> list[str]:
    """Where texts differ from before, as "NODE.inputs.NAME.tooltip"; texts that have gone are left out."""
    if not isinstance(after, dict):
        return [place] if after != before else []
    below = before if isinstance(before, dict) else {}
    return [
        found
        for name, part in after.items()
        for found in changed(below.get(name), part, f"{place}.{name}".lstrip("."))
    ]


def main() -> None:
    """Write the texts of the pack's nodes as a server describes them."""
    host = Path(os.environ["JEPA_HOST"])
    with Server(host, {"custom_nodes/jepa-guidance": ROOT}, cpu=True) as server:
        info = server.object_info()
    ours = {
        name: texts_of(entry)
        for name, entry in sorted(info.items())
        if entry["python_module"].startswith("custom_nodes.jepa-guidance")
    }
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    for place in changed(json.loads(file.read_text(encoding="utf-8")), ours):
        print(f"translate {place}")
    file.write_text(json.dumps(ours, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
