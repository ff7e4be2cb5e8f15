"""The slow partner computes what the paper says, in as many passes as the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepa_core import Encoder, jepa_score, load_encoder
from research.harness.naive import Calls, _WideAccumulation, naive_gradient, naive_score


def closed_form(
    encoder: Encoder, image: Tensor, dense: Callable[..., Tensor], k: int
) -> tuple[float, Tensor]:
    """Score and gradient of the top k, by differentiating the dense Jacobian once more."""
    u, _, v = torch.linalg.svd(dense(encoder, image), full_matrices=False)
    image = image.clone().requires_grad_()
    rows = torch.autograd.functional.jacobian(lambda x: encoder(x[None])[0], image, create_graph=True)
    products = (u.T @ rows.flatten(1) * v).sum(1)[:k]  # <u_i, J v_i> = sigma_i
    (grad,) = torch.autograd.grad(products.log().sum(), image)
    return products.log().sum().item(), grad


def test_gradient_converges_to_the_closed_form(
    encoder: Encoder, images: Tensor, dense: Callable[..., Tensor]
) -> None:
    score, grad = closed_form(encoder, images[0], dense, 3)
    found = naive_gradient(encoder, images[0], k=3, oversample=6, power_iterations=30, step=1e-7)
    assert found.score == pytest.approx(score, abs=1e-6)
    torch.testing.assert_close(found.grad, grad, rtol=0, atol=1e-5 * grad.abs().max().item())
    torch.testing.assert_close(
        found.s, torch.linalg.svdvals(dense(encoder, images[0]))[:3], rtol=1e-6, atol=0
    )


def test_passes_are_those_of_the_authors(encoder: Encoder, images: Tensor) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    handle = encoder.model.register_forward_hook(count)
    try:
        calls = naive_gradient(encoder, images[0], step=1e-7).calls
    finally:
        handle.remove()
    assert calls == Calls(forwards=34, vjps=22, vjps_with_graph=11, double_backwards=1)
    assert calls.sequential == 34 + 22 + 11 + 12
    assert passes == 34


def test_a_double_backward_has_the_products_of_so_many_passes(encoder: Encoder, images: Tensor) -> None:
    def products(run: Callable[[], object]) -> int:
        with torch.profiler.profile() as profile:
            run()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::mm")

    x = images[:1].clone().requires_grad_()
    embedding = encoder(x)
    one = products(lambda: torch.autograd.grad(embedding[0, 0], x, retain_graph=True))
    rows = [torch.autograd.grad(embedding[0, index], x, create_graph=True)[0] for index in range(5)]
    total = torch.stack(rows).square().sum()
    double = products(lambda: torch.autograd.grad(total, x))
    # patches are embedded by a convolution, whose double backward brings a product or so
    assert double == pytest.approx(6 * one, abs=2)


def test_score_is_the_exact_score(encoder: Encoder, images: Tensor) -> None:
    calls = Calls()
    found = naive_score(encoder, images[1], calls)
    assert found == pytest.approx(jepa_score(encoder, images[1:2]).item(), abs=1e-6)
    assert calls == Calls(forwards=1, vjps=32)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_reaches_the_encoder(
    save_model: Callable[..., Path], images: Tensor, half: torch.dtype
) -> None:
    encoder = load_encoder(save_model(), image_size=28)
    seen = []
    handle = encoder.model.encoder.layer[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    try:
        found = naive_gradient(encoder, images[0].float(), half=half)
        score = naive_score(encoder, images[0].float(), half=half)
    finally:
        handle.remove()
    assert set(seen) == {half}
    assert found.grad.dtype == torch.float32
    assert found.grad.isfinite().all()
    exact = naive_score(encoder, images[0].float())
    # (a LayerNorm makes two singular values that are nothing but rounding, which half precision moves a lot)
    # near, but not equal: half precision did take part
    assert score != exact
    assert score == pytest.approx(exact, rel=0.5)


def test_emulated_float16_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(4, 64, 64, generator=generator).half().requires_grad_() for _ in range(3))

    def run() -> list[Tensor]:
        products = [a @ b, torch.addmm(c[0], a[0], b[0]), torch.conv2d(a[None], b[:, :4, :3, None])]
        return [*products, *torch.autograd.grad([part.float().sum() for part in products], (a, b, c))]

    plain = run()
    with _WideAccumulation():
        emulated = run()
    for one, other in zip(plain, emulated, strict=True):
        assert other.dtype == torch.float16
        # the last digit may be rounded another way
        torch.testing.assert_close(other, one, rtol=2e-3, atol=5e-2)
