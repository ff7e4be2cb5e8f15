"""Compositing over white, against the formula for one pixel and finite differences."""

from __future__ import annotations

import torch

from jepa_core.transparency import over_white


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_each_pixel_is_mixed_with_white_by_its_alpha():
    pixels = random(2, 3, 5, 4)
    expected = [
        [red * a + 1 - a, green * a + 1 - a, blue * a + 1 - a]
        for red, green, blue, a in pixels.reshape(-1, 4)
    ]
    torch.testing.assert_close(over_white(pixels).reshape(-1, 3), torch.tensor(expected, dtype=torch.float64))
    for alpha, seen in ((0.0, [1.0, 1.0, 1.0]), (-5.0, [1.0, 1.0, 1.0]), (1e30, [0.2, 0.4, 0.6])):
        assert torch.equal(over_white(torch.tensor([0.2, 0.4, 0.6, alpha])), torch.tensor(seen))


def test_the_gradient_is_that_of_finite_differences():
    pixels = random(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(over_white, pixels)


def test_opaque_pixels_keep_their_bits_and_their_gradient():
    for dtype in (torch.float32, torch.bfloat16):
        colours = random(4, 5, 3, dtype=dtype).requires_grad_()
        opaque = torch.cat([colours, torch.ones(4, 5, 1, dtype=dtype)], -1)
        assert torch.equal(over_white(opaque), colours)
        (gradient,) = torch.autograd.grad(over_white(opaque).sum(), colours)
        assert torch.equal(gradient, torch.ones_like(colours))
    assert over_white(colours.detach()).data_ptr() == colours.data_ptr()
