"""The inputs that the guided sampler and the MODEL patch share, and what they mean to the host adapter."""

from typing import Any

from comfy_api.latest import io

from ..host.guidance.config import GuidanceConfig
from ..host.guidance.schedule import Schedule
from ..host.options import (
    COLD,
    CONSTANT,
    CROP,
    DECODERS,
    DENOISER_CONSTANT,
    ENCODER_RESOLUTION,
    FULL,
    MAX,
    NONE,
    ONE_CALL,
    PER_STEP,
    RMS,
    SPREAD,
    SQUASH,
    THROUGH_DENOISER,
    TINY_OR_SMALL,
    TRACKED,
    TRACKED_HALF,
    TWO_CALLS,
    VARIANCE,
)
from ..jepa_core import RarityGradient
from ..jepa_core.score import PROJECTION
from .checks import number_message
from .types import JEPAEncoder

CUSTOM = "custom"
MAX_STRENGTH = 10.0
# Defaults of inputs that came later: optional, so that the host still takes prompts that were saved without them.
LATER_INPUTS = {
    "decoder": FULL,
    "denoiser_calls": TWO_CALLS,
    "checkpointing": False,
    "range_finder": TRACKED,
    "preset": CUSTOM,
    "judge": None,
}
# What each preset puts in place of the inputs of these names. Only how the gradient is computed: never how
# strongly, when, or how the encoder sees the image.
PRESETS = {
    "faithful": {
        "rank": 9,
        "oversampling": 2,
        "power_iterations": 2,
        "gradient_path": THROUGH_DENOISER,
        "decoder": FULL,
        "denoiser_calls": TWO_CALLS,
        "checkpointing": True,
        "range_finder": COLD,
    },
    "balanced": {
        "rank": 9,
        "oversampling": 2,
        "power_iterations": 2,
        "gradient_path": DENOISER_CONSTANT,
        "decoder": ENCODER_RESOLUTION,
        "denoiser_calls": ONE_CALL,
        "checkpointing": False,
        "range_finder": TRACKED_HALF,
    },
    "fast": {
        "rank": 9,
        "oversampling": 1,
        "power_iterations": 1,
        "gradient_path": DENOISER_CONSTANT,
        "decoder": TINY_OR_SMALL,
        "denoiser_calls": ONE_CALL,
        "checkpointing": False,
        "range_finder": TRACKED_HALF,
    },
}


# Inputs that a page may fold away. ComfyUI 0.9.2 does not take it as an argument.
ADVANCED = {"advanced": True}
# The arguments of RarityGradient that each choice of range_finder stands for. In half precision the residual itself
# has noise of 0.15, and smaller ones say nothing.
RANGE_FINDERS: dict[str, dict[str, Any]] = {
    TRACKED: {"tracked": True, "tolerance": 0.3},
    TRACKED_HALF: {"tracked": True, "tolerance": 0.35, "half": True},
    COLD: {"tracked": False},
}


