"""Decoders from a clean latent to the image that the encoder sees: the VAE, the VAE on a smaller latent, a tiny one."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...jepa_core.resize import resize
from ...jepa_core.tensors import unreadable
from ...jepa_core.transparency import over_white
from ..comfy.required import TAESD, VAE, folder_paths
from ..comfy.vae import decode
from ..options import CROP, DECODERS, ENCODER_RESOLUTION, FULL, TINY, TINY_OR_SMALL
from .residency import resident_vae

TINY_FOLDER = "vae_approx"


class LatentDecoder(NamedTuple):
    """A way from a clean latent to the image.

    Attributes:
        vae: its weights stay in place (residency.resident_vae).
        prepare: clean latent (1, C, h, w) or (1, C, t, h, w) in the scale of the model's VAE -> the latent that `vae`
            decodes.
        description: shown to users.
    """

    vae: Any
    prepare: Callable[[Tensor], Tensor] = lambda latent: latent
    description: str = "full decoder"


def decoded(vae: Any, latent: Tensor) -> Tensor:
    """Decode a latent, in the VAE's own scale, to frames (T, H, W, 3) in [0, 1], differentiably; T is 1 for an image.

    Some decoders give transparent pixels, which are composited over white.

    Args:
        latent: (1, C, h, w), or (1, C, t, h, w) for a video model.
    """
    pixels = decode(vae, latent)
    if pixels.ndim == 5:
        pixels = pixels[0].movedim(1, 0)
    return over_white(pixels.movedim(1, -1))


def shrink(latent: Tensor, side: int, fit: str) -> Tensor:
    """Resize a latent to at most side x side, differentiably; a latent that is no larger is returned unchanged.

    Args:
        latent: (B, C, h, w) or (1, C, t, h, w).
        side: the encoder's image size in latent pixels.
        fit: "crop" cuts the centre square first; "squash" shrinks each side independently. See Encoder.preprocess.
    """
    height, width = latent.shape[-2:]
    if max(height, width) <= side:
        return latent
    if latent.ndim == 5:
        return shrink(latent[0].movedim(1, 0), side, fit).movedim(0, 1)[None]
    if fit == CROP:
        square = min(height, width)
        top, left = (height - square) // 2, (width - square) // 2
        latent = latent[..., top : top + square, left : left + square]
        height = width = square
    size = (min(height, side), min(width, side))
    if size == (height, width):
        return latent
    return resize(latent, size)


def choose_decoder(choice: str, vae: Any, latent_format: Any, image_size: int, fit: str) -> LatentDecoder:
    """The decoder named by `choice`, for latents in `latent_format` that `vae` decodes.

    Args:
        choice: one of DECODERS.
        image_size: side of the encoder's image in pixels. fit: see shrink.

    Raises:
        ValueError: an unknown choice, or a tiny autoencoder that is missing or damaged; the message names the fix.
    """
    if choice not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {choice!r}")
    if choice == FULL:
        return LatentDecoder(resident_vae(vae))
    # Rounded up: the encoder's own resize then shrinks a little and never enlarges.
    side = math.ceil(image_size / vae.spacial_compression_decode())
    if choice != ENCODER_RESOLUTION:
        name = tiny_decoder_name(latent_format)
        if name is not None:
            tiny = resident_vae(load_tiny_decoder(name, latent_format.latent_channels))
            # process_in is affine per channel. It is evaluated here, since its tensors may be inference tensors, which
            # autograd refuses.
            with torch.inference_mode(False), torch.no_grad():
                one = torch.ones(1, latent_format.latent_channels, 1, 1)
                origin = latent_format.process_in(0 * one)
                unit = latent_format.process_in(one) - origin

            def to_models_scale(latent: Tensor) -> Tensor:
                return shrink(latent, side, fit) * unit.to(latent) + origin.to(latent)

            return LatentDecoder(tiny, to_models_scale, f"tiny autoencoder {name}")
        if choice == TINY:
            raise ValueError(_missing(latent_format))
    description = "decoder at encoder resolution"
    if choice == TINY_OR_SMALL:
        wanted = tiny_decoder_prefix(latent_format)
        description += (
            f" (no {wanted}.safetensors in models/{TINY_FOLDER})" if wanted else " (no tiny one exists)"
        )
    return LatentDecoder(resident_vae(vae), lambda latent: shrink(latent, side, fit), description)


def tiny_decoder_prefix(latent_format: Any) -> str | None:
    """The start of the name of a tiny decoder's file for such latents, or None if there is none.

    Tiny decoders of video models are other networks, which this pack does not load.
    """
    return latent_format.taesd_decoder_name if latent_format.latent_dimensions == 2 else None


def tiny_decoder_name(latent_format: Any) -> str | None:
    """The name of a tiny decoder for such latents in models/vae_approx, or None."""
    wanted = tiny_decoder_prefix(latent_format)
    if wanted is None:
        return None
    names = folder_paths.get_filename_list(TINY_FOLDER)
    # the host's own rule, without pickles, which the folder may contain
    found = (name for name in names if name.startswith(wanted) and name.endswith(".safetensors"))
    return next(found, None)


def load_tiny_decoder(name: str, latent_channels: int) -> Any:
    """Load a tiny decoder as a VAE that the host manages; it decodes latents in the model's scale.

    Args:
        name: a .safetensors file in models/vae_approx.

    Raises:
        ValueError: the file is damaged, or decodes other latents.
    """
    file = folder_paths.get_full_path_or_raise(TINY_FOLDER, name)
    again = f"download it again, or set decoder to {ENCODER_RESOLUTION!r}"
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(unreadable(Path(file), error, again)) from error
    try:
        # The host's VAE class accepts a file with missing weights; this class refuses it.
        tensors = TAESD(None, file, latent_channels=latent_channels).state_dict()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged or not a tiny decoder for latents of {latent_channels} channels ({error}); {again}"
        ) from error
    return VAE(sd=tensors, metadata={"tae_latent_channels": latent_channels})


def _missing(latent_format: Any) -> str:
    wanted = tiny_decoder_prefix(latent_format)
    other = f"or set decoder to {ENCODER_RESOLUTION!r}"
    if wanted is None:
        return (
            f"There is no tiny autoencoder for this model's latents; set decoder to {ENCODER_RESOLUTION!r}."
        )
    pickles = [name for name in folder_paths.get_filename_list(TINY_FOLDER) if name.startswith(wanted)]
    return f"decoder {TINY!r} needs {wanted}.safetensors in models/{TINY_FOLDER}; put it there, {other}." + (
        f" {pickles[0]} is there, but only .safetensors files are loaded." if pickles else ""
    )
