"""The inputs that say how images are scored, which several nodes share."""

from typing import Any

from comfy_api.latest import io

from ..jepa_core.score import PROJECTION

EXACT = "exact"
TOP_K = "top-k"
PROJECTED = "projected"


def mode_inputs() -> list[io.Input]:
    """Which score is taken."""
    return [
        io.Combo.Input(
            "mode",
            options=[EXACT, TOP_K, PROJECTED],
            default=EXACT,
            tooltip="exact: all singular values of the encoder's Jacobian, one backward pass for each "
            "embedding entry. top-k: only the largest, several times faster. projected: for ranking many "
            f"images, the fastest; {PROJECTION} fixed random outputs of the encoder, whose score ranks nearly as "
            "the exact one does. Scores of different modes are not comparable.",
        ),
        io.Int.Input(
            "top_k",
            default=9,
            min=1,
            max=256,
            tooltip="How many of the largest singular values the top-k mode sums; 9 is what guidance uses. "
            "Costs 6 (k + 4) products against 384 for exact under a small encoder. Ignored by the other modes.",
        ),
    ]


def view_inputs() -> list[io.Input]:
    """How an image reaches the encoder."""
    return [
        io.Combo.Input(
            "fit",
            options=["squash", "crop"],
            default="squash",
            tooltip="How an image that is not square reaches the encoder: squashed to a square (the paper) "
            "or its centre square alone.",
        ),
        io.Boolean.Input(
            "antialias",
            default=True,
            tooltip="Low-pass before shrinking, as the encoder was trained.",
        ),
    ]


def mode_arguments(mode: str, top_k: int | None = None) -> dict[str, Any]:
    """The arguments of jepa_core.jepa_score that a mode stands for."""
    return {
        "top_k": top_k if mode == TOP_K else None,
        "projection": PROJECTION if mode == PROJECTED else None,
    }


def scoring_of(encoder: Any, mode: str, top_k: int, fit: str, antialias: bool) -> dict[str, str]:
    """Everything that scores have to have in common to be compared, by the names of the inputs."""
    modes = {EXACT: EXACT, TOP_K: f"top {top_k}", PROJECTED: f"projected on {PROJECTION} outputs"}
    return {
        "encoder": encoder.name,
        "mode": modes[mode],
        "fit": fit,
        "antialias": "on" if antialias else "off",
    }
