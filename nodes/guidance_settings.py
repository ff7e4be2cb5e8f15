"""JEPAGuidanceSettings: the technical inputs of guidance, which the guiding nodes take through one link."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..host.options import (
    AUTO,
    BOTH,
    COLD,
    CONSTANT,
    CROP,
    DECODERS,
    DENOISER_CONSTANT,
    ENCODER_RESOLUTION,
    FULL,
    MAX,
    NONE,
    NOVELTY,
    ONE_CALL,
    PER_STEP,
    RMS,
    SCORE,
    SPREAD,
    SQUASH,
    THROUGH_DENOISER,
    TINY_OR_SMALL,
    TRACKED,
    TRACKED_HALF,
    TWO_CALLS,
    VARIANCE,
)
from ..jepa_core.views import COUNT as VIEWS
from .guidance_presets import CUSTOM, RANGE_FINDERS
from .input_checks import check_values, inputs_of
from .search_words import search_words
from .types import JEPASettings


@dataclass(frozen=True)
class ChosenSettings:
    """What a JEPA_GUIDANCE_SETTINGS link carries.

    Attributes:
        chosen: {input of JEPAGuidanceSettings: value}, all of them, checked.
    """

    chosen: Mapping[str, Any]


class JEPAGuidanceSettings(io.ComfyNode):
    """Values of technical inputs -> ChosenSettings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JEPAGuidanceSettings",
            display_name="JEPA Guidance Settings",
            category="JEPA",
            description="The technical settings of guidance, for the input settings of JEPA Guided KSampler, JEPA Guidance "
            f"and JEPA Strength Strip. From gradient_path on they count with the preset {CUSTOM}; others set them.",
            **search_words(
                "JEPAGuidanceSettings",
                "advanced, options, gradient, schedule, memory, speed, criterion, rank",
            ),
            inputs=settings_inputs(),
            outputs=[
                JEPASettings.Output(
                    display_name="settings", tooltip="For the input settings of the nodes that guide."
                )
            ],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        check_values(inputs_of(JEPAGuidanceSettings), settings)
        return io.NodeOutput(ChosenSettings(settings))


def settings_inputs() -> list[io.Input]:
    """The schema inputs. Their order is fixed, since saved workflows depend on it."""
    return [*_when_inputs(), *_sight_inputs(), *_path_inputs(), *_svd_inputs()]


def defaults() -> dict[str, Any]:
    """{input: value} of a new node."""
    return {entry.id: entry.default for entry in settings_inputs()}


def _when_inputs() -> list[io.Input]:
    """What rare means, and how the strength is spread over the steps."""
    return [
        io.Combo.Input(
            "criterion",
            options=[AUTO, SCORE, NOVELTY, BOTH],
            default=AUTO,
            tooltip=f"What rare means. {AUTO}: {NOVELTY} with a reference or apart, otherwise {SCORE}. {SCORE}: the "
            f"encoder is hardly sensitive to the image (the paper). {NOVELTY}: the encoder finds the image unlike those of "
            "the reference; much faster, with one forward and one backward pass of the encoder in a guided step. "
            f"{BOTH}: the two in equal parts.",
        ),
        io.Int.Input(
            "interval",
            default=1,
            min=1,
            max=100,
            tooltip="Higher is faster: only every N-th step is guided. 2 halves the number of guided steps; with "
            "strength_rule 'spread' the remaining steps shift further to make up for it.",
        ),
        io.Combo.Input(
            "strength_rule",
            options=[SPREAD, PER_STEP],
            default=SPREAD,
            tooltip="spread: the full strength at each step if three are guided; more steps share the same total. per_step: "
            "every guided step applies the full strength, as in the paper.",
        ),
        io.Combo.Input(
            "schedule",
            options=[CONSTANT, VARIANCE],
            default=CONSTANT,
            tooltip="constant: the same shift at every guided step (the paper's default). variance: scaled by the "
            "posterior variance of the step, so late steps shift less.",
        ),
        io.Combo.Input(
            "normalisation",
            options=[MAX, RMS, NONE],
            default=MAX,
            tooltip="max: the largest entry of the gradient becomes 1, so strength means the same for every image "
            "(the paper). rms: the root mean square becomes 1. none: the raw gradient.",
        ),
    ]


