"""The inputs that the guided sampler and the MODEL patch share, and the arguments that they stand for."""

from typing import Any

from comfy_api.latest import io

from ..host.guidance.brought import brought
from ..host.guidance.config import GuidanceConfig
from ..host.guidance.schedule import Schedule
from ..host.options import (
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
    TARGETS,
    THROUGH_DENOISER,
    TINY_OR_SMALL,
    TRACKED,
    TRACKED_HALF,
    TWO_CALLS,
    VARIANCE,
)
from ..jepa_core import RarityGradient
from ..jepa_core.score import PROJECTION
from ..jepa_core.views import COUNT as VIEWS
from .types import JEPAEncoder, JEPAReference

CUSTOM = "custom"
AUTO = "auto"  # preset and criterion of a new node
NO_TARGET = next(iter(TARGETS))
MAX_STRENGTH = 10.0
# Defaults of inputs added later: optional, so that prompts saved without them still run.
LATER_INPUTS = {
    "decoder": FULL,
    "denoiser_calls": TWO_CALLS,
    "checkpointing": False,
    "range_finder": TRACKED,
    "preset": CUSTOM,  # the graphs saved without one; a new node begins with AUTO
    "judge": None,
    "criterion": SCORE,  # the graphs saved without one; a new node begins with AUTO
    "reference": None,
    "target": NO_TARGET,
    "apart": False,
    "smooth": False,
    "keep_appearance": False,
    "agree": False,
}
# The inputs that each preset overrides: how the gradient is computed, never how strong guidance is, when it acts or
# how the encoder sees the image.
PRESETS = {
    AUTO: {
        "rank": 9,
        "oversampling": 2,
        "power_iterations": 2,
        "gradient_path": THROUGH_DENOISER,
        "decoder": FULL,
        "denoiser_calls": ONE_CALL,
        "checkpointing": False,
        "range_finder": TRACKED_HALF,
    },
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


# Inputs that the page may fold away; in extra_dict, since ComfyUI 0.9.2 has no argument for it.
ADVANCED = {"advanced": True}
# RarityGradient's arguments for each choice of range_finder. In half precision the residual has a noise of 0.15, so
# its tolerance is larger.
RANGE_FINDERS: dict[str, dict[str, Any]] = {
    TRACKED: {"tracked": True, "tolerance": 0.3},
    TRACKED_HALF: {"tracked": True, "tolerance": 0.35, "half": True},
    COLD: {"tracked": False},
}


def guidance_inputs() -> list[io.Input]:
    """The schema inputs. Their order is fixed, since saved workflows depend on it."""
    return [*_dial_inputs(), *_gradient_inputs(), *_later_inputs(), *_novelty_inputs()]


def _dial_inputs() -> list[io.Input]:
    """What guides, how strongly, and when."""
    return [
        io.Vae.Input(
            "vae", tooltip="The VAE that belongs to the model. The encoder scores the decoded image."
        ),
        JEPAEncoder.Input(
            "encoder",
            tooltip="Defines what is rare. From JEPA Encoder Loader, or several encoders from JEPA Combine Encoders.",
        ),
        io.Float.Input(
            "strength",
            default=0.5,
            min=-MAX_STRENGTH,
            max=MAX_STRENGTH,
            step=0.05,
            tooltip="How far to guide. Positive: rarer. Negative: more typical (this can reinforce bias). 0: exactly the "
            "stock sampler. 0.5 to 2 is the useful range, blue on the scale below the inputs; 0.5 is the paper's eta.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Higher keeps more of the unguided composition. The fraction of this sampler's steps before guidance "
            "begins; early estimates are too blurry to score. The paper's tau is 1 - start_percent, 0.8.",
        ),
        io.Float.Input(
            "end_percent",
            default=0.8,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Lower leaves more steps to clean up the image. The fraction of this sampler's steps after which "
            "guidance stops; 1.0 guides to the end, as the paper does. Equal to start_percent: nothing is guided.",
        ),
        io.Int.Input(
            "interval",
            extra_dict=ADVANCED,
            default=1,
            min=1,
            max=100,
            tooltip="Higher is faster: only every N-th step is guided. 2 halves the number of guided steps; with "
            "strength_rule 'spread' the remaining steps shift further to make up for it.",
        ),
    ]


def _gradient_inputs() -> list[io.Input]:
    """How the gradient is computed and applied."""
    return [
        io.Int.Input(
            "rank",
            extra_dict=ADVANCED,
            default=9,
            min=1,
            max=256,
            tooltip="How many of the encoder's most sensitive directions the guided score counts (k singular values). "
            "The paper's 9 is a good balance; more cost more.",
        ),
        io.Int.Input(
            "oversampling",
            extra_dict=ADVANCED,
            default=2,
            min=0,
            max=64,
            tooltip="Extra directions that make the gradient more accurate (p in the paper, which uses 2).",
        ),
        io.Int.Input(
            "power_iterations",
            extra_dict=ADVANCED,
            default=2,
            min=0,
            max=8,
            tooltip="Rounds that make the gradient more accurate (q in the paper, which uses 2). Each costs a forward and a "
            "backward product for rank + oversampling directions; 1 is enough for most images.",
        ),
        io.Combo.Input(
            "schedule",
            extra_dict=ADVANCED,
            options=[CONSTANT, VARIANCE],
            default=CONSTANT,
            tooltip="constant: the same shift at every guided step (the paper's default). variance: scaled by the "
            "posterior variance of the step, so late steps shift less.",
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
            tooltip=f"{THROUGH_DENOISER}: changes the image most, visibly from strength 0.5 on; the diffusion model is "
            "differentiated too (the paper). denoiser constant: faster and much less memory, but it changes the image "
            "less.",
        ),
        io.Combo.Input(
            "strength_rule",
            extra_dict=ADVANCED,
            options=[SPREAD, PER_STEP],
            default=SPREAD,
            tooltip="spread: strength is the paper's eta at three guided steps; more steps share the same "
            "total. per_step: every guided step applies the full strength.",
        ),
        io.Combo.Input(
            "fit",
            extra_dict=ADVANCED,
            options=[SQUASH, CROP],
            default=SQUASH,
            tooltip="How a non-square image is made square for the encoder. squash: squeezed (the paper). crop: only its "
            "centre. Score with the same setting.",
        ),
        io.Boolean.Input(
            "antialias",
            extra_dict=ADVANCED,
            default=True,
            tooltip="Smooths the image before shrinking it for the encoder, as in the encoder's training. Off: the plain "
            "resize of the paper's code.",
        ),
    ]


def _later_inputs() -> list[io.Input]:
    """Inputs that came after the first workflows were saved."""
    return [
        io.Combo.Input(
            "decoder",
            extra_dict=ADVANCED,
            options=list(DECODERS),
            optional=True,
            default=LATER_INPUTS["decoder"],
            tooltip=f"How the latent is decoded for the encoder. {FULL}: the whole image (the paper). {ENCODER_RESOLUTION}: "
            "the latent is shrunk first, so the VAE decodes only the pixels that the encoder sees; much less time and "
            "memory. tiny autoencoder: ComfyUI's preview decoder (TAESD) at that size, the cheapest; needs its .safetensors "
            "file in models/vae_approx.",
        ),
        io.Combo.Input(
            "denoiser_calls",
            extra_dict=ADVANCED,
            options=[TWO_CALLS, ONE_CALL],
            optional=True,
            default=LATER_INPUTS["denoiser_calls"],
            tooltip=f"{TWO_CALLS}: after the shift, a guided step calls the diffusion model again (the paper), which "
            f"doubles the time of that step. {ONE_CALL}: the first result is shifted along instead; no extra call.",
        ),
        io.Boolean.Input(
            "checkpointing",
            extra_dict=ADVANCED,
            optional=True,
            default=LATER_INPUTS["checkpointing"],
            tooltip="Saves memory without changing the image: the gradient takes two to eight times less, and the forward "
            f"pass is computed twice. For '{THROUGH_DENOISER}' and the {FULL} decoder.",
        ),
        io.Combo.Input(
            "range_finder",
            extra_dict=ADVANCED,
            options=list(RANGE_FINDERS),
            optional=True,
            default=LATER_INPUTS["range_finder"],
            tooltip=f"{TRACKED}: each guided step starts from the singular vectors of the previous one and runs power "
            f"iterations only while it needs them (the first step runs all). {TRACKED_HALF}: about twice as fast on a "
            "CPU, with a gradient at a cosine of 0.98 or better to the exact one where it was measured; on a GPU no faster "
            "for a small encoder; in full precision where bfloat16 is slow. "
            f"{COLD}: each step starts from noise and runs all power iterations (the paper).",
        ),
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *PRESETS],
            optional=True,
            default=AUTO,
            tooltip=f"Trades fidelity to the paper for speed. {AUTO}: the most effect that the device has memory for, at "
            f"the least time; the node says which way it took. {CUSTOM}: the inputs above as they are. faithful: as in the "
            "paper, slow. balanced: much faster, in half precision and with the denoiser held constant. fast: the "
            "cheapest. A preset overrides "
            + ", ".join(PRESETS["faithful"])
            + "; strength, percents, interval, schedule and the rest stay as you set them.",
        ),
        JEPAEncoder.Input(
            "judge",
            optional=True,
            tooltip="A second opinion; it does not change the image. Another encoder scores the image at every guided step, "
            "shown under the node and in the trace. Guidance lowers the score of its own encoder, so that score does not "
            f"prove that the image became rarer. The judge's scores come from {PROJECTION} fixed random outputs. It also "
            "decides when the target is reached, if the reference was made with it too.",
        ),
    ]


