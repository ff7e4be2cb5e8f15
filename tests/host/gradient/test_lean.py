"""Layers that keep less give the same gradient, bit for bit, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from jepa_guidance.host.gradient.decoders import decoded
from jepa_guidance.host.gradient.differentiable import host_differentiable
from jepa_guidance.host.gradient.lean import lean, saving_memory
from jepa_guidance.host.memory.count import peak_of_backward
from torch import nn

from tests.host.guidance.test_families import family_of


def gradient(run, x):
    leaf = x.clone().requires_grad_()
    out = run(leaf)
    (found,) = torch.autograd.grad(out, leaf, torch.sin(torch.arange(out.numel()).reshape(out.shape)).to(out))
    return out.detach(), found


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def test_a_decoder_gives_the_same_bits_and_keeps_less_than_half(tiny):
    net, latent = tiny.vae.first_stage_model, random(1, 4, 12, 12)

    def decode(z):
        return decoded(tiny.vae, z)

    with host_differentiable(net):
        plain, usual = gradient(decode, latent), peak_of_backward(decode, latent)
        with lean(net):
            less, kept = gradient(decode, latent), peak_of_backward(decode, latent)
    assert torch.equal(plain[0], less[0])
    assert torch.equal(plain[1], less[1])
    assert kept.kept < 0.5 * usual.kept
    assert kept.peak < 0.6 * usual.peak


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_kind_of_convolution(options, dtype):
    layer = nn.Conv2d(4, 6, 3, **{"padding": 1} | options).to(dtype).requires_grad_(False)
    x = random(2, 4, 9, 11).to(dtype)
    plain = gradient(layer, x)
    with lean(layer):
        less = gradient(layer, x)
        assert torch.equal(layer(x), plain[0])  # without a graph
    assert torch.equal(plain[0], less[0])
    assert torch.equal(plain[1], less[1])


def replaced(layer):
    layer._conv_forward = lambda x, weight, bias: 2 * nn.functional.conv2d(x, weight, bias, padding=1)
    return layer


class Own(nn.Conv2d):
    """A convolution of another pack."""

    def forward(self, x):
        return 3 * super().forward(x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 3, 3, padding="same"),
        replaced(nn.Conv2d(3, 3, 3, padding=1)),
        Own(3, 3, 3, padding=1),
    ],
    ids=["seamless", "same", "replaced", "own"],
)
def test_other_packs_convolutions_stay_as_they_are(layer):
    layer.requires_grad_(False)
    x = random(1, 3, 6, 6)
    plain = gradient(layer, x)
    with lean(layer):
        assert "forward" not in vars(layer)
        less = gradient(layer, x)
    assert torch.equal(plain[1], less[1])


def test_the_hosts_cast_weights_stay_as_they_are(tiny):
    conv = next(part for part in tiny.vae.first_stage_model.modules() if isinstance(part, nn.Conv2d))
    conv.comfy_cast_weights = True
    with lean(conv):
        assert "forward" not in vars(conv)


def test_nothing_is_left_after_an_error(tiny):
    net = tiny.vae.first_stage_model
    inside = []

    def fail():
        with lean(net):
            inside.extend("forward" in vars(part) for part in net.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert any(inside)
    assert not any("forward" in vars(part) for part in net.modules())


def test_a_covered_decoder_is_not_checkpointed_and_others_are(tiny):
    """For a KL decoder a checkpoint would cost a forward pass and save nothing."""
    kinds = {"ResnetBlock": [], "ResidualBlock": []}
    for net in (tiny.vae.first_stage_model, family_of("wan_still").vae.first_stage_model):
        with saving_memory(net, checkpointing=True):
            for part in net.modules():
                if type(part).__name__ in kinds:
                    kinds[type(part).__name__].append("forward" in vars(part))
    assert kinds["ResnetBlock"]
    assert not any(kinds["ResnetBlock"])
