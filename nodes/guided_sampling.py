"""What the nodes that sample with guidance share: the host's KSampler plus the inputs of guidance."""

from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from ..host.comfy.sampling import MAX_SEED
from ..host.guidance.patch import apply_guidance
from ..host.guidance.refusals import check_finite, check_frames
from ..host.guidance.trace import Trace
from .guidance_inputs import check_guidance, config_of, guidance_inputs, guides_nothing, off_text
from .input_checks import inputs_of
from .sampling_inputs import missing_sampler, sampler_message, sampling_inputs

SAMPLING = ("seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "denoise")


def guided_sampling_inputs() -> list[io.Input]:
    """The schema inputs. Their order is fixed, since saved workflows depend on it."""
    return [
        io.Model.Input("model", tooltip="The diffusion model that denoises the latent."),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="The random seed of the noise. The same seed gives the same image.",
        ),
        *sampling_inputs(
            steps=20,
            steps_tip="The number of denoising steps.",
            cfg_tip="Classifier-free guidance: how closely to follow the prompt.",
            sampler_tip="The sampling algorithm. dpm_adaptive cannot be guided.",
        ),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input("latent_image", tooltip="The latent to denoise."),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much is denoised. Below 1 keeps structure of the latent, for image to image.",
        ),
        *guidance_inputs(),
    ]


def check_all_but_seed(node: type[io.ComfyNode], values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first value that does not fit the node; the stock sampler takes any seed through a link."""
    check_guidance(inputs_of(node), {name: one for name, one in values.items() if name != "seed"})


def guided_model(
    model: Any,
    latent_image: dict,
    sampler_name: str,
    inputs: Mapping[str, Any],
    report: Callable[[Trace], None],
) -> Any:
    """MODEL, guided as the inputs say: a clone, or MODEL itself if they say nothing.

    Args:
        inputs: the values of guidance_inputs, checked if they guide.
        report: called with the trace as it grows.

    Raises:
        ValueError: inputs, a sampler, models or a latent that cannot be guided.
    """
    if message := missing_sampler(sampler_name):
        raise ValueError(message)
    if guides_nothing(inputs):
        report(Trace(instead=off_text(model, "this is the stock sampler's image")))
        return model
    if message := sampler_message(sampler_name):
        raise ValueError(message)
    encoders = (one for one in (inputs["encoder"], inputs.get("judge")) if one is not None)
    check_frames(latent_image["samples"], *encoders)
    check_finite(latent_image["samples"])
    return apply_guidance(
        model,
        inputs["vae"],
        inputs["encoder"],
        config_of(inputs),
        judge=inputs.get("judge"),
        reference=inputs.get("reference"),
        report=report,
    )
