"""Noise of its own, and the global random states, kept across calls that are not the sampler's own."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the global random states of the CPU and of `device` after the block."""
    accelerator: Any = None if device.type == "cpu" else torch.get_device_module(device)
    before = accelerator and accelerator.get_rng_state()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        if accelerator:
            accelerator.set_rng_state(before)


def own_noise(y: Tensor, key: tuple[int | float | None, ...]) -> Tensor:
    """Standard normal noise like y, float32, drawn on the CPU from a generator of its own."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.randn(y.shape, generator=generator, device="cpu").to(y.device)
