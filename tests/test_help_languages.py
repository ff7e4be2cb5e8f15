"""The help in Chinese, Japanese and Korean says what the English pages say: the same figures, names, options and links."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter

import pytest

from tests.conftest import ROOT
from tools.help_pages import DOCS, OTHERS, SEEN, locale

SCHEMA = json.loads((ROOT / "tests" / "server" / "schema.json").read_text(encoding="utf-8"))
NODES = locale("en", "nodeDefs.json")
# The writing of a language: a coded character set that has its characters but not those of its neighbours, what all
# sentences contain, and what none does.
WRITING = {
    "zh": ("gb2312", "[\u4e00-\u9fff]", "[\u3040-\u30ff\uac00-\ud7af]"),
    "ja": ("shift_jis", "[\u3040-\u30ff\u4e00-\u9fff]", "[\uac00-\ud7af]"),
    "ko": ("euc_kr", "[\uac00-\ud7af]", "[\u3040-\u30ff\u4e00-\u9fff]"),
}
# One word for an idea, as in the tooltips.
WORDS = {
    "encoder": {"zh": "编码器", "ja": "エンコーダー", "ko": "인코더"},
    "reference": {"zh": "参照", "ja": "基準", "ko": "기준"},
    "novelty": {"zh": "新颖度", "ja": "新規性", "ko": "참신도"},
    "percentile": {"zh": "百分位", "ja": "パーセンタイル", "ko": "백분위"},
    "guidance": {"zh": "引导", "ja": "ガイダンス", "ko": "가이던스"},
    "seed": {"zh": "随机种", "ja": "シード", "ko": "시드"},
    "sampler": {"zh": "采样器", "ja": "サンプラー", "ko": "샘플러"},
    "noise": {"zh": "噪", "ja": "ノイズ", "ko": "노이즈"},
    "strength": {"zh": "强度", "ja": "強度", "ko": "강도"},
    "mask": {"zh": "遮罩", "ja": "マスク", "ko": "마스크"},
    "batch": {"zh": "批次", "ja": "バッチ", "ko": "배치"},
    "step": {"zh": "步", "ja": "ステップ", "ko": "스텝"},
}
SPELLED = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
NUMBERS = {word: str(number) for number, word in enumerate(SPELLED)} | {
    **{"once": "1", "half": "2", "twice": "2", "second": "2", "first": "1", "another": "1", "fifth": "5 1"},
    **{"single": "1", "nobody": "1", "both": "2", "each": "1", "neither": "2", "alone": "1", "every": "1"},
    **{"thirty-two": "32", "twenty-four": "24", "fifty": "50", "hundred": "100", "thousand": "1000"},
}
FIGURE = re.compile(r"(?<![A-Za-z0-9_.])-?\d+(?:\.\d+)*")
# Names of files, inputs and the like: words with a dot, a slash or an underscore inside.
IDENTIFIER = re.compile(r"(?<![\w./:])[A-Za-z]\w*(?:[./_][A-Za-z]\w*)+")
EMPHASIS = re.compile(r"(\*{1,2})(?=\S)([^*]+?)(?<=\S)\1(?!\*)")
CODE = re.compile("`[^`]*`")
TEMPLATE = re.compile(r"\*\d\d [^*]+\*")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ENGLISH_RUN = re.compile(r"(?:[A-Za-z][a-z]* ){4,}[A-Za-z]+")


def options() -> set[str]:
    """The entries of the nodes' menus that tooltips explain; menus are not translated."""
    found = set()
    for node in NODES.values():
        for entry in node["inputs"].values():
            found |= set(re.findall(r"(?:^|[.:] )([a-z][a-z -]{2,30}): ", entry["tooltip"]))
    return found


OPTIONS = options()
OPTION = re.compile(r"\b(?:" + "|".join(map(re.escape, sorted(OPTIONS, key=len, reverse=True))) + r")\b")
DISPLAY = {entry["display_name"]: node for node, entry in NODES.items() if "JEPA " in entry["display_name"]}
OWN_NAMES = {
    language: {
        name: locale(language, "nodeDefs.json")[node]["display_name"] for name, node in DISPLAY.items()
    }
    for language in OTHERS
}
DISPLAY_NAME = re.compile("|".join(map(re.escape, sorted(DISPLAY, key=len, reverse=True))))


def plain(text: str) -> str:
    """A text without addresses and code."""
    return CODE.sub(" ", LINK.sub("]", text))


def figures(text: str) -> Counter[str]:
    return Counter(FIGURE.findall(text.replace(",", " ")))


def faults(language: str, english: str, text: str) -> list[str]:
    """What a translation lacks or has in excess."""
    return [
        *faults_of_figures(english, text),
        *faults_of_names(language, english, text),
        *faults_of_writing(language, english, text),
        *faults_of_emphasis(text),
    ]


def faults_of_figures(english: str, text: str) -> list[str]:
    lacking = figures(english) - figures(text)
    words = re.findall(r"[a-z]+(?:-[a-z]+)?", english.lower())
    spelled = " ".join(NUMBERS.get(word, "") for word in words).split()
    extra = set(figures(text)) - set(figures(english)) - set(spelled)
    return [f"lacks the figure {one}" for one in lacking] + [f"has the figure {one}" for one in extra]


