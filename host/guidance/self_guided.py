"""Self-guided minority sampling as a MODEL patch: guidance without an encoder and without a VAE (arXiv 2407.11555)."""

from collections.abc import Callable
from typing import Any

from ..comfy.required import interrupt_check
from ..gradient.self_guidance import SelfGuidance
from ..gradient.ways import Way
from ..options import DENOISER_CONSTANT, PER_STEP, SELF_GUIDED, THROUGH_DENOISER
from .attachment import guided, not_differentiable
from .guidance import Guidance
from .preparation import held_constant
from .refusals import check_makes_pictures, check_one_device, check_sampling
from .schedule import Schedule
from .trace import Trace


def self_guided_schedule(strength: float, interval: int, start: float = 0.0, end: float = 1.0) -> Schedule:
    """The paper's: each guided step moves by strength times its posterior variance, the gradient's largest entry being 1."""
    return Schedule(strength, start, end, interval, strength_rule=PER_STEP, variance=True)


def apply_self_guidance(
    model: Any,
    schedule: Schedule,
    level: float,
    *,
    on_pass: Callable[[], None] = interrupt_check,
    report: Callable[[Trace], None] = lambda trace: None,
) -> Any:
    """Return a clone of MODEL that is guided by itself, in place of an earlier guidance.

    The denoiser's output is reused at the shifted latent. For Euler's sampler and models that predict the noise this moves
    the result of the step, as the paper does.

    Args:
        schedule: see self_guided_schedule. level: see SelfGuidance.
        on_pass: called after each clean estimate of what was noised again; may raise to stop.
        report: called with the trace after every step.

    Raises:
        ValueError: a model that guidance does not support, or that is on several devices.
    """
    check_sampling(model)
    check_makes_pictures(model)
    check_one_device(model)
    why = not_differentiable(model, [])
    path = DENOISER_CONSTANT if why else THROUGH_DENOISER
    guidance = Guidance(
        SELF_GUIDED,
        schedule,
        one_call=True,
        chain=SelfGuidance(level, Way(through_denoiser=why is None)),
        vae=None,
        encoders=[],
        how=f"self-guided minority sampling, {path}, noised again to {level:g} of the time",
        notices=[held_constant(why)] if why else [],
        on_pass=on_pass,
        report=report,
    )
    return guided(model, guidance, [], why is None)
