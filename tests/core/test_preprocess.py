"""Resizing and normalising against Pillow and against plain arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_core.architectures import IMAGENET

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)


def picture(height, width, seed=0):
    """A random picture (height, width, 3) in [0, 1] with coarse and fine detail."""
    generator = torch.Generator().manual_seed(seed)
    fine = torch.rand(height, width, 3, generator=generator)
    ramp = torch.linspace(0, 1, height)[:, None, None] * torch.linspace(1, 0.2, width)[None, :, None]
    return (0.5 * fine + 0.5 * ramp).clamp(0, 1)


def denormalised(x):
    return (x.double() * STD[:, None, None] + MEAN[:, None, None]).movedim(1, -1)


def by_pillow(image, size):
    """Bilinear resize with antialias, channel by channel in Pillow's float32 mode."""
    channels = [
        Image.fromarray(image[..., c].float().numpy()).resize((size, size), Image.Resampling.BILINEAR)
        for c in range(3)
    ]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels], -1)).double()


def by_hand_without_antialias(image, size):
    """Bilinear interpolation at the pixel centres, four neighbours, nothing else."""
    result = torch.zeros(size, size, 3, dtype=torch.float64)
    height, width, _ = image.shape
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, along = y - top, x - left
            result[row, column] = (1 - down) * (
                (1 - along) * image[top, left] + along * image[top, right]
            ) + down * ((1 - along) * image[bottom, left] + along * image[bottom, right])
    return result


def test_the_constants_are_those_of_imagenet():
    assert torch.equal(torch.tensor(IMAGENET.mean, dtype=torch.float64), MEAN)
    assert torch.equal(torch.tensor(IMAGENET.std, dtype=torch.float64), STD)


@pytest.mark.parametrize(
    ("height", "width"), [(28, 28), (60, 60), (57, 91), (91, 57), (10, 20), (1, 1), (300, 29)]
)
def test_squash_equals_pillow(encoder, height, width):
    image = picture(height, width)
    x = encoder.preprocess(image[None])
    assert x.shape == (1, 3, 28, 28)
    assert x.dtype == torch.float32
    torch.testing.assert_close(denormalised(x)[0], by_pillow(image, 28), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(60, 60), (57, 91), (91, 57), (33, 32)])
def test_crop_equals_pillow_on_the_centre_square(encoder, height, width):
    image = picture(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    x = encoder.preprocess(image[None], fit="crop")
    torch.testing.assert_close(denormalised(x)[0], by_pillow(square, 28), rtol=0, atol=2e-5)
    if abs(height - width) > 1:
        assert not torch.allclose(x, encoder.preprocess(image[None]), atol=0.05)


@pytest.mark.parametrize(("height", "width"), [(60, 60), (57, 91), (10, 20)])
def test_without_antialias_it_is_interpolation_between_four_neighbours(encoder, height, width):
    image = picture(height, width).double()
    x = encoder.preprocess(image[None], antialias=False)
    torch.testing.assert_close(denormalised(x)[0], by_hand_without_antialias(image, 28), rtol=0, atol=1e-9)
    if min(height, width) > 28:
        assert not torch.allclose(x, encoder.preprocess(image[None]), atol=0.05)


def test_a_picture_of_the_right_size_is_only_normalised(encoder):
    image = picture(28, 28)
    x = encoder.preprocess(image[None])
    torch.testing.assert_close(x[0, 2, 5, 7], (image[5, 7, 2] - 0.406) / 0.225, rtol=0, atol=1e-6)
    black, white = encoder.preprocess(torch.stack([torch.zeros(28, 28, 3), torch.ones(28, 28, 3)]))
    torch.testing.assert_close(black[:, 0, 0].double(), -MEAN / STD, rtol=0, atol=1e-6)
    torch.testing.assert_close(white[:, 0, 0].double(), (1 - MEAN) / STD, rtol=0, atol=1e-6)


def test_a_batch_equals_its_images_one_by_one(encoder):
    batch = torch.stack([picture(40, 50, seed) for seed in range(3)])
    together = encoder.preprocess(batch)
    for image, x in zip(batch, together, strict=True):
        assert torch.equal(encoder.preprocess(image[None])[0], x)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_dtypes(encoder, given, kept):
    image = picture(40, 50).to(given)[None]
    x = encoder.preprocess(image)
    assert x.dtype == kept
    torch.testing.assert_close(x, encoder.preprocess(image.to(kept)), rtol=0, atol=0)


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("antialias", [True, False])
def test_gradients_are_those_of_finite_differences(encoder, fit, antialias):
    image = picture(5, 7).double()[None].requires_grad_()
    # linear, so that a large step gives an exact slope
    assert torch.autograd.gradcheck(
        lambda y: encoder.preprocess(y, fit=fit, antialias=antialias).sum((-1, -2)), image, eps=1e-2
    )


def test_autocast_changes_no_bit(encoder):
    image = picture(57, 91)[None]
    expected = encoder.preprocess(image)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.preprocess(image)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "shape", [(28, 28, 3), (1, 28, 28, 4), (1, 3, 28, 28), (0, 28, 28, 3), (1, 0, 28, 3), (1, 28)]
)
def test_other_shapes_are_refused_by_name(encoder, shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
        encoder.preprocess(torch.zeros(shape))


def test_an_unknown_fit_is_refused_by_name(encoder):
    with pytest.raises(ValueError, match="'stretch'"):
        encoder.preprocess(torch.zeros(1, 28, 28, 3), fit="stretch")
