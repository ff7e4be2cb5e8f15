"""The out-of-memory fallback: the next way to continue a run with less memory."""

import logging
from typing import Any

from ..comfy.memory import unload_idle
from ..gradient.chain import GradientChain


def fall_back(guider: Any, chain: GradientChain) -> str | None:
    """Continue with less memory: first unload models that this run does not need, then make the chain cheaper.

    Returns:
        What was done, as a line for users; None if nothing is left to try.
    """
    if idle := unload_idle(guider):
        return f"out of memory: unloaded {idle} model(s) that this run does not need (the same image)"
    if done := chain.cheaper():
        return f"out of memory: {done}"
    logging.error(
        "JEPA guidance: out of memory, and nothing cheaper is left. Use a smaller image or encoder, or fewer "
        "models in the graph."
    )
    return None
