"""A few views of the same picture. What survives the mean over them is harder to fake by single pixels."""

from torch import Tensor

CUT = 1 / 12  # of each side, by the crops
COUNT = 4


def views(images: Tensor) -> list[Tensor]:
    """The images (B, H, W, C), mirrored, and two crops from opposite corners, one of them mirrored; COUNT batches."""
    height, width = images.shape[-3:-1]
    down, right = round(CUT * height), round(CUT * width)
    upper_left = images[..., : height - down, : width - right, :]
    lower_right = images[..., down:, right:, :]
    return [images, images.flip(-2), upper_left, lower_right.flip(-2)]
