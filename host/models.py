"""Models as a gradient needs them: weights in place, nothing streamed, and the refusal of what does not fit."""

import copy
import logging
from typing import Any

import torch

from .internals import (
    ModelPatcher,
    device_count,
    has_weight_hooks,
    is_dynamic,
    is_streamed,
    loaded_without_streaming,
    unguidable_sampling,
)


def resident_model(model: Any) -> Any:
    """Return a clone of a MODEL whose weights stay in place while they are differentiated.

    Raises:
        ValueError: the host streams this model's weights and knows no other way to load it.
    """
    if not is_dynamic(model):
        return model.clone()
    try:
        return loaded_without_streaming(model)
    except RuntimeError as error:
        raise ValueError(
            "The model is loaded by the host's dynamic memory manager, which gives wrong gradients, and its "
            "loader offers no other way. Set gradient_path to 'denoiser constant', or start ComfyUI with "
            "--disable-dynamic-vram."
        ) from error


def resident_vae(vae: Any) -> Any:
    """Return the VAE, or a copy of it whose weights the host does not stream.

    Loaders that keep no recipe for a second load are copied weight by weight into a plain patcher.
    """
    if not is_dynamic(vae.patcher):
        return vae
    resident = copy.copy(vae)
    try:
        resident.patcher = loaded_without_streaming(vae.patcher)
    except RuntimeError:
        logging.info("JEPA guidance: copying the VAE, because its loader cannot load it without streaming")
        resident.patcher = ModelPatcher(
            copy.deepcopy(vae.first_stage_model), vae.patcher.load_device, vae.patcher.offload_device
        )
    resident.first_stage_model = resident.patcher.model
    return resident


def refuse_streamed(patcher: Any, what: str) -> None:
    """Raise if the host keeps only part of these weights on the device: a backward pass would be wrong.

    Raises:
        ValueError: names the model and what to do.
    """
    if is_streamed(patcher):
        raise ValueError(
            f"JEPA guidance cannot differentiate {what} while its weights are streamed from system memory "
            "(the gradients would be silently wrong). Free memory: a smaller image, a smaller model, or fewer "
            "models in the graph; for the denoiser set gradient_path to 'denoiser constant'."
        )


def check_vae_fits(vae: Any, model: Any) -> None:
    """Refuse a VAE that cannot decode the model's latents, before anything is loaded.

    Raises:
        ValueError: names both sides.
    """
    vae.throw_exception_if_invalid()
    latent_format = model.get_model_object("latent_format")
    # red, green, blue and perhaps alpha; sound has two, and some decoders leave work to another node
    channels = {vae.output_channels, getattr(vae, "conv_out_channels", vae.output_channels)}
    if not channels <= {3, 4}:
        raise ValueError(
            f"JEPA guidance works on still images; this VAE decodes to {max(channels - {3, 4})} channels, not to a picture."
        )
    dimensions = latent_format.latent_dimensions
    if dimensions not in (2, 3):
        raise ValueError(
            f"JEPA guidance works on still images; this model's latents have {dimensions} dimension(s)."
        )
    if vae.latent_dim != dimensions:
        # equal numbers of channels say nothing: Flux, SD3 and Wan all have 16
        raise ValueError(
            f"The VAE decodes latents of {vae.latent_dim} dimensions, the model makes {dimensions}. "
            "Connect the VAE that belongs to the model."
        )
    if vae.latent_channels != latent_format.latent_channels:
        raise ValueError(
            f"The VAE decodes latents of {vae.latent_channels} channels, the model makes "
            f"{latent_format.latent_channels}. Connect the VAE that belongs to the model."
        )


def check_sampling(model: Any) -> None:
    """Refuse a model whose noise has no scale that guidance knows.

    Raises:
        ValueError: names it.
    """
    name = unguidable_sampling(model.get_model_object("model_sampling"))
    if name is not None:
        raise ValueError(
            f"JEPA guidance does not support models that sample by {name}: it steers a latent with noise of a known "
            "scale, and this one has none. Connect a text-to-image model."
        )


def check_fixed_weights(guider: Any) -> None:
    """Refuse to differentiate a denoiser whose weights the host changes between the parts of one model call.

    Raises:
        ValueError: says what to set.
    """
    if has_weight_hooks(guider):
        raise ValueError(
            "JEPA guidance cannot differentiate a denoiser whose LoRA comes with the conditioning (Create Hook LoRA): "
            "its weights change within a step, and the gradient would be silently wrong. Load the LoRA with Load LoRA, "
            "or set gradient_path to 'denoiser constant'."
        )


def check_one_device(model: Any) -> None:
    """Refuse a model that the host spreads over several devices.

    Raises:
        ValueError: always says how many.
    """
    devices = device_count(model)
    if devices > 1:
        raise ValueError(
            f"JEPA guidance runs on one device; this model is spread over {devices}. "
            "Remove the multi-GPU node in front of it."
        )


def check_finite(latent: torch.Tensor) -> None:
    """Refuse a latent with NaN or infinite values.

    Raises:
        ValueError: says which images of the batch.
    """
    bad = [i for i, image in enumerate(latent) if not image.isfinite().all()]
    if bad:
        raise ValueError(f"latent_image holds NaN or infinite values in image(s) {bad} of the batch")