def guidance_inputs() -> list[io.Input]:
    """Schema inputs, in their frozen order; saved workflows depend on it."""
    return [
        io.Vae.Input(
            "vae", tooltip="The VAE that belongs to the model; the encoder judges the decoded image."
        ),
        JEPAEncoder.Input(
            "encoder",
            tooltip="The encoder that says what is rare, from JEPA Encoder Loader, or several from JEPA Combine Encoders.",
        ),
        io.Float.Input(
            "strength",
            default=0.5,
            min=-MAX_STRENGTH,
            max=MAX_STRENGTH,
            step=0.05,
            tooltip="How far to steer. Positive: rarer. Negative: more typical (this can reinforce bias). "
            "0: exactly the stock sampler. The blue part of the scale below the inputs, 0.5 to 2, is the useful "
            "range; 0.5 is the paper's eta.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Fraction of this sampler's steps that run free before guidance begins (deferral; the paper's "
            "tau is 1 - start_percent, 0.8). Early estimates are too blurry to judge.",
        ),
        io.Float.Input(
            "end_percent",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Fraction of this sampler's steps after which guidance stops. The last steps can no longer "
            "denoise a push away; 1.0 guides to the end, as the paper does. Equal to start_percent: nothing is guided.",
        ),
        io.Int.Input(
            "interval",
            extra_dict=ADVANCED,
            default=1,
            min=1,
            max=100,
            tooltip="Guide every N-th step. 2 halves the number of guided steps; with strength_rule 'spread' the remaining "
            "steps move further in return.",
        ),
        io.Int.Input(
            "rank",
            extra_dict=ADVANCED,
            default=9,
            min=1,
            max=256,
            tooltip="k, the number of singular triplets that make up the guided score. The paper's 9 is a good "
            "balance; cost grows with it.",
        ),
        io.Int.Input(
            "oversampling",
            extra_dict=ADVANCED,
            default=2,
            min=0,
            max=64,
            tooltip="p, extra directions that make the range finder more accurate.",
        ),
        io.Int.Input(
            "power_iterations",
            extra_dict=ADVANCED,
            default=2,
            min=0,
            max=8,
            tooltip="q, rounds of the range finder. Each costs one forward and one backward product for "
            "rank + oversampling directions; 1 is enough for most images.",
        ),
        io.Combo.Input(
            "schedule",
            extra_dict=ADVANCED,
            options=[CONSTANT, VARIANCE],
            default=CONSTANT,
            tooltip="constant: the same push at every guided step (the paper's default). variance: scaled by the "
            "posterior variance of the step, so late steps move less.",
        ),
        io.Combo.Input(
            "normalisation",
            extra_dict=ADVANCED,
            options=[MAX, RMS, NONE],
            default=MAX,
            tooltip="max: the largest entry of the gradient becomes 1, so strength means the same for every image "
            "(the paper). rms: the root mean square becomes 1. none: the raw gradient.",
        ),
        io.Combo.Input(
            "gradient_path",
            options=[DENOISER_CONSTANT, THROUGH_DENOISER],
            default=THROUGH_DENOISER,
            tooltip="through denoiser: differentiates the diffusion model too (the paper); its effect is seen from "
            "strength 0.5 on. denoiser constant: cheaper, and much less memory, but more grain than another picture.",
        ),
        io.Combo.Input(
            "strength_rule",
            extra_dict=ADVANCED,
            options=[SPREAD, PER_STEP],
            default=SPREAD,
            tooltip="spread: strength is the paper's eta at three guided steps, and more steps share the same "
            "total. per_step: strength is applied in full at every guided step.",
        ),
        io.Combo.Input(
            "fit",
            extra_dict=ADVANCED,
            options=[SQUASH, CROP],
            default=SQUASH,
            tooltip="How an image that is not square reaches the encoder: squashed to a square (the paper) or its "
            "centre square alone. Score with the same setting.",
        ),
        io.Boolean.Input(
            "antialias",
            extra_dict=ADVANCED,
            default=True,
            tooltip="Low-pass before shrinking, as the encoder was trained. Off: the plain resize of the paper's "
            "code.",
        ),
        io.Combo.Input(
            "decoder",
            extra_dict=ADVANCED,
            options=list(DECODERS),
            optional=True,
            default=LATER_INPUTS["decoder"],
            tooltip="How the encoder gets to see the latent. full: the whole image is decoded (the paper). encoder "
            "resolution: the latent is shrunk first, so the VAE decodes only the pixels that the encoder sees; much "
            "less time and memory. tiny autoencoder: the host's preview decoder (TAESD) at that size, the cheapest; "
            "needs its .safetensors file in models/vae_approx.",
        ),
        io.Combo.Input(
            "denoiser_calls",
            extra_dict=ADVANCED,
            options=[TWO_CALLS, ONE_CALL],
            optional=True,
            default=LATER_INPUTS["denoiser_calls"],
            tooltip="two: a guided step asks the diffusion model again after the push (the paper), which doubles the "
            "time of that step. one: its first answer is carried along with the push; no extra call.",
        ),
        io.Boolean.Input(
            "checkpointing",
            extra_dict=ADVANCED,
            optional=True,
            default=LATER_INPUTS["checkpointing"],
            tooltip="Keep less in memory for the gradient and compute it again: two to eight times less memory, "
            "the forward pass computed twice, the same image. For 'through denoiser' and the full decoder.",
        ),
        io.Combo.Input(
            "range_finder",
            extra_dict=ADVANCED,
            options=list(RANGE_FINDERS),
            optional=True,
            default=LATER_INPUTS["range_finder"],
            tooltip="tracked: each guided step starts from the singular vectors of the one before and takes power "
            "iterations only while it has to (the first step takes all). In half precision: on a processor at least "
            "twice as fast, and the gradient keeps a cosine of about 0.995, at single steps 0.95; on a graphics card no "
            "faster for a small encoder; where the device has no fast bfloat16 it is computed in full. cold: each step "
            "starts from noise and takes all power iterations (the paper).",
        ),
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *PRESETS],
            optional=True,
            default=LATER_INPUTS["preset"],
            tooltip="custom: the inputs above as they stand. faithful: the paper's way, slow. balanced: much faster, "
            "in half precision and with the denoiser held constant. fast: the cheapest. A preset replaces "
            + ", ".join(PRESETS["faithful"])
            + "; strength, percents, interval, schedule and the rest stay yours.",
        ),
        JEPAEncoder.Input(
            "judge",
            optional=True,
            tooltip="Another encoder that scores the image at every guided step, shown under the node and in the trace. "
            "It changes nothing: whether a picture became rarer is not for the encoder to say that was descended. "
            f"Its scores are of {PROJECTION} fixed random outputs.",
        ),
    ]


