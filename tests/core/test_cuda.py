"""The mathematics on a CUDA device against the CPU, for every architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jepa_guidance.host.gradient.ordered import ordered
from torch import Tensor

from jepa_core import Encoder, RarityGradient, jepa_score, load_encoder
from jepa_core.architectures import ARCHITECTURES
from jepa_core.novelty import novelty_gradient
from tests.core.conftest import SMALL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KINDS = list(ARCHITECTURES)
K = 4


def size_of(kind: str) -> int:
    return 2 * int(SMALL[kind]["patch_size"])  # type: ignore[call-overload]


def pictures(count: int = 2, height: int = 37, width: int = 50) -> Tensor:
    """Random pictures (B, H, W, 3) in [0, 1]."""
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(3))


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten().double().cpu(), b.flatten().double().cpu(), dim=0).item()


@pytest.fixture(scope="module")
def pairs(save_model: Callable[..., Path]) -> dict[str, tuple[Encoder, Encoder]]:
    """For each architecture: the encoder in float64 on the CPU, and in float32 on the device."""
    folders = {kind: save_model(kind) for kind in KINDS}
    return {
        kind: (
            load_encoder(folder, dtype=torch.float64, image_size=size_of(kind)),
            load_encoder(folder, device="cuda", image_size=size_of(kind)),
        )
        for kind, folder in folders.items()
    }


@pytest.fixture(params=[False, True], ids=["as torch comes", "with TF32 switched on"])
def tensor_float(request: pytest.FixtureRequest) -> Iterator[None]:
    """Settings that the host may have changed: TF32 would ruin differences of encoder outputs."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if request.param else "highest")
    torch.backends.cudnn.allow_tf32 = request.param
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores(pairs, tensor_float, kind):
    exact, device = pairs[kind]
    x = exact.preprocess(pictures())
    for mode in ({}, {"top_k": K}):
        expected = jepa_score(exact, x, **mode)
        found = jepa_score(device, x.cuda(), **mode)
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.02)
    half = jepa_score(device, x.cuda(), projection=8)
    torch.testing.assert_close(half, jepa_score(exact, x, projection=8), rtol=0.05, atol=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient(pairs, tensor_float, kind):
    exact, device = pairs[kind]
    x = exact.preprocess(pictures())
    settings = {"k": K, "oversample": 4, "power_iterations": 6}
    expected = RarityGradient(**settings, tolerance=0.0)(exact, x)
    for tracked in (False, True):
        rarity = RarityGradient(**settings, tracked=tracked, tolerance=0.0)
        for _ in range(2):  # the second one follows where it is tracked
            found = rarity(device, x.cuda())
            assert found.grad.device.type == "cuda"
            assert cosine(found.grad, expected.grad) > 0.999
            torch.testing.assert_close(found.score, expected.score, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_in_half_precision(pairs, kind):
    exact, device = pairs[kind]
    x = exact.preprocess(pictures())
    expected = RarityGradient(K, 4, 6, tolerance=0.0)(exact, x)
    found = RarityGradient(K, 4, 2, half=True, tolerance=0.35)(device, x.cuda())
    assert cosine(found.grad, expected.grad) > 0.9


PRESETS: dict[str, dict[str, Any]] = {
    "faithful": {"tracked": False},
    "custom": {},
    "balanced": {"half": True},
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_five_times_the_same_calls_give_the_same_bits(pairs, kind, preset):
    _, device = pairs[kind]
    images = pictures().cuda()
    found = []
    for _ in range(5):
        leaf = images.clone().requires_grad_()
        x = device.preprocess(leaf)
        rarity = RarityGradient(K, **PRESETS[preset])
        grads = [
            rarity(device, x.detach()).grad for _ in range(2)
        ]  # the second one follows where it is tracked
        novelty = novelty_gradient(device, x.detach(), lambda embeddings: embeddings.square().sum(1))
        found.append((*grads, novelty.grad, *torch.autograd.grad(x, leaf, grads[-1])))
    for again in found[1:]:
        assert sum((one != other).sum().item() for one, other in zip(found[0], again, strict=True)) == 0


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "tokens", "width"), [(10, 4096, 64), (24, 1000, 128), (1, 16384, 512)])
def test_five_times_the_same_attention_gives_the_same_bits(heads, tokens, width, dtype, mask):
    """Denoisers' attention, and that of a decoder at 1024 pixels."""
    generator = torch.Generator().manual_seed(1)
    *inputs, cotangent = (
        torch.randn(1, heads, tokens, width, generator=generator).to("cuda", dtype) for _ in range(4)
    )
    inputs = [tensor.requires_grad_() for tensor in inputs]
    seen = torch.ones(1, 1, 1, tokens, dtype=torch.bool, device="cuda") if mask else None
    found = []
    with ordered():
        for _ in range(5):
            output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=seen)
            found.append((output.detach(), *torch.autograd.grad(output, inputs, cotangent)))
    assert torch.get_deterministic_debug_mode() == 0
    for again in found[1:]:
        assert sum((one != other).sum().item() for one, other in zip(found[0], again, strict=True)) == 0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_replayed_passes_give_the_bits_of_plain_ones(pairs, caplog, kind, half):
    exact, device = pairs[kind]
    x = exact.preprocess(pictures()).float().cuda()
    plain, replayed = RarityGradient(K, half=half), RarityGradient(K, half=half, replay=True)
    for step in range(4):  # captured at the second, replayed from then on
        expected, found = plain(device, x + 0.02 * step), replayed(device, x + 0.02 * step)
        assert torch.equal(found.grad, expected.grad)
        assert torch.equal(found.score, expected.score)
    assert not caplog.records  # nothing fell back
    replayed.release()
    assert torch.equal(replayed(device, x + 0.06).grad, plain(device, x + 0.06).grad)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("kind", ["dinov2", "clip_vision_model"])  # resized bilinear and bicubic
def test_what_the_encoder_sees_and_its_gradient(pairs, kind, fit, antialias):
    exact, device = pairs[kind]
    leaf = pictures().double().requires_grad_()
    seen = exact.preprocess(leaf, fit=fit, antialias=antialias)
    cotangent = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1)).double()
    (expected,) = torch.autograd.grad(seen, leaf, cotangent)
    here = leaf.detach().float().cuda().requires_grad_()
    x = device.preprocess(here, fit=fit, antialias=antialias)
    torch.testing.assert_close(x.cpu().double(), seen.detach(), rtol=0, atol=1e-4)
    (found,) = torch.autograd.grad(x, here, cotangent.float().cuda())
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=1e-4)
