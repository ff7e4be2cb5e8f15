"""The scripts in web/js use nothing that ComfyUI's page calls deprecated."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Reads and writes saved workflows, whose links have these names; on the page's own objects they are deprecated.
SAVED = "old_form.js"
SCRIPTS = [file for file in sorted((ROOT / "web" / "js").glob("*.js")) if file.name != SAVED]
# What the page warns of, by a part of its warning, and how a script would use it. Collected from
# comfyui-frontend-package 1.36.14, 1.47.12 and 1.58.1; app.graph is deprecated in their types alone.
DEPRECATED = {
    "app.graph": r"\bapp\??\.graph\b",
    "input.link": r"\.link\b|[{,] *link *[,}]",
    "output.links": r"\.links\b|[{,] *links *[,}]",
    "selected_nodes": r"\.selected_nodes\b",
    "changing a node type": r"\bnode\.type = ",
    "badgePosition": r"\.badgePosition\b",
    "widgets_up": r"\.widgets_up\b",
    "captureInput": r"\.captureInput\b",
    "onBeforeChange": r"\.onBeforeChange\b",
    "getGroupMenuOptions": r"\bgetGroupMenuOptions\b",
    "repositionNodesVueMode": r"\.repositionNodesVueMode\b",
    "Using a function for values": r"\bvalues: *(\(|function|\w+ *=>)",
    "Monkey-patching": r"\b(getCanvasMenuOptions|getNodeMenuOptions|getExtraMenuOptions)\b",
    "inputEl": r"\.inputEl\b",
    "setSizeForImage": r"\.setSizeForImage\b",
    "open_maskeditor": r"\bopen_maskeditor\b",
    "checkState()": r"\.checkState\b",
    "defaultInput": r"\bdefaultInput\b",
    "defaultValue": r"\baddSetting\b|getSettingValue",
    "legacy queue/history menu": r"\.ui\.(queue|history)\b",
    "Importing from": r"from \"[^\"]*/(scripts/(?!(app|api)\.js)|extensions/core/)",
}
# A script's literal text that warns, up to the end of the sentence.
WARNING = re.compile(
    r"(?:warnDeprecated|defineDeprecatedProperty|console\.warn)\((?:[\w.$]+,)*[`'\"]([^`\n]{0,250})"
)
NEW_NAMES = re.compile(r"[Dd]eprecat|DEPRECATED")
# Warnings of libraries that the page is built from.
LIBRARIES = (
    *("Deprecated since v4", "[tiptap warn]", "flush() has been deprecated", "RGBELoader"),
    "using deprecated parameters for the initialization function",
)


def page_warnings(static: Path) -> set[str]:
    """The warnings about deprecated names in a page's scripts."""
    texts = (file.read_text(encoding="utf-8", errors="ignore") for file in static.rglob("*.js"))
    return {
        found[1]
        for text in texts
        for found in WARNING.finditer(text)
        if NEW_NAMES.search(found[1].split("`")[0])
    }


@pytest.mark.parametrize("name", DEPRECATED)
def test_no_script_uses_what_is_deprecated(name):
    for script in SCRIPTS:
        lines = script.read_text(encoding="utf-8").splitlines()
        used = [line for line in lines if re.search(DEPRECATED[name], line.split("//")[0])]
        assert not used, script.name


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("app.graph", "const graph = app.rootGraph ?? app.graph;"),
        ("input.link", "return node.inputs[index].link != null;"),
        ("input.link", "inputs.findIndex(({ type, link }) => link != null)"),
        ("Importing from", 'import { $el } from "../../../scripts/ui.js";'),
    ],
)
def test_a_deprecated_use_is_found(name, line):
    assert re.search(DEPRECATED[name], line)


def test_all_that_the_installed_page_calls_deprecated_is_known():
    (folder,) = find_spec("comfyui_frontend_package").submodule_search_locations
    warnings = page_warnings(Path(folder) / "static")
    assert len(warnings) > 5
    assert not [text for text in warnings if not any(name in text for name in (*DEPRECATED, *LIBRARIES))]
