"""How images are seen and scored: by the names in menus, beside a reference, and as a reference states it."""

from typing import Any

from ...jepa_core import Reference
from ...jepa_core.reference import NO_SCORE, mode_of
from ...jepa_core.score import PROJECTION
from ..options import AUTO, PROJECTED, SQUASH, TOP_K
from .reference import seen_as


def reference_scoring(mode: str, top_k: int) -> dict[str, Any] | None:
    """The arguments of jepa_core.jepa_score for a mode, or None for no scores."""
    if mode == NO_SCORE:
        return None
    return {
        "top_k": top_k if mode == TOP_K else None,
        "projection": PROJECTION if mode == PROJECTED else None,
    }


def how_of(mode: str, top_k: int, fit: str, antialias: bool) -> dict[str, str]:
    """The settings that what is compared must share, by input name; see jepa_core.Reference."""
    return {"mode": mode_of(reference_scoring(mode, top_k))} | seen_as(fit, antialias)


def how_beside(
    reference: Reference | None,
    *,
    mode: str = AUTO,
    top_k: int = 0,
    fit: str = AUTO,
    antialias: bool = True,
) -> dict[str, str]:
    """As how_of; AUTO is what a reference brings.

    Args:
        mode: AUTO is that of the reference's scores; PROJECTED if it has none.
        fit: with AUTO, fit and antialias are those of the reference; SQUASH and `antialias` without one.
    """
    own = how_of(PROJECTED if mode == AUTO else mode, top_k, SQUASH if fit == AUTO else fit, antialias)
    if reference is None:
        return own
    brought = [name for name in ("fit", "antialias") if fit == AUTO]
    if mode == AUTO and reference.how["mode"] != NO_SCORE:
        brought.append("mode")
    return own | {name: reference.how[name] for name in brought}
