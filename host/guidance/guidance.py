"""What a MODEL is patched with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..encoders.host_encoder import HostEncoder
from ..gradient.estimate import GradientChain
from .schedule import Schedule
from .trace import Trace

KEY = "jepa_guidance"  # of this pack's wrappers, and of the models that it attaches to a MODEL


@dataclass(frozen=True)
class Guidance:
    """What a MODEL is patched with. Runs read it and never change it.

    Attributes:
        by: the node that made it, as users know it.
        schedule, one_call: see GuidanceConfig.
        chain: the source of the gradient; every run gets its own from begin_run.
        vae: the decoder's; its weights stay in place. None for a gradient that decodes nothing.
        encoders: guides and judges.
        how: how the gradient is computed, as a line for users.
        notices: deviations from the settings that are known before any run.
        on_pass: called after every encoder pass; may raise to stop.
        report: called with the trace after every step, and from time to time within guided steps.
    """

    by: str
    schedule: Schedule
    one_call: bool
    chain: GradientChain
    vae: Any | None
    encoders: Sequence[HostEncoder]
    how: str
    notices: Sequence[str]
    on_pass: Callable[[], None]
    report: Callable[[Trace], None]
