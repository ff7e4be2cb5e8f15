"""The host's own sampling, outside a graph."""

from typing import Any

import torch
from torch import Tensor

from research.harness.pack import load_pack

load_pack()
import comfy.sample  # noqa: E402

STEPS, CFG, SAMPLER, SCHEDULER = 14, 2.0, "euler", "simple"
LATENT_SIDE = 16  # of the demo generator's pictures


@torch.inference_mode()
def draw(
    model: Any,
    positive: Any,
    negative: Any,
    *,
    seed: int,
    count: int = 1,
    only: slice = slice(None),
    steps: int = STEPS,
    cfg: float = CFG,
    **others: Any,
) -> Tensor:
    """The latents (count, C, 16, 16) that KSampler gives for a MODEL of the demo generator and an Empty Latent Image.

    Args:
        only: samples these rows of the batch alone.
        others: of the host's `comfy.sample.sample`, such as callback.
    """
    empty = comfy.sample.fix_empty_latent_channels(model, torch.zeros(count, 4, LATENT_SIDE, LATENT_SIDE), 8)
    noise = comfy.sample.prepare_noise(empty, seed)
    empty, noise = empty[only], noise[only]
    how = (steps, cfg, SAMPLER, SCHEDULER, positive, negative, empty)
    return comfy.sample.sample(model, noise, *how, disable_pbar=True, seed=seed, **others)
