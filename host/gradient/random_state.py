"""The global random states, kept across calls that are not the sampler's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
