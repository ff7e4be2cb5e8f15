"""What guidance refuses: models that do not fit together, and inputs that it cannot guide."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..comfy.models import device_count
from ..comfy.sampling import unguidable_sampling
from ..encoders.host_encoder import AnyEncoder, HostEncoder

CONNECT_ANOTHER = "Connect a text-to-image or text-to-video model and its VAE."


def check_rank(rank: int, guides: Iterable[HostEncoder]) -> None:
    """Refuse a rank larger than an embedding.

    Raises:
        ValueError: names the encoder, the length of its embedding, and the rank.
    """
    for guide in guides:
        if rank > guide.encoder.embed_dim:
            raise ValueError(
                f"rank {rank} is larger than the embedding of {guide.name}, {guide.encoder.embed_dim}; lower it"
            )


def check_vae_fits(vae: Any, model: Any) -> None:
    """Refuse a VAE that cannot decode the model's latents, before anything is loaded.

    Raises:
        ValueError: names what does not match.
    """
    vae.throw_exception_if_invalid()
    latent_format = model.get_model_object("latent_format")
    # RGB or RGBA. Audio has 2 channels, and some decoders leave pixels to another node
    channels = {vae.output_channels, getattr(vae, "conv_out_channels", vae.output_channels)}
    if not channels <= {3, 4}:
        raise ValueError(
            f"JEPA guidance works on images and videos; this VAE decodes to {max(channels - {3, 4})} channels, "
            f"not to a picture. {CONNECT_ANOTHER}"
        )
    check_makes_pictures(model)
    dimensions = latent_format.latent_dimensions
    if vae.latent_dim != dimensions:
        # the number of channels alone proves nothing: Flux, SD3 and Wan all have 16
        raise ValueError(
            f"The VAE decodes latents of {vae.latent_dim} dimensions, the model makes {dimensions}. "
            "Connect the VAE that belongs to the model."
        )
    if vae.latent_channels != latent_format.latent_channels:
        raise ValueError(
            f"The VAE decodes latents of {vae.latent_channels} channels, the model makes "
            f"{latent_format.latent_channels}. Connect the VAE that belongs to the model."
        )
    _check_independent("VAE", vae.first_stage_model)


def check_makes_pictures(model: Any) -> None:
    """Refuse a model that makes neither images nor videos, or mixes the images of a batch.

    Raises:
        ValueError: says what it makes.
    """
    dimensions = model.get_model_object("latent_format").latent_dimensions
    if dimensions not in (2, 3):
        raise ValueError(
            f"JEPA guidance works on images and videos; this model's latents have {dimensions} dimension(s). "
            f"{CONNECT_ANOTHER}"
        )
    _check_independent("model", model.get_model_object("diffusion_model"))


def _check_independent(what: str, network: Any) -> None:
    """Refuse a network with layers that mix a batch as the frames of a video, as SVD and SV3D have."""
    if any(hasattr(part, name) for part in network.modules() for name in ("time_stack", "time_mix_conv")):
        raise ValueError(
            f"JEPA guidance guides each image of a batch separately; this {what} treats the batch as the frames of one "
            f"video and mixes them. {CONNECT_ANOTHER}"
        )


def check_sampling(model: Any) -> None:
    """Refuse a model whose noise has no scale that guidance can use.

    Raises:
        ValueError: names its sampling class.
    """
    name = unguidable_sampling(model.get_model_object("model_sampling"))
    if name is not None:
        raise ValueError(
            f"JEPA guidance does not support models that sample by {name}: it needs latents with noise of a known scale. "
            f"{CONNECT_ANOTHER}"
        )


def check_one_device(model: Any) -> None:
    """Refuse a model that the host spreads over several devices.

    Raises:
        ValueError: says how many.
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
        ValueError: names the images of the batch.
    """
    bad = [i for i, image in enumerate(latent) if not image.isfinite().all()]
    if bad:
        raise ValueError(f"latent_image holds NaN or infinite values in image(s) {bad} of the batch")


def check_schedule(sigmas: Tensor) -> None:
    """Refuse noise levels that are not finite, which some schedulers give for a single step.

    Raises:
        ValueError: names what to change.
    """
    if not sigmas.isfinite().all():
        raise ValueError(
            "the scheduler gives noise levels that are NaN or infinite for this number of steps; choose another scheduler, "
            "or more steps"
        )


def check_frames(latent: Tensor, *encoders: AnyEncoder) -> None:
    """Refuse latents other than images (B, C, h, w) or (B, C, 1, h, w), and videos unless all encoders see videos.

    Raises:
        ValueError: names the shape, and the encoder that sees still images only.
    """
    # several parts are the host's nested tensor, which it packs as (B, 1, all numbers) for a sampler
    if latent.is_nested or (latent.ndim == 3 and latent.shape[1] == 1):
        raise ValueError(
            "JEPA guidance works on images and videos alone; this latent has several parts, such as a video and its "
            "sound. Connect a model that makes images, or videos without sound."
        )
    if latent.ndim not in (4, 5):
        raise ValueError(
            f"JEPA guidance works on images and videos; this latent has shape {tuple(latent.shape)}"
        )
    if latent.ndim == 4 or latent.shape[2] == 1:
        return
    for encoder in (member.encoder for one in encoders for member in one.members):
        if encoder.encoder.architecture.embed_clip is None:
            raise ValueError(
                f"This latent has shape {tuple(latent.shape)}, a video of {latent.shape[2]} latent frames, and "
                f"{encoder.name} sees still images. Set its length to 1, or use a V-JEPA 2 encoder, which sees motion."
            )
