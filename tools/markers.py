"""Text that a program keeps up to date inside a page that people write.

It stands between the lines <!-- begin NAME --> and <!-- end NAME -->.
"""

from __future__ import annotations

from collections.abc import Mapping


def fill(page: str, texts: Mapping[str, str]) -> str:
    """The page with each text between the markers of its name. Raises ValueError where a marker is missing."""
    for name, text in texts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
        before, found_begin, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"the page has no {begin.strip()} ... {end.strip()}")
        page = f"{before}{begin}\n{text.strip()}\n\n{end}{after}"
    return page


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
