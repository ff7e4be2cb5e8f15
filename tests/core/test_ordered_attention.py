"""The means of an ordered backward pass in the encoder: attention by matrix products, and patches without a convolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_core import Encoder, load_encoder, ordered_attention
from jepa_core.architectures import ARCHITECTURES
from jepa_core.encoder import ORDERED_ATTENTION, _PatchEmbedding
from jepa_core.ordered_attention import ordered_attention as attend
from tests.core.conftest import SMALL, kept_for_backward

KINDS = list(ARCHITECTURES)
QUERIES, KEYS = 7, 5


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def encoders(save_model: Callable[..., Path]) -> dict[str, Encoder]:
    """A random encoder of each architecture in float64."""
    return {
        kind: load_encoder(
            save_model(kind), dtype=torch.float64, image_size=2 * int(SMALL[kind]["patch_size"])
        )
        for kind in KINDS
    }


# --- attention ----------------------------------------------------------------------------------------------------


def some_mask(kind: str) -> Tensor | None:
    """A mask of (QUERIES, KEYS), or one row of it, by its name."""
    seen = numbers(9, QUERIES, KEYS) > -0.5
    seen[:, 0] = True
    return {
        "none": None,
        "boolean": seen,
        "added": numbers(8, 2, 1, QUERIES, KEYS),
        "one row": seen[:1],
        "minus infinity": torch.zeros(QUERIES, KEYS).double().masked_fill(~seen, -torch.inf),
    }[kind]


@pytest.mark.parametrize("chunk", [1, 3 * 8 * KEYS * 6, 1 << 26])
@pytest.mark.parametrize("mask", ["none", "boolean", "added", "one row", "minus infinity"])
def test_attention_and_its_gradient_are_torch_s(monkeypatch, mask, chunk):
    """With one query at a time, three, and all at once."""
    monkeypatch.setattr(ordered_attention, "_CHUNK", chunk)
    inputs = [numbers(1, 2, 3, QUERIES, 4), numbers(2, 2, 3, KEYS, 4), numbers(3, 2, 3, KEYS, 6)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    seen = some_mask(mask)
    for scale in (None, 0.7):
        expected = F.scaled_dot_product_attention(*inputs, attn_mask=seen, scale=scale)
        found = attend(*inputs, seen, scale)
        assert torch.equal(found, expected)
        cotangent = numbers(4, *expected.shape)
        pairs = [torch.autograd.grad(value, inputs, cotangent) for value in (found, expected)]
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_nothing_has_no_gradient():
    inputs = [numbers(seed, 1, 2, 4).requires_grad_() for seed in range(3)]
    mask = torch.tensor([[True, True], [False, False]])
    gradients = torch.autograd.grad(attend(*inputs, mask).sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][0, 1].abs().max() == 0
    assert gradients[0][0, 0].abs().max() > 0


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_wanted_are_computed(wanted):
    inputs = [numbers(seed, 3, 4).requires_grad_(want) for seed, want in enumerate(wanted)]
    every = [tensor.detach().requires_grad_() for tensor in inputs]
    (found,) = torch.autograd.grad(attend(*inputs).sum(), [inputs[wanted.index(True)]])
    expected = torch.autograd.grad(F.scaled_dot_product_attention(*every).sum(), every)
    torch.testing.assert_close(found, expected[wanted.index(True)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_gradient_is_as_good_as_torch_s(dtype):
    exact = [4 * numbers(seed, 2, 64, 32) for seed in range(3)]
    exact = [tensor.to(dtype).double().requires_grad_() for tensor in exact]
    cotangent = numbers(4, 2, 64, 32).to(dtype)
    expected = torch.autograd.grad(
        F.scaled_dot_product_attention(*exact), exact, cotangent.double(), retain_graph=True
    )
    half = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
    errors = []
    for attention in (attend, F.scaled_dot_product_attention):
        found = torch.autograd.grad(attention(*half), half, cotangent)
        assert all(gradient.dtype == dtype for gradient in found)
        errors.append(
            [
                float((one.double() - other).norm() / other.norm())
                for one, other in zip(found, expected, strict=True)
            ]
        )
    for ours, torchs in zip(*errors, strict=True):
        assert ours < max(2 * torchs, torch.finfo(dtype).eps)


class Largest(TorchDispatchMode):
    """The largest tensor, in bytes, that an operation returns in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.untyped_storage().nbytes())
        return result


