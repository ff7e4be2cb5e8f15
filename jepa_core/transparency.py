"""What an encoder sees of a picture with transparent parts."""

from torch import Tensor


def over_white(pixels: Tensor) -> Tensor:
    """Lay pixels (..., 3 or 4) in [0, 1] over white, differentiably; returns (..., 3).

    The fourth number is alpha. Opaque pixels keep their very values.
    """
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if not alpha.shape[-1]:
        return colours
    # pictures of other packs leave the range
    alpha = alpha.clamp(0, 1)
    return colours * alpha + (1 - alpha)
