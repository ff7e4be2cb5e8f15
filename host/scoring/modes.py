"""Kinds of score: their names in menus, as arguments of jepa_core.jepa_score, and as a reference states them."""

from typing import Any

from ...jepa_core.reference import NO_SCORE, mode_of
from ...jepa_core.score import PROJECTION
from ..options import PROJECTED, TOP_K
from .reference import seen_as


def mode_arguments(mode: str, top_k: int | None = None) -> dict[str, Any]:
    """The arguments of jepa_core.jepa_score for a mode."""
    return {
        "top_k": top_k if mode == TOP_K else None,
        "projection": PROJECTION if mode == PROJECTED else None,
    }


def reference_scoring(mode: str, top_k: int) -> dict[str, Any] | None:
    """The arguments of jepa_core.jepa_score for a reference, or None for no scores."""
    return None if mode == NO_SCORE else mode_arguments(mode, top_k)


def how_of(mode: str, top_k: int, fit: str, antialias: bool) -> dict[str, str]:
    """The settings that what is compared must share, by input name; see jepa_core.Reference."""
    return {"mode": mode_of(reference_scoring(mode, top_k))} | seen_as(fit, antialias)
