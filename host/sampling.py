"""The stock sampler, and messages to the page."""

from typing import Any

import nodes as host_nodes
from server import PromptServer

from .guidance import Trace


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


def show_trace(node_id: str | None, trace: Trace) -> None:
    """Show the trace's message under a node and send its steps as a `jepa.trace` event."""
    show_text(node_id, trace.message)
    PromptServer.instance.send_sync(
        "jepa.trace", {"node": node_id, "message": trace.message, "steps": trace.steps}
    )
