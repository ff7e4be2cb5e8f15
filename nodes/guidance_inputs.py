"""The inputs that the guiding nodes share, and the arguments that they stand for."""

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..host.guidance.brought import brought
from ..host.guidance.config import GuidanceConfig
from ..host.guidance.schedule import Schedule
from ..host.options import AUTO, NOVELTY, ONE_CALL, SCORE, TARGETS, THROUGH_DENOISER, VARIANCE
from ..host.scoring.modes import how_beside
from ..host.scoring.reference import view_of
from ..jepa_core import RarityGradient
from ..jepa_core.score import PROJECTION
from .guidance_presets import (
    BALANCED,
    CUSTOM,
    FAITHFUL,
    PRESETS,
    RANGE_FINDERS,
    SUBTLE,
    TIMES,
    WILD,
)
from .guidance_settings import defaults, settings_inputs
from .input_checks import check_values
from .old_form import OLD_FORM
from .types import JEPAEncoder, JEPAReference, JEPASettings

NO_TARGET = next(iter(TARGETS))
MAX_STRENGTH = 10.0
VIEW = ("fit", "antialias")


def guidance_inputs() -> list[io.Input]:
    """The schema inputs. Their order is fixed, since saved workflows depend on it."""
    return [*_dial_inputs(), *_usual_inputs(), *_links()]


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
            "stock sampler. The useful range is blue on the scale below the inputs, where you can drag the mark: 0.5 to 2 "
            f"with the preset {BALANCED}. The paper's strength is 0.5.",
        ),
        io.Combo.Input(
            "preset",
            options=[SUBTLE, BALANCED, WILD, FAITHFUL, CUSTOM],
            default=BALANCED,
            tooltip=f"How much a strength does. {SUBTLE}: about half as much, mostly edges and shading, in the least time "
            f"and memory. {BALANCED}: colours and parts change too, as far as the device has memory. {WILD}: the strength "
            f"counts double; pictures can break up by 2. {FAITHFUL}: the paper's program, with the full strength at every "
            f"guided step; slow. {CUSTOM}: as JEPA Guidance Settings says.",
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
    ]


def _usual_inputs() -> list[io.Input]:
    """What the images shall differ from, and when it is enough."""
    return [
        io.Combo.Input(
            "target",
            options=list(TARGETS),
            optional=True,
            default=NO_TARGET,
            tooltip="Stops when it is enough. 1 in 20: guidance fades out as the image becomes as rare as the rarest 5 % of "
            "the reference (for a negative strength, as usual as the most usual 5 %). none: strength alone decides. Needs a "
            "reference.",
        ),
        io.Boolean.Input(
            "apart",
            optional=True,
            default=False,
            tooltip=f"Images of the same batch move away from each other, so that one prompt gives different pictures. "
            f"A kind of {NOVELTY}, alone or together with a reference. A negative strength draws them together. A single "
            "image has nothing to move away from.",
        ),
    ]


def _links() -> list[io.Input]:
    return [
        JEPAReference.Input(
            "reference",
            optional=True,
            tooltip=f"The pictures that count as usual, for {NOVELTY} and for target: from JEPA Prompt Reference (what this "
            "prompt gives by itself), JEPA Reference from Folder (your last pictures) or JEPA Reference. "
            "It must be made with the same encoder and image size; the image is seen as its pictures were, unless "
            "linked settings choose a fit.",
        ),
        JEPAEncoder.Input(
            "judge",
            optional=True,
            tooltip="A second opinion; it does not guide. Another encoder scores the image at every guided step, "
            "shown under the node and in the trace. Guidance lowers the score of its own encoder, so that score does not "
            f"prove that the image became rarer. The judge's scores come from {PROJECTION} fixed random outputs. It also "
            "decides when the target is reached, if the reference was made with it too.",
        ),
        JEPASettings.Input(
            "settings",
            optional=True,
            extra_dict={"jepa_old_form": OLD_FORM},
            tooltip="From JEPA Guidance Settings: everything technical. Not needed; without it that node's defaults count, "
            "and what the preset sets.",
        ),
    ]


def check_guidance(inputs: list[io.Input], values: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the input, for the first value that does not fit a guiding node or its settings."""
    check_values([*inputs, *settings_inputs()], values)


def guides_nothing(values: Mapping[str, Any]) -> bool:
    """Whether the inputs turn guidance off: the stock sampler runs then, whatever the others say."""
    return bool(values["strength"] == 0 or values["start_percent"] == values["end_percent"])


def off_text(model: Any, unpatched: str) -> str:
    """What a node says that guides nothing. unpatched: what is true if this pack has not patched the MODEL."""
    names = brought(model)
    if not names:
        return f"JEPA guidance: off (strength 0 or an empty range); {unpatched}"
    return (
        "JEPA guidance: off in this node (strength 0 or an empty range); the model brings "
        f"{' and '.join(names)}, which this node leaves as it is"
    )


def values_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All values that count, by the names of the inputs and of those of JEPAGuidanceSettings.

    The later wins: defaults, settings, preset; and how a reference's pictures were seen, unless the settings say it.
    """
    linked, reference = inputs.get("settings"), inputs.get("reference")
    given = {"target": NO_TARGET, "apart": False, "reference": None, "judge": None, **inputs}
    chosen = {name: given[name] for name in defaults() if name in given} | dict(
        linked.chosen if linked else {}
    )
    preset = PRESETS.get(given["preset"], {})
    values = given | defaults() | chosen | preset
    values.pop("settings", None)
    # a preset is for any reference
    asked = AUTO if "fit" in preset else chosen.get("fit", AUTO)
    fit = AUTO if reference is not None and asked == AUTO else values["fit"]
    return values | view_of(how_beside(reference, fit=fit, antialias=values["antialias"]))


def config_of(inputs: Mapping[str, Any]) -> GuidanceConfig:
    """What the inputs ask for. Raises ValueError on a range that makes no sense."""
    values = values_of(inputs)
    return GuidanceConfig(
        Schedule(
            strength=values["strength"],
            times=TIMES.get(values["preset"], 1.0),
            start_percent=values["start_percent"],
            end_percent=values["end_percent"],
            interval=values["interval"],
            strength_rule=values["strength_rule"],
            variance=values["schedule"] == VARIANCE,
            normalisation=values["normalisation"],
        ),
        RarityGradient(
            values["rank"],
            values["oversampling"],
            values["power_iterations"],
            **RANGE_FINDERS[values["range_finder"]],
        ),
        through_denoiser=values["gradient_path"] == THROUGH_DENOISER,
        decoder=values["decoder"],
        one_call=values["denoiser_calls"] == ONE_CALL,
        checkpointing=values["checkpointing"],
        criterion=criterion_of(values),
        apart=values["apart"],
        smooth=values["smooth"],
        keep_appearance=values["keep_appearance"],
        agree=values["agree"],
        target=TARGETS[values["target"]],
        fit=values["fit"],
        antialias=values["antialias"],
    )


def criterion_of(values: Mapping[str, Any]) -> str:
    """SCORE, NOVELTY or BOTH; AUTO is novelty where there is something to compare with."""
    if values["criterion"] != AUTO:
        return str(values["criterion"])
    return NOVELTY if values["reference"] is not None or values["apart"] else SCORE
