"""The stock sampler, and messages to the page."""

from typing import Any

from .internals import common_ksampler, send_progress_text


def stock_sample(model: Any, latent: dict, **settings: Any) -> dict:
    """Run the host's own KSampler code; returns a LATENT.

    Args:
        settings: seed, steps, cfg, sampler_name, scheduler, positive, negative, denoise.
    """
    return common_ksampler(model, latent=latent, **settings)[0]


def show_text(node_id: str | None, text: str) -> None:
    """Show text under a node while the graph runs."""
    if node_id is not None:
        send_progress_text(text, node_id)
