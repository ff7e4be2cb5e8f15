"""The views of a picture: shapes, mirroring, derivatives."""

from __future__ import annotations

import pytest
import torch

from jepa_core.views import COUNT, views


@pytest.mark.parametrize("shape", [(1, 24, 36, 3), (4, 24, 36, 3), (2, 5, 24, 36, 3)])
def test_views_of_images_and_of_clips(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = views(images)
    assert len(found) == COUNT
    assert all(view.shape[:-3] == shape[:-3] and view.shape[-1] == 3 for view in found)
    # a twelfth of each side is cut
    assert [tuple(view.shape[-3:-1]) for view in found] == [(24, 36), (24, 36), (22, 33), (22, 33)]
    whole, mirrored, upper_left, lower_right = found
    assert torch.equal(whole, images)
    for column in range(36):
        assert torch.equal(mirrored[..., column, :], images[..., 35 - column, :])
    assert torch.equal(upper_left, images[..., :22, :33, :])
    assert torch.equal(lower_right.flip(-2), images[..., 2:, 3:, :])


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (1, 40)])
def test_a_tiny_image_keeps_its_pixels(size):
    assert all(view.numel() for view in views(torch.rand(1, *size, 3)))


def test_every_pixel_is_seen_and_the_mean_over_views_is_differentiable():
    image = torch.rand(1, 24, 24, 3).requires_grad_()
    sum(view.sum() for view in views(image)).backward()
    assert image.grad.amin() >= 2
    assert image.grad.amax() == COUNT
