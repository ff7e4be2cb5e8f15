"""Resizing by matrix products against torch's own interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepa_core.resize import resize


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sides", [(37, 50), (9, 14), (14, 14), (1, 3)])
def test_it_is_interpolation_and_so_is_its_gradient(sides, mode, antialias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *sides, generator=generator, dtype=torch.float64).requires_grad_()
    with torch.inference_mode():  # what is kept from here serves a gradient later
        resize(x.detach(), (14, 14), mode=mode, antialias=antialias)
    found = resize(x, (14, 14), mode=mode, antialias=antialias)
    expected = F.interpolate(x, (14, 14), mode=mode, align_corners=False, antialias=antialias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, x, cotangent)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, cotangent)[0], rtol=0, atol=1e-12)
