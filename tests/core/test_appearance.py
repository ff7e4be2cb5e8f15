"""Gradients without what changes brightness, contrast and saturation, against a plain least-squares fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_core.appearance import LUMA, appearance_directions, without_appearance


def random_images(count: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images (count, 10, 14, 3) in [0, 1], and gradients."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 10, 14, 3, generator=generator, dtype=dtype)
    return images, torch.randn(images.shape, generator=generator, dtype=dtype)


def changed(image: Tensor) -> list[Tensor]:
    """An image, changed a little in each of the ways that count as appearance; written as image editors do."""
    found = []
    for colour in range(3):
        brighter, stronger = image.clone(), image.clone()
        brighter[..., colour] += 0.01
        middle = image[..., colour].mean()
        stronger[..., colour] = middle + 1.01 * (image[..., colour] - middle)
        found += [brighter, stronger]
    grey = sum(weight * image[..., colour] for colour, weight in enumerate(LUMA))[..., None]
    return [*found, grey + 1.01 * (image - grey)]


KINDS = {
    "coloured": lambda image: image,
    "grey": lambda image: image.mean(-1, keepdim=True).expand_as(image).clone(),
    "flat": lambda image: torch.full_like(image, 0.3),
    "black": torch.zeros_like,
    "one colour": lambda image: image * torch.tensor([0.0, 1.0, 0.0]).to(image),
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_change_of_appearance_is_left_and_the_rest_is_kept(kind):
    images, gradients = random_images()
    images = KINDS[kind](images)
    found = without_appearance(gradients, images)
    assert found.shape == gradients.shape
    for image, gradient, kept in zip(images, gradients, found, strict=True):
        changes = [(other - image).flatten() for other in changed(image)]
        for change in changes:
            assert abs(kept.flatten() @ change) <= 1e-9 * change.norm() * gradient.norm()
        columns = torch.stack(changes, 1).numpy()
        share = np.linalg.lstsq(columns, gradient.flatten().numpy(), rcond=1e-9)[0]
        expected = gradient.flatten() - torch.from_numpy(columns @ share)
        torch.testing.assert_close(kept.flatten(), expected, rtol=0, atol=1e-9)
    assert found.norm() > 0.9 * gradients.norm()
    torch.testing.assert_close(without_appearance(found, images), found, rtol=0, atol=1e-9)


def test_a_change_of_appearance_itself_is_removed_completely():
    images, _ = random_images()
    for direction in appearance_directions(images).unbind(1):
        assert without_appearance(direction, images).norm() < 1e-9 * direction.norm()


def test_images_of_a_batch_do_not_matter_to_each_other():
    images, gradients = random_images(3)
    found = without_appearance(gradients, images)
    for index in range(3):
        alone = without_appearance(gradients[index, None], images[index, None])
        torch.testing.assert_close(found[index], alone[0], rtol=0, atol=1e-12)


def test_float32_is_nearly_as_exact():
    images, gradients = random_images(dtype=torch.float32)
    found = without_appearance(gradients, images)
    assert found.dtype == torch.float32
    exact = without_appearance(gradients.double(), images.double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["image", "gradient"])
def test_what_is_not_finite_gives_nan_and_spares_the_others(where, value):
    images, gradients = random_images(3)
    expected = without_appearance(gradients, images)
    {"image": images, "gradient": gradients}[where][1, 2, 3, 0] = value
    found = without_appearance(gradients, images)
    assert found[1].isnan().any()
    torch.testing.assert_close(found[::2], expected[::2], rtol=0, atol=1e-12)