def faults_of_names(language: str, english: str, text: str) -> list[str]:
    found = [
        f"differs in {pattern.pattern}"
        for pattern in (CODE, LINK, TEMPLATE)
        if Counter(pattern.findall(english)) != Counter(pattern.findall(text))
    ]
    called = Counter(DISPLAY_NAME.findall(english))
    for name, times in called.items():
        own = OWN_NAMES[language][name]
        if text.count(own) < times:
            found.append(f"does not call {name} {own}")
    found += [f"lacks {one}" for one in IDENTIFIER.findall(plain(english)) if one not in text]
    marked = {one for _, one in EMPHASIS.findall(english)} | set(re.findall(r"([a-z][a-z -]+): ", english))
    for option in marked & OPTIONS:
        own = WORDS[option][language] if option in WORDS else option
        if option not in text and own not in text:
            found.append(f"lacks the option {option}")
    return found


def faults_of_writing(language: str, english: str, text: str) -> list[str]:
    charset, own, foreign = WRITING[language]
    found = [f"{one} is of another script" for one in re.findall(foreign, text)]
    try:
        text.encode(charset)
    except UnicodeEncodeError as error:
        found.append(f"{text[error.start]} is not of this language")
    prose = DISPLAY_NAME.sub("", plain(english)).replace("step by step", "")
    if re.search(r"\b[a-z]{2,} [a-z]{2,}", OPTION.sub("", prose)) and not re.search(own, text):
        found.append("is not translated")
    names = DISPLAY_NAME.sub("", EMPHASIS.sub("", plain(text)))
    found += [f"leaves in English: {run}" for run in ENGLISH_RUN.findall(names)]
    for word, translations in WORDS.items():
        said = re.search(rf"\b{word}s?\b", prose)
        if said and word not in text and translations[language] not in text:
            found.append(f"does not call {word} {translations[language]}")
    return found


def faults_of_emphasis(text: str) -> list[str]:
    """Where Markdown shows the stars: a mark beside punctuation on its inner side needs none, or a space, outside."""
    found = []
    for match in EMPHASIS.finditer(text):
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        inner = match[2]
        if outside_matters(inner[0]) and not free(before):
            found.append(f"{match[0]} does not open after {before}")
        if outside_matters(inner[-1]) and not free(after):
            found.append(f"{match[0]} does not close before {after}")
    return found


def outside_matters(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


def free(character: str) -> bool:
    return not character or character.isspace() or outside_matters(character)


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_says_what_the_english_text_says(language):
    wrong = {
        text: found
        for english, text in locale(language, "help.json").items()
        if (found := faults(language, english, text))
    }
    assert wrong == {}, f"in locales/{language}/help.json"


@pytest.mark.parametrize(
    ("english", "text", "fault"),
    [
        ("Set it to 0.5.", "0.4にします。", "lacks the figure 0.5"),
        ("Set it to 0.5.", "0.5か7にします。", "has the figure 7"),
        ("Needs `count`.", "必要です。", "differs in `[^`]*`"),
        ("See [here](https://a.b).", "ここを見てください。", "differs in " + LINK.pattern),
        ("Before **JEPA Reference**.", "**JEPA Reference**の前。", "does not call JEPA Reference JEPA基準"),
        ("Put it into models/jepa.", "そこに置きます。", "lacks models/jepa"),
        ("exact: slow.", "厳密：低速です。", "lacks the option exact"),
        ("With *both*, more.", "両方ならもっと。", "lacks the option both"),
        ("All of it.", "그 전부。", "그 is of another script"),
        ("The images.", "图像です。", "图 is not of this language"),
        ("All of it.", "All of it.", "is not translated"),
        (
            "What is left of it is kept.",
            "これは What is left of it is kept です。",
            "leaves in English: What is left of it is kept",
        ),
        ("Its encoder.", "その符号器。", "does not call encoder エンコーダー"),
        (
            "*rarer than 97 %* is rare.",
            "*rarer than 97 %*は希少です。",
            "*rarer than 97 %* does not close before は",
        ),
    ],
)
def test_a_fault_is_found(english, text, fault):
    assert fault in faults("ja", english, text)


def form(page: str) -> list[str]:
    """What stands on a page, line by line: headings, entries of lists, pictures, rows with their number of cells."""
    found = []
    for line in page.splitlines():
        if picture := re.fullmatch(r"!\[.{6,}\]\((.*)\)", line):
            found.append(picture[1])
        elif line.startswith("|"):
            found.append(f"{line.count(' | ') + 1} cells")
        elif mark := re.match(r"#+|- |\d+\. ", line):
            found.append(mark[0])
    return found


def first_cells(page: str) -> list[list[str]]:
    """The first column of each table of a page, with its heading."""
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    return [[line.split("|")[1].strip() for line in table.splitlines()] for table in tables]


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("node", SCHEMA)
def test_a_page_has_the_form_of_the_english_one(node, language):
    english, own = (
        (DOCS / name).read_text(encoding="utf-8") for name in (f"{node}.md", f"{node}/{language}.md")
    )
    assert form(own) == form(english), f"web/docs/{node}/{language}.md"
    assert "<" not in own
    for ours, theirs in zip(first_cells(own), first_cells(english), strict=True):
        head, _, *rows = zip(ours, theirs, strict=True)
        for shown, said in rows:
            if head[1] in ("input", "output"):
                assert re.search(rf"(?<!\w){said}(?!\w)", shown, re.ASCII), f"{shown} is not {said}"
            elif head[1] == "message" and said not in SEEN:
                assert shown.partition(" (")[0] == said.partition(" (")[0]
