"""When memory runs out in the middle of a run: the next way to go on with less of it."""

import logging
from typing import Any

from ..comfy.memory import unload_idle
from ..gradient.chain import GradientChain


def fall_back(guider: Any, chain: GradientChain) -> str | None:
    """Go on with less memory: first without models that this run does not need, then by a cheaper chain.

    Returns:
        What was done, for people; None when nothing is left.
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
