"""Score and gradient of a trained encoder on real photos, against its dense Jacobian in float64.

A dense Jacobian takes about a minute at 224 pixels, so each photo's is computed once, and they are marked long; one photo
is always compared, at a quarter of the size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from jepa_core import Encoder, RarityGradient, jepa_score, load_encoder

pytestmark = pytest.mark.timeout(3600)  # a busy machine takes many times longer

K = 9
PHOTOS = [(0, 56), *(pytest.param(i, 224, marks=pytest.mark.long) for i in range(8))]


class Exact(NamedTuple):
    """Results from the dense Jacobian (384 x 3 H W) at one photo, in float64."""

    x: Tensor  # (3, H, W), preprocessed
    singular_values: Tensor  # (384,)
    left: Tensor  # (9, 384), the top left singular vectors
    grad: Tensor  # (3, H, W), of the sum of the logs of the top nine singular values


@pytest.fixture(scope="module")
def real(encoder_dir) -> Callable[[int], Encoder]:
    """The encoder at a size in pixels."""
    return cache(lambda size: load_encoder(encoder_dir, image_size=size))


@pytest.fixture(scope="module")
def exact(encoder_dir, photos) -> Callable[[int, int], Exact]:
    @cache
    def compute(index: int, size: int) -> Exact:
        encoder = load_encoder(encoder_dir, dtype=torch.float64, image_size=size)
        x = encoder.preprocess(photos[index][None].double())[0].requires_grad_()
        output = encoder(x[None])[0]
        rows = [torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in output]
        matrix = torch.stack(rows)
        # J^T = Q R, so R^T has the left singular vectors and values of J, and none of its width
        u, s, _ = torch.linalg.svd(torch.linalg.qr(matrix.T, mode="r").R.T)
        grad = torch.zeros_like(x)
        for i in range(K):
            v = matrix.T @ u[:, i] / s[i]
            (row,) = torch.autograd.grad(encoder(x[None])[0] @ u[:, i], x, create_graph=True)
            grad += torch.autograd.grad(row.flatten() @ v, x)[0] / s[i]
        return Exact(x.detach(), s, u[:, :K].T, grad.detach())

    return compute


@pytest.mark.parametrize(("index", "size"), PHOTOS)
def test_exact_score(real, exact, index, size):
    x, s, _, _ = exact(index, size)
    expected = s.clamp(min=1e-6).log().sum()
    found = jepa_score(real(size), x[None].float())[0]
    print(f"photo {index}: score {expected:.4f}, relative error {(found - expected) / expected:.1e}")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("index", "size"), PHOTOS)
def test_a_cold_gradient_has_the_direction_of_the_exact_one(real, exact, index, size):
    reference = exact(index, size)
    x = reference.x[None].float()
    found = RarityGradient()(real(size), x)
    cosine = torch.cosine_similarity(found.grad[0].double().flatten(), reference.grad.flatten(), dim=0)
    share = (found.u[0].double() @ reference.left.T).square().sum() / K
    print(f"photo {index}: cosine {cosine:.5f}, share of the left subspace {share:.4f}")
    assert cosine > 0.98
    assert share > 0.95  # products in bfloat16 would leave about a quarter
    torch.testing.assert_close(found.score[0], reference.singular_values[:K].log().sum(), rtol=0, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16 if size == 56 else torch.float16):
        under = RarityGradient()(real(size), x)
    assert torch.equal(under.grad, found.grad)  # so the cosine is the same
