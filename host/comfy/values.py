"""What an IMAGE, a MASK and a LATENT must be before this pack works on them. Links of other packs may carry anything."""

from typing import Any

from torch import Tensor

# How far a resize may overshoot 0 to 1. Bicubic interpolation, the host's widest, stays within it.
OVERSHOOT = 0.5


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise ValueError, naming the input, unless this is a batch of images; see image_message."""
    if message := image_message(name, images):
        raise ValueError(message)


def image_message(name: str, images: Any) -> str | None:
    """Why this is not a batch of images (B, H, W, 3 or 4) in [0, 1] with at least one image, or None if it is."""
    if not isinstance(images, Tensor):
        return f"{name} must be of type IMAGE, got {type(images).__name__}"
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape[1:]:
        return f"{name} must be (batch, height, width, 3 or 4), got {tuple(images.shape)}"
    if not len(images):
        return f"{name} holds no image; link a node that gives at least one"
    if not images.is_floating_point():
        return (
            f"{name} must have floating-point pixels from 0 to 1, got {_kind(images)}; convert them, for instance by "
            "dividing by 255"
        )
    for index, image in enumerate(images):
        if not image.isfinite().all():
            return f"{name}: image {index} of the batch holds NaN or infinite pixels"
        low, high = (end.item() for end in image.aminmax())
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            return f"{name}: image {index} of the batch has pixels from {low:g} to {high:g}; bring them to 0 to 1"
    return None


def mask_message(name: str, masks: Any) -> str | None:
    """Why this is not a batch of masks (B, H, W), or one (H, W), or None if it is."""
    if not isinstance(masks, Tensor):
        return f"{name} must be of type MASK, got {type(masks).__name__}"
    if masks.ndim not in (2, 3) or 0 in masks.shape:
        return f"{name} must be (batch, height, width), got {tuple(masks.shape)}"
    return None


def latent_message(name: str, latent: Any) -> str | None:
    """Why this is not a LATENT with at least one image and, if it has a noise_mask, a finite one; None if it is."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    # the host's nested tensors, of several parts, are refused by those that cannot use them
    if getattr(samples, "is_nested", False):
        return None
    if not isinstance(samples, Tensor):
        return f"{name} must be of type LATENT, got {type(latent).__name__}"
    if samples.ndim < 3 or 0 in samples.shape[1:]:
        return f"{name} must be (batch, channels, height, width), got {tuple(samples.shape)}"
    if not len(samples):
        return f"{name} holds no image; link a node that gives at least one"
    if not samples.is_floating_point():
        return f"{name} must have floating-point values, got {_kind(samples)}; encode an image anew"
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    if message := mask_message(f"the noise_mask of {name}", mask.flatten(0, -3) if _stacked(mask) else mask):
        return message
    return None if mask.isfinite().all() else f"the noise_mask of {name} holds NaN or infinite values"


def _stacked(mask: Any) -> bool:
    """Whether a noise_mask has dimensions for channels or frames, as some nodes give it."""
    return isinstance(mask, Tensor) and mask.ndim > 3


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
