"""The font of a text: Pillow's own, or one of the system's for what that lacks, such as the names of files in Chinese."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# By file name, which Pillow finds in the system's folders of fonts. Of Windows, macOS and Linux; those with the most scripts
# first.
SYSTEM = (
    *("msyh.ttc", "malgun.ttf", "YuGothM.ttc", "msgothic.ttc", "segoeui.ttf"),
    *("Arial Unicode.ttf", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc", "STHeiti Medium.ttc"),
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "NanumGothic.ttf"),
    "DejaVuSans.ttf",
)
UNASSIGNED = "\U0010ffff"  # no font has this: all draw it as they draw what they lack
INSTEAD = "?"


def lettering(text: str, size: float) -> tuple[str, Font]:
    """A text as it can be written, and the font for it.

    The font is the first that has all characters, or lacks the fewest; "?" stands for those that it lacks.

    Args:
        text: may contain line breaks. size: pixels.
    """
    own = ImageFont.load_default(size)
    if text.isascii():
        return text, own
    text = unicodedata.normalize("NFC", text)  # macOS takes accents and Hangul apart in names of files
    characters = frozenset(text) - {"\n"}
    best, fewest = own, lacking(own, characters)
    for font in _system_fonts(size):
        if not fewest:
            break
        lacks = lacking(font, characters)
        if len(lacks) < len(fewest):
            best, fewest = font, lacks
    return "".join(INSTEAD if character in fewest else character for character in text), best


def lacking(font: Font, characters: frozenset[str]) -> set[str]:
    """The characters that a font draws as it draws one that nobody has."""
    missing = _drawn(font, UNASSIGNED)
    return {one for one in characters if not one.isspace() and _drawn(font, one) == missing}


def _drawn(font: Font, character: str) -> tuple[tuple[int, ...], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _system_fonts(size: float) -> Iterator[Font]:
    for name in SYSTEM:
        if _is_installed(name):
            yield ImageFont.truetype(name, size)


@cache
def _is_installed(name: str) -> bool:
    try:
        ImageFont.truetype(name)
    except OSError:
        return False
    return True
