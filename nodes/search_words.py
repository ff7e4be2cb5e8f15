"""Other words by which users find a node, in every language of the pack."""

import json
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from comfy_api.latest import io

_KNOWN = "search_aliases" in {field.name for field in fields(io.Schema)}  # not in ComfyUI 0.9.2
_TRANSLATIONS = Path(__file__).absolute().parents[1] / "locales"


@cache
def _translated() -> list[dict[str, list[str]]]:
    """The words of every language but English, by node."""
    files = sorted(_TRANSLATIONS.glob("*/search.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def search_words(node_id: str, words: str) -> dict[str, Any]:
    """The argument of io.Schema with a node's words; none where the host does not know it.

    The host sends the same words to every page: it translates none.

    Args:
        words: the English ones, separated by commas. The others are in locales/*/search.json.
    """
    if not _KNOWN:
        return {}
    found = [*words.split(", "), *(word for language in _translated() for word in language[node_id])]
    return {"search_aliases": list(dict.fromkeys(found))}  # Chinese and Japanese share some
