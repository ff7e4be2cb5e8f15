"""How transparent images are shown to an encoder."""

from torch import Tensor


def over_white(pixels: Tensor) -> Tensor:
    """Composite pixels (..., 3 or 4) in [0, 1] over white; returns (..., 3). Differentiable.

    The fourth channel is alpha. Opaque pixels stay bit for bit the same.
    """
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if not alpha.shape[-1]:
        return colours
    # images from other packs may be outside [0, 1]
    alpha = alpha.clamp(0, 1)
    return colours * alpha + (1 - alpha)
