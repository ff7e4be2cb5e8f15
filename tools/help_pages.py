"""The help pages in other languages, from the English pages and the sentences in locales/*/help.json.

    python dev.py run tools/help_pages.py          write web/docs/NODE/LANGUAGE.md

A page is cut into texts: headings, paragraphs, entries of lists, cells of tables. help.json has a translation for each.
A text that has none is added to help.json with an empty translation, printed, and shown in English until somebody
fills it in. Texts that no page has any more are dropped. tests/tools/test_help_pages.py fails until all is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.locales import LANGUAGES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "web" / "docs"
OTHERS = tuple(language for language in LANGUAGES if language != "en")
# A message in this language before its explanation.
QUOTED = {"zh": "“{message}”：{fix}", "ja": "「{message}」：{fix}", "ko": "“{message}”: {fix}"}
# A paragraph that ends with the templates that use a node.
LISTED = {
    "zh": "{where}模板：{names}。",
    "ja": "{where}テンプレート：{names}。",
    "ko": "{where} 템플릿: {names}.",
}
COMMA = {"zh": "、", "ja": "、", "ko": ", "}
TEMPLATES = re.compile(r"(?P<where>[^:]+) Templates?: (?P<names>\*\d\d [^*]+\*(?:, \*\d\d [^*]+\*)*)\.")
# After a message in a table, where it appears.
PLACES = re.compile(r" \((a line under the node|from the sampler|in other nodes|in the text)\)$")
# What tables of messages list that is no message: what one sees.
SEEN = {"a text instead of a chart", "the map is blocky or coarse", "the mask is all black"}
PICTURE = re.compile(r"!\[(?P<text>[^\]]*)\](?P<target>\([^)\s]+\))")
ITEM = re.compile(r"(?P<mark>- |\d+\. )(?P<text>.*)")
Translate = Callable[[str], str]


def blocks(page: str) -> Iterator[str]:
    """The parts of a page between blank lines, each entry of a list on a line of its own, other lines joined."""
    for part in re.split(r"\n\s*\n", page.strip()):
        if part.startswith("|"):
            yield part
        else:
            yield re.sub(r"\n(?!- |\d+\. )", " ", part)


def translated(page: str, labels: dict[str, dict[str, str]], language: str, translate: Translate) -> str:
    """An English page in another language.

    Args:
        labels: of inputs and of outputs, under "input" and "output", in this language by their names.
        translate: called for each text in turn.
    """
    parts = []
    for block in blocks(page):
        if block.startswith("|"):
            parts.append(translated_table(block, labels, language, translate))
        elif picture := PICTURE.fullmatch(block):
            parts.append(f"![{translate(picture['text'])}]{picture['target']}")
        elif block.startswith("## "):
            parts.append("## " + translate(block.removeprefix("## ")))
        elif ITEM.match(block):
            items = [ITEM.fullmatch(line) for line in block.splitlines()]
            parts.append("\n".join(item["mark"] + translate(item["text"]) for item in items if item))
        elif listed := TEMPLATES.fullmatch(block):
            names = listed["names"].replace(", ", COMMA[language])
            parts.append(LISTED[language].format(where=translate(listed["where"]), names=names))
        else:
            parts.append(translate(block))
    return "\n\n".join(parts) + "\n"


def translated_table(
    block: str, labels: dict[str, dict[str, str]], language: str, translate: Translate
) -> str:
    """A table in another language. Inputs and outputs are named as on the page, too."""
    head, rule, *rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()
    )
    lines = [[translate(cell) for cell in head], rule]
    for row in rows:
        if head[0] in labels:
            name, *rest = row
            lines.append([named(name, labels[head[0]][name]), *map(translate, rest)])
        elif head[0] == "message" and row[0] not in SEEN:
            message, fix = row
            lines.append(translated_message(message, fix, language, translate))
        else:
            lines.append([translate(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def named(name: str, label: str) -> str:
    """How a table calls an input or output: by its label on the page, with its name where the two differ.

    A line can break between them: the help panel is narrow.
    """
    return name if label.lower() == name.lower() else f"**{label}** {name}"


def translated_message(cell: str, fix: str, language: str, translate: Translate) -> list[str]:
    """The row of a message: it stays as the pack says it, and what it means stands before what to do."""
    message, place = PLACES.sub("", cell), PLACES.search(cell)
    shown = message + (f" ({translate(place[1])})" if place else "")
    return [shown, QUOTED[language].format(message=translate(message), fix=translate(fix))]


def labels_of(node: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The labels of a node's inputs and outputs by place, from a locale file's entry."""
    return {
        "input": {name: entry["name"] for name, entry in node["inputs"].items()},
        "output": {place: entry["name"] for place, entry in node["outputs"].items()},
    }


def labels(english: dict[str, Any], node: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The labels of a node's inputs and outputs by their names, from two locale files' entries."""
    names, own = labels_of(english), labels_of(node)
    return {kind: {names[kind][key]: own[kind][key] for key in names[kind]} for kind in names}


def locale(language: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))
    return content


def pages(language: str) -> tuple[dict[Path, str], dict[str, str], list[tuple[str, str]]]:
    """All pages in a language, the translations that they use, and what has none, as (node, text)."""
    known, english, own = (
        locale(language, "help.json"),
        locale("en", "nodeDefs.json"),
        locale(language, "nodeDefs.json"),
    )
    used: dict[str, str] = {}
    missing: list[tuple[str, str]] = []
    written = {}
    for file in sorted(DOCS.glob("*.md")):
        node = file.stem

        def translate(text: str, node: str = node) -> str:
            used[text] = known.get(text, "")
            if not used[text]:
                missing.append((node, text))
            return used[text] or text

        written[DOCS / node / f"{language}.md"] = translated(
            file.read_text(encoding="utf-8"), labels(english[node], own[node]), language, translate
        )
    return written, used, missing


def main() -> None:
    """Write the pages, and the texts that they still lack into the locale files."""
    for language in OTHERS:
        written, used, missing = pages(language)
        for path, text in written.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for node, text in missing:
            print(f"translate {language} {node}: {text}")
        file = ROOT / "locales" / language / "help.json"
        file.write_text(json.dumps(used, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
