"""What guidance refuses: models that do not fit each other, and ones that cannot be differentiated as they are loaded."""

from typing import Any

import torch

from ..comfy.internals import device_count, is_streamed, unguidable_sampling


def refuse_streamed(patcher: Any, what: str) -> None:
    """Raise if the host keeps only part of these weights on the device: a backward pass would be wrong.

    Raises:
        ValueError: names the model and what to do.
    """
    if is_streamed(patcher):
        raise ValueError(
            f"JEPA guidance cannot differentiate {what} while its weights are streamed from system memory "
            "(the gradients would be silently wrong). Free memory: a smaller model, or fewer models in the graph."
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
            f"JEPA guidance works on pictures; this VAE decodes to {max(channels - {3, 4})} channels, not to a picture. "
            "Connect a text-to-image model and its VAE."
        )
    dimensions = latent_format.latent_dimensions
    if dimensions not in (2, 3):
        raise ValueError(
            f"JEPA guidance works on pictures; this model's latents have {dimensions} dimension(s). "
            "Connect a text-to-image model and its VAE."
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
    for what, network in (
        ("model", model.get_model_object("diffusion_model")),
        ("VAE", vae.first_stage_model),
    ):
        if _mixes_a_batch(network):
            raise ValueError(
                f"JEPA guidance guides each picture of a batch on its own; this {what} takes the batch for the frames "
                "of one video and mixes them. Connect a text-to-image model and its VAE."
            )


def _mixes_a_batch(network: Any) -> bool:
    """Whether a network has layers over the batch, which is a video to it. SVD and SV3D have."""
    return any(hasattr(part, name) for part in network.modules() for name in ("time_stack", "time_mix_conv"))


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
