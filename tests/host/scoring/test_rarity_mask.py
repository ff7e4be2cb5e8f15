"""Masks of rarity against scipy's filters and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jepa_guidance.host.scoring.mask_filters import blur, grow, local_contrast
from jepa_guidance.host.scoring.rarity_mask import MaskConfig, judged_parts, mask_of, percentile, scaled
from scipy import ndimage


@pytest.fixture
def masks() -> torch.Tensor:
    return torch.rand(2, 21, 30, generator=torch.Generator().manual_seed(0))


def disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


@pytest.mark.parametrize("pixels", [1, 2, 5, 12, 40])
def test_growing_is_the_largest_value_within_a_disc_and_shrinking_the_smallest(masks, pixels):
    for name, sign in (("grey_dilation", 1), ("grey_erosion", -1)):
        outside = -9.0 * sign  # never the largest, or the smallest
        expected = [
            getattr(ndimage, name)(one, footprint=disc(pixels), mode="constant", cval=outside)
            for one in masks.numpy()
        ]
        torch.testing.assert_close(grow(masks, sign * pixels), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("deviation", [0.5, 3.0, 20.0])
def test_blurring_is_a_gaussian(masks, deviation):
    expected = [ndimage.gaussian_filter(one, deviation, mode="nearest") for one in masks.double().numpy()]
    torch.testing.assert_close(
        blur(masks, deviation).double(), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("mask", [torch.zeros(1, 9, 9), torch.ones(1, 9, 9)])
def test_filters_leave_a_mask_of_one_value_and_the_given_tensor_as_they_are(mask):
    before = mask.clone()
    for changed in (grow(mask, 3), grow(mask, -3), blur(mask, 2.0)):
        torch.testing.assert_close(changed, before)
    assert torch.equal(mask, before)


def test_local_contrast_is_the_deviation_over_about_a_patch():
    """Written out with scipy at every pixel; the code measures on a coarser grid."""
    image = torch.rand(96, 160, 3, generator=torch.Generator().manual_seed(1))
    image[:, 60:] = 0.3 + 0.1 * image[:, 60:]
    deviation = 96 / 16 / 12**0.5
    pixels = image.double().numpy()
    mean = ndimage.gaussian_filter(pixels, (deviation, deviation, 0), mode="nearest")
    square = ndimage.gaussian_filter(pixels**2, (deviation, deviation, 0), mode="nearest")
    expected = np.sqrt((square - mean**2).mean(-1))
    found = local_contrast(image).numpy()
    assert found.shape == (96, 160)
    assert np.abs(found - expected).max() < 0.08
    assert np.abs(found - expected).mean() < 0.01
    assert found[:, :50].min() > 5 * found[:, 70:].max()


@pytest.mark.parametrize("size", [(8, 8), (1, 40), (600, 90)])
def test_a_plain_image_has_no_contrast_at_any_size(size):
    # a picture of one colour, up to rounding
    assert local_contrast(torch.full((*size, 3), 0.73)).max() < 1e-3


def test_plain_and_unseen_parts_are_not_judged():
    checks = (torch.arange(128)[:, None] + torch.arange(128)) % 2
    images = torch.where(torch.arange(128) < 64, checks.float(), 0.5)[None, ..., None].expand(1, 128, 128, 3)
    fields = torch.zeros(1, 128, 128)
    fields[:, :10] = torch.nan
    judged = judged_parts(images, fields, 0.1)
    assert judged[:, :10].eq(0).all()
    assert judged[:, 10:, :50].eq(1).all()
    assert judged[:, :, 80:].eq(0).all()
    assert judged_parts(images, fields, 0.0)[:, 10:].eq(1).all()
    alpha = torch.cat([images, torch.zeros(1, 128, 128, 1)], -1)  # white, where one sees through it
    assert judged_parts(alpha, fields, 0.1).eq(0).all()


def test_an_image_of_equal_scores_has_an_empty_mask():
    fields = torch.full((1, 3, 3), -5.0)
    assert scaled(fields, torch.ones(1, 3, 3)).rarity.eq(0).all()


def test_an_image_that_is_plain_all_over_has_an_empty_mask_and_a_scale():
    fields = torch.linspace(-3, 3, 9).reshape(1, 3, 3)
    scale = scaled(fields, torch.zeros(1, 3, 3))
    assert scale.ends == [(-3.0, 3.0)]
    for kind in ("none", "value", "percentile"):
        assert mask_of(scale, MaskConfig(kind, 0.0)).eq(0).all()


@pytest.mark.parametrize("percent", [0.0, 10.0, 50.0, 80.0, 99.9, 100.0])
def test_a_percentile_leaves_that_share_below_it(percent):
    values = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    least = percentile(values, percent)
    share = (values < least).sum().item()
    assert share == min(999, int(percent * 10))


def test_a_percentile_is_that_of_the_image_or_of_the_batch():
    fields = torch.stack([torch.arange(100.0).reshape(10, 10), 1000 + torch.arange(100.0).reshape(10, 10)])
    judged = torch.ones(2, 10, 10)
    own = mask_of(scaled(fields, judged), MaskConfig("percentile", 80.0))
    assert own.sum((1, 2)).tolist() == [20.0, 20.0]
    assert own[0].flatten()[:20].eq(1).all()  # the lowest fields are the rarest
    together = MaskConfig("percentile", 80.0, together=True)
    both = mask_of(scaled(fields, judged, one_scale=True), together)
    assert both.sum((1, 2)).tolist() == [40.0, 0.0]


def test_a_value_cuts_the_scale():
    fields = -torch.arange(0.0, 11.0).reshape(1, 1, 11)
    mask = mask_of(scaled(fields, torch.ones(1, 1, 11)), MaskConfig("value", 70.0))
    assert mask.flatten().tolist() == [0.0] * 7 + [1.0] * 4


def test_the_mask_is_cut_then_grown_then_blurred_then_inverted(masks):
    scale = scaled(-masks, torch.ones_like(masks))
    cut = np.stack([one >= np.sort(one.flatten())[int(0.9 * one.size)] for one in masks.numpy()])
    grown = np.stack([ndimage.binary_dilation(one, disc(2)) for one in cut]).astype(float)
    soft = np.stack([ndimage.gaussian_filter(one, 1.5, mode="nearest") for one in grown])
    found = mask_of(scale, MaskConfig("percentile", 90.0, grow=2, blur=1.5, invert=True))
    torch.testing.assert_close(found.double(), torch.from_numpy(1 - soft), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
