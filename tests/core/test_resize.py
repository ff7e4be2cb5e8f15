"""Resizing, by matrix products too as on CUDA, against torch's own interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_core.resize import _by_products, _weights, resize
from tests.core.test_hostile_files import little_memory


@pytest.mark.parametrize("way", [resize, _by_products])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(37, 50), (9, 14), (14, 14), (1, 3), (300, 600)])
def test_it_is_interpolation_and_so_is_its_gradient(sides, mode, antialias, way):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *sides, generator=generator, dtype=torch.float64).requires_grad_()
    with torch.inference_mode():  # what is kept from here serves a gradient later
        way(x.detach(), (14, 14), mode=mode, antialias=antialias)
    found = way(x, (14, 14), mode=mode, antialias=antialias)
    expected = F.interpolate(x, (14, 14), mode=mode, align_corners=False, antialias=antialias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, x, cotangent)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, cotangent)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_long_side_takes_little_memory(mode):
    x = torch.rand(1, 3, 2, 60_000)  # a square unit matrix of that side would be 29 GB
    with little_memory(2 << 30):
        found = _by_products(x, (224, 224), mode=mode, antialias=True)
    expected = F.interpolate(x, (224, 224), mode=mode, align_corners=False, antialias=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_on_a_cpu_the_bits_depend_on_neither_threads_nor_the_images_beside(mode, antialias):
    images = torch.rand(3, 300, 401, 3).movedim(-1, 1)
    cotangent = torch.randn(3, 3, 224, 224)

    def both(x, cotangent):
        x = x.clone().requires_grad_()
        found = resize(x, (224, 224), mode=mode, antialias=antialias)
        return found.detach(), torch.autograd.grad(found, x, cotangent)[0]

    expected = both(images, cotangent)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_equal(both(images, cotangent), expected)
            for i in range(3):
                alone = both(images[i : i + 1], cotangent[i : i + 1])
                assert_equal(alone, [all_of[i : i + 1] for all_of in expected])
    finally:
        torch.set_num_threads(before)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("wanted", [1, 14, 15, 224])
def test_its_matrix_is_to_the_bit_what_becomes_of_unit_vectors(wanted, mode, antialias):
    for side in (1, 2, 5, 14, 27, 100, 223, 225, 449, 777):
        unit = torch.eye(side, dtype=torch.float64)[None, None]
        plain = F.interpolate(unit, (wanted, side), mode=mode, align_corners=False, antialias=antialias)[0, 0]
        assert torch.equal(_weights(side, wanted, mode, antialias), plain), side
