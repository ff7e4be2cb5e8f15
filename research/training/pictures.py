"""Pictures with labels, and what trainings and judges draw from them: a data set is a function that returns Pictures."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


class Pictures(NamedTuple):
    """Every picture of a data set; row i of everything is the same one.

    images: (N, 3, S, S) uint8, on white. labels: (N,) int64, from 1; 0 stands for no class. held_out: (N,) bool, True for
    pictures that nothing is trained on. classes: the name of label 1, 2 and so on. licence: goes into the header of what
    is trained on them. attributes: (N, A) int64, what else is known of each picture: columns `names`, the number of a
    value, -1 where a picture has no such attribute.
    """

    images: Tensor
    labels: Tensor
    held_out: Tensor
    classes: tuple[str, ...]
    licence: str
    attributes: Tensor | None = None
    names: tuple[str, ...] = ()

    def trained_on(self) -> Pictures:
        """The pictures to train on."""
        return self._only(~self.held_out)

    def unseen(self) -> Pictures:
        """The pictures held out."""
        return self._only(self.held_out)

    def _only(self, rows: Tensor) -> Pictures:
        return self._replace(
            images=self.images[rows],
            labels=self.labels[rows],
            held_out=self.held_out[rows],
            attributes=None if self.attributes is None else self.attributes[rows],
        )

    def pixels(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The pictures, or some rows of them: (B, 3, S, S) float32 in [0, 1]."""
        return self.images[rows].float() / 255


def class_weights(labels: Tensor, balance: float) -> Tensor:
    """(N,) chances of rows: a class of n is drawn in proportion to n^(1 - balance); 1 is every class alike."""
    return labels.bincount().double()[labels] ** -balance


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Randomly turn (+-3 degrees), scale (0.95 to 1.03) and shift (+-2 %) each image.

    Args:
        images: (B, 3, S, S) uint8, on white.

    Returns:
        (B, 3, S, S) float32 in [0, 1], still on white.
    """
    draw = torch.rand(4, len(images), generator=generator)
    angle = (draw[0] * 2 - 1) * 0.052
    zoom = 1 / (0.95 + 0.08 * draw[1])
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    shift = (draw[2:] * 2 - 1) * 0.04
    rows = [torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Sampled as darkness, so that what is outside the image is white.
    dark = F.grid_sample(1 - images.float() / 255, grid, mode="bilinear", align_corners=False)
    return 1 - dark
