"""The inputs that set how images are scored, shared by several nodes."""

from typing import Any

from comfy_api.latest import io

from ..jepa_core.score import PROJECTION

EXACT = "exact"
TOP_K = "top-k"
PROJECTED = "projected"


def mode_inputs() -> list[io.Input]:
    """Which kind of score, and how many singular values top-k sums."""
    return [
        io.Combo.Input(
            "mode",
            options=[EXACT, TOP_K, PROJECTED],
            default=EXACT,
            tooltip=f"{EXACT}: all singular values of the encoder's Jacobian; slow, with one backward pass for each "
            f"embedding entry. {TOP_K}: only the largest, several times faster. {PROJECTED}: the fastest, for "
            f"ranking many images; it ranks nearly as {EXACT} does, from {PROJECTION} fixed random outputs of the "
            "encoder. Scores of different modes are not comparable.",
        ),
        io.Int.Input(
            "top_k",
            default=9,
            min=1,
            max=256,
            tooltip=f"How many of the largest singular values {TOP_K} sums; guidance uses 9. Costs 6 (k + 4) products; "
            f"{EXACT} takes 384 with a small encoder. Other modes ignore it.",
        ),
    ]


def view_inputs() -> list[io.Input]:
    """How an image is resized for the encoder."""
    return [
        io.Combo.Input(
            "fit",
            options=["squash", "crop"],
            default="squash",
            tooltip="How a non-square image is made square for the encoder. squash: squeezed (the paper). crop: only its "
            "centre.",
        ),
        io.Boolean.Input(
            "antialias",
            default=True,
            tooltip="Smooths the image before shrinking it for the encoder, as in the encoder's training.",
        ),
    ]


def mode_arguments(mode: str, top_k: int | None = None) -> dict[str, Any]:
    """The arguments of jepa_core.jepa_score for a mode."""
    return {
        "top_k": top_k if mode == TOP_K else None,
        "projection": PROJECTION if mode == PROJECTED else None,
    }


def scoring_of(encoder: Any, mode: str, top_k: int, fit: str, antialias: bool) -> dict[str, str]:
    """The settings that scores must share to be comparable, by input name."""
    modes = {EXACT: EXACT, TOP_K: f"top {top_k}", PROJECTED: f"projected on {PROJECTION} outputs"}
    return {
        "encoder": encoder.name,
        "mode": modes[mode],
        "fit": fit,
        "antialias": "on" if antialias else "off",
    }
