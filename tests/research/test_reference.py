"""The reference against torch's own dense Jacobian, and against itself where that is too large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_core import Encoder, load_encoder
from research.costs.reference import (
    converged_triplets,
    cosine,
    dense_triplets,
    exact_gradient,
    reference,
    references,
)

from .test_naive import closed_form


def test_dense_triplets_are_those_of_the_jacobian(
    encoder: Encoder, images: Tensor, dense: Callable[..., Tensor]
) -> None:
    jacobian = dense(encoder, images[0])
    u, sigma, v = dense_triplets(encoder, images[0], 5)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(jacobian)[:5], rtol=1e-9, atol=0)
    torch.testing.assert_close(u @ jacobian, sigma[:, None] * v, rtol=0, atol=1e-9)
    torch.testing.assert_close(v @ jacobian.T, sigma[:, None] * u, rtol=0, atol=1e-9)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_converged_triplets_are_the_dense_ones(encoder: Encoder, images: Tensor, k: int) -> None:
    u, sigma, v = dense_triplets(encoder, images[1], k)
    found = converged_triplets(encoder, images[1], k, block=6, tolerance=1e-9)
    torch.testing.assert_close(found[1], sigma, rtol=1e-9, atol=0)
    # up to signs
    torch.testing.assert_close((found[0] @ u.T).abs(), torch.eye(k).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close((found[2] @ v.T).abs(), torch.eye(k).double(), rtol=0, atol=1e-6)
    assert found[3].max() < 1e-9


def test_the_tolerance_is_kept(encoder: Encoder, images: Tensor, dense: Callable[..., Tensor]) -> None:
    gram = dense(encoder, images[2]) @ dense(encoder, images[2]).T
    u, sigma, _, residual = converged_triplets(encoder, images[2], 3, block=4, tolerance=1e-2)
    assert residual.max() < 1e-2
    stated = (u @ gram - sigma[:, None].square() * u).norm(dim=1) / sigma[-1].square()
    torch.testing.assert_close(residual, stated, rtol=1e-6, atol=1e-12)


def test_gradient_is_the_closed_form(encoder: Encoder, images: Tensor, dense: Callable[..., Tensor]) -> None:
    score, grad = closed_form(encoder, images[0], dense, 3)
    found = reference(encoder, images[0], 3, tolerance=1e-10)
    assert found.score.item() == pytest.approx(score, abs=1e-9)
    torch.testing.assert_close(found.grad, grad, rtol=0, atol=1e-7 * grad.abs().max().item())


def test_gradient_is_the_slope_of_the_score(encoder: Encoder, images: Tensor) -> None:
    at = reference(encoder, images[0], 3, tolerance=1e-10)
    step = 1e-4 * at.grad / at.grad.norm()
    high, low = (reference(encoder, images[0] + sign * step, 3, tolerance=1e-10).score for sign in (1, -1))
    assert ((high - low) / 2e-4).item() == pytest.approx(at.grad.norm().item(), rel=1e-5)


def test_kept_references_are_read_and_those_of_another_image_made_again(
    encoder: Encoder, images: Tensor, tmp_path: Path
) -> None:
    made = references(tmp_path, encoder, {"a": images[0]}, 2)["a"]
    read = references(tmp_path, None, {"a": images[0]}, 2)["a"]  # type: ignore[arg-type]
    for one, other in zip(made, read, strict=True):
        assert torch.equal(one, other)
    other_image = references(tmp_path, encoder, {"a": images[1]}, 2)["a"]
    assert not torch.equal(other_image.grad, made.grad)


@pytest.mark.long
def test_on_a_photo_it_has_converged(encoder_dir: Path, photos: list[Tensor]) -> None:
    encoder = load_encoder(encoder_dir)
    for photo in photos[:2]:
        image = encoder.preprocess(photo[None])[0]
        u, sigma, v = dense_triplets(encoder, image, 9)
        found = reference(encoder, image, 9)
        torch.testing.assert_close(found.sigma, sigma, rtol=1e-5, atol=0)
        assert 1 - (u @ found.u.T).square().sum() / 9 < 1e-6
        assert cosine(found.grad, exact_gradient(encoder, image, u, sigma, v)) > 1 - 1e-6
