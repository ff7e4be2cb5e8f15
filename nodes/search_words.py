"""Other words by which users find a node."""

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

_KNOWN = "search_aliases" in {field.name for field in fields(io.Schema)}  # not in ComfyUI 0.9.2


def search_words(words: str) -> dict[str, Any]:
    """The argument of io.Schema with these words, separated by commas; none where the host does not know it."""
    return {"search_aliases": words.split(", ")} if _KNOWN else {}
