"""The texts of the nodes in four languages: complete, and the server sends them to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.locales import LANGUAGES, texts_of
from tools.server import Server

FOLDER = Path(__file__).absolute().parents[2] / "locales"
FILES = ("nodeDefs.json", "main.json")
OTHERS = [language for language in LANGUAGES if language != "en"]


def texts(language: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / language / file).read_text(encoding="utf-8"))
    return content


def flat(part: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """All texts, by their path of keys."""
    if isinstance(part, str):
        return {path: part}
    return {key: text for name, inner in part.items() for key, text in flat(inner, (*path, name)).items()}


def test_the_english_texts_are_those_of_the_nodes(server: Server) -> None:
    info = server.object_info()
    ours = {name: texts_of(info[name]) for name in texts("en", "nodeDefs.json")}
    assert texts("en", "nodeDefs.json") == ours, "run: python dev.py run tools/locales.py"
    assert {name for name, entry in info.items() if "jepa-guidance" in entry["python_module"]} == set(ours)


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("file", FILES)
def test_every_text_has_a_translation(language: str, file: str) -> None:
    english, own = (flat(texts(one, file)) for one in ("en", language))
    assert english.keys() == own.keys()
    assert all(text.strip() for text in own.values())
    for path, text in own.items():
        places, given = (sorted(re.findall(r"\{\w+\}", one)) for one in (text, english[path]))
        assert places == given, path
        # sentences are translated; short labels such as "VAE" may stay
        assert text != english[path] or len(text) < 12, path


@pytest.mark.parametrize("language", OTHERS)
def test_tooltips_name_menu_options_as_the_menu_does(server: Server, language: str) -> None:
    """Menus are not translated, so tooltips must name their options in English."""
    info = server.object_info()
    for name, node in texts(language, "nodeDefs.json").items():
        for key, entry in node["inputs"].items():
            english = texts("en", "nodeDefs.json")[name]["inputs"][key]["tooltip"]
            sections = info[name]["input"]
            kind, *rest = next(sections[part][key] for part in sections if key in sections[part])
            if kind != "COMBO":
                continue
            for option in rest[0]["options"]:
                if f"{option}:" in english:
                    assert option in entry["tooltip"], f"{name}.{key}: {option}"


@pytest.mark.parametrize("language", OTHERS)
def test_every_node_is_found_by_words_of_every_language(server: Server, language: str) -> None:
    info = server.object_info()
    words = json.loads((FOLDER / language / "search.json").read_text(encoding="utf-8"))
    assert words.keys() == texts("en", "nodeDefs.json").keys()
    for name, found in words.items():
        assert 2 <= len(found) == len(set(found))
        assert all(word == word.strip() and not word.isascii() for word in found)
        assert set(found) <= set(info[name]["search_aliases"]), name


def test_the_server_sends_them_to_the_page(server: Server) -> None:
    handed = json.loads(server.get("/i18n"))
    for language in LANGUAGES:
        assert (
            handed[language]["nodeDefs"]["JEPAGuidedKSampler"]
            == texts(language, "nodeDefs.json")["JEPAGuidedKSampler"]
        )
        assert handed[language]["jepaGuidance"] == texts(language, "main.json")["jepaGuidance"]


@pytest.mark.parametrize("language", OTHERS)
def test_the_server_gives_the_page_the_help_in_its_language(server: Server, language: str) -> None:
    """The page asks for NODE/LANGUAGE.md, and takes addresses of pictures from the folder above it."""
    docs = "/extensions/jepa-guidance/docs"
    page = server.get(f"{docs}/JEPARankImages/{language}.md").decode()
    heading = texts(language, "help.json")["How to read the chart"]
    assert f"## {heading}" in page
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    assert server.get(f"{docs}/{picture}")[:2] == b"\xff\xd8"
