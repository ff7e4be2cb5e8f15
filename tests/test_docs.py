"""README, CONTRIBUTING and docs/ name only what is there: links, headings, paths, commands, Python names."""

from __future__ import annotations

import ast
import importlib
import json
import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES, CONTRIBUTING_LINES = 125, 90
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"\.?[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|json|toml|yml|png|jpg|safetensors))?")
# Folders of whoever installs, runs or trains.
ELSEWHERE = ("models/", "ComfyUI/", "demo/output", ".work/", "WORK/")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The addresses of the headings, as the page of a repository makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths(text: str) -> set[str]:
    """What a page names as a path of the repository: in backticks, and as a program in its commands."""
    words = {word.partition("::")[0] for word in CODE.findall(prose(text))}
    named = {word for word in words if "/" in word and PATH.fullmatch(word)}
    commands = {word for _, block in FENCE.findall(text) for word in re.findall(r"[\w/]+/[\w]+\.py", block)}
    return {path for path in named | commands if not path.startswith(ELSEWHERE)}


@pages
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT.resolve()), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pages
def test_every_path_exists(page):
    for path in paths(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_every_program_that_the_research_page_names_exists():
    page = ROOT / "research" / "README.md"
    named = {
        word
        for word in CODE.findall(page.read_text(encoding="utf-8"))
        if re.fullmatch(r"[\w/]+/\w+\.py", word)
    }
    assert len(named) > 10
    for path in named:
        assert (page.parent / path).is_file(), path


def test_paths_are_found():
    text = "`host/a.py` `tests/b.py::test_c` `models/jepa` `a word` `x / y`\n```\npython dev.py run tools/d.py\n```\n"
    assert paths(text) == {"host/a.py", "tests/b.py", "tools/d.py"}


@pages
def test_python_examples_import_what_is_there(page):
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for part in ast.walk(ast.parse(block)):
            if isinstance(part, ast.ImportFrom) and part.module:
                module = importlib.import_module(part.module)
                assert all(hasattr(module, alias.name) for alias in part.names)


@pages
def test_a_page_has_one_title_and_says_first_what_it_is_for(page):
    text = page.read_text(encoding="utf-8")
    title, _, first = text.partition("\n\n")
    assert title.startswith("# ")
    assert first.startswith("## ") is (page.name == "CONTRIBUTING.md")
    assert text.isascii()
    assert "```" not in prose(text), "a block of code is not closed"


def test_every_page_is_linked_from_the_readme_or_contributing():
    linked = {link for page in PAGES[:2] for link in LINK.findall(page.read_text(encoding="utf-8"))}
    from_pages = {
        f"docs/{link}" for page in PAGES[2:] for link in LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert {f"docs/{page.name}" for page in PAGES[2:]} <= linked | from_pages


def test_the_readme_names_every_node():
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [one["display_name"] for one in texts.values() if f"**{one['display_name']}**" not in readme] == []


def test_the_first_pages_stay_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= CONTRIBUTING_LINES
