"""What people run beside guidance: compiled networks, kernels of attention, quantised weights, tiles."""

from __future__ import annotations

import shutil
from typing import Any

import nodes as host_nodes
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from jepa_guidance.host.guidance.schedule import Schedule
from torch import Tensor

from jepa_core import RarityGradient
from tests.host.guide import guide_model

BLOCK = 32  # numbers with one scale


def guided(tiny: Any, model: Any, reports: list[Any], through: bool) -> Any:
    return guide_model(
        model,
        tiny.vae,
        tiny.encoder,
        Schedule(strength=0.7, end_percent=1.0),
        RarityGradient(k=3, oversample=2, power_iterations=0),
        through_denoiser=through,
        report=reports.append,
    )


def change_by_guidance(tiny: Any, stock: Any, model: Any, through: bool) -> tuple[Tensor, Tensor, list[str]]:
    """The guided image, what guidance changed, and what the run had to say."""
    reports: list[Any] = []
    found = stock(guided(tiny, model, reports, through), tiny)
    return found, found - stock(model, tiny), reports[-1].notices


def alike(found: Tensor, expected: Tensor) -> bool:
    """Equal to rounding: far below what guidance changes."""
    return bool((found - expected).norm() <= 1e-3 * expected.norm())


# --- torch.compile ----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler")
@pytest.mark.parametrize("through", [False, True])
def test_a_model_compiled_by_the_hosts_node_is_guided_as_it_is_uncompiled(tiny, stock, through):
    with torch.inference_mode():
        (compiled,) = TorchCompileModel.execute(tiny.model, "inductor").args
    _, expected, _ = change_by_guidance(tiny, stock, tiny.model, through)
    _, changed, notices = change_by_guidance(tiny, stock, compiled, through)
    assert expected.norm() > 0
    assert (
        changed - expected
    ).norm() <= 0.02 * expected.norm()  # compiled kernels round otherwise, in every call
    assert notices == []


# --- attention --------------------------------------------------------------------------------------------------


class WithoutBackward(torch.autograd.Function):
    """As Sage attention: computes the same, and has no backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, heads, options):
        return attention_pytorch(q, k, v, heads, **options)


@pytest.mark.parametrize("through", [False, True])
def test_an_attention_without_a_backward_pass_is_used_and_not_differentiated(tiny, stock, through):
    used = []

    def override(original, q, k, v, heads, **options):
        used.append(torch.is_grad_enabled())
        return WithoutBackward.apply(q, k, v, heads, options)

    model = tiny.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    _, expected, _ = change_by_guidance(tiny, stock, tiny.model, through)
    _, changed, notices = change_by_guidance(tiny, stock, model, through)
    assert used
    assert not any(used)
    assert alike(changed, expected)
    assert notices == []


# --- quantised weights ------------------------------------------------------------------------------------------


class Blocks(torch.nn.Linear):
    """A linear layer of a GGUF pack: eight-bit blocks, each with a scale, made numbers in every call."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__(1, 1, bias=False)
        rows = plain.weight.detach().float().reshape(-1, BLOCK)
        self.shape = plain.weight.shape
        scale = rows.abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((rows / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale.half())
        self.bias = plain.bias

    def numbers(self) -> Tensor:
        return (self.weight.float() * self.scale.float()).reshape(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(
            x, self.numbers().to(x), None if self.bias is None else self.bias.to(x)
        )


def quantised(tiny: Any, keep_blocks: bool) -> Any:
    """A MODEL of which all linear layers that can be are in blocks, or have the numbers of those blocks."""
    with torch.inference_mode():
        model = tiny.make_model()
        for part in list(model.model.diffusion_model.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, torch.nn.Linear) and child.weight.shape[1] % BLOCK == 0:
                    blocks = Blocks(child)
                    child.weight.copy_(blocks.numbers())
                    if keep_blocks:
                        setattr(part, name, blocks)
    return model


@pytest.mark.parametrize("through", [False, True])
def test_weights_in_blocks_are_guided_as_their_numbers_are(tiny, stock, through):
    blocks, numbers = quantised(tiny, True), quantised(tiny, False)
    made = [part for part in blocks.model.modules() if isinstance(part, Blocks)]
    assert len(made) > 5
    _, expected, _ = change_by_guidance(tiny, stock, numbers, through)
    _, changed, notices = change_by_guidance(tiny, stock, blocks, through)
    assert expected.norm() > 0
    assert alike(changed, expected)
    assert notices == []
    assert all(part.weight.dtype == torch.int8 for part in made)


# --- tiles ------------------------------------------------------------------------------------------------------


def test_a_guided_latent_is_decoded_in_tiles_as_any_other(tiny, stock):
    empty = {"samples": torch.zeros(1, 4, 48, 48)}
    found = stock(guided(tiny, tiny.model, [], False), tiny, latent_image=empty, steps=2)
    with torch.inference_mode():
        whole = host_nodes.VAEDecode().decode(tiny.vae, {"samples": found})[0]
        (tiled,) = host_nodes.VAEDecodeTiled().decode(tiny.vae, {"samples": found}, 64, overlap=32)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.05  # group normalisation sees other pixels in a tile
