"""The inputs that nodes which sample share, as the host's KSampler has them."""

from comfy_api.latest import io

from ..host.comfy.required import SAMPLER_NAMES, SCHEDULER_NAMES

MAX_CFG = 100.0


def sampling_inputs(*, steps: int, steps_tip: str, cfg_tip: str, sampler_tip: str) -> list[io.Input]:
    """steps, cfg, sampler_name and scheduler.

    Args:
        steps: its default. steps_tip, cfg_tip, sampler_tip: tooltips.
    """
    return [
        io.Int.Input("steps", default=steps, min=1, max=10000, tooltip=steps_tip),
        io.Float.Input("cfg", default=8.0, min=0.0, max=MAX_CFG, step=0.1, round=0.01, tooltip=cfg_tip),
        io.Combo.Input("sampler_name", options=SAMPLER_NAMES, default="euler", tooltip=sampler_tip),
        io.Combo.Input(
            "scheduler",
            options=SCHEDULER_NAMES,
            default="normal",
            tooltip="How noise is removed over the steps.",
        ),
    ]