def _sight_inputs() -> list[io.Input]:
    """How the encoder sees the image, and what is left of its gradient."""
    return [
        io.Combo.Input(
            "fit",
            options=[AUTO, SQUASH, CROP],
            default=AUTO,
            tooltip=f"How a non-square image is made square for the encoder. {AUTO}: as the pictures of a linked reference, "
            f"otherwise {SQUASH}. {SQUASH}: squeezed (the paper). {CROP}: only its centre.",
        ),
        io.Boolean.Input(
            "antialias",
            default=True,
            tooltip="Smooths the image before shrinking it for the encoder, as in the encoder's training. Off: the plain "
            f"resize of the paper's code. With a reference and fit {AUTO}, its own setting counts instead.",
        ),
        io.Boolean.Input(
            "smooth",
            default=False,
            tooltip=f"Uses the mean gradient over {VIEWS} views of the image, mirrored and cropped, so that single pixels "
            f"count less. {VIEWS} times the encoder's work.",
        ),
        io.Boolean.Input(
            "keep_appearance",
            default=False,
            tooltip="Leaves out of the gradient what changes only brightness, contrast and saturation, the easiest ways to "
            "move an encoder.",
        ),
        io.Boolean.Input(
            "agree",
            default=False,
            tooltip="With several encoders from JEPA Combine Encoders: moves a pixel only where all of them agree on the "
            f"direction. Also for the two criteria of {BOTH}. Otherwise their weighted mean decides.",
        ),
    ]


def _path_inputs() -> list[io.Input]:
    """The way of the gradient, of the preset custom."""
    return [
        io.Combo.Input(
            "gradient_path",
            options=[DENOISER_CONSTANT, THROUGH_DENOISER],
            default=THROUGH_DENOISER,
            tooltip=f"{THROUGH_DENOISER}: changes the image most, visibly from strength 0.5 on; the diffusion model is "
            "differentiated too (the paper). denoiser constant: faster and much less memory, but it changes the image "
            "less.",
        ),
        io.Combo.Input(
            "decoder",
            options=list(DECODERS),
            default=FULL,
            tooltip=f"How the latent is decoded for the encoder. {FULL}: the whole image (the paper). {ENCODER_RESOLUTION}: "
            "the latent is shrunk first, so the VAE decodes only the pixels that the encoder sees; much less time and "
            "memory. tiny autoencoder: ComfyUI's preview decoder (TAESD) at that size, the cheapest; needs its .safetensors "
            f"file in models/vae_approx. {TINY_OR_SMALL}: without that file, as {ENCODER_RESOLUTION}.",
        ),
        io.Combo.Input(
            "denoiser_calls",
            options=[TWO_CALLS, ONE_CALL],
            default=TWO_CALLS,
            tooltip=f"{TWO_CALLS}: after the shift, a guided step calls the diffusion model again (the paper), which "
            f"doubles the time of that step. {ONE_CALL}: the first result is shifted along instead; no extra call.",
        ),
        io.Boolean.Input(
            "checkpointing",
            default=False,
            tooltip="Saves memory without changing the image: the gradient takes two to eight times less, and the forward "
            f"pass is computed twice. For '{THROUGH_DENOISER}' and the {FULL} decoder.",
        ),
    ]


def _svd_inputs() -> list[io.Input]:
    """How the score's gradient is computed, of the preset custom."""
    return [
        io.Combo.Input(
            "range_finder",
            options=list(RANGE_FINDERS),
            default=TRACKED,
            tooltip=f"{TRACKED}: each guided step starts from the singular vectors of the previous one and runs power "
            f"iterations only while it needs them (the first step runs all). {TRACKED_HALF}: about twice as fast on a "
            "CPU, with a gradient at a cosine of 0.98 or better to the exact one where it was measured; on a GPU no faster "
            "for a small encoder; in full precision where bfloat16 is slow. "
            f"{COLD}: each step starts from noise and runs all power iterations (the paper).",
        ),
        io.Int.Input(
            "rank",
            default=9,
            min=1,
            max=256,
            tooltip="How many of the encoder's most sensitive directions the guided score counts (k singular values). "
            "The paper's 9 is a good balance; more cost more.",
        ),
        io.Int.Input(
            "oversampling",
            default=2,
            min=0,
            max=64,
            tooltip="Extra directions that make the gradient more accurate (p in the paper, which uses 2).",
        ),
        io.Int.Input(
            "power_iterations",
            default=2,
            min=0,
            max=8,
            tooltip="Rounds that make the gradient more accurate (q in the paper, which uses 2). Each costs a forward and a "
            "backward product for rank + oversampling directions; 1 is enough for most images.",
        ),
    ]
