"""Lists of numbers as a user writes them."""

import re

# Full-width commas and semicolons, and the comma between words of Chinese and Japanese: no keyboard has them for decimals.
_OTHERS = r"\s;\uff0c\uff1b\u3001"


def words_of(text: str) -> list[str]:
    """The words between commas, semicolons and spaces."""
    return [word for word in re.split(rf"[,{_OTHERS}]+", text) if word]


def check_decimals(name: str, text: str, example: str) -> None:
    """Raise ValueError, naming the input, for a comma between digits that may stand for a point.

    "0,5" may be one number or two. In "0,0.5,1" the point shows that no comma stands for one.
    """
    for part in re.split(rf"[{_OTHERS}]+", text):
        if re.search(r"\d,\d", part) and "." not in part:
            raise ValueError(
                f"{name} must have a space after each comma, and a point in decimals, such as {example}; got {part!r:.100}, "
                "which may be one number or several"
            )
