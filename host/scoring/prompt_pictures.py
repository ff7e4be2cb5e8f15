"""What a prompt draws without guidance: the pictures of many seeds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..comfy.sampling import seeds_from, stock_sample
from ..comfy.vae import stock_decode
from ..comfy.values import check_images


def check_one_picture(latent: dict) -> None:
    """Raise ValueError for a LATENT that is not of pictures: videos, sound, several parts."""
    samples = latent["samples"]
    if samples.is_nested or not (samples.ndim == 4 or (samples.ndim == 5 and samples.shape[2] == 1)):
        raise ValueError(
            f"latent_image must be of pictures, got shape {tuple(samples.shape)}; for a video model, set its length to 1"
        )


def draw_pictures(
    model: Any,
    vae: Any,
    latent: dict,
    *,
    first_seed: int,
    count: int,
    on_picture: Callable[[int], None],
    **sampling: Any,
) -> Tensor:
    """The pictures of seeds_from(first_seed, count), (count, H, W, C).

    Each is sampled and decoded alone, so that it is bit for bit what the host's KSampler and VAE Decode make of that seed
    with any sampler: in a batch, samplers that draw noise as they go give each picture other noise.

    Args:
        latent: a LATENT whose size counts, not its content.
        on_picture: called with the number of each picture, from 0, before it is drawn; may raise to stop.
        sampling: steps, cfg, sampler_name, scheduler, positive, negative.

    Raises:
        ValueError: latents that are not of pictures, or pictures with NaN.
    """
    check_one_picture(latent)
    empty = {name: value for name, value in latent.items() if name not in ("noise_mask", "batch_index")}
    empty["samples"] = torch.zeros_like(latent["samples"][:1])
    drawn = []
    for number, seed in enumerate(seeds_from(first_seed, count)):
        on_picture(number)
        drawn.append(stock_sample(model, empty, seed=seed, denoise=1.0, **sampling))
    # the decoder only afterwards: it need not fit on the device together with the denoiser
    images = torch.cat([stock_decode(vae, one) for one in drawn])
    check_images(images)
    return images