def _novelty_inputs() -> list[io.Input]:
    """What is descended, and when it is enough."""
    return [
        io.Combo.Input(
            "criterion",
            options=[AUTO, SCORE, NOVELTY, BOTH],
            optional=True,
            default=AUTO,
            tooltip=f"What rare means. {AUTO}: {NOVELTY} with a reference or apart, otherwise {SCORE}. {SCORE}: the "
            f"encoder is hardly sensitive to the image (the paper). {NOVELTY}: the encoder finds the image unlike those of "
            "the reference; much faster, with one forward and one backward pass of the encoder in a guided step. "
            f"{BOTH}: the two in equal parts.",
        ),
        JEPAReference.Input(
            "reference",
            optional=True,
            tooltip=f"The pictures that count as usual, for {NOVELTY} and for target: from JEPA Prompt Reference (what this "
            "prompt gives by itself), JEPA Reference from Folder (your last pictures) or JEPA Reference. "
            "It must be made with the same encoder, image size, fit and antialias.",
        ),
        io.Combo.Input(
            "target",
            options=list(TARGETS),
            optional=True,
            default=LATER_INPUTS["target"],
            tooltip="Stops when it is enough. 1 in 20: guidance fades out as the image becomes as rare as the rarest 5 % of "
            "the reference (for a negative strength, as usual as the most usual 5 %). none: strength alone decides. Needs a "
            "reference.",
        ),
        io.Boolean.Input(
            "apart",
            optional=True,
            default=LATER_INPUTS["apart"],
            tooltip=f"Images of the same batch move away from each other, so that one prompt gives different pictures. "
            f"A kind of {NOVELTY}, alone or together with a reference. A negative strength draws them together. A single "
            "image has nothing to move away from.",
        ),
        io.Boolean.Input(
            "smooth",
            extra_dict=ADVANCED,
            optional=True,
            default=LATER_INPUTS["smooth"],
            tooltip=f"Uses the mean gradient over {VIEWS} views of the image, mirrored and cropped, so that single pixels "
            f"count less. {VIEWS} times the encoder's work.",
        ),
        io.Boolean.Input(
            "keep_appearance",
            extra_dict=ADVANCED,
            optional=True,
            default=LATER_INPUTS["keep_appearance"],
            tooltip="Leaves out of the gradient what changes only brightness, contrast and saturation, the easiest ways to "
            "move an encoder.",
        ),
        io.Boolean.Input(
            "agree",
            extra_dict=ADVANCED,
            optional=True,
            default=LATER_INPUTS["agree"],
            tooltip="With several encoders from JEPA Combine Encoders: moves a pixel only where all of them agree on the "
            f"direction. Also for the two criteria of {BOTH}. Otherwise their weighted mean decides.",
        ),
    ]


def guides_nothing(settings: dict) -> bool:
    """Whether the inputs turn guidance off: the stock sampler runs then, whatever the others say."""
    return settings["strength"] == 0 or settings["start_percent"] == settings["end_percent"]


def off_text(model: Any, unpatched: str) -> str:
    """What a node says that guides nothing. unpatched: what is true if this pack has not patched the MODEL."""
    names = brought(model)
    if not names:
        return f"JEPA guidance: off (strength 0 or an empty range); {unpatched}"
    return (
        "JEPA guidance: off in this node (strength 0 or an empty range); the model brings "
        f"{' and '.join(names)}, which this node leaves as it is"
    )


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
        criterion=criterion_of(settings),
        apart=settings["apart"],
        smooth=settings["smooth"],
        keep_appearance=settings["keep_appearance"],
        agree=settings["agree"],
        target=TARGETS[settings["target"]],
        fit=settings["fit"],
        antialias=settings["antialias"],
    )


def criterion_of(settings: dict) -> str:
    """SCORE, NOVELTY or BOTH; AUTO is novelty where there is something to compare with."""
    if settings["criterion"] != AUTO:
        return str(settings["criterion"])
    return NOVELTY if settings["reference"] is not None or settings["apart"] else SCORE
