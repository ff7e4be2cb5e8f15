"""What a run writes into its trace."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..comfy.memory import is_out_of_memory
from ..gradient.estimate import GradientChain
from ..gradient.image_gradient import ScoreGradient
from ..gradient.random_state import random_state_kept
from .shift import is_finite
from .trace import GuidedStep, Trace


def record_step(trace: Trace, step: int, sigma: float, found: ScoreGradient, change: Tensor) -> None:
    """Add a guided step; `change` is what was subtracted from x."""
    finite = is_finite(found.gradient)
    if not finite.all():
        logging.warning(
            "JEPA guidance: step %d: image(s) %s not shifted, their gradient is not finite",
            step + 1,
            (~finite).nonzero().flatten().tolist(),
        )
    trace.add(
        GuidedStep(
            step,
            sigma,
            found.score.tolist(),
            _by_label(trace.guides, found.each),
            _by_label(trace.judges, found.judged),
            found.gradient.flatten(1).norm(dim=1).tolist(),
            change.flatten(1).abs().amax(1).tolist(),
            novelty=[] if found.novelty is None else found.novelty.tolist(),
            push=[] if found.push is None else found.push.tolist(),
        )
    )


def record_places(trace: Trace, chain: GradientChain, result: Tensor, base_model: Any) -> None:
    """Record where finished images lie in the reference; `result` is free of noise, in the scale of the model's latents."""
    try:
        with random_state_kept(result.device):  # some decoders draw noise
            trace.places = chain.places(result, base_model)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        trace.notice("out of memory: where the images lie in the reference is not known")


def _by_label(labels: Sequence[str], scores: Tensor | None) -> dict[str, list[float]]:
    # a gradient that is not that of a score has no labels
    return {} if scores is None or not labels else dict(zip(labels, scores.tolist(), strict=True))
