"""The help pages in other languages follow the English ones."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tools import help_pages
from tools.help_pages import DOCS, OTHERS

RUN = "run: python dev.py run tools/help_pages.py, and translate what it prints in locales/*/help.json"
NODES = sorted(file.stem for file in DOCS.glob("*.md"))
PAGE = """Draws a
picture.

![A picture](images/one.png)

## Inputs

| input | what it does |
| :--- | :--- |
| count | How many. |
| cfg | How close. |

- First, over
two lines.
- Second.

1. Third.

| message | fix |
| :--- | :--- |
| out of memory (in the text) | Take less. |
| the mask is all black | Take more. |

Between two
nodes. Templates: *01 One*, *02 Two of
them*.
"""


@pytest.mark.parametrize("language", OTHERS)
def test_pages_are_in_step_with_the_english_ones(language):
    written, _, _ = help_pages.pages(language)
    out_of_step = [
        str(path.relative_to(ROOT))
        for path, text in written.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert out_of_step == [], RUN
    assert sorted(path.parent.name for path in written) == NODES
    assert set(DOCS.glob(f"*/{language}.md")) == set(written), "pages of nodes that are gone"


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_has_a_translation(language):
    _, used, missing = help_pages.pages(language)
    assert missing == [], RUN
    assert set(help_pages.locale(language, "help.json")) == set(used), "translations of texts that are gone"


def test_a_page_keeps_its_form_and_its_messages():
    labels = {"input": {"count": "枚数", "cfg": "cfg"}, "output": {}}
    texts: list[str] = []

    def translate(text: str) -> str:
        texts.append(text)
        return f"T{len(texts)}"

    assert help_pages.translated(PAGE, labels, "ja", translate).splitlines() == [
        "T1",
        "",
        "![T2](images/one.png)",
        "",
        "## T3",
        "",
        "| T4 | T5 |",
        "| :--- | :--- |",
        "| **枚数** count | T6 |",
        "| cfg | T7 |",
        "",
        "- T8",
        "- T9",
        "",
        "1. T10",
        "",
        "| T11 | T12 |",
        "| :--- | :--- |",
        "| out of memory (T13) | 「T14」：T15 |",
        "| T16 | T17 |",
        "",
        "T18テンプレート：*01 One*、*02 Two of them*。",
    ]
    assert texts[0] == "Draws a picture."
    assert texts[7:10] == ["First, over two lines.", "Second.", "Third."]
    assert texts[12:15] == ["in the text", "out of memory", "Take less."]
    assert texts[-1] == "Between two nodes."