def test_no_matrix_of_all_queries_and_keys_is_made(monkeypatch):
    """The decoder of an image of 512 pixels: 4096 tokens, one head."""
    limit = 1 << 22
    monkeypatch.setattr(ordered_attention, "_CHUNK", limit)
    inputs = [numbers(seed, 1, 1, 4096, 8).float().requires_grad_() for seed in range(3)]
    with Largest() as largest:
        attend(*inputs).sum().backward()
    assert largest.size <= limit
    assert 16 * limit == 4096 * 4096 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_has_the_same_gradient_with_ordered_attention(encoders, kind):
    encoder = encoders[kind]
    image = numbers(1, 1, *encoder.input_shape)
    found = []
    for name in ("jepa_plain", ORDERED_ATTENTION):
        encoder.model.set_attn_implementation(name)
        leaf = image.clone().requires_grad_()
        output = encoder(leaf)
        found.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
    encoder.model.set_attn_implementation("jepa_plain")
    for plain, ordered in zip(*found, strict=True):
        torch.testing.assert_close(ordered, plain, rtol=0, atol=1e-5)


def test_ordered_attention_keeps_no_more_than_fused_attention(save_model):
    encoder = load_encoder(save_model(num_hidden_layers=4, hidden_size=64), image_size=448)
    image = torch.zeros(1, 3, 448, 448)
    kept = {}
    for name in ("sdpa", ORDERED_ATTENTION, "jepa_plain"):
        encoder.model.set_attn_implementation(name)
        kept[name] = kept_for_backward(encoder, image)[1]
    assert kept[ORDERED_ATTENTION] <= kept["sdpa"] < kept["jepa_plain"] / 2


def test_on_cuda_a_plain_backward_pass_uses_ordered_attention(encoder, monkeypatch):
    used = {}
    for cuda in (False, True):
        monkeypatch.setattr(type(encoder), "weight", property(lambda _, cuda=cuda: Device(cuda)))
        with encoder.fused_attention():
            used[cuda] = encoder.model.config._attn_implementation
    assert used == {False: "sdpa", True: ORDERED_ATTENTION}


class Device:
    """What fused_attention asks of a weight."""

    def __init__(self, is_cuda: bool) -> None:
        self.is_cuda = is_cuda


# --- patches ------------------------------------------------------------------------------------------------------


def patch_embedding(encoder: Encoder) -> nn.Module:
    """The only module that embeds patches, beside its convolution."""
    found = [part for part in encoder.modules() if isinstance(part, _PatchEmbedding)]
    assert len(found) == 1
    return found[0]


def as_convolution(patches: nn.Module, x: Tensor) -> Tensor:
    """What transformers computes there."""
    convolve = F.conv3d if patches.weight.ndim == 5 else F.conv2d
    return convolve(x, patches.weight, patches.bias, stride=patches.weight.shape[2:])


def pixels(patches: nn.Module) -> Tensor:
    """Two images of 2 x 3 patches, or two clips of one tubelet."""
    *depth, height, width = patches.weight.shape[2:]
    return numbers(5, 2, 3, *depth, 2 * height, 3 * width)


@pytest.mark.parametrize("kind", KINDS)
def test_no_encoder_has_a_convolution(encoders, kind):
    encoder = encoders[kind]
    assert not any(isinstance(part, (nn.Conv2d, nn.Conv3d)) for part in encoder.modules())
    called: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(function.__name__)
            return function(*args, **(kwargs or {}))

    leaf = numbers(1, 1, *encoder.input_shape).requires_grad_()
    with Names():
        encoder(leaf).sum().backward()
    assert not [name for name in called if "conv" in name]


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_embedded_as_by_the_convolution(encoders, kind):
    """Forward, backward, forward mode, and a backward pass through forward mode, alone and batched over directions."""
    patches = patch_embedding(encoders[kind])
    x = pixels(patches)
    close = {"rtol": 1e-12, "atol": 1e-12}

    def ours(x: Tensor) -> Tensor:
        return patches(x)

    def theirs(x: Tensor) -> Tensor:
        return as_convolution(patches, x)

    assert ours(x).shape == theirs(x).shape
    torch.testing.assert_close(ours(x), theirs(x), **close)
    cotangents, tangents = numbers(6, 3, *ours(x).shape), numbers(7, 3, *x.shape)

    def pulled(f: Callable) -> Tensor:
        _, pull = torch.func.vjp(f, x)
        return torch.func.vmap(lambda u: pull(u)[0])(cotangents)

    def pushed(f: Callable) -> Tensor:
        return torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(tangents)

    def curved(f: Callable) -> Tensor:
        leaf = x.clone().requires_grad_()

        def bent(x: Tensor) -> Tensor:
            return f(x).tanh()

        products = torch.func.vmap(lambda v: torch.func.jvp(bent, (leaf,), (v,))[1])(tangents)
        return torch.autograd.grad((products * cotangents).sum(), leaf)[0]

    for derivative in (pulled, pushed, curved):
        torch.testing.assert_close(derivative(ours), derivative(theirs), **close)
