"""Counted memory is the memory that torch takes."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from jepa_guidance.host.memory.count import fused_attention, peak_of, peak_of_backward
from torch import Tensor

from research.costs.memory import (
    Case,
    count,
    meta_encoder,
    meta_kl_decoder,
    meta_taesd,
    meta_unet,
    peak_of_command,
)

MIB = 1 << 20

# Big tensors, so that each comes from the system and goes back to it alone.
SCRIPT = """
import sys, torch
from torch import nn
torch.set_num_threads(1)
net = nn.Sequential(nn.Linear(64, 4096), nn.Tanh(), nn.GELU(), nn.Linear(4096, 64))
net.requires_grad_(False)
# the libraries' own first use
first = torch.ones(4, 64, requires_grad=True)
torch.autograd.grad(net(first).sum(), first)
# more than importing took for a moment, so that the peak is now and not then
ballast = torch.ones(1 << 28, dtype=torch.uint8)
x = torch.ones(8192, 64)
if sys.argv[1] == "work":
    x.requires_grad_()
    y = net(x)
    torch.autograd.grad(y, x, torch.ones_like(y))
"""


def network(device: str) -> torch.nn.Module:
    nn = torch.nn
    with torch.device(device):
        net = nn.Sequential(nn.Linear(64, 4096), nn.Tanh(), nn.GELU(), nn.Linear(4096, 64))
    return net.requires_grad_(False)


def test_a_count_by_hand() -> None:
    x = torch.empty(MIB // 4, device="meta")
    # kept: exp's result. Peak: that, its cotangent (both are ours), their product, and twice the product.
    assert peak_of_backward(lambda z: (z * 2).exp(), x) == (4 * MIB, MIB)
    # views and writing in place take nothing
    assert peak_of(lambda: (x + 1).view(2, -1).t().mul_(3)) == MIB


def test_the_same_with_data_and_without() -> None:
    found = [
        peak_of_backward(network(device), torch.ones(16, 64, device=device)) for device in ("cpu", "meta")
    ]
    assert found[0] == found[1]
    # tanh's result, which is gelu's input, and the output
    assert found[0].kept == 16 * (4096 + 64) * 4


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX counts a process's memory")
def test_the_count_is_what_a_process_takes() -> None:
    counted = peak_of_backward(network("meta"), torch.ones(8192, 64, device="meta")).peak
    command = [sys.executable, "-c", SCRIPT]
    taken = peak_of_command([*command, "work"]) - peak_of_command([*command, "rest"])
    assert counted > 300 * MIB
    assert taken == pytest.approx(counted, rel=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX counts a process's memory")
def test_peak_of_a_command_is_its_own() -> None:
    ours = torch.ones(100 * MIB)  # 400 MiB of this process
    small = peak_of_command([sys.executable, "-c", "pass"])
    large = peak_of_command([sys.executable, "-c", f"x = bytearray(b'x') * {200 * MIB}"])
    assert small < 100 * MIB < ours.nbytes
    assert large - small == pytest.approx(200 * MIB, rel=0.02)
    with pytest.raises(RuntimeError, match="no such thing"):
        peak_of_command([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_fused_attention_writes_no_matrix() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    stock = F.scaled_dot_product_attention
    for dtype, width in ((torch.float16, 64), (torch.float32, 64), (torch.float32, 512)):
        x = torch.empty(1, 2, 4096, width, dtype=dtype, device="meta")
        peak, kept = peak_of_backward(attend, x)
        assert peak < 7 * x.nbytes  # in and out, and the cotangents; the matrix alone is 8 or 64
        # the result and a number per row
        assert x.nbytes <= kept <= x.nbytes + 2 * 4096 * 8
        assert peak_of(lambda x=x: attend(x)) >= x.nbytes
    assert F.scaled_dot_product_attention is stock
    # tensors with data keep torch's own
    real = torch.randn(1, 2, 8, 16)
    with fused_attention():
        torch.testing.assert_close(attend(real), stock(real, real, real), rtol=0, atol=0)


def test_networks_have_the_shapes_of_the_hosts() -> None:
    latent = torch.empty(2, 4, 32, 32, dtype=torch.float16, device="meta")
    for kind, parameters in (("sd15", 859_520_964), ("sdxl", 2_567_463_684)):
        unet = meta_unet(kind, torch.float16)
        assert sum(weight.numel() for weight in unet.module.parameters()) == parameters
        assert unet.function(latent).shape == latent.shape
    for decoder in (meta_kl_decoder, meta_taesd):
        assert decoder(torch.float16).function(latent).shape == (2, 3, 256, 256)
    encoder = meta_encoder("sdpa")
    assert sum(weight.numel() for weight in encoder.module.parameters()) == 22_056_576
    assert encoder.function(torch.empty(5, 3, 224, 224, device="meta")).shape == (5, 384)


def test_checkpointing_keeps_less() -> None:
    shape = (2, 4, 32, 32)
    cases = [
        Case(lambda: meta_unet("sd15", torch.float16), shape, torch.float16, checkpoint=checkpoint)
        for checkpoint in (False, True)
    ]
    plain, checkpointed = map(count, cases)
    assert checkpointed.kept < plain.kept / 2
    assert checkpointed.peak < plain.peak / 2
