"""Remove from a gradient what changes only how bright, contrasty or colourful a picture is.

The component of a guidance direction along such changes is the easiest way to move an encoder and hardly changes what a
picture shows; projecting it off is how adaptive projected guidance avoids oversaturation (arXiv 2410.02416).
"""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue


def appearance_directions(images: Tensor) -> Tensor:
    """What changes brightness, contrast (of each colour) and saturation of images (B, H, W, 3) -> (B, 7, H, W, 3)."""
    ones = torch.eye(3).to(images)[:, None, None, :].expand(3, *images.shape[1:])
    brightness = ones.expand(len(images), -1, -1, -1, -1)
    centred = images - images.mean((1, 2), keepdim=True)
    contrast = centred[:, None] * ones
    grey = (images * images.new_tensor(LUMA)).sum(-1, keepdim=True)
    saturation = (images - grey)[:, None]
    return torch.cat([brightness, contrast, saturation], 1)


def without_appearance(gradient: Tensor, images: Tensor) -> Tensor:
    """The gradient (B, H, W, 3) without its components along appearance_directions of the images (B, H, W, 3)."""
    directions = appearance_directions(images.detach()).flatten(2).double()
    size = directions.norm(dim=2, keepdim=True)
    # of a grey or flat picture some are only rounding; the pseudoinverse leaves zeros out
    rounding = size <= 1e-5 * images.flatten(1).double().norm(dim=1)[:, None, None]
    directions = torch.where(rounding, 0.0, directions / size)
    flat = gradient.flatten(1).double()[..., None]
    gram = (directions @ directions.mT).nan_to_num()  # the result of such an image is NaN all the same
    share = torch.linalg.pinv(gram, rtol=1e-9, hermitian=True) @ (directions @ flat)
    return (flat - directions.mT @ share).squeeze(-1).to(gradient).reshape(gradient.shape)
