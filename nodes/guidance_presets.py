"""What the presets of the guiding nodes set."""

from typing import Any

from ..host.options import (
    COLD,
    CONSTANT,
    DENOISER_CONSTANT,
    ENCODER_RESOLUTION,
    FULL,
    MAX,
    ONE_CALL,
    PER_STEP,
    SQUASH,
    THROUGH_DENOISER,
    TRACKED,
    TRACKED_HALF,
    TWO_CALLS,
)

CUSTOM = "custom"  # sets nothing: the linked settings, or their defaults
SUBTLE = "subtle"
BALANCED = "balanced"  # the preset of a new node
WILD = "wild"
FAITHFUL = "faithful"

_THROUGH = {
    "gradient_path": THROUGH_DENOISER,
    "decoder": FULL,
    "denoiser_calls": ONE_CALL,
    "checkpointing": False,
    "range_finder": TRACKED_HALF,
    "rank": 9,
    "oversampling": 2,
    "power_iterations": 2,
}
# The settings that each preset puts in the place of the user's. What each is worth is measured: docs/results.md.
PRESETS: dict[str, dict[str, Any]] = {
    SUBTLE: _THROUGH | {"gradient_path": DENOISER_CONSTANT, "decoder": ENCODER_RESOLUTION},
    BALANCED: _THROUGH,
    WILD: _THROUGH,
    # the authors' program, whole
    FAITHFUL: _THROUGH
    | {
        "denoiser_calls": TWO_CALLS,
        "checkpointing": True,
        "range_finder": COLD,
        "interval": 1,
        "strength_rule": PER_STEP,
        "schedule": CONSTANT,
        "normalisation": MAX,
        "fit": SQUASH,
        "antialias": False,
        "smooth": False,
        "keep_appearance": False,
        "agree": False,
    },
}
# How often each counts the strength; all others once.
TIMES = {WILD: 2.0}

# RarityGradient's arguments for each choice of range_finder. In half precision the residual has a noise of 0.15, so
# its tolerance is larger.
RANGE_FINDERS: dict[str, dict[str, Any]] = {
    TRACKED: {"tracked": True, "tolerance": 0.3},
    TRACKED_HALF: {"tracked": True, "tolerance": 0.35, "half": True},
    COLD: {"tracked": False},
}
