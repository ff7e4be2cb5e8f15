"""The reference against torch's own dense Jacobian, and in two precisions where that is too large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_core import Encoder, load_encoder
from research.harness.reference import cosine, reference, references, triplets

from .test_naive import closed_form


def test_triplets_are_those_of_the_jacobian(
    encoder: Encoder, images: Tensor, dense: Callable[..., Tensor]
) -> None:
    jacobian = dense(encoder, images[0])
    u, s, v = triplets(encoder, images[0], 5)
    torch.testing.assert_close(s, torch.linalg.svdvals(jacobian)[:5], rtol=1e-9, atol=0)
    torch.testing.assert_close(u @ jacobian, s[:, None] * v, rtol=0, atol=1e-9)
    torch.testing.assert_close(v @ jacobian.T, s[:, None] * u, rtol=0, atol=1e-9)


def test_gradient_is_the_closed_form(encoder: Encoder, images: Tensor, dense: Callable[..., Tensor]) -> None:
    score, grad = closed_form(encoder, images[0], dense, 3)
    found = reference(encoder, images[0], 3)
    assert found.score.item() == pytest.approx(score, abs=1e-9)
    torch.testing.assert_close(found.grad, grad, rtol=0, atol=1e-7 * grad.abs().max().item())


def test_gradient_is_the_slope_of_the_score(encoder: Encoder, images: Tensor) -> None:
    at = reference(encoder, images[0], 3)
    step = 1e-4 * at.grad / at.grad.norm()
    high, low = (reference(encoder, images[0] + sign * step, 3).score for sign in (1, -1))
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
def test_single_precision_is_enough_on_a_photo(encoder_dir: Path, photos: list[Tensor]) -> None:
    single, double = (
        load_encoder(encoder_dir, dtype=dtype, image_size=112) for dtype in (torch.float32, torch.float64)
    )
    image = single.preprocess(photos[0][None])[0]
    found, exact = (reference(one, image, 9) for one in (single, double))
    torch.testing.assert_close(found.s, exact.s, rtol=1e-5, atol=0)
    assert cosine(found.grad, exact.grad) > 1 - 1e-6
