"""One vector-Jacobian product: exact in float32, safe from underflow in float16."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.gradient.linearise import linearised


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e-12, 1e6])
def test_a_network_in_float16_gives_the_gradient_at_every_size_of_cotangent(scale):
    weight = numbers(1, 16, 16).half() / 100

    def network(x):
        return (x.half() @ weight).float()

    x, cotangent = numbers(2, 4, 16), numbers(3, 4, 16)
    expected = cotangent.double() @ weight.double().T
    with linearised(network, x) as (_, pull):
        found = pull(scale * cotangent, keep=True)
        plain = torch.autograd.grad(network(x.requires_grad_()), x, scale * cotangent)[0]
    assert torch.allclose(found.double() / scale, expected, rtol=0, atol=3e-3 * float(expected.abs().max()))
    if scale < 1:  # what would be lost
        assert (plain.double() / scale - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("scale", [1.0, 3e-8, 7e5])
def test_in_float32_no_bit_changes(scale):
    def network(x):
        return (x.sin() * x).cumsum(1)

    x, cotangent = numbers(4, 3, 9), scale * numbers(5, 3, 9)
    with linearised(network, x) as (value, pull):
        found = pull(cotangent)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(network(leaf), leaf, cotangent)
    assert torch.equal(found, expected)
    assert torch.equal(value, network(x))


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_zero_and_what_is_not_finite_go_through(bad):
    x = numbers(6, 2, 3)
    cotangent = torch.full_like(x, bad)
    with linearised(lambda z: 2 * z, x) as (_, pull):
        found = pull(cotangent)
    assert torch.equal(found, 2 * cotangent) or bool(found.isnan().all())
