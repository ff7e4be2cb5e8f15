"""The inputs that nodes which sample share, as the host's KSampler has them."""

from comfy_api.latest import io

from ..host.comfy.required import KSampler
from ..host.comfy.sampling import sampler_named
from ..host.guidance.refused_samplers import sampler_refusal

MAX_CFG = 100.0


def sampling_inputs(*, steps: int, steps_tip: str, cfg_tip: str, sampler_tip: str) -> list[io.Input]:
    """steps, cfg, sampler_name and scheduler.

    Args:
        steps: its default. steps_tip, cfg_tip, sampler_tip: tooltips.
    """
    return [
        io.Int.Input("steps", default=steps, min=1, max=10000, tooltip=steps_tip),
        io.Float.Input("cfg", default=8.0, min=0.0, max=MAX_CFG, step=0.1, round=0.01, tooltip=cfg_tip),
        io.Combo.Input(
            "sampler_name",
            options=list(KSampler.SAMPLERS),
            default="euler",
            tooltip=sampler_tip,
            # web/js/samplers.js warns of these, which strength 0 allows
            extra_dict={"jepa_unguided": list(filter(_refusal, KSampler.SAMPLERS))},
        ),
        io.Combo.Input(
            "scheduler",
            options=list(KSampler.SCHEDULERS),
            default="normal",
            tooltip="How noise is removed over the steps.",
        ),
    ]


def share_input(name: str, default: float, tooltip: str) -> io.Float.Input:
    """A share of the steps or of the diffusion time, from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.05, tooltip=tooltip)


def sampler_message(name: str) -> str | None:
    """Why the pack cannot follow the steps of a sampler, or None if it can."""
    return missing_sampler(name) or _refusal(name)


def missing_sampler(name: str) -> str | None:
    """Why there is no such sampler, or None if there is."""
    if name not in KSampler.SAMPLERS:
        return f"sampler_name {name!r} is not in KSampler's menu now; choose another, or load the pack that adds it"
    if sampler_named(name) is None:
        return f"sampler_name {name!r} works only in a node of the pack that lists it; choose another, for instance euler"
    return None


def _refusal(name: str) -> str | None:
    sampler = sampler_named(name)
    return None if sampler is None else sampler_refusal(sampler)
