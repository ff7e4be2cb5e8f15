"""The stock sampler."""

from typing import Any

from .internals import common_ksampler


def stock_sample(model: Any, latent: dict, **settings: Any) -> dict:
    """Run the host's own KSampler code; returns a LATENT.

    Args:
        settings: seed, steps, cfg, sampler_name, scheduler, positive, negative, denoise.
    """
    return common_ksampler(model, latent=latent, **settings)[0]