def guides_nothing(settings: dict) -> bool:
    """Whether the inputs turn guidance off: the stock sampler runs then, whatever the others say."""
    return settings["strength"] == 0 or settings["start_percent"] == settings["end_percent"]


def config_of(settings: dict) -> GuidanceConfig:
    """What the inputs ask for. Raises ValueError on a range that makes no sense."""
    settings = LATER_INPUTS | settings
    settings |= PRESETS.get(settings["preset"], {})
    return GuidanceConfig(
        Schedule(
            strength=settings["strength"],
            start_percent=settings["start_percent"],
            end_percent=settings["end_percent"],
            interval=settings["interval"],
            strength_rule=settings["strength_rule"],
            variance=settings["schedule"] == VARIANCE,
            normalisation=settings["normalisation"],
        ),
        RarityGradient(
            settings["rank"],
            settings["oversampling"],
            settings["power_iterations"],
            **RANGE_FINDERS[settings["range_finder"]],
        ),
        through_denoiser=settings["gradient_path"] == THROUGH_DENOISER,
        decoder=settings["decoder"],
        one_call=settings["denoiser_calls"] == ONE_CALL,
        checkpointing=settings["checkpointing"],
        fit=settings["fit"],
        antialias=settings["antialias"],
    )


def settings_message(
    strength: float | None, start_percent: float | None, end_percent: float | None
) -> str | None:
    """Why values typed into the node are refused before the graph runs, or None.

    The host leaves range checks of an input to whoever asks for its value. A linked input is None here. Strength 0
    refuses nothing.
    """
    if strength == 0:
        return None
    typed = {"start_percent": start_percent, "end_percent": end_percent}
    message = number_message("strength", strength, -MAX_STRENGTH, MAX_STRENGTH)
    for name, value in typed.items():
        message = message or number_message(name, value, 0, 1)
    if message:
        return message
    typed = {name: value for name, value in typed.items() if value is not None}
    if len(typed) == 1:  # the other one is linked and is checked when it is known
        typed = dict.fromkeys(("start_percent", "end_percent"), *typed.values())
    try:
        Schedule(**typed)
    except ValueError as error:
        return str(error)
    return None
