"""Messages as a page quotes them, found in the source that says them.

In a quotation, "..." stands for anything. In the source, so does what an f-string fills in.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

FOLDERS = ("jepa_core", "host", "nodes")
FILLED = "\0"
# As much of a quotation's letters must be written in the source.
LITERAL = 0.5


@cache
def templates() -> tuple[tuple[str, ...], ...]:
    """The words of every text that the pack may say: of its source, and on its page."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    texts = {text for file in files for text in texts_of(file)}
    page = json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))
    texts |= {re.sub(r"\{\w+\}", FILLED, text) for text in page["jepaGuidance"].values()}
    return tuple(words(text) for text in texts if " " in text)


def texts_of(file: Path) -> Iterator[str]:
    """The strings of a Python file but for docstrings and tooltips, with FILLED where an f-string fills something in."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    unsaid: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, documented) and isinstance(node.body[0], ast.Expr):
            unsaid.append(node.body[0])
        elif isinstance(node, ast.keyword) and node.arg in ("tooltip", "description"):
            unsaid.append(node.value)
    skipped = {id(part) for one in unsaid for part in ast.walk(one)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else FILLED for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def words(text: str) -> tuple[str, ...]:
    """The words of a text without the punctuation around them; "..." and FILLED stay."""
    return tuple("..." if "..." in word else word.strip(".,;:'\"()`") for word in text.split())


def is_said(quotation: str) -> bool:
    """Whether some text of the source says what is quoted, or more."""
    quoted = words(quotation)
    letters = sum(len(word) for word in quoted if word != "...")
    return any(written(quoted, template) >= LITERAL * letters for template in templates())


def written(quoted: tuple[str, ...], template: tuple[str, ...]) -> float:
    """How many letters of a quotation a template writes itself, where it says all of it; -inf if it does not."""

    @cache
    def rest(at: int, place: int) -> float:
        """The same for the quotation from a word on, said from a word of the template on."""
        if at == len(quoted):
            return 0.0
        if quoted[at] == "...":
            later = (rest(at + 1, after) for after in range(place, len(template) + 1))
            return max(later, default=float("-inf"))
        if place == len(template):
            return float("-inf")
        if quoted[at] == template[place]:
            return len(quoted[at]) + rest(at + 1, place + 1)
        if FILLED in template[place]:
            # it may stand for several words
            return max(rest(at + 1, place + 1), rest(at + 1, place))
        return float("-inf")

    if not any(len(word) > 3 and word in template for word in quoted):
        return float("-inf")
    return max(rest(0, place) for place in range(len(template)))
