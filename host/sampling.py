"""The stock sampler, and messages to the page."""

from typing import Any

import nodes as host_nodes
from server import PromptServer


def stock_sample(model: Any, latent: dict, **settings: Any) -> dict:
    """Run the host's own KSampler code; returns a LATENT.

    Args:
        settings: seed, steps, cfg, sampler_name, scheduler, positive, negative, denoise.
    """
    # the type checker takes the host's module for this pack's folder of the same name
    return host_nodes.common_ksampler(model, latent=latent, **settings)[0]  # type: ignore[attr-defined]


def show_text(node_id: str | None, text: str) -> None:
    """Show text under a node while the graph runs."""
    if node_id is not None:
        PromptServer.instance.send_progress_text(text, node_id)
