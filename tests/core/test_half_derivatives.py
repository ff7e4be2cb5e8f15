"""Derivatives in bfloat16 of values in float32, in every mode that the gradient uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jepa_core import Encoder, JacobianOperator, differentiable, full_precision, load_encoder
from jepa_core.architectures import ARCHITECTURES
from jepa_core.half_derivatives import HalfDerivatives
from tests.core.conftest import SMALL

CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, BIAS = torch.randn(5, 6, generator=GENERATOR), torch.randn(5, generator=GENERATOR)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: functional.linear(x, WEIGHT.to(x)).sin(),
    "linear with a bias": lambda x: functional.linear(x, WEIGHT.to(x), bias=BIAS.to(x)).sin(),
    "product": lambda x: x @ x.mT.sin(),
    "matmul": lambda x: torch.matmul(x.sin(), x.mT),
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def curvature(
    function: Callable[[Tensor], Tensor], x: Tensor, tangents: Tensor, cotangents: Tensor
) -> Tensor:
    """grad_x sum_i <c_i, J(x) t_i>: a backward pass through batched forward-mode derivatives, as in JacobianOperator."""
    leaf = x.clone().requires_grad_()
    products = torch.func.vmap(lambda tangent: torch.func.jvp(function, (leaf,), (tangent,))[1])(tangents)
    return torch.autograd.grad(products, leaf, cotangents)[0]


def rows(function: Callable[[Tensor], Tensor], x: Tensor, cotangents: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    pull = lambda c: torch.autograd.grad(value, leaf, c, retain_graph=True)[0]  # noqa: E731
    return torch.func.vmap(pull)(cotangents)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_mode_agrees_with_float64(name):
    function = FUNCTIONS[name]
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    shape = function(x).shape
    tangents = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(2))
    cotangents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    exact = x.double(), tangents.double(), cotangents.double()
    expected = rows(function, exact[0], exact[2]), curvature(function, *exact)
    with HalfDerivatives():
        assert torch.equal(function(x), FUNCTIONS[name](x))
        found = rows(function, x, cotangents), curvature(function, x, tangents, cotangents)
        again = rows(function, exact[0], exact[2]), curvature(function, *exact)
    for half, double, same in zip(found, expected, again, strict=True):
        assert half.dtype == torch.float32
        assert (half - double).norm() < 0.01 * double.norm()
        assert torch.equal(same, double)  # float64 is left alone


@contextmanager
def by_autocast(device: torch.device) -> Iterator[None]:
    with full_precision(device), torch.autocast("cpu", torch.bfloat16):
        yield


def errors(encoder: Encoder, exact: Encoder, image: Tensor) -> list[float]:
    """Relative errors of VJPs, JVPs and Hessian-vector products in half precision."""
    generator = torch.Generator().manual_seed(5)
    left = torch.randn(6, encoder.embed_dim, generator=generator, dtype=torch.float64)
    right = functional.normalize(torch.randn(6, image.numel(), generator=generator, dtype=torch.float64))
    found = []
    for one, x in ((exact, image), (encoder, image.float())):
        with differentiable(one), full_precision(CPU):
            jacobian = JacobianOperator(one, x, half=True)
            products, pull = jacobian.curvature(right.to(x))
            found.append([jacobian.vjp(left), products, pull(left.to(x))])
    return [((half - true).norm() / true.norm()).item() for true, half in zip(*found, strict=True)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_encoder_is_nearer_to_the_exact_one_than_by_autocast(
    monkeypatch: pytest.MonkeyPatch, save_model: Callable[..., Path], kind: str
) -> None:
    for module in ("jacobian", "precision"):
        monkeypatch.setattr(f"jepa_core.{module}.has_fast_bfloat16", lambda device: True)
    size = 2 * int(SMALL[kind]["patch_size"])  # type: ignore[call-overload]
    folder = save_model(kind)
    exact, single = (
        load_encoder(folder, dtype=torch.float64, image_size=size),
        load_encoder(folder, image_size=size),
    )
    image = torch.randn(3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(single(image[None].float(), half=True), single(image[None].float()))
    ours = errors(single, exact, image)
    monkeypatch.setattr("jepa_core.encoder.half_precision", by_autocast)
    theirs = errors(single, exact, image)
    assert max(ours) < 0.03
    assert min(ours) > 1e-5  # it was in half precision
    assert all(mine < other for mine, other in zip(ours, theirs, strict=True))
