"""The strengths of a strip, as a user writes them."""

import re

from .number_lists import check_decimals, words_of

_NUMBER = re.compile(r"[+-]?(\d{1,6}(\.\d{0,9})?|\.\d{1,9})")
MOST = 24  # images of each seed
_EXAMPLE = "-1, 0, 0.5, 1"


def strengths_of(text: str, limit: float) -> list[float]:
    """The numbers in a text such as "-1, 0, 0.5", in its order.

    Args:
        limit: the largest strength, and the lowest with a minus.

    Raises:
        ValueError: no number or more than MOST, something else than numbers, a comma that may stand for a point, a number
            outside the limits or twice.
    """
    check_decimals("strengths", text, _EXAMPLE)
    words = words_of(text.replace("\u2212", "-"))
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise ValueError(f"strengths must be numbers, such as {_EXAMPLE}; got {word!r:.100}")
    strengths = [float(word) + 0.0 for word in words]  # no minus zero
    for strength in strengths:
        if not -limit <= strength <= limit:
            raise ValueError(f"strengths names {strength:g}, which is outside {-limit:g} to {limit:g}")
        if strengths.count(strength) > 1:
            raise ValueError(f"strengths names {strength:g} twice; name each once")
    if not 1 <= len(strengths) <= MOST:
        raise ValueError(f"strengths must be 1 to {MOST} numbers, got {len(strengths)}")
    return strengths
